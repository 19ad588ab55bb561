#include "base/metrics.h"

#include <algorithm>
#include <list>
#include <map>
#include <sstream>

#include <prometheus/collectable.h>
#include <prometheus/text_serializer.h>

#include "base/mutex.h"
#include "base/result.h"

namespace kvcfs {
namespace {

constexpr double kSecondsPerNano = 1e-9;

prometheus::ClientMetric WithLabels(const MetricLabels& labels) {
  prometheus::ClientMetric metric;
  for (const auto& [name, value] : labels) metric.label.push_back({name, value});
  return metric;
}

}  // namespace

const std::array<int64_t, LatencyHistogram::kBounds> LatencyHistogram::kBoundNanos = [] {
  std::array<int64_t, kBounds> bounds{};
  int64_t decade = 1000;
  for (size_t i = 0; i < kBounds; ++i) {
    constexpr int64_t kSteps[] = {1, 2, 5};
    bounds[i] = decade * kSteps[i % 3];
    if (i % 3 == 2) decade *= 10;
  }
  return bounds;
}();

void LatencyHistogram::Observe(std::chrono::nanoseconds latency) {
  const int64_t nanos = std::max<int64_t>(0, latency.count());
  const auto at = std::lower_bound(kBoundNanos.begin(), kBoundNanos.end(), nanos);
  counts_[static_cast<size_t>(at - kBoundNanos.begin())].fetch_add(1, std::memory_order_relaxed);
  sum_nanos_.fetch_add(nanos, std::memory_order_relaxed);
}

uint64_t LatencyHistogram::count() const {
  uint64_t total = 0;
  for (const auto& count : counts_) total += count.load(std::memory_order_relaxed);
  return total;
}

// One Family a name; the values of a counter or histogram live in it for ever (a list does not move
// what it holds), readers go with ClearReaders.
struct Metrics::Rep {
  struct Series {
    MetricLabels labels;
    Counter counter;
    LatencyHistogram latency;
    std::function<double()> read;
  };
  struct Family {
    std::string help;
    prometheus::MetricType type = prometheus::MetricType::Untyped;
    std::list<Series> series;
  };

  Series& Find(const std::string& name, const std::string& help, prometheus::MetricType type,
               const MetricLabels& labels) KVC_REQUIRES(mutex) {
    KVC_CHECK(!name.empty() && !help.empty());
    Family& family = families[name];
    if (family.help.empty()) {
      family.help = help;
      family.type = type;
    }
    KVC_CHECK(family.type == type && family.help == help);
    for (Series& series : family.series) {
      if (series.labels == labels) return series;
    }
    Series& series = family.series.emplace_back();
    series.labels = labels;
    return series;
  }

  Mutex scrape;  // held while readers run, and taken before `mutex`
  Mutex mutex;
  std::map<std::string, Family> families KVC_GUARDED_BY(mutex);
};

Metrics::Metrics() : rep_(new Rep) {}
Metrics::~Metrics() {
  delete rep_;
}

Metrics& Metrics::Get() {
  // Never destroyed: threads may count until the very end of the process.
  static Metrics* const metrics = new Metrics;
  return *metrics;
}

Counter& Metrics::AddCounter(const std::string& name, const std::string& help,
                             const MetricLabels& labels) {
  MutexLock lock(rep_->mutex);
  return rep_->Find(name, help, prometheus::MetricType::Counter, labels).counter;
}

LatencyHistogram& Metrics::AddLatency(const std::string& name, const std::string& help,
                                      const MetricLabels& labels) {
  MutexLock lock(rep_->mutex);
  return rep_->Find(name, help, prometheus::MetricType::Histogram, labels).latency;
}

void Metrics::AddGauge(const std::string& name, const std::string& help, const MetricLabels& labels,
                       std::function<double()> read) {
  MutexLock lock(rep_->mutex);
  rep_->Find(name, help, prometheus::MetricType::Gauge, labels).read = std::move(read);
}

void Metrics::AddCounterReader(const std::string& name, const std::string& help,
                               const MetricLabels& labels, std::function<double()> read) {
  MutexLock lock(rep_->mutex);
  rep_->Find(name, help, prometheus::MetricType::Counter, labels).read = std::move(read);
}

void Metrics::ClearReaders() {
  MutexLock scrape(rep_->scrape);
  MutexLock lock(rep_->mutex);
  for (auto at = rep_->families.begin(); at != rep_->families.end();) {
    at->second.series.remove_if([](const Rep::Series& one) { return bool(one.read); });
    at = at->second.series.empty() ? rep_->families.erase(at) : std::next(at);
  }
}

std::string Metrics::Text() const {
  struct Pending {
    size_t family, metric;
    std::function<double()> read;
  };
  std::vector<prometheus::MetricFamily> families;
  std::vector<Pending> pending;
  MutexLock scrape(rep_->scrape);
  {
    MutexLock lock(rep_->mutex);
    for (const auto& [name, family] : rep_->families) {
      prometheus::MetricFamily& out = families.emplace_back();
      out.name = name;
      out.help = family.help;
      out.type = family.type;
      for (const Rep::Series& series : family.series) {
        prometheus::ClientMetric metric = WithLabels(series.labels);
        if (family.type == prometheus::MetricType::Histogram) {
          uint64_t total = 0;
          for (size_t i = 0; i < LatencyHistogram::kBounds; ++i) {
            total += series.latency.counts_[i].load(std::memory_order_relaxed);
            const double bound =
                static_cast<double>(LatencyHistogram::kBoundNanos[i]) * kSecondsPerNano;
            metric.histogram.bucket.push_back({total, bound});
          }
          total += series.latency.counts_.back().load(std::memory_order_relaxed);
          metric.histogram.sample_count = total;
          metric.histogram.sample_sum =
              static_cast<double>(series.latency.sum_nanos_.load(std::memory_order_relaxed)) *
              kSecondsPerNano;
        } else if (series.read) {
          pending.push_back({families.size() - 1, out.metric.size(), series.read});
        } else {
          metric.counter.value = metric.gauge.value = series.counter.value();
        }
        out.metric.push_back(std::move(metric));
      }
    }
  }
  // Readers take locks under which others add metrics.
  for (const Pending& each : pending) {
    prometheus::ClientMetric& metric = families[each.family].metric[each.metric];
    metric.counter.value = metric.gauge.value = each.read();
  }
  std::ostringstream text;
  prometheus::TextSerializer().Serialize(text, families);
  return text.str();
}

}  // namespace kvcfs
