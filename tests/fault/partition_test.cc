// The transport between two network namespaces, with certificates: a link that goes away, comes
// back, or is slow.
#include <cstdlib>
#include <filesystem>
#include <thread>

#include <fcntl.h>
#include <sched.h>

#include "tests/unit/rdma/tcp_fixture.h"

namespace kvcfs::rdma {
namespace {

bool Shell(const std::string& command) {
  return std::system((command + " >/dev/null 2>&1").c_str()) == 0;
}

class PartitionTest : public testing::Test {
 protected:
  void SetUp() override {
    const std::string tag = std::to_string(::getpid());
    ours_ = "kvca" + tag;
    theirs_ = "kvcb" + tag;
    if (!Shell("ip netns add " + ours_) || !Shell("ip netns add " + theirs_)) {
      GTEST_SKIP() << "needs root and ip (iproute2) to make network namespaces";
    }
    ASSERT_TRUE(
        Shell("ip link add veth0 netns " + ours_ + " type veth peer name veth0 netns " + theirs_));
    for (const auto& [space, address] : {std::pair(ours_, "10.77.0.1"), {theirs_, "10.77.0.2"}}) {
      ASSERT_TRUE(Shell("ip -n " + space + " address add " + address + "/24 dev veth0"));
      ASSERT_TRUE(Shell("ip -n " + space + " link set veth0 up"));
    }
    char made[] = "/tmp/kvc-certs-XXXXXX";
    ASSERT_NE(::mkdtemp(made), nullptr);
    directory_ = made;
    // Sockets and threads are of the namespace of the thread that makes them.
    std::thread([this] {
      Enter(theirs_);
      server_ = Make("n1", 1);
      const auto address = server_->Listen({.host = "10.77.0.2", .port = 0}, &service_);
      ASSERT_TRUE(address.ok()) << address.error().text;
      address_ = *address;
    }).join();
    home_ = Fd(::open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC));
    Enter(ours_);
    client_ = Make("n2", 2);
    peer_ = client_->Connect(address_);
    ASSERT_TRUE(Eventually([&] { return Echo() == Code::kOk; }));
  }
  void TearDown() override {
    peer_.reset();
    client_.reset();
    server_.reset();
    if (home_.valid()) ::setns(home_.get(), CLONE_NEWNET);
    Shell("ip netns delete " + ours_);
    Shell("ip netns delete " + theirs_);
    if (!directory_.empty()) std::filesystem::remove_all(directory_);
  }

  static void Enter(const std::string& space) {
    const Fd fd(::open(("/run/netns/" + space).c_str(), O_RDONLY | O_CLOEXEC));
    ASSERT_EQ(::setns(fd.get(), CLONE_NEWNET), 0);
  }
  std::unique_ptr<Transport> Make(const std::string& name, uint64_t node) {
    EXPECT_TRUE(
        Shell(std::string(KVC_SOURCE_DIR) + "/tools/dev-certs.sh " + directory_ + " node " + name));
    TransportOptions options;
    options.name = name;
    options.self = {node, node};
    const std::string base = directory_ + "/";
    options.tls = {base + name + ".pem", base + name + ".key", base + "ca.pem"};
    auto made = MakeTcpTransport(options);
    EXPECT_TRUE(made.ok()) << made.error().text;
    return std::move(*made);
  }
  Code Echo(Millis timeout = Millis(1000)) {
    return peer_->CallAndWait(kEcho, ToBytes("x"), {.timeout = timeout}).code;
  }

  std::string ours_, theirs_, directory_;
  Fd home_;
  EchoService service_;
  Address address_;
  std::unique_ptr<Transport> server_, client_;
  std::shared_ptr<Peer> peer_;
};

// Both sides see it by their heartbeats, whatever the deadline, and again when it is over.
TEST_F(PartitionTest, ALinkThatGoesDownAndComesBack) {
  for (const char* how : {"link set veth0", "route blackhole"}) {
    SCOPED_TRACE(how);
    const bool link = std::string(how).starts_with("link");
    Answers answers;
    peer_->Call(kHold, {}, {.timeout = 10 * kLong}, answers.Next());
    ASSERT_TRUE(Eventually([&] { return service_.held_count() == 1; }));
    const std::string space = "ip -n " + ours_;
    ASSERT_TRUE(Shell(space + (link ? " link set veth0 down" : " route add blackhole 10.77.0.2")));
    EXPECT_EQ(answers.Wait(1)[0].code, Code::kUnavailable);
    EXPECT_NE(Echo(Millis(100)), Code::kOk);
    EXPECT_FALSE(peer_->connected());
    service_.ForgetHeld();
    ASSERT_TRUE(Shell(space + (link ? " link set veth0 up" : " route del blackhole 10.77.0.2")));
    EXPECT_TRUE(Eventually([&] { return Echo() == Code::kOk; }));
  }
}

// Slow is not silent: 4 MiB take longer than the heartbeats that a silent peer is given.
TEST_F(PartitionTest, ASlowLinkIsNoPartition) {
  for (const auto& space : {ours_, theirs_}) {
    if (!Shell("ip netns exec " + space +
               " tc qdisc add dev veth0 root tbf rate 8mbit burst 64k latency 200ms")) {
      GTEST_SKIP() << "needs tc (iproute2) and the kernel's tbf";
    }
  }
  service_.SetMemory(Pattern(4 << 20, 1));
  Bytes received(4 << 20);
  const Reply reply = peer_->CallAndWait(kBulk, {}, {.timeout = kLong, .receive = received});
  EXPECT_EQ(reply.code, Code::kOk) << ToText(reply.head);
  EXPECT_TRUE(received == service_.memory());
  // And a deadline is one: what comes late is read over, others go on.
  EXPECT_EQ(peer_->CallAndWait(kBulk, {}, {.timeout = Millis(200), .receive = received}).code,
            Code::kTimeout);
  EXPECT_EQ(Echo(kLong), Code::kOk);
  EXPECT_EQ(client_->Stats().reconnects, 0u);
}

}  // namespace
}  // namespace kvcfs::rdma
