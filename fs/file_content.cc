#include "fs/file_content.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/falloc.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "fs/about_to_block.h"
#include "fs/bytes_io.h"

namespace kvcfs::fs {
namespace {

using iouring::SlotId;
using iouring::SlotRecord;
using iouring::SlotState;

constexpr uint64_t kPage = 4096;
constexpr uint64_t kGrowthStep = 1u << 20;
constexpr uint32_t kChanged = iouring::kSlotDirty | iouring::kSlotWriting;

uint64_t RoundUp(uint64_t bytes) {
  return (bytes + kPage - 1) / kPage * kPage;
}

int64_t Nanos(const struct timespec& time) {
  return time.tv_sec * 1'000'000'000 + time.tv_nsec;
}

// A private mapping of memory for one entry, for where there is no slot for it.
class ScratchMemory {
 public:
  explicit ScratchMemory(uint64_t bytes) : bytes_(bytes) {
    void* mapped =
        ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memory_ = mapped == MAP_FAILED ? nullptr : static_cast<std::byte*>(mapped);
  }
  ~ScratchMemory() {
    if (memory_ != nullptr) ::munmap(memory_, bytes_);
  }
  ScratchMemory(const ScratchMemory&) = delete;
  ScratchMemory& operator=(const ScratchMemory&) = delete;
  std::byte* get() const { return memory_; }

