// stat, chmod and the like, symlink targets, extended attributes.
#include <algorithm>

#include <fcntl.h>
#include <sys/xattr.h>

#include "fs/tiered_file_tree.h"

namespace kvcfs::fs {
namespace {

constexpr size_t kXattrNameBytesMax = 255;
constexpr size_t kXattrBytesMax = 65536;
constexpr char kPlaceXattr[] = "user.kvc.place";
constexpr char kEvictXattr[] = "user.kvc.evict";

struct timespec TimeOf(int64_t nanos) {
  constexpr int64_t kSecond = 1'000'000'000;
  int64_t seconds = nanos / kSecond, rest = nanos % kSecond;
  if (rest < 0) {
    rest += kSecond;
    --seconds;
  }
  return {seconds, rest};
}

int64_t NanosOf(const struct timespec& time) {
  return time.tv_sec * 1'000'000'000 + time.tv_nsec;
}

// All but the blocks, which also depend on where the content is.
struct stat AttrOf(Ino ino, const InodeRecord& record) {
  struct stat attr {};
  attr.st_ino = ino;
  attr.st_mode = record.mode;
  // In a cluster, names may come and go that are not known here.
  attr.st_nlink =
      record.nlink == 0 || record.shared.links == 0 ? record.nlink : record.shared.links;
  attr.st_uid = record.uid;
  attr.st_gid = record.gid;
  attr.st_rdev = record.device;
  attr.st_size = static_cast<off_t>(record.size);
  attr.st_blksize = 4096;
  attr.st_atim = TimeOf(record.atime_nanos);
  attr.st_mtim = TimeOf(record.mtime_nanos);
  attr.st_ctim = TimeOf(record.ctime_nanos);
  return attr;
}

}  // namespace

int ApplyXattrToFlags(InodeRecord& record, const std::string& name, const std::string* value) {
  const bool place = name == kPlaceXattr;
  if (!place && name != kEvictXattr) return 0;
  const std::string_view on = place ? "disk" : "never";
  if (value != nullptr && *value != on && *value != "auto") return EINVAL;
  record.Set(place ? InodeRecord::kOnDisk : InodeRecord::kNeverEvict,
             value != nullptr && *value == on);
  return 0;
}

struct stat TieredFileTree::StatOf(FileNode& node) {
  if (node.slot != 0) content_.RefreshFromDisk(node);
  struct stat attr = AttrOf(node.ino, node.record);
  const uint64_t pages = (node.record.size + 4095) / 4096 * 8;
  attr.st_blocks = static_cast<blkcnt_t>(pages);
  if (!node.record.IsRegular()) {
    attr.st_blocks = 0;
  } else if (content_.WhereIs(node) == Where::kDisk) {
    attr.st_blocks = static_cast<blkcnt_t>(node.record.blocks);
  } else if (node.file != nullptr) {
    struct stat now {};  // a sparse file in the making
    if (::fstat(node.file->get(), &now) == 0) {
      attr.st_blocks = std::min(now.st_blocks, static_cast<blkcnt_t>(pages));
    }
  } else if (node.record.blocks > 0) {
    attr.st_blocks = static_cast<blkcnt_t>(std::min(node.record.blocks, pages));
  }
  return attr;
}

FsResult<AttrReply> TieredFileTree::GetAttr(Ino ino) {
  const FsResult<NodeRef> node = Node(ino);
  if (!node) return Fail(node.error().value);
  Use(**node);
  MutexLock lock((*node)->attr);
  Lease(**node, Look::kFound);
  return AttrReply{StatOf(**node), options_.attr_timeout_s};
}

FsResult<AttrReply> TieredFileTree::SetAttr(const Caller& caller, Ino ino, const struct stat& attr,
                                            int to_set, uint64_t handle) {
  (void)caller, (void)handle;
  const FsResult<NodeRef> found = Node(ino);
  if (!found) return Fail(found.error().value);
  const NodeRef& node = *found;
  Use(*node);
  bool damaged = false;
  if ((to_set & kSetSize) != 0) {
    if (attr.st_size < 0) return Fail(EINVAL);
    ContentLock content(*node);
    {
      MutexLock lock(node->attr);
      if (node->record.IsDirectory()) return Fail(EISDIR);
      if (!node->record.IsRegular()) return Fail(EINVAL);
    }
    const auto size = static_cast<uint64_t>(attr.st_size);
    const Status loaded = size > 0 ? content_.Load(*node) : Status();
    damaged = loaded.code() == Code::kCorrupt;
    if (!damaged) {
      const FsStatus resized = content_.Resize(*node, size);
      if (!resized) return Fail(resized.error().value);
      bool open = false;
      {
        MutexLock lock(node->attr);
        open = content_.IsOpen(*node);
        const bool writers = open && content_.Slot(*node).writers > 0;
        if (!writers) content_.Publish(*node);
      }
      if (!open) content_.Settle(*node);
    }
  }
  if (damaged) {
    RemoveEverywhere(node, Why::kDamaged);
    return Fail(ESTALE);
  }
  const int64_t now = NowNanos();
  MutexLock lock(node->attr);
  InodeRecord& record = node->record;
  if ((to_set & (kSetUid | kSetGid | kSetKillSuid)) != 0) KillSuid(*node);
  if ((to_set & kSetMode) != 0) {
    record.mode = (record.mode & S_IFMT) | (attr.st_mode & 07777);
  }
  if ((to_set & kSetUid) != 0) record.uid = attr.st_uid;
  if ((to_set & kSetGid) != 0) record.gid = attr.st_gid;
  if ((to_set & kSetAtimeNow) != 0) {
    record.atime_nanos = now;
  } else if ((to_set & kSetAtime) != 0) {
    record.atime_nanos = NanosOf(attr.st_atim);
  }
  if ((to_set & kSetMtimeNow) != 0) {
    record.mtime_nanos = now;
  } else if ((to_set & kSetMtime) != 0) {
    record.mtime_nanos = NanosOf(attr.st_mtim);
  }
  record.ctime_nanos = now;
  if (node->slot != 0) content_.Slot(*node).mtime_nanos = record.mtime_nanos;
  const FsStatus persisted = content_.Persist(*node);
  if (!persisted) return Fail(persisted.error().value);
  return AttrReply{StatOf(*node), options_.attr_timeout_s};
}

FsResult<std::string> TieredFileTree::ReadLink(Ino ino) {
  const FsResult<NodeRef> node = Node(ino);
  if (!node) return Fail(node.error().value);
  MutexLock lock((*node)->attr);
  if (((*node)->record.mode & S_IFMT) != S_IFLNK) return Fail(EINVAL);
  return (*node)->record.target;
}

// ---- extended attributes

FsStatus TieredFileTree::SetXattr(const Caller& caller, Ino ino, const std::string& name,
                                  const std::string& value, int flags) {
  if (name.empty() || name.size() > kXattrNameBytesMax) return Fail(ERANGE);
  if (value.size() > kXattrBytesMax) return Fail(E2BIG);
  if (name.starts_with("system.")) return Fail(EOPNOTSUPP);
  const FsResult<NodeRef> node = Node(ino);
  if (!node) return Fail(node.error().value);
  MutexLock names(names_);
  const FsResult<std::optional<std::string>> before = store_.GetXattr(ino, name);
  if (!before) return Fail(before.error().value);
  const bool again = caller.resent && *before && **before == value;
  if ((flags & XATTR_CREATE) != 0 && *before && !again) return Fail(EEXIST);
  if ((flags & XATTR_REPLACE) != 0 && !*before) return Fail(ENODATA);
  RecordChanges changes(store_, {*node});
  InodeRecord& record = changes.Of(*node);
  if (record.nlink == 0 && record.IsDirectory()) return Fail(ENOENT);
  if (const int wrong = ApplyXattrToFlags(record, name, &value)) return Fail(wrong);
  record.Set(InodeRecord::kHasXattrs, true);
  record.ctime_nanos = NowNanos();
  changes.batch().Put(XattrKey(ino, name), value);
  return changes.Write();
}

FsResult<std::string> TieredFileTree::GetXattr(Ino ino, const std::string& name) {
  const FsResult<NodeRef> node = Node(ino);
  if (!node) return Fail(node.error().value);
  if (name.starts_with("system.")) return Fail(EOPNOTSUPP);
  {
    MutexLock lock((*node)->attr);
    if (!(*node)->record.Has(InodeRecord::kHasXattrs)) return Fail(ENODATA);
  }
  FsResult<std::optional<std::string>> value = store_.GetXattr(ino, name);
  if (!value) return Fail(value.error().value);
  if (!*value) return Fail(ENODATA);
  return std::move(**value);
}

FsResult<std::vector<std::string>> TieredFileTree::ListXattrs(Ino ino) {
  const FsResult<NodeRef> node = Node(ino);
  if (!node) return Fail(node.error().value);
  {
    MutexLock lock((*node)->attr);
    if (!(*node)->record.Has(InodeRecord::kHasXattrs)) return std::vector<std::string>();
  }
  return store_.ListXattrs(ino);
}

FsStatus TieredFileTree::RemoveXattr(const Caller& caller, Ino ino, const std::string& name) {
  const FsResult<NodeRef> node = Node(ino);
  if (!node) return Fail(node.error().value);
  if (name.starts_with("system.")) return Fail(EOPNOTSUPP);
  MutexLock names(names_);
  const FsResult<std::optional<std::string>> before = store_.GetXattr(ino, name);
  if (!before) return Fail(before.error().value);
  if (!*before) return caller.resent ? FsStatus() : Fail(ENODATA);
  RecordChanges changes(store_, {*node});
  InodeRecord& record = changes.Of(*node);
  (void)ApplyXattrToFlags(record, name, nullptr);
  record.ctime_nanos = NowNanos();
  changes.batch().Delete(XattrKey(ino, name));
  return changes.Write();
}

}  // namespace kvcfs::fs
