// The ordinary trees: everything under files/ of each namespace.
//
// Names, inodes and xattrs are records of the MetaStore, changed in one batch a call. The content
// of a file is in one place: a slot of the DRAM tier (and, written back, one entry of the NVMe
// segments), or, for large, pinned (user.kvc.place=disk) and often-fsynced files, a plain file of
// the data disk, in place, without checksums.
// Threads: any; every call may block on I/O of its own file.
// Source: DESIGN 10.2, fs/SEMANTICS.md.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <sys/statvfs.h>

#include "base/clock.h"
#include "fs/fs_types.h"
#include "fs/resident_set.h"
#include "iouring/segment_store.h"
#include "iouring/slot_tier.h"
#include "meta/meta_store.h"

namespace kvcfs::fs {

// What SetAttr is to set: the values of libfuse's FUSE_SET_ATTR_*.
enum SetAttrBits : int {
  kSetMode = 1 << 0,
  kSetUid = 1 << 1,
  kSetGid = 1 << 2,
  kSetSize = 1 << 3,
  kSetAtime = 1 << 4,
  kSetMtime = 1 << 5,
  kSetAtimeNow = 1 << 7,
  kSetMtimeNow = 1 << 8,
  kSetKillSuid = 1 << 11,
};

struct FileTreeOptions {
  std::string disk_directory;        // for files that live on the data disk; made if absent
  uint64_t disk_file_bytes_min = 0;  // a file longer than this goes to the data disk (1/8 of DRAM)
  uint64_t evict_bytes_min = 64u << 10;  // smaller files are never evicted from NVMe
  uint32_t fsyncs_before_disk = 4;       // of one open: then it moves to the data disk
  std::chrono::milliseconds writeback_delay{500};
  double attr_timeout_s = 10;  // one host: nobody else changes these
  double entry_timeout_s = 10;
  std::chrono::milliseconds lease{30000};
  uint64_t lease_bytes_max = UINT64_MAX;  // of all files; beyond it looking at one promises nothing
  bool resumed = false;  // the kernel still has our files open: take counts and backing ids over
  // How long a write or an open waits for room in the DRAM tier before it goes to the data disk.
  std::chrono::milliseconds room_wait{2000};
  size_t nodes_max = 100'000;  // inodes kept in memory (400 B each), beyond those in use
};

struct FileTreeParts {
  meta::MetaStore* meta = nullptr;
  iouring::SlotTier* slots = nullptr;
  ResidentSet* resident = nullptr;
  iouring::SegmentStore* segments = nullptr;  // null: no NVMe tier; files then live in DRAM or disk
  BackingOpener* backing = nullptr;
  Notifier* notifier = nullptr;
  const Clock* clock = nullptr;
  // Entries of kind kFile that segment recovery found beyond what the meta store knows: a place
  // that an entry was moved to just before a crash.
  std::vector<std::pair<iouring::EntryMeta, iouring::SegmentPlace>> recovered;
};

struct FileTreeStats {
  uint64_t files = 0, directories = 0;
  uint64_t content_bytes = 0;  // in the tiers, each version once
  uint64_t dirty_bytes = 0;    // not on NVMe
  uint64_t evicted_files = 0, damaged_files = 0, disk_files = 0;
};

class FileTree : public SlotOwner {
 public:
  // Recovers: unpublished files of a crash go, orphans are freed, slots that survived are taken
  // over (slots of state kFile and kDiskFile belong to the tree; it frees those it does not know).
  static Result<std::unique_ptr<FileTree>> Open(const FileTreeOptions& options,
                                                const FileTreeParts& parts);
  ~FileTree() override = default;

  // The owner of the SegmentStore asks these for entries of kFile and kFileTombstone.
  virtual iouring::Fate Judge(const iouring::EntryMeta& meta,
                              const iouring::SegmentPlace& place) = 0;
  virtual void Moved(const iouring::EntryMeta& meta, const iouring::SegmentPlace& before,
                     const iouring::SegmentPlace& now) = 0;
  virtual void Lost(const iouring::EntryMeta& meta, const iouring::SegmentPlace& place) = 0;
  // Drops cold evictable files, about `bytes` in all; returns how many bytes went. Ages let the
  // caller weigh files against blocks: nothing used within `younger_than` goes.
  virtual uint64_t Shed(uint64_t bytes, std::chrono::seconds younger_than) = 0;

