// All settings of one node: a plain struct per folder, bound to the keys of kvcfs.toml.
//
// Filled by the command line, validated once, then const.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "base/config.h"
#include "base/log.h"

namespace kvcfs::tools {

struct NodeSettings {
  std::string data = "/var/lib/kvcfs";
  SizeOrShare dram{.share = 0.25};
  SizeOrShare nvme{.share = 0.5};
  std::string metrics_address;
  LogLevel log_level = LogLevel::kInfo;
};

enum class Passthrough { kAuto, kOn, kOff };

struct FsSettings {
  Passthrough passthrough = Passthrough::kAuto;
  int64_t fuse_threads_max = 64;
  bool fuse_follow_caller = true;
  bool fuse_keep_awake = true;
  std::chrono::microseconds fuse_poll{0};
  std::chrono::milliseconds lease{30'000};
  std::chrono::milliseconds lease_hold{10'000};
  std::chrono::milliseconds entry_timeout{10'000};
  std::chrono::milliseconds attr_timeout{10'000};
  std::chrono::milliseconds writeback_delay{500};
  double evict_high = 0.92;
  double evict_low = 0.88;
  double file_disk_share = 0.125;
  uint64_t file_evict_min = uint64_t{64} << 10;
  bool touch_dram = true;
  int64_t prefetch_blocks = 4;
};

struct IouringSettings {
  uint64_t segment_bytes = uint64_t{65} << 20;  // a block of 64 MiB fits
  uint64_t staging_bytes = uint64_t{32} << 20;
  uint64_t queue_bytes_max = uint64_t{256} << 20;
  double live_share_max = 0.85;
  bool direct = true;
};

struct MetaSettings {
  uint64_t cache_bytes = uint64_t{64} << 20;
  uint64_t write_buffer_bytes = uint64_t{32} << 20;
};

// As text; cluster_options.h makes more of it.
struct ClusterSettings {
  std::string etcd;  // empty: no cluster
  std::string id = "kvcfs";
  std::string name;
  std::string listen;
  std::string advertise;
  std::string roles;
  std::string transport = "auto";
  std::string one_sided = "auto";
  std::string tls_cert, tls_key, tls_ca;
  bool etcd_tls = true;
  bool client_only = false;
};

// Only for tests of kvcfs itself.
struct TestSettings {
  std::string crash_point;
};

struct NodeConfig {
  NodeSettings node;
  FsSettings fs;
  IouringSettings iouring;
  MetaSettings meta;
  ClusterSettings cluster;
  TestSettings test;
};

// The table of all keys, bound to the fields of `config`, which must outlive it.
ConfigSchema BindNodeConfig(NodeConfig& config);

// What no single key can say: how they fit together.
Status ValidateNodeConfig(const NodeConfig& config);

// "fs.x=y" after the file, flags after that; then validated.
struct NodeConfigFlag {
  std::string flag, key, value;  // "--dram", "node.dram", "8GiB"
};
Result<NodeConfig> LoadNodeConfig(const std::string& file, const std::vector<std::string>& sets,
                                  const std::vector<NodeConfigFlag>& flags);

// The effective settings as the text of a kvcfs.toml; MNT/.kvcfs/config.toml shows it.
std::string DumpNodeConfig(const NodeConfig& config);

}  // namespace kvcfs::tools
