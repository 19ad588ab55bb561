// The bytes of an ordinary file: reading and changing them where they are.
#include <algorithm>
#include <cerrno>

#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fs/bytes_io.h"
#include "fs/file_content.h"

namespace kvcfs::fs {

// ---- changing bytes

FsResult<size_t> FileContent::Write(FileNode& node, uint64_t offset,
                                    std::span<const std::byte> from) {
  const uint64_t end = offset + from.size();
  bool may_spill = true;
  uint64_t old_size = 0;
  std::shared_ptr<const Fd> file;
  for (bool ready = false; !ready;) {
    Where where = Where::kNothing;
    bool too_large = false;
    {
      MutexLock lock(node.attr);
      if (node.gone) return Fail(ESTALE);
      where = WhereIs(node);
      too_large = TooLargeForSlot(node, end);
      may_spill = node.slot == 0 || (Slot(node).mode & kModePassthrough) == 0;
    }
    FsStatus step;
    switch (where) {
      case Where::kNothing:
      case Where::kOpenEmpty:
        step = MakePlace(node, end);
        break;
      case Where::kLost:
        return Fail(EIO);
      case Where::kCold: {
        const Status loaded = Load(node);
        if (!loaded.ok()) return Fail(ErrnoOf(loaded.code()));
        break;
      }
      case Where::kDisk: {
        step = EnsureOpenRecord(node);
        ready = true;
        break;
      }
      case Where::kSlot:
        if (too_large && may_spill) {
          step = MoveToDisk(node);
          break;
        }
        step = Reserve(node, end);
        ready = step.has_value();
        if (!step && may_spill) step = MoveToDisk(node);
        break;
    }
    if (!step) {
      MutexLock lock(node.attr);
      if (step.error().value == ENOSPC) node.doomed = node.record.Has(InodeRecord::kUnpublished);
      return Fail(step.error().value);
    }
  }
  bool in_slot = false;
  {
    MutexLock lock(node.attr);
    FsResult<std::shared_ptr<const Fd>> opened = File(node);
    if (!opened) return Fail(opened.error().value);
    file = *opened;
    BeginChange(node);
    node.writing_now = true;
    old_size = node.record.size;
    in_slot = WhereIs(node) == Where::kSlot;
    if (!in_slot) {  // a passthrough writer may have made it longer
      struct stat now {};
      if (::fstat(file->get(), &now) == 0) old_size = static_cast<uint64_t>(now.st_size);
    }
  }
  int error = WriteFully(file->get(), offset, from);
  if (error == ENOSPC && in_slot && may_spill) {
    // The tmpfs itself is full, whatever the books say.
    file.reset();
    const FsStatus moved = MoveToDisk(node);
    if (moved) {
      MutexLock lock(node.attr);
      file = node.file;
    }
    error = moved ? WriteFully(file->get(), offset, from) : ENOSPC;
  }
  MutexLock lock(node.attr);
  node.writing_now = false;
  if (error != 0) {
    // What was half written must not be seen: the length stays.
    if (file != nullptr && end > old_size)
      (void)!::ftruncate(file->get(), static_cast<off_t>(old_size));
    if (error == ENOSPC) node.doomed = node.record.Has(InodeRecord::kUnpublished);
    return Fail(error);
  }
  EndChange(node, std::max(old_size, end));
  return from.size();
}

FsStatus FileContent::Resize(FileNode& node, uint64_t size) {
  Where where = Where::kNothing;
  {
    MutexLock lock(node.attr);
    if (node.gone) return Fail(ESTALE);
    where = WhereIs(node);
  }
  if (where == Where::kLost) return Fail(EIO);
  if (where == Where::kCold && size > 0) {
    const Status loaded = Load(node);
    if (!loaded.ok()) return Fail(ErrnoOf(loaded.code()));
    return Resize(node, size);
  }
  if (where == Where::kCold || where == Where::kNothing || where == Where::kOpenEmpty) {
    if (size == 0) {
      // What is cold need not be fetched to be dropped.
      const FsStatus made = EnsureOpenRecord(node);
      if (!made) return made;
      MutexLock lock(node.attr);
      BeginChange(node);
      EndChange(node, 0);
      return {};
    }
    const FsStatus made = MakePlace(node, size);
    if (!made) return made;
    return Resize(node, size);
  }
  if (where == Where::kSlot) {
    MutexLock lock(node.attr);
    const bool may_spill = (Slot(node).mode & kModePassthrough) == 0;
    const bool too_large = size > node.record.size && TooLargeForSlot(node, size);
    lock.native().unlock();
    if (too_large && may_spill) {
      const FsStatus moved = MoveToDisk(node);
      if (!moved) return moved;
      return Resize(node, size);
    }
    const FsStatus reserved = Reserve(node, size);
    if (!reserved && may_spill) {
      const FsStatus moved = MoveToDisk(node);
      if (!moved) return moved;
      return Resize(node, size);
    }
    if (!reserved) return reserved;
  } else {
    const FsStatus made = EnsureOpenRecord(node);
    if (!made) return made;
  }
  MutexLock lock(node.attr);
  const FsResult<std::shared_ptr<const Fd>> file = File(node);
  if (!file) return Fail(file.error().value);
  BeginChange(node);
  if (::ftruncate((*file)->get(), static_cast<off_t>(size)) != 0) return Fail(errno);
  EndChange(node, size);
  return {};
}

FsStatus FileContent::Allocate(FileNode& node, int mode, uint64_t offset, uint64_t length) {
  constexpr int kKnown = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE;
  const bool punch = (mode & FALLOC_FL_PUNCH_HOLE) != 0;
  const bool zero = (mode & FALLOC_FL_ZERO_RANGE) != 0;
  const bool keep = (mode & FALLOC_FL_KEEP_SIZE) != 0;
  if ((mode & ~kKnown) != 0 || (punch && (zero || !keep))) return Fail(EOPNOTSUPP);
  if (length == 0) return Fail(EINVAL);
  const uint64_t end = offset + length;
  uint64_t size = 0;
  Where where = Where::kNothing;
  {
    MutexLock lock(node.attr);
    RefreshFromDisk(node);
    size = node.record.size;
    where = WhereIs(node);
  }
  if (!keep && end > size && zero) {
    const FsStatus resized = Resize(node, end);
    if (!resized) return resized;
  }
  if (punch || zero) {
    if (offset >= size || where == Where::kNothing || where == Where::kOpenEmpty) return {};
    if (where == Where::kCold) {
      const Status loaded = Load(node);
      if (!loaded.ok()) return Fail(ErrnoOf(loaded.code()));
    }
    const FsStatus made = EnsureOpenRecord(node);
    if (!made) return made;
    MutexLock lock(node.attr);
    const FsResult<std::shared_ptr<const Fd>> file = File(node);
    if (!file) return Fail(file.error().value);
    BeginChange(node);
    if (::fallocate((*file)->get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                    static_cast<off_t>(offset),
                    static_cast<off_t>(std::min(end, size) - offset)) != 0) {
      return Fail(errno);
    }
    EndChange(node, node.record.size);
    return {};
  }
  // Space set aside: somewhere to have it first.
  if (where == Where::kNothing || where == Where::kOpenEmpty) {
    const FsStatus made = MakePlace(node, end);
    if (!made) return made;
  } else if (where == Where::kCold) {
    const Status loaded = Load(node);
    if (!loaded.ok()) return Fail(ErrnoOf(loaded.code()));
  }
  bool in_slot = false;
  {
    MutexLock lock(node.attr);
    in_slot = WhereIs(node) == Where::kSlot;
    const bool may_spill = in_slot && (Slot(node).mode & kModePassthrough) == 0;
    const bool too_large = TooLargeForSlot(node, end);
    lock.native().unlock();
    if (in_slot && (!(too_large && may_spill) && Reserve(node, end))) {
    } else if (in_slot && may_spill) {
      const FsStatus moved = MoveToDisk(node);
      if (!moved) return moved;
    } else if (in_slot) {
      return Fail(ENOSPC);
    }
  }
  const FsStatus made = EnsureOpenRecord(node);
  if (!made) return made;
  MutexLock lock(node.attr);
  const FsResult<std::shared_ptr<const Fd>> file = File(node);
  if (!file) return Fail(file.error().value);
  BeginChange(node);
  if (::fallocate((*file)->get(), keep ? FALLOC_FL_KEEP_SIZE : 0, static_cast<off_t>(offset),
                  static_cast<off_t>(length)) != 0) {
    return Fail(errno);
  }
  EndChange(node, keep ? size : std::max(size, end));
  return {};
}

// ---- reading

FsResult<size_t> FileContent::Read(FileNode& node, uint64_t offset, std::span<std::byte> into) {
  std::shared_ptr<const Fd> file;
  {
    MutexLock lock(node.attr);
    FsResult<std::shared_ptr<const Fd>> opened = File(node);
    if (!opened) return Fail(opened.error().value);
    file = std::move(*opened);
  }
  if (file == nullptr) return size_t{0};
  size_t done = 0;
  if (const int error = ReadFully(file->get(), offset, into, &done)) return Fail(error);
  return done;
}

FsResult<uint64_t> FileContent::Seek(FileNode& node, uint64_t offset, int whence) {
  if (whence != SEEK_DATA && whence != SEEK_HOLE) return Fail(EINVAL);
  MutexLock lock(node.attr);
  const FsResult<std::shared_ptr<const Fd>> file = File(node);
  if (!file) return Fail(file.error().value);
  if (*file == nullptr) return Fail(ENXIO);
  const off_t at = ::lseek((*file)->get(), static_cast<off_t>(offset), whence);
  if (at < 0) return Fail(errno);
  return static_cast<uint64_t>(at);
}

}  // namespace kvcfs::fs
