// The FileTree that keeps content in tiers: all calls, put together from their parts.
//
// NameStore (records), InodeTable (nodes in memory), FileContent (bytes), FileWriteBack (behind the
// calls). file_names.cc: calls on names; file_open.cc: open files; file_attributes.cc: stat,
// xattrs; file_eviction.cc: tiers; file_recovery.cc: after a start; file_mirror.cc: in a cluster.
// Lock order: node.content, names_, node.attr, locks of the parts. Several node.attr at once only
//   under names_. No I/O on content under names_.
#pragma once

#include <atomic>
#include <deque>
#include <memory>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "fs/file_content.h"
#include "fs/file_mirror.h"
#include "fs/file_queues.h"
#include "fs/file_tree.h"
#include "fs/file_write_back.h"
#include "fs/inode_table.h"
#include "fs/name_store.h"
#include "fs/record_changes.h"
#include "meta/lease_table.h"

namespace kvcfs::fs {

// The inode with this number of the NameStore.
Ino FileInoOf(uint64_t number);
// Some xattrs also steer us. 0, or what is wrong with the value; null: it is removed.
int ApplyXattrToFlags(InodeRecord& record, const std::string& name, const std::string* value);

class TieredFileTree final : public FileTree, public FileMirror {
 public:
  TieredFileTree(const FileTreeOptions& options, const FileTreeParts& parts);
  ~TieredFileTree() override;
  Status Recover();

  bool TryEvict(iouring::SlotId slot) override { return content_.TryEvict(slot); }
  void WriteBackSoon(iouring::SlotId slot) override;
  iouring::Fate Judge(const iouring::EntryMeta& meta, const iouring::SegmentPlace& place) override;
  void Moved(const iouring::EntryMeta& meta, const iouring::SegmentPlace& before,
             const iouring::SegmentPlace& now) override;
  void Lost(const iouring::EntryMeta& meta, const iouring::SegmentPlace& place) override;
  uint64_t Shed(uint64_t bytes, std::chrono::seconds younger_than) override;

  FsResult<Ino> MakeRoot(uid_t uid, gid_t gid, mode_t mode,
                         const iouring::Uuid& namespace_uuid) override;
  bool RootIsEmpty(Ino root) override;
  FsStatus RemoveRoot(Ino root) override;
  FsStatus ClearRoot(Ino root) override;

  FsResult<EntryReply> Lookup(const Caller& caller, Ino parent, const std::string& name) override;
  void Forget(Ino ino, uint64_t lookups) override;
  FsResult<AttrReply> GetAttr(Ino ino) override;
  FsResult<AttrReply> SetAttr(const Caller& caller, Ino ino, const struct stat& attr, int to_set,
                              uint64_t handle) override;
  FsResult<std::string> ReadLink(Ino ino) override;
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
                        std::span<std::byte> into) override;
  FsResult<size_t> Write(Ino ino, uint64_t handle, uint64_t offset, std::span<const std::byte> from,
                         bool kill_suid) override;
  FsStatus Flush(const Caller& caller, Ino ino, uint64_t handle) override;
  FsStatus Release(Ino ino, uint64_t handle) override;
  FsStatus Fsync(Ino ino, uint64_t handle, bool data_only) override;
  FsStatus FsyncDirectory(Ino ino) override;
  FsStatus Allocate(Ino ino, uint64_t handle, int mode, uint64_t offset, uint64_t length) override;
  FsResult<uint64_t> Seek(Ino ino, uint64_t handle, uint64_t offset, int whence) override;
  FsResult<size_t> CopyRange(Ino from, uint64_t from_offset, Ino to, uint64_t to_offset,
                             size_t length) override;

  FsStatus ReadDirectory(Ino ino, uint64_t cookie, DirSink& sink) override;

  FsStatus SetXattr(const Caller& caller, Ino ino, const std::string& name,
                    const std::string& value, int flags) override;
  FsResult<std::string> GetXattr(Ino ino, const std::string& name) override;
  FsResult<std::vector<std::string>> ListXattrs(Ino ino) override;
  FsStatus RemoveXattr(const Caller& caller, Ino ino, const std::string& name) override;

  Status WriteBackAll() override { return write_back_.All(); }
  FileTreeStats Stats() override;

