#include "meta/lease_table.h"

#include <map>
#include <random>

#include <gtest/gtest.h>

namespace kvcfs::meta {
namespace {

using std::chrono::seconds;

TEST(LeaseTableTest, LastsUntilItsTime) {
  LeaseTable leases(1000);
  EXPECT_EQ(leases.Grant(7, 100, seconds(10), seconds(40)), seconds(40));
  EXPECT_TRUE(leases.IsLeased(7, seconds(39)));
  EXPECT_FALSE(leases.IsLeased(7, seconds(40)));
  EXPECT_FALSE(leases.IsLeased(8, seconds(10)));
  EXPECT_EQ(leases.leased_bytes(), 100u);
  leases.Expire(seconds(41));
  EXPECT_EQ(leases.leased_bytes(), 0u);
  EXPECT_EQ(leases.size(), 0u);
}

TEST(LeaseTableTest, ALaterGrantProlongsAndAnEarlierOneKeeps) {
  LeaseTable leases(1000);
  EXPECT_EQ(leases.Grant(7, 100, seconds(0), seconds(30)), seconds(30));
  EXPECT_EQ(leases.Grant(7, 100, seconds(5), seconds(35)), seconds(35));
  EXPECT_EQ(leases.Grant(7, 100, seconds(5), seconds(20)), seconds(35));
  EXPECT_EQ(leases.leased_bytes(), 100u);
  leases.Expire(seconds(31));
  EXPECT_TRUE(leases.IsLeased(7, seconds(34)));
  leases.Expire(seconds(37));
  EXPECT_EQ(leases.size(), 0u);
}

TEST(LeaseTableTest, AtTheCapNewOnesAreRefusedAndOldOnesKept) {
  LeaseTable leases(250);
  EXPECT_EQ(leases.Grant(1, 100, seconds(0), seconds(30)), seconds(30));
  EXPECT_EQ(leases.Grant(2, 100, seconds(0), seconds(30)), seconds(30));
  EXPECT_EQ(leases.Grant(3, 100, seconds(0), seconds(30)), Millis(0));
  EXPECT_FALSE(leases.IsLeased(3, seconds(1)));
  EXPECT_EQ(leases.Grant(1, 100, seconds(10), seconds(40)), seconds(40));  // prolonged at the cap
  EXPECT_EQ(leases.Grant(4, 50, seconds(10), seconds(40)), seconds(40));   // fits
  leases.Drop(4);
  leases.Drop(4);
  EXPECT_EQ(leases.Grant(5, 50, seconds(10), seconds(40)), seconds(40));
  // The second is over: its bytes are free again.
  EXPECT_EQ(leases.Grant(3, 100, seconds(32), seconds(60)), seconds(60));
}

TEST(LeaseTableTest, AgreesWithAPlainMap) {
  std::mt19937_64 random(20240611);
  LeaseTable leases(1'000'000);
  std::map<uint64_t, Millis> until;
  Millis now{1'000'000'000};
  for (int step = 0; step < 50'000; ++step) {
    const uint64_t hash = random() % 500;
    now += Millis(random() % 200);
    if (step % 10'000 == 9'999) now += seconds(10'000);  // a long pause
    switch (random() % 4) {
      case 0:
        leases.Drop(hash);
        until.erase(hash);
        break;
      case 1:
        leases.Expire(now);
        break;
      default: {
        const Millis wanted = now + Millis(random() % 200'000);  // also beyond the wheel
        Millis& known = until[hash];
        known = std::max(known > now ? known : Millis(0), wanted);
        EXPECT_EQ(leases.Grant(hash, 10, now, wanted), known);
      }
    }
    const uint64_t asked = random() % 500;
    EXPECT_EQ(leases.IsLeased(asked, now), until.contains(asked) && until[asked] > now);
  }
  now += seconds(10'000);
  for (int turn = 0; turn < 5; ++turn) leases.Expire(now += seconds(64));
  EXPECT_EQ(leases.leased_bytes(), 0u);
  EXPECT_EQ(leases.size(), 0u);
}

}  // namespace
}  // namespace kvcfs::meta
