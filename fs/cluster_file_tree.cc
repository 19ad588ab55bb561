// Names: what is asked of their owner, and how its answers become the local tree.
#include "fs/cluster_file_tree.h"

#include <algorithm>

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/stat.h>

#include "base/log.h"
#include "fs/about_to_block.h"
#include "fs/tiered_file_tree.h"

namespace kvcfs::fs {
namespace {

using meta::NameError;
using meta::NameOp;
using meta::NameReply;
using meta::NameRequest;
using meta::SharedFile;

// No call takes 10 s: the first that nobody answers waits for an owner that takes over, those
// behind it no longer.
constexpr Millis kAskLimit{6000}, kSilentLimit{400};
constexpr size_t kNameBytesMax = 255;
constexpr uint32_t kListPage = 128;
// Places in a listing: those of the owner, then those of names that are of this host alone.
constexpr uint64_t kCookieDot = 1, kCookieDotDot = 2, kLocalCookies = uint64_t{1} << 62;
constexpr int kRenameTries = 8;

int ErrnoOfName(NameError error) {
  switch (error) {
    case NameError::kNone:
      return 0;
    case NameError::kNotFound:
      return ENOENT;
    case NameError::kExists:
      return EEXIST;
    case NameError::kNotEmpty:
      return ENOTEMPTY;
    case NameError::kNotDirectory:
      return ENOTDIR;
    case NameError::kIsDirectory:
      return EISDIR;
    case NameError::kInvalid:
      return EINVAL;
    case NameError::kNoAttribute:
      return ENODATA;
    case NameError::kDenied:
      return EPERM;
  }
  return EIO;
}

int64_t NanosOf(const struct timespec& time) {
  return time.tv_sec * 1'000'000'000 + time.tv_nsec;
}

}  // namespace

// The places of one or two names, in their order.
class ClusterFileTree::NamesLock {
 public:
  NamesLock(std::mutex& one, std::mutex& other) : first_(&one), second_(&other) {
    if (first_ == second_) second_ = nullptr;
    if (second_ != nullptr && std::less<>()(second_, first_)) std::swap(first_, second_);
    first_->lock();
    if (second_ != nullptr) second_->lock();
  }
  ~NamesLock() {
    if (second_ != nullptr) second_->unlock();
    first_->unlock();
  }
  NamesLock(const NamesLock&) = delete;
  NamesLock& operator=(const NamesLock&) = delete;

