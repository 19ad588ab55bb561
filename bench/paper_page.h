// The page of a run of paper.h: one HTML file that needs nothing else.
#pragma once

#include <string>
#include <vector>

#include "bench/index_run.h"
#include "bench/trace_study.h"

namespace kvcfs::bench {

struct PolicyRow {
  std::string policy;
  uint64_t capacity_blocks = 0;
  double hit_rate = 0;
};

struct IntervalSeries {
  std::string backend, keys, transport, cache;
  std::vector<IndexInterval> intervals;
};

struct ClusterRow {
  std::string what;
  double measured = 0, at_most = 0;
  std::string note;
};

struct MemoryRow {
  std::string backend, keys, transport;
  double bytes_per_block = 0;
};

struct PaperResult {
  std::string trace, command, machine, when;
  size_t requests = 0, loaded_blocks = 0;
  std::vector<IndexRow> rows, open_rows;
  std::vector<MemoryRow> memory;
  std::vector<IntervalSeries> intervals;
  std::vector<PolicyRow> policies;
  std::vector<ClusterRow> cluster;
  std::vector<std::string> missing;  // what could not be measured, and why
  TraceStudy study;
};

std::string RenderPaperPage(const PaperResult& result);
std::string PaperJson(const PaperResult& result);

// p99 of ranges or gets of an interval over those of Redis's best in it; 0: not known.
double Normalised(const PaperResult& result, const IntervalSeries& series, size_t interval,
                  bool ranges);

}  // namespace kvcfs::bench
