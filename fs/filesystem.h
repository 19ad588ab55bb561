// The mounted tree: who answers for which inode.
//
// MNT/.kvcfs/ (virtual), MNT/<namespace>/{root,by-key,match,files,<tip>/} over the block store, and
// below files/ the ordinary tree. Knows nothing of libfuse: fuse_session.cc is the only door to it,
// and tests call it directly.
// Threads: any; calls may block on I/O of their own file.
// Source: fs/SEMANTICS.md.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <sys/statvfs.h>

#include "base/clock.h"
#include "base/mutex.h"
#include "fs/block_store.h"
#include "fs/cluster_spaces.h"
#include "fs/file_tree.h"
#include "fs/fs_types.h"
#include "fs/namespace_table.h"

namespace kvcfs::fs {

// Inode numbers of kind kFixed.
inline constexpr Ino kRootIno = 1;
inline constexpr Ino kControlIno = 2;  // .kvcfs
inline constexpr Ino kFirstVirtualIno = 3;
enum class NamespaceEntry : uint64_t { kDirectory = 0, kRoot = 1, kByKey = 2, kMatch = 3 };

struct FilesystemOptions {
  double entry_timeout_s = 10;  // of what is leased
  std::chrono::milliseconds lease{30000};
  uint64_t capacity_bytes = 0;  // of statfs
  bool read_only_virtual = true;
};

// A file of .kvcfs: its text is made anew at each open.
struct VirtualFile {
  std::string name;
  std::function<std::string()> text;
};

struct FilesystemParts {
  NamespaceTable* namespaces = nullptr;
  BlockStore* blocks = nullptr;
  FileTree* files = nullptr;
  const Clock* clock = nullptr;
  ClusterSpaces* spaces = nullptr;  // where the namespaces are a cluster's
};

// The bytes of a read: either copied into the caller's buffer, or lying in memory that stays.
struct ReadReply {
  std::span<const std::byte> bytes;
};

class Filesystem {
 public:
  Filesystem(const FilesystemOptions& options, const FilesystemParts& parts,
             std::vector<VirtualFile> virtual_files);

  FsResult<EntryReply> Lookup(const Caller& caller, Ino parent, const std::string& name);
  void Forget(Ino ino, uint64_t lookups);
  FsResult<AttrReply> GetAttr(const Caller& caller, Ino ino);
  FsResult<AttrReply> SetAttr(const Caller& caller, Ino ino, const struct stat& attr, int to_set,
                              uint64_t handle);
  FsResult<std::string> ReadLink(Ino ino);
  FsResult<EntryReply> MakeNode(const Caller& caller, Ino parent, const std::string& name,
                                mode_t mode, dev_t device);
  FsResult<EntryReply> MakeDirectory(const Caller& caller, Ino parent, const std::string& name,
                                     mode_t mode);
  FsResult<EntryReply> MakeSymlink(const Caller& caller, Ino parent, const std::string& name,
                                   const std::string& target);
  FsResult<EntryReply> Link(const Caller& caller, Ino ino, Ino parent, const std::string& name);
  FsStatus Unlink(const Caller& caller, Ino parent, const std::string& name);
  FsStatus RemoveDirectory(const Caller& caller, Ino parent, const std::string& name);
  FsStatus Rename(const Caller& caller, Ino parent, const std::string& name, Ino new_parent,
                  const std::string& new_name, unsigned flags);

  FsResult<OpenReply> Open(const Caller& caller, Ino ino, int flags);
  FsResult<OpenReply> Create(const Caller& caller, Ino parent, const std::string& name, mode_t mode,
                             int flags, EntryReply* entry);
  // `buffer` is scratch of at least `size` bytes; the answer may point into it or elsewhere.
  FsResult<std::span<const std::byte>> Read(Ino ino, uint64_t handle, uint64_t offset, size_t size,
                                            std::span<std::byte> buffer);
  FsResult<size_t> Write(Ino ino, uint64_t handle, uint64_t offset, std::span<const std::byte> from,
                         bool kill_suid);
  FsStatus Flush(const Caller& caller, Ino ino, uint64_t handle);
  void Release(Ino ino, uint64_t handle);
  FsStatus Fsync(Ino ino, uint64_t handle, bool data_only);
  FsStatus Allocate(Ino ino, uint64_t handle, int mode, uint64_t offset, uint64_t length);
  FsResult<uint64_t> Seek(Ino ino, uint64_t handle, uint64_t offset, int whence);
  FsResult<size_t> CopyRange(Ino from, uint64_t from_offset, Ino to, uint64_t to_offset,
                             size_t length);

