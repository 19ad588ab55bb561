#include "meta/cluster_messages.h"

#include <random>

#include <gtest/gtest.h>

#include "meta/chain_key.h"

namespace kvcfs::meta {
namespace {

BlockFacts SomeFacts() {
  return {.id = {{1, 2}, ChainKey({}, 1)},
          .parent = ChainKey({}, 2),
          .anchor = ChainKey({}, 3),
          .parent_anchor = ChainKey({}, 4),
          .ordinal = 77,
          .length = 1 << 20,
          .crc32c = 0xdeadbeef,
          .mtime_s = 1234567,
          .replicas = 2};
}

const Place kPlace{{5, 6}, 7};

std::vector<RequestBody> OneOfEach() {
  const BlockFacts facts = SomeFacts();
  const BlockId id = facts.id;
  ShardSet shards;
  shards.Add(0);
  shards.Add(255);
  return {MatchRequest{id.space, true, {{1, 1}, {2, 2}}, {id.key, id.key, facts.parent}},
          ResolveRequest{id},
          LocateRequest{id, facts.anchor, false},
          ChainRequest{id, facts.anchor},
          LeavesRequest{id.space, 9, id.key, 100},
          ReserveRequest{id, facts.anchor, facts.parent},
          CommitRequest{facts, {kPlace, kPlace}},
          DropRequest{id, facts.anchor},
          MissingRequest{id, facts.anchor, kPlace},
          ReleaseRequest{{3, 4}, {{id, facts.anchor, 5}}},
          AttachRequest{id, facts.parent, facts.parent_anchor, 6},
          DetachRequest{id, facts.parent, facts.parent_anchor, 6},
          DoomRequest{id, 8, true},
          PointRequest{id, 3, facts.anchor, 9},
          UnpointRequest{id, 10},
          GrantRequest{id, {8, 9}},
          RevokeRequest{id},
          MarkRequest{id, 1, 2},
          ForgetRequest{id, 1},
          HaveRequest{id, 2},
          CopyRequest{facts, kPlace},
          InventoryRequest{shards, id, 11},
          PutRequest{facts},
          DiscardRequest{id, 3},
          ReadRequest{id, 4},
          UsedRequest{{id, id}}};
}

std::vector<std::pair<RequestBody, ReplyBody>> AnsweredWithMore() {
  const FoundBlock found{ChainKey({}, 9), 10, 11, 12, {kPlace}};
  return {{MatchRequest{}, MatchReply{{{Code::kOk, 30, 2}, {Code::kStale, 0, 0}}, {found, found}}},
          {ResolveRequest{}, ResolveReply{3, ChainKey({}, 3)}},
          {LocateRequest{}, LocateReply{SomeFacts(), 5, found}},
          {ChainRequest{}, ChainReply{2, {}, {}, {found}}},
          {LeavesRequest{}, LeavesReply{{found.key}, true}},
          {CommitRequest{}, CommitReply{1, 2}},
          {ReleaseRequest{}, ReleaseReply{{0, 5}}},
          {GrantRequest{}, GrantReply{found, true}},
          {CopyRequest{}, CopyReply{4}},
          {InventoryRequest{}, InventoryReply{{{SomeFacts(), 1, 2}}, true}},
          {PutRequest{}, PutReply{5}},
          {ReadRequest{}, ReadReply{found.key, 1, 2, 3}}};
}

TEST(ClusterMessagesTest, EveryRequestComesBackAsItWas) {
  const auto bodies = OneOfEach();
  ASSERT_EQ(bodies.size(), kMethodCount);
  for (size_t i = 0; i < bodies.size(); ++i) {
    ASSERT_EQ(bodies[i].index(), i);
    const rdma::Bytes bytes = Encode(Request{42, bodies[i]});
    const auto request = DecodeRequest(MethodOf(bodies[i]), bytes);
    ASSERT_TRUE(request.has_value()) << i;
    EXPECT_EQ(request->epoch, 42u);
    EXPECT_EQ(request->body.index(), i);
    EXPECT_EQ(Encode(*request), bytes) << i;
  }
}

TEST(ClusterMessagesTest, FieldsKeepTheirPlaces) {
  const BlockFacts facts = SomeFacts();
  const auto request =
      DecodeRequest(MethodOf(CommitRequest{}), Encode(Request{1, CommitRequest{facts, {kPlace}}}));
  ASSERT_TRUE(request.has_value());
  EXPECT_EQ(std::get<CommitRequest>(request->body).facts, facts);
  EXPECT_EQ(std::get<CommitRequest>(request->body).places, std::vector<Place>{kPlace});
}

TEST(ClusterMessagesTest, EveryReplyComesBackAsItWas) {
  for (const auto& [request, body] : AnsweredWithMore()) {
    const rdma::Bytes bytes = Encode(Reply{Code::kOk, 7, body});
    const auto reply = DecodeReply(MethodOf(request), bytes);
    ASSERT_TRUE(reply.has_value()) << body.index();
    EXPECT_EQ(reply->epoch, 7u);
    EXPECT_EQ(reply->body.index(), body.index());
    EXPECT_EQ(Encode(*reply), bytes);
  }
  const auto stale = DecodeReply(MethodOf(MatchRequest{}), Encode(Reply{Code::kStale, 9, {}}));
  ASSERT_TRUE(stale.has_value());
  EXPECT_EQ(stale->code, Code::kStale);
  EXPECT_EQ(stale->epoch, 9u);
}

TEST(ClusterMessagesTest, AnAnswerToAMatchSaysNoKeysAndEachNodeOnce) {
  MatchReply match;
  match.groups = {{Code::kOk, 30, 100}};
  for (uint64_t i = 0; i < 100; ++i) {
    FoundBlock block{ChainKey({}, i), 10, 11, 12, {}};
    for (uint64_t at = 0; at < i % 4; ++at) block.places.push_back({{1, (i + at) % 5}, i});
    block.children = static_cast<uint32_t>(i);
    match.blocks.push_back(block);
  }
  rdma::Bytes bytes = Encode(Reply{Code::kOk, 7, match});
  EXPECT_LT(bytes.size(), 100u * (17 + 10 * 3 / 2) + 200);
  const auto reply = DecodeReply(MethodOf(MatchRequest{}), bytes);
  ASSERT_TRUE(reply.ok());
  const auto& blocks = std::get<MatchReply>(reply->body).blocks;
  ASSERT_EQ(blocks.size(), 100u);
  for (size_t i = 0; i < blocks.size(); ++i) {
    FoundBlock expected = match.blocks[i];
    expected.key = {};
    EXPECT_EQ(blocks[i], expected) << i;
  }
  // The last place is of a node that was not named.
  bytes[bytes.size() - 10] = std::byte{5};
  EXPECT_EQ(DecodeReply(MethodOf(MatchRequest{}), bytes).code(), Code::kCorrupt);
}

TEST(ClusterMessagesTest, WhatIsCutShortOrTooLongIsRefused) {
  for (const RequestBody& body : OneOfEach()) {
    rdma::Bytes bytes = Encode(Request{42, body});
    for (size_t length = 0; length < bytes.size(); ++length) {
      EXPECT_EQ(DecodeRequest(MethodOf(body), std::span(bytes).first(length)).code(),
                Code::kCorrupt);
    }
    bytes.push_back(std::byte{0});
    EXPECT_EQ(DecodeRequest(MethodOf(body), bytes).code(), Code::kCorrupt);
  }
  for (const auto& [request, body] : AnsweredWithMore()) {
    const rdma::Bytes bytes = Encode(Reply{Code::kOk, 7, body});
    for (size_t length = 0; length < bytes.size(); ++length) {
      EXPECT_EQ(DecodeReply(MethodOf(request), std::span(bytes).first(length)).code(),
                Code::kCorrupt);
    }
  }
}

TEST(ClusterMessagesTest, AMethodThatIsNotThereIsRefused) {
  EXPECT_EQ(DecodeRequest(0, {}).code(), Code::kUnsupported);
  EXPECT_EQ(DecodeRequest(kMethodFirst + kMethodCount, {}).code(), Code::kUnsupported);
  EXPECT_EQ(DecodeReply(0, {}).code(), Code::kUnsupported);
}

TEST(ClusterMessagesTest, ACountThatCannotBeTakesNoMemory) {
  rdma::Bytes bytes = Encode(Request{1, UsedRequest{}});
  for (size_t i = bytes.size() - 4; i < bytes.size(); ++i) bytes[i] = std::byte{0xff};
  EXPECT_EQ(DecodeRequest(MethodOf(UsedRequest{}), bytes).code(), Code::kCorrupt);
}

TEST(ClusterMessagesTest, RandomBytesNeverDoHarm) {
  std::mt19937_64 random(5);
  for (const RequestBody& body : OneOfEach()) {
    const rdma::Bytes good = Encode(Request{42, body});
    for (int round = 0; round < 300; ++round) {
      rdma::Bytes bad = good;
      for (uint64_t i = 0; i <= random() % 4; ++i) {
        bad[random() % bad.size()] = static_cast<std::byte>(random());
      }
      const auto request = DecodeRequest(MethodOf(body), bad);
      if (request.has_value()) {
        EXPECT_EQ(Encode(*request), bad);
      }
      (void)DecodeReply(MethodOf(body), bad);
    }
  }
}

}  // namespace
}  // namespace kvcfs::meta