  // ---- FileMirror (file_mirror.cc)
  FsResult<LocalFile> Describe(Ino ino) override;
  FsResult<std::optional<LocalFile>> Find(Ino parent, const std::string& name) override;
  FsResult<Ino> Mirror(Ino parent, const std::string& name, const meta::SharedFile& file) override;
  void Update(Ino root, const meta::SharedFile& file) override;
  void Forget(Ino parent, const std::string& name) override;
  void ForgetShared(Ino directory) override;
  FsStatus Fill(Ino ino, const meta::FileId& content_id, size_t piece_bytes,
                const ReadPiece& read) override;
  FsResult<uint64_t> Seal(Ino ino) override;
  FsResult<size_t> ReadHere(Ino ino, uint64_t offset, std::span<std::byte> into) override;
  FsStatus SetPublished(Ino ino, const meta::SharedFile& file, uint64_t changes) override;
  FsStatus Detach(Ino ino) override;
  FsResult<EntryReply> EntryOf(Ino ino) override;
  void CountLookup(Ino ino) override;
  FsStatus ListLocal(Ino directory, uint64_t cookie, const VisitName& visit) override;
  std::vector<Ino> Unpublished() override;

 private:
  using Where = FileContent::Where;

  int64_t NowNanos() const { return parts_.clock->WallNanos(); }
  void Use(FileNode& node) const { node.last_use_ms = parts_.clock->Monotonic().count(); }
  // ESTALE if there is none: the kernel then looks its path up again.
  FsResult<NodeRef> Node(Ino ino);
  // ENOTDIR, and ENOENT if it has been removed.
  FsResult<NodeRef> Directory(Ino ino) KVC_REQUIRES(names_);
  struct stat StatOf(FileNode& node) KVC_REQUIRES(node.attr);
  EntryReply Reply(FileNode& node) KVC_REQUIRES(node.attr);
  EntryReply ReplyCounted(FileNode& node);  // and the kernel holds one lookup more
  // The entry and its node; a null node: there is no such name (or it leads nowhere).
  struct Named {
    std::optional<Dentry> entry;
    NodeRef node;
  };
  FsResult<Named> FindNamed(Ino directory, const std::string& name) KVC_REQUIRES(names_);

  // A new inode under a new name, in one batch. EEXIST.
  struct NewInode {
    uint32_t mode = 0;
    dev_t device = 0;
    std::string target{};
    bool unpublished = false;
  };
  FsResult<NodeRef> MakeInode(const Caller& caller, Ino parent, const std::string& name,
                              const NewInode& what) KVC_REQUIRES(names_);
  FsResult<EntryReply> Make(const Caller& caller, Ino parent, const std::string& name,
                            const NewInode& what);
  // The inode that this very request, sent once more, has made.
  std::optional<EntryReply> MadeBefore(const Caller& caller);
  bool DoneBefore(const Caller& caller);
  void TouchDirectory(FileNode& directory, int64_t now);
  // One name less, into `changes`. True if the inode goes with it; its content is then to be
  // discarded when names_ is released.
  bool DropName(RecordChanges& changes, const NodeRef& node, Ino parent, const std::string& name,
                int64_t now) KVC_REQUIRES(names_);
  void MarkGone(FileNode& node) KVC_REQUIRES(node.attr);
  void DiscardContent(const NodeRef& node);
  FsStatus RenameExchange(const Caller& caller, const NodeRef& from_dir, const std::string& name,
                          const Named& from, const NodeRef& to_dir, const std::string& new_name,
                          const Named& to) KVC_REQUIRES(names_);
  FsResult<bool> IsBelow(Ino directory, Ino top) KVC_REQUIRES(names_);
  FsStatus ClearDirectory(Ino directory);

  // The inode here of a file of the cluster, or null.
  NodeRef SharedNode(Ino root, const meta::FileId& id) KVC_REQUIRES(names_);
  FsResult<NodeRef> MakeMirrored(const NodeRef& directory, const std::string& name,
                                 const meta::SharedFile& file) KVC_REQUIRES(names_);
  FsStatus NameMirrored(const NodeRef& directory, const std::string& name, const NodeRef& node,
                        bool instead) KVC_REQUIRES(names_);
  void PutXattrs(meta::MetaBatch& batch, Ino ino, InodeRecord& record,
                 const meta::SharedFile& file);
  // False: it is open, and its bytes are of another version.
  bool TakeAttributes(const NodeRef& node, const meta::SharedFile& file);
  void Unname(const NodeRef& node);
  std::string PathOf(Ino ino);  // for logs

