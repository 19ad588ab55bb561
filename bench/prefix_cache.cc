#include "bench/prefix_cache.h"

#include "base/result.h"

namespace kvcfs::bench {

PrefixCache::PrefixCache(const TraceTree& tree, uint64_t capacity_blocks)
    : tree_(tree),
      capacity_(capacity_blocks),
      cached_(tree.block_count()),
      child_counts_(tree.block_count()) {}

double PrefixCache::HitRate(CachePolicy& policy) {
  uint64_t hits = 0;
  for (size_t request = 0; request < tree_.request_count(); ++request) {
    const std::span<const Block> path = tree_.path(request);
    size_t matched = 0;
    while (matched < path.size() && cached_[path[matched]]) ++matched;
    hits += matched;
    for (size_t i = matched; i < path.size(); ++i) {
      cached_[path[i]] = true;
      ++size_;
      if (i > 0 && child_counts_[path[i - 1]]++ == 0 && i == matched) policy.NoLeaf(path[i - 1]);
    }
    policy.Used(request, path, matched);
    if (matched < path.size()) policy.BecameLeaf(path.back());
    while (size_ > capacity_) Remove(policy.Victim(), policy);
  }
  return tree_.use_count() == 0
             ? 0
             : static_cast<double>(hits) / static_cast<double>(tree_.use_count());
}

void PrefixCache::Remove(Block block, CachePolicy& policy) {
  KVC_CHECK(cached_[block]);
  if (child_counts_[block] > 0) {
    for (const Block child : tree_.children(block)) {
      if (cached_[child]) Remove(child, policy);
    }
  }
  cached_[block] = false;
  --size_;
  policy.Removed(block);
  const Block parent = tree_.parent(block);
  if (parent != kNoBlock && --child_counts_[parent] == 0) policy.BecameLeaf(parent);
}

double SimulatePolicy(const std::string& name, const TraceTree& tree, uint64_t capacity_blocks) {
  PrefixCache cache(tree, capacity_blocks);
  const std::unique_ptr<CachePolicy> policy = MakePolicy(name, tree, cache);
  return policy == nullptr ? -1 : cache.HitRate(*policy);
}

}  // namespace kvcfs::bench
