// What only queue pairs have: receives that all peers share. Runs where there is an RDMA device:
// tests/vm has one.
#include "rdma/verbs.h"

#include <condition_variable>
#include <filesystem>
#include <fstream>
#include <mutex>

#include "tests/unit/rdma/tcp_fixture.h"

namespace kvcfs::rdma {
namespace {

constexpr Method kWait = 50;             // the thread that serves waits at the door
constexpr size_t kHeadBytes = 12 << 10;  // of a call: a message takes one of them

// Threads wait at it until it is opened.
class Door {
 public:
  void Wait() {
    std::unique_lock lock(mutex_);
    ++waiting_;
    EXPECT_TRUE(changed_.wait_for(lock, kLong, [&] { return open_; }));
    --waiting_;
  }
  bool anybody() {
    std::lock_guard lock(mutex_);
    return waiting_ != 0;
  }
  void Open() {
    std::lock_guard lock(mutex_);
    open_ = true;
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int waiting_ = 0;
  bool open_ = false;
};

class WaitingService final : public EchoService {
 public:
  void Serve(Method method, Bytes request, std::span<std::byte> bulk,
             std::unique_ptr<Responder> responder) override {
    if (method == kWait) {
      door.Wait();
      return responder->Answer({});
    }
    EchoService::Serve(method, std::move(request), bulk, std::move(responder));
  }
  Door door;
};

// Messages that a device had no receive for, and asked for again.
uint64_t SentAgain() {
  uint64_t all = 0;
  for (const auto& device : std::filesystem::directory_iterator("/sys/class/infiniband")) {
    std::ifstream file(device.path() / "ports/1/hw_counters/send_rnr_err");
    uint64_t count = 0;
    if (file >> count) all += count;
  }
  return all;
}

class VerbsTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!TestsVerbs()) GTEST_SKIP() << "no RDMA device here: tests/vm runs this in a guest";
  }
  void TearDown() override {
    clients_.clear();
    server_.reset();
  }
  struct Client {
    std::unique_ptr<Transport> transport;
    std::shared_ptr<Peer> peer;
    Reply Call(Method method, Bytes request = {}) {
      return peer->CallAndWait(method, std::move(request), {.timeout = kLong});
    }
    Reply Echo(uint32_t seed) {
      Reply reply = Call(kEcho, Pattern(kHeadBytes, seed));
      EXPECT_TRUE(reply.code != Code::kOk || reply.head == Pattern(kHeadBytes, seed));
      return reply;
    }
  };
  void Serve(TransportOptions options) {
    auto made = MakeTestTransport(options);
    ASSERT_TRUE(made.ok()) << made.error().text;
    server_ = std::move(*made);
    const auto address = server_->Listen(address_, &service_);
    ASSERT_TRUE(address.ok()) << address.error().text;
    address_ = *address;
  }
  Client Connect() {
    TransportOptions options = OptionsOf(2);
    options.connections_per_peer = 1;
    Client client{.transport = std::move(MakeTestTransport(options)).value(), .peer = {}};
    client.peer = client.transport->Connect(address_);
    EXPECT_TRUE(Eventually([&] {
      if (client.peer->provider() == "verbs") return true;
      (void)client.peer->WriteAndWait({1, 0, 1}, Bytes(1), kLong);
      return false;
    }));
    return client;
  }

  WaitingService service_;
  Address address_{.host = TestHost(), .port = 0};
  std::unique_ptr<Transport> server_;
  std::vector<Client> clients_;
};

