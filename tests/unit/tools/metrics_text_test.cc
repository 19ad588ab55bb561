#include "tools/metrics_text.h"

#include <gtest/gtest.h>

#include "base/metrics.h"

namespace kvcfs::tools {
namespace {

using std::chrono::microseconds;

TEST(MetricsText, ReadsWhatMetricsWrites) {
  Metrics metrics;
  metrics.AddCounter("kvcfs_fs_hits_total", "Hits.", {{"tier", "dram"}}).Add(3);
  metrics.AddCounter("kvcfs_fs_odd_total", "Odd.", {{"what", "a } b"}}).Add(4);
  metrics.AddGauge("kvcfs_fs_used_bytes", "Used.", {}, [] { return 5; });
  LatencyHistogram& reads =
      metrics.AddLatency("kvcfs_fs_read_duration_seconds", "Reads.", {{"source", "nvme"}});
  LatencyHistogram& opens = metrics.AddLatency("kvcfs_fs_open_duration_seconds", "Opens.");
  for (int i = 0; i < 98; ++i) reads.Observe(microseconds(15));
  const MetricsSample before = ParseMetrics(metrics.Text());
  for (int i = 0; i < 2; ++i) reads.Observe(microseconds(900));
  opens.Observe(std::chrono::seconds(20));
  const MetricsSample sample = ParseMetrics(metrics.Text());

  EXPECT_EQ(sample.counters.at("kvcfs_fs_hits_total{tier=\"dram\"}"), 3);
  EXPECT_EQ(sample.counters.at("kvcfs_fs_odd_total{what=\"a } b\"}"), 4);
  EXPECT_EQ(sample.gauges.at("kvcfs_fs_used_bytes"), 5);
  ASSERT_EQ(sample.histograms.size(), 2u);
  const HistogramSample& all =
      sample.histograms.at("kvcfs_fs_read_duration_seconds{source=\"nvme\"}");
  EXPECT_EQ(all.count, 100);
  EXPECT_NEAR(all.sum, 98 * 15e-6 + 2 * 900e-6, 1e-9);
  EXPECT_DOUBLE_EQ(all.Quantile(0.5), 20e-6);
  EXPECT_DOUBLE_EQ(all.Quantile(0.99), 1e-3);
  const HistogramSample since =
      all.Since(before.histograms.at("kvcfs_fs_read_duration_seconds{source=\"nvme\"}"));
  EXPECT_EQ(since.count, 2);
  EXPECT_DOUBLE_EQ(since.Quantile(0.01), 1e-3);
  // Above the last bound: the last bound is all one can say.
  EXPECT_DOUBLE_EQ(sample.histograms.at("kvcfs_fs_open_duration_seconds").Quantile(0.5), 10);
  EXPECT_EQ(HistogramSample{}.Quantile(0.5), 0);
}

TEST(MetricsText, SkipsWhatItDoesNotKnow) {
  const MetricsSample sample = ParseMetrics("garbage\n\n# EOF\nx_bucket{le=\"1\"} 2\n{} 3\n=\n");
  EXPECT_TRUE(sample.histograms.empty());
  EXPECT_TRUE(sample.counters.empty());
}

}  // namespace
}  // namespace kvcfs::tools
