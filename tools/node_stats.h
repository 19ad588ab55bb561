// What MNT/.kvcfs/stats.json says (schema: tools/README.md), and the gauges of the metrics.
#pragma once

#include <chrono>
#include <string>

#include "fs/block_store.h"
#include "fs/copy_holder.h"
#include "fs/file_tree.h"
#include "fs/fuse_session.h"
#include "fs/namespace_table.h"
#include "fs/resident_set.h"
#include "iouring/segment_store.h"
#include "iouring/slot_tier.h"
#include "meta/cluster.h"
#include "tools/node.h"

namespace kvcfs::tools {

struct NodeStatsParts {
  const NodeOptions* options = nullptr;
  fs::FuseSession* session = nullptr;
  fs::NamespaceTable* namespaces = nullptr;
  fs::BlockStore* blocks = nullptr;
  fs::FileTree* files = nullptr;
  iouring::SlotTier* slots = nullptr;
  fs::ResidentSet* resident = nullptr;
  iouring::SegmentStore* segments = nullptr;  // null: no NVMe tier
  meta::Cluster* cluster = nullptr;           // null: alone
  fs::CopyHolder* copies = nullptr;           // null: this host holds none for a cluster
};

class NodeStats {
 public:
  explicit NodeStats(const NodeStatsParts& parts) : parts_(parts) {}
  std::string Json() const;
  void RegisterMetrics() const;

 private:
  NodeStatsParts parts_;
  std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
};

}  // namespace kvcfs::tools
