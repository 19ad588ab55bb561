// Reads Prometheus' text format, as far as our own metrics use it.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace kvcfs::tools {

// One latency histogram: seconds.
struct HistogramSample {
  std::vector<std::pair<double, double>> buckets;  // upper bound, cumulative count; +Inf last
  double sum = 0;
  double count = 0;

  // What was observed since `earlier`.
  HistogramSample Since(const HistogramSample& earlier) const;
  // In seconds, the bucket's upper bound; 0 if nothing was observed.
  double Quantile(double share) const;
};

struct MetricsSample {
  // By `name{labels}`, without the labels that the format itself adds.
  std::map<std::string, double> counters, gauges;
  std::map<std::string, HistogramSample> histograms;
};

// Lines it does not understand are skipped.
MetricsSample ParseMetrics(std::string_view text);

}  // namespace kvcfs::tools
