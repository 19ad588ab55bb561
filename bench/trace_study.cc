#include "bench/trace_study.h"

#include <algorithm>
#include <cmath>

namespace kvcfs::bench {
namespace {

constexpr size_t kIntervals = 24;

// Sorts. At most 200 points.
Points Cdf(std::vector<double>& values) {
  std::sort(values.begin(), values.end());
  Points points;
  const size_t step = std::max<size_t>(1, values.size() / 200);
  for (size_t i = step - 1; i < values.size(); i += step) {
    points.emplace_back(values[i], static_cast<double>(i + 1) / static_cast<double>(values.size()));
  }
  return points;
}

double At(const std::vector<double>& sorted, double share) {
  if (sorted.empty()) return 0;
  return sorted[static_cast<size_t>(share * static_cast<double>(sorted.size() - 1))];
}

// How many marked places are at or behind one: a Fenwick tree.
class Marks {
 public:
  explicit Marks(size_t count) : sums_(count + 1) {}
  void Add(size_t at, int by) {
    for (++at; at < sums_.size(); at += at & (~at + 1)) sums_[at] += by;
  }
  int64_t Before(size_t end) const {
    int64_t sum = 0;
    for (; end > 0; end -= end & (~end + 1)) sum += sums_[end];
    return sum;
  }

 private:
  std::vector<int64_t> sums_;
};

void StudyUses(const TraceTree& tree, TraceStudy* study) {
  const double end_ms = tree.request_count() == 0
                            ? 1
                            : static_cast<double>(tree.timestamp_ms(tree.request_count() - 1)) + 1;
  std::vector<uint32_t> uses(tree.block_count());
  for (size_t request = 0; request < tree.request_count(); ++request) {
    for (const Block block : tree.path(request)) ++uses[block];
  }
  std::vector<uint32_t> most(uses);
  std::sort(most.begin(), most.end(), std::greater<>());
  const uint32_t top_uses = most.empty() ? 0 : std::max(2u, most[most.size() / 100]);

  std::vector<double> hit_rates, distances, interval_uses(kIntervals), interval_top(kIntervals),
      interval_new(kIntervals);
  std::vector<size_t> last(tree.block_count(), SIZE_MAX);
  Marks marks(tree.use_count());
  size_t time = 0;
  uint64_t hits = 0;
  for (size_t request = 0; request < tree.request_count(); ++request) {
    const auto path = tree.path(request);
    const auto interval = std::min(
        kIntervals - 1, static_cast<size_t>(static_cast<double>(tree.timestamp_ms(request)) /
                                            end_ms * static_cast<double>(kIntervals)));
    size_t matched = 0;
    for (const Block block : path) {
      interval_uses[interval] += 1;
      if (uses[block] >= top_uses) interval_top[interval] += 1;
      if (last[block] == SIZE_MAX) {
        interval_new[interval] += 1;
      } else {
        ++matched;
        distances.push_back(
            static_cast<double>(marks.Before(time) - marks.Before(last[block] + 1)));
        marks.Add(last[block], -1);
      }
      marks.Add(time, 1);
      last[block] = time++;
    }
    hits += matched;
    if (!path.empty()) {
      hit_rates.push_back(static_cast<double>(matched) / static_cast<double>(path.size()));
    }
  }
  study->hit_rate_cdf = Cdf(hit_rates);
  study->hit_rate =
      tree.use_count() == 0 ? 0 : static_cast<double>(hits) / static_cast<double>(tree.use_count());
  study->reuse_distance_cdf = Cdf(distances);
  study->reuse_distance_p50 = At(distances, 0.5);
  study->reuse_distance_p90 = At(distances, 0.9);
  for (size_t i = 0; i < kIntervals; ++i) {
    if (interval_uses[i] == 0) continue;
    const double seconds = 1e-3 * end_ms * static_cast<double>(i) / static_cast<double>(kIntervals);
    study->top_share_over_time.emplace_back(seconds, interval_top[i] / interval_uses[i]);
    study->new_share_over_time.emplace_back(seconds, interval_new[i] / interval_uses[i]);
  }
}

void StudySequences(const TraceTree& tree, TraceStudy* study) {
  std::vector<double> lengths;  // one a block
  uint64_t sequential = 0, other = 0;
  bool before = false;
  for (size_t request = 0; request < tree.request_count(); ++request) {
    const auto path = tree.path(request);
    for (size_t at = 0; at < path.size();) {
      size_t end = at + 1;
      while (end < path.size() && tree.id(path[end]) == tree.id(path[end - 1]) + 1) ++end;
      const bool is_run = end - at > 1;
      for (size_t i = at; i < end; ++i) {
        lengths.push_back(static_cast<double>(end - at));
        if (study->runs == 0 || is_run != before) ++study->runs;
        before = is_run;
      }
      (is_run ? sequential : other) += end - at;
      at = end;
    }
  }
  const auto n1 = static_cast<double>(sequential), n2 = static_cast<double>(other), n = n1 + n2;
  if (n > 0) study->sequential_share = n1 / n;
  if (n1 > 0 && n2 > 0 && n > 1) {
    study->runs_expected = 2 * n1 * n2 / n + 1;
    const double variance = 2 * n1 * n2 * (2 * n1 * n2 - n) / (n * n * (n - 1));
    if (variance > 0) {
      study->runs_z =
          (static_cast<double>(study->runs) - study->runs_expected) / std::sqrt(variance);
    }
  }
  study->run_length_cdf = Cdf(lengths);
}

void StudyTree(const TraceTree& tree, TraceStudy* study) {
  std::vector<double> edges;
  std::vector<uint32_t> edge(tree.block_count());  // blocks of its edge so far
  uint64_t one_child = 0;
  for (Block block = 0; block < tree.block_count(); ++block) {
    const Block parent = tree.parent(block);
    const bool goes_on = parent != kNoBlock && tree.children(parent).size() == 1;
    edge[block] = goes_on ? edge[parent] + 1 : 1;
    const size_t children = tree.children(block).size();
    study->children_max = std::max<uint64_t>(study->children_max, children);
    study->depth_max = std::max<uint64_t>(study->depth_max, tree.ordinal(block) + 1);
    if (children == 1) {
      ++one_child;
      continue;
    }
    ++study->radix_nodes;
    if (children == 0) ++study->radix_leaves;
    edges.push_back(edge[block]);
  }
  double sum = 0;
  for (const double length : edges) sum += length;
  if (!edges.empty()) study->edge_blocks_mean = sum / static_cast<double>(edges.size());
  if (tree.block_count() > 0) {
    study->one_child_share =
        static_cast<double>(one_child) / static_cast<double>(tree.block_count());
  }
  study->edge_blocks_cdf = Cdf(edges);
}

}  // namespace

TraceStudy StudyTrace(const TraceTree& tree) {
  TraceStudy study;
  StudyUses(tree, &study);
  StudySequences(tree, &study);
  StudyTree(tree, &study);
  return study;
}

}  // namespace kvcfs::bench
