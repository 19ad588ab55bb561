// Append-only log of cache entries on one NVMe directory: the NVMe tier.
//
// Segments of `segment_bytes` (preallocated files, O_DIRECT) are filled front to back with entries.
// An entry describes itself (kind, namespace, key, parent, ordinal, length, sequence, CRC32C per
// 64 KiB), so that the segments alone can rebuild the metadata. Space comes back a segment at a
// time: what the owner still wants is moved to the head, the rest goes.
// Threads: any may call; Read blocks its caller, Append does not. Callbacks run on the store's own
//   writer or reclaim thread, which hold no lock of the store then; they must be short.
// Memory: the bytes of an entry are copied once into a registered staging buffer (never written
//   from memory that may have a writer), and read straight into the caller's pages.
// Fails: kBusy queue full; kNoSpace no free segment and none can be reclaimed; kIo device, the
//   segment retires; kCorrupt CRC or header; kStale the place has been reused.
// Source: LFS (Rosenblum & Ousterhout 1992), regions as in CacheLib Navy. Bytes: FORMAT.md
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/block_key.h"
#include "base/result.h"

namespace kvcfs::iouring {

using Uuid = std::array<uint8_t, 16>;
// By the kernel's generator.
Uuid RandomUuid();

// Where an entry lies. `sequence` is unique over the life of the node: a reused place has another.
struct SegmentPlace {
  uint32_t segment = 0;    // 0: nowhere; segments count from 1
  uint32_t offset_4k = 0;  // of the entry's header, in units of 4 KiB
  uint64_t sequence = 0;

  bool valid() const { return segment != 0; }
  friend bool operator==(const SegmentPlace&, const SegmentPlace&) = default;
};

enum class EntryKind : uint8_t {
  kBlock = 1,        // a published block
  kBlockIntent = 2,  // fsynced and flushed, not yet released: recovery publishes it
  kFile = 3,         // the whole content of one version of an ordinary file
  // Append a tombstone before MarkDead of (or Judge says kDead for) what it hides: no segment is
  // erased before the tombstones that were queued until then are durable.
  kBlockTombstone = 4,  // the block was dropped; obeyed by a rebuild
  kFileTombstone = 5,   // the file was removed, or a newer version was made
};

struct EntryMeta {
  EntryKind kind = EntryKind::kBlock;
  Uuid namespace_uuid{};
  BlockKey key;          // blocks
  BlockKey parent;       // blocks; zero for a first block
  uint32_t ordinal = 0;  // blocks
  uint64_t length = 0;   // bytes of data; 0 for tombstones
  uint64_t ino = 0;      // files
  uint64_t version = 0;  // files
  int64_t mtime_nanos = 0;
  // Filled by the store:
  uint64_t sequence = 0;
  uint64_t origin = 0;  // the sequence it was first appended with; a moved copy keeps it
  uint32_t crc32c = 0;  // over the whole data
};

struct AppendRequest {
  EntryMeta meta;
  // Copies exactly meta.length bytes to the staging memory. false: it is gone, skip the entry
  // (done is called with kCancelled). Runs on the writer thread.
  std::function<bool(std::span<std::byte>)> fill;
  // true: done is called only when the entry is durable (fdatasync or FUA).
  bool durable = false;
  // May be empty. The meta has sequence and crc32c filled.
  std::function<void(Result<SegmentPlace>, const EntryMeta&)> done;
};

// What the owner of entries says of one while its segment is reclaimed.
enum class Fate : uint8_t {
  kDead,  // nobody refers to this place any more
  kMove,  // keep: copy it to the head, then Moved() is called
};

class EntryOwner {
 public:
  virtual ~EntryOwner() = default;
  // May drop the entry from its own books and answer kDead. Called on the reclaim thread, as are
  // all of these: they must not wait for anything that waits for an append, there may be no room.
  virtual Fate Judge(const EntryMeta& meta, const SegmentPlace& place) = 0;
  // Was copied and is durable: refer to `now` from here on, if you still refer to `before`. If not,
  // MarkDead(now). (`before` needs no MarkDead, its whole segment goes.)
  virtual void Moved(const EntryMeta& meta, const SegmentPlace& before,
                     const SegmentPlace& now) = 0;
  // The device failed or bytes were wrong under a move or a scan: the entry is lost.
  virtual void Lost(const EntryMeta& meta, const SegmentPlace& place) = 0;
  // Live bytes are above the target: please drop about this many bytes of cold entries (by calling
  // MarkDead for each). May Append, must not wait for room in the queue.
  virtual void Shed(uint64_t bytes) = 0;
  // A segment is about to be erased from which entries were moved: what Moved() told must be
  // durable in the owner's own records when this returns. (A moved copy may have a lower sequence
  // than what was applied meanwhile, so that the scan of the next start would not show it.)
  virtual void PersistMoves() {}
};

struct SegmentStoreOptions {
  std::string directory;        // made if absent
  Uuid node_uuid{};             // a directory of another node is refused with a text
  uint64_t capacity_bytes = 0;  // rounded down to whole segments, at least 4
  // 64 MiB of data and 1 MiB for headers and table. Halved until at least 8 segments fit, doubled
  // until at most 2048 do (each costs a descriptor). A directory keeps what it was made with.
  uint64_t segment_bytes = 65u << 20;
  uint64_t staging_bytes = 32u << 20;     // registered memory of the writer
  uint64_t queue_bytes_max = 256u << 20;  // appends not yet written; full: kBusy
  double live_share_max = 0.85;           // above it, Shed is called
  bool direct = true;                     // O_DIRECT; falls back where the filesystem has none
};

struct SegmentStats {
  uint64_t capacity_bytes = 0;
  uint64_t live_bytes = 0;
  uint64_t segments_free = 0, segments_sealed = 0, segments_retired = 0;
  uint64_t appended_bytes = 0, moved_bytes = 0, read_bytes = 0;
  uint64_t corrupt_entries = 0, io_errors = 0, queue_bytes = 0;
  uint64_t entry_bytes_max = 0;  // longer data is refused with kTooLarge
};

class SegmentStore {
 public:
  virtual ~SegmentStore() = default;

