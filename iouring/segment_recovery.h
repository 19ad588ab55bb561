// Opens a segment directory: superblock, then every segment, then what is newer than asked for.
//
// Threads: one, before any other of the store runs.
// Fails: kInvalid of another node; kUnsupported of a newer kvcfs; kNoSpace, kIo, kDenied the
//   directory itself cannot be made or listed. Damage inside costs what it hit, never the mount.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "iouring/block_device.h"
#include "iouring/segment_book.h"
#include "iouring/segment_contents.h"

namespace kvcfs::iouring {

// A segment that was being filled, and may be filled on.
struct ResumedHead {
  uint32_t number = 0;
  uint64_t first_sequence = 0;
  uint64_t last_sequence = 0;
  uint64_t end_offset = 0;
  std::shared_ptr<BlockFile> file;
  std::vector<FoundEntry> entries;
};

struct RecoveredSegments {
  uint64_t segment_bytes = 0;
  uint64_t damaged_entries = 0;
  std::unique_ptr<SegmentBook> book;
  std::vector<ResumedHead> heads;  // at most two, the one with the most room first
};

Result<RecoveredSegments> RecoverSegments(BlockDevice& device, const SegmentStoreOptions& options,
                                          uint64_t scan_after,
                                          const SegmentStore::Visitor& visitor);

// What the directory says of itself; the first intact copy. Nothing: none is.
struct SuperblockFound {
  std::optional<Superblock> superblock;
  bool both_intact = false;
};
Result<SuperblockFound> ReadSuperblock(BlockDevice& device, IoQueue& queue);

// Writes the last pages of a segment: records, and when they are durable the footer.
Status WriteTable(IoQueue& queue, BlockFile& file, const Footer& footer, uint64_t segment_bytes,
                  std::span<const FoundEntry> entries);

// From here on the segment holds nothing, durably. The footer goes too: no trace of this life may
// be taken for the next one's. `header.first_sequence` is later than all that was in it.
Status EraseSegment(IoQueue& queue, BlockFile& file, SegmentHeader header);

// A fresh segment file, erased: so a header of zeros is always damage.
Result<std::unique_ptr<BlockFile>> MakeSegment(BlockDevice& device, IoQueue& queue,
                                               const SegmentHeader& header);

}  // namespace kvcfs::iouring
