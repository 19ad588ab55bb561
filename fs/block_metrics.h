// What the block store counts. One set a process.
#pragma once

#include "base/metrics.h"

namespace kvcfs::fs {

struct BlockMetrics {
  static BlockMetrics& Get();

  Counter& published;
  Counter& lost_race;
  Counter& parent_gone;
  Counter& writer_died;
  Counter& too_long;
  Counter& empty;
  Counter& collision;
  Counter& unpublished;
  Counter& evicted_dram;
  Counter& evicted_capacity;
  Counter& dropped;
  Counter& damaged;
  Counter& gone;
  Counter& forgotten;
  Counter& opens_dram;
  Counter& opens_nvme;
  Counter& opens_peer;
  Counter& opens_missed;
  Counter& match_calls;
  Counter& match_blocks_asked;
  Counter& match_blocks_hit;
  Counter& written_back_bytes;
  Counter& fetched_bytes;
  Counter& peer_bytes;
  Counter& prefetched_blocks;
};

}  // namespace kvcfs::fs
