// Under rdma/cost_model.h, counted and not timed: our protocol as calls (run by its own cores), our
// index by one-sided reads, and the honest close competitors: a flat hash table read by n parallel
// READs, and one call that carries all keys to one server.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/result.h"
#include "bench/core_cluster.h"
#include "bench/index_backend.h"
#include "meta/chain_index.h"
#include "meta/index_memory.h"
#include "meta/remote_prober.h"
#include "rdma/cost_model.h"
#include "rdma/wire.h"

namespace kvcfs::bench {
namespace {

constexpr meta::NamespaceId kSpace = 1;

void Take(const rdma::CostMeter& meter, QuestionCost* cost) {
  cost->round_trips += meter.depth();
  cost->bytes += meter.bytes();
  cost->model_us += meter.micros();
}

// ---- ours, by calls

class CallClient final : public IndexClient {
 public:
  CallClient(CoreCluster* cluster, bool warm)
      : cluster_(cluster), number_(cluster->AddClient()), warm_(warm) {}
  Result<size_t> Match(const IndexLoad::Question& question, QuestionCost* cost) override {
    const CoreCluster::Answer answer = cluster_->Match(number_, question.keys, warm_);
    cost->round_trips += static_cast<uint64_t>(std::lround(answer.depth));
    cost->bytes += answer.bytes;
    // A cache that has it all costs no round trip, but some work.
    cost->model_us += std::max(answer.model_us, 0.05);
    return answer.count;
  }

 private:
  CoreCluster* const cluster_;
  const size_t number_;
  const bool warm_;
};

class CallBackend final : public IndexBackend {
 public:
  CallBackend(const IndexLoad& load, bool warm)
      : cluster_(kModelServers, FactsOf(load)), warm_(warm) {}
  Result<std::unique_ptr<IndexClient>> Connect() override {
    return std::unique_ptr<IndexClient>(std::make_unique<CallClient>(&cluster_, warm_));
  }

 private:
  CoreCluster cluster_;
  const bool warm_;
};

// ---- ours, by one-sided reads: every read waits for the one before, but for the two buckets of a
// key, which the prober asks for one after the other and which could be asked for together; they
// are counted as one phase.

class OneSidedClient final : public IndexClient {
 public:
  explicit OneSidedClient(const meta::ChainIndex& index)
      : index_(index), prober_([this](uint64_t address, std::span<uint64_t> words) {
          return Read(address, words);
        }) {}
  Result<size_t> Match(const IndexLoad::Question& question, QuestionCost* cost) override {
    meter_ = rdma::CostMeter();
    last_was_bucket_ = false;
    refs_.resize(question.keys.size());
    const uint64_t before = prober_.read_count();
    KVC_TRY_ASSIGN(const size_t count, prober_.Match(kSpace, question.keys, refs_.data()));
    cost->reads += prober_.read_count() - before;
    Take(meter_, cost);
    return count;
  }
  Result<size_t> Get(const IndexLoad::Question& prefix, QuestionCost* cost) override {
    meter_ = rdma::CostMeter();
    const uint64_t before = prober_.read_count();
    KVC_TRY_ASSIGN(const auto found, prober_.Find(kSpace, prefix.keys.back()));
    cost->reads += prober_.read_count() - before;
    Take(meter_, cost);
    return size_t{found ? 1u : 0u};
  }

 private:
  bool Read(uint64_t address, std::span<uint64_t> words) {
    const bool is_bucket = words.size() == meta::layout::kBucketWords;
    if (is_bucket && last_was_bucket_) {
      meter_.Completed(phase_, words.size_bytes());
      last_was_bucket_ = false;
    } else {
      phase_ = meter_.Issued(0);
      meter_.Completed(phase_, words.size_bytes());
      last_was_bucket_ = is_bucket;
    }
    return index_.memory().Read(address, words);
  }

  const meta::ChainIndex& index_;
  meta::RemoteProber prober_;
  rdma::CostMeter meter_;
  uint32_t phase_ = 0;
  bool last_was_bucket_ = false;
  std::vector<meta::BlockRef> refs_;
};

class OneSidedBackend final : public IndexBackend {
 public:
  explicit OneSidedBackend(const IndexLoad& load) {
    for (const Block block : load.blocks()) {
      meta::BlockState state;
      state.length = 160u << 10;
      const Block parent = load.tree().parent(block);
      KVC_CHECK(index_
                    .Insert(kSpace, load.key(block),
                            parent == kNoBlock ? BlockKey{} : load.key(parent), state)
                    .ok());
    }
  }
  Result<std::unique_ptr<IndexClient>> Connect() override {
    return std::unique_ptr<IndexClient>(std::make_unique<OneSidedClient>(index_));
  }

