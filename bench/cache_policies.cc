// The policies that prefix_cache.h compares, each in its published form as far as a prefix-closed
// cache allows: what its order would evict although it is extended stays, as if it was used.
#include <algorithm>
#include <array>
#include <list>
#include <set>
#include <unordered_map>
#include <utility>

#include "base/result.h"
#include "bench/prefix_cache.h"
#include "fs/reuse_policy.h"
#include "tools/random.h"

namespace kvcfs::bench {
namespace {

uint64_t HashOf(Block block) {
  uint64_t mixed = (block + 1) * 0x9e3779b97f4a7c15u;
  mixed = (mixed ^ (mixed >> 30)) * 0xbf58476d1ce4e5b9u;
  mixed = (mixed ^ (mixed >> 27)) * 0x94d049bb133111ebu;
  return mixed ^ (mixed >> 31);
}

// Evicts the leaf of the lowest rank. Rank of a leaf changes in Used only.
class RankedLeaves : public CachePolicy {
 public:
  explicit RankedLeaves(const TraceTree& tree) : ranks_(tree.block_count()) {}
  Block Victim() override { return leaves_.begin()->second; }
  void Removed(Block block) override { leaves_.erase({ranks_[block], block}); }
  void BecameLeaf(Block block) override { leaves_.insert({ranks_[block], block}); }
  void NoLeaf(Block block) override { leaves_.erase({ranks_[block], block}); }

 protected:
  void SetRank(Block block, int64_t rank) {
    const bool was_leaf = leaves_.erase({ranks_[block], block}) > 0;
    ranks_[block] = rank;
    if (was_leaf) leaves_.insert({rank, block});
  }

 private:
  std::vector<int64_t> ranks_;
  std::set<std::pair<int64_t, Block>> leaves_;
};

// By when it came. (That its parent came earlier does not matter: only leaves go.)
class Fifo : public RankedLeaves {
 public:
  using RankedLeaves::RankedLeaves;
  void Used(size_t, std::span<const Block> path, size_t matched) override {
    for (size_t i = path.size(); i-- > matched;) SetRank(path[i], ++clock_);
  }

 private:
  int64_t clock_ = 0;
};

// What the product had first: of the leaves, the one whose last use is longest ago.
class LeafLru : public RankedLeaves {
 public:
  using RankedLeaves::RankedLeaves;
  void Used(size_t, std::span<const Block> path, size_t) override {
    for (size_t i = path.size(); i-- > 0;) SetRank(path[i], ++clock_);
  }

 private:
  int64_t clock_ = 0;
};

// The leaf that is used again last. A request that uses a block uses its parent too, so the block
// that is used again last is always a leaf, or equal to one: this is Belady's bound with and
// without the constraint.
class Belady : public RankedLeaves {
 public:
  explicit Belady(const TraceTree& tree)
      : RankedLeaves(tree), tree_(tree), next_(tree.NextUses()) {}
  void Used(size_t request, std::span<const Block> path, size_t) override {
    for (size_t i = 0; i < path.size(); ++i) {
      SetRank(path[i], -int64_t{next_[tree_.path_begin(request) + i]});
    }
  }

 private:
  const TraceTree& tree_;
  const std::vector<uint32_t> next_;
};

// Least recently used, in the order in which a request reads: the head of a chain is colder than
// what extends it, and takes it along.
class Lru : public CachePolicy {
 public:
  void Used(size_t, std::span<const Block> path, size_t) override {
    for (const Block block : path) {
      const auto found = places_.find(block);
      if (found != places_.end()) order_.erase(found->second);
      places_[block] = order_.insert(order_.end(), block);
    }
  }
  Block Victim() override { return order_.front(); }
  void Removed(Block block) override {
    const auto found = places_.find(block);
    order_.erase(found->second);
    places_.erase(found);
  }
  void BecameLeaf(Block) override {}
  void NoLeaf(Block) override {}

 private:
  std::list<Block> order_;  // coldest first
  std::unordered_map<Block, std::list<Block>::iterator> places_;
};

// Blocks in queues: which one, where in it, and a small count.
class Queued : public CachePolicy {
 public:
  Queued(const TraceTree& tree, const PrefixCache& cache)
      : cache_(cache), nodes_(tree.block_count()) {}
  void BecameLeaf(Block) override {}
  void NoLeaf(Block) override {}

