#include "tools/replay.h"

#include <cerrno>
#include <map>
#include <mutex>
#include <set>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "meta/chain_key.h"
#include "tools/block_bytes.h"
#include "tools/synth.h"

namespace kvcfs::tools {
namespace {

constexpr uint64_t kBlockBytes = 1000;

// A namespace in memory that keeps the contract, but for the faults it is told to have.
struct MemoryNamespace {
  std::mutex mutex;
  std::map<BlockKey, std::vector<std::byte>> blocks;
  uint32_t lease_ms = 30'000;
  // Faults, by how many calls they come at; 0: never.
  int flip_read = 0, lose_read = 0, fail_read = 0, exists_write = 0, no_space_write = 0,
      gone_write = 0, fail_match = 0, long_read = 0, short_read = 0;
  int reads = 0, writes = 0, matches = 0;
};

class MemoryTarget final : public ReplayTarget {
 public:
  explicit MemoryTarget(MemoryNamespace& space) : space_(space) {}

  Result<MatchAnswer> Match(std::span<const BlockKey> keys) override {
    std::lock_guard lock(space_.mutex);
    if (++space_.matches == space_.fail_match) return Error{Code::kIo, "match broke"};
    MatchAnswer answer;
    answer.lease_ms = space_.lease_ms;
    for (const BlockKey& key : keys) {
      const auto at = space_.blocks.find(key);
      if (at == space_.blocks.end()) break;
      answer.blocks.push_back({Tier::kDram, at->second.size()});
    }
    return answer;
  }

  CallOutcome Read(const BlockKey& key, std::span<std::byte> out, uint64_t* length,
                   const std::function<void()>& read_done) override {
    std::lock_guard lock(space_.mutex);
    const int number = ++space_.reads;
    if (number == space_.lose_read) return {ENOENT, "open", 0};
    if (number == space_.fail_read) return {EIO, "read", 0};
    const std::vector<std::byte>& bytes = space_.blocks.at(key);
    std::copy(bytes.begin(), bytes.end(), out.begin());
    if (number == space_.flip_read) out[7] ^= std::byte{0x80};
    read_done();
    *length = bytes.size() + (number == space_.long_read ? 3 : 0);
    return {0, "", bytes.size() - (number == space_.short_read ? 10 : 0)};
  }

  CallOutcome Write(const BlockKey* parent, const BlockKey& key,
                    std::span<const std::byte> bytes) override {
    std::lock_guard lock(space_.mutex);
    const int number = ++space_.writes;
    if (number == space_.exists_write) return {EEXIST, "create", 0};
    if (number == space_.no_space_write) return {ENOSPC, "write", 0};
    if (number == space_.gone_write) return {ENOENT, "create", 0};
    if (parent != nullptr && space_.blocks.count(*parent) == 0) return {ENOENT, "create", 0};
    if (!space_.blocks.try_emplace(key, bytes.begin(), bytes.end()).second) {
      return {EEXIST, "create", 0};
    }
    return {0, "", bytes.size()};
  }

