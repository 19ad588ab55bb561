#include "tools/block_bytes.h"

#include <set>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "meta/chain_key.h"

namespace kvcfs::tools {
namespace {

std::vector<std::byte> Make(const BlockKey& key, size_t length) {
  std::vector<std::byte> bytes(length);
  FillBlockBytes(key, bytes);
  return bytes;
}

const BlockKey kKey = meta::ChainKey({}, 1);

TEST(BlockBytes, OfTheKeyAlone) {
  EXPECT_EQ(Make(kKey, 100'000), Make(kKey, 100'000));
  EXPECT_NE(Make(kKey, 64), Make(meta::ChainKey({}, 2), 64));
  // Any length is a prefix of any longer one: also around the steps of the generator.
  const std::vector<std::byte> longest = Make(kKey, 20'000);
  for (const size_t length : {1u, 15u, 16u, 17u, 31u, 32u, 33u, 8191u, 8192u, 8193u, 16'385u}) {
    const std::vector<std::byte> some = Make(kKey, length);
    EXPECT_TRUE(std::equal(some.begin(), some.end(), longest.begin())) << length;
    EXPECT_EQ(CountWrongBytes(kKey, some), 0u) << length;
  }
}

TEST(BlockBytes, NeverChange) {
  // Blocks that an earlier build wrote must still be right: these bytes are fixed.
  const std::vector<std::byte> bytes = Make(kKey, 1 << 20);
  EXPECT_EQ(meta::Sha256(bytes).ToHex(),
            "3562f769f90c942b37b455ffac6d8849a6641ee7da2a616731d45565a9ac22d9");
}

TEST(BlockBytes, EveryPlaceIsItsOwn) {
  // No 16 bytes of two blocks are equal: another block's bytes, or this one's from elsewhere, show.
  std::set<std::string> seen;
  for (uint64_t id = 0; id < 8; ++id) {
    const std::vector<std::byte> bytes = Make(meta::ChainKey({}, id), 65536);
    for (size_t at = 0; at < bytes.size(); at += 16) {
      const auto* text = reinterpret_cast<const char*>(bytes.data() + at);
      EXPECT_TRUE(seen.insert(std::string(text, 16)).second);
    }
  }
}

TEST(BlockBytes, CountsEachWrongByte) {
  std::vector<std::byte> bytes = Make(kKey, 30'000);
  for (const size_t at : {0u, 8191u, 8192u, 29'999u}) bytes[at] ^= std::byte{1};
  EXPECT_EQ(CountWrongBytes(kKey, bytes), 4u);
  EXPECT_GT(CountWrongBytes(meta::ChainKey({}, 2), bytes), 29'000u);
  EXPECT_EQ(CountWrongBytes(kKey, {}), 0u);
}

}  // namespace
}  // namespace kvcfs::tools
