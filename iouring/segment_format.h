// The bytes of a segment directory: superblock, segment header, entries, table, footer.
//
// I/O-free: structs, and functions from memory to memory. All numbers are little-endian. What was
// read is never trusted: each Decode checks magic, version, CRC, place and lengths.
// Bytes: FORMAT.md
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "iouring/aligned_buffer.h"
#include "iouring/segment_store.h"

namespace kvcfs::iouring {

static_assert(std::endian::native == std::endian::little, "the format is written as it lies");

inline constexpr uint64_t kCrcChunkBytes = uint64_t{64} << 10;
inline constexpr uint32_t kFormatVersion = 1;
inline constexpr uint64_t kSegmentBytesMin = uint64_t{256} << 10;
inline constexpr uint64_t kSegmentBytesMax = uint64_t{1} << 32;
inline constexpr const char* kSuperblockName = "superblock";

std::string SegmentName(uint32_t number);  // seg-000001.kvs
std::optional<uint32_t> SegmentNumberOf(const std::string& name);

// --- superblock: two copies, one page each ---

struct SuperblockRecord {
  char magic[8];
  uint32_t version;
  uint32_t crc32c;                 // of the page with this field 0
  uint64_t compatible_features;    // unknown bits may be ignored
  uint64_t incompatible_features;  // unknown bits: do not touch
  uint8_t node_uuid[16];
  uint64_t segment_bytes;
  uint8_t unused[8];
};
static_assert(sizeof(SuperblockRecord) == 64);

struct Superblock {
  Uuid node_uuid{};
  uint64_t segment_bytes = 0;
};

inline constexpr uint64_t kSuperblockBytes = 2 * kPageBytes;

void EncodeSuperblock(const Superblock& superblock, std::span<std::byte> page);
// Nothing: damaged. kUnsupported: of a newer kvcfs.
Result<std::optional<Superblock>> DecodeSuperblock(std::span<const std::byte> page);

// --- segment header: the first page of a segment ---

enum class SegmentUse : uint32_t {
  kErased = 0,  // holds nothing, whatever its other pages look like
  kFilled = 1,
};

struct SegmentHeaderRecord {
  char magic[8];
  uint32_t version;
  uint32_t crc32c;  // of the page with this field 0
  uint8_t node_uuid[16];
  uint32_t number;
  uint32_t use;  // SegmentUse
  uint64_t segment_bytes;
  uint64_t first_sequence;  // names this life of the segment: entries of another are not there
  uint8_t unused[8];
};
static_assert(sizeof(SegmentHeaderRecord) == 64);

struct SegmentHeader {
  Uuid node_uuid{};
  uint32_t number = 0;
  SegmentUse use = SegmentUse::kErased;
  uint64_t segment_bytes = 0;
  uint64_t first_sequence = 0;
};

void EncodeSegmentHeader(const SegmentHeader& header, std::span<std::byte> page);
// Nothing: damaged. kUnsupported: of a newer kvcfs.
Result<std::optional<SegmentHeader>> DecodeSegmentHeader(std::span<const std::byte> page);

// --- entries ---

inline constexpr uint8_t kEntryInline = 1;  // flag: the data stands in the header page

struct EntryRecord {
  uint32_t magic;
  uint32_t crc32c;  // of all header bytes with this field 0
  uint16_t version;
  uint8_t kind;
  uint8_t flags;
  uint32_t segment;  // where it was written: a page that was copied elsewhere is no entry
  uint32_t offset_4k;
  uint32_t ordinal;
  uint64_t first_sequence;  // the segment's life
  uint64_t sequence;
  uint64_t origin;
  uint64_t durable_sequence;  // entries of this segment up to this one had been flushed
  uint8_t namespace_uuid[16];
  uint8_t key[32];
  uint8_t parent[32];
  uint64_t length;
  uint64_t ino;
  uint64_t file_version;
  int64_t mtime_nanos;
  uint32_t data_crc32c;
  uint32_t chunk_count;  // that many CRCs follow, one per 64 KiB, then inline data
};
static_assert(sizeof(EntryRecord) == 176);

struct EntryLayout {
  uint64_t header_bytes = 0;  // whole pages
  uint64_t total_bytes = 0;   // header and data, whole pages: what an entry occupies
  uint32_t chunk_count = 0;
  bool inline_data = false;

