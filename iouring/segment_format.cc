#include "iouring/segment_format.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>

#include <fmt/format.h>

#include "base/crc32c.h"

namespace kvcfs::iouring {
namespace {

constexpr char kSuperblockMagic[8] = {'K', 'V', 'C', 'F', 'S', 'U', 'P', 'R'};
constexpr char kHeaderMagic[8] = {'K', 'V', 'C', 'F', 'S', 'S', 'E', 'G'};
constexpr char kFooterMagic[8] = {'K', 'V', 'C', 'F', 'S', 'T', 'A', 'B'};
constexpr uint32_t kEntryMagic = 0x4543564B;  // "KVCE"
constexpr uint64_t kIncompatibleKnown = 0;

// CRC of `bytes` as if the 4 bytes at `hole` were zero.
uint32_t CrcWithHole(std::span<const std::byte> bytes, size_t hole) {
  constexpr std::array<std::byte, 4> kZeros{};
  const uint32_t before = Crc32c(bytes.first(hole));
  return Crc32c(bytes.subspan(hole + 4), Crc32c(kZeros, before));
}

template <typename Record>
void PutPage(Record record, std::span<std::byte> page) {
  std::memset(page.data(), 0, kPageBytes);
  record.crc32c = 0;
  std::memcpy(page.data(), &record, sizeof(record));
  record.crc32c = Crc32c(page.first(kPageBytes));
  std::memcpy(page.data(), &record, sizeof(record));
}

// The record of a page whose magic and CRC are right. Version is left to the caller.
template <typename Record>
std::optional<Record> GetPage(std::span<const std::byte> page, const char (&magic)[8]) {
  if (page.size() < kPageBytes) return std::nullopt;
  Record record;
  std::memcpy(&record, page.data(), sizeof(record));
  if (std::memcmp(record.magic, magic, sizeof(magic)) != 0) return std::nullopt;
  if (record.crc32c != CrcWithHole(page.first(kPageBytes), offsetof(Record, crc32c))) {
    return std::nullopt;
  }
  return record;
}

bool SegmentBytesPlausible(uint64_t bytes) {
  return bytes >= kSegmentBytesMin && bytes <= kSegmentBytesMax && bytes % kPageBytes == 0;
}

bool KindKnown(uint8_t kind) {
  return kind >= static_cast<uint8_t>(EntryKind::kBlock) &&
         kind <= static_cast<uint8_t>(EntryKind::kFileTombstone);
}

template <typename Record>
void PutMeta(const EntryMeta& meta, Record& record) {
  record.kind = static_cast<uint8_t>(meta.kind);
  record.ordinal = meta.ordinal;
  record.sequence = meta.sequence;
  record.origin = meta.origin;
  std::copy(meta.namespace_uuid.begin(), meta.namespace_uuid.end(), record.namespace_uuid);
  std::copy(meta.key.bytes.begin(), meta.key.bytes.end(), record.key);
  std::copy(meta.parent.bytes.begin(), meta.parent.bytes.end(), record.parent);
  record.length = meta.length;
  record.ino = meta.ino;
  record.file_version = meta.version;
  record.mtime_nanos = meta.mtime_nanos;
  record.data_crc32c = meta.crc32c;
}

template <typename Record>
EntryMeta GetMeta(const Record& record) {
  EntryMeta meta;
  meta.kind = static_cast<EntryKind>(record.kind);
  meta.ordinal = record.ordinal;
  meta.sequence = record.sequence;
  meta.origin = record.origin;
  std::copy_n(record.namespace_uuid, 16, meta.namespace_uuid.begin());
  std::copy_n(record.key, 32, meta.key.bytes.begin());
  std::copy_n(record.parent, 32, meta.parent.bytes.begin());
  meta.length = record.length;
  meta.ino = record.ino;
  meta.version = record.file_version;
  meta.mtime_nanos = record.mtime_nanos;
  meta.crc32c = record.data_crc32c;
  return meta;
}

uint64_t Mix(uint64_t x) {  // the finalizer of MurmurHash3
  x = (x ^ (x >> 33)) * 0xFF51AFD7ED558CCDULL;
  x = (x ^ (x >> 33)) * 0xC4CEB9FE1A85EC53ULL;
  return x ^ (x >> 33);
}

}  // namespace

std::string SegmentName(uint32_t number) {
  return fmt::format("seg-{:06}.kvs", number);
}

std::optional<uint32_t> SegmentNumberOf(const std::string& name) {
  if (name.size() < 14 || name.rfind("seg-", 0) != 0) return std::nullopt;
  const uint64_t number = std::strtoull(name.c_str() + 4, nullptr, 10);
  if (number == 0 || number > UINT32_MAX) return std::nullopt;
  if (SegmentName(static_cast<uint32_t>(number)) != name) return std::nullopt;
  return static_cast<uint32_t>(number);
}

void EncodeSuperblock(const Superblock& superblock, std::span<std::byte> page) {
  SuperblockRecord record{};
  std::memcpy(record.magic, kSuperblockMagic, sizeof(record.magic));
  record.version = kFormatVersion;
  std::copy(superblock.node_uuid.begin(), superblock.node_uuid.end(), record.node_uuid);
  record.segment_bytes = superblock.segment_bytes;
  PutPage(record, page);
}

Result<std::optional<Superblock>> DecodeSuperblock(std::span<const std::byte> page) {
  const auto record = GetPage<SuperblockRecord>(page, kSuperblockMagic);
  if (!record) return std::optional<Superblock>();
  if (record->version > kFormatVersion ||
      (record->incompatible_features & ~kIncompatibleKnown) != 0) {
    return Error{Code::kUnsupported,
                 fmt::format("the segments were written by a newer kvcfs (format {}, features "
                             "{:#x}; this one knows format {}): use that version",
                             record->version, record->incompatible_features, kFormatVersion)};
  }
  if (!SegmentBytesPlausible(record->segment_bytes)) return std::optional<Superblock>();
  Superblock superblock;
  std::copy_n(record->node_uuid, 16, superblock.node_uuid.begin());
  superblock.segment_bytes = record->segment_bytes;
  return std::optional<Superblock>(superblock);
}

void EncodeSegmentHeader(const SegmentHeader& header, std::span<std::byte> page) {
  SegmentHeaderRecord record{};
  std::memcpy(record.magic, kHeaderMagic, sizeof(record.magic));
  record.version = kFormatVersion;
  std::copy(header.node_uuid.begin(), header.node_uuid.end(), record.node_uuid);
  record.number = header.number;
  record.use = static_cast<uint32_t>(header.use);
  record.segment_bytes = header.segment_bytes;
  record.first_sequence = header.first_sequence;
  PutPage(record, page);
}

Result<std::optional<SegmentHeader>> DecodeSegmentHeader(std::span<const std::byte> page) {
  const auto record = GetPage<SegmentHeaderRecord>(page, kHeaderMagic);
  if (!record) return std::optional<SegmentHeader>();
  if (record->version > kFormatVersion) {
    return Error{Code::kUnsupported, fmt::format("segment of format {}", record->version)};
  }
  if (!SegmentBytesPlausible(record->segment_bytes) || record->use > 1) {
    return std::optional<SegmentHeader>();
  }
  SegmentHeader header;
  std::copy_n(record->node_uuid, 16, header.node_uuid.begin());
  header.number = record->number;
  header.use = static_cast<SegmentUse>(record->use);
  header.segment_bytes = record->segment_bytes;
  header.first_sequence = record->first_sequence;
  return std::optional<SegmentHeader>(header);
}

EntryLayout LayoutOf(uint64_t length) {
  EntryLayout layout;
  layout.chunk_count = static_cast<uint32_t>((length + kCrcChunkBytes - 1) / kCrcChunkBytes);
  const uint64_t record_bytes = layout.inline_offset();
  layout.inline_data = record_bytes + length <= kPageBytes;
  layout.header_bytes = RoundUpToPage(record_bytes);
  layout.total_bytes = layout.header_bytes + (layout.inline_data ? 0 : RoundUpToPage(length));
  return layout;
}

void ComputeChunkCrcs(std::span<const std::byte> data, std::span<uint32_t> chunk_crcs) {
  for (uint32_t& crc : chunk_crcs) {
    const auto chunk = data.first(std::min<size_t>(data.size(), kCrcChunkBytes));
    crc = Crc32c(chunk);
    data = data.subspan(chunk.size());
  }
}

uint32_t CombineChunkCrcs(std::span<const uint32_t> chunk_crcs, uint64_t length) {
  uint32_t whole = 0;
  for (const uint32_t crc : chunk_crcs) {
    const uint64_t bytes = std::min(length, kCrcChunkBytes);
    whole = Crc32cCombine(whole, crc, bytes);
    length -= bytes;
  }
  return whole;
}

void EncodeEntry(const EntryMeta& meta, const EntrySituation& situation,
                 std::span<const uint32_t> chunk_crcs, std::span<std::byte> entry) {
  const EntryLayout layout = LayoutOf(meta.length);
  EntryRecord record{};
  record.magic = kEntryMagic;
  record.version = kFormatVersion;
  record.flags = layout.inline_data ? kEntryInline : uint8_t{0};
  record.segment = situation.segment;
  record.offset_4k = situation.offset_4k;
  record.first_sequence = situation.first_sequence;
  record.durable_sequence = situation.durable_sequence;
  record.chunk_count = layout.chunk_count;
  PutMeta(meta, record);
  KVC_CHECK(chunk_crcs.size() == layout.chunk_count && entry.size() >= layout.header_bytes);
  uint64_t end = layout.inline_offset();
  if (layout.chunk_count != 0) {
    std::memcpy(entry.data() + sizeof(record), chunk_crcs.data(), 4 * chunk_crcs.size());
  }
  if (layout.inline_data) end += meta.length;
  std::memset(entry.data() + end, 0, layout.header_bytes - end);
  std::memcpy(entry.data(), &record, sizeof(record));
  record.crc32c = Crc32c(entry.first(layout.header_bytes));
  std::memcpy(entry.data(), &record, sizeof(record));
}

std::optional<uint64_t> PeekHeaderBytes(std::span<const std::byte> page, uint64_t segment_bytes) {
  EntryRecord record;
  std::memcpy(&record, page.data(), sizeof(record));
  if (record.magic != kEntryMagic || record.length >= segment_bytes) return std::nullopt;
  return LayoutOf(record.length).header_bytes;
}

std::optional<DecodedEntry> DecodeEntry(std::span<const std::byte> header,
                                        const EntrySituation& expected, uint64_t segment_bytes) {
  if (header.size() < kPageBytes) return std::nullopt;
  EntryRecord record;
  std::memcpy(&record, header.data(), sizeof(record));
  if (record.magic != kEntryMagic || record.version != kFormatVersion || !KindKnown(record.kind) ||
      record.length >= segment_bytes) {
    return std::nullopt;
  }
  DecodedEntry entry;
  entry.layout = LayoutOf(record.length);
  if (record.chunk_count != entry.layout.chunk_count || header.size() < entry.layout.header_bytes ||
      expected.offset_4k * kPageBytes + entry.layout.total_bytes > segment_bytes) {
    return std::nullopt;
  }
  const auto covered = header.first(entry.layout.header_bytes);
  if (record.crc32c != CrcWithHole(covered, offsetof(EntryRecord, crc32c))) return std::nullopt;
  if (record.segment != expected.segment || record.offset_4k != expected.offset_4k ||
      record.first_sequence != expected.first_sequence) {
    return std::nullopt;
  }
  entry.meta = GetMeta(record);
  entry.situation = expected;
  entry.situation.durable_sequence = record.durable_sequence;
  entry.chunk_crcs.resize(record.chunk_count);
  if (record.chunk_count != 0) {
    std::memcpy(entry.chunk_crcs.data(), header.data() + sizeof(record),
                4 * entry.chunk_crcs.size());
  }
  return entry;
}

AlignedBuffer EncodeTable(Footer footer, std::span<const FoundEntry> entries) {
  AlignedBuffer memory(TableBytes(entries.size()) + kPageBytes);
  std::byte* at = memory.data();
  for (const FoundEntry& entry : entries) {
    TableRecord record{};
    record.offset_4k = entry.offset_4k;
    PutMeta(entry.meta, record);
    std::memcpy(at, &record, sizeof(record));
    at += sizeof(record);
  }
  FooterRecord record{};
  std::memcpy(record.magic, kFooterMagic, sizeof(record.magic));
  record.version = kFormatVersion;
  std::copy(footer.node_uuid.begin(), footer.node_uuid.end(), record.node_uuid);
  record.number = footer.number;
  record.entry_count = static_cast<uint32_t>(entries.size());
  record.first_sequence = footer.first_sequence;
  record.table_crc32c = Crc32c(memory.span().first(entries.size() * sizeof(TableRecord)));
  record.end_4k = footer.end_4k;
  record.sealed = footer.sealed ? 1 : 0;
  PutPage(record, memory.span().last(kPageBytes));
  return memory;
}

std::optional<Footer> DecodeFooter(std::span<const std::byte> page) {
  const auto record = GetPage<FooterRecord>(page, kFooterMagic);
  if (!record || record->version != kFormatVersion) return std::nullopt;
  Footer footer;
  std::copy_n(record->node_uuid, 16, footer.node_uuid.begin());
  footer.number = record->number;
  footer.entry_count = record->entry_count;
  footer.first_sequence = record->first_sequence;
  footer.table_crc32c = record->table_crc32c;
  footer.end_4k = record->end_4k;
  footer.sealed = record->sealed != 0;
  return footer;
}

std::optional<std::vector<FoundEntry>> DecodeTable(const Footer& footer,
                                                   std::span<const std::byte> records,
                                                   uint64_t segment_bytes) {
  const uint64_t bytes = footer.entry_count * sizeof(TableRecord);
  if (records.size() < bytes) return std::nullopt;
  if (Crc32c(records.first(bytes)) != footer.table_crc32c) return std::nullopt;
  std::vector<FoundEntry> entries;
  entries.reserve(footer.entry_count);
  for (uint64_t at = 0; at < bytes; at += sizeof(TableRecord)) {
    TableRecord record;
    std::memcpy(&record, records.data() + at, sizeof(record));
    if (!KindKnown(record.kind) || record.length >= segment_bytes) return std::nullopt;
    const uint64_t end = record.offset_4k * kPageBytes + LayoutOf(record.length).total_bytes;
    if (record.offset_4k == 0 || end > segment_bytes) return std::nullopt;
    entries.push_back({.meta = GetMeta(record), .offset_4k = record.offset_4k});
  }
  return entries;
}

uint64_t EntryBytesMax(uint64_t segment_bytes) {
  // The segment's header, one page of table, the footer.
  const uint64_t room = segment_bytes - 3 * kPageBytes;
  uint64_t length = room - kPageBytes;
  while (LayoutOf(length).total_bytes > room) length -= kPageBytes;
  return length;
}

uint32_t IdentityHash(const EntryMeta& meta) {
  uint64_t words[2];
  std::memcpy(words, meta.namespace_uuid.data(), sizeof(words));
  const bool file = meta.kind == EntryKind::kFile || meta.kind == EntryKind::kFileTombstone;
  const uint64_t name = file ? Mix(meta.ino) : meta.key.Word(0) ^ Mix(meta.key.Word(2));
  return static_cast<uint32_t>(Mix(name ^ words[0] ^ Mix(words[1])) >> 32);
}

bool IsTombstone(EntryKind kind) {
  return kind == EntryKind::kBlockTombstone || kind == EntryKind::kFileTombstone;
}

}  // namespace kvcfs::iouring
