// One process, many endpoints: what is promised without faults, what each fault does, and that a
// seed decides everything.
#include "rdma/loopback.h"

#include <gtest/gtest.h>

#include "rdma/wire.h"
#include "tests/unit/rdma/echo_service.h"

namespace kvcfs::rdma {
namespace {

TransportOptions OptionsOf(uint64_t node) {
  TransportOptions options;
  options.self = {node, node};
  return options;
}

struct Answered {
  int times = 0;
  Reply reply;
  Micros at{0};
};

class LoopbackTest : public testing::Test {
 protected:
  void SetUp() override { Open(1, {}); }
  void TearDown() override {
    peer_.reset();
    client_.reset();
    server_.reset();
  }

  void Open(uint64_t seed, const LoopbackFaults& faults) {
    TearDown();
    fabric_ = std::make_unique<LoopbackFabric>(seed, faults);
    server_ = fabric_->MakeEndpoint("server", OptionsOf(1));
    client_ = fabric_->MakeEndpoint("client", OptionsOf(2));
    address_ = *server_->Listen({.host = "server", .port = 0}, &service_);
    peer_ = client_->Connect(address_);
  }

  Completion Into(Answered& answered) {
    return [this, &answered](Reply reply) {
      ++answered.times;
      answered.reply = std::move(reply);
      answered.at = fabric_->now();
    };
  }
  // Runs until it is answered.
  Answered Call(Method method, Bytes request, const CallOptions& options = {}) {
    Answered answered;
    peer_->Call(method, std::move(request), options, Into(answered));
    EXPECT_EQ(answered.times, 0) << "completed inside of Call";
    while (answered.times == 0 && fabric_->Step()) {
    }
    EXPECT_EQ(answered.times, 1);
    return answered;
  }

