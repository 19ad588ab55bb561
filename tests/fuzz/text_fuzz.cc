// What people and programs write as text: settings, sizes, traces, metrics, answers of `match`.
//
// Input: which kind of thing, then the text.
#include <array>
#include <cmath>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/config.h"
#include "base/size.h"
#include "tests/fuzz/fuzz_target.h"
#include "tools/client.h"
#include "tools/metrics_text.h"
#include "tools/trace.h"

namespace kvcfs {
namespace {

enum Kind : uint8_t { kSize, kSettings, kAssignment, kTrace, kMetrics, kAnswer, kKinds };

struct Settings {
  bool on = false;
  int64_t count = 3;
  double share = 0.5;
  std::string name = "n1";
  uint64_t bytes = uint64_t{1} << 20;
  SizeOrShare memory{.bytes = 4096};
  std::chrono::milliseconds wait{50};
  int way = 1;

  // The schema points into *this.
  ConfigSchema Schema() {
    ConfigSchema schema;
    schema.Section("a", "words");
    schema.Bool("on", &on, "a switch");
    schema.Int("count", &count, "a number", {.min = -5, .max = 1000});
    schema.Double("share", &share, "a share");
    schema.String("name", &name, "a name");
    schema.Section("b", "more words");
    schema.Size("bytes", &bytes, "a size", {.min = 4096, .max = uint64_t{1} << 40});
    schema.SizeOrShareOf("memory", &memory, "a size or a share");
    schema.Duration("wait", &wait, "a time");
    schema.Enum("way", &way, "a choice", {{"one", 1}, {"two", 2}});
    return schema;
  }
  void Check() const {
    KVC_CHECK(count >= -5 && count <= 1000);
    KVC_CHECK(share >= 0 && share <= 1);
    KVC_CHECK(bytes >= 4096 && bytes <= uint64_t{1} << 40);
    KVC_CHECK(memory.share >= 0 && memory.share <= 1);
    KVC_CHECK(wait.count() >= 0 && wait <= std::chrono::hours(24));
    KVC_CHECK(way == 1 || way == 2);
  }
};

constexpr size_t kKeys = 3;
std::array<BlockKey, kKeys> Keys() {
  std::array<BlockKey, kKeys> keys;
  for (size_t i = 0; i < kKeys; ++i) keys[i].bytes.fill(static_cast<uint8_t>(i + 1));
  return keys;
}

void CheckSizes(std::string_view text) {
  if (const auto size = ParseSize(text); size.ok()) {
    const auto again = ParseSize(FormatSize(*size));
    KVC_CHECK(again.ok() && *again == *size);
  }
  if (const auto size = ParseSizeOrShare(text); size.ok()) {
    KVC_CHECK(size->share >= 0 && size->share <= 1 && !std::isnan(size->share));
    KVC_CHECK(size->Of(1 << 20) <= std::max<uint64_t>(size->bytes, 1 << 20));
  }
  if (const auto time = ParseDuration(text); time.ok()) {
    const auto again = ParseDuration(FormatDuration(*time));
    KVC_CHECK(again.ok() && *again == *time);
  }
}

void CheckSettings(std::string_view text) {
  Settings settings;
  ConfigSchema schema = settings.Schema();
  const bool taken = schema.LoadText(text, "fuzz.toml").ok();
  settings.Check();
  if (!taken) return;
  Settings other;
  ConfigSchema again = other.Schema();
  KVC_CHECK(again.LoadText(schema.Dump(), "dump.toml").ok());
  KVC_CHECK(again.Dump() == schema.Dump());
}

void CheckTrace(std::string_view text) {
  const auto trace = tools::ParseTrace(text, "fuzz.jsonl");
  if (!trace.ok()) return;
  std::string once;
  for (const auto& request : trace->requests) once += tools::FormatTraceRequest(request) + "\n";
  const auto again = tools::ParseTrace(once, "again.jsonl");
  KVC_CHECK(trace->requests.empty() || again.ok());
  if (!again.ok()) return;
  KVC_CHECK(again->requests.size() == trace->requests.size());
  for (size_t i = 0; i < trace->requests.size(); ++i) {
    KVC_CHECK(again->requests[i].hash_ids == trace->requests[i].hash_ids);
    KVC_CHECK(again->requests[i].timestamp_ms == trace->requests[i].timestamp_ms);
  }
}

}  // namespace

std::vector<std::string> FuzzSeeds() {
  std::vector<std::string> seeds;
  const auto add = [&](Kind kind, std::string_view text) {
    seeds.push_back(std::string(1, static_cast<char>(kind)).append(text));
  };
  for (const char* size : {"8GiB", "25%", "0.5%", "50ms", "1h", "0", "1.5MiB", "16EiB"}) {
    add(kSize, size);
  }
  Settings settings;
  add(kSettings, settings.Schema().Dump());
  add(kSettings, "[a]\non = true\nshare = 0.25\n[b]\nbytes = \"1MiB\"\nway = \"two\"\n");
  for (const char* set : {"a.count=7", "a.share=0.1", "b.memory=10%", "b.wait=1s"}) {
    add(kAssignment, set);
  }
  add(kTrace, R"({"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [0, 1]})"
              "\n"
              R"({"timestamp": 3000, "input_length": 512, "output_length": 5, "hash_ids": [0]})"
              "\n");
  add(kMetrics,
      "# HELP a b\n# TYPE a counter\na_total{x=\"y\"} 3\n"
      "h_bucket{le=\"0.5\"} 2\nh_bucket{le=\"+Inf\"} 3\nh_sum 1.5\nh_count 3\n");
  const auto keys = Keys();
  add(kAnswer, "2 30000\n0 " + keys[0].ToHex() + " dram 4096\n1 " + keys[1].ToHex() + " nvme 7\n");
  add(kAnswer, "0 0\n");
  return seeds;
}

void FuzzOne(std::span<const std::byte> input) {
  if (input.empty()) return;
  const std::string_view text(reinterpret_cast<const char*>(input.data()) + 1, input.size() - 1);
  switch (static_cast<uint8_t>(input[0]) % kKinds) {
    case kSize:
      return CheckSizes(text);
    case kSettings:
      return CheckSettings(text);
    case kAssignment: {
      Settings settings;
      (void)settings.Schema().Set(text);
      return settings.Check();
    }
    case kTrace:
      return CheckTrace(text);
    case kMetrics:
      for (const auto& [name, histogram] : tools::ParseMetrics(text).histograms) {
        (void)histogram.Quantile(0.99);
      }
      return;
    default: {
      const auto keys = Keys();
      const auto answer = tools::ParseMatchAnswer(text, keys);
      KVC_CHECK(!answer.ok() || answer->blocks.size() <= keys.size());
    }
  }
}

}  // namespace kvcfs