 private:
  uint64_t bytes_;
  std::byte* memory_ = nullptr;
};

}  // namespace

// ---- where it is

FileContent::Where FileContent::WhereIs(const FileNode& node) const {
  if (node.slot != 0) {
    const SlotRecord& slot = Slot(node);
    if (slot.state.load(std::memory_order_relaxed) == SlotState::kFile) return Where::kSlot;
    return (slot.mode & kModeDisk) != 0 ? Where::kDisk : Where::kOpenEmpty;
  }
  switch (node.record.home) {
    case Home::kEmpty:
      return Where::kNothing;
    case Home::kSegment:
      return Where::kCold;
    case Home::kDisk:
      return Where::kDisk;
    case Home::kDram:
      break;
  }
  return Where::kLost;
}

bool FileContent::IsOpen(const FileNode& node) const {
  return node.slot != 0 && Slot(node).readers + Slot(node).writers > 0;
}

std::string FileContent::DiskPath(Ino ino) const {
  return fmt::format("{}/{:02x}/{:016x}", options_.disk_directory, ino & 0xff, ino);
}

Result<Fd> FileContent::OpenDiskFile(Ino ino, int flags) const {
  const std::string path = DiskPath(ino);
  Fd file(::open(path.c_str(), flags | O_CLOEXEC, 0600));
  if (!file.valid() && errno == ENOENT && (flags & O_CREAT) != 0) {
    ::mkdir(path.substr(0, path.rfind('/')).c_str(), 0700);
    file = Fd(::open(path.c_str(), flags | O_CLOEXEC, 0600));
  }
  if (!file.valid()) return ErrnoError(errno, "open", path);
  return file;
}

FsResult<std::shared_ptr<const Fd>> FileContent::File(FileNode& node) {
  if (node.file != nullptr) return node.file;
  const Where where = WhereIs(node);
  if (where != Where::kSlot && where != Where::kDisk) return std::shared_ptr<const Fd>();
  Result<Fd> file = where == Where::kSlot ? parts_.slots->OpenFile(node.slot, O_RDWR)
                                          : OpenDiskFile(node.ino, O_RDWR);
  if (!file.ok()) {
    KVC_LOG(Error, "cannot open the bytes of a file", "ino={:x} error={}", node.ino,
            LogValue(file.error().text));
    return Fail(EIO);
  }
  node.file = std::make_shared<const Fd>(std::move(*file));
  return node.file;
}

void FileContent::RefreshFromDisk(FileNode& node) {
  if (WhereIs(node) != Where::kDisk) return;
  struct stat now {};
  if (node.file != nullptr ? ::fstat(node.file->get(), &now) != 0
                           : ::stat(DiskPath(node.ino).c_str(), &now) != 0) {
    return;
  }
  InodeRecord& record = node.record;
  record.blocks = static_cast<uint64_t>(now.st_blocks);
  const int64_t mtime = Nanos(now.st_mtim);
  if (record.size == static_cast<uint64_t>(now.st_size) && record.disk_mtime_nanos == mtime) return;
  record.size = static_cast<uint64_t>(now.st_size);
  record.disk_mtime_nanos = mtime;
  record.mtime_nanos = mtime;
  record.ctime_nanos = std::max(record.ctime_nanos, mtime);
  if (node.slot != 0) Slot(node).length = record.size;  // not a slot of bytes: not in the books
  MarkDirty(node);
}

// ---- records and queues

void FileContent::MarkDirty(FileNode& node) {
  if (node.attr_dirty || node.gone) return;
  node.attr_dirty = true;
  queues_.QueueRecord(node.ino);
}

FsStatus FileContent::Persist(FileNode& node) {
  if (node.gone) return {};
  meta::MetaBatch batch;
  names_.PutInode(batch, node.ino, node.record);
  const FsStatus written = names_.Write(batch);
  if (written) {
    node.attr_dirty = false;
  } else {
    MarkDirty(node);
  }
  return written;
}

void FileContent::QueueCopy(FileNode& node, Millis delay) {
  if (node.queued || node.gone) return;
  node.queued = true;
  queues_.QueueCopy(node.ino, parts_.clock->Monotonic() + delay);
}

// ---- versions

void FileContent::BeginChange(FileNode& node) {
  ++node.changes;
  node.record.shared.dirty = true;
  node.record.shared.remote = false;
  if (node.record.home == Home::kDisk) return;  // in place, without versions
  SlotRecord& slot = Slot(node);
  if ((slot.flags & iouring::kSlotWriting) == 0) {
    const SlotBooks::Change change(books, slot);
    ++node.record.version;
    slot.version = node.record.version;
    slot.place = {};
    slot.flags |= iouring::kSlotWriting | iouring::kSlotDirty;
  }
  node.record.home = Home::kDram;
}

void FileContent::EndChange(FileNode& node, uint64_t size) {
  InodeRecord& record = node.record;
  record.size = size;
  record.mtime_nanos = record.ctime_nanos = parts_.clock->WallNanos();
  SlotRecord& slot = Slot(node);
  {
    const SlotBooks::Change change(books, slot);
    slot.length = size;
  }
  slot.mtime_nanos = record.mtime_nanos;
  node.doomed = false;
  if (WhereIs(node) == Where::kDisk) {
    // Our own change of the file is no news.
    struct stat now {};
    if (node.file != nullptr && ::fstat(node.file->get(), &now) == 0) {
      record.disk_mtime_nanos = Nanos(now.st_mtim);
      record.blocks = static_cast<uint64_t>(now.st_blocks);
    }
  }
  MarkDirty(node);
}

RetiredPlace FileContent::ReplaceStable(InodeRecord& record, const StableVersion& now) {
  const RetiredPlace before{record.stable.place, record.stable.length, 0};
  if (before.place.valid()) books.RemoveEntry(before.length);
  if (now.place.valid()) books.AddEntry(now.length);
  record.stable = now;
  return before;
}

void FileContent::PublishEmpty(FileNode& node) {
  InodeRecord& record = node.record;
  record.version = std::max<uint64_t>(record.version, 1);
  const RetiredPlace before = ReplaceStable(record, {record.version, 0, record.mtime_nanos, {}});
  record.home = Home::kEmpty;
  record.blocks = 0;
  record.Set(InodeRecord::kUnpublished, false);
  if (node.slot != 0) {
    const SlotBooks::Change change(books, Slot(node));
    Slot(node).flags &= ~(iouring::kSlotWriting | iouring::kSlotDirty);
  }
  if (Persist(node) && before.place.valid()) queues_.Retire(before);
}

void FileContent::Publish(FileNode& node) {
  if (node.writing_now || node.gone || !node.record.IsRegular()) return;
  InodeRecord& record = node.record;
  const bool unpublished = record.Has(InodeRecord::kUnpublished);
  const bool changed = node.slot != 0 && (Slot(node).flags & iouring::kSlotWriting) != 0;
  if (!unpublished && !changed) return;
  const Where where = WhereIs(node);
  if (where == Where::kDisk || (where == Where::kSlot && record.size > 0)) {
    record.Set(InodeRecord::kUnpublished, false);
    MarkDirty(node);
    if (changed) {
      Slot(node).flags &= ~iouring::kSlotWriting;
      QueueCopy(node, options_.writeback_delay);
    }
  } else if (where != Where::kCold) {
    PublishEmpty(node);
  }
}

// ---- slots

void FileContent::FreeSlot(SlotId slot) {
  SlotRecord& record = parts_.slots->record(slot);
  books.Remove(record);
  if (record.backing_id != 0 && parts_.backing != nullptr) {
    parts_.backing->CloseBacking(record.backing_id);
    record.backing_id = 0;
  }
  const bool made_room = record.reserved_bytes > 0;
  parts_.resident->Remove(slot);
  parts_.slots->Free(slot);
  if (made_room) parts_.resident->RoomMayBeHad();
}

void FileContent::DropSlot(FileNode& node) {
  node.file.reset();
  if (node.slot == 0) return;
  const SlotId slot = node.slot;
  table_.SetSlot(node.ino, 0);
  node.slot = 0;
  FreeSlot(slot);
}

void FileContent::CloseBacking(FileNode& node) {
  if (node.slot == 0) return;
  SlotRecord& slot = Slot(node);
  if (slot.backing_id != 0 && parts_.backing != nullptr)
    parts_.backing->CloseBacking(slot.backing_id);
  slot.backing_id = 0;
}

void FileContent::SwitchSlot(FileNode& node, SlotId to, SlotState state, uint32_t mode,
                             std::shared_ptr<const Fd> file) {
  SlotRecord& next = parts_.slots->record(to);
  const SlotId from = node.slot;
  next.ino = node.ino;
  next.length = node.record.size;
  next.mtime_nanos = node.record.mtime_nanos;
  next.version = node.record.version;
  next.mode = mode;
  if (from != 0) {
    const SlotRecord& before = Slot(node);
    next.flags = before.flags;
    next.key = before.key;  // which requests have been counted
    next.parent = before.parent;
    next.aux = before.aux;
    next.readers = before.readers;
    next.writers = before.writers;
    next.place = before.place;
  }
  next.state.store(state, std::memory_order_release);
  books.Add(next);
  node.file = std::move(file);
  node.slot = to;
  table_.SetSlot(node.ino, to);
  if (from != 0) FreeSlot(from);
  if (state == SlotState::kFile) parts_.resident->Add(to, owner_);
}

FsStatus FileContent::EnsureOpenRecord(FileNode& node) {
  MutexLock lock(node.attr);
  if (node.slot != 0) return {};
  const Result<SlotId> slot = parts_.slots->CreateRecord();
  if (!slot.ok()) return Fail(ErrnoOf(slot.code()));
  const bool disk = node.record.home == Home::kDisk;
  SwitchSlot(node, *slot, SlotState::kDiskFile, disk ? kModeDisk : kModeEmpty, nullptr);
  return {};
}

bool FileContent::TooLargeForSlot(const FileNode& node, uint64_t bytes) const {
  return node.record.Has(InodeRecord::kOnDisk) ||
         (options_.disk_file_bytes_min > 0 && bytes > options_.disk_file_bytes_min);
}

FsStatus FileContent::MakeDiskFile(FileNode& node) {
  Result<Fd> file = OpenDiskFile(node.ino, O_RDWR | O_CREAT | O_TRUNC);
  if (!file.ok()) return Fail(ErrnoOf(file.code()));
  const Result<SlotId> slot = parts_.slots->CreateRecord();
  if (!slot.ok()) return Fail(ErrnoOf(slot.code()));
  MutexLock lock(node.attr);
  const uint32_t mode = node.slot == 0 ? 0 : Slot(node).mode & ~kModeEmpty;
  SwitchSlot(node, *slot, SlotState::kDiskFile, mode | kModeDisk,
             std::make_shared<const Fd>(std::move(*file)));
  ++disk_files;
  return {};
}

FsStatus FileContent::MakePlace(FileNode& node, uint64_t end) {
  bool disk = false;
  {
    MutexLock lock(node.attr);
    disk = TooLargeForSlot(node, end);
  }
  if (disk) return MakeDiskFile(node);
  Fd file;
  const Result<SlotId> slot = parts_.resident->CreateSlot(0, options_.room_wait, &file);
  if (!slot.ok()) {
    if (slot.code() == Code::kNoSpace) return MakeDiskFile(node);
    return Fail(ErrnoOf(slot.code()));
  }
  MutexLock lock(node.attr);
  const uint32_t mode = node.slot == 0 ? 0 : Slot(node).mode & ~kModeEmpty;
  SwitchSlot(node, *slot, SlotState::kFile, mode, std::make_shared<const Fd>(std::move(file)));
  return {};
}

FsStatus FileContent::Reserve(FileNode& node, uint64_t bytes) {
  const SlotId slot = node.slot;
  const uint64_t has = parts_.slots->record(slot).reserved_bytes;
  if (bytes <= has) return {};
  if (has > 0) {
    // Ahead of a writer of many pieces, but only where that is free.
    const uint64_t ahead = std::max(bytes, has + std::min(has, kGrowthStep));
    if (parts_.resident->Grow(slot, RoundUp(ahead), Millis(0)).ok()) return {};
  }
  const Status grown = parts_.resident->Grow(slot, RoundUp(bytes), options_.room_wait);
  if (!grown.ok()) return Fail(ErrnoOf(grown.code()));
  return {};
}

FsStatus FileContent::MoveToDisk(FileNode& node) {
  std::shared_ptr<const Fd> from;
  uint64_t size = 0;
  {
    MutexLock lock(node.attr);
    if (WhereIs(node) != Where::kSlot) return {};
    if (IsOpen(node) && (Slot(node).mode & kModePassthrough) != 0) return Fail(EBUSY);
    FsResult<std::shared_ptr<const Fd>> file = File(node);
    if (!file) return Fail(file.error().value);
    from = std::move(*file);
    size = node.record.size;
  }
  Result<Fd> to = OpenDiskFile(node.ino, O_RDWR | O_CREAT | O_TRUNC);
  if (!to.ok()) return Fail(ErrnoOf(to.code()));
  int error = CopyFile(from->get(), to->get(), size);
  Result<SlotId> slot = Error{Code::kNoSpace, ""};
  if (error == 0) {
    slot = parts_.slots->CreateRecord();
    if (!slot.ok()) error = ErrnoOf(slot.code());
  }
  if (error != 0) {
    ::unlink(DiskPath(node.ino).c_str());
    return Fail(error);
  }
  MutexLock lock(node.attr);
  struct stat now {};
  if (::fstat(to->get(), &now) == 0) node.record.disk_mtime_nanos = Nanos(now.st_mtim);
  const uint32_t mode = Slot(node).mode;
  SwitchSlot(node, *slot, SlotState::kDiskFile, mode | kModeDisk,
             std::make_shared<const Fd>(std::move(*to)));
  ++disk_files;
  SlotRecord& record = Slot(node);
  record.flags |= iouring::kSlotDirty;  // until its record says that it is there
  if ((record.flags & iouring::kSlotWriting) == 0) QueueCopy(node, Millis(0));
  return {};
}

// ---- bringing bytes in

iouring::EntryMeta FileContent::EntryOf(Ino ino, Ino root, const StableVersion& version) {
  iouring::EntryMeta meta;
  meta.kind = iouring::EntryKind::kFile;
  meta.ino = ino;
  meta.version = version.version;
  meta.length = version.length;
  meta.mtime_nanos = version.mtime_nanos;
  if (const FsResult<NodeRef> tree = table_.Find(root); tree && *tree != nullptr) {
    MutexLock lock((*tree)->attr);
    const std::string& uuid = (*tree)->record.target;
    std::copy_n(uuid.begin(), std::min(uuid.size(), meta.namespace_uuid.size()),
                meta.namespace_uuid.begin());
  }
  return meta;
}

Status FileContent::ReadEntry(FileNode& node, const StableVersion& stable,
                              std::span<std::byte> into) {
  AboutToBlock();
  StableVersion from = stable;
  Ino root = 0;
  {
    MutexLock lock(node.attr);
    root = node.record.root;
  }
  const iouring::EntryMeta meta = EntryOf(node.ino, root, stable);
  for (;;) {
    if (parts_.segments == nullptr) return Error{Code::kIo, "its bytes are in the NVMe tier"};
    Status got = parts_.segments->Read(from.place, meta, into);
    if (got.ok()) return got;
    if (got.code() != Code::kStale && got.code() != Code::kCorrupt) return got;
    MutexLock lock(node.attr);  // reclaim may have moved it meanwhile
    if (node.record.stable.place == from.place) return Error{Code::kCorrupt, got.error().text};
    from.place = node.record.stable.place;
  }
}

Status FileContent::Load(FileNode& node) {
  StableVersion stable;
  {
    MutexLock lock(node.attr);
    const Where where = WhereIs(node);
    if (where == Where::kLost) return Error{Code::kCorrupt, "its slot is gone"};
    if (where != Where::kCold) return {};
    stable = node.record.stable;
  }
  const uint64_t bytes = RoundUp(stable.length);
  const Result<SlotId> slot = parts_.resident->CreateSlot(bytes, options_.room_wait);
  if (!slot.ok()) {
    if (slot.code() == Code::kNoSpace) return LoadToDisk(node, stable);
    return slot.error();
  }
  const auto fill = [&](const Fd& file) -> Status {
    // Whole pages while it is read, then the exact length.
    if (::ftruncate(file.get(), static_cast<off_t>(bytes)) != 0)
      return ErrnoError(errno, "size a slot");
    void* mapped = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file.get(), 0);
    if (mapped == MAP_FAILED) return ErrnoError(errno, "map a slot");
    const Status got = ReadEntry(node, stable, {static_cast<std::byte*>(mapped), bytes});
    ::munmap(mapped, bytes);
    KVC_TRY(got);
    if (::ftruncate(file.get(), static_cast<off_t>(stable.length)) != 0)
      return ErrnoError(errno, "size a slot");
    return {};
  };
  Result<Fd> file = parts_.slots->OpenFile(*slot, O_RDWR);
  Status filled = file.ok() ? fill(*file) : Status(file.error());
  if (!filled.ok()) {
    parts_.slots->Free(*slot);
    return filled;
  }
  MutexLock lock(node.attr);
  node.record.size = stable.length;
  SwitchSlot(node, *slot, SlotState::kFile, 0, std::make_shared<const Fd>(std::move(*file)));
  Slot(node).place = node.record.stable.place;
  return {};
}

