// Time that tests can move.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

namespace kvcfs {

using Millis = std::chrono::milliseconds;

class Clock {
 public:
  virtual ~Clock() = default;
  // Since an arbitrary start; never goes back.
  virtual Millis Monotonic() const = 0;
  // Nanoseconds since 1970, for st_mtime and the like.
  virtual int64_t WallNanos() const = 0;
};

class SystemClock final : public Clock {
 public:
  Millis Monotonic() const override {
    return std::chrono::duration_cast<Millis>(std::chrono::steady_clock::now().time_since_epoch());
  }
  int64_t WallNanos() const override {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(
               std::chrono::system_clock::now().time_since_epoch())
        .count();
  }
};

class ManualClock final : public Clock {
 public:
  Millis Monotonic() const override { return Millis(millis_.load()); }
  int64_t WallNanos() const override { return millis_.load() * 1'000'000; }
  void Advance(Millis by) { millis_ += by.count(); }

 private:
  std::atomic<int64_t> millis_{1'000'000};
};

}  // namespace kvcfs
