// Whole nodes and clients in one process: over TCP on 127.0.0.1, or in tests/vm over verbs of two
// devices; with a real etcd, and with copies in memory. How long things take is printed, and
// decides nothing.
#include "meta/cluster_runtime.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "base/crc32c.h"
#include "tests/unit/meta/etcd_fixture.h"
#include "tests/unit/meta/memory_copies.h"
#include "tests/unit/rdma/test_transport.h"

namespace kvcfs::meta {
namespace {

constexpr SpaceId kSpace{0x11, 0x22};
constexpr Millis kLong{60000};
constexpr uint8_t kBoth = kRoleMetadata | kRoleBlocks;

struct Node {
  MemoryCopies copies;
  std::unique_ptr<ClusterRuntime> runtime;
  ClusterRuntime& operator*() const { return *runtime; }
  ClusterRuntime* operator->() const { return runtime.get(); }
};

BlockKey Key(uint32_t chain, uint32_t ordinal) {
  BlockKey key;
  for (size_t i = 0; i < 4; ++i) {
    const uint64_t word = MixHash(chain * 1000003u + i, ordinal + 1);
    std::memcpy(key.bytes.data() + 8 * i, &word, 8);
  }
  return key;
}

std::vector<BlockKey> Keys(uint32_t chain, uint32_t count) {
  std::vector<BlockKey> keys;
  for (uint32_t i = 0; i < count; ++i) keys.push_back(Key(chain, i));
  return keys;
}

rdma::Bytes BytesOf(const BlockKey& key, size_t length) {
  rdma::Bytes bytes(length);
  for (size_t i = 0; i < length; ++i) {
    bytes[i] = static_cast<std::byte>(key.bytes[i % 32] + i / 32);
  }
  return bytes;
}

class ClusterRuntimeTest : public EtcdFixture {
 protected:
  ~ClusterRuntimeTest() override {
    for (auto& node : nodes_) {
      if (node->runtime != nullptr) node->runtime->Stop();
    }
  }

  std::unique_ptr<rdma::Transport> MakeTransport(uint64_t id, const std::string& name, bool node) {
    rdma::TransportOptions options;
    options.self = {7, id};
    options.name = name;
    options.is_node = node;
    options.tls = rdma::TestCertificate(name);
    if (rdma::TestsVerbs()) options.heartbeat = kLong;  // a guest without KVM is slow
    auto made = rdma::MakeTestTransport(options);
    EXPECT_TRUE(made.ok()) << (made.ok() ? "" : made.error().text);
    return made.ok() ? std::move(*made) : nullptr;
  }
  // Not started yet.
  std::unique_ptr<ClusterRuntime> Make(uint64_t id, uint8_t roles) {
    ClusterRuntimeOptions options;
    options.self = {7, id};
    options.name = (roles == 0 ? "mount" : "node") + std::to_string(id);
    options.roles = roles;
    options.listen = {rdma::TestHost(), 0};
    // Nodes take turns with the guest's two devices.
    if (rdma::TestsVerbs() && id % 2 == 0) options.listen.host.back() = '2';
    options.etcd = Options();
    options.lease = std::chrono::seconds(rdma::TestsVerbs() ? 10 : 2);
    options.start_timeout = kLong;
    options.takeover = Millis(2000);
    options.times = times_;
    options.away = away_;
    options.one_sided = one_sided_;
    return std::make_unique<ClusterRuntime>(options, MakeTransport(id, options.name, roles != 0),
                                            &clock_);
  }
  Node& Started(uint64_t id, uint8_t roles) {
    nodes_.push_back(std::make_unique<Node>());
    Node& node = *nodes_.back();
    node.runtime = Make(id, roles);
    Begin(node);
    return node;
  }
  static void Begin(Node& node) {
    const Status started = node->Start(&node.copies);
    EXPECT_TRUE(started.ok()) << (started.ok() ? "" : started.error().text);
  }
  bool Eventually(const std::function<bool()>& is_so) const {
    for (const Millis end = clock_.Monotonic() + 2 * kLong; clock_.Monotonic() < end;) {
      if (is_so()) return true;
      std::this_thread::sleep_for(Millis(20));
    }
    return false;
  }
  // Everybody has the same nodes, and all shards answer.
  bool Settled(size_t nodes) const {
    return Eventually([&] {
      uint64_t shards = 0;
      for (const auto& node : nodes_) {
        if (node->runtime == nullptr) continue;
        const ClusterStatus status = node->runtime->Describe();
        if (status.view == nullptr ||
            nodes != static_cast<size_t>(
                         std::count_if(status.view->nodes.begin(), status.view->nodes.end(),
                                       [](const ClusterNode& each) { return !IsAway(each); }))) {
          return false;
        }
        if (status.shards_loading != 0) return false;
        shards += status.shards;
      }
      return shards == kShardCount;
    });
  }

