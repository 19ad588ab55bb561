// The one thread that writes entries: from the queue through staging memory into open segments.
//
// Copying and checksums of an entry run while the writes before it are in flight; what wants to be
// durable together shares one round of fdatasync. Two lanes: what the reclaimer moves never waits
// for what is appended, and lies in segments of its own.
// Threads: Append, Flush, WaitForRoom, Wake: any. Callbacks run on the writer thread without locks.
// Memory: an entry's staging memory is held until it is done, so that it can be written again.
// Fails: a write or flush that the device refuses retires the segment; entries that are not done go
//   elsewhere, twice, then kIo. No room left on the device: kNoSpace.
#pragma once

#include <array>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/mutex.h"
#include "iouring/block_device.h"
#include "iouring/segment_book.h"
#include "iouring/segment_format.h"
#include "iouring/segment_recovery.h"
#include "iouring/staging_ring.h"

namespace kvcfs::iouring {

struct SegmentWriterOptions {
  Uuid node_uuid{};
  uint64_t staging_bytes = 0;
  uint64_t queue_bytes_max = 0;
};

class SegmentWriter {
 public:
  SegmentWriter(BlockDevice& device, SegmentBook& book, const SegmentWriterOptions& options,
                std::vector<ResumedHead> heads);
  ~SegmentWriter();

  // `origin`: of a moved copy, else 0. Moves are not bounded here, the reclaimer bounds them.
  Status Append(AppendRequest request, Lane lane, uint64_t origin);
  bool WaitForRoom(uint64_t bytes, int timeout_ms);
  Status Flush(bool durable);
  // For the reclaimer: what says that something else is dead (a tombstone that is queued, a newer
  // version that is done) is durable when this returns. A tombstone that waits for a segment itself
  // is not waited for.
  void SettleDeaths();
  // A segment became free, or it was decided that none will.
  void Wake();
  // Writes all that is queued, leaves a checkpoint in what is being filled, and ends the thread.
  void Stop();

  uint64_t queue_bytes() const { return queue_bytes_.load(); }
  uint64_t appended_bytes() const { return appended_bytes_.load(); }
  uint64_t moved_bytes() const { return moved_bytes_.load(); }
  uint64_t io_errors() const { return io_errors_.load(); }

 private:
  struct Item {
    AppendRequest request;
    uint64_t origin = 0;
    bool flush = false;  // no entry: done when all before it is
  };

  enum class Stage : uint8_t {
    kWriting,
    kWritten,
    kAgain,  // its segment failed: to be placed anew when nothing of it is in flight
    kFailed,
  };

  // A segment that is being filled or still to be sealed.
  struct OpenSegment {
    uint32_t number = 0;
    uint64_t first_sequence = 0;
    uint64_t offset = 0;  // of the next entry
    std::shared_ptr<BlockFile> file;
    std::vector<FoundEntry> entries;
    uint64_t written_sequence = 0;  // all up to it are written ...
    uint64_t syncing_sequence = 0;
    uint64_t durable_sequence = 0;  // ... and flushed
    unsigned operations = 0;        // in flight
    unsigned undone_entries = 0;    // whose `done` was not called yet
    bool unsynced = false;          // something was written since the last flush began
    bool syncing = false;
    bool closed = false;  // takes no more entries: to be sealed
    AlignedBuffer table;  // its pages, then the footer's
    bool table_begun = false;
    bool footer_begun = false;
    bool sealed = false;  // the footer is written
    bool failed = false;  // no more writes
    bool full = false;    // failed for want of space only
  };

  // An item that has left the queue and is not done.
  struct Pending {
    Item item;
    EntryMeta meta;
    EntryLayout layout;
    Stage stage = Stage::kWriting;
    Code failure = Code::kOk;
    unsigned operations = 0;
    unsigned failures = 0;
    OpenSegment* segment = nullptr;
    uint32_t offset_4k = 0;
    std::byte* memory = nullptr;
    AlignedBuffer own_memory;  // where an entry is too large for the staging ring
    std::vector<uint32_t> chunk_crcs;

    bool durable() const { return item.request.durable; }
  };

