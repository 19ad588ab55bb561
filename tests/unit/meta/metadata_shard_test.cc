#include "meta/metadata_shard.h"

#include <algorithm>
#include <functional>
#include <map>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "tests/unit/meta/small_cluster.h"

namespace kvcfs::meta {
namespace {

TEST(MetadataShardTest, WhatAPublishNeedsIsSaidWithoutWaitingForATick) {
  SmallCluster cluster(3, 3);
  const Millis begun = cluster.now;
  // Parents and pointers are other nodes', and each step follows from the answer to the one before.
  EXPECT_EQ(cluster.PublishChain(20, 2).size(), 20u);
  const auto keys = cluster.PublishChain(1, 2, 100);
  EXPECT_EQ(cluster.Drop(keys[0]).code, Code::kOk);
  EXPECT_EQ(cluster.now, begun);
}

TEST(MetadataShardTest, WhatIsPublishedIsMatchedToItsEnd) {
  SmallCluster cluster(3, 2);
  const auto keys = cluster.PublishChain(40);
  ASSERT_EQ(keys.size(), 40u);
  EXPECT_EQ(cluster.Match(keys).blocks.size(), 40u);
  auto longer = keys;
  longer.push_back(ChainKey(keys.back(), 999));
  EXPECT_EQ(cluster.Match(longer).blocks.size(), 40u);
  EXPECT_TRUE(cluster.Match({ChainKey({}, 12345)}).blocks.empty());
}

TEST(MetadataShardTest, ABlockWithoutItsParentIsNotTaken) {
  SmallCluster cluster(3, 1);
  const auto keys = cluster.PublishChain(3);
  Outcome created = cluster.Create(ChainKey(keys[2], 9), keys[2]);
  ASSERT_EQ(created.code, Code::kOk);
  EXPECT_EQ(created.facts.ordinal, 3u);
  EXPECT_EQ(created.facts.anchor, keys[2]);
  ASSERT_EQ(cluster.Drop(keys[1]).code, Code::kOk);
  EXPECT_EQ(cluster.Publish(created.facts, 1, 1).code, Code::kNotFound);
  EXPECT_EQ(cluster.Create(ChainKey(keys[2], 9), keys[2]).code, Code::kNotFound);
  EXPECT_EQ(cluster.Match(keys).blocks.size(), 1u);
}

TEST(MetadataShardTest, TheFirstVersionWins) {
  SmallCluster cluster(3, 3);
  const auto keys = cluster.PublishChain(2);
  const BlockKey key = ChainKey(keys[1], 5);
  const Outcome created = cluster.Create(key, keys[1]);
  ASSERT_EQ(cluster.Publish(created.facts, 1, 1).code, Code::kOk);
  EXPECT_EQ(cluster.Publish(created.facts, 2, 1).code, Code::kExists);
  const auto found = cluster.Match({keys[0], keys[1], key}).blocks;
  ASSERT_EQ(found.size(), 3u);
  EXPECT_EQ(found[2].crc32c, 1u);
}

TEST(MetadataShardTest, ADropTakesWhatExtendsItAndTheBytes) {
  SmallCluster cluster(3, 2);
  const auto keys = cluster.PublishChain(20, 2);
  ASSERT_EQ(cluster.Drop(keys[3]).code, Code::kOk);
  EXPECT_EQ(cluster.Match(keys).blocks.size(), 3u);
  EXPECT_EQ(cluster.nodes[3]->store.marked.size(), 3u);
  EXPECT_EQ(cluster.nodes[4]->store.marked.size(), 3u);
  EXPECT_EQ(cluster.Drop(keys[3]).code, Code::kNotFound);
}

TEST(MetadataShardTest, LeavesAreReleasedAndTheOthersNot) {
  SmallCluster cluster(3, 1);
  const auto keys = cluster.PublishChain(3);
  auto& holder = *cluster.nodes[3];
  cluster.Advance(Millis(60'000));
  cluster.Release(holder, {kTestSpace, keys[1]}, 2);
  EXPECT_TRUE(holder.store.kept.contains({{kTestSpace, keys[1]}, 2}));
  EXPECT_EQ(cluster.Match(keys).blocks.size(), 3u);
  cluster.Release(holder, {kTestSpace, keys[2]}, 3);
  EXPECT_TRUE(holder.store.freed.contains({{kTestSpace, keys[2]}, 3}));
  cluster.Release(holder, {kTestSpace, keys[1]}, 2);
  EXPECT_EQ(cluster.Match(keys).blocks.size(), 1u);
}

TEST(MetadataShardTest, AGrantWhoseAnswerIsLostIsCarriedOut) {
  SmallCluster cluster(1, 1);
  const auto keys = cluster.PublishChain(1);
  auto& holder = *cluster.nodes[1];
  cluster.Advance(Millis(60'000));
  const BlockId id{kTestSpace, keys[0]};
  Reply reply;
  ReleaseRequest request{holder.id, {{id, keys[0], 1}}};
  cluster.Call({cluster.nodes[0]->id, 0, {cluster.view.epoch, std::move(request)}},
               [&](const Reply& answer) { reply = answer; });
  cluster.Settle();
  EXPECT_EQ(std::get<ReleaseReply>(reply.body).codes, std::vector<uint8_t>{0});
  cluster.Advance(Millis(1000));
  EXPECT_TRUE(holder.store.freed.contains({id, 1}));
}

TEST(MetadataShardTest, ALeaseKeepsFromRelease) {
  SmallCluster cluster(1, 1);
  const auto keys = cluster.PublishChain(2);
  auto& holder = *cluster.nodes[1];
  cluster.Advance(Millis(60'000));
  EXPECT_GT(cluster.Match(keys, true).lease_until, cluster.now + Millis(29'000));
  cluster.Advance(Millis(29'000));
  cluster.Release(holder, {kTestSpace, keys[1]}, 2);
  EXPECT_TRUE(holder.store.freed.empty());
  cluster.Advance(Millis(20'000));
  cluster.Release(holder, {kTestSpace, keys[1]}, 2);
  EXPECT_EQ(holder.store.freed.size(), 1u);
}

TEST(MetadataShardTest, ADrainedHolderGivesAwayWhatItHasAndNothingIsLost) {
  SmallCluster cluster(3, 2);
  const auto keys = cluster.PublishChain(12);
  SmallCluster::Node& other = *cluster.nodes[4];
  SmallCluster::Node& drained = *cluster.nodes[3];
  const size_t had = drained.holder->size();
  ASSERT_GT(had, 0u);
  ASSERT_EQ(had + other.holder->size(), 12u);
  cluster.Advance(Millis(60'000));  // no lease is left
  cluster.view.nodes[3].roles |= kRoleDraining;
  cluster.GiveView();
  cluster.Advance(Millis(5'000));
  EXPECT_EQ(drained.holder->size(), had) << "nobody else has them yet";
  uint64_t generation = 1000;
  for (int round = 0; round < 20; ++round) {
    const auto fetches = std::exchange(other.store.fetches, {});
    for (const auto& fetch : fetches) {
      Actions actions;
      other.holder->Fetched(cluster.now, fetch.order, Code::kOk, ++generation, fetch.facts.length,
                            fetch.facts.crc32c, &actions);
      cluster.Take(other, actions);
      cluster.Settle();
    }
    cluster.Advance(Millis(1'000));
  }
  EXPECT_EQ(drained.holder->size(), 0u);
  EXPECT_TRUE(drained.store.kept.empty()) << "its store has not asked";
  EXPECT_EQ(other.holder->size(), 12u);
  EXPECT_EQ(cluster.Match(keys).blocks.size(), 12u);
}

TEST(MetadataShardTest, ANewOwnerLoadsWhatTheHoldersHave) {
  SmallCluster cluster(3, 2);
  const auto keys = cluster.PublishChain(30);
  cluster.Remove(0);
  cluster.Advance(Millis(2000));  // each record is checked against its parent
  EXPECT_EQ(cluster.Match(keys).blocks.size(), 30u);
  cluster.Remove(1);
  cluster.Advance(Millis(2000));
  EXPECT_EQ(cluster.Match(keys).blocks.size(), 30u);
  const auto chain = cluster.Do([&](uint64_t op, ClientActions* out) {
    cluster.client->Chain(cluster.now, op, {kTestSpace, keys.back()}, Millis(2000), out);
  });
  ASSERT_EQ(chain.blocks.size(), 30u);
  for (size_t i = 0; i < keys.size(); ++i) EXPECT_EQ(chain.blocks[i].key, keys[i]);
}

TEST(MetadataShardTest, WithoutTheRightToServeNothingIsAnswered) {
  SmallCluster cluster(1, 1);
  const auto keys = cluster.PublishChain(2);
  cluster.serving = false;
  EXPECT_TRUE(cluster.Match(keys).blocks.empty());
  cluster.serving = true;
  EXPECT_EQ(cluster.Match(keys).blocks.size(), 2u);
}

TEST(MetadataShardTest, WhatAHolderTookAlongGoesWithWhatExtendsIt) {
  SmallCluster cluster(2, 2);
  const auto keys = cluster.PublishChain(12);
  // One by one they lie on either holder; without one of them only a prefix is left.
  const auto whole = cluster.Match(keys).blocks;
  size_t prefix = 0;
  while (prefix < whole.size() && whole[prefix].places[0].node != cluster.nodes[2]->id) ++prefix;
  ASSERT_LT(prefix, 12u);
  cluster.Remove(2);
  cluster.Advance(Millis(8000));
  EXPECT_EQ(cluster.Match(keys).blocks.size(), prefix);
  EXPECT_EQ(cluster.nodes[3]->store.marked.size(), prefix);
}

TEST(MetadataShardTest, WhoSkippedAViewFindsChildrenWhoseParentIsLost) {
  for (uint64_t salt = 0;; ++salt) {
    ASSERT_LT(salt, 100u);
    SmallCluster cluster(2, 2);
    const auto keys = cluster.PublishChain(2, 1, salt);
    const auto blocks = cluster.Match(keys).blocks;
    ASSERT_EQ(blocks.size(), 2u);
    const NodeId lost = blocks[0].places[0].node;
    const Placement placement(cluster.view);
    const NodeId& owner = placement.OwnerOf(BlockId{kTestSpace, keys[0]});
    if (lost == blocks[1].places[0].node) continue;
    if (owner == placement.OwnerOf(BlockId{kTestSpace, keys[1]})) continue;
    // It does not see the next view, and the one after that without its parent's holder.
    cluster.Find(owner)->up = false;
    cluster.GiveView();
    cluster.Find(owner)->up = true;
    cluster.Remove(cluster.nodes[2]->id == lost ? 2 : 3);
    cluster.Advance(Millis(8000));
    EXPECT_TRUE(cluster.Find(blocks[1].places[0].node)->store.marked.empty());
    return;
  }
}

// The holder tells of the child while the parent is being removed, and then of the parent too.
TEST(MetadataShardTest, WhatComesBackDuringADropStillBelongsToItsParent) {
  for (uint64_t salt = 0;; ++salt) {
    ASSERT_LT(salt, 1000u);
    SmallCluster cluster(1, 2);
    const auto keys = cluster.PublishChain(8, 2, salt);  // the last four are one group
    ASSERT_EQ(keys.size(), 8u);
    auto sorted = keys;
    std::sort(sorted.begin(), sorted.end());
    const auto page_of = [&](const BlockKey& key) {
      return (std::find(sorted.begin(), sorted.end(), key) - sorted.begin()) / 3;
    };
    if (page_of(keys[4]) == 0 || page_of(keys[5]) != 0) continue;

    const ClusterNode back = *cluster.view.Find(cluster.nodes[2]->id);
    cluster.Remove(2);
    cluster.nodes[2]->up = true;
    cluster.view.nodes.push_back({back.id, 2, back.roles, ""});
    using Done = std::function<void(const Reply&)>;
    std::vector<std::pair<OutCall, Done>> pages, removals;
    cluster.holds = [&](const OutCall& call, const Done& done) {
      const auto* forget = std::get_if<ForgetRequest>(&call.request.body);
      const bool removes = forget != nullptr && forget->id.key == keys[4];
      const bool lists = std::holds_alternative<InventoryRequest>(call.request.body);
      if (removes) removals.emplace_back(call, done);
      if (lists) pages.emplace_back(call, done);
      return removes || lists;
    };
    cluster.GiveView();
    ClientActions out;
    cluster.client->Drop(cluster.now, cluster.next_op++, {kTestSpace, keys[4]}, Millis(8000), &out);
    cluster.TakeClient(out);
    for (int i = 0; i < 100 && removals.empty(); ++i) cluster.Advance(Millis(20));
    ASSERT_FALSE(pages.empty());
    ASSERT_FALSE(removals.empty());
    const auto page = pages[0];
    bool released = false;
    cluster.holds = [&](const OutCall& call, const Done& done) {
      const auto* list = std::get_if<InventoryRequest>(&call.request.body);
      if (released || list == nullptr || list->after.key.IsZero()) return false;
      released = true;
      cluster.Call(removals[0].first, removals[0].second);
      cluster.Call(call, done);
      return true;
    };
    cluster.Call(page.first, page.second);
    cluster.Settle();
    ASSERT_TRUE(released);
    cluster.Advance(Millis(500));
    ASSERT_EQ(cluster.nodes[2]->store.marked.size(), 8u);
    ASSERT_EQ(cluster.Drop(keys[4]).code, Code::kOk);
    EXPECT_EQ(cluster.nodes[2]->store.marked.size(), 4u);
    EXPECT_EQ(cluster.Match(keys).blocks.size(), 4u);
    return;
  }
}

TEST(MetadataShardTest, LostCopiesAreMadeAgain) {
  SmallCluster cluster(1, 3);
  const auto keys = cluster.PublishChain(4, 2);
  cluster.Remove(1);
  cluster.Advance(Millis(1000));
  const size_t fetched = cluster.CompleteFetches(Code::kOk);
  cluster.Advance(Millis(1000));
  EXPECT_GT(fetched, 0u);
  for (const FoundBlock& block : cluster.Match(keys).blocks) EXPECT_EQ(block.places.size(), 2u);
  EXPECT_EQ(cluster.nodes[0]->metadata->Count().repairs_waiting, 0u);
}

TEST(MetadataShardTest, BytesOfANamespaceCountEachBlockOnce) {
  SmallCluster cluster(2, 2);
  const auto bytes = [&] {
    uint64_t sum = 0;
    for (const auto& node : cluster.nodes) {
      if (node->up && node->metadata) sum += node->metadata->BytesOf(kTestSpace);
    }
    return sum;
  };
  EXPECT_EQ(bytes(), 0u);
  const auto keys = cluster.PublishChain(20, 2);
  EXPECT_EQ(bytes(), 20u * 4096);
  EXPECT_EQ(cluster.nodes[0]->metadata->BytesOf({3, 4}), 0u);
  // Another owner counts what it has loaded.
  cluster.Remove(1);
  cluster.Advance(Millis(1000));
  EXPECT_EQ(bytes(), 20u * 4096);
  cluster.Advance(Millis(60'000));
  EXPECT_EQ(cluster.Drop(keys[15]).code, Code::kOk);
  cluster.Advance(Millis(1000));
  EXPECT_EQ(bytes(), 15u * 4096);
  EXPECT_EQ(cluster.Drop(keys[0]).code, Code::kOk);
  cluster.Advance(Millis(1000));
  EXPECT_EQ(bytes(), 0u);
}

// Three holders, chains over all of them with one copy a block, and one holder goes.
class AwayTest : public testing::Test {
 protected:
  static constexpr size_t kHolder = 2, kBlocks = 20;
  void SetUp() override {
    keys_ = cluster_.PublishChain(kBlocks);
    ASSERT_EQ(keys_.size(), kBlocks);
    had_ = Node().store.marked;
    ASSERT_FALSE(had_.empty());
    ASSERT_LT(had_.size(), kBlocks);
    while (!Had(first_)) ++first_;
  }
  SmallCluster::Node& Node() { return *cluster_.nodes[kHolder]; }
  ClusterNode& InView() {
    for (ClusterNode& node : cluster_.view.nodes) {
      if (node.id == Node().id) return node;
    }
    return cluster_.view.nodes[0];
  }
  bool Had(size_t i) const {
    return std::any_of(had_.begin(), had_.end(), [&](const auto& copy) {
      return copy.first.first == BlockId{kTestSpace, keys_[i]};
    });
  }
  void Leave() {
    Node().up = false;
    InView().roles = kRoleAway;
    cluster_.GiveView();
    cluster_.Advance(Millis(1000));
  }
  void Return() {
    Node().up = true;
    InView().roles = kRoleBlocks;
    ++InView().incarnation;
    cluster_.GiveView();
    cluster_.Advance(Millis(1000));
  }
  // From the tip on, everything that is left goes when it is asked for a few times.
  void ReleaseAll() {
    for (int round = 0; round < 60; ++round) {
      for (size_t i : {3, 4}) {
        for (const auto& [copy, version] : std::map(cluster_.nodes[i]->store.marked)) {
          cluster_.nodes[i]->holder->WantRelease(cluster_.now, copy.first, copy.second);
        }
      }
      cluster_.Advance(Millis(1500));
    }
  }
  uint64_t Hidden() const {
    uint64_t hidden = 0;
    for (size_t i = 0; i < 2; ++i) hidden += cluster_.nodes[i]->metadata->Count().hidden;
    return hidden;
  }
  SmallCluster cluster_{2, 3};
  std::vector<BlockKey> keys_;
  std::map<std::pair<BlockId, uint64_t>, uint64_t> had_;
  size_t first_ = 0;  // the first block that goes
};

TEST_F(AwayTest, WhatAHolderHadIsAMissUntilItIsBackAndSoIsWhatExtendsIt) {
  // Also what is remembered of earlier answers.
  EXPECT_EQ(cluster_.Match(keys_).blocks.size(), kBlocks);
  Leave();
  EXPECT_EQ(cluster_.Match(keys_).blocks.size(), first_);
  EXPECT_EQ(Hidden(), had_.size());
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(cluster_.nodes[i]->metadata->Count().repairs_waiting, 0u);
  }
  // Nothing is created behind what is not there.
  EXPECT_EQ(cluster_.Create(ChainKey(keys_[first_], 77), keys_[first_]).code, Code::kNotFound);
  Return();
  EXPECT_EQ(cluster_.Match(keys_).blocks.size(), kBlocks);
  EXPECT_EQ(Hidden(), 0u);
}

TEST_F(AwayTest, AlsoWhenTheShardsChangeHandsMeanwhile) {
  Leave();
  // Both metadata nodes begin anew: nobody knows of what is away but by what extends it.
  for (int i = 0; i < 2; ++i) {
    cluster_.view.epoch += 2;
    cluster_.GiveView();
    cluster_.Advance(Millis(8000));
  }
  EXPECT_EQ(cluster_.Match(keys_).blocks.size(), first_);
  Return();
  cluster_.Advance(Millis(8000));
  EXPECT_EQ(cluster_.Match(keys_).blocks.size(), kBlocks);
}

TEST_F(AwayTest, WhenItsTimeIsOverItIsGoneAndNothingExtendsIt) {
  Leave();
  std::erase_if(cluster_.view.nodes, [&](const ClusterNode& node) { return IsAway(node); });
  cluster_.GiveView();
  cluster_.Advance(Millis(8000));
  EXPECT_EQ(cluster_.Match(keys_).blocks.size(), first_);
  EXPECT_EQ(Hidden(), 0u);
  EXPECT_EQ(cluster_.nodes[3]->store.marked.size() + cluster_.nodes[4]->store.marked.size(),
            first_);
}

TEST_F(AwayTest, AfterAChangeOfHandsToo) {
  Leave();
  cluster_.view.epoch += 2;
  cluster_.GiveView();
  cluster_.Advance(Millis(8000));
  std::erase_if(cluster_.view.nodes, [&](const ClusterNode& node) { return IsAway(node); });
  cluster_.GiveView();
  cluster_.Advance(Millis(8000));
  EXPECT_EQ(cluster_.nodes[3]->store.marked.size() + cluster_.nodes[4]->store.marked.size(),
            first_);
}

TEST_F(AwayTest, WhatIsWrittenAnewMeanwhileIsThereWithAllThatExtendsIt) {
  Leave();
  size_t written = 0;
  for (size_t i = 0; i < kBlocks; ++i) {
    if (!Had(i)) continue;
    const Outcome created = cluster_.Create(keys_[i], i == 0 ? BlockKey{} : keys_[i - 1]);
    ASSERT_EQ(created.code, Code::kOk) << i;
    // The same bytes, or others.
    ASSERT_EQ(cluster_.Publish(created.facts, ++written % 2 == 0 ? 77 : 78, 1).code, Code::kOk);
  }
  EXPECT_EQ(cluster_.Match(keys_).blocks.size(), kBlocks);
  EXPECT_EQ(Hidden(), 0u);
  Return();
  const auto found = cluster_.Match(keys_).blocks;
  ASSERT_EQ(found.size(), kBlocks);
  EXPECT_EQ(found[first_].crc32c, 78u) << "the later version";
  EXPECT_EQ(Node().store.marked.size(), written / 2) << "those with the same bytes";
}

TEST_F(AwayTest, ADropDoesNotWaitForWhoIsAway) {
  Leave();
  EXPECT_EQ(cluster_.Drop(keys_[first_]).code, Code::kOk);
  EXPECT_EQ(Hidden(), 0u);
  Return();
  cluster_.Advance(Millis(8000));
  const size_t left = cluster_.Match(keys_).blocks.size();
  EXPECT_TRUE(left >= first_ && left < kBlocks) << left;
}

TEST_F(AwayTest, WhoNeedsThePlaceNeedNotWait) {
  Leave();
  ReleaseAll();
  EXPECT_TRUE(cluster_.nodes[3]->store.marked.empty());
  EXPECT_TRUE(cluster_.nodes[4]->store.marked.empty());
}

TEST_F(AwayTest, NorWhereTheShardsChangedHandsMeanwhile) {
  Leave();
  cluster_.view.epoch += 2;
  cluster_.GiveView();
  cluster_.Advance(Millis(8000));
  ReleaseAll();
  EXPECT_TRUE(cluster_.nodes[3]->store.marked.empty());
  EXPECT_TRUE(cluster_.nodes[4]->store.marked.empty());
}

// Who loads the parent's shard, or the pointer's, while a copy moves may have asked the one holder
// before it had it and the other when it had it no more (seed 4121 of the simulator).
TEST(MetadataShardTest, ACopyMoreIsToldToTheParentsShardBeforeAnotherGoes) {
  SmallCluster cluster(2, 2);
  const BlockKey root = cluster.PublishChain(1).at(0);
  const BlockId id{kTestSpace, ChainKey(root, 1)};
  const BlockFacts facts = cluster.Create(id.key, root).facts;
  ASSERT_EQ(cluster.Publish(facts, 77, 1).code, Code::kOk);
  const Place first = cluster.Match({root, id.key}).blocks.at(1).places[0];
  int attaches = 0;
  bool holding = true;
  cluster.holds = [&](const OutCall& call, const std::function<void(const Reply&)>&) {
    const auto* attach = std::get_if<AttachRequest>(&call.request.body);
    if (attach == nullptr || attach->child != id) return false;
    ++attaches;
    return holding;
  };
  ASSERT_EQ(cluster.Publish(facts, 77, 2).code, Code::kOk);
  cluster.Advance(Millis(100));
  EXPECT_GE(attaches, 1);
  ASSERT_EQ(cluster.Match({root, id.key}).blocks.at(1).places.size(), 2u);
  SmallCluster::Node& holder = *cluster.Find(first.node);
  cluster.Release(holder, id, first.generation);
  EXPECT_TRUE(holder.store.kept.contains({id, first.generation}));
  EXPECT_EQ(cluster.Match({root, id.key}).blocks.at(1).places.size(), 2u);
  holding = false;
  cluster.GiveView();  // what nobody answered is said again
  cluster.Advance(Millis(1000));
  cluster.Release(holder, id, first.generation);
  EXPECT_TRUE(holder.store.freed.contains({id, first.generation}));
  EXPECT_EQ(cluster.Match({root, id.key}).blocks.at(1).places.size(), 1u);
}

TEST(MetadataShardTest, LeavesAreListedInPages) {
  SmallCluster cluster(2, 1);
  std::set<BlockKey> tips;
  for (uint64_t i = 0; i < 40; ++i) tips.insert(cluster.PublishChain(1 + i % 3, 1, 100 * i).back());
  std::set<BlockKey> listed;
  for (uint32_t shard = 0; shard < kShardCount; ++shard) {
    BlockKey after{};
    for (bool done = false; !done;) {
      const Outcome page = cluster.Do([&](uint64_t op, ClientActions* out) {
        cluster.client->Leaves(cluster.now, op, kTestSpace, shard, after, 1, Millis(2000), out);
      });
      ASSERT_EQ(page.code, Code::kOk);
      listed.insert(page.keys.begin(), page.keys.end());
      done = page.done;
      if (!page.keys.empty()) after = page.keys.back();
    }
  }
  EXPECT_EQ(listed, tips);
}

}  // namespace
}  // namespace kvcfs::meta
