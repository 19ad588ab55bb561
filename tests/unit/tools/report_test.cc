#include "tools/report.h"

#include <algorithm>

#include <gtest/gtest.h>

#include "tools/svg_plot.h"

namespace kvcfs::tools {
namespace {

size_t Count(const std::string& text, const std::string& part) {
  size_t count = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
  return count;
}

ReplayResult SomeResult() {
  ReplayResult result;
  result.options.block_bytes = 65536;
  result.requests = result.requests_total = 50;
  result.blocks_hit = 300;
  result.blocks_missed = 100;
  result.bytes_read = 300 * 65536;
  result.bytes_written = 100 * 65536;
  result.seconds = 2;
  result.read_seconds = 1;
  for (uint64_t i = 1; i <= 5000; ++i) {
    result.match_nanos.push_back(i * 10);
    result.read_nanos.push_back(i * 100);
    result.write_nanos.push_back(i * 1000);
  }
  for (int i = 1; i <= 8; ++i) {
    ReplayPoint point;
    point.seconds = 0.25 * i;
    point.blocks_hit = 300u * static_cast<unsigned>(i) / 8;
    point.blocks_missed = 100u * static_cast<unsigned>(i) / 8;
    point.tiers = {.dram_used = 1u << 20,
                   .dram_capacity = 4u << 20,
                   .nvme_used = 1,
                   .nvme_capacity = 1u << 30};
    result.points.push_back(point);
  }
  return result;
}

TEST(Report, StandsAloneAndHoldsTheData) {
  const ReportHead head{.trace = "a<b>.jsonl",
                        .where = "/mnt/kvc/demo",
                        .version = "0.1.0",
                        .mode = "on",
                        .machine = "Linux",
                        .when = "today",
                        .command = "kvcfs replay"};
  const std::string html = RenderReport(head, SomeResult());
  EXPECT_TRUE(html.starts_with("<!DOCTYPE html>"));
  for (const char* part :
       {"a&lt;b&gt;.jsonl", "/mnt/kvc/demo", "75.0%", "hit rate, of 400 blocks", "wrong bytes",
        "Latency by quantile", "Hit rate over time", "Bytes over time", "Tier occupancy over time",
        "prefers-color-scheme", "p99.9", "64KiB"}) {
    EXPECT_NE(html.find(part), std::string::npos) << part;
  }
  // Nothing is fetched from anywhere, and nothing that was measured is markup.
  for (const char* part : {"http:", "https:", "src=", "<script", "@import", "a<b>"}) {
    EXPECT_EQ(html.find(part), std::string::npos) << part;
  }
  EXPECT_EQ(Count(html, "<svg"), 4u);
  EXPECT_EQ(Count(html, "<svg"), Count(html, "</svg>"));
  EXPECT_EQ(Count(html, "<polyline"), 3u + 2u + 2u + 2u);
  EXPECT_EQ(html.find("nan"), std::string::npos);
  EXPECT_EQ(html.find("inf"), std::string::npos);
}

TEST(Report, ShowsWhatWentWrong) {
  ReplayResult result = SomeResult();
  result.wrong_bytes = 7;
  result.wrong_blocks = 2;
  result.failed_calls["open EIO"] = 3;
  result.interrupted = true;
  const std::string html = RenderReport({}, result);
  EXPECT_NE(html.find("<b class=\"bad\">7</b>"), std::string::npos);
  EXPECT_NE(html.find("failed: open EIO"), std::string::npos);
  EXPECT_NE(html.find("Interrupted after"), std::string::npos);
}

TEST(Report, OfNothing) {
  const std::string html = RenderReport({}, {});
  EXPECT_NE(html.find("nothing was measured"), std::string::npos);
  EXPECT_NE(html.find("</html>"), std::string::npos);
}

TEST(Plot, MapsValuesToPlaces) {
  const Plot plot{.title = "T",
                  .note = "",
                  .x = {.title = "x", .min = 0, .max = 10, .ticks = {}},
                  .y = {.title = "y", .min = 0, .max = 100, .ticks = {}},
                  .series = {{.name = "s", .points = {{0, 0}, {10, 100}}}}};
  const std::string svg = RenderPlot(plot);
  // The lower left and the upper right corner of the plot's area.
  EXPECT_NE(svg.find("points=\"64.0,256.0 692.0,12.0 \""), std::string::npos) << svg;
}

TEST(Plot, LongSeriesAreThinned) {
  PlotSeries series{.name = "s", .points = {}};
  for (int i = 0; i < 100'000; ++i) series.points.emplace_back(i, i);
  const std::string svg = RenderPlot({.title = "T",
                                      .note = "",
                                      .x = {.title = "x", .ticks = {}},
                                      .y = {.title = "y", .is_log = true, .ticks = {}},
                                      .series = {series}});
  EXPECT_LT(svg.size(), 40'000u);
  EXPECT_GT(svg.size(), 4'000u);
}

}  // namespace
}  // namespace kvcfs::tools
