#include "base/block_key.h"

#include <gtest/gtest.h>

namespace kvcfs {
namespace {

const std::string kHex = "00ff10a5" + std::string(50, '3') + "ebcdef";

TEST(BlockKey, HexBothWays) {
  const std::optional<BlockKey> key = BlockKey::FromHex(kHex);
  ASSERT_TRUE(key);
  EXPECT_EQ(key->bytes[0], 0x00);
  EXPECT_EQ(key->bytes[1], 0xff);
  EXPECT_EQ(key->bytes[31], 0xef);
  EXPECT_EQ(key->ToHex(), kHex);
  EXPECT_FALSE(key->IsZero());
  EXPECT_TRUE(BlockKey{}.IsZero());
}

TEST(BlockKey, AnotherSpellingIsNoKey) {
  std::string upper = kHex;
  upper.back() = 'F';
  std::string not_hex = kHex;
  not_hex.front() = 'g';
  for (const std::string& text :
       {std::string(), kHex.substr(1), kHex + "0", upper, not_hex, "0x" + kHex.substr(2)}) {
    EXPECT_FALSE(BlockKey::FromHex(text)) << text;
  }
}

}  // namespace
}  // namespace kvcfs