Status FileContent::LoadToDisk(FileNode& node, const StableVersion& stable) {
  const ScratchMemory memory(RoundUp(stable.length));
  if (memory.get() == nullptr) return Error{Code::kNoSpace, "no memory"};
  KVC_TRY(ReadEntry(node, stable, {memory.get(), RoundUp(stable.length)}));
  const FsStatus made = MakeDiskFile(node);
  if (!made) return Error{made.error().value == ENOSPC ? Code::kNoSpace : Code::kIo, "data disk"};
  MutexLock lock(node.attr);
  const int error = WriteFully(node.file->get(), 0, {memory.get(), stable.length});
  if (error != 0) {
    DropSlot(node);
    --disk_files;
    ::unlink(DiskPath(node.ino).c_str());
    return Error{error == ENOSPC ? Code::kNoSpace : Code::kIo, "data disk"};
  }
  struct stat now {};
  if (::fstat(node.file->get(), &now) == 0) node.record.disk_mtime_nanos = Nanos(now.st_mtim);
  node.record.home = Home::kDram;  // until the disk file is durable, the entry stays stable
  Slot(node).flags |= iouring::kSlotDirty;
  QueueCopy(node, Millis(0));
  return {};
}

// ---- giving back

void FileContent::Settle(FileNode& node) {
  MutexLock lock(node.attr);
  if (node.slot == 0 || IsOpen(node)) return;
  SlotRecord& slot = Slot(node);
  node.fsyncs = 0;
  switch (WhereIs(node)) {
    case Where::kSlot: {
      if (node.record.size == 0 && node.record.home == Home::kEmpty) {
        DropSlot(node);
        return;
      }
      slot.mode &= ~kModePassthrough;
      struct stat now {};
      const bool written = node.file != nullptr && (slot.flags & iouring::kSlotDirty) != 0;
      if (written && ::fstat(node.file->get(), &now) == 0) {
        const auto blocks = static_cast<uint64_t>(now.st_blocks);
        node.record.blocks = std::min(blocks, RoundUp(node.record.size) / 512);
        if (RoundUp(slot.reserved_bytes) != blocks * 512) {
          parts_.slots->SetReserved(node.slot, blocks * 512);
        }
      }
      node.file.reset();
      if ((slot.flags & iouring::kSlotDirty) == 0) parts_.resident->RoomMayBeHad();
      return;
    }
    case Where::kDisk:
      RefreshFromDisk(node);
      slot.mode &= ~kModePassthrough;
      if (node.record.home == Home::kDisk) {
        DropSlot(node);
      } else {
        CloseBacking(node);
        node.file.reset();
      }
      return;
    default:
      DropSlot(node);
  }
}

