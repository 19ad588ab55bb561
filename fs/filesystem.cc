#include "fs/filesystem.h"

#include <algorithm>
#include <charconv>
#include <cstring>

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/log.h"

namespace kvcfs::fs {
namespace {

using meta::NamespaceId;

// Of handles: so many opens a millisecond.
constexpr int kHandlesAMsBits = 20;

constexpr Ino kNamespaceBit = Ino{1} << 60;
constexpr Ino kPendingBit = Ino{1} << 61;
constexpr Ino kGhostBit = Ino{1} << 59;

bool IsPending(Ino ino) {
  return KindOf(ino) == InoKind::kFixed && (ino & kPendingBit) != 0;
}
bool IsFile(Ino ino) {
  return KindOf(ino) == InoKind::kFile;
}
bool IsBlock(Ino ino) {
  return KindOf(ino) == InoKind::kBlock;
}
bool IsChain(Ino ino) {
  return KindOf(ino) == InoKind::kChain;
}

void SetTimes(struct stat& attr, int64_t atime, int64_t mtime, int64_t ctime) {
  const auto split = [](int64_t nanos) {
    return timespec{.tv_sec = nanos / 1'000'000'000, .tv_nsec = nanos % 1'000'000'000};
  };
  attr.st_atim = split(atime);
  attr.st_mtim = split(mtime);
  attr.st_ctim = split(ctime);
}

}  // namespace

int ErrnoOf(Code code) {
  switch (code) {
    case Code::kOk:
      return 0;
    case Code::kNotFound:
      return ENOENT;
    case Code::kExists:
      return EEXIST;
    case Code::kInvalid:
      return EINVAL;
    case Code::kUnsupported:
      return EOPNOTSUPP;
    case Code::kBusy:
      return EBUSY;
    case Code::kStale:
      return ENOENT;
    case Code::kTimeout:
      return EAGAIN;
    case Code::kUnavailable:
      return ENOENT;
    case Code::kCancelled:
      return EINTR;
    case Code::kNoSpace:
      return ENOSPC;
    case Code::kCorrupt:
    case Code::kIo:
    case Code::kInternal:
      return EIO;
    case Code::kNotEmpty:
      return ENOTEMPTY;
    case Code::kTooLarge:
      return EFBIG;
    case Code::kDenied:
      return EPERM;
  }
  return EIO;
}

std::string ChainEntryName(uint32_t ordinal, const BlockKey& key) {
  return fmt::format("{:08}-{}", ordinal, key.ToHex());
}

bool ParseChainEntryName(const std::string& name, uint32_t* ordinal, BlockKey* key) {
  const size_t dash = name.find('-');
  if (dash == std::string::npos || dash < 8) return false;
  const auto [end, error] = std::from_chars(name.data(), name.data() + dash, *ordinal);
  if (error != std::errc() || end != name.data() + dash) return false;
  const auto parsed = BlockKey::FromHex(std::string_view(name).substr(dash + 1));
  if (!parsed) return false;
  *key = *parsed;
  return ChainEntryName(*ordinal, *key) == name;
}

Filesystem::Filesystem(const FilesystemOptions& options, const FilesystemParts& parts,
                       std::vector<VirtualFile> virtual_files)
    : options_(options),
      parts_(parts),
      virtual_files_(std::move(virtual_files)),
      next_handle_(static_cast<uint64_t>(parts.clock->Monotonic().count()) << kHandlesAMsBits) {}

Ino Filesystem::NamespaceIno(NamespaceId id, NamespaceEntry entry) {
  return kNamespaceBit | (static_cast<Ino>(id) << 8) | static_cast<Ino>(entry);
}

std::optional<Namespace> Filesystem::NamespaceOf(Ino ino, NamespaceEntry* entry) const {
  if (KindOf(ino) != InoKind::kFixed || (ino & kNamespaceBit) == 0 || IsPending(ino)) {
    return std::nullopt;
  }
  *entry = static_cast<NamespaceEntry>(ino & 0xff);
  return parts_.namespaces->Get(static_cast<NamespaceId>((ino & ~kNamespaceBit) >> 8));
}

std::optional<BlockView> Filesystem::BlockOf(Ino ino) const {
  if (!IsBlock(ino) && !IsChain(ino)) return std::nullopt;
  return parts_.blocks->FindIno(ino, BlockStore::Use::kPeek);
}

// ---- attributes

EntryReply Filesystem::NamespaceDirectory(const Namespace& space, NamespaceEntry entry) const {
  EntryReply reply;
  reply.ino = NamespaceIno(space.id, entry);
  reply.attr.st_ino = reply.ino;
  reply.attr.st_uid = space.uid;
  reply.attr.st_gid = space.gid;
  reply.attr.st_blksize = 4096;
  if (entry == NamespaceEntry::kMatch) {
    reply.attr.st_mode = S_IFREG | 0666;
    reply.attr.st_nlink = 1;
  } else {
    // root/ and by-key/ are as open as the namespace itself.
    reply.attr.st_mode = S_IFDIR | space.mode;
    reply.attr.st_nlink = 2;
  }
  SetTimes(reply.attr, space.mtime_nanos, space.mtime_nanos, space.ctime_nanos);
  reply.entry_timeout_s = reply.attr_timeout_s = options_.entry_timeout_s;
  return reply;
}

EntryReply Filesystem::ControlEntry(Ino ino) const {
  EntryReply reply;
  reply.ino = ino;
  reply.attr.st_ino = ino;
  reply.attr.st_blksize = 4096;
  if (ino == kRootIno) {
    reply.attr.st_mode = S_IFDIR | 0755;
    reply.attr.st_nlink = static_cast<nlink_t>(3 + parts_.namespaces->List().size());
  } else if (ino == kControlIno) {
    reply.attr.st_mode = S_IFDIR | 0555;
    reply.attr.st_nlink = 2;
  } else {
    reply.attr.st_mode = S_IFREG | 0444;
    reply.attr.st_nlink = 1;
    // As in /proc, the size is not known before the text is made.
  }
  const int64_t now = parts_.clock->WallNanos();
  SetTimes(reply.attr, now, now, now);
  // Every path leads through the root, and a walk asks for its mode again when that has timed out.
  reply.entry_timeout_s = reply.attr_timeout_s = options_.entry_timeout_s;
  return reply;
}

EntryReply Filesystem::BlockEntry(const BlockView& block, const Namespace& space) const {
  EntryReply reply;
  reply.ino = block.block_ino();
  reply.attr.st_ino = reply.ino;
  reply.attr.st_mode = S_IFREG | 0444;
  reply.attr.st_nlink = 2;  // by-key/ and its own chain; many chains may list it
  reply.attr.st_uid = space.uid;
  reply.attr.st_gid = space.gid;
  reply.attr.st_size = static_cast<off_t>(block.length);
  reply.attr.st_blocks = static_cast<blkcnt_t>((block.length + 511) / 512);
  reply.attr.st_blksize = 4096;
  SetTimes(reply.attr, block.atime_nanos, block.mtime_nanos, block.mtime_nanos);
  const double lease_s = block.lease_ms / 1000.0;
  reply.entry_timeout_s = reply.attr_timeout_s = std::min(options_.entry_timeout_s, lease_s);
  return reply;
}

EntryReply Filesystem::ChainEntry(const BlockView& tip, const Namespace& space) const {
  EntryReply reply;
  reply.ino = tip.chain_ino();
  reply.attr.st_ino = reply.ino;
  reply.attr.st_mode = S_IFDIR | space.mode;
  reply.attr.st_nlink = 2;
  reply.attr.st_uid = space.uid;
  reply.attr.st_gid = space.gid;
  reply.attr.st_blksize = 4096;
  SetTimes(reply.attr, tip.atime_nanos, tip.mtime_nanos, tip.mtime_nanos);
  const double lease_s = tip.lease_ms / 1000.0;
  reply.entry_timeout_s = reply.attr_timeout_s = std::min(options_.entry_timeout_s, lease_s);
  return reply;
}

EntryReply Filesystem::GhostEntry(Ino ino) const {
  // A directory is given a number of its own, of which nobody hears attributes: whoever wants them
  // asks and hears ENOENT, so that no path leads through it; rmdir does not ask. The names in it
  // are reached through a directory that was open before, and rm looks at them before it unlinks
  // them.
  EntryReply reply;
  reply.ino = IsChain(ino) ? kGhostBit | (ino & (kGhostBit - 1)) : ino;
  reply.attr.st_ino = reply.ino;
  reply.attr.st_mode = IsChain(ino) ? S_IFDIR | 0755 : S_IFREG | 0444;
  reply.attr.st_nlink = 2;
  reply.attr_timeout_s = IsChain(ino) ? 0 : 1;
  return reply;
}

FsResult<AttrReply> Filesystem::GetAttr(const Caller& caller, Ino ino) {
  (void)caller;
  if (IsFile(ino)) return parts_.files->GetAttr(ino);
  const auto from = [](const EntryReply& entry) {
    return AttrReply{.attr = entry.attr, .timeout_s = entry.attr_timeout_s};
  };
  if (IsPending(ino)) {
    const FsResult<struct stat> attr = parts_.blocks->PendingAttr(ino);
    if (attr) return AttrReply{.attr = *attr, .timeout_s = options_.entry_timeout_s};
    return Fail(attr.error().value);
  }
  if (IsBlock(ino) || IsChain(ino)) {
    const auto block = parts_.blocks->FindIno(ino, BlockStore::Use::kLease);
    if (const auto dropped = block ? std::nullopt : parts_.blocks->FindDropped(ino)) {
      const auto space = parts_.namespaces->Get(dropped->ns);
      EntryReply entry = BlockEntry(*dropped, space.value_or(Namespace{}));
      entry.attr.st_nlink = 0;
      return from(entry);
    }
    if (!block) {
      if (IsBlock(ino)) return Fail(Unknown());
      const auto ghost = parts_.blocks->GhostOf(ino);
      if (!ghost) return Fail(Unknown());
      const auto space = parts_.namespaces->Get(ghost->first);
      if (!space) return Fail(ENOENT);
      // The kernel asks before each further name that it removes from an open directory.
      BlockView tip;
      tip.ns = ghost->first;
      tip.key = ghost->second;
      return from(ChainEntry(tip, *space));
    }
    const auto space = parts_.namespaces->Get(block->ns);
    if (!space) return Fail(ENOENT);
    return from(IsBlock(ino) ? BlockEntry(*block, *space) : ChainEntry(*block, *space));
  }
  NamespaceEntry entry{};
  if (const auto space = NamespaceOf(ino, &entry)) return from(NamespaceDirectory(*space, entry));
  if (ino >= kRootIno && ino < kFirstVirtualIno + virtual_files_.size()) {
    return from(ControlEntry(ino));
  }
  return Fail(ENOENT);
}

FsResult<AttrReply> Filesystem::SetAttr(const Caller& caller, Ino ino, const struct stat& attr,
                                        int to_set, uint64_t handle) {
  if (IsFile(ino)) return parts_.files->SetAttr(caller, ino, attr, to_set, handle);
  constexpr int kSetMode = 1, kSetUid = 2, kSetGid = 4, kSetSize = 8;
  if (IsPending(ino)) {
    if ((to_set & (kSetMode | kSetUid | kSetGid)) != 0) return Fail(EPERM);
    if ((to_set & kSetSize) != 0) {
      const FsStatus done =
          parts_.blocks->PendingTruncate(ino, static_cast<uint64_t>(attr.st_size));
      if (!done) return Fail(done.error().value);
    }
    return GetAttr(caller, ino);
  }
  if (IsBlock(ino) || IsChain(ino)) {
    if ((to_set & kSetSize) != 0) return Fail(EEXIST);  // blocks never change
    if ((to_set & (kSetMode | kSetUid | kSetGid)) != 0) return Fail(EPERM);
    parts_.blocks->Touch(ino);  // utimens counts as a use
    return GetAttr(caller, ino);
  }
  NamespaceEntry entry{};
  if (const auto space = NamespaceOf(ino, &entry)) {
    if (entry == NamespaceEntry::kMatch && (to_set & kSetSize) != 0) return GetAttr(caller, ino);
    if (entry != NamespaceEntry::kDirectory) return Fail(EPERM);
    const FsStatus done = SetNamespaceAttr(*space, attr, to_set);
    if (!done) return Fail(done.error().value);
    return GetAttr(caller, ino);
  }
  return Fail(EPERM);
}

FsStatus Filesystem::SetNamespaceAttr(Namespace space, const struct stat& attr, int to_set) {
  constexpr int kSetMode = 1, kSetUid = 2, kSetGid = 4, kSetMtime = 1 << 5, kSetMtimeNow = 1 << 8;
  if ((to_set & kSetMode) != 0) space.mode = attr.st_mode & 07777;
  if ((to_set & kSetUid) != 0) space.uid = attr.st_uid;
  if ((to_set & kSetGid) != 0) space.gid = attr.st_gid;
  space.ctime_nanos = parts_.clock->WallNanos();
  if ((to_set & kSetMtimeNow) != 0)
    space.mtime_nanos = space.ctime_nanos;
  else if ((to_set & kSetMtime) != 0) {
    space.mtime_nanos = int64_t{attr.st_mtim.tv_sec} * 1'000'000'000 + attr.st_mtim.tv_nsec;
  }
  return UpdateNamespace(space);
}

FsStatus Filesystem::UpdateNamespace(const Namespace& changed) {
  return parts_.spaces != nullptr ? parts_.spaces->Update(changed)
                                  : parts_.namespaces->Update(changed);
}

std::optional<Namespace> Filesystem::FindNamespace(const std::string& name) {
  return parts_.spaces != nullptr ? parts_.spaces->Find(name) : parts_.namespaces->Find(name);
}

// ---- names

FsResult<EntryReply> Filesystem::Lookup(const Caller& caller, Ino parent, const std::string& name) {
  if (IsFile(parent)) return parts_.files->Lookup(caller, parent, name);
  if (name.size() > 255) return Fail(ENAMETOOLONG);
  if (parent == kRootIno) {
    if (name == ".kvcfs") return ControlEntry(kControlIno);
    const auto space = FindNamespace(name);
    if (!space) return Fail(ENOENT);
    return NamespaceDirectory(*space, NamespaceEntry::kDirectory);
  }
  if (parent == kControlIno) {
    for (size_t i = 0; i < virtual_files_.size(); ++i) {
      if (virtual_files_[i].name == name) return ControlEntry(kFirstVirtualIno + i);
    }
    return Fail(ENOENT);
  }
  NamespaceEntry entry{};
  if (const auto space = NamespaceOf(parent, &entry)) {
    switch (entry) {
      case NamespaceEntry::kDirectory:
        return LookupInNamespace(*space, name);
      case NamespaceEntry::kRoot:
        return LookupInChain(*space, nullptr, name);
      case NamespaceEntry::kByKey: {
        const auto key = BlockKey::FromHex(name);
        if (!key) return Fail(ENOENT);
        const auto block = parts_.blocks->Find(space->id, *key, BlockStore::Use::kLease);
        if (!block) return Fail(ENOENT);
        return BlockEntry(*block, *space);
      }
      case NamespaceEntry::kMatch:
        return Fail(ENOTDIR);
    }
  }
  if (IsChain(parent)) {
    const auto tip = BlockOf(parent);
    if (!tip) {
      // A chain that has just been taken along: its names may still be removed.
      uint32_t ordinal = 0;
      BlockKey key;
      const auto ghost = parts_.blocks->GhostOf(parent);
      if (!ghost || !ParseChainEntryName(name, &ordinal, &key) ||
          !parts_.blocks->IsGhost(ghost->first, key)) {
        return Fail(ENOENT);
      }
      BlockView view;
      view.ns = ghost->first;
      view.key = key;
      return GhostEntry(view.block_ino());
    }
    const auto space = parts_.namespaces->Get(tip->ns);
    if (!space) return Fail(ENOENT);
    return LookupInChain(*space, &tip->key, name);
  }
  return Fail(ENOTDIR);
}

FsResult<EntryReply> Filesystem::LookupInNamespace(const Namespace& space,
                                                   const std::string& name) {
  if (name == "root") return NamespaceDirectory(space, NamespaceEntry::kRoot);
  if (name == "by-key") return NamespaceDirectory(space, NamespaceEntry::kByKey);
  if (name == "match") return NamespaceDirectory(space, NamespaceEntry::kMatch);
  if (name == "files") {
    FsResult<AttrReply> attr = parts_.files->GetAttr(space.files_root);
    if (!attr) return Fail(attr.error().value);
    EntryReply entry;
    entry.ino = space.files_root;
    entry.attr = attr->attr;
    entry.entry_timeout_s = options_.entry_timeout_s;
    entry.attr_timeout_s = attr->timeout_s;
    return entry;
  }
  const auto key = BlockKey::FromHex(name);
  if (!key) return Fail(ENOENT);
  const auto tip = parts_.blocks->Find(space.id, *key, BlockStore::Use::kLease);
  if (tip) return ChainEntry(*tip, space);
  if (parts_.blocks->IsGhost(space.id, *key)) {
    BlockView view;
    view.ns = space.id;
    view.key = *key;
    return GhostEntry(view.chain_ino());
  }
  return Fail(ENOENT);
}

FsResult<EntryReply> Filesystem::LookupInChain(const Namespace& space, const BlockKey* tip,
                                               const std::string& name) {
  uint32_t ordinal = 0;
  BlockKey key;
  if (tip != nullptr && ParseChainEntryName(name, &ordinal, &key)) {
    const auto block = parts_.blocks->InChain(space.id, *tip, ordinal, BlockStore::Use::kLease);
    if (!block || block->key != key) return Fail(ENOENT);
    return BlockEntry(*block, space);
  }
  // The name under which it was written.
  const auto bare = BlockKey::FromHex(name);
  if (!bare) return Fail(ENOENT);
  const auto block = parts_.blocks->Find(space.id, *bare, BlockStore::Use::kLease);
  if (!block || block->parent != (tip != nullptr ? *tip : BlockKey{})) return Fail(ENOENT);
  return BlockEntry(*block, space);
}

void Filesystem::Forget(Ino ino, uint64_t lookups) {
  // Only ordinary files have memory that lookups hold; the rest is found again by its number.
  if (IsFile(ino)) parts_.files->Forget(ino, lookups);
}

FsResult<std::string> Filesystem::ReadLink(Ino ino) {
  if (IsFile(ino)) return parts_.files->ReadLink(ino);
  return Fail(EINVAL);
}

FsResult<EntryReply> Filesystem::MakeNode(const Caller& caller, Ino parent, const std::string& name,
                                          mode_t mode, dev_t device) {
  if (IsFile(parent)) return parts_.files->MakeNode(caller, parent, name, mode, device);
  if (S_ISREG(mode) && (IsChain(parent) || KindOf(parent) == InoKind::kFixed)) {
    // mknod(2) of a regular file cannot be followed by a write that publishes it.
    return Fail(EPERM);
  }
  return Fail(EPERM);
}

FsResult<EntryReply> Filesystem::MakeDirectory(const Caller& caller, Ino parent,
                                               const std::string& name, mode_t mode) {
  if (IsFile(parent)) return parts_.files->MakeDirectory(caller, parent, name, mode);
  if (parent != kRootIno) return Fail(EPERM);
  const FsResult<Namespace> made = parts_.spaces != nullptr
                                       ? parts_.spaces->Create(caller, name, mode & 07777)
                                       : parts_.namespaces->Create(caller, name, mode & 07777);
  if (!made) {
    const auto there = parts_.namespaces->Find(name);
    if (made.error().value == EEXIST && caller.resent && there) {
      return NamespaceDirectory(*there, NamespaceEntry::kDirectory);
    }
    return Fail(made.error().value);
  }
  Namespace space = *made;
  if (space.files_root != 0) return NamespaceDirectory(space, NamespaceEntry::kDirectory);
  const FsResult<Ino> root = parts_.files->MakeRoot(space.uid, space.gid, space.mode, space.uuid);
  if (!root) {
    (void)parts_.namespaces->Remove(space.id);
    return Fail(root.error().value);
  }
  space.files_root = *root;
  const FsStatus saved = parts_.namespaces->Update(space);
  if (!saved) return Fail(saved.error().value);
  return NamespaceDirectory(space, NamespaceEntry::kDirectory);
}

FsResult<EntryReply> Filesystem::MakeSymlink(const Caller& caller, Ino parent,
                                             const std::string& name, const std::string& target) {
  if (IsFile(parent)) return parts_.files->MakeSymlink(caller, parent, name, target);
  return Fail(EPERM);
}

FsResult<EntryReply> Filesystem::Link(const Caller& caller, Ino ino, Ino parent,
                                      const std::string& name) {
  if (IsFile(parent) && IsFile(ino)) return parts_.files->Link(caller, ino, parent, name);
  if (IsFile(parent)) return Fail(EXDEV);  // a block into files/
  return Fail(EPERM);
}

FsStatus Filesystem::Unlink(const Caller& caller, Ino parent, const std::string& name) {
  if (IsFile(parent)) return parts_.files->Unlink(caller, parent, name);
  NamespaceEntry entry{};
  if (const auto space = NamespaceOf(parent, &entry)) {
    const auto key = BlockKey::FromHex(name);
    if (entry == NamespaceEntry::kByKey) {
      if (!key) return Fail(ENOENT);
      const FsStatus done = parts_.blocks->Drop(space->id, *key, nullptr);
      if (!done && caller.resent) return {};
      return done;
    }
    if (entry == NamespaceEntry::kRoot) {
      const auto block =
          key ? parts_.blocks->Find(space->id, *key, BlockStore::Use::kPeek) : std::nullopt;
      if (!block || block->ordinal != 0) return Fail(ENOENT);
      return parts_.blocks->UnlinkFromChain(space->id, *key, 0, *key);
    }
    return Fail(EPERM);
  }
  if (IsChain(parent)) {
    const auto tip = BlockOf(parent);
    const auto ghost = tip ? std::nullopt : parts_.blocks->GhostOf(parent);
    if (!tip && !ghost) return Fail(ENOENT);
    const NamespaceId ns = tip ? tip->ns : ghost->first;
    const BlockKey tip_key = tip ? tip->key : ghost->second;
    uint32_t ordinal = 0;
    BlockKey key;
    if (ParseChainEntryName(name, &ordinal, &key)) {
      return parts_.blocks->UnlinkFromChain(ns, tip_key, ordinal, key);
    }
    if (const auto bare = BlockKey::FromHex(name)) {
      const auto block = parts_.blocks->Find(ns, *bare, BlockStore::Use::kPeek);
      if (!block || block->parent != tip_key) return Fail(ENOENT);
      return parts_.blocks->UnlinkFromChain(ns, *bare, block->ordinal, *bare);
    }
    return Fail(ENOENT);
  }
  return Fail(EPERM);
}

FsStatus Filesystem::RemoveDirectory(const Caller& caller, Ino parent, const std::string& name) {
  if (IsFile(parent)) return parts_.files->RemoveDirectory(caller, parent, name);
  if (parent == kRootIno) {
    const auto space = FindNamespace(name);
    if (!space) return name == ".kvcfs" ? Fail(EPERM) : caller.resent ? FsStatus{} : Fail(ENOENT);
    if (!parts_.blocks->NamespaceIsEmpty(space->id) ||
        !parts_.files->RootIsEmpty(space->files_root)) {
      return Fail(ENOTEMPTY);
    }
    if (parts_.spaces != nullptr) return parts_.spaces->Remove(*space);
    const FsStatus cleared = parts_.files->RemoveRoot(space->files_root);
    if (!cleared) return cleared;
    return parts_.namespaces->Remove(space->id);
  }
  NamespaceEntry entry{};
  if (const auto space = NamespaceOf(parent, &entry)) {
    if (entry != NamespaceEntry::kDirectory) return Fail(ENOTDIR);
    const auto key = BlockKey::FromHex(name);
    if (!key) return Fail(EPERM);  // root, by-key, files
    return parts_.blocks->RemoveTip(space->id, *key);
  }
  return Fail(EPERM);
}

FsStatus Filesystem::Rename(const Caller& caller, Ino parent, const std::string& name,
                            Ino new_parent, const std::string& new_name, unsigned flags) {
  if (IsFile(parent) && IsFile(new_parent)) {
    return parts_.files->Rename(caller, parent, name, new_parent, new_name, flags);
  }
  if (parent == kRootIno && new_parent == kRootIno) return Fail(EPERM);
  return Fail(EXDEV);  // so that mv copies
}

FsResult<OpenReply> Filesystem::Create(const Caller& caller, Ino parent, const std::string& name,
                                       mode_t mode, int flags, EntryReply* entry) {
  if (IsFile(parent)) return parts_.files->Create(caller, parent, name, mode, flags, entry);
  if (parts_.spaces != nullptr) parts_.spaces->Follow();
  NamespaceEntry which{};
  std::optional<Namespace> space = NamespaceOf(parent, &which);
  std::optional<BlockKey> tip;
  if (space) {
    if (which == NamespaceEntry::kByKey || which == NamespaceEntry::kDirectory) return Fail(EPERM);
  } else if (IsChain(parent)) {
    const auto block = BlockOf(parent);
    if (!block) return Fail(Unknown());
    tip = block->key;
    space = parts_.namespaces->Get(block->ns);
  }
  if (!space) return Fail(parent == kRootIno || parent == kControlIno ? EPERM : ENOENT);
  const auto key = BlockKey::FromHex(name);
  if (!key || key->IsZero()) return Fail(EINVAL);
  const auto created = parts_.blocks->Create(caller, *space, tip, *key, flags);
  if (!created) return Fail(created.error().value);
  entry->ino = created->ino;
  entry->attr = created->attr;
  entry->attr.st_uid = space->uid;
  entry->attr.st_gid = space->gid;
  const int64_t now = parts_.clock->WallNanos();
  SetTimes(entry->attr, now, now, now);
  // Only this inode's writers change it, and the kernel sees them. With 0 it would ask for the mode
  // it has just been told. The name itself must be asked for again: when it is published, it is
  // another inode.
  entry->attr_timeout_s = options_.entry_timeout_s;
  return created->open;
}

struct statvfs Filesystem::StatFs() {
  struct statvfs info {};
  const BlockStoreStats blocks = parts_.blocks->Stats();
  info.f_bsize = info.f_frsize = 4096;
  info.f_blocks = options_.capacity_bytes / 4096;
  // What may be evicted counts as free.
  const uint64_t held = std::min(blocks.dirty_bytes, options_.capacity_bytes / 2);
  info.f_bfree = info.f_bavail = (options_.capacity_bytes - held) / 4096;
  info.f_files = 1u << 30;
  const FileTreeStats files = parts_.files->Stats();
  info.f_ffree = info.f_favail = info.f_files - files.files - files.directories;
  info.f_namemax = 255;
  return info;
}

}  // namespace kvcfs::fs
