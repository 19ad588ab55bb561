// Request traces in Mooncake's format: one JSON object a line, with hash_ids naming the blocks.
//
//   {"timestamp": 3000, "input_length": 6758, "output_length": 500, "hash_ids": [0, 14, 15]}
//
// Source: github.com/kvcache-ai/Mooncake, FAST25-release/traces. timestamp is in milliseconds.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace kvcfs::tools {

struct TraceRequest {
  uint64_t timestamp_ms = 0;
  uint64_t input_length = 0;       // tokens
  uint64_t output_length = 0;      // tokens
  std::vector<uint64_t> hash_ids;  // in token order; the last may be a partial block
};

struct Trace {
  std::vector<TraceRequest> requests;  // in the file's order
};

// kInvalid names file:line and what is wrong there. `limit` 0: all requests.
Result<Trace> ReadTrace(const std::string& path, uint64_t limit = 0);
Result<Trace> ParseTrace(std::string_view text, const std::string& file_name, uint64_t limit = 0);

// One line, without its end.
std::string FormatTraceRequest(const TraceRequest& request);

// What a trace looks like. Reuse is what a cache that never evicts would see.
struct TraceFacts {
  uint64_t requests = 0;
  uint64_t blocks = 0;         // in all requests
  uint64_t unique_blocks = 0;  // a block: an id behind one parent
  uint64_t reused_blocks = 0;  // matched by the longest prefix of earlier requests
  uint64_t first_blocks = 0;   // that have no parent
  uint64_t two_parents = 0;    // ids that stand behind more than one parent: 0 in a true tree
  uint64_t depth_max = 0;      // longest chain
  uint64_t children_max = 0;
  double children_share[4] = {};  // of unique blocks with 0, 1, 2, more children
  uint64_t match_p50 = 0, match_p90 = 0, match_p99 = 0;     // blocks a request
  uint64_t input_p50 = 0, input_p90 = 0, input_p99 = 0;     // tokens
  uint64_t output_p50 = 0, output_p90 = 0, output_p99 = 0;  // tokens
  double seconds = 0;                                       // from first to last timestamp
};
TraceFacts ExamineTrace(const Trace& trace);

}  // namespace kvcfs::tools
