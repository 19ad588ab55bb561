// The tree as a working copy of a cluster's (fs/file_mirror.h).
#include "fs/file_mirror.h"

#include <algorithm>

#include <sys/stat.h>

#include "base/log.h"
#include "fs/tiered_file_tree.h"

namespace kvcfs::fs {
namespace {

constexpr int kMirrorTries = 4;  // against what this host does meanwhile

void SetAttributes(InodeRecord& record, const meta::SharedFile& file) {
  record.mode = (record.mode & S_IFMT) | (file.mode & 07777);
  record.uid = file.uid;
  record.gid = file.gid;
  record.atime_nanos = std::max(record.atime_nanos, file.atime_nanos);
  record.ctime_nanos = std::max(record.ctime_nanos, file.ctime_nanos);
  record.shared.change = file.change;
  record.shared.links = file.links;
  if (record.IsRegular() && (record.shared.dirty || record.shared.content != file.content)) return;
  record.mtime_nanos = file.mtime_nanos;
}

}  // namespace

// ---- looking

FsResult<LocalFile> TieredFileTree::Describe(Ino ino) {
  const FsResult<NodeRef> node = Node(ino);
  if (!node) return Fail(node.error().value);
  LocalFile local;
  local.ino = ino;
  {
    MutexLock lock((*node)->attr);
    local.record = (*node)->record;
    local.changes = (*node)->changes;
    local.open = content_.IsOpen(**node);
    local.written = local.open && content_.Slot(**node).writers > 0;
    if ((*node)->gone) local.record.nlink = 0;
  }
  const FsResult<NodeRef> root = Node(local.record.root);
  if (!root) return Fail(root.error().value);
  MutexLock lock((*root)->attr);
  const std::string& uuid = (*root)->record.target;
  for (size_t i = 0; i < 8 && uuid.size() == 16; ++i) {
    local.space.high = local.space.high << 8 | static_cast<uint8_t>(uuid[i]);
    local.space.low = local.space.low << 8 | static_cast<uint8_t>(uuid[8 + i]);
  }
  return local;
}

FsResult<std::optional<LocalFile>> TieredFileTree::Find(Ino parent, const std::string& name) {
  const FsResult<std::optional<Dentry>> entry = store_.Find(parent, name);
  if (!entry) return Fail(entry.error().value);
  if (!*entry) return std::optional<LocalFile>();
  FsResult<LocalFile> local = Describe((*entry)->ino);
  if (!local || local->record.nlink == 0) return std::optional<LocalFile>();
  return std::optional(std::move(*local));
}

NodeRef TieredFileTree::SharedNode(Ino root, const meta::FileId& id) {
  const FsResult<std::optional<Ino>> ino = store_.FindShared(root, id);
  if (!ino || !*ino) return nullptr;
  const FsResult<NodeRef> found = table_.Find(**ino);
  if (!found || *found == nullptr) return nullptr;
  const NodeRef& node = *found;
  MutexLock lock(node->attr);
  const bool is_it = !node->gone && node->record.nlink > 0 && node->record.shared.id == id;
  return is_it ? node : nullptr;
}

// ---- taking over

FsResult<NodeRef> TieredFileTree::MakeMirrored(const NodeRef& directory, const std::string& name,
                                               const meta::SharedFile& file) {
  const FsResult<uint64_t> number = store_.NextNumber();
  if (!number) return Fail(number.error().value);
  InodeRecord above;
  {
    MutexLock lock(directory->attr);
    above = directory->record;
  }
  const auto node = std::make_shared<FileNode>(FileInoOf(*number));
  const bool is_directory = (file.mode & S_IFMT) == S_IFDIR;
  {
    RecordChanges changes(store_, {node, is_directory ? directory : nullptr});
    InodeRecord& record = changes.Of(node);
    record.mode = file.mode;
    record.nlink = is_directory ? 2 : 1;
    record.device = file.device;
    record.target = file.target;
    record.size = file.size;
    record.parent = directory->ino;
    record.name = name;
    record.root = above.root;
    record.flags |= above.flags & (InodeRecord::kNeverEvict | InodeRecord::kOnDisk);
    record.shared.id = file.id;
    record.shared.content = file.content;
    record.shared.remote = record.IsRegular() && file.content.valid();
    SetAttributes(record, file);
    if (record.IsRegular() && !record.shared.remote) {
      record.version = 1;
      record.size = 0;
      record.stable = {1, 0, record.mtime_nanos, {}};
    }
    PutXattrs(changes.batch(), node->ino, record, file);
    store_.AddEntry(changes.batch(), directory->ino, name, node->ino, file.mode, *number);
    store_.PutShared(changes.batch(), record.root, file.id, node->ino);
    if (is_directory) ++changes.Of(directory).nlink;
    const FsStatus written = changes.Write();
    if (!written) return Fail(written.error().value);
  }
  (is_directory ? directories_ : files_) += 1;
  table_.Insert(node);
  return node;
}

// One more name here, or another one instead of those that it has.
FsStatus TieredFileTree::NameMirrored(const NodeRef& directory, const std::string& name,
                                      const NodeRef& node, bool instead) {
  const FsResult<uint64_t> cookie = store_.NextNumber();
  if (!cookie) return Fail(cookie.error().value);
  NodeRef before;
  {
    Ino parent = 0;
    {
      MutexLock lock(node->attr);
      if (node->record.IsDirectory()) parent = node->record.parent;
    }
    if (parent != 0 && parent != directory->ino) {
      const FsResult<NodeRef> found = table_.Find(parent);
      if (found) before = *found;
    }
  }
  RecordChanges changes(store_, {node, before, directory});
  InodeRecord& record = changes.Of(node);
  if (instead) {
    for (const NameStore::LinkName& link : store_.LinksOf(node->ino, record)) {
      const FsResult<std::optional<Dentry>> entry = store_.Find(link.directory, link.name);
      if (!entry || !*entry || (*entry)->ino != node->ino) continue;
      store_.RemoveEntry(changes.batch(), link.directory, link.name, (*entry)->cookie);
      if (record.Has(InodeRecord::kManyLinks)) {
        store_.RemoveLink(changes.batch(), node->ino, link.directory, link.name);
      }
      if (!record.IsDirectory()) --record.nlink;
    }
    if (before != nullptr) {
      --changes.Of(before).nlink;
      ++changes.Of(directory).nlink;
    }
    record.parent = directory->ino;
    record.name = name;
  } else if (!record.Has(InodeRecord::kManyLinks)) {
    record.Set(InodeRecord::kManyLinks, true);
    store_.AddLink(changes.batch(), node->ino, record.parent, record.name);
  }
  store_.AddEntry(changes.batch(), directory->ino, name, node->ino, record.mode, *cookie);
  if (record.Has(InodeRecord::kManyLinks)) {
    store_.AddLink(changes.batch(), node->ino, directory->ino, name);
  }
  if (!record.IsDirectory()) ++record.nlink;
  return changes.Write();
}

void TieredFileTree::PutXattrs(meta::MetaBatch& batch, Ino ino, InodeRecord& record,
                               const meta::SharedFile& file) {
  store_.ClearXattrs(batch, ino, record);
  record.Set(InodeRecord::kHasXattrs, !file.xattrs.empty());
  for (const auto& [name, value] : file.xattrs) {
    (void)ApplyXattrToFlags(record, name, &value);
    batch.Put(XattrKey(ino, name), value);
  }
}

bool TieredFileTree::TakeAttributes(const NodeRef& node, const meta::SharedFile& file) {
  bool differs = false;
  {
    MutexLock lock(node->attr);
    const SharedState& shared = node->record.shared;
    if (node->gone) return false;
    if (file.change < shared.change) return true;  // an answer that was overtaken
    if (shared.change == file.change && shared.content == file.content) return true;
    differs = node->record.IsRegular() && !shared.dirty && shared.content != file.content;
  }
  std::optional<ContentLock> content;
  if (differs) {
    content.emplace(*node);
    {
      MutexLock lock(node->attr);
      if (content_.IsOpen(*node)) return node->record.shared.dirty;
    }
    content_.Discard(*node);
  }
  MutexLock lock(node->attr);
  if (node->gone) return false;
  InodeRecord& record = node->record;
  if (differs) {
    record.shared.content = file.content;
    record.shared.remote = file.content.valid();
    record.size = file.size;
    record.blocks = 0;
    ++node->changes;
    node->pages_valid = false;
    if (!record.shared.remote) {
      ++record.version;
      record.stable = {record.version, 0, file.mtime_nanos, {}};
    }
  }
  SetAttributes(record, file);
  meta::MetaBatch batch;
  if (!file.xattrs.empty() || record.Has(InodeRecord::kHasXattrs)) {
    PutXattrs(batch, node->ino, record, file);
  }
  store_.PutInode(batch, node->ino, record);
  node->attr_dirty = false;
  (void)store_.Write(batch);
  return true;
}

FsResult<Ino> TieredFileTree::Mirror(Ino parent, const std::string& name,
                                     const meta::SharedFile& file) {
  for (int tries = 0; tries < kMirrorTries; ++tries) {
    NodeRef node, other;
    {
      MutexLock names(names_);
      const FsResult<NodeRef> directory = Directory(parent);
      if (!directory) return Fail(directory.error().value);
      const FsResult<Named> there = FindNamed(parent, name);
      if (!there) return Fail(there.error().value);
      Ino root = 0;
      {
        MutexLock lock((*directory)->attr);
        root = (*directory)->record.root;
      }
      node = SharedNode(root, file.id);
      if (there->node != nullptr && there->node != node) {
        other = there->node;
        MutexLock lock(other->attr);
        if (!other->record.shared.id.valid()) return other->ino;
      } else if (node == nullptr) {
        FsResult<NodeRef> made = MakeMirrored(*directory, name, file);
        if (!made) return Fail(made.error().value);
        return (*made)->ino;
      } else if (there->node == nullptr) {
        const bool instead = file.links == 1 || (file.mode & S_IFMT) == S_IFDIR;
        if ((file.mode & S_IFMT) == S_IFDIR) {
          const FsResult<bool> below = IsBelow(parent, node->ino);
          if (below && *below) return Fail(ESTALE);  // an old answer
        }
        const FsStatus named = NameMirrored(*directory, name, node, instead);
        if (!named) return Fail(named.error().value);
      }
    }
    if (other != nullptr) {
      Forget(parent, name);
      continue;
    }
    if (TakeAttributes(node, file)) return node->ino;
    // Open with other bytes: who has it goes on with them.
    Unname(node);
  }
  return Fail(ESTALE);
}

void TieredFileTree::Unname(const NodeRef& node) {
  std::vector<NameStore::LinkName> links;
  {
    MutexLock lock(node->attr);
    links = store_.LinksOf(node->ino, node->record);
  }
  for (const NameStore::LinkName& link : links) {
    const FsResult<std::optional<Dentry>> entry = store_.Find(link.directory, link.name);
    if (entry && *entry && (*entry)->ino == node->ino) {
      (void)Unlink(Caller{}, link.directory, link.name);
    }
  }
}

void TieredFileTree::Update(Ino root, const meta::SharedFile& file) {
  NodeRef node;
  {
    MutexLock names(names_);
    node = SharedNode(root, file.id);
  }
  if (node != nullptr && !TakeAttributes(node, file)) Unname(node);
}

void TieredFileTree::Forget(Ino parent, const std::string& name) {
  const FsResult<std::optional<Dentry>> entry = store_.Find(parent, name);
  if (!entry || !*entry) return;
  const FsStatus unlinked = Unlink(Caller{}, parent, name);
  if (unlinked || unlinked.error().value != EISDIR) return;
  (void)ClearDirectory((*entry)->ino);
  (void)RemoveDirectory(Caller{}, parent, name);
}

void TieredFileTree::ForgetShared(Ino directory) {
  std::vector<ListedEntry> all;
  (void)store_.List(directory, 0, [&](const ListedEntry& entry, uint64_t) {
    all.push_back(entry);
    return true;
  });
  for (const ListedEntry& entry : all) {
    if (entry.type == S_IFDIR) {
      ForgetShared(entry.ino);
      (void)RemoveDirectory(Caller{}, directory, entry.name);
      continue;
    }
    const FsResult<LocalFile> local = Describe(entry.ino);
    if (local && !local->wants_publishing()) (void)Unlink(Caller{}, directory, entry.name);
  }
}

// ---- bytes

FsStatus TieredFileTree::Fill(Ino ino, const meta::FileId& content_id, size_t piece_bytes,
                              const ReadPiece& read) {
  const FsResult<NodeRef> found = Node(ino);
  if (!found) return Fail(found.error().value);
  const NodeRef& node = *found;
  ContentLock content(*node);
  uint64_t size = 0;
  int64_t mtime = 0;
  {
    MutexLock lock(node->attr);
    if (node->gone || node->record.nlink == 0) return Fail(ESTALE);
    if (!node->record.shared.remote) return {};
    if (node->record.shared.content != content_id) return Fail(EAGAIN);
    size = node->record.size;
    mtime = node->record.mtime_nanos;
  }
  std::vector<std::byte> piece(std::min<uint64_t>(size, piece_bytes));
  FsStatus filled;
  for (uint64_t at = 0; at < size && filled; at += piece.size()) {
    const auto into = std::span(piece).first(std::min<uint64_t>(piece.size(), size - at));
    filled = read(at, into);
    if (!filled) break;
    const FsResult<size_t> put = content_.Write(*node, at, into);
    if (!put) filled = Fail(put.error().value);
  }
  if (!filled) content_.Discard(*node);
  {
    MutexLock lock(node->attr);
    InodeRecord& record = node->record;
    record.shared.dirty = false;
    record.shared.remote = !filled;
    record.mtime_nanos = mtime;
    record.size = size;
    record.Set(InodeRecord::kUnpublished, false);
    if (filled) {
      content_.Publish(*node);
      if (node->slot != 0) content_.Slot(*node).mtime_nanos = mtime;
    }
    node->pages_valid = false;
    (void)content_.Persist(*node);
  }
  content_.Settle(*node);
  return filled;
}

FsResult<uint64_t> TieredFileTree::Seal(Ino ino) {
  const FsResult<NodeRef> node = Node(ino);
  if (!node) return Fail(node.error().value);
  MutexLock lock((*node)->attr);
  content_.Publish(**node);
  return (*node)->changes;
}

FsResult<size_t> TieredFileTree::ReadHere(Ino ino, uint64_t offset, std::span<std::byte> into) {
  const FsResult<NodeRef> node = Node(ino);
  if (!node) return Fail(node.error().value);
  {
    bool cold = false;
    {
      MutexLock lock((*node)->attr);
      cold = content_.WhereIs(**node) == Where::kCold;
    }
    if (cold) {
      ContentLock content(**node);
      const Status loaded = content_.Load(**node);
      if (!loaded.ok()) return Fail(ErrnoOf(loaded.code()));
      content_.Settle(**node);
    }
  }
  SharedContentLock content(**node);
  return content_.Read(**node, offset, into);
}

FsStatus TieredFileTree::SetPublished(Ino ino, const meta::SharedFile& file, uint64_t changes) {
  const FsResult<NodeRef> found = Node(ino);
  if (!found) return Fail(found.error().value);
  FileNode& node = **found;
  MutexLock lock(node.attr);
  if (node.gone || node.record.nlink == 0) return Fail(ESTALE);
  InodeRecord& record = node.record;
  record.shared.id = file.id;
  record.shared.content = file.content;
  record.shared.change = file.change;
  record.shared.links = file.links;
  record.shared.remote = false;
  if (node.changes == changes) record.shared.dirty = false;
  meta::MetaBatch batch;
  store_.PutInode(batch, ino, record);
  store_.PutShared(batch, record.root, file.id, ino);
  node.attr_dirty = false;
  return store_.Write(batch);
}

FsStatus TieredFileTree::Detach(Ino ino) {
  const FsResult<NodeRef> found = Node(ino);
  if (!found) return Fail(found.error().value);
  FileNode& node = **found;
  MutexLock lock(node.attr);
  if (!node.record.shared.id.valid()) return {};
  meta::MetaBatch batch;
  store_.DeleteShared(batch, node.record);
  if (node.record.shared.remote) node.record.size = 0;
  node.record.shared = {};
  store_.PutInode(batch, ino, node.record);
  return store_.Write(batch);
}

// ---- listing

FsResult<EntryReply> TieredFileTree::EntryOf(Ino ino) {
  const FsResult<NodeRef> node = Node(ino);
  if (!node) return Fail(node.error().value);
  MutexLock lock((*node)->attr);
  if ((*node)->gone) return Fail(ENOENT);
  return Reply(**node);
}

void TieredFileTree::CountLookup(Ino ino) {
  const NodeRef node = table_.Peek(ino);
  if (node == nullptr) return;
  MutexLock lock(node->attr);
  ++node->lookups;
}

FsStatus TieredFileTree::ListLocal(Ino directory, uint64_t cookie, const VisitName& visit) {
  return store_.List(directory, cookie, [&](const ListedEntry& listed, uint64_t next) {
    if (listed.type != S_IFREG) return true;
    const FsResult<NodeRef> found = table_.Find(listed.ino);
    if (!found || *found == nullptr) return true;
    EntryReply entry;
    {
      MutexLock lock((*found)->attr);
      if ((*found)->gone || (*found)->record.shared.id.valid()) return true;
      entry = Reply(**found);
    }
    return visit(listed.name, entry, next);
  });
}

std::vector<Ino> TieredFileTree::Unpublished() {
  std::vector<Ino> all;
  store_.ForEachInode(0, [&](Ino ino, const InodeRecord& record) {
    const bool is_new = !record.shared.id.valid();
    if (record.IsRegular() && record.nlink > 0 && (is_new || record.shared.dirty)) {
      all.push_back(ino);
    }
    return true;
  });
  return all;
}

}  // namespace kvcfs::fs
