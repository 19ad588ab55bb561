// The ordinary trees of a host in a cluster: a working copy of what all hosts have.
//
// Names belong to one node of the cluster (meta/CLUSTER.md#names), which is asked at each lookup,
// listing and change. A regular file that is made here is of this host alone until the last writer
// has closed it, or until it is renamed or linked: then its bytes go to the cluster as blocks, each
// version under keys of its own, and the owner is told. Bytes of others are fetched as a whole when
// they are opened; who has a version open goes on with it. What is closed while the cluster is away
// is published when it is back.
// Threads: any, and `files-publish`. Lock order: a file's publication, names (in the order of their
//   places), then those of the local tree. Names are held while their owner is asked.
// Fails: as FileTree; EHOSTUNREACH and ETIMEDOUT where the owner does not answer (names that are
//   known here are answered then); ENOENT at open where nobody has the bytes any more.
// Source: DESIGN 10.7, fs/SEMANTICS.md.
#pragma once

#include <array>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "fs/file_mirror.h"
#include "fs/file_tree.h"
#include "fs/namespace_table.h"
#include "meta/cluster.h"

namespace kvcfs::fs {

class ClusterFileTree final : public FileTree {
 public:
  struct Parts {
    meta::Cluster* cluster = nullptr;
    NamespaceTable* namespaces = nullptr;
    const Clock* clock = nullptr;
  };
  // `tree`: as FileTree::Open made it, without timeouts of entries and attributes.
  ClusterFileTree(std::unique_ptr<FileTree> tree, const Parts& parts);
  ~ClusterFileTree() override { Stop(); }
  // Publishes what is left of an earlier run, and from then on by itself.
  void Start();
  // Before the cluster is left.
  void Stop();

  bool TryEvict(iouring::SlotId slot) override { return tree_->TryEvict(slot); }
  void WriteBackSoon(iouring::SlotId slot) override { tree_->WriteBackSoon(slot); }
  iouring::Fate Judge(const iouring::EntryMeta& meta, const iouring::SegmentPlace& place) override {
    return tree_->Judge(meta, place);
  }
  void Moved(const iouring::EntryMeta& meta, const iouring::SegmentPlace& before,
             const iouring::SegmentPlace& now) override {
    tree_->Moved(meta, before, now);
  }
  void Lost(const iouring::EntryMeta& meta, const iouring::SegmentPlace& place) override {
    tree_->Lost(meta, place);
  }
  uint64_t Shed(uint64_t bytes, std::chrono::seconds younger_than) override {
    return tree_->Shed(bytes, younger_than);
  }

  FsResult<Ino> MakeRoot(uid_t uid, gid_t gid, mode_t mode, const iouring::Uuid& uuid) override {
    return tree_->MakeRoot(uid, gid, mode, uuid);
  }
  bool RootIsEmpty(Ino root) override;
  FsStatus RemoveRoot(Ino root) override { return tree_->RemoveRoot(root); }
  FsStatus ClearRoot(Ino root) override;

  FsResult<EntryReply> Lookup(const Caller& caller, Ino parent, const std::string& name) override;
  void Forget(Ino ino, uint64_t lookups) override { tree_->Forget(ino, lookups); }
  FsResult<AttrReply> GetAttr(Ino ino) override { return tree_->GetAttr(ino); }
  FsResult<AttrReply> SetAttr(const Caller& caller, Ino ino, const struct stat& attr, int to_set,
                              uint64_t handle) override;
  FsResult<std::string> ReadLink(Ino ino) override { return tree_->ReadLink(ino); }
  FsResult<EntryReply> MakeNode(const Caller& caller, Ino parent, const std::string& name,
                                mode_t mode, dev_t device) override;
  FsResult<EntryReply> MakeDirectory(const Caller& caller, Ino parent, const std::string& name,
                                     mode_t mode) override;
  FsResult<EntryReply> MakeSymlink(const Caller& caller, Ino parent, const std::string& name,
                                   const std::string& target) override;
  FsResult<EntryReply> Link(const Caller& caller, Ino ino, Ino parent,
                            const std::string& name) override;
  FsStatus Unlink(const Caller& caller, Ino parent, const std::string& name) override;
  FsStatus RemoveDirectory(const Caller& caller, Ino parent, const std::string& name) override;
  FsStatus Rename(const Caller& caller, Ino parent, const std::string& name, Ino new_parent,
                  const std::string& new_name, unsigned flags) override;

  FsResult<OpenReply> Open(const Caller& caller, Ino ino, int flags) override;
  FsResult<OpenReply> Create(const Caller& caller, Ino parent, const std::string& name, mode_t mode,
                             int flags, EntryReply* entry) override;
  FsResult<size_t> Read(Ino ino, uint64_t handle, uint64_t offset,
                        std::span<std::byte> into) override {
    return tree_->Read(ino, handle, offset, into);
  }
  FsResult<size_t> Write(Ino ino, uint64_t handle, uint64_t offset, std::span<const std::byte> from,
                         bool kill_suid) override {
    return tree_->Write(ino, handle, offset, from, kill_suid);
  }
  FsStatus Flush(const Caller& caller, Ino ino, uint64_t handle) override {
    return tree_->Flush(caller, ino, handle);
  }
  FsStatus Release(Ino ino, uint64_t handle) override;
  FsStatus Fsync(Ino ino, uint64_t handle, bool data_only) override {
    return tree_->Fsync(ino, handle, data_only);
  }
  FsStatus FsyncDirectory(Ino ino) override;
  FsStatus Allocate(Ino ino, uint64_t handle, int mode, uint64_t offset, uint64_t length) override {
    return tree_->Allocate(ino, handle, mode, offset, length);
  }
  FsResult<uint64_t> Seek(Ino ino, uint64_t handle, uint64_t offset, int whence) override {
    return tree_->Seek(ino, handle, offset, whence);
  }
  FsResult<size_t> CopyRange(Ino from, uint64_t from_offset, Ino to, uint64_t to_offset,
                             size_t length) override {
    return tree_->CopyRange(from, from_offset, to, to_offset, length);
  }

