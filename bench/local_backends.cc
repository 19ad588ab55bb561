// In process, without a network: our chain index, a hash table, a radix tree, RocksDB.
#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <unordered_map>

#include "bench/child_process.h"
#include "bench/index_backend.h"
#include "meta/chain_index.h"
#include "meta/meta_store.h"

namespace kvcfs::bench {
namespace {

constexpr meta::NamespaceId kSpace = 1;

// Memory that the process has more since it was made.
class ResidentGrowth {
 public:
  double BytesPer(size_t count) const {
    const uint64_t now = Resident();
    return now > before_ && count > 0
               ? static_cast<double>(now - before_) / static_cast<double>(count)
               : 0;
  }

 private:
  static uint64_t Resident() {
    uint64_t pages = 0, resident = 0;
    std::ifstream("/proc/self/statm") >> pages >> resident;
    return resident * 4096;
  }
  const uint64_t before_ = Resident();
};

// Keys as the mode has them.
uint64_t HashOf(const IndexLoad::Question& question, size_t at, KeyMode mode) {
  return mode == KeyMode::kInt ? question.ids[at] : question.keys[at].Word(0);
}

// A lookup by key is all there is: asks from the front until one is missing.
template <typename Find>
size_t CountFound(const IndexLoad::Question& question, size_t first, Find&& find) {
  size_t at = first;
  while (at < question.keys.size() && find(at)) ++at;
  return at - first;
}

// A client that is called for one key after the other.
template <typename Find>
class KeyByKeyClient final : public IndexClient {
 public:
  explicit KeyByKeyClient(Find find) : find_(std::move(find)) {}
  Result<size_t> Match(const IndexLoad::Question& question, QuestionCost*) override {
    return CountFound(question, 0, [&](size_t at) { return find_(question, at); });
  }
  Result<size_t> Range(const IndexLoad::Question& prefix, size_t first, QuestionCost*) override {
    return CountFound(prefix, first, [&](size_t at) { return find_(prefix, at); });
  }
  Result<size_t> Get(const IndexLoad::Question& prefix, QuestionCost*) override {
    return size_t{find_(prefix, prefix.keys.size() - 1) ? 1u : 0u};
  }

 private:
  Find find_;
};
template <typename Find>
std::unique_ptr<IndexClient> MakeKeyByKey(Find find) {
  return std::make_unique<KeyByKeyClient<Find>>(std::move(find));
}

// ---- ours

class ChainClient final : public IndexClient {
 public:
  explicit ChainClient(const meta::ChainIndex& index) : index_(index) {}
  Result<size_t> Match(const IndexLoad::Question& question, QuestionCost*) override {
    refs_.resize(question.keys.size());
    return index_.Match(kSpace, question.keys, refs_.data());
  }
  Result<size_t> Get(const IndexLoad::Question& prefix, QuestionCost*) override {
    return size_t{index_.Find(kSpace, prefix.keys.back()) ? 1u : 0u};
  }

 private:
  const meta::ChainIndex& index_;
  std::vector<meta::BlockRef> refs_;
};

class ChainBackend final : public IndexBackend {
 public:
  explicit ChainBackend(const IndexLoad& load) {
    for (const Block block : load.blocks()) {
      meta::BlockState state;
      state.length = 160u << 10;
      state.segment = 1 + block / 400 % 1000;
      state.sequence = block + 1;
      const Block parent = load.tree().parent(block);
      const auto inserted = index_.Insert(
          kSpace, load.key(block), parent == kNoBlock ? BlockKey{} : load.key(parent), state);
      KVC_CHECK(inserted.ok());
    }
  }
  Result<std::unique_ptr<IndexClient>> Connect() override {
    return std::unique_ptr<IndexClient>(std::make_unique<ChainClient>(index_));
  }
  double bytes_per_block() const override {
    const meta::ChainIndexStats stats = index_.Stats();
    return stats.blocks == 0 ? 0
                             : static_cast<double>(stats.table_bytes + stats.run_bytes) /
                                   static_cast<double>(stats.blocks);
  }

 private:
  meta::ChainIndex index_;
};

// ---- hash table

struct ByInt {
  using Key = uint64_t;
  struct Hash {
    size_t operator()(Key key) const { return key * 0x9e3779b97f4a7c15u; }
  };
  static Key Of(const IndexLoad::Question& question, size_t at) { return question.ids[at]; }
  static Key Of(const IndexLoad& load, Block block) { return load.id(block); }
};
struct BySha256 {
  using Key = BlockKey;
  using Hash = BlockKeyHash;
  static const Key& Of(const IndexLoad::Question& question, size_t at) { return question.keys[at]; }
  static const Key& Of(const IndexLoad& load, Block block) { return load.key(block); }
};

template <typename By>
class HashBackend final : public IndexBackend {
 public:
  explicit HashBackend(const IndexLoad& load) {
    const ResidentGrowth growth;
    table_.reserve(load.blocks().size());
    for (const Block block : load.blocks()) table_.emplace(By::Of(load, block), block);
    bytes_ = growth.BytesPer(table_.size());
  }
  Result<std::unique_ptr<IndexClient>> Connect() override {
    return MakeKeyByKey([this](const IndexLoad::Question& question, size_t at) {
      return table_.find(By::Of(question, at)) != table_.end();
    });
  }
  double bytes_per_block() const override { return bytes_; }

