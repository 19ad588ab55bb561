// The process that cluster_backend.cc asks: a node with the loaded blocks, and no bytes.
#pragma once

#include <cstdint>
#include <string>

#include "base/result.h"

namespace kvcfs::bench {

// Says "ready" on standard output, and serves until it is killed.
Status RunClusterNode(const std::string& etcd, const std::string& trace_file, uint64_t limit);

}  // namespace kvcfs::bench
