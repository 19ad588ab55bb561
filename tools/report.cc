#include "tools/report.h"

#include <algorithm>
#include <cmath>
#include <thread>

#include <fmt/format.h>
#include <sys/sysinfo.h>
#include <sys/utsname.h>

#include "base/size.h"
#include "tools/svg_plot.h"

namespace kvcfs::tools {
namespace {

constexpr char kStyle[] = R"(
:root { color-scheme: light dark; --page: #ffffff; --text: #1c2430; --dim: #5b6675; --line: #dfe3e9;
  --c1: #2563c9; --c2: #c2571a; --c3: #1a8a5f; --c4: #8a4bbf; --good: #1a8a5f; --bad: #c62828; }
@media (prefers-color-scheme: dark) { :root { --page: #14181f; --text: #e6eaf0; --dim: #9aa5b4;
  --line: #2c333e; --c1: #6ea8ff; --c2: #f2955c; --c3: #4ecb97; --c4: #c79bf2; --good: #4ecb97;
  --bad: #ff7b72; } }
body { background: var(--page); color: var(--text); font: 15px/1.5 system-ui, sans-serif;
  max-width: 760px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.4em; margin-bottom: 0; } h2 { font-size: 1.1em; margin-top: 2em; }
.dim, figcaption span { color: var(--dim); } code { font-size: 0.9em; overflow-wrap: anywhere; }
.good { color: var(--good); } .bad { color: var(--bad); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px;
  margin: 1.5em 0; }
.tiles div { border: 1px solid var(--line); border-radius: 8px; padding: 10px 14px; }
.tiles b { display: block; font-size: 1.5em; font-weight: 600; }
table { border-collapse: collapse; width: 100%; } th { text-align: left; color: var(--dim);
  font-weight: 500; } td, th { padding: 4px 8px 4px 0; border-bottom: 1px solid var(--line); }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
figure { margin: 2em 0; } svg { width: 100%; height: auto; display: block; }
svg text { font-size: 12px; fill: var(--dim); } .grid { stroke: var(--line); }
.axis, .tick { stroke: var(--dim); } polyline { fill: none; stroke-width: 2;
  stroke-linejoin: round; } .legend { margin: 4px 0; } .legend span { margin-right: 1.2em; }
.legend i { display: inline-block; width: 14px; height: 3px; vertical-align: middle;
  margin-right: 6px; } .empty { color: var(--dim); }
.s1 { stroke: var(--c1); } .s2 { stroke: var(--c2); } .s3 { stroke: var(--c3); }
.s4 { stroke: var(--c4); } .k1 { background: var(--c1); } .k2 { background: var(--c2); }
.k3 { background: var(--c3); } .k4 { background: var(--c4); }
circle { fill: transparent; } circle:hover { fill: var(--text); }
)";

std::string Tile(const std::string& value, const std::string& what, const char* mood = "") {
  return fmt::format("<div><b class=\"{}\">{}</b><span class=\"dim\">{}</span></div>\n", mood,
                     EscapeHtml(value), EscapeHtml(what));
}

std::string LatencyRow(const char* name, const std::vector<uint64_t>& nanos) {
  std::string row = fmt::format("<tr><td>{}</td>", name);
  for (const double share : {0.5, 0.9, 0.99, 0.999, 1.0}) {
    row += fmt::format("<td class=\"n\">{:.1f}</td>", QuantileMicros(nanos, share));
  }
  return row + fmt::format("<td class=\"n\">{}</td></tr>\n", nanos.size());
}

// x: -log10(1 - share), so that each further nine is as wide as the one before.
PlotSeries QuantileCurve(const char* name, const std::vector<uint64_t>& nanos) {
  PlotSeries series{.name = name, .points = {}};
  if (nanos.empty()) return series;
  const double x_max = std::log10(static_cast<double>(nanos.size()));
  constexpr int kSteps = 120;
  for (int i = 0; i <= kSteps; ++i) {
    const double x = x_max * i / kSteps;
    series.points.emplace_back(x, QuantileMicros(nanos, 1 - std::pow(10, -x)));
  }
  return series;
}

std::string LatencyPlot(const ReplayResult& result) {
  // As far as there are calls to say something about.
  const size_t calls = std::max(
      {result.match_nanos.size(), result.read_nanos.size(), result.write_nanos.size(), size_t{10}});
  std::vector<std::pair<double, std::string>> ticks{{0, "0%"}, {std::log10(2), "50%"}};
  std::string nines = "90%";
  const int digits = static_cast<int>(std::log10(static_cast<double>(calls)));
  for (int nine = 1; nine <= digits; ++nine) {
    ticks.emplace_back(nine, nines);
    nines = nine == 1 ? "99%" : nine == 2 ? "99.9%" : nines.substr(0, nines.size() - 1) + "9%";
  }
  const Plot plot{
      .title = "Latency by quantile",
      .note = "How long the slowest calls take: each step to the right is ten times rarer.",
      .x = {.title = "share of calls that were at least as fast",
            .min = 0,
            .max = std::log10(static_cast<double>(calls)),
            .ticks = ticks},
      .y = {.title = "microseconds", .is_log = true, .ticks = {}},
      .series = {QuantileCurve("match", result.match_nanos),
                 QuantileCurve("open+read", result.read_nanos),
                 QuantileCurve("write", result.write_nanos)}};
  return RenderPlot(plot);
}

double Ratio(double part, double whole) {
  return whole > 0 ? part / whole : 0;
}

// Of the points `before` and `now` of each step in time.
template <typename Value>
PlotSeries OverTime(const char* name, const std::vector<ReplayPoint>& points, Value value) {
  PlotSeries series{.name = name, .points = {}};
  ReplayPoint before;
  for (const ReplayPoint& now : points) {
    if (now.seconds > before.seconds) {
      series.points.emplace_back(now.seconds, value(before, now));
    }
    before = now;
  }
  return series;
}

std::string HitRatePlot(const ReplayResult& result) {
  const auto share = [](const ReplayPoint& before, const ReplayPoint& now) {
    const double hit = static_cast<double>(now.blocks_hit - before.blocks_hit);
    const double missed = static_cast<double>(now.blocks_missed - before.blocks_missed);
    return 100 * Ratio(hit, hit + missed);
  };
  const Plot plot{
      .title = "Hit rate over time",
      .note = "Blocks that were found in the cache, of all that requests needed.",
      .x = {.title = "seconds since start", .min = 0, .max = result.seconds, .ticks = {}},
      .y = {.title = "% of blocks", .min = 0, .max = 100, .ticks = {}},
      .series = {OverTime("at that time", result.points, share),
                 OverTime("since start", result.points,
                          [&share](const ReplayPoint&, const ReplayPoint& now) {
                            return share(ReplayPoint{}, now);
                          })}};
  return RenderPlot(plot);
}

std::string ThroughputPlot(const ReplayResult& result) {
  const auto rate = [](uint64_t ReplayPoint::*bytes) {
    return [bytes](const ReplayPoint& before, const ReplayPoint& now) {
      return Ratio(static_cast<double>(now.*bytes - before.*bytes) / 1e9,
                   now.seconds - before.seconds);
    };
  };
  const Plot plot{
      .title = "Bytes over time",
      .note = "Wall clock: the time to make and check every byte is part of it.",
      .x = {.title = "seconds since start", .min = 0, .max = result.seconds, .ticks = {}},
      .y = {.title = "GB/s", .ticks = {}},
      .series = {OverTime("read", result.points, rate(&ReplayPoint::bytes_read)),
                 OverTime("written", result.points, rate(&ReplayPoint::bytes_written))}};
  return RenderPlot(plot);
}

std::string OccupancyPlot(const ReplayResult& result) {
  const TierOccupancy last = result.points.empty() ? TierOccupancy{} : result.points.back().tiers;
  const auto share = [](uint64_t TierOccupancy::*used, uint64_t TierOccupancy::*capacity) {
    return [used, capacity](const ReplayPoint&, const ReplayPoint& now) {
      return 100 *
             Ratio(static_cast<double>(now.tiers.*used), static_cast<double>(now.tiers.*capacity));
    };
  };
  Plot plot{.title = "Tier occupancy over time",
            .note = fmt::format("DRAM tier {}, NVMe tier {}.", FormatSizeShort(last.dram_capacity),
                                FormatSizeShort(last.nvme_capacity)),
            .x = {.title = "seconds since start", .min = 0, .max = result.seconds, .ticks = {}},
            .y = {.title = "% of capacity", .min = 0, .max = 100, .ticks = {}},
            .series = {}};
  if (last.dram_capacity > 0) {
    plot.series.push_back(OverTime(
        "DRAM", result.points, share(&TierOccupancy::dram_used, &TierOccupancy::dram_capacity)));
  }
  if (last.nvme_capacity > 0) {
    plot.series.push_back(OverTime(
        "NVMe", result.points, share(&TierOccupancy::nvme_used, &TierOccupancy::nvme_capacity)));
  }
  return RenderPlot(plot);
}

std::string EventTable(const ReplayResult& result) {
  std::string rows;
  const auto row = [&rows](const std::string& what, uint64_t count, bool bad) {
    if (count == 0) return;
    rows += fmt::format("<tr><td class=\"{}\">{}</td><td class=\"n\">{}</td></tr>\n",
                        bad ? "bad" : "", EscapeHtml(what), count);
  };
  row("blocks with wrong bytes", result.wrong_blocks, true);
  row("blocks lost although their lease still held", result.lost_under_lease, true);
  for (const auto& [call, count] : result.failed_calls) row("failed: " + call, count, true);
  row("blocks evicted between match and read (no lease promised otherwise)", result.lost_unleased,
      false);
  row("blocks that another writer published first", result.lost_races, false);
  row("chains ended early: the parent was evicted", result.parents_gone, false);
  row("blocks not written: no space", result.no_space, false);
  if (rows.empty()) return {};
  return "<h2>What else happened</h2>\n<table>\n" + rows + "</table>\n";
}

}  // namespace

std::string_view ReportStyle() {
  return kStyle;
}

std::string DescribeMachine() {
  utsname name{};
  struct sysinfo memory {};
  ::uname(&name);
  ::sysinfo(&memory);
  return fmt::format("{} {}, {} CPUs, {} of memory", name.sysname, name.release,
                     std::thread::hardware_concurrency(),
                     FormatSizeShort(uint64_t{memory.totalram} * memory.mem_unit));
}

std::string RenderReport(const ReportHead& head, const ReplayResult& result) {
  std::string html = fmt::format(
      "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
      "<title>kvcfs replay: {}</title>\n<style>{}</style>\n</head>\n<body>\n",
      EscapeHtml(head.trace), kStyle);
  html += fmt::format(
      "<h1>kvcfs replay of {}</h1>\n<p class=\"dim\">{} on {}. kvcfs {}, passthrough {}. "
      "{}.</p>\n",
      EscapeHtml(head.trace), EscapeHtml(head.when), EscapeHtml(head.where),
      EscapeHtml(head.version), EscapeHtml(head.mode), EscapeHtml(head.machine));
  html += fmt::format("<p class=\"dim\"><code>{}</code></p>\n", EscapeHtml(head.command));
  if (result.interrupted) {
    html += fmt::format("<p class=\"bad\">Interrupted after {} of {} requests.</p>\n",
                        result.requests, result.requests_total);
  }
  html += "<div class=\"tiles\">\n";
  html += Tile(fmt::format("{}", result.wrong_bytes), "wrong bytes",
               result.wrong_bytes == 0 ? "good" : "bad");
  html += Tile(fmt::format("{:.1f}%", 100 * result.HitRate()),
               fmt::format("hit rate, of {} blocks", result.blocks_hit + result.blocks_missed));
  html += Tile(fmt::format("{:.2f} GB/s", result.ReadGigabytesPerSecond()), "while reading");
  html +=
      Tile(fmt::format("{}", result.requests), fmt::format("requests in {:.1f} s", result.seconds));
  html += Tile(FormatSizeShort(result.bytes_read), "read and checked");
  html += Tile(FormatSizeShort(result.bytes_written), "written");
  html += "</div>\n<table>\n<tr><th>microseconds</th>";
  for (const char* column : {"p50", "p90", "p99", "p99.9", "max", "count"}) {
    html += fmt::format("<th class=\"n\">{}</th>", column);
  }
  html += "</tr>\n" + LatencyRow("match", result.match_nanos) +
          LatencyRow("open+read", result.read_nanos) + LatencyRow("write", result.write_nanos) +
          "</table>\n";
  html += fmt::format("<p class=\"dim\">Blocks of {}, {} at a time, {}.</p>\n",
                      FormatSize(result.options.block_bytes), result.options.concurrency,
                      result.options.speed > 0
                          ? fmt::format("{:g} times the trace's speed", result.options.speed)
                          : std::string("as fast as it goes"));
  html += EventTable(result);
  html +=
      LatencyPlot(result) + HitRatePlot(result) + ThroughputPlot(result) + OccupancyPlot(result);
  return html + "</body>\n</html>\n";
}

}  // namespace kvcfs::tools
