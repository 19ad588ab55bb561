// One connection that threads share which wait for answers: they send and receive by themselves.
//
// One of those who wait receives, for all, and wakes whose answers came; when it has its own,
// another takes its turn. What is asked while an answer is under way is collected: it is sent, in
// one piece, as soon as no more is under way than waits here, or kHoldMost has passed. So a caller
// alone wakes the server and is woken by it, as by a plain socket, and with many callers a system
// call, a packet and a wake-up at either end carry many calls.
// Threads: Open first, by one; Call, any; Cut, any; Ping, the peer's loop.
// Memory: the caller's is not touched any more once Call has returned; frames are copied.
// Fails: as a call; after an error of the connection all who wait are told, and it has ended.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include <sys/socket.h>

#include "base/fd.h"
#include "base/mutex.h"
#include "rdma/frame_parser.h"
#include "rdma/tcp_connection.h"

namespace kvcfs::rdma {

class TcpCallStream final : private FrameSink {
 public:
  using Steady = std::chrono::steady_clock;
  static constexpr size_t kCallBytesMax = 32 << 10;  // request, bulk and room for bulk together

  explicit TcpCallStream(std::shared_ptr<TcpShared> shared);
  ~TcpCallStream() override;

  // Connects and says HELLO.
  Status Open(const sockaddr_storage& address, socklen_t bytes, Steady::time_point deadline);
  // Nothing: it has ended, or has too many callers; nothing was asked.
  std::optional<Reply> Call(Method method, const Bytes& request, const CallOptions& options,
                            Steady::time_point deadline) KVC_EXCLUDES(mutex_);
  // Ends it, and who waits is told so.
  void Cut();
  // Keeps it alive. False: it has ended, or nobody has used it for long.
  bool Ping() KVC_EXCLUDES(mutex_);
  bool ended() KVC_EXCLUDES(mutex_);

 private:
  // Who waits; on its stack.
  struct Caller {
    static constexpr uint32_t kWaits = 0, kReceives = 1, kDone = 2;
    std::atomic<uint32_t> state{kWaits};
    std::span<std::byte> receive;
    Steady::time_point deadline;
    uint64_t id = 0;
    uint64_t end = 0;     // of its frame, in the bytes that were ever queued
    bool sleeps = false;  // may be woken to receive
    Reply reply;
  };

  Result<std::span<std::byte>> PlaceBulk(const FrameHeader& header,
                                         std::span<const std::byte> head) override;
  Status OnFrame(const FrameHeader& header, Bytes head, std::span<std::byte> bulk) override
      KVC_EXCLUDES(mutex_);
  Status TakeHello(std::span<const std::byte> head);

  bool Register(Caller& caller) KVC_REQUIRES(mutex_);
  void Remove(const Caller& caller) KVC_REQUIRES(mutex_);
  Caller* Find(uint64_t id) KVC_REQUIRES(mutex_);
  void Queue(const FrameHeader& header, std::span<const std::byte> head,
             std::span<const std::byte> bulk) KVC_REQUIRES(mutex_);
  // Whether what is queued should be sent now.
  bool Due() KVC_REQUIRES(mutex_);
  // Sends what is queued if it is due, or anyway, unless another does; `wait`: for room, until
  // then.
  void Send(bool anyway, Steady::time_point wait) KVC_EXCLUDES(mutex_);
  Status Push(Bytes& bytes, Steady::time_point wait);
  // Who receives:
  void Receive(Caller* self, Steady::time_point deadline) KVC_EXCLUDES(mutex_);
  Status ReceiveSome(Steady::time_point deadline);
  // It does so no more: who does now, if anybody is there.
  Caller* PassOn() KVC_REQUIRES(mutex_);
  void Break(const Error& why) KVC_EXCLUDES(mutex_);
  void SetTimeout(int option, Steady::time_point deadline);

  static constexpr uint32_t kCallersMax = 1024;
  static constexpr int kIndexBits = 20;  // of an id; the rest counts
  static constexpr size_t kBufferBytes = 64 << 10;
  static constexpr std::chrono::microseconds kHoldMost{1000};
  static constexpr Millis kIdleMost{30'000};

  const std::shared_ptr<TcpShared> shared_;
  Fd fd_;
  std::atomic<int> cut_fd_{-1};
  Mutex tls_mutex_;  // before mutex_
  std::unique_ptr<TlsSession> tls_;

  // Who receives has these.
  FrameParser parser_;
  const std::unique_ptr<std::byte[]> buffer_;
  std::unique_ptr<std::byte[]> bulk_;
  std::vector<Caller*> answered_;
  Millis timeout_{0};
  bool hello_seen_ = false;
  // Who sends has these.
  Bytes taken_, wire_;
  size_t wire_sent_ = 0;

  Mutex mutex_;
  bool ended_ KVC_GUARDED_BY(mutex_) = false;
  bool sending_ KVC_GUARDED_BY(mutex_) = false;
  bool anyway_ KVC_GUARDED_BY(mutex_) = false;  // who sends shall go on, due or not
  Caller* receiver_ KVC_GUARDED_BY(mutex_) = nullptr;
  Bytes queue_ KVC_GUARDED_BY(mutex_);
  size_t queued_ KVC_GUARDED_BY(mutex_) = 0;        // frames
  uint64_t queued_end_ KVC_GUARDED_BY(mutex_) = 0;  // bytes, ever
  uint64_t sent_end_ KVC_GUARDED_BY(mutex_) = 0;    // of them, taken to be sent
  Steady::time_point sent_at_ KVC_GUARDED_BY(mutex_);
  Steady::time_point used_at_ KVC_GUARDED_BY(mutex_);
  uint64_t last_sequence_ KVC_GUARDED_BY(mutex_) = 0;
  std::vector<Caller*> callers_ KVC_GUARDED_BY(mutex_);  // null: free
  std::vector<uint32_t> free_ KVC_GUARDED_BY(mutex_);
};

}  // namespace kvcfs::rdma