  static Result<BlockFacts> Reserve(Cluster& at, const BlockId& id, const BlockKey& parent,
                                    std::span<const std::byte> bytes, uint8_t replicas) {
    KVC_TRY_ASSIGN(BlockFacts facts, at.Create(id, parent, kLong));
    facts.length = static_cast<uint32_t>(bytes.size());
    facts.crc32c = Crc32c(bytes);
    facts.mtime_s = 1'700'000'000;
    facts.replicas = replicas;
    return facts;
  }
  // A client's, or a holder's, which keeps it itself.
  static Result<uint32_t> Publish(Node& at, const BlockId& id, const BlockKey& parent,
                                  std::span<const std::byte> bytes, uint8_t replicas = 1) {
    KVC_TRY_ASSIGN(const BlockFacts facts, Reserve(*at, id, parent, bytes, replicas));
    std::optional<uint64_t> generation;
    if (at->holds_blocks()) {
      generation = at.copies.Add(facts, bytes);
      at->Sealed(facts, *generation);
    }
    return at->Publish(facts, generation, bytes, kLong);
  }
  static void PublishChain(Node& at, uint32_t chain, uint32_t count, uint8_t replicas = 1) {
    for (uint32_t i = 0; i < count; ++i) {
      const BlockKey key = Key(chain, i);
      const auto published = Publish(at, {kSpace, key}, i == 0 ? BlockKey{} : Key(chain, i - 1),
                                     BytesOf(key, 1000 + i), replicas);
      ASSERT_TRUE(published.ok()) << i << ": " << published.error().text;
      EXPECT_EQ(*published, replicas);
    }
  }
  // How many leading blocks are matched, and read with the right bytes.
  static uint32_t ReadChain(Node& at, uint32_t chain, uint32_t count) {
    const auto keys = Keys(chain, count);
    const auto match = at->Match(kSpace, keys, true, Millis(5000));
    if (!match.ok()) return 0;
    uint32_t good = 0;
    for (const FoundBlock& block : match->blocks) {
      rdma::Bytes bytes(block.length);
      const auto read = at->Read(kSpace, block, bytes, Millis(10000));
      if (!read.ok()) return good;
      EXPECT_EQ(bytes, BytesOf(block.key, block.length)) << "wrong bytes";
      ++good;
    }
    return good;
  }
  static size_t CopiesOf(const std::vector<Node*>& nodes, const BlockId& id) {
    size_t copies = 0;
    for (const Node* node : nodes) copies += node->copies.VersionOf(id).has_value() ? 1 : 0;
    return copies;
  }

