// kvcfs serve: what the line says, as settings for RunServe.
#include <filesystem>
#include <memory>

#include <CLI/CLI.hpp>

#include "tools/server.h"
#include "tools/verb.h"

namespace kvcfs::tools {
namespace {

// A flag that is a setting's short form.
struct SettingFlag {
  const char* flag;
  const char* key;
  const char* help;
};
constexpr SettingFlag kSettingFlags[] = {
    {"--data", "node.data", "Directory of everything that is kept (default /var/lib/kvcfs)"},
    {"--dram", "node.dram", "DRAM tier: a size, as 8GiB, or a share of memory (default 25%)"},
    {"--nvme", "node.nvme",
     "NVMe tier: a size, or a share of the free disk (default 50%); 0: none"},
    {"--log-level", "node.log_level", "debug, info, warn or error (default info)"},
    {"--metrics-address", "node.metrics_address",
     "Also serve metrics over HTTP, as 127.0.0.1:9464"},
};

struct Options {
  ClusterFlags cluster;
  std::string config;
  std::vector<std::string> sets;
  std::string values[std::size(kSettingFlags)];
  bool daemon = false;
};

int Serve(const Options& options, const CLI::App& verb) {
  std::vector<NodeConfigFlag> flags = options.cluster.Given();
  for (size_t i = 0; i < std::size(kSettingFlags); ++i) {
    const SettingFlag& known = kSettingFlags[i];
    if (verb.count(known.flag) == 0) continue;
    std::string value = options.values[i];
    // A relative directory is one of the caller's.
    if (std::string_view(known.key) == "node.data" && !value.empty()) {
      value = std::filesystem::absolute(value).lexically_normal().string();
    }
    flags.push_back({known.flag, known.key, value});
  }
  Result<NodeConfig> config = LoadNodeConfig(options.config, options.sets, flags);
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
  options->cluster.Add(verb, ClusterUse::kServe);
  for (size_t i = 0; i < std::size(kSettingFlags); ++i) {
    verb->add_option(kSettingFlags[i].flag, options->values[i], kSettingFlags[i].help);
  }
  verb->add_option("--config", options->config, "Settings, as tools/kvcfs.toml shows them")
      ->check(CLI::ExistingFile);
  verb->add_option("--set", options->sets, "One setting, as cluster.id=test; may be repeated")
      ->expected(1)
      ->take_all();
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
  verb->callback([options, verb, &exit_code] { exit_code = Serve(*options, *verb); });
}

}  // namespace kvcfs::tools
