// Sherman and CHIME, bulk-loaded, their read and range paths written anew from their papers, over
// one-sided READs that are counted under rdma/cost_model.h.
//
// Sherman (Wang et al., SIGMOD 2022). Faithful: a B+tree of nodes of 1 KiB; a node has a version at
// both ends, fences, a sibling, and entries with a version nibble at both of their ends; leaves are
// not sorted, so a reader takes a whole leaf; clients cache all inner nodes (their level above the
// leaves suffices for a lookup); a range reads its leaves in parallel; a leaf whose fences do not
// hold the key is followed to its sibling. Left out: writes, so the lock tables of the NIC, the
// splits and invalidations never happen, and versions are compared but never differ.
//
// CHIME (Luo et al., SOSP 2024). Faithful: inner nodes as Sherman's, leaves are hopscotch tables of
// 64 entries with neighbourhoods of 8, so that a lookup reads a neighbourhood and not a leaf, in
// one READ that brings a replica of the leaf's metadata along (one for every neighbourhood); the
// hopscotch bitmap is in the entry; sibling-based validation instead of fences; a client's buffer
// of hot entries lets it read one entry speculatively, and the neighbourhood only if that was
// wrong; a range reads whole leaves. Left out: writes, vacancy bitmaps (piggybacked on locks), and
// wrap-around neighbourhoods are read by one READ of the leaf instead of two.
//
// Both: warm, a client has all inner nodes, and of CHIME the hot entries; cold, the root and the
// level below it, which any client has after a moment. Lookups of one question leave together, for
// all keys are known. In int mode questions are cut into ranges of numbers that follow one another.
#include <algorithm>
#include <cstring>
#include <set>
#include <unordered_map>
#include <unordered_set>

#include "bench/index_backend.h"
#include "rdma/cost_model.h"

namespace kvcfs::bench {
namespace {

constexpr size_t kNodeBytes = 1024;
// Front and rear version, level, count, two fences, sibling, rounded up.
constexpr size_t HeaderBytes(size_t key_bytes) {
  return 8 + 2 * key_bytes + 8;
}
// Key, value of 8, versions.
constexpr size_t EntryBytes(size_t key_bytes) {
  return key_bytes + 8 + 1;
}
// What a bulk load leaves for inserts.
constexpr double kFill = 0.8;

// Of a node of 1 KiB, after a bulk load.
size_t FilledEntries(size_t key_bytes) {
  const size_t fit = (kNodeBytes - HeaderBytes(key_bytes)) / EntryBytes(key_bytes);
  return static_cast<size_t>(kFill * static_cast<double>(fit));
}

constexpr size_t kSpan = 64;
constexpr size_t kNeighbours = 8;
constexpr double kHopscotchFill = 0.8;
// As in the paper's evaluation: 30 MB of 100 million keys' worth of hot entries; here a share.
constexpr double kHotShare = 0.1;

struct Leaf {
  size_t first = 0, count = 0;  // in sorted order
};

// The shape of the tree over the sorted keys; keys are compared by their place in that order.
class Tree {
 public:
  Tree(const IndexLoad& load, KeyMode mode, size_t leaf_entries)
      : mode_(mode), key_bytes_(mode == KeyMode::kInt ? 8 : 32) {
    for (const Block block : load.blocks()) {
      if (mode == KeyMode::kInt) {
        ids_.push_back(load.id(block));
      } else {
        keys_.push_back(load.key(block));
      }
    }
    std::sort(ids_.begin(), ids_.end());
    ids_.erase(std::unique(ids_.begin(), ids_.end()), ids_.end());
    std::sort(keys_.begin(), keys_.end());
    const size_t count = size();
    for (size_t first = 0; first < count; first += leaf_entries) {
      leaves_.push_back({first, std::min(leaf_entries, count - first)});
    }
    entries_per_leaf_ = leaf_entries;
    const size_t fan_out = FilledEntries(key_bytes_);
    inner_levels_ = 0;
    for (size_t nodes = leaves_.size(); nodes > 1; nodes = (nodes + fan_out - 1) / fan_out) {
      ++inner_levels_;
      inner_nodes_ += (nodes + fan_out - 1) / fan_out;
    }
  }

