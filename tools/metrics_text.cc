#include "tools/metrics_text.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>

namespace kvcfs::tools {
namespace {

bool TakeSuffix(std::string* name, std::string_view suffix) {
  if (!name->ends_with(suffix)) return false;
  name->resize(name->size() - suffix.size());
  return true;
}

// Cuts le="..." out of `labels` and gives its value.
double TakeBound(std::string* labels) {
  const size_t begin = labels->find("le=\"");
  if (begin == std::string::npos) return std::numeric_limits<double>::quiet_NaN();
  const size_t value = begin + 4;
  const size_t end = labels->find('"', value);
  if (end == std::string::npos) return std::numeric_limits<double>::quiet_NaN();
  const std::string text = labels->substr(value, end - value);
  size_t from = begin, to = end + 1;
  if (to < labels->size() && (*labels)[to] == ',') {
    ++to;
  } else if (from > 0 && (*labels)[from - 1] == ',') {
    --from;
  }
  labels->erase(from, to - from);
  return text == "+Inf" ? std::numeric_limits<double>::infinity()
                        : std::strtod(text.c_str(), nullptr);
}

std::string Join(const std::string& name, const std::string& labels) {
  return labels.empty() ? name : name + "{" + labels + "}";
}

}  // namespace

HistogramSample HistogramSample::Since(const HistogramSample& earlier) const {
  HistogramSample delta = *this;
  delta.sum -= earlier.sum;
  delta.count -= earlier.count;
  if (earlier.buckets.size() == buckets.size()) {
    for (size_t i = 0; i < buckets.size(); ++i) {
      delta.buckets[i].second -= earlier.buckets[i].second;
    }
  }
  return delta;
}

double HistogramSample::Quantile(double share) const {
  if (buckets.empty() || !(buckets.back().second > 0)) return 0;
  const double wanted = share * buckets.back().second;
  double below = 0;
  for (const auto& [bound, cumulative] : buckets) {
    if (cumulative >= wanted && cumulative > 0) return std::isinf(bound) ? below : bound;
    below = bound;
  }
  return below;
}

MetricsSample ParseMetrics(std::string_view text) {
  MetricsSample sample;
  std::map<std::string, std::string> types;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    const std::string line(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
    if (line.starts_with("# TYPE ")) {
      const size_t space = line.rfind(' ');
      if (space > 7) types[line.substr(7, space - 7)] = line.substr(space + 1);
      continue;
    }
    if (line.empty() || line.front() == '#') continue;
    // Labels may hold spaces, values not.
    const size_t brace = line.find('{');
    const size_t close = line.rfind('}');
    const bool has_labels = brace != std::string::npos && close != std::string::npos;
    const size_t name_end = has_labels ? brace : line.find(' ');
    if (name_end == std::string::npos) continue;
    std::string name = line.substr(0, name_end);
    std::string labels = has_labels ? line.substr(brace + 1, close - brace - 1) : std::string();
    const double value = std::strtod(line.c_str() + (has_labels ? close + 1 : name_end), nullptr);
    if (const auto type = types.find(name); type != types.end()) {
      (type->second == "counter" ? sample.counters : sample.gauges)[Join(name, labels)] = value;
      continue;
    }
    std::string base = name;
    if (TakeSuffix(&base, "_bucket") && types.count(base) > 0) {
      const double bound = TakeBound(&labels);
      if (!std::isnan(bound)) {
        sample.histograms[Join(base, labels)].buckets.emplace_back(bound, value);
      }
    } else if (base = name; TakeSuffix(&base, "_sum") && types.count(base) > 0) {
      sample.histograms[Join(base, labels)].sum = value;
    } else if (base = name; TakeSuffix(&base, "_count") && types.count(base) > 0) {
      sample.histograms[Join(base, labels)].count = value;
    }
  }
  return sample;
}

}  // namespace kvcfs::tools
