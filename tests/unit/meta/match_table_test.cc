#include "meta/match_table.h"

#include <algorithm>
#include <vector>

#include <gtest/gtest.h>

#include "tests/unit/meta/small_cluster.h"

namespace kvcfs::meta {
namespace {

using Words = std::vector<uint64_t>;

BlockId IdOf(uint64_t n) {
  return {kTestSpace, ChainKey({}, n)};
}

ClusterView ViewOf(uint64_t epoch) {
  ClusterView view{.epoch = epoch, .nodes = {}};
  for (uint64_t i = 1; i <= 3; ++i) view.nodes.push_back({{7, i}, 1, kRoleBlocks, ""});
  return view;
}

FoundBlock BlockOf(const BlockId& id, size_t places = 1) {
  FoundBlock block{id.key, 4096, 7, 8, {}, 2};
  for (uint64_t i = 0; i < places; ++i) block.places.push_back({{7, i + 1}, 100 + i});
  return block;
}

MatchLookup LookUp(const MatchTable& table, const BlockId& anchor, uint32_t index,
                   const BlockId& id) {
  const Words words = table.Read(MatchBucketOf(anchor, table.buckets()) + index, 1);
  return LookUpMatch(std::span(words).first<kMatchBucketWords>(), id);
}

TEST(MatchTableTest, AGroupIsOneReadAndSaysWhatWasPut) {
  MatchTable table(1024);
  const ClusterView view = ViewOf(5);
  table.Begin(view, 77);
  const BlockId anchor = IdOf(0);
  // The last bucket of all is within the memory, wherever a group begins.
  EXPECT_EQ(table.memory().size(), (1024 + kGroupBlocksMax - 1) * kMatchBucketBytes);
  for (uint32_t i = 0; i < kGroupBlocksMax; ++i) {
    const BlockId id = i == 0 ? anchor : IdOf(i);
    ASSERT_TRUE(table.Put(anchor, i, id, IdOf(i + 1000).key, 64 + i, BlockOf(id, 1 + i % 2)));
  }
  const Words words = table.Read(MatchBucketOf(anchor, table.buckets()), uint64_t{kGroupBlocksMax});
  for (uint32_t i = 0; i < kGroupBlocksMax; ++i) {
    const BlockId id = i == 0 ? anchor : IdOf(i);
    const auto bucket = std::span(words).subspan(i * kMatchBucketWords).first<kMatchBucketWords>();
    const MatchLookup found = LookUpMatch(bucket, id);
    ASSERT_TRUE(found.entry.has_value()) << i;
    EXPECT_EQ(found.entry->epoch, 5u);
    EXPECT_EQ(found.entry->incarnation, 77u);
    EXPECT_EQ(found.entry->ordinal, 64 + i);
    EXPECT_EQ(found.entry->parent, IdOf(i + 1000).key.Word(0));
    EXPECT_EQ(found.entry->ToBlock(view), BlockOf(id, 1 + i % 2));
    EXPECT_FALSE(LookUpMatch(bucket, IdOf(5000)).entry.has_value());
  }
  EXPECT_EQ(table.used(), kGroupBlocksMax);
}

TEST(MatchTableTest, OfMoreCopiesTwoAreNamedAndHoldersOfNoViewAreNot) {
  MatchTable table(64);
  table.Begin(ViewOf(1), 1);
  ASSERT_TRUE(table.Put(IdOf(1), 0, IdOf(1), {}, 0, BlockOf(IdOf(1), 3)));
  const auto found = LookUp(table, IdOf(1), 0, IdOf(1)).entry;
  EXPECT_EQ(found->ToBlock(ViewOf(1)), BlockOf(IdOf(1), 2));
  EXPECT_FALSE(found->ToBlock(ClusterView{.epoch = 1, .nodes = {}}).has_value());
  FoundBlock lost = BlockOf(IdOf(2), 0);
  lost.places.push_back({{8, 8}, 1});
  EXPECT_FALSE(table.Put(IdOf(2), 0, IdOf(2), {}, 0, lost).has_value());
}

TEST(MatchTableTest, AFullBucketGivesAPlaceToTheNextAndWhoLostItRemovesNothing) {
  MatchTable table(1);  // all in one bucket
  table.Begin(ViewOf(1), 1);
  std::vector<uint32_t> places;
  for (uint64_t n = 0; n < 5; ++n) {
    places.push_back(table.Put(IdOf(n), 0, IdOf(n), {}, 0, BlockOf(IdOf(n))).value());
    EXPECT_TRUE(table.Has(places.back(), IdOf(n)));
  }
  EXPECT_EQ(table.used(), kMatchBucketEntries);
  size_t here = 0;
  for (uint64_t n = 0; n < 5; ++n) {
    const bool has = LookUp(table, IdOf(n), 0, IdOf(n)).entry.has_value();
    EXPECT_EQ(has, table.Has(places[n], IdOf(n)));
    here += has ? 1 : 0;
    if (!has) table.Remove(places[n], IdOf(n));
  }
  EXPECT_EQ(here, kMatchBucketEntries);
  EXPECT_EQ(table.used(), kMatchBucketEntries);
  table.Remove(places[4], IdOf(4));
  EXPECT_FALSE(LookUp(table, IdOf(4), 0, IdOf(4)).entry.has_value());
  EXPECT_EQ(table.used(), 1u);
  // Put again what is there stands there once.
  for (int i = 0; i < 3; ++i) table.Put(IdOf(9), 0, IdOf(9), {}, 0, BlockOf(IdOf(9)));
  EXPECT_EQ(table.used(), 2u);
}

TEST(MatchTableTest, ALineOfBeforeAndOneOfAfterAreNoEntry) {
  MatchTable table(1);
  table.Begin(ViewOf(1), 1);
  const uint32_t at = table.Put(IdOf(1), 0, IdOf(1), {}, 0, BlockOf(IdOf(1))).value();
  const auto words_now = [&] { return table.Read(0, 1); };
  const auto decode = [&](const Words& words) {
    return DecodeMatchEntry(
        std::span(words).subspan(at * kMatchEntryWords).first<kMatchEntryWords>());
  };
  const Words before = words_now();
  table.Remove(at, IdOf(1));
  ASSERT_EQ(table.Put(IdOf(1), 0, IdOf(1), {}, 0, BlockOf(IdOf(1))), at);
  const Words after = words_now();
  ASSERT_TRUE(decode(before).has_value());
  ASSERT_EQ(decode(before), decode(after)) << "of another life, and yet the same";
  const size_t line = at * kMatchEntryWords + 8;
  Words mixed = before;
  std::copy(after.begin() + static_cast<std::ptrdiff_t>(line), after.end(),
            mixed.begin() + static_cast<std::ptrdiff_t>(line));
  EXPECT_FALSE(decode(mixed).has_value());
  const MatchLookup torn = LookUpMatch(std::span(mixed).first<kMatchBucketWords>(), IdOf(1));
  EXPECT_FALSE(torn.entry.has_value());
  EXPECT_TRUE(torn.changing);
  Words odd = before;
  ++odd[at * kMatchEntryWords];
  ++odd[at * kMatchEntryWords + kMatchEntryWords - 1];
  EXPECT_FALSE(decode(odd).has_value());
}

TEST(MatchTableTest, AnotherViewBeginsWithNothing) {
  MatchTable table(64);
  EXPECT_FALSE(table.Put(IdOf(1), 0, IdOf(1), {}, 0, BlockOf(IdOf(1)))) << "no view yet";
  table.Begin(ViewOf(1), 1);
  ASSERT_TRUE(table.Put(IdOf(1), 0, IdOf(1), {}, 0, BlockOf(IdOf(1))));
  table.Begin(ViewOf(2), 1);
  EXPECT_EQ(table.used(), 0u);
  EXPECT_FALSE(LookUp(table, IdOf(1), 0, IdOf(1)).entry.has_value());
  ASSERT_TRUE(table.Put(IdOf(1), 0, IdOf(1), {}, 0, BlockOf(IdOf(1))));
  EXPECT_EQ(LookUp(table, IdOf(1), 0, IdOf(1)).entry->epoch, 2u);
}

TEST(MatchTableTest, APlaceThatIsNoneIsNotTakenForOne) {
  const MatchTablePlace place{.region = 7, .buckets = 1024};
  EXPECT_EQ(*DecodeMatchTablePlace(Encode(place)), place);
  EXPECT_EQ(DecodeMatchTablePlace(Encode(MatchTablePlace{.region = 7, .buckets = 1000})).code(),
            Code::kCorrupt);
  EXPECT_EQ(DecodeMatchTablePlace({}).code(), Code::kCorrupt);
}

// What the table of the shard's owner says of block `ordinal` of a chain.
std::optional<FoundBlock> Shown(SmallCluster& cluster, const std::vector<BlockKey>& keys,
                                uint32_t ordinal) {
  const BlockId anchor{kTestSpace, keys[AnchorOf(ordinal)]};
  SmallCluster::Node& owner = *cluster.Find(Placement(cluster.view).OwnerOf(anchor));
  const auto found =
      LookUp(owner.table, anchor, ordinal - AnchorOf(ordinal), {kTestSpace, keys[ordinal]});
  if (!found.entry || found.entry->epoch != cluster.view.epoch) return std::nullopt;
  EXPECT_EQ(found.entry->ordinal, ordinal);
  return found.entry->ToBlock(cluster.view);
}

TEST(MatchTableTest, AShardShowsWhatItAnswersUntilThatChanges) {
  SmallCluster cluster(2, 2);
  const auto keys = cluster.PublishChain(12, 2);
  ASSERT_EQ(keys.size(), 12u);
  for (uint32_t i = 0; i < 12; ++i) EXPECT_FALSE(Shown(cluster, keys, i)) << i;
  const auto blocks = cluster.Match(keys, true).blocks;
  ASSERT_EQ(blocks.size(), 12u);
  for (uint32_t i = 0; i < 12; ++i) EXPECT_EQ(Shown(cluster, keys, i), blocks[i]) << i;
  // A child more: not what was said.
  const BlockKey key = ChainKey(keys[11], 100);
  ASSERT_EQ(cluster.Publish(cluster.Create(key, keys[11]).facts, 1, 1).code, Code::kOk);
  EXPECT_FALSE(Shown(cluster, keys, 11));
  EXPECT_TRUE(Shown(cluster, keys, 10));
  EXPECT_EQ(cluster.Match(keys).blocks.size(), 12u);
  ASSERT_TRUE(Shown(cluster, keys, 11));
  EXPECT_EQ(Shown(cluster, keys, 11)->children, 1u);
  ASSERT_EQ(cluster.Drop(keys[6]).code, Code::kOk);
  for (uint32_t i = 5; i < 12; ++i) EXPECT_FALSE(Shown(cluster, keys, i)) << i;
  EXPECT_TRUE(Shown(cluster, keys, 4));
}

TEST(MatchTableTest, AShardShowsNothingUnderAnotherViewNorWithoutTheRightToServe) {
  SmallCluster cluster(1, 1);
  const auto keys = cluster.PublishChain(6);
  const MatchTable& table = cluster.nodes[0]->table;
  cluster.Match(keys);
  EXPECT_EQ(table.used(), 6u);
  cluster.GiveView();
  EXPECT_EQ(table.used(), 0u);
  cluster.Match(keys);
  EXPECT_EQ(table.used(), 6u);
  cluster.serving = false;
  EXPECT_LE(cluster.nodes[0]->metadata->NextTick(), cluster.now + Millis(100));
  cluster.Advance(Millis(200));
  EXPECT_EQ(table.used(), 0u);
  cluster.serving = true;
  // What is known already is shown again to who asks without a lease.
  EXPECT_EQ(cluster.Match(keys).blocks.size(), 6u);
  EXPECT_EQ(table.used(), 6u);
}

}  // namespace
}  // namespace kvcfs::meta
