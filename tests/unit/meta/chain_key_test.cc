#include "meta/chain_key.h"

#include <cstring>
#include <string_view>

#include <gtest/gtest.h>

namespace kvcfs::meta {
namespace {

// FIPS 180-2, appendix B.1.
TEST(ChainKeyTest, Sha256OfAbc) {
  constexpr std::string_view kText = "abc";
  EXPECT_EQ(Sha256(std::as_bytes(std::span(kText))).ToHex(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

TEST(ChainKeyTest, FirstKeyIsOfTheIdAlone) {
  const unsigned char id[8] = {0x34, 0x12, 0, 0, 0, 0, 0, 0};
  EXPECT_EQ(ChainKey(BlockKey{}, 0x1234), Sha256(std::as_bytes(std::span(id))));
}

TEST(ChainKeyTest, LaterKeysAreOfParentAndId) {
  const BlockKey parent = ChainKey(BlockKey{}, 1);
  unsigned char input[40] = {};
  std::memcpy(input, parent.bytes.data(), 32);
  input[32] = 2;
  EXPECT_EQ(ChainKey(parent, 2), Sha256(std::as_bytes(std::span(input))));
  const uint64_t ids[] = {1, 2};
  const std::vector<BlockKey> keys = ChainKeys(ids);
  ASSERT_EQ(keys.size(), 2u);
  EXPECT_EQ(keys[0], parent);
  EXPECT_EQ(keys[1], ChainKey(parent, 2));
}

}  // namespace
}  // namespace kvcfs::meta
