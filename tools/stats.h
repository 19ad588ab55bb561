// MNT/.kvcfs/stats.json as its readers want it: whatever is missing reads as nothing.
//
// The schema stands in tools/README.md. A newer daemon may say more, an older one less; none of
// that stops a reader.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include <nlohmann/json.hpp>

#include "base/result.h"

namespace kvcfs::tools {

using Json = nlohmann::ordered_json;

// kCorrupt: not a JSON object.
Result<Json> ReadStats(const std::string& mountpoint);

// What stands at "tiers/dram/used_bytes", if it is of that type.
std::optional<double> NumberAt(const Json& stats, const std::string& path);
std::optional<std::string> TextAt(const Json& stats, const std::string& path);
// Null if it is not there.
const Json* FindAt(const Json& stats, const std::string& path);

inline uint64_t CountAt(const Json& stats, const std::string& path) {
  return static_cast<uint64_t>(NumberAt(stats, path).value_or(0));
}

// "3 min 12 s".
std::string FormatSeconds(double seconds);
// "on" or "off (why)"; "unknown".
std::string FormatMode(const Json& stats);
// "[######--------]".
std::string FormatBar(double share, size_t width);

}  // namespace kvcfs::tools
