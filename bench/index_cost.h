// What the chain index costs in process: index_bench without a verb, and rows of run.sh.
#pragma once

#include <string>

namespace kvcfs::bench {

// The exit code: 1 if a goal was missed.
int RunIndexCost(bool large, const std::string& trace, bool json);

}  // namespace kvcfs::bench