  FsStatus OpenDirectory(Ino ino);
  FsStatus ReadDirectory(const Caller& caller, Ino ino, uint64_t cookie, DirSink& sink);
  FsStatus FsyncDirectory(Ino ino);

  FsStatus SetXattr(const Caller& caller, Ino ino, const std::string& name,
                    const std::string& value, int flags);
  FsResult<std::string> GetXattr(Ino ino, const std::string& name);
  FsResult<std::vector<std::string>> ListXattrs(Ino ino);
  FsStatus RemoveXattr(const Caller& caller, Ino ino, const std::string& name);

  // The ioctls of tools/kvcfs.h on a namespace directory. ENOTTY for everything else.
  FsResult<std::string> Ioctl(const Caller& caller, Ino ino, unsigned command,
                              std::span<const std::byte> in, size_t out_bytes);
  struct statvfs StatFs();

 private:
  struct Conversation;

  static Ino NamespaceIno(meta::NamespaceId id, NamespaceEntry entry);
  std::optional<Namespace> NamespaceOf(Ino ino, NamespaceEntry* entry) const;
  EntryReply NamespaceDirectory(const Namespace& space, NamespaceEntry entry) const;
  EntryReply ControlEntry(Ino ino) const;
  EntryReply BlockEntry(const BlockView& block, const Namespace& space) const;
  EntryReply ChainEntry(const BlockView& tip, const Namespace& space) const;
  EntryReply GhostEntry(Ino ino) const;
  // The block or chain behind an inode, without counting as a use.
  std::optional<BlockView> BlockOf(Ino ino) const;

  FsResult<EntryReply> LookupInNamespace(const Namespace& space, const std::string& name);
  FsResult<EntryReply> LookupInChain(const Namespace& space, const BlockKey* tip,
                                     const std::string& name);
  FsStatus ReadNamespace(const Namespace& space, uint64_t cookie, DirSink& sink);
  std::optional<Namespace> FindNamespace(const std::string& name);
  FsStatus UpdateNamespace(const Namespace& changed);
  // A block that has an inode and is not known here: in a cluster it may be there all the same, and
  // the kernel looks its name up again.
  int Unknown() const { return parts_.spaces != nullptr ? ESTALE : ENOENT; }
  FsStatus SetNamespaceAttr(Namespace space, const struct stat& attr, int to_set);
  FsStatus SetNamespaceXattr(Namespace space, const std::string& name, const std::string& value);

  FsResult<OpenReply> OpenConversation(meta::NamespaceId ns);
  std::shared_ptr<const std::string> TextOf(Ino ino) const;  // null: no virtual file
  FsResult<size_t> Ask(Conversation& conversation, std::span<const std::byte> text);
  std::string Answer(Conversation& conversation);

  const FilesystemOptions options_;
  const FilesystemParts parts_;
  const std::vector<VirtualFile> virtual_files_;

  Mutex mutex_;
  // Not one that a daemon before this one gave out: the kernel still has those.
  uint64_t next_handle_ KVC_GUARDED_BY(mutex_);
  std::map<uint64_t, std::shared_ptr<Conversation>> conversations_ KVC_GUARDED_BY(mutex_);
  std::map<uint64_t, std::shared_ptr<const std::string>> texts_ KVC_GUARDED_BY(mutex_);
};

// "%08u-<key>" of a chain directory.
std::string ChainEntryName(uint32_t ordinal, const BlockKey& key);
bool ParseChainEntryName(const std::string& name, uint32_t* ordinal, BlockKey* key);

}  // namespace kvcfs::fs
