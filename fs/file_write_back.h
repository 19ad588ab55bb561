// Makes ordinary files durable: copies of slots to the segments, records to the MetaStore.
//
// One thread works off the queues a while after a file is published, and gives retired places back
// once the MetaStore says durably that nobody refers to them. Fsync() does the same for one file at
// once. A copy is taken while no writer is in the file, and its CRC is over the copy.
// Threads: any. Callbacks of the SegmentStore run on its thread and take node.attr only.
// Fails: ENOSPC, EIO of the NVMe tier; the file then stays dirty in DRAM and is tried again.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <thread>

#include "fs/file_content.h"

namespace kvcfs::fs {

class FileWriteBack {
 public:
  FileWriteBack(const FileTreeOptions& options, const FileTreeParts& parts, NameStore& names,
                InodeTable& table, FileQueues& queues, FileContent& content)
      : options_(options),
        parts_(parts),
        names_(names),
        table_(table),
        queues_(queues),
        content_(content) {}
  ~FileWriteBack() { Stop(); }

  // `lost`: what to do about a file whose bytes are gone.
  void Start(std::function<void(Ino)> lost);
  // Ends the thread and waits for copies that are on their way.
  void Stop();

  // The file's bytes and record are durable. `too_often`: rather move it to the data disk.
  FsStatus Fsync(FileNode& node, const NodeRef& ref, bool too_often);
  // One published file now, without waiting for it to be durable.
  void CopyNow(const NodeRef& node);
  // The same, by the thread, as room is wanted; not at once again where there is none on NVMe.
  void CopySoon(Ino ino);
  // Everything that is published; durable when it returns.
  Status All();
  // Places that were retired are given back now, not in a while.
  void GiveBackRetired();

 private:
  struct Copy;
  // Under the node's content lock, or with a fill that looks again.
  Status StartCopy(const NodeRef& node, const std::shared_ptr<Copy>& copy, bool durable);
  void Finish(Copy& copy, Result<iouring::SegmentPlace> place, uint64_t length);
  FsStatus FsyncSlot(const NodeRef& node);
  FsStatus PersistDiskFile(const NodeRef& node);
  void WorkOff(FileQueues::Work& work);
  void PersistRecords(const std::vector<Ino>& inos);
  void GiveBack(const std::vector<RetiredPlace>& retired);
  void Run();

  const FileTreeOptions& options_;
  const FileTreeParts& parts_;
  NameStore& names_;
  InodeTable& table_;
  FileQueues& queues_;
  FileContent& content_;
  std::function<void(Ino)> lost_;
  std::thread thread_;
  // Entries up to this sequence are durable.
  std::atomic<uint64_t> durable_sequence_{0};
  std::atomic<bool> no_room_{false};          // the last copy found none on NVMe ...
  std::atomic<int64_t> no_room_until_ms_{0};  // ... and until then nobody need ask
  Mutex mutex_;
  std::condition_variable copied_;
  uint64_t in_flight_ KVC_GUARDED_BY(mutex_) = 0;
};

}  // namespace kvcfs::fs
