// Sizes as people write them: "64KiB", "2MiB", "8GiB" (K, M, G, T alone mean the same).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.h"

namespace kvcfs {

// kInvalid with the text and what would be right.
Result<uint64_t> ParseSize(std::string_view text);

// The largest unit that divides it exactly, so that ParseSize(FormatSize(n)) == n.
std::string FormatSize(uint64_t bytes);

// For people: one decimal, "1.5 GiB".
std::string FormatSizeShort(uint64_t bytes);

}  // namespace kvcfs