  uint64_t inline_offset() const { return sizeof(EntryRecord) + 4 * uint64_t{chunk_count}; }
};
EntryLayout LayoutOf(uint64_t length);

// Where and when an entry is written, beside its meta.
struct EntrySituation {
  uint32_t segment = 0;
  uint32_t offset_4k = 0;
  uint64_t first_sequence = 0;
  uint64_t durable_sequence = 0;
};

struct DecodedEntry {
  EntryMeta meta;
  EntrySituation situation;
  EntryLayout layout;
  std::vector<uint32_t> chunk_crcs;
};

// CRCs of the data's chunks; what they combine to is the CRC of the whole.
void ComputeChunkCrcs(std::span<const std::byte> data, std::span<uint32_t> chunk_crcs);
uint32_t CombineChunkCrcs(std::span<const uint32_t> chunk_crcs, uint64_t length);

// Writes record and CRCs into the first layout.header_bytes of `entry`, where inline data is
// already in its place; the rest of the header is zeroed.
void EncodeEntry(const EntryMeta& meta, const EntrySituation& situation,
                 std::span<const uint32_t> chunk_crcs, std::span<std::byte> entry);

// The bytes of header that the record in this page says it has, without believing more of it.
// Nothing: no record.
std::optional<uint64_t> PeekHeaderBytes(std::span<const std::byte> page, uint64_t segment_bytes);
// Nothing: no valid entry of this situation (durable_sequence is not compared).
std::optional<DecodedEntry> DecodeEntry(std::span<const std::byte> header,
                                        const EntrySituation& expected, uint64_t segment_bytes);

// --- table and footer: the last pages of a segment ---

struct TableRecord {
  uint32_t offset_4k;
  uint32_t ordinal;
  uint64_t sequence;
  uint64_t origin;
  uint8_t namespace_uuid[16];
  uint8_t key[32];
  uint8_t parent[32];
  uint64_t length;
  uint64_t ino;
  uint64_t file_version;
  int64_t mtime_nanos;
  uint32_t data_crc32c;
  uint8_t kind;
  uint8_t unused[3];
};
static_assert(sizeof(TableRecord) == 144);

struct FooterRecord {
  char magic[8];
  uint32_t version;
  uint32_t crc32c;  // of the page with this field 0
  uint8_t node_uuid[16];
  uint32_t number;
  uint32_t entry_count;
  uint64_t first_sequence;
  uint32_t table_crc32c;  // of the records
  uint32_t end_4k;        // behind the last entry
  uint32_t sealed;        // 0: a checkpoint, more entries may follow at end_4k
  uint32_t unused;
};
static_assert(sizeof(FooterRecord) == 64);

// An entry as the table knows it.
struct FoundEntry {
  EntryMeta meta;
  uint32_t offset_4k = 0;
};

struct Footer {
  Uuid node_uuid{};
  uint32_t number = 0;
  uint32_t entry_count = 0;
  uint64_t first_sequence = 0;
  uint32_t table_crc32c = 0;
  uint32_t end_4k = 0;
  bool sealed = false;
};

// Pages of the records (without the footer's page). They end where the footer begins.
constexpr uint64_t TableBytes(uint64_t entry_count) {
  return RoundUpToPage(entry_count * sizeof(TableRecord));
}

// Table and footer as they stand at the end of a segment; `footer.entry_count` and its CRC are set.
AlignedBuffer EncodeTable(Footer footer, std::span<const FoundEntry> entries);
std::optional<Footer> DecodeFooter(std::span<const std::byte> page);
// Nothing: damaged, or entries that cannot be.
std::optional<std::vector<FoundEntry>> DecodeTable(const Footer& footer,
                                                   std::span<const std::byte> records,
                                                   uint64_t segment_bytes);

// The longest data that a segment of that size can hold as one entry.
uint64_t EntryBytesMax(uint64_t segment_bytes);

// What tells entries of one block or file apart from others, in 32 bits; equal for all versions,
// moved copies and tombstones of it.
uint32_t IdentityHash(const EntryMeta& meta);
bool IsTombstone(EntryKind kind);

}  // namespace kvcfs::iouring
