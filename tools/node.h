// One running kvcfs: puts all parts together, serves a mount, takes it down again.
//
// Runs in the process that the supervisor made for it; may be killed at any moment.
#pragma once

#include <string>

#include "fs/fuse_session.h"
#include "tools/node_config.h"

namespace kvcfs::tools {

struct NodeOptions {
  std::string mountpoint;
  std::string data;
  NodeConfig config;
  uint64_t dram_bytes = 0;
  uint64_t nvme_bytes = 0;
  int device_fd = -1;  // /dev/fuse, mounted
  fs::FuseInitMessage* init = nullptr;
  bool resumed = false;  // an earlier daemon of this mount died
  int supervisor_pid = 0;
};

// Serves until unmounted or SIGTERM. 0: everything dirty has reached NVMe.
int RunNode(const NodeOptions& options);

}  // namespace kvcfs::tools