  // Removes an inode under all its names. False if it is in use. Content goes too.
  enum class Why { kDamaged, kEvicted, kUnfinished };
  bool RemoveEverywhere(const NodeRef& node, Why why);
  bool IsLeased(const FileNode& node) const;
  // Somebody looked at it (or has written it: for a while the kernel itself answers who looks). It
  // is not evicted for a while, as far as leases may go.
  enum class Look { kFound, kWritten };
  void Lease(FileNode& node, Look look) KVC_REQUIRES(node.attr);

  FsResult<OpenReply> OpenNode(const Caller& caller, const NodeRef& node, int flags);
  std::optional<OpenReply> OpenResident(const Caller& caller, FileNode& node, int flags)
      KVC_REQUIRES(node.attr);
  OpenReply CountOpen(const Caller& caller, FileNode& node, int flags) KVC_REQUIRES(node.attr);
  uint64_t NewHandle(uint64_t bits) { return bits | (next_handle_.fetch_add(1) << 8); }
  void KeepIdleBacking(FileNode& node) KVC_REQUIRES(node.attr);
  void CloseIdleBackings();
  void RemoveOrphan(const NodeRef& node);  // it was closed
  void KillSuid(FileNode& node) KVC_REQUIRES(node.attr);
  void DropLost(Ino ino);

  struct Recovery {
    std::unordered_map<Ino, std::vector<iouring::SlotId>> slots;  // found, not yet claimed
    std::unordered_map<Ino, std::pair<iouring::EntryMeta, iouring::SegmentPlace>> entries;
    std::unordered_set<Ino> on_disk;
    std::vector<Ino> dirty;
    meta::MetaBatch batch;
    size_t batched = 0;
    uint64_t reverted = 0, removed = 0;
  };
  iouring::SlotId ChooseSlot(Ino ino, Recovery& recovery);
  void TakeOver(Ino ino, InodeRecord& record, iouring::SlotId id, Recovery& recovery);
  static bool Revert(InodeRecord& record, Recovery& recovery);
  bool RecoverFile(Ino ino, InodeRecord& record, iouring::SlotId id, Recovery& recovery);
  void RecoverInode(Ino ino, InodeRecord record, Recovery& recovery);
  void RemoveRecord(Ino ino, const InodeRecord& record, Recovery& recovery);
  void WriteSome(Recovery& recovery);
  void RecoverDiskDirectory(const Recovery& recovery);

  const FileTreeOptions options_;
  const FileTreeParts parts_;
  NameStore store_;
  InodeTable table_;
  FileQueues queues_;
  FileContent content_;
  FileWriteBack write_back_;

  Mutex names_;
  std::atomic<uint64_t> next_handle_;
  std::atomic<int64_t> files_{0}, directories_{0};
  std::atomic<uint64_t> evicted_files_{0}, damaged_files_{0};

  // Backing ids that are kept for a while after the last close, oldest first.
  Mutex idle_mutex_;
  std::deque<Ino> idle_backings_ KVC_GUARDED_BY(idle_mutex_);
  // Removed inodes that the kernel still knows, oldest first.
  std::deque<Ino> gone_ KVC_GUARDED_BY(idle_mutex_);
  Mutex lease_mutex_;
  meta::LeaseTable leases_ KVC_GUARDED_BY(lease_mutex_);  // by inode number
  // Where the next Shed goes on.
  Mutex shed_mutex_;
  Ino shed_hand_ KVC_GUARDED_BY(shed_mutex_) = 0;
  // When a whole round found nothing, and nothing older than what: not again at once.
  Millis shed_failed_at_ KVC_GUARDED_BY(shed_mutex_){-1};
  std::chrono::seconds shed_failed_age_ KVC_GUARDED_BY(shed_mutex_){0};
};

}  // namespace kvcfs::fs
