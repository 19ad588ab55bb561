// What is read back from disks: pages of segments, and the records that RocksDB keeps.
//
// Input: which kind of thing, then its bytes. Whatever has a CRC gets the right one before it is
// read, half of the time: a parser that only its CRC saves would believe a disk that lies well.
#include <algorithm>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/crc32c.h"
#include "fs/file_record.h"
#include "iouring/segment_format.h"
#include "meta/block_records.h"
#include "meta/copy_records.h"
#include "tests/fuzz/fuzz_target.h"

namespace kvcfs {
namespace {

using iouring::kPageBytes;

enum Kind : uint8_t {
  kSuperblock,
  kSegmentHeader,
  kEntry,
  kFooter,
  kTable,
  kNamespace,
  kBlock,
  kCopy,
  kInode,
  kDentry,
  kListed,
  kKinds
};
constexpr uint8_t kRightCrc = 0x80;  // in the first byte

constexpr uint64_t kSegmentBytes = uint64_t{1} << 20;
constexpr iouring::EntrySituation kSituation{
    .segment = 3, .offset_4k = 9, .first_sequence = 50, .durable_sequence = 80};

std::span<const std::byte> BytesOf(std::string_view text) {
  return std::as_bytes(std::span(text));
}
std::string TextOf(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

iouring::EntryMeta Meta() {
  iouring::EntryMeta meta;
  meta.kind = iouring::EntryKind::kBlock;
  meta.length = 100'000;
  meta.ordinal = 4;
  meta.sequence = 99;
  meta.origin = 77;
  meta.key.bytes.fill(7);
  return meta;
}

// Where the CRC of a page stands, which covers the page with that field 0.
constexpr size_t kPageCrcAt = offsetof(iouring::SuperblockRecord, crc32c);
static_assert(kPageCrcAt == offsetof(iouring::SegmentHeaderRecord, crc32c));
static_assert(kPageCrcAt == offsetof(iouring::FooterRecord, crc32c));

void SetCrc(std::string& bytes, size_t at, std::string_view of) {
  const uint32_t crc = Crc32c(BytesOf(of));
  std::memcpy(bytes.data() + at, &crc, sizeof crc);
}
// In `covered` the field is 0 while its CRC is made.
void RightCrcWithin(std::string& bytes, size_t at, size_t covered) {
  std::memset(bytes.data() + at, 0, sizeof(uint32_t));
  SetCrc(bytes, at, std::string_view(bytes).substr(0, covered));
}
void RightCrcBefore(std::string& bytes) {
  if (bytes.size() >= 4) SetCrc(bytes, 0, std::string_view(bytes).substr(4));
}
void RightCrcBehind(std::string& bytes) {
  if (bytes.size() < 4) return;
  SetCrc(bytes, bytes.size() - 4, std::string_view(bytes).substr(0, bytes.size() - 4));
}

// What can be read can be written, and reads the same again.
template <typename Decode, typename Encode>
void CheckRoundTrip(std::string_view bytes, Decode decode, Encode encode) {
  const auto value = decode(bytes);
  if (!value) return;
  const std::string once = encode(*value);
  const auto again = decode(once);
  KVC_CHECK(again.has_value());
  KVC_CHECK(encode(*again) == once);
}

void CheckPage(Kind kind, std::string page, bool right_crc) {
  page.resize(kPageBytes);
  if (right_crc) RightCrcWithin(page, kPageCrcAt, kPageBytes);
  std::string again(kPageBytes, '\0');
  const std::span out = std::as_writable_bytes(std::span(again));
  if (kind == kSuperblock) {
    const auto read = iouring::DecodeSuperblock(BytesOf(page));
    if (!read.ok() || !*read) return;
    iouring::EncodeSuperblock(**read, out);
    const auto same = iouring::DecodeSuperblock(BytesOf(again));
    KVC_CHECK(same.ok() && *same && (*same)->segment_bytes == (*read)->segment_bytes);
  } else if (kind == kSegmentHeader) {
    const auto read = iouring::DecodeSegmentHeader(BytesOf(page));
    if (!read.ok() || !*read) return;
    iouring::EncodeSegmentHeader(**read, out);
    const auto same = iouring::DecodeSegmentHeader(BytesOf(again));
    KVC_CHECK(same.ok() && *same && (*same)->first_sequence == (*read)->first_sequence);
  } else {
    (void)iouring::DecodeFooter(BytesOf(page));
  }
}

void CheckEntry(std::string header, bool right_crc) {
  header.resize(std::max<size_t>(iouring::RoundUpToPage(header.size()), kPageBytes));
  const auto bytes = iouring::PeekHeaderBytes(BytesOf(header).first(kPageBytes), kSegmentBytes);
  if (!bytes) return;
  KVC_CHECK(*bytes >= kPageBytes && *bytes <= kSegmentBytes && *bytes % kPageBytes == 0);
  header.resize(*bytes);
  if (right_crc) RightCrcWithin(header, offsetof(iouring::EntryRecord, crc32c), header.size());
  const auto entry = iouring::DecodeEntry(BytesOf(header), kSituation, kSegmentBytes);
  if (!entry) return;
  KVC_CHECK(entry->layout.header_bytes == header.size());
  KVC_CHECK(kSituation.offset_4k * kPageBytes + entry->layout.total_bytes <= kSegmentBytes);
  KVC_CHECK(entry->chunk_crcs.size() == entry->layout.chunk_count);
  KVC_CHECK(entry->situation.segment == kSituation.segment);
}

// The records of a table. With a wrong CRC, or where its footer wants more of them, there is none.
void CheckTable(const std::string& input, bool right_crc) {
  const std::span records = BytesOf(input);
  iouring::Footer footer;
  footer.entry_count = static_cast<uint32_t>(records.size() / sizeof(iouring::TableRecord));
  const std::span covered = records.first(footer.entry_count * sizeof(iouring::TableRecord));
  footer.table_crc32c = right_crc ? Crc32c(covered) : ~Crc32c(covered);
  const auto entries = iouring::DecodeTable(footer, records, kSegmentBytes);
  KVC_CHECK(right_crc || !entries);
  if (!entries) return;
  KVC_CHECK(entries->size() == footer.entry_count);
  for (const iouring::FoundEntry& entry : *entries) {
    const uint64_t end =
        entry.offset_4k * kPageBytes + iouring::LayoutOf(entry.meta.length).total_bytes;
    KVC_CHECK(entry.offset_4k != 0 && end <= kSegmentBytes);
  }
  footer.entry_count = UINT32_MAX;
  KVC_CHECK(!iouring::DecodeTable(footer, records, kSegmentBytes));
}

}  // namespace

std::vector<std::string> FuzzSeeds() {
  std::vector<std::string> seeds;
  const auto add = [&](Kind kind, const std::string& bytes) {
    for (const uint8_t crc : {uint8_t{0}, kRightCrc}) {
      seeds.push_back(std::string(1, static_cast<char>(kind | crc)) + bytes);
    }
  };
  // The rest of a page is zeros.
  const auto short_page = [](std::span<const std::byte> page) {
    return TextOf(page.first(sizeof(iouring::SuperblockRecord)));
  };
  iouring::AlignedBuffer page(kPageBytes);
  iouring::EncodeSuperblock({.segment_bytes = kSegmentBytes}, page.span());
  add(kSuperblock, short_page(page.span()));
  iouring::EncodeSegmentHeader({.number = 3,
                                .use = iouring::SegmentUse::kFilled,
                                .segment_bytes = kSegmentBytes,
                                .first_sequence = 50},
                               page.span());
  add(kSegmentHeader, short_page(page.span()));
  // The second is too long for what is left of its segment.
  iouring::EntryMeta meta = Meta();
  for (const uint64_t length : {uint64_t{100'000}, kSegmentBytes - 8 * kPageBytes}) {
    meta.length = length;
    const auto layout = iouring::LayoutOf(length);
    iouring::AlignedBuffer entry(layout.header_bytes);
    const std::vector<uint32_t> crcs(layout.chunk_count);
    iouring::EncodeEntry(meta, kSituation, crcs, entry.span());
    add(kEntry, TextOf(entry.span().first(sizeof(iouring::EntryRecord) + 4 * crcs.size())));
  }
  meta = Meta();
  const iouring::FoundEntry found[] = {{.meta = meta, .offset_4k = 1}};
  const auto table = iouring::EncodeTable({.number = 3, .entry_count = 1}, found);
  const std::span footer = table.span().last(kPageBytes);
  add(kFooter, short_page(footer));
  add(kTable, TextOf(table.span().first(sizeof(iouring::TableRecord))));

  meta::NamespaceRecord space;
  space.name = "llama";
  add(kNamespace, meta::EncodeNamespaceRecord(space));
  meta::BlockRecord block;
  block.length = 5;
  add(kBlock, meta::EncodeBlockRecord(block));
  meta::CopyRecord copy;
  copy.facts.length = 5;
  copy.generation = copy.version = 1;
  add(kCopy, meta::EncodeCopyRecord(copy));
  fs::InodeRecord inode;
  inode.mode = S_IFREG;
  inode.name = "file";
  inode.target = "there";
  add(kInode, fs::EncodeInode(inode));
  inode.shared.id = {1, 2};
  add(kInode, fs::EncodeInode(inode));
  add(kDentry, fs::EncodeDentry({.ino = 3, .cookie = 4}));
  add(kListed, fs::EncodeListed({.ino = 3, .type = S_IFREG, .name = "file"}));
  return seeds;
}

void FuzzOne(std::span<const std::byte> input) {
  if (input.empty()) return;
  const auto first = static_cast<uint8_t>(input[0]);
  const bool right_crc = (first & kRightCrc) != 0;
  const auto kind = static_cast<Kind>((first & ~kRightCrc) % kKinds);
  std::string bytes = TextOf(input.subspan(1));
  switch (kind) {
    case kEntry:
      return CheckEntry(std::move(bytes), right_crc);
    case kTable:
      return CheckTable(bytes, right_crc);
    case kNamespace:
      if (right_crc) RightCrcBehind(bytes);
      return CheckRoundTrip(bytes, meta::DecodeNamespaceRecord, meta::EncodeNamespaceRecord);
    case kBlock:
      if (right_crc) RightCrcBehind(bytes);
      return CheckRoundTrip(bytes, meta::DecodeBlockRecord, meta::EncodeBlockRecord);
    case kCopy: {
      if (right_crc) RightCrcBehind(bytes);
      const std::string key = meta::CopyRecordKey({}, 1);
      return CheckRoundTrip(
          bytes, [&](std::string_view value) { return meta::DecodeCopyRecord(key, value); },
          meta::EncodeCopyRecord);
    }
    case kInode:
      if (right_crc) RightCrcBefore(bytes);
      return CheckRoundTrip(bytes, fs::DecodeInode, fs::EncodeInode);
    case kDentry:
      if (right_crc && bytes.size() >= 20) {
        SetCrc(bytes, 16, std::string_view(bytes).substr(0, 16));
      }
      return CheckRoundTrip(bytes, fs::DecodeDentry, fs::EncodeDentry);
    case kListed:
      if (right_crc) RightCrcBefore(bytes);
      return CheckRoundTrip(bytes, fs::DecodeListed, fs::EncodeListed);
    default:
      return CheckPage(kind, std::move(bytes), right_crc);
  }
}

}  // namespace kvcfs
