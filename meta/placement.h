// Where things of the cluster are: everything that a client can compute from keys and a view.
//
// Blocks of a chain form groups, each named by the key of its first block (its anchor): ordinals
// 0, 1, 2-3, 4-7 ... 32-63, and from 64 on 64 each. Records of a group lie in the shard of its
// anchor key. A shard belongs to one metadata node of a view, by rendezvous hashing with a bound,
// so that no node gets more than a sixteenth above its part.
// Pure functions and immutable values: any thread.
// Source: rendezvous hashing (Thaler & Ravishankar 1998); the bound as in consistent hashing with
// bounded loads (Mirrokni et al. 2018). Weights: Schindelhauer & Schomaker 2005.
#pragma once

#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "base/block_key.h"
#include "meta/cluster_view.h"

namespace kvcfs::meta {

// A namespace's UUID, never reused.
struct SpaceId {
  uint64_t high = 0;
  uint64_t low = 0;
  // NOLINTNEXTLINE(modernize-use-nullptr): clang-tidy 14 sees one in it
  friend auto operator<=>(const SpaceId&, const SpaceId&) = default;
};

// A block anywhere in the cluster.
struct BlockId {
  SpaceId space;
  BlockKey key;
  // NOLINTNEXTLINE(modernize-use-nullptr): clang-tidy 14 sees one in it
  friend auto operator<=>(const BlockId&, const BlockId&) = default;
};

struct BlockIdHash {
  size_t operator()(const BlockId& id) const {
    return id.key.Word(1) ^ (id.space.low * 0x9e3779b97f4a7c15u);
  }
};

inline constexpr uint32_t kShardCount = 256;
inline constexpr uint32_t kGroupBlocksMax = 64;

// The ordinal of the first block of the group of block `ordinal`.
constexpr uint32_t AnchorOf(uint32_t ordinal) {
  if (ordinal >= kGroupBlocksMax) return ordinal & ~(kGroupBlocksMax - 1);
  uint32_t anchor = ordinal == 0 ? 0 : 1;
  while (anchor != 0 && anchor * 2 <= ordinal) anchor *= 2;
  return anchor;
}

// A group's part of the first `count` blocks of a chain.
struct GroupRange {
  uint32_t first = 0;  // its anchor's ordinal
  uint32_t count = 0;
};
std::vector<GroupRange> GroupsOf(uint32_t count);

uint32_t ShardOf(const BlockId& id);

// Mixed well, the same everywhere.
uint64_t MixHash(uint64_t a, uint64_t b);

// Who owns which shard in one view.
class Placement {
 public:
  Placement() = default;  // nobody owns anything
  explicit Placement(const ClusterView& view);

  // Not valid(): there is no metadata node.
  const NodeId& OwnerOf(uint32_t shard) const { return owners_[shard]; }
  const NodeId& OwnerOf(const BlockId& anchor) const { return owners_[ShardOf(anchor)]; }
  // The owner's incarnation, to see that it began anew.
  uint64_t IncarnationOf(uint32_t shard) const { return incarnations_[shard]; }

 private:
  std::array<NodeId, kShardCount> owners_{};
  std::array<uint64_t, kShardCount> incarnations_{};
};

// Up to `count` holders for copies of a block, best first: by rendezvous of block and node, each
// weighted by its capacity (all the same where one's is not known), those that drain left out, and
// those for which `skip` is true.
std::vector<NodeId> HoldersFor(const ClusterView& view, const BlockId& id, size_t count,
                               const std::function<bool(const NodeId&)>& skip);

}  // namespace kvcfs::meta
