// Two transports in one process, over real sockets, and a stranger who speaks to them.
#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/fd.h"
#include "rdma/frame_parser.h"
#include "rdma/tcp.h"
#include "rdma/wire.h"
#include "tests/unit/rdma/echo_service.h"
#include "tests/unit/rdma/test_transport.h"

namespace kvcfs::rdma {

inline constexpr Millis kLong{60'000};  // a bound for the test as a whole, not a verdict

inline TransportOptions OptionsOf(uint64_t node) {
  TransportOptions options;
  options.self = {node, node};
  options.name = "n" + std::to_string(node);
  options.tls = TestCertificate(options.name);
  options.heartbeat = kLong;  // a loaded machine is not silence; tests of silence set their own
  return options;
}

// Answers that come later.
class Answers {
 public:
  Completion Next() {
    return [this](Reply reply) {
      std::lock_guard lock(mutex_);
      replies_.push_back(std::move(reply));
      changed_.notify_all();
    };
  }
  std::vector<Reply> Wait(size_t count) {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, kLong, [&] { return replies_.size() >= count; });
    EXPECT_EQ(replies_.size(), count);
    return replies_;
  }
  size_t count() {
    std::lock_guard lock(mutex_);
    return replies_.size();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Reply> replies_;
};

template <typename Condition>
bool Eventually(Condition condition) {
  const auto end = std::chrono::steady_clock::now() + kLong;
  while (!condition()) {
    if (std::chrono::steady_clock::now() > end) return false;
    ::usleep(1000);
  }
  return true;
}

class TcpTest : public testing::Test {
 protected:
  void SetUp() override { Open(OptionsOf(1), OptionsOf(2)); }

  void Open(const TransportOptions& server, const TransportOptions& client) {
    peer_.reset();
    client_.reset();
    server_.reset();
    Serve(server);
    client_ = std::move(MakeTestTransport(client)).value();
    peer_ = client_->Connect(address_);
    if (TestsVerbs()) WaitForVerbs();
  }
  // Queue pairs are made when a peer is used first. A WRITE to nothing uses it.
  void WaitForVerbs() {
    ASSERT_TRUE(Eventually([&] {
      if (peer_->provider() == "verbs") return true;
      const Reply reply = peer_->WriteAndWait({1, 0, 1}, Bytes(1), kLong);
      return reply.code == Code::kDenied;  // it does not talk with us, and will not
    }));
  }
  void Serve(const TransportOptions& options) {
    auto made = MakeTestTransport(options);
    ASSERT_TRUE(made.ok()) << made.error().text;
    server_ = std::move(*made);
    const auto address = server_->Listen(address_, &service_);
    ASSERT_TRUE(address.ok()) << address.error().text;
    address_ = *address;
  }
  Reply Call(Method method, Bytes request = {}, CallOptions options = {}) {
    if (options.timeout == Millis(1000)) options.timeout = kLong;
    return peer_->CallAndWait(method, std::move(request), options);
  }

  Bytes slot_;  // is received into until the server has ended
  EchoService service_;
  Address address_{.host = TestHost(), .port = 0};
  std::unique_ptr<Transport> server_, client_;
  std::shared_ptr<Peer> peer_;
};

// A socket that says what it wants.
class Stranger {
 public:
  explicit Stranger(const Address& address) : fd_(::socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in to{};
    to.sin_family = AF_INET;
    to.sin_port = htons(address.port);
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(::connect(fd_.get(), reinterpret_cast<sockaddr*>(&to), sizeof(to)), 0);
  }
  // Who was connected to.
  explicit Stranger(Fd accepted) : fd_(std::move(accepted)) {}

  void Send(std::span<const std::byte> bytes) {
    (void)!::send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
  }
  void SendFrame(FrameHeader header, const Bytes& head, std::span<const std::byte> bulk = {}) {
    header.bulk_bytes = static_cast<uint32_t>(bulk.size());
    const HeaderBytes bytes = EncodeHeader(header, head);
    Send(bytes);
    Send(head);
    Send(bulk);
  }
  void Greet(NodeId node = {}, bool bulk = false) {
    SendFrame({.kind = FrameKind::kHello}, EncodeHello({.cluster = "kvcfs",
                                                        .node = node,
                                                        .name = "stranger",
                                                        .is_node = node.valid(),
                                                        .bulk = bulk}));
  }
  // The next frame that the other side sends; its bulk is read over.
  FrameHeader ReadFrame() {
    class One final : public FrameSink {
     public:
      Result<std::span<std::byte>> PlaceBulk(const FrameHeader&,
                                             std::span<const std::byte>) override {
        return std::span<std::byte>();
      }
      Status OnFrame(const FrameHeader& header, Bytes, std::span<std::byte>) override {
        seen = header;
        done = true;
        return {};
      }
      FrameHeader seen;
      bool done = false;
    } one;
    FrameParser parser({.head_bytes_max = 1 << 20, .bulk_bytes_max = 64 << 20}, &one);
    while (!one.done) {
      const auto target = parser.Target();  // ends with the frame
      const ssize_t bytes = ::recv(fd_.get(), target.data(), target.size(), 0);
      if (bytes <= 0 || !parser.Advance(static_cast<size_t>(bytes)).ok()) {
        ADD_FAILURE() << "no frame came";
        break;
      }
    }
    return one.seen;
  }
  // Or else closed.
  bool IsGreeted() {
    std::byte first{};
    return ::recv(fd_.get(), &first, 1, MSG_PEEK) == 1;
  }
  // Until the other side closes: what it said.
  Bytes ReadToEnd() {
    Bytes all;
    for (;;) {
      pollfd waiting{.fd = fd_.get(), .events = POLLIN, .revents = 0};
      if (::poll(&waiting, 1, static_cast<int>(kLong.count())) != 1) {
        ADD_FAILURE() << "it was not closed";
        return all;
      }
      std::byte buffer[4096];
      const ssize_t bytes = ::recv(fd_.get(), buffer, sizeof(buffer), 0);
      if (bytes <= 0) return all;
      all.insert(all.end(), buffer, buffer + bytes);
    }
  }

 private:
  Fd fd_;
};

// Where a transport connects to, and finds strangers.
class StrangersDoor {
 public:
  StrangersDoor() : fd_(::socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in at{};
    at.sin_family = AF_INET;
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t bytes = sizeof(at);
    EXPECT_EQ(::bind(fd_.get(), reinterpret_cast<sockaddr*>(&at), bytes), 0);
    EXPECT_EQ(::listen(fd_.get(), 16), 0);
    EXPECT_EQ(::getsockname(fd_.get(), reinterpret_cast<sockaddr*>(&at), &bytes), 0);
    address_.port = ntohs(at.sin_port);
  }
  const Address& address() const { return address_; }
  Stranger Accept() { return Stranger(Fd(::accept(fd_.get(), nullptr, nullptr))); }

 private:
  Fd fd_;
  Address address_{.host = "127.0.0.1", .port = 0};
};

}  // namespace kvcfs::rdma
