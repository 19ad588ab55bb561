// A mount's part in a cluster: a client, and unless it is that only, a node, too.
//
// Order: Make, give cluster() to who asks it, Join once what is on disk can be served, Leave while
// the CopyStore still lives. Threads: any. Fails: Make, where the settings are wrong; Join, where
// nobody answers in time; not for a daemon that takes over from one that died, which goes on with
// misses until somebody answers.
#pragma once

#include <memory>

#include <nlohmann/json_fwd.hpp>

#include "base/clock.h"
#include "base/result.h"
#include "iouring/segment_store.h"
#include "meta/cluster_runtime.h"
#include "tools/node_config.h"

namespace kvcfs::tools {

class MountCluster {
 public:
  // `node`: of the data directory.
  static Result<std::unique_ptr<MountCluster>> Make(const ClusterSettings& settings,
                                                    const iouring::Uuid& node, const Clock* clock,
                                                    bool resumed);
  ~MountCluster() { Leave(); }

  meta::Cluster* cluster() { return runtime_.get(); }
  // Of the blocks here, some are the cluster's.
  bool holds_blocks() const { return runtime_->holds_blocks(); }

  // `copies`: where it holds blocks. `names`: where it keeps names as a metadata node.
  Status Join(meta::CopyStore* copies, meta::MetaStore* names);
  // Whoever waits for an answer gets none.
  void Leave();

 private:
  explicit MountCluster(bool resumed) : resumed_(resumed) {}
  const bool resumed_;
  std::unique_ptr<meta::ClusterRuntime> runtime_;
};

// "cluster" in stats.json: what cluster.h says of a node, and the nodes of the view by name.
nlohmann::ordered_json ClusterStats(meta::Cluster& cluster);

}  // namespace kvcfs::tools