TEST_F(VerbsTest, ManyConnectionsSendMoreThanThereAreReceives) {
  constexpr uint32_t kClients = 12, kCalls = 40;
  TransportOptions options = OptionsOf(1);
  options.receives = 64;
  Serve(options);
  for (uint32_t i = 0; i < kClients; ++i) clients_.push_back(Connect());
  Answers waited;
  clients_[0].peer->Call(kWait, {}, {.timeout = kLong}, waited.Next());
  ASSERT_TRUE(Eventually([&] { return service_.door.anybody(); }));
  // Nothing is received until the door opens; they know of more receives than there are.
  const uint64_t before = SentAgain();
  std::vector<std::unique_ptr<Answers>> answers;
  for (uint32_t client = 0; client < kClients; ++client) {
    answers.push_back(std::make_unique<Answers>());
    for (uint32_t call = 0; call < kCalls; ++call) {
      clients_[client].peer->Call(kEcho, Pattern(kHeadBytes, client * kCalls + call),
                                  {.timeout = kLong}, answers.back()->Next());
    }
  }
  EXPECT_TRUE(Eventually([&] { return SentAgain() > before; }));
  service_.door.Open();
  for (uint32_t client = 0; client < kClients; ++client) {
    std::vector<Bytes> expected, came;
    for (uint32_t call = 0; call < kCalls; ++call) {
      expected.push_back(Pattern(kHeadBytes, client * kCalls + call));
    }
    for (const Reply& reply : answers[client]->Wait(kCalls)) {
      EXPECT_EQ(reply.code, Code::kOk) << ToText(reply.head);
      came.push_back(reply.head);
    }
    std::sort(expected.begin(), expected.end());
    std::sort(came.begin(), came.end());
    EXPECT_TRUE(came == expected) << client;
  }
  EXPECT_EQ(waited.Wait(1)[0].code, Code::kOk);
  EXPECT_GE(server_->Stats().few_receives, 1u);
  // Nobody was sent back to TCP.
  for (const Client& client : clients_) {
    EXPECT_EQ(client.peer->provider(), "verbs");
    EXPECT_EQ(client.transport->Stats().reconnects, 0u);
  }
}

TEST_F(VerbsTest, WhoTakesNoAnswersDoesNotTakeTheReceivesOfOthers) {
  TransportOptions options = OptionsOf(1);
  options.receives = 8;
  options.unsent_bytes_max = 1 << 20;
  Serve(options);
  service_.SetMemory(Pattern(4 << 20, 1));
  for (int i = 0; i < 3; ++i) clients_.push_back(Connect());
  // Two of them do nothing but to wait; what they sent is not looked at before their answers go.
  std::array<Door, 2> first, second;
  std::array<Answers, 2> answers;
  std::vector<Bytes> received(16, Bytes(4 << 20));
  for (size_t i = 0; i < 2; ++i) {
    Peer& peer = *clients_[i].peer;
    peer.Call(kEcho, {}, {.timeout = kLong}, [&, i](Reply) { first[i].Wait(); });
    ASSERT_TRUE(Eventually([&] { return first[i].anybody(); }));
    for (size_t call = 0; call < 8; ++call) {
      const auto next = answers[i].Next();
      peer.Call(kBulk, Bytes(kHeadBytes), {.timeout = kLong, .receive = received[i * 8 + call]},
                [&, i, next](Reply reply) {
                  second[i].Wait();
                  next(std::move(reply));
                });
    }
    first[i].Open();
    ASSERT_TRUE(Eventually([&] { return second[i].anybody(); }));
  }
  for (uint32_t i = 0; i < 50; ++i) ASSERT_EQ(clients_[2].Echo(i).code, Code::kOk);
  for (Door& door : second) door.Open();
  for (auto& some : answers) {
    for (const Reply& reply : some.Wait(8)) EXPECT_EQ(reply.code, Code::kOk);
  }
  for (const Bytes& bytes : received) EXPECT_TRUE(bytes == service_.memory());
}

TEST_F(VerbsTest, ReceivesOutliveManyThatComeAndGo) {
  TransportOptions options = OptionsOf(1);
  options.receives = 8;
  Serve(options);
  clients_.push_back(Connect());
  for (uint32_t i = 0; i < 10; ++i) {
    Client client = Connect();
    // Some of it is on its way when it ends.
    for (int call = 0; call < 8; ++call) {
      client.peer->Call(kEcho, Bytes(kHeadBytes), {.timeout = kLong}, [](Reply) {});
    }
    client.peer.reset();
    client.transport.reset();
    EXPECT_EQ(clients_[0].Echo(i).code, Code::kOk);
  }
  for (uint32_t i = 0; i < 50; ++i) ASSERT_EQ(clients_[0].Echo(i).code, Code::kOk);
  EXPECT_EQ(clients_[0].transport->Stats().reconnects, 0u);
}

