#include "iouring/segment_reclaimer.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/log.h"
#include "iouring/segment_recovery.h"

namespace kvcfs::iouring {
namespace {

constexpr uint64_t kMoveBytesMax = uint64_t{16} << 20;
// A full disk is asked again for another segment after this time.
constexpr auto kDiskFullFor = std::chrono::seconds(1);

}  // namespace

SegmentReclaimer::SegmentReclaimer(BlockDevice& device, SegmentBook& book, SegmentReader& reader,
                                   SegmentWriter& writer, const Uuid& node_uuid)
    : device_(device), book_(book), reader_(reader), writer_(writer), node_uuid_(node_uuid) {}

SegmentReclaimer::~SegmentReclaimer() {
  Stop();
}

void SegmentReclaimer::Start(EntryOwner* owner) {
  owner_ = owner;
  book_.SetReclaiming(true);
  thread_ = std::thread([this] {
    SetThreadName("seg-reclaim");
    Loop();
  });
}

void SegmentReclaimer::Stop() {
  if (!thread_.joinable()) return;
  book_.Stop();
  thread_.join();
  book_.SetReclaiming(false);
  writer_.Wake();  // nobody makes room any more
}

void SegmentReclaimer::Loop() {
  io_ = device_.NewQueue({.depth = 64, .registered = {}});
  for (;;) {
    bool gained = true;
    switch (book_.WaitForNeed()) {
      case SegmentBook::Need::kNothing:
        return;
      case SegmentBook::Need::kErase: {
        const auto empty = book_.FindEmpty();
        if (empty) gained = Erase(*empty);
        break;
      }
      case SegmentBook::Need::kMake:
        MakeSegment();
        break;
      case SegmentBook::Need::kRoom:
        gained = MakeRoom();
        break;
      case SegmentBook::Need::kShrink: {
        const auto victim = book_.PickVictim(/*excess=*/true);
        gained = victim && Reclaim(*victim);
        break;
      }
    }
    if (!gained) book_.SetRoomIsOut();
    writer_.Wake();
  }
}

void SegmentReclaimer::MakeSegment() {
  const auto number = book_.TakeAbsent(/*although_full=*/true);
  if (!number) return;
  auto file = iouring::MakeSegment(device_, *io_,
                                   {.node_uuid = node_uuid_,
                                    .number = *number,
                                    .segment_bytes = book_.segment_bytes(),
                                    .first_sequence = book_.TakeSequence()});
  if (file.ok()) {
    book_.PutMade(*number, std::move(*file));
  } else {
    KVC_LOG(Warn, "segment cannot be made", "error={}", LogValue(file.error().text));
    book_.MakingFailed(*number, file.code());
  }
}

bool SegmentReclaimer::MakeRoom() {
  // Where the disk was full, there may be room again.
  const auto now = std::chrono::steady_clock::now();
  if (now - tried_disk_ >= kDiskFullFor) {
    tried_disk_ = now;
    MakeSegment();
    if (book_.HasEnoughFree()) return true;
  }
  const uint64_t above = book_.LiveBytesAboveTarget();
  // A little more than that, so that not every turn begins with it.
  if (above != 0) owner_->Shed(above + book_.segment_bytes() / 4);
  if (book_.FindEmpty()) return true;
  auto victim = book_.PickVictim(/*excess=*/false);
  if (!victim) {
    // All that is sealed is live: less must be.
    owner_->Shed(book_.segment_bytes());
    if (book_.FindEmpty()) return true;
    victim = book_.PickVictim(/*excess=*/false);
  }
  return victim && Reclaim(*victim);
}

struct SegmentReclaimer::Move {
  EntryMeta meta;
  SegmentPlace before;
  SegmentPlace now;
  AlignedBuffer memory;
};

struct SegmentReclaimer::Progress {
  Mutex mutex;
  std::condition_variable changed;
  uint64_t bytes_in_flight KVC_GUARDED_BY(mutex) = 0;
  bool failed KVC_GUARDED_BY(mutex) = false;
  std::vector<std::shared_ptr<Move>> arrived KVC_GUARDED_BY(mutex);
  bool told = false;  // our own thread's
};

bool SegmentReclaimer::Reclaim(const SegmentBook::Victim& victim) {
  BlockFile* const file = victim.file.get();
  const auto ends = ReadSegmentEnds(*io_, {&file, 1}, book_.segment_bytes());
  const SegmentContents contents =
      ReadContents(*io_, *file, ends.front(),
                   {.number = victim.number,
                    .segment_bytes = book_.segment_bytes(),
                    .node_uuid = node_uuid_,
                    .verify_after = UINT64_MAX});  // each is verified when it is moved
  if (contents.form == SegmentForm::kUnreadable) {
    book_.Retire(victim.number);
    return false;
  }
  Progress progress;
  for (const FoundEntry& entry : contents.entries) {
    if (book_.stopping()) break;
    TellMoved(progress, kMoveBytesMax);
    {
      MutexLock lock(progress.mutex);
      if (progress.failed) break;
    }
    MoveEntry(victim, entry, progress);
  }
  TellMoved(progress, 0);
  {
    MutexLock lock(progress.mutex);
    if (progress.failed) return false;
  }
  if (book_.stopping()) return true;
  if (progress.told) owner_->PersistMoves();
  return Erase(victim.number);
}

void SegmentReclaimer::TellMoved(Progress& progress, uint64_t bytes_in_flight_max) {
  for (;;) {
    std::vector<std::shared_ptr<Move>> arrived;
    {
      MutexLock lock(progress.mutex);
      while (progress.bytes_in_flight > bytes_in_flight_max && progress.arrived.empty()) {
        progress.changed.wait(lock.native());
      }
      if (progress.arrived.empty()) return;
      arrived.swap(progress.arrived);
    }
    progress.told = true;
    for (const auto& move : arrived) owner_->Moved(move->meta, move->before, move->now);
  }
}

void SegmentReclaimer::MoveEntry(const SegmentBook::Victim& victim, const FoundEntry& entry,
                                 Progress& progress) {
  auto move = std::make_shared<Move>();
  move->meta = entry.meta;
  move->before = {victim.number, entry.offset_4k, entry.meta.sequence};
  const bool tombstone = IsTombstone(entry.meta.kind);
  if (tombstone) {
    // It is wanted as long as something that it hides lies in any other segment.
    if (!book_.IsHeldElsewhere(victim.number, IdentityHash(entry.meta))) return;
  } else {
    // Nothing in it is referred to: it is here for its tombstones only.
    if (victim.live_bytes == 0) return;
    if (owner_->Judge(entry.meta, move->before) == Fate::kDead) return;
    move->memory = AlignedBuffer(entry.meta.length);
    const Status status = reader_.Read(move->before, entry.meta, move->memory.span());
    if (!status.ok()) {
      KVC_LOG(Error, "entry is lost", "segment={} offset_4k={} error={}", victim.number,
              entry.offset_4k, LogValue(status.error().text));
      owner_->Lost(entry.meta, move->before);
      return;
    }
  }

  const uint64_t bytes = LayoutOf(entry.meta.length).total_bytes;
  {
    MutexLock lock(progress.mutex);
    progress.bytes_in_flight += bytes;
  }
  AppendRequest request;
  request.meta = entry.meta;
  request.durable = true;
  request.fill = [move](std::span<std::byte> into) {
    if (!into.empty()) std::memcpy(into.data(), move->memory.data(), into.size());
    return true;
  };
  request.done = [move, tombstone, bytes, &progress](const Result<SegmentPlace>& now,
                                                     const EntryMeta& meta) {
    MutexLock lock(progress.mutex);
    if (!now.ok()) {
      progress.failed = true;
    } else if (!tombstone) {
      move->meta = meta;
      move->now = *now;
      progress.arrived.push_back(move);
    }
    progress.bytes_in_flight -= bytes;
    progress.changed.notify_all();
  };
  const Status queued = writer_.Append(std::move(request), Lane::kMoves, entry.meta.origin);
  if (!queued.ok()) {
    MutexLock lock(progress.mutex);
    progress.failed = true;
    progress.bytes_in_flight -= bytes;
  }
}

bool SegmentReclaimer::Erase(uint32_t number) {
  // What lies here may be dead because of something that a crash could still undo.
  writer_.SettleDeaths();
  const SegmentBook::Victim victim = book_.BeginErase(number);
  const std::string name = SegmentName(number);
  if (book_.IsExcess(number) || victim.file->bytes() != book_.segment_bytes()) {
    const Status status = device_.Remove(name);
    if (status.ok()) {
      book_.Erased(number, /*file_kept=*/false);
      return true;
    }
    KVC_LOG(Error, "segment cannot be removed", "file={} error={}", LogValue(device_.PathOf(name)),
            LogValue(status.error().text));
    book_.Retire(number);
    return false;
  }
  const Status status = EraseSegment(*io_, *victim.file,
                                     {.node_uuid = node_uuid_,
                                      .number = number,
                                      .segment_bytes = book_.segment_bytes(),
                                      .first_sequence = book_.TakeSequence()});
  if (!status.ok()) {
    KVC_LOG(Error, "segment retired", "file={} error={}", LogValue(device_.PathOf(name)),
            LogValue(status.error().text));
    book_.Retire(number);
    return false;
  }
  book_.Erased(number, /*file_kept=*/true);
  return true;
}

}  // namespace kvcfs::iouring
