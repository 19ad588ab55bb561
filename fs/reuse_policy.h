// Which leaf goes when room is wanted: the one whose keeping is worth least, learned from use.
//
// What a block is worth: over all times h that it may still be kept, the largest ratio of the
// chance that it is used within h to the time it is kept for that (Gittins' index). Chances come
// from counts of how long after a use blocks were used again, one histogram for blocks used once,
// twice, three times, and more often, each apart for blocks at the tip of what was asked. So what
// a conversation proves (a second turn makes a third likely; nobody answers within seconds) is
// found in what happens, with no parameter of a trace. Blocks that are gone are remembered for ten
// times as many uses as there are blocks cached, else the counts would only know what the cache
// itself allows. Where the counts do not tell leaves apart by a third, and by more than the chance
// that is in them, the least recently used goes, as in leaf-first LRU: chance would else decide,
// and never for the better. Time is counted in uses. I/O-free. Threads: one at a time (the caller's
// lock). Memory: 12 B for each of 16 to 32 times the cached blocks, at most 24 MiB. Source: Gittins
// 1979; LHD (Beckmann et al., NSDI 2018) has the same counts and one fixed horizon. Measured by
// bench/policy_sim.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace kvcfs::fs {

class ReusePolicy {
 public:
  // 64: the worst of so many leaves taken at random is nearly the worst of all.
  static constexpr size_t kCandidates = 64;

  ReusePolicy();

  // A block was used: published, or read; said once for all the calls of one request.
  struct Use {
    uint64_t hash = 0;           // any of the block's that is uniform
    bool tip = false;            // the last block of what was asked, or written
    bool was_cached = false;     // else it is published now
    uint64_t cached_blocks = 0;  // of all
  };
  void Used(const Use& use);
  // A block was published behind it: it is no tip any more.
  void Extended(uint64_t hash);

  // Which of these leaves should go. The first is the least recently used one, the others are any.
  size_t Choose(std::span<const uint64_t> hashes) const;

  // The chance of a use, per use of any block for which it is kept. 0: never heard of.
  double Worth(uint64_t hash) const { return EstimateOf(hash).likely; }

  // False: too little was seen to judge; Choose answers 0.
  bool learned() const { return rounds_ >= kRoundsMin; }
  uint64_t bytes() const;

 private:
  static constexpr uint32_t kUsesMax = 4;
  static constexpr size_t kClasses = size_t{2} * kUsesMax;
  static constexpr size_t kPerOctave = 4;
  static constexpr size_t kBuckets = 31 * kPerOctave;
  static constexpr uint32_t kRoundsMin = 2;
  static constexpr size_t kWays = 4;

  struct Entry {
    uint32_t hash = 0;
    uint32_t last = 0;  // the use of any block that was its last
    uint32_t uses = 0;  // 0: free; above kUsesMax - 1 they count no further
    bool tip() const { return (uses & kTip) != 0; }
    size_t group() const { return ((uses & ~kTip) - 1) * 2 + (tip() ? 1 : 0); }
  };
  static constexpr uint32_t kTip = 1u << 31;

  struct Estimate {
    double least = 0, likely = 0, most = 0;
  };

  struct Group {
    double uses = 0;
    std::array<double, kBuckets> again{};  // of which used again at that age
    std::array<Estimate, kBuckets> worth{};
  };

  static size_t BucketOf(uint32_t age);
  static Estimate Estimated(double used, double kept);
  const Entry* Find(uint64_t hash) const;
  Estimate EstimateOf(uint64_t hash) const;
  size_t SetOf(uint32_t name) const;
  Entry& Take(uint64_t hash);  // its entry; else a new one in the place of the oldest
  Entry& TakeNamed(uint32_t name);
  void Grow(uint64_t cached_blocks);
  void Learn();
  void CompareWithLru(uint64_t cached_blocks);

  std::vector<Entry> entries_;  // [set][way]
  std::array<Group, kClasses> groups_;
  uint32_t clock_ = 0;
  uint64_t uses_since_ = 0;
  uint32_t rounds_ = 0;
  uint32_t lru_age_ = 0;  // the last use of the oldest block that LRU would have; 0: not known
  double hits_ = 0, lru_hits_ = 0;
};

}  // namespace kvcfs::fs
