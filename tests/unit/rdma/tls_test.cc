// Who may talk: certificates on both sides, and what they say of their bearer.
#include "rdma/tls.h"

#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <thread>

#include <gtest/gtest.h>

#include "tests/unit/rdma/tcp_fixture.h"

namespace kvcfs::rdma {
namespace {

class TlsTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    char made[] = "/tmp/kvc-certs-XXXXXX";
    ASSERT_NE(::mkdtemp(made), nullptr);
    directory = made;
    Make("", "node n1");
    Make("", "node n2");
    Make("", "client c1 a,b");
    Make("", "client c2");
    Make("", "node old --days 0");
    Make("/other", "node n1");
  }
  static void TearDownTestSuite() { std::filesystem::remove_all(directory); }

  static void Make(const std::string& authority, const std::string& words) {
    const std::string command = std::string(KVC_SOURCE_DIR) + "/tools/dev-certs.sh " + directory +
                                authority + " " + words + " >/dev/null";
    ASSERT_EQ(std::system(command.c_str()), 0) << command;
  }

  static TransportOptions OptionsOf(const std::string& name, uint64_t node,
                                    const std::string& authority = "") {
    const std::string base = directory + authority + "/";
    TransportOptions options;
    options.name = name;
    options.heartbeat = kLong;  // a loaded machine is not silence
    options.is_node = node != 0;
    options.self = {node, node};
    options.tls = {base + name + ".pem", base + name + ".key", base + "ca.pem"};
    return options;
  }

  void Serve(const TransportOptions& options, const std::string& host = "127.0.0.1") {
    auto made = MakeTcpTransport(options);
    ASSERT_TRUE(made.ok()) << made.error().text;
    server_.reset();  // its address is taken over
    server_ = std::move(*made);
    const auto address = server_->Listen({.host = host, .port = address_.port}, &service_);
    ASSERT_TRUE(address.ok()) << address.error().text;
    address_ = *address;
    address_.host = "127.0.0.1";
  }
  Reply Ask(const TransportOptions& options) {
    auto made = MakeTcpTransport(options);
    EXPECT_TRUE(made.ok());
    client_ = std::move(*made);
    peer_ = client_->Connect(address_);
    return AskAgain();
  }
  Reply AskAgain() { return peer_->CallAndWait(kEcho, ToBytes("x"), {.timeout = kLong}); }

  static std::string directory;
  EchoService service_;
  std::unique_ptr<Transport> server_, client_;
  std::shared_ptr<Peer> peer_;
  Address address_;
};
std::string TlsTest::directory;