 private:
  meta::ChainIndex index_;
};

// ---- a flat hash table: the place of a key can be computed, so all keys of a question are read at
// once, a bucket of 64 B each (four slots of 8 B tag and 8 B address, filled to three quarters;
// what overflows has a second bucket, which one key in ten needs).

class FlatHashClient final : public IndexClient {
 public:
  Result<size_t> Match(const IndexLoad::Question& question, QuestionCost* cost) override {
    Charge(question, 0, cost);
    return question.cached;
  }
  Result<size_t> Range(const IndexLoad::Question& prefix, size_t first,
                       QuestionCost* cost) override {
    Charge(prefix, first, cost);
    return prefix.cached > first ? prefix.cached - first : 0;
  }
  Result<size_t> Get(const IndexLoad::Question& prefix, QuestionCost* cost) override {
    Charge(prefix, prefix.keys.size() - 1, cost);
    return size_t{prefix.cached == prefix.keys.size() ? 1u : 0u};
  }

 private:
  static void Charge(const IndexLoad::Question& question, size_t first, QuestionCost* cost) {
    rdma::CostMeter meter(kModelServers);
    size_t second = 0;
    uint32_t phase = 0;
    for (size_t at = first; at < question.keys.size(); ++at) {
      phase = meter.Issued(kBucketBytes);
      ++cost->reads;
      if (question.keys[at].Word(3) % 10 == 0 && at < question.cached) ++second;
    }
    if (first < question.keys.size()) meter.Completed(phase, 0);
    for (size_t i = 0; i < second; ++i) {
      meter.Issued(kBucketBytes);
      ++cost->reads;
    }
    Take(meter, cost);
  }
  static constexpr uint64_t kBucketBytes = 64;
};

class FlatHashBackend final : public IndexBackend {
 public:
  Result<std::unique_ptr<IndexClient>> Connect() override {
    return std::unique_ptr<IndexClient>(std::make_unique<FlatHashClient>());
  }
  double bytes_per_block() const override { return 64.0 / 4 / 0.75; }
};

// ---- one call with all keys to one server that has them all: no placement, no balance, no copies.

class BatchCallClient final : public IndexClient {
 public:
  explicit BatchCallClient(size_t key_bytes) : key_bytes_(key_bytes) {}
  Result<size_t> Match(const IndexLoad::Question& question, QuestionCost* cost) override {
    Charge(question.keys.size(), question.cached, cost);
    return question.cached;
  }
  Result<size_t> Range(const IndexLoad::Question& prefix, size_t first,
                       QuestionCost* cost) override {
    const size_t found = prefix.cached > first ? prefix.cached - first : 0;
    Charge(prefix.keys.size() - first, found, cost);
    return found;
  }
  Result<size_t> Get(const IndexLoad::Question& prefix, QuestionCost* cost) override {
    const size_t found = prefix.cached == prefix.keys.size() ? 1 : 0;
    Charge(1, found, cost);
    return found;
  }

 private:
  void Charge(size_t keys, size_t found, QuestionCost* cost) const {
    rdma::CostMeter meter;
    const uint32_t phase = meter.Issued(rdma::kHeaderBytes + 16 + keys * key_bytes_);
    meter.Completed(phase, rdma::kHeaderBytes + 16 + found * 8);
    Take(meter, cost);
  }
  const size_t key_bytes_;
};

class BatchCallBackend final : public IndexBackend {
 public:
  explicit BatchCallBackend(KeyMode mode) : mode_(mode) {}
  Result<std::unique_ptr<IndexClient>> Connect() override {
    return std::unique_ptr<IndexClient>(
        std::make_unique<BatchCallClient>(mode_ == KeyMode::kInt ? 8 : 32));
  }

 private:
  const KeyMode mode_;
};

template <typename Backend, typename... Args>
Result<std::unique_ptr<IndexBackend>> Made(Args&&... args) {
  return std::unique_ptr<IndexBackend>(std::make_unique<Backend>(std::forward<Args>(args)...));
}

}  // namespace

std::vector<BackendKind> ModelBackends() {
  const std::vector<KeyMode> both = {KeyMode::kInt, KeyMode::kSha256};
  return {
      {"kvcfs", "model", "cold", both,
       [](const IndexLoad& load, KeyMode) { return Made<CallBackend>(load, false); }},
      {"kvcfs", "model", "warm", both,
       [](const IndexLoad& load, KeyMode) { return Made<CallBackend>(load, true); }},
      {"kvcfs-one-sided", "model", "cold", both,
       [](const IndexLoad& load, KeyMode) { return Made<OneSidedBackend>(load); }},
      {"flat-hash", "model", "cold", both,
       [](const IndexLoad&, KeyMode) { return Made<FlatHashBackend>(); }},
      {"batch-rpc", "model", "cold", both,
       [](const IndexLoad&, KeyMode mode) { return Made<BatchCallBackend>(mode); }},
  };
}

}  // namespace kvcfs::bench
