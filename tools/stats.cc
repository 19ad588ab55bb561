#include "tools/stats.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "base/read_file.h"

namespace kvcfs::tools {

Result<Json> ReadStats(const std::string& mountpoint) {
  const std::string path = mountpoint + "/.kvcfs/stats.json";
  KVC_TRY_ASSIGN(const std::string text, ReadFile(path));
  Json stats = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!stats.is_object()) {
    return Error{Code::kCorrupt, fmt::format("{} is not a JSON object", path)};
  }
  return stats;
}

const Json* FindAt(const Json& stats, const std::string& path) {
  const Json* at = &stats;
  for (size_t begin = 0; begin <= path.size();) {
    const size_t end = std::min(path.find('/', begin), path.size());
    if (!at->is_object()) return nullptr;
    const auto child = at->find(path.substr(begin, end - begin));
    if (child == at->end()) return nullptr;
    at = &*child;
    begin = end + 1;
  }
  return at;
}

std::optional<double> NumberAt(const Json& stats, const std::string& path) {
  const Json* at = FindAt(stats, path);
  if (at == nullptr || !at->is_number()) return std::nullopt;
  return at->get<double>();
}

std::optional<std::string> TextAt(const Json& stats, const std::string& path) {
  const Json* at = FindAt(stats, path);
  if (at == nullptr || !at->is_string()) return std::nullopt;
  return at->get<std::string>();
}

std::string FormatSeconds(double seconds) {
  const auto whole = static_cast<uint64_t>(std::max(0.0, seconds));
  if (whole < 60) return fmt::format("{} s", whole);
  if (whole < 3600) return fmt::format("{} min {} s", whole / 60, whole % 60);
  if (whole < 86400) return fmt::format("{} h {} min", whole / 3600, whole / 60 % 60);
  return fmt::format("{} d {} h", whole / 86400, whole / 3600 % 24);
}

std::string FormatMode(const Json& stats) {
  const Json* on = FindAt(stats, "mode/passthrough");
  if (on == nullptr || !on->is_boolean()) return "unknown";
  const std::string reason = TextAt(stats, "mode/reason").value_or("");
  const std::string text = on->get<bool>() ? "on" : "off";
  return reason.empty() ? text : fmt::format("{} ({})", text, reason);
}

std::string FormatBar(double share, size_t width) {
  const double bounded = std::clamp(share, 0.0, 1.0);
  const auto full = static_cast<size_t>(std::lround(bounded * static_cast<double>(width)));
  return "[" + std::string(full, '#') + std::string(width - full, '-') + "]";
}

}  // namespace kvcfs::tools
