// A client's memory of matched groups: while their leases last, they need not be asked for again.
//
// Replacement is by reuse: a group that was matched once waits on trial; one that was matched again
// is protected, and goes back on trial when the protected are too many. So a scan of long chains
// does not push out the first groups that every request shares.
// Source: segmented LRU (Karedla, Love & Wherry 1994).
// I/O-free. Threads: one at a time.   Memory: at most `groups_max` groups of 64 blocks a path.
#pragma once

#include <cstddef>
#include <list>
#include <map>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "meta/cluster_messages.h"

namespace kvcfs::meta {

class GroupCache {
 public:
  explicit GroupCache(size_t groups_max) : groups_max_(groups_max) {}

  struct Hit {
    std::vector<FoundBlock> blocks;
    Millis lease_until{0};
  };
  // All of these keys (from the group's anchor on, in order), or nothing.
  std::optional<Hit> Find(Millis now, const SpaceId& space, std::span<const BlockKey> keys);
  void Put(const SpaceId& space, uint32_t first, std::vector<FoundBlock> blocks,
           Millis lease_until);
  // Where the block is in its chain, if a group that is here has it.
  std::optional<ResolveReply> Resolve(Millis now, const BlockId& id) const;
  // It was not where it should be, or was dropped: its group goes.
  void Forget(const BlockId& id);
  void Clear();

  size_t size() const { return groups_.size(); }
  uint64_t hits() const { return hits_; }
  uint64_t misses() const { return misses_; }

 private:
  struct Cached {
    FoundBlock block;
    BlockKey before;  // the key in front of it in the group; zero for the anchor
    Millis lease_until{0};
    uint32_t ordinal = 0;
  };
  struct Group {
    std::unordered_map<BlockKey, Cached, BlockKeyHash> blocks;
    bool is_protected = false;
    std::list<BlockId>::iterator place;
  };
  static constexpr size_t kBlocksMax = size_t{4} * kGroupBlocksMax;  // of one group's forks

  void Touch(const BlockId& anchor, Group& group);
  void Evict();
  void Erase(const BlockId& anchor);

  const size_t groups_max_;
  std::unordered_map<BlockId, Group, BlockIdHash> groups_;      // by anchor
  std::unordered_map<BlockId, BlockKey, BlockIdHash> anchors_;  // of blocks that are here
  std::list<BlockId> trial_, protected_;                        // most recent first
  uint64_t hits_ = 0, misses_ = 0;
};

}  // namespace kvcfs::meta
