#include "meta/slot_table.h"

#include <algorithm>

#include "base/result.h"

namespace kvcfs::meta {

using namespace layout;  // NOLINT(google-build-using-namespace): this file writes that layout

namespace {

constexpr uint32_t kPageSlots = kPageBuckets * kBucketSlots;
constexpr uint32_t kSegmentSlotsMax = kSegmentPagesMax * kPageSlots;
// A segment that is full in fewer slots than these was filled by hashes chosen to collide: random
// ones fit two buckets of 7 up to 85% or so.
constexpr uint32_t kHonestSlotsMin = kSegmentSlotsMax / 2;

uint64_t DirectoryPages(uint32_t depth) {
  return ((kEntryBytes << depth) + kPageBytes - 1) / kPageBytes;
}

// Both versions odd, then the change, then both even.
void StoreSlot(uint64_t* bucket, size_t at, uint64_t tag, uint64_t place) {
  const uint32_t stamp = High(bucket[0]);
  const uint32_t count = Low(bucket[0]);
  StoreWord(bucket, BucketVersion(stamp, count + 1));
  StoreWord(bucket + kBucketVersionEnd, BucketVersion(stamp, count + 1));
  StoreWord(bucket + at, tag);
  StoreWord(bucket + at + 1, place);
  StoreWord(bucket + kBucketVersionEnd, BucketVersion(stamp, count + 2));
  StoreWord(bucket, BucketVersion(stamp, count + 2));
}

struct FreeSlot {
  size_t at = 0;  // word of the bucket; 0: it is full
  uint32_t used = 0;
};
FreeSlot FindFree(const uint64_t* bucket) {
  FreeSlot free;
  for (size_t at = kBucketVersionEnd - 2; at >= 1; at -= 2) {
    if (bucket[at] == 0) {
      free.at = at;
    } else {
      ++free.used;
    }
    if (at == 1) break;
  }
  return free;
}

}  // namespace

SlotTable::SlotTable(IndexMemory& memory) : memory_(memory) {
  directory_address_ = memory_.Allocate(DirectoryPages(0));
  directory_ = memory_.At(directory_address_);
  Image image;
  std::vector<uint32_t> none;
  KVC_CHECK(image.Fill({}, 1));
  Publish(image, 0, 0, none);
}

void SlotTable::OnDirectoryMoved(void (*publish)(void*), void* argument) {
  publish_ = publish;
  publish_argument_ = argument;
}

uint64_t SlotTable::bytes() const {
  return bucket_count_ * kBucketWords * kWordBytes + DirectoryPages(depth_) * kPageBytes;
}

void SlotTable::Prefetch(uint64_t hash) const {
  const Pair pair = BucketsOf(hash);
  __builtin_prefetch(pair.first);
  __builtin_prefetch(pair.first + kBucketWords / 2);
  __builtin_prefetch(pair.second);
  __builtin_prefetch(pair.second + kBucketWords / 2);
}

bool SlotTable::Insert(uint64_t hash, const Place& place) {
  do {
    const Pair pair = BucketsOf(hash);
    FreeSlot first = FindFree(pair.first);
    FreeSlot second = FindFree(pair.second);
    if (first.at == 0 && second.at == 0) {
      first.at = MakeRoom(hash, pair.first);
      if (first.at == 0) second.at = MakeRoom(hash, pair.second);
    }
    if (first.at != 0 || second.at != 0) {
      const bool take_first = second.at == 0 || (first.at != 0 && first.used <= second.used);
      StoreSlot(take_first ? pair.first : pair.second, take_first ? first.at : second.at,
                SlotTag(hash), PackPlace(place));
      ++slot_count_;
      return true;
    }
  } while (Grow(hash));
  return false;
}

// Moves a slot of a full bucket to the other bucket of its key, if that has room. It stands in both
// for a moment, never in neither; a reader that saw each without it sees their versions change.
size_t SlotTable::MakeRoom(uint64_t hash, uint64_t* bucket) {
  const uint64_t* const entry = EntryOf(hash);
  const uint32_t pages = PartPages(EntryPart(entry, 0));
  for (size_t at = 1; at < kBucketVersionEnd; at += 2) {
    const BucketPair pair = layout::BucketsOf(bucket[at], pages);
    uint64_t* other = BucketAt(entry, pair.first);
    if (other == bucket) other = BucketAt(entry, pair.second);
    const FreeSlot free = FindFree(other);
    if (free.at == 0) continue;
    StoreSlot(other, free.at, bucket[at], bucket[at + 1]);
    StoreSlot(bucket, at, 0, 0);
    return at;
  }
  return 0;
}

void SlotTable::Remove(uint64_t hash, const Place& place) {
  const uint64_t tag = SlotTag(hash);
  const uint64_t packed = PackPlace(place);
  const Pair pair = BucketsOf(hash);
  for (uint64_t* bucket : {pair.first, pair.second}) {
    for (size_t at = 1; at < kBucketVersionEnd; at += 2) {
      if (bucket[at] != tag || bucket[at + 1] != packed) continue;
      StoreSlot(bucket, at, 0, 0);
      --slot_count_;
      return;
    }
  }
  KVC_CHECK(false && "a block is in the table");
}

bool SlotTable::Image::Fill(const std::vector<Slot>& from, uint32_t page_count) {
  const uint32_t buckets = page_count * kPageBuckets;
  pages = page_count;
  slots.assign(size_t{buckets} * kBucketSlots, Slot{0, 0});
  counts.assign(buckets, 0);
  for (const Slot& slot : from) {
    const BucketPair pair = layout::BucketsOf(slot.tag, page_count);
    uint32_t bucket = counts[pair.first] <= counts[pair.second] ? pair.first : pair.second;
    if (counts[bucket] == kBucketSlots) {
      if (!MakeRoom(bucket = pair.first) && !MakeRoom(bucket = pair.second)) return false;
    }
    slots[size_t{bucket} * kBucketSlots + counts[bucket]++] = slot;
  }
  return true;
}

bool SlotTable::Image::MakeRoom(uint32_t bucket) {
  Slot* const own = &slots[size_t{bucket} * kBucketSlots];
  for (uint32_t at = 0; at < kBucketSlots; ++at) {
    const BucketPair pair = layout::BucketsOf(own[at].tag, pages);
    const uint32_t other = pair.first == bucket ? pair.second : pair.first;
    if (counts[other] == kBucketSlots) continue;
    slots[size_t{other} * kBucketSlots + counts[other]++] = own[at];
    own[at] = own[--counts[bucket]];
    own[counts[bucket]] = {0, 0};
    return true;
  }
  return false;
}

SlotTable::Segment SlotTable::SegmentOf(uint64_t hash) const {
  const uint64_t* const entry = EntryOf(hash);
  Segment segment;
  segment.pages.resize(PartPages(EntryPart(entry, 0)));
  for (uint32_t i = 0; i < segment.pages.size(); ++i) {
    segment.pages[i] = static_cast<uint32_t>(PartPage(EntryPart(entry, i)));
  }
  segment.depth = StampDepth(High(*memory_.At(segment.pages[0] * kPageBytes)));
  segment.first = DirectoryIndex(hash, segment.depth) << (depth_ - segment.depth);
  return segment;
}

std::vector<SlotTable::Slot> SlotTable::SlotsOf(const Segment& segment) const {
  std::vector<Slot> slots;
  slots.reserve(kSegmentSlotsMax);
  for (const uint32_t page : segment.pages) {
    const uint64_t* bucket = memory_.At(page * kPageBytes);
    for (uint32_t i = 0; i < kPageBuckets; ++i, bucket += kBucketWords) {
      for (size_t at = 1; at < kBucketVersionEnd; at += 2) {
        if (bucket[at] != 0) slots.push_back({bucket[at], bucket[at + 1]});
      }
    }
  }
  return slots;
}

// A reader that comes with an old entry finds other stamps, or an odd version; one that finds the
// new entry before all buckets are written likewise.
void SlotTable::Publish(const Image& image, size_t first, uint32_t depth,
                        std::vector<uint32_t>& spare) {
  const uint64_t hash = depth_ == 0 ? 0 : uint64_t{first} << (64 - depth_);
  uint64_t entry[kEntryWords] = {};
  for (uint32_t page = 0; page < image.pages; ++page) {
    if (spare.empty()) {
      spare.push_back(static_cast<uint32_t>(memory_.Allocate(1) / kPageBytes));
    }
    const uint32_t number = spare.back();
    spare.pop_back();
    entry[page / 2] |= uint64_t{PackPart(number, image.pages)} << (page % 2 * 32);
    const uint32_t stamp = Stamp(hash, depth, image.pages, page);
    uint64_t* bucket = memory_.At(number * kPageBytes);
    const Slot* slot = &image.slots[size_t{page} * kPageSlots];
    for (uint32_t i = 0; i < kPageBuckets; ++i, bucket += kBucketWords) {
      StoreWord(bucket, BucketVersion(stamp, 1));
      StoreWord(bucket + kBucketVersionEnd, BucketVersion(stamp, 1));
      for (size_t at = 1; at < kBucketVersionEnd; at += 2, ++slot) {
        StoreWord(bucket + at, slot->tag);
        StoreWord(bucket + at + 1, slot->place);
      }
      StoreWord(bucket + kBucketVersionEnd, BucketVersion(stamp, 2));
      StoreWord(bucket, BucketVersion(stamp, 2));
    }
  }
  for (size_t i = first; i < first + (size_t{1} << (depth_ - depth)); ++i) {
    for (size_t word = 0; word < kEntryWords; ++word) {
      StoreWord(directory_ + i * kEntryWords + word, entry[word]);
    }
  }
  bucket_count_ += size_t{image.pages} * kPageBuckets;
}

bool SlotTable::Grow(uint64_t hash) {
  Segment segment = SegmentOf(hash);
  const std::vector<Slot> slots = SlotsOf(segment);
  const auto now = static_cast<uint32_t>(segment.pages.size());
  Image image;
  // By an eighth: less would move every slot more often, more would leave more room empty.
  const uint32_t step = 1 + now / 8;
  for (uint32_t pages = now; pages < kSegmentPagesMax;) {
    pages = std::min(pages + step, kSegmentPagesMax);
    if (!image.Fill(slots, pages)) continue;
    bucket_count_ -= size_t{now} * kPageBuckets;
    Publish(image, segment.first, segment.depth, segment.pages);
    return true;
  }
  return Split(hash, segment, slots);
}

bool SlotTable::Split(uint64_t hash, const Segment& segment, const std::vector<Slot>& slots) {
  const uint32_t depth = segment.depth + 1;
  if (slots.size() < kHonestSlotsMin || depth > kDepthMax) return false;
  std::vector<Slot> halves[2];
  for (const Slot& slot : slots) halves[(slot.tag >> (64 - depth)) & 1].push_back(slot);
  Image images[2];
  for (int half = 0; half < 2; ++half) {
    // Full to about 80%: the first page more comes soon, but not at once.
    uint32_t pages = static_cast<uint32_t>(halves[half].size()) * 5 / (4 * kPageSlots) + 1;
    while (pages <= kSegmentPagesMax && !images[half].Fill(halves[half], pages)) ++pages;
    if (pages > kSegmentPagesMax) return false;
  }
  if (depth > depth_) DoubleDirectory();
  const size_t span = size_t{1} << (depth_ - depth);
  const size_t first = DirectoryIndex(hash, depth_) / (2 * span) * (2 * span);
  // The upper half gets other pages first, so that its keys are always somewhere; then the lower
  // half is written where all was.
  std::vector<uint32_t> fresh;
  std::vector<uint32_t> own = segment.pages;
  bucket_count_ -= own.size() * kPageBuckets;
  Publish(images[1], first + span, depth, fresh);
  Publish(images[0], first, depth, own);
  for (const uint32_t page : own) {
    // Who comes with an old entry must not take it for what it was.
    uint64_t* const words = memory_.At(page * kPageBytes);
    for (size_t i = 0; i < kPageBuckets; ++i) StoreWord(words + i * kBucketWords, 1);
    memory_.Free(page * kPageBytes, 1);
  }
  return true;
}

void SlotTable::DoubleDirectory() {
  const uint64_t old_address = directory_address_;
  const uint64_t* const old = directory_;
  directory_address_ = memory_.Allocate(DirectoryPages(depth_ + 1));
  directory_ = memory_.At(directory_address_);
  for (size_t i = 0; i < size_t{2} << depth_; ++i) {
    for (size_t word = 0; word < kEntryWords; ++word) {
      StoreWord(directory_ + i * kEntryWords + word, old[i / 2 * kEntryWords + word]);
    }
  }
  ++depth_;
  if (publish_ != nullptr) publish_(publish_argument_);
  memory_.Free(old_address, DirectoryPages(depth_ - 1));
}

void SlotTable::CheckInvariants() const {
  uint64_t slots = 0, buckets = 0;
  for (size_t i = 0; i < size_t{1} << depth_;) {
    const uint64_t some_hash = depth_ == 0 ? 0 : uint64_t{i} << (64 - depth_);
    const Segment segment = SegmentOf(some_hash);
    const auto pages = static_cast<uint32_t>(segment.pages.size());
    KVC_CHECK(segment.depth <= depth_ && segment.first == i);
    const size_t span = size_t{1} << (depth_ - segment.depth);
    const uint64_t* const entry = EntryOf(some_hash);
    for (size_t at = 0; at < span * kEntryWords; ++at) {
      KVC_CHECK(entry[at] == entry[at % kEntryWords]);
    }
    buckets += size_t{pages} * kPageBuckets;
    for (uint32_t b = 0; b < pages * kPageBuckets; ++b) {
      const uint64_t* const bucket = BucketAt(entry, b);
      KVC_CHECK(bucket[0] == bucket[kBucketVersionEnd] && bucket[0] % 2 == 0);
      KVC_CHECK(High(bucket[0]) == Stamp(some_hash, segment.depth, pages, b / kPageBuckets));
      for (size_t at = 1; at < kBucketVersionEnd; at += 2) {
        if (bucket[at] == 0) continue;
        ++slots;
        const BucketPair pair = layout::BucketsOf(bucket[at], pages);
        KVC_CHECK(pair.first == b || pair.second == b);
        KVC_CHECK(EntryOf(bucket[at]) >= entry && EntryOf(bucket[at]) < entry + span * kEntryWords);
      }
    }
    i += span;
  }
  KVC_CHECK(slots == slot_count_ && buckets == bucket_count_);
}

}  // namespace kvcfs::meta
