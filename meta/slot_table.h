// Where is this key: the hash table of the chain index, in memory that others may read.
//
// Two buckets a key, the emptier is taken. A table grows by a page in one of its segments, or by
// splitting one segment: never as a whole, so that no insert takes longer than some 50 us.
// Layout and the reader's side: remote_layout.h. Threads: one at a time.
// Source: extendible hashing (Fagin et al. 1979); two choices (Azar et al. 1994).
#pragma once

#include <cstdint>
#include <vector>

#include "meta/index_memory.h"
#include "meta/remote_layout.h"

namespace kvcfs::meta {

class SlotTable {
 public:
  explicit SlotTable(IndexMemory& memory);

  // Of a hash only the upper 56 bits count.
  // Calls test(Place) for each slot with this tag until it says true, and returns that one's place;
  // run 0 where there is none.
  template <typename Test>
  layout::Place Find(uint64_t hash, Test&& test) const {
    const uint64_t tag = layout::SlotTag(hash);
    const Pair pair = BucketsOf(hash);
    for (const uint64_t* bucket : {pair.first, pair.second}) {
      for (size_t at = 1; at < layout::kBucketVersionEnd; at += 2) {
        if (bucket[at] != tag) continue;
        const layout::Place place = layout::UnpackPlace(bucket[at + 1]);
        if (test(place)) return place;
      }
    }
    return {};
  }
  void Prefetch(uint64_t hash) const;

  // False: both buckets are full and growing does not help, since the hashes were chosen to do so.
  bool Insert(uint64_t hash, const layout::Place& place);
  void Remove(uint64_t hash, const layout::Place& place);

  uint64_t slot_count() const { return slot_count_; }
  uint64_t bucket_count() const { return bucket_count_; }
  uint64_t bytes() const;
  uint64_t directory_address() const { return directory_address_; }
  uint32_t depth() const { return depth_; }
  // Called when directory_address and depth have changed; the old directory is freed after it.
  void OnDirectoryMoved(void (*publish)(void*), void* argument);

  void CheckInvariants() const;

 private:
  struct Pair {
    uint64_t* first;
    uint64_t* second;
  };
  struct Slot {
    uint64_t tag, place;
  };
  // Buckets to be: [bucket][7 slots], filled from the front.
  struct Image {
    uint32_t pages = 0;
    std::vector<Slot> slots;
    std::vector<uint8_t> counts;
    bool Fill(const std::vector<Slot>& from, uint32_t page_count);
    bool MakeRoom(uint32_t bucket);
  };

  // A segment as the directory has it, unpacked.
  struct Segment {
    size_t first = 0;  // entry of the directory; 2^(depth_ - depth) of them are the same
    uint32_t depth = 0;
    std::vector<uint32_t> pages;
  };

  const uint64_t* EntryOf(uint64_t hash) const {
    return directory_ + layout::DirectoryIndex(hash, depth_) * layout::kEntryWords;
  }
  uint64_t* BucketAt(const uint64_t* entry, uint32_t bucket) const {
    const uint32_t part = layout::EntryPart(entry, bucket / layout::kPageBuckets);
    return memory_.At(layout::PartPage(part) * layout::kPageBytes) +
           size_t{bucket % layout::kPageBuckets} * layout::kBucketWords;
  }
  Pair BucketsOf(uint64_t hash) const {
    const uint64_t* const entry = EntryOf(hash);
    const layout::BucketPair pair =
        layout::BucketsOf(hash, layout::PartPages(layout::EntryPart(entry, 0)));
    return {BucketAt(entry, pair.first), BucketAt(entry, pair.second)};
  }
  Segment SegmentOf(uint64_t hash) const;
  size_t MakeRoom(uint64_t hash, uint64_t* bucket);  // the word of a slot that is free now, or 0
  bool Grow(uint64_t hash);
  bool Split(uint64_t hash, const Segment& segment, const std::vector<Slot>& slots);
  void DoubleDirectory();
  std::vector<Slot> SlotsOf(const Segment& segment) const;
  // Writes the image to pages, taken from `spare` as far as they go, and then the entries.
  void Publish(const Image& image, size_t first, uint32_t depth, std::vector<uint32_t>& spare);

  IndexMemory& memory_;
  uint64_t* directory_ = nullptr;
  uint64_t directory_address_ = 0;
  uint32_t depth_ = 0;
  uint64_t slot_count_ = 0;
  uint64_t bucket_count_ = 0;
  void (*publish_)(void*) = nullptr;
  void* publish_argument_ = nullptr;
};

}  // namespace kvcfs::meta
