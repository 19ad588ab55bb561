// A small file read whole: settings, stats.json and the like.
#pragma once

#include <string>

#include "base/result.h"

namespace kvcfs {

// Reads to the end whatever st_size says (virtual files have none). kTooLarge above 1 GiB.
Result<std::string> ReadFile(const std::string& path);

}  // namespace kvcfs
