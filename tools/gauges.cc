#include "tools/gauges.h"

#include "base/metrics.h"

namespace kvcfs::tools {
namespace {

double Number(uint64_t value) {
  return static_cast<double>(value);
}

}  // namespace

void RegisterTierMetrics(const iouring::SlotTier* slots, const iouring::SegmentStore* segments) {
  Metrics& all = Metrics::Get();
  static constexpr char kUsed[] = "kvcfs_iouring_tier_used_bytes";
  static constexpr char kCapacity[] = "kvcfs_iouring_tier_capacity_bytes";
  all.AddGauge(kUsed, "Bytes in use of a tier.", {{"tier", "dram"}},
               [=] { return Number(slots->used_bytes()); });
  all.AddGauge(kCapacity, "Bytes that a tier may hold.", {{"tier", "dram"}},
               [=] { return Number(slots->capacity_bytes()); });
  if (segments != nullptr) {
    all.AddGauge(kUsed, "Bytes in use of a tier.", {{"tier", "nvme"}},
                 [=] { return Number(segments->Stats().live_bytes); });
    all.AddGauge(kCapacity, "Bytes that a tier may hold.", {{"tier", "nvme"}},
                 [=] { return Number(segments->Stats().capacity_bytes); });
    const auto total = [&](const char* name, const char* help,
                           uint64_t iouring::SegmentStats::*field) {
      all.AddCounterReader(name, help, {}, [=] { return Number(segments->Stats().*field); });
    };
    total("kvcfs_iouring_appended_bytes_total", "Bytes written to segments.",
          &iouring::SegmentStats::appended_bytes);
    total("kvcfs_iouring_moved_bytes_total", "Bytes copied while segments were reclaimed.",
          &iouring::SegmentStats::moved_bytes);
    total("kvcfs_iouring_read_bytes_total", "Bytes read from segments.",
          &iouring::SegmentStats::read_bytes);
    total("kvcfs_iouring_corrupt_entries_total", "Entries whose bytes were not what was written.",
          &iouring::SegmentStats::corrupt_entries);
    total("kvcfs_iouring_errors_total", "Failed reads and writes of the device.",
          &iouring::SegmentStats::io_errors);
    all.AddGauge("kvcfs_iouring_segments_free", "Segments that hold nothing.", {},
                 [=] { return Number(segments->Stats().segments_free); });
    all.AddGauge("kvcfs_iouring_segments_retired", "Segments out of use after an I/O error.", {},
                 [=] { return Number(segments->Stats().segments_retired); });
  }
}

void RegisterClusterMetrics(meta::Cluster* cluster) {
  Metrics& all = Metrics::Get();
  const auto gauge = [&](const char* name, const char* help, auto read) {
    all.AddGauge(name, help, {}, [=] { return Number(read(cluster->Describe())); });
  };
  const auto total = [&](const char* name, const char* help, auto read) {
    all.AddCounterReader(name, help, {}, [=] { return Number(read(cluster->Describe())); });
  };
  using Now = const meta::ClusterStatus&;
  gauge("kvcfs_meta_epoch", "The view of the cluster that this process has; 0: none.",
        [](Now s) { return s.view == nullptr ? 0 : s.view->epoch; });
  gauge("kvcfs_meta_nodes", "Nodes in that view.", [](Now s) {
    return s.view == nullptr ? 0
                             : std::count_if(s.view->nodes.begin(), s.view->nodes.end(),
                                             [](const auto& node) { return !IsAway(node); });
  });
  gauge("kvcfs_meta_etcd_answers", "1 while etcd answers.",
        [](Now s) { return s.etcd.etcd_answers ? 1 : 0; });
  gauge("kvcfs_meta_may_serve", "1 while this node may answer for its shards.",
        [](Now s) { return s.etcd.may_serve ? 1 : 0; });
  gauge("kvcfs_meta_shards", "Shards that this node owns.", [](Now s) { return s.shards; });
  gauge("kvcfs_meta_shards_loading", "Shards that do not answer yet.",
        [](Now s) { return s.shards_loading; });
  gauge("kvcfs_meta_records", "Blocks in these shards.", [](Now s) { return s.records; });
  gauge("kvcfs_meta_repairs_waiting", "Blocks of these shards with too few copies.",
        [](Now s) { return s.repairs_waiting; });
  total("kvcfs_meta_repaired_total", "Copies that were made anew.",
        [](Now s) { return s.repaired_total; });
  gauge("kvcfs_meta_hidden", "Blocks of these shards that only holders have which are away.",
        [](Now s) { return s.hidden; });
  gauge("kvcfs_meta_moving", "Copies that move to holders which have less, now.",
        [](Now s) { return s.moving; });
  gauge("kvcfs_meta_move_left_bytes", "About so many bytes are to move.",
        [](Now s) { return s.move_bytes_left; });
  total("kvcfs_meta_moved_total", "Copies that moved.", [](Now s) { return s.moved_total; });
  total("kvcfs_meta_lost_total", "Blocks that went with their last copy.",
        [](Now s) { return s.lost_total; });
  total("kvcfs_meta_orphans_total", "Blocks that went because their parent had gone.",
        [](Now s) { return s.orphans_total; });
  gauge("kvcfs_meta_copies", "Copies that this node holds.", [](Now s) { return s.copies; });
  gauge("kvcfs_meta_copies_used_bytes", "Bytes of these copies.",
        [](Now s) { return s.capacity.used_bytes; });
  gauge("kvcfs_meta_copies_capacity_bytes", "Bytes that this node may hold for the cluster.",
        [](Now s) { return s.capacity.capacity_bytes; });
  gauge("kvcfs_meta_operations", "Questions to the cluster under way.",
        [](Now s) { return s.operations; });
  total("kvcfs_meta_cache_hits_total", "Groups of blocks that were known without asking.",
        [](Now s) { return s.cache_hits_total; });
  total("kvcfs_meta_cache_misses_total", "Groups of blocks that were asked for.",
        [](Now s) { return s.cache_misses_total; });
  total("kvcfs_rdma_calls_total", "Calls to peers.", [](Now s) { return s.transport.calls; });
  total("kvcfs_rdma_reads_total", "One-sided READs of peers' memory.",
        [](Now s) { return s.transport.reads; });
  total("kvcfs_rdma_device_read_bytes_total", "Of these, bytes that came past the peer's CPU.",
        [](Now s) { return s.transport.device_read_bytes; });
  total("kvcfs_rdma_sent_bytes_total", "Bytes sent to peers.",
        [](Now s) { return s.transport.bytes_sent; });
  total("kvcfs_rdma_received_bytes_total", "Bytes received from peers.",
        [](Now s) { return s.transport.bytes_received; });
  total("kvcfs_rdma_timeouts_total", "Calls that were not answered in time.",
        [](Now s) { return s.transport.timeouts; });
  total("kvcfs_rdma_refused_total", "Peers and calls that were refused.",
        [](Now s) { return s.transport.refused; });
  total("kvcfs_rdma_reconnects_total", "Connections that were made again.",
        [](Now s) { return s.transport.reconnects; });
  total("kvcfs_rdma_hostile_frames_total", "Frames that no peer of ours sends.",
        [](Now s) { return s.transport.hostile_frames; });
  total("kvcfs_rdma_read_registrations_total", "READs whose memory had to be registered for them.",
        [](Now s) { return s.transport.read_registrations; });
  total("kvcfs_rdma_few_receives_total",
        "Times that messages of peers had taken nearly all shared receives.",
        [](Now s) { return s.transport.few_receives; });
}

}  // namespace kvcfs::tools