  // Called once per valid entry whose sequence is > scan_after, in the order in which they were
  // first appended: a moved copy comes where its original came (both may be there, the copy later).
  // Tombstones (of an origin > scan_after) are shown with the sequence they had at first, so that
  // they hide what is older than they are and nothing else; what one of them hides is not shown.
  using Visitor = std::function<void(const EntryMeta&, const SegmentPlace&)>;

  // Opens or makes the directory and recovers: torn tails are dropped, a damaged superblock or
  // header costs its segment, never the mount. Segments that hold nothing newer than `scan_after`
  // are not read beyond their header and table. Damage is logged and counted.
  // Where the disk is full, opens all the same (appends then fail with kNoSpace).
  static Result<std::unique_ptr<SegmentStore>> Open(const SegmentStoreOptions& options,
                                                    uint64_t scan_after, const Visitor& visitor);

  // Starts the reclaim thread; `owner` outlives the store. Tell all live places (MarkLive) before.
  virtual void Start(EntryOwner* owner) = 0;
  // Ends the reclaim thread: the owner is not asked again and may go. Appends and reads go on.
  virtual void Stop() = 0;

  // Queues one entry. kBusy: too much is queued, wait for WaitForRoom. Entries become durable and
  // are `done` in the order in which they were queued.
  virtual Status Append(AppendRequest request) = 0;
  // Blocks until the queue has room for that many bytes or the time is over.
  virtual bool WaitForRoom(uint64_t bytes, int timeout_ms) = 0;
  // All that was queued before is written (and durable) when this returns; kIo if any failed.
  virtual Status Flush(bool durable) = 0;

  // Reads an entry's data into `into` (page-aligned, RoundUp(meta.length, 4096) bytes, which may be
  // a mapping of a slot) and verifies header and every CRC. `meta` must name kind and key (or ino
  // and version) and length. kStale, kCorrupt: the entry is not there (any more).
  virtual Status Read(const SegmentPlace& place, const EntryMeta& meta,
                      std::span<std::byte> into) = 0;

  // Accounting of what is still referred to. An appended entry is live from its `done` on.
  // MarkLive is for recovery only; false: its segment is lost or reused, it cannot be read.
  virtual bool MarkLive(const SegmentPlace& place, uint64_t length) = 0;
  virtual void MarkDead(const SegmentPlace& place, uint64_t length) = 0;

  virtual uint64_t last_sequence() const = 0;
  virtual SegmentStats Stats() const = 0;
};

// For `kvcfs fsck`: reads and verifies everything, changes nothing.
struct SegmentProblem {
  std::string file;
  uint64_t offset = 0;
  std::string text;  // what is wrong and what it costs
  bool has_meta = false;
  EntryMeta meta;  // which block or file is hit, where that can still be told
};
struct SegmentScan {
  uint64_t segments = 0, entries = 0, data_bytes = 0;
  std::vector<SegmentProblem> problems;
};
Result<SegmentScan> ScanSegments(
    const std::string& directory,
    const std::function<void(const EntryMeta&, const SegmentPlace&)>& good);

}  // namespace kvcfs::iouring
