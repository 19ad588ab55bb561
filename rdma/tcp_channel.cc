#include "rdma/tcp_channel.h"

#include <algorithm>
#include <utility>

namespace kvcfs::rdma {

using Steady = TcpCallStream::Steady;

std::shared_ptr<TcpCallStream> TcpChannel::Take(Steady::time_point deadline) {
  std::shared_ptr<TcpCallStream> opening;
  sockaddr_storage address{};
  socklen_t bytes = 0;
  uint64_t life = 0;
  {
    MutexLock lock(mutex_);
    if (stream_ != nullptr) return stream_;
    if (ended_ || address_bytes_ == 0 || opening_ != nullptr) return nullptr;
    opening = opening_ = std::make_shared<TcpCallStream>(shared_);
    address = address_;
    bytes = address_bytes_;
    life = life_;
  }
  const bool opened = opening->Open(address, bytes, deadline).ok();
  MutexLock lock(mutex_);
  opening_ = nullptr;
  if (!opened) return nullptr;
  if (life == life_ && !ended_) stream_ = opening;
  return opening;
}

void TcpChannel::Forget(const std::shared_ptr<TcpCallStream>& stream) {
  MutexLock lock(mutex_);
  if (stream_ == stream) stream_ = nullptr;
}

std::optional<Reply> TcpChannel::Call(Method method, const Bytes& request, CallOptions& options) {
  if (request.size() + options.send.size() + options.receive.size() >
      TcpCallStream::kCallBytesMax) {
    return {};
  }
  const auto deadline = Steady::now() + options.timeout;
  const auto stream = Take(deadline);
  // Nothing was asked yet, so another way may still be taken.
  options.timeout = std::max(std::chrono::ceil<Millis>(deadline - Steady::now()), Millis(0));
  std::optional<Reply> reply;
  if (stream != nullptr) {
    reply = stream->Call(method, request, options, deadline);
    if (stream->ended()) Forget(stream);
  } else if (options.timeout == Millis(0)) {
    reply = Reply{.code = Code::kTimeout, .head = TextBytes("no connection in time")};
  }
  if (!reply.has_value()) return {};
  shared_->counters.calls.fetch_add(1, std::memory_order_relaxed);
  if (reply->code == Code::kTimeout) {
    shared_->counters.timeouts.fetch_add(1, std::memory_order_relaxed);
  }
  if (reply->code == Code::kUnavailable) {
    MutexLock lock(mutex_);
    if (ended_) reply->code = Code::kCancelled;
  }
  return reply;
}

void TcpChannel::SetAddress(const sockaddr_storage& address, socklen_t bytes) {
  MutexLock lock(mutex_);
  address_ = address;
  address_bytes_ = bytes;
}

void TcpChannel::Cut(bool for_good) {
  std::shared_ptr<TcpCallStream> gone;  // closed without the lock
  MutexLock lock(mutex_);
  ended_ |= for_good;
  address_bytes_ = 0;
  ++life_;
  gone = std::exchange(stream_, nullptr);
  if (gone != nullptr) gone->Cut();
  if (opening_ != nullptr) opening_->Cut();
}

void TcpChannel::Ping() {
  std::shared_ptr<TcpCallStream> stream;
  {
    MutexLock lock(mutex_);
    stream = stream_;
  }
  if (stream != nullptr && !stream->Ping()) Forget(stream);
}

}  // namespace kvcfs::rdma
