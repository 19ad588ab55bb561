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

std::optional<Millis> Find(GroupCache& cache, Millis now, const std::vector<BlockKey>& keys,
                           const SpaceId& space = kSpace) {
  std::vector<FoundBlock> found{{Key(9999), 4, 5, 6, {}}};  // of an earlier group
  const auto until = cache.Find(now, space, keys, &found);
  EXPECT_EQ(found[0].key, Key(9999));
  EXPECT_EQ(found.size(), until.has_value() ? 1 + keys.size() : 1);
  for (size_t i = 1; i < found.size(); ++i) EXPECT_EQ(found[i], Blocks(keys)[i - 1]);
  return until;
}

TEST(GroupCacheTest, AllKeysOrNothing) {
  GroupCache cache(10);
  const std::vector<BlockKey> keys{Key(1), Key(2), Key(3)};
  cache.Put(kSpace, 4, Blocks({keys[0], keys[1]}), kNow + Millis(10));
  EXPECT_FALSE(Find(cache, kNow, keys).has_value());
  EXPECT_EQ(Find(cache, kNow, {keys[0], keys[1]}), kNow + Millis(10));
  EXPECT_FALSE(Find(cache, kNow, {keys[0], keys[1]}, {1, 3}).has_value());
  EXPECT_EQ(cache.hits(), 1u);
  EXPECT_EQ(cache.misses(), 2u);
}

TEST(GroupCacheTest, AChainOfManyGroupsOrNothing) {
  GroupCache cache(1000);
  std::vector<BlockKey> keys;
  for (uint64_t i = 0; i < 300; ++i) keys.push_back(Key(i));
  const auto put = [&](const GroupRange& range) {
    const auto begin = keys.begin() + range.first;
    cache.Put(kSpace, range.first, Blocks({begin, begin + range.count}),
              kNow + Millis(10 + range.first));
  };
  const auto ranges = GroupsOf(300);
  for (const GroupRange& range : ranges) {
    if (range.first != 8) put(range);
  }
  EXPECT_FALSE(cache.FindChain(kNow, kSpace, keys).has_value()) << "a group is missing";
  EXPECT_TRUE(cache.FindChain(kNow, kSpace, std::span(keys).first(8)).has_value());
  put({8, 8});
  for (const size_t count : {1, 2, 7, 8, 9, 16, 31, 64, 65, 200, 300}) {
    const auto chain = cache.FindChain(kNow, kSpace, std::span(keys).first(count));
    ASSERT_TRUE(chain.has_value()) << count;
    EXPECT_EQ(chain->blocks, Blocks({keys.begin(), keys.begin() + static_cast<long>(count)}));
    EXPECT_EQ(chain->lease_until, kNow + Millis(10)) << "the earliest";
  }
  EXPECT_FALSE(cache.FindChain(kNow, {1, 3}, keys).has_value());
  EXPECT_FALSE(cache.FindChain(kNow + Millis(10), kSpace, keys).has_value());
  EXPECT_FALSE(cache.FindChain(kNow, kSpace, {}).has_value());
  keys.push_back(Key(5000));
  EXPECT_FALSE(cache.FindChain(kNow, kSpace, keys).has_value());
}

TEST(GroupCacheTest, NotLongerThanTheLease) {
  GroupCache cache(10);
  cache.Put(kSpace, 0, Blocks({Key(1)}), kNow + Millis(10));
  const std::vector<BlockKey> keys{Key(1)};
  EXPECT_TRUE(Find(cache, kNow + Millis(9), keys).has_value());
  EXPECT_FALSE(Find(cache, kNow + Millis(10), keys).has_value());
}

TEST(GroupCacheTest, ForksOfAGroupLieBesideOneAnother) {
  GroupCache cache(10);
  cache.Put(kSpace, 4, Blocks({Key(1), Key(2)}), kNow + Millis(10));
  cache.Put(kSpace, 4, Blocks({Key(1), Key(3)}), kNow + Millis(10));
  EXPECT_TRUE(Find(cache, kNow, {Key(1), Key(2)}).has_value());
  EXPECT_TRUE(Find(cache, kNow, {Key(1), Key(3)}).has_value());
  EXPECT_FALSE(Find(cache, kNow, {Key(1), Key(2), Key(3)}).has_value());
  EXPECT_EQ(cache.Resolve(kNow, {kSpace, Key(3)})->ordinal, 5u);
  EXPECT_EQ(cache.Resolve(kNow, {kSpace, Key(3)})->anchor, Key(1));
  cache.Forget({kSpace, Key(2)});
  EXPECT_FALSE(cache.Resolve(kNow, {kSpace, Key(3)}).has_value());
}

