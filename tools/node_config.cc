#include "tools/node_config.h"

#include <fmt/format.h>

namespace kvcfs::tools {
namespace {

using std::chrono::hours;
using std::chrono::milliseconds;
using std::chrono::minutes;
using std::chrono::seconds;

constexpr uint64_t kMiB = uint64_t{1} << 20;
constexpr uint64_t kGiB = uint64_t{1} << 30;

void BindNode(ConfigSchema& schema, NodeSettings& node) {
  schema.Section("node", "This host: where data lives and how much of it.");
  schema.String("data", &node.data,
                "Directory of everything that is kept: segments, metadata, files on disk.");
  schema.SizeOrShareOf("dram", &node.dram,
                       "The DRAM tier: a size, or a share of the machine's memory.");
  schema.SizeOrShareOf("nvme", &node.nvme,
                       "The NVMe tier: a size, or a share of what is free where data lives.");
  schema.String("metrics_address", &node.metrics_address,
                "Serve metrics over HTTP here, as \"127.0.0.1:9464\"; empty: not.");
  schema.Enum("log_level", &node.log_level, "Least level that is logged: debug, info, warn, error.",
              {{"debug", LogLevel::kDebug},
               {"info", LogLevel::kInfo},
               {"warn", LogLevel::kWarn},
               {"error", LogLevel::kError}});
}

void BindFs(ConfigSchema& schema, FsSettings& fs) {
  schema.Section("fs", "Names, open files, leases, and what is resident.");
  schema.Enum("passthrough", &fs.passthrough,
              "Reads of resident blocks by the kernel alone (6.9+): auto uses it where it is to be "
              "had, on insists, off never.",
              {{"auto", Passthrough::kAuto}, {"on", Passthrough::kOn}, {"off", Passthrough::kOff}});
  schema.Int("fuse_threads_max", &fs.fuse_threads_max, "Most threads that serve FUSE requests.",
             {.min = 2, .max = 1024});
  schema.Bool("fuse_follow_caller", &fs.fuse_follow_caller,
              "Serve a lone caller on its own CPU: saves waking another CPU twice a call.");
  schema.Bool("fuse_keep_awake", &fs.fuse_keep_awake,
              "Keep two CPUs that nobody else wants from sleeping while calls follow each other "
              "closely: saves waking a halted CPU twice a call.");
  schema.Duration("fuse_poll", &fs.fuse_poll,
                  "How long a FUSE thread polls before it sleeps; saves a wake-up, costs a CPU.",
                  {.max = milliseconds(10)});
  schema.Duration("lease", &fs.lease,
                  "What a stat, lookup or match found stays cached for at least this long.",
                  {.max = hours(1)});
  schema.Duration("lease_hold", &fs.lease_hold,
                  "How much longer than promised a lease is held, for names the kernel still has.",
                  {.max = hours(1)});
  schema.Duration("entry_timeout", &fs.entry_timeout,
                  "How long the kernel may keep a name of a leased block.", {.max = hours(1)});
  schema.Duration("attr_timeout", &fs.attr_timeout,
                  "How long the kernel may keep attributes of a leased block.", {.max = hours(1)});
  schema.Duration("writeback_delay", &fs.writeback_delay,
                  "Fresh bytes wait this long before they are written back to NVMe.",
                  {.max = minutes(10)});
  schema.Double("evict_high", &fs.evict_high,
                "Share of the DRAM tier above which cold slots are evicted.",
                {.min = 0.1, .max = 1});
  schema.Double("evict_low", &fs.evict_low, "Eviction goes on down to this share.",
                {.min = 0.05, .max = 1});
  schema.Double("file_disk_share", &fs.file_disk_share,
                "A file under files/ above this share of the DRAM tier lives on the data disk.",
                {.min = 0, .max = 1});
  schema.Size("file_evict_min", &fs.file_evict_min,
              "Ordinary files smaller than this are never evicted.", {.max = kGiB});
  schema.Bool("touch_dram", &fs.touch_dram,
              "Touch the DRAM tier's memory in the background at start, so that first writes are "
              "fast.");
  schema.Int("prefetch_blocks", &fs.prefetch_blocks,
             "Blocks fetched ahead along a chain that is read in order; 0: none.",
             {.min = 0, .max = 1024});
}

void BindIouring(ConfigSchema& schema, IouringSettings& iouring) {
  schema.Section("iouring", "The NVMe tier: append-only segments.");
  schema.Size("segment_bytes", &iouring.segment_bytes,
              "Length of a segment, a multiple of 1MiB. A tier of less than 16 has shorter ones, "
              "of 16MiB or more.",
              {.min = kMiB, .max = kGiB});
  schema.Size("staging_bytes", &iouring.staging_bytes,
              "Registered memory through which direct I/O passes.", {.min = kMiB, .max = kGiB});
  schema.Size("queue_bytes_max", &iouring.queue_bytes_max,
              "Most bytes waiting to be written; beyond it writers wait.",
              {.min = kMiB, .max = 64 * kGiB});
  schema.Double("live_share_max", &iouring.live_share_max,
                "Live bytes above this share of the tier: cold blocks go before segments are "
                "reclaimed.",
                {.min = 0.1, .max = 0.98});
  schema.Bool("direct", &iouring.direct, "O_DIRECT; off only where the file system has none.");
}

void BindMeta(ConfigSchema& schema, MetaSettings& meta) {
  schema.Section("meta", "The metadata store (RocksDB).");
  schema.Size("cache_bytes", &meta.cache_bytes, "Its block cache.",
              {.min = kMiB, .max = 64 * kGiB});
  schema.Size("write_buffer_bytes", &meta.write_buffer_bytes, "Its write buffer.",
              {.min = kMiB, .max = 4 * kGiB});
}

void BindCluster(ConfigSchema& schema, ClusterSettings& cluster) {
  schema.Section("cluster", "The cluster that this host is a node or a client of.");
  schema.String("etcd", &cluster.etcd,
                "Its etcd, as \"etcd://HOST:2379,HOST:2379\"; empty: this host alone.");
  schema.String("id", &cluster.id, "Which cluster of that etcd.");
  schema.String("name", &cluster.name,
                "What this node is called; with TLS, as in its certificate. Empty: so, or as the "
                "host.");
  schema.String("listen", &cluster.listen,
                "Where peers reach this node. Other than loopback addresses want TLS. Empty: "
                "127.0.0.1:7470, of a mount 127.0.0.1 and any port.");
  schema.String("advertise", &cluster.advertise,
                "The address by which peers know it, if it is another than that.");
  schema.String("roles", &cluster.roles,
                "What a node does: meta (owns shards of the index), blocks (holds bytes). Empty: "
                "meta,blocks, of a mount blocks.");
  schema.String("transport", &cluster.transport,
                "verbs (RDMA), tcp, or auto: verbs where this host has a device, else tcp. Peers "
                "that no device reaches are always spoken to by TCP.");
  schema.String(
      "one_sided", &cluster.one_sided,
      "Whether blocks of peers are read out of their memory: never, auto (where RDMA does "
      "it and a call takes longer), or always (also by TCP: for tests).");
  schema.String("tls_cert", &cluster.tls_cert, "Its certificate, a PEM file; empty: no TLS.");
  schema.String("tls_key", &cluster.tls_key, "The certificate's key.");
  schema.String("tls_ca", &cluster.tls_ca, "The authority of all certificates.");
  schema.Bool("etcd_tls", &cluster.etcd_tls, "With TLS, etcd is spoken to by TLS, too.");
  schema.Bool("client_only", &cluster.client_only,
              "A mount that is no node: its tiers are a cache of its own.");
}

void BindTest(ConfigSchema& schema, TestSettings& test) {
  schema.Section("test", "For tests of kvcfs itself; leave it alone.");
  schema.String(
      "crash_point", &test.crash_point,
      "Kill the daemon at this named place, as \"publish.before_state:3\" (the third time).");
}

}  // namespace

ConfigSchema BindNodeConfig(NodeConfig& config) {
  ConfigSchema schema;
  BindNode(schema, config.node);
  BindFs(schema, config.fs);
  BindIouring(schema, config.iouring);
  BindMeta(schema, config.meta);
  BindCluster(schema, config.cluster);
  BindTest(schema, config.test);
  return schema;
}

Status ValidateNodeConfig(const NodeConfig& config) {
  if (config.node.data.empty() || config.node.data.front() != '/') {
    return Error{Code::kInvalid,
                 fmt::format("node.data: '{}' is not an absolute path", config.node.data)};
  }
  if (config.node.dram.share == 0 && config.node.dram.bytes < 4 * kMiB) {
    return Error{Code::kInvalid, "node.dram: at least 4MiB"};
  }
  if (config.fs.evict_low >= config.fs.evict_high) {
    return Error{Code::kInvalid, fmt::format("fs.evict_low: {} must be below fs.evict_high, {}",
                                             config.fs.evict_low, config.fs.evict_high)};
  }
  if (config.iouring.segment_bytes % kMiB != 0) {
    return Error{Code::kInvalid, "iouring.segment_bytes: must be a multiple of 1MiB"};
  }
  if (config.fs.entry_timeout > config.fs.lease + config.fs.lease_hold ||
      config.fs.attr_timeout > config.fs.lease + config.fs.lease_hold) {
    return Error{Code::kInvalid,
                 "fs.entry_timeout, fs.attr_timeout: at most fs.lease + fs.lease_hold, or the "
                 "kernel would know names that may be gone"};
  }
  return {};
}

Result<NodeConfig> LoadNodeConfig(const std::string& file, const std::vector<std::string>& sets,
                                  const std::vector<NodeConfigFlag>& flags) {
  NodeConfig config;
  ConfigSchema schema = BindNodeConfig(config);
  if (!file.empty()) KVC_TRY(schema.LoadFile(file));
  for (const std::string& set : sets) KVC_TRY(schema.Set(set));
  for (const NodeConfigFlag& flag : flags) {
    KVC_TRY(schema.SetFlag(flag.flag + " " + flag.value, flag.key, flag.value));
  }
  KVC_TRY(ValidateNodeConfig(config));
  return config;
}

std::string DumpNodeConfig(const NodeConfig& config) {
  NodeConfig copy = config;
  return BindNodeConfig(copy).Dump();
}

}  // namespace kvcfs::tools
