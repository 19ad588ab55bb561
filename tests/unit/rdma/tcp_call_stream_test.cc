// Callers that share a connection: nobody waits for another's answer, nobody gets another's.
#include <atomic>
#include <thread>

#include "rdma/tcp.h"
#include "tests/unit/rdma/tcp_fixture.h"

namespace kvcfs::rdma {
namespace {

using TcpCallStreamTest = TcpTest;

class Threads {
 public:
  ~Threads() { Join(); }
  template <typename Work>
  void Start(int count, Work work) {
    for (int i = 0; i < count; ++i) all_.emplace_back([work, i] { work(i); });
  }
  void Join() {
    for (auto& thread : all_) thread.join();
    all_.clear();
  }

 private:
  std::vector<std::thread> all_;
};

TEST_F(TcpCallStreamTest, EachGetsItsOwnBulk) {
  ASSERT_EQ(Call(kEcho).code, Code::kOk);
  std::atomic<int> good{0};
  Threads threads;
  threads.Start(12, [&](int t) {
    for (uint32_t i = 0; i < 100; ++i) {
      const Bytes sent = Pattern(1 + (i * 131 + static_cast<uint32_t>(t)) % 12'000, i);
      Bytes received(sent.size() + 3);
      const std::string text = std::to_string(t);
      const Reply reply = peer_->CallAndWait(kEcho, ToBytes(text),
                                             {.timeout = kLong, .send = sent, .receive = received});
      if (ToText(reply.head) == text && reply.bulk_bytes == sent.size() &&
          std::equal(sent.begin(), sent.end(), received.begin()) &&
          received[sent.size()] == std::byte{0}) {
        ++good;
      }
    }
  });
  threads.Join();
  EXPECT_EQ(good, 1200);
}

TEST_F(TcpCallStreamTest, WhoWaitsLongHoldsUpNobody) {
  ASSERT_EQ(Call(kEcho).code, Code::kOk);
  std::atomic<int> answered{0};
  Threads threads;
  threads.Start(8, [&](int) { answered += Call(kHold).code == Code::kOk ? 1 : 0; });
  ASSERT_TRUE(Eventually([&] { return service_.held_count() == 8; }));
  for (int i = 0; i < 50; ++i) ASSERT_EQ(Call(kEcho).code, Code::kOk);
  EXPECT_EQ(answered, 0);
  service_.AnswerHeld();
  threads.Join();
  EXPECT_EQ(answered, 8);
}

TEST_F(TcpCallStreamTest, WhoGivesUpLeavesTheOthersTheConnection) {
  ASSERT_EQ(Call(kEcho).code, Code::kOk);
  std::atomic<int> late{0}, answered{0};
  Threads patient, impatient;
  patient.Start(4, [&](int) { answered += Call(kHold).code == Code::kOk ? 1 : 0; });
  impatient.Start(8, [&](int i) {
    auto received = std::make_unique<Bytes>(100);  // the address sanitizer sees who comes back
    const Reply reply = Call(kHold, {}, {.timeout = Millis(5 + 10 * i), .receive = *received});
    late += reply.code == Code::kTimeout ? 1 : 0;
  });
  impatient.Join();
  EXPECT_EQ(late, 8);
  ASSERT_TRUE(Eventually([&] { return service_.held_count() == 12; }));
  service_.AnswerHeld();
  patient.Join();
  EXPECT_EQ(answered, 4);
  EXPECT_EQ(Call(kEcho).code, Code::kOk);
  EXPECT_EQ(client_->Stats().reconnects, 0u);
  EXPECT_EQ(client_->Stats().hostile_frames, 0u);
}

TEST_F(TcpCallStreamTest, AllAreToldThatThePeerWent) {
  ASSERT_EQ(Call(kEcho).code, Code::kOk);
  std::atomic<int> told{0};
  Threads threads;
  threads.Start(8, [&](int) { told += Call(kHold).code == Code::kUnavailable ? 1 : 0; });
  ASSERT_TRUE(Eventually([&] { return service_.held_count() == 8; }));
  server_.reset();
  threads.Join();
  EXPECT_EQ(told, 8);
  service_.ForgetHeld();
  Serve(OptionsOf(1));
  EXPECT_TRUE(Eventually([&] { return Call(kEcho).code == Code::kOk; }));
}

TEST_F(TcpCallStreamTest, MoreThanMayShareAskInAnotherWay) {
  ASSERT_EQ(Call(kEcho).code, Code::kOk);
  std::atomic<int> answered{0};
  Threads threads;
  threads.Start(1100, [&](int) { answered += Call(kHold).code == Code::kOk ? 1 : 0; });
  EXPECT_TRUE(Eventually([&] { return service_.held_count() == 1100; }));
  service_.AnswerHeld();
  threads.Join();
  EXPECT_EQ(answered, 1100);
}

// What was never asked is no answer, and too much of one neither.
TEST(TcpCallStream, DoesNotBelieveStrangers) {
  for (const bool too_much : {false, true}) {
    StrangersDoor door;
    Answers answers;
    TransportOptions options = OptionsOf(2);
    options.connections_per_peer = 1;
    auto client = std::move(MakeTcpTransport(options)).value();
    auto peer = client->Connect(door.address());
    peer->Call(1, {}, {.timeout = kLong}, answers.Next());
    Stranger first = door.Accept();
    first.Greet({1, 1});
    EXPECT_EQ(first.ReadFrame().kind, FrameKind::kHello);
    EXPECT_EQ(first.ReadFrame().method, 1);
    Reply reply;
    Bytes received(10);
    std::thread caller(
        [&] { reply = peer->CallAndWait(2, {}, {.timeout = kLong, .receive = received}); });
    Stranger second = door.Accept();
    second.Greet({1, 1});
    EXPECT_EQ(second.ReadFrame().kind, FrameKind::kHello);
    const FrameHeader asked = second.ReadFrame();
    EXPECT_EQ(asked.method, 2);
    const uint64_t id = too_much ? asked.request_id : asked.request_id + (uint64_t{5} << 20);
    second.SendFrame({.kind = FrameKind::kReply, .request_id = id}, {}, Bytes(too_much ? 11 : 10));
    caller.join();
    EXPECT_EQ(reply.code, Code::kUnavailable);
    EXPECT_EQ(client->Stats().hostile_frames, 1u);
  }
}

}  // namespace
}  // namespace kvcfs::rdma
