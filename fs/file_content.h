// The bytes of one ordinary file, wherever they are: a slot, an entry of the segments, a disk file.
//
// A slot is made at the first write and holds the newest version. While somebody writes, its record
// says so (kSlotWriting), and a crash takes the file back to its stable version. Publish() ends
// that: the slot is then what survives a kill, and is queued to be copied to the segments.
// Without room in the DRAM tier, or longer than disk_file_bytes_min, the bytes move to a file of
// the data disk, also in the middle of being written, if no reader has passthrough.
// Threads: any, under the node's locks as each method says.
// Fails: errno; ENOSPC leaves the old bytes and length.
#pragma once

#include <atomic>
#include <memory>
#include <span>
#include <string>

#include "fs/file_queues.h"
#include "fs/file_tree.h"
#include "fs/inode_table.h"
#include "fs/slot_books.h"

namespace kvcfs::fs {

// Bits of SlotRecord.mode for ordinary files.
inline constexpr uint32_t kModePassthrough = 1;  // how it is open now; the kernel allows one kind
inline constexpr uint32_t kModeEmpty = 2;        // open state of a file without bytes
inline constexpr uint32_t kModeDisk = 4;         // open state of a file of the data disk
inline constexpr uint32_t kModeMapped = 8;       // a writer could map the slot itself
inline constexpr uint32_t kModeIdle = 16;        // listed among the idle backing ids
inline constexpr uint32_t kModeUsedAgain = 32;   // opened since it was listed
inline constexpr uint32_t kModeDirect = 64;      // without the kernel's page cache

class FileContent {
 public:
  FileContent(const FileTreeOptions& options, const FileTreeParts& parts, NameStore& names,
              InodeTable& table, FileQueues& queues, SlotOwner* owner)
      : options_(options),
        parts_(parts),
        names_(names),
        table_(table),
        queues_(queues),
        owner_(owner) {}

  enum class Where {
    kNothing,  // no bytes, not open
    kCold,     // in the segments only
    kSlot,
    kDisk,
    kOpenEmpty,  // no bytes, open
    kLost,       // was in DRAM only, and is not there
  };
  Where WhereIs(const FileNode& node) const KVC_REQUIRES(node.attr);
  iouring::SlotRecord& Slot(const FileNode& node) const { return parts_.slots->record(node.slot); }
  bool IsOpen(const FileNode& node) const KVC_REQUIRES(node.attr);

  // ---- under node.content, exclusively
  // Brings a cold file into a slot. kCorrupt: its bytes are lost.
  Status Load(FileNode& node);
  // A record for the open state, where there is no slot.
  FsStatus EnsureOpenRecord(FileNode& node);
  // An empty file of the data disk, for one that has no bytes.
  FsStatus MakeDiskFile(FileNode& node);
  FsResult<size_t> Write(FileNode& node, uint64_t offset, std::span<const std::byte> from);
  FsStatus Resize(FileNode& node, uint64_t size);
  FsStatus Allocate(FileNode& node, int mode, uint64_t offset, uint64_t length);
  // Copies a slot to the data disk and goes on there. Not while it is open for passthrough.
  FsStatus MoveToDisk(FileNode& node);
  // The last one has closed it: gives back what only an open file needs.
  void Settle(FileNode& node);
  // The file is removed: gives all of it back.
  void Discard(FileNode& node);

  // ---- under node.content, shared
  FsResult<size_t> Read(FileNode& node, uint64_t offset, std::span<std::byte> into);
  FsResult<uint64_t> Seek(FileNode& node, uint64_t offset, int whence);

  // ---- under node.attr
  // What has been written so far is a version of its own from now on.
  void Publish(FileNode& node) KVC_REQUIRES(node.attr);
  // The published version has no bytes.
  void PublishEmpty(FileNode& node) KVC_REQUIRES(node.attr);
  // What it was; to be retired when the record is written.
  RetiredPlace ReplaceStable(InodeRecord& record, const StableVersion& now);
  void MarkDirty(FileNode& node) KVC_REQUIRES(node.attr);
  FsStatus Persist(FileNode& node) KVC_REQUIRES(node.attr);
  void QueueCopy(FileNode& node, Millis delay) KVC_REQUIRES(node.attr);
  // Bytes are about to change: unless it is so already, a new version begins.
  void BeginChange(FileNode& node) KVC_REQUIRES(node.attr);
  // Descriptor of the bytes, opened if need be.
  FsResult<std::shared_ptr<const Fd>> File(FileNode& node) KVC_REQUIRES(node.attr);
  // Passthrough writers of a disk file go past us: its own size and mtime count.
  void RefreshFromDisk(FileNode& node) KVC_REQUIRES(node.attr);
  void CloseBacking(FileNode& node) KVC_REQUIRES(node.attr);

  // True if it was evicted: closed, unmapped, clean.
  bool TryEvict(iouring::SlotId slot);
  // The file of a slot (of either state) whose changes are published and in no durable place, or 0.
  // Not under node.attr.
  Ino WaitsForCopy(iouring::SlotId slot);
  // The meta of the entry that holds a version of a file of that tree. Not under node.attr.
  iouring::EntryMeta EntryOf(Ino ino, Ino root, const StableVersion& version);
  // Nobody has the slot's file open or mapped.
  bool IsUnused(iouring::SlotId slot) const;
  void FreeSlot(iouring::SlotId slot);

  std::string DiskPath(Ino ino) const;
  std::atomic<int64_t> disk_files{0};
  SlotBooks books;
  Result<Fd> OpenDiskFile(Ino ino, int flags) const;

 private:
  bool TooLargeForSlot(const FileNode& node, uint64_t bytes) const KVC_REQUIRES(node.attr);
  // Somewhere to write `end` bytes to.
  FsStatus MakePlace(FileNode& node, uint64_t end);
  FsStatus Reserve(FileNode& node, uint64_t bytes);
  Status LoadToDisk(FileNode& node, const StableVersion& stable);
  Status ReadEntry(FileNode& node, const StableVersion& stable, std::span<std::byte> into);
  void EndChange(FileNode& node, uint64_t size) KVC_REQUIRES(node.attr);
  // The open state moves on to another slot or record.
  void SwitchSlot(FileNode& node, iouring::SlotId to, iouring::SlotState state, uint32_t mode,
                  std::shared_ptr<const Fd> file) KVC_REQUIRES(node.attr);
  void DropSlot(FileNode& node) KVC_REQUIRES(node.attr);

  const FileTreeOptions& options_;
  const FileTreeParts& parts_;
  NameStore& names_;
  InodeTable& table_;
  FileQueues& queues_;
  SlotOwner* owner_;
};

}  // namespace kvcfs::fs
