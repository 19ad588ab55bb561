#include "bench/paper_page.h"

#include <algorithm>
#include <map>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "tools/report.h"
#include "tools/svg_plot.h"

namespace kvcfs::bench {
namespace {

using tools::EscapeHtml;
using tools::PlotSeries;

std::string Lines(const std::string& title, const std::string& note, const std::string& x,
                  const std::string& y, std::vector<PlotSeries> series, bool x_log = false,
                  bool y_log = false) {
  if (series.size() > tools::kPlotColours) series.resize(tools::kPlotColours);
  // A logarithm has no zero.
  for (PlotSeries& one : series) {
    std::erase_if(one.points, [&](const auto& point) {
      return (x_log && point.first <= 0) || (y_log && point.second <= 0);
    });
  }
  std::erase_if(series, [](const PlotSeries& one) { return one.points.empty(); });
  if (series.empty()) return fmt::format("<p class=\"dim\">{}: no data</p>\n", EscapeHtml(title));
  return tools::RenderPlot({.title = title,
                            .note = note,
                            .x = {.title = x, .is_log = x_log, .ticks = {}},
                            .y = {.title = y, .is_log = y_log, .ticks = {}},
                            .series = std::move(series)});
}

std::string Cell(double value) {
  if (value == 0) return "<td class=\"n dim\">-</td>";
  return fmt::format("<td class=\"n\">{}</td>", value >= 1000 ? fmt::format("{:.0f}", value)
                                                : value >= 10 ? fmt::format("{:.1f}", value)
                                                              : fmt::format("{:.2f}", value));
}

std::string RowTable(const std::vector<IndexRow>& rows) {
  std::string html =
      "<table><tr><th>backend</th><th>keys</th><th>transport</th><th>cache</th><th "
      "class=\"n\">clients</th><th class=\"n\">p50 us</th><th class=\"n\">p99</th><th "
      "class=\"n\">p99.9</th><th class=\"n\">requests/s</th><th class=\"n\">trips</th><th "
      "class=\"n\">READs</th><th class=\"n\">bytes</th><th class=\"n\">server us</th></tr>\n";
  for (const IndexRow& row : rows) {
    html += fmt::format("<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td class=\"n\">{}</td>",
                        row.backend, row.keys, row.transport, row.cache, row.clients);
    for (const double value : {row.p50_us, row.p99_us, row.p999_us, row.requests_per_second,
                               row.round_trips, row.reads, row.bytes, row.server_cpu_us}) {
      html += Cell(value);
    }
    html += "</tr>\n";
  }
  return html + "</table>\n";
}

std::string IntervalPlot(const PaperResult& result, bool ranges, const std::string& keys,
                         const std::vector<std::string>& names) {
  std::vector<PlotSeries> series;
  for (const std::string& name : names) {
    for (const IntervalSeries& one : result.intervals) {
      const std::string label = fmt::format("{} {} {}", one.backend, one.transport, one.cache);
      if (one.keys != keys || label != name) continue;
      PlotSeries line{.name = label, .points = {}};
      for (size_t i = 0; i < one.intervals.size(); ++i) {
        const double value = Normalised(result, one, i, ranges);
        if (value > 0) line.points.emplace_back(one.intervals[i].begin_s, value);
      }
      series.push_back(std::move(line));
    }
  }
  return Lines(
      fmt::format("p99 of {}, {} keys, Redis = 1", ranges ? "range queries" : "gets", keys),
      "Below 1 is faster than the fastest Redis of that interval (over TCP). Model: its "
      "time under the cost model against Redis as measured.",
      "seconds of the trace", "p99 / Redis'", std::move(series), false, true);
}

std::string PolicyPlot(const PaperResult& result) {
  std::vector<PlotSeries> series;
  for (const char* name : {"leaf-lru", "s3fifo", "kvcfs", "belady"}) {
    PlotSeries line{.name = name, .points = {}};
    for (const PolicyRow& row : result.policies) {
      if (row.policy == name) {
        line.points.emplace_back(static_cast<double>(row.capacity_blocks), row.hit_rate);
      }
    }
    series.push_back(std::move(line));
  }
  return Lines("Hit rate against capacity", "Of all blocks asked for; caches are prefix-closed.",
               "blocks", "hit rate", std::move(series));
}

std::string PolicyTable(const PaperResult& result) {
  std::map<uint64_t, std::map<std::string, double>> rates;
  std::vector<std::string> names;
  for (const PolicyRow& row : result.policies) {
    rates[row.capacity_blocks][row.policy] = row.hit_rate;
    if (std::find(names.begin(), names.end(), row.policy) == names.end()) {
      names.push_back(row.policy);
    }
  }
  std::string html = "<table><tr><th class=\"n\">blocks</th>";
  for (const std::string& name : names) html += fmt::format("<th class=\"n\">{}</th>", name);
  html += "</tr>\n";
  for (auto& [capacity, by_name] : rates) {
    html += fmt::format("<tr><td class=\"n\">{}</td>", capacity);
    for (const std::string& name : names) {
      html += fmt::format("<td class=\"n\">{:.4f}</td>", by_name[name]);
    }
    html += "</tr>\n";
  }
  return html + "</table>\n";
}

std::string StudySection(const TraceStudy& study) {
  std::string html = "<h2>The trace</h2>\n<table>\n";
  const auto row = [&](const std::string& what, const std::string& value) {
    html += fmt::format("<tr><td>{}</td><td class=\"n\">{}</td></tr>\n", what, value);
  };
  row("hit rate of a cache that never evicts", fmt::format("{:.4f}", study.hit_rate));
  row("blocks in runs of numbers that follow one another",
      fmt::format("{:.1f}%", 100 * study.sequential_share));
  row("runs test: runs, expected by chance, z",
      fmt::format("{}, {:.0f}, {:.1f}{}", study.runs, study.runs_expected, study.runs_z,
                  std::abs(study.runs_z) > 1.96 ? " (not by chance)" : ""));
  row("reuse distance, blocks, p50 / p90",
      fmt::format("{:.0f} / {:.0f}", study.reuse_distance_p50, study.reuse_distance_p90));
  row("radix tree: nodes, leaves, blocks an edge",
      fmt::format("{}, {}, {:.1f}", study.radix_nodes, study.radix_leaves, study.edge_blocks_mean));
  row("most children, longest chain, blocks with one child",
      fmt::format("{}, {}, {:.1f}%", study.children_max, study.depth_max,
                  100 * study.one_child_share));
  html += "</table>\n";
  html += Lines("Hit rate of requests", "Of a cache that never evicts.", "hit rate of a request",
                "share of requests", {{"requests", study.hit_rate_cdf}});
  html += Lines("Popularity over time", "What the uses of each part of the trace go to.",
                "seconds of the trace", "share of uses",
                {{"the 1% most used blocks", study.top_share_over_time},
                 {"blocks never used before", study.new_share_over_time}});
  html += Lines("Length of sequential runs", "", "blocks", "share of blocks",
                {{"runs", study.run_length_cdf}}, true);
  html += Lines("Reuse distance", "Other blocks between two uses of one.", "blocks",
                "share of reuses", {{"reuses", study.reuse_distance_cdf}}, true);
  html += Lines("Edges of the radix tree", "", "blocks of an edge", "share of edges",
                {{"edges", study.edge_blocks_cdf}}, true);
  return html;
}

}  // namespace

double Normalised(const PaperResult& result, const IntervalSeries& series, size_t interval,
                  bool ranges) {
  const auto value = [&](const IntervalSeries& of) {
    return ranges ? of.intervals[interval].range_p99_us : of.intervals[interval].get_p99_us;
  };
  double redis = 0;
  for (const IntervalSeries& one : result.intervals) {
    if (!one.backend.starts_with("redis") || one.transport != "tcp" || one.keys != series.keys) {
      continue;
    }
    if (value(one) > 0 && (redis == 0 || value(one) < redis)) redis = value(one);
  }
  return redis > 0 ? value(series) / redis : 0;
}

std::string RenderPaperPage(const PaperResult& result) {
  std::string html = fmt::format(
      "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>kvcfs: metadata of "
      "{}</title><style>{} body {{ max-width: 1000px; }}</style></head><body>\n<h1>Metadata of a "
      "KV "
      "cache: {}</h1>\n<p class=\"dim\">{}, {}<br><code>{}</code></p>\n",
      EscapeHtml(result.trace), tools::ReportStyle(), EscapeHtml(result.trace),
      EscapeHtml(result.machine), EscapeHtml(result.when), EscapeHtml(result.command));
  html += fmt::format(
      "<p>The experiment of arXiv 2505.21919 on {} requests. Loaded before: the {} blocks that are "
      "used more than once. A request asks for the longest cached prefix of all its blocks. Model: "
      "counted, under the cost model of rdma/cost_model.h; all else is timed.</p>\n",
      result.requests, result.loaded_blocks);
  for (const std::string& what : result.missing) {
    html += fmt::format("<p class=\"bad\">Not measured: {}</p>\n", EscapeHtml(what));
  }
  html += "<h2>Figures of the paper</h2>\n";
  for (const char* keys : {"int", "sha256"}) {
    const std::vector<std::string> names = {"kvcfs tcp cold", "kvcfs model cold",
                                            "sherman model warm", "chime model warm"};
    html += IntervalPlot(result, true, keys, names);
    html += IntervalPlot(result, false, keys, names);
  }
  html += "<h2>Longest prefix, closed loop</h2>\n" + RowTable(result.rows);
  html += "<h2>The same at the trace's times, made faster</h2>\n" + RowTable(result.open_rows);
  html +=
      "<h2>Memory</h2>\n<table><tr><th>backend</th><th>keys</th><th>transport</th><th "
      "class=\"n\">bytes a block</th></tr>\n";
  for (const MemoryRow& row : result.memory) {
    html += fmt::format("<tr><td>{}</td><td>{}</td><td>{}</td><td class=\"n\">{:.0f}</td></tr>\n",
                        row.backend, row.keys, row.transport, row.bytes_per_block);
  }
  html +=
      "</table>\n<h2>The cluster</h2>\n<table><tr><th>what</th><th class=\"n\">measured</th><th "
      "class=\"n\">at most</th><th>how</th></tr>\n";
  for (const ClusterRow& row : result.cluster) {
    html += fmt::format("<tr><td>{}</td>{}{}<td class=\"dim\">{}</td></tr>\n", EscapeHtml(row.what),
                        Cell(row.measured), Cell(row.at_most), EscapeHtml(row.note));
  }
  html += "</table>\n<h2>Eviction</h2>\n" + PolicyPlot(result) + PolicyTable(result);
  html += StudySection(result.study);
  return html + "</body></html>\n";
}

std::string PaperJson(const PaperResult& result) {
  using nlohmann::ordered_json;
  const auto rows = [](const std::vector<IndexRow>& all) {
    ordered_json array = ordered_json::array();
    for (const IndexRow& row : all) {
      array.push_back({{"backend", row.backend},
                       {"keys", row.keys},
                       {"transport", row.transport},
                       {"cache", row.cache},
                       {"clients", row.clients},
                       {"p50_us", row.p50_us},
                       {"p99_us", row.p99_us},
                       {"p999_us", row.p999_us},
                       {"requests_per_second", row.requests_per_second},
                       {"round_trips", row.round_trips},
                       {"reads", row.reads},
                       {"bytes", row.bytes},
                       {"server_cpu_us", row.server_cpu_us},
                       {"client_cpu_us", row.client_cpu_us}});
    }
    return array;
  };
  ordered_json json{{"rows", rows(result.rows)}, {"policies", ordered_json::array()}};
  for (const PolicyRow& row : result.policies) {
    json["policies"].push_back({{"policy", row.policy},
                                {"capacity_blocks", row.capacity_blocks},
                                {"hit_rate", row.hit_rate}});
  }
  json["open_loop"] = rows(result.open_rows);
  json["intervals"] = ordered_json::array();
  for (const IntervalSeries& series : result.intervals) {
    for (size_t i = 0; i < series.intervals.size(); ++i) {
      const IndexInterval& one = series.intervals[i];
      json["intervals"].push_back({{"backend", series.backend},
                                   {"keys", series.keys},
                                   {"transport", series.transport},
                                   {"cache", series.cache},
                                   {"begin_s", one.begin_s},
                                   {"ranges", one.ranges},
                                   {"gets", one.gets},
                                   {"range_p99_us", one.range_p99_us},
                                   {"get_p99_us", one.get_p99_us},
                                   {"range_p99_redis", Normalised(result, series, i, true)},
                                   {"get_p99_redis", Normalised(result, series, i, false)}});
    }
  }
  json["memory"] = ordered_json::array();
  for (const MemoryRow& row : result.memory) {
    json["memory"].push_back({{"backend", row.backend},
                              {"keys", row.keys},
                              {"transport", row.transport},
                              {"bytes_per_block", row.bytes_per_block}});
  }
  json["cluster"] = ordered_json::array();
  for (const ClusterRow& row : result.cluster) {
    json["cluster"].push_back({{"what", row.what},
                               {"measured", row.measured},
                               {"at_most", row.at_most},
                               {"how", row.note}});
  }
  const TraceStudy& study = result.study;
  json["trace"] = {{"requests", result.requests},
                   {"hit_rate", study.hit_rate},
                   {"sequential_share", study.sequential_share},
                   {"runs", study.runs},
                   {"runs_expected", study.runs_expected},
                   {"runs_z", study.runs_z},
                   {"reuse_distance_p50", study.reuse_distance_p50},
                   {"reuse_distance_p90", study.reuse_distance_p90},
                   {"radix_nodes", study.radix_nodes},
                   {"radix_leaves", study.radix_leaves},
                   {"edge_blocks_mean", study.edge_blocks_mean},
                   {"children_max", study.children_max},
                   {"depth_max", study.depth_max},
                   {"one_child_share", study.one_child_share}};
  json["missing"] = result.missing;
  return json.dump(1) + "\n";
}

}  // namespace kvcfs::bench
