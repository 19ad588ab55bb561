// Reads entries straight into the caller's pages, checksums verified while more is still coming.
//
// Threads: any, each with a queue of its own from a pool.   Memory: the caller's pages; one page
//   of header memory per queue.
// Fails: kStale the place was reused; kCorrupt header or CRC; kIo the device.
#pragma once

#include <atomic>
#include <memory>
#include <vector>

#include "base/mutex.h"
#include "iouring/block_device.h"
#include "iouring/segment_book.h"
#include "iouring/segment_format.h"

namespace kvcfs::iouring {

class SegmentReader {
 public:
  SegmentReader(BlockDevice& device, SegmentBook& book) : device_(device), book_(book) {}

  Status Read(const SegmentPlace& place, const EntryMeta& meta, std::span<std::byte> into);

  uint64_t read_bytes() const { return read_bytes_.load(); }
  uint64_t corrupt_entries() const { return corrupt_entries_.load(); }
  uint64_t io_errors() const { return io_errors_.load(); }

 private:
  // What one read needs beside the caller's memory.
  struct Desk {
    std::unique_ptr<IoQueue> queue;
    AlignedBuffer header;
    std::vector<uint32_t> crcs;  // of what has arrived
    std::vector<IoDone> done;
  };

  std::unique_ptr<Desk> TakeDesk();
  void GiveBack(std::unique_ptr<Desk> desk);
  Status ReadPinned(Desk& desk, BlockFile& file, const EntrySituation& where,
                    const SegmentPlace& place, const EntryMeta& meta, std::span<std::byte> into);

  BlockDevice& device_;
  SegmentBook& book_;
  Mutex mutex_;
  std::vector<std::unique_ptr<Desk>> desks_ KVC_GUARDED_BY(mutex_);
  std::atomic<uint64_t> read_bytes_{0}, corrupt_entries_{0}, io_errors_{0};
};

}  // namespace kvcfs::iouring
