#include "bench/trace_tree.h"

#include <unordered_map>

#include "meta/chain_key.h"

namespace kvcfs::bench {
namespace {

struct Edge {
  Block parent = kNoBlock;
  uint64_t id = 0;
  friend bool operator==(const Edge&, const Edge&) = default;
};

struct EdgeHash {
  size_t operator()(const Edge& edge) const {
    uint64_t mixed = (edge.id + 1) * 0x9e3779b97f4a7c15u ^ (uint64_t{edge.parent} << 32);
    mixed = (mixed ^ (mixed >> 29)) * 0xbf58476d1ce4e5b9u;
    return mixed ^ (mixed >> 32);
  }
};

}  // namespace

TraceTree::TraceTree(const tools::Trace& trace) {
  std::unordered_map<Edge, Block, EdgeHash> blocks;
  begins_.push_back(0);
  for (const tools::TraceRequest& request : trace.requests) {
    Block tip = kNoBlock;
    for (const uint64_t id : request.hash_ids) {
      const auto [found, is_new] =
          blocks.try_emplace(Edge{tip, id}, static_cast<Block>(parents_.size()));
      if (is_new) {
        parents_.push_back(tip);
        ordinals_.push_back(tip == kNoBlock ? 0 : ordinals_[tip] + 1);
        ids_.push_back(id);
      }
      tip = found->second;
      paths_.push_back(tip);
    }
    begins_.push_back(paths_.size());
    timestamps_ms_.push_back(request.timestamp_ms);
    output_tokens_.push_back(request.output_length);
  }
  child_begins_.assign(parents_.size() + 1, 0);
  for (const Block parent : parents_) {
    if (parent != kNoBlock) ++child_begins_[parent + 1];
  }
  for (size_t i = 1; i < child_begins_.size(); ++i) child_begins_[i] += child_begins_[i - 1];
  children_.resize(child_begins_.back());
  std::vector<size_t> at(child_begins_.begin(), child_begins_.end() - 1);
  for (Block block = 0; block < parents_.size(); ++block) {
    if (parents_[block] != kNoBlock) children_[at[parents_[block]]++] = block;
  }
}

std::vector<BlockKey> TraceTree::ChainKeys() const {
  std::vector<BlockKey> keys(parents_.size());
  for (Block block = 0; block < keys.size(); ++block) {
    const Block parent = parents_[block];
    keys[block] = meta::ChainKey(parent == kNoBlock ? BlockKey{} : keys[parent], ids_[block]);
  }
  return keys;
}

std::vector<uint32_t> TraceTree::NextUses() const {
  const auto never = static_cast<uint32_t>(request_count());
  std::vector<uint32_t> next(paths_.size(), never), next_of_block(parents_.size(), never);
  for (size_t request = request_count(); request-- > 0;) {
    for (size_t i = begins_[request]; i < begins_[request + 1]; ++i) {
      next[i] = next_of_block[paths_[i]];
      next_of_block[paths_[i]] = static_cast<uint32_t>(request);
    }
  }
  return next;
}

}  // namespace kvcfs::bench
