// A namespace of a real mount as a replay plays it: plain file calls.
#pragma once

#include <memory>
#include <string>

#include "tools/replay.h"

namespace kvcfs::tools {

// Makes the namespace if it is not there, for blocks of `block_bytes`; 0: whatever it has.
// Returns the length of blocks to use. kBusy: it holds blocks and its limit is lower.
Result<uint64_t> PrepareNamespace(const std::string& path, uint64_t block_bytes);

Result<std::unique_ptr<ReplayTarget>> OpenReplayTarget(const std::string& path);

}  // namespace kvcfs::tools
