// The chain index as a reader sees it that has only its memory: words of 8 bytes, little-endian.
//
// One writer, any number of readers in other threads or, by one-sided reads, on other machines.
// Everything that changes in place stands between two versions, odd while it changes: the writer
// makes both odd, changes, makes both even; a reader takes only what it read between equal, even
// versions. Cache lines that are read whole may come in any order: a line with an even version is
// as that version left it. Readers hold no lock and can at worst be sent round again.
//
//   root       page 0: where the directory and the table of runs are
//   directory  2^depth entries of 64 B, by the upper bits of the hash: a segment's up to 16 pages
//   page       32 buckets
//   bucket     128 B: version, 7 slots of 16 B, version; the version's upper half is a stamp that
//              says of which segment it is, so that who looks with an old entry notices
//   slot       tag 56, state 8 | run 40, offset 12, generation 12
//   run        48 B header: generation, parent (run, offset), namespace, ordinal, length, body
//   body       a word a block: the first 8 bytes of its key; then what only the owner reads
//
// A key is in one of two buckets of its segment. A tag is only a hint: the full key is checked
// where the data is read.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace kvcfs::meta::layout {

inline constexpr uint64_t kMagic = 0x3178646966766b63;  // "ckvfidx1"
inline constexpr uint64_t kVersion = 1;
inline constexpr size_t kWordBytes = 8;
inline constexpr uint64_t kPageBytes = 4096;

// Words are loaded with acquire and stored with release, which cost nothing on x86: a version that
// is stored before (loaded after) the words it guards is also seen so, without fences.
inline uint64_t LoadWord(const uint64_t* word) {
  return std::atomic_ref<uint64_t>(*const_cast<uint64_t*>(word)).load(std::memory_order_acquire);
}
inline void StoreWord(uint64_t* word, uint64_t value) {
  std::atomic_ref<uint64_t>(*word).store(value, std::memory_order_release);
}

// ---- root
enum RootWord : size_t {
  kRootMagic,
  kRootLayout,
  kRootVersionBegin,
  kRootDirectory,
  kRootDepth,
  kRootRunBlocks,
  kRootRunBlockCount,
  kRootVersionEnd,
  kRootWords
};
inline constexpr uint64_t kRootAddress = 0;

// ---- segments: from 1 to 16 pages, some more whenever neither bucket of a key has room; a full
// one is split in two. So a table of any size is 75 to 90% full, and no insert moves more than
// 3,584 slots. An entry of the directory is 16 x 32 bits: page number 27, pages of the segment less
// one 5; each number says all, so that it does not matter which of two states a reader finds.
inline constexpr uint32_t kSegmentPagesMax = 16;
inline constexpr size_t kEntryWords = kSegmentPagesMax / 2;
inline constexpr uint64_t kEntryBytes = kEntryWords * kWordBytes;
inline constexpr uint32_t kDepthMax = 18;  // 760 million blocks

inline constexpr uint32_t EntryPart(const uint64_t* entry, uint32_t index) {
  return static_cast<uint32_t>(entry[index / 2] >> (index % 2 * 32));
}
inline constexpr uint32_t PackPart(uint64_t page, uint32_t pages) {
  return static_cast<uint32_t>(page << 5) | (pages - 1);
}
inline constexpr uint64_t PartPage(uint32_t part) {
  return part >> 5;
}
inline constexpr uint32_t PartPages(uint32_t part) {
  return (part & 31) + 1;
}

inline constexpr size_t DirectoryIndex(uint64_t hash, uint32_t depth) {
  return depth == 0 ? 0 : hash >> (64 - depth);
}

// ---- buckets
inline constexpr uint32_t kBucketSlots = 7;
inline constexpr size_t kBucketWords = 16;
inline constexpr size_t kBucketVersionEnd = kBucketWords - 1;
inline constexpr uint32_t kPageBuckets = kPageBytes / (kBucketWords * kWordBytes);
static_assert(kPageBuckets == 32 && 2 + 2 * kBucketSlots == kBucketWords);

inline constexpr uint64_t BucketVersion(uint32_t stamp, uint32_t count) {
  return uint64_t{stamp} << 32 | count;
}