 private:
  std::mutex* first_;
  std::mutex* second_;
};

ClusterFileTree::ClusterFileTree(std::unique_ptr<FileTree> tree, const Parts& parts)
    : tree_(std::move(tree)), mirror_(static_cast<TieredFileTree*>(tree_.get())), parts_(parts) {}

// ---- asking

tl::expected<NameReply, ClusterFileTree::Away> ClusterFileTree::Ask(const NameRequest& request) {
  AboutToBlock();
  const Millis limit = silences_ == 0 ? kAskLimit : kSilentLimit;
  Result<NameReply> reply = parts_.cluster->AskNames(request, limit);
  if (reply.ok()) {
    silences_ = 0;
    return std::move(*reply);
  }
  if (reply.code() == Code::kDenied) return tl::unexpected(Away{EACCES});
  ++silences_;
  return tl::unexpected(Away{reply.code() == Code::kTimeout ? ETIMEDOUT : EHOSTUNREACH});
}

FsResult<NameReply> ClusterFileTree::AskOrFail(const NameRequest& request) {
  auto reply = Ask(request);
  if (!reply) return Fail(reply.error().error);
  if (reply->error != NameError::kNone) return Fail(ErrnoOfName(reply->error));
  return std::move(*reply);
}

NameRequest ClusterFileTree::RequestIn(const LocalFile& directory, NameOp op,
                                       const std::string& name) {
  NameRequest request;
  request.space = directory.space;
  request.op = op;
  request.directory = directory.shared_id();
  request.name = name;
  return request;
}

std::mutex& ClusterFileTree::NamePlace(Ino parent, const std::string& name) {
  return names_[(std::hash<std::string>()(name) ^ parent * 0x9e3779b97f4a7c15u) % kNamePlaces];
}

// ---- lookup and listing

FsResult<EntryReply> ClusterFileTree::Lookup(const Caller& caller, Ino parent,
                                             const std::string& name) {
  if (name.size() > kNameBytesMax) return Fail(ENAMETOOLONG);
  const FsResult<LocalFile> directory = mirror_->Describe(parent);
  if (!directory) return Fail(directory.error().value);
  const std::lock_guard<std::mutex> lock(NamePlace(parent, name));
  const FsResult<std::optional<LocalFile>> local = mirror_->Find(parent, name);
  if (!local) return Fail(local.error().value);
  if (*local && (*local)->is_local()) return tree_->Lookup(caller, parent, name);
  const auto reply = Ask(RequestIn(*directory, NameOp::kLookup, name));
  if (!reply) {
    // What is here can be used until the owner is heard of again.
    return *local ? tree_->Lookup(caller, parent, name) : Fail(reply.error().error);
  }
  if (reply->error != NameError::kNone) {
    if (*local) mirror_->Forget(parent, name);
    return Fail(ErrnoOfName(reply->error));
  }
  const FsResult<Ino> mirrored = mirror_->Mirror(parent, name, reply->file);
  if (!mirrored) return Fail(mirrored.error().value);
  return tree_->Lookup(caller, parent, name);
}

FsStatus ClusterFileTree::ReadDirectory(Ino ino, uint64_t cookie, DirSink& sink) {
  const FsResult<LocalFile> directory = mirror_->Describe(ino);
  if (!directory) return Fail(directory.error().value);
  if (!directory->record.IsDirectory()) return Fail(ENOTDIR);
  if (directory->record.nlink == 0) return {};
  const auto dot = [&](const char* name, Ino where, uint64_t next) {
    EntryReply entry;
    entry.ino = entry.attr.st_ino = where;
    entry.attr.st_mode = S_IFDIR;
    return sink.Add(name, entry, next);
  };
  const Ino parent = directory->record.parent == 0 ? ino : directory->record.parent;
  if (cookie < kCookieDot && !dot(".", ino, kCookieDot)) return {};
  if (cookie < kCookieDotDot && !dot("..", parent, kCookieDotDot)) return {};
  const auto add = [&](const std::string& name, Ino where, uint64_t next) {
    const FsResult<EntryReply> entry = mirror_->EntryOf(where);
    if (!entry) return true;  // it goes while we list
    if (!sink.Add(name, *entry, next)) return false;
    if (sink.plus()) mirror_->CountLookup(where);
    return true;
  };
  NameRequest request = RequestIn(*directory, NameOp::kList, "");
  request.limit = kListPage;
  request.cookie = std::max(cookie, kCookieDotDot);
  for (bool done = cookie >= kLocalCookies; !done;) {
    const FsResult<NameReply> page = AskOrFail(request);
    if (!page) return page.error().value == ENOENT ? FsStatus() : Fail(page.error().value);
    done = page->done;
    for (const meta::NameEntry& entry : page->entries) {
      request.cookie = entry.cookie;
      const FsResult<Ino> mirrored = mirror_->Mirror(ino, entry.name, entry.file);
      const FsResult<LocalFile> local =
          mirrored ? mirror_->Describe(*mirrored) : FsResult<LocalFile>(Fail(ENOENT));
      if (!local || local->is_local()) continue;  // listed below
      if (!add(entry.name, *mirrored, entry.cookie)) return {};
    }
  }
  return mirror_->ListLocal(ino, cookie >= kLocalCookies ? cookie - kLocalCookies : 0,
                            [&](const std::string& name, const EntryReply& entry, uint64_t next) {
                              if (!sink.Add(name, entry, next + kLocalCookies)) return false;
                              if (sink.plus()) mirror_->CountLookup(entry.ino);
                              return true;
                            });
}

// ---- making

FsResult<EntryReply> ClusterFileTree::Make(const Caller& caller, Ino parent,
                                           const std::string& name, SharedFile file) {
  if (name.size() > kNameBytesMax) return Fail(ENAMETOOLONG);
  const FsResult<LocalFile> directory = mirror_->Describe(parent);
  if (!directory) return Fail(directory.error().value);
  const std::lock_guard<std::mutex> lock(NamePlace(parent, name));
  const FsResult<std::optional<LocalFile>> local = mirror_->Find(parent, name);
  if (!local) return Fail(local.error().value);
  if (*local && (*local)->is_local()) return Fail(EEXIST);
  file.id = parts_.cluster->NewFileId();
  file.uid = caller.uid;
  file.gid = caller.gid;
  file.links = 1;
  file.atime_nanos = file.mtime_nanos = file.ctime_nanos = parts_.clock->WallNanos();
  NameRequest request = RequestIn(*directory, NameOp::kMake, name);
  request.file = std::move(file);
  const FsResult<NameReply> reply = AskOrFail(request);
  if (!reply) {
    // Sent again by the kernel, after a restart of ours: made before.
    const bool before = caller.resent && reply.error().value == EEXIST && *local;
    return before ? tree_->Lookup(caller, parent, name) : Fail(reply.error().value);
  }
  const FsResult<Ino> mirrored = mirror_->Mirror(parent, name, reply->file);
  if (!mirrored) return Fail(mirrored.error().value);
  return tree_->Lookup(caller, parent, name);
}

FsResult<EntryReply> ClusterFileTree::MakeNode(const Caller& caller, Ino parent,
                                               const std::string& name, mode_t mode, dev_t device) {
  const mode_t type = (mode & S_IFMT) == 0 ? S_IFREG : mode & S_IFMT;
  if (type == S_IFDIR || type == S_IFLNK) return Fail(EINVAL);
  SharedFile file;
  file.mode = type | (mode & 07777);
  file.device = device;
  return Make(caller, parent, name, std::move(file));
}

FsResult<EntryReply> ClusterFileTree::MakeDirectory(const Caller& caller, Ino parent,
                                                    const std::string& name, mode_t mode) {
  SharedFile file;
  file.mode = S_IFDIR | (mode & 07777);
  return Make(caller, parent, name, std::move(file));
}

FsResult<EntryReply> ClusterFileTree::MakeSymlink(const Caller& caller, Ino parent,
                                                  const std::string& name,
                                                  const std::string& target) {
  if (target.size() > 4095) return Fail(ENAMETOOLONG);
  if (target.empty()) return Fail(ENOENT);
  SharedFile file;
  file.mode = S_IFLNK | 0777;
  file.target = target;
  file.size = target.size();
  return Make(caller, parent, name, std::move(file));
}

FsResult<EntryReply> ClusterFileTree::Link(const Caller& caller, Ino ino, Ino parent,
                                           const std::string& name) {
  if (name.size() > kNameBytesMax) return Fail(ENAMETOOLONG);
  const FsResult<LocalFile> directory = mirror_->Describe(parent);
  if (!directory) return Fail(directory.error().value);
  FsResult<LocalFile> file = mirror_->Describe(ino);
  if (!file) return Fail(file.error().value);
  if (file->record.root != directory->record.root) return Fail(EXDEV);
  if (file->record.IsDirectory()) return Fail(EPERM);
  if (file->record.nlink == 0) return Fail(ENOENT);
  if (file->is_local()) {
    // Who gives it another name is done with it, as who renames it.
    const std::lock_guard<std::mutex> publishing(files_[ino % kFilePlaces]);
    const FsStatus published = Publish(ino, When::kNow);
    if (!published) return Fail(published.error().value);
    file = mirror_->Describe(ino);
    if (!file || file->is_local()) return Fail(ENOENT);
  }
  const std::lock_guard<std::mutex> lock(NamePlace(parent, name));
  const FsResult<std::optional<LocalFile>> there = mirror_->Find(parent, name);
  if (!there) return Fail(there.error().value);
  if (*there && (*there)->is_local()) return Fail(EEXIST);
  NameRequest request = RequestIn(*directory, NameOp::kLink, name);
  request.file.id = file->shared_id();
  const FsResult<NameReply> reply = AskOrFail(request);
  if (!reply) return Fail(reply.error().value);
  const FsResult<Ino> mirrored = mirror_->Mirror(parent, name, reply->file);
  if (!mirrored) return Fail(mirrored.error().value);
  return tree_->Lookup(caller, parent, name);
}

// ---- removing

FsStatus ClusterFileTree::Unlink(const Caller& caller, Ino parent, const std::string& name) {
  return Remove(caller, parent, name, NameOp::kUnlink);
}

FsStatus ClusterFileTree::RemoveDirectory(const Caller& caller, Ino parent,
                                          const std::string& name) {
  return Remove(caller, parent, name, NameOp::kRmdir);
}

FsStatus ClusterFileTree::Remove(const Caller& caller, Ino parent, const std::string& name,
                                 NameOp op) {
  if (name.size() > kNameBytesMax) return Fail(ENAMETOOLONG);
  const FsResult<LocalFile> directory = mirror_->Describe(parent);
  if (!directory) return Fail(directory.error().value);
  const std::lock_guard<std::mutex> lock(NamePlace(parent, name));
  const FsResult<std::optional<LocalFile>> local = mirror_->Find(parent, name);
  if (!local) return Fail(local.error().value);
  if (*local && (*local)->is_local()) {
    return op == NameOp::kUnlink ? tree_->Unlink(caller, parent, name)
                                 : tree_->RemoveDirectory(caller, parent, name);
  }
  if (*local && op == NameOp::kRmdir) {
    bool empty = true;
    (void)mirror_->ListLocal((*local)->ino, 0,
                             [&](const std::string&, const EntryReply&, uint64_t) {
                               empty = false;
                               return false;
                             });
    if (!empty) return Fail(ENOTEMPTY);
  }
  const FsResult<NameReply> reply = AskOrFail(RequestIn(*directory, op, name));
  if (!reply) {
    if (reply.error().value != ENOENT) return Fail(reply.error().value);
    if (*local) mirror_->Forget(parent, name);
    // Sent again by the kernel: it has happened.
    return caller.resent ? FsStatus() : Fail(ENOENT);
  }
  if (*local) mirror_->Forget(parent, name);
  if (reply->file.links > 0) mirror_->Update(directory->record.root, reply->file);
  DropLater(directory->space, reply->removed, Millis(0));
  MutexLock own(mutex_);
  own_names_.erase({parent, name});
  return {};
}

// ---- renaming

FsStatus ClusterFileTree::Rename(const Caller& caller, Ino parent, const std::string& name,
                                 Ino new_parent, const std::string& new_name, unsigned flags) {
  if (name.size() > kNameBytesMax || new_name.size() > kNameBytesMax) return Fail(ENAMETOOLONG);
  if ((flags & ~static_cast<unsigned>(RENAME_NOREPLACE | RENAME_EXCHANGE)) != 0 ||
      flags == (RENAME_NOREPLACE | RENAME_EXCHANGE)) {
    return Fail(EINVAL);
  }
  const FsResult<LocalFile> from_dir = mirror_->Describe(parent);
  if (!from_dir) return Fail(from_dir.error().value);
  const FsResult<LocalFile> to_dir = mirror_->Describe(new_parent);
  if (!to_dir) return Fail(to_dir.error().value);
  if (from_dir->record.root != to_dir->record.root) return Fail(EXDEV);
  for (int tries = 0; tries < kRenameTries; ++tries) {
    const FsResult<std::optional<LocalFile>> source = mirror_->Find(parent, name);
    if (!source) return Fail(source.error().value);
    if (!*source || !(*source)->wants_publishing()) {
      const NamesLock lock(NamePlace(parent, name), NamePlace(new_parent, new_name));
      const FsResult<std::optional<LocalFile>> now = mirror_->Find(parent, name);
      if (now && *now && (*now)->is_local()) continue;
      return RenameShared(caller, *from_dir, name, *to_dir, new_name, flags);
    }
    const Ino ino = (*source)->ino;
    const std::lock_guard<std::mutex> publishing(files_[ino % kFilePlaces]);
    const FsResult<LocalFile> still = mirror_->Describe(ino);
    if (!still || !still->wants_publishing()) continue;  // it has been published meanwhile
    if (!still->is_local() || (flags & RENAME_EXCHANGE) != 0) {
      const FsStatus published = Publish(ino, When::kNow);
      if (!published) return published;
      continue;
    }
    // Published under its new name: nobody else ever sees the old one.
    const FsResult<Upload> upload = SendBytes(*still);
    if (!upload) return Fail(upload.error().value);
    const NamesLock lock(NamePlace(parent, name), NamePlace(new_parent, new_name));
    const FsResult<std::optional<LocalFile>> now = mirror_->Find(parent, name);
    if (!now) return Fail(now.error().value);
    if (!*now || (*now)->ino != ino || !(*now)->is_local()) continue;
    const FsResult<std::optional<LocalFile>> over = mirror_->Find(new_parent, new_name);
    const bool local_over = over && *over && (*over)->is_local();
    if ((flags & RENAME_NOREPLACE) != 0 && local_over) return Fail(EEXIST);
    const FsStatus told = TellVersion(
        **now, *upload,
        {&*to_dir, &new_name, (flags & RENAME_NOREPLACE) != 0 ? meta::kNameNoReplace : 0u});
    if (!told) return told;
    return RenameHere(caller, parent, name, new_parent, new_name, 0);
  }
  return Fail(EBUSY);
}

FsStatus ClusterFileTree::RenameHere(const Caller& caller, Ino parent, const std::string& name,
                                     Ino new_parent, const std::string& new_name, unsigned flags) {
  if ((flags & RENAME_EXCHANGE) == 0) {
    // A directory that is empty at the owner may not be so here.
    const FsResult<std::optional<LocalFile>> over = mirror_->Find(new_parent, new_name);
    if (over && *over && (*over)->record.IsDirectory()) mirror_->Forget(new_parent, new_name);
  }
  const FsStatus renamed =
      tree_->Rename(caller, parent, name, new_parent, new_name, flags & RENAME_EXCHANGE);
  if (renamed) return {};
  // It is so at the owner; what is here is asked for again.
  mirror_->Forget(parent, name);
  mirror_->Forget(new_parent, new_name);
  return {};
}

FsStatus ClusterFileTree::RenameShared(const Caller& caller, const LocalFile& from_dir,
                                       const std::string& name, const LocalFile& to_dir,
                                       const std::string& new_name, unsigned flags) {
  const FsResult<std::optional<LocalFile>> source = mirror_->Find(from_dir.ino, name);
  if (!source) return Fail(source.error().value);
  const FsResult<std::optional<LocalFile>> over = mirror_->Find(to_dir.ino, new_name);
  if (over && *over && (*over)->is_local() && (flags & RENAME_NOREPLACE) != 0) return Fail(EEXIST);
  NameRequest request = RequestIn(from_dir, NameOp::kRename, name);
  request.to_directory = to_dir.shared_id();
  request.to_name = new_name;
  request.flags = ((flags & RENAME_NOREPLACE) != 0 ? meta::kNameNoReplace : 0u) |
                  ((flags & RENAME_EXCHANGE) != 0 ? meta::kNameExchange : 0u);
  if (*source) request.file.id = (*source)->shared_id();
  {
    MutexLock lock(mutex_);
    const auto own = own_names_.find({from_dir.ino, name});
    if (own != own_names_.end()) {
      if (own->second.until > parts_.clock->Monotonic()) request.file.id = own->second.id;
      own_names_.erase(own);
    }
  }
  const FsResult<NameReply> reply = AskOrFail(request);
  if (!reply) {
    if (reply.error().value != ENOENT) return Fail(reply.error().value);
    if (*source) mirror_->Forget(from_dir.ino, name);
    return caller.resent ? FsStatus() : Fail(ENOENT);
  }
  DropLater(from_dir.space, reply->removed, Millis(0));
  if (*source && reply->file.id == (*source)->shared_id()) {
    const FsStatus here =
        RenameHere(caller, from_dir.ino, name, to_dir.ino, new_name, flags & RENAME_EXCHANGE);
    mirror_->Update(from_dir.record.root, reply->file);
    return here;
  }
  // It was another's that is under the old name now, or nothing of it is here.
  (void)mirror_->Mirror(to_dir.ino, new_name, reply->file);
  return {};
}

// ---- attributes

FsResult<AttrReply> ClusterFileTree::SetAttr(const Caller& caller, Ino ino, const struct stat& attr,
                                             int to_set, uint64_t handle) {
  const FsResult<LocalFile> local = mirror_->Describe(ino);
  if (!local) return Fail(local.error().value);
  if ((to_set & kSetSize) != 0 && attr.st_size > 0 && local->record.shared.remote) {
    const FsStatus fetched = Fetch(ino);
    if (!fetched) return Fail(fetched.error().value);
  }
  NameRequest request = RequestIn(*local, NameOp::kSetAttr, "");
  request.file.id = local->shared_id();
  const int64_t now = parts_.clock->WallNanos();
  const auto set = [&](uint32_t flag, auto& field, auto value) {
    request.flags |= flag;
    field = value;
  };
  if ((to_set & kSetMode) != 0) {
    set(meta::kNameMode, request.file.mode, attr.st_mode & 07777u);
  } else if ((to_set & (kSetUid | kSetGid)) != 0 && local->record.IsRegular()) {
    // As the local tree does.
    uint32_t mode = local->record.mode & ~static_cast<uint32_t>(S_ISUID);
    if ((mode & S_IXGRP) != 0) mode &= ~static_cast<uint32_t>(S_ISGID);
    if (mode != local->record.mode) set(meta::kNameMode, request.file.mode, mode & 07777u);
  }
  if ((to_set & kSetUid) != 0) set(meta::kNameUid, request.file.uid, attr.st_uid);
  if ((to_set & kSetGid) != 0) set(meta::kNameGid, request.file.gid, attr.st_gid);
  if ((to_set & kSetAtimeNow) != 0) {
    set(meta::kNameAtime, request.file.atime_nanos, now);
  } else if ((to_set & kSetAtime) != 0) {
    set(meta::kNameAtime, request.file.atime_nanos, NanosOf(attr.st_atim));
  }
  if ((to_set & kSetMtimeNow) != 0) {
    set(meta::kNameMtime, request.file.mtime_nanos, now);
  } else if ((to_set & kSetMtime) != 0) {
    set(meta::kNameMtime, request.file.mtime_nanos, NanosOf(attr.st_mtim));
  }
  std::optional<SharedFile> news;
  if (request.flags != 0 && !local->is_local() && local->record.nlink > 0) {
    FsResult<NameReply> reply = AskOrFail(request);
    // One that was unlinked elsewhere, and is open here, is ours alone.
    if (!reply && reply.error().value != ENOENT) return Fail(reply.error().value);
    if (reply) news = std::move(reply->file);
  }
  FsResult<AttrReply> set_here = tree_->SetAttr(caller, ino, attr, to_set, handle);
  if (!set_here) return set_here;
  if (news) mirror_->Update(local->record.root, *news);
  if ((to_set & kSetSize) != 0) PublishIfClosed(ino);
  return set_here;
}

FsStatus ClusterFileTree::SetXattr(const Caller& caller, Ino ino, const std::string& name,
                                   const std::string& value, int flags) {
  return ChangeXattr(caller, ino, name, &value, flags);
}

FsStatus ClusterFileTree::RemoveXattr(const Caller& caller, Ino ino, const std::string& name) {
  return ChangeXattr(caller, ino, name, nullptr, 0);
}

FsStatus ClusterFileTree::ChangeXattr(const Caller& caller, Ino ino, const std::string& name,
                                      const std::string* value, int flags) {
  const FsResult<LocalFile> local = mirror_->Describe(ino);
  if (!local) return Fail(local.error().value);
  const auto here = [&](int with) {
    return value != nullptr ? tree_->SetXattr(caller, ino, name, *value, with)
                            : tree_->RemoveXattr(caller, ino, name);
  };
  InodeRecord record = local->record;
  const int wrong = ApplyXattrToFlags(record, name, value);
  const bool too_long = value != nullptr && value->size() > 65536;
  if (wrong != 0 || too_long || name.empty() || name.size() > kNameBytesMax ||
      name.starts_with("system.") || local->is_local() || local->record.nlink == 0) {
    return here(flags);  // of this host alone, or it says what is wrong
  }
  NameRequest request =
      RequestIn(*local, value != nullptr ? NameOp::kSetXattr : NameOp::kRemoveXattr, name);
  request.file.id = local->shared_id();
  request.flags = static_cast<uint32_t>(flags);
  if (value != nullptr) request.value = *value;
  const FsResult<NameReply> reply = AskOrFail(request);
  if (!reply) return Fail(reply.error().value);
  (void)here(0);
  mirror_->Update(local->record.root, reply->file);
  return {};
}

FsStatus ClusterFileTree::FsyncDirectory(Ino ino) {
  const FsResult<LocalFile> local = mirror_->Describe(ino);
  if (!local) return Fail(local.error().value);
  const FsResult<NameReply> synced = AskOrFail(RequestIn(*local, NameOp::kSync, ""));
  if (!synced) return Fail(synced.error().value);
  return tree_->FsyncDirectory(ino);
}

// ---- roots

bool ClusterFileTree::RootIsEmpty(Ino root) {
  const FsResult<LocalFile> local = mirror_->Describe(root);
  if (!local) return tree_->RootIsEmpty(root);
  NameRequest request = RequestIn(*local, NameOp::kList, "");
  request.limit = 1;
  const auto page = Ask(request);
  if (page && !page->entries.empty()) return false;
  if (page) mirror_->ForgetShared(root);
  return tree_->RootIsEmpty(root);
}

FsStatus ClusterFileTree::Clear(const LocalFile& root, const meta::FileId& directory) {
  NameRequest list = RequestIn(root, NameOp::kList, "");
  list.directory = directory;
  list.limit = kListPage;
  while (true) {
    const FsResult<NameReply> page = AskOrFail(list);
    if (!page) return page.error().value == ENOENT ? FsStatus() : Fail(page.error().value);
    for (const meta::NameEntry& entry : page->entries) {
      const bool is_directory = (entry.file.mode & S_IFMT) == S_IFDIR;
      if (is_directory) {
        const FsStatus cleared = Clear(root, entry.file.id);
        if (!cleared) return cleared;
      }
      NameRequest remove =
          RequestIn(root, is_directory ? NameOp::kRmdir : NameOp::kUnlink, entry.name);
      remove.directory = directory;
      const FsResult<NameReply> removed = AskOrFail(remove);
      if (removed) {
        DropLater(root.space, removed->removed, Millis(0));
      } else if (removed.error().value != ENOENT && removed.error().value != ENOTEMPTY) {
        return Fail(removed.error().value);
      }
    }
    if (page->done || page->entries.empty()) return {};
    list.cookie = page->entries.back().cookie;
  }
}

FsStatus ClusterFileTree::ClearRoot(Ino root) {
  const FsResult<LocalFile> local = mirror_->Describe(root);
  if (!local) return Fail(local.error().value);
  const FsStatus cleared = Clear(*local, meta::kRootFile);
  if (!cleared) return cleared;
  return tree_->ClearRoot(root);
}

}  // namespace kvcfs::fs
