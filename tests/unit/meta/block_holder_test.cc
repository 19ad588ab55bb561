#include "meta/block_holder.h"

#include <utility>

#include <gtest/gtest.h>

#include "tests/unit/meta/small_cluster.h"

namespace kvcfs::meta {
namespace {

BlockFacts First(uint64_t id) {
  BlockFacts facts;
  facts.id = {kTestSpace, ChainKey({}, id)};
  facts.anchor = facts.id.key;
  facts.length = 10;
  facts.crc32c = 11;
  return facts;
}

class BlockHolderTest : public testing::Test {
 protected:
  BlockHolderTest() : holder_({.self = {1, 1}, .times = {}, .inventory_entries = 2}, &store_) {
    view_.epoch = 5;
    view_.nodes = {{{1, 1}, 1, kRoleBlocks, ""}, {{2, 2}, 1, kRoleMetadata, ""}};
    holder_.SetView(now_, view_, &actions_);
  }
  Reply Ask(RequestBody body, uint64_t epoch = 5) {
    Actions actions;
    holder_.Receive(now_, 1, {epoch, std::move(body)}, &actions);
    return actions.answers.empty() ? Reply{Code::kBusy, 0, {}} : actions.answers[0].reply;
  }

  Millis now_{1000};
  MapStore store_;
  BlockHolder holder_;
  ClusterView view_;
  Actions actions_;
};

TEST_F(BlockHolderTest, OrdersOfAnotherEpochAreRefused) {
  const BlockFacts facts = First(1);
  holder_.Sealed(now_, facts, 3);
  EXPECT_EQ(Ask(MarkRequest{facts.id, 3, 9}, 4).code, Code::kStale);
  EXPECT_EQ(Ask(MarkRequest{facts.id, 3, 9}, 6).code, Code::kStale);
  EXPECT_EQ(Ask(ForgetRequest{facts.id, 3}, 4).code, Code::kStale);
  EXPECT_TRUE(store_.marked.empty());
  EXPECT_TRUE(store_.freed.empty());
  EXPECT_EQ(Ask(MarkRequest{facts.id, 3, 9}).code, Code::kOk);
  EXPECT_EQ(store_.marked.size(), 1u);
}

TEST_F(BlockHolderTest, OnlyThatGenerationIsMarkedAndForgotten) {
  const BlockFacts facts = First(1);
  holder_.Sealed(now_, facts, 3);
  EXPECT_EQ(Ask(MarkRequest{facts.id, 2, 9}).code, Code::kNotFound);
  EXPECT_EQ(Ask(ForgetRequest{facts.id, 2}).code, Code::kOk);
  EXPECT_TRUE(holder_.Has(facts.id, 3));
  EXPECT_EQ(Ask(ForgetRequest{facts.id, 3}).code, Code::kOk);
  EXPECT_FALSE(holder_.Has(facts.id, 3));
}

TEST_F(BlockHolderTest, ANewerVersionEndsAnOlderOne) {
  const BlockFacts facts = First(1);
  holder_.Restore(now_, facts, 3, 9);
  holder_.Sealed(now_, facts, 4);
  EXPECT_EQ(Ask(MarkRequest{facts.id, 4, 10}).code, Code::kOk);
  EXPECT_FALSE(holder_.Has(facts.id, 3));
  EXPECT_TRUE(holder_.Has(facts.id, 4));
}

TEST_F(BlockHolderTest, TheInventoryHasWhatIsPublishedInPages) {
  ShardSet all;
  for (uint32_t shard = 0; shard < kShardCount; ++shard) all.Add(shard);
  for (uint64_t i = 0; i < 5; ++i) holder_.Restore(now_, First(i), i + 1, 100 + i);
  holder_.Sealed(now_, First(99), 99);
  std::set<uint64_t> generations;
  InventoryRequest request{all, {}, 0};
  for (int page = 0; page < 3; ++page) {
    const Reply reply = Ask(request);
    const auto& entries = std::get<InventoryReply>(reply.body).entries;
    ASSERT_EQ(entries.size(), page < 2 ? 2u : 1u);
    for (const InventoryEntry& entry : entries) generations.insert(entry.generation);
    request.after = entries.back().facts.id;
    request.after_generation = entries.back().generation;
    EXPECT_EQ(std::get<InventoryReply>(reply.body).done, page == 2);
  }
  EXPECT_EQ(generations, (std::set<uint64_t>{1, 2, 3, 4, 5}));
  // Only of the shards that are asked for.
  const Reply none = Ask(InventoryRequest{{}, {}, 0});
  EXPECT_TRUE(std::get<InventoryReply>(none.body).entries.empty());
}

TEST_F(BlockHolderTest, SealedCopiesGoAfterAWhileAndByDiscard) {
  holder_.Sealed(now_, First(1), 1);
  holder_.Sealed(now_, First(2), 2);
  holder_.Restore(now_, First(3), 3, 7);
  EXPECT_TRUE(holder_.Discard(First(1).id, 1));
  EXPECT_FALSE(holder_.Discard(First(3).id, 3));  // published
  now_ += Millis(60'000);
  holder_.Tick(now_, &actions_);
  EXPECT_FALSE(holder_.Has(First(2).id, 2));
  EXPECT_TRUE(holder_.Has(First(3).id, 3));
}

TEST_F(BlockHolderTest, AGrantOfAnOlderEpochIsNotTaken) {
  holder_.Restore(now_, First(1), 1, 7);
  holder_.WantRelease(now_, First(1).id, 1);
  holder_.Tick(now_, &actions_);
  ASSERT_EQ(actions_.calls.size(), 1u);
  const uint64_t old_call = actions_.calls[0].id;
  ++view_.epoch;
  holder_.SetView(now_, view_, &actions_);
  const Reply granted{Code::kOk, 5, ReleaseReply{{static_cast<uint8_t>(Code::kOk)}}};
  holder_.ReceiveReply(now_, old_call, granted, &actions_);
  EXPECT_TRUE(holder_.Has(First(1).id, 1));
  ASSERT_EQ(actions_.calls.size(), 2u);  // asked anew
  holder_.ReceiveReply(now_, actions_.calls[1].id,
                       {Code::kOk, 6, ReleaseReply{{static_cast<uint8_t>(Code::kOk)}}}, &actions_);
  EXPECT_FALSE(holder_.Has(First(1).id, 1));
}

TEST_F(BlockHolderTest, ACopyThatIsNotTheBlockIsNotKept) {
  EXPECT_EQ(Ask(CopyRequest{First(1), {{3, 3}, 1}}).code, Code::kBusy);  // later
  ASSERT_EQ(store_.fetches.size(), 1u);
  Actions actions;
  holder_.Fetched(now_, store_.fetches[0].order, Code::kOk, 50, 10, 999, &actions);
  ASSERT_EQ(actions.answers.size(), 1u);
  EXPECT_EQ(actions.answers[0].reply.code, Code::kUnavailable);
  EXPECT_FALSE(holder_.Has(First(1).id, 50));
  EXPECT_EQ(Ask(CopyRequest{First(1), {{3, 3}, 1}}).code, Code::kBusy);
  holder_.Fetched(now_, store_.fetches[1].order, Code::kOk, 51, 10, 11, &actions);
  EXPECT_EQ(std::get<CopyReply>(actions.answers[1].reply.body).generation, 51u);
  EXPECT_TRUE(holder_.Has(First(1).id, 51));
}

TEST_F(BlockHolderTest, WhatAReleaseDoesNotGetStays) {
  holder_.Restore(now_, First(1), 1, 7);
  holder_.WantRelease(now_, First(1).id, 1);
  holder_.Tick(now_, &actions_);
  holder_.ReceiveReply(now_, actions_.calls[0].id,
                       {Code::kOk, 5, ReleaseReply{{static_cast<uint8_t>(Code::kBusy)}}},
                       &actions_);
  EXPECT_TRUE(holder_.Has(First(1).id, 1));
  EXPECT_EQ(store_.kept.size(), 1u);
}

TEST_F(BlockHolderTest, WhileItIsDrainedItAsksForTheReleaseOfAllItHas) {
  const auto answer = [&](const OutCall& call, Code code) {
    const auto items = std::get<ReleaseRequest>(call.request.body).items.size();
    const std::vector<uint8_t> codes(items, static_cast<uint8_t>(code));
    holder_.ReceiveReply(now_, call.id, {Code::kOk, view_.epoch, ReleaseReply{codes}}, &actions_);
    return items;
  };
  for (uint64_t i = 0; i < 3; ++i) holder_.Restore(now_, First(i), i + 1, 100 + i);
  holder_.Sealed(now_, First(99), 99);
  holder_.Tick(now_, &actions_);
  EXPECT_TRUE(actions_.calls.empty());
  ++view_.epoch;
  view_.nodes[0].roles |= kRoleDraining;
  holder_.SetView(now_, view_, &actions_);
  holder_.Tick(now_, &actions_);
  ASSERT_EQ(actions_.calls.size(), 1u);
  holder_.WantRelease(now_, First(1).id, 2);  // this one the store wants, too
  EXPECT_EQ(answer(actions_.calls[0], Code::kBusy), 3u);
  EXPECT_EQ(store_.kept.size(), 1u);
  // Others may have copies later.
  actions_.calls.clear();
  now_ += Millis(10'000);
  holder_.Tick(now_, &actions_);
  size_t granted = 0;
  for (const OutCall& call : std::exchange(actions_.calls, {})) {
    granted += answer(call, Code::kOk);
  }
  EXPECT_EQ(granted, 3u);
  EXPECT_EQ(holder_.size(), 1u) << "what is not published goes by itself";
}

}  // namespace
}  // namespace kvcfs::meta