TEST(GroupCacheTest, ThePathMattersAndNotOnlyItsKeys) {
  GroupCache cache(10);
  cache.Put(kSpace, 4, Blocks({Key(1), Key(2), Key(3)}), kNow + Millis(10));
  EXPECT_FALSE(Find(cache, kNow, {Key(1), Key(3)}).has_value());
  EXPECT_FALSE(Find(cache, kNow, {Key(2)}).has_value());
  EXPECT_TRUE(Find(cache, kNow, {Key(1), Key(2)}).has_value());
}

TEST(GroupCacheTest, WhatIsToldAgainIsRenewedInItsPlace) {
  GroupCache cache(10);
  const std::vector<BlockKey> keys{Key(1), Key(2), Key(3)};
  cache.Put(kSpace, 4, Blocks(keys), kNow + Millis(10));
  cache.Put(kSpace, 4, Blocks({keys[0], keys[1]}), kNow + Millis(30));
  EXPECT_EQ(Find(cache, kNow + Millis(9), keys), kNow + Millis(10)) << "of the one that is not";
  EXPECT_FALSE(Find(cache, kNow + Millis(20), keys).has_value());
  EXPECT_EQ(Find(cache, kNow + Millis(20), {keys[0], keys[1]}), kNow + Millis(30));
  EXPECT_FALSE(cache.Resolve(kNow + Millis(20), {kSpace, keys[2]}).has_value());
  EXPECT_EQ(cache.Resolve(kNow + Millis(20), {kSpace, keys[1]})->ordinal, 5u);
}

TEST(GroupCacheTest, AGroupWithTooManyForksBeginsAnew) {
  GroupCache cache(10);
  for (uint64_t i = 0; i < 255; ++i) {
    cache.Put(kSpace, 4, Blocks({Key(1), Key(100 + i)}), kNow + Millis(10));
  }
  for (uint64_t i = 0; i < 255; ++i) {
    cache.Put(kSpace, 4, Blocks({Key(1), Key(100 + i)}), kNow + Millis(10));
    EXPECT_TRUE(Find(cache, kNow, {Key(1), Key(100 + i)}).has_value());
  }
  cache.Put(kSpace, 4, Blocks({Key(1), Key(99)}), kNow + Millis(10));
  EXPECT_TRUE(Find(cache, kNow, {Key(1), Key(99)}).has_value());
  EXPECT_FALSE(Find(cache, kNow, {Key(1), Key(100)}).has_value());
  EXPECT_FALSE(cache.Resolve(kNow, {kSpace, Key(100)}).has_value());
  EXPECT_EQ(cache.size(), 1u);
}

TEST(GroupCacheTest, WhatIsReusedSurvivesAScan) {
  GroupCache cache(10);
  const std::vector<BlockKey> hot{Key(1)};
  cache.Put(kSpace, 0, Blocks(hot), kNow + Millis(10));
  EXPECT_TRUE(Find(cache, kNow, hot).has_value());
  for (uint64_t i = 100; i < 300; ++i) {
    cache.Put(kSpace, 0, Blocks({Key(i)}), kNow + Millis(10));
    EXPECT_LE(cache.size(), 10u);
  }
  EXPECT_TRUE(Find(cache, kNow, hot).has_value());
  EXPECT_FALSE(Find(cache, kNow, {Key(100)}).has_value());
}

TEST(GroupCacheTest, ProtectionIsNotForEver) {
  GroupCache cache(10);
  for (uint64_t i = 0; i < 40; ++i) {
    cache.Put(kSpace, 0, Blocks({Key(i)}), kNow + Millis(10));
    EXPECT_TRUE(Find(cache, kNow, {Key(i)}).has_value());
    EXPECT_LE(cache.size(), 10u);
  }
  EXPECT_FALSE(Find(cache, kNow, {Key(0)}).has_value());
  EXPECT_TRUE(Find(cache, kNow, {Key(39)}).has_value());
}

}  // namespace
}  // namespace kvcfs::meta
