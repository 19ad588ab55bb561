#include "rdma/tcp_ring.h"

#include <cerrno>
#include <cstring>

#include <liburing.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

namespace kvcfs::rdma {
TcpRing::TcpRing() : ring_(std::make_unique<io_uring>()) {}

TcpRing::~TcpRing() {
  if (open_) io_uring_queue_exit(ring_.get());
  if (buffer_ring_memory_ != nullptr) {
    ::munmap(buffer_ring_memory_, kBufferCount * sizeof(io_uring_buf));
  }
}

Status TcpRing::Open() {
  wake_ = Fd(::eventfd(0, EFD_CLOEXEC));
  if (!wake_.valid()) return ErrnoError(errno, "eventfd");
  io_uring_params params{};
  params.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_CQSIZE;
  params.cq_entries = 8 * kEntries;
  const int made = io_uring_queue_init_params(kEntries, ring_.get(), &params);
  if (made < 0) return Error{Code::kUnsupported, ErrnoError(-made, "io_uring").text};
  open_ = true;

  const size_t bytes = kBufferCount * sizeof(io_uring_buf);
  void* memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return ErrnoError(errno, "mmap");
  buffer_ring_memory_ = memory;
  buffer_ring_ = static_cast<io_uring_buf_ring*>(memory);
  io_uring_buf_reg registration{};
  registration.ring_addr = reinterpret_cast<uint64_t>(memory);
  registration.ring_entries = kBufferCount;
  registration.bgid = kGroup;
  if (const int result = io_uring_register_buf_ring(ring_.get(), &registration, 0); result < 0) {
    return Error{Code::kUnsupported, ErrnoError(-result, "io_uring buffer ring").text};
  }
  io_uring_buf_ring_init(buffer_ring_);
  buffers_ = std::make_unique<std::byte[]>(kBufferCount * kBufferBytes);
  for (unsigned i = 0; i < kBufferCount; ++i) {
    io_uring_buf_ring_add(buffer_ring_, buffers_.get() + i * kBufferBytes, kBufferBytes,
                          static_cast<uint16_t>(i), io_uring_buf_ring_mask(kBufferCount),
                          static_cast<int>(i));
  }
  io_uring_buf_ring_advance(buffer_ring_, kBufferCount);
  ArmWake();
  return {};
}

io_uring_sqe* TcpRing::Get(RingOp* op) {
  io_uring_sqe* entry = io_uring_get_sqe(ring_.get());
  while (entry == nullptr) {
    const int result = io_uring_submit(ring_.get());
    KVC_CHECK(result >= 0 || result == -EINTR || result == -EAGAIN || result == -EBUSY);
    entry = io_uring_get_sqe(ring_.get());
  }
  if (op != nullptr) {
    KVC_CHECK(!op->busy_);
    op->busy_ = true;
  }
  return entry;
}

void TcpRing::Accept(RingOp* op, int fd) {
  io_uring_sqe* entry = Get(op);
  io_uring_prep_multishot_accept(entry, fd, nullptr, nullptr, SOCK_CLOEXEC);
  io_uring_sqe_set_data(entry, op);
}

void TcpRing::Connect(RingOp* op, int fd, const sockaddr* address, socklen_t bytes) {
  io_uring_sqe* entry = Get(op);
  io_uring_prep_connect(entry, fd, address, bytes);
  io_uring_sqe_set_data(entry, op);
}

void TcpRing::Receive(RingOp* op, int fd, std::span<std::byte> into, bool whole) {
  io_uring_sqe* entry = Get(op);
  io_uring_prep_recv(entry, fd, into.data(), into.size(), whole ? MSG_WAITALL : 0);
  io_uring_sqe_set_data(entry, op);
}

void TcpRing::ReceiveMultishot(RingOp* op, int fd) {
  io_uring_sqe* entry = Get(op);
  io_uring_prep_recv_multishot(entry, fd, nullptr, 0, 0);
  entry->flags |= IOSQE_BUFFER_SELECT;
  entry->buf_group = kGroup;
  io_uring_sqe_set_data(entry, op);
}

void TcpRing::Send(RingOp* op, int fd, const msghdr* message) {
  io_uring_sqe* entry = Get(op);
  io_uring_prep_sendmsg(entry, fd, message, MSG_NOSIGNAL | MSG_WAITALL);
  io_uring_sqe_set_data(entry, op);
}

void TcpRing::Cancel(RingOp* op) {
  io_uring_sqe* entry = Get(nullptr);
  io_uring_prep_cancel(entry, op, 0);
  io_uring_sqe_set_data(entry, nullptr);
}

std::span<const std::byte> TcpRing::Buffer(int result, uint32_t flags) const {
  if ((flags & IORING_CQE_F_BUFFER) == 0 || result <= 0) return {};
  const uint32_t id = flags >> IORING_CQE_BUFFER_SHIFT;
  return {buffers_.get() + id * kBufferBytes, static_cast<size_t>(result)};
}

void TcpRing::Recycle(uint32_t flags) {
  if ((flags & IORING_CQE_F_BUFFER) == 0) return;
  const uint32_t id = flags >> IORING_CQE_BUFFER_SHIFT;
  io_uring_buf_ring_add(buffer_ring_, buffers_.get() + id * kBufferBytes, kBufferBytes,
                        static_cast<uint16_t>(id), io_uring_buf_ring_mask(kBufferCount), 0);
  io_uring_buf_ring_advance(buffer_ring_, 1);
}

void TcpRing::Run(std::chrono::nanoseconds wait) {
  io_uring_cqe* first = nullptr;
  __kernel_timespec time{};
  time.tv_sec = wait.count() / 1'000'000'000;
  time.tv_nsec = wait.count() % 1'000'000'000;
  const int result = io_uring_submit_and_wait_timeout(ring_.get(), &first, 1, &time, nullptr);
  KVC_CHECK(result >= 0 || result == -ETIME || result == -EINTR || result == -EAGAIN ||
            result == -EBUSY);
  // A batch of what is there: what completes meanwhile waits for the next turn, behind our sends.
  unsigned head = 0, count = 0;
  io_uring_cqe* completion = nullptr;
  struct Seen {
    RingOp* op;
    int result;
    uint32_t flags;
  };
  Seen seen[128];
  io_uring_for_each_cqe(ring_.get(), head, completion) {
    if (count == std::size(seen)) break;
    seen[count++] = {static_cast<RingOp*>(io_uring_cqe_get_data(completion)), completion->res,
                     completion->flags};
  }
  io_uring_cq_advance(ring_.get(), count);
  for (unsigned i = 0; i < count; ++i) {
    RingOp* op = seen[i].op;
    if (op == nullptr) continue;
    if (!More(seen[i].flags)) op->busy_ = false;
    op->OnDone(seen[i].result, seen[i].flags);
  }
}

void TcpRing::Wake() {
  const uint64_t one = 1;
  // Full is as good: it is awake then.
  [[maybe_unused]] const ssize_t written = ::write(wake_.get(), &one, sizeof(one));
}

void TcpRing::ArmWake() {
  io_uring_sqe* entry = Get(&wake_op_);
  io_uring_prep_read(entry, wake_.get(), &woken_, sizeof(woken_), 0);
  io_uring_sqe_set_data(entry, &wake_op_);
}

void TcpRing::OnWoken(int /*result*/, uint32_t /*flags*/) {
  ArmWake();
}

bool TcpRing::More(uint32_t flags) {
  return (flags & IORING_CQE_F_MORE) != 0;
}

}  // namespace kvcfs::rdma
