// How often a cache of so many blocks has what a trace asks for, by policy of eviction.
//
//   policy_sim --trace FILE.jsonl [--limit N] [--capacities 3000,6000,10000] [--json]
// Prints a row a capacity and policy, and how much of the gap from leaf-first LRU to Belady's bound
// each closes; with --json one object {"policies": [{policy, capacity_blocks, hit_rate}]}.
#include <cstdio>
#include <exception>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "bench/prefix_cache.h"
#include "bench/trace_tree.h"
#include "tools/trace.h"

namespace kvcfs::bench {
namespace {

int Run(const std::string& file, uint64_t limit, const std::vector<uint64_t>& capacities,
        const std::vector<std::string>& policies, bool json) {
  const Result<tools::Trace> trace = tools::ReadTrace(file, limit);
  if (!trace.ok()) {
    fmt::print(stderr, "policy_sim: {}\n", trace.error().text);
    return 1;
  }
  const TraceTree tree(*trace);
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  for (const uint64_t capacity : capacities) {
    const double leaf_lru = SimulatePolicy("leaf-lru", tree, capacity);
    const double belady = SimulatePolicy("belady", tree, capacity);
    for (const std::string& name : policies) {
      const double rate = SimulatePolicy(name, tree, capacity);
      rows.push_back({{"policy", name}, {"capacity_blocks", capacity}, {"hit_rate", rate}});
      if (json) continue;
      const double gap = belady - leaf_lru;
      fmt::print("{:>8} blocks  {:<9} hit rate {:.4f}  of the gap {:6.1f}%\n", capacity, name, rate,
                 gap > 0 ? 100 * (rate - leaf_lru) / gap : 0.0);
    }
  }
  if (json) fmt::print("{}\n", nlohmann::ordered_json{{"policies", rows}}.dump());
  return 0;
}

int Main(int argc, char** argv) {
  CLI::App app("Hit rate against capacity, by policy of eviction.");
  std::string file;
  uint64_t limit = 0;
  std::vector<uint64_t> capacities = {3000, 6000, 10000};
  bool json = false;
  app.add_option("--trace", file, "JSON lines in Mooncake's format")->required();
  app.add_option("--limit", limit, "Only the first N requests; 0: all");
  app.add_option("--capacities", capacities, "In blocks")
      ->delimiter(',')
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_flag("--json", json, "One JSON object");
  const auto known = PolicyNames();
  std::vector<std::string> policies(known.begin(), known.end());
  app.add_option("--policies", policies, "Only these")
      ->delimiter(',')
      ->check(CLI::IsMember(policies))
      ->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  return Run(file, limit, capacities, policies, json);
}

}  // namespace
}  // namespace kvcfs::bench

int main(int argc, char** argv) {
  try {
    return kvcfs::bench::Main(argc, argv);
  } catch (const std::exception& error) {  // of CLI11, fmt, JSON and the standard library
    std::fprintf(stderr, "policy_sim: %s\n", error.what());
    return 1;
  }
}
