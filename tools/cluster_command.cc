// kvcfs cluster status|drain|watch: what an operator asks of a cluster.
#include <chrono>
#include <memory>
#include <thread>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <unistd.h>

#include "meta/membership.h"
#include "tools/cluster_report.h"
#include "tools/stats.h"
#include "tools/verb.h"

namespace kvcfs::tools {
namespace {

constexpr Millis kNodeTimeout{2000};
constexpr Millis kDrainLook{500};

struct Options {
  SettingFlags settings;
  bool json = false;
  std::string node;
  bool undo = false, wait = false;
  double interval_s = 1;
  uint64_t count = 0;
};

Result<ClusterOptions> Parse(const Options& options) {
  KVC_TRY_ASSIGN(const NodeConfig config, options.settings.Load());
  return ParseClusterOptions(config.cluster, ClusterUse::kAsk);
}

int Show(std::string_view verb, const Json& cluster, bool json, int indent) {
  constexpr auto kReplace = Json::error_handler_t::replace;
  return Print(verb,
               json ? cluster.dump(indent, ' ', false, kReplace) + "\n" : ClusterText(cluster));
}

int Status(const Options& options) {
  constexpr char kVerb[] = "cluster status";
  const auto cluster = Parse(options);
  if (!cluster.ok()) return Misuse(kVerb, cluster.error().text);
  const auto seen = LookAtCluster(*cluster, kNodeTimeout);
  if (!seen.ok()) return Fail(kVerb, seen.error().text);
  const int shown = Show(kVerb, *seen, options.json, 2);
  return shown == kExitDone && !seen->value("whole", false) ? kExitFailed : shown;
}

int Watch(const Options& options) {
  constexpr char kVerb[] = "cluster watch";
  const auto cluster = Parse(options);
  if (!cluster.ok()) return Misuse(kVerb, cluster.error().text);
  if (!(options.interval_s > 0)) return Misuse(kVerb, "--interval must be above 0 seconds");
  const bool screen = !options.json && ::isatty(STDOUT_FILENO) == 1;
  for (uint64_t look = 0; options.count == 0 || look < options.count; ++look) {
    if (look > 0) std::this_thread::sleep_for(std::chrono::duration<double>(options.interval_s));
    if (screen && Print(kVerb, "\033[H\033[2J") != kExitDone) return kExitFailed;
    const auto seen = LookAtCluster(*cluster, kNodeTimeout);
    if (!seen.ok()) {
      Fail(kVerb, seen.error().text);  // it may come back
      continue;
    }
    const int shown = Show(kVerb, *seen, options.json, -1);
    if (shown != kExitDone) return shown;
    if (!options.json && !screen && Print(kVerb, "\n") != kExitDone) return kExitFailed;
  }
  return kExitDone;
}

const Json* FindNode(const Json& cluster, const std::string& name) {
  for (const Json& node : cluster.at("nodes")) {
    if (TextAt(node, "name") == name) return &node;
  }
  return nullptr;
}

// Until the node holds nothing.
int AwaitEmpty(const ClusterOptions& cluster, const std::string& name) {
  constexpr char kVerb[] = "cluster drain";
  for (uint64_t before = UINT64_MAX;;) {
    const auto seen = LookAtCluster(cluster, kNodeTimeout);
    if (!seen.ok()) return Fail(kVerb, seen.error().text);
    const Json* node = FindNode(*seen, name);
    if (node == nullptr) return Fail(kVerb, fmt::format("{} has left the cluster", name));
    if (node->value("answers", false)) {
      const uint64_t copies = CountAt(*node, "copies");
      if (node->value("drained", false))
        return Print(kVerb, fmt::format("{} holds nothing any more\n", name));
      if (copies != before) fmt::print(stderr, "{} copies left\n", copies);
      before = copies;
    }
    std::this_thread::sleep_for(kDrainLook);
  }
}

int Drain(const Options& options) {
  constexpr char kVerb[] = "cluster drain";
  const auto cluster = Parse(options);
  if (!cluster.ok()) return Misuse(kVerb, cluster.error().text);
  const auto seen = LookAtCluster(*cluster, kNodeTimeout);
  if (!seen.ok()) return Fail(kVerb, seen.error().text);
  if (!options.undo && FindNode(*seen, options.node) == nullptr) {
    std::string names;
    for (const Json& node : seen->at("nodes")) names += " " + TextAt(node, "name").value_or("?");
    return Fail(kVerb, fmt::format("no node is named '{}'; there are{}", options.node, names));
  }
  meta::MembershipOptions membership;
  membership.cluster = cluster->id;
  const SystemClock clock;
  const auto done = meta::Membership(membership, meta::EtcdClient::Make(cluster->etcd), &clock)
                        .SetDraining(options.node, !options.undo);
  if (!done.ok()) return Fail(kVerb, done.error().text);
  if (options.wait && !options.undo) return AwaitEmpty(*cluster, options.node);
  return Print(kVerb, options.undo
                          ? fmt::format("{} takes blocks again\n", options.node)
                          : fmt::format("{} is being emptied; `kvcfs cluster status` says how far "
                                        "it is\n",
                                        options.node));
}

void AddCommon(CLI::App* verb, Options& options) {
  AddClusterFlags(options.settings, verb, ClusterUse::kAsk);
  options.settings.AddConfig(verb, "cluster.id=test");
}

}  // namespace

void AddClusterVerb(CLI::App& app, int& exit_code) {
  CLI::App* all = app.add_subcommand("cluster", "See and steer a cluster of `kvcfs serve` nodes.");
  all->require_subcommand(1);
  all->footer(
      "Example:\n"
      "  kvcfs cluster status --cluster etcd://127.0.0.1:2379\n"
      "  kvcfs cluster drain n2 --wait --cluster etcd://127.0.0.1:2379");

  CLI::App* status = all->add_subcommand("status", "Nodes, shards, capacity and repair, once.");
  auto of_status = std::make_shared<Options>();
  AddCommon(status, *of_status);
  status->add_flag("--json", of_status->json, "One JSON object");
  status->footer(
      "STATE: up; draining: being emptied; drained: is empty, and may go; silent: alive, but not "
      "to be\n"
      "reached from here; away: died or left. REPAIRS: blocks that wait for another copy, and "
      "copies\n"
      "made anew so far.\n"
      "Exit 1 if not all nodes answer, or not all shards.\n\n"
      "Example:\n"
      "  kvcfs cluster status --cluster etcd://127.0.0.1:2379 --json | jq '.nodes[].copies'");
  status->callback([of_status, &exit_code] { exit_code = Status(*of_status); });

  CLI::App* drain = all->add_subcommand("drain", "Empty a node, so that it can go without loss.");
  auto of_drain = std::make_shared<Options>();
  AddCommon(drain, *of_drain);
  drain->add_option("NODE", of_drain->node, "Its name")->required();
  drain->add_flag("--undo", of_drain->undo, "It takes blocks again");
  drain->add_flag("--wait", of_drain->wait, "Return when it holds nothing any more");
  drain->footer(
      "The wish stands at etcd, also while the node is away, until it is taken back. Others make\n"
      "copies of what only this node has; then its own go.\n\n"
      "Example:\n"
      "  kvcfs cluster drain n2 --wait --cluster etcd://127.0.0.1:2379");
  drain->callback([of_drain, &exit_code] { exit_code = Drain(*of_drain); });

  CLI::App* watch = all->add_subcommand("watch", "What status says, again and again.");
  auto of_watch = std::make_shared<Options>();
  AddCommon(watch, *of_watch);
  watch->add_flag("--json", of_watch->json, "A line of JSON a look");
  watch->add_option("--interval", of_watch->interval_s, "Seconds between two looks");
  watch->add_option("--count", of_watch->count, "End after so many looks");
  watch->footer(
      "Ends with ^C.\n\n"
      "Example:\n"
      "  kvcfs cluster watch --interval 5 --cluster etcd://127.0.0.1:2379");
  watch->callback([of_watch, &exit_code] { exit_code = Watch(*of_watch); });
}

}  // namespace kvcfs::tools
