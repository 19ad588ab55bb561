// What is known of each segment: its state, its life, what of it is live, who reads it.
//
// Threads: any; one short mutex, no I/O under it.
// Memory: 4 bytes per entry (a hash of its identity), so that a tombstone is dropped when nothing
//   is left that it hides.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "base/mutex.h"
#include "iouring/block_device.h"
#include "iouring/segment_store.h"

namespace kvcfs::iouring {

enum class SegmentState : uint8_t {
  kAbsent,   // no file yet
  kFree,     // erased
  kOpen,     // a head fills it, or its table is still to be written
  kSealed,   // holds entries, may be reclaimed
  kRetired,  // the device refused it: what it holds can be read, nothing is written (until restart)
  kUnknown,  // of a newer kvcfs: not touched
};

// Which of the two heads writes: what is moved lies apart, so that it never waits for appends.
enum class Lane : uint8_t { kMoves = 0, kAppends = 1 };

struct SegmentInfo {
  SegmentState state = SegmentState::kAbsent;
  bool excess = false;   // beyond the capacity (it was larger once): emptied and removed
  bool erasing = false;  // no new readers
  std::shared_ptr<BlockFile> file;
  uint64_t first_sequence = 0;  // this life
  uint64_t last_sequence = 0;   // highest sequence in it
  uint64_t live_bytes = 0;      // of whole entries (header and padding)
  uint64_t used_bytes = 0;      // of all entries, dead ones too
  uint32_t tombstones = 0;
  uint32_t kept_tombstones = 0;  // of these: known to hide something when they were moved
  // Sealed with room left, not because the next entry did not fit. So is whatever was found at the
  // start: each is worth one try to pack it better.
  bool sealed_early = false;
  uint32_t readers = 0;
  std::vector<uint32_t> identities;  // of entries that are no tombstones; sorted once sealed
};

struct SegmentBookOptions {
  uint32_t segment_count = 0;
  uint64_t segment_bytes = 0;
  double live_share_max = 0.85;
};

class SegmentBook {
 public:
  explicit SegmentBook(const SegmentBookOptions& options);

  uint64_t segment_bytes() const { return options_.segment_bytes; }

  // --- recovery, before any thread runs ---
  void Put(uint32_t number, SegmentInfo info);  // may lie beyond the count
  void SetNextSequence(uint64_t next);

  // --- the writer: sequences, and segments to fill ---
  uint64_t TakeSequence();
  uint64_t last_sequence() const;
  struct Opened {
    uint32_t number = 0;
    uint64_t first_sequence = 0;
    std::shared_ptr<BlockFile> file;
  };
  // An erased segment, now kOpen in a new life. The last one is for moves only, so that reclaim
  // can always go on.
  std::optional<Opened> TakeFree(Lane lane);
  // An absent segment whose file may be made now; PutMade or MakingFailed follows. Where the disk
  // was full, only the reclaimer tries again (`although_full`), if it runs.
  std::optional<uint32_t> TakeAbsent(bool although_full);
  void PutMade(uint32_t number, std::shared_ptr<BlockFile> file);  // now kFree
  void MakingFailed(uint32_t number, Code code);
  void NoteEntry(uint32_t number, const EntryMeta& meta);  // it is being written there
  void Sealed(uint32_t number, bool early);
  // false: too many are retired already, it is sealed instead.
  bool Retire(uint32_t number);
  // Nobody will free a segment now: give up. (If that was decided a while ago, asks once more.)
  bool RoomIsOut();

  // --- accounting ---
  void AddLive(const SegmentPlace& place, uint64_t length);
  bool MarkLive(const SegmentPlace& place, uint64_t length);
  void MarkDead(const SegmentPlace& place, uint64_t length);
  void AddTo(SegmentStats& stats) const;

  // --- readers ---
  struct Pinned {
    std::shared_ptr<BlockFile> file;
    uint64_t first_sequence = 0;
  };
  // Keeps the segment from being erased until Unpin. Nothing: the place was reused.
  std::optional<Pinned> Pin(const SegmentPlace& place);
  void Unpin(uint32_t number);

  // --- the reclaimer ---
  enum class Need : uint8_t { kNothing, kErase, kMake, kRoom, kShrink };
  // Blocks until something is to be done. kNothing: Stop was called.
  Need WaitForNeed();
  void SetReclaiming(bool running);
  void Stop();
  bool stopping() const;
  bool HasEnoughFree() const;
  // Live bytes beyond what leaves room to reclaim.
  uint64_t LiveBytesAboveTarget() const;
  // A sealed segment that nothing needs: to be erased.
  std::optional<uint32_t> FindEmpty() const;
  struct Victim {
    uint32_t number = 0;
    uint64_t first_sequence = 0;
    uint64_t live_bytes = 0;
    std::shared_ptr<BlockFile> file;
  };
  // The sealed segment with the least to move, if that gains anything; or any excess one.
  std::optional<Victim> PickVictim(bool excess) const;
  // Does another segment (still) hold an entry of this identity?
  bool IsHeldElsewhere(uint32_t number, uint32_t identity) const;
  // Refuses new readers and waits for those that are there.
  Victim BeginErase(uint32_t number);
  // It is erased on disk; `file_kept` false: the file is gone.
  void Erased(uint32_t number, bool file_kept);
  bool IsExcess(uint32_t number) const;
  // Room cannot be made: who waits for a segment gives up. Any change ends that.
  void SetRoomIsOut();

 private:
  SegmentInfo* Find(const SegmentPlace& place) KVC_REQUIRES(mutex_);
  uint64_t CountErased() const KVC_REQUIRES(mutex_);
  uint64_t CountFree() const KVC_REQUIRES(mutex_);  // erased, or could be made
  bool IsFilling() const KVC_REQUIRES(mutex_);
  uint64_t FreeWanted() const;
  Need NeedLocked() const KVC_REQUIRES(mutex_);
  std::optional<uint32_t> FindEmptyLocked() const KVC_REQUIRES(mutex_);
  uint64_t GainOf(const SegmentInfo& info) const;
  bool MayRetireLocked() const KVC_REQUIRES(mutex_);
  bool ChangedLocked() KVC_REQUIRES(mutex_);

  const SegmentBookOptions options_;
  mutable Mutex mutex_;
  mutable std::condition_variable changed_;                   // for the reclaimer
  std::vector<SegmentInfo> segments_ KVC_GUARDED_BY(mutex_);  // [number]; 0 is unused
  uint64_t next_sequence_ KVC_GUARDED_BY(mutex_) = 1;
  uint64_t live_bytes_ KVC_GUARDED_BY(mutex_) = 0;
  bool disk_full_ KVC_GUARDED_BY(mutex_) = false;
  bool reclaiming_ KVC_GUARDED_BY(mutex_) = false;
  bool stopping_ KVC_GUARDED_BY(mutex_) = false;
  bool room_is_out_ KVC_GUARDED_BY(mutex_) = false;
  std::chrono::steady_clock::time_point out_since_ KVC_GUARDED_BY(mutex_);
};

}  // namespace kvcfs::iouring
