#include "base/size.h"

#include <charconv>
#include <limits>

#include <fmt/format.h>

namespace kvcfs {
namespace {

constexpr std::string_view kUnits = "KMGT";

}  // namespace

Result<uint64_t> ParseSize(std::string_view text) {
  const auto bad = [&] {
    return Error{
        Code::kInvalid,
        fmt::format("'{}' is not a size; write a number and a unit, as 64KiB, 2MiB, 8GiB", text)};
  };
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || !(value >= 0)) return bad();
  std::string_view unit = text.substr(static_cast<size_t>(end - text.data()));
  while (!unit.empty() && unit.front() == ' ') unit.remove_prefix(1);
  double factor = 1;
  if (!unit.empty() && unit != "B") {
    const size_t at = kUnits.find(unit.front());
    if (at == std::string_view::npos) return bad();
    const std::string_view rest = unit.substr(1);
    if (!rest.empty() && rest != "iB") return bad();
    factor = static_cast<double>(uint64_t{1} << (10 * (at + 1)));
  }
  const double bytes = value * factor;
  if (!(bytes < static_cast<double>(std::numeric_limits<int64_t>::max()))) return bad();
  return static_cast<uint64_t>(bytes);
}

std::string FormatSize(uint64_t bytes) {
  for (size_t i = kUnits.size(); i > 0; --i) {
    const uint64_t unit = uint64_t{1} << (10 * i);
    if (bytes >= unit && bytes % unit == 0) {
      return fmt::format("{}{}iB", bytes / unit, kUnits[i - 1]);
    }
  }
  return fmt::format("{}", bytes);
}

std::string FormatSizeShort(uint64_t bytes) {
  for (size_t i = kUnits.size(); i > 0; --i) {
    const uint64_t unit = uint64_t{1} << (10 * i);
    if (bytes >= unit) {
      return fmt::format("{:.1f} {}iB", static_cast<double>(bytes) / static_cast<double>(unit),
                         kUnits[i - 1]);
    }
  }
  return fmt::format("{} B", bytes);
}

}  // namespace kvcfs