  // The root directory of one namespace's tree; made on mkdir of the namespace, kept in its record.
  virtual FsResult<Ino> MakeRoot(uid_t uid, gid_t gid, mode_t mode,
                                 const iouring::Uuid& namespace_uuid) = 0;
  virtual bool RootIsEmpty(Ino root) = 0;
  virtual FsStatus RemoveRoot(Ino root) = 0;  // ENOTEMPTY
  virtual FsStatus ClearRoot(Ino root) = 0;   // everything below goes (kvcfs drop MNT/NS)

  virtual FsResult<EntryReply> Lookup(const Caller& caller, Ino parent,
                                      const std::string& name) = 0;
  virtual void Forget(Ino ino, uint64_t lookups) = 0;
  virtual FsResult<AttrReply> GetAttr(Ino ino) = 0;
  // to_set: SetAttrBits; handle: of an open file, or 0.
  virtual FsResult<AttrReply> SetAttr(const Caller& caller, Ino ino, const struct stat& attr,
                                      int to_set, uint64_t handle) = 0;
  virtual FsResult<std::string> ReadLink(Ino ino) = 0;
  virtual FsResult<EntryReply> MakeNode(const Caller& caller, Ino parent, const std::string& name,
                                        mode_t mode, dev_t device) = 0;
  virtual FsResult<EntryReply> MakeDirectory(const Caller& caller, Ino parent,
                                             const std::string& name, mode_t mode) = 0;
  virtual FsResult<EntryReply> MakeSymlink(const Caller& caller, Ino parent,
                                           const std::string& name, const std::string& target) = 0;
  virtual FsResult<EntryReply> Link(const Caller& caller, Ino ino, Ino parent,
                                    const std::string& name) = 0;
  virtual FsStatus Unlink(const Caller& caller, Ino parent, const std::string& name) = 0;
  virtual FsStatus RemoveDirectory(const Caller& caller, Ino parent, const std::string& name) = 0;
  // flags: RENAME_NOREPLACE, RENAME_EXCHANGE.
  virtual FsStatus Rename(const Caller& caller, Ino parent, const std::string& name, Ino new_parent,
                          const std::string& new_name, unsigned flags) = 0;

  virtual FsResult<OpenReply> Open(const Caller& caller, Ino ino, int flags) = 0;
  virtual FsResult<OpenReply> Create(const Caller& caller, Ino parent, const std::string& name,
                                     mode_t mode, int flags, EntryReply* entry) = 0;
  // Bytes read; less than asked for only at the end of the file.
  virtual FsResult<size_t> Read(Ino ino, uint64_t handle, uint64_t offset,
                                std::span<std::byte> into) = 0;
  virtual FsResult<size_t> Write(Ino ino, uint64_t handle, uint64_t offset,
                                 std::span<const std::byte> from, bool kill_suid) = 0;
  virtual FsStatus Flush(const Caller& caller, Ino ino, uint64_t handle) = 0;
  virtual FsStatus Release(Ino ino, uint64_t handle) = 0;
  virtual FsStatus Fsync(Ino ino, uint64_t handle, bool data_only) = 0;
  virtual FsStatus FsyncDirectory(Ino ino) = 0;
  virtual FsStatus Allocate(Ino ino, uint64_t handle, int mode, uint64_t offset,
                            uint64_t length) = 0;
  virtual FsResult<uint64_t> Seek(Ino ino, uint64_t handle, uint64_t offset, int whence) = 0;
  virtual FsResult<size_t> CopyRange(Ino from, uint64_t from_offset, Ino to, uint64_t to_offset,
                                     size_t length) = 0;

  virtual FsStatus ReadDirectory(Ino ino, uint64_t cookie, DirSink& sink) = 0;

  virtual FsStatus SetXattr(const Caller& caller, Ino ino, const std::string& name,
                            const std::string& value, int flags) = 0;
  virtual FsResult<std::string> GetXattr(Ino ino, const std::string& name) = 0;
  virtual FsResult<std::vector<std::string>> ListXattrs(Ino ino) = 0;
  virtual FsStatus RemoveXattr(const Caller& caller, Ino ino, const std::string& name) = 0;

  // All that is dirty reaches NVMe (files) and the meta store; durable when it returns.
  virtual Status WriteBackAll() = 0;
  virtual FileTreeStats Stats() = 0;
};

}  // namespace kvcfs::fs
