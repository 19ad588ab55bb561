#include "bench/index_backend.h"

#include <algorithm>

namespace kvcfs::bench {

IndexLoad::IndexLoad(const TraceTree& tree, size_t requests_max)
    : tree_(tree), keys_(tree.ChainKeys()) {
  std::vector<uint32_t> uses(tree.block_count());
  for (size_t request = 0; request < tree.request_count(); ++request) {
    for (const Block block : tree.path(request)) ++uses[block];
  }
  for (Block block = 0; block < uses.size(); ++block) {
    if (uses[block] > 1) blocks_.push_back(block);
  }
  const size_t step =
      requests_max == 0
          ? 1
          : std::max<size_t>(1, (tree.request_count() + requests_max - 1) / requests_max);
  begins_.push_back(0);
  for (size_t request = 0; request < tree.request_count(); request += step) {
    const auto path = tree.path(request);
    if (path.empty()) continue;
    requests_.push_back(request);
    size_t cached = 0;
    for (const Block block : path) {
      asked_keys_.push_back(keys_[block]);
      asked_ids_.push_back(tree.id(block));
      if (uses[block] > 1) ++cached;  // uses never grow along a path
    }
    cached_.push_back(cached);
    begins_.push_back(asked_ids_.size());
  }
}

IndexLoad::Question IndexLoad::question(size_t index) const {
  const size_t begin = begins_[index], count = begins_[index + 1] - begin;
  return {std::span(asked_keys_).subspan(begin, count), std::span(asked_ids_).subspan(begin, count),
          cached_[index], tree_.timestamp_ms(requests_[index])};
}

Result<size_t> IndexClient::Range(const IndexLoad::Question& prefix, size_t first,
                                  QuestionCost* cost) {
  KVC_TRY_ASSIGN(const size_t count, Match(prefix, cost));
  return count > first ? count - first : 0;
}

Result<size_t> IndexClient::Get(const IndexLoad::Question& prefix, QuestionCost* cost) {
  KVC_TRY_ASSIGN(const size_t count, Match(prefix, cost));
  return size_t{count == prefix.keys.size() ? 1u : 0u};
}

}  // namespace kvcfs::bench
