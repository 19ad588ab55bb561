// kvcfs mount: what the line says, as settings for RunMount.
#include <filesystem>
#include <memory>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "tools/cluster_options.h"
#include "tools/mount_options.h"
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
    {"--nvme", "node.nvme", "NVMe tier: a size, or a share of the free disk (default 50%)"},
    {"--log-level", "node.log_level", "debug, info, warn or error (default info)"},
    {"--metrics-address", "node.metrics_address",
     "Also serve metrics over HTTP, as 127.0.0.1:9464"},
};

struct Options {
  std::string mountpoint;
  std::string config;
  std::vector<std::string> sets;
  std::string values[std::size(kSettingFlags)];
  ClusterFlags cluster;
  bool client_only = false;
  bool daemon = false;
};

int Mount(const Options& options, const CLI::App& verb) {
  std::vector<NodeConfigFlag> flags = options.cluster.Given();
  if (options.client_only) flags.push_back({"--client-only", "cluster.client_only", "true"});
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
  if (!config.ok()) return Misuse("mount", config.error().text);
  if (!config->cluster.etcd.empty()) {
    const auto cluster = ParseClusterOptions(config->cluster, ClusterUse::kMount);
    if (!cluster.ok()) return Misuse("mount", cluster.error().text);
  }
  MountOptions mount;
  mount.mountpoint = std::filesystem::absolute(options.mountpoint).lexically_normal().string();
  while (mount.mountpoint.size() > 1 && mount.mountpoint.back() == '/') mount.mountpoint.pop_back();
  mount.config = std::move(*config);
  mount.daemon = options.daemon;
  return RunMount(mount);
}

}  // namespace

void AddMountVerb(CLI::App& app, int& exit_code) {
  CLI::App* verb = app.add_subcommand("mount", "Mount a cache and serve it until it is unmounted.");
  auto options = std::make_shared<Options>();
  verb->add_option("MNT", options->mountpoint, "Where; made if it is not there")->required();
  for (size_t i = 0; i < std::size(kSettingFlags); ++i) {
    verb->add_option(kSettingFlags[i].flag, options->values[i], kSettingFlags[i].help);
  }
  verb->add_option("--config", options->config, "Settings, as tools/kvcfs.toml shows them")
      ->check(CLI::ExistingFile);
  verb->add_option("--set", options->sets, "One setting, as fs.lease=30s; may be repeated")
      ->expected(1)
      ->take_all();
  options->cluster.Add(verb, ClusterUse::kMount);
  verb->add_flag("--client-only", options->client_only,
                 "Its tiers are its own cache and do not join the cluster's (as yet, none do)");
  verb->add_flag("--daemon", options->daemon, "Return when the mount answers");
  verb->footer(
      "Stays in the foreground; ^C, SIGTERM, `kvcfs unmount` and `umount` end it and write back "
      "what\n"
      "is dirty. A dead mount that a killed kvcfs left is replaced. Default < --config < --set <\n"
      "flags; MNT/.kvcfs/config.toml shows what came of it.\n\n"
      "Example: 8 GiB of DRAM, 200 GiB of NVMe, in the background\n"
      "  kvcfs mount /mnt/kvc --data /nvme/kvcfs --dram 8GiB --nvme 200GiB --daemon\n"
      "Example: the namespaces and blocks of a cluster, cached here\n"
      "  kvcfs mount /mnt/kvc --cluster etcd://10.0.0.1:2379,10.0.0.2:2379 --dram 8GiB --daemon");
  verb->callback([options, verb, &exit_code] { exit_code = Mount(*options, *verb); });
}

}  // namespace kvcfs::tools
