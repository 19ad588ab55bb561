#include "meta/serving_right.h"

#include <gtest/gtest.h>

namespace kvcfs::meta {
namespace {

constexpr Millis kLife{3000};

// A metadata node at time 10,000 with two others in epoch 7, freshly renewed.
ServingRight Fresh() {
  ServingRight right(kLife);
  right.Renewed(Millis(10000));
  right.SetView(7, {"b", "c"});
  return right;
}

TEST(ServingRight, NobodyServesBeforeTheFirstLease) {
  ServingRight right(kLife);
  EXPECT_FALSE(right.MayServe(Millis(0)));
  right.SetView(7, {});
  EXPECT_FALSE(right.MayServe(Millis(0)));
  EXPECT_FALSE(right.WantsPromises(Millis(100000)));
}

TEST(ServingRight, EndsAtHalfOfTheLifeFromWhenTheRenewalWasSent) {
  ServingRight right = Fresh();
  EXPECT_TRUE(right.MayServe(Millis(11499)));
  EXPECT_FALSE(right.MayServe(Millis(11500)));
  right.Renewed(Millis(11400));
  EXPECT_TRUE(right.MayServe(Millis(12899)));
  right.Renewed(Millis(10500));  // an answer that came late says less than what is known
  EXPECT_TRUE(right.MayServe(Millis(12899)));
  EXPECT_FALSE(right.MayServe(Millis(12900)));
}

TEST(ServingRight, PromisesOfAllOthersCarryItOn) {
  ServingRight right = Fresh();
  EXPECT_FALSE(right.WantsPromises(Millis(10700)));
  EXPECT_TRUE(right.WantsPromises(Millis(10750)));
  right.Promised("b", 7, Millis(12000));
  EXPECT_FALSE(right.MayServe(Millis(11500)));
  right.Promised("c", 7, Millis(12500));
  EXPECT_TRUE(right.MayServe(Millis(11500)));
  EXPECT_FALSE(right.MayServe(Millis(12000)));
  right.Promised("b", 7, Millis(12400));
  EXPECT_TRUE(right.MayServe(Millis(12000)));
}

TEST(ServingRight, PromisesOfStrangersAndOfOldViewsAreNone) {
  ServingRight right = Fresh();
  right.Promised("b", 7, Millis(20000));
  right.Promised("x", 7, Millis(20000));
  right.Promised("c", 6, Millis(20000));
  EXPECT_FALSE(right.MayServe(Millis(11500)));
  right.Promised("c", 7, Millis(20000));
  EXPECT_TRUE(right.MayServe(Millis(11500)));
  right.SetView(8, {"b", "c"});
  EXPECT_FALSE(right.MayServe(Millis(11500)));
}

TEST(ServingRight, ALostLeaseEndsItAtOnce) {
  ServingRight right = Fresh();
  right.Promised("b", 7, Millis(20000));
  right.Promised("c", 7, Millis(20000));
  right.Lost();
  EXPECT_FALSE(right.MayServe(Millis(10001)));
  right.Renewed(Millis(13000));
  EXPECT_TRUE(right.MayServe(Millis(14499)));
  EXPECT_FALSE(right.MayServe(Millis(14500)));  // and the promises went with it
}

TEST(ServingRight, WhoSeesEtcdPromisesNothing) {
  ServingRight right = Fresh();
  EXPECT_EQ(right.Promise(7, Millis(10749)), Millis(0));
  EXPECT_TRUE(right.MayTakeNewView(Millis(10749)));
  EXPECT_EQ(right.Promise(6, Millis(11000)), Millis(0));
  EXPECT_EQ(right.Promise(7, Millis(11000)), Millis(1500));
  EXPECT_FALSE(right.MayTakeNewView(Millis(12499)));
  EXPECT_TRUE(right.MayTakeNewView(Millis(12500)));
}

TEST(ServingRight, APromiseIsKeptThoughEtcdComesBack) {
  ServingRight right = Fresh();
  EXPECT_EQ(right.Promise(7, Millis(11000)), Millis(1500));
  right.Renewed(Millis(11100));
  EXPECT_FALSE(right.MayTakeNewView(Millis(12000)));
  EXPECT_EQ(right.Promise(7, Millis(11200)), Millis(0));
}

// Two nodes, one old view: whatever either can see of etcd, never does one take up a newer view
// while the other still serves by its promise.
TEST(ServingRight, NoPromiseOverlapsANewView) {
  for (int seen_until = 10000; seen_until <= 16000; seen_until += 50) {
    ServingRight a(kLife), b(kLife);
    a.Renewed(Millis(10000));
    b.Renewed(Millis(10000));
    a.SetView(7, {"b"});
    b.SetView(7, {"a"});
    for (int now = 10000; now <= 20000; now += 25) {
      if (now <= seen_until && now % 500 == 0) b.Renewed(Millis(now));
      if (a.WantsPromises(Millis(now))) {
        const Millis given = b.Promise(7, Millis(now));
        if (given > Millis(0)) a.Promised("b", 7, Millis(now) + given);
      }
      // From 13,000 on a's lease is over at etcd: b may find a view without it there.
      if (now >= 13000 && now <= seen_until && b.MayTakeNewView(Millis(now))) {
        EXPECT_FALSE(a.MayServe(Millis(now)))
            << "b saw etcd until " << seen_until << ", now " << now;
      }
    }
  }
}

}  // namespace
}  // namespace kvcfs::meta