  FsStatus ReadDirectory(Ino ino, uint64_t cookie, DirSink& sink) override;

  FsStatus SetXattr(const Caller& caller, Ino ino, const std::string& name,
                    const std::string& value, int flags) override;
  FsResult<std::string> GetXattr(Ino ino, const std::string& name) override {
    return tree_->GetXattr(ino, name);
  }
  FsResult<std::vector<std::string>> ListXattrs(Ino ino) override { return tree_->ListXattrs(ino); }
  FsStatus RemoveXattr(const Caller& caller, Ino ino, const std::string& name) override;

  Status WriteBackAll() override;
  FileTreeStats Stats() override { return tree_->Stats(); }

 private:
  static constexpr size_t kNamePlaces = 256, kFilePlaces = 64;
  class NamesLock;

  // A name under which this host published a file; while another host's has taken it, a rename of
  // it means this host's.
  struct OwnName {
    meta::FileId id;
    Millis until{0};
  };
  struct Dropped {
    Millis due{0};
    meta::SpaceId space;
    meta::SharedFile file;
    int tries = 0;
  };

  // ---- asking (cluster_file_tree.cc)
  struct Away {
    int error = 0;  // an errno: nobody answered as the owner
  };
  // What the owner says, or Away.
  tl::expected<meta::NameReply, Away> Ask(const meta::NameRequest& request);
  // Errors of both kinds as an errno.
  FsResult<meta::NameReply> AskOrFail(const meta::NameRequest& request);
  static meta::NameRequest RequestIn(const LocalFile& directory, meta::NameOp op,
                                     const std::string& name);
  std::mutex& NamePlace(Ino parent, const std::string& name);
  FsResult<EntryReply> Make(const Caller& caller, Ino parent, const std::string& name,
                            meta::SharedFile file);
  FsStatus Remove(const Caller& caller, Ino parent, const std::string& name, meta::NameOp op);
  FsStatus ChangeXattr(const Caller& caller, Ino ino, const std::string& name,
                       const std::string* value, int flags);
  FsStatus Clear(const LocalFile& root, const meta::FileId& directory);
  // Under the names' locks: at the owner and here; here alone.
  FsStatus RenameShared(const Caller& caller, const LocalFile& from_dir, const std::string& name,
                        const LocalFile& to_dir, const std::string& new_name, unsigned flags);
  FsStatus RenameHere(const Caller& caller, Ino parent, const std::string& name, Ino new_parent,
                      const std::string& new_name, unsigned flags);

  // ---- bytes (cluster_file_bytes.cc)
  struct Upload {
    meta::SharedFile file;  // id and content are new, or as they were
    uint64_t changes = 0;   // of the bytes that went there
  };
  // Where a file that is published first, or anew, gets its name.
  struct Target {
    const LocalFile* directory = nullptr;
    const std::string* name = nullptr;
    unsigned flags = 0;  // of meta::NameFlag
  };
  FsResult<Upload> SendBytes(const LocalFile& local);
  // The owner hears of a version; what it says is taken over here. Under the name's lock.
  FsStatus TellVersion(const LocalFile& local, const Upload& upload, const Target& target);
  enum class When { kClosed, kNow };
  // The whole of it, unless there is nothing to do (or it is being written). Under the file's lock.
  FsStatus Publish(Ino ino, When when);
  void PublishIfClosed(Ino ino);  // if that fails, later
  FsStatus Fetch(Ino ino);
  Status ReadExtent(const meta::SpaceId& space, const meta::FileId& content, uint64_t offset,
                    std::span<std::byte> into);
  BlockKey ExtentKey(const meta::SpaceId& space, const meta::FileId& content, uint64_t offset);
  void DropLater(const meta::SpaceId& space, const std::vector<meta::SharedFile>& removed,
                 Millis delay);
  void RunPublisher();
  // False: to be tried again.
  bool DropBytes(const Dropped& dropped);

  const std::unique_ptr<FileTree> tree_;
  FileMirror* const mirror_;
  const Parts parts_;
  std::array<std::mutex, kNamePlaces> names_;
  std::array<std::mutex, kFilePlaces> files_;
  std::atomic<int> silences_{0};  // in a row

  Mutex mutex_;
  std::condition_variable changed_;
  std::map<std::pair<Ino, std::string>, OwnName> own_names_ KVC_GUARDED_BY(mutex_);
  std::map<Ino, Millis> unpublished_ KVC_GUARDED_BY(mutex_);  // when to try again
  std::deque<Dropped> dropped_ KVC_GUARDED_BY(mutex_);
  bool stopping_ KVC_GUARDED_BY(mutex_) = false;
  std::thread publisher_;
};

}  // namespace kvcfs::fs
