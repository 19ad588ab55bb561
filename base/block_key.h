// The name of a block: 32 bytes that commit to its whole prefix.
//
// key = SHA-256(parent key, tokens, extra), computed by the engine; we never look inside.
#pragma once

#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>

namespace kvcfs {

struct BlockKey {
  static constexpr size_t kBytes = 32;
  static constexpr size_t kHexDigits = 64;

  std::array<uint8_t, kBytes> bytes{};

  friend auto operator<=>(const BlockKey&, const BlockKey&) = default;

  // The parent of a first block: all zero. No SHA-256 that anyone can find is zero.
  bool IsZero() const { return *this == BlockKey{}; }

  // Keys are uniform already: any 8 bytes of one are a hash.
  uint64_t Word(size_t index) const {
    uint64_t word = 0;
    std::memcpy(&word, bytes.data() + 8 * index, 8);
    return word;
  }

  // Exactly 64 lower-case hex digits, else nothing.
  static std::optional<BlockKey> FromHex(std::string_view hex);
  std::string ToHex() const;
};

struct BlockKeyHash {
  size_t operator()(const BlockKey& key) const { return key.Word(1); }
};

}  // namespace kvcfs
