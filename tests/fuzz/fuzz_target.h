// A parser, fed with anything. Linked with fuzz_main.cc by the tests, with libFuzzer by
// libfuzzer.sh.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace kvcfs {

// Never crashes, never reads beyond `bytes`, and aborts where an invariant does not hold.
void FuzzOne(std::span<const std::byte> bytes);
// Inputs that are right, to begin with.
std::vector<std::string> FuzzSeeds();

}  // namespace kvcfs
