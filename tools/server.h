// One running `kvcfs serve`: a node of a cluster, which holds blocks, owns shards, or both.
//
// Threads: "main" waits for SIGTERM and SIGINT; the rest is its parts'.
#pragma once

#include "tools/cluster_options.h"
#include "tools/node_config.h"

namespace kvcfs::tools {

struct ServeOptions {
  NodeConfig config;
  ClusterOptions cluster;
  bool daemon = false;  // return when it serves
};

// Serves until SIGTERM; then what is dirty has reached NVMe. Exit codes as everywhere.
int RunServe(const ServeOptions& options);

}  // namespace kvcfs::tools
