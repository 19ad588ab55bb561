// Bytes to structs and back; what is damaged, displaced or of another life is no entry.
#include "iouring/segment_format.h"

#include "base/crc32c.h"
#include "iouring/staging_ring.h"
#include "tests/unit/iouring/store_fixture.h"

namespace kvcfs::iouring {
namespace {

constexpr uint64_t kBytes = 1 << 20;

struct Made {
  AlignedBuffer memory;
  EntryMeta meta;
  EntrySituation situation;
  EntryLayout layout;
};

Made Make(uint64_t length) {
  Made made;
  made.meta = BlockMeta(5, length);
  made.meta.sequence = 99;
  made.meta.origin = 77;
  made.situation = {.segment = 3, .offset_4k = 9, .first_sequence = 50, .durable_sequence = 80};
  made.layout = LayoutOf(length);
  made.memory = AlignedBuffer(made.layout.total_bytes);
  const auto data = made.memory.span().subspan(
      made.layout.inline_data ? made.layout.inline_offset() : made.layout.header_bytes, length);
  FillContent(made.meta, data);
  std::vector<uint32_t> crcs(made.layout.chunk_count);
  ComputeChunkCrcs(data, crcs);
  made.meta.crc32c = CombineChunkCrcs(crcs, length);
  EXPECT_EQ(made.meta.crc32c, Crc32c(data));
  EncodeEntry(made.meta, made.situation, crcs, made.memory.span());
  return made;
}

TEST(FormatTest, LayoutsAreTight) {
  EXPECT_EQ(LayoutOf(0).total_bytes, 4096u);
  EXPECT_TRUE(LayoutOf(3916).inline_data);
  EXPECT_EQ(LayoutOf(3916).total_bytes, 4096u);
  EXPECT_FALSE(LayoutOf(3917).inline_data);
  EXPECT_EQ(LayoutOf(3917).total_bytes, 8192u);
  EXPECT_EQ(LayoutOf(4 << 20).total_bytes, (4u << 20) + 4096);
  EXPECT_EQ(LayoutOf(64 << 20).total_bytes, (64u << 20) + 8192);
  for (const uint64_t segment : {kSegmentBytesMin, kBytes, uint64_t{65} << 20}) {
    const uint64_t most = EntryBytesMax(segment);
    EXPECT_LE(LayoutOf(most).total_bytes + 3 * kPageBytes, segment);
    EXPECT_GT(most + 6 * kPageBytes, segment);
  }
  // The largest block of the filesystem fits the default segment.
  EXPECT_GE(EntryBytesMax(SegmentStoreOptions{}.segment_bytes), uint64_t{64} << 20);
}

TEST(FormatTest, EntriesComeBack) {
  for (const uint64_t length : {0, 1, 3916, 3917, 65536, 65537, 1'000'000}) {
    const Made made = Make(length);
    EXPECT_EQ(PeekHeaderBytes(made.memory.span(), kBytes), made.layout.header_bytes);
    const auto entry = DecodeEntry(made.memory.span(), made.situation, kBytes);
    ASSERT_TRUE(entry) << length;
    EXPECT_EQ(entry->meta.key, made.meta.key);
    EXPECT_EQ(entry->meta.parent, made.meta.parent);
    EXPECT_EQ(entry->meta.namespace_uuid, made.meta.namespace_uuid);
    EXPECT_EQ(entry->meta.ordinal, made.meta.ordinal);
    EXPECT_EQ(entry->meta.length, length);
    EXPECT_EQ(entry->meta.sequence, 99u);
    EXPECT_EQ(entry->meta.origin, 77u);
    EXPECT_EQ(entry->meta.mtime_nanos, 12345);
    EXPECT_EQ(entry->meta.crc32c, made.meta.crc32c);
    EXPECT_EQ(entry->situation.durable_sequence, 80u);
  }
}

TEST(FormatTest, AnyFlippedBitOfAHeaderIsFound) {
  const Made made = Make(100'000);
  for (size_t bit = 0; bit < 8 * kPageBytes; bit += 3) {
    std::byte& byte = made.memory.data()[bit / 8];
    byte ^= static_cast<std::byte>(1u << (bit % 8));
    EXPECT_FALSE(DecodeEntry(made.memory.span(), made.situation, kBytes)) << bit;
    byte ^= static_cast<std::byte>(1u << (bit % 8));
  }
  EXPECT_TRUE(DecodeEntry(made.memory.span(), made.situation, kBytes));
}

TEST(FormatTest, AnEntryElsewhereOrOfAnotherLifeIsNone) {
  const Made made = Make(1000);
  EntrySituation other = made.situation;
  other.segment = 4;
  EXPECT_FALSE(DecodeEntry(made.memory.span(), other, kBytes));
  other = made.situation;
  other.offset_4k = 10;
  EXPECT_FALSE(DecodeEntry(made.memory.span(), other, kBytes));
  other = made.situation;
  other.first_sequence = 51;
  EXPECT_FALSE(DecodeEntry(made.memory.span(), other, kBytes));
  EXPECT_FALSE(DecodeEntry(made.memory.span(), made.situation, 500)) << "longer than a segment";
  EXPECT_FALSE(DecodeEntry(made.memory.span().first(100), made.situation, kBytes));
}

TEST(FormatTest, TablesComeBackAndDamageIsFound) {
  std::vector<FoundEntry> entries;
  for (uint32_t i = 0; i < 100; ++i) {
    FoundEntry entry{BlockMeta(i, 1000), 1 + i};
    entry.meta.sequence = 10 + i;
    entries.push_back(entry);
  }
  const AlignedBuffer table = EncodeTable(
      {.node_uuid = kNode, .number = 7, .first_sequence = 5, .end_4k = 101, .sealed = true},
      entries);
  EXPECT_EQ(table.size(), TableBytes(100) + kPageBytes);
  const auto footer = DecodeFooter(table.span().last(kPageBytes));
  ASSERT_TRUE(footer);
  EXPECT_EQ(footer->entry_count, 100u);
  EXPECT_EQ(footer->first_sequence, 5u);
  EXPECT_TRUE(footer->sealed);
  const auto records = table.span().first(TableBytes(100));
  const auto found = DecodeTable(*footer, records, kBytes);
  ASSERT_TRUE(found);
  EXPECT_EQ((*found)[99].meta.key, KeyOf(99));
  EXPECT_EQ((*found)[99].offset_4k, 100u);
  records[5000] ^= std::byte{1};
  EXPECT_FALSE(DecodeTable(*footer, records, kBytes));
  records[5000] ^= std::byte{1};
  EXPECT_FALSE(DecodeTable(*footer, records, 100 * kPageBytes)) << "entries beyond the end";
  table.span().last(kPageBytes)[30] ^= std::byte{1};
  EXPECT_FALSE(DecodeFooter(table.span().last(kPageBytes)));
}

TEST(FormatTest, NamesOfSegments) {
  EXPECT_EQ(SegmentName(1), "seg-000001.kvs");
  EXPECT_EQ(SegmentNumberOf("seg-000012.kvs"), 12u);
  EXPECT_EQ(SegmentNumberOf("seg-1234567.kvs"), 1234567u);
  for (const char* name : {"seg-000000.kvs", "seg-12.kvs", "seg-000012.kvx", "seg-00001x.kvs",
                           "superblock", "", "seg-99999999999999.kvs"}) {
    EXPECT_FALSE(SegmentNumberOf(name)) << name;
  }
}

TEST(FormatTest, IdentityIsOfTheNameOnly) {
  EntryMeta block = BlockMeta(1, 100);
  EntryMeta tombstone = block;
  tombstone.kind = EntryKind::kBlockTombstone;
  tombstone.length = 0;
  tombstone.sequence = 9;
  EXPECT_EQ(IdentityHash(block), IdentityHash(tombstone));
  EXPECT_EQ(IdentityHash(FileMeta(1, 1, 1)), IdentityHash(FileMeta(1, 2, 5)));
  EXPECT_NE(IdentityHash(FileMeta(1, 1, 1)), IdentityHash(FileMeta(2, 1, 1)));
  EXPECT_NE(IdentityHash(BlockMeta(1, 1)), IdentityHash(BlockMeta(2, 1)));
  tombstone.namespace_uuid = {1};
  EXPECT_NE(IdentityHash(block), IdentityHash(tombstone));
}

TEST(StagingRingTest, PiecesNeverOverlapAndAllComesBack) {
  StagingRing ring(64 * kPageBytes);
  std::mt19937_64 random(Seed());
  std::vector<std::pair<std::byte*, uint64_t>> held;
  uint64_t refused = 0;
  for (int step = 0; step < 20'000; ++step) {
    const uint64_t bytes = (1 + random() % 20) * kPageBytes;
    std::byte* piece = ring.Allocate(bytes);
    if (piece != nullptr) {
      ASSERT_TRUE(ring.Owns(piece));
      ASSERT_LE(piece + bytes, ring.memory().data() + ring.memory().size());
      for (const auto& [other, size] : held) {
        ASSERT_TRUE(piece + bytes <= other || other + size <= piece);
      }
      held.emplace_back(piece, bytes);
    } else {
      ++refused;
      ASSERT_FALSE(held.empty()) << "an empty ring has room";
    }
    while (!held.empty() && (piece == nullptr || random() % 3 == 0)) {
      // Mostly the oldest, sometimes any.
      const size_t at = random() % 4 == 0 ? random() % held.size() : 0;
      ring.Release(held[at].first);
      held.erase(held.begin() + static_cast<ptrdiff_t>(at));
      piece = ring.memory().data();
    }
  }
  EXPECT_GT(refused, 10u);
  for (const auto& [piece, size] : held) ring.Release(piece);
  EXPECT_NE(ring.Allocate(64 * kPageBytes), nullptr);
}

}  // namespace
}  // namespace kvcfs::iouring
