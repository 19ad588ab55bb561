// Two transports in one process, over real sockets: what is promised. tests/vm runs the same over
// verbs.
#include "rdma/tcp.h"

#include <atomic>
#include <csignal>
#include <thread>

#include <sys/wait.h>

#include "tests/unit/rdma/tcp_fixture.h"

namespace kvcfs::rdma {
namespace {

TEST_F(TcpTest, ACallIsAnswered) {
  for (int i = 0; i < 100; ++i) {
    const Reply reply = Call(kEcho, ToBytes("hello" + std::to_string(i)));
    ASSERT_EQ(reply.code, Code::kOk) << ToText(reply.head);
    ASSERT_EQ(ToText(reply.head), "hello" + std::to_string(i));
  }
  EXPECT_TRUE(peer_->connected());
  EXPECT_EQ(service_.last_peer().name, "n2");
  EXPECT_EQ(service_.last_peer().node, (NodeId{2, 2}));
  EXPECT_TRUE(service_.last_peer().is_node);
  EXPECT_EQ(client_->Stats().calls, 100u);
  EXPECT_EQ(client_->Connect(address_), peer_);
}

TEST_F(TcpTest, BulkGoesBothWaysInAllSizes) {
  for (const uint32_t bytes : {1u, 1000u, 16'000u, 16'385u, 40'000u, 300'000u, 4u << 20}) {
    const Bytes sent = Pattern(bytes, bytes);
    Bytes received(bytes + 5);
    const Reply reply = Call(kEcho, ToBytes("x"), {.send = sent, .receive = received});
    ASSERT_EQ(reply.code, Code::kOk) << bytes << ToText(reply.head);
    ASSERT_EQ(reply.bulk_bytes, bytes);
    ASSERT_TRUE(std::equal(sent.begin(), sent.end(), received.begin())) << bytes;
    ASSERT_EQ(received[bytes], std::byte{0});
  }
}

TEST_F(TcpTest, SixtyFourMebibytesAndNotOneMore) {
  service_.SetMemory(Pattern(64 << 20, 1));
  Bytes received(64 << 20);
  EXPECT_EQ(Call(kBulk, {}, {.receive = received}).code, Code::kOk);
  EXPECT_TRUE(received == service_.memory());
  EXPECT_TRUE(Eventually([&] { return service_.in_use == 0; }));
  slot_.resize(64 << 20);
  service_.SetPlace(slot_);
  EXPECT_EQ(Call(kEcho, {}, {.send = received, .receive = received}).code, Code::kOk);
  EXPECT_TRUE(std::ranges::equal(service_.place(), service_.memory()));
  EXPECT_EQ(service_.placed, 1);
  received.push_back(std::byte{0});
  EXPECT_EQ(Call(kEcho, {}, {.send = received}).code, Code::kTooLarge);
  EXPECT_EQ(Call(kEcho, Bytes((1 << 20) + 1)).code, Code::kTooLarge);
  EXPECT_EQ(Call(kEcho, Bytes(1 << 20)).head.size(), 1u << 20);
}

TEST_F(TcpTest, RefusedForgottenTooMuchUnknown) {
  const Reply refused = Call(kRefuse);
  EXPECT_EQ(refused.code, Code::kNotFound);
  EXPECT_EQ(ToText(refused.head), "no such thing");
  EXPECT_EQ(Call(kForget).code, Code::kUnavailable);
  EXPECT_EQ(Call(kTooMuch).code, Code::kInternal);
  EXPECT_EQ(Call(99).code, Code::kUnsupported);
}

TEST_F(TcpTest, ManyBulkCallsShareTheConnections) {
  service_.SetMemory(Pattern(1 << 20, 3));
  std::vector<Bytes> received(64, Bytes(1 << 20));
  Answers answers;
  for (Bytes& bytes : received) {
    peer_->Call(kBulk, {}, {.timeout = kLong, .receive = bytes}, answers.Next());
  }
  for (const Reply& reply : answers.Wait(64)) EXPECT_EQ(reply.code, Code::kOk);
  for (const Bytes& bytes : received) EXPECT_TRUE(bytes == service_.memory());
}

TEST_F(TcpTest, OneSidedAccessWithinBounds) {
  Bytes memory = Pattern(100'000, 4), bytes(50'000);
  const uint64_t region = *server_->Expose(memory, Access::kReadWrite);
  const uint64_t fixed = *server_->Expose(memory, Access::kRead);
  EXPECT_EQ(peer_->ReadAndWait({region, 50'000, 50'000}, bytes, kLong).code, Code::kOk);
  EXPECT_TRUE(std::equal(bytes.begin(), bytes.end(), memory.begin() + 50'000));
  EXPECT_EQ(peer_->ReadAndWait({region, 50'001, 50'000}, bytes, kLong).code, Code::kInvalid);
  EXPECT_EQ(peer_->ReadAndWait({region, UINT64_MAX, 50'000}, bytes, kLong).code, Code::kInvalid);
  EXPECT_EQ(peer_->ReadAndWait({region + 9, 0, 50'000}, bytes, kLong).code, Code::kStale);
  bytes = Pattern(50'000, 5);
  EXPECT_EQ(peer_->WriteAndWait({fixed, 0, 50'000}, bytes, kLong).code, Code::kDenied);
  EXPECT_EQ(peer_->WriteAndWait({region, 60'000, 50'000}, bytes, kLong).code, Code::kInvalid);
  EXPECT_EQ(peer_->WriteAndWait({region, 10, 50'000}, bytes, kLong).code, Code::kOk);
  server_->Withdraw(region);
  server_->Withdraw(fixed);
  EXPECT_TRUE(std::equal(bytes.begin(), bytes.end(), memory.begin() + 10));
  EXPECT_EQ(peer_->ReadAndWait({region, 0, 50'000}, bytes, kLong).code, Code::kStale);
  EXPECT_EQ(client_->Stats().reads, 5u);
}

TEST_F(TcpTest, ADeadlineIsKeptAndALateAnswerIgnored) {
  Bytes received(100);
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_EQ(Call(kHold, {}, {.timeout = Millis(30), .receive = received}).code, Code::kTimeout);
  EXPECT_GE(std::chrono::steady_clock::now() - begin, Millis(30));
  EXPECT_EQ(Call(kEcho).code, Code::kOk);
  service_.AnswerHeld();
  EXPECT_EQ(Call(kEcho).code, Code::kOk);
  EXPECT_EQ(client_->Stats().timeouts, 1u);
}

TEST_F(TcpTest, ADeadlineIsKeptWhileNothingElseHappens) {
  ASSERT_EQ(Call(kEcho).code, Code::kOk);
  Answers answers;
  for (int i = 0; i < 20; ++i) {
    peer_->Call(kHold, {}, {.timeout = Millis(1 + 7 * i)}, answers.Next());
  }
  for (const Reply& reply : answers.Wait(20)) EXPECT_EQ(reply.code, Code::kTimeout);
}

TEST_F(TcpTest, AnAnswerThatComesWhileItTimesOutTouchesNothingAfterwards) {
  service_.SetMemory(Pattern(32 << 20, 6));
  int timeouts = 0;
  for (int i = 0; i < 40; ++i) {
    auto received = std::make_unique<Bytes>(32 << 20);
    const Reply reply = Call(kBulk, {}, {.timeout = Millis(1 + i % 20), .receive = *received});
    EXPECT_TRUE(reply.code != Code::kOk || *received == service_.memory());
    timeouts += reply.code == Code::kTimeout ? 1 : 0;
    received.reset();  // the address sanitizer sees who comes back
  }
  EXPECT_GT(timeouts, 0);
  EXPECT_EQ(Call(kEcho).code, Code::kOk);
}

// A caller that waits is given a connection of its own; what it took to open one counts.
TEST(TcpDeadline, HoldsOverAllWaysOfACall) {
  StrangersDoor door;
  Answers answers;
  TransportOptions options = OptionsOf(2);
  options.connections_per_peer = 1;
  auto client = std::move(MakeTcpTransport(options)).value();
  auto peer = client->Connect(door.address());
  peer->Call(1, {}, {.timeout = kLong}, answers.Next());
  Stranger first = door.Accept();
  EXPECT_EQ(first.ReadFrame().kind, FrameKind::kHello);
  first.Greet({1, 1});
  EXPECT_EQ(first.ReadFrame().method, 1);
  ASSERT_TRUE(peer->connected());
  // Whoever connects now hears nothing.
  EXPECT_EQ(peer->CallAndWait(2, {}, {.timeout = Millis(50)}).code, Code::kTimeout);
  peer->Call(3, {}, {.timeout = kLong}, answers.Next());
  EXPECT_EQ(first.ReadFrame().method, 3);  // 2 has had its time
}

TEST_F(TcpTest, TenThousandCallsAtOnce) {
  Answers answers;
  for (int i = 0; i < 10'000; ++i) {
    peer_->Call(i % 2 == 0 ? kEcho : kRefuse, ToBytes("abc"), {.timeout = kLong}, answers.Next());
  }
  size_t ok = 0, busy = 0;
  for (const Reply& reply : answers.Wait(10'000)) {
    ok += reply.code == Code::kOk || reply.code == Code::kNotFound ? 1 : 0;
    busy += reply.code == Code::kBusy ? 1 : 0;  // more than serving_max arrived at once
  }
  EXPECT_EQ(ok + busy, 10'000u);
  EXPECT_GT(ok, 0u);
}

TEST_F(TcpTest, ManyThreadsThatWait) {
  std::atomic<int> good{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 16; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 200; ++i) {
        const std::string text = std::to_string(t * 1000 + i);
        if (ToText(peer_->CallAndWait(kEcho, ToBytes(text), {.timeout = kLong}).head) == text) {
          ++good;
        }
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(good, 16 * 200);
}

TEST_F(TcpTest, BytesInFlightAreBound) {
  TransportOptions options = OptionsOf(2);
  options.in_flight_bytes_max = 100'000;
  Open(OptionsOf(1), options);
  Bytes received(60'000);
  Answers held;
  peer_->Call(kHold, {}, {.timeout = kLong, .receive = received}, held.Next());
  EXPECT_EQ(Call(kEcho, {}, {.receive = received}).code, Code::kBusy);
  EXPECT_EQ(Call(kEcho).code, Code::kOk);
  ASSERT_TRUE(Eventually([&] { return service_.held_count() == 1; }));
  service_.AnswerHeld();
  EXPECT_EQ(held.Wait(1)[0].code, Code::kOk);
  EXPECT_EQ(Call(kEcho, {}, {.receive = received}).code, Code::kOk);
}

TEST_F(TcpTest, RequestsThatWaitAreBound) {
  TransportOptions options = OptionsOf(1);
  options.serving_max = 3;
  Open(options, OptionsOf(2));
  Answers answers;
  for (int i = 0; i < 5; ++i) peer_->Call(kHold, {}, {.timeout = kLong}, answers.Next());
  for (const Reply& reply : answers.Wait(2)) EXPECT_EQ(reply.code, Code::kBusy);
  service_.AnswerHeld();
  answers.Wait(5);
  EXPECT_EQ(Call(kEcho).code, Code::kOk);
}

TEST_F(TcpTest, APeerThatEndsIsUnavailableAndComesBack) {
  Answers answers;
  ASSERT_EQ(Call(kEcho).code, Code::kOk);
  peer_->Call(kHold, {}, {.timeout = kLong}, answers.Next());
  ASSERT_TRUE(Eventually([&] { return service_.held_count() == 1; }));
  server_.reset();
  EXPECT_EQ(answers.Wait(1)[0].code, Code::kUnavailable);
  service_.AnswerHeld();  // to nobody
  ASSERT_TRUE(Eventually([&] { return Call(kEcho).code == Code::kUnavailable; }));
  EXPECT_FALSE(peer_->connected());
  Serve(OptionsOf(1));
  ASSERT_TRUE(Eventually([&] { return Call(kEcho).code == Code::kOk; }));
  EXPECT_TRUE(peer_->connected());
  EXPECT_GE(client_->Stats().reconnects, 1u);
}

TEST_F(TcpTest, NobodyThereIsUnavailableAtOnce) {
  server_.reset();
  const auto begin = std::chrono::steady_clock::now();
  const Reply reply = Call(kEcho);
  EXPECT_EQ(reply.code, Code::kUnavailable);
  EXPECT_NE(ToText(reply.head).find(address_.ToString()), std::string::npos);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, kLong / 2);
}

constexpr int kPortFd = 77;

// What the next test starts, in a process of its own.
TEST(TcpServer, DISABLED_ServesUntilItIsKilled) {
  EchoService service;
  TransportOptions options = OptionsOf(1);
  options.heartbeat = Millis(100);
  auto server = MakeTestTransport(options);
  const auto address = (*server)->Listen({.host = TestHost(), .port = 0}, &service);
  const uint16_t port = address->port;
  ASSERT_EQ(::write(kPortFd, &port, sizeof(port)), ssize_t{sizeof(port)});
  for (;;) ::pause();
}

TEST_F(TcpTest, AProcessThatIsKilledOrStopped) {
  for (const int signal : {SIGKILL, SIGSTOP}) {
    int ports[2];
    ASSERT_EQ(::pipe(ports), 0);
    TransportOptions options;
    const pid_t child = ::fork();
    if (child == 0) {
      // A fresh process: this one's threads are not in a fork.
      ::dup2(ports[1], kPortFd);
      ::execl("/proc/self/exe", "tcp_test", "--gtest_also_run_disabled_tests",
              "--gtest_filter=TcpServer.DISABLED_ServesUntilItIsKilled", nullptr);
      ::_exit(1);
    }
    uint16_t port = 0;
    ASSERT_EQ(::read(ports[0], &port, sizeof(port)), ssize_t{sizeof(port)});
    options = OptionsOf(2);
    options.heartbeat = Millis(100);
    auto client = std::move(MakeTestTransport(options)).value();
    auto peer = client->Connect({.host = TestHost(), .port = port});
    ASSERT_TRUE(Eventually(
        [&] { return peer->CallAndWait(kEcho, {}, {.timeout = kLong}).code == Code::kOk; }));
    Answers answers;
    peer->Call(kHold, {}, {.timeout = kLong}, answers.Next());
    ::kill(child, signal);
    // Long before the deadline: nobody waited for that.
    EXPECT_EQ(answers.Wait(1)[0].code, Code::kUnavailable) << signal;
    if (signal == SIGSTOP) {
      // Awake again, it is connected to again.
      ::kill(child, SIGCONT);
      EXPECT_TRUE(Eventually([&] {
        return peer->CallAndWait(kEcho, {}, {.timeout = Millis(500)}).code == Code::kOk;
      }));
      ::kill(child, SIGKILL);
    }
    ::waitpid(child, nullptr, 0);
    ::close(ports[0]);
    ::close(ports[1]);
  }
}

TEST_F(TcpTest, AnotherClusterIsRefusedWithAText) {
  TransportOptions options = OptionsOf(2);
  options.cluster = "green";
  Open(OptionsOf(1), options);
  const Reply reply = Call(kEcho);
  EXPECT_EQ(reply.code, Code::kDenied);
  EXPECT_NE(ToText(reply.head).find("green"), std::string::npos);
  EXPECT_NE(ToText(reply.head).find("cluster"), std::string::npos);
  EXPECT_EQ(service_.served, 0);
}

TEST_F(TcpTest, BeyondLoopbackItWantsCertificates) {
  TransportOptions plain = OptionsOf(1);
  plain.tls = {};
  server_ = std::move(MakeTestTransport(plain)).value();
  client_ = std::move(MakeTestTransport(plain)).value();
  const auto listened = server_->Listen({.host = "0.0.0.0", .port = 0}, &service_);
  ASSERT_FALSE(listened.ok());
  const Reply reply = client_->Connect({.host = "10.1.2.3", .port = 1})->CallAndWait(kEcho, {}, {});
  EXPECT_EQ(reply.code, Code::kInvalid);
  for (const char* flag : {"--tls-cert", "--tls-key", "--tls-ca"}) {
    EXPECT_NE(listened.error().text.find(flag), std::string::npos);
    EXPECT_NE(ToText(reply.head).find(flag), std::string::npos);
  }
}

TEST_F(TcpTest, WhatIsOpenIsCancelledAtTheEnd) {
  Answers answers;
  ASSERT_EQ(Call(kEcho).code, Code::kOk);
  peer_->Call(kHold, {}, {.timeout = kLong}, answers.Next());
  client_.reset();
  EXPECT_EQ(answers.count(), 1u);
  EXPECT_EQ(answers.Wait(1)[0].code, Code::kCancelled);
  EXPECT_EQ(Call(kEcho).code, Code::kCancelled);
}

TEST_F(TcpTest, APeerThatNobodyHoldsLetsGo) {
  Answers answers;
  ASSERT_EQ(Call(kEcho).code, Code::kOk);
  peer_->Call(kHold, {}, {.timeout = kLong}, answers.Next());
  peer_.reset();
  EXPECT_EQ(answers.Wait(1)[0].code, Code::kCancelled);
}

TEST_F(TcpTest, WithdrawWaitsForWhoReads) {
  auto memory = std::make_unique<Bytes>(Pattern(8 << 20, 9));
  const uint64_t region = *server_->Expose(*memory, Access::kRead);
  std::vector<Bytes> received(8, Bytes(8 << 20));
  Answers answers;
  for (Bytes& bytes : received) {
    peer_->Read({region, 0, 8 << 20}, bytes, kLong, answers.Next());
  }
  server_->Withdraw(region);
  memory.reset();  // the address sanitizer sees who still reads
  for (const Reply& reply : answers.Wait(8)) {
    EXPECT_TRUE(reply.code == Code::kOk || reply.code == Code::kStale);
  }
}

}  // namespace
}  // namespace kvcfs::rdma
