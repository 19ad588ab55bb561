// What a mount reads of owners' tables, over loopback: READs are counted there, and come as the
// test wants it.
#include "meta/match_reader.h"

#include <optional>

#include <gtest/gtest.h>

#include "meta/chain_key.h"
#include "rdma/loopback.h"

namespace kvcfs::meta {
namespace {

constexpr SpaceId kSpace{1, 2};
constexpr NodeId kOwner{2, 2};
constexpr Millis kTime{1000};

// An owner with a table, that tells where it is.
class Owner final : public rdma::Service {
 public:
  explicit Owner(rdma::Transport* transport) : transport_(transport), table(1024) {
    Expose();
    ClusterView view{.epoch = 4, .nodes = {}};
    view.nodes.push_back({.id = kOwner, .incarnation = 6, .roles = kRoleMetadata, .address = ""});
    table.Begin(view, 6);
  }
  ~Owner() override { transport_->Withdraw(region_); }

  // Another region: who knows the one before finds nothing there.
  void ExposeAnew() {
    transport_->Withdraw(region_);
    Expose();
  }
  void Serve(rdma::Method method, rdma::Bytes, std::span<std::byte>,
             std::unique_ptr<rdma::Responder> responder) override {
    EXPECT_EQ(method, kMethodMatches);
    ++asked;
    responder->Answer(Encode(MatchTablePlace{region_, has_table ? table.buckets() : 0}));
  }

 private:
  void Expose() { region_ = transport_->Expose(table.memory(), rdma::Access::kRead).value(); }
  rdma::Transport* const transport_;
  uint64_t region_ = 0;

 public:
  MatchTable table;
  int asked = 0;
  bool has_table = true;
};

class MatchReaderTest : public testing::Test {
 protected:
  MatchReaderTest()
      : server_(Make("owner", kOwner)), client_(Make("mount", {1, 1})), owner_(server_.get()) {
    const auto address = server_->Listen({.host = "owner", .port = 0}, &owner_);
    ClusterView view{.epoch = 4, .nodes = {}};
    view.nodes.push_back(
        {.id = kOwner, .incarnation = 6, .roles = kRoleMetadata, .address = address->ToString()});
    peers_.emplace(client_.get());
    peers_->SetView(view);
    reader_.emplace(OneSided::kAlways, &fabric_.clock(), &*peers_);
  }
  ~MatchReaderTest() override {
    peers_->Clear();
    client_.reset();
    fabric_.RunUntilIdle();
  }
  std::unique_ptr<rdma::Transport> Make(const std::string& name, const NodeId& id) {
    rdma::TransportOptions options;
    options.self = id;
    options.name = name;
    return fabric_.MakeEndpoint(name, options);
  }
  // A chain of so many blocks, all of it in the table.
  std::vector<BlockKey> PutChain(uint32_t count) {
    std::vector<BlockKey> keys;
    for (uint32_t i = 0; i < count; ++i) {
      const BlockKey parent = keys.empty() ? BlockKey{} : keys.back();
      keys.push_back(ChainKey(parent, i));
      FoundBlock block{keys[i], 4096 + i, 7, 8, {}, 1};
      block.places.push_back({kOwner, i + 1});
      const uint32_t anchor = AnchorOf(i);
      owner_.table.Put({kSpace, keys[anchor]}, i - anchor, {kSpace, keys[i]}, parent, i, block);
    }
    return keys;
  }
  static MatchProbe ProbeOf(const std::vector<BlockKey>& keys) {
    MatchProbe probe{.to = kOwner, .id = 1, .op = 1, .space = kSpace};
    for (const GroupRange& range : GroupsOf(static_cast<uint32_t>(keys.size()))) {
      probe.groups.push_back({keys[range.first], range.count});
    }
    return probe;
  }
  // Nothing: it was not sent.
  std::optional<std::vector<uint64_t>> Read(const MatchProbe& probe) {
    std::optional<std::vector<uint64_t>> words;
    const bool sent =
        reader_->Read(probe, kTime, [&](std::vector<uint64_t> came) { words = std::move(came); });
    fabric_.RunUntilIdle();
    EXPECT_EQ(sent, words.has_value()) << "told once, if it was sent";
    return words;
  }

