#include "meta/cluster.h"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

namespace kvcfs::meta {

std::string ToJson(const ClusterStatus& status) {
  using Json = nlohmann::json;
  Json json{
      {"id", fmt::format("{:016x}{:016x}", status.self.high, status.self.low)},
      {"name", status.name},
      {"metadata", (status.roles & kRoleMetadata) != 0},
      {"blocks", (status.roles & kRoleBlocks) != 0},
      {"epoch", status.view == nullptr ? 0 : status.view->epoch},
      {"etcd",
       {{"answers", status.etcd.etcd_answers},
        {"error", status.etcd.etcd_error},
        {"since_renewal_ms", status.etcd.since_renewal.count()},
        {"may_serve", status.etcd.may_serve},
        {"by_promise", status.etcd.by_promise}}},
      {"shards", status.shards},
      {"shards_loading", status.shards_loading},
      {"records", status.records},
      {"repairs_waiting", status.repairs_waiting},
      {"repaired_total", status.repaired_total},
      {"lost_total", status.lost_total},
      {"orphans_total", status.orphans_total},
      {"hidden", status.hidden},
      {"moving", status.moving},
      {"moved_total", status.moved_total},
      {"move_bytes_left", status.move_bytes_left},
      {"copies", status.copies},
      {"capacity_bytes", status.capacity.capacity_bytes},
      {"used_bytes", status.capacity.used_bytes},
      {"cached_groups", status.cached_groups},
      {"cache_hits_total", status.cache_hits_total},
      {"cache_misses_total", status.cache_misses_total},
      {"operations", status.operations},
      {"transport",
       {{"calls", status.transport.calls},
        {"bytes_sent", status.transport.bytes_sent},
        {"bytes_received", status.transport.bytes_received},
        {"timeouts", status.transport.timeouts},
        {"refused", status.transport.refused},
        {"reconnects", status.transport.reconnects},
        {"hostile_frames", status.transport.hostile_frames}}},
  };
  // Names and errors come from elsewhere: what is no UTF-8 is replaced.
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

BlockFacts FactsInChain(const SpaceId& space, std::span<const FoundBlock> chain, uint32_t index,
                        uint8_t replicas) {
  const FoundBlock& block = chain[index];
  BlockFacts facts;
  facts.id = {space, block.key};
  facts.anchor = chain[AnchorOf(index)].key;
  if (index > 0) {
    facts.parent = chain[index - 1].key;
    facts.parent_anchor = chain[AnchorOf(index - 1)].key;
  }
  facts.ordinal = index;
  facts.length = block.length;
  facts.crc32c = block.crc32c;
  facts.mtime_s = block.mtime_s;
  facts.replicas = replicas;
  return facts;
}

}  // namespace kvcfs::meta
