#include "rdma/tcp_channel.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <utility>

#include <fmt/format.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/time.h>

#include "base/log.h"

namespace kvcfs::rdma {
namespace {

constexpr size_t kSmallBytes = 32 << 10;  // of a call, all together
constexpr size_t kBufferBytes = 16 << 10;
constexpr Millis kIdleMost{30'000};  // a channel that nobody uses
using Steady = std::chrono::steady_clock;

Reply RefusalOf(Code code, std::string_view text) {
  const auto bytes = std::as_bytes(std::span(text));
  return {.code = code, .head = {bytes.begin(), bytes.end()}};
}

}  // namespace

// One of them. Threads: who has taken it; Cut, any; Ping, the loop while it is idle.
class TcpChannel final : public FrameSink {
 public:
  explicit TcpChannel(std::shared_ptr<TcpShared> shared)
      : shared_(std::move(shared)),
        parser_(shared_->Limits(), this),
        buffer_(std::make_unique<std::byte[]>(kBufferBytes)) {}

  Status Open(const sockaddr_storage& address, socklen_t bytes, Steady::time_point deadline) {
    fd_ = Fd(::socket(address.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (!fd_.valid()) return Error{Code::kUnavailable, ErrnoError(errno, "socket").text};
    cut_fd_ = fd_.get();
    const int on = 1;
    ::setsockopt(fd_.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    KVC_TRY(SetTimeout(deadline));  // of connect, too
    if (::connect(fd_.get(), reinterpret_cast<const sockaddr*>(&address), bytes) != 0) {
      return Error{Code::kUnavailable, ErrnoError(errno, "connect").text};
    }
    if (shared_->tls != nullptr) {
      tls_ = shared_->tls->NewSession(false);
      while (!tls_->ready()) {
        KVC_TRY(tls_->Handshake());
        KVC_TRY(SendOutput());
        if (!tls_->ready()) KVC_TRY(ReceiveSome(deadline));
      }
      KVC_TRY(SendOutput());
    }
    const Bytes hello = EncodeHello(shared_->OwnHello(false));
    KVC_TRY(Send(EncodeHeader({.kind = FrameKind::kHello}, hello), hello, {}));
    while (!hello_seen_) KVC_TRY(ReceiveSome(deadline));
    return {};
  }

  Reply Call(Method method, const Bytes& request, const CallOptions& options,
             Steady::time_point deadline) {
    receive_ = options.receive;
    answered_ = false;
    Status status = SetTimeout(deadline);
    if (status.ok()) {
      const HeaderBytes header = EncodeHeader(
          {.kind = FrameKind::kCall,
           .method = method,
           .deadline_ms =
               static_cast<uint32_t>(std::clamp<int64_t>(options.timeout.count(), 0, UINT32_MAX)),
           .request_id = ++id_,
           .bulk_bytes = static_cast<uint32_t>(options.send.size()),
           .receive_bytes = static_cast<uint32_t>(options.receive.size())},
          request);
      status = Send(header, request, options.send);
    }
    while (status.ok() && !answered_) status = ReceiveSome(deadline);
    receive_ = {};
    if (answered_) return std::move(reply_);
    usable = false;
    return RefusalOf(status.code(), status.error().text);
  }

  // It has been used up to now, and the other side is still there.
  bool Ping() {
    std::byte peeked{};
    const ssize_t seen = ::recv(fd_.get(), &peeked, 1, MSG_PEEK | MSG_DONTWAIT);
    if (seen == 0 || (seen < 0 && errno != EAGAIN)) return false;
    const HeaderBytes ping = EncodeHeader({.kind = FrameKind::kPing}, {});
    return Send(ping, {}, {}).ok();
  }

  // It stays open until the last of us has let go of it.
  void Cut() {
    if (cut_fd_ >= 0) ::shutdown(cut_fd_, SHUT_RDWR);
  }

  bool usable = true;
  Millis used_at{0};

 private:
  Result<std::span<std::byte>> PlaceBulk(const FrameHeader& header,
                                         std::span<const std::byte> /*head*/) override {
    if (!hello_seen_ || header.kind != FrameKind::kReply || header.request_id != id_ ||
        header.bulk_bytes > receive_.size()) {
      return Error{Code::kCorrupt, "bulk that was not asked for"};
    }
    return receive_.first(header.bulk_bytes);
  }

  Status OnFrame(const FrameHeader& header, Bytes head, std::span<std::byte> /*bulk*/) override {
    switch (header.kind) {
      case FrameKind::kHello: {
        if (hello_seen_) return Error{Code::kCorrupt, "a second HELLO"};
        KVC_TRY_ASSIGN(const Hello hello, DecodeHello(head));
        KVC_TRY(CheckHello(shared_->OwnHello(false), hello));
        if (tls_ != nullptr) {
          KVC_TRY_ASSIGN(const PeerIdentity shown, tls_->Identity());
          if (!shown.is_node || shown.name != hello.name) {
            return Error{Code::kDenied, "it serves with another's certificate"};
          }
        }
        hello_seen_ = true;
        return {};
      }
      case FrameKind::kPong:
        return {};
      case FrameKind::kGoodbye:
        return Error{header.code == Code::kOk ? Code::kUnavailable : header.code,
                     std::string(reinterpret_cast<const char*>(head.data()), head.size())};
      case FrameKind::kReply:
        if (!hello_seen_ || header.request_id != id_ || answered_) break;
        answered_ = true;
        reply_ = {.code = header.code, .head = std::move(head), .bulk_bytes = header.bulk_bytes};
        return {};
      default:
        break;
    }
    return Error{Code::kCorrupt,
                 fmt::format("{} that was not asked for", FrameKindName(header.kind))};
  }

  // Calls mostly ask for the same time: then it is set already.
  Status SetTimeout(Steady::time_point deadline) {
    const auto left = std::chrono::ceil<Millis>(deadline - Steady::now());
    if (left <= Millis(0)) return Error{Code::kTimeout, "no answer in time"};
    if (left == timeout_) return {};
    timeout_ = left;
    timeval time{};
    time.tv_sec = left.count() / 1000;
    time.tv_usec = left.count() % 1000 * 1000;
    ::setsockopt(fd_.get(), SOL_SOCKET, SO_RCVTIMEO, &time, sizeof(time));
    ::setsockopt(fd_.get(), SOL_SOCKET, SO_SNDTIMEO, &time, sizeof(time));
    return {};
  }

  Status SendOutput() {
    cipher_.clear();
    tls_->TakeOutput(cipher_);
    return SendAll({cipher_});
  }

  Status Send(std::span<const std::byte> header, std::span<const std::byte> head,
              std::span<const std::byte> bulk) {
    shared_->counters.messages_sent.fetch_add(1, std::memory_order_relaxed);
    if (tls_ == nullptr) return SendAll({header, head, bulk});
    KVC_TRY(tls_->Write(header));
    KVC_TRY(tls_->Write(head));
    KVC_TRY(tls_->Write(bulk));
    return SendOutput();
  }

  Status SendAll(std::initializer_list<std::span<const std::byte>> parts) {
    iovec pieces[3];
    size_t count = 0;
    for (const auto& part : parts) {
      if (!part.empty()) pieces[count++] = {const_cast<std::byte*>(part.data()), part.size()};
    }
    msghdr message{};
    message.msg_iov = pieces;
    message.msg_iovlen = count;
    while (message.msg_iovlen != 0) {
      const ssize_t sent = ::sendmsg(fd_.get(), &message, MSG_NOSIGNAL);
      if (sent < 0 && errno == EINTR) continue;
      if (sent < 0) return Failure("send");
      shared_->counters.bytes_sent.fetch_add(static_cast<uint64_t>(sent),
                                             std::memory_order_relaxed);
      auto left = static_cast<size_t>(sent);
      while (message.msg_iovlen != 0 && left >= message.msg_iov->iov_len) {
        left -= message.msg_iov->iov_len;
        ++message.msg_iov;
        --message.msg_iovlen;
      }
      if (left != 0) {
        message.msg_iov->iov_base = static_cast<std::byte*>(message.msg_iov->iov_base) + left;
        message.msg_iov->iov_len -= left;
      }
    }
    return {};
  }

  Status ReceiveSome(Steady::time_point deadline) {
    const ssize_t received = ::recv(fd_.get(), buffer_.get(), kBufferBytes, 0);
    // The kernel counts in ticks, and may be one early.
    if (received < 0 && (errno == EINTR || errno == EAGAIN)) return SetTimeout(deadline);
    if (received < 0) return Failure("receive");
    if (received == 0) return Error{Code::kUnavailable, "the peer ended the connection"};
    shared_->counters.bytes_received.fetch_add(static_cast<uint64_t>(received),
                                               std::memory_order_relaxed);
    const std::span<const std::byte> bytes(buffer_.get(), static_cast<size_t>(received));
    Status status;
    if (tls_ == nullptr) {
      status = parser_.Feed(bytes);
    } else {
      tls_->Feed(bytes);
      for (;;) {
        KVC_TRY_ASSIGN(const size_t read, tls_->Read(parser_.Target()));
        if (read == 0) break;
        status = parser_.Advance(read);
        if (!status.ok()) break;
      }
    }
    if (status.code() == Code::kCorrupt || status.code() == Code::kTooLarge) {
      shared_->counters.hostile.fetch_add(1, std::memory_order_relaxed);
      KVC_LOG(Warn, "a connection sent what is not allowed", "reason={}",
              LogValue(status.error().text));
      return Error{Code::kUnavailable, status.error().text};
    }
    KVC_TRY(std::move(status));
    // A long answer in small pieces must not restart the clock each time.
    if (!answered_ && !parser_.idle()) return SetTimeout(deadline);
    return {};
  }

  static Error Failure(std::string_view what) {
    if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINPROGRESS) {
      return {Code::kTimeout, "no answer in time"};
    }
    return {Code::kUnavailable, ErrnoError(errno, what).text};
  }

  const std::shared_ptr<TcpShared> shared_;
  Fd fd_;
  std::atomic<int> cut_fd_{-1};
  std::unique_ptr<TlsSession> tls_;
  Bytes cipher_;
  FrameParser parser_;
  const std::unique_ptr<std::byte[]> buffer_;
  Millis timeout_{-1};
  bool hello_seen_ = false;
  uint64_t id_ = 0;
  std::span<std::byte> receive_;
  bool answered_ = false;
  Reply reply_;
};

TcpChannels::TcpChannels(std::shared_ptr<TcpShared> shared, std::string peer_text)
    : shared_(std::move(shared)), peer_text_(std::move(peer_text)) {}
TcpChannels::~TcpChannels() = default;

std::shared_ptr<TcpChannel> TcpChannels::Take(uint64_t* life) {
  MutexLock lock(mutex_);
  *life = life_;
  if (ended_ || address_bytes_ == 0) return nullptr;
  if (!idle_.empty()) {
    busy_.push_back(std::move(idle_.back()));
    idle_.pop_back();
    return busy_.back();
  }
  if (busy_.size() >= kChannelsMax) return nullptr;
  return busy_.emplace_back(std::make_shared<TcpChannel>(shared_));
}

std::optional<Reply> TcpChannels::Call(Method method, Bytes& request, CallOptions& options) {
  if (request.size() + options.send.size() + options.receive.size() > kSmallBytes) return {};
  const auto deadline = Steady::now() + options.timeout;
  uint64_t life = 0;
  const std::shared_ptr<TcpChannel> channel = Take(&life);
  if (channel == nullptr) return {};
  std::optional<Reply> reply;
  if (channel->used_at == Millis(0)) {
    sockaddr_storage address{};
    socklen_t bytes = 0;
    {
      MutexLock lock(mutex_);
      address = address_;
      bytes = address_bytes_;
    }
    // Nothing was asked yet, so another way may still be taken.
    channel->usable = bytes != 0 && channel->Open(address, bytes, deadline).ok();
    options.timeout = std::max(std::chrono::ceil<Millis>(deadline - Steady::now()), Millis(0));
    if (!channel->usable && options.timeout == Millis(0)) {
      shared_->counters.timeouts.fetch_add(1, std::memory_order_relaxed);
      reply = RefusalOf(Code::kTimeout, "no connection in time");
    }
  }
  if (channel->usable) {
    shared_->counters.calls.fetch_add(1, std::memory_order_relaxed);
    reply = channel->Call(method, request, options, deadline);
    if (reply->code == Code::kTimeout) {
      shared_->counters.timeouts.fetch_add(1, std::memory_order_relaxed);
    }
  }
  channel->used_at = std::chrono::duration_cast<Millis>(Steady::now().time_since_epoch());
  MutexLock lock(mutex_);
  std::erase(busy_, channel);
  if (channel->usable && life == life_ && !ended_) idle_.push_back(channel);
  if (ended_ && reply.has_value() && reply->code == Code::kUnavailable) {
    reply->code = Code::kCancelled;
  }
  return reply;
}

void TcpChannels::SetAddress(const sockaddr_storage& address, socklen_t bytes) {
  MutexLock lock(mutex_);
  address_ = address;
  address_bytes_ = bytes;
}

void TcpChannels::Cut(bool for_good) {
  std::vector<std::shared_ptr<TcpChannel>> gone;  // closed without the lock
  MutexLock lock(mutex_);
  ended_ |= for_good;
  address_bytes_ = 0;
  ++life_;
  gone.swap(idle_);
  for (const auto& channel : busy_) channel->Cut();
}

void TcpChannels::Ping(Millis now) {
  std::vector<std::shared_ptr<TcpChannel>> gone;
  MutexLock lock(mutex_);
  // A PING fits into the socket: what is idle has nothing under way.
  std::erase_if(idle_, [&](const auto& channel) {
    if (now - channel->used_at < kIdleMost && channel->Ping()) return false;
    gone.push_back(channel);
    return true;
  });
}

}  // namespace kvcfs::rdma
