// Runs: up to 64 blocks of one chain without a fork, in order, in memory that others may read.
//
// A run only grows and is truncated at its tail; once truncated it never grows again, so that
// (run, offset, generation) never names two blocks. Its header stays where it is, its body (see
// RunBody) moves to a larger size as it grows.
// Layout and the reader's side: remote_layout.h. Threads: one at a time.
// Memory: 57 B a block, of which 32 are its key, and 52 a run.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "base/block_key.h"
#include "meta/body_store.h"
#include "meta/flat_map.h"
#include "meta/index_memory.h"
#include "meta/remote_layout.h"

namespace kvcfs::meta {

// Of a block, what its owner may change, in 192 bits.
struct PackedState {
  std::array<uint64_t, 3> words{};
};

class RunTable {
 public:
  explicit RunTable(IndexMemory& memory);

  // An empty run; `parent` (run 0: none) is what its first block extends.
  uint64_t Create(uint32_t ns, const layout::Place& parent, uint32_t ordinal);
  // Of the last block. Requires CanGrow.
  uint32_t Append(uint64_t run, const BlockKey& key, const PackedState& state);
  // The last block goes. An empty run must then be freed.
  void Truncate(uint64_t run);
  void Free(uint64_t run);

  bool CanGrow(uint64_t run) const {
    return length(run) < layout::kRunBlocksMax &&
           (Word(run, layout::kRunShape) & layout::kRunFrozen) == 0;
  }
  // Every run there is has an id below this; a free one has length 0.
  uint64_t id_limit() const { return next_id_; }
  uint64_t count() const { return count_; }

  uint32_t length(uint64_t run) const { return layout::ShapeLength(Word(run, layout::kRunShape)); }
  uint32_t ordinal(uint64_t run) const {
    return layout::ShapeOrdinal(Word(run, layout::kRunShape));
  }
  uint32_t generation(uint64_t run) const {
    return layout::High(Word(run, layout::kRunVersionBegin));
  }
  uint32_t namespace_of(uint64_t run) const { return layout::High(Word(run, layout::kRunBody)); }
  layout::Place parent(uint64_t run) const {
    return layout::UnpackPlace(Word(run, layout::kRunParent));
  }

  // Of a block at offset < length:
  BlockKey key(uint64_t run, uint32_t offset) const;
  // How many of these keys, from the first, are those of the run from `offset` on.
  size_t CountEqual(uint64_t run, uint32_t offset, std::span<const BlockKey> keys) const {
    const RunBody body = BodyOf(run);
    const size_t most = std::min<size_t>(keys.size(), length(run) - offset);
    for (size_t i = 0; i < most; ++i) {
      const uint64_t* const rest = body.rest(offset + i);
      const uint64_t differs = (*body.tag(offset + i) ^ keys[i].Word(0)) |
                               (rest[0] ^ keys[i].Word(1)) | (rest[1] ^ keys[i].Word(2)) |
                               (rest[2] ^ keys[i].Word(3));
      if (differs != 0) return i;
    }
    return most;
  }
  bool KeyIs(uint64_t run, uint32_t offset, const BlockKey& key) const {
    return CountEqual(run, offset, std::span(&key, 1)) == 1;
  }
  PackedState state(uint64_t run, uint32_t offset) const;
  void SetState(uint64_t run, uint32_t offset, const PackedState& state);
  // How many other runs extend this block.
  uint32_t forks(uint64_t run, uint32_t offset) const;
  void AddFork(uint64_t run, uint32_t offset);
  void RemoveFork(uint64_t run, uint32_t offset);
  bool HasForks(uint64_t run, uint32_t from_offset) const;

  // The queue of leaves keeps here at which time a run stands in it.
  bool InQueue(uint64_t run) const {
    return (Word(run, layout::kRunShape) & layout::kRunInQueue) != 0;
  }
  uint32_t queued_at(uint64_t run) const { return layout::Low(Word(run, layout::kRunQueued)); }
  void SetQueued(uint64_t run, bool queued, uint32_t at);

  void PrefetchHeader(uint64_t run) const {
    const uint64_t* const words = Header(run);
    __builtin_prefetch(words);
    __builtin_prefetch(words + layout::kRunVersionEnd);
  }
  // What KeyIs reads of these blocks.
  void PrefetchKeys(uint64_t run, uint32_t offset, uint32_t count) const;

  bool Exists(uint64_t run) const { return run > 0 && run < next_id_ && length(run) > 0; }
  uint64_t run_blocks_address() const { return blocks_address_; }
  uint64_t run_blocks_count() const { return headers_.size(); }
  void OnBlocksMoved(void (*publish)(void*), void* argument);

  uint64_t bytes() const;
  void CheckInvariants() const;

 private:
  uint64_t* Header(uint64_t run) const {
    return headers_[run / layout::kRunBlockHeaders] +
           run % layout::kRunBlockHeaders * layout::kRunWords;
  }
  uint64_t Word(uint64_t run, size_t word) const { return Header(run)[word]; }
  RunBody BodyOf(uint64_t run) const {
    const uint64_t* const header = Header(run);
    return bodies_.At(layout::Low(header[layout::kRunBody]),
                      layout::ShapeCapacity(header[layout::kRunShape]));
  }
  // Makes the versions odd, stores what differs, makes them even.
  void StoreHeader(uint64_t run, uint32_t generation, uint64_t parent, uint64_t body,
                   uint64_t shape);
  void AddHeaderBlock();
  uint32_t AllocateBody(size_t size_class, uint64_t owner);
  void MoveBody(uint64_t run, uint32_t capacity);
  void Compact();  // a step of it, if it is worth it

  IndexMemory& memory_;
  std::vector<uint64_t*> headers_;  // [block of 4096]
  uint64_t blocks_address_ = 0;     // the same as addresses, for readers
  uint64_t blocks_capacity_ = 0;    // of that table
  uint64_t next_id_ = 1;
  uint64_t count_ = 0;
  std::vector<uint32_t> free_ids_;
  BodyStore bodies_;
  FlatMap many_forks_;  // run * 64 + offset: the count, where a byte is too small
  void (*publish_)(void*) = nullptr;
  void* publish_argument_ = nullptr;
};

}  // namespace kvcfs::meta