// What a bucket of this hash bears, in a segment of that depth and size, in its page of that index:
// segment 18, depth 5, pages less one 4, index 4, and a bit to tell it from cleared memory.
inline constexpr uint32_t Stamp(uint64_t hash, uint32_t depth, uint32_t pages, uint32_t index) {
  return static_cast<uint32_t>(DirectoryIndex(hash, depth)) << 14 | depth << 9 | (pages - 1) << 5 |
         index << 1 | 1;
}
inline constexpr uint32_t StampDepth(uint32_t stamp) {
  return (stamp >> 9) & 31;
}

// The two buckets of a key, both in one page (one walk of the page tables): which page by bits 8-39
// of the hash, which buckets by a multiple of its upper 56, so that slots can be moved without a
// look at their runs.
struct BucketPair {
  uint32_t first = 0, second = 0;
};
inline constexpr BucketPair BucketsOf(uint64_t hash, uint32_t pages) {
  const uint64_t tag = hash >> 8;
  const auto page = static_cast<uint32_t>(((tag & 0xffffffff) * pages) >> 32);
  const auto mixed = static_cast<uint32_t>((tag * 0x9e3779b97f4a7c15) >> 32);
  const uint32_t first = mixed >> 27;
  const uint32_t second =
      (first + 1 + (((mixed >> 11) & 0xffff) * (kPageBuckets - 1) >> 16)) % kPageBuckets;
  return {page * kPageBuckets + first, page * kPageBuckets + second};
}

// ---- slots
inline constexpr uint64_t kSlotUsed = 1;  // state; a slot of two zero words is empty
inline constexpr uint64_t SlotTag(uint64_t hash) {
  return (hash & ~uint64_t{0xff}) | kSlotUsed;
}
struct Place {
  uint64_t run = 0;         // 40 bits; 0: none
  uint32_t offset = 0;      // 12
  uint32_t generation = 0;  // 12, of more: a hint
};
inline constexpr uint32_t kSlotGenerationMask = 0xfff;
inline constexpr uint64_t PackPlace(const Place& place) {
  return place.run << 24 | uint64_t{place.offset & 0xfff} << 12 |
         (place.generation & kSlotGenerationMask);
}
inline constexpr Place UnpackPlace(uint64_t word) {
  return {word >> 24, static_cast<uint32_t>(word >> 12) & 0xfff,
          static_cast<uint32_t>(word) & kSlotGenerationMask};
}

// ---- runs
inline constexpr uint32_t kRunBlocksMax = 64;
enum RunWord : size_t {
  kRunVersionBegin = 0,  // version 32 | generation 32
  kRunParent = 1,        // a Place; run 0: starts with a first block
  kRunBody = 2,          // address / 8 32 | namespace 32
  kRunShape = 3,         // ordinal of the first 32 | length 8 | capacity 8 | flags 8
  kRunQueued = 4,        // the owner's
  kRunVersionEnd = 5,    // version 32
  kRunWords = 6,
};
inline constexpr uint64_t kRunHeaderBytes = kRunWords * kWordBytes;
inline constexpr uint64_t kRunBlockHeaders = 4096;  // headers stand in blocks of 48 pages
static_assert(kRunBlockHeaders * kRunHeaderBytes % kPageBytes == 0);

inline constexpr uint64_t kRunFrozen = uint64_t{1} << 48;   // was truncated: never grows again
inline constexpr uint64_t kRunInQueue = uint64_t{1} << 49;  // the owner's
inline constexpr uint32_t Low(uint64_t word) {
  return static_cast<uint32_t>(word);
}
inline constexpr uint32_t High(uint64_t word) {
  return static_cast<uint32_t>(word >> 32);
}
inline constexpr uint64_t Pair(uint32_t low, uint32_t high) {
  return low | uint64_t{high} << 32;
}
inline constexpr uint32_t ShapeOrdinal(uint64_t shape) {
  return Low(shape);
}
inline constexpr uint32_t ShapeLength(uint64_t shape) {
  return (shape >> 32) & 0xff;
}
inline constexpr uint32_t ShapeCapacity(uint64_t shape) {
  return (shape >> 40) & 0xff;
}

}  // namespace kvcfs::meta::layout
