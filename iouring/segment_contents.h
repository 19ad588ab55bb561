// Reads what one segment holds: by its table where it has one, else entry by entry.
//
// For recovery, reclaim and fsck. Nothing that is read is trusted; a damaged page costs at most the
// entries that lie on it, a damaged header page of an unsealed segment the segment.
// Threads: as the queue.
// Fails: never as a whole; what is wrong stands in `problems`.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "iouring/block_device.h"
#include "iouring/segment_format.h"

namespace kvcfs::iouring {

enum class SegmentForm : uint8_t {
  kErased,      // nothing is in it (or it was never used)
  kSealed,      // complete
  kOpen,        // a head was filling it
  kDamaged,     // no life can be told: what was in it is lost
  kUnreadable,  // the device gave an error
  kNewer,       // written by a newer kvcfs
  kForeign,     // of another node
};

struct ContentsProblem {
  uint64_t offset = 0;
  std::string text;
  bool has_meta = false;
  EntryMeta meta;
};

struct SegmentContents {
  SegmentForm form = SegmentForm::kErased;
  uint64_t first_sequence = 0;
  uint64_t last_sequence = 0;  // highest seen, in damaged entries too
  std::vector<FoundEntry> entries;
  uint64_t verified_from = 0;  // index of the first entry whose data was verified
  uint64_t end_offset = 0;     // behind the last entry
  bool clean = true;           // kOpen: ends with its last entry, so it may be filled on
  uint64_t torn_entries = 0;   // begun when the node died; nobody was told that they were there
  std::vector<ContentsProblem> problems;
};

struct ContentsOptions {
  uint32_t number = 0;
  uint64_t segment_bytes = 0;
  Uuid node_uuid{};
  bool any_node = false;  // fsck without a superblock
  // Without a table: entries with a higher sequence are taken only if their data is right.
  uint64_t verify_after = 0;
};

// First and last pages of a segment, read for many at a time.
struct SegmentEnds {
  AlignedBuffer head;
  AlignedBuffer tail;
  uint64_t tail_offset = 0;
  int head_error = 0;  // errno; ENODATA: the file is too short
  int tail_error = 0;
};
std::vector<SegmentEnds> ReadSegmentEnds(IoQueue& queue, std::span<BlockFile* const> files,
                                         uint64_t segment_bytes);

SegmentContents ReadContents(IoQueue& queue, BlockFile& file, const SegmentEnds& ends,
                             const ContentsOptions& options);

// Reads one entry and compares it with what the table says of it.
Status VerifyEntry(IoQueue& queue, BlockFile& file, const FoundEntry& entry, uint32_t number,
                   uint64_t first_sequence, uint64_t segment_bytes);

}  // namespace kvcfs::iouring
