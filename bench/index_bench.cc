// The index of metadata, measured.
//
//   index_bench [--large] [--trace FILE] [--json]   the chain index in process: match, memory,
//   restart index_bench paper --trace FILE [...]            against everything else: paper.h
//   index_bench node --etcd HOST:PORT --trace FILE  a server of that: cluster_node.h
#include <cstdio>
#include <exception>
#include <string>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <unistd.h>

#include "base/log.h"
#include "bench/cluster_node.h"
#include "bench/index_cost.h"
#include "bench/paper.h"

namespace kvcfs::bench {
namespace {

std::string OwnPath() {
  char path[4096];
  const ssize_t length = ::readlink("/proc/self/exe", path, sizeof(path));
  return length > 0 ? std::string(path, static_cast<size_t>(length)) : std::string();
}

int Ended(const Status& status) {
  if (status.ok()) return 0;
  fmt::print(stderr, "index_bench: {}\n", status.error().text);
  return 1;
}

int Main(int argc, char** argv) {
  CLI::App app("The index of metadata, measured.");
  bool large = false, json = false;
  std::string trace;
  app.add_flag("--large", large, "Also 10 million blocks (2 GiB of memory)");
  app.add_option("--trace", trace, "Also the tree of a trace in Mooncake's format");
  app.add_flag("--json", json, "Results as one object at the end");
  app.require_subcommand(0, 1);

  PaperOptions paper;
  CLI::App* all = app.add_subcommand("paper", "Against everything else; called by paper.sh.");
  all->add_option("--trace", paper.trace, "JSON lines in Mooncake's format")->required();
  all->add_option("--name", paper.trace_name, "What the trace is called in the report");
  all->add_option("--limit", paper.limit, "Only the first N requests; 0: all");
  all->add_option("--requests", paper.requests_max, "At most so many requests a run; 0: all")
      ->capture_default_str();
  all->add_option("--open-seconds", paper.open_seconds, "How long the open loop takes")
      ->capture_default_str();
  all->add_option("--clients", paper.clients, "How many ask at a time: N,...")
      ->delimiter(',')
      ->check(CLI::Range(1, 1000));
  all->add_option("--json", paper.json, "Write the results here");
  all->add_option("--report", paper.report, "Write the page here");
  all->add_option("--only", paper.only, "Some backends: BACKEND or BACKEND/TRANSPORT,...")
      ->delimiter(',');
  all->add_option("--command", paper.command, "What the page says it was made by");

  std::string etcd, node_trace;
  uint64_t node_limit = 0;
  CLI::App* node = app.add_subcommand("node", "A server that holds the blocks of a trace.");
  node->add_option("--etcd", etcd, "HOST:PORT")->required();
  node->add_option("--trace", node_trace, "JSON lines in Mooncake's format")->required();
  node->add_option("--limit", node_limit, "Only the first N requests; 0: all");
  CLI11_PARSE(app, argc, argv);

  SetLogLevel(LogLevel::kWarn);
  if (*all) {
    paper.program = OwnPath();
    if (paper.trace_name.empty()) paper.trace_name = paper.trace.substr(paper.trace.rfind('/') + 1);
    return Ended(RunPaper(paper));
  }
  if (*node) return Ended(RunClusterNode(etcd, node_trace, node_limit));
  return RunIndexCost(large, trace, json);
}

}  // namespace
}  // namespace kvcfs::bench

int main(int argc, char** argv) {
  try {
    return kvcfs::bench::Main(argc, argv);
  } catch (const std::exception& error) {  // of CLI11, fmt, JSON and the standard library
    std::fprintf(stderr, "index_bench: %s\n", error.what());
    return 1;
  }
}
