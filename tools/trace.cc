#include "tools/trace.h"

#include <algorithm>
#include <unordered_map>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "base/read_file.h"

namespace kvcfs::tools {
namespace {

using nlohmann::json;

// Empty: fine. Else what is wrong with the line.
std::string ParseRequest(std::string_view line, TraceRequest* request) {
  const json object = json::parse(line.begin(), line.end(), nullptr, /*allow_exceptions=*/false);
  if (object.is_discarded()) return "not JSON";
  if (!object.is_object()) return "not a JSON object";
  const struct {
    const char* name;
    uint64_t* field;
  } numbers[] = {{"timestamp", &request->timestamp_ms},
                 {"input_length", &request->input_length},
                 {"output_length", &request->output_length}};
  for (const auto& number : numbers) {
    const auto at = object.find(number.name);
    if (at == object.end()) continue;  // only the blocks are needed
    if (!at->is_number() || at->get<double>() < 0) {
      return fmt::format("\"{}\" is not a number from 0 on", number.name);
    }
    *number.field =
        at->is_number_unsigned() ? at->get<uint64_t>() : static_cast<uint64_t>(at->get<double>());
  }
  const auto ids = object.find("hash_ids");
  if (ids == object.end()) return "no \"hash_ids\"";
  if (!ids->is_array() || ids->empty()) return "\"hash_ids\" is not a list of block ids";
  request->hash_ids.reserve(ids->size());
  for (const json& id : *ids) {
    if (!id.is_number_unsigned()) {
      return fmt::format("\"hash_ids\" has {}, not a whole number from 0 on", id.dump());
    }
    request->hash_ids.push_back(id.get<uint64_t>());
  }
  return {};
}

struct EdgeHash {
  size_t operator()(const std::pair<uint64_t, uint64_t>& edge) const {
    uint64_t hash = edge.first * 0x9e3779b97f4a7c15u + edge.second;
    hash ^= hash >> 32;
    return static_cast<size_t>(hash * 0xd6e8feb86659fd93u);
  }
};

uint64_t Quantile(std::vector<uint64_t>& values, double share) {
  if (values.empty()) return 0;
  const auto at = static_cast<size_t>(share * static_cast<double>(values.size()));
  const auto nth = values.begin() + static_cast<ptrdiff_t>(std::min(at, values.size() - 1));
  std::nth_element(values.begin(), nth, values.end());
  return *nth;
}

}  // namespace

Result<Trace> ParseTrace(std::string_view text, const std::string& file_name, uint64_t limit) {
  Trace trace;
  uint64_t line_number = 0;
  while (!text.empty() && (limit == 0 || trace.requests.size() < limit)) {
    const size_t end = text.find('\n');
    std::string_view line = text.substr(0, end);
    text = end == std::string_view::npos ? std::string_view() : text.substr(end + 1);
    ++line_number;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    TraceRequest request;
    if (const std::string wrong = ParseRequest(line, &request); !wrong.empty()) {
      return Error{Code::kInvalid, fmt::format("{}:{}: {}", file_name, line_number, wrong)};
    }
    trace.requests.push_back(std::move(request));
  }
  if (trace.requests.empty()) {
    return Error{Code::kInvalid, fmt::format("{}: no requests in it", file_name)};
  }
  return trace;
}

Result<Trace> ReadTrace(const std::string& path, uint64_t limit) {
  KVC_TRY_ASSIGN(const std::string text, ReadFile(path));
  return ParseTrace(text, path, limit);
}

std::string FormatTraceRequest(const TraceRequest& request) {
  return fmt::format(
      R"({{"timestamp": {}, "input_length": {}, "output_length": {}, "hash_ids": [{}]}})",
      request.timestamp_ms, request.input_length, request.output_length,
      fmt::join(request.hash_ids, ", "));
}

TraceFacts ExamineTrace(const Trace& trace) {
  TraceFacts facts;
  // Nodes of the prefix tree, from 1 on in order of appearance; 0 is the root.
  std::unordered_map<std::pair<uint64_t, uint64_t>, uint64_t, EdgeHash> nodes;
  std::unordered_map<uint64_t, uint64_t> parent_of_id;
  std::vector<uint32_t> children(1, 0);
  std::vector<uint64_t> matches, inputs, outputs;
  uint64_t first_ms = UINT64_MAX, last_ms = 0;
  for (const TraceRequest& request : trace.requests) {
    uint64_t parent = 0, matched = 0;
    bool matching = true;
    for (const uint64_t id : request.hash_ids) {
      const auto [at, fresh] = nodes.try_emplace({parent, id}, children.size());
      if (fresh) {
        ++children[parent];
        children.push_back(0);
        const auto [seen, first] = parent_of_id.try_emplace(id, parent);
        if (!first && seen->second != parent) ++facts.two_parents;
        matching = false;
      }
      matched += matching ? 1 : 0;
      parent = at->second;
    }
    facts.blocks += request.hash_ids.size();
    facts.reused_blocks += matched;
    facts.depth_max = std::max<uint64_t>(facts.depth_max, request.hash_ids.size());
    matches.push_back(matched);
    inputs.push_back(request.input_length);
    outputs.push_back(request.output_length);
    first_ms = std::min(first_ms, request.timestamp_ms);
    last_ms = std::max(last_ms, request.timestamp_ms);
  }
  facts.requests = trace.requests.size();
  facts.unique_blocks = nodes.size();
  facts.first_blocks = children[0];
  for (size_t node = 1; node < children.size(); ++node) {
    ++facts.children_share[std::min<uint32_t>(children[node], 3)];
    facts.children_max = std::max<uint64_t>(facts.children_max, children[node]);
  }
  if (facts.unique_blocks > 0) {
    for (double& share : facts.children_share) share /= static_cast<double>(facts.unique_blocks);
  }
  facts.match_p50 = Quantile(matches, 0.5);
  facts.match_p90 = Quantile(matches, 0.9);
  facts.match_p99 = Quantile(matches, 0.99);
  facts.input_p50 = Quantile(inputs, 0.5);
  facts.input_p90 = Quantile(inputs, 0.9);
  facts.input_p99 = Quantile(inputs, 0.99);
  facts.output_p50 = Quantile(outputs, 0.5);
  facts.output_p90 = Quantile(outputs, 0.9);
  facts.output_p99 = Quantile(outputs, 0.99);
  if (!trace.requests.empty()) facts.seconds = static_cast<double>(last_ms - first_ms) / 1000;
  return facts;
}

}  // namespace kvcfs::tools
