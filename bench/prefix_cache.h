// A cache of blocks that is always prefix-closed, for comparing policies of eviction on a trace.
//
// A request finds the longest prefix that is cached, and brings the rest. What it uses is in use
// until it ends; then the cache is cut down to its capacity, and what the request brought may go as
// anything else may (so a policy may also decline to keep it). A block goes only when no cached
// block extends it: who names another one loses what extends it first.
// Hit rate: blocks found, of all blocks asked for.   Threads: one.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "bench/trace_tree.h"

namespace kvcfs::bench {

class PrefixCache;

class CachePolicy {
 public:
  virtual ~CachePolicy() = default;
  // A request used these, in token order; the first `matched` were cached, now all are.
  virtual void Used(size_t request, std::span<const Block> path, size_t matched) = 0;
  virtual Block Victim() = 0;
  virtual void Removed(Block block) = 0;
  // Nothing extends it any more (after Removed of its last child), or something does again.
  virtual void BecameLeaf(Block block) = 0;
  virtual void NoLeaf(Block block) = 0;
};

class PrefixCache {
 public:
  PrefixCache(const TraceTree& tree, uint64_t capacity_blocks);

  double HitRate(CachePolicy& policy);

  uint64_t capacity() const { return capacity_; }
  uint64_t size() const { return size_; }
  bool Holds(Block block) const { return cached_[block]; }
  bool IsLeaf(Block block) const { return cached_[block] && child_counts_[block] == 0; }

 private:
  void Remove(Block block, CachePolicy& policy);

  const TraceTree& tree_;
  const uint64_t capacity_;
  uint64_t size_ = 0;
  std::vector<bool> cached_;
  std::vector<uint32_t> child_counts_;  // that are cached
};

std::span<const char* const> PolicyNames();
std::unique_ptr<CachePolicy> MakePolicy(const std::string& name, const TraceTree& tree,
                                        const PrefixCache& cache);

// The hit rate of a policy by name; no such name: negative.
double SimulatePolicy(const std::string& name, const TraceTree& tree, uint64_t capacity_blocks);

}  // namespace kvcfs::bench