 private:
  MemoryNamespace& space_;
};

struct ReplayTest : testing::Test {
  ReplayResult Play(const Trace& trace, uint64_t concurrency = 1) {
    ReplayHooks hooks;
    hooks.make_target = [this] {
      return Result<std::unique_ptr<ReplayTarget>>(std::make_unique<MemoryTarget>(space));
    };
    hooks.occupancy = [] { return TierOccupancy{1, 2, 3, 4}; };
    hooks.progress = [this](const ReplayPoint& point, uint64_t) { last_progress = point; };
    Result<ReplayResult> result = Replay(
        trace, {.block_bytes = kBlockBytes, .concurrency = concurrency, .seed = seed}, hooks);
    EXPECT_TRUE(result.ok());
    return std::move(*result);
  }
  Trace Synthetic(uint64_t requests) {
    Trace trace;
    EXPECT_TRUE(SynthesizeTrace({.requests = requests}, [&](const TraceRequest& request) {
                  trace.requests.push_back(request);
                }).ok());
    return trace;
  }
  // Two requests: 1 2 3, then 1 2 4.
  const Trace small{{{.hash_ids = {1, 2, 3}}, {.hash_ids = {1, 2, 4}}}};
  MemoryNamespace space;
  ReplayPoint last_progress;
  uint64_t seed = 0;
};

TEST_F(ReplayTest, KeysAndBytesAreThoseOfTheContract) {
  const ReplayResult result = Play(small);
  EXPECT_TRUE(result.Right());
  EXPECT_EQ(result.blocks_hit, 2u);
  EXPECT_EQ(result.blocks_missed, 4u);
  EXPECT_EQ(result.blocks_written, 4u);
  EXPECT_EQ(result.bytes_read, 2 * kBlockBytes);
  EXPECT_EQ(result.bytes_written, 4 * kBlockBytes);
  EXPECT_EQ(result.match_nanos.size(), 2u);
  EXPECT_EQ(result.read_nanos.size(), 2u);
  EXPECT_EQ(result.write_nanos.size(), 4u);
  ASSERT_EQ(space.blocks.size(), 4u);
  const BlockKey first = meta::ChainKey({}, 1);
  EXPECT_EQ(CountWrongBytes(first, space.blocks.at(first)), 0u);
  EXPECT_EQ(space.blocks.count(meta::ChainKey(meta::ChainKey(first, 2), 4)), 1u);
}

TEST_F(ReplayTest, FindsWhatTheTraceReuses) {
  const Trace trace = Synthetic(300);
  const TraceFacts facts = ExamineTrace(trace);
  const ReplayResult first = Play(trace);
  EXPECT_TRUE(first.Right());
  EXPECT_EQ(first.blocks_hit, facts.reused_blocks);
  EXPECT_EQ(first.blocks_written, facts.unique_blocks);
  EXPECT_EQ(last_progress.requests, 300u);
  EXPECT_EQ(last_progress.blocks_hit, first.blocks_hit);
  EXPECT_EQ(first.points.back().tiers.nvme_capacity, 4u);
  // And again, several at a time, in another order, on the warm cache.
  seed = 5;
  const ReplayResult second = Play(trace, 4);
  EXPECT_TRUE(second.Right());
  EXPECT_EQ(second.HitRate(), 1.0);
  EXPECT_EQ(second.blocks_hit, facts.blocks);
}

TEST_F(ReplayTest, ManyWorkersLoseRacesButNothingElse) {
  const Trace trace = Synthetic(300);
  const ReplayResult result = Play(trace, 8);
  EXPECT_TRUE(result.Right());
  EXPECT_EQ(result.requests, 300u);
  EXPECT_EQ(result.blocks_hit + result.blocks_missed, ExamineTrace(trace).blocks);
  EXPECT_EQ(result.blocks_written, ExamineTrace(trace).unique_blocks);
  EXPECT_EQ(result.blocks_written + result.lost_races, result.blocks_missed);
}

TEST_F(ReplayTest, OneWrongBitIsOneWrongByte) {
  space.flip_read = 2;
  const ReplayResult result = Play(small);
  EXPECT_EQ(result.wrong_bytes, 1u);
  EXPECT_EQ(result.wrong_blocks, 1u);
  EXPECT_FALSE(result.Right());
  EXPECT_NE(result.first_failure.find("1 wrong bytes"), std::string::npos) << result.first_failure;
}

TEST_F(ReplayTest, MissingAndExtraBytesAreWrong) {
  space.long_read = 1;
  space.short_read = 2;
  EXPECT_EQ(Play(small).wrong_bytes, 13u);
}

TEST_F(ReplayTest, LostUnderALeaseIsAFailure) {
  space.lose_read = 2;
  const ReplayResult result = Play(small);
  EXPECT_EQ(result.lost_under_lease, 1u);
  EXPECT_FALSE(result.Right());
  // What was lost is missed, with all behind it, and written again.
  EXPECT_EQ(result.blocks_hit, 1u);
  EXPECT_EQ(result.blocks_missed, 5u);
}

TEST_F(ReplayTest, LostWithoutALeaseIsAMiss) {
  space.lose_read = 2;
  space.lease_ms = 0;
  const ReplayResult result = Play(small);
  EXPECT_EQ(result.lost_under_lease, 0u);
  EXPECT_EQ(result.lost_unleased, 1u);
  EXPECT_TRUE(result.Right());
}

TEST_F(ReplayTest, FullTierAndLostRacesAreCountedAndFine) {
  space.exists_write = 1;
  space.no_space_write = 2;
  space.gone_write = 3;
  const ReplayResult result = Play(small);
  EXPECT_EQ(result.lost_races, 1u);
  EXPECT_EQ(result.no_space, 1u);
  EXPECT_EQ(result.parents_gone, 1u);
  EXPECT_TRUE(result.Right());
}

TEST_F(ReplayTest, UnexpectedErrorsAreFailures) {
  space.fail_match = 1;
  space.fail_read = 1;
  const ReplayResult result = Play(small);
  EXPECT_EQ(result.failed_calls,
            (std::map<std::string, uint64_t>{{"match io", 1}, {"read EIO", 1}}));
  EXPECT_EQ(result.first_failure, "match broke");
  EXPECT_FALSE(result.Right());
}

TEST_F(ReplayTest, StopsWhenToldTo) {
  std::atomic<bool> stop{true};
  ReplayHooks hooks;
  hooks.make_target = [this] {
    return Result<std::unique_ptr<ReplayTarget>>(std::make_unique<MemoryTarget>(space));
  };
  hooks.stop = &stop;
  const ReplayResult result = Replay(small, {.block_bytes = kBlockBytes}, hooks).value();
  EXPECT_TRUE(result.interrupted);
  EXPECT_EQ(result.requests, 0u);
  EXPECT_FALSE(result.Right());
}

TEST_F(ReplayTest, JsonHasTheKeysOfTheContract) {
  const nlohmann::json json = nlohmann::json::parse(ReplayJson(Play(small)));
  for (const char* key : {"requests", "blocks_hit", "blocks_missed", "hit_rate", "bytes_read",
                          "bytes_written", "wrong_bytes", "seconds", "read_gb_s"}) {
    EXPECT_TRUE(json.at(key).is_number()) << key;
  }
  for (const char* key : {"match_us", "read_us", "write_us"}) {
    for (const char* quantile : {"p50", "p99", "p999"}) {
      EXPECT_TRUE(json.at(key).at(quantile).is_number()) << key << quantile;
    }
  }
  EXPECT_EQ(json.at("wrong_bytes"), 0);
  EXPECT_NEAR(json.at("hit_rate").get<double>(), 1.0 / 3, 1e-5);
}

TEST_F(ReplayTest, TextSaysWhatWasWrong) {
  space.flip_read = 1;
  const std::string text = ReplayText(Play(small));
  for (const char* part : {"wrong bytes  1 in 1 blocks", "hit rate 33.3%", "open+read", "p99.9"}) {
    EXPECT_NE(text.find(part), std::string::npos) << part << " is not in\n" << text;
  }
}

TEST(Quantiles, OfFewAndMany) {
  EXPECT_EQ(QuantileMicros({}, 0.5), 0);
  EXPECT_EQ(QuantileMicros({7000}, 0.999), 7);
  std::vector<uint64_t> nanos;
  for (uint64_t i = 0; i < 1000; ++i) nanos.push_back(i * 1000);
  EXPECT_EQ(QuantileMicros(nanos, 0.5), 500);
  EXPECT_EQ(QuantileMicros(nanos, 0.99), 990);
  EXPECT_EQ(QuantileMicros(nanos, 1), 999);
}

}  // namespace
}  // namespace kvcfs::tools
