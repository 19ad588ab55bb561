#include "base/metrics.h"

#include <future>
#include <string>
#include <thread>

#include <gtest/gtest.h>

namespace kvcfs {
namespace {

using std::chrono::microseconds;
using std::chrono::nanoseconds;

struct MetricsTest : testing::Test {
  void Expect(const std::string& line) {
    const std::string text = "\n" + metrics.Text();
    EXPECT_NE(text.find("\n" + line + "\n"), std::string::npos) << line << "\nis not in" << text;
  }
  void ExpectNot(const std::string& part) {
    EXPECT_EQ(metrics.Text().find(part), std::string::npos) << part << " is in\n" << metrics.Text();
  }
  Metrics metrics;
};

TEST_F(MetricsTest, CountersWithLabels) {
  Counter& dram = metrics.AddCounter("kvcfs_fs_hits_total", "Hits.", {{"tier", "dram"}});
  Counter& nvme = metrics.AddCounter("kvcfs_fs_hits_total", "Hits.", {{"tier", "nvme"}});
  dram.Add();
  dram.Add(2);
  nvme.Add(0.5);
  Expect("# HELP kvcfs_fs_hits_total Hits.");
  Expect("# TYPE kvcfs_fs_hits_total counter");
  Expect("kvcfs_fs_hits_total{tier=\"dram\"} 3");
  Expect("kvcfs_fs_hits_total{tier=\"nvme\"} 0.5");
  EXPECT_EQ(&metrics.AddCounter("kvcfs_fs_hits_total", "Hits.", {{"tier", "dram"}}), &dram);
}

TEST_F(MetricsTest, HistogramBucketsAreCumulative) {
  LatencyHistogram& histogram = metrics.AddLatency("kvcfs_fs_read_duration_seconds", "Reads.");
  histogram.Observe(nanoseconds(500));          // up to 1 us
  histogram.Observe(microseconds(1));           // a bound belongs to its bucket
  histogram.Observe(microseconds(3));           // up to 5 us
  histogram.Observe(std::chrono::seconds(20));  // above all bounds
  histogram.Observe(nanoseconds(-5));           // a clock that went back counts as 0
  EXPECT_EQ(histogram.count(), 5u);
  Expect("# TYPE kvcfs_fs_read_duration_seconds histogram");
  Expect("kvcfs_fs_read_duration_seconds_count 5");
  Expect("kvcfs_fs_read_duration_seconds_bucket{le=\"1e-06\"} 3");
  Expect("kvcfs_fs_read_duration_seconds_bucket{le=\"2e-06\"} 3");
  Expect("kvcfs_fs_read_duration_seconds_bucket{le=\"5e-06\"} 4");
  Expect("kvcfs_fs_read_duration_seconds_bucket{le=\"10\"} 4");
  Expect("kvcfs_fs_read_duration_seconds_bucket{le=\"+Inf\"} 5");
  EXPECT_EQ(LatencyHistogram::kBoundNanos.front(), 1'000);
  EXPECT_EQ(LatencyHistogram::kBoundNanos.back(), 10'000'000'000);
}

// Others add metrics under the locks that readers take.
TEST_F(MetricsTest, AReaderMayWaitForOneWhoAddsMetrics) {
  std::promise<void> added;
  std::thread adder;
  metrics.AddGauge("kvcfs_fs_used_bytes", "Used.", {}, [&] {
    adder = std::thread([&] {
      metrics.AddCounter("kvcfs_fs_kept_total", "Stays.");
      added.set_value();
    });
    return added.get_future().wait_for(std::chrono::seconds(10)) == std::future_status::ready ? 1
                                                                                              : 0;
  });
  EXPECT_NE(metrics.Text().find("kvcfs_fs_used_bytes 1\n"), std::string::npos);
  adder.join();
}

TEST_F(MetricsTest, ReadersAreAskedAtEachScrapeAndGo) {
  double used = 1;
  Counter& kept = metrics.AddCounter("kvcfs_fs_kept_total", "Stays.");
  metrics.AddGauge("kvcfs_fs_used_bytes", "Used.", {{"tier", "dram"}}, [&] { return used; });
  metrics.AddCounterReader("kvcfs_fs_seen_total", "Seen.", {}, [&] { return used * 10; });
  Expect("# TYPE kvcfs_fs_used_bytes gauge");
  Expect("# TYPE kvcfs_fs_seen_total counter");
  Expect("kvcfs_fs_used_bytes{tier=\"dram\"} 1");
  used = 2;
  Expect("kvcfs_fs_used_bytes{tier=\"dram\"} 2");
  Expect("kvcfs_fs_seen_total 20");
  // The same again replaces the reader.
  metrics.AddGauge("kvcfs_fs_used_bytes", "Used.", {{"tier", "dram"}}, [] { return 7; });
  Expect("kvcfs_fs_used_bytes{tier=\"dram\"} 7");
  metrics.ClearReaders();
  ExpectNot("kvcfs_fs_used_bytes");
  ExpectNot("kvcfs_fs_seen_total");
  kept.Add(4);
  Expect("kvcfs_fs_kept_total 4");
}

TEST_F(MetricsTest, LabelValuesAreEscaped) {
  metrics.AddCounter("kvcfs_fs_odd_total", "Odd.", {{"what", "a\"b\\c"}});
  Expect("kvcfs_fs_odd_total{what=\"a\\\"b\\\\c\"} 0");
}

TEST_F(MetricsTest, NothingIsLostBetweenThreads) {
  Counter& counter = metrics.AddCounter("kvcfs_fs_all_total", "All.");
  LatencyHistogram& histogram = metrics.AddLatency("kvcfs_fs_all_duration_seconds", "All.");
  constexpr int kThreads = 4, kTimes = 20'000;
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&] {
      for (int n = 0; n < kTimes; ++n) {
        counter.Add();
        histogram.Observe(microseconds(n % 100));
        if (n % 4096 == 0) static_cast<void>(metrics.Text());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(counter.value(), kThreads * kTimes);
  EXPECT_EQ(histogram.count(), uint64_t{kThreads * kTimes});
}

TEST(MetricsDeathTest, OneNameHasOneKind) {
  testing::GTEST_FLAG(death_test_style) = "threadsafe";
  EXPECT_DEATH(
      {
        Metrics metrics;
        metrics.AddCounter("kvcfs_fs_x_total", "X.");
        metrics.AddLatency("kvcfs_fs_x_total", "X.");
      },
      "invariant broken");
}

}  // namespace
}  // namespace kvcfs
