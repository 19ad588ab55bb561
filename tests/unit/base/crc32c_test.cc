#include "base/crc32c.h"

#include <cstring>
#include <random>
#include <string_view>
#include <vector>

#include <gtest/gtest.h>

namespace kvcfs {
namespace {

std::span<const std::byte> BytesOf(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

// Bit by bit, as the standard defines it.
uint32_t Slow(std::span<const std::byte> data) {
  uint32_t crc = 0xFFFFFFFF;
  for (const std::byte byte : data) {
    crc ^= static_cast<uint32_t>(byte);
    for (int bit = 0; bit < 8; ++bit) crc = (crc & 1) != 0 ? (crc >> 1) ^ 0x82F63B78 : crc >> 1;
  }
  return ~crc;
}

TEST(Crc32cTest, KnownAnswers) {
  EXPECT_EQ(Crc32c({}), 0u);
  EXPECT_EQ(Crc32c(BytesOf("123456789")), 0xE3069283u);
  const std::vector<std::byte> zeros(32), ones(32, std::byte{0xFF});  // RFC 3720, B.4
  EXPECT_EQ(Crc32c(zeros), 0x8A9136AAu);
  EXPECT_EQ(Crc32c(ones), 0x62A8AB43u);
}

TEST(Crc32cTest, PiecesAndCombinationsAreTheWhole) {
  std::mt19937_64 random(1);
  std::vector<std::byte> data(200'000);
  for (std::byte& byte : data) byte = static_cast<std::byte>(random());
  for (const size_t length :
       {size_t{0}, size_t{1}, size_t{7}, size_t{4096}, size_t{70'001}, data.size()}) {
    const auto whole = std::span<const std::byte>(data).first(length);
    EXPECT_EQ(Crc32c(whole), Slow(whole));
    for (const size_t cut : {size_t{0}, length / 3, length / 2, length}) {
      const auto a = whole.first(cut), b = whole.subspan(cut);
      EXPECT_EQ(Crc32c(b, Crc32c(a)), Crc32c(whole));
      EXPECT_EQ(Crc32cCombine(Crc32c(a), Crc32c(b), b.size()), Crc32c(whole));
    }
  }
}

}  // namespace
}  // namespace kvcfs