  struct LaneState {
    Lane lane = Lane::kAppends;
    OpenSegment* segment = nullptr;
    std::deque<std::unique_ptr<Pending>> pending;  // in the order of the queue
    uint64_t done_count = 0;                       // index of pending.front()
    // Indices count items since the start.
    uint64_t written_upto = 0;  // all before are written or failed
    uint64_t wanted_upto = 0;   // somebody waits for a flush up to here
    uint64_t synced_upto = 0;
    uint64_t again_count = 0;  // of pending in Stage::kAgain
  };

  // Consecutive bytes of one segment that are not submitted yet.
  struct Run {
    OpenSegment* segment = nullptr;
    uint64_t offset = 0;
    std::byte* begin = nullptr;
    uint64_t bytes = 0;
    std::vector<Pending*> entries;
  };

  struct Operation {
    enum class Kind : uint8_t { kData, kSync, kTable };
    Kind kind = Kind::kData;
    OpenSegment* segment = nullptr;
    std::vector<Pending*> entries;
    AlignedBuffer memory;  // of headers and tables
  };

  // One fdatasync of each segment that was written to.
  struct Round {
    bool active = false;
    bool failed = false;
    unsigned operations = 0;
    std::array<uint64_t, 2> covers{};  // [lane]
  };

  Status FlushLane(Lane lane, bool durable);
  void Loop();
  bool SleepUntilWoken();  // false: stopped and nothing left to do

  // Placing (segment_placing.cc).
  bool StageMany();
  bool StageOne(LaneState& lane);
  std::byte* TakeMemory(Pending& pending);
  bool EnsureSegment(LaneState& lane, uint64_t entry_bytes);
  bool OpenSegmentFor(LaneState& lane);
  bool GiveUpOnRoom(const LaneState& lane);
  void SetWaitingForSegment(const LaneState& lane, bool waiting);
  bool Fits(const OpenSegment& segment, uint64_t entry_bytes) const;
  void Place(LaneState& lane, Pending& pending);
  void PlaceAgain(LaneState& lane);
  void AddToRun(Pending& pending);
  void SubmitRun();
  void SubmitHeader(OpenSegment& segment, Pending& first);
  void Submit(Operation operation, IoRequest request);

  // Completing (segment_writer.cc).
  void Reap(unsigned at_least);
  void Completed(Operation& operation, int error);
  void Fail(OpenSegment& segment, int error);
  void AdvanceWritten(LaneState& lane);
  void StartRound(bool idle);
  void EndRound();
  void WriteTables();
  void Settle();  // gives finished segments to the book
  void Finish(LaneState& lane);
  void FinishOne(Pending& pending);
  void Checkpoint();

  BlockDevice& device_;
  SegmentBook& book_;
  const SegmentWriterOptions options_;
  const uint64_t segment_bytes_;

  // Any thread.
  Mutex mutex_;
  std::condition_variable woken_changed_;
  std::condition_variable room_changed_;
  std::array<std::deque<Item>, 2> queues_ KVC_GUARDED_BY(mutex_);  // [lane]
  bool woken_ KVC_GUARDED_BY(mutex_) = false;
  bool stopping_ KVC_GUARDED_BY(mutex_) = false;
  bool appends_wait_for_segment_ KVC_GUARDED_BY(mutex_) = false;
  // Appends that were queued, that are done, and how many were queued with the last tombstone.
  uint64_t queued_count_ KVC_GUARDED_BY(mutex_) = 0;
  uint64_t done_count_ KVC_GUARDED_BY(mutex_) = 0;
  uint64_t tombstone_count_ KVC_GUARDED_BY(mutex_) = 0;
  std::atomic<uint64_t> queue_bytes_{0};
  std::atomic<uint64_t> appended_bytes_{0}, moved_bytes_{0}, io_errors_{0};
  std::atomic<uint64_t> failed_entries_{0};

  // The writer thread only.
  std::unique_ptr<StagingRing> staging_;
  std::unique_ptr<IoQueue> io_;
  std::array<LaneState, 2> lanes_;  // [lane]
  std::vector<std::unique_ptr<OpenSegment>> open_;
  std::vector<Operation> operations_;  // [tag]
  std::vector<uint64_t> free_operations_;
  std::vector<IoDone> completions_;
  Run run_;
  Round round_;
  bool large_memory_taken_ = false;

  std::thread thread_;
};

}  // namespace kvcfs::iouring