  size_t size() const { return mode_ == KeyMode::kInt ? ids_.size() : keys_.size(); }
  size_t key_bytes() const { return key_bytes_; }
  size_t leaf_count() const { return leaves_.size(); }
  size_t inner_nodes() const { return inner_nodes_; }
  // READs of inner nodes, one after the other, before a leaf can be read.
  size_t InnerReads(bool warm) const { return warm || inner_levels_ <= 2 ? 0 : inner_levels_ - 2; }
  // Where the key is, or would be.
  size_t PlaceOf(const IndexLoad::Question& question, size_t at) const {
    if (mode_ == KeyMode::kInt) {
      return static_cast<size_t>(std::lower_bound(ids_.begin(), ids_.end(), question.ids[at]) -
                                 ids_.begin());
    }
    return static_cast<size_t>(std::lower_bound(keys_.begin(), keys_.end(), question.keys[at]) -
                               keys_.begin());
  }
  bool Holds(const IndexLoad::Question& question, size_t at, size_t place) const {
    if (place == size()) return false;
    return mode_ == KeyMode::kInt ? ids_[place] == question.ids[at]
                                  : keys_[place] == question.keys[at];
  }
  size_t LeafOf(size_t place) const {
    return leaves_.empty() ? 0 : std::min(place / entries_per_leaf_, leaves_.size() - 1);
  }

 private:
  const KeyMode mode_;
  const size_t key_bytes_;
  std::vector<uint64_t> ids_;
  std::vector<BlockKey> keys_;
  std::vector<Leaf> leaves_;
  size_t entries_per_leaf_ = 1, inner_levels_ = 0, inner_nodes_ = 0;
};

struct Reads {
  std::vector<std::vector<uint64_t>> phases;  // bytes of each READ
  void Add(size_t phase, uint64_t bytes) {
    if (phases.size() <= phase) phases.resize(phase + 1);
    phases[phase].push_back(bytes);
  }
  void Charge(QuestionCost* cost) const {
    std::vector<rdma::CostPhase> counted;
    for (const auto& phase : phases) {
      if (phase.empty()) continue;
      rdma::CostPhase& sum = counted.emplace_back();
      for (const uint64_t bytes : phase) {
        ++sum.work_requests;
        sum.bytes += bytes;
      }
      sum.queue_pairs = static_cast<uint32_t>(std::min<uint64_t>(sum.work_requests, kModelServers));
      cost->reads += sum.work_requests;
      cost->bytes += sum.bytes;
    }
    cost->round_trips += counted.size();
    cost->model_us += rdma::CostMicros(counted);
  }
};

// What is common: cuts questions into ranges and lookups, and gives each its READs.
class TreeClient : public IndexClient {
 public:
  TreeClient(const Tree& tree, KeyMode mode, bool warm) : tree_(tree), mode_(mode), warm_(warm) {}

  Result<size_t> Match(const IndexLoad::Question& question, QuestionCost* cost) override {
    return Ask(question, 0, cost);
  }
  Result<size_t> Range(const IndexLoad::Question& prefix, size_t first,
                       QuestionCost* cost) override {
    return Ask(prefix, first, cost);
  }
  Result<size_t> Get(const IndexLoad::Question& prefix, QuestionCost* cost) override {
    return Ask(prefix, prefix.keys.size() - 1, cost);
  }

 protected:
  virtual void ReadLeaf(size_t leaf, size_t phase, Reads* reads) = 0;
  virtual void ReadKey(size_t place, bool found, uint64_t hash, size_t phase, Reads* reads) = 0;

  const Tree& tree_;

 private:
  Result<size_t> Ask(const IndexLoad::Question& question, size_t first, QuestionCost* cost) {
    Reads reads;
    const size_t inner = tree_.InnerReads(warm_);
    // Keys of one node's subtree share it, but not many do: as many as there are lookups.
    std::set<size_t> leaves;
    size_t found = 0, lookups = 0;
    bool whole = true;
    for (size_t at = first; at < question.keys.size();) {
      size_t end = at + 1;
      while (mode_ == KeyMode::kInt && end < question.keys.size() &&
             question.ids[end] == question.ids[end - 1] + 1) {
        ++end;
      }
      const bool is_range = end - at > 1;
      ++lookups;
      for (; at < end; ++at) {
        const size_t place = tree_.PlaceOf(question, at);
        const bool there = tree_.Holds(question, at, place);
        whole = whole && there;
        if (whole) ++found;
        if (is_range) {
          leaves.insert(tree_.LeafOf(place));
        } else {
          ReadKey(place, there, question.keys[at].Word(0), inner, &reads);
        }
      }
    }
    for (const size_t leaf : leaves) ReadLeaf(leaf, inner, &reads);
    for (size_t level = 0; level < inner; ++level) {
      for (size_t i = 0; i < lookups; ++i) reads.Add(level, kNodeBytes);
    }
    reads.Charge(cost);
    return found;
  }

