// The chain index: which blocks are cached, in runs along their chains.
//
// Slot table (slot_table.h): one probe answers "where is this key". Runs (run_table.h): up to 64
// blocks of one chain without a fork, published in order; a fork never splits a run, the child
// names (run, offset) as parent. Both lie in memory that others may read (remote_layout.h,
// remote_prober.h). One index serves all namespaces: the hash of a block is over its namespace and
// its whole key, and the upper 62 bits of it are its inode number's.
// I/O-free. Threads: one at a time (the caller's lock), but for readers of memory().
// Memory: at most 64 B a block beyond the keys at 1 million blocks (bench/index_bench).
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/block_key.h"
#include "base/result.h"

namespace kvcfs::meta {

using NamespaceId = uint32_t;

// Names a cached block until it is removed. Stays the same while the block is cached.
struct BlockRef {
  uint64_t run = 0;  // 0: none; runs count from 1
  uint32_t offset = 0;
  uint32_t generation = 0;

  bool valid() const { return run != 0; }
  friend bool operator==(const BlockRef&, const BlockRef&) = default;
};

// What the index keeps of a block and its owner may change.
struct BlockState {
  uint32_t length = 0;      // bytes; 1 .. 64 MiB
  uint32_t slot = 0;        // resident in this slot of the DRAM tier; 0: not
  uint32_t segment = 0;     // on NVMe in this segment, 24 bits; 0: not
  uint32_t offset_4k = 0;   // 24 bits
  uint64_t sequence = 0;    // of the NVMe entry, 40 bits
  uint32_t last_use_s = 0;  // seconds, of the owner's clock
  uint32_t mtime_s = 0;     // publication, seconds since 1970
  uint16_t hits = 0;        // saturates at 16,383
};

// The same on every host and after every restart: inode numbers are made of it.
uint64_t BlockHash(NamespaceId ns, const BlockKey& key);
inline uint64_t BlockHash62(NamespaceId ns, const BlockKey& key) {
  return BlockHash(ns, key) >> 2;
}

struct ChainIndexStats {
  uint64_t blocks = 0, runs = 0, leaves = 0, buckets = 0;
  uint64_t table_bytes = 0, run_bytes = 0;  // all memory, keys included
  uint64_t key_bytes = 0;                   // of which keys (32 B a block)
};

class IndexMemory;

class ChainIndex {
 public:
  ChainIndex();
  ~ChainIndex();

  // Adds a block behind its parent (zero: a first block). kExists; kNotFound: no such parent;
  // kBusy: another key of the same 62-bit hash is cached, or keys were chosen to collide (the
  // caller drops the block and counts); kInvalid: the state is out of its bounds.
  Result<BlockRef> Insert(NamespaceId ns, const BlockKey& key, const BlockKey& parent,
                          const BlockState& state);
  // Removes a leaf. kNotEmpty: it has children; kNotFound.
  Status RemoveLeaf(BlockRef ref);

  std::optional<BlockRef> Find(NamespaceId ns, const BlockKey& key) const;
  std::optional<BlockRef> FindHash(uint64_t hash62) const;  // from an inode number

  // How many leading keys are cached as one chain or part of one: refs[i] for each.
  // A batch of 32 costs the cache misses of a few probes: see MatchBatch in chain_index.cc.
  size_t Match(NamespaceId ns, std::span<const BlockKey> keys, BlockRef* refs) const;

  // Of a valid ref:
  BlockKey key(BlockRef ref) const;
  BlockKey parent_key(BlockRef ref) const;  // zero for a first block
  BlockRef parent(BlockRef ref) const;      // !valid() for a first block
  // The block that extends it in the same run, for sequential prefetch; forks are not followed.
  std::optional<BlockRef> NextInRun(BlockRef ref) const;
  uint32_t ordinal(BlockRef ref) const;
  NamespaceId namespace_of(BlockRef ref) const;
  uint32_t child_count(BlockRef ref) const;
  bool IsCurrent(BlockRef ref) const;  // not removed meanwhile
  BlockState state(BlockRef ref) const;
  void SetState(BlockRef ref, const BlockState& state);
  void Touch(BlockRef ref, uint32_t now_s, bool hit);

  // The block and all that extends it, children before parents.
  std::vector<BlockRef> Subtree(BlockRef ref) const;
  // The chain from ordinal 0 to `tip`.
  std::vector<BlockRef> Chain(BlockRef tip) const;

  // Pages for readdir: calls visit(ref, next_cookie) from `cookie` (0: the start) on until it
  // returns false. Cookies stay good while others come and go; constant memory.
  void ListLeaves(NamespaceId ns, uint64_t cookie,
                  const std::function<bool(BlockRef, uint64_t next_cookie)>& visit) const;
  void ListBlocks(NamespaceId ns, uint64_t cookie,
                  const std::function<bool(BlockRef, uint64_t next_cookie)>& visit) const;

  // The leaves in order of last use, coldest first, until visit returns false. visit may remove the
  // leaf it was given (then its parent may come as a leaf in its turn), or another one.
  void VisitColdestLeaves(const std::function<bool(BlockRef)>& visit);
  // Any leaf, by a random number; sometimes nothing although there are some.
  std::optional<BlockRef> SomeLeaf(uint64_t random) const;

  uint64_t block_count() const;
  uint64_t block_count(NamespaceId ns) const;
  ChainIndexStats Stats() const;
  const IndexMemory& memory() const;  // for readers elsewhere
  void CheckInvariants() const;       // for tests: walks everything, KVC_CHECKs

 private:
  struct Rep;
  std::unique_ptr<Rep> rep_;
};

}  // namespace kvcfs::meta