  EchoService service_;
  std::unique_ptr<LoopbackFabric> fabric_;
  std::unique_ptr<Transport> server_, client_;
  std::shared_ptr<Peer> peer_;
  Address address_;
};

TEST_F(LoopbackTest, ACallIsAnsweredWithHeadAndBulk) {
  const Bytes sent = Pattern(5000, 1);
  Bytes received(6000);
  const auto answered = Call(kEcho, ToBytes("hello"), {.send = sent, .receive = received});
  EXPECT_EQ(answered.reply.code, Code::kOk);
  EXPECT_EQ(ToText(answered.reply.head), "hello");
  ASSERT_EQ(answered.reply.bulk_bytes, 5000u);
  received.resize(5000);
  EXPECT_EQ(received, sent);
  EXPECT_EQ(service_.last_peer().name, "client");
  EXPECT_EQ(service_.last_peer().node, (NodeId{2, 2}));
}

TEST_F(LoopbackTest, RefusedForgottenTooMuch) {
  EXPECT_EQ(Call(kRefuse, {}).reply.code, Code::kNotFound);
  EXPECT_EQ(ToText(Call(kRefuse, {}).reply.head), "no such thing");
  EXPECT_EQ(Call(kForget, {}).reply.code, Code::kUnavailable);
  EXPECT_EQ(Call(kTooMuch, {}).reply.code, Code::kInternal);
  EXPECT_EQ(Call(kEcho, Bytes((1 << 20) + 1)).reply.code, Code::kTooLarge);
}

TEST_F(LoopbackTest, BulkLandsWhereTheServiceSaysAndAnswersStayUntilSent) {
  Bytes slot(100);
  service_.SetPlace(slot);
  const Bytes sent = Pattern(100, 2);
  Call(kEcho, {}, {.send = sent});
  EXPECT_EQ(slot, sent);
  EXPECT_EQ(service_.placed, 1);
  service_.SetMemory(Pattern(64, 3));
  Bytes received(64);
  EXPECT_EQ(Call(kBulk, {}, {.receive = received}).reply.bulk_bytes, 64u);
  EXPECT_EQ(received, service_.memory());
  EXPECT_EQ(service_.in_use, 0);
}

TEST_F(LoopbackTest, OneSidedReadsAndWritesWithinBounds) {
  Bytes memory = Pattern(1000, 4);
  const uint64_t region = *server_->Expose(memory, Access::kReadWrite);
  const uint64_t fixed = *server_->Expose(memory, Access::kRead);
  const auto access = [&](bool write, const RemoteSpan& span, Bytes& bytes) {
    Answered answered;
    if (write) peer_->Write(span, bytes, Millis(100), Into(answered));
    if (!write) peer_->Read(span, bytes, Millis(100), Into(answered));
    fabric_->RunUntilIdle();
    EXPECT_EQ(answered.times, 1);
    return answered.reply.code;
  };
  Bytes bytes(300);
  EXPECT_EQ(access(false, {region, 700, 300}, bytes), Code::kOk);
  EXPECT_TRUE(std::equal(bytes.begin(), bytes.end(), memory.begin() + 700));
  EXPECT_EQ(access(false, {region, 701, 300}, bytes), Code::kInvalid);
  EXPECT_EQ(access(false, {region, UINT64_MAX, 300}, bytes), Code::kInvalid);
  EXPECT_EQ(access(false, {region + 7, 0, 300}, bytes), Code::kStale);
  bytes = Pattern(300, 5);
  EXPECT_EQ(access(true, {fixed, 0, 300}, bytes), Code::kDenied);
  EXPECT_EQ(access(true, {region, 0, 300}, bytes), Code::kOk);
  EXPECT_TRUE(std::equal(bytes.begin(), bytes.end(), memory.begin()));
  server_->Withdraw(region);
  EXPECT_EQ(access(false, {region, 0, 300}, bytes), Code::kStale);
  EXPECT_EQ(fabric_->counts().reads, 5u);
  EXPECT_EQ(fabric_->counts().writes, 2u);
}

TEST_F(LoopbackTest, DroppedFramesAreTimeouts) {
  LoopbackFaults faults;
  faults.drop = 1;
  fabric_->SetFaults(faults);
  const Micros begin = fabric_->now();
  const auto answered = Call(kEcho, {}, {.timeout = Millis(70)});
  EXPECT_EQ(answered.reply.code, Code::kTimeout);
  EXPECT_EQ(answered.at - begin, Micros(70'000));
  EXPECT_EQ(service_.served, 0);
  fabric_->SetFaults({});
  EXPECT_EQ(Call(kEcho, {}).reply.code, Code::kOk);
}

TEST_F(LoopbackTest, ADuplicateIsServedTwiceAndAnsweredOnce) {
  LoopbackFaults faults;
  faults.duplicate = 1;
  fabric_->SetFaults(faults);
  Answered answered;
  peer_->Call(kEcho, {}, {}, Into(answered));
  fabric_->RunUntilIdle();
  EXPECT_EQ(service_.served, 2);
  EXPECT_EQ(answered.times, 1);
}

TEST_F(LoopbackTest, FramesKeepTheirOrderUnlessReordered) {
  const auto inversions = [&](double reorder) {
    LoopbackFaults faults;
    faults.reorder = reorder;
    Open(7, faults);
    std::vector<int> order;
    for (int i = 0; i < 100; ++i) {
      peer_->Call(kEcho, {}, {}, [&order, i](Reply) { order.push_back(i); });
    }
    fabric_->RunUntilIdle();
    EXPECT_EQ(order.size(), 100u);
    int count = 0;
    for (size_t i = 1; i < order.size(); ++i) count += order[i] < order[i - 1] ? 1 : 0;
    return count;
  };
  EXPECT_EQ(inversions(0), 0);
  EXPECT_GT(inversions(0.5), 5);
}

TEST_F(LoopbackTest, DelaysAreWithinTheirBounds) {
  LoopbackFaults faults;
  faults.delay_min = Micros(100);
  faults.delay_max = Micros(300);
  fabric_->SetFaults(faults);
  for (int i = 0; i < 50; ++i) {
    const Micros begin = fabric_->now();
    const Micros took = Call(kEcho, {}).at - begin;
    EXPECT_GE(took, Micros(200));
    EXPECT_LE(took, Micros(602));
  }
}

TEST_F(LoopbackTest, ATornReadMixesTwoTimesBetween64Bytes) {
  LoopbackFaults faults;
  faults.torn = 1;
  fabric_->SetFaults(faults);
  alignas(64) static std::array<std::byte, 4096> memory;
  const uint64_t region = *server_->Expose(memory, Access::kRead);
  bool mixed = false;
  for (int round = 0; round < 50; ++round) {
    memory.fill(std::byte{0});
    Bytes bytes(4000);
    Answered answered;
    peer_->Read({region, 32, 4000}, bytes, Millis(100), Into(answered));
    // The owner writes at some moment in between.
    fabric_->After("server", Micros(20 + round), [] { memory.fill(std::byte{1}); });
    fabric_->RunUntilIdle();
    ASSERT_EQ(answered.reply.code, Code::kOk);
    std::byte least{1}, most{0};
    for (size_t i = 0; i < bytes.size(); ++i) {
      least = std::min(least, bytes[i]);
      most = std::max(most, bytes[i]);
      ASSERT_TRUE((i + 32) % 64 == 0 || i == 0 || bytes[i] == bytes[i - 1]) << i;
    }
    mixed |= least != most;
  }
  EXPECT_TRUE(mixed);
}

TEST_F(LoopbackTest, APartitionIsATimeoutThenUnavailable) {
  fabric_->Partition("server", "client");  // requests come through, replies do not
  auto answered = Call(kEcho, {}, {.timeout = Millis(50)});
  EXPECT_EQ(answered.reply.code, Code::kTimeout);
  EXPECT_EQ(service_.served, 1);
  const Micros begin = fabric_->now();
  answered = Call(kEcho, {}, {.timeout = Millis(60'000)});
  EXPECT_EQ(answered.reply.code, Code::kUnavailable);
  EXPECT_LT(answered.at - begin, Micros(2'100'000));
  EXPECT_FALSE(peer_->connected());
  EXPECT_EQ(Call(kEcho, {}).reply.code, Code::kUnavailable);
  fabric_->Heal("client", "server");
  EXPECT_TRUE(peer_->connected());
  EXPECT_EQ(Call(kEcho, {}).reply.code, Code::kOk);
}

TEST_F(LoopbackTest, ACrashIsSeenByItsPeersAndByNobodyInIt) {
  Answered answered, own;
  auto other = fabric_->MakeEndpoint("other", OptionsOf(3));
  EchoService other_service;
  const Address there = *other->Listen({}, &other_service);
  server_->Connect(there)->Call(kHold, {}, {.timeout = Millis(60'000)}, Into(own));
  peer_->Call(kHold, {}, {.timeout = Millis(60'000)}, Into(answered));
  while (service_.held_count() == 0 || other_service.held_count() == 0) {
    ASSERT_TRUE(fabric_->Step());
  }
  const Micros begin = fabric_->now();
  fabric_->Crash("server");
  fabric_->RunUntilIdle();
  EXPECT_EQ(answered.reply.code, Code::kUnavailable);
  EXPECT_LT(answered.at - begin, Micros(1000));
  EXPECT_EQ(own.times, 0);
  service_.AnswerHeld();  // of a process that is gone
  other_service.AnswerHeld();
  fabric_->RunUntilIdle();
  EXPECT_EQ(answered.times, 1);
  EXPECT_EQ(own.times, 0);
  EXPECT_EQ(Call(kEcho, {}).reply.code, Code::kUnavailable);

  server_ = fabric_->MakeEndpoint("server", OptionsOf(1));
  ASSERT_EQ(server_->Listen(address_, &service_).value(), address_);
  EXPECT_EQ(Call(kEcho, {}).reply.code, Code::kOk);
}

TEST_F(LoopbackTest, RegionsOfAnEarlierLifeAreStale) {
  Bytes memory(64), bytes(64);
  const uint64_t region = *server_->Expose(memory, Access::kRead);
  fabric_->Crash("server");
  server_ = fabric_->MakeEndpoint("server", OptionsOf(1));
  ASSERT_TRUE(server_->Listen(address_, &service_).ok());
  ASSERT_TRUE(server_->Expose(memory, Access::kRead).ok());
  Answered answered;
  peer_->Read({region, 0, 64}, bytes, Millis(100), Into(answered));
  fabric_->RunUntilIdle();
  EXPECT_EQ(answered.reply.code, Code::kStale);
}

TEST_F(LoopbackTest, WhoIsPausedAnswersWhenItWakes) {
  fabric_->Pause("server");
  Answered answered;
  peer_->Call(kEcho, {}, {.timeout = Millis(500)}, Into(answered));
  fabric_->RunUntil(fabric_->now() + Micros(400'000));
  EXPECT_EQ(answered.times, 0);
  fabric_->Resume("server");
  fabric_->RunUntilIdle();
  EXPECT_EQ(answered.reply.code, Code::kOk);
}

TEST_F(LoopbackTest, BoundsAreKept) {
  TransportOptions options = OptionsOf(5);
  options.in_flight_bytes_max = 1000;
  auto narrow = fabric_->MakeEndpoint("narrow", options);
  auto peer = narrow->Connect(address_);
  Bytes received(600);
  Answered first, second, third;
  peer->Call(kEcho, {}, {.receive = received}, Into(first));
  peer->Call(kEcho, {}, {.receive = received}, Into(second));
  fabric_->RunUntilIdle();
  EXPECT_EQ(first.reply.code, Code::kOk);
  EXPECT_EQ(second.reply.code, Code::kBusy);
  peer->Call(kEcho, {}, {.receive = received}, Into(third));
  fabric_->RunUntilIdle();
  EXPECT_EQ(third.reply.code, Code::kOk);

  options = OptionsOf(6);
  options.serving_max = 2;
  auto modest = fabric_->MakeEndpoint("modest", options);
  EchoService service;
  peer = client_->Connect(*modest->Listen({}, &service));
  std::array<Answered, 3> answers;
  for (auto& answered : answers) peer->Call(kHold, {}, {}, Into(answered));
  while (service.held_count() < 2 || answers[2].times == 0) ASSERT_TRUE(fabric_->Step());
  EXPECT_EQ(answers[2].reply.code, Code::kBusy);
  service.AnswerHeld();
  fabric_->RunUntilIdle();
  EXPECT_EQ(answers[1].reply.code, Code::kOk);
}

TEST_F(LoopbackTest, AnotherClusterIsRefusedWithAText) {
  TransportOptions options = OptionsOf(9);
  options.cluster = "green";
  auto stranger = fabric_->MakeEndpoint("stranger", options);
  Answered answered;
  stranger->Connect(address_)->Call(kEcho, {}, {}, Into(answered));
  fabric_->RunUntilIdle();
  EXPECT_EQ(answered.reply.code, Code::kDenied);
  EXPECT_NE(ToText(answered.reply.head).find("green"), std::string::npos);
  EXPECT_EQ(service_.served, 0);
}

TEST_F(LoopbackTest, OneSidedAccessIsForWhoMayUseAllNamespaces) {
  Bytes memory = Pattern(100, 1), bytes(100);
  const uint64_t region = *server_->Expose(memory, Access::kRead);
  auto tenant = fabric_->MakeEndpoint(
      "tenant", OptionsOf(7),
      PeerIdentity{.node = {}, .name = "tenant", .all_namespaces = false, .namespaces = {"a"}});
  Answered answered;
  tenant->Connect(address_)->Read({region, 0, 100}, bytes, Millis(1000), Into(answered));
  fabric_->RunUntilIdle();
  EXPECT_EQ(answered.reply.code, Code::kDenied);
  EXPECT_EQ(bytes, Bytes(100));
}

TEST_F(LoopbackTest, AClosedTransportCancelsItsCalls) {
  Answered answered;
  peer_->Call(kHold, {}, {}, Into(answered));
  peer_.reset();
  client_.reset();
  EXPECT_EQ(answered.times, 1);
  EXPECT_EQ(answered.reply.code, Code::kCancelled);
}

TEST_F(LoopbackTest, CountsFollowTheCostModel) {
  CostMeter meter;
  fabric_->Measure("client", &meter);
  Bytes memory(1000), bytes(100);
  const uint64_t region = *server_->Expose(memory, Access::kRead);
  int left = 4;
  for (int i = 0; i < 4; ++i) {
    peer_->Read({region, 0, 100}, bytes, Millis(100), [&](Reply) {
      if (--left == 0) peer_->Call(kEcho, ToBytes("x"), {}, [](Reply) {});
    });
  }
  fabric_->RunUntilIdle();
  EXPECT_EQ(meter.depth(), 2u);
  EXPECT_EQ(meter.work_requests(), 5u);
  EXPECT_EQ(meter.bytes(), 4 * (100 + kSpanBytes) + 2);
  EXPECT_EQ(fabric_->counts().round_trips, 5u);
  EXPECT_EQ(fabric_->counts().messages, 10u);
  EXPECT_NEAR(meter.micros(), 2 * 2.7 + 3 / 2.55 + 5 * 0.05 + double(meter.bytes()) / 10'400, 1e-9);
}

// The same seed, twice: every fault at once.
uint64_t TraceOf(uint64_t seed) {
  LoopbackFaults faults{.drop = 0.05, .duplicate = 0.1, .reorder = 0.2, .torn = 0.5, .slow = 0.02};
  LoopbackFabric fabric(seed, faults);
  EchoService services[3];
  Bytes memory(4096);
  std::vector<std::unique_ptr<Transport>> nodes;
  std::vector<Address> addresses;
  std::vector<uint64_t> regions;
  const std::string names[3] = {"a", "b", "c"};
  for (uint64_t i = 0; i < 3; ++i) {
    nodes.push_back(fabric.MakeEndpoint(names[i], OptionsOf(i + 1)));
    addresses.push_back(*nodes[i]->Listen({}, &services[i]));
    regions.push_back(*nodes[i]->Expose(memory, Access::kReadWrite));
  }
  Bytes bytes(1000);
  std::vector<std::shared_ptr<Peer>> peers;
  uint64_t sum = 0;
  int answers = 0;
  for (size_t round = 0; round < 200; ++round) {
    const size_t from = round % 3, to = (round / 3) % 3;
    peers.push_back(nodes[from]->Connect(addresses[to]));
    const auto done = [&](Reply reply) {
      ++answers;
      sum = sum * 31 + static_cast<uint64_t>(reply.code) + reply.head.size();
    };
    if (round % 2 == 0) peers.back()->Call(kEcho, Pattern(size_t(round), 1), {}, done);
    if (round % 2 == 1) peers.back()->Read({regions[to], 0, 1000}, bytes, Millis(200), done);
    if (round == 50) fabric.PartitionBoth("a", "b");
    if (round == 90) fabric.HealAll();
    if (round == 100) fabric.Pause("c");
    if (round == 130) fabric.Resume("c");
    for (int i = 0; i < 4; ++i) fabric.Step();
  }
  fabric.RunUntilIdle();
  EXPECT_EQ(answers, 200);
  return fabric.trace_hash() ^ sum;
}

TEST(LoopbackSeeds, ASeedDecidesEverything) {
  std::vector<uint64_t> traces;
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    traces.push_back(TraceOf(seed));
    EXPECT_EQ(TraceOf(seed), traces.back()) << seed;
  }
  std::sort(traces.begin(), traces.end());
  EXPECT_EQ(std::unique(traces.begin(), traces.end()), traces.end());
}

TEST(LoopbackThread, CallsThatWaitAreAnswered) {
  LoopbackFabric fabric(1);
  EchoService service;
  auto server = fabric.MakeEndpoint("server", OptionsOf(1));
  auto client = fabric.MakeEndpoint("client", OptionsOf(2));
  auto peer = client->Connect(*server->Listen({}, &service));
  fabric.Start();
  EXPECT_EQ(ToText(peer->CallAndWait(kEcho, ToBytes("hi"), {}).head), "hi");
  EXPECT_EQ(peer->CallAndWait(kHold, {}, {.timeout = Millis(20)}).code, Code::kTimeout);
  Bytes memory = Pattern(100, 1), bytes(100);
  const uint64_t region = *server->Expose(memory, Access::kReadWrite);
  EXPECT_EQ(peer->ReadAndWait({region, 0, 100}, bytes, Millis(1000)).code, Code::kOk);
  EXPECT_EQ(bytes, memory);
  EXPECT_EQ(peer->WriteAndWait({region, 0, 100}, Pattern(100, 2), Millis(1000)).code, Code::kOk);
  EXPECT_EQ(memory, Pattern(100, 2));
  service.ForgetHeld();
  server.reset();
  EXPECT_EQ(peer->CallAndWait(kEcho, {}, {}).code, Code::kUnavailable);
}

}  // namespace
}  // namespace kvcfs::rdma