 protected:
  using Queue = std::list<Block>;  // the front goes first
  struct Node {
    Queue* queue = nullptr;
    Queue::iterator at;
    uint32_t count = 0;
  };
  void Push(Queue& queue, Block block) {
    Node& node = nodes_[block];
    node.queue = &queue;
    node.at = queue.insert(queue.end(), block);
  }
  void Take(Block block) {
    nodes_[block].queue->erase(nodes_[block].at);
    nodes_[block].queue = nullptr;
  }
  void Move(Queue& queue, Block block) {
    Take(block);
    Push(queue, block);
  }
  Block FirstLeaf(const Queue& queue) const {
    const auto found =
        std::find_if(queue.begin(), queue.end(), [&](Block block) { return cache_.IsLeaf(block); });
    return found == queue.end() ? kNoBlock : *found;
  }

  const PrefixCache& cache_;
  std::vector<Node> nodes_;
};

// Small queue 10%, main queue, ghosts as many as main. Source: Yang et al., SOSP 2023, algorithm 1.
class S3Fifo : public Queued {
 public:
  using Queued::Queued;
  void Used(size_t, std::span<const Block> path, size_t matched) override {
    for (size_t i = path.size(); i-- > 0;) {
      Node& node = nodes_[path[i]];
      if (i < matched) {
        node.count = std::min(node.count + 1, 3u);
        continue;
      }
      node.count = 0;
      Push(ghosts_.erase(path[i]) > 0 ? main_ : small_, path[i]);
    }
  }
  Block Victim() override {
    const uint64_t small_max = std::max<uint64_t>(1, cache_.capacity() / 10);
    if (small_.size() >= small_max || main_.empty()) {
      for (auto at = small_.begin(); at != small_.end();) {
        const Block block = *at++;
        if (nodes_[block].count > 1) {
          nodes_[block].count = 0;
          Move(main_, block);
        } else if (cache_.IsLeaf(block)) {
          Remember(block);
          return block;
        }
      }
    }
    // Twice around clears every count.
    for (size_t steps = 4 * main_.size(); steps > 0; --steps) {
      const Block block = main_.front();
      if (nodes_[block].count == 0 && cache_.IsLeaf(block)) return block;
      if (nodes_[block].count > 0) --nodes_[block].count;
      Move(main_, block);
    }
    const Block block = FirstLeaf(main_);
    return block != kNoBlock ? block : FirstLeaf(small_);
  }
  void Removed(Block block) override { Take(block); }

 private:
  void Remember(Block block) {
    ghosts_.insert(block);
    ghost_order_.push_back(block);
    while (ghost_order_.size() > cache_.capacity() * 9 / 10) {
      ghosts_.erase(ghost_order_.front());
      ghost_order_.pop_front();
    }
  }

  Queue small_, main_, ghost_order_;
  std::set<Block> ghosts_;
};

// One queue that nothing moves in, and a hand. Source: Zhang et al., NSDI 2024, algorithm 1.
class Sieve : public Queued {
 public:
  Sieve(const TraceTree& tree, const PrefixCache& cache)
      : Queued(tree, cache), hand_(queue_.end()) {}
  void Used(size_t, std::span<const Block> path, size_t matched) override {
    for (size_t i = path.size(); i-- > 0;) {
      nodes_[path[i]].count = i < matched ? 1 : 0;
      if (i >= matched) Push(queue_, path[i]);
    }
  }
  Block Victim() override {
    for (size_t steps = 3 * queue_.size(); steps > 0; --steps) {
      if (hand_ == queue_.end()) hand_ = queue_.begin();
      const Block block = *hand_;
      if (nodes_[block].count == 0 && cache_.IsLeaf(block)) return block;
      nodes_[block].count = 0;
      ++hand_;
    }
    return FirstLeaf(queue_);
  }
  void Removed(Block block) override {
    if (hand_ != queue_.end() && *hand_ == block) ++hand_;
    Take(block);
  }

 private:
  Queue queue_;
  Queue::iterator hand_;
};

// Window 1%, main 99% in two segments (protected 80%), admission by a sketch of frequencies.
// Source: Einziger et al., ACM ToS 2017; sizes as in Caffeine.
class WTinyLfu : public Queued {
 public:
  WTinyLfu(const TraceTree& tree, const PrefixCache& cache)
      : Queued(tree, cache),
        width_(std::max<uint64_t>(64, 4 * cache.capacity())),
        window_max_(std::max<uint64_t>(1, cache.capacity() / 100)),
        protected_max_((cache.capacity() - window_max_) * 4 / 5) {
    for (auto& row : sketch_) row.assign(width_, 0);
  }
  void Used(size_t, std::span<const Block> path, size_t matched) override {
    for (size_t i = path.size(); i-- > 0;) {
      const Block block = path[i];
      Count(block);
      if (i >= matched) {
        Push(window_, block);
      } else if (nodes_[block].queue == &probation_) {
        Move(protected_, block);
        while (protected_.size() > protected_max_) Move(probation_, protected_.front());
      } else {
        Move(*nodes_[block].queue, block);
      }
    }
  }
  Block Victim() override {
    while (window_.size() > window_max_) {
      const Block candidate = window_.front();
      const Block victim = FirstLeaf(probation_);
      Move(probation_, candidate);
      if (victim == kNoBlock) continue;
      if (!cache_.IsLeaf(candidate)) return victim;
      return Frequency(candidate) > Frequency(victim) ? victim : candidate;
    }
    for (const Queue* queue : {&probation_, &window_, &protected_}) {
      const Block block = FirstLeaf(*queue);
      if (block != kNoBlock) return block;
    }
    return kNoBlock;
  }
  void Removed(Block block) override { Take(block); }