 private:
  std::unordered_map<typename By::Key, uint64_t, typename By::Hash> table_;
  double bytes_ = 0;
};

// ---- radix tree: edges are runs of blocks, as SGLang's RadixCache and IMPRESS have it.

class RadixBackend final : public IndexBackend {
 public:
  explicit RadixBackend(const IndexLoad& load, KeyMode mode) : mode_(mode) {
    const ResidentGrowth growth;
    nodes_.emplace_back();
    // A block that is its parent's only child goes on its edge; so edges end at forks and leaves.
    const TraceTree& tree = load.tree();
    std::vector<uint32_t> children(tree.block_count());
    for (const Block block : load.blocks()) {
      if (tree.parent(block) != kNoBlock) ++children[tree.parent(block)];
    }
    std::unordered_map<Block, size_t> node_of;
    for (const Block block : load.blocks()) {
      const Block parent = tree.parent(block);
      const uint64_t word = mode == KeyMode::kInt ? load.id(block) : load.key(block).Word(0);
      const size_t above = parent == kNoBlock ? 0 : node_of.at(parent);
      if (parent != kNoBlock && children[parent] == 1) {
        nodes_[above].edge.push_back({load.key(block), word});
        node_of[block] = above;
        continue;
      }
      nodes_[above].next[word] = nodes_.size();
      node_of[block] = nodes_.size();
      nodes_.emplace_back();
      nodes_.back().edge.push_back({load.key(block), word});
    }
    bytes_ = growth.BytesPer(load.blocks().size());
  }
  Result<std::unique_ptr<IndexClient>> Connect() override {
    return std::unique_ptr<IndexClient>(std::make_unique<Client>(*this));
  }
  double bytes_per_block() const override { return bytes_; }

 private:
  struct Step {
    BlockKey key;
    uint64_t word = 0;
  };
  struct Node {
    std::vector<Step> edge;  // to this node
    std::unordered_map<uint64_t, size_t> next;
  };
  class Client final : public IndexClient {
   public:
    explicit Client(const RadixBackend& tree) : tree_(tree) {}
    Result<size_t> Match(const IndexLoad::Question& question, QuestionCost*) override {
      size_t matched = 0;
      for (size_t node = 0; matched < question.keys.size();) {
        const auto found = tree_.nodes_[node].next.find(HashOf(question, matched, tree_.mode_));
        if (found == tree_.nodes_[node].next.end()) break;
        node = found->second;
        for (const Step& step : tree_.nodes_[node].edge) {
          if (matched == question.keys.size() || !Same(step, question, matched)) return matched;
          ++matched;
        }
      }
      return matched;
    }

   private:
    bool Same(const Step& step, const IndexLoad::Question& question, size_t at) const {
      return tree_.mode_ == KeyMode::kInt ? step.word == question.ids[at]
                                          : step.key == question.keys[at];
    }
    const RadixBackend& tree_;
  };

  const KeyMode mode_;
  std::vector<Node> nodes_;
  double bytes_ = 0;
};

// ---- RocksDB, by the product's door to it: a Get per block, all in its cache.

class RocksBackend final : public IndexBackend {
 public:
  static Result<std::unique_ptr<IndexBackend>> Make(const IndexLoad& load, KeyMode mode) {
    auto backend = std::make_unique<RocksBackend>(mode);
    meta::MetaStoreOptions options;
    options.directory = backend->directory_.path() + "/db";
    KVC_TRY_ASSIGN(backend->store_, meta::MetaStore::Open(options, nullptr));
    meta::MetaBatch batch;
    size_t count = 0;
    for (const Block block : load.blocks()) {
      const uint64_t address = block;
      batch.Put(Key(mode, load.id(block), load.key(block)),
                std::string_view(reinterpret_cast<const char*>(&address), sizeof(address)));
      if (++count % 512 == 0 || count == load.blocks().size()) {
        KVC_TRY(backend->store_->Write(batch, false));
      }
    }
    return std::unique_ptr<IndexBackend>(std::move(backend));
  }
  explicit RocksBackend(KeyMode mode) : mode_(mode) {}
  Result<std::unique_ptr<IndexClient>> Connect() override {
    return MakeKeyByKey([this](const IndexLoad::Question& question, size_t at) {
      const auto value = store_->Get(Key(mode_, question.ids[at], question.keys[at]));
      return value.ok() && value->has_value();
    });
  }

 private:
  // 'b': blocks have a family of their own in the product's store, too.
  static std::string Key(KeyMode mode, uint64_t id, const BlockKey& key) {
    std::string text = "b";
    if (mode == KeyMode::kSha256) {
      text.append(reinterpret_cast<const char*>(key.bytes.data()), key.bytes.size());
    } else {
      for (int shift = 56; shift >= 0; shift -= 8) text.push_back(static_cast<char>(id >> shift));
    }
    return text;
  }

  const KeyMode mode_;
  const TemporaryDirectory directory_;  // before the store, which is in it
  std::unique_ptr<meta::MetaStore> store_;
};

template <typename Backend, typename... Args>
Result<std::unique_ptr<IndexBackend>> Made(Args&&... args) {
  return std::unique_ptr<IndexBackend>(std::make_unique<Backend>(std::forward<Args>(args)...));
}

}  // namespace

std::vector<BackendKind> LocalBackends() {
  const std::vector<KeyMode> both = {KeyMode::kInt, KeyMode::kSha256};
  return {
      {"kvcfs", "inproc", "cold", both,
       [](const IndexLoad& load, KeyMode) { return Made<ChainBackend>(load); }},
      {"hash-table", "inproc", "cold", both,
       [](const IndexLoad& load, KeyMode mode) {
         return mode == KeyMode::kInt ? Made<HashBackend<ByInt>>(load)
                                      : Made<HashBackend<BySha256>>(load);
       }},
      {"radix-tree", "inproc", "cold", both,
       [](const IndexLoad& load, KeyMode mode) { return Made<RadixBackend>(load, mode); }},
      {"rocksdb", "inproc", "cold", both,
       [](const IndexLoad& load, KeyMode mode) { return RocksBackend::Make(load, mode); }},
  };
}

}  // namespace kvcfs::bench
