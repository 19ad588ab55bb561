#include "tools/trace.h"

#include <gtest/gtest.h>

#include "tools/synth.h"

namespace kvcfs::tools {
namespace {

std::string ErrorOf(const std::string& text) {
  const Result<Trace> trace = ParseTrace(text, "t.jsonl");
  return trace.ok() ? "accepted" : trace.error().text;
}

TEST(Trace, ReadsMooncakesFormat) {
  const Result<Trace> trace = ParseTrace(
      R"({"timestamp": 0, "input_length": 6758, "output_length": 500, "hash_ids": [0, 1, 2]})"
      "\r\n\n"
      R"({"timestamp": 2999.0, "hash_ids": [0, 18446744073709551615]})",
      "t.jsonl");
  ASSERT_TRUE(trace.ok()) << trace.error().text;
  ASSERT_EQ(trace->requests.size(), 2u);
  EXPECT_EQ(trace->requests[0].input_length, 6758u);
  EXPECT_EQ(trace->requests[0].hash_ids, (std::vector<uint64_t>{0, 1, 2}));
  EXPECT_EQ(trace->requests[1].timestamp_ms, 2999u);
  EXPECT_EQ(trace->requests[1].hash_ids[1], UINT64_MAX);
}

TEST(Trace, LimitStopsBeforeWhatFollowsIsLookedAt) {
  const Result<Trace> trace = ParseTrace("{\"hash_ids\":[1]}\nnot json\n", "t.jsonl", 1);
  ASSERT_TRUE(trace.ok());
  EXPECT_EQ(trace->requests.size(), 1u);
}

TEST(Trace, ErrorsNameTheLine) {
  const std::string good = "{\"hash_ids\":[1]}\n";
  EXPECT_EQ(ErrorOf(good + "\n{\"hash_ids\":[1"), "t.jsonl:3: not JSON");
  EXPECT_EQ(ErrorOf(good + "[1, 2]"), "t.jsonl:2: not a JSON object");
  EXPECT_EQ(ErrorOf(good + "{\"timestamp\": 1}"), "t.jsonl:2: no \"hash_ids\"");
  EXPECT_EQ(ErrorOf("{\"hash_ids\": []}"), "t.jsonl:1: \"hash_ids\" is not a list of block ids");
  EXPECT_EQ(ErrorOf("{\"hash_ids\": 5}"), "t.jsonl:1: \"hash_ids\" is not a list of block ids");
  EXPECT_EQ(ErrorOf("{\"hash_ids\": [1, -2]}"),
            "t.jsonl:1: \"hash_ids\" has -2, not a whole number from 0 on");
  EXPECT_EQ(ErrorOf("{\"hash_ids\": [\"a\"]}"),
            "t.jsonl:1: \"hash_ids\" has \"a\", not a whole number from 0 on");
  EXPECT_EQ(ErrorOf("{\"timestamp\": -1, \"hash_ids\": [1]}"),
            "t.jsonl:1: \"timestamp\" is not a number from 0 on");
  EXPECT_EQ(ErrorOf("\n\n"), "t.jsonl: no requests in it");
  EXPECT_EQ(ReadTrace("/no/such.jsonl").code(), Code::kNotFound);
}

TEST(Trace, FormatParsesBack) {
  const TraceRequest request{
      .timestamp_ms = 3000, .input_length = 513, .output_length = 9, .hash_ids = {0, 77}};
  const std::string line = FormatTraceRequest(request);
  EXPECT_EQ(line,
            R"({"timestamp": 3000, "input_length": 513, "output_length": 9, "hash_ids": [0, 77]})");
  const TraceRequest again = ParseTrace(line, "t").value().requests[0];
  EXPECT_EQ(again.hash_ids, request.hash_ids);
  EXPECT_EQ(again.timestamp_ms, request.timestamp_ms);
}

TEST(Trace, FactsOfASmallTree) {
  //      1 - 2 - 3        request 1
  //          2 - 4        request 2: reuses 1 2
  //      1 - 2 - 3        request 3: reuses all
  //  5 - 3                request 4: id 3 behind another parent
  const Trace trace{{{.timestamp_ms = 1000, .hash_ids = {1, 2, 3}},
                     {.timestamp_ms = 2000, .hash_ids = {1, 2, 4}},
                     {.timestamp_ms = 5000, .hash_ids = {1, 2, 3}},
                     {.timestamp_ms = 5000, .hash_ids = {5, 3}}}};
  const TraceFacts facts = ExamineTrace(trace);
  EXPECT_EQ(facts.requests, 4u);
  EXPECT_EQ(facts.blocks, 11u);
  EXPECT_EQ(facts.unique_blocks, 6u);
  EXPECT_EQ(facts.reused_blocks, 5u);
  EXPECT_EQ(facts.first_blocks, 2u);
  EXPECT_EQ(facts.two_parents, 1u);
  EXPECT_EQ(facts.depth_max, 3u);
  EXPECT_EQ(facts.children_max, 2u);
  EXPECT_DOUBLE_EQ(facts.children_share[0], 3.0 / 6);
  EXPECT_DOUBLE_EQ(facts.children_share[1], 2.0 / 6);
  EXPECT_DOUBLE_EQ(facts.children_share[2], 1.0 / 6);
  EXPECT_EQ(facts.seconds, 4.0);
}

}  // namespace
}  // namespace kvcfs::tools
