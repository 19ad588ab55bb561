#include "fs/reuse_policy.h"

#include <random>
#include <vector>

#include <gtest/gtest.h>

namespace kvcfs::fs {
namespace {

uint64_t Hash(uint64_t number) {
  uint64_t mixed = (number + 1) * 0x9e3779b97f4a7c15u;
  mixed = (mixed ^ (mixed >> 30)) * 0xbf58476d1ce4e5b9u;
  return mixed ^ (mixed >> 31);
}

void Use(ReusePolicy& policy, uint64_t number, bool tip, uint64_t cached) {
  policy.Used({.hash = Hash(number), .tip = tip, .was_cached = true, .cached_blocks = cached});
}

TEST(ReusePolicy, BeforeItHasLearnedTheLeastRecentlyUsedGoes) {
  ReusePolicy policy;
  for (uint64_t i = 0; i < 100; ++i) Use(policy, i, false, 100);
  EXPECT_FALSE(policy.learned());
  EXPECT_EQ(policy.Choose(std::vector<uint64_t>{Hash(50), Hash(1), Hash(2)}), 0u);
}

TEST(ReusePolicy, WhatCameOnceGoesBeforeWhatComesAgain) {
  ReusePolicy policy;
  // Ten blocks in turn, and as many that never come again.
  uint64_t next = 1000;
  for (uint64_t i = 0; i < 20000; ++i) {
    Use(policy, i % 10, false, 1000);
    Use(policy, next++, false, 1000);
  }
  ASSERT_TRUE(policy.learned());
  EXPECT_GT(policy.Worth(Hash(3)), 10 * policy.Worth(Hash(next - 2)));
  // Though it was used later.
  EXPECT_EQ(policy.Choose(std::vector<uint64_t>{Hash(3), Hash(4), Hash(next - 1)}), 2u);
}

TEST(ReusePolicy, OfALoopThatDoesNotFitThePartNearItsNextUseStays) {
  ReusePolicy policy;
  for (uint64_t i = 0; i < 50000; ++i) Use(policy, i % 5000, false, 1000);
  // 49,999 was the last: block 1 comes next but one, block 4,990 after a whole round.
  EXPECT_EQ(policy.Choose(std::vector<uint64_t>{Hash(1), Hash(4990)}), 1u);
}

TEST(ReusePolicy, TipsAreCountedApart) {
  ReusePolicy policy;
  // Pairs that come twice, but for their last block, which is another each time.
  uint64_t next = 0;
  std::vector<uint64_t> again;
  for (uint64_t i = 0; i < 20000; ++i) {
    const uint64_t number = next++;
    Use(policy, number, false, 1000);
    Use(policy, next++, true, 1000);
    again.push_back(number);
    if (again.size() > 100) Use(policy, again[again.size() - 100], false, 1000);
  }
  EXPECT_EQ(policy.Choose(std::vector<uint64_t>{Hash(next - 20), Hash(next - 19)}), 1u);
}

TEST(ReusePolicy, WhereNothingTellsThemApartTheLeastRecentlyUsedGoes) {
  ReusePolicy policy;
  std::mt19937_64 random(1);
  for (uint64_t i = 0; i < 200000; ++i) Use(policy, random() % 2000, false, 1000);
  size_t others = 0;
  for (uint64_t i = 0; i < 2000; i += 2) {
    if (policy.Choose(std::vector<uint64_t>{Hash(i), Hash(i + 1)}) != 0) ++others;
  }
  EXPECT_LT(others, 100u);
}

TEST(ReusePolicy, ChanceInFewCountsTellsNothing) {
  size_t others = 0;
  for (uint32_t seed = 0; seed < 20; ++seed) {
    ReusePolicy policy;
    std::mt19937_64 random(seed);
    for (uint64_t i = 0; i < 3000; ++i) Use(policy, random() % 200, random() % 8 == 0, 1000);
    for (uint64_t i = 0; i < 200; i += 2) {
      if (policy.Choose(std::vector<uint64_t>{Hash(i), Hash(i + 1)}) != 0) ++others;
    }
  }
  EXPECT_LT(others, 300u);  // of 2,000; 417 by the likeliest worth alone
}

TEST(ReusePolicy, WhatItNeverHeardOfIsWorthNothing) {
  ReusePolicy policy;
  for (uint64_t i = 0; i < 10000; ++i) Use(policy, i % 100, false, 100);
  EXPECT_EQ(policy.Worth(Hash(12345)), 0);
  EXPECT_EQ(policy.Choose(std::vector<uint64_t>{Hash(5), Hash(12345)}), 1u);
  EXPECT_EQ(policy.Choose({}), 0u);
}

TEST(ReusePolicy, MemoryIsBounded) {
  ReusePolicy policy;
  const uint64_t small = policy.bytes();
  for (uint64_t i = 0; i < 3'000'000; ++i) Use(policy, i, false, 1 + i);
  EXPECT_GT(policy.bytes(), small);
  EXPECT_LE(policy.bytes(), 25u << 20);
}

TEST(ReusePolicy, AGrowingCacheForgetsNothing) {
  ReusePolicy policy;
  for (uint64_t i = 0; i < 60000; ++i) Use(policy, i % 5000, false, 900);
  const double before = policy.Worth(Hash(10));
  Use(policy, 11, false, 100000);
  EXPECT_GT(before, 0);
  EXPECT_NEAR(policy.Worth(Hash(10)), before, before / 2);
}

TEST(ReusePolicy, WhenLruHadMoreItForgetsWhatItLearned) {
  ReusePolicy policy;
  for (uint64_t i = 0; i < 20000; ++i) Use(policy, i % 3000, false, 1000);
  ASSERT_TRUE(policy.learned());
  // From now on all is used again at once, and none of it was there.
  bool forgot = false;
  for (uint64_t i = 0; i < 20000; ++i) {
    policy.Used({.hash = Hash(5000 + i / 4), .was_cached = false, .cached_blocks = 1000});
    forgot = forgot || !policy.learned();
  }
  EXPECT_TRUE(forgot);
}

}  // namespace
}  // namespace kvcfs::fs
