#include "tools/block_bytes.h"

#include <algorithm>
#include <cstring>

namespace kvcfs::tools {
namespace {

// Two streams in one 16-byte register: what every x86-64 and arm64 has.
using Pair = uint64_t __attribute__((vector_size(16)));

constexpr size_t kPairBytes = sizeof(Pair);
constexpr size_t kStepBytes = 2 * kPairBytes;
constexpr size_t kChunkBytes = 8192;  // what is checked at a time stays in the first-level cache

template <int kBits>
Pair Rotate(Pair x) {
  return (x << kBits) | (x >> (64 - kBits));
}

// Two streams' step of xoshiro256++.
struct Streams {
  Pair Next() {
    const Pair result = Rotate<23>(s0 + s3) + s0;
    const Pair shifted = s1 << 17;
    s2 ^= s0;
    s3 ^= s1;
    s1 ^= s2;
    s0 ^= s3;
    s2 ^= shifted;
    s3 = Rotate<45>(s3);
    return result;
  }
  Pair s0, s1, s2, s3;
};

class Generator {
 public:
  explicit Generator(const BlockKey& key) : first_(Seed(key, 0)), second_(Seed(key, 2)) {}

  void Fill(std::byte* out, size_t bytes) {
    // Copies, so that the state lives in registers.
    Streams first = first_, second = second_;
    while (bytes >= kStepBytes) {
      const Pair a = first.Next(), b = second.Next();
      std::memcpy(out, &a, kPairBytes);
      std::memcpy(out + kPairBytes, &b, kPairBytes);
      out += kStepBytes;
      bytes -= kStepBytes;
    }
    if (bytes > 0) {
      const Pair rest[2] = {first.Next(), second.Next()};
      std::memcpy(out, rest, bytes);
    }
    first_ = first;
    second_ = second;
  }

 private:
  static uint64_t SeedWord(const BlockKey& key, size_t word, size_t stream) {
    // A key is a hash already; streams get different mixtures of its words.
    uint64_t mixed = key.Word(word) + 0x9e3779b97f4a7c15u * (4 * word + stream + 1);
    mixed = (mixed ^ (mixed >> 30)) * 0xbf58476d1ce4e5b9u;
    mixed ^= key.Word((word + stream) % 4);
    mixed = (mixed ^ (mixed >> 27)) * 0x94d049bb133111ebu;
    return (mixed ^ (mixed >> 31)) | (word == 0 ? 1 : 0);  // a state of zeros would stay so
  }
  static Streams Seed(const BlockKey& key, size_t stream) {
    Pair words[4];
    for (size_t word = 0; word < 4; ++word) {
      words[word] = Pair{SeedWord(key, word, stream), SeedWord(key, word, stream + 1)};
    }
    return {words[0], words[1], words[2], words[3]};
  }

  Streams first_, second_;
};

}  // namespace

void FillBlockBytes(const BlockKey& key, std::span<std::byte> out) {
  Generator(key).Fill(out.data(), out.size());
}

uint64_t CountWrongBytes(const BlockKey& key, std::span<const std::byte> got) {
  Generator generator(key);
  alignas(64) std::byte want[kChunkBytes];
  uint64_t wrong = 0;
  while (!got.empty()) {
    const size_t bytes = std::min(got.size(), kChunkBytes);
    generator.Fill(want, bytes);
    if (std::memcmp(want, got.data(), bytes) != 0) {
      for (size_t i = 0; i < bytes; ++i) wrong += want[i] != got[i] ? 1 : 0;
    }
    got = got.subspan(bytes);
  }
  return wrong;
}

}  // namespace kvcfs::tools