  const KeyMode mode_;
  const bool warm_;
};

class ShermanClient final : public TreeClient {
 public:
  using TreeClient::TreeClient;

 protected:
  void ReadLeaf(size_t, size_t phase, Reads* reads) override { reads->Add(phase, kNodeBytes); }
  void ReadKey(size_t, bool, uint64_t, size_t phase, Reads* reads) override {
    reads->Add(phase, kNodeBytes);
  }
};

class ChimeClient final : public TreeClient {
 public:
  ChimeClient(const Tree& tree, KeyMode mode, bool warm)
      : TreeClient(tree, mode, warm),
        warm_(warm),
        hot_max_(static_cast<size_t>(kHotShare * static_cast<double>(tree.size()))) {}

 protected:
  void ReadLeaf(size_t, size_t phase, Reads* reads) override {
    reads->Add(phase, MetadataBytes() + kSpan * EntryBytes(tree_.key_bytes()));
  }
  void ReadKey(size_t place, bool found, uint64_t hash, size_t phase, Reads* reads) override {
    if (found && warm_) {
      if (hot_.contains(place)) {
        reads->Add(phase, EntryBytes(tree_.key_bytes()));
        return;
      }
      if (hot_.size() < hot_max_ && ++uses_[place] > 1) hot_.insert(place);
    }
    const bool wraps = hash % kSpan > kSpan - kNeighbours;
    reads->Add(phase,
               MetadataBytes() + (wraps ? kSpan : kNeighbours) * EntryBytes(tree_.key_bytes()));
  }

 private:
  // Versions, sibling, valid bit, level; no fences (sibling-based validation).
  static size_t MetadataBytes() { return 16; }

  const bool warm_;
  const size_t hot_max_;
  std::unordered_set<size_t> hot_;
  std::unordered_map<size_t, uint32_t> uses_;
};

size_t LeafEntries(bool chime, size_t key_bytes) {
  return chime ? static_cast<size_t>(kHopscotchFill * static_cast<double>(kSpan))
               : FilledEntries(key_bytes);
}

class TreeBackend final : public IndexBackend {
 public:
  TreeBackend(const IndexLoad& load, KeyMode mode, bool chime, bool warm)
      : mode_(mode),
        chime_(chime),
        warm_(warm),
        tree_(load, mode, LeafEntries(chime, mode == KeyMode::kInt ? 8 : 32)) {}
  Result<std::unique_ptr<IndexClient>> Connect() override {
    if (chime_) {
      return std::unique_ptr<IndexClient>(std::make_unique<ChimeClient>(tree_, mode_, warm_));
    }
    return std::unique_ptr<IndexClient>(std::make_unique<ShermanClient>(tree_, mode_, warm_));
  }
  double bytes_per_block() const override {
    const size_t entry = EntryBytes(tree_.key_bytes());
    // CHIME has its metadata once for every neighbourhood.
    const size_t leaf = chime_ ? kSpan * entry + kSpan / kNeighbours * 16 : kNodeBytes;
    return static_cast<double>(tree_.leaf_count() * leaf + tree_.inner_nodes() * kNodeBytes) /
           static_cast<double>(std::max<size_t>(1, tree_.size()));
  }

 private:
  const KeyMode mode_;
  const bool chime_, warm_;
  const Tree tree_;
};

}  // namespace

std::vector<BackendKind> RemoteTreeBackends() {
  std::vector<BackendKind> kinds;
  for (const bool chime : {false, true}) {
    for (const bool warm : {false, true}) {
      kinds.push_back({chime ? "chime" : "sherman",
                       "model",
                       warm ? "warm" : "cold",
                       {KeyMode::kInt, KeyMode::kSha256},
                       [chime, warm](const IndexLoad& load, KeyMode mode) {
                         return Result<std::unique_ptr<IndexBackend>>(
                             std::make_unique<TreeBackend>(load, mode, chime, warm));
                       }});
    }
  }
  return kinds;
}

}  // namespace kvcfs::bench