 private:
  size_t Cell(Block block, size_t row) const {
    return (HashOf(block) + row * 0x9e3779b97f4a7c15u * (HashOf(block) >> 32 | 1)) % width_;
  }
  uint32_t Frequency(Block block) const {
    uint32_t least = UINT32_MAX;
    for (size_t row = 0; row < sketch_.size(); ++row) {
      least = std::min<uint32_t>(least, sketch_[row][Cell(block, row)]);
    }
    return least;
  }
  void Count(Block block) {
    for (size_t row = 0; row < sketch_.size(); ++row) {
      uint8_t& cell = sketch_[row][Cell(block, row)];
      if (cell < 15) ++cell;
    }
    if (++counted_ < 10 * cache_.capacity()) return;
    counted_ = 0;
    for (auto& row : sketch_) {
      for (uint8_t& cell : row) cell /= 2;
    }
  }

  const uint64_t width_, window_max_, protected_max_;
  Queue window_, probation_, protected_;
  std::array<std::vector<uint8_t>, 4> sketch_;
  uint64_t counted_ = 0;
};

// The product's: fs/reuse_policy.h, asked as fs/block_tiers.cc asks it.
class Kvcfs : public LeafLru {
 public:
  Kvcfs(const TraceTree& tree, const PrefixCache& cache)
      : LeafLru(tree), cache_(cache), places_(tree.block_count()) {}
  void Used(size_t request, std::span<const Block> path, size_t matched) override {
    for (size_t i = 0; i < path.size(); ++i) {
      reuse_.Used({.hash = HashOf(path[i]),
                   .tip = i + 1 == path.size(),
                   .was_cached = i < matched,
                   .cached_blocks = std::min(cache_.size(), cache_.capacity())});
    }
    LeafLru::Used(request, path, matched);
  }
  Block Victim() override {
    candidates_.assign(1, LeafLru::Victim());
    if (reuse_.learned()) {
      while (candidates_.size() < fs::ReusePolicy::kCandidates) {
        candidates_.push_back(leaves_[random_.Below(leaves_.size())]);
      }
    }
    hashes_.clear();
    for (const Block block : candidates_) hashes_.push_back(HashOf(block));
    return candidates_[reuse_.Choose(hashes_)];
  }
  void Removed(Block block) override {
    LeafLru::Removed(block);
    Forget(block);
  }
  void BecameLeaf(Block block) override {
    LeafLru::BecameLeaf(block);
    places_[block] = leaves_.size();
    leaves_.push_back(block);
  }
  void NoLeaf(Block block) override {
    LeafLru::NoLeaf(block);
    Forget(block);
  }

 private:
  void Forget(Block block) {
    leaves_[places_[block]] = leaves_.back();
    places_[leaves_.back()] = places_[block];
    leaves_.pop_back();
  }

  const PrefixCache& cache_;
  fs::ReusePolicy reuse_;
  tools::Random random_{1};
  std::vector<Block> leaves_, candidates_;
  std::vector<size_t> places_;  // [block] in leaves_
  std::vector<uint64_t> hashes_;
};

constexpr const char* kNames[] = {"fifo",  "lru",      "leaf-lru", "s3fifo",
                                  "sieve", "wtinylfu", "kvcfs",    "belady"};

}  // namespace

std::span<const char* const> PolicyNames() {
  return kNames;
}

std::unique_ptr<CachePolicy> MakePolicy(const std::string& name, const TraceTree& tree,
                                        const PrefixCache& cache) {
  if (name == "fifo") return std::make_unique<Fifo>(tree);
  if (name == "lru") return std::make_unique<Lru>();
  if (name == "leaf-lru") return std::make_unique<LeafLru>(tree);
  if (name == "s3fifo") return std::make_unique<S3Fifo>(tree, cache);
  if (name == "sieve") return std::make_unique<Sieve>(tree, cache);
  if (name == "wtinylfu") return std::make_unique<WTinyLfu>(tree, cache);
  if (name == "kvcfs") return std::make_unique<Kvcfs>(tree, cache);
  if (name == "belady") return std::make_unique<Belady>(tree);
  return nullptr;
}

}  // namespace kvcfs::bench
