// Counters, gauges and latency histograms in Prometheus' text format.
//
// Names are `kvcfs_<folder>_<thing>_<unit>`, base units, counters end in `_total`; labels come from
// enums, never keys, paths or pids. Get a handle once (at construction of its owner), use it often.
// Threads: any; handles live as long as the process. Source: prometheus.io/docs/practices/naming.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace kvcfs {

using MetricLabels = std::vector<std::pair<std::string, std::string>>;

class Counter {
 public:
  void Add(double by = 1);
  double value() const;

 private:
  friend class Metrics;
  explicit Counter(void* inner) : inner_(inner) {}
  void* inner_;
};

// Seconds, in buckets from 1 us to 10 s.
class LatencyHistogram {
 public:
  void Observe(std::chrono::nanoseconds latency);

 private:
  friend class Metrics;
  explicit LatencyHistogram(void* inner) : inner_(inner) {}
  void* inner_;
};

class Metrics {
 public:
  static Metrics& Get();  // of this process
  Counter& AddCounter(const std::string& name, const std::string& help,
                      const MetricLabels& labels = {});
  LatencyHistogram& AddLatency(const std::string& name, const std::string& help,
                               const MetricLabels& labels = {});
  // Asked for its value at each scrape.
  void AddGauge(const std::string& name, const std::string& help, const MetricLabels& labels,
                std::function<double()> read);
  // Like a gauge, but exported as a counter (a total kept elsewhere).
  void AddCounterReader(const std::string& name, const std::string& help,
                        const MetricLabels& labels, std::function<double()> read);
  void ClearReaders();  // before what they read goes away
  std::string Text() const;

 private:
  Metrics();
  ~Metrics();
  struct Rep;
  Rep* rep_;
};

// Serves Text() at http://ADDRESS/metrics until destroyed.
class MetricsServer {
 public:
  MetricsServer();
  ~MetricsServer();
  // "127.0.0.1:9464". false and a text if it cannot listen.
  bool Start(const std::string& address, std::string* error);

 private:
  struct Rep;
  Rep* rep_ = nullptr;
};

}  // namespace kvcfs
