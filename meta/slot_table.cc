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
constexpr uint32_t kDepthMax = 24;

uint32_t PageOf(const uint64_t* segment, uint32_t index) {
  const uint64_t word = segment[kSegmentPages + index / 2];
  return index % 2 == 0 ? Low(word) : High(word);
}

// Both versions odd, then the change, then both even.
void StoreSlot(uint64_t* bucket, size_t at, uint64_t tag, uint64_t place) {
  const uint32_t epoch = High(bucket[0]);
  const uint32_t count = Low(bucket[0]);
  StoreWord(bucket, BucketVersion(epoch, count + 1));
  StoreWord(bucket + kBucketVersionEnd, BucketVersion(epoch, count + 1));
  StoreWord(bucket + at, tag);
  StoreWord(bucket + at + 1, place);
  StoreWord(bucket + kBucketVersionEnd, BucketVersion(epoch, count + 2));
  StoreWord(bucket, BucketVersion(epoch, count + 2));
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
  directory_address_ = memory_.Allocate(1);
  directory_ = memory_.At(directory_address_);
  StoreWord(directory_, AddSegment());
  Image image;
  KVC_CHECK(image.Fill({}, 1));
  std::vector<uint32_t> none;
  Publish(memory_.At(directory_[0]), image, 0, none);
}

void SlotTable::OnDirectoryMoved(void (*publish)(void*), void* argument) {
  publish_ = publish;
  publish_argument_ = argument;
}

uint64_t SlotTable::bytes() const {
  const uint64_t directory_bytes = std::max(kPageBytes, kWordBytes << depth_);
  return bucket_count_ * kBucketWords * kWordBytes + segment_count_ * kSegmentBytes +
         directory_bytes;
}

uint64_t* SlotTable::BucketAt(const uint64_t* segment, uint32_t bucket) const {
  const uint64_t page = PageOf(segment, bucket / kPageBuckets);
  return memory_.At(page * kPageBytes) + size_t{bucket % kPageBuckets} * kBucketWords;
}

SlotTable::Pair SlotTable::BucketsOf(uint64_t hash) const {
  const uint64_t* const segment = SegmentOf(hash);
  const BucketPair pair =
      layout::BucketsOf(hash, ShapePages(segment[kSegmentShape]) * kPageBuckets);
  return {BucketAt(segment, pair.first), BucketAt(segment, pair.second)};
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
  const uint64_t* const segment = SegmentOf(hash);
  for (size_t at = 1; at < kBucketVersionEnd; at += 2) {
    const uint32_t buckets = ShapePages(segment[kSegmentShape]) * kPageBuckets;
    const BucketPair pair = layout::BucketsOf(bucket[at], buckets);
    uint64_t* other = BucketAt(segment, pair.first);
    if (other == bucket) other = BucketAt(segment, pair.second);
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
    const BucketPair pair = layout::BucketsOf(slot.tag, buckets);
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
    const BucketPair pair = layout::BucketsOf(own[at].tag, pages * kPageBuckets);
    const uint32_t other = pair.first == bucket ? pair.second : pair.first;
    if (counts[other] == kBucketSlots) continue;
    slots[size_t{other} * kBucketSlots + counts[other]++] = own[at];
    own[at] = own[--counts[bucket]];
    own[counts[bucket]] = {0, 0};
    return true;
  }
  return false;
}

std::vector<SlotTable::Slot> SlotTable::SlotsOf(const uint64_t* segment) const {
  std::vector<Slot> slots;
  slots.reserve(kSegmentSlotsMax);
  const uint32_t buckets = ShapePages(segment[kSegmentShape]) * kPageBuckets;
  for (uint32_t i = 0; i < buckets; ++i) {
    const uint64_t* const bucket = BucketAt(segment, i);
    for (size_t at = 1; at < kBucketVersionEnd; at += 2) {
      if (bucket[at] != 0) slots.push_back({bucket[at], bucket[at + 1]});
    }
  }
  return slots;
}

uint64_t SlotTable::AddSegment() {
  if (next_segment_ % kPageBytes == 0) next_segment_ = memory_.Allocate(1);
  const uint64_t address = next_segment_;
  next_segment_ += kSegmentBytes;
  ++segment_count_;
  uint64_t* const words = memory_.At(address);
  for (size_t i = 0; i < kSegmentWords; ++i) StoreWord(words + i, 0);
  return address;
}

void SlotTable::Publish(uint64_t* segment, const Image& image, uint32_t depth,
                        std::vector<uint32_t>& pages) {
  const uint64_t version = segment[kSegmentVersionBegin];
  bucket_count_ -= ShapePages(segment[kSegmentShape]) * kPageBuckets;
  StoreWord(segment + kSegmentVersionBegin, version + 1);
  StoreWord(segment + kSegmentVersionEnd, version + 1);
  ++epoch_;
  StoreWord(segment + kSegmentShape, SegmentShape(epoch_, image.pages, depth));
  uint32_t taken[kSegmentPagesMax] = {};
  for (uint32_t i = 0; i < image.pages; ++i) {
    if (pages.empty()) {
      pages.push_back(static_cast<uint32_t>(memory_.Allocate(1) / kPageBytes));
    }
    taken[i] = pages.back();
    pages.pop_back();
  }
  for (uint32_t i = 0; i < kSegmentPagesMax; i += 2) {
    StoreWord(segment + kSegmentPages + i / 2, layout::Pair(taken[i], taken[i + 1]));
  }
  for (uint32_t i = 0; i < image.pages * kPageBuckets; ++i) {
    uint64_t* const bucket = BucketAt(segment, i);
    StoreWord(bucket, BucketVersion(epoch_, 1));
    StoreWord(bucket + kBucketVersionEnd, BucketVersion(epoch_, 1));
    for (uint32_t at = 0; at < kBucketSlots; ++at) {
      const Slot& slot = image.slots[size_t{i} * kBucketSlots + at];
      StoreWord(bucket + 1 + 2 * at, slot.tag);
      StoreWord(bucket + 2 + 2 * at, slot.place);
    }
    StoreWord(bucket + kBucketVersionEnd, BucketVersion(epoch_, 2));
    StoreWord(bucket, BucketVersion(epoch_, 2));
  }
  StoreWord(segment + kSegmentVersionEnd, version + 2);
  StoreWord(segment + kSegmentVersionBegin, version + 2);
  bucket_count_ += image.pages * kPageBuckets;
}

