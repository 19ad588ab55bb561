#include "bench/paper.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <ctime>

#include <fmt/format.h>

#include "bench/core_cluster.h"
#include "bench/index_run.h"
#include "bench/paper_page.h"
#include "bench/prefix_cache.h"
#include "tools/report.h"

namespace kvcfs::bench {
namespace {

constexpr size_t kIntervals = 12;
constexpr size_t kOpenClients = 16;

double Quantile(std::vector<double> values, double share) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  return values[static_cast<size_t>(std::lround(share * static_cast<double>(values.size() - 1)))];
}

void Print(const IndexRow& row) {
  fmt::print(
      "{:<16} {:<6} {:<6} {:<4} {:>2} clients  p50 {:>8.2f} p99 {:>8.2f} p99.9 {:>8.2f} us "
      "{:>9.0f}/s"
      "  trips {:>5.2f} READs {:>5.1f} bytes {:>6.0f} server {:>6.2f} client {:>6.2f} us\n",
      row.backend, row.keys, row.transport, row.cache, row.clients, row.p50_us, row.p99_us,
      row.p999_us, row.requests_per_second, row.round_trips, row.reads, row.bytes,
      row.server_cpu_us, row.client_cpu_us);
  std::fflush(stdout);
}

// What the rows of the cluster need of the rows of 32 keys.
struct Fixed {
  double mget_p99_us = 0, cold_p99_us = 0, mget_mean_us = 0, warm_mean_us = 0;
};

Status RunBackend(const PaperOptions& options, const BackendKind& kind, KeyMode mode,
                  const IndexLoad& load, PaperResult* result, Fixed* fixed) {
  auto made = kind.make(load, mode);
  if (!made.ok()) {
    result->missing.push_back(fmt::format("{} ({}, {}): {}", kind.backend, kind.transport,
                                          kind.cache, made.error().text));
    fmt::print("not measured: {}\n", result->missing.back());
    return {};
  }
  IndexBackend& backend = **made;
  for (const size_t clients : options.clients) {
    KVC_TRY_ASSIGN(const IndexRow row, RunClosed(kind, mode, backend, load, clients));
    Print(row);
    result->rows.push_back(row);
  }
  const bool is_model = kind.transport == "model";
  if (!is_model && kind.transport != "inproc") {
    KVC_TRY_ASSIGN(const IndexRow row,
                   RunOpen(kind, mode, backend, load, kOpenClients, options.open_seconds));
    result->open_rows.push_back(row);
  }
  KVC_TRY_ASSIGN(auto intervals, RunIntervals(backend, load, kind.cache == "warm", kIntervals));
  result->intervals.push_back(
      {kind.backend, NameOf(mode), kind.transport, kind.cache, std::move(intervals)});
  if (backend.bytes_per_block() > 0 && kind.cache == "cold") {
    result->memory.push_back(
        {kind.backend, NameOf(mode), kind.transport, backend.bytes_per_block()});
  }
  if (kind.transport == "tcp" && mode == KeyMode::kSha256 &&
      (kind.backend == "kvcfs" || kind.backend == "redis-mget")) {
    const auto row = RunFixed(kind, backend, load, 4, 32);
    if (!row.ok()) {
      if (row.code() != Code::kNotFound) return row.error();
      result->missing.push_back("Match of 32 keys: " + row.error().text);
    } else if (kind.backend == "redis-mget") {
      fixed->mget_p99_us = row->p99_us;
      fixed->mget_mean_us = row->mean_us;
    } else if (kind.cache == "warm") {
      fixed->warm_mean_us = row->mean_us;
    } else {
      fixed->cold_p99_us = row->p99_us;
    }
  }
  return {};
}

void AddFixedRatios(const Fixed& fixed, PaperResult* result) {
  if (fixed.mget_p99_us > 0 && fixed.cold_p99_us > 0) {
    result->cluster.push_back(
        {"Match of 32 keys over TCP, p99 / one Redis MGET of 32",
         fixed.cold_p99_us / fixed.mget_p99_us, 0.6,
         fmt::format("4 clients, {:.0f} / {:.0f} us", fixed.cold_p99_us, fixed.mget_p99_us)});
  }
  if (fixed.mget_mean_us > 0 && fixed.warm_mean_us > 0) {
    result->cluster.push_back(
        {"the same with a warm client cache, mean", fixed.warm_mean_us / fixed.mget_mean_us, 0.1,
         fmt::format("4 clients, {:.1f} / {:.1f} us", fixed.warm_mean_us, fixed.mget_mean_us)});
  }
}

// The rows about the cluster's protocol, counted by its cores.
void RunCluster(const IndexLoad& load, PaperResult* result) {
  const std::vector<meta::BlockFacts> facts = FactsOf(load);
  // Cold clients of clusters of growing size.
  std::vector<double> p99_us;
  for (const size_t nodes : {size_t{4}, size_t{16}, size_t{64}}) {
    CoreCluster cluster(nodes, facts);
    std::vector<double> taken;
    if (nodes == 16) {
      std::vector<size_t> clients(16);
      for (size_t& client : clients) client = cluster.AddClient();
      double depth = 0;
      uint64_t messages = 0;
      for (size_t i = 0; i < load.question_count(); ++i) {
        const auto answer = cluster.Match(clients[i % clients.size()], load.question(i).keys, true);
        depth += answer.depth;
        messages += answer.messages;
      }
      const auto count = static_cast<double>(std::max<size_t>(1, load.question_count()));
      result->cluster.push_back(
          {"sequential depth, round trips a request", depth / count, 1.2,
           fmt::format("16 clients with caches, 16 nodes; {:.2f} messages a request",
                       static_cast<double>(messages) / count)});
      uint64_t most = 0, sum = 0;
      for (const uint64_t groups : cluster.groups_asked()) {
        most = std::max(most, groups);
        sum += groups;
      }
      result->cluster.push_back(
          {"balance of 16 nodes, most / mean",
           sum == 0 ? 0 : static_cast<double>(most) * 16 / static_cast<double>(sum), 1.3,
           "groups that each was asked for"});
    }
    const size_t cold = cluster.AddClient();
    for (size_t i = 0; i < load.question_count(); ++i) {
      taken.push_back(cluster.Match(cold, load.question(i).keys, false).model_us);
    }
    p99_us.push_back(Quantile(std::move(taken), 0.99));
  }
  if (p99_us.front() > 0) {
    result->cluster.push_back(
        {"p99 of a match in the cost model, 64 nodes / 4 nodes", p99_us.back() / p99_us.front(),
         1.5,
         fmt::format(
             "{} blocks (as many as the trace reuses; what a match sends does not depend on "
             "their number); {:.2f}, {:.2f}, {:.2f} us at 4, 16, 64 nodes",
             facts.size(), p99_us[0], p99_us[1], p99_us[2])});
  }
}

const IndexRow* FindRow(const PaperResult& result, const std::string& backend,
                        const std::string& keys, const std::string& transport,
                        const std::string& cache, size_t clients) {
  for (const IndexRow& row : result.rows) {
    if (row.backend == backend && row.keys == keys && row.transport == transport &&
        row.cache == cache && row.clients == clients) {
      return &row;
    }
  }
  return nullptr;
}

// The goals of the experiment, where both sides were measured.
void AddRatios(PaperResult* result) {
  const auto add = [&](const std::string& what, const IndexRow* ours, const IndexRow* other,
                       double at_most) {
    if (ours == nullptr || other == nullptr || other->p99_us <= 0) return;
    result->cluster.push_back({what, ours->p99_us / other->p99_us, at_most,
                               fmt::format("{:.2f} / {:.2f} us", ours->p99_us, other->p99_us)});
  };
  const IndexRow* tcp = FindRow(*result, "kvcfs", "sha256", "tcp", "cold", 16);
  const IndexRow* warm = FindRow(*result, "kvcfs", "sha256", "tcp", "warm", 16);
  const IndexRow* get = FindRow(*result, "redis-get", "sha256", "tcp", "cold", 16);
  const IndexRow* mget = FindRow(*result, "redis-mget", "sha256", "tcp", "cold", 16);
  add("p99 a request, 16 clients over TCP, cold / Redis GET a block", tcp, get, 0.05);
  add("the same, warm / Redis GET a block", warm, get, 0.05);
  add("p99 a request, 16 clients over TCP, cold / Redis MGET", tcp, mget, 0.5);
  add("the same, warm / Redis MGET", warm, mget, 0.5);
  for (const char* keys : {"sha256", "int"}) {
    const IndexRow* best = nullptr;
    for (const char* name : {"sherman", "chime", "flat-hash"}) {
      for (const char* cache : {"cold", "warm"}) {
        const IndexRow* row = FindRow(*result, name, keys, "model", cache, 1);
        if (row != nullptr && (best == nullptr || row->p99_us < best->p99_us)) best = row;
      }
    }
    const double at_most = std::string(keys) == "int" ? 0.9 : 0.5;
    for (const char* cache : {"cold", "warm"}) {
      add(fmt::format("cost model p99, {} keys, {} / best of Sherman, CHIME, flat hash", keys,
                      cache),
          FindRow(*result, "kvcfs", keys, "model", cache, 1), best, at_most);
    }
  }
  if (tcp != nullptr && mget != nullptr && tcp->server_cpu_us > 0) {
    result->cluster.push_back({"server CPU a request over TCP, cold / Redis MGET",
                               tcp->server_cpu_us / mget->server_cpu_us, 0.25,
                               "16 clients; a quarter is four times the requests a core"});
  }
  if (warm != nullptr && mget != nullptr && mget->server_cpu_us > 0) {
    result->cluster.push_back({"the same, warm / Redis MGET",
                               warm->server_cpu_us / mget->server_cpu_us, 0.25, "16 clients"});
  }
}

Status WriteFile(const std::string& path, const std::string& text) {
  std::FILE* file = std::fopen(path.c_str(), "we");
  if (file == nullptr) return ErrnoError(errno, "create", path);
  const bool written = std::fwrite(text.data(), 1, text.size(), file) == text.size();
  if (std::fclose(file) != 0 || !written) return ErrnoError(errno, "write", path);
  return {};
}

std::string Today() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  ::localtime_r(&now, &parts);
  char text[32];
  std::strftime(text, sizeof(text), "%Y-%m-%d %H:%M", &parts);
  return text;
}

