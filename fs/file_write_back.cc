#include "fs/file_write_back.h"

#include <algorithm>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "fs/bytes_io.h"

namespace kvcfs::fs {
namespace {

using iouring::SlotRecord;
using Where = FileContent::Where;

constexpr uint32_t kChanged = iouring::kSlotDirty | iouring::kSlotWriting;
// After the device or the tier said no.
constexpr Millis kTryAgain{2000};
constexpr Millis kNoRoomPause{100};
constexpr Millis kTick{500};

}  // namespace

// One copy of one version on its way to the segments.
struct FileWriteBack::Copy {
  NodeRef node;
  StableVersion version;
  uint64_t changes = 0;  // of the node when the version was taken
  std::shared_ptr<const Fd> file;

  Mutex mutex;
  std::condition_variable changed;
  bool copied KVC_GUARDED_BY(mutex) = false;  // the bytes are in the store's own memory
  bool done KVC_GUARDED_BY(mutex) = false;
  Code code KVC_GUARDED_BY(mutex) = Code::kOk;

  bool Fill(std::span<std::byte> into) {
    const std::shared_lock<std::shared_mutex> content(node->content, std::try_to_lock);
    if (!content.owns_lock()) return false;  // a writer is in it: later
    {
      MutexLock lock(node->attr);
      if (node->changes != changes || node->gone) return false;
    }
    if (!ReadExactly(file->get(), into)) return false;
    MutexLock lock(mutex);
    copied = true;
    changed.notify_all();
    return true;
  }
};

void FileWriteBack::Start(std::function<void(Ino)> lost) {
  lost_ = std::move(lost);
  thread_ = std::thread([this] { Run(); });
}

void FileWriteBack::Stop() {
  queues_.Stop();
  if (thread_.joinable()) thread_.join();
  MutexLock lock(mutex_);
  copied_.wait(lock.native(), [this]() KVC_NO_ANALYSIS { return in_flight_ == 0; });
}

void FileWriteBack::Run() {
  SetThreadName("file-wb");
  for (;;) {
    FileQueues::Work work = queues_.WaitAndTake(*parts_.clock, kTick);
    if (work.stopping) return;  // who wants all of it done calls All() before
    WorkOff(work);
  }
}

void FileWriteBack::WorkOff(FileQueues::Work& work) {
  for (const Ino ino : work.lost) lost_(ino);
  for (const Ino ino : work.copies) {
    const FsResult<NodeRef> node = table_.Find(ino);
    if (node && *node != nullptr) CopyNow(*node);
  }
  PersistRecords(work.records);
  GiveBack(work.retired);
}

void FileWriteBack::PersistRecords(const std::vector<Ino>& inos) {
  for (const Ino ino : inos) {
    const NodeRef node = table_.Peek(ino);  // one with news stays in memory
    if (node == nullptr) continue;
    MutexLock lock(node->attr);
    if (node->attr_dirty) (void)content_.Persist(*node);
  }
}

void FileWriteBack::GiveBack(const std::vector<RetiredPlace>& retired) {
  if (retired.empty()) return;
  // The records that no longer refer to them were written before they were retired.
  if (!names_.Sync()) {
    for (const RetiredPlace& what : retired) queues_.Retire(what);
    return;
  }
  for (const RetiredPlace& what : retired) {
    if (what.disk_file != 0) {
      ::unlink(content_.DiskPath(what.disk_file).c_str());
      --content_.disk_files;
    } else if (parts_.segments != nullptr) {
      parts_.segments->MarkDead(what.place, what.length);
    }
  }
}

void FileWriteBack::GiveBackRetired() {
  FileQueues::Work work = queues_.Take(Millis::min());
  for (const Ino ino : work.lost) queues_.QueueLost(ino);
  for (const Ino ino : work.copies) queues_.QueueCopySoon(ino);
  PersistRecords(work.records);
  GiveBack(work.retired);
}

// ---- copies to the segments

Status FileWriteBack::StartCopy(const NodeRef& node, const std::shared_ptr<Copy>& copy,
                                bool durable) {
  Ino root = 0;
  {
    MutexLock lock(node->attr);
    root = node->record.root;
    if (node->gone || content_.WhereIs(*node) != Where::kSlot) {
      return Error{Code::kCancelled, "not in a slot"};
    }
    // Stores through a mapping make a version without a write.
    if (node->record.version <= node->record.stable.version) {
      node->record.version = node->record.stable.version + 1;
      content_.Slot(*node).version = node->record.version;
    }
    Result<Fd> file = parts_.slots->OpenFile(node->slot, O_RDONLY);
    if (!file.ok()) return file.error();
    copy->file = std::make_shared<const Fd>(std::move(*file));
    copy->node = node;
    copy->version.version = node->record.version;
    copy->version.length = node->record.size;
    copy->version.mtime_nanos = node->record.mtime_nanos;
    copy->changes = node->changes;
    node->in_flight = true;
  }
  const iouring::EntryMeta meta = content_.EntryOf(node->ino, root, copy->version);
  {
    MutexLock lock(mutex_);
    ++in_flight_;
  }
  iouring::AppendRequest request;
  request.meta = meta;
  request.durable = durable;
  request.fill = [copy](std::span<std::byte> into) { return copy->Fill(into); };
  request.done = [this, copy](Result<iouring::SegmentPlace> place,
                              const iouring::EntryMeta& entry) {
    Finish(*copy, std::move(place), entry.length);
  };
  Status queued = AppendWhenThereIsRoom(*parts_.segments, request);
  if (!queued.ok()) {
    {
      MutexLock lock(node->attr);
      node->in_flight = false;
    }
    MutexLock lock(mutex_);
    --in_flight_;
    copied_.notify_all();
  }
  return queued;
}

void FileWriteBack::CopySoon(Ino ino) {
  if (parts_.clock->Monotonic() >= Millis(no_room_until_ms_.load())) queues_.QueueCopySoon(ino);
}

void FileWriteBack::Finish(Copy& copy, Result<iouring::SegmentPlace> place, uint64_t length) {
  FileNode& node = *copy.node;
  bool unwanted = false;
  {
    MutexLock lock(node.attr);
    node.in_flight = false;
    if (place.ok()) {
      InodeRecord& record = node.record;
      unwanted =
          node.gone || record.home == Home::kDisk || copy.version.version <= record.stable.version;
      if (!unwanted) {
        StableVersion stable = copy.version;
        stable.place = *place;
        const RetiredPlace before = content_.ReplaceStable(record, stable);
        if (node.changes == copy.changes && content_.WhereIs(node) == Where::kSlot) {
          SlotRecord& slot = content_.Slot(node);
          const SlotBooks::Change change(content_.books, slot);
          slot.place = *place;
          slot.flags &= ~kChanged;
          record.home = Home::kSegment;
        }
        if (content_.Persist(node) && before.place.valid()) queues_.Retire(before);
      }
    }
    if (!node.gone && content_.WhereIs(node) == Where::kSlot &&
        (content_.Slot(node).flags & kChanged) == iouring::kSlotDirty) {
      const bool writer_came = place.ok() || place.code() == Code::kCancelled;
      content_.QueueCopy(node, writer_came ? options_.writeback_delay : kTryAgain);
    }
  }
  if (unwanted) parts_.segments->MarkDead(*place, length);
  const bool no_room = place.code() == Code::kNoSpace;
  if (no_room) no_room_until_ms_ = (parts_.clock->Monotonic() + kNoRoomPause).count();
  const bool known = no_room_.load();
  if (place.ok() || no_room) no_room_ = no_room;
  if (!place.ok() && place.code() != Code::kCancelled && !(no_room && known)) {
    KVC_LOG(Warn, "a file could not be written back; it stays in DRAM and is tried again",
            "ino={:x} error={}", node.ino, LogValue(place.error().text));
  }
  if (!no_room) parts_.resident->RoomMayBeHad();
  {
    MutexLock lock(copy.mutex);
    copy.done = true;
    copy.code = place.code();
    copy.changed.notify_all();
  }
  MutexLock lock(mutex_);
  --in_flight_;
  copied_.notify_all();
}

void FileWriteBack::CopyNow(const NodeRef& node) {
  bool to_disk = false;
  {
    MutexLock lock(node->attr);
    node->queued = false;
    if (node->gone || node->slot == 0) return;
    const Where where = content_.WhereIs(*node);
    const uint32_t flags = content_.Slot(*node).flags & kChanged;
    if (flags != iouring::kSlotDirty || node->in_flight) return;  // what is written now comes again
    if (where == Where::kDisk) {
      lock.native().unlock();
      if (!PersistDiskFile(node)) {
        lock.native().lock();
        content_.QueueCopy(*node, kTryAgain);
      }
      return;
    }
    if (where != Where::kSlot) return;
    to_disk = parts_.segments == nullptr;
  }
  if (!to_disk) {
    const Status started = StartCopy(node, std::make_shared<Copy>(), false);
    if (started.ok() || started.code() == Code::kCancelled) return;
    // Longer than an entry may be: the data disk is its place.
    to_disk = started.code() == Code::kTooLarge || started.code() == Code::kInvalid;
  }
  FsStatus moved = Fail(EBUSY);
  if (to_disk) {
    ContentLock content(*node);
    moved = content_.MoveToDisk(*node);
  }
  if (moved) moved = PersistDiskFile(node);
  if (!moved) {
    MutexLock lock(node->attr);
    content_.QueueCopy(*node, kTryAgain);
  }
}

// ---- the data disk

FsStatus FileWriteBack::PersistDiskFile(const NodeRef& node) {
  std::shared_ptr<const Fd> file;
  {
    MutexLock lock(node->attr);
    if (node->gone || content_.WhereIs(*node) != Where::kDisk) return {};
    FsResult<std::shared_ptr<const Fd>> opened = content_.File(*node);
    if (!opened) return Fail(opened.error().value);
    file = std::move(*opened);
  }
  if (::fdatasync(file->get()) != 0) return Fail(errno);
  bool first = false;
  {
    MutexLock lock(node->attr);
    first = node->record.home != Home::kDisk;
  }
  if (first) {
    const std::string path = content_.DiskPath(node->ino);
    const Fd directory(::open(path.substr(0, path.rfind('/')).c_str(), O_RDONLY | O_DIRECTORY));
    if (!directory.valid() || ::fsync(directory.get()) != 0) return Fail(EIO);
  }
  ContentLock content(*node);
  {
    MutexLock lock(node->attr);
    if (node->gone || content_.WhereIs(*node) != Where::kDisk) return {};
    content_.RefreshFromDisk(*node);
    RetiredPlace before;
    if (node->record.home != Home::kDisk) {
      before = content_.ReplaceStable(node->record, {});
      node->record.home = Home::kDisk;
      content_.Slot(*node).flags &= ~kChanged;  // an open record: not in the books
    }
    node->record.Set(InodeRecord::kUnpublished, false);
    const FsStatus persisted = content_.Persist(*node);
    if (!persisted) return persisted;
    if (before.place.valid()) queues_.Retire(before);
  }
  content_.Settle(*node);
  return {};
}

// ---- fsync

FsStatus FileWriteBack::FsyncSlot(const NodeRef& node) {
  const auto copy = std::make_shared<Copy>();
  {
    SharedContentLock content(*node);
    const Status started = StartCopy(node, copy, true);
    if (!started.ok())
      return Fail(started.code() == Code::kTooLarge ? EFBIG : ErrnoOf(started.code()));
    MutexLock lock(copy->mutex);
    copy->changed.wait(lock.native(), [&]() KVC_NO_ANALYSIS { return copy->copied || copy->done; });
  }
  MutexLock lock(copy->mutex);
  copy->changed.wait(lock.native(), [&]() KVC_NO_ANALYSIS { return copy->done; });
  if (copy->code != Code::kOk) return Fail(ErrnoOf(copy->code));
  return {};
}

FsStatus FileWriteBack::Fsync(FileNode& node, const NodeRef& ref, bool too_often) {
  Where where = Where::kNothing;
  bool dirty = false;
  uint64_t sequence = 0;
  {
    MutexLock lock(node.attr);
    where = content_.WhereIs(node);
    dirty = node.slot != 0 && (content_.Slot(node).flags & kChanged) != 0;
    sequence = node.record.stable.place.sequence;
  }
  if (where == Where::kSlot && dirty) {
    bool to_disk = too_often || parts_.segments == nullptr;
    if (!to_disk) {
      bool empty = false;
      {
        MutexLock lock(node.attr);
        empty = node.record.size == 0;
        if (empty) content_.PublishEmpty(node);
      }
      const FsStatus copied = empty ? FsStatus() : FsyncSlot(ref);
      to_disk = !copied && copied.error().value == EFBIG;
      if (!copied && !to_disk) return copied;
    }
    if (to_disk) {
      ContentLock content(node);
      const FsStatus moved = content_.MoveToDisk(node);
      if (moved) {
        where = Where::kDisk;
      } else if (moved.error().value != EBUSY || parts_.segments == nullptr) {
        return moved;
      }
    }
    if (to_disk && where == Where::kSlot) {  // passthrough readers hold it where it is
      const FsStatus copied = FsyncSlot(ref);
      if (!copied) return copied;
    }
  } else if (sequence > durable_sequence_.load() && parts_.segments != nullptr) {
    const uint64_t last = parts_.segments->last_sequence();
    const Status flushed = parts_.segments->Flush(true);
    if (!flushed.ok()) return Fail(ErrnoOf(flushed.code()));
    uint64_t seen = durable_sequence_.load();
    while (seen < last && !durable_sequence_.compare_exchange_weak(seen, last)) {
    }
  }
  if (where == Where::kDisk) {
    const FsStatus persisted = PersistDiskFile(ref);
    if (!persisted) return persisted;
  }
  {
    MutexLock lock(node.attr);
    InodeRecord& record = node.record;
    if (record.IsRegular() && record.size == 0 && where != Where::kDisk &&
        (record.Has(InodeRecord::kUnpublished) || dirty)) {
      content_.PublishEmpty(node);
    }
    if (record.Has(InodeRecord::kUnpublished)) {
      record.Set(InodeRecord::kUnpublished, false);
      node.attr_dirty = true;
    }
    if (node.attr_dirty) {
      const FsStatus persisted = content_.Persist(node);
      if (!persisted) return persisted;
    }
  }
  return names_.Sync();
}

Status FileWriteBack::All() {
  // A writer that comes in between makes a second round; what is being written is left alone.
  for (int round = 0; round < 4; ++round) {
    std::vector<Ino> dirty;
    parts_.slots->ForEach([&](iouring::SlotId slot, const SlotRecord&) {
      if (const Ino ino = content_.WaitsForCopy(slot); ino != 0) dirty.push_back(ino);
    });
    if (dirty.empty()) break;
    for (const Ino ino : dirty) {
      const FsResult<NodeRef> node = table_.Find(ino);
      if (node && *node != nullptr) CopyNow(*node);
    }
    MutexLock lock(mutex_);
    copied_.wait(lock.native(), [this]() KVC_NO_ANALYSIS { return in_flight_ == 0; });
  }
  if (parts_.segments != nullptr) KVC_TRY(parts_.segments->Flush(true));
  table_.ForEach([&](const NodeRef& node) {
    MutexLock lock(node->attr);
    if (node->attr_dirty) (void)content_.Persist(*node);
  });
  GiveBackRetired();
  KVC_TRY(parts_.meta->Sync());
  return {};
}

}  // namespace kvcfs::fs
