// The DRAM tier: a private tmpfs in which each file (a slot) holds one resident block or file.
//
// A slot is at once the backing file of FUSE passthrough, the source and target of io_uring, and
// what is still there after the daemon was killed: beside the slots lies `slots.idx`, a shared
// mapping with one SlotRecord a slot, from which the next daemon takes everything over.
// Threads: any; Create and Free take one short lock. A record belongs to whoever owns its slot
//   (the block store or the file tree), under that owner's lock.
// Fails: kNoSpace the tier or the table is full: evict first.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/fd.h"
#include "base/mutex.h"
#include "base/result.h"
#include "iouring/segment_store.h"

namespace kvcfs::iouring {

using SlotId = uint32_t;  // 0: none

enum class SlotState : uint32_t {
  kFree = 0,
  kMaking = 1,    // being filled by us; worthless after a crash
  kPending = 2,   // an application is writing a block into it
  kBlock = 3,     // a published block
  kFile = 4,      // the content of an ordinary file
  kDiskFile = 5,  // no bytes here: only the open state of a file that lives on the data disk
};

// Flags of a record.
inline constexpr uint32_t kSlotDirty = 1;    // not (or not in this version) on NVMe
inline constexpr uint32_t kSlotFsynced = 2;  // pending: fsync was asked for
inline constexpr uint32_t kSlotDoomed = 4;   // pending: never publish (writer died, too long)
inline constexpr uint32_t kSlotFlushed = 8;  // pending: a close() has been seen
inline constexpr uint32_t kSlotWriting =
    16;                                    // file: a writer has it open, content is not published
inline constexpr uint32_t kSlotCopy = 32;  // block: a copy that this host holds for its cluster

// One slot's state, in memory that outlives the daemon. `state` is written last when a slot is
// taken into use and first when it is given up. What is atomic may be looked at without the owner's
// lock: it tells whose lock that is.
struct SlotRecord {
  std::atomic<SlotState> state;
  uint32_t generation;  // counts the reuse of this slot
  uint32_t flags;
  uint32_t namespace_id;
  std::atomic<uint64_t> ino;  // the inode the kernel knows it by
  uint64_t length;            // bytes, once published
  uint64_t reserved_bytes;    // what it counts for in the tier
  uint64_t version;           // files
  int64_t mtime_nanos;
  BlockKey key;     // blocks and pending
  BlockKey parent;  // blocks and pending
  uint32_t ordinal;
  uint32_t backing_id;  // the kernel's id while passthrough is set up, 0: none
  uint32_t readers;     // open files that count as readers
  uint32_t writers;     // open files that may write
  SegmentPlace place;   // on NVMe too, if valid
  uint32_t crc32c;      // of the whole, once known (0: not)
  uint32_t mode;        // how it is open (owner's meaning)
  uint64_t aux;         // owner's meaning
  uint8_t unused[88];
};
static_assert(sizeof(SlotRecord) == 256);
static_assert(std::atomic<uint64_t>::is_always_lock_free);

struct SlotTierOptions {
  std::string directory;  // the tmpfs is mounted here by the caller; any tmpfs dir in tests
  uint64_t capacity_bytes = 0;
  uint32_t slot_count_max = 0;  // 0: from capacity
};

class SlotTier {
 public:
  static Result<std::unique_ptr<SlotTier>> Open(const SlotTierOptions& options);
  ~SlotTier();

  // A fresh empty file with `reserve_bytes` set aside (fallocate KEEP_SIZE), state kMaking.
  // kNoSpace when used + reserve_bytes would pass the capacity. `file` (may be null) gets a
  // read-write descriptor of it.
  Result<SlotId> Create(uint64_t reserve_bytes, Fd* file = nullptr);
  // Gives file and space back. Open passthrough descriptors go on reading their (unlinked) file.
  void Free(SlotId slot);
  // The record of a slot that holds no bytes (kDiskFile).
  Result<SlotId> CreateRecord();

  SlotRecord& record(SlotId slot) { return records_[slot]; }
  Result<Fd> OpenFile(SlotId slot, int flags) const;
  std::string PathOf(SlotId slot) const;

  // Changes what a slot counts for (a file that grew). Never fails: the caller evicts.
  void SetReserved(SlotId slot, uint64_t bytes);

  // Gives back what was reserved behind `length` (a block that is shorter than its slot).
  void Trim(SlotId slot, int fd, uint64_t length);

  uint32_t slot_count() const { return slot_count_; }  // ids are 1 .. slot_count
  uint64_t capacity_bytes() const { return capacity_bytes_; }
  uint64_t used_bytes() const { return used_bytes_.load(std::memory_order_relaxed); }
  uint32_t used_slots() const { return used_slots_.load(std::memory_order_relaxed); }

  // Every slot that is not free (at start: what an earlier daemon left).
  void ForEach(const std::function<void(SlotId, SlotRecord&)>& visit);

 private:
  SlotTier() = default;

  std::string directory_;
  Fd directory_fd_;
  uint64_t capacity_bytes_ = 0;
  uint32_t slot_count_ = 0;
  SlotRecord* records_ = nullptr;
  size_t mapped_bytes_ = 0;
  std::atomic<uint64_t> used_bytes_{0};
  std::atomic<uint32_t> used_slots_{0};
  Mutex mutex_;
  std::vector<SlotId> free_ KVC_GUARDED_BY(mutex_);
};

}  // namespace kvcfs::iouring
