#include "rdma/tcp.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <map>
#include <random>
#include <utility>

#include <arpa/inet.h>
#include <fmt/format.h>
#include <netdb.h>
#include <netinet/in.h>

#include "base/log.h"
#include "rdma/tcp_peer.h"
#include "rdma/tcp_server.h"

namespace kvcfs::rdma {
namespace {

constexpr int kBacklog = 1024;
constexpr Millis kAcceptPause{50};  // when there are no descriptors left

Status CheckAllowed(const Address& address, bool tls, std::string_view what) {
  if (tls || address.IsLoopback()) return {};
  return Error{Code::kInvalid,
               fmt::format("{} {}: an address that is not loopback wants certificates: --tls-cert "
                           "FILE --tls-key FILE --tls-ca FILE",
                           what, address.ToString())};
}

std::string TextOf(const sockaddr_storage& address) {
  char host[INET6_ADDRSTRLEN] = "?";
  Address made;
  if (address.ss_family == AF_INET) {
    const auto* v4 = reinterpret_cast<const sockaddr_in*>(&address);
    ::inet_ntop(AF_INET, &v4->sin_addr, host, sizeof(host));
    made.port = ntohs(v4->sin_port);
  } else if (address.ss_family == AF_INET6) {
    const auto* v6 = reinterpret_cast<const sockaddr_in6*>(&address);
    ::inet_ntop(AF_INET6, &v6->sin6_addr, host, sizeof(host));
    made.port = ntohs(v6->sin6_port);
  }
  made.host = host;
  return made.ToString();
}

// The loops of a transport, and whose turn it is.
class Loops {
 public:
  Status Start(uint32_t count) {
    for (uint32_t i = 0; i < std::max<uint32_t>(count, 1); ++i) {
      auto loop = std::make_shared<TcpLoop>();
      KVC_TRY(loop->Start(fmt::format("tcp-{}", i)));
      all_.push_back(std::move(loop));
    }
    return {};
  }
  const std::shared_ptr<TcpLoop>& Next() { return all_[turn_.fetch_add(1) % all_.size()]; }
  const std::shared_ptr<TcpLoop>& First() { return all_.front(); }
  void Stop() {
    for (const auto& loop : all_) loop->Stop();
  }

 private:
  std::vector<std::shared_ptr<TcpLoop>> all_;
  std::atomic<uint32_t> turn_{0};
};

// A socket that listens. Threads: its loop.
class TcpListener final : public LoopMember, public std::enable_shared_from_this<TcpListener> {
 public:
  TcpListener(std::shared_ptr<TcpShared> shared, Loops* loops, Fd fd, Service* service)
      : shared_(std::move(shared)),
        loops_(loops),
        loop_(loops->First()),
        fd_(std::move(fd)),
        service_(service) {}

  void Start() { loop_->ring().Accept(&op_, fd_.get()); }

  void Tick(Millis now) override {
    if (!op_.busy() && !stopped_ && now >= again_at_) Start();
  }
  Millis NextTick() const override {
    if (stopped_) return Millis(0);
    return op_.busy() ? Millis::max() : again_at_;
  }
  void Flush() override {}
  void Stop() override {
    stopped_ = true;
    if (op_.busy()) loop_->ring().Cancel(&op_);
  }
  bool CanGo() const override { return stopped_ && !op_.busy(); }

 private:
  void OnAccepted(int result, uint32_t flags) {
    if (result >= 0) {
      Fd fd(result);
      if (!stopped_) Take(std::move(fd));
    } else if (result != -ECANCELED) {
      KVC_LOG(Warn, "accept failed", "reason={}", LogValue(ErrnoError(-result, "accept").text));
      again_at_ = loop_->Now() + kAcceptPause;
      return;
    }
    if (!TcpRing::More(flags) && !stopped_) Start();
  }

  void Take(Fd fd) {
    if (shared_->accepted.load(std::memory_order_relaxed) >= shared_->options.connections_max) {
      shared_->counters.refused.fetch_add(1, std::memory_order_relaxed);
      return;
    }
    sockaddr_storage address{};
    socklen_t bytes = sizeof(address);
    ::getpeername(fd.get(), reinterpret_cast<sockaddr*>(&address), &bytes);
    const auto& loop = loops_->Next();
    auto served = std::make_shared<TcpServed>(shared_, loop, service_, TextOf(address));
    auto owned = std::make_shared<Fd>(std::move(fd));
    loop->Post([loop, served, owned] {
      loop->Add(served);
      served->Start(std::move(*owned));
    });
  }

  const std::shared_ptr<TcpShared> shared_;
  Loops* const loops_;
  const std::shared_ptr<TcpLoop> loop_;
  const Fd fd_;
  Service* const service_;
  bool stopped_ = false;
  Millis again_at_{0};
  MethodOp<TcpListener, &TcpListener::OnAccepted> op_{this};
};

class TcpPeer final : public Peer {
 public:
  explicit TcpPeer(std::shared_ptr<TcpPeerCore> core) : core_(std::move(core)) {}
  ~TcpPeer() override { core_->Abandon(); }

