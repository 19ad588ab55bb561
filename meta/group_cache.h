// A client's memory of matched groups: while their leases last, they need not be asked for again.
//
// Replacement is by reuse: a group that was matched once waits on trial; one that was matched again
// is protected, and goes back on trial when the protected are too many. So a scan of long chains
// does not push out the first groups that every request shares.
// A group's blocks lie beside one another, in the order in which they were told, so that what
// matches is read in one go. Where two names have one hash, the one told last is known.
// Source: segmented LRU (Karedla, Love & Wherry 1994).
// I/O-free. Threads: one at a time.   Memory: at most `groups_max` groups of 64 blocks a path.
#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "meta/cluster_messages.h"
#include "meta/flat_map.h"

namespace kvcfs::meta {

class GroupCache {
 public:
  explicit GroupCache(size_t groups_max);

  // All of these keys (from the group's anchor on, in order), or nothing. Appends the blocks; the
  // end of their leases.
  std::optional<Millis> Find(Millis now, const SpaceId& space, std::span<const BlockKey> keys,
                             std::vector<FoundBlock>* found);
  // All of a chain, from its root on, or nothing.
  struct Chain {
    std::vector<FoundBlock> blocks;
    Millis lease_until{0};
  };
  std::optional<Chain> FindChain(Millis now, const SpaceId& space, std::span<const BlockKey> keys);
  // Before groups are asked for one after the other.
  void Prefetch(const SpaceId& space, const BlockKey& anchor) const {
    index_.Prefetch(Hash({space, anchor}));
  }
  void Put(const SpaceId& space, uint32_t first, std::span<const FoundBlock> blocks,
           Millis lease_until);
  // Where the block is in its chain, if a group that is here has it.
  std::optional<ResolveReply> Resolve(Millis now, const BlockId& id) const;
  // It was not where it should be, or was dropped: its group goes.
  void Forget(const BlockId& id);

  size_t size() const { return trial_.count + protected_.count; }
  uint64_t hits() const { return hits_; }
  uint64_t misses() const { return misses_; }

 private:
  static constexpr uint32_t kNone = UINT32_MAX;
  static constexpr size_t kBlocksMax = size_t{4} * kGroupBlocksMax;  // of one group's forks
  static constexpr int kIndexBits = 8;                               // of a spot
  static_assert(kBlocksMax == 1u << kIndexBits);

  struct Cached {
    FoundBlock block;
    Millis lease_until{0};
    uint32_t ordinal = 0;
    uint32_t first_child = kNone, sibling = kNone;  // in the group
  };
  struct Group {
    BlockId anchor;
    std::vector<Cached> blocks;  // the anchor first
    bool is_protected = false;
    uint64_t moved = 0;  // to the front, as the how manyth
    uint32_t newer = kNone, older = kNone;
  };
  struct List {
    uint32_t newest = kNone, oldest = kNone;
    size_t count = 0;
  };

  static uint64_t Hash(const BlockId& id) {
    const uint64_t hash = BlockIdHash()(id);
    return hash == 0 ? 1 : hash;
  }
  uint32_t SlotOf(const BlockId& anchor) const;  // kNone: it is not here
  void PrefetchBlocks(uint32_t slot, size_t count) const;
  // The child with that key; kNone: none.
  static uint32_t ChildOf(const Group& group, uint32_t parent, const BlockKey& key);
  uint32_t Add(const BlockId& anchor);
  // Slot and index of a block, if it is here.
  std::optional<std::pair<uint32_t, uint32_t>> SpotOf(const BlockId& id) const;
  List& ListOf(const Group& group) { return group.is_protected ? protected_ : trial_; }
  void Link(uint32_t slot);
  void Unlink(uint32_t slot);
  void Touch(uint32_t slot);
  void Erase(uint32_t slot);

  const size_t groups_max_;
  std::vector<Group> groups_;
  std::vector<uint32_t> free_;
  FlatMap index_;  // by anchor: the slot
  FlatMap spots_;  // by block: slot and index
  List trial_, protected_;
  uint64_t moves_ = 0;
  uint64_t hits_ = 0, misses_ = 0;
};

}  // namespace kvcfs::meta
