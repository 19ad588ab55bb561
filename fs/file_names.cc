// Calls on names: each is one batch of records.
#include <algorithm>

#include <fcntl.h>
#include <linux/fs.h>

#include "base/log.h"
#include "fs/tiered_file_tree.h"

namespace kvcfs::fs {
namespace {

constexpr size_t kNameBytesMax = 255;
constexpr size_t kTargetBytesMax = 4095;
constexpr uint64_t kAllocatorId = 1;  // DESIGN of inode numbers: one per machine, later
constexpr uint64_t kCookieDot = 1, kCookieDotDot = 2;
constexpr size_t kGoneMax = 16384;

}  // namespace

Ino FileInoOf(uint64_t number) {
  return static_cast<uint64_t>(InoKind::kFile) << kInoKindShift | kAllocatorId << 46 | number;
}

// ---- nodes

FsResult<NodeRef> TieredFileTree::Node(Ino ino) {
  FsResult<NodeRef> node = table_.Find(ino);
  if (node && *node == nullptr) return Fail(ESTALE);
  return node;
}

FsResult<NodeRef> TieredFileTree::Directory(Ino ino) {
  FsResult<NodeRef> node = Node(ino);
  if (!node) return node;
  MutexLock lock((*node)->attr);
  if (!(*node)->record.IsDirectory()) return Fail(ENOTDIR);
  if ((*node)->gone) return Fail(ENOENT);
  return node;
}

FsResult<TieredFileTree::Named> TieredFileTree::FindNamed(Ino directory, const std::string& name) {
  FsResult<std::optional<Dentry>> entry = store_.Find(directory, name);
  if (!entry) return Fail(entry.error().value);
  Named named{*entry, nullptr};
  if (named.entry) {
    FsResult<NodeRef> node = table_.Find(named.entry->ino);
    if (!node) return Fail(node.error().value);
    named.node = std::move(*node);
    if (named.node != nullptr) {
      MutexLock lock(named.node->attr);
      if (named.node->gone) named.node.reset();
    }
  }
  return named;
}

EntryReply TieredFileTree::Reply(FileNode& node) {
  EntryReply reply;
  reply.ino = node.ino;
  reply.attr = StatOf(node);
  reply.entry_timeout_s = options_.entry_timeout_s;
  reply.attr_timeout_s = options_.attr_timeout_s;
  return reply;
}

EntryReply TieredFileTree::ReplyCounted(FileNode& node) {
  Use(node);
  MutexLock lock(node.attr);
  ++node.lookups;
  return Reply(node);
}

void TieredFileTree::MarkGone(FileNode& node) {
  node.gone = true;
  node.attr_dirty = false;
  node.record.nlink = 0;
  (node.record.IsDirectory() ? directories_ : files_) -= 1;
  {
    MutexLock lock(lease_mutex_);
    leases_.Drop(node.ino);
  }
  MutexLock lock(idle_mutex_);
  gone_.push_back(node.ino);
  while (gone_.size() > kGoneMax) {
    table_.Remove(gone_.front());
    gone_.pop_front();
  }
}

void TieredFileTree::DiscardContent(const NodeRef& node) {
  ContentLock content(*node);
  content_.Discard(*node);
}

std::string TieredFileTree::PathOf(Ino ino) {
  std::string path;
  for (int depth = 0; depth < 64; ++depth) {
    const FsResult<std::optional<InodeRecord>> record = store_.GetInode(ino);
    if (!record || !*record || (*record)->parent == 0) break;
    path.insert(0, "/").insert(1, (*record)->name);
    ino = (*record)->parent;
  }
  return path;
}

// ---- lookup and forget

FsResult<EntryReply> TieredFileTree::Lookup(const Caller& caller, Ino parent,
                                            const std::string& name) {
  (void)caller;
  if (name.size() > kNameBytesMax) return Fail(ENAMETOOLONG);
  // Without names_: a name that changes between the two steps is asked again.
  for (Ino before = 0;;) {
    const FsResult<std::optional<Dentry>> entry = store_.Find(parent, name);
    if (!entry) return Fail(entry.error().value);
    if (!*entry || (*entry)->ino == before) return Fail(ENOENT);  // it leads nowhere
    const FsResult<NodeRef> node = table_.Find((*entry)->ino);
    if (!node) return Fail(node.error().value);
    before = (*entry)->ino;
    if (*node == nullptr) continue;
    Use(**node);
    MutexLock lock((*node)->attr);
    if ((*node)->gone || (*node)->record.nlink == 0) continue;
    Lease(**node, Look::kFound);
    ++(*node)->lookups;
    return Reply(**node);
  }
}

void TieredFileTree::Forget(Ino ino, uint64_t lookups) {
  const NodeRef node = table_.Peek(ino);
  if (node == nullptr) return;
  MutexLock lock(node->attr);
  node->lookups = std::max<int64_t>(0, node->lookups - static_cast<int64_t>(lookups));
  // Not while it has a slot: that belongs to the node which the table finds.
  if (node->gone && node->lookups == 0 && node->slot == 0) table_.Remove(ino);
}

// ---- making

bool TieredFileTree::DoneBefore(const Caller& caller) {
  return caller.resent && store_.Recall(caller.unique).has_value();
}

std::optional<EntryReply> TieredFileTree::MadeBefore(const Caller& caller) {
  if (!caller.resent) return std::nullopt;
  const std::optional<Ino> ino = store_.Recall(caller.unique);
  if (!ino) return std::nullopt;
  const FsResult<NodeRef> node = table_.Find(*ino);
  if (!node || *node == nullptr) return std::nullopt;
  return ReplyCounted(**node);
}

void TieredFileTree::TouchDirectory(FileNode& directory, int64_t now) {
  MutexLock lock(directory.attr);
  directory.record.mtime_nanos = directory.record.ctime_nanos = now;
  content_.MarkDirty(directory);
}

FsResult<NodeRef> TieredFileTree::MakeInode(const Caller& caller, Ino parent,
                                            const std::string& name, const NewInode& what) {
  if (name.size() > kNameBytesMax) return Fail(ENAMETOOLONG);
  FsResult<NodeRef> directory = Directory(parent);
  if (!directory) return directory;
  const FsResult<Named> there = FindNamed(parent, name);
  if (!there) return Fail(there.error().value);
  if (there->node != nullptr) return Fail(EEXIST);
  const FsResult<uint64_t> number = store_.NextNumber();
  if (!number) return Fail(number.error().value);

  const int64_t now = NowNanos();
  InodeRecord above;
  {
    MutexLock lock((*directory)->attr);
    above = (*directory)->record;
  }
  const auto node = std::make_shared<FileNode>(FileInoOf(*number));
  const bool is_directory = (what.mode & S_IFMT) == S_IFDIR;
  {
    RecordChanges changes(store_, {node, is_directory ? *directory : nullptr});
    InodeRecord& record = changes.Of(node);
    record.mode = what.mode;
    record.uid = caller.uid;
    record.gid = caller.gid;
    record.nlink = is_directory ? 2 : 1;
    record.atime_nanos = record.mtime_nanos = record.ctime_nanos = now;
    record.device = what.device;
    record.target = what.target;
    record.size = (what.mode & S_IFMT) == S_IFLNK ? what.target.size() : 0;
    record.parent = parent;
    record.name = name;
    record.Set(InodeRecord::kUnpublished, what.unpublished);
    if (record.IsRegular() && !what.unpublished) {
      record.version = 1;  // mknod: an empty file that is there
      record.stable = {1, 0, now, {}};
    }
    record.root = above.root;
    record.flags |= above.flags & (InodeRecord::kNeverEvict | InodeRecord::kOnDisk);
    if ((above.mode & S_ISGID) != 0) {
      record.gid = above.gid;
      if (is_directory) record.mode |= S_ISGID;
    }
    if (there->entry) {  // led nowhere
      store_.RemoveEntry(changes.batch(), parent, name, there->entry->cookie);
    }
    store_.AddEntry(changes.batch(), parent, name, node->ino, what.mode, *number);
    if (is_directory) {
      InodeRecord& parent_record = changes.Of(*directory);
      ++parent_record.nlink;
      parent_record.mtime_nanos = parent_record.ctime_nanos = now;
    }
    store_.Remember(changes.batch(), caller.unique, node->ino);
    const FsStatus written = changes.Write();
    if (!written) return Fail(written.error().value);
  }
  (is_directory ? directories_ : files_) += 1;
  table_.Insert(node);
  if (!is_directory) TouchDirectory(**directory, now);
  return node;
}

FsResult<EntryReply> TieredFileTree::Make(const Caller& caller, Ino parent, const std::string& name,
                                          const NewInode& what) {
  if (std::optional<EntryReply> made = MadeBefore(caller)) return *made;
  MutexLock names(names_);
  const FsResult<NodeRef> node = MakeInode(caller, parent, name, what);
  if (!node) return Fail(node.error().value);
  return ReplyCounted(**node);
}

FsResult<EntryReply> TieredFileTree::MakeNode(const Caller& caller, Ino parent,
                                              const std::string& name, mode_t mode, dev_t device) {
  const mode_t type = (mode & S_IFMT) == 0 ? S_IFREG : mode & S_IFMT;
  if (type == S_IFDIR || type == S_IFLNK) return Fail(EINVAL);
  return Make(caller, parent, name, {.mode = type | (mode & 07777), .device = device});
}

FsResult<EntryReply> TieredFileTree::MakeDirectory(const Caller& caller, Ino parent,
                                                   const std::string& name, mode_t mode) {
  return Make(caller, parent, name, {.mode = S_IFDIR | (mode & 07777)});
}

FsResult<EntryReply> TieredFileTree::MakeSymlink(const Caller& caller, Ino parent,
                                                 const std::string& name,
                                                 const std::string& target) {
  if (target.size() > kTargetBytesMax) return Fail(ENAMETOOLONG);
  if (target.empty()) return Fail(ENOENT);
  return Make(caller, parent, name, {.mode = S_IFLNK | 0777, .target = target});
}

FsResult<EntryReply> TieredFileTree::Link(const Caller& caller, Ino ino, Ino parent,
                                          const std::string& name) {
  if (name.size() > kNameBytesMax) return Fail(ENAMETOOLONG);
  if (std::optional<EntryReply> made = MadeBefore(caller)) return *made;
  const FsResult<NodeRef> node = Node(ino);
  if (!node) return Fail(node.error().value);
  MutexLock names(names_);
  const FsResult<NodeRef> directory = Directory(parent);
  if (!directory) return Fail(directory.error().value);
  const FsResult<Named> there = FindNamed(parent, name);
  if (!there) return Fail(there.error().value);
  if (there->node != nullptr) return Fail(EEXIST);
  Ino root = 0;
  {
    MutexLock lock((*directory)->attr);
    root = (*directory)->record.root;
  }
  const FsResult<uint64_t> cookie = store_.NextNumber();
  if (!cookie) return Fail(cookie.error().value);
  const int64_t now = NowNanos();
  {
    RecordChanges changes(store_, {*node});
    InodeRecord& record = changes.Of(*node);
    if (record.IsDirectory()) return Fail(EPERM);
    if (record.nlink == 0) return Fail(ENOENT);
    if (record.root != root) return Fail(EXDEV);
    if (there->entry) store_.RemoveEntry(changes.batch(), parent, name, there->entry->cookie);
    store_.AddEntry(changes.batch(), parent, name, ino, record.mode, *cookie);
    if (!record.Has(InodeRecord::kManyLinks)) {
      record.Set(InodeRecord::kManyLinks, true);
      store_.AddLink(changes.batch(), ino, record.parent, record.name);
    }
    store_.AddLink(changes.batch(), ino, parent, name);
    ++record.nlink;
    record.ctime_nanos = now;
    store_.Remember(changes.batch(), caller.unique, ino);
    const FsStatus written = changes.Write();
    if (!written) return Fail(written.error().value);
  }
  TouchDirectory(**directory, now);
  return ReplyCounted(**node);
}

// ---- removing

bool TieredFileTree::DropName(RecordChanges& changes, const NodeRef& node, Ino parent,
                              const std::string& name, int64_t now) {
  InodeRecord& record = changes.Of(node);
  record.nlink = record.IsDirectory() ? 0 : record.nlink - std::min(record.nlink, 1u);
  record.ctime_nanos = now;
  const bool open = [&]() KVC_NO_ANALYSIS { return content_.IsOpen(*node); }();
  if (record.nlink == 0 && (record.IsDirectory() || !open)) {
    changes.Delete(node);
    return true;
  }
  if (record.Has(InodeRecord::kManyLinks)) {
    store_.RemoveLink(changes.batch(), node->ino, parent, name);
  }
  if (record.nlink == 0) {
    store_.DeleteShared(changes.batch(), record);
    record.shared = {};
  }
  return false;
}

FsStatus TieredFileTree::Unlink(const Caller& caller, Ino parent, const std::string& name) {
  if (name.size() > kNameBytesMax) return Fail(ENAMETOOLONG);
  NodeRef removed;
  {
    MutexLock names(names_);
    if (DoneBefore(caller)) return {};
    const FsResult<NodeRef> directory = Directory(parent);
    if (!directory) return Fail(directory.error().value);
    const FsResult<Named> named = FindNamed(parent, name);
    if (!named) return Fail(named.error().value);
    if (!named->entry) return Fail(ENOENT);
    const int64_t now = NowNanos();
    {
      RecordChanges changes(store_, {named->node});
      store_.RemoveEntry(changes.batch(), parent, name, named->entry->cookie);
      store_.Remember(changes.batch(), caller.unique, 0);
      if (named->node != nullptr) {
        if (changes.Of(named->node).IsDirectory()) return Fail(EISDIR);
        if (DropName(changes, named->node, parent, name, now)) removed = named->node;
      }
      const FsStatus written =
          changes.Write([this](FileNode& node) KVC_NO_ANALYSIS { MarkGone(node); });
      if (!written) return written;
    }
    TouchDirectory(**directory, now);
  }
  if (removed != nullptr) DiscardContent(removed);
  return {};
}

FsStatus TieredFileTree::RemoveDirectory(const Caller& caller, Ino parent,
                                         const std::string& name) {
  if (name.size() > kNameBytesMax) return Fail(ENAMETOOLONG);
  MutexLock names(names_);
  if (DoneBefore(caller)) return {};
  const FsResult<NodeRef> directory = Directory(parent);
  if (!directory) return Fail(directory.error().value);
  const FsResult<Named> named = FindNamed(parent, name);
  if (!named) return Fail(named.error().value);
  if (!named->entry) return Fail(ENOENT);
  if (named->node == nullptr) {  // leads nowhere
    meta::MetaBatch batch;
    store_.RemoveEntry(batch, parent, name, named->entry->cookie);
    return store_.Write(batch);
  }
  const FsResult<bool> empty = store_.IsEmpty(named->node->ino);
  if (!empty) return Fail(empty.error().value);
  const int64_t now = NowNanos();
  RecordChanges changes(store_, {named->node, *directory});
  if (!changes.Of(named->node).IsDirectory()) return Fail(ENOTDIR);
  if (!*empty) return Fail(ENOTEMPTY);
  store_.RemoveEntry(changes.batch(), parent, name, named->entry->cookie);
  store_.Remember(changes.batch(), caller.unique, 0);
  DropName(changes, named->node, parent, name, now);
  InodeRecord& above = changes.Of(*directory);
  --above.nlink;
  above.mtime_nanos = above.ctime_nanos = now;
  return changes.Write([this](FileNode& node) KVC_NO_ANALYSIS { MarkGone(node); });
}

// ---- renaming

FsResult<bool> TieredFileTree::IsBelow(Ino directory, Ino top) {
  while (directory != 0) {
    if (directory == top) return true;
    const FsResult<NodeRef> node = table_.Find(directory);
    if (!node) return Fail(node.error().value);
    if (*node == nullptr) return false;
    MutexLock lock((*node)->attr);
    directory = (*node)->record.parent;
  }
  return false;
}

FsStatus TieredFileTree::Rename(const Caller& caller, Ino parent, const std::string& name,
                                Ino new_parent, const std::string& new_name, unsigned flags) {
  if (name.size() > kNameBytesMax || new_name.size() > kNameBytesMax) return Fail(ENAMETOOLONG);
  if ((flags & ~static_cast<unsigned>(RENAME_NOREPLACE | RENAME_EXCHANGE)) != 0 ||
      flags == (RENAME_NOREPLACE | RENAME_EXCHANGE)) {
    return Fail(EINVAL);
  }
  NodeRef removed;
  {
    MutexLock names(names_);
    if (DoneBefore(caller)) return {};
    const FsResult<NodeRef> from_dir = Directory(parent);
    if (!from_dir) return Fail(from_dir.error().value);
    const FsResult<NodeRef> to_dir = Directory(new_parent);
    if (!to_dir) return Fail(to_dir.error().value);
    const FsResult<Named> from = FindNamed(parent, name);
    if (!from) return Fail(from.error().value);
    if (from->node == nullptr) return Fail(ENOENT);
    const FsResult<Named> to = FindNamed(new_parent, new_name);
    if (!to) return Fail(to.error().value);
    if ((flags & RENAME_NOREPLACE) != 0 && to->node != nullptr) return Fail(EEXIST);
    if ((flags & RENAME_EXCHANGE) != 0 && to->node == nullptr) return Fail(ENOENT);
    if (to->node == from->node) return {};

    const bool moves = *from_dir != *to_dir;
    bool is_directory = false, over_directory = false;
    Ino root = 0;
    {
      MutexLock lock(from->node->attr);
      is_directory = from->node->record.IsDirectory();
      root = from->node->record.root;
    }
    if (to->node != nullptr) {
      MutexLock lock(to->node->attr);
      over_directory = to->node->record.IsDirectory();
    }
    {
      MutexLock lock((*to_dir)->attr);
      if ((*to_dir)->record.root != root) return Fail(EXDEV);
    }
    if (is_directory && moves) {
      const FsResult<bool> below = IsBelow(new_parent, from->node->ino);
      if (!below) return Fail(below.error().value);
      if (*below) return Fail(EINVAL);
    }
    if ((flags & RENAME_EXCHANGE) != 0) {
      if (over_directory && moves) {
        const FsResult<bool> below = IsBelow(parent, to->node->ino);
        if (!below) return Fail(below.error().value);
        if (*below) return Fail(EINVAL);
      }
      return RenameExchange(caller, *from_dir, name, *from, *to_dir, new_name, *to);
    }
    if (to->node != nullptr) {
      if (is_directory && !over_directory) return Fail(ENOTDIR);
      if (!is_directory && over_directory) return Fail(EISDIR);
      if (over_directory) {
        const FsResult<bool> empty = store_.IsEmpty(to->node->ino);
        if (!empty) return Fail(empty.error().value);
        if (!*empty) return Fail(ENOTEMPTY);
      }
    }
    // The place in the listing of what is replaced, so that a lister sees the name once.
    uint64_t cookie = to->entry ? to->entry->cookie : 0;
    if (cookie == 0) {
      const FsResult<uint64_t> number = store_.NextNumber();
      if (!number) return Fail(number.error().value);
      cookie = *number;
    }
    {
      // Whoever renames a file is done with it, open or not: this publishes it.
      MutexLock lock(from->node->attr);
      content_.Publish(*from->node);
    }
    const int64_t now = NowNanos();
    {
      const bool links_move = is_directory && moves;
      RecordChanges changes(store_, {from->node, to->node, links_move ? *from_dir : nullptr,
                                     links_move || over_directory ? *to_dir : nullptr});
      InodeRecord& record = changes.Of(from->node);
      if (to->node != nullptr && DropName(changes, to->node, new_parent, new_name, now)) {
        removed = to->node;
      }
      store_.RemoveEntry(changes.batch(), parent, name, from->entry->cookie);
      store_.AddEntry(changes.batch(), new_parent, new_name, from->node->ino, record.mode, cookie);
      if (record.Has(InodeRecord::kManyLinks)) {
        store_.RemoveLink(changes.batch(), from->node->ino, parent, name);
        store_.AddLink(changes.batch(), from->node->ino, new_parent, new_name);
      }
      record.parent = new_parent;
      record.name = new_name;
      record.ctime_nanos = now;
      if (links_move) --changes.Of(*from_dir).nlink;
      if (links_move) ++changes.Of(*to_dir).nlink;
      if (over_directory) --changes.Of(*to_dir).nlink;
      store_.Remember(changes.batch(), caller.unique, 0);
      const FsStatus written =
          changes.Write([this](FileNode& node) KVC_NO_ANALYSIS { MarkGone(node); });
      if (!written) return written;
    }
    TouchDirectory(**from_dir, now);
    if (moves) TouchDirectory(**to_dir, now);
  }
  if (removed != nullptr) DiscardContent(removed);
  return {};
}

FsStatus TieredFileTree::RenameExchange(const Caller& caller, const NodeRef& from_dir,
                                        const std::string& name, const Named& from,
                                        const NodeRef& to_dir, const std::string& new_name,
                                        const Named& to) {
  const int64_t now = NowNanos();
  {
    RecordChanges changes(store_, {from.node, to.node, from_dir, to_dir});
    const auto put = [&](const Named& what, const NodeRef& old_dir, const std::string& old_name,
                         const NodeRef& new_dir, const std::string& at_name, uint64_t cookie) {
      InodeRecord& record = changes.Of(what.node);
      store_.AddEntry(changes.batch(), new_dir->ino, at_name, what.node->ino, record.mode, cookie);
      if (record.Has(InodeRecord::kManyLinks)) {
        store_.RemoveLink(changes.batch(), what.node->ino, old_dir->ino, old_name);
        store_.AddLink(changes.batch(), what.node->ino, new_dir->ino, at_name);
      }
      record.parent = new_dir->ino;
      record.name = at_name;
      record.ctime_nanos = now;
      if (record.IsDirectory() && old_dir != new_dir) {
        --changes.Of(old_dir).nlink;
        ++changes.Of(new_dir).nlink;
      }
    };
    put(from, from_dir, name, to_dir, new_name, to.entry->cookie);
    put(to, to_dir, new_name, from_dir, name, from.entry->cookie);
    store_.Remember(changes.batch(), caller.unique, 0);
    const FsStatus written = changes.Write();
    if (!written) return written;
  }
  TouchDirectory(*from_dir, now);
  if (to_dir != from_dir) TouchDirectory(*to_dir, now);
  return {};
}

// ---- listing

FsStatus TieredFileTree::ReadDirectory(Ino ino, uint64_t cookie, DirSink& sink) {
  const FsResult<NodeRef> node = Node(ino);
  if (!node) return Fail(node.error().value);
  Ino parent = 0;
  {
    MutexLock lock((*node)->attr);
    if (!(*node)->record.IsDirectory()) return Fail(ENOTDIR);
    if ((*node)->gone) return {};
    parent = (*node)->record.parent == 0 ? ino : (*node)->record.parent;
    (*node)->record.atime_nanos = NowNanos();
  }
  const auto dot = [&](const char* name, Ino where, uint64_t next) {
    EntryReply entry;
    entry.ino = entry.attr.st_ino = where;
    entry.attr.st_mode = S_IFDIR;
    return sink.Add(name, entry, next);
  };
  if (cookie < kCookieDot && !dot(".", ino, kCookieDot)) return {};
  if (cookie < kCookieDotDot && !dot("..", parent, kCookieDotDot)) return {};
  return store_.List(ino, std::max(cookie, kCookieDotDot),
                     [&](const ListedEntry& listed, uint64_t next) {
                       EntryReply entry;
                       entry.ino = entry.attr.st_ino = listed.ino;
                       entry.attr.st_mode = listed.type;
                       if (!sink.plus()) return sink.Add(listed.name, entry, next);
                       const FsResult<NodeRef> found = table_.Find(listed.ino);
                       if (!found || *found == nullptr) return true;  // it goes while we list
                       MutexLock lock((*found)->attr);
                       if ((*found)->gone) return true;
                       if (!sink.Add(listed.name, Reply(**found), next)) return false;
                       ++(*found)->lookups;
                       return true;
                     });
}

// ---- roots

FsResult<Ino> TieredFileTree::MakeRoot(uid_t uid, gid_t gid, mode_t mode,
                                       const iouring::Uuid& namespace_uuid) {
  MutexLock names(names_);
  const FsResult<uint64_t> number = store_.NextNumber();
  if (!number) return Fail(number.error().value);
  const auto node = std::make_shared<FileNode>(FileInoOf(*number));
  RecordChanges changes(store_, {node});
  InodeRecord& record = changes.Of(node);
  record.mode = S_IFDIR | (mode & 07777);
  record.uid = uid;
  record.gid = gid;
  record.nlink = 2;
  record.atime_nanos = record.mtime_nanos = record.ctime_nanos = NowNanos();
  record.root = node->ino;
  record.target.assign(namespace_uuid.begin(), namespace_uuid.end());
  const FsStatus written = changes.Write();
  if (!written) return Fail(written.error().value);
  ++directories_;
  table_.Insert(node);
  return node->ino;
}

bool TieredFileTree::RootIsEmpty(Ino root) {
  const FsResult<bool> empty = store_.IsEmpty(root);
  return empty && *empty;
}

FsStatus TieredFileTree::RemoveRoot(Ino root) {
  MutexLock names(names_);
  const FsResult<NodeRef> node = Directory(root);
  if (!node) return Fail(node.error().value);
  const FsResult<bool> empty = store_.IsEmpty(root);
  if (!empty) return Fail(empty.error().value);
  if (!*empty) return Fail(ENOTEMPTY);
  RecordChanges changes(store_, {*node});
  changes.Delete(*node);
  return changes.Write([this](FileNode& gone) KVC_NO_ANALYSIS { MarkGone(gone); });
}

FsStatus TieredFileTree::ClearRoot(Ino root) {
  const FsStatus cleared = ClearDirectory(root);
  if (parts_.notifier != nullptr) {
    parts_.notifier->BumpEpoch();
    parts_.notifier->InvalidateInode(root);
  }
  return cleared;
}

FsStatus TieredFileTree::ClearDirectory(Ino top) {
  // Depth first, a page of names at a time; what is made meanwhile may stay.
  constexpr size_t kPage = 256;
  const Caller nobody{};
  std::vector<Ino> path{top};
  std::vector<std::string> path_names;
  for (int rounds_without_progress = 0; !path.empty();) {
    std::vector<ListedEntry> page;
    const FsStatus listed = store_.List(path.back(), 0, [&](const ListedEntry& entry, uint64_t) {
      page.push_back(entry);
      return page.size() < kPage;
    });
    if (!listed) return listed;
    const auto below = std::find_if(page.begin(), page.end(),
                                    [](const ListedEntry& entry) { return entry.type == S_IFDIR; });
    for (const ListedEntry& entry : page) {
      if (entry.type == S_IFDIR) continue;
      const FsStatus removed = Unlink(nobody, path.back(), entry.name);
      if (!removed && removed.error().value != ENOENT) return removed;
      if (parts_.notifier != nullptr) parts_.notifier->InvalidateEntry(path.back(), entry.name);
    }
    if (below != page.end()) {
      path.push_back(below->ino);
      path_names.push_back(below->name);
      continue;
    }
    if (!page.empty()) continue;
    path.pop_back();
    if (path.empty()) break;
    const FsStatus removed = RemoveDirectory(nobody, path.back(), path_names.back());
    if (!removed && removed.error().value != ENOENT) {
      if (++rounds_without_progress > 100) return removed;
    }
    if (parts_.notifier != nullptr) {
      parts_.notifier->InvalidateEntry(path.back(), path_names.back());
    }
    path_names.pop_back();
  }
  return {};
}

}  // namespace kvcfs::fs