TEST_F(TlsTest, NodesTalkAndBulkIsWhole) {
  Serve(OptionsOf("n1", 1), "0.0.0.0");
  const Reply reply = Ask(OptionsOf("n2", 2));
  ASSERT_EQ(reply.code, Code::kOk) << ToText(reply.head);
  EXPECT_EQ(service_.last_peer().name, "n2");
  EXPECT_TRUE(service_.last_peer().is_node);
  EXPECT_TRUE(service_.last_peer().all_namespaces);
  for (const uint32_t bytes : {100u, 100'000u, 8u << 20}) {
    const Bytes sent = Pattern(bytes, 1);
    Bytes received(bytes);
    ASSERT_EQ(
        peer_->CallAndWait(kEcho, {}, {.timeout = kLong, .send = sent, .receive = received}).code,
        Code::kOk);
    ASSERT_TRUE(sent == received);
  }
  Bytes memory = Pattern(1 << 20, 2), received(1 << 20);
  const uint64_t region = *server_->Expose(memory, Access::kRead);
  EXPECT_EQ(peer_->ReadAndWait({region, 0, 1 << 20}, received, kLong).code, Code::kOk);
  server_->Withdraw(region);
  EXPECT_TRUE(memory == received);
}

TEST_F(TlsTest, ThreadsThatWaitShareASession) {
  Serve(OptionsOf("n1", 1));
  ASSERT_EQ(Ask(OptionsOf("n2", 2)).code, Code::kOk);
  std::atomic<int> good{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 50; ++i) {
        const std::string text(static_cast<size_t>(1 + i * 37), static_cast<char>('a' + t));
        const Reply reply = peer_->CallAndWait(kEcho, ToBytes(text), {.timeout = kLong});
        good += ToText(reply.head) == text ? 1 : 0;
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(good, 400);
}

TEST_F(TlsTest, AClientIsWhoItsCertificateSays) {
  Serve(OptionsOf("n1", 1));
  ASSERT_EQ(Ask(OptionsOf("c1", 0)).code, Code::kOk);
  EXPECT_FALSE(service_.last_peer().is_node);
  EXPECT_EQ(service_.last_peer().name, "c1");
  EXPECT_TRUE(service_.last_peer().MayUse("a"));
  EXPECT_TRUE(service_.last_peer().MayUse("b"));
  EXPECT_FALSE(service_.last_peer().MayUse("c"));
  ASSERT_EQ(Ask(OptionsOf("c2", 0)).code, Code::kOk);
  EXPECT_TRUE(service_.last_peer().MayUse("c"));
}

// A region has blocks of all namespaces, so who may use some may not look.
TEST_F(TlsTest, OneSidedAccessIsForWhoMayUseAll) {
  Serve(OptionsOf("n1", 1));
  Bytes memory = Pattern(1000, 1), bytes(1000);
  const Bytes before = memory;
  const uint64_t region = *server_->Expose(memory, Access::kReadWrite);
  ASSERT_EQ(Ask(OptionsOf("c1", 0)).code, Code::kOk);
  EXPECT_EQ(peer_->ReadAndWait({region, 0, 1000}, bytes, kLong).code, Code::kDenied);
  EXPECT_EQ(bytes, Bytes(1000));
  EXPECT_EQ(peer_->WriteAndWait({region, 0, 1000}, Pattern(1000, 2), kLong).code, Code::kDenied);
  ASSERT_EQ(Ask(OptionsOf("c2", 0)).code, Code::kOk);
  EXPECT_EQ(peer_->ReadAndWait({region, 0, 1000}, bytes, kLong).code, Code::kOk);
  server_->Withdraw(region);
  EXPECT_EQ(bytes, before);
}

TEST_F(TlsTest, AClientIsNoNodeAndHasNoOtherName) {
  Serve(OptionsOf("n1", 1));
  Reply reply = Ask(OptionsOf("c2", 7));  // says that it is a node
  EXPECT_EQ(reply.code, Code::kDenied);
  EXPECT_NE(ToText(reply.head).find("role"), std::string::npos) << ToText(reply.head);
  TransportOptions liar = OptionsOf("c1", 0);
  liar.name = "c2";
  reply = Ask(liar);
  EXPECT_EQ(reply.code, Code::kDenied);
  EXPECT_NE(ToText(reply.head).find("certificate"), std::string::npos) << ToText(reply.head);
  EXPECT_EQ(service_.served, 0);
}

TEST_F(TlsTest, AClientsCertificateDoesNotServe) {
  Serve(OptionsOf("c2", 0));
  const Reply reply = Ask(OptionsOf("n1", 1));
  EXPECT_EQ(reply.code, Code::kDenied);
  EXPECT_NE(ToText(reply.head).find("client's certificate"), std::string::npos);
}

TEST_F(TlsTest, AnotherAuthorityIsRefused) {
  Serve(OptionsOf("n1", 1));
  EXPECT_NE(Ask(OptionsOf("n1", 2, "/other")).code, Code::kOk);
  EXPECT_EQ(service_.served, 0);
  TransportOptions gullible = OptionsOf("n1", 2, "/other");  // trusts us, is of the others
  gullible.tls.authority = directory + "/ca.pem";
  EXPECT_NE(Ask(gullible).code, Code::kOk);
  EXPECT_EQ(service_.served, 0);
}

TEST_F(TlsTest, WhatHasExpiredIsRefused) {
  Serve(OptionsOf("n1", 1));
  EXPECT_NE(Ask(OptionsOf("old", 2)).code, Code::kOk);
  EXPECT_EQ(service_.served, 0);
  Serve(OptionsOf("old", 1));
  const Reply reply = Ask(OptionsOf("n2", 2));
  EXPECT_EQ(reply.code, Code::kDenied);
  EXPECT_NE(ToText(reply.head).find("expired"), std::string::npos) << ToText(reply.head);
}

// A clock that is set forward.
class LateClock final : public Clock {
 public:
  Millis Monotonic() const override { return system_.Monotonic(); }
  int64_t WallNanos() const override { return system_.WallNanos() + late_nanos; }
  std::atomic<int64_t> late_nanos{0};

 private:
  SystemClock system_;
};

TEST_F(TlsTest, WhatExpiresWhileItIsConnectedIsRefused) {
  LateClock clock;
  for (const bool serving : {true, false}) {
    SCOPED_TRACE(serving ? "the server sees it" : "the client sees it");
    TransportOptions server = OptionsOf("n1", 1), client = OptionsOf("n2", 2);
    server.heartbeat = client.heartbeat = Millis(100);
    (serving ? server : client).clock = &clock;
    Serve(server);
    Ask(client);
    ASSERT_TRUE(Eventually([&] { return AskAgain().code == Code::kOk; }));
    Transport& judge = serving ? *server_ : *client_;
    EXPECT_EQ(judge.Stats().refused, 0u);
    clock.late_nanos = 31LL * 24 * 3600 * 1'000'000'000;  // they are valid for 30 days
    EXPECT_TRUE(Eventually([&] { return judge.Stats().refused != 0; }));
    clock.late_nanos = 0;
    EXPECT_TRUE(Eventually([&] { return AskAgain().code == Code::kOk; }));
    client_.reset();
    server_.reset();
  }
}

TEST_F(TlsTest, WithoutACertificateNothing) {
  Serve(OptionsOf("n1", 1));
  TransportOptions plain = OptionsOf("n2", 2);
  plain.tls = {};
  EXPECT_NE(Ask(plain).code, Code::kOk);
  EXPECT_EQ(service_.served, 0);
  // And the other way round: who has certificates does not talk without.
  TransportOptions server = OptionsOf("n1", 1);
  server.tls = {};
  Serve(server);
  EXPECT_NE(Ask(OptionsOf("n2", 2)).code, Code::kOk);
  EXPECT_EQ(service_.served, 0);
}

class RotationTest : public TlsTest {
 protected:
  // Puts another authority's files of `name` into the place of the server's, one by one.
  static void Replace(const std::string& from, const std::string& name, const std::string& to) {
    namespace files = std::filesystem;
    for (const std::string& file : {name + ".pem", name + ".key", std::string("ca.pem")}) {
      files::create_directories(directory + to);
      files::copy_file(directory + from + "/" + file, directory + to + "/new");
      files::rename(directory + to + "/new", directory + to + "/" + file);
    }
  }
};

TEST_F(RotationTest, AServerShowsWhatItsFilesHold) {
  Replace("", "n1", "/server");
  Serve(OptionsOf("n1", 1, "/server"));
  ASSERT_EQ(Ask(OptionsOf("n2", 2)).code, Code::kOk);
  const auto first_client = std::move(client_);
  const auto first = peer_;
  Replace("/other", "n1", "/server");
  EXPECT_EQ(Ask(OptionsOf("n1", 3, "/other")).code, Code::kOk);
  EXPECT_NE(Ask(OptionsOf("n2", 2)).code, Code::kOk);
  // Who is connected stays so.
  Answers answers;
  first->Call(kEcho, ToBytes("x"), {.timeout = kLong}, answers.Next());
  EXPECT_EQ(answers.Wait(1)[0].code, Code::kOk);
}

TEST_F(RotationTest, WhatCannotBeUsedIsNotUsed) {
  Replace("", "n1", "/server");
  Serve(OptionsOf("n1", 1, "/server"));
  ASSERT_EQ(Ask(OptionsOf("n2", 2)).code, Code::kOk);
  std::filesystem::remove(directory + "/server/n1.key");
  EXPECT_EQ(Ask(OptionsOf("n2", 2)).code, Code::kOk);
  std::ofstream(directory + "/server/n1.key") << "half";
  EXPECT_EQ(Ask(OptionsOf("n2", 2)).code, Code::kOk);
  Replace("/other", "n1", "/server");
  EXPECT_EQ(Ask(OptionsOf("n1", 3, "/other")).code, Code::kOk);
}

TEST_F(RotationTest, AClientConnectsAgainWithWhatItsFilesHold) {
  Replace("", "n1", "/client");
  Serve(OptionsOf("n1", 1));
  ASSERT_EQ(Ask(OptionsOf("n1", 2, "/client")).code, Code::kOk);
  Serve(OptionsOf("n1", 1, "/other"));
  ASSERT_TRUE(Eventually([&] { return AskAgain().code == Code::kDenied; }));
  Replace("/other", "n1", "/client");
  EXPECT_TRUE(Eventually([&] { return AskAgain().code == Code::kOk; }));
}

TEST_F(TlsTest, FilesThatAreNoneAreNamed) {
  for (const int which : {0, 1, 2}) {
    TransportOptions options = OptionsOf("n1", 1);
    std::string* const files[] = {&options.tls.certificate, &options.tls.key,
                                  &options.tls.authority};
    const char* const flags[] = {"--tls-cert", "--tls-key", "--tls-ca"};
    *files[which] = "/nonexistent";
    const auto made = MakeTcpTransport(options);
    ASSERT_EQ(made.code(), Code::kInvalid);
    EXPECT_NE(made.error().text.find(flags[which]), std::string::npos) << made.error().text;
    files[which]->clear();
    EXPECT_EQ(MakeTcpTransport(options).code(), Code::kInvalid);
  }
  TransportOptions mixed = OptionsOf("n1", 1);
  mixed.tls.key = directory + "/n2.key";
  EXPECT_EQ(MakeTcpTransport(mixed).code(), Code::kInvalid);
}

TEST(TlsIdentity, IsReadFromAUri) {
  const auto node = ParseIdentityUri("kvcfs://node/n1");
  ASSERT_TRUE(node.ok());
  EXPECT_TRUE(node->is_node);
  EXPECT_EQ(node->name, "n1");
  const auto client = ParseIdentityUri("kvcfs://client/app?namespaces=a,b");
  ASSERT_TRUE(client.ok());
  EXPECT_FALSE(client->is_node);
  EXPECT_EQ(client->namespaces, (std::vector<std::string>{"a", "b"}));
  const auto nothing = ParseIdentityUri("kvcfs://client/app?namespaces=");
  ASSERT_TRUE(nothing.ok());
  EXPECT_FALSE(nothing->MayUse("a"));
  for (const char* wrong :
       {"", "https://node/n1", "kvcfs://node/", "kvcfs://admin/x", "kvcfs://node/a/b",
        "kvcfs://client/x?namespace=a", "kvcfs://client/x?namespaces=a,,b", "kvcfs://client/x?",
        "kvcfs://client/%41", "kvcfs://client/a b"}) {
    EXPECT_EQ(ParseIdentityUri(wrong).code(), Code::kDenied) << wrong;
  }
}

}  // namespace
}  // namespace kvcfs::rdma
