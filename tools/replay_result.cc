// What a replay found, as text and as JSON.
#include <algorithm>
#include <cmath>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/size.h"
#include "tools/replay.h"

namespace kvcfs::tools {
namespace {

// Digits that mean nothing only make a result hard to read.
double Rounded(double value, int decimals) {
  const double factor = std::pow(10, decimals);
  return std::round(value * factor) / factor;
}

nlohmann::ordered_json LatencyJson(const std::vector<uint64_t>& nanos) {
  return {{"p50", Rounded(QuantileMicros(nanos, 0.5), 1)},
          {"p99", Rounded(QuantileMicros(nanos, 0.99), 1)},
          {"p999", Rounded(QuantileMicros(nanos, 0.999), 1)}};
}

std::string LatencyText(const char* name, const std::vector<uint64_t>& nanos) {
  return fmt::format("{:<12} {:>10.1f} {:>10.1f} {:>10.1f} {:>10}\n", name,
                     QuantileMicros(nanos, 0.5), QuantileMicros(nanos, 0.99),
                     QuantileMicros(nanos, 0.999), nanos.size());
}

}  // namespace

double QuantileMicros(const std::vector<uint64_t>& sorted_nanos, double share) {
  if (sorted_nanos.empty()) return 0;
  const auto at = static_cast<size_t>(share * static_cast<double>(sorted_nanos.size()));
  return static_cast<double>(sorted_nanos[std::min(at, sorted_nanos.size() - 1)]) / 1000;
}

double ReplayResult::HitRate() const {
  const uint64_t blocks = blocks_hit + blocks_missed;
  return blocks == 0 ? 0 : static_cast<double>(blocks_hit) / static_cast<double>(blocks);
}

double ReplayResult::ReadGigabytesPerSecond() const {
  if (!(read_seconds > 0)) return 0;
  return static_cast<double>(bytes_read) / 1e9 /
         (read_seconds / static_cast<double>(options.concurrency));
}

bool ReplayResult::Right() const {
  return wrong_bytes == 0 && lost_under_lease == 0 && failed_calls.empty() && !interrupted;
}

std::string ReplayJson(const ReplayResult& result) {
  nlohmann::ordered_json object{
      {"requests", result.requests},
      {"blocks_hit", result.blocks_hit},
      {"blocks_missed", result.blocks_missed},
      {"hit_rate", Rounded(result.HitRate(), 6)},
      {"bytes_read", result.bytes_read},
      {"bytes_written", result.bytes_written},
      {"wrong_bytes", result.wrong_bytes},
      {"seconds", Rounded(result.seconds, 6)},
      {"read_gb_s", Rounded(result.ReadGigabytesPerSecond(), 4)},
      {"match_us", LatencyJson(result.match_nanos)},
      {"read_us", LatencyJson(result.read_nanos)},
      {"write_us", LatencyJson(result.write_nanos)},
      {"blocks_written", result.blocks_written},
      {"wrong_blocks", result.wrong_blocks},
      {"lost_under_lease", result.lost_under_lease},
      {"lost_unleased", result.lost_unleased},
      {"lost_races", result.lost_races},
      {"parents_gone", result.parents_gone},
      {"no_space", result.no_space},
      {"failed_calls", nlohmann::ordered_json::object()},
      {"interrupted", result.interrupted},
      {"block_bytes", result.options.block_bytes},
      {"concurrency", result.options.concurrency},
  };
  for (const auto& [call, count] : result.failed_calls) object["failed_calls"][call] = count;
  if (result.options.speed > 0) object["behind_seconds"] = Rounded(result.behind_seconds, 3);
  if (!result.first_failure.empty()) object["first_failure"] = result.first_failure;
  return object.dump(2) + "\n";
}

std::string ReplayText(const ReplayResult& result) {
  std::string text = fmt::format(
      "requests     {} in {:.2f} s{}\n", result.requests, result.seconds,
      result.interrupted ? fmt::format(", of {}: interrupted", result.requests_total) : "");
  text += fmt::format("blocks       {} hit, {} missed: hit rate {:.1f}%\n", result.blocks_hit,
                      result.blocks_missed, 100 * result.HitRate());
  text += fmt::format("read         {}, {:.2f} GB/s while reading\n",
                      FormatSizeShort(result.bytes_read), result.ReadGigabytesPerSecond());
  text += fmt::format("written      {} in {} blocks\n", FormatSizeShort(result.bytes_written),
                      result.blocks_written);
  text +=
      fmt::format("wrong bytes  {}{}\n", result.wrong_bytes,
                  result.wrong_bytes > 0 ? fmt::format(" in {} blocks", result.wrong_blocks) : "");
  const struct {
    const char* text;
    uint64_t count;
  } events[] = {
      {"lost         {} blocks although their lease still held\n", result.lost_under_lease},
      {"evicted      {} blocks between match and read, no lease promised otherwise\n",
       result.lost_unleased},
      {"races lost   {} blocks: another writer was first\n", result.lost_races},
      {"parents gone {} chains ended early: the parent was evicted\n", result.parents_gone},
      {"no space     {} blocks could not be written\n", result.no_space}};
  for (const auto& event : events) {
    if (event.count > 0) text += fmt::format(fmt::runtime(event.text), event.count);
  }
  for (const auto& [call, count] : result.failed_calls) {
    text += fmt::format("failed       {} times: {}\n", count, call);
  }
  if (!result.first_failure.empty()) {
    text += fmt::format("the first    {}\n", result.first_failure);
  }
  if (result.options.speed > 0) {
    text += fmt::format("late         at most {:.2f} s behind the trace\n", result.behind_seconds);
  }
  text += fmt::format("\n{:<12} {:>10} {:>10} {:>10} {:>10}\n", "microseconds", "p50", "p99",
                      "p99.9", "count");
  text += LatencyText("match", result.match_nanos);
  text += LatencyText("open+read", result.read_nanos);
  text += LatencyText("write", result.write_nanos);
  return text;
}

}  // namespace kvcfs::tools