void FileContent::Discard(FileNode& node) {
  MutexLock lock(node.attr);
  const bool on_disk = WhereIs(node) == Where::kDisk || node.record.home == Home::kDisk;
  DropSlot(node);
  const RetiredPlace before = ReplaceStable(node.record, {});
  if (before.place.valid()) queues_.Retire(before);
  if (on_disk) queues_.Retire({{}, 0, node.ino});
  node.record.home = Home::kEmpty;
}

bool FileContent::IsUnused(SlotId slot) const {
  const Result<Fd> file = parts_.slots->OpenFile(slot, O_RDWR);
  if (!file.ok()) return true;
  // A write lease is given only if this is the one open descriptor; a mapping keeps its file open.
  // Source: fcntl(2) F_SETLEASE.
  if (::fcntl(file->get(), F_SETLEASE, F_WRLCK) != 0) return errno != EAGAIN;
  ::fcntl(file->get(), F_SETLEASE, F_UNLCK);
  return true;
}

Ino FileContent::WaitsForCopy(SlotId slot) {
  const SlotRecord& record = parts_.slots->record(slot);
  const SlotState state = record.state.load();
  if (state != SlotState::kFile && state != SlotState::kDiskFile) return 0;
  const Ino ino = record.ino.load();
  return table_.WithoutLoading(ino, [&](const NodeRef& node) KVC_NO_ANALYSIS -> Ino {
    std::unique_lock<std::mutex> attr;
    if (node != nullptr) attr = std::unique_lock(node->attr.native());
    if (record.state.load() != state || record.ino.load() != ino) return 0;
    return (record.flags & kChanged) == iouring::kSlotDirty ? ino : 0;
  });
}

