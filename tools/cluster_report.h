// A cluster as an operator sees it: what etcd has, and what each node says of itself.
//
// Threads: any; Look blocks for about `timeout` a node at most, all nodes at once.
// Fails: kUnavailable etcd does not answer; kNotFound there is no such cluster there.
#pragma once

#include <string>

#include "base/clock.h"
#include "base/result.h"
#include "tools/cluster_options.h"
#include "tools/stats.h"

namespace kvcfs::tools {

// Schema: tools/README.md.
Result<Json> LookAtCluster(const ClusterOptions& options, Millis timeout);
// For people.
std::string ClusterText(const Json& cluster);

}  // namespace kvcfs::tools
