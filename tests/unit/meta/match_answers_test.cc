#include "meta/match_answers.h"

#include <gtest/gtest.h>

#include "tests/unit/meta/small_cluster.h"

namespace kvcfs::meta {
namespace {

BlockId IdOf(uint8_t first, uint8_t hashed) {
  BlockId id{kTestSpace, {}};
  id.key.bytes[0] = first;
  id.key.bytes[8] = hashed;  // the hash is made of the second word
  return id;
}

FoundBlock BlockOf(const BlockId& id, size_t places) {
  FoundBlock block{id.key, 4096, 7, 8, {}, 2};
  for (uint64_t i = 0; i < places; ++i) block.places.push_back({{i, i}, i});
  return block;
}

TEST(MatchAnswersTest, SaysAgainWhatWasSaidUntilItIsDropped) {
  MatchAnswers answers;
  for (uint8_t i = 1; i < 100; ++i) {
    const BlockId id = IdOf(i, i);
    EXPECT_FALSE(answers.MayHaveRecord(id));
    answers.AddRecord(id);
    EXPECT_TRUE(answers.MayHaveRecord(id));
    EXPECT_EQ(answers.Find(id), nullptr);
    answers.Put(id, IdOf(9, i).key, i, BlockOf(id, i % 4));
  }
  for (uint8_t i = 1; i < 100; ++i) {
    const BlockId id = IdOf(i, i);
    ASSERT_NE(answers.Find(id), nullptr);
    std::vector<FoundBlock> blocks;
    answers.Find(id)->AppendTo(&blocks);
    EXPECT_EQ(blocks, std::vector{BlockOf(id, i % 4)});
    EXPECT_EQ(answers.Find(id)->parent, IdOf(9, i).key);
    EXPECT_EQ(answers.Find(id)->ordinal, i);
    if (i % 2 == 0) {
      answers.Drop(id);
      EXPECT_TRUE(answers.MayHaveRecord(id));
    } else {
      answers.EraseRecord(id);
      EXPECT_FALSE(answers.MayHaveRecord(id));
    }
    EXPECT_EQ(answers.Find(id), nullptr);
  }
}

TEST(MatchAnswersTest, BlocksInMorePlacesAreNotKept) {
  MatchAnswers answers;
  answers.AddRecord(IdOf(1, 1));
  answers.Put(IdOf(1, 1), {}, 0, BlockOf(IdOf(1, 1), 4));
  EXPECT_EQ(answers.Find(IdOf(1, 1)), nullptr);
  EXPECT_TRUE(answers.MayHaveRecord(IdOf(1, 1)));
}

TEST(MatchAnswersTest, TwoWithOneHashAreNeitherMixedNorForgotten) {
  MatchAnswers answers;
  const BlockId one = IdOf(1, 5), other = IdOf(2, 5);
  answers.AddRecord(one);
  answers.Put(one, {}, 0, BlockOf(one, 1));
  EXPECT_EQ(answers.Find(other), nullptr);
  answers.AddRecord(other);
  EXPECT_EQ(answers.Find(one), nullptr);
  answers.Put(other, {}, 0, BlockOf(other, 1));
  EXPECT_EQ(answers.Find(other), nullptr);
  answers.EraseRecord(one);
  EXPECT_TRUE(answers.MayHaveRecord(other));
}

// Through the shard: what has changed is said as it is now.
TEST(MatchAnswersTest, AMatchSeesWhatChangedSinceTheLast) {
  SmallCluster cluster(3, 2);
  const auto keys = cluster.PublishChain(12);
  for (int round = 0; round < 2; ++round) {
    const auto blocks = cluster.Match(keys).blocks;
    ASSERT_EQ(blocks.size(), 12u);
    EXPECT_EQ(blocks[4].children, 1u);
    EXPECT_EQ(blocks[11].children, 0u);
  }
  for (uint64_t i = 1; i <= 3; ++i) {
    const BlockKey key = ChainKey(keys[4], 100 + i);
    const Outcome created = cluster.Create(key, keys[4]);
    ASSERT_EQ(created.code, Code::kOk);
    ASSERT_EQ(cluster.Publish(created.facts, 1, 1).code, Code::kOk);
    EXPECT_EQ(cluster.Match(keys).blocks.at(4).children, 1 + i);
  }
  ASSERT_EQ(cluster.Drop(keys[6]).code, Code::kOk);
  EXPECT_EQ(cluster.Match(keys).blocks.size(), 6u);
  EXPECT_EQ(cluster.Match(keys).blocks.size(), 6u);
}

}  // namespace
}  // namespace kvcfs::meta