  rdma::LoopbackFabric fabric_{1};
  std::unique_ptr<rdma::Transport> server_, client_;
  Owner owner_;
  std::optional<ClusterPeers> peers_;
  std::optional<MatchReader> reader_;
};

TEST_F(MatchReaderTest, AGroupIsOneReadAndAllGoOutAtOnce) {
  const auto keys = PutChain(32);
  const MatchProbe probe = ProbeOf(keys);
  ASSERT_EQ(probe.groups.size(), 6u);
  EXPECT_FALSE(Read(probe)) << "where the table is, is not known yet";
  const auto before = fabric_.counts();
  const rdma::Micros begun = fabric_.now();
  const auto words = Read(probe);
  const auto after = fabric_.counts();
  EXPECT_EQ(after.reads - before.reads, 6u);
  EXPECT_EQ(after.round_trips - before.round_trips, 6u) << "and no call";
  // One round: no fault delays a frame by more than 50 us.
  EXPECT_LE(fabric_.now() - begun, rdma::Micros(100));
  EXPECT_EQ(owner_.asked, 1);
  ASSERT_TRUE(words);
  ASSERT_EQ(words->size(), 32 * kMatchBucketWords);
  for (uint32_t i = 0; i < 32; ++i) {
    const auto bucket = std::span(*words).subspan(i * kMatchBucketWords).first<kMatchBucketWords>();
    const auto entry = LookUpMatch(bucket, {kSpace, keys[i]}).entry;
    ASSERT_TRUE(entry) << i;
    EXPECT_EQ(entry->ordinal, i);
    EXPECT_EQ(entry->length, 4096 + i);
  }
}

TEST_F(MatchReaderTest, AfterAReadThatFailedItAsksAnewWhereTheTableIs) {
  const MatchProbe probe = ProbeOf(PutChain(4));
  EXPECT_FALSE(Read(probe));
  EXPECT_FALSE(Read(probe)->empty());
  owner_.ExposeAnew();
  const auto failed = Read(probe);
  ASSERT_TRUE(failed);
  EXPECT_TRUE(failed->empty());
  EXPECT_FALSE(Read(probe));
  EXPECT_EQ(owner_.asked, 2);
  EXPECT_FALSE(Read(probe)->empty());
}

TEST_F(MatchReaderTest, AnOwnerWithoutATableIsAskedForItNowAndThen) {
  owner_.has_table = false;
  const MatchProbe probe = ProbeOf(PutChain(1));
  for (int i = 0; i < 5; ++i) EXPECT_FALSE(Read(probe));
  EXPECT_EQ(owner_.asked, 1);
  fabric_.RunUntil(fabric_.now() + rdma::Micros(2'000'001));
  owner_.has_table = true;
  EXPECT_FALSE(Read(probe));
  EXPECT_EQ(owner_.asked, 2);
  EXPECT_TRUE(Read(probe));
}

TEST_F(MatchReaderTest, OnlyWhereTheHardwareReadsUnlessItIsWantedAlways) {
  const MatchProbe probe = ProbeOf(PutChain(1));
  reader_.emplace(OneSided::kNever, &fabric_.clock(), &*peers_);
  EXPECT_EQ(reader_->Choose(1), Way::kCall);
  EXPECT_FALSE(Read(probe));
  // Loopback reads by way of the owner.
  reader_.emplace(OneSided::kAuto, &fabric_.clock(), &*peers_);
  EXPECT_FALSE(Read(probe));
  EXPECT_FALSE(Read(probe));
  EXPECT_EQ(owner_.asked, 0);
  MatchProbe nobody = probe;
  nobody.to = {9, 9};
  EXPECT_FALSE(Read(nobody));
}

TEST_F(MatchReaderTest, TheWayThatTookLessIsTakenAndATryNowAndThen) {
  reader_.emplace(OneSided::kAuto, &fabric_.clock(), &*peers_);
  int read = 0, called = 0;
  for (int i = 0; i < 640; ++i) {
    const Way way = reader_->Choose(6);
    Outcome outcome{};
    (way == Way::kOneSided ? outcome.reads.read : outcome.reads.asked) = 6;
    ++(way == Way::kOneSided ? read : called);
    reader_->Took(outcome, false, 6, std::chrono::microseconds(way == Way::kOneSided ? 5 : 20));
    // What asks for a lease had no choice, and says nothing.
    Outcome leased{};
    leased.reads.asked = 6;
    reader_->Took(leased, true, 6, std::chrono::microseconds(1));
  }
  EXPECT_GT(read, 600);
  EXPECT_GT(called, 5);
}

}  // namespace
}  // namespace kvcfs::meta
