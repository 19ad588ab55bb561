// A mount's part in a cluster: a client, whose tiers are a cache of its own.
//
// Where a mount's tiers shall join the pool (--dram, --nvme without --client-only), a
// fs::CopyHolder over them goes here: made before Join, its runtime gets kRoleBlocks, and it is
// stopped by Leave. Until then, both are the same. Threads: any. Fails: Join, where the settings
// are wrong or nobody answers in time; not for a daemon that takes over from one that died, which
// goes on with misses until somebody answers.
#pragma once

#include <memory>

#include <nlohmann/json_fwd.hpp>

#include "base/clock.h"
#include "base/result.h"
#include "meta/cluster_runtime.h"
#include "tools/node_config.h"

namespace kvcfs::tools {

class MountCluster {
 public:
  static Result<std::unique_ptr<MountCluster>> Join(const ClusterSettings& settings,
                                                    const Clock* clock, bool resumed);
  ~MountCluster() { Leave(); }

  meta::Cluster* cluster() { return runtime_.get(); }
  // Whoever waits for an answer gets none.
  void Leave();

 private:
  MountCluster() = default;
  std::unique_ptr<meta::ClusterRuntime> runtime_;
};

// "cluster" in stats.json: what cluster.h says of a node, and the nodes of the view by name.
nlohmann::ordered_json ClusterStats(meta::Cluster& cluster);

}  // namespace kvcfs::tools
