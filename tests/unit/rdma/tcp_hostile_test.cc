// What strangers and greedy peers get who talk to a transport over TCP.
#include <random>

#include "tests/unit/rdma/tcp_fixture.h"

namespace kvcfs::rdma {
namespace {

TEST_F(TcpTest, HostileFramesEndTheirConnectionOnly) {
  ASSERT_EQ(Call(kEcho).code, Code::kOk);
  uint64_t expected = 0;
  const auto closes = [&](const char* what, const std::function<void(Stranger&)>& act) {
    SCOPED_TRACE(what);
    Stranger stranger(address_);
    act(stranger);
    stranger.ReadToEnd();
    EXPECT_TRUE(Eventually([&] { return server_->Stats().hostile_frames == expected + 1; }));
    ++expected;
  };
  closes("not ours", [](Stranger& s) {
    s.Send(
        ToBytes("GET / HTTP/1.1\r\nHost: example\r\nUser-Agent: a browser that came here\r\n\r\n"));
  });
  closes("no HELLO", [](Stranger& s) { s.SendFrame({.kind = FrameKind::kPing}, {}); });
  closes("bulk before HELLO",
         [](Stranger& s) { s.SendFrame({.kind = FrameKind::kCall}, {}, Bytes(100)); });
  closes("two HELLOs", [](Stranger& s) { s.Greet(), s.Greet(); });
  closes("a reply", [](Stranger& s) {
    s.Greet();
    s.SendFrame({.kind = FrameKind::kReply, .request_id = 1}, {});
  });
  closes("a huge head", [](Stranger& s) {
    s.Greet();
    s.Send(EncodeHeader({.kind = FrameKind::kCall}, Bytes((1 << 20) + 1)));
  });
  closes("a huge bulk", [](Stranger& s) {
    s.Greet();
    s.Send(EncodeHeader({.kind = FrameKind::kCall, .bulk_bytes = 0x80000000}, {}));
  });
  closes("a WRITE of another length", [](Stranger& s) {
    s.Greet();
    s.SendFrame({.kind = FrameKind::kWrite}, EncodeSpan({1, 0, 50}), Bytes(60));
  });
  closes("a damaged head", [](Stranger& s) {
    s.Greet();
    Bytes head = ToBytes("head");
    const HeaderBytes header = EncodeHeader({.kind = FrameKind::kCall}, head);
    head[0] = std::byte{0};
    s.Send(header);
    s.Send(head);
  });
  EXPECT_EQ(Call(kEcho).code, Code::kOk);
  EXPECT_EQ(client_->Stats().hostile_frames, 0u);
}

TEST_F(TcpTest, AnotherClusterHearsWhy) {
  Stranger stranger(address_);
  stranger.SendFrame({.kind = FrameKind::kHello}, EncodeHello({.cluster = "green", .name = "x"}));
  const Bytes said = stranger.ReadToEnd();
  const std::string text(reinterpret_cast<const char*>(said.data()), said.size());
  EXPECT_NE(text.find("we are of 'kvcfs', the peer is of 'green'"), std::string::npos);
}

TEST_F(TcpTest, WhoSaysNothingIsClosed) {
  TransportOptions options = OptionsOf(1);
  options.heartbeat = Millis(20);
  Open(options, OptionsOf(2));
  Stranger silent(address_), greets(address_);
  greets.Greet();
  silent.ReadToEnd();
  greets.ReadToEnd();
}

TEST_F(TcpTest, WhoDoesNotTakeAnswersIsNotReadFrom) {
  TransportOptions options = OptionsOf(1);
  options.unsent_bytes_max = 1 << 20;
  Open(options, OptionsOf(2));
  service_.SetMemory(Pattern(256 << 10, 1));
  for (const bool bulk : {false, true}) {
    Stranger stranger(address_);
    stranger.Greet({}, bulk);
    for (int i = 0; i < 100; ++i) {
      stranger.SendFrame({.kind = FrameKind::kCall,
                          .method = kBulk,
                          .deadline_ms = 60'000,
                          .request_id = 1,
                          .receive_bytes = 256 << 10},
                         {});
    }
    EXPECT_EQ(stranger.ReadFrame().kind, FrameKind::kHello);
    for (int i = 0; i < 100; ++i) ASSERT_EQ(stranger.ReadFrame().bulk_bytes, 256u << 10);
    EXPECT_TRUE(Eventually([&] { return service_.in_use == 0; }));
  }
  EXPECT_EQ(service_.served, 200);
  EXPECT_LE(service_.in_use_max, 4);
}

TEST_F(TcpTest, MemoryForBulkIsBoundOverAllConnections) {
  TransportOptions options = OptionsOf(1);
  options.serving_bytes_max = 100'000;
  Open(options, OptionsOf(2));
  auto other = std::move(MakeTcpTransport(OptionsOf(3))).value();
  auto from_other = other->Connect(address_);
  const Bytes sent(60'000);
  Answers held;
  peer_->Call(kHold, {}, {.timeout = kLong, .send = sent}, held.Next());
  ASSERT_TRUE(Eventually([&] { return service_.held_count() == 1; }));
  const CallOptions call{.timeout = kLong, .send = sent};
  EXPECT_EQ(from_other->CallAndWait(kEcho, {}, call).code, Code::kBusy);
  EXPECT_EQ(from_other->CallAndWait(kEcho, {}, {.timeout = kLong}).code, Code::kOk);
  service_.AnswerHeld();
  EXPECT_EQ(held.Wait(1)[0].code, Code::kOk);
  EXPECT_TRUE(
      Eventually([&] { return from_other->CallAndWait(kForget, {}, call).code != Code::kBusy; }));
}

TEST_F(TcpTest, ConnectionsAreBound) {
  TransportOptions options = OptionsOf(1);
  options.connections_max = 2;
  Open(options, OptionsOf(2));
  Stranger first(address_);
  {
    Stranger second(address_);
    EXPECT_EQ(first.ReadFrame().kind, FrameKind::kHello);
    EXPECT_EQ(second.ReadFrame().kind, FrameKind::kHello);
    EXPECT_TRUE(Stranger(address_).ReadToEnd().empty());
  }
  EXPECT_TRUE(Eventually([&] { return Stranger(address_).IsGreeted(); }));
}

TEST_F(TcpTest, ABulkThatEndsInTheMiddleGivesItsPlaceBack) {
  slot_.resize(1 << 20);
  service_.SetPlace(slot_);
  {
    Stranger stranger(address_);
    stranger.Greet();
    stranger.Send(
        EncodeHeader({.kind = FrameKind::kCall, .method = kEcho, .bulk_bytes = 1 << 20}, {}));
    stranger.Send(Bytes(5000));
    ASSERT_TRUE(Eventually([&] { return service_.placed == 1; }));
  }
  EXPECT_TRUE(Eventually([&] { return service_.abandoned == 1; }));
  EXPECT_EQ(service_.served, 0);
}

TEST_F(TcpTest, RandomBytesBehindAGreetingNeverHarm) {
  const uint32_t seed = static_cast<uint32_t>(testing::UnitTest::GetInstance()->random_seed());
  SCOPED_TRACE(testing::Message() << "--gtest_random_seed=" << seed);
  std::mt19937 random(seed);
  for (int round = 0; round < 50; ++round) {
    Stranger stranger(address_);
    stranger.Greet();
    for (int frame = 0; frame < 5; ++frame) {
      Bytes head(random() % 40);
      for (auto& byte : head) byte = static_cast<std::byte>(random());
      HeaderBytes header = EncodeHeader({.kind = static_cast<FrameKind>(1 + random() % 10),
                                         .code = static_cast<Code>(random() % 17),
                                         .method = static_cast<uint16_t>(random() % 7),
                                         .request_id = random(),
                                         .bulk_bytes = static_cast<uint32_t>(random() % 100),
                                         .receive_bytes = static_cast<uint32_t>(random() % 100)},
                                        head);
      if (random() % 4 == 0) header[random() % header.size()] ^= std::byte{1};
      stranger.Send(header);
      stranger.Send(head);
      stranger.Send(Bytes(random() % 100));
    }
  }
  EXPECT_EQ(Call(kEcho).code, Code::kOk);
  service_.AnswerHeld();
}

}  // namespace
}  // namespace kvcfs::rdma
