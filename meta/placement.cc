#include "meta/placement.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace kvcfs::meta {

std::vector<GroupRange> GroupsOf(uint32_t count) {
  std::vector<GroupRange> groups;
  groups.reserve(8 + count / kGroupBlocksMax);
  for (uint32_t ordinal = 0; ordinal < count;) {
    uint32_t next = ordinal + 1;
    if (ordinal >= kGroupBlocksMax) {
      next = ordinal + kGroupBlocksMax;
    } else if (ordinal > 0) {
      next = 2 * ordinal;
    }
    groups.push_back({ordinal, std::min(next, count) - ordinal});
    ordinal = next;
  }
  return groups;
}

uint64_t MixHash(uint64_t a, uint64_t b) {
  // The finalizer of splitmix64, twice.
  uint64_t mixed = a + 0x9e3779b97f4a7c15u;
  for (int i = 0; i < 2; ++i) {
    mixed = (mixed ^ (mixed >> 30)) * 0xbf58476d1ce4e5b9u;
    mixed = (mixed ^ (mixed >> 27)) * 0x94d049bb133111ebu;
    mixed ^= mixed >> 31;
    if (i == 0) mixed += b;
  }
  return mixed;
}

uint32_t ShardOf(const BlockId& id) {
  static_assert(kShardCount == 256, "the upper eight bits");
  const uint64_t space = MixHash(id.space.high, id.space.low);
  return static_cast<uint32_t>(MixHash(id.key.Word(0) ^ id.key.Word(3), space) >> 56);
}

Placement::Placement(const ClusterView& view) {
  std::vector<const ClusterNode*> nodes;
  for (const ClusterNode& node : view.nodes) {
    if ((node.roles & kRoleMetadata) != 0) nodes.push_back(&node);
  }
  if (nodes.empty()) return;
  // A sixteenth above the mean: less makes more shards move when a node comes or goes.
  const size_t load_max = (kShardCount + kShardCount / 16 + nodes.size() - 1) / nodes.size();
  std::vector<size_t> loads(nodes.size(), 0);
  for (uint32_t shard = 0; shard < kShardCount; ++shard) {
    size_t best = nodes.size();
    uint64_t best_score = 0;
    for (size_t i = 0; i < nodes.size(); ++i) {
      if (loads[i] >= load_max) continue;
      const uint64_t score =
          MixHash(MixHash(nodes[i]->id.high, nodes[i]->id.low), shard + uint64_t{1});
      if (best == nodes.size() || score > best_score ||
          (score == best_score && nodes[i]->id < nodes[best]->id)) {
        best = i;
        best_score = score;
      }
    }
    ++loads[best];
    owners_[shard] = nodes[best]->id;
    incarnations_[shard] = nodes[best]->incarnation;
  }
}

std::vector<NodeId> HoldersFor(const ClusterView& view, const BlockId& id, size_t count,
                               const std::function<bool(const NodeId&)>& skip) {
  bool weighted = true;
  for (const ClusterNode& node : view.nodes) {
    weighted = weighted && (!TakesBlocks(node) || node.capacity_bytes != 0);
  }
  std::vector<std::pair<double, NodeId>> scored;
  for (const ClusterNode& node : view.nodes) {
    if (!TakesBlocks(node) || (skip && skip(node.id))) continue;
    const uint64_t mixed = MixHash(MixHash(node.id.high, node.id.low), id.key.Word(2));
    // Between 0 and 1, both left out.
    const double uniform = (static_cast<double>(mixed >> 11) + 0.5) * 0x1p-53;
    const double weight = weighted ? static_cast<double>(node.capacity_bytes) : 1;
    scored.emplace_back(-std::log(uniform) / weight, node.id);
  }
  std::sort(scored.begin(), scored.end());
  std::vector<NodeId> holders;
  for (const auto& [score, node] : scored) {
    if (holders.size() == count) break;
    holders.push_back(node);
  }
  return holders;
}

}  // namespace kvcfs::meta
