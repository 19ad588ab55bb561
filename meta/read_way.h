// Whether copies are read one-sided or by a call: what took less so far, by the copy's length.
//
// Each way's time is a moving average for lengths of the same power of two. A way that was never
// tried is tried next; later the dearer one is tried now and then, so that a change is noticed.
// What failed is measured too: it cost its time. Threads: one at a time.
#pragma once

#include <array>
#include <bit>
#include <chrono>
#include <cstddef>
#include <cstdint>

namespace kvcfs::meta {

enum class Way : uint8_t { kOneSided, kCall };

class ReadWay {
 public:
  // One in so many goes the dearer way.
  static constexpr uint32_t kTryOther = 64;

  Way Choose(size_t length) {
    Costs& costs = costs_[ClassOf(length)];
    for (const Way way : {Way::kOneSided, Way::kCall}) {
      if (costs.nanos[Index(way)] == 0) return way;
    }
    const Way cheaper = costs.nanos[Index(Way::kCall)] < costs.nanos[Index(Way::kOneSided)]
                            ? Way::kCall
                            : Way::kOneSided;
    if (++costs.turns % kTryOther != 0) return cheaper;
    return cheaper == Way::kCall ? Way::kOneSided : Way::kCall;
  }
  void Took(Way way, size_t length, std::chrono::nanoseconds time) {
    double& nanos = costs_[ClassOf(length)].nanos[Index(way)];
    const auto now = static_cast<double>(time.count() > 0 ? time.count() : 1);
    nanos = nanos == 0 ? now : nanos + (now - nanos) / kMemory;
  }

 private:
  static constexpr double kMemory = 16;  // reads
  struct Costs {
    std::array<double, 2> nanos{};  // [way]; 0: not known
    uint32_t turns = 0;
  };
  static size_t Index(Way way) { return static_cast<size_t>(way); }
  static size_t ClassOf(size_t length) { return static_cast<size_t>(std::bit_width(length)); }

  std::array<Costs, 65> costs_{};  // [bits of the length]
};

}  // namespace kvcfs::meta
