#include "fs/reuse_policy.h"

#include <algorithm>
#include <cmath>

namespace kvcfs::fs {
namespace {

constexpr uint64_t kEntriesMin = 1u << 14;
constexpr uint64_t kEntriesMax = 1u << 21;
constexpr uint64_t kEntriesPerBlock = 16;
constexpr uint64_t kRememberedPerBlock = 10;
constexpr uint64_t kRoundUsesMin = 1024;
// 0.97: half of what is known is of the last 23 rounds.
constexpr double kKeptShare = 0.97;
constexpr double kMargin = 1.0 / 3;
// Of what is counted, either way: the worst of 64 estimates would else be the most mistaken one.
constexpr double kDeviations = 2;
// LRU is better if it had 2% more hits (and more than chance may give it) in the last some 5
// rounds.
constexpr double kBehindShare = 0.02;
constexpr double kComparedShare = 0.8;

uint64_t Remembered(uint64_t cached_blocks) {
  return kRememberedPerBlock * std::max(cached_blocks, kRoundUsesMin);
}

// 32,768 of the entries tell the rank of an age well enough.
constexpr size_t kRankedMax = 1u << 15;

}  // namespace

// Score interval of a Poisson count.
ReusePolicy::Estimate ReusePolicy::Estimated(double used, double kept) {
  if (kept <= 0) return {};
  constexpr double kHalf = kDeviations * kDeviations / 2;
  const double either_way = kDeviations * std::sqrt(used + kHalf / 2);
  return {std::max(0.0, used + kHalf - either_way) / kept, used / kept,
          (used + kHalf + either_way) / kept};
}

ReusePolicy::ReusePolicy() : entries_(kEntriesMin) {}

uint64_t ReusePolicy::bytes() const {
  return sizeof(*this) + entries_.capacity() * sizeof(Entry);
}

size_t ReusePolicy::SetOf(uint32_t name) const {
  return name % (entries_.size() / kWays) * kWays;
}

size_t ReusePolicy::BucketOf(uint32_t age) {
  if (age == 0) return 0;
  const double octaves = std::log2(static_cast<double>(age));
  return std::min(kBuckets - 1, static_cast<size_t>(octaves * kPerOctave));
}

const ReusePolicy::Entry* ReusePolicy::Find(uint64_t hash) const {
  const auto name = static_cast<uint32_t>(hash >> 32);
  const size_t set = SetOf(name);
  for (size_t way = 0; way < kWays; ++way) {
    const Entry& entry = entries_[set + way];
    if (entry.uses != 0 && entry.hash == name) return &entry;
  }
  return nullptr;
}

ReusePolicy::Entry& ReusePolicy::Take(uint64_t hash) {
  return TakeNamed(static_cast<uint32_t>(hash >> 32));
}

ReusePolicy::Entry& ReusePolicy::TakeNamed(uint32_t name) {
  const size_t set = SetOf(name);
  Entry* oldest = &entries_[set];
  for (size_t way = 0; way < kWays; ++way) {
    Entry& entry = entries_[set + way];
    if (entry.uses != 0 && entry.hash == name) return entry;
    if (oldest->uses == 0) continue;
    if (entry.uses == 0 || clock_ - entry.last > clock_ - oldest->last) oldest = &entry;
  }
  *oldest = Entry{.hash = name, .last = clock_, .uses = 0};
  return *oldest;
}

void ReusePolicy::Grow(uint64_t cached_blocks) {
  const uint64_t wanted = std::min(kEntriesMax, kEntriesPerBlock * cached_blocks);
  if (entries_.size() >= wanted) return;
  std::vector<Entry> before(2 * entries_.size());
  std::swap(before, entries_);
  // A set of the smaller table is two of the larger one, so all find room.
  for (const Entry& entry : before) {
    if (entry.uses != 0) TakeNamed(entry.hash) = entry;
  }
}

void ReusePolicy::Used(const Use& use) {
  Grow(use.cached_blocks);
  ++clock_;
  Entry& entry = Take(use.hash);
  if (lru_age_ > 0 && use.was_cached) hits_ += 1;
  if (entry.uses != 0) {
    const uint32_t age = clock_ - entry.last;
    if (age < lru_age_) lru_hits_ += 1;
    if (age < Remembered(use.cached_blocks)) {
      groups_[entry.group()].again[BucketOf(age)] += 1;
    } else {
      entry.uses = 0;
    }
  }
  const uint32_t uses = std::min((entry.uses & ~kTip) + 1, kUsesMax);
  entry.uses = uses | (use.tip ? kTip : 0);
  entry.last = clock_;
  groups_[entry.group()].uses += 1;
  if (++uses_since_ < std::max(use.cached_blocks, kRoundUsesMin)) return;
  uses_since_ = 0;
  ++rounds_;
  CompareWithLru(use.cached_blocks);
  Learn();
}

void ReusePolicy::Extended(uint64_t hash) {
  const auto name = static_cast<uint32_t>(hash >> 32);
  const size_t set = SetOf(name);
  for (size_t way = 0; way < kWays; ++way) {
    Entry& entry = entries_[set + way];
    if (entry.uses == 0 || entry.hash != name || !entry.tip()) continue;
    double& as_tip = groups_[entry.group()].uses;
    as_tip = std::max(0.0, as_tip - 1);
    entry.uses &= ~kTip;
    groups_[entry.group()].uses += 1;
  }
}

void ReusePolicy::CompareWithLru(uint64_t cached_blocks) {
  if (lru_hits_ - hits_ > kBehindShare * lru_hits_ + 3 * std::sqrt(lru_hits_)) {
    groups_ = {};
    rounds_ = 0;
    hits_ = lru_hits_ = 0;
  }
  hits_ *= kComparedShare;
  lru_hits_ *= kComparedShare;
  // Entries lie by their hash, so the first of them are as good as any.
  const size_t ranked = std::min(entries_.size(), kRankedMax);
  std::vector<uint32_t> ages;
  for (size_t i = 0; i < ranked; ++i) {
    if (entries_[i].uses != 0) ages.push_back(clock_ - entries_[i].last);
  }
  const uint64_t would_be_cached = cached_blocks * ranked / entries_.size();
  if (would_be_cached == 0 || ages.size() < would_be_cached) {
    lru_age_ = 0;
    return;
  }
  const auto oldest = ages.begin() + static_cast<std::ptrdiff_t>(would_be_cached - 1);
  std::nth_element(ages.begin(), oldest, ages.end());
  lru_age_ = *oldest;
}

void ReusePolicy::Learn() {
  static const std::array<double, kBuckets> widths = [] {
    std::array<double, kBuckets> of{};
    for (size_t b = 0; b < kBuckets; ++b) {
      const auto octaves = static_cast<double>(b) / kPerOctave;
      // Ages below 2^(1/4) are in the first.
      const double least = b == 0 ? 0 : std::exp2(octaves);
      of[b] = std::exp2(octaves + 1.0 / kPerOctave) - least;
    }
    return of;
  }();
  for (Group& group : groups_) {
    // left[b]: how many had not been used again when they came to bucket b.
    std::array<double, kBuckets + 1> left{};
    left[0] = group.uses;
    for (size_t b = 0; b < kBuckets; ++b) left[b + 1] = std::max(0.0, left[b] - group.again[b]);
    for (size_t from = 0; from < kBuckets; ++from) {
      double used = 0, kept = 0, best_used = 0, best_kept = 0;
      for (size_t b = from; b < kBuckets && left[from] > 0; ++b) {
        used += group.again[b];
        kept += widths[b] * (left[b] + left[b + 1]) / 2;
        // Without a use, all of the time is what tells how rare they are.
        if (best_used > 0 && used * best_kept <= best_used * kept) continue;
        best_used = used;
        best_kept = kept;
      }
      group.worth[from] = Estimated(best_used, best_kept);
    }
    group.uses *= kKeptShare;
    for (double& count : group.again) count *= kKeptShare;
  }
}

ReusePolicy::Estimate ReusePolicy::EstimateOf(uint64_t hash) const {
  const Entry* entry = Find(hash);
  if (entry == nullptr) return {};
  return groups_[entry->group()].worth[BucketOf(clock_ - entry->last)];
}

size_t ReusePolicy::Choose(std::span<const uint64_t> hashes) const {
  if (!learned() || hashes.empty()) return 0;
  size_t worst = 0;
  double least = (1 - kMargin) * EstimateOf(hashes[0]).least;
  for (size_t i = 1; i < hashes.size(); ++i) {
    const double worth = EstimateOf(hashes[i]).most;
    if (worth >= least) continue;
    worst = i;
    least = worth;
  }
  return worst;
}

}  // namespace kvcfs::fs
