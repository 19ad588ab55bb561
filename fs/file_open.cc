// Open files: open, create, read, write, fsync, release.
//
// A handle says by itself what it is (bits below), so that it means the same to the next daemon;
// who has an inode open is counted in its slot's record, which survives us.
#include <algorithm>
#include <array>
#include <cstring>

#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/stat.h>

#include "base/log.h"
#include "fs/about_to_block.h"
#include "fs/tiered_file_tree.h"

namespace kvcfs::fs {
namespace {

using iouring::SlotRecord;

// Handles: bit 0 a writer, bit 1 passthrough, from bit 8 a number that is never used twice.
constexpr uint64_t kHandleWriter = 1;
constexpr uint64_t kHandlePassthrough = 2;

// The kernel's struct file alone, about 1 KiB each.
constexpr size_t kIdleBackingsMax = 4096;
constexpr size_t kCopyPiece = 1u << 20;

bool IsWriter(int flags) {
  return (flags & O_ACCMODE) != O_RDONLY;
}

// The last few numbers of a kind, in a key's bytes of a slot's record (files have no keys).
bool Contains(const BlockKey& recent, uint64_t number) {
  for (size_t index = 0; index < 4; ++index) {
    if (recent.Word(index) == number) return true;
  }
  return false;
}
void Push(BlockKey& recent, uint64_t number) {
  std::memmove(recent.bytes.data() + 8, recent.bytes.data(), 24);
  std::memcpy(recent.bytes.data(), &number, 8);
}

}  // namespace

// ---- open

OpenReply TieredFileTree::CountOpen(const Caller& caller, FileNode& node, int flags) {
  const bool writer = IsWriter(flags);
  SlotRecord& slot = content_.Slot(node);
  const bool in_slot = content_.WhereIs(node) == Where::kSlot;
  const bool on_disk = content_.WhereIs(node) == Where::kDisk;
  const bool open = content_.IsOpen(node);
  // The kernel allows one kind at a time, from the first open to the last close.
  bool passthrough = open ? (slot.mode & kModePassthrough) != 0
                          : parts_.backing != nullptr && parts_.backing->enabled() &&
                                ((in_slot && !writer && slot.length > 0) || on_disk);
  if (passthrough && slot.backing_id == 0) {
    const FsResult<std::shared_ptr<const Fd>> file = content_.File(node);
    const Result<uint32_t> id = file && *file != nullptr
                                    ? parts_.backing->OpenBacking((*file)->get())
                                    : Result<uint32_t>(Error{Code::kIo, "no descriptor"});
    if (id.ok()) slot.backing_id = *id;
    if (!id.ok() && !open) passthrough = false;
  }
  slot.mode = passthrough ? slot.mode | kModePassthrough : slot.mode & ~kModePassthrough;
  if (!open) {
    // What is only written, from its beginning: its pages would be copied and kept for nobody.
    const bool direct = !passthrough && (flags & O_ACCMODE) == O_WRONLY &&
                        ((flags & O_TRUNC) != 0 || node.record.Has(InodeRecord::kUnpublished));
    slot.mode = direct ? slot.mode | kModeDirect : slot.mode & ~kModeDirect;
  }
  if (passthrough && writer && in_slot) slot.mode |= kModeMapped;
  if ((slot.mode & kModeIdle) != 0) slot.mode |= kModeUsedAgain;
  if (passthrough && writer && on_disk) content_.BeginChange(node);  // writes go past us

  if (!caller.resent || !Contains(slot.key, caller.unique)) {
    Push(slot.key, caller.unique);
    ++(writer ? slot.writers : slot.readers);
  }
  if (in_slot) parts_.resident->Touch(node.slot);

  OpenReply reply;
  reply.no_flush = true;  // see Flush
  reply.handle = NewHandle((writer ? kHandleWriter : 0) | (passthrough ? kHandlePassthrough : 0));
  if (passthrough) {
    // A writer of a slot is seen by us: direct I/O beside the passthrough of the readers, same id.
    reply.mode = writer && in_slot ? OpenMode::kDirect : OpenMode::kPassthrough;
    reply.backing_id = slot.backing_id;
    if (writer) node.pages_valid = false;
  } else if ((slot.mode & kModeDirect) != 0) {
    reply.mode = OpenMode::kDirect;
  } else {
    reply.mode = OpenMode::kCached;
    reply.keep_cache = node.pages_valid;
    node.pages_valid = true;
  }
  if (!writer && (flags & O_NOATIME) == 0) {
    constexpr int64_t kDay = 86'400'000'000'000;
    const int64_t now = NowNanos();
    const bool news =
        node.record.atime_nanos <= node.record.mtime_nanos || now - node.record.atime_nanos > kDay;
    node.record.atime_nanos = now;
    if (news) content_.MarkDirty(node);
  }
  return reply;
}

std::optional<OpenReply> TieredFileTree::OpenResident(const Caller& caller, FileNode& node,
                                                      int flags) {
  if (IsWriter(flags) || (flags & O_TRUNC) != 0 || node.gone || node.slot == 0) return std::nullopt;
  if (content_.WhereIs(node) == Where::kOpenEmpty && !content_.IsOpen(node)) return std::nullopt;
  return CountOpen(caller, node, flags);
}

FsResult<OpenReply> TieredFileTree::OpenNode(const Caller& caller, const NodeRef& node, int flags) {
  Use(*node);
  {
    MutexLock lock(node->attr);
    if (std::optional<OpenReply> reply = OpenResident(caller, *node, flags)) return *reply;
  }
  bool damaged = false;
  {
    ContentLock content(*node);
    bool make_disk_file = false;
    {
      MutexLock lock(node->attr);
      if (node->gone) return Fail(ESTALE);
      if (node->record.IsDirectory()) return Fail(EISDIR);
      if (!node->record.IsRegular()) return Fail(ENXIO);
      const Where where = content_.WhereIs(*node);
      make_disk_file = IsWriter(flags) && node->record.Has(InodeRecord::kOnDisk) &&
                       (where == Where::kNothing || where == Where::kOpenEmpty);
    }
    if ((flags & O_TRUNC) != 0) {
      const FsStatus emptied = content_.Resize(*node, 0);
      if (!emptied) return Fail(emptied.error().value);
    } else {
      const Status loaded = content_.Load(*node);
      damaged = loaded.code() == Code::kCorrupt;
      if (!loaded.ok()) {
        KVC_LOG(Warn, "a file cannot be brought in", "ino={:x} error={}", node->ino,
                LogValue(loaded.error().text));
      }
      if (!loaded.ok() && !damaged) {
        return Fail(ErrnoOf(loaded.code()));
      }
    }
    if (!damaged) {
      const FsStatus made =
          make_disk_file ? content_.MakeDiskFile(*node) : content_.EnsureOpenRecord(*node);
      if (!made) return Fail(made.error().value);
      MutexLock lock(node->attr);
      if (node->gone) return Fail(ESTALE);
      if ((flags & O_TRUNC) != 0) KillSuid(*node);
      return CountOpen(caller, *node, flags);
    }
  }
  RemoveEverywhere(node, Why::kDamaged);
  return Fail(ENOENT);
}

FsResult<OpenReply> TieredFileTree::Open(const Caller& caller, Ino ino, int flags) {
  const FsResult<NodeRef> node = Node(ino);
  if (!node) return Fail(node.error().value);
  return OpenNode(caller, *node, flags);
}

FsResult<OpenReply> TieredFileTree::Create(const Caller& caller, Ino parent,
                                           const std::string& name, mode_t mode, int flags,
                                           EntryReply* entry) {
  NodeRef node;
  bool made = false;
  if (caller.resent) {
    if (const std::optional<Ino> before = store_.Recall(caller.unique)) {
      FsResult<NodeRef> found = table_.Find(*before);
      if (found) node = std::move(*found);
    }
  }
  if (node == nullptr) {
    MutexLock names(names_);
    FsResult<NodeRef> fresh =
        MakeInode(caller, parent, name, {.mode = S_IFREG | (mode & 07777), .unpublished = true});
    made = fresh.has_value();
    if (made) {
      node = std::move(*fresh);
    } else if (fresh.error().value != EEXIST || (flags & O_EXCL) != 0) {
      return Fail(fresh.error().value);
    }
  }
  if (node == nullptr) {  // somebody was first
    const FsResult<EntryReply> found = Lookup(caller, parent, name);
    if (!found) return Fail(found.error().value);
    *entry = *found;
    return Open(caller, found->ino, flags);
  }
  FsResult<OpenReply> reply = OpenNode(caller, node, made ? flags & ~O_TRUNC : flags);
  if (!reply) {
    if (made) (void)Unlink(Caller{}, parent, name);
    return reply;
  }
  *entry = ReplyCounted(*node);
  return reply;
}

// ---- release

void TieredFileTree::KeepIdleBacking(FileNode& node) {
  SlotRecord& slot = content_.Slot(node);
  if (slot.backing_id == 0 || (slot.mode & kModeIdle) != 0) return;
  slot.mode = (slot.mode | kModeIdle) & ~kModeUsedAgain;
  MutexLock lock(idle_mutex_);
  idle_backings_.push_back(node.ino);
}

void TieredFileTree::CloseIdleBackings() {
  for (;;) {
    Ino ino = 0;
    {
      MutexLock lock(idle_mutex_);
      if (idle_backings_.size() <= kIdleBackingsMax) return;
      ino = idle_backings_.front();
      idle_backings_.pop_front();
    }
    const FsResult<NodeRef> node = table_.Find(ino);
    if (!node || *node == nullptr) continue;
    MutexLock lock((*node)->attr);
    if ((*node)->slot == 0) continue;
    SlotRecord& slot = content_.Slot(**node);
    const bool used = (slot.mode & kModeUsedAgain) != 0;
    slot.mode &= ~(kModeIdle | kModeUsedAgain);
    if (content_.IsOpen(**node)) continue;  // listed again when it is closed
    if (used) {
      KeepIdleBacking(**node);
    } else {
      content_.CloseBacking(**node);
    }
  }
}

FsStatus TieredFileTree::Release(Ino ino, uint64_t handle) {
  const FsResult<NodeRef> found = table_.Find(ino);
  if (!found || *found == nullptr) return {};
  const NodeRef& node = *found;
  const bool writer = (handle & kHandleWriter) != 0;
  bool doomed = false, orphan = false;
  {
    ContentLock content(*node);
    bool last = false;
    {
      MutexLock lock(node->attr);
      if (node->slot == 0) return {};
      SlotRecord& slot = content_.Slot(*node);
      if (Contains(slot.parent, handle)) return {};  // sent again: counted already
      Push(slot.parent, handle);
      uint32_t& count = writer ? slot.writers : slot.readers;
      if (count > 0) --count;
      last = !content_.IsOpen(*node);
      if (writer) {
        content_.RefreshFromDisk(*node);
        doomed = node->doomed && slot.writers == 0 && node->record.Has(InodeRecord::kUnpublished);
        if (slot.writers == 0 && !doomed && node->record.nlink > 0) {
          content_.Publish(*node);
          Lease(*node, Look::kWritten);
        }
      }
      orphan = last && node->record.nlink == 0;
    }
    if (last) {
      content_.Settle(*node);
      MutexLock lock(node->attr);
      if (node->slot != 0) KeepIdleBacking(*node);
    }
  }
  CloseIdleBackings();
  if (doomed) RemoveEverywhere(node, Why::kUnfinished);
  if (orphan) RemoveOrphan(node);
  return {};
}

void TieredFileTree::RemoveOrphan(const NodeRef& node) {
  AboutToBlock();  // a disk takes its time to unlink what is large
  {
    MutexLock names(names_);
    RecordChanges changes(store_, {node});
    const bool wanted = [&]() KVC_NO_ANALYSIS { return node->gone || content_.IsOpen(*node); }();
    if (wanted) return;
    changes.Delete(node);
    if (!changes.Write([this](FileNode& gone) KVC_NO_ANALYSIS { MarkGone(gone); })) return;
  }
  DiscardContent(node);
}

// ---- bytes

void TieredFileTree::KillSuid(FileNode& node) {
  InodeRecord& record = node.record;
  uint32_t mode = record.mode & ~static_cast<uint32_t>(S_ISUID);
  if ((mode & S_IXGRP) != 0) mode &= ~static_cast<uint32_t>(S_ISGID);
  if (mode == record.mode || !record.IsRegular()) return;
  record.mode = mode;
  (void)content_.Persist(node);
}

FsResult<size_t> TieredFileTree::Read(Ino ino, uint64_t handle, uint64_t offset,
                                      std::span<std::byte> into) {
  (void)handle;
  const FsResult<NodeRef> node = Node(ino);
  if (!node) return Fail(node.error().value);
  SharedContentLock content(**node);
  FsResult<size_t> got = content_.Read(**node, offset, into);
  if (got) {
    MutexLock lock((*node)->attr);
    (*node)->record.atime_nanos = NowNanos();
  }
  return got;
}

FsResult<size_t> TieredFileTree::Write(Ino ino, uint64_t handle, uint64_t offset,
                                       std::span<const std::byte> from, bool kill_suid) {
  (void)handle;
  if (from.empty()) return size_t{0};
  const FsResult<NodeRef> node = Node(ino);
  if (!node) return Fail(node.error().value);
  ContentLock content(**node);
  FsResult<size_t> put = content_.Write(**node, offset, from);
  if (put && kill_suid) {
    MutexLock lock((*node)->attr);
    KillSuid(**node);
  }
  return put;
}

FsStatus TieredFileTree::Flush(const Caller& caller, Ino ino, uint64_t handle) {
  // Neither seals nor publishes: descriptors are duplicated and closed in the middle of writing. So
  // the kernel is told to leave it out.
  (void)caller, (void)ino, (void)handle;
  return {};
}

FsStatus TieredFileTree::Fsync(Ino ino, uint64_t handle, bool data_only) {
  (void)handle, (void)data_only;
  const FsResult<NodeRef> node = Node(ino);
  if (!node) return Fail(node.error().value);
  bool too_often = false;
  {
    MutexLock lock((*node)->attr);
    too_often = ++(*node)->fsyncs > options_.fsyncs_before_disk;
  }
  return write_back_.Fsync(**node, *node, too_often);
}

FsStatus TieredFileTree::FsyncDirectory(Ino ino) {
  const FsResult<NodeRef> node = Node(ino);
  if (!node) return Fail(node.error().value);
  {
    MutexLock lock((*node)->attr);
    if ((*node)->attr_dirty) {
      const FsStatus persisted = content_.Persist(**node);
      if (!persisted) return persisted;
    }
  }
  return store_.Sync();
}

FsStatus TieredFileTree::Allocate(Ino ino, uint64_t handle, int mode, uint64_t offset,
                                  uint64_t length) {
  (void)handle;
  const FsResult<NodeRef> node = Node(ino);
  if (!node) return Fail(node.error().value);
  ContentLock content(**node);
  return content_.Allocate(**node, mode, offset, length);
}

FsResult<uint64_t> TieredFileTree::Seek(Ino ino, uint64_t handle, uint64_t offset, int whence) {
  (void)handle;
  const FsResult<NodeRef> node = Node(ino);
  if (!node) return Fail(node.error().value);
  SharedContentLock content(**node);
  return content_.Seek(**node, offset, whence);
}

FsResult<size_t> TieredFileTree::CopyRange(Ino from, uint64_t from_offset, Ino to,
                                           uint64_t to_offset, size_t length) {
  const FsResult<NodeRef> source = Node(from);
  if (!source) return Fail(source.error().value);
  const FsResult<NodeRef> target = Node(to);
  if (!target) return Fail(target.error().value);
  std::vector<std::byte> piece(std::min(length, kCopyPiece));
  size_t done = 0;
  while (done < length) {
    const size_t want = std::min(piece.size(), length - done);
    FsResult<size_t> got = Fail(EIO);
    {
      SharedContentLock content(**source);
      got = content_.Read(**source, from_offset + done, {piece.data(), want});
    }
    FsResult<size_t> put = got;
    if (got && *got > 0) {
      ContentLock content(**target);
      put = content_.Write(**target, to_offset + done, {piece.data(), *got});
    }
    if (!put && done == 0) return put;
    if (!put || *put == 0) break;
    done += *put;
  }
  return done;
}

}  // namespace kvcfs::fs
