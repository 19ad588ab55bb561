#include "meta/cluster_client.h"

#include <utility>

#include <gtest/gtest.h>

#include "tests/unit/meta/small_cluster.h"

namespace kvcfs::meta {
namespace {

size_t CountOf(const std::vector<OutCall>& calls, size_t index) {
  size_t count = 0;
  for (const OutCall& call : calls) count += call.request.body.index() == index ? 1 : 0;
  return count;
}

TEST(ClusterClientTest, AMatchIsOneMessageToEachOwnerAtOnce) {
  SmallCluster cluster(2, 1);
  const auto keys = cluster.PublishChain(32);
  cluster.Match({keys[0]});  // both may know the first block from now on
  cluster.sent.clear();
  ClientActions out;
  cluster.client->Match(cluster.now, 500, kTestSpace, keys, false, Millis(2000), &out);
  EXPECT_LE(out.calls.size(), 2u);
  cluster.TakeClient(out);
  cluster.Settle();
  ASSERT_TRUE(cluster.outcomes.contains(500));
  EXPECT_EQ(cluster.outcomes[500].blocks.size(), 32u);
  EXPECT_LE(cluster.sent.size(), 2u);
}

// Blocks that nobody asked for yet are in no table; the last one's, though nothing extends it, is
// told with it.
TEST(ProbeTest, WhatWasAskedForOnceIsReadAndNobodyIsAsked) {
  SmallCluster cluster(2, 2);
  const auto keys = cluster.PublishChain(32, 2);
  const Outcome asked = cluster.Match(keys, false, Way::kOneSided);
  ASSERT_EQ(asked.blocks.size(), 32u);
  EXPECT_EQ(asked.reads.read, 0u);
  EXPECT_EQ(asked.reads.asked, 6u) << "0, 1, 2-3, 4-7, 8-15, 16-31";
  cluster.sent.clear();
  cluster.probes.clear();
  const Outcome read = cluster.Match(keys, false, Way::kOneSided);
  EXPECT_TRUE(cluster.sent.empty());
  EXPECT_LE(cluster.probes.size(), 2u) << "one to each owner";
  EXPECT_EQ(read.blocks, asked.blocks);
  EXPECT_EQ(read.reads.read, 6u);
  EXPECT_EQ(read.reads.asked, 0u);
  EXPECT_EQ(read.lease_until, Millis(0));
  EXPECT_EQ(read.from_cache, 0u);
  // Nothing was remembered, and a lease is asked for.
  EXPECT_EQ(cluster.Match(keys, true, Way::kOneSided).from_cache, 0u);
  EXPECT_FALSE(cluster.sent.empty());
}

TEST(ProbeTest, BehindALeafNothingIsAskedForAndBehindAForkItIs) {
  SmallCluster cluster(2, 1);
  const auto keys = cluster.PublishChain(10);
  cluster.Match(keys);
  auto longer = keys;
  for (uint64_t i = 0; i < 30; ++i) longer.push_back(ChainKey(longer.back(), 500 + i));
  cluster.sent.clear();
  EXPECT_EQ(cluster.Match(longer, false, Way::kOneSided).blocks.size(), 10u);
  EXPECT_TRUE(cluster.sent.empty());
  // At the end of a group, too.
  const auto other = cluster.PublishChain(16, 1, 900);
  longer = other;
  for (uint64_t i = 0; i < 30; ++i) longer.push_back(ChainKey(longer.back(), 500 + i));
  cluster.Match(other);
  cluster.sent.clear();
  EXPECT_EQ(cluster.Match(longer, false, Way::kOneSided).blocks.size(), 16u);
  EXPECT_TRUE(cluster.sent.empty());
  const BlockKey fork = ChainKey(other[15], 1);
  ASSERT_EQ(cluster.Publish(cluster.Create(fork, other[15]).facts, 1, 1).code, Code::kOk);
  cluster.Match(other);
  cluster.sent.clear();
  EXPECT_EQ(cluster.Match(longer, false, Way::kOneSided).blocks.size(), 16u);
  EXPECT_FALSE(cluster.sent.empty()) << "what is not in the table may be there";
}

TEST(ProbeTest, WhatIsBeingChangedIsReadAgainAndThenAskedFor) {
  SmallCluster cluster(1, 1);
  const auto keys = cluster.PublishChain(4);
  cluster.Match(keys);
  int torn = 2;
  cluster.spoil = [&](std::vector<uint64_t>* words) {
    if (torn-- > 0) {
      for (size_t at = 0; at < words->size(); at += kMatchEntryWords) ++(*words)[at];
    }
  };
  cluster.sent.clear();
  const Outcome read = cluster.Match(keys, false, Way::kOneSided);
  EXPECT_EQ(read.blocks.size(), 4u);
  EXPECT_EQ(read.reads.changing, 6u) << "three groups, twice";
  EXPECT_TRUE(cluster.sent.empty());
  torn = 1000;
  cluster.probes.clear();
  EXPECT_EQ(cluster.Match(keys, false, Way::kOneSided).blocks.size(), 4u);
  EXPECT_EQ(cluster.probes.size(), 3u);
  EXPECT_EQ(cluster.sent.size(), 1u);
  // Nothing that came is nothing that is known.
  cluster.spoil = [](std::vector<uint64_t>* words) { words->clear(); };
  const Outcome failed = cluster.Match(keys, false, Way::kOneSided);
  EXPECT_EQ(failed.blocks.size(), 4u);
  EXPECT_EQ(failed.reads.failed, 3u);
  EXPECT_EQ(failed.reads.asked, 3u);
}

TEST(ProbeTest, AnEntryOfAnotherViewOwnerOrBlockIsNoAnswer) {
  SmallCluster cluster(1, 1);
  const auto keys = cluster.PublishChain(2);
  cluster.Match(keys);
  // Where the words of an entry are: match_table.cc.
  for (const size_t word : {8u, 9u, 10u, 4u, 1u}) {  // epoch, incarnation, ordinal, key, namespace
    cluster.spoil = [&](std::vector<uint64_t>* words) {
      for (size_t at = 0; at < words->size(); at += kMatchEntryWords) {
        if ((*words)[at + 8] != 0) (*words)[at + word] += 1;
      }
    };
    const Outcome asked = cluster.Match(keys, false, Way::kOneSided);
    EXPECT_EQ(asked.reads.read, 0u) << word;
    EXPECT_EQ(asked.reads.asked, 2u) << word;
    EXPECT_EQ(asked.blocks.size(), 2u);
  }
  cluster.spoil = nullptr;
  EXPECT_EQ(cluster.Match(keys, false, Way::kOneSided).reads.read, 2u);
  // Not the child of the key before it.
  const auto other = cluster.PublishChain(1, 1, 70);
  const Outcome mixed = cluster.Match({other[0], keys[1]}, false, Way::kOneSided);
  EXPECT_EQ(mixed.reads.read, 0u);
}

// An owner that hears nothing of the newer view, and whose memory is read all the same.
TEST(ProbeTest, TheMemoryOfAFormerOwnerIsNotBelieved) {
  SmallCluster cluster(2, 2);
  const auto keys = cluster.PublishChain(8, 2);
  cluster.Match(keys);
  ASSERT_EQ(cluster.Match(keys, false, Way::kOneSided).reads.asked, 0u);
  const NodeId owner = Placement(cluster.view).OwnerOf(BlockId{kTestSpace, keys[4]});
  SmallCluster::Node& zombie = *cluster.Find(owner);
  const uint64_t shown = zombie.table.used();
  ASSERT_GT(shown, 0u);
  cluster.Remove(static_cast<size_t>(owner.low - 1));
  cluster.Advance(Millis(10'000));  // a new owner removes nothing at first
  EXPECT_EQ(zombie.table.used(), shown);
  ASSERT_EQ(cluster.Drop(keys[4]).code, Code::kOk);
  const Outcome after = cluster.Match(keys, false, Way::kOneSided);
  EXPECT_EQ(after.blocks.size(), 4u);
}

TEST(ProbeTest, AReadThatDoesNotComeIsNotWaitedFor) {
  SmallCluster cluster(1, 1);
  const auto keys = cluster.PublishChain(3);
  cluster.Match(keys);
  ClientActions out;
  cluster.client->Match(cluster.now, 800, kTestSpace, keys, false, Millis(2000), &out,
                        Way::kOneSided);
  ASSERT_EQ(out.probes.size(), 1u);
  EXPECT_TRUE(out.calls.empty());
  cluster.Advance(Millis(200));
  ASSERT_TRUE(cluster.outcomes.contains(800));
  EXPECT_EQ(cluster.outcomes[800].blocks.size(), 3u);
  // Too late.
  ClientActions more;
  cluster.client->ReceiveProbe(cluster.now, out.probes[0].id, cluster.ReadTable(out.probes[0]),
                               &more);
  EXPECT_TRUE(more.outcomes.empty());
}

TEST(ClusterClientTest, WhatIsLeasedIsNotAskedForAgain) {
  SmallCluster cluster(2, 1);
  const auto keys = cluster.PublishChain(32);
  EXPECT_EQ(cluster.Match(keys, true).from_cache, 0u);
  cluster.sent.clear();
  const Outcome again = cluster.Match(keys, true);
  EXPECT_EQ(again.blocks.size(), 32u);
  EXPECT_EQ(again.from_cache, 32u);
  EXPECT_TRUE(cluster.sent.empty());
  cluster.Advance(Millis(31'000));
  EXPECT_EQ(cluster.Match(keys, true).from_cache, 0u);
}

TEST(ClusterClientTest, AMissIsAlwaysPermitted) {
  SmallCluster cluster(1, 1);
  const auto keys = cluster.PublishChain(3);
  cluster.nodes[0]->up = false;
  const Millis begun = cluster.now;
  const Outcome outcome = cluster.Match(keys);
  EXPECT_EQ(outcome.code, Code::kOk);
  EXPECT_TRUE(outcome.blocks.empty());
  EXPECT_LE(cluster.now - begun, Millis(2100));
  EXPECT_EQ(cluster.Create(ChainKey(keys[2], 1), keys[2]).code, Code::kTimeout);
}

TEST(ClusterClientTest, AStaleViewIsAskedForAndTheCallGoesOn) {
  SmallCluster cluster(2, 1);
  const auto keys = cluster.PublishChain(3);
  // The servers are one view ahead.
  ++cluster.view.epoch;
  for (auto& node : cluster.nodes) {
    Actions actions;
    if (node->metadata) node->metadata->SetView(cluster.now, cluster.view, &actions);
    if (node->holder) node->holder->SetView(cluster.now, cluster.view, &actions);
    cluster.Take(*node, actions);
  }
  cluster.Settle();
  ClientActions out;
  cluster.client->Match(cluster.now, 700, kTestSpace, keys, false, Millis(2000), &out);
  cluster.TakeClient(out);
  cluster.Settle();
  EXPECT_FALSE(cluster.outcomes.contains(700));
  ClientActions more;
  cluster.client->SetView(cluster.now, cluster.view, &more);
  cluster.TakeClient(more);
  cluster.Settle();
  ASSERT_TRUE(cluster.outcomes.contains(700));
  EXPECT_EQ(cluster.outcomes[700].blocks.size(), 3u);
}

TEST(ClusterClientTest, AReplicaIsPutAtAnotherHolder) {
  SmallCluster cluster(1, 3);
  const auto keys = cluster.PublishChain(4, 2);
  for (const FoundBlock& block : cluster.Match(keys).blocks) {
    ASSERT_EQ(block.places.size(), 2u);
    EXPECT_NE(block.places[0].node, block.places[1].node);
  }
}

size_t CopiesOf(SmallCluster& cluster, const std::vector<BlockKey>& keys) {
  size_t copies = 0;
  for (const FoundBlock& block : cluster.Match(keys).blocks) copies += block.places.size();
  return copies;
}

TEST(ClusterClientTest, WithFewerHoldersThanWantedThereAreAsManyCopiesUntilOthersCome) {
  SmallCluster cluster(1, 2);
  cluster.Remove(2);
  const Millis begun = cluster.now;
  const auto keys = cluster.PublishChain(4, 3);
  ASSERT_EQ(keys.size(), 4u);
  EXPECT_LE(cluster.now - begun, Millis(100)) << "nobody was waited for";
  EXPECT_EQ(CopiesOf(cluster, keys), 4u);
  EXPECT_EQ(cluster.nodes[0]->metadata->Count().repairs_waiting, 0u);
  cluster.Add(2);
  cluster.Advance(Millis(1000));
  EXPECT_EQ(cluster.CompleteFetches(Code::kOk), 4u);
  cluster.Advance(Millis(1000));
  EXPECT_EQ(CopiesOf(cluster, keys), 8u);
}

template <typename T>
size_t Asked(const SmallCluster& cluster) {
  return CountOf(cluster.sent, RequestBody(T{}).index());
}

TEST(ClusterClientTest, ABlockBehindOneThatWasJustPublishedTakesThreeCalls) {
  SmallCluster cluster(2, 3);
  const auto keys = cluster.PublishChain(7);
  cluster.sent.clear();
  const Outcome created = cluster.Create(ChainKey(keys[6], 1), keys[6]);
  ASSERT_EQ(created.code, Code::kOk);
  ASSERT_EQ(cluster.Publish(created.facts, 77, 1).code, Code::kOk);
  EXPECT_EQ(cluster.sent.size(), 3u);
  EXPECT_EQ(Asked<ReserveRequest>(cluster), 1u);
  EXPECT_EQ(Asked<PutRequest>(cluster), 1u);
  EXPECT_EQ(Asked<CommitRequest>(cluster), 1u);
  // Copies are put at once, and a second one makes nothing longer.
  cluster.sent.clear();
  ClientActions out;
  BlockFacts facts = cluster.Create(ChainKey(keys[6], 2), keys[6]).facts;
  facts.length = 4096;
  facts.replicas = 2;
  cluster.client->Publish(cluster.now, 900, facts, {}, Millis(2000), &out);
  EXPECT_EQ(CountOf(out.calls, RequestBody(PutRequest{}).index()), 2u);
  cluster.TakeClient(out);
  cluster.Settle();
  EXPECT_EQ(cluster.outcomes.at(900).copies, 2u);
  EXPECT_EQ(cluster.sent.size(), 4u);
}

TEST(ClusterClientTest, WhereAPublishedBlockWasIsOnlyAGuess) {
  SmallCluster cluster(2, 1);
  const auto keys = cluster.PublishChain(3);
  // Others drop it.
  ClusterClient other({.self = {9, 10}, .times = {}});
  ClientActions ignored;
  other.SetView(cluster.now, cluster.view, &ignored);
  ClientActions out;
  other.Drop(cluster.now, 1, {kTestSpace, keys[2]}, Millis(8000), &out);
  for (int round = 0; round < 2; ++round) {
    const auto calls = std::exchange(out, {}).calls;
    for (const OutCall& call : calls) {
      cluster.Call(call, [&, id = call.id](const Reply& reply) {
        other.ReceiveReply(cluster.now, id, reply, &out);
      });
    }
    cluster.Settle();
  }
  ASSERT_EQ(out.outcomes.size(), 1u);
  ASSERT_EQ(out.outcomes[0].code, Code::kOk);
  cluster.sent.clear();
  EXPECT_EQ(cluster.Create(ChainKey(keys[2], 1), keys[2]).code, Code::kNotFound);
  EXPECT_EQ(Asked<ReserveRequest>(cluster), 1u);
  EXPECT_EQ(Asked<ResolveRequest>(cluster), 1u) << "its key shard knows better";
  // And it is not guessed for ever.
  cluster.sent.clear();
  cluster.Advance(Millis(31'000));
  EXPECT_EQ(cluster.Create(ChainKey(keys[1], 1), keys[1]).code, Code::kOk);
  EXPECT_EQ(Asked<ResolveRequest>(cluster), 1u);
}

TEST(ClusterClientTest, AHolderThatIsAwayIsWaitedForHalfOfTheTime) {
  SmallCluster cluster(1, 2);
  const auto keys = cluster.PublishChain(1, 2);
  const BlockFacts facts = cluster.Create(ChainKey(keys[0], 1), keys[0]).facts;
  cluster.nodes[2]->up = false;
  const Millis begun = cluster.now;
  const Outcome alone = cluster.Publish(facts, 77, 2);
  EXPECT_EQ(alone.code, Code::kOk);
  EXPECT_EQ(alone.copies, 1u);
  EXPECT_GE(cluster.now - begun, Millis(1000));
  EXPECT_LE(cluster.now - begun, Millis(1200));
  // And where it is back in time, nothing is left to repair.
  const BlockFacts next = cluster.Create(ChainKey(keys[0], 2), keys[0]).facts;
  ClientActions out;
  BlockFacts wanted = next;
  wanted.length = 4096;
  wanted.crc32c = 77;
  wanted.replicas = 2;
  cluster.client->Publish(cluster.now, 900, wanted, {}, Millis(2000), &out);
  cluster.TakeClient(out);
  cluster.Settle();
  cluster.Advance(Millis(200));
  EXPECT_FALSE(cluster.outcomes.contains(900));
  cluster.nodes[2]->up = true;
  cluster.Advance(Millis(200));
  ASSERT_TRUE(cluster.outcomes.contains(900));
  EXPECT_EQ(cluster.outcomes[900].copies, 2u);
}

TEST(ClusterClientTest, WhereNoHolderTakesABlockItIsTriedToTheEnd) {
  SmallCluster cluster(1, 2);
  const BlockFacts facts = cluster.Create(ChainKey({}, 1), {}).facts;
  cluster.refuse_puts = Code::kUnavailable;
  Millis begun = cluster.now;
  EXPECT_EQ(cluster.Publish(facts, 77, 2).code, Code::kTimeout);
  EXPECT_GE(cluster.now - begun, Millis(2000));
  EXPECT_LE(cluster.now - begun, Millis(2100));
  // All are full, and stay so.
  cluster.refuse_puts = Code::kNoSpace;
  EXPECT_EQ(cluster.Publish(facts, 77, 2).code, Code::kNoSpace);
  cluster.refuse_puts = Code::kOk;
  cluster.Remove(1);
  cluster.Remove(2);
  begun = cluster.now;
  EXPECT_EQ(cluster.Publish(facts, 77, 2).code, Code::kTimeout);
  EXPECT_GE(cluster.now - begun, Millis(2000));
  cluster.Add(1);
  EXPECT_EQ(cluster.Publish(facts, 77, 2).code, Code::kOk);
}

// What a host holds itself is enough where it is alone.
TEST(ClusterClientTest, AHostsOwnCopyIsCommittedAtOnceWhereThereIsNoOther) {
  SmallCluster cluster(1, 1);
  BlockFacts facts = cluster.Create(ChainKey({}, 1), {}).facts;
  facts.length = 4096;
  facts.crc32c = 77;
  facts.replicas = 2;
  SmallCluster::Node& own = *cluster.nodes[1];
  own.holder->Sealed(cluster.now, facts, 4711);
  const Millis begun = cluster.now;
  const Outcome outcome = cluster.Do([&](uint64_t op, ClientActions* out) {
    cluster.client->Publish(cluster.now, op, facts, {{own.id, 4711}}, Millis(2000), out);
  });
  EXPECT_EQ(outcome.code, Code::kOk);
  EXPECT_EQ(outcome.copies, 1u);
  EXPECT_LE(cluster.now - begun, Millis(20));
  EXPECT_EQ(CountOf(cluster.sent, RequestBody(PutRequest{}).index()), 0u);
}

class ReadTest : public testing::Test {
 protected:
  ReadTest() : cluster_(1, 2) {
    keys_ = cluster_.PublishChain(1, 2);
    block_ = cluster_.Match(keys_, true).blocks.at(0);
  }
  Outcome Read() {
    return cluster_.Do([&](uint64_t op, ClientActions* out) {
      cluster_.client->Read(cluster_.now, op, kTestSpace, block_, Millis(2000), out);
    });
  }
  ReadReply Good(const ReadRequest& request) const {
    return {request.id.key, request.generation, block_.length, block_.crc32c};
  }

  SmallCluster cluster_;
  std::vector<BlockKey> keys_;
  FoundBlock block_;
};

TEST_F(ReadTest, BytesOfAnotherBlockGenerationOrSumAreNotTaken) {
  for (int wrong = 0; wrong < 4; ++wrong) {
    cluster_.serve_read = [&, first = true](SmallCluster::Node&,
                                            const ReadRequest& request) mutable {
      ReadReply reply = Good(request);
      if (first) {
        if (wrong == 0) reply.key = ChainKey({}, 4711);
        if (wrong == 1) ++reply.generation;
        if (wrong == 2) ++reply.length;
        if (wrong == 3) ++reply.crc32c;
        first = false;
      }
      return Reply{Code::kOk, 0, reply};
    };
    cluster_.sent.clear();
    EXPECT_EQ(Read().code, Code::kOk) << wrong;
    EXPECT_EQ(CountOf(cluster_.sent, RequestBody(ReadRequest{}).index()), 2u) << wrong;
  }
}

TEST_F(ReadTest, NowhereIsAMissAndIsReported) {
  EXPECT_EQ(Read().code, Code::kNotFound);
  EXPECT_GE(CountOf(cluster_.sent, RequestBody(MissingRequest{}).index()), 1u);
  cluster_.client->cache()->With([](const GroupCache& cache) { EXPECT_EQ(cache.size(), 0u); });
}

TEST_F(ReadTest, ASlowHolderIsHedged) {
  ClientActions out;
  cluster_.client->Read(cluster_.now, 900, kTestSpace, block_, Millis(2000), &out);
  ASSERT_EQ(out.calls.size(), 1u);
  cluster_.client->Tick(cluster_.now + Millis(10), &out);
  EXPECT_EQ(out.calls.size(), 1u);
  cluster_.client->Tick(cluster_.now + Millis(20), &out);
  ASSERT_EQ(out.calls.size(), 2u);
  EXPECT_NE(out.calls[0].to, out.calls[1].to);
  const auto& second = std::get<ReadRequest>(out.calls[1].request.body);
  cluster_.client->ReceiveReply(cluster_.now, out.calls[1].id, {Code::kOk, 0, Good(second)}, &out);
  ASSERT_EQ(out.outcomes.size(), 1u);
  EXPECT_EQ(out.outcomes[0].place.node, out.calls[1].to);
}

TEST(ClusterClientTest, UseIsReportedInBatches) {
  SmallCluster cluster(1, 1);
  const auto keys = cluster.PublishChain(2);
  cluster.Advance(Millis(100));
  for (const BlockKey& key : keys) {
    cluster.client->NoteUsed({kTestSpace, key}, cluster.nodes[1]->id);
  }
  cluster.Advance(Millis(1100));
  EXPECT_EQ(cluster.nodes[1]->store.used.size(), 2u);
}

}  // namespace
}  // namespace kvcfs::meta
