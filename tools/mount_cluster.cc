#include "tools/mount_cluster.h"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/log.h"
#include "tools/cluster_options.h"

namespace kvcfs::tools {
namespace {

constexpr std::chrono::seconds kResumeLimit{8};

}  // namespace

Result<std::unique_ptr<MountCluster>> MountCluster::Make(const ClusterSettings& settings,
                                                         const iouring::Uuid& node,
                                                         const Clock* clock, bool resumed) {
  KVC_TRY_ASSIGN(ClusterOptions options, ParseClusterOptions(settings, ClusterUse::kMount));
  std::unique_ptr<MountCluster> self(new MountCluster(resumed));
  // A client is another one each time: servers never take it for the one that it was before.
  meta::NodeId id = RandomNodeId();
  if (options.roles != 0) {
    id = NodeIdOf(node);
    // A host may have several mounts, and a server.
    if (settings.name.empty() && !options.tls.given()) {
      options.name += fmt::format("-{:08x}", static_cast<uint32_t>(id.high >> 32));
    }
    // Calls wait meanwhile.
    if (resumed) options.start_timeout = kResumeLimit;
  }
  KVC_TRY_ASSIGN(self->runtime_, MakeRuntime(options, id, clock));
  return self;
}

Status MountCluster::Join(meta::CopyStore* copies, meta::MetaStore* names) {
  Status joined = runtime_->Start(copies, names);
  if (joined.ok() || !resumed_) return joined;
  KVC_LOG(Error, "the cluster does not answer; all that is asked of it is a miss", "error={}",
          LogValue(joined.error().text));
  return {};
}

void MountCluster::Leave() {
  if (runtime_ != nullptr) runtime_->Stop();
}

nlohmann::ordered_json ClusterStats(meta::Cluster& cluster) {
  const meta::ClusterStatus status = cluster.Describe();
  auto json = nlohmann::ordered_json::parse(meta::ToJson(status));
  json["client_only"] = (status.roles & meta::kRoleBlocks) == 0;
  json["nodes"] = nlohmann::ordered_json::array();
  if (status.view == nullptr) return json;
  for (const meta::ClusterNode& node : status.view->nodes) {
    json["nodes"].push_back({{"name", node.name},
                             {"address", node.address},
                             {"metadata", (node.roles & meta::kRoleMetadata) != 0},
                             {"blocks", (node.roles & meta::kRoleBlocks) != 0},
                             {"draining", (node.roles & meta::kRoleDraining) != 0},
                             {"away", IsAway(node)}});
  }
  return json;
}

}  // namespace kvcfs::tools
