#include "bench/prefix_cache.h"

#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "tools/random.h"
#include "tools/synth.h"

namespace kvcfs::bench {
namespace {

tools::Trace Synth(uint64_t seed, uint64_t requests) {
  tools::SynthOptions options;
  options.seed = seed;
  options.requests = requests;
  tools::Trace trace;
  EXPECT_TRUE(tools::SynthesizeTrace(options, [&](const tools::TraceRequest& request) {
                trace.requests.push_back(request);
              }).ok());
  return trace;
}

tools::TraceRequest Request(std::vector<uint64_t> ids) {
  tools::TraceRequest request;
  request.hash_ids = std::move(ids);
  return request;
}

// `chains` of `length` blocks, one after the other, again and again.
tools::Trace Loop(uint64_t chains, uint64_t length, uint64_t rounds) {
  tools::Trace trace;
  for (uint64_t i = 0; i < chains * rounds; ++i) {
    std::vector<uint64_t> ids;
    for (uint64_t block = 0; block < length; ++block) ids.push_back(i % chains * length + block);
    trace.requests.push_back(Request(ids));
  }
  return trace;
}

// Half of the requests are of a few chains, half never come again.
tools::Trace Scan(uint64_t requests) {
  tools::Random random(5);
  tools::Trace trace;
  uint64_t next = 1000;
  for (uint64_t i = 0; i < requests; ++i) {
    std::vector<uint64_t> ids;
    const uint64_t first = random.Chance(0.5) ? 10 * random.Below(60) : next;
    for (uint64_t block = 0; block < 10; ++block) ids.push_back(first + block);
    if (first == next) next += 10;
    trace.requests.push_back(Request(ids));
  }
  return trace;
}

// Says, after each removal, whether a block went that was extended.
class Watched : public CachePolicy {
 public:
  Watched(const std::string& name, const TraceTree& tree, const PrefixCache& cache)
      : tree_(tree), cache_(cache), policy_(MakePolicy(name, tree, cache)) {}
  void Used(size_t request, std::span<const Block> path, size_t matched) override {
    policy_->Used(request, path, matched);
  }
  Block Victim() override {
    EXPECT_GT(cache_.size(), cache_.capacity());
    return policy_->Victim();
  }
  void Removed(Block block) override {
    for (const Block child : tree_.children(block)) EXPECT_FALSE(cache_.Holds(child));
    policy_->Removed(block);
    ++removed_;
  }
  void BecameLeaf(Block block) override {
    EXPECT_TRUE(cache_.IsLeaf(block));
    policy_->BecameLeaf(block);
  }
  void NoLeaf(Block block) override { policy_->NoLeaf(block); }

  uint64_t removed() const { return removed_; }

 private:
  const TraceTree& tree_;
  const PrefixCache& cache_;
  const std::unique_ptr<CachePolicy> policy_;
  uint64_t removed_ = 0;
};

TEST(PrefixCache, ByHand) {
  tools::Trace trace;
  for (const auto& ids : std::vector<std::vector<uint64_t>>{
           {1, 2, 3}, {1, 4}, {1, 2, 3}, {5, 6}, {1, 4}, {1, 2, 3}}) {
    trace.requests.push_back(Request(ids));
  }
  const TraceTree tree(trace);
  ASSERT_EQ(tree.block_count(), 6u);
  EXPECT_EQ(tree.use_count(), 15u);
  // All fits: all but the first use of each block.
  EXPECT_DOUBLE_EQ(SimulatePolicy("leaf-lru", tree, 6), 9.0 / 15);
  // Four fit. For 5 and 6 go 4 and 3, which were used before them; for 4 goes 2. Hits 0 1 3 0 1 1.
  EXPECT_DOUBLE_EQ(SimulatePolicy("leaf-lru", tree, 4), 6.0 / 15);
  // 5 and 6 never come again and are not kept.
  EXPECT_DOUBLE_EQ(SimulatePolicy("belady", tree, 4), 9.0 / 15);
  EXPECT_LT(SimulatePolicy("no such policy", tree, 4), 0);
}

TEST(PrefixCache, IsPrefixClosedAndBeladyIsTheBound) {
  const TraceTree tree(Synth(3, 1500));
  for (const uint64_t capacity : {50u, 700u, 3000u}) {
    const double bound = SimulatePolicy("belady", tree, capacity);
    for (const char* name : PolicyNames()) {
      PrefixCache cache(tree, capacity);
      Watched policy(name, tree, cache);
      const double rate = cache.HitRate(policy);
      EXPECT_GT(policy.removed(), 0u) << name;
      EXPECT_LE(cache.size(), capacity);
      EXPECT_LE(rate, bound) << name << " of " << capacity;
      EXPECT_GE(rate, 0) << name;
      EXPECT_DOUBLE_EQ(rate, SimulatePolicy(name, tree, capacity)) << "the same again";
    }
  }
}

TEST(PrefixCache, ALoopThatDoesNotFitDefeatsLruAndNotOurs) {
  const TraceTree tree(Loop(150, 10, 40));
  EXPECT_EQ(SimulatePolicy("leaf-lru", tree, 1000), 0);
  EXPECT_GT(SimulatePolicy("kvcfs", tree, 1000), 0.4);
}

TEST(PrefixCache, OursIsNotBelowLeafFirstLru) {
  const std::vector<std::pair<std::string, tools::Trace>> traces = {
      {"synth 1", Synth(1, 4000)},
      {"synth 2", Synth(2, 4000)},
      {"loop that fits", Loop(90, 10, 40)},
      {"scan", Scan(8000)},
  };
  for (const auto& [name, trace] : traces) {
    const TraceTree tree(trace);
    for (const uint64_t capacity : {300u, 1000u, 3000u}) {
      // 0.001: what chance does where nothing can be learned.
      EXPECT_GE(SimulatePolicy("kvcfs", tree, capacity),
                SimulatePolicy("leaf-lru", tree, capacity) - 0.001)
          << name << " of " << capacity;
    }
  }
  // What never comes again goes first.
  const TraceTree scan(Scan(8000));
  EXPECT_GT(SimulatePolicy("kvcfs", scan, 300), SimulatePolicy("leaf-lru", scan, 300) + 0.05);
}

}  // namespace
}  // namespace kvcfs::bench
