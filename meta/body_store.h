// Where the bodies of runs lie: in chunks of 64 KiB, each cut into bodies of one size.
//
// Runs of all lengths come and go, so chunks become sparse; when more than a sixteenth of all is
// holes, the owner moves the bodies of the sparsest chunk into holes elsewhere and the chunk goes
// back. Threads: one at a time.
// Source: slab allocation (Bonwick 1994); cleaning as in log-structured memory (Rumble et al.
// 2014).
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "meta/index_memory.h"
#include "meta/remote_layout.h"

namespace kvcfs::meta {

// One run's blocks, for a capacity of c: c words of tags (first 8 bytes of the keys), c x 3 words
// of the rest of the keys, c x 3 words of state, then the owner's id in 4 bytes and c bytes of
// forks.
struct RunBody {
  uint64_t* words = nullptr;
  size_t capacity = 0;

  uint64_t* tag(size_t offset) const { return words + offset; }
  uint64_t* rest(size_t offset) const { return words + capacity + 3 * offset; }
  uint64_t* state(size_t offset) const { return words + 4 * capacity + 3 * offset; }
  uint64_t* owner() const { return words + 7 * capacity; }
  uint8_t* forks(size_t offset) const { return reinterpret_cast<uint8_t*>(owner()) + 4 + offset; }

  static constexpr size_t Words(size_t capacity) { return 7 * capacity + (4 + capacity + 7) / 8; }
};

class BodyStore {
 public:
  // Fine steps: a run of 8 blocks wastes less than a twelfth of its body.
  static constexpr std::array<uint8_t, 20> kCapacities = {1,  2,  3,  4,  5,  6,  7,  8,  10, 12,
                                                          14, 16, 20, 24, 28, 32, 40, 48, 56, 64};
  static_assert(kCapacities.back() == layout::kRunBlocksMax);
  static size_t SizeClassFor(uint32_t blocks);

  explicit BodyStore(IndexMemory& memory) : memory_(memory) {}

  // The address / 8 of a body, its content as it was.
  uint32_t Allocate(size_t size_class);
  void Free(uint32_t body);

  RunBody At(uint32_t body, size_t capacity) const {
    return {memory_.At(uint64_t{body} * layout::kWordBytes), capacity};
  }

  // A chunk whose bodies should move: Allocate and Free each that is in use; the last Free gives
  // the chunk back. Nothing while there is little waste.
  struct Victim {
    size_t size_class = 0;
    uint32_t first = 0, step = 0, count = 0;  // bodies at first, first + step ..., in use or not
  };
  std::optional<Victim> PickVictim();

  uint64_t bytes() const;
  void CheckInvariants(const std::vector<uint32_t>& bodies) const;  // all that are in use

 private:
  static constexpr uint64_t kChunkPages = 16;
  static constexpr uint64_t kChunkBytes = kChunkPages * layout::kPageBytes;

  static constexpr uint32_t kNowhere = UINT32_MAX;

  struct Chunk {
    uint64_t address = 0;  // 0: given back
    uint32_t size_class = 0;
    uint32_t live = 0;
    uint32_t begun = 0;            // bodies ever given out
    uint32_t free_head = 0;        // a freed body, whose first word is the next one
    uint32_t at = 0;               // where it stands in chunks of its class
    uint32_t roomy_at = kNowhere;  // and in roomy, if it has room
    bool leaving = false;          // a victim: gives out nothing
  };
  struct SizeClass {
    std::vector<uint32_t> chunks;  // all of this size
    std::vector<uint32_t> roomy;   // of them, those with room
    uint64_t live = 0;
  };

  static uint64_t BodyBytes(size_t size_class) {
    return RunBody::Words(kCapacities[size_class]) * layout::kWordBytes;
  }
  static uint32_t BodiesIn(size_t size_class) {
    return static_cast<uint32_t>(kChunkBytes / BodyBytes(size_class));
  }
  uint64_t FreeBodies(size_t size_class) const {
    const SizeClass& all = classes_[size_class];
    return all.chunks.size() * BodiesIn(size_class) - all.live;
  }
  void AddChunk(size_t size_class);
  void RemoveChunk(uint32_t index);
  void SetRoomy(uint32_t index, bool roomy);

  IndexMemory& memory_;
  std::array<SizeClass, kCapacities.size()> classes_;
  std::vector<Chunk> chunks_;
  std::vector<uint32_t> unused_;    // of chunks_
  std::vector<uint32_t> chunk_of_;  // [page] the chunk that it belongs to
  uint64_t free_bytes_ = 0;         // in bodies not in use
  uint64_t live_bytes_ = 0;
  uint32_t patience_ = 0;  // calls of PickVictim to skip: there was none lately
};

}  // namespace kvcfs::meta
