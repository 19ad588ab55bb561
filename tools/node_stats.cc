#include "tools/node_stats.h"

#include <nlohmann/json.hpp>
#include <unistd.h>

#include "base/metrics.h"
#include "tools/gauges.h"
#include "tools/mount_cluster.h"
#include "tools/version.h"

namespace kvcfs::tools {

std::string NodeStats::Json() const {
  const fs::BlockStoreStats blocks = parts_.blocks->Stats();
  const fs::FileTreeStats files = parts_.files->Stats();
  const fs::CopyHolder::Counts copies =
      parts_.copies != nullptr ? parts_.copies->Count() : fs::CopyHolder::Counts();
  nlohmann::ordered_json json;
  json["version"] = kVersion;
  json["pid"] = ::getpid();
  json["supervisor_pid"] = parts_.options->supervisor_pid;
  json["mount"] = parts_.options->mountpoint;
  json["data"] = parts_.options->data;
  json["uptime_s"] =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count();
  json["resumed"] = parts_.options->resumed;
  json["mode"] = {{"passthrough", parts_.session->enabled()},
                  {"reason", parts_.session->reason()},
                  {"pushed_invalidation", parts_.session->epoch_supported()}};
  json["tiers"]["dram"] = {{"capacity_bytes", parts_.slots->capacity_bytes()},
                           {"used_bytes", parts_.slots->used_bytes()},
                           {"resident_blocks", blocks.resident_blocks + copies.resident},
                           {"evicted_slots", parts_.resident->evicted_slots()}};
  if (parts_.segments != nullptr) {
    const iouring::SegmentStats nvme = parts_.segments->Stats();
    json["tiers"]["nvme"] = {
        {"capacity_bytes", nvme.capacity_bytes},     {"used_bytes", nvme.live_bytes},
        {"segments_free", nvme.segments_free},       {"segments_sealed", nvme.segments_sealed},
        {"segments_retired", nvme.segments_retired}, {"queue_bytes", nvme.queue_bytes},
        {"corrupt_entries", nvme.corrupt_entries},   {"io_errors", nvme.io_errors}};
  }
  json["dirty_bytes"] = blocks.dirty_bytes + files.dirty_bytes + copies.dirty_bytes;
  json["blocks"] = {{"cached", blocks.blocks},
                    {"leaves", blocks.leaves},
                    {"being_written", blocks.pending},
                    {"leased_bytes", blocks.leased_bytes},
                    {"index_bytes", blocks.index_bytes}};
  json["files"] = {{"files", files.files},
                   {"directories", files.directories},
                   {"content_bytes", files.content_bytes},
                   {"dirty_bytes", files.dirty_bytes},
                   {"evicted", files.evicted_files},
                   {"damaged", files.damaged_files},
                   {"on_disk", files.disk_files}};
  if (parts_.cluster != nullptr) json["cluster"] = ClusterStats(*parts_.cluster);
  json["namespaces"] = nlohmann::ordered_json::array();
  for (const fs::Namespace& space : parts_.namespaces->List()) {
    json["namespaces"].push_back({{"name", space.name},
                                  {"id", space.id},
                                  {"blocks", parts_.blocks->BlockCount(space.id)},
                                  {"block_bytes", space.block_bytes},
                                  {"quota_bytes", space.quota_bytes},
                                  {"durability", space.sync ? "sync" : "async"},
                                  {"replicas", space.replicas}});
  }
  return json.dump(2) + "\n";
}

void NodeStats::RegisterMetrics() const {
  Metrics& all = Metrics::Get();
  const NodeStatsParts parts = parts_;
  const auto count = [](uint64_t value) { return static_cast<double>(value); };
  RegisterTierMetrics(parts.slots, parts.segments);
  if (parts.cluster != nullptr) RegisterClusterMetrics(parts.cluster);
  all.AddGauge("kvcfs_fs_dirty_bytes", "Bytes not yet on NVMe.", {}, [=] {
    return count(parts.blocks->Stats().dirty_bytes + parts.files->Stats().dirty_bytes +
                 (parts.copies != nullptr ? parts.copies->Count().dirty_bytes : 0));
  });
  all.AddGauge("kvcfs_meta_blocks", "Cached blocks.", {},
               [=] { return count(parts.blocks->Stats().blocks); });
  all.AddGauge("kvcfs_meta_index_bytes", "Memory of the chain index, keys included.", {},
               [=] { return count(parts.blocks->Stats().index_bytes); });
  all.AddGauge("kvcfs_fs_leased_bytes", "Bytes promised not to be evicted.", {},
               [=] { return count(parts.blocks->Stats().leased_bytes); });
  all.AddGauge("kvcfs_fs_files", "Ordinary files.", {},
               [=] { return count(parts.files->Stats().files); });
}

}  // namespace kvcfs::tools
