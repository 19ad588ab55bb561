// kvcfs mount: what the line says, as settings for RunMount.
#include <filesystem>
#include <memory>

#include <CLI/CLI.hpp>

#include "tools/cluster_options.h"
#include "tools/mount_options.h"
#include "tools/setting_flags.h"
#include "tools/verb.h"

namespace kvcfs::tools {
namespace {

struct Options {
  std::string mountpoint;
  SettingFlags settings;
  bool client_only = false;
  bool daemon = false;
};

int Mount(Options& options) {
  if (options.client_only) options.settings.Set("--client-only", "cluster.client_only", "true");
  Result<NodeConfig> config = options.settings.Load();
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
  options->settings.AddNode(verb);
  options->settings.AddConfig(verb, "fs.lease=30s");
  AddClusterFlags(options->settings, verb, ClusterUse::kMount);
  verb->add_flag("--client-only", options->client_only,
                 "Be no node of the cluster: the tiers are a cache of this host's own");
  verb->add_flag("--daemon", options->daemon, "Return when the mount answers");
  verb->footer(
      "Stays in the foreground; ^C, SIGTERM, `kvcfs unmount` and `umount` end it and write back "
      "what\n"
      "is dirty. A dead mount that a killed kvcfs left is replaced. Default < --config < --set <\n"
      "flags; MNT/.kvcfs/config.toml shows what came of it.\n\n"
      "Example: 8 GiB of DRAM, 200 GiB of NVMe, in the background\n"
      "  kvcfs mount /mnt/kvc --data /nvme/kvcfs --dram 8GiB --nvme 200GiB --daemon\n"
      "With --cluster, what is written here stays here and is read by all; so this is a node, and\n"
      "wants a --name of its own with TLS. After an unmount, what has one copy only is back with "
      "the\n"
      "next mount of the same --data.\n"
      "Example: a host of a cluster that has metadata nodes elsewhere (else: --roles meta,blocks)\n"
      "  kvcfs mount /mnt/kvc --cluster etcd://10.0.0.1:2379,10.0.0.2:2379 --dram 8GiB --daemon");
  verb->callback([options, &exit_code] { exit_code = Mount(*options); });
}

}  // namespace kvcfs::tools
