// Sockets on io_uring: what the TCP provider asks of the kernel, and the answers.
//
// One ring a loop thread, single issuer, completions only when the thread asks for them.
// No zero-copy sends: on loopback the kernel copies all the same (SENDMSG_ZC reports it copied for
// each of 60,000 sends of 16 KiB and of 256 of 4 MiB), and on other addresses TLS has copied
// already. Threads: the one that called Open; Wake, any. Memory: a ring of provided buffers for
// multishot receives; give each back with Recycle. Fails: kUnsupported this host has no io_uring
// with these features (before Linux 6.1, or forbidden).
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include <sys/socket.h>

#include "base/fd.h"
#include "base/result.h"

struct io_uring;
struct io_uring_sqe;
struct io_uring_buf_ring;

namespace kvcfs::rdma {

// Something that was asked; lives until it has been told that nothing more comes.
class RingOp {
 public:
  virtual ~RingOp() = default;
  // `more`: further results of the same request follow.
  virtual void OnDone(int result, uint32_t flags) = 0;
  bool busy() const { return busy_; }

 private:
  friend class TcpRing;
  bool busy_ = false;
};

template <typename T, void (T::*method)(int, uint32_t)>
class MethodOp final : public RingOp {
 public:
  explicit MethodOp(T* self) : self_(self) {}
  void OnDone(int result, uint32_t flags) override { (self_->*method)(result, flags); }

 private:
  T* self_;
};

class TcpRing {
 public:
  TcpRing();
  ~TcpRing();

  Status Open();

  void Accept(RingOp* op, int fd);  // multishot
  void Connect(RingOp* op, int fd, const sockaddr* address, socklen_t bytes);
  // `whole`: goes on until `into` is full, the stream ends or it is cancelled.
  void Receive(RingOp* op, int fd, std::span<std::byte> into, bool whole);
  void ReceiveMultishot(RingOp* op, int fd);  // into provided buffers
  void Send(RingOp* op, int fd, const msghdr* message);
  void Cancel(RingOp* op);

  // The buffer of a multishot result; empty: none was used.
  std::span<const std::byte> Buffer(int result, uint32_t flags) const;
  void Recycle(uint32_t flags);

  // Submits, waits for at least one result or until the time is over, and hands out all results.
  void Run(std::chrono::nanoseconds wait);
  // Ends a Run, from any thread.
  void Wake();

  static bool More(uint32_t flags);

 private:
  void OnWoken(int result, uint32_t flags);
  void ArmWake();
  io_uring_sqe* Get(RingOp* op);

  static constexpr unsigned kEntries = 1024;
  static constexpr unsigned kBufferCount = 64;  // a power of two
  static constexpr size_t kBufferBytes = 16 << 10;
  static constexpr uint16_t kGroup = 1;

  std::unique_ptr<io_uring> ring_;
  bool open_ = false;
  io_uring_buf_ring* buffer_ring_ = nullptr;
  void* buffer_ring_memory_ = nullptr;
  std::unique_ptr<std::byte[]> buffers_;
  Fd wake_;
  uint64_t woken_ = 0;
  MethodOp<TcpRing, &TcpRing::OnWoken> wake_op_{this};
};

}  // namespace kvcfs::rdma
