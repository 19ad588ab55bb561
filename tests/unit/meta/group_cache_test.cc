#include "meta/group_cache.h"

#include <gtest/gtest.h>

#include "meta/chain_key.h"

namespace kvcfs::meta {
namespace {

constexpr SpaceId kSpace{1, 2};
constexpr Millis kNow{1000};

BlockKey Key(uint64_t id) {
  return ChainKey({}, id);
}

std::vector<FoundBlock> Blocks(const std::vector<BlockKey>& keys) {
  std::vector<FoundBlock> blocks;
  for (const BlockKey& key : keys) blocks.push_back({key, 1, 2, 3, {}});
  return blocks;
}

TEST(GroupCacheTest, AllKeysOrNothing) {
  GroupCache cache(10);
  const std::vector<BlockKey> keys{Key(1), Key(2), Key(3)};
  cache.Put(kSpace, 4, Blocks({keys[0], keys[1]}), kNow + Millis(10));
  EXPECT_FALSE(cache.Find(kNow, kSpace, keys).has_value());
  const auto hit = cache.Find(kNow, kSpace, std::span(keys).first(2));
  ASSERT_TRUE(hit.has_value());
  EXPECT_EQ(hit->blocks.size(), 2u);
  EXPECT_EQ(hit->lease_until, kNow + Millis(10));
  EXPECT_FALSE(cache.Find(kNow, {1, 3}, std::span(keys).first(2)).has_value());
}

TEST(GroupCacheTest, NotLongerThanTheLease) {
  GroupCache cache(10);
  cache.Put(kSpace, 0, Blocks({Key(1)}), kNow + Millis(10));
  const std::vector<BlockKey> keys{Key(1)};
  EXPECT_TRUE(cache.Find(kNow + Millis(9), kSpace, keys).has_value());
  EXPECT_FALSE(cache.Find(kNow + Millis(10), kSpace, keys).has_value());
}

TEST(GroupCacheTest, ForksOfAGroupLieBesideOneAnother) {
  GroupCache cache(10);
  cache.Put(kSpace, 4, Blocks({Key(1), Key(2)}), kNow + Millis(10));
  cache.Put(kSpace, 4, Blocks({Key(1), Key(3)}), kNow + Millis(10));
  EXPECT_TRUE(cache.Find(kNow, kSpace, std::vector{Key(1), Key(2)}).has_value());
  EXPECT_TRUE(cache.Find(kNow, kSpace, std::vector{Key(1), Key(3)}).has_value());
  EXPECT_FALSE(cache.Find(kNow, kSpace, std::vector{Key(1), Key(2), Key(3)}).has_value());
  EXPECT_EQ(cache.Resolve(kNow, {kSpace, Key(3)})->ordinal, 5u);
  EXPECT_EQ(cache.Resolve(kNow, {kSpace, Key(3)})->anchor, Key(1));
  cache.Forget({kSpace, Key(2)});
  EXPECT_FALSE(cache.Resolve(kNow, {kSpace, Key(3)}).has_value());
}

TEST(GroupCacheTest, WhatIsReusedSurvivesAScan) {
  GroupCache cache(10);
  const std::vector<BlockKey> hot{Key(1)};
  cache.Put(kSpace, 0, Blocks(hot), kNow + Millis(10));
  EXPECT_TRUE(cache.Find(kNow, kSpace, hot).has_value());
  for (uint64_t i = 100; i < 300; ++i) {
    cache.Put(kSpace, 0, Blocks({Key(i)}), kNow + Millis(10));
    EXPECT_LE(cache.size(), 10u);
  }
  EXPECT_TRUE(cache.Find(kNow, kSpace, hot).has_value());
  EXPECT_FALSE(cache.Find(kNow, kSpace, std::vector{Key(100)}).has_value());
}

TEST(GroupCacheTest, ProtectionIsNotForEver) {
  GroupCache cache(10);
  for (uint64_t i = 0; i < 40; ++i) {
    cache.Put(kSpace, 0, Blocks({Key(i)}), kNow + Millis(10));
    EXPECT_TRUE(cache.Find(kNow, kSpace, std::vector{Key(i)}).has_value());
    EXPECT_LE(cache.size(), 10u);
  }
  EXPECT_FALSE(cache.Find(kNow, kSpace, std::vector{Key(0)}).has_value());
  EXPECT_TRUE(cache.Find(kNow, kSpace, std::vector{Key(39)}).has_value());
}

}  // namespace
}  // namespace kvcfs::meta
