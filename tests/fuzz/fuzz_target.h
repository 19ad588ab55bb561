// A parser, fed with anything. Linked with fuzz_main.cc by the tests, with libFuzzer by
// libfuzzer.sh.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

// Never crashes, never reads beyond `size`, and aborts where an invariant does not hold.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace kvcfs {

// Inputs that are right, to begin with.
std::vector<std::string> FuzzSeeds();

}  // namespace kvcfs
