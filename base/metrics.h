// Counters, gauges and latency histograms in Prometheus' text format.
//
// Names are `kvcfs_<folder>_<thing>_<unit>`, base units, counters end in `_total`; labels come from
// enums, never keys, paths or pids. Get a handle once (at construction of its owner), use it often.
// Threads: any. Add() and Observe() take no lock: they are a few relaxed atomic additions, so a
//   scrape may see a sum that is one observation ahead of its count.
// Memory: handles live as long as the process; the same name and labels give the same handle.
// Source: prometheus.io/docs/practices/naming; the text is prometheus-cpp's.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace kvcfs {

using MetricLabels = std::vector<std::pair<std::string, std::string>>;

class Counter {
 public:
  Counter() = default;
  Counter(const Counter&) = delete;
  Counter& operator=(const Counter&) = delete;

  void Add(double by = 1) { value_.fetch_add(by, std::memory_order_relaxed); }
  double value() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<double> value_{0};
};

// Seconds, in buckets from 1 us to 10 s: 1, 2, 5 of each decade.
class LatencyHistogram {
 public:
  static constexpr size_t kBounds = 22;
  static const std::array<int64_t, kBounds> kBoundNanos;

  LatencyHistogram() = default;
  LatencyHistogram(const LatencyHistogram&) = delete;
  LatencyHistogram& operator=(const LatencyHistogram&) = delete;

  void Observe(std::chrono::nanoseconds latency);
  uint64_t count() const;

 private:
  friend class Metrics;
  std::array<std::atomic<uint64_t>, kBounds + 1> counts_{};  // [bucket], the last: above 10 s
  std::atomic<int64_t> sum_nanos_{0};
};

// Observes the time from its construction to its end.
class LatencyTimer {
 public:
  explicit LatencyTimer(LatencyHistogram& histogram)
      : histogram_(histogram), begin_(std::chrono::steady_clock::now()) {}
  ~LatencyTimer() { histogram_.Observe(std::chrono::steady_clock::now() - begin_); }
  LatencyTimer(const LatencyTimer&) = delete;
  LatencyTimer& operator=(const LatencyTimer&) = delete;

 private:
  LatencyHistogram& histogram_;
  const std::chrono::steady_clock::time_point begin_;
};

class Metrics {
 public:
  static Metrics& Get();  // of this process
  Metrics();              // for tests; everyone else uses Get()
  ~Metrics();

  // One name has one help and one kind; anything else is a broken invariant.
  Counter& AddCounter(const std::string& name, const std::string& help,
                      const MetricLabels& labels = {});
  LatencyHistogram& AddLatency(const std::string& name, const std::string& help,
                               const MetricLabels& labels = {});
  // Asked for its value at each scrape, which waits for it. The same name and labels
  // again: the new reader replaces the old one.
  void AddGauge(const std::string& name, const std::string& help, const MetricLabels& labels,
                std::function<double()> read);
  // Like a gauge, but exported as a counter (a total kept elsewhere).
  void AddCounterReader(const std::string& name, const std::string& help,
                        const MetricLabels& labels, std::function<double()> read);
  // Before what they read goes away; waits for a scrape that is under way.
  void ClearReaders();
  std::string Text() const;

 private:
  struct Rep;
  Rep* rep_;
};

}  // namespace kvcfs