  void Call(Method method, Bytes request, const CallOptions& options, Completion done) override {
    core_->Issue({.kind = FrameKind::kCall,
                  .method = method,
                  .head = std::move(request),
                  .send = options.send,
                  .receive = options.receive,
                  .timeout = options.timeout},
                 std::move(done));
  }
  void Read(const RemoteSpan& from, std::span<std::byte> into, Millis timeout,
            Completion done) override {
    KVC_CHECK(into.size() == from.length);
    core_->Issue({.kind = FrameKind::kRead,
                  .method = 0,
                  .head = EncodeSpan(from),
                  .send = {},
                  .receive = into,
                  .timeout = timeout},
                 std::move(done));
  }
  void Write(const RemoteSpan& to, std::span<const std::byte> from, Millis timeout,
             Completion done) override {
    KVC_CHECK(from.size() == to.length);
    core_->Issue({.kind = FrameKind::kWrite,
                  .method = 0,
                  .head = EncodeSpan(to),
                  .send = from,
                  .receive = {},
                  .timeout = timeout},
                 std::move(done));
  }
  Reply CallAndWait(Method method, Bytes request, const CallOptions& options) override {
    const uint64_t bytes = request.size() + options.send.size() + options.receive.size();
    CallOptions left = options;
    if (core_->Hold(bytes)) {
      auto reply = core_->channel().Call(method, request, left);
      core_->LetGo(bytes);
      if (reply.has_value()) return std::move(*reply);
    }
    return Peer::CallAndWait(method, std::move(request), left);
  }
  bool connected() const override { return core_->connected(); }
  std::string provider() const override { return "tcp"; }

 private:
  const std::shared_ptr<TcpPeerCore> core_;
};

class TcpTransport final : public Transport {
 public:
  explicit TcpTransport(std::shared_ptr<TcpShared> shared) : shared_(std::move(shared)) {}
  ~TcpTransport() override { loops_.Stop(); }

  Status Start() {
    if (shared_->options.tls.given() || !shared_->options.tls.certificate.empty() ||
        !shared_->options.tls.key.empty()) {
      KVC_TRY_ASSIGN(shared_->tls, TlsFiles::Open(shared_->options.tls));
    }
    return loops_.Start(shared_->options.threads);
  }

  Result<Address> Listen(const Address& address, Service* service) override {
    KVC_TRY(CheckAllowed(address, shared_->tls != nullptr, "listen on"));
    addrinfo hints{};
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_flags = AI_PASSIVE;
    addrinfo* found = nullptr;
    const std::string host = address.host == "localhost" ? "127.0.0.1" : address.host;
    const std::string port = fmt::format("{}", address.port);
    if (const int result = ::getaddrinfo(host.c_str(), port.c_str(), &hints, &found); result != 0) {
      return Error{Code::kInvalid,
                   fmt::format("listen on {}: {}", address.ToString(), ::gai_strerror(result))};
    }
    sockaddr_storage bound{};
    socklen_t bytes = found->ai_addrlen;
    std::memcpy(&bound, found->ai_addr, bytes);
    ::freeaddrinfo(found);
    Fd fd(::socket(bound.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
    const int on = 1;
    if (fd.valid()) ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (!fd.valid() || ::bind(fd.get(), reinterpret_cast<sockaddr*>(&bound), bytes) != 0 ||
        ::listen(fd.get(), kBacklog) != 0) {
      return Error{Code::kUnavailable, ErrnoError(errno, "listen on", address.ToString()).text};
    }
    bytes = sizeof(bound);
    ::getsockname(fd.get(), reinterpret_cast<sockaddr*>(&bound), &bytes);
    Address given = address;
    given.port = ntohs(reinterpret_cast<sockaddr_in*>(&bound)->sin_port);  // the same in both
    auto listener = std::make_shared<TcpListener>(shared_, &loops_, std::move(fd), service);
    const auto& loop = loops_.First();
    loop->Post([loop, listener] {
      loop->Add(listener);
      listener->Start();
    });
    return given;
  }

  std::shared_ptr<Peer> Connect(const Address& address) override {
    MutexLock lock(mutex_);
    std::weak_ptr<TcpPeer>& known = peers_[address];
    if (auto peer = known.lock()) return peer;
    auto core =
        std::make_shared<TcpPeerCore>(shared_, loops_.Next(), address,
                                      CheckAllowed(address, shared_->tls != nullptr, "connect to"));
    auto peer = std::make_shared<TcpPeer>(std::move(core));
    known = peer;
    return peer;
  }

  Result<uint64_t> Expose(std::span<std::byte> memory, Access access) override {
    return shared_->regions.Expose(memory, access);
  }
  void Withdraw(uint64_t region) override { shared_->regions.Withdraw(region); }
  void Revoke(const NodeId& node) override {
    if (node != shared_->options.self) shared_->revoked.Revoke(node);
  }
  void Admit(const NodeId& node) override { shared_->revoked.Admit(node); }

  TransportStats Stats() const override {
    const auto& from = shared_->counters;
    return {.calls = from.calls,
            .reads = from.reads,
            .writes = from.writes,
            .messages_sent = from.messages_sent,
            .bytes_sent = from.bytes_sent,
            .bytes_received = from.bytes_received,
            .timeouts = from.timeouts,
            .refused = from.refused,
            .reconnects = from.reconnects,
            .hostile_frames = from.hostile};
  }

 private:
  const std::shared_ptr<TcpShared> shared_;
  Loops loops_;
  Mutex mutex_;
  std::map<Address, std::weak_ptr<TcpPeer>> peers_ KVC_GUARDED_BY(mutex_);
};

}  // namespace

Result<std::unique_ptr<Transport>> MakeTcpTransport(const TransportOptions& options) {
  if (options.cluster.size() > kNameBytesMax || options.name.size() > kNameBytesMax) {
    return Error{Code::kInvalid, "a cluster's or node's name is longer than 255 bytes"};
  }
  std::random_device random;
  auto shared = std::make_shared<TcpShared>(options, static_cast<uint32_t>(random()));
  auto transport = std::make_unique<TcpTransport>(std::move(shared));
  KVC_TRY(transport->Start());
  return std::unique_ptr<Transport>(std::move(transport));
}

}  // namespace kvcfs::rdma
