#include "meta/placement.h"

#include <algorithm>
#include <array>
#include <map>
#include <random>
#include <set>

#include <gtest/gtest.h>

#include "meta/chain_key.h"

namespace kvcfs::meta {
namespace {

ClusterView ViewOf(uint64_t count, uint8_t roles = kRoleMetadata | kRoleBlocks) {
  ClusterView view{.epoch = 1, .nodes = {}};
  for (uint64_t i = 1; i <= count; ++i) {
    view.nodes.push_back({NodeId{i * 77, i}, 1, roles, "n" + std::to_string(i)});
  }
  return view;
}

TEST(PlacementTest, AnchorsArePowersOfTwoAndThenEvery64) {
  for (uint32_t ordinal : {0U, 1U, 2U, 4U, 8U, 16U, 32U, 64U, 128U, 192U, 640U}) {
    EXPECT_EQ(AnchorOf(ordinal), ordinal);
  }
  EXPECT_EQ(AnchorOf(3), 2u);
  EXPECT_EQ(AnchorOf(31), 16u);
  EXPECT_EQ(AnchorOf(63), 32u);
  EXPECT_EQ(AnchorOf(127), 64u);
  EXPECT_EQ(AnchorOf(191), 128u);
}

TEST(PlacementTest, GroupsCoverAChainOnceAndBeginAtAnchors) {
  EXPECT_TRUE(GroupsOf(0).empty());
  for (uint32_t count : {1u, 2u, 3u, 31u, 32u, 33u, 64u, 65u, 1000u}) {
    uint32_t next = 0;
    for (const GroupRange& group : GroupsOf(count)) {
      EXPECT_EQ(group.first, next);
      EXPECT_GT(group.count, 0u);
      for (uint32_t i = 0; i < group.count; ++i) {
        EXPECT_EQ(AnchorOf(group.first + i), group.first);
      }
      next += group.count;
      EXPECT_TRUE(next == count || AnchorOf(next) == next);
    }
    EXPECT_EQ(next, count);
  }
  EXPECT_EQ(GroupsOf(32).size(), 6u);
}

TEST(PlacementTest, NamespacesDoNotShareShards) {
  std::mt19937_64 random(1);
  int same = 0;
  for (uint64_t i = 0; i < 1000; ++i) {
    const BlockKey key = ChainKey({}, random());
    same += ShardOf({{1, 1}, key}) == ShardOf({{1, 2}, key}) ? 1 : 0;
  }
  EXPECT_LT(same, 30);
}

TEST(PlacementTest, NoNodeOwnsMuchMoreThanItsPart) {
  for (uint64_t count : {1UL, 2UL, 3UL, 4UL, 16UL, 64UL}) {
    const Placement placement(ViewOf(count));
    std::map<NodeId, uint32_t> loads;
    for (uint32_t shard = 0; shard < kShardCount; ++shard) ++loads[placement.OwnerOf(shard)];
    EXPECT_GE(loads.size(), count - count / 16);  // a few may own nothing
    for (const auto& [node, load] : loads) EXPECT_LE(load, 256 * 17 / 16 / count + 1);
  }
}

TEST(PlacementTest, OnlyMetadataNodesOwnShards) {
  ClusterView view = ViewOf(2);
  view.nodes.push_back({NodeId{9, 9}, 1, kRoleBlocks, ""});
  const Placement placement(view);
  for (uint32_t shard = 0; shard < kShardCount; ++shard) {
    EXPECT_NE(placement.OwnerOf(shard), (NodeId{9, 9}));
    EXPECT_TRUE(placement.OwnerOf(shard).valid());
  }
  EXPECT_FALSE(Placement(ViewOf(3, kRoleBlocks)).OwnerOf(0).valid());
}

TEST(PlacementTest, FewShardsMoveWhenANodeGoes) {
  for (uint64_t count : {3UL, 4UL, 16UL}) {
    ClusterView view = ViewOf(count);
    const Placement before(view);
    const NodeId gone = view.nodes[1].id;
    view.nodes.erase(view.nodes.begin() + 1);
    const Placement after(view);
    uint32_t moved = 0, had_to = 0;
    for (uint32_t shard = 0; shard < kShardCount; ++shard) {
      had_to += before.OwnerOf(shard) == gone ? 1 : 0;
      moved += before.OwnerOf(shard) != after.OwnerOf(shard) ? 1 : 0;
    }
    EXPECT_LE(moved, had_to * 2) << count;  // not all of them
  }
}

TEST(PlacementTest, TheOrderOfTheNodesDoesNotMatter) {
  ClusterView view = ViewOf(5);
  const Placement before(view);
  std::reverse(view.nodes.begin(), view.nodes.end());
  const Placement after(view);
  for (uint32_t shard = 0; shard < kShardCount; ++shard) {
    EXPECT_EQ(before.OwnerOf(shard), after.OwnerOf(shard));
  }
}

TEST(PlacementTest, HoldersAreSpreadAndLeaveOutWhatIsToBeLeftOut) {
  ClusterView view = ViewOf(4, kRoleBlocks);
  view.nodes[3].roles = kRoleBlocks | kRoleDraining;
  std::map<NodeId, int> first;
  for (uint64_t i = 0; i < 3000; ++i) {
    const BlockId id{{1, 1}, ChainKey({}, i)};
    const auto holders =
        HoldersFor(view, id, 5, [&](const NodeId& node) { return node == view.nodes[2].id; });
    ASSERT_EQ(holders.size(), 2u);
    ++first[holders[0]];
  }
  EXPECT_EQ(first.size(), 2u);
  for (const auto& [node, count] : first) EXPECT_GT(count, 1300);
}

TEST(PlacementTest, HoldersAreChosenByTheirCapacity) {
  ClusterView view = ViewOf(3, kRoleBlocks);
  const auto first_of = [&](uint64_t i) {
    return HoldersFor(view, {{1, 1}, ChainKey({}, i)}, 1, nullptr).at(0);
  };
  constexpr uint64_t kBlocks = 4000;
  for (size_t i = 0; i < 3; ++i) view.nodes[i].capacity_bytes = (i + 1) << 40;
  std::map<NodeId, double> first;
  std::vector<NodeId> before;
  for (uint64_t i = 0; i < kBlocks; ++i) {
    before.push_back(first_of(i));
    ++first[before.back()];
  }
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_NEAR(first[view.nodes[i].id] / kBlocks, static_cast<double>(i + 1) / 6, 0.03);
  }
  // One gets larger: blocks go to it, and none between the others.
  view.nodes[0].capacity_bytes *= 3;
  for (uint64_t i = 0; i < kBlocks; ++i) {
    const NodeId now = first_of(i);
    EXPECT_TRUE(now == before[i] || now == view.nodes[0].id);
  }
  // Where one is not known all are the same.
  view.nodes[2].capacity_bytes = 0;
  first.clear();
  for (uint64_t i = 0; i < kBlocks; ++i) ++first[first_of(i)];
  for (const auto& [node, count] : first) EXPECT_NEAR(count / kBlocks, 1.0 / 3, 0.03);
}

// Conversations that share a first block: half of them go on where an older one ended, the others
// begin anew behind the first block. What a request costs, and how the load is spread.
TEST(PlacementTest, AHotFirstBlockDoesNotMakeAShardHot) {
  const ClusterView view = ViewOf(16, kRoleMetadata);
  const Placement placement(view);
  std::mt19937_64 random(7);
  std::map<NodeId, uint64_t> asked;
  uint64_t groups_total = 0, requests = 0, messages = 0;
  std::vector<std::vector<BlockKey>> chains;
  const BlockKey first = ChainKey({}, 0);
  uint64_t next_id = 1;
  for (int request = 0; request < 12000; ++request) {
    std::vector<BlockKey> keys{first};
    if (!chains.empty() && random() % 2 == 0) {
      keys = chains[chains.size() - 1 - random() % std::min<size_t>(chains.size(), 500)];
    }
    const uint64_t grow = 1 + random() % 24;
    for (uint64_t i = 0; i < grow; ++i) keys.push_back(ChainKey(keys.back(), next_id++));
    chains.push_back(keys);
    std::set<NodeId> owners;
    for (const GroupRange& group : GroupsOf(static_cast<uint32_t>(keys.size()))) {
      if (group.first == 0) continue;  // its copies are asked, anywhere
      const NodeId& owner = placement.OwnerOf(BlockId{{3, 4}, keys[group.first]});
      ++asked[owner];
      ++groups_total;
      owners.insert(owner);
    }
    messages += owners.size();
    ++requests;
  }
  uint64_t max = 0;
  for (const auto& [node, count] : asked) max = std::max(max, count);
  const double mean = static_cast<double>(groups_total) / 16.0;
  std::printf("16 nodes: max/mean %.3f; %.2f groups and %.2f messages a request\n",
              static_cast<double>(max) / mean,
              static_cast<double>(groups_total) / static_cast<double>(requests),
              static_cast<double>(messages) / static_cast<double>(requests));
  EXPECT_LE(static_cast<double>(max) / mean, 1.3);
  EXPECT_LE(static_cast<double>(groups_total) / static_cast<double>(requests), 8);
}

}  // namespace
}  // namespace kvcfs::meta
