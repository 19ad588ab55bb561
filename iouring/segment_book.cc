#include "iouring/segment_book.h"

#include <algorithm>
#include <utility>

#include "iouring/segment_format.h"

namespace kvcfs::iouring {
namespace {

// One for what is moved, one for what is appended ...
constexpr uint64_t kFreeMin = 2;
// ... and one more per that many segments: reclaim begins below that, early enough that appends do
// not wait for it.
constexpr uint64_t kSegmentsPerFree = 32;
// Reclaiming a segment must gain at least this share of it, or it is only wear.
constexpr uint64_t kGainDivisor = 16;
// After that time somebody who waits for room makes the reclaimer try again.
constexpr auto kAskAgainAfter = std::chrono::milliseconds(50);

bool HoldsEntries(SegmentState state) {
  return state == SegmentState::kOpen || state == SegmentState::kSealed ||
         state == SegmentState::kRetired;
}

bool IsEmpty(const SegmentInfo& info) {
  return info.state == SegmentState::kSealed && !info.erasing && info.live_bytes == 0 &&
         info.tombstones == 0;
}

}  // namespace

SegmentBook::SegmentBook(const SegmentBookOptions& options)
    : options_(options), segments_(options.segment_count + 1) {}

void SegmentBook::Put(uint32_t number, SegmentInfo info) {
  MutexLock lock(mutex_);
  if (number >= segments_.size()) segments_.resize(number + 1);
  info.excess = number > options_.segment_count;
  std::sort(info.identities.begin(), info.identities.end());
  segments_[number] = std::move(info);
}

void SegmentBook::SetNextSequence(uint64_t next) {
  MutexLock lock(mutex_);
  next_sequence_ = next;
}

uint64_t SegmentBook::TakeSequence() {
  MutexLock lock(mutex_);
  return next_sequence_++;
}

uint64_t SegmentBook::last_sequence() const {
  MutexLock lock(mutex_);
  return next_sequence_ - 1;
}

uint64_t SegmentBook::CountFree() const {
  uint64_t count = 0;
  for (size_t number = 1; number < segments_.size(); ++number) {
    const SegmentInfo& info = segments_[number];
    if (info.excess) continue;
    const bool may_be_made = info.state == SegmentState::kAbsent && !disk_full_;
    if (info.state == SegmentState::kFree || may_be_made) ++count;
  }
  return count;
}

uint64_t SegmentBook::CountErased() const {
  return static_cast<uint64_t>(std::count_if(
      segments_.begin(), segments_.end(),
      [](const SegmentInfo& info) { return info.state == SegmentState::kFree && !info.excess; }));
}

std::optional<SegmentBook::Opened> SegmentBook::TakeFree(Lane lane) {
  MutexLock lock(mutex_);
  if (CountErased() < (lane == Lane::kAppends ? kFreeMin : 1)) return std::nullopt;
  for (uint32_t number = 1; number < segments_.size(); ++number) {
    SegmentInfo& info = segments_[number];
    if (info.state != SegmentState::kFree || info.excess) continue;
    info.state = SegmentState::kOpen;
    info.first_sequence = info.last_sequence = next_sequence_++;
    info.live_bytes = 0;
    info.used_bytes = 0;
    info.tombstones = info.kept_tombstones = 0;
    info.sealed_early = false;
    info.identities.clear();
    changed_.notify_all();
    return Opened{number, info.first_sequence, info.file};
  }
  return std::nullopt;
}

std::optional<uint32_t> SegmentBook::TakeAbsent(bool although_full) {
  MutexLock lock(mutex_);
  if (disk_full_ && reclaiming_ && !although_full) return std::nullopt;
  for (uint32_t number = 1; number < segments_.size(); ++number) {
    const SegmentInfo& info = segments_[number];
    if (info.state == SegmentState::kAbsent && !info.excess && !info.erasing) {
      segments_[number].erasing = true;  // being made: nobody else takes it
      return number;
    }
  }
  return std::nullopt;
}

void SegmentBook::PutMade(uint32_t number, std::shared_ptr<BlockFile> file) {
  MutexLock lock(mutex_);
  SegmentInfo& info = segments_[number];
  info = SegmentInfo{};
  info.state = SegmentState::kFree;
  info.file = std::move(file);
  disk_full_ = false;
  room_is_out_ = false;
}

void SegmentBook::MakingFailed(uint32_t number, Code code) {
  MutexLock lock(mutex_);
  segments_[number].erasing = false;
  if (code != Code::kNoSpace && MayRetireLocked()) {
    segments_[number].state = SegmentState::kRetired;  // another may do
  } else {
    disk_full_ = true;
  }
  changed_.notify_all();
}

void SegmentBook::NoteEntry(uint32_t number, const EntryMeta& meta) {
  MutexLock lock(mutex_);
  SegmentInfo& info = segments_[number];
  info.last_sequence = std::max(info.last_sequence, meta.sequence);
  info.used_bytes += LayoutOf(meta.length).total_bytes;
  if (IsTombstone(meta.kind)) {
    ++info.tombstones;
    if (meta.origin != meta.sequence) ++info.kept_tombstones;
  } else {
    info.identities.push_back(IdentityHash(meta));
  }
}

void SegmentBook::Sealed(uint32_t number, bool early) {
  MutexLock lock(mutex_);
  SegmentInfo& info = segments_[number];
  info.sealed_early = info.sealed_early || early;
  info.state = SegmentState::kSealed;
  std::sort(info.identities.begin(), info.identities.end());
  info.identities.shrink_to_fit();
  ChangedLocked();
}

bool SegmentBook::MayRetireLocked() const {
  uint64_t retired = 0;
  for (const SegmentInfo& info : segments_) {
    if (info.state == SegmentState::kRetired) ++retired;
  }
  return retired < std::max<uint64_t>(1, options_.segment_count / 4);
}

bool SegmentBook::Retire(uint32_t number) {
  MutexLock lock(mutex_);
  SegmentInfo& info = segments_[number];
  info.erasing = false;
  std::sort(info.identities.begin(), info.identities.end());
  const bool retire = MayRetireLocked();
  info.state = retire ? SegmentState::kRetired : SegmentState::kSealed;
  ChangedLocked();
  return retire;
}

bool SegmentBook::RoomIsOut() {
  MutexLock lock(mutex_);
  if (!reclaiming_) return true;
  if (!room_is_out_) return false;
  if (std::chrono::steady_clock::now() - out_since_ < kAskAgainAfter) return true;
  ChangedLocked();
  return false;
}

// Something may be possible that was not: the reclaimer looks again.
bool SegmentBook::ChangedLocked() {
  changed_.notify_all();
  return std::exchange(room_is_out_, false);
}

SegmentInfo* SegmentBook::Find(const SegmentPlace& place) {
  if (place.segment == 0 || place.segment >= segments_.size()) return nullptr;
  SegmentInfo& info = segments_[place.segment];
  if (!HoldsEntries(info.state) || info.erasing || place.sequence < info.first_sequence ||
      place.sequence > info.last_sequence ||
      place.offset_4k >= options_.segment_bytes / kPageBytes) {
    return nullptr;
  }
  return &info;
}

void SegmentBook::AddLive(const SegmentPlace& place, uint64_t length) {
  (void)MarkLive(place, length);
}

bool SegmentBook::MarkLive(const SegmentPlace& place, uint64_t length) {
  const uint64_t bytes = LayoutOf(length).total_bytes;
  MutexLock lock(mutex_);
  SegmentInfo* info = Find(place);
  if (info == nullptr) return false;
  info->live_bytes += bytes;
  live_bytes_ += bytes;
  return true;
}

void SegmentBook::MarkDead(const SegmentPlace& place, uint64_t length) {
  MutexLock lock(mutex_);
  SegmentInfo* info = Find(place);
  if (info == nullptr) return;  // it went with its segment
  const uint64_t bytes = std::min(LayoutOf(length).total_bytes, info->live_bytes);
  info->live_bytes -= bytes;
  live_bytes_ -= bytes;
  if (room_is_out_ || IsEmpty(*info)) ChangedLocked();
}

void SegmentBook::AddTo(SegmentStats& stats) const {
  MutexLock lock(mutex_);
  stats.capacity_bytes = options_.segment_count * options_.segment_bytes;
  stats.live_bytes = live_bytes_;
  for (size_t number = 1; number < segments_.size(); ++number) {
    const SegmentInfo& info = segments_[number];
    switch (info.state) {
      case SegmentState::kAbsent:
        if (!info.excess && !disk_full_) ++stats.segments_free;
        break;
      case SegmentState::kFree:
        ++stats.segments_free;
        break;
      case SegmentState::kOpen:
        break;
      case SegmentState::kSealed:
        if (IsEmpty(info)) {
          ++stats.segments_free;
        } else {
          ++stats.segments_sealed;
        }
        break;
      case SegmentState::kRetired:
      case SegmentState::kUnknown:
        ++stats.segments_retired;
        break;
    }
  }
}

std::optional<SegmentBook::Pinned> SegmentBook::Pin(const SegmentPlace& place) {
  MutexLock lock(mutex_);
  SegmentInfo* info = Find(place);
  if (info == nullptr) return std::nullopt;
  ++info->readers;
  return Pinned{info->file, info->first_sequence};
}

void SegmentBook::Unpin(uint32_t number) {
  MutexLock lock(mutex_);
  if (--segments_[number].readers == 0 && segments_[number].erasing) changed_.notify_all();
}

std::optional<uint32_t> SegmentBook::FindEmptyLocked() const {
  for (uint32_t number = 1; number < segments_.size(); ++number) {
    if (IsEmpty(segments_[number])) return number;
  }
  return std::nullopt;
}

bool SegmentBook::HasEnoughFree() const {
  MutexLock lock(mutex_);
  return CountFree() >= FreeWanted();
}

std::optional<uint32_t> SegmentBook::FindEmpty() const {
  MutexLock lock(mutex_);
  return FindEmptyLocked();
}

uint64_t SegmentBook::FreeWanted() const {
  return kFreeMin + options_.segment_count / kSegmentsPerFree;
}

bool SegmentBook::IsFilling() const {
  return std::any_of(segments_.begin(), segments_.end(),
                     [](const SegmentInfo& info) { return info.state == SegmentState::kOpen; });
}

SegmentBook::Need SegmentBook::NeedLocked() const {
  if (FindEmptyLocked() && !room_is_out_) return Need::kErase;
  const uint64_t free = CountFree();
  if (CountErased() < kFreeMin && free >= kFreeMin && IsFilling()) return Need::kMake;
  // What lies beyond the capacity moves within it, so room for it is wanted as well: one segment
  // more than is kept free in any case.
  const bool excess = std::any_of(segments_.begin(), segments_.end(), [](const SegmentInfo& info) {
    return info.excess && info.state == SegmentState::kSealed && !info.erasing;
  });
  if (free < FreeWanted()) return room_is_out_ ? Need::kNothing : Need::kRoom;
  if (!excess || room_is_out_) return Need::kNothing;
  return free > FreeWanted() ? Need::kShrink : Need::kRoom;
}

SegmentBook::Need SegmentBook::WaitForNeed() {
  MutexLock lock(mutex_);
  for (;;) {
    if (stopping_) return Need::kNothing;
    const Need need = NeedLocked();
    if (need != Need::kNothing) return need;
    changed_.wait(lock.native());
  }
}

void SegmentBook::SetReclaiming(bool running) {
  MutexLock lock(mutex_);
  reclaiming_ = running;
}

void SegmentBook::Stop() {
  MutexLock lock(mutex_);
  stopping_ = true;
  changed_.notify_all();
}

bool SegmentBook::stopping() const {
  MutexLock lock(mutex_);
  return stopping_;
}

uint64_t SegmentBook::LiveBytesAboveTarget() const {
  MutexLock lock(mutex_);
  uint64_t usable = 0;
  for (size_t number = 1; number < segments_.size(); ++number) {
    const SegmentInfo& info = segments_[number];
    const bool is_there = HoldsEntries(info.state) && info.state != SegmentState::kRetired;
    const bool may_be = info.state == SegmentState::kAbsent && !disk_full_;
    if (!info.excess && (is_there || may_be || info.state == SegmentState::kFree)) ++usable;
  }
  // Some are kept free and a head is half empty; of the rest a tenth must be dead, or reclaim would
  // copy more than it gains. Few segments leave less than `live_share_max`.
  const double all = static_cast<double>(usable * options_.segment_bytes);
  const uint64_t slack = FreeWanted() + 1;
  const double packed =
      0.9 * static_cast<double>((usable > slack ? usable - slack : 0) * options_.segment_bytes);
  const auto target = static_cast<uint64_t>(std::min(options_.live_share_max * all, packed));
  return live_bytes_ > target ? live_bytes_ - target : 0;
}

uint64_t SegmentBook::GainOf(const SegmentInfo& info) const {
  const uint64_t wanted = info.live_bytes + info.kept_tombstones * kPageBytes;
  // What does not fit behind the last entry is no gain: it would not fit elsewhere either.
  const uint64_t taken = info.sealed_early ? options_.segment_bytes : info.used_bytes;
  return taken > wanted ? taken - wanted : 0;
}

std::optional<SegmentBook::Victim> SegmentBook::PickVictim(bool excess) const {
  MutexLock lock(mutex_);
  std::optional<Victim> best;
  uint64_t best_bytes = UINT64_MAX;
  for (uint32_t number = 1; number < segments_.size(); ++number) {
    const SegmentInfo& info = segments_[number];
    if (info.state != SegmentState::kSealed || info.erasing || info.excess != excess) continue;
    const uint64_t bytes = info.live_bytes + info.tombstones * kPageBytes;
    if (bytes >= best_bytes) continue;
    if (!excess && GainOf(info) < options_.segment_bytes / kGainDivisor) continue;
    best_bytes = bytes;
    best = Victim{number, info.first_sequence, info.live_bytes, info.file};
  }
  return best;
}

bool SegmentBook::IsHeldElsewhere(uint32_t number, uint32_t identity) const {
  MutexLock lock(mutex_);
  for (uint32_t other = 1; other < segments_.size(); ++other) {
    const SegmentInfo& info = segments_[other];
    if (other == number || !HoldsEntries(info.state)) continue;
    const auto begin = info.identities.begin();
    const auto end = info.identities.end();
    // Only what is being filled is not sorted.
    const bool held = info.state == SegmentState::kOpen ? std::find(begin, end, identity) != end
                                                        : std::binary_search(begin, end, identity);
    if (held) return true;
  }
  return false;
}

SegmentBook::Victim SegmentBook::BeginErase(uint32_t number) {
  MutexLock lock(mutex_);
  SegmentInfo& info = segments_[number];
  info.erasing = true;
  while (segments_[number].readers != 0) changed_.wait(lock.native());
  const SegmentInfo& now = segments_[number];
  return Victim{number, now.first_sequence, now.live_bytes, now.file};
}

void SegmentBook::Erased(uint32_t number, bool file_kept) {
  MutexLock lock(mutex_);
  SegmentInfo& info = segments_[number];
  live_bytes_ -= info.live_bytes;
  const bool excess = info.excess;
  std::shared_ptr<BlockFile> file = std::move(info.file);
  info = SegmentInfo{};
  info.excess = excess;
  if (file_kept) {
    info.file = std::move(file);
    info.state = SegmentState::kFree;
  }
  ChangedLocked();
}

bool SegmentBook::IsExcess(uint32_t number) const {
  MutexLock lock(mutex_);
  return segments_[number].excess;
}

void SegmentBook::SetRoomIsOut() {
  MutexLock lock(mutex_);
  room_is_out_ = true;
  out_since_ = std::chrono::steady_clock::now();
}

}  // namespace kvcfs::iouring
