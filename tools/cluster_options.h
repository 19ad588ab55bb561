// How a process takes part in a cluster: flags and settings, checked, and a ClusterRuntime of them.
//
// One piece of code for serve, mount and cluster. Threads: any, nothing is shared.
// Fails: kInvalid with the setting's name and what would be right; MakeRuntime also as
// rdma::MakeTcpTransport and, if verbs are insisted on, rdma::MakeVerbsTransport.
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "base/clock.h"
#include "base/result.h"
#include "iouring/segment_store.h"
#include "meta/cluster_runtime.h"
#include "tools/node_config.h"
#include "tools/setting_flags.h"

namespace kvcfs::tools {

enum class ClusterUse {
  kServe,  // a node: name, listen and roles count
  kMount,  // a client, and a node unless it is that only
  kAsk,    // a client for a moment
};

// --cluster, --name, --listen, --tls-cert, ...
void AddClusterFlags(SettingFlags& flags, CLI::App* verb, ClusterUse use);

enum class TransportChoice { kAuto, kTcp, kVerbs };

struct ClusterOptions {
  meta::EtcdOptions etcd;
  TransportChoice transport = TransportChoice::kAuto;
  meta::OneSided one_sided = meta::OneSided::kAuto;
  rdma::TlsOptions tls;
  std::string id;
  std::string name;
  uint8_t roles = 0;  // of meta::Role
  rdma::Address listen;
  std::string advertise;
  std::chrono::milliseconds start_timeout{0};  // 0: as long as such a one needs
};

// `roles`: those of the settings; by default all of them for kServe, blocks for kMount, and none
// where it is only a client.
Result<ClusterOptions> ParseClusterOptions(const ClusterSettings& settings, ClusterUse use);
// A node is who its data directory says.
meta::NodeId NodeIdOf(const iouring::Uuid& uuid);
meta::NodeId RandomNodeId();

// Not started yet. `clock` outlives it.
Result<std::unique_ptr<meta::ClusterRuntime>> MakeRuntime(const ClusterOptions& options,
                                                          const meta::NodeId& self,
                                                          const Clock* clock);

}  // namespace kvcfs::tools
