// What a trace in Mooncake's format looks like to a metadata service: the study of arXiv
// 2505.21919. Threads: any.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "bench/trace_tree.h"

namespace kvcfs::bench {

using Points = std::vector<std::pair<double, double>>;

struct TraceStudy {
  // Of a cache that never evicts: the share of its blocks that a request finds.
  Points hit_rate_cdf;  // hit rate, share of requests with at most that
  double hit_rate = 0;
  // Which blocks are asked for when: uses of the blocks by decile of their first appearance.
  Points top_share_over_time;  // seconds, share of uses that go to the 1% most used blocks
  Points new_share_over_time;  // seconds, share of uses of blocks that were never used before
  // Numbers that follow one another, in a request: the paper's sequential blocks.
  double sequential_share = 0;
  Points run_length_cdf;  // blocks, share of blocks in runs of at most that length
  // Wald-Wolfowitz: are sequential and other accesses mixed by chance? |z| above 1.96: not.
  uint64_t runs = 0;
  double runs_expected = 0, runs_z = 0;
  // How many other blocks were used between two uses of a block.
  Points reuse_distance_cdf;
  double reuse_distance_p50 = 0, reuse_distance_p90 = 0;
  // The prefix tree with chains folded into edges.
  uint64_t radix_nodes = 0, radix_leaves = 0, children_max = 0, depth_max = 0;
  double edge_blocks_mean = 0, one_child_share = 0;
  Points edge_blocks_cdf;
};

TraceStudy StudyTrace(const TraceTree& tree);

}  // namespace kvcfs::bench