bool SlotTable::Grow(uint64_t hash) {
  uint64_t* const segment = SegmentOf(hash);
  const uint64_t shape = segment[kSegmentShape];
  const std::vector<Slot> slots = SlotsOf(segment);
  Image image;
  // By an eighth: less would move every slot more often, more would leave more room empty.
  const uint32_t step = 1 + ShapePages(shape) / 8;
  for (uint32_t pages = ShapePages(shape); pages < kSegmentPagesMax;) {
    pages = std::min(pages + step, kSegmentPagesMax);
    if (!image.Fill(slots, pages)) continue;
    std::vector<uint32_t> own;
    for (uint32_t i = 0; i < ShapePages(shape); ++i) own.push_back(PageOf(segment, i));
    Publish(segment, image, ShapeDepth(shape), own);
    return true;
  }
  return Split(hash, slots);
}

bool SlotTable::Split(uint64_t hash, const std::vector<Slot>& slots) {
  uint64_t* const segment = SegmentOf(hash);
  const uint32_t depth = ShapeDepth(segment[kSegmentShape]) + 1;
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
  std::vector<uint32_t> own;
  const uint32_t own_pages = ShapePages(segment[kSegmentShape]);
  for (uint32_t i = 0; i < own_pages; ++i) own.push_back(PageOf(segment, i));
  const uint64_t added = AddSegment();
  // The half that stays gets its pages last: a reader that finds the new one empty of a key, since
  // the directory does not name it yet, comes back when the old one's epoch has changed.
  uint64_t* const upper = memory_.At(added);
  std::vector<uint32_t> fresh;
  Publish(upper, images[1], depth, fresh);
  const size_t span = size_t{1} << (depth_ - depth);
  const size_t begin = (DirectoryIndex(hash, depth_) / span | 1) * span;
  for (size_t i = 0; i < span; ++i) StoreWord(directory_ + begin + i, added);
  Publish(segment, images[0], depth, own);
  for (const uint32_t page : own) memory_.Free(page * kPageBytes, 1);
  return true;
}

void SlotTable::DoubleDirectory() {
  const auto pages = [](uint32_t depth) {
    return ((kWordBytes << depth) + kPageBytes - 1) / kPageBytes;
  };
  const uint64_t old_address = directory_address_;
  const uint64_t* const old = directory_;
  const uint64_t old_pages = pages(depth_);
  directory_address_ = memory_.Allocate(pages(depth_ + 1));
  directory_ = memory_.At(directory_address_);
  for (size_t i = 0; i < size_t{1} << depth_; ++i) {
    StoreWord(directory_ + 2 * i, old[i]);
    StoreWord(directory_ + 2 * i + 1, old[i]);
  }
  ++depth_;
  if (publish_ != nullptr) publish_(publish_argument_);
  memory_.Free(old_address, old_pages);
}

void SlotTable::CheckInvariants() const {
  uint64_t slots = 0, buckets = 0;
  const uint64_t* before = nullptr;
  for (size_t i = 0; i < size_t{1} << depth_; ++i) {
    const uint64_t* const segment = memory_.At(directory_[i]);
    if (segment == before) continue;
    before = segment;
    const uint64_t shape = segment[kSegmentShape];
    KVC_CHECK(segment[kSegmentVersionBegin] == segment[kSegmentVersionEnd]);
    KVC_CHECK(segment[kSegmentVersionBegin] % 2 == 0);
    KVC_CHECK(ShapeDepth(shape) <= depth_);
    KVC_CHECK(i % (size_t{1} << (depth_ - ShapeDepth(shape))) == 0);
    const uint32_t count = ShapePages(shape) * kPageBuckets;
    buckets += count;
    for (uint32_t b = 0; b < count; ++b) {
      const uint64_t* const bucket = BucketAt(segment, b);
      KVC_CHECK(bucket[0] == bucket[kBucketVersionEnd] && bucket[0] % 2 == 0);
      KVC_CHECK(High(bucket[0]) == ShapeEpoch(shape));
      for (size_t at = 1; at < kBucketVersionEnd; at += 2) {
        if (bucket[at] == 0) continue;
        ++slots;
        KVC_CHECK(SegmentOf(bucket[at]) == segment);
        const BucketPair pair = layout::BucketsOf(bucket[at], count);
        KVC_CHECK(pair.first == b || pair.second == b);
      }
    }
  }
  KVC_CHECK(slots == slot_count_ && buckets == bucket_count_);
}

}  // namespace kvcfs::meta