bool FileContent::TryEvict(SlotId slot) {
  SlotRecord& record = parts_.slots->record(slot);
  if (record.state.load() != SlotState::kFile) return false;
  const Ino ino = record.ino.load();
  return table_.WithoutLoading(ino, [&](const NodeRef& node) KVC_NO_ANALYSIS {
    std::unique_lock<std::shared_mutex> content;
    std::unique_lock<std::mutex> attr;
    if (node != nullptr) {
      if (node->content_users.load() != 0) return false;
      content = std::unique_lock(node->content, std::try_to_lock);
      if (!content.owns_lock()) return false;
      attr = std::unique_lock(node->attr.native());
      if (node->slot != slot) return false;
    }
    if (record.state.load() != SlotState::kFile || record.ino.load() != ino) return false;
    if (record.readers + record.writers > 0 || (record.flags & kChanged) != 0 ||
        !record.place.valid()) {
      return false;
    }
    if (node != nullptr) node->file.reset();
    if (record.backing_id != 0 && parts_.backing != nullptr) {
      parts_.backing->CloseBacking(record.backing_id);
      record.backing_id = 0;
    }
    if (!IsUnused(slot)) return false;
    if ((record.mode & kModeMapped) != 0) {
      // Stores through a mapping that outlived its descriptor: copy once more, now that it is gone.
      const SlotBooks::Change change(books, record);
      record.mode &= ~kModeMapped;
      record.flags |= iouring::kSlotDirty;
      return false;
    }
    table_.SetSlot(ino, 0);
    if (node != nullptr) node->slot = 0;
    FreeSlot(slot);
    return true;
  });
}

}  // namespace kvcfs::fs
