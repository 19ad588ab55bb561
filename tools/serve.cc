// kvcfs serve: what the line says, as settings for RunServe.
#include <memory>

#include <CLI/CLI.hpp>

#include "tools/cluster_options.h"
#include "tools/server.h"
#include "tools/setting_flags.h"
#include "tools/verb.h"

namespace kvcfs::tools {
namespace {

struct Options {
  SettingFlags settings;
  bool daemon = false;
};

int Serve(const Options& options) {
  Result<NodeConfig> config = options.settings.Load();
  if (!config.ok()) return Misuse("serve", config.error().text);
  Result<ClusterOptions> cluster = ParseClusterOptions(config->cluster, ClusterUse::kServe);
  if (!cluster.ok()) return Misuse("serve", cluster.error().text);
  return RunServe({std::move(*config), std::move(*cluster), options.daemon});
}

}  // namespace

void AddServeVerb(CLI::App& app, int& exit_code) {
  CLI::App* verb =
      app.add_subcommand("serve", "Be a node of a cluster: hold blocks for its mounts.");
  auto options = std::make_shared<Options>();
  AddClusterFlags(options->settings, verb, ClusterUse::kServe);
  options->settings.AddNode(verb);
  options->settings.AddConfig(verb, "cluster.id=test");
  verb->add_flag("--daemon", options->daemon, "Return when it serves");
  verb->footer(
      "Prints `serving NAME at ADDRESS ...` when it has joined. Stays in the foreground; ^C and\n"
      "SIGTERM write back what is dirty and leave the cluster at once. What was published and has\n"
      "reached NVMe is there after a restart; what was only in DRAM needs another replica\n"
      "(`setfattr -n user.kvc.replicas -v 2` on the namespace), or `kvcfs cluster drain` "
      "before.\n\n"
      "Example: one of three nodes, on this machine only\n"
      "  kvcfs serve --cluster etcd://127.0.0.1:2379 --name n1 --listen 127.0.0.1:7471 \\\n"
      "    --data /nvme/n1 --dram 8GiB --nvme 200GiB --daemon");
  verb->callback([options, &exit_code] { exit_code = Serve(*options); });
}

}  // namespace kvcfs::tools
