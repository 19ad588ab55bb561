// Runs a fuzz target without libFuzzer: its seeds, each cut at every length, then mutations of
// them.
//
// usage: NAME [--runs N] [--seed S]. Prints the seed; the same seed gives the same inputs. Build it
// with a sanitizer (the asan-ubsan preset) to see more than crashes and broken invariants.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "tests/fuzz/fuzz_target.h"

namespace {

std::string Mutate(std::string input, const std::vector<std::string>& seeds,
                   std::mt19937_64& random) {
  const uint64_t changes = 1 + random() % 4;
  for (uint64_t i = 0; i < changes; ++i) {
    const size_t at = input.empty() ? 0 : random() % input.size();
    switch (random() % 6) {
      case 0:
        if (!input.empty()) input[at] = static_cast<char>(input[at] ^ (1 << random() % 8));
        break;
      case 1:
        if (!input.empty()) input[at] = static_cast<char>(random());
        break;
      case 2:
        input.insert(at, std::string(1 + random() % 8, static_cast<char>(random())));
        break;
      case 3:
        if (!input.empty()) input.erase(at, 1 + random() % 16);
        break;
      case 4: {  // a length that is somewhere near a limit
        static constexpr uint32_t kLengths[] = {0, 1, 0x7fffffff, 0x80000000, 0xffffffff, 1u << 20};
        const uint32_t length = kLengths[random() % 6];
        if (input.size() >= 4) std::memcpy(&input[at % (input.size() - 3)], &length, 4);
        break;
      }
      case 5: {  // the end of another seed
        const std::string& other = seeds[random() % seeds.size()];
        input = input.substr(0, at) + other.substr(other.empty() ? 0 : random() % other.size());
        break;
      }
    }
  }
  return input;
}

void Run(const std::string& input) {
  // A copy of exactly this size on the heap, so that the address sanitizer sees one byte too many.
  const std::vector<uint8_t> bytes(input.begin(), input.end());
  kvcfs::FuzzOne(std::as_bytes(std::span(bytes)));
}

}  // namespace

int main(int argc, char** argv) {
  uint64_t runs = 20'000, seed = std::random_device()();
  for (int i = 1; i + 1 < argc; i += 2) {
    if (std::strcmp(argv[i], "--runs") == 0) {
      runs = std::strtoull(argv[i + 1], nullptr, 10);
    } else if (std::strcmp(argv[i], "--seed") == 0) {
      seed = std::strtoull(argv[i + 1], nullptr, 10);
    } else {
      std::fprintf(stderr, "usage: %s [--runs N] [--seed S]\n", argv[0]);
      return 2;
    }
  }
  std::printf("--seed %llu --runs %llu\n", static_cast<unsigned long long>(seed),
              static_cast<unsigned long long>(runs));
  std::fflush(stdout);
  std::mt19937_64 random(seed);
  std::vector<std::string> seeds = kvcfs::FuzzSeeds();
  seeds.emplace_back();
  for (const std::string& whole : seeds) {
    for (size_t length = 0; length <= whole.size(); ++length) Run(whole.substr(0, length));
  }
  for (uint64_t i = 0; i < runs; ++i) {
    Run(Mutate(seeds[random() % seeds.size()], seeds, random));
  }
  return 0;
}
