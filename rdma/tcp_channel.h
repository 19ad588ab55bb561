// Where threads that wait ask a peer: a call stream that they share, made anew when it has ended.
//
// A call through the loop wakes three threads one after another; here a caller wakes the server and
// is woken by it. For small calls only; what finds no stream goes through the loop.
// Threads: Call, any; Ping, SetAddress and Cut, the peer's loop. Memory: the caller's, until Call
// returns. Fails: as a call.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>

#include <sys/socket.h>

#include "base/mutex.h"
#include "rdma/tcp_call_stream.h"

namespace kvcfs::rdma {

class TcpChannel {
 public:
  explicit TcpChannel(std::shared_ptr<TcpShared> shared) : shared_(std::move(shared)) {}

  // Nothing: there is no stream to be had. Ask in another way, in the time that `options` then has
  // left: connecting has taken the rest.
  std::optional<Reply> Call(Method method, const Bytes& request, CallOptions& options)
      KVC_EXCLUDES(mutex_);

  // The peer is there, at this address.
  void SetAddress(const sockaddr_storage& address, socklen_t bytes) KVC_EXCLUDES(mutex_);
  // It is not (for now, or `for_good`): who waits is told so.
  void Cut(bool for_good) KVC_EXCLUDES(mutex_);
  // Keeps it alive, for a while also if nobody uses it.
  void Ping() KVC_EXCLUDES(mutex_);

 private:
  // The stream, or a new one: one caller opens it, and nobody waits for that one.
  std::shared_ptr<TcpCallStream> Take(TcpCallStream::Steady::time_point deadline)
      KVC_EXCLUDES(mutex_);
  void Forget(const std::shared_ptr<TcpCallStream>& stream) KVC_EXCLUDES(mutex_);

  const std::shared_ptr<TcpShared> shared_;
  Mutex mutex_;
  bool ended_ KVC_GUARDED_BY(mutex_) = false;
  sockaddr_storage address_ KVC_GUARDED_BY(mutex_){};
  socklen_t address_bytes_ KVC_GUARDED_BY(mutex_) = 0;  // 0: the peer is not there
  uint64_t life_ KVC_GUARDED_BY(mutex_) = 0;            // counts cuts
  std::shared_ptr<TcpCallStream> stream_ KVC_GUARDED_BY(mutex_);
  std::shared_ptr<TcpCallStream> opening_ KVC_GUARDED_BY(mutex_);
};

}  // namespace kvcfs::rdma
