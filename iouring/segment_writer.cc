#include "iouring/segment_writer.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <future>
#include <utility>

#include "base/log.h"

namespace kvcfs::iouring {
namespace {

constexpr unsigned kDepth = 256;
constexpr uint64_t kStagingBytesMin = uint64_t{1} << 20;
constexpr unsigned kFailuresMax = 3;
constexpr std::chrono::seconds kRetryMaking{1};

std::string_view TextOf(Code code) {
  switch (code) {
    case Code::kNoSpace:
      return "no free segment, and none can be reclaimed now";
    case Code::kCancelled:
      return "the source is gone";
    default:
      return "the device refused it";
  }
}

}  // namespace

SegmentWriter::SegmentWriter(BlockDevice& device, SegmentBook& book,
                             const SegmentWriterOptions& options, std::vector<ResumedHead> heads)
    : device_(device), book_(book), options_(options), segment_bytes_(book.segment_bytes()) {
  lanes_[0].lane = Lane::kMoves;
  lanes_[1].lane = Lane::kAppends;
  // The emptiest for appends, another for moves.
  for (size_t i = 0; i < heads.size() && i < lanes_.size(); ++i) {
    ResumedHead& head = heads[i];
    auto segment = std::make_unique<OpenSegment>();
    segment->number = head.number;
    segment->first_sequence = head.first_sequence;
    segment->offset = head.end_offset;
    segment->file = std::move(head.file);
    segment->entries = std::move(head.entries);
    segment->written_sequence = segment->durable_sequence = head.last_sequence;
    lanes_[1 - i].segment = segment.get();
    open_.push_back(std::move(segment));
  }
  thread_ = std::thread([this] {
    SetThreadName("seg-writer");
    Loop();
  });
}

SegmentWriter::~SegmentWriter() {
  Stop();
}

Status SegmentWriter::Append(AppendRequest request, Lane lane, uint64_t origin) {
  const uint64_t length = request.meta.length;
  if (length > EntryBytesMax(segment_bytes_)) {
    return Error{Code::kTooLarge, "longer than a segment can hold"};
  }
  const uint64_t bytes = LayoutOf(length).total_bytes;
  {
    MutexLock lock(mutex_);
    if (stopping_) return Error{Code::kCancelled, "the store is closing"};
    if (lane == Lane::kAppends) {
      // One is always taken, or what is larger than the bound could never be written.
      const uint64_t queued = queue_bytes_.load();
      if (queued != 0 && queued + bytes > options_.queue_bytes_max) {
        return Error{Code::kBusy, "too much waits to be written"};
      }
      queue_bytes_ += bytes;
      ++queued_count_;
      if (IsTombstone(request.meta.kind)) tombstone_count_ = queued_count_;
    }
    Item item;
    item.request = std::move(request);
    item.origin = origin;
    queues_[static_cast<size_t>(lane)].push_back(std::move(item));
    woken_ = true;
  }
  woken_changed_.notify_one();
  return {};
}

bool SegmentWriter::WaitForRoom(uint64_t bytes, int timeout_ms) {
  MutexLock lock(mutex_);
  return room_changed_.wait_for(lock.native(), std::chrono::milliseconds(timeout_ms), [&] {
    const uint64_t queued = queue_bytes_.load();
    return queued == 0 || queued + bytes <= options_.queue_bytes_max;
  });
}

Status SegmentWriter::Flush(bool durable) {
  const uint64_t failed_before = failed_entries_.load();
  KVC_TRY(FlushLane(Lane::kAppends, durable));
  if (failed_entries_.load() != failed_before) {
    return Error{Code::kIo, "entries could not be written"};
  }
  return {};
}

void SegmentWriter::SettleDeaths() {
  {
    MutexLock lock(mutex_);
    const uint64_t wanted = tombstone_count_;
    while (done_count_ < wanted && !appends_wait_for_segment_) room_changed_.wait(lock.native());
  }
  // A round flushes what either lane has written.
  (void)FlushLane(Lane::kMoves, /*durable=*/true);
}

Status SegmentWriter::FlushLane(Lane lane, bool durable) {
  std::promise<void> promise;
  std::future<void> done = promise.get_future();
  {
    MutexLock lock(mutex_);
    if (stopping_) return Error{Code::kCancelled, "the store is closing"};
    Item item;
    item.flush = true;
    item.request.durable = durable;
    item.request.done = [&promise](const Result<SegmentPlace>&, const EntryMeta&) {
      promise.set_value();
    };
    queues_[static_cast<size_t>(lane)].push_back(std::move(item));
    woken_ = true;
  }
  woken_changed_.notify_one();
  done.wait();
  return {};
}

void SegmentWriter::Wake() {
  {
    MutexLock lock(mutex_);
    woken_ = true;
  }
  woken_changed_.notify_one();
}

void SegmentWriter::Stop() {
  if (!thread_.joinable()) return;
  {
    MutexLock lock(mutex_);
    stopping_ = true;
    woken_ = true;
  }
  woken_changed_.notify_one();
  thread_.join();
}

void SegmentWriter::Loop() {
  // Here and not in the constructor: touching and pinning the memory takes a while.
  staging_ = std::make_unique<StagingRing>(std::max(options_.staging_bytes, kStagingBytesMin));
  io_ = device_.NewQueue(
      {.depth = kDepth, .registered = staging_->memory(), .registered_files = true});
  for (;;) {
    for (LaneState& lane : lanes_) PlaceAgain(lane);
    const bool staged = StageMany();
    SubmitRun();
    for (LaneState& lane : lanes_) AdvanceWritten(lane);
    StartRound(/*idle=*/!staged && io_->in_flight() == 0);
    WriteTables();
    const bool waiting = io_->in_flight() != 0;
    if (waiting) Reap(staged ? 0 : 1);
    for (LaneState& lane : lanes_) AdvanceWritten(lane);
    for (LaneState& lane : lanes_) Finish(lane);
    Settle();
    if (!staged && !waiting && !SleepUntilWoken()) break;
  }
  Checkpoint();
  io_.reset();
}

bool SegmentWriter::SleepUntilWoken() {
  const bool idle = std::all_of(lanes_.begin(), lanes_.end(),
                                [](const LaneState& lane) { return lane.pending.empty(); });
  const bool settled =
      std::none_of(open_.begin(), open_.end(), [](const auto& one) { return one->closed; });
  MutexLock lock(mutex_);
  const bool empty = queues_[0].empty() && queues_[1].empty();
  if (stopping_ && idle && empty && settled) return false;
  // When stopping, nobody makes room any more: what is queued fails at the next turn.
  // What waits for a segment while the disk refuses to make one is tried again: nobody else may
  // come to wake us when the disk is well again.
  const auto retry = std::chrono::steady_clock::now() + kRetryMaking;
  while (!woken_ && !stopping_) {
    if (idle && empty) {
      woken_changed_.wait(lock.native());
    } else if (woken_changed_.wait_until(lock.native(), retry) == std::cv_status::timeout) {
      break;
    }
  }
  woken_ = false;
  return true;
}

void SegmentWriter::Reap(unsigned at_least) {
  completions_.clear();
  io_->Wait(at_least, completions_);
  for (const IoDone& one : completions_) {
    Operation operation = std::move(operations_[one.tag]);
    operations_[one.tag] = Operation{};
    free_operations_.push_back(one.tag);
    Completed(operation, one.error);
  }
}

void SegmentWriter::Completed(Operation& operation, int error) {
  OpenSegment& segment = *operation.segment;
  --segment.operations;
  switch (operation.kind) {
    case Operation::Kind::kData:
      segment.unsynced = true;
      for (Pending* entry : operation.entries) {
        if (--entry->operations == 0 && entry->stage == Stage::kWriting && error == 0 &&
            !segment.failed) {
          entry->stage = Stage::kWritten;
        }
      }
      break;
    case Operation::Kind::kSync:
      segment.syncing = false;
      if (error == 0) {
        segment.durable_sequence = std::max(segment.durable_sequence, segment.syncing_sequence);
      } else {
        round_.failed = true;
      }
      break;
    case Operation::Kind::kTable:
      segment.sealed = segment.footer_begun;
      segment.unsynced = true;
      break;
  }
  if (error != 0) Fail(segment, error);
  if (operation.kind == Operation::Kind::kSync && --round_.operations == 0) EndRound();
}

// Nothing more is written to the segment. What is not done is placed anew, and with it all that
// comes after it in its lane, so that sequences keep the order of the queue.
void SegmentWriter::Fail(OpenSegment& segment, int error) {
  ++io_errors_;
  if (segment.failed) return;
  segment.failed = true;
  segment.closed = true;
  segment.full = error == ENOSPC || error == EDQUOT;
  KVC_LOG(Error, segment.full ? "no space under a segment" : "segment retired", "file={} error={}",
          LogValue(device_.PathOf(SegmentName(segment.number))),
          LogValue(ErrnoError(error, "write").text));
  // What was done without being durable may be lost with it: a Flush that waits is told.
  ++failed_entries_;
  for (LaneState& lane : lanes_) {
    if (lane.segment == &segment) lane.segment = nullptr;
    bool again = false;
    for (size_t i = 0; i < lane.pending.size(); ++i) {
      Pending& entry = *lane.pending[i];
      if (entry.item.flush || entry.segment == nullptr) continue;
      const bool hit = entry.segment == &segment;
      if (hit && entry.stage != Stage::kAgain) {
        if (segment.full) {
          entry.failure = Code::kNoSpace;
        } else if (++entry.failures == kFailuresMax) {
          entry.failure = Code::kIo;
        }
      }
      again = again || hit;
      if (!again) continue;
      if (entry.stage == Stage::kWriting || entry.stage == Stage::kWritten) {
        entry.stage = Stage::kAgain;
        ++lane.again_count;
      }
      const uint64_t index = lane.done_count + i;
      lane.written_upto = std::min(lane.written_upto, index);
      lane.synced_upto = std::min(lane.synced_upto, index);
      uint64_t& covered = round_.covers[static_cast<size_t>(lane.lane)];
      covered = std::min(covered, index);
    }
  }
}

void SegmentWriter::AdvanceWritten(LaneState& lane) {
  while (lane.written_upto < lane.done_count + lane.pending.size()) {
    const Pending& next = *lane.pending[lane.written_upto - lane.done_count];
    if (next.stage != Stage::kWritten && next.stage != Stage::kFailed) break;
    ++lane.written_upto;
    if (next.segment != nullptr && next.stage == Stage::kWritten) {
      next.segment->written_sequence = std::max(next.segment->written_sequence, next.meta.sequence);
    }
    if (next.durable()) lane.wanted_upto = std::max(lane.wanted_upto, lane.written_upto);
  }
}

// Group commit: while one round of flushes is under way, the next one collects who wants it.
void SegmentWriter::StartRound(bool idle) {
  if (round_.active) return;
  bool wanted = false;
  for (const LaneState& lane : lanes_) {
    wanted = wanted || std::min(lane.wanted_upto, lane.written_upto) > lane.synced_upto;
  }
  for (const auto& segment : open_) {
    const bool to_seal = segment->closed && !segment->failed && !segment->sealed &&
                         segment->unsynced && segment->operations == 0;
    // A table is in no hurry: it goes with the next round, which the next segment's end brings.
    wanted = wanted || (to_seal && (!segment->table_begun || idle));
  }
  if (!wanted || io_->room() < open_.size() + 1) return;
  round_ = Round{.active = true};
  for (const LaneState& lane : lanes_) {
    round_.covers[static_cast<size_t>(lane.lane)] = lane.written_upto;
  }
  for (const auto& segment : open_) {
    if (!segment->unsynced || segment->failed) continue;
    segment->unsynced = false;
    segment->syncing = true;
    segment->syncing_sequence = segment->written_sequence;
    ++round_.operations;
    Submit({Operation::Kind::kSync, segment.get(), {}, {}}, {.op = IoRequest::Op::kSync});
  }
  if (round_.operations == 0) EndRound();
}

void SegmentWriter::EndRound() {
  round_.active = false;
  if (round_.failed) return;  // asked for again, without the segment that failed
  for (LaneState& lane : lanes_) {
    lane.synced_upto = std::max(lane.synced_upto, round_.covers[static_cast<size_t>(lane.lane)]);
  }
}

// A table says that its entries are there, and a footer that its table is: each is written when
// what it speaks of is durable.
void SegmentWriter::WriteTables() {
  for (const auto& segment : open_) {
    if (!segment->closed || segment->failed || segment->sealed || segment->unsynced ||
        segment->syncing || segment->operations != 0 || io_->room() == 0) {
      continue;
    }
    if (!segment->table_begun) {
      segment->table = EncodeTable({.node_uuid = options_.node_uuid,
                                    .number = segment->number,
                                    .first_sequence = segment->first_sequence,
                                    .end_4k = static_cast<uint32_t>(segment->offset / kPageBytes),
                                    .sealed = true},
                                   segment->entries);
    }
    const std::span<std::byte> pages = segment->table.span();
    IoRequest request{.op = IoRequest::Op::kWrite, .bytes = pages.size() - kPageBytes};
    if (segment->table_begun || request.bytes == 0) {
      segment->footer_begun = true;
      request.offset = segment_bytes_ - kPageBytes;
      request.data = pages.last(kPageBytes).data();
      request.bytes = kPageBytes;
    } else {
      request.offset = segment_bytes_ - pages.size();
      request.data = pages.data();
    }
    segment->table_begun = true;
    Submit({Operation::Kind::kTable, segment.get(), {}, {}}, request);
  }
}

void SegmentWriter::Settle() {
  std::erase_if(open_, [this](const std::unique_ptr<OpenSegment>& segment) {
    // Only when all in it are done: until then it must not look empty to the reclaimer.
    if (!segment->closed || segment->operations != 0 || segment->undone_entries != 0) return false;
    if (segment->failed) {
      if (segment->full) {
        book_.Sealed(segment->number, /*early=*/true);
      } else {
        book_.Retire(segment->number);
      }
      return true;
    }
    if (!segment->sealed) return false;
    book_.Sealed(segment->number, /*early=*/false);
    return true;
  });
}

void SegmentWriter::Finish(LaneState& lane) {
  while (!lane.pending.empty()) {
    Pending& front = *lane.pending.front();
    if (front.stage != Stage::kWritten && front.stage != Stage::kFailed) break;
    if (lane.written_upto == lane.done_count) break;
    const bool must_sync = front.durable() && front.stage == Stage::kWritten;
    if (must_sync && lane.synced_upto <= lane.done_count) break;
    const std::unique_ptr<Pending> finished = std::move(lane.pending.front());
    lane.pending.pop_front();
    ++lane.done_count;
    FinishOne(*finished);
    if (lane.lane == Lane::kAppends && !finished->item.flush) {
      {
        MutexLock lock(mutex_);
        queue_bytes_ -= finished->layout.total_bytes;
        ++done_count_;
      }
      room_changed_.notify_all();
    }
  }
}

void SegmentWriter::FinishOne(Pending& pending) {
  SegmentPlace place;
  if (pending.segment != nullptr && pending.stage == Stage::kWritten) {
    place = {pending.segment->number, pending.offset_4k, pending.meta.sequence};
    if (!IsTombstone(pending.meta.kind)) book_.AddLive(place, pending.meta.length);
    (pending.item.origin == 0 ? appended_bytes_ : moved_bytes_) += pending.layout.total_bytes;
  }
  if (pending.stage == Stage::kFailed && pending.failure != Code::kCancelled) ++failed_entries_;
  const auto& done = pending.item.request.done;
  if (done) {
    if (pending.stage == Stage::kWritten) {
      done(place, pending.meta);
    } else {
      done(Error{pending.failure, std::string(TextOf(pending.failure))}, pending.meta);
    }
  }
  if (pending.segment != nullptr) --pending.segment->undone_entries;
  if (pending.own_memory.size() != 0) {
    large_memory_taken_ = false;
  } else if (pending.memory != nullptr) {
    staging_->Release(pending.memory);
  }
}

// At a clean end: a table of what the heads hold so far. The next start does not read their data,
// and fsck can name what was damaged meanwhile.
void SegmentWriter::Checkpoint() {
  for (const auto& segment : open_) {
    if (segment->failed || segment->entries.empty()) continue;
    Status status = SyncFile(*io_, *segment->file);
    if (status.ok()) {
      status = WriteTable(*io_, *segment->file,
                          {.node_uuid = options_.node_uuid,
                           .number = segment->number,
                           .first_sequence = segment->first_sequence,
                           .end_4k = static_cast<uint32_t>(segment->offset / kPageBytes),
                           .sealed = false},
                          segment_bytes_, segment->entries);
    }
    if (!status.ok()) {
      KVC_LOG(Error, "checkpoint failed", "segment={} error={}", segment->number,
              LogValue(status.error().text));
    }
  }
}

}  // namespace kvcfs::iouring
