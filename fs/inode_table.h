// The inodes of ordinary trees that are in memory: everything in use now, and what was lately.
//
// A node is the one place where its record is changed. Nodes come from the NameStore when asked
// for, and go again, coldest first, when there are many and nobody refers to them.
// Threads: any. Lock order (of all of FileTree): node.content, names, node.attr, then the locks of
//   this table. Loading holds a lock of its shard, so that there is never a second node of an
//   inode.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <shared_mutex>
#include <unordered_map>

#include "base/fd.h"
#include "base/mutex.h"
#include "fs/about_to_block.h"
#include "fs/name_store.h"
#include "iouring/slot_tier.h"

namespace kvcfs::fs {

struct FileNode {
  explicit FileNode(Ino number) : ino(number) {}

  const Ino ino;
  // Held exclusively while bytes change or move, shared while they are read or copied. May be held
  // for the length of an I/O.
  std::shared_mutex content;
  std::atomic<uint32_t> content_users{0};  // who has or wants `content`: no eviction meanwhile
  std::atomic<int64_t> last_use_ms{0};     // monotonic; lookup, stat and open count
  std::atomic<int64_t> lease_until_ms{0};  // of the lease that looking at it gave

  // Short: never held over an I/O on content. Records are written to the MetaStore under it, so
  // that the newest is written last.
  Mutex attr;
  InodeRecord record KVC_GUARDED_BY(attr);
  bool attr_dirty KVC_GUARDED_BY(attr) = false;  // newer than the MetaStore's
  bool gone KVC_GUARDED_BY(attr) = false;        // removed; kept while the kernel may still ask
  int64_t lookups KVC_GUARDED_BY(attr) = 0;      // a hint: starts at 0 when a node is loaded

  // The slot with the bytes (state kFile), or with the open state alone (kDiskFile), or 0. Changes
  // under both locks. Its record is guarded by `attr`.
  iouring::SlotId slot = 0;
  std::shared_ptr<const Fd> file KVC_GUARDED_BY(attr);  // of the bytes, while somebody needs it
  uint64_t changes KVC_GUARDED_BY(attr) = 0;  // of the content, to tell whether a copy is current
  bool writing_now KVC_GUARDED_BY(attr) = false;  // in the middle of one write
  bool queued KVC_GUARDED_BY(attr) = false;       // for write-back
  bool in_flight KVC_GUARDED_BY(attr) = false;    // a copy is on its way to the segments
  bool pages_valid KVC_GUARDED_BY(attr) = false;  // what the kernel may have cached is right
  bool doomed KVC_GUARDED_BY(attr) = false;       // unpublished, and cut short by ENOSPC
  uint32_t fsyncs KVC_GUARDED_BY(attr) = 0;       // since it was opened first
};
using NodeRef = std::shared_ptr<FileNode>;

// Holds node.content.
// Who has it may hold it for the length of an I/O.
class ContentLock {
 public:
  explicit ContentLock(FileNode& node) : node_(node) {
    ++node_.content_users;
    if (node_.content.try_lock()) return;
    AboutToBlock();
    node_.content.lock();
  }
  ~ContentLock() {
    node_.content.unlock();
    --node_.content_users;
  }
  ContentLock(const ContentLock&) = delete;
  ContentLock& operator=(const ContentLock&) = delete;

 private:
  FileNode& node_;
};

class SharedContentLock {
 public:
  explicit SharedContentLock(FileNode& node) : node_(node) {
    ++node_.content_users;
    if (node_.content.try_lock_shared()) return;
    AboutToBlock();
    node_.content.lock_shared();
  }
  ~SharedContentLock() {
    node_.content.unlock_shared();
    --node_.content_users;
  }
  SharedContentLock(const SharedContentLock&) = delete;
  SharedContentLock& operator=(const SharedContentLock&) = delete;

 private:
  FileNode& node_;
};

class InodeTable {
 public:
  InodeTable(NameStore& names, size_t nodes_max) : names_(names), nodes_max_(nodes_max) {}

  // Null in a good result: there is no such inode.
  FsResult<NodeRef> Find(Ino ino);
  NodeRef Peek(Ino ino);  // only if it is in memory
  void Insert(const NodeRef& node);
  void Remove(Ino ino);  // a gone node that nobody will ask for

  // Which slot belongs to an inode, in memory or not. Under node.attr where there is a node.
  void SetSlot(Ino ino, iouring::SlotId slot);
  iouring::SlotId SlotOf(Ino ino);

  // Runs `with` on the node if it is in memory, else with null, and then nobody loads it meanwhile.
  template <typename F>
  auto WithoutLoading(Ino ino, F&& with) {
    Shard& shard = ShardOf(ino);
    MutexLock loading(shard.loading);
    return with(Peek(ino));
  }

  // Every node in memory, shard by shard.
  void ForEach(const std::function<void(const NodeRef&)>& visit);
  size_t size() const { return size_.load(); }

 private:
  struct Place {
    NodeRef node;
    std::list<Ino>::iterator position;
  };
  struct Shard {
    Mutex loading;
    Mutex mutex;
    std::unordered_map<Ino, Place> nodes KVC_GUARDED_BY(mutex);
    std::list<Ino> order KVC_GUARDED_BY(mutex);  // coldest first
    std::unordered_map<Ino, iouring::SlotId> slots KVC_GUARDED_BY(mutex);
  };
  static constexpr size_t kShards = 32;

  Shard& ShardOf(Ino ino) { return shards_[ino % kShards]; }
  void Shrink(Shard& shard) KVC_REQUIRES(shard.mutex);

  NameStore& names_;
  const size_t nodes_max_;
  std::atomic<size_t> size_{0};
  std::array<Shard, kShards> shards_;
};

}  // namespace kvcfs::fs
