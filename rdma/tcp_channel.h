// Connections of threads that wait: each is one caller's at a time, who sends and receives itself.
//
// A call through the loop wakes three threads one after another; through a channel it wakes the
// server and then the caller, as a plain client would. For small calls only; what finds no channel
// goes through the loop. Threads: Call, any; Ping, SetAddress and Cut, the peer's loop. Memory: the
// caller's, until Call returns. Fails: as a call; after kTimeout or an error the connection is not
// used again.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include <sys/socket.h>

#include "base/mutex.h"
#include "rdma/tcp_connection.h"

namespace kvcfs::rdma {

class TcpChannel;

class TcpChannels {
 public:
  TcpChannels(std::shared_ptr<TcpShared> shared, std::string peer_text);
  ~TcpChannels();

  // Nothing: there is no channel to be had. Ask in another way, in the time that `options` then has
  // left: connecting has taken the rest.
  std::optional<Reply> Call(Method method, Bytes& request, CallOptions& options)
      KVC_EXCLUDES(mutex_);

  // The peer is there, at this address.
  void SetAddress(const sockaddr_storage& address, socklen_t bytes) KVC_EXCLUDES(mutex_);
  // It is not (for now, or `for_good`): who waits is told so, connections are let go of.
  void Cut(bool for_good) KVC_EXCLUDES(mutex_);
  // Keeps those alive that nobody uses, for a while.
  void Ping(Millis now) KVC_EXCLUDES(mutex_);

 private:
  std::shared_ptr<TcpChannel> Take(uint64_t* life) KVC_EXCLUDES(mutex_);

  static constexpr size_t kChannelsMax = 64;

  const std::shared_ptr<TcpShared> shared_;
  const std::string peer_text_;
  Mutex mutex_;
  bool ended_ KVC_GUARDED_BY(mutex_) = false;
  sockaddr_storage address_ KVC_GUARDED_BY(mutex_){};
  socklen_t address_bytes_ KVC_GUARDED_BY(mutex_) = 0;  // 0: the peer is not there
  uint64_t life_ KVC_GUARDED_BY(mutex_) = 0;            // counts cuts
  std::vector<std::shared_ptr<TcpChannel>> idle_ KVC_GUARDED_BY(mutex_);
  std::vector<std::shared_ptr<TcpChannel>> busy_ KVC_GUARDED_BY(mutex_);
};

}  // namespace kvcfs::rdma
