#include <gtest/gtest.h>

#include "tests/unit/meta/small_cluster.h"

namespace kvcfs::meta {
namespace {

constexpr uint64_t kChains = 60, kBlocks = 4;

// Two holders with all blocks, and a third that is not in the view yet.
class ShardBalanceTest : public testing::Test {
 protected:
  void SetUp() override {
    joins_ = cluster_.view.nodes[kNew];
    cluster_.Remove(kNew);
    for (uint64_t i = 0; i < kChains; ++i) {
      chains_.push_back(cluster_.PublishChain(kBlocks, 1, 100 * i));
      ASSERT_EQ(chains_.back().size(), kBlocks);
    }
    cluster_.Advance(Millis(60'000));  // nothing is leased
  }
  void Join() {
    cluster_.nodes[kNew]->up = true;
    cluster_.view.nodes.push_back(joins_);
    cluster_.GiveView();
  }
  size_t At(size_t index) const { return cluster_.nodes[index]->store.marked.size(); }
  MetadataShard::Counts Count() const {
    MetadataShard::Counts sum;
    for (size_t i = 0; i < 2; ++i) {
      const auto counts = cluster_.nodes[i]->metadata->Count();
      sum.moving += counts.moving;
      sum.moved_total += counts.moved_total;
      sum.move_bytes_left += counts.move_bytes_left;
    }
    return sum;
  }
  void ExpectAllThere() {
    for (const auto& keys : chains_) {
      const auto found = cluster_.Match(keys).blocks;
      ASSERT_EQ(found.size(), kBlocks);
      for (const FoundBlock& block : found) ASSERT_FALSE(block.places.empty());
    }
  }

  static constexpr size_t kNew = 4;
  SmallCluster cluster_{2, 3};
  ClusterNode joins_;
  std::vector<std::vector<BlockKey>> chains_;
};

TEST_F(ShardBalanceTest, WhoJoinsIsGivenItsPartAndNothingIsMissingMeanwhile) {
  const size_t all = kChains * kBlocks;
  ASSERT_EQ(At(2) + At(3), all);
  Join();
  bool moved_some = false;
  for (int i = 0; i < 2000 && Count().moved_total < all / 4; ++i) {
    cluster_.Advance(Millis(20));
    cluster_.CompleteFetches(Code::kOk);
    // A copy comes before another goes.
    ASSERT_GE(At(2) + At(3) + At(kNew), all);
    moved_some = moved_some || Count().moving > 0;
    EXPECT_LE(Count().moving, 2 * 8u);
  }
  EXPECT_TRUE(moved_some);
  for (int i = 0; i < 200; ++i) {
    cluster_.Advance(Millis(20));
    cluster_.CompleteFetches(Code::kOk);
  }
  // A third, but for what is not worth a move.
  EXPECT_GT(At(kNew), all / 4);
  EXPECT_LT(At(kNew), all / 2);
  EXPECT_EQ(At(2) + At(3) + At(kNew), all);
  EXPECT_EQ(Count().moved_total, At(kNew));
  EXPECT_EQ(Count().moving, 0u);
  EXPECT_EQ(Count().move_bytes_left, 0u);
  ExpectAllThere();
}

TEST_F(ShardBalanceTest, ASmallerHolderIsGivenLess) {
  for (ClusterNode& node : cluster_.view.nodes) node.capacity_bytes = 4000;
  joins_.capacity_bytes = 1000;
  Join();
  for (int i = 0; i < 500; ++i) {
    cluster_.Advance(Millis(20));
    cluster_.CompleteFetches(Code::kOk);
  }
  EXPECT_GT(At(kNew), kChains * kBlocks / 18);
  EXPECT_LT(At(kNew), kChains * kBlocks / 6);
  ExpectAllThere();
}

TEST_F(ShardBalanceTest, WhatIsLeasedStaysWhereItIs) {
  for (const auto& keys : chains_) ASSERT_EQ(cluster_.Match(keys, true).blocks.size(), kBlocks);
  Join();
  for (int i = 0; i < 100; ++i) {
    cluster_.Advance(Millis(20));
    cluster_.CompleteFetches(Code::kOk);
  }
  EXPECT_EQ(At(kNew), 0u);
  ExpectAllThere();
  // But not for ever.
  for (int i = 0; i < 6000 && Count().moved_total < kChains * kBlocks / 4; ++i) {
    cluster_.Advance(Millis(20));
    cluster_.CompleteFetches(Code::kOk);
  }
  EXPECT_GE(Count().moved_total, kChains * kBlocks / 4);
  ExpectAllThere();
}

TEST_F(ShardBalanceTest, AMoveThatFailsChangesNothing) {
  Join();
  for (int i = 0; i < 500; ++i) {
    cluster_.Advance(Millis(20));
    cluster_.CompleteFetches(Code::kNoSpace);
  }
  EXPECT_EQ(At(2) + At(3), kChains * kBlocks);
  EXPECT_EQ(Count().moved_total, 0u);
  EXPECT_EQ(Count().moving, 0u);
  EXPECT_EQ(Count().move_bytes_left, 0u) << "it was given up";
  ExpectAllThere();
}

TEST_F(ShardBalanceTest, WhoIsDrainedMeanwhileGetsNothing) {
  Join();
  cluster_.Advance(Millis(300));
  for (ClusterNode& node : cluster_.view.nodes) {
    if (node.id == joins_.id) node.roles |= kRoleDraining;
  }
  cluster_.GiveView();
  for (int i = 0; i < 500; ++i) {
    cluster_.Advance(Millis(20));
    cluster_.CompleteFetches(Code::kOk);
  }
  EXPECT_EQ(At(kNew), 0u);
  EXPECT_EQ(At(2) + At(3), kChains * kBlocks);
  ExpectAllThere();
}

TEST_F(ShardBalanceTest, WhoIsAwayIsGivenNothing) {
  joins_.roles = kRoleAway;
  Join();
  for (int i = 0; i < 100; ++i) {
    cluster_.Advance(Millis(20));
    cluster_.CompleteFetches(Code::kOk);
  }
  EXPECT_EQ(At(kNew), 0u);
  EXPECT_EQ(Count().move_bytes_left, 0u);
  ExpectAllThere();
}

TEST_F(ShardBalanceTest, WhoIsAwayIsNotWeighedAndGivesNothing) {
  const size_t here = At(2), away = At(3);
  const auto in_view = [&]() -> ClusterNode& {
    for (ClusterNode& node : cluster_.view.nodes) {
      if (node.id == cluster_.nodes[3]->id) return node;
    }
    return cluster_.view.nodes[0];
  };
  cluster_.nodes[3]->up = false;
  in_view().roles = kRoleAway;
  Join();
  for (int i = 0; i < 1000; ++i) {
    cluster_.Advance(Millis(20));
    cluster_.CompleteFetches(Code::kOk);
  }
  // A half of what the other has, but for what is not worth a move; rendezvous places a third of
  // it at each.
  EXPECT_GT(At(kNew), here / 4);
  EXPECT_LE(At(kNew), here / 2);
  EXPECT_EQ(At(2) + At(kNew), here);
  EXPECT_EQ(At(3), away);
  EXPECT_EQ(Count().moving + Count().move_bytes_left, 0u);
  cluster_.nodes[3]->up = true;
  in_view().roles = kRoleBlocks;
  ++in_view().incarnation;
  cluster_.GiveView();
  cluster_.Advance(Millis(1000));
  ExpectAllThere();
}

}  // namespace
}  // namespace kvcfs::meta
