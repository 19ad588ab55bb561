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
