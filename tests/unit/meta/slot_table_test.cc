#include "meta/slot_table.h"

#include <map>
#include <random>

#include <gtest/gtest.h>

namespace kvcfs::meta {
namespace {

using layout::Place;

class SlotTableTest : public ::testing::Test {
 protected:
  SlotTableTest() { memory_.Allocate(1); }  // page 0 is the root's

  bool Has(uint64_t hash, uint64_t run) const {
    return table_.Find(hash, [&](const Place& place) { return place.run == run; }).run == run;
  }

  IndexMemory memory_;
  SlotTable table_{memory_};
};

TEST_F(SlotTableTest, GrowsAndStaysFull) {
  std::mt19937_64 random(1);
  std::vector<uint64_t> hashes(200'000);
  for (size_t i = 0; i < hashes.size(); ++i) {
    hashes[i] = random();
    ASSERT_TRUE(table_.Insert(hashes[i], {i + 1, static_cast<uint32_t>(i % 64), 7}));
    if (i % 20'000 == 19'999) {
      table_.CheckInvariants();
      const double load = static_cast<double>(table_.slot_count()) /
                          static_cast<double>(table_.bucket_count() * layout::kBucketSlots);
      EXPECT_GT(load, 0.7);
    }
  }
  for (size_t i = 0; i < hashes.size(); ++i) {
    EXPECT_TRUE(Has(hashes[i], i + 1));
    EXPECT_FALSE(Has(~hashes[i], i + 1));
  }
  for (size_t i = 0; i < hashes.size(); i += 2) {
    table_.Remove(hashes[i], {i + 1, static_cast<uint32_t>(i % 64), 7});
  }
  table_.CheckInvariants();
  EXPECT_EQ(table_.slot_count(), hashes.size() / 2);
  for (size_t i = 0; i < hashes.size(); ++i) EXPECT_EQ(Has(hashes[i], i + 1), i % 2 == 1);
}

TEST_F(SlotTableTest, KeysOfOneTagAreToldApart) {
  const uint64_t hash = 0x0123456789abcdef;
  ASSERT_TRUE(table_.Insert(hash, {1, 0, 0}));
  ASSERT_TRUE(table_.Insert(hash ^ 0xff, {2, 0, 0}));  // the upper 56 bits are the same
  EXPECT_TRUE(Has(hash, 1));
  EXPECT_TRUE(Has(hash, 2));
  table_.Remove(hash, {1, 0, 0});
  EXPECT_FALSE(Has(hash, 1));
  EXPECT_TRUE(Has(hash, 2));
}

// Someone who chooses hashes can fill two buckets, but not make the table grow without end.
TEST_F(SlotTableTest, HostileHashesAreRefused) {
  std::mt19937_64 random(2);
  for (uint64_t i = 0; i < 1000; ++i) ASSERT_TRUE(table_.Insert(random(), {i + 100, 0, 0}));
  uint64_t taken = 0;
  while (taken < 1000 && table_.Insert(0x42, {taken + 10'000, 0, 0})) ++taken;
  EXPECT_GE(taken, 8u);
  EXPECT_LE(taken, 2 * layout::kBucketSlots);
  EXPECT_LE(table_.bytes(), 200u << 10);
  table_.CheckInvariants();
  ASSERT_TRUE(table_.Insert(random(), {1, 0, 0}));
}

}  // namespace
}  // namespace kvcfs::meta
