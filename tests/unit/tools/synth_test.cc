#include "tools/synth.h"

#include <map>
#include <set>

#include <gtest/gtest.h>

namespace kvcfs::tools {
namespace {

Trace Make(const SynthOptions& options) {
  Trace trace;
  const Status status = SynthesizeTrace(
      options, [&](const TraceRequest& request) { trace.requests.push_back(request); });
  EXPECT_TRUE(status.ok());
  return trace;
}

std::string Text(const Trace& trace) {
  std::string text;
  for (const TraceRequest& request : trace.requests) text += FormatTraceRequest(request) + "\n";
  return text;
}

TEST(Synth, TheSameSeedMakesTheSameTrace) {
  const std::string first = Text(Make({.requests = 500, .seed = 7}));
  EXPECT_EQ(first, Text(Make({.requests = 500, .seed = 7})));
  EXPECT_NE(first, Text(Make({.requests = 500, .seed = 8})));
  // A shorter trace is the beginning of a longer one.
  EXPECT_TRUE(first.starts_with(Text(Make({.requests = 100, .seed = 7}))));
}

TEST(Synth, NoBlockHasTwoParents) {
  for (const uint64_t seed : {1, 2, 3}) {
    const Trace trace = Make({.requests = 3000, .seed = seed});
    ASSERT_EQ(trace.requests.size(), 3000u);
    std::map<uint64_t, uint64_t> parents;
    for (const TraceRequest& request : trace.requests) {
      uint64_t parent = UINT64_MAX;
      std::set<uint64_t> seen;
      for (const uint64_t id : request.hash_ids) {
        EXPECT_EQ(parents.try_emplace(id, parent).first->second, parent) << "id " << id;
        EXPECT_TRUE(seen.insert(id).second) << "a chain that meets itself, id " << id;
        parent = id;
      }
    }
    EXPECT_EQ(ExamineTrace(trace).two_parents, 0u);
  }
}

TEST(Synth, NearTheConversationTrace) {
  // Beside each bound: the published trace's figure.
  const TraceFacts facts = ExamineTrace(Make({.requests = 12'000, .seed = 1}));
  const double reuse = static_cast<double>(facts.reused_blocks) / static_cast<double>(facts.blocks);
  EXPECT_NEAR(reuse, 0.366, 0.06);
  EXPECT_NEAR(facts.children_share[1], 0.914, 0.03);
  EXPECT_NEAR(facts.children_share[0], 0.065, 0.02);
  EXPECT_NEAR(static_cast<double>(facts.input_p50), 6909, 1000);
  EXPECT_NEAR(static_cast<double>(facts.input_p90), 27'367, 5000);
  EXPECT_NEAR(static_cast<double>(facts.output_p50), 350, 50);
  EXPECT_NEAR(static_cast<double>(facts.match_p90), 25, 10);
  EXPECT_NEAR(facts.seconds, 3537, 200);
  EXPECT_EQ(facts.first_blocks, 1u);
}

TEST(Synth, LengthsAndTimesFit) {
  const Trace trace = Make({.requests = 2000, .seed = 5});
  uint64_t before_ms = 0;
  for (const TraceRequest& request : trace.requests) {
    EXPECT_EQ(request.hash_ids.size(), (request.input_length + 511) / 512);
    EXPECT_GE(request.timestamp_ms, before_ms);
    EXPECT_EQ(request.timestamp_ms % 3000, 0u) << "real traces have a grid of 3 s";
    before_ms = request.timestamp_ms;
  }
}

TEST(Synth, RefusesNonsense) {
  const auto ignore = [](const TraceRequest&) {};
  for (const SynthOptions& options :
       {SynthOptions{.requests = 0}, SynthOptions{.sessions = 0}, SynthOptions{.block_tokens = 0},
        SynthOptions{.agent_share = 1.5}, SynthOptions{.requests_per_second = 0}}) {
    EXPECT_EQ(SynthesizeTrace(options, ignore).code(), Code::kInvalid);
  }
}

}  // namespace
}  // namespace kvcfs::tools