  SystemClock clock_;
  // A loaded machine, or a sanitized program, is slow to answer.
  ClusterTimes times_{.call = Millis(2000)};
  Millis away_{600'000};
  OneSided one_sided_ = OneSided::kAuto;
  std::vector<std::unique_ptr<Node>> nodes_;
};

TEST_F(ClusterRuntimeTest, WhatOneMountWritesTheOtherMatchesAndReads) {
  for (uint64_t id = 1; id <= 3; ++id) Started(id, kBoth);
  Node& writer = Started(11, 0);
  Node& reader = Started(12, 0);
  ASSERT_TRUE(Settled(3));
  PublishChain(writer, 1, 70);
  EXPECT_EQ(ReadChain(reader, 1, 70), 70u);
  EXPECT_EQ(ReadChain(writer, 1, 80), 70u);

  // Asked again, the groups and their leases are still known.
  const auto again = reader->Match(kSpace, Keys(1, 70), true, kLong);
  ASSERT_TRUE(again.ok());
  EXPECT_EQ(again->blocks.size(), 70u);
  EXPECT_GT(again->from_cache, 0u);
  EXPECT_GT(again->lease_until, clock_.Monotonic());

  const BlockId tip{kSpace, Key(1, 69)};
  const auto stat = reader->Stat(tip, kLong);
  ASSERT_TRUE(stat.ok());
  EXPECT_EQ(stat->facts.ordinal, 69u);
  EXPECT_EQ(stat->facts.parent, Key(1, 68));
  EXPECT_EQ(stat->block.length, 1069u);
  EXPECT_EQ(reader->Stat({kSpace, Key(9, 9)}, kLong).code(), Code::kNotFound);

  const auto chain = reader->Chain(tip, kLong);
  ASSERT_TRUE(chain.ok());
  ASSERT_EQ(chain->size(), 70u);
  for (uint32_t i = 0; i < 70; ++i) EXPECT_EQ((*chain)[i].key, Key(1, i));
  EXPECT_EQ(FactsInChain(kSpace, *chain, 69, 1), stat->facts);

  std::vector<BlockKey> leaves;
  for (uint32_t shard = 0; shard < kShardCount; ++shard) {
    const auto page = reader->Leaves(kSpace, shard, {}, 100, kLong);
    ASSERT_TRUE(page.ok());
    EXPECT_TRUE(page->done);
    leaves.insert(leaves.end(), page->keys.begin(), page->keys.end());
  }
  EXPECT_EQ(leaves, std::vector<BlockKey>{Key(1, 69)});
}

// Over TCP by way of the owners' CPUs, which only tests do; over verbs past them.
TEST_F(ClusterRuntimeTest, MatchesAreReadOutOfTheOwnersMemory) {
  one_sided_ = OneSided::kAlways;
  for (uint64_t id = 1; id <= 2; ++id) Started(id, kBoth);
  Node& writer = Started(11, 0);
  Node& reader = Started(12, 0);
  ASSERT_TRUE(Settled(2));
  PublishChain(writer, 1, 70);
  const auto asked = reader->Match(kSpace, Keys(1, 70), true, kLong);
  ASSERT_TRUE(asked.ok());
  ASSERT_EQ(asked->blocks.size(), 70u);
  // No call, but READs: what was answered once is in the owners' tables.
  const auto is_read = [&](uint32_t count, size_t wanted) {
    const rdma::TransportStats before = reader->Describe().transport;
    const auto match = reader->Match(kSpace, Keys(1, count), false, kLong);
    EXPECT_TRUE(match.ok());
    EXPECT_EQ(match->blocks.size(), wanted);
    EXPECT_EQ(match->lease_until, Millis(0));
    for (size_t i = 0; i < match->blocks.size(); ++i) {
      EXPECT_EQ(match->blocks[i].key, asked->blocks[i].key) << i;
      EXPECT_EQ(match->blocks[i].crc32c, asked->blocks[i].crc32c) << i;
      EXPECT_EQ(match->blocks[i].places, asked->blocks[i].places) << i;
    }
    const rdma::TransportStats after = reader->Describe().transport;
    return after.calls == before.calls && after.reads > before.reads;
  };
  EXPECT_TRUE(Eventually([&] { return is_read(70, 70); }));
  EXPECT_TRUE(Eventually([&] { return is_read(100, 70); })) << "nothing extends the last one";
  EXPECT_TRUE(Eventually([&] { return is_read(17, 17); }));
  for (const FoundBlock& block : asked->blocks) {
    rdma::Bytes bytes(block.length);
    ASSERT_TRUE(reader->Read(kSpace, block, bytes, kLong).ok());
    EXPECT_EQ(bytes, BytesOf(block.key, block.length));
  }
  // What has changed is seen.
  EXPECT_TRUE(writer->Drop({kSpace, Key(1, 40)}, kLong).ok());
  EXPECT_TRUE(Eventually([&] { return is_read(70, 40); }));
  if (rdma::TestsVerbs()) {
    EXPECT_GT(reader->Describe().transport.device_reads, 0u);
  }
}

TEST_F(ClusterRuntimeTest, ADropIsSeenByTheOtherMount) {
  std::vector<Node*> holders;
  for (uint64_t id = 1; id <= 2; ++id) holders.push_back(&Started(id, kBoth));
  Node& writer = Started(11, 0);
  Node& reader = Started(12, 0);
  ASSERT_TRUE(Settled(2));
  PublishChain(writer, 1, 10);
  EXPECT_EQ(ReadChain(reader, 1, 10), 10u);
  EXPECT_TRUE(writer->Drop({kSpace, Key(1, 4)}, kLong).ok());
  EXPECT_EQ(writer->Drop({kSpace, Key(1, 4)}, kLong).code(), Code::kNotFound);
  EXPECT_EQ(reader->Stat({kSpace, Key(1, 7)}, kLong).code(), Code::kNotFound);
  const auto match = writer->Match(kSpace, Keys(1, 10), false, kLong);
  ASSERT_TRUE(match.ok());
  EXPECT_EQ(match->blocks.size(), 4u);
  EXPECT_EQ(writer->Create({kSpace, Key(2, 5)}, Key(1, 4), kLong).code(), Code::kNotFound);
  // Their places are free again.
  EXPECT_TRUE(
      Eventually([&] { return holders[0]->copies.size() + holders[1]->copies.size() == 4; }));
  // What the reader still has by lease is a miss, never other bytes.
  EXPECT_EQ(ReadChain(reader, 1, 10), 4u);
}

TEST_F(ClusterRuntimeTest, AHolderServesItsOwnAndOthersBytes) {
  Node& a = Started(1, kBoth);
  Node& b = Started(2, kBoth);
  ASSERT_TRUE(Settled(2));
  PublishChain(a, 1, 12);
  EXPECT_EQ(a.copies.size(), 12u);
  EXPECT_TRUE(a.copies.VersionOf({kSpace, Key(1, 11)}).has_value()) << "marked before the return";
  EXPECT_EQ(b.copies.size(), 0u);
  EXPECT_EQ(ReadChain(b, 1, 12), 12u);
  EXPECT_EQ(ReadChain(a, 1, 12), 12u);

  // b keeps what it has read: one more copy.
  const auto chain = b->Chain({kSpace, Key(1, 3)}, kLong);
  ASSERT_TRUE(chain.ok());
  const BlockFacts facts = FactsInChain(kSpace, *chain, 3, 1);
  const rdma::Bytes bytes = BytesOf(facts.id.key, facts.length);
  const uint64_t generation = b.copies.Add(facts, bytes);
  b->Sealed(facts, generation);
  const auto published = b->Publish(facts, generation, bytes, kLong);
  ASSERT_TRUE(published.ok()) << published.error().text;
  EXPECT_EQ(*published, 2u);
  EXPECT_TRUE(b.copies.VersionOf(facts.id).has_value());
  EXPECT_EQ(a->Stat(facts.id, kLong)->block.places.size(), 2u);
}

TEST_F(ClusterRuntimeTest, TheFirstToPublishWinsAndAParentMustBeThere) {
  Node& a = Started(1, kBoth);
  Node& b = Started(2, kBoth);
  ASSERT_TRUE(Settled(2));
  const BlockId id{kSpace, Key(1, 0)};
  ASSERT_TRUE(Publish(a, id, {}, BytesOf(id.key, 100)).ok());
  EXPECT_EQ(Publish(b, id, {}, BytesOf(id.key, 101)).code(), Code::kExists);
  EXPECT_TRUE(Eventually([&] { return !b.copies.Has(id); })) << "its bytes are dropped";
  EXPECT_EQ(b->Stat(id, kLong)->block.length, 100u);
  EXPECT_EQ(b->Create({kSpace, Key(1, 2)}, Key(1, 1), kLong).code(), Code::kNotFound);
  // The parent goes between Create and Publish.
  const rdma::Bytes bytes = BytesOf(Key(1, 1), 100);
  const auto facts = Reserve(*b, {kSpace, Key(1, 1)}, id.key, bytes, 1);
  ASSERT_TRUE(facts.ok());
  ASSERT_TRUE(a->Drop(id, kLong).ok());
  const uint64_t generation = b.copies.Add(*facts, bytes);
  b->Sealed(*facts, generation);
  EXPECT_EQ(b->Publish(*facts, generation, bytes, kLong).code(), Code::kNotFound);
  EXPECT_TRUE(Eventually([&] { return !b.copies.Has(facts->id); }));
}

TEST_F(ClusterRuntimeTest, WithTwoReplicasADeadHolderLosesNothingAndCopiesComeBack) {
  std::vector<Node*> holders;
  for (uint64_t id = 1; id <= 3; ++id) holders.push_back(&Started(id, kBoth));
  Node& mount = Started(11, 0);
  ASSERT_TRUE(Settled(3));
  constexpr uint32_t kBlocks = 20;
  PublishChain(mount, 1, kBlocks, 2);
  for (uint32_t i = 0; i < kBlocks; ++i) EXPECT_EQ(CopiesOf(holders, {kSpace, Key(1, i)}), 2u);
  const Millis died = clock_.Monotonic();
  holders[0]->runtime->StopSilently();
  holders[0]->runtime.reset();
  const std::vector<Node*> left(holders.begin() + 1, holders.end());
  EXPECT_TRUE(Eventually([&] { return ReadChain(mount, 1, kBlocks) == kBlocks; }));
  std::printf("read again after %lld ms\n",
              static_cast<long long>((clock_.Monotonic() - died).count()));
  for (uint32_t i = 0; i < kBlocks; ++i) {
    EXPECT_TRUE(Eventually([&] { return CopiesOf(left, {kSpace, Key(1, i)}) == 2; })) << i;
  }
  std::printf("repaired after %lld ms\n",
              static_cast<long long>((clock_.Monotonic() - died).count()));
  EXPECT_EQ(ReadChain(mount, 1, kBlocks), kBlocks);
}

TEST_F(ClusterRuntimeTest, WithOneHolderTwoReplicasAreOneUntilAnotherJoins) {
  Node& a = Started(1, kBoth);
  Node& mount = Started(11, 0);
  ASSERT_TRUE(Settled(1));
  constexpr uint32_t kBlocks = 8;
  for (uint32_t i = 0; i < kBlocks; ++i) {
    const BlockKey key = Key(1, i);
    const auto copies = Publish(mount, {kSpace, key}, i == 0 ? BlockKey{} : Key(1, i - 1),
                                BytesOf(key, 1000 + i), 2);
    ASSERT_TRUE(copies.ok()) << copies.error().text;
    EXPECT_EQ(*copies, 1u);
  }
  EXPECT_EQ(ReadChain(mount, 1, kBlocks), kBlocks);
  // What a host that is alone writes itself is as good.
  const BlockKey own = Key(2, 0);
  const auto alone = Publish(a, {kSpace, own}, {}, BytesOf(own, 500), 2);
  ASSERT_TRUE(alone.ok()) << alone.error().text;
  EXPECT_EQ(*alone, 1u);
  Node& b = Started(2, kBoth);
  ASSERT_TRUE(Settled(2));
  for (uint32_t i = 0; i < kBlocks; ++i) {
    EXPECT_TRUE(Eventually([&] { return CopiesOf({&a, &b}, {kSpace, Key(1, i)}) == 2; })) << i;
  }
  EXPECT_TRUE(Eventually([&] { return CopiesOf({&a, &b}, {kSpace, own}) == 2; }));
}

TEST_F(ClusterRuntimeTest, HowMuchANamespaceHasIsCountedOverAllShards) {
  Node& a = Started(1, kBoth);
  Node& b = Started(2, kBoth);
  Started(3, kRoleMetadata);
  Node& mount = Started(11, 0);
  ASSERT_TRUE(Settled(3));
  PublishChain(mount, 1, 20, 2);
  uint64_t bytes = 0;
  for (uint32_t i = 0; i < 20; ++i) bytes += 1000 + i;
  const std::vector<SpaceId> spaces{kSpace, {1, 2}};
  for (Node* node : {&a, &b}) {
    const auto used = (*node)->BytesOf(spaces, kLong);
    ASSERT_TRUE(used.ok()) << used.error().text;
    EXPECT_EQ(*used, (std::vector<uint64_t>{bytes, 0}));
  }
  // A mount is not told of namespaces that are none of its business.
  const auto asked = mount->BytesOf(spaces, kLong);
  EXPECT_EQ(*asked, (std::vector<uint64_t>{0, 0}));
}

TEST_F(ClusterRuntimeTest, ShardsOfADeadMetadataNodeAnswerAgain) {
  Node& holder = Started(1, kRoleMetadata | kRoleBlocks);
  std::vector<Node*> metadata;
  for (uint64_t id = 2; id <= 3; ++id) metadata.push_back(&Started(id, kRoleMetadata));
  Node& mount = Started(11, 0);
  ASSERT_TRUE(Settled(3));
  for (uint32_t chain = 0; chain < 8; ++chain) PublishChain(mount, chain, 9);
  EXPECT_EQ(holder.copies.size(), 72u);
  const Millis died = clock_.Monotonic();
  metadata[0]->runtime->StopSilently();
  metadata[0]->runtime.reset();
  for (uint32_t chain = 0; chain < 8; ++chain) {
    EXPECT_TRUE(Eventually([&] {
      const auto match = mount->Match(kSpace, Keys(chain, 9), false, Millis(2000));
      return match.ok() && match->blocks.size() == 9;
    })) << chain;
  }
  std::printf("all shards answer again after %lld ms\n",
              static_cast<long long>((clock_.Monotonic() - died).count()));
  for (uint32_t chain = 0; chain < 8; ++chain) EXPECT_EQ(ReadChain(mount, chain, 9), 9u);
  // And they take new blocks.
  PublishChain(mount, 100, 9);
}

TEST_F(ClusterRuntimeTest, ANodeThatComesBackHasItsBlocks) {
  Node& a = Started(1, kBoth);
  Node& b = Started(2, kBoth);
  Node& mount = Started(11, 0);
  ASSERT_TRUE(Settled(2));
  PublishChain(b, 1, 9);
  // And what extends it, at another.
  const BlockKey tip = Key(1, 9);
  ASSERT_TRUE(Publish(a, {kSpace, tip}, Key(1, 8), BytesOf(tip, 1009)).ok());
  ASSERT_EQ(ReadChain(mount, 1, 10), 10u);
  b->Stop();
  b.runtime.reset();
  EXPECT_TRUE(Eventually([&] {
    const auto match = mount->Match(kSpace, Keys(1, 9), false, Millis(2000));
    return match.ok() && match->blocks.empty();
  })) << "nobody has them";
  EXPECT_TRUE(a.copies.Has({kSpace, tip})) << "its parent may come back";
  b.runtime = Make(2, kBoth);
  b.copies.RestoreInto(*b);
  Begin(b);
  EXPECT_TRUE(Eventually([&] { return ReadChain(mount, 1, 10) == 10; }));
}

TEST_F(ClusterRuntimeTest, ANodeThatStaysAwayTakesItsBlocksAlong) {
  away_ = Millis(1000);
  Node& a = Started(1, kBoth);
  Node& b = Started(2, kBoth);
  ASSERT_TRUE(Settled(2));
  PublishChain(b, 1, 9);
  const BlockKey tip = Key(1, 9);
  ASSERT_TRUE(Publish(a, {kSpace, tip}, Key(1, 8), BytesOf(tip, 1009)).ok());
  b->Stop();
  b.runtime.reset();
  EXPECT_TRUE(Eventually([&] { return a->Describe().records == 0; }));
  EXPECT_TRUE(Eventually([&] { return a.copies.size() == 0; })) << "what extended them, too";
}

TEST_F(ClusterRuntimeTest, AHolderThatJoinsIsGivenItsPart) {
  times_.lease = Millis(300);  // what is leased does not move
  times_.lease_hold = Millis(100);
  Node& a = Started(1, kBoth);
  Node& b = Started(2, kBoth);
  Node& mount = Started(11, 0);
  ASSERT_TRUE(Settled(2));
  constexpr uint32_t kChains = 12, kBlocks = 6;
  for (uint32_t chain = 0; chain < kChains; ++chain) PublishChain(mount, chain, kBlocks);
  ASSERT_EQ(a.copies.size() + b.copies.size(), kChains * kBlocks);
  Node& c = Started(3, kBoth);
  ASSERT_TRUE(Settled(3));
  EXPECT_TRUE(Eventually([&] { return c.copies.size() >= kChains * kBlocks / 6; }));
  EXPECT_TRUE(Eventually([&] {
    ClusterStatus sum;
    for (Node* node : {&a, &b, &c}) {
      const ClusterStatus status = (*node)->Describe();
      sum.moving += status.moving;
      sum.move_bytes_left += status.move_bytes_left;
      sum.moved_total += status.moved_total;
    }
    return sum.moving == 0 && sum.move_bytes_left == 0 && sum.moved_total > 0 &&
           a.copies.size() + b.copies.size() + c.copies.size() == kChains * kBlocks;
  }));
  for (uint32_t chain = 0; chain < kChains; ++chain) {
    EXPECT_EQ(ReadChain(mount, chain, kBlocks), kBlocks) << chain;
  }
}

TEST_F(ClusterRuntimeTest, DamagedBytesAreAMissAndAnotherCopyIsRead) {
  Node& a = Started(1, kBoth);
  Node& b = Started(2, kBoth);
  Node& mount = Started(11, 0);
  ASSERT_TRUE(Settled(2));
  PublishChain(mount, 1, 2, 2);
  a.copies.Damage({kSpace, Key(1, 0)});
  EXPECT_EQ(ReadChain(mount, 1, 2), 2u);
  b.copies.Damage({kSpace, Key(1, 0)});
  EXPECT_EQ(ReadChain(mount, 1, 2), 0u);
}

TEST_F(ClusterRuntimeTest, AHolderThatIsFullIsPassedOver) {
  Node& a = Started(1, kBoth);
  Node& b = Started(2, kBoth);
  Node& mount = Started(11, 0);
  ASSERT_TRUE(Settled(2));
  a.copies.SetFull(true);
  PublishChain(mount, 1, 8);
  EXPECT_EQ(a.copies.size(), 0u);
  EXPECT_EQ(b.copies.size(), 8u);
}

TEST_F(ClusterRuntimeTest, APlaceThatIsWantedBackIsFreedOrKept) {
  Node& a = Started(1, kBoth);
  ASSERT_TRUE(Settled(1));
  PublishChain(a, 1, 2);
  const BlockId first{kSpace, Key(1, 0)};
  const uint64_t generation = a->Stat(first, kLong)->block.places[0].generation;
  a->WantRelease(first, generation);
  EXPECT_TRUE(Eventually([&] { return a.copies.WasKept(first, generation); }))
      << "a child extends it, and it is leased";
  EXPECT_TRUE(a.copies.Has(first));
  a->Lost(first, generation);
  EXPECT_TRUE(Eventually([&] { return !a.copies.Has(first); }));
}

TEST_F(ClusterRuntimeTest, NamespacesAreTheSameForAll) {
  Node& a = Started(1, kBoth);
  Node& mount = Started(11, 0);
  const ClusterSpace wanted{"llama", {1, 2}, R"({"block_bytes":4096})", 0};
  const auto made = a->CreateSpace(wanted);
  ASSERT_TRUE(made.ok()) << made.error().text;
  EXPECT_EQ(made->settings, wanted.settings);
  ClusterSpace other = wanted;
  other.id = {3, 4};
  EXPECT_EQ(mount->CreateSpace(other).code(), Code::kExists);
  // No stale miss: it is asked for where it is not known.
  const auto seen = mount->GetSpace("llama");
  ASSERT_TRUE(seen.ok() && seen->has_value());
  EXPECT_EQ(**seen, *made);
  EXPECT_EQ((*mount->GetSpace(SpaceId{1, 2}))->name, "llama");
  EXPECT_FALSE(mount->GetSpace("nobody")->has_value());
  EXPECT_EQ(mount->CreateSpace({"a/b", {5, 6}, "{}", 0}).code(), Code::kInvalid);
  EXPECT_EQ(mount->CreateSpace({"a", {5, 6}, "[]", 0}).code(), Code::kInvalid);

  ClusterSpace changed = *made;
  changed.settings = R"({"block_bytes":8192})";
  const auto set = mount->SetSpace(changed);
  ASSERT_TRUE(set.ok());
  EXPECT_GT(set->revision, made->revision);
  EXPECT_EQ(a->SetSpace(changed).code(), Code::kStale);
  const uint64_t version = a->SpacesVersion();
  EXPECT_TRUE(Eventually([&] {
    const auto all = a->ListSpaces();
    return all.size() == 1 && all[0] == *set;
  })) << "by the watch";
  EXPECT_EQ(a->RemoveSpace(*made).code(), Code::kStale);
  EXPECT_TRUE(mount->RemoveSpace(*set).ok());
  EXPECT_TRUE(Eventually([&] { return a->ListSpaces().empty(); }));
  EXPECT_GT(a->SpacesVersion(), version);
}

TEST_F(ClusterRuntimeTest, WhatIsForNodesIsDeniedToMounts) {
  Node& a = Started(1, kBoth);
  ASSERT_TRUE(Settled(1));
  PublishChain(a, 1, 1);
  const auto place = a->Stat({kSpace, Key(1, 0)}, kLong)->block.places[0];
  const auto ask = [&](rdma::Transport& from, rdma::Method method, rdma::Bytes body) {
    return from.Connect(a->address())->CallAndWait(method, std::move(body), {.timeout = kLong});
  };
  const RequestBody forget = ForgetRequest{{kSpace, Key(1, 0)}, place.generation};
  const uint64_t epoch = a->Describe().view->epoch;
  const auto mount = MakeTransport(20, "evil", false);
  EXPECT_EQ(ask(*mount, MethodOf(forget), Encode(Request{epoch, forget})).code, Code::kDenied);
  EXPECT_EQ(ask(*mount, kMethodPromise, EncodeNumber(epoch)).code, Code::kDenied);
  // No node speaks for another.
  const auto node = MakeTransport(21, "node21", true);
  const RequestBody release = ReleaseRequest{a->self(), {}};
  EXPECT_EQ(ask(*node, MethodOf(release), Encode(Request{epoch, release})).code, Code::kDenied);
  // Words that are none.
  EXPECT_EQ(ask(*mount, MethodOf(forget), rdma::Bytes(3)).code, Code::kCorrupt);
  EXPECT_EQ(ask(*mount, 0x7777, {}).code, Code::kUnsupported);
  EXPECT_TRUE(a.copies.Has({kSpace, Key(1, 0)}));
  // What a mount may ask.
  const rdma::Reply status = ask(*mount, kMethodStatus, {});
  ASSERT_EQ(status.code, Code::kOk);
  const auto json = nlohmann::json::parse(
      std::string_view(reinterpret_cast<const char*>(status.head.data()), status.head.size()),
      nullptr, false);
  ASSERT_TRUE(json.is_object());
  EXPECT_EQ(json["shards"], kShardCount);
  EXPECT_EQ(json["copies"], 1);
}

TEST_F(ClusterRuntimeTest, UseIsToldToTheHolder) {
  Node& a = Started(1, kBoth);
  Node& mount = Started(11, 0);
  ASSERT_TRUE(Settled(1));
  mount->NoteUsed({kSpace, Key(1, 0)}, a->self());
  mount->NoteUsed({kSpace, Key(1, 1)}, a->self());
  EXPECT_TRUE(Eventually([&] { return a.copies.used() == 2; }));
}

TEST_F(ClusterRuntimeTest, StopEndsWhoWaits) {
  Node& a = Started(1, kBoth);
  Node& mount = Started(11, 0);
  ASSERT_TRUE(Settled(1));
  a->StopSilently();  // nobody will answer
  std::atomic<bool> began{false};
  Result<LocatedBlock> result = Error{};
  std::thread waiting([&] {
    began = true;
    result = mount->Stat({kSpace, Key(1, 0)}, 10 * kLong);
  });
  while (!began || mount->Describe().operations == 0) std::this_thread::yield();
  mount->Stop();
  waiting.join();
  EXPECT_EQ(result.code(), Code::kCancelled);
}

// Many at once: publishing, matching, reading and dropping, while a node leaves and comes back.
TEST_F(ClusterRuntimeTest, ManyCallersAtOnceNeverSeeWrongBytes) {
  Node& a = Started(1, kBoth);
  Node& b = Started(2, kBoth);
  Node& mount = Started(11, 0);
  ASSERT_TRUE(Settled(2));
  std::vector<std::thread> callers;
  std::atomic<uint32_t> published{0}, read{0};
  for (uint32_t worker = 0; worker < 4; ++worker) {
    callers.emplace_back([&, worker] {
      Node& at = worker % 2 == 0 ? mount : a;
      for (uint32_t round = 0; round < 12; ++round) {
        const uint32_t chain = 1000 + worker * 100 + round;
        for (uint32_t i = 0; i < 5; ++i) {
          const BlockKey key = Key(chain, i);
          const auto made = Publish(at, {kSpace, key}, i == 0 ? BlockKey{} : Key(chain, i - 1),
                                    BytesOf(key, 5000), 1);
          if (!made.ok()) break;
          ++published;
        }
        read += ReadChain(worker % 2 == 0 ? a : mount, chain, 5);
        if (round % 3 == 0) (void)mount->Drop({kSpace, Key(chain, 2)}, kLong);
      }
    });
  }
  for (int i = 0; i < 2; ++i) {
    b->Stop();
    b.runtime = Make(2, kBoth);
    b.copies.RestoreInto(*b);
    Begin(b);
  }
  for (std::thread& caller : callers) caller.join();
  std::printf("%u published, %u read\n", published.load(), read.load());
  EXPECT_GT(published, 0u);
  EXPECT_GT(read, 0u);
}

}  // namespace
}  // namespace kvcfs::meta