bool IsWanted(const PaperOptions& options, const BackendKind& kind) {
  return options.only.empty() ||
         std::any_of(options.only.begin(), options.only.end(), [&](const std::string& name) {
           return name == kind.backend || name == kind.backend + "/" + kind.transport;
         });
}

// Also sizes that suit short traces.
std::vector<uint64_t> Capacities(const TraceTree& tree) {
  std::vector<uint64_t> all = {1000, 3000, 6000, 10000, 20000};
  for (const uint64_t part : {50, 20, 8}) {
    const uint64_t capacity = tree.block_count() / part;
    if (capacity > 0 && capacity < all.front()) all.push_back(capacity);
  }
  std::sort(all.begin(), all.end());
  return all;
}

}  // namespace

Status RunPaper(const PaperOptions& options) {
  KVC_TRY_ASSIGN(const tools::Trace trace, tools::ReadTrace(options.trace, options.limit));
  const TraceTree tree(trace);
  const IndexLoad load(tree, options.requests_max);
  PaperResult result;
  result.trace = options.trace_name;
  result.command = options.command;
  result.machine = tools::DescribeMachine();
  result.when = Today();
  result.requests = tree.request_count();
  result.loaded_blocks = load.blocks().size();
  fmt::print("{}: {} requests, {} blocks, {} of them used again and loaded; {} requests a run\n",
             result.trace, result.requests, tree.block_count(), result.loaded_blocks,
             load.question_count());
  result.study = StudyTrace(tree);

  std::vector<BackendKind> kinds;
  const BackendHosts hosts{.program = options.program,
                           .trace = options.trace,
                           .limit = options.limit,
                           .requests_max = options.requests_max};
  for (auto part : {LocalBackends(), RedisBackends(), ClusterBackends(hosts), ModelBackends(),
                    RemoteTreeBackends()}) {
    kinds.insert(kinds.end(), part.begin(), part.end());
  }
  Fixed fixed;
  for (const BackendKind& kind : kinds) {
    if (!IsWanted(options, kind)) continue;
    for (const KeyMode mode : kind.modes) {
      KVC_TRY(RunBackend(options, kind, mode, load, &result, &fixed));
    }
  }
  if (options.only.empty()) {
    for (const uint64_t capacity : Capacities(tree)) {
      for (const char* name : PolicyNames()) {
        result.policies.push_back({name, capacity, SimulatePolicy(name, tree, capacity)});
      }
    }
  }
  for (const PolicyRow& row : result.policies) {
    fmt::print("{:>8} blocks  {:<9} hit rate {:.4f}\n", row.capacity_blocks, row.policy,
               row.hit_rate);
  }
  AddRatios(&result);
  AddFixedRatios(fixed, &result);
  if (options.only.empty()) RunCluster(load, &result);
  for (const ClusterRow& row : result.cluster) {
    fmt::print("{:<56} {:>6.3f}  at most {:.2f}  ({})\n", row.what, row.measured, row.at_most,
               row.note);
  }
  if (!options.json.empty()) KVC_TRY(WriteFile(options.json, PaperJson(result)));
  if (!options.report.empty()) KVC_TRY(WriteFile(options.report, RenderPaperPage(result)));
  return {};
}

}  // namespace kvcfs::bench
