// A peer that is revoked reads nothing and is answered nothing, until it is admitted. Over TCP, in
// one process, and by tests/vm over verbs.
#include "rdma/loopback.h"
#include "rdma/revoked_peers.h"
#include "tests/unit/rdma/tcp_fixture.h"

namespace kvcfs::rdma {
namespace {

class RevokedTest : public TcpTest {
 protected:
  Code Read(Bytes* into) { return peer_->ReadAndWait({region_, 0, kBytes}, *into, kLong).code; }
  // Until it goes the way that is tested.
  void ReadsOneSided() {
    const uint64_t before = client_->Stats().device_reads;
    EXPECT_TRUE(Eventually([&] {
      Bytes bytes(kBytes);
      return Read(&bytes) == Code::kOk && bytes == memory_ &&
             (!TestsVerbs() || client_->Stats().device_reads > before);
    }));
  }

  static constexpr uint32_t kBytes = 100'001;
  Bytes memory_ = Pattern(kBytes, 1);
  uint64_t region_ = 0;
};

TEST_F(RevokedTest, ItReadsAndAsksNothingUntilItIsAdmitted) {
  region_ = *server_->Expose(memory_, Access::kReadWrite);
  ReadsOneSided();
  ASSERT_EQ(Call(kEcho).code, Code::kOk);
  auto other = std::move(MakeTestTransport(OptionsOf(3))).value();
  const auto others_peer = other->Connect(address_);
  ASSERT_EQ(others_peer->CallAndWait(kEcho, {}, {.timeout = kLong}).code, Code::kOk);

  server_->Revoke({2, 2});
  const int served = service_.served;
  const Bytes written = Pattern(kBytes, 2);  // from now on nothing is for it
  std::copy(written.begin(), written.end(), memory_.begin());
  for (int i = 0; i < 3; ++i) {
    Bytes bytes(kBytes);
    EXPECT_EQ(Read(&bytes), Code::kUnavailable);
    EXPECT_EQ(bytes, Bytes(kBytes));
    EXPECT_EQ(Call(kEcho).code, Code::kUnavailable);
    EXPECT_EQ(Call(kEcho, {}, {.send = bytes}).code, Code::kUnavailable);
    EXPECT_EQ(peer_->WriteAndWait({region_, 0, kBytes}, bytes, kLong).code, Code::kUnavailable);
  }
  EXPECT_TRUE(memory_ == written);
  EXPECT_EQ(service_.served, served);
  EXPECT_EQ(peer_->provider(), "tcp");
  // It is about that node, not about others.
  EXPECT_EQ(others_peer->CallAndWait(kEcho, {}, {.timeout = kLong}).code, Code::kOk);

  server_->Admit({2, 2});
  EXPECT_TRUE(Eventually([&] { return Call(kEcho).code == Code::kOk; }));
  ReadsOneSided();
  server_->Withdraw(region_);
}

TEST_F(RevokedTest, NobodyRevokesItself) {
  auto own = server_->Connect(address_);
  server_->Revoke({1, 1});
  EXPECT_EQ(own->CallAndWait(kEcho, {}, {.timeout = kLong}).code, Code::kOk);
}

TEST(RevokedLoopback, TheSame) {
  EchoService service;
  LoopbackFabric fabric(1, {});
  const auto options = [](uint64_t node) {
    TransportOptions made;
    made.self = {node, node};
    return made;
  };
  auto server = fabric.MakeEndpoint("server", options(1));
  auto client = fabric.MakeEndpoint("client", options(2));
  auto peer = client->Connect(*server->Listen({.host = "server", .port = 0}, &service));
  Bytes memory = Pattern(5000, 1), bytes(5000);
  const uint64_t region = *server->Expose(memory, Access::kReadWrite);
  const auto answer = [&](const auto& ask) {
    std::vector<Code> codes;
    ask([&](const Reply& reply) { codes.push_back(reply.code); });
    while (codes.empty() && fabric.Step()) {
    }
    EXPECT_EQ(codes.size(), 1u);
    return codes.empty() ? Code::kInternal : codes[0];
  };
  const auto read = [&] {
    bytes.assign(bytes.size(), std::byte{0});
    return answer([&](const Completion& done) {
      peer->Read({region, 0, 5000}, bytes, Millis(1000), done);
    });
  };
  const auto call = [&] {
    return answer([&](const Completion& done) { peer->Call(kEcho, {}, {}, done); });
  };
  const auto write = [&] {
    const Bytes zeros(5000);
    return answer([&](const Completion& done) {
      peer->Write({region, 0, 5000}, zeros, Millis(1000), done);
    });
  };
  EXPECT_EQ(read(), Code::kOk);
  EXPECT_TRUE(bytes == memory);
  server->Revoke({2, 2});
  EXPECT_EQ(read(), Code::kUnavailable);
  EXPECT_TRUE(bytes == Bytes(5000));
  EXPECT_EQ(call(), Code::kUnavailable);
  EXPECT_EQ(write(), Code::kUnavailable);
  EXPECT_TRUE(memory == Pattern(5000, 1));
  EXPECT_EQ(service.served, 0);
  server->Admit({2, 2});
  EXPECT_EQ(call(), Code::kOk);
  EXPECT_EQ(read(), Code::kOk);
  EXPECT_TRUE(bytes == memory);
}

}  // namespace
}  // namespace kvcfs::rdma
