#include "fs/block_metrics.h"

namespace kvcfs::fs {

BlockMetrics& BlockMetrics::Get() {
  static Metrics& all = Metrics::Get();
  static constexpr char kOutcome[] = "kvcfs_fs_block_writes_total";
  static constexpr char kOutcomeHelp[] = "Blocks whose last writer closed, by what became of them.";
  static constexpr char kGone[] = "kvcfs_fs_blocks_evicted_total";
  static constexpr char kGoneHelp[] = "Blocks that left a tier or the cache, by reason.";
  static constexpr char kOpens[] = "kvcfs_fs_block_opens_total";
  static constexpr char kOpensHelp[] = "Opens of blocks for reading, by where the block was.";
  static BlockMetrics metrics{
      .published = all.AddCounter(kOutcome, kOutcomeHelp, {{"outcome", "published"}}),
      .lost_race = all.AddCounter(kOutcome, kOutcomeHelp, {{"outcome", "lost_race"}}),
      .parent_gone = all.AddCounter(kOutcome, kOutcomeHelp, {{"outcome", "parent_gone"}}),
      .writer_died = all.AddCounter(kOutcome, kOutcomeHelp, {{"outcome", "writer_died"}}),
      .too_long = all.AddCounter(kOutcome, kOutcomeHelp, {{"outcome", "too_long"}}),
      .empty = all.AddCounter(kOutcome, kOutcomeHelp, {{"outcome", "empty"}}),
      .collision = all.AddCounter(kOutcome, kOutcomeHelp, {{"outcome", "hash_collision"}}),
      .unpublished = all.AddCounter(kOutcome, kOutcomeHelp, {{"outcome", "cluster_away"}}),
      .evicted_dram = all.AddCounter(kGone, kGoneHelp, {{"reason", "dram_capacity"}}),
      .evicted_capacity = all.AddCounter(kGone, kGoneHelp, {{"reason", "cache_capacity"}}),
      .dropped = all.AddCounter(kGone, kGoneHelp, {{"reason", "dropped"}}),
      .damaged = all.AddCounter(kGone, kGoneHelp, {{"reason", "damaged"}}),
      .gone = all.AddCounter(kGone, kGoneHelp, {{"reason", "gone_from_cluster"}}),
      .forgotten = all.AddCounter(kGone, kGoneHelp, {{"reason", "forgotten"}}),
      .opens_dram = all.AddCounter(kOpens, kOpensHelp, {{"source", "dram"}}),
      .opens_nvme = all.AddCounter(kOpens, kOpensHelp, {{"source", "nvme"}}),
      .opens_peer = all.AddCounter(kOpens, kOpensHelp, {{"source", "peer"}}),
      .opens_missed = all.AddCounter(kOpens, kOpensHelp, {{"source", "none"}}),
      .match_calls = all.AddCounter("kvcfs_fs_match_calls_total", "Longest-prefix questions."),
      .match_blocks_asked =
          all.AddCounter("kvcfs_fs_match_blocks_asked_total", "Keys in longest-prefix questions."),
      .match_blocks_hit = all.AddCounter("kvcfs_fs_match_blocks_hit_total",
                                         "Keys of longest-prefix questions that were cached."),
      .written_back_bytes =
          all.AddCounter("kvcfs_fs_written_back_bytes_total", "Block bytes written to NVMe."),
      .fetched_bytes =
          all.AddCounter("kvcfs_fs_fetched_bytes_total", "Block bytes read from NVMe into slots."),
      .peer_bytes =
          all.AddCounter("kvcfs_fs_peer_bytes_total", "Block bytes read from other nodes."),
      .prefetched_blocks = all.AddCounter("kvcfs_fs_prefetched_blocks_total",
                                          "Blocks fetched before anyone opened them."),
  };
  return metrics;
}

}  // namespace kvcfs::fs
