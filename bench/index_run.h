// The one loop that asks every backend: closed (as fast as answers come) or open (when the trace
// says), by so many clients, with every answer checked.
#pragma once

#include <string>
#include <vector>

#include "bench/index_backend.h"

namespace kvcfs::bench {

struct IndexRow {
  std::string backend, keys, transport, cache;
  size_t clients = 0;
  size_t requests = 0;
  double p50_us = 0, p99_us = 0, p999_us = 0, mean_us = 0;
  double requests_per_second = 0;
  double round_trips = 0, reads = 0, bytes = 0;  // a request; 0: not counted
  double server_cpu_us = 0;                      // a request
  double client_cpu_us = 0;                      // likewise, of the threads that ask
};

const char* NameOf(KeyMode mode);

// The longest-prefix match of every question.
Result<IndexRow> RunClosed(const BackendKind& kind, KeyMode mode, IndexBackend& backend,
                           const IndexLoad& load, size_t clients);

// The same at the trace's own times, spread within its grid of 3 s and made faster so that all
// takes `seconds`. A request that must wait for its client counts from when it was due.
Result<IndexRow> RunOpen(const BackendKind& kind, KeyMode mode, IndexBackend& backend,
                         const IndexLoad& load, size_t clients, double seconds);

// Matches of so many keys that are all there; p99 and mean are medians of five rounds.
Result<IndexRow> RunFixed(const BackendKind& kind, IndexBackend& backend, const IndexLoad& load,
                          size_t clients, size_t keys);

// The paper's operations, by one client: ranges (numbers that follow one another) and gets
// (others).
struct IndexInterval {
  double begin_s = 0;
  uint64_t ranges = 0, gets = 0;
  double range_p99_us = 0, get_p99_us = 0;
};
Result<std::vector<IndexInterval>> RunIntervals(IndexBackend& backend, const IndexLoad& load,
                                                bool warm, size_t intervals);

}  // namespace kvcfs::bench
