#include "tools/mount_cluster.h"

#include <nlohmann/json.hpp>

#include "base/log.h"
#include "tools/cluster_options.h"

namespace kvcfs::tools {

Result<std::unique_ptr<MountCluster>> MountCluster::Join(const ClusterSettings& settings,
                                                         const Clock* clock, bool resumed) {
  KVC_TRY_ASSIGN(const ClusterOptions options, ParseClusterOptions(settings, ClusterUse::kMount));
  std::unique_ptr<MountCluster> self(new MountCluster);
  // Another one each time: servers never take it for the client that it was before.
  KVC_TRY_ASSIGN(self->runtime_, MakeRuntime(options, RandomNodeId(), clock));
  const Status joined = self->runtime_->Start(nullptr);
  if (!joined.ok()) {
    if (!resumed) return joined.error();
    KVC_LOG(Error, "the cluster does not answer; all that is asked of it is a miss", "error={}",
            LogValue(joined.error().text));
  }
  return self;
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
                             {"draining", (node.roles & meta::kRoleDraining) != 0}});
  }
  return json;
}

}  // namespace kvcfs::tools
