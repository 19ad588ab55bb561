#include "rdma/tcp_call_stream.h"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <utility>

#include <fmt/format.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/time.h>

#include "base/futex.h"
#include "base/log.h"

namespace kvcfs::rdma {
namespace {

void Append(Bytes& to, std::span<const std::byte> bytes) {
  to.insert(to.end(), bytes.begin(), bytes.end());
}

}  // namespace

TcpCallStream::TcpCallStream(std::shared_ptr<TcpShared> shared)
    : shared_(std::move(shared)),
      parser_(shared_->Limits(), this),
      buffer_(std::make_unique<std::byte[]>(kBufferBytes)) {}
TcpCallStream::~TcpCallStream() = default;

Status TcpCallStream::Open(const sockaddr_storage& address, socklen_t bytes,
                           Steady::time_point deadline) {
  fd_ = Fd(::socket(address.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd_.valid()) return Error{Code::kUnavailable, ErrnoError(errno, "socket").text};
  cut_fd_ = fd_.get();
  const int on = 1;
  ::setsockopt(fd_.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  SetTimeout(SO_SNDTIMEO, deadline);  // of connect
  if (::connect(fd_.get(), reinterpret_cast<const sockaddr*>(&address), bytes) != 0) {
    return Error{Code::kUnavailable, ErrnoError(errno, "connect").text};
  }
  Bytes none;
  if (shared_->tls != nullptr) {
    tls_ = shared_->tls->NewSession(false);
    while (!tls_->ready()) {
      KVC_TRY(tls_->Handshake());
      KVC_TRY(Push(none, deadline));
      if (!tls_->ready()) KVC_TRY(ReceiveSome(deadline));
    }
  }
  const Bytes hello = EncodeHello(shared_->OwnHello(false));
  Bytes frame;
  Append(frame, EncodeHeader({.kind = FrameKind::kHello}, hello));
  Append(frame, hello);
  KVC_TRY(Push(frame, deadline));
  while (!hello_seen_) {
    if (Steady::now() >= deadline) return Error{Code::kTimeout, "no HELLO in time"};
    KVC_TRY(ReceiveSome(deadline));
  }
  MutexLock lock(mutex_);
  used_at_ = Steady::now();
  return {};
}

// ---- who waits

bool TcpCallStream::Register(Caller& caller) {
  if (free_.empty()) {
    if (callers_.size() == kCallersMax) return false;
    free_.push_back(static_cast<uint32_t>(callers_.size()));
    callers_.push_back(nullptr);
  }
  const uint32_t index = free_.back();
  free_.pop_back();
  callers_[index] = &caller;
  caller.id = ++last_sequence_ << kIndexBits | index;
  return true;
}

TcpCallStream::Caller* TcpCallStream::Find(uint64_t id) {
  const size_t index = id & ((1u << kIndexBits) - 1);
  if (index >= callers_.size() || callers_[index] == nullptr || callers_[index]->id != id) {
    return nullptr;
  }
  return callers_[index];
}

void TcpCallStream::Remove(const Caller& caller) {
  const auto index = static_cast<uint32_t>(caller.id & ((1u << kIndexBits) - 1));
  callers_[index] = nullptr;
  free_.push_back(index);
}

std::optional<Reply> TcpCallStream::Call(Method method, const Bytes& request,
                                         const CallOptions& options, Steady::time_point deadline) {
  Caller caller;
  caller.receive = options.receive;
  caller.deadline = deadline;
  {
    MutexLock lock(mutex_);
    if (ended_ || !Register(caller)) return std::nullopt;
    used_at_ = Steady::now();
    Queue({.kind = FrameKind::kCall,
           .method = method,
           .deadline_ms =
               static_cast<uint32_t>(std::clamp<int64_t>(options.timeout.count(), 0, UINT32_MAX)),
           .request_id = caller.id,
           .bulk_bytes = static_cast<uint32_t>(options.send.size()),
           .receive_bytes = static_cast<uint32_t>(options.receive.size())},
          request, options.send);
    caller.end = queued_end_;
  }
  Send(false, deadline);
  bool receives = false;
  while (caller.state.load(std::memory_order_acquire) != Caller::kDone) {
    bool late = false, held = false;
    Caller* heir = nullptr;
    {
      MutexLock lock(mutex_);
      if (Find(caller.id) == &caller) {
        if (receiver_ == nullptr && !ended_) receiver_ = &caller;
        receives = receiver_ == &caller;
        held = caller.end > sent_end_;
        late = Steady::now() >= deadline;
        caller.sleeps = !receives && !late;
        if (late) {
          Remove(caller);
          if (receives) heir = PassOn();
        }
      }
      // Else its answer is being filled in.
    }
    if (late) {
      if (heir != nullptr) FutexWake(&heir->state);
      return Reply{.code = Code::kTimeout, .head = TextBytes("no answer in time")};
    }
    if (receives) {
      if (held) Send(true, deadline);
      Receive(&caller, deadline);
      continue;
    }
    FutexWait(caller.state, Caller::kWaits,
              held ? std::min(deadline, Steady::now() + kHoldMost) : deadline);
    if (held && caller.state.load(std::memory_order_acquire) == Caller::kWaits) {
      Send(true, deadline);
    }
  }
  if (receives) {
    Caller* heir = nullptr;
    {
      MutexLock lock(mutex_);
      if (receiver_ == &caller) heir = PassOn();
    }
    if (heir != nullptr) FutexWake(&heir->state);
  }
  return std::move(caller.reply);
}

TcpCallStream::Caller* TcpCallStream::PassOn() {
  receiver_ = nullptr;
  for (Caller* caller : callers_) {
    if (caller == nullptr || !caller->sleeps) continue;
    caller->sleeps = false;
    caller->state.store(Caller::kReceives, std::memory_order_release);
    return receiver_ = caller;
  }
  return nullptr;
}

void TcpCallStream::Break(const Error& why) {
  std::vector<Caller*> told;
  const auto now = Steady::now();
  {
    MutexLock lock(mutex_);
    if (std::exchange(ended_, true)) return;
    for (Caller* caller : callers_) {
      if (caller == nullptr) continue;
      Remove(*caller);
      told.push_back(caller);
    }
    receiver_ = nullptr;
  }
  Cut();
  for (Caller* caller : told) {
    const Code code = now >= caller->deadline ? Code::kTimeout : why.code;
    caller->reply = {.code = code, .head = TextBytes(why.text)};
    caller->state.store(Caller::kDone, std::memory_order_release);
    FutexWake(&caller->state);
  }
}

void TcpCallStream::Cut() {
  if (cut_fd_ >= 0) ::shutdown(cut_fd_, SHUT_RDWR);
}

bool TcpCallStream::ended() {
  MutexLock lock(mutex_);
  return ended_;
}

bool TcpCallStream::Ping() {
  {
    MutexLock lock(mutex_);
    if (ended_) return false;
    if (free_.size() == callers_.size()) {
      // Nobody waits, so nobody receives: PONGs lie there, or its end.
      std::byte peeked{};
      const ssize_t seen = ::recv(fd_.get(), &peeked, 1, MSG_PEEK | MSG_DONTWAIT);
      ended_ = seen == 0 || (seen < 0 && errno != EAGAIN) || Steady::now() > used_at_ + kIdleMost;
      if (ended_) return false;
    }
    if (!queue_.empty()) return true;
    Queue({.kind = FrameKind::kPing}, {}, {});
  }
  Send(true, Steady::time_point());
  return true;
}

// ---- out

void TcpCallStream::Queue(const FrameHeader& header, std::span<const std::byte> head,
                          std::span<const std::byte> bulk) {
  const size_t before = queue_.size();
  Append(queue_, EncodeHeader(header, head));
  Append(queue_, head);
  Append(queue_, bulk);
  queued_end_ += queue_.size() - before;
  ++queued_;
}

bool TcpCallStream::Due() {
  if (queued_ == 0) return false;
  const size_t waiting = callers_.size() - free_.size();
  const size_t under_way = waiting > queued_ ? waiting - queued_ : 0;
  return queued_ >= under_way || Steady::now() >= sent_at_ + kHoldMost;
}

void TcpCallStream::Send(bool anyway, Steady::time_point wait) {
  Status status;
  {
    MutexLock lock(mutex_);
    anyway_ = anyway_ || anyway;
    if (sending_ || ended_ || !(anyway || Due())) return;
    sending_ = true;
    do {
      anyway_ = false;
      taken_.clear();
      taken_.swap(queue_);
      shared_->counters.messages_sent.fetch_add(std::exchange(queued_, 0),
                                                std::memory_order_relaxed);
      sent_end_ = queued_end_;
      sent_at_ = Steady::now();
      lock.native().unlock();
      status = Push(taken_, wait);
      lock.native().lock();
    } while (status.ok() && queued_ != 0 && (anyway_ || Due()));
    sending_ = false;
  }
  if (!status.ok()) Break(status.error());
}

Status TcpCallStream::Push(Bytes& bytes, Steady::time_point wait) {
  if (tls_ != nullptr) {
    MutexLock lock(tls_mutex_);
    if (!bytes.empty()) KVC_TRY(tls_->Write(bytes));
    tls_->TakeOutput(wire_);
  } else if (wire_.empty()) {
    wire_.swap(bytes);
  } else {
    Append(wire_, bytes);
  }
  while (wire_sent_ != wire_.size()) {
    const ssize_t sent = ::send(fd_.get(), wire_.data() + wire_sent_, wire_.size() - wire_sent_,
                                MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent > 0) {
      wire_sent_ += static_cast<size_t>(sent);
      shared_->counters.bytes_sent.fetch_add(static_cast<uint64_t>(sent),
                                             std::memory_order_relaxed);
      continue;
    }
    if (errno == EINTR) continue;
    if (errno != EAGAIN) return Error{Code::kUnavailable, ErrnoError(errno, "send").text};
    if (wait == Steady::time_point()) return {};  // whoever sends next goes on
    const auto left = std::chrono::ceil<Millis>(wait - Steady::now());
    if (left <= Millis(0)) {
      return Error{Code::kUnavailable, "the peer took half a frame until its deadline"};
    }
    pollfd room{fd_.get(), POLLOUT, 0};
    (void)::poll(&room, 1, static_cast<int>(std::min<int64_t>(left.count(), 1000)));
  }
  wire_.clear();
  wire_sent_ = 0;
  return {};
}

// ---- in

// A call's time in a few steps, so that it is mostly set already.
void TcpCallStream::SetTimeout(int option, Steady::time_point deadline) {
  const auto left = std::chrono::ceil<Millis>(deadline - Steady::now()).count();
  const Millis step(std::bit_floor(static_cast<uint64_t>(std::clamp<int64_t>(left, 1, 1 << 20))));
  if (step == timeout_ && option == SO_RCVTIMEO) return;
  if (option == SO_RCVTIMEO) timeout_ = step;
  timeval time{};
  time.tv_sec = step.count() / 1000;
  time.tv_usec = step.count() % 1000 * 1000;
  ::setsockopt(fd_.get(), SOL_SOCKET, option, &time, sizeof(time));
}

Status TcpCallStream::ReceiveSome(Steady::time_point deadline) {
  SetTimeout(SO_RCVTIMEO, deadline);
  const ssize_t received = ::recv(fd_.get(), buffer_.get(), kBufferBytes, 0);
  if (received < 0 && (errno == EINTR || errno == EAGAIN)) return {};
  if (received < 0) return Error{Code::kUnavailable, ErrnoError(errno, "receive").text};
  if (received == 0) return Error{Code::kUnavailable, "the peer ended the connection"};
  shared_->counters.bytes_received.fetch_add(static_cast<uint64_t>(received),
                                             std::memory_order_relaxed);
  const std::span<const std::byte> bytes(buffer_.get(), static_cast<size_t>(received));
  Status status;
  if (tls_ == nullptr) {
    status = parser_.Feed(bytes);
  } else {
    MutexLock lock(tls_mutex_);
    tls_->Feed(bytes);
    while (status.ok()) {
      KVC_TRY_ASSIGN(const size_t read, tls_->Read(parser_.Target()));
      if (read == 0) break;
      status = parser_.Advance(read);
    }
  }
  if (status.code() == Code::kCorrupt || status.code() == Code::kTooLarge) {
    shared_->counters.hostile.fetch_add(1, std::memory_order_relaxed);
    KVC_LOG(Warn, "a connection sent what is not allowed", "reason={}",
            LogValue(status.error().text));
    return Error{Code::kUnavailable, status.error().text};
  }
  return status;
}

void TcpCallStream::Receive(Caller* self, Steady::time_point deadline) {
  answered_.clear();
  const Status status = ReceiveSome(deadline);
  if (!status.ok()) Break(status.error());
  // The others' calls are on their way before their answers are looked at.
  if (!answered_.empty()) Send(false, deadline);
  bool own = false;
  for (Caller* caller : answered_) {
    if (caller == self) {
      own = true;
      continue;
    }
    caller->state.store(Caller::kDone, std::memory_order_release);
    FutexWake(&caller->state);
  }
  if (own) self->state.store(Caller::kDone, std::memory_order_release);
}

Result<std::span<std::byte>> TcpCallStream::PlaceBulk(const FrameHeader& header,
                                                      std::span<const std::byte> /*head*/) {
  if (!hello_seen_ || header.kind != FrameKind::kReply || header.bulk_bytes > kCallBytesMax) {
    return Error{Code::kCorrupt, "bulk that was not asked for"};
  }
  // Not where it belongs: who waits there may give up in the middle of it.
  if (bulk_ == nullptr) bulk_ = std::make_unique<std::byte[]>(kCallBytesMax);
  return std::span(bulk_.get(), header.bulk_bytes);
}

Status TcpCallStream::OnFrame(const FrameHeader& header, Bytes head, std::span<std::byte> bulk) {
  if (header.kind == FrameKind::kHello) return TakeHello(head);
  if (header.kind == FrameKind::kPong) return {};
  if (header.kind == FrameKind::kGoodbye) {
    return Error{header.code == Code::kOk ? Code::kUnavailable : header.code,
                 std::string(reinterpret_cast<const char*>(head.data()), head.size())};
  }
  if (!hello_seen_ || header.kind != FrameKind::kReply) {
    return Error{Code::kCorrupt,
                 fmt::format("{} that was not asked for", FrameKindName(header.kind))};
  }
  Caller* caller = nullptr;
  {
    MutexLock lock(mutex_);
    caller = Find(header.request_id);
    if (caller == nullptr && header.request_id >> kIndexBits <= last_sequence_) return {};  // late
    if (caller == nullptr || bulk.size() > caller->receive.size()) {
      return Error{Code::kCorrupt, "an answer to what was not asked"};
    }
    Remove(*caller);
  }
  if (!bulk.empty()) std::memcpy(caller->receive.data(), bulk.data(), bulk.size());
  caller->reply = {.code = header.code, .head = std::move(head), .bulk_bytes = header.bulk_bytes};
  answered_.push_back(caller);
  return {};
}

Status TcpCallStream::TakeHello(std::span<const std::byte> head) {
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

}  // namespace kvcfs::rdma
