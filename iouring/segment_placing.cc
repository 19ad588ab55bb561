// How the writer brings entries into place: staging memory, a segment with room, writes of 1 MiB.
#include <algorithm>
#include <utility>

#include "base/log.h"
#include "iouring/segment_writer.h"

namespace kvcfs::iouring {
namespace {

// Larger writes are not faster (bench/segment_bench.cc), and smaller ones cost more calls.
constexpr uint64_t kWriteBytes = uint64_t{1} << 20;
// An entry never needs more operations than that: larger ones are written in larger pieces.
constexpr uint64_t kPiecesMax = 64;
// A device that refuses to make files is not asked for ever.
constexpr unsigned kMakeAttempts = 4;
// Room for the pieces of one entry, a segment's header, tables and flushes.
constexpr unsigned kOperationsFree = kPiecesMax + 16;

}  // namespace

// Takes items from the queue until there is enough to write. false: nothing could be taken.
bool SegmentWriter::StageMany() {
  bool any = false;
  uint64_t staged = 0;
  for (bool more = true; more && staged < kWriteBytes;) {
    more = false;
    for (LaneState& lane : lanes_) {
      if (io_->room() < kOperationsFree || lane.again_count != 0) continue;
      if (!StageOne(lane)) continue;
      more = any = true;
      staged += lane.pending.back()->layout.total_bytes;
    }
  }
  return any;
}

bool SegmentWriter::StageOne(LaneState& lane) {
  Item* item = nullptr;
  {
    MutexLock lock(mutex_);
    auto& queue = queues_[static_cast<size_t>(lane.lane)];
    if (!queue.empty()) item = &queue.front();  // others only add at the other end
  }
  if (item == nullptr) return false;

  auto pending = std::make_unique<Pending>();
  bool out_of_room = false;
  if (!item->flush) {
    pending->layout = LayoutOf(item->request.meta.length);
    if (!EnsureSegment(lane, pending->layout.total_bytes)) {
      if (!GiveUpOnRoom(lane)) return false;
      out_of_room = true;
    } else {
      pending->memory = TakeMemory(*pending);
      if (pending->memory == nullptr) return false;
    }
  }
  {
    MutexLock lock(mutex_);
    pending->item = std::move(*item);
    queues_[static_cast<size_t>(lane.lane)].pop_front();
  }
  pending->meta = pending->item.request.meta;
  pending->meta.origin = pending->item.origin;
  if (pending->item.flush) {
    pending->stage = Stage::kWritten;
  } else if (out_of_room) {
    pending->stage = Stage::kFailed;
    pending->failure = Code::kNoSpace;
  } else {
    // The one copy of the bytes on their way to the disk. Checksums are of this copy, whatever
    // happens to the original meanwhile.
    const EntryLayout& layout = pending->layout;
    const uint64_t length = pending->meta.length;
    std::byte* begin =
        pending->memory + (layout.inline_data ? layout.inline_offset() : layout.header_bytes);
    const std::span<std::byte> data(begin, length);
    const auto& fill = pending->item.request.fill;
    if (fill && !fill(data)) {
      pending->stage = Stage::kFailed;
      pending->failure = Code::kCancelled;
    } else {
      pending->chunk_crcs.resize(layout.chunk_count);
      ComputeChunkCrcs(data, pending->chunk_crcs);
      pending->meta.crc32c = CombineChunkCrcs(pending->chunk_crcs, length);
      if (!layout.inline_data)
        std::fill_n(begin + length, RoundUpToPage(length) - length, std::byte{0});
      Place(lane, *pending);
    }
  }
  lane.pending.push_back(std::move(pending));
  return true;
}

std::byte* SegmentWriter::TakeMemory(Pending& pending) {
  const uint64_t bytes = pending.layout.total_bytes;
  if (bytes <= staging_->memory().size() / 2) return staging_->Allocate(bytes);
  // One at a time: what waits behind it would not be written sooner.
  if (large_memory_taken_) return nullptr;
  large_memory_taken_ = true;
  pending.own_memory = AlignedBuffer(bytes);
  return pending.own_memory.data();
}

bool SegmentWriter::Fits(const OpenSegment& segment, uint64_t entry_bytes) const {
  const uint64_t table_bytes = TableBytes(segment.entries.size() + 1) + kPageBytes;
  return segment.offset + entry_bytes + table_bytes <= segment_bytes_;
}

// Who moves entries is the one who makes room: there is nobody else to wait for.
bool SegmentWriter::GiveUpOnRoom(const LaneState& lane) {
  if (lane.lane == Lane::kMoves || book_.RoomIsOut()) return true;
  SetWaitingForSegment(lane, true);
  return false;
}

void SegmentWriter::SetWaitingForSegment(const LaneState& lane, bool waiting) {
  if (lane.lane == Lane::kMoves) return;
  {
    MutexLock lock(mutex_);
    if (appends_wait_for_segment_ == waiting) return;
    appends_wait_for_segment_ = waiting;
  }
  room_changed_.notify_all();
}

bool SegmentWriter::EnsureSegment(LaneState& lane, uint64_t entry_bytes) {
  if (lane.segment != nullptr) {
    if (Fits(*lane.segment, entry_bytes)) return true;
    lane.segment->closed = true;
    lane.segment = nullptr;
  }
  return OpenSegmentFor(lane);
}

bool SegmentWriter::OpenSegmentFor(LaneState& lane) {
  auto opened = book_.TakeFree(lane.lane);
  unsigned attempts = 0;
  while (!opened) {
    const auto number =
        attempts++ < kMakeAttempts ? book_.TakeAbsent(/*although_full=*/false) : std::nullopt;
    if (!number) return false;
    const auto queue = device_.NewQueue({.depth = 4, .registered = {}});
    auto file = MakeSegment(device_, *queue,
                            {.node_uuid = options_.node_uuid,
                             .number = *number,
                             .segment_bytes = segment_bytes_,
                             .first_sequence = book_.TakeSequence()});
    if (!file.ok()) {
      if (file.code() == Code::kNoSpace) {
        KVC_LOG(Warn, "no space for another segment", "error={}", LogValue(file.error().text));
      } else {
        ++io_errors_;
        KVC_LOG(Error, "segment cannot be made", "error={}", LogValue(file.error().text));
      }
      book_.MakingFailed(*number, file.code());
      if (file.code() == Code::kNoSpace) return false;
      continue;
    }
    book_.PutMade(*number, std::move(*file));
    opened = book_.TakeFree(lane.lane);
  }
  auto segment = std::make_unique<OpenSegment>();
  segment->number = opened->number;
  segment->first_sequence = opened->first_sequence;
  segment->written_sequence = segment->durable_sequence = opened->first_sequence;
  segment->offset = kPageBytes;
  segment->file = std::move(opened->file);
  lane.segment = segment.get();
  open_.push_back(std::move(segment));
  SetWaitingForSegment(lane, false);
  return true;
}

// Gives the entry its place and sequence. The lane's segment has room for it.
void SegmentWriter::Place(LaneState& lane, Pending& pending) {
  OpenSegment& segment = *lane.segment;
  pending.segment = &segment;
  pending.offset_4k = static_cast<uint32_t>(segment.offset / kPageBytes);
  pending.meta.sequence = book_.TakeSequence();
  if (pending.item.origin == 0) pending.meta.origin = pending.meta.sequence;
  pending.stage = Stage::kWriting;
  EncodeEntry(pending.meta,
              {.segment = segment.number,
               .offset_4k = pending.offset_4k,
               .first_sequence = segment.first_sequence,
               .durable_sequence = segment.durable_sequence},
              pending.chunk_crcs, {pending.memory, pending.layout.total_bytes});
  const bool first = segment.offset == kPageBytes;
  segment.offset += pending.layout.total_bytes;
  segment.entries.push_back({pending.meta, pending.offset_4k});
  ++segment.undone_entries;
  book_.NoteEntry(segment.number, pending.meta);
  if (first) SubmitHeader(segment, pending);
  AddToRun(pending);
}

// What was not done when its segment failed, in order.
void SegmentWriter::PlaceAgain(LaneState& lane) {
  if (lane.again_count == 0) return;
  for (const auto& pending : lane.pending) {
    if (pending->stage != Stage::kAgain) continue;
    if (pending->operations != 0 || io_->room() < kOperationsFree) return;
    if (pending->failure == Code::kOk && !EnsureSegment(lane, pending->layout.total_bytes)) {
      if (!GiveUpOnRoom(lane)) return;
      pending->failure = Code::kNoSpace;
    }
    --pending->segment->undone_entries;
    pending->segment = nullptr;
    --lane.again_count;
    if (pending->failure != Code::kOk) {
      pending->stage = Stage::kFailed;
    } else {
      Place(lane, *pending);
      SubmitRun();
    }
  }
}

void SegmentWriter::AddToRun(Pending& pending) {
  const uint64_t offset = pending.offset_4k * kPageBytes;
  const bool continues = run_.segment == pending.segment &&
                         run_.begin + run_.bytes == pending.memory &&
                         run_.offset + run_.bytes == offset &&
                         staging_->Owns(run_.begin) == staging_->Owns(pending.memory);
  if (!continues) {
    SubmitRun();
    run_.segment = pending.segment;
    run_.offset = offset;
    run_.begin = pending.memory;
  }
  run_.bytes += pending.layout.total_bytes;
  run_.entries.push_back(&pending);
  if (run_.bytes >= kWriteBytes) SubmitRun();
}

void SegmentWriter::SubmitRun() {
  if (run_.bytes == 0) return;
  const uint64_t piece_bytes =
      std::max(kWriteBytes, RoundUpToPage((run_.bytes + kPiecesMax - 1) / kPiecesMax));
  size_t first = 0;          // entry that the piece begins in ...
  uint64_t first_begin = 0;  // ... and where that begins in the run
  for (uint64_t at = 0; at < run_.bytes;) {
    // A short rest goes with the last piece.
    const uint64_t left = run_.bytes - at;
    const uint64_t bytes = left < piece_bytes + piece_bytes / 4 ? left : piece_bytes;
    Operation operation{Operation::Kind::kData, run_.segment, {}, {}};
    for (;;) {
      Pending* entry = run_.entries[first];
      operation.entries.push_back(entry);
      ++entry->operations;
      const uint64_t end = first_begin + entry->layout.total_bytes;
      if (end > at + bytes) break;
      first_begin = end;
      ++first;
      if (end == at + bytes) break;
    }
    Submit(std::move(operation), {.op = IoRequest::Op::kWrite,
                                  .registered = staging_->Owns(run_.begin),
                                  .offset = run_.offset + at,
                                  .data = run_.begin + at,
                                  .bytes = bytes});
    at += bytes;
  }
  run_ = Run{};
}

// The segment's header goes with its first entry: it is there before that one is done.
void SegmentWriter::SubmitHeader(OpenSegment& segment, Pending& first) {
  Operation operation{Operation::Kind::kData, &segment, {&first}, AlignedBuffer(kPageBytes)};
  EncodeSegmentHeader({.node_uuid = options_.node_uuid,
                       .number = segment.number,
                       .use = SegmentUse::kFilled,
                       .segment_bytes = segment_bytes_,
                       .first_sequence = segment.first_sequence},
                      operation.memory.span());
  ++first.operations;
  std::byte* page = operation.memory.data();
  Submit(std::move(operation),
         {.op = IoRequest::Op::kWrite, .offset = 0, .data = page, .bytes = kPageBytes});
}

void SegmentWriter::Submit(Operation operation, IoRequest request) {
  uint64_t tag = operations_.size();
  if (free_operations_.empty()) {
    operations_.emplace_back();
  } else {
    tag = free_operations_.back();
    free_operations_.pop_back();
  }
  request.file = operation.segment->file.get();
  request.tag = tag;
  ++operation.segment->operations;
  operations_[tag] = std::move(operation);
  io_->Push(request);
}

}  // namespace kvcfs::iouring
