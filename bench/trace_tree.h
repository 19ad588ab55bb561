// A trace as paths in its prefix tree: what the simulations and benchmarks of metadata walk.
// Threads: any, once made.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/block_key.h"
#include "tools/trace.h"

namespace kvcfs::bench {

// Counts from 0 in order of first appearance, so a parent is less than its children.
using Block = uint32_t;
inline constexpr Block kNoBlock = UINT32_MAX;

class TraceTree {
 public:
  explicit TraceTree(const tools::Trace& trace);

  size_t request_count() const { return begins_.size() - 1; }
  size_t block_count() const { return parents_.size(); }
  uint64_t use_count() const { return paths_.size(); }

  std::span<const Block> path(size_t request) const {
    return std::span(paths_).subspan(begins_[request], begins_[request + 1] - begins_[request]);
  }
  uint64_t timestamp_ms(size_t request) const { return timestamps_ms_[request]; }
  uint64_t output_tokens(size_t request) const { return output_tokens_[request]; }

  Block parent(Block block) const { return parents_[block]; }  // kNoBlock: a first block
  uint32_t ordinal(Block block) const { return ordinals_[block]; }
  std::span<const Block> children(Block block) const {
    return std::span(children_).subspan(child_begins_[block],
                                        child_begins_[block + 1] - child_begins_[block]);
  }
  // The trace's own number of it: contiguous for what one request brought.
  uint64_t id(Block block) const { return ids_[block]; }
  // SHA-256 over the parent's key and the number.
  std::vector<BlockKey> ChainKeys() const;

  // Of each block of each path, the request that uses it next; request_count(): none.
  std::vector<uint32_t> NextUses() const;
  size_t path_begin(size_t request) const { return begins_[request]; }

 private:
  std::vector<size_t> begins_;  // [request], and the end
  std::vector<Block> paths_;
  std::vector<uint64_t> timestamps_ms_, output_tokens_;
  std::vector<Block> parents_;
  std::vector<uint32_t> ordinals_;
  std::vector<uint64_t> ids_;
  std::vector<size_t> child_begins_;
  std::vector<Block> children_;
};

}  // namespace kvcfs::bench