TEST_F(VerbsTest, WithoutASharedQueueEachConnectionHasItsOwnReceives) {
  TransportOptions options = OptionsOf(1);
  options.receives = 0;
  Serve(options);
  for (int i = 0; i < 3; ++i) clients_.push_back(Connect());
  std::vector<std::unique_ptr<Answers>> answers;
  for (Client& client : clients_) {
    answers.push_back(std::make_unique<Answers>());
    for (uint32_t call = 0; call < 100; ++call) {
      client.peer->Call(kEcho, Pattern(kHeadBytes, call), {.timeout = kLong},
                        answers.back()->Next());
    }
  }
  for (auto& some : answers) {
    for (const Reply& reply : some->Wait(100)) EXPECT_EQ(reply.code, Code::kOk);
  }
  EXPECT_EQ(server_->Stats().few_receives, 0u);
  for (const Client& client : clients_) EXPECT_EQ(client.peer->provider(), "verbs");
}

TEST_F(VerbsTest, OddLengthsAreReadWholeAndNothingIsRegisteredForThem) {
  Serve(OptionsOf(1));
  clients_.push_back(Connect());
  Transport& transport = *clients_[0].transport;
  Peer& peer = *clients_[0].peer;
  Bytes memory = Pattern(600'000, 1);
  const uint64_t region = *server_->Expose(memory, Access::kRead);
  ASSERT_TRUE(server_->AwaitKey(region).ok());
  const auto read = [&](uint64_t offset, uint32_t length) {
    // Not aligned, and with something on both sides.
    Bytes into(length + 14, std::byte{0x5a});
    const std::span<std::byte> place = std::span(into).subspan(7, length);
    EXPECT_EQ(peer.ReadAndWait({region, offset, length}, place, kLong).code, Code::kOk) << length;
    EXPECT_TRUE(std::equal(place.begin(), place.end(), memory.begin() + static_cast<long>(offset)))
        << length;
    for (size_t i = 0; i < 7; ++i) {
      EXPECT_EQ(into[i], std::byte{0x5a});
      EXPECT_EQ(into[into.size() - 1 - i], std::byte{0x5a});
    }
  };
  const uint32_t lengths[] = {1,      63,     4095,   4097,    16'384,  16'385,
                              60'001, 65'535, 65'537, 131'071, 262'143, 262'144};
  read(0, 1);  // and learns the key
  const TransportStats before = transport.Stats();
  for (const uint32_t length : lengths) read(length % 4096 + 1, length);
  const TransportStats after = transport.Stats();
  EXPECT_EQ(after.device_reads - before.device_reads, std::size(lengths));
  EXPECT_EQ(after.read_registrations, 0u);
  // What is longer is not copied.
  read(3, 262'145);
  EXPECT_EQ(transport.Stats().read_registrations, 1u);
  // More at once than there is staging for.
  std::vector<Bytes> many(200, Bytes(60'001));
  Answers answers;
  for (size_t i = 0; i < many.size(); ++i) {
    peer.Read({region, i, 60'001}, many[i], kLong, answers.Next());
  }
  for (const Reply& reply : answers.Wait(many.size())) EXPECT_EQ(reply.code, Code::kOk);
  for (size_t i = 0; i < many.size(); ++i) {
    EXPECT_TRUE(std::equal(many[i].begin(), many[i].end(), memory.begin() + static_cast<long>(i)));
  }
  EXPECT_LT(transport.Stats().read_registrations, many.size());
  server_->Withdraw(region);
}

}  // namespace
}  // namespace kvcfs::rdma
