// Names, inodes and xattrs of ordinary trees as records of the MetaStore. No cache, no rules.
//
// Reading answers at once; changes go into the caller's batch, so that one call is one batch.
// Threads: any; NextNumber takes a short lock.
// Fails: errno of the device (EIO, ENOSPC). Records that do not decode count as absent and are
//   logged.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/mutex.h"
#include "fs/file_record.h"
#include "meta/meta_store.h"

namespace kvcfs::fs {

class NameStore {
 public:
  explicit NameStore(meta::MetaStore& meta) : meta_(meta) {}

  // Takes up the counter of numbers; `highest` inode number is in use. Not resumed: requests of an
  // earlier connection are forgotten.
  Status Open(bool resumed, Ino highest);
  // For inodes and cookies: unique in this store for ever, also after a crash.
  FsResult<uint64_t> NextNumber();

  FsResult<std::optional<InodeRecord>> GetInode(Ino ino);
  void PutInode(meta::MetaBatch& batch, Ino ino, const InodeRecord& record);
  // The inode, its xattrs and link records.
  void DeleteInode(meta::MetaBatch& batch, Ino ino, const InodeRecord& record);

  FsResult<std::optional<Dentry>> Find(Ino directory, std::string_view name);
  void AddEntry(meta::MetaBatch& batch, Ino directory, std::string_view name, Ino ino,
                uint32_t mode, uint64_t cookie);
  void RemoveEntry(meta::MetaBatch& batch, Ino directory, std::string_view name, uint64_t cookie);
  FsResult<bool> IsEmpty(Ino directory);
  // Entries behind `cookie`, in the order of cookies, until `visit` says false.
  using Visit = std::function<bool(const ListedEntry& entry, uint64_t cookie)>;
  FsStatus List(Ino directory, uint64_t cookie, const Visit& visit);

  void AddLink(meta::MetaBatch& batch, Ino ino, Ino directory, std::string_view name);
  void RemoveLink(meta::MetaBatch& batch, Ino ino, Ino directory, std::string_view name);
  struct LinkName {
    Ino directory = 0;
    std::string name;
  };
  // All names of an inode, from its record or its link records.
  std::vector<LinkName> LinksOf(Ino ino, const InodeRecord& record);

  // Which inode here is a file of the cluster.
  FsResult<std::optional<Ino>> FindShared(Ino root, const meta::FileId& file);
  void PutShared(meta::MetaBatch& batch, Ino root, const meta::FileId& file, Ino ino);
  void DeleteShared(meta::MetaBatch& batch, const InodeRecord& record);

  void ClearXattrs(meta::MetaBatch& batch, Ino ino, const InodeRecord& record);
  FsResult<std::optional<std::string>> GetXattr(Ino ino, std::string_view name);
  FsResult<std::vector<std::string>> ListXattrs(Ino ino);

  // What a request did, in the batch that did it; asked when the kernel sends a request again.
  void Remember(meta::MetaBatch& batch, uint64_t unique, Ino ino);
  std::optional<Ino> Recall(uint64_t unique);

  FsStatus Write(meta::MetaBatch& batch);
  FsStatus Sync();

  // Every inode at or behind `from`, until `visit` says false; damaged ones are named and skipped.
  void ForEachInode(Ino from, const std::function<bool(Ino, const InodeRecord&)>& visit);

 private:
  meta::MetaStore& meta_;
  Mutex mutex_;
  uint64_t next_number_ KVC_GUARDED_BY(mutex_) = 0;
  uint64_t numbers_end_ KVC_GUARDED_BY(mutex_) = 0;  // reserved up to here
};

}  // namespace kvcfs::fs
