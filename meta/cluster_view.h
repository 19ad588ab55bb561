// Who is in the cluster: an epoch, and the nodes in the order of their ids. Decided by etcd
// (CLUSTER.md), the same for everybody who has the same epoch. Plain data.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "rdma/transport.h"

namespace kvcfs::meta {

using rdma::NodeId;

// What a node does, as bits.
enum Role : uint8_t {
  kRoleMetadata = 1,  // owns shards
  kRoleBlocks = 2,    // holds blocks
  kRoleDraining = 4,  // holds blocks, but shall get rid of them
  kRoleAway = 8,      // alone: left not long ago, and may come back with the blocks it has
};

struct ClusterNode {
  NodeId id;
  // Another one after each start and each time it was away: whatever it forgot, it is asked anew.
  uint64_t incarnation = 0;
  uint8_t roles = 0;
  std::string address;
  std::string name{};           // what operators call it
  uint64_t capacity_bytes = 0;  // for blocks, as of its start; 0: not known
  friend bool operator==(const ClusterNode&, const ClusterNode&) = default;
};

// New copies may be put there.
inline bool TakesBlocks(const ClusterNode& node) {
  return (node.roles & kRoleBlocks) != 0 && (node.roles & kRoleDraining) == 0;
}

inline bool IsAway(const ClusterNode& node) {
  return (node.roles & kRoleAway) != 0;
}

struct ClusterView {
  uint64_t epoch = 0;  // 0: none yet; each change counts one on
  std::vector<ClusterNode> nodes;

  const ClusterNode* Find(const NodeId& id) const {
    for (const ClusterNode& node : nodes) {
      if (node.id == id) return &node;
    }
    return nullptr;
  }
  // Is here, not away.
  bool HasNow(const NodeId& id) const {
    const ClusterNode* node = Find(id);
    return node != nullptr && !IsAway(*node);
  }
  bool HasAnyAway() const { return std::any_of(nodes.begin(), nodes.end(), IsAway); }
  bool Has(const NodeId& id, uint64_t incarnation) const {
    const ClusterNode* node = Find(id);
    return node != nullptr && node->incarnation == incarnation && !IsAway(*node);
  }
};

}  // namespace kvcfs::meta
