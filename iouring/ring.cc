#include "iouring/ring.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <utility>

#include <liburing.h>
#include <sys/uio.h>

#include "base/log.h"

namespace kvcfs::iouring {
namespace {

constexpr unsigned kRegisteredFiles = 8;  // two heads, those being sealed, and some air

// What is left of a request after `done` bytes.
struct Rest {
  std::array<iovec, 2> pieces{};
  unsigned piece_count = 0;
  uint64_t bytes = 0;
};

Rest RestOf(const IoRequest& request, uint64_t done) {
  Rest rest;
  const std::array<std::pair<std::byte*, uint64_t>, 2> parts{
      {{request.data, request.bytes}, {request.then_data, request.then_bytes}}};
  for (const auto& [data, bytes] : parts) {
    const uint64_t skip = std::min(done, bytes);
    done -= skip;
    if (skip == bytes) continue;
    rest.pieces[rest.piece_count++] = {data + skip, bytes - skip};
    rest.bytes += bytes - skip;
  }
  return rest;
}

const DiskFile& FileOf(const IoRequest& request) {
  return static_cast<const DiskFile&>(*request.file);
}

class Ring final : public IoQueue {
 public:
  explicit Ring(unsigned depth) : slots_(depth) {
    for (unsigned slot = depth; slot != 0; --slot) free_.push_back(slot - 1);
  }

  ~Ring() override {
    if (!made_) return;
    std::vector<IoDone> done;
    while (in_flight() != 0) Wait(1, done);
    io_uring_queue_exit(&ring_);
  }

  Status Make(const IoQueueOptions& options) {
    // Completions are reaped by who waits anyway: no interrupt of a thread that is busy copying.
    int result = io_uring_queue_init(options.depth, &ring_, IORING_SETUP_COOP_TASKRUN);
    if (result == -EINVAL) result = io_uring_queue_init(options.depth, &ring_, 0);
    if (result < 0) return Error{Code::kUnsupported, ErrnoError(-result, "io_uring").text};
    made_ = true;
    if (!options.registered.empty()) {
      const iovec memory{options.registered.data(), options.registered.size()};
      buffers_ = io_uring_register_buffers(&ring_, &memory, 1) == 0;
      if (!buffers_) {
        KVC_LOG(Info, "staging memory is not registered (memlock limit?)", "bytes={}",
                memory.iov_len);
      }
    }
    if (options.registered_files) {
      files_ = io_uring_register_files_sparse(&ring_, kRegisteredFiles) == 0;
    }
    return {};
  }

  unsigned room() const override { return static_cast<unsigned>(free_.size()); }
  unsigned in_flight() const override { return static_cast<unsigned>(slots_.size()) - room(); }

  void Push(const IoRequest& request) override {
    KVC_CHECK(!free_.empty());
    const unsigned slot = free_.back();
    free_.pop_back();
    slots_[slot] = {.request = request, .transferred = 0, .rest = {}};
    Prepare(slot);
  }

  void Wait(unsigned at_least, std::vector<IoDone>& done) override {
    const size_t wanted = done.size() + std::min(at_least, in_flight());
    do {
      Enter(done.size() < wanted ? 1 : 0);
      Reap(done);
    } while (done.size() < wanted);
    if (io_uring_sq_ready(&ring_) != 0) Enter(0);  // continued pieces
  }

 private:
  struct Slot {
    IoRequest request;
    uint64_t transferred = 0;
    Rest rest;
  };

  void Enter(unsigned wait) {
    const int result = wait != 0 ? io_uring_submit_and_wait(&ring_, wait) : io_uring_submit(&ring_);
    // EAGAIN, EBUSY: the kernel is short of memory or wants its completions reaped first.
    KVC_CHECK(result >= 0 || result == -EINTR || result == -EAGAIN || result == -EBUSY);
  }

  void Reap(std::vector<IoDone>& done) {
    io_uring_cqe* completion = nullptr;
    while (io_uring_peek_cqe(&ring_, &completion) == 0) {
      const auto slot = static_cast<unsigned>(io_uring_cqe_get_data64(completion));
      const int result = completion->res;
      io_uring_cqe_seen(&ring_, completion);
      Completed(slot, result, done);
    }
  }

  void Completed(unsigned index, int result, std::vector<IoDone>& done) {
    Slot& slot = slots_[index];
    int error = 0;
    if (result == -EINTR || result == -EAGAIN) {
      Prepare(index);
      return;
    }
    if (result < 0) {
      error = -result;
    } else if (slot.request.op != IoRequest::Op::kSync) {
      slot.transferred += static_cast<uint64_t>(result);
      const uint64_t total = slot.request.bytes + slot.request.then_bytes;
      // What is no multiple of a page is the end of a file: O_DIRECT could not go on from there.
      const bool ended = result == 0 || slot.transferred % 512 != 0;
      if (slot.transferred < total) {
        if (!ended) {
          Prepare(index);
          return;
        }
        error = slot.request.op == IoRequest::Op::kRead ? ENODATA : EIO;
      }
    }
    done.push_back({.tag = slot.request.tag, .error = error});
    free_.push_back(index);
  }

  // Places the (rest of the) request in the submission queue.
  void Prepare(unsigned index) {
    Slot& slot = slots_[index];
    const IoRequest& request = slot.request;
    const int file = UseFile(FileOf(request));
    io_uring_sqe* entry = io_uring_get_sqe(&ring_);
    while (entry == nullptr) {
      Enter(0);
      entry = io_uring_get_sqe(&ring_);
    }
    slot.rest = RestOf(request, slot.transferred);
    const iovec& first = slot.rest.pieces[0];
    const uint64_t offset = request.offset + slot.transferred;
    const auto bytes = static_cast<unsigned>(first.iov_len);
    switch (request.op) {
      case IoRequest::Op::kSync:
        io_uring_prep_fsync(entry, file, IORING_FSYNC_DATASYNC);
        break;
      case IoRequest::Op::kWrite:
        if (request.registered && buffers_) {
          io_uring_prep_write_fixed(entry, file, first.iov_base, bytes, offset, 0);
        } else {
          io_uring_prep_write(entry, file, first.iov_base, bytes, offset);
        }
        break;
      case IoRequest::Op::kRead:
        if (slot.rest.piece_count == 2) {
          io_uring_prep_readv(entry, file, slot.rest.pieces.data(), 2, offset);
        } else {
          io_uring_prep_read(entry, file, first.iov_base, bytes, offset);
        }
        break;
    }
    if (files_) entry->flags |= IOSQE_FIXED_FILE;
    io_uring_sqe_set_data64(entry, index);
  }

  // The descriptor, or its place among the registered files.
  int UseFile(const DiskFile& file) {
    if (!files_) return file.fd();
    for (unsigned place = 0; place < kRegisteredFiles; ++place) {
      if (registered_[place] == file.serial()) return static_cast<int>(place);
    }
    // What is prepared for this place must reach the kernel before it means another file.
    while (io_uring_sq_ready(&ring_) != 0) Enter(0);
    const unsigned place = next_place_++ % kRegisteredFiles;
    int fd = file.fd();
    KVC_CHECK(io_uring_register_files_update(&ring_, place, &fd, 1) == 1);
    registered_[place] = file.serial();
    return static_cast<int>(place);
  }

  io_uring ring_{};
  bool made_ = false;
  bool buffers_ = false;
  bool files_ = false;
  std::vector<Slot> slots_;
  std::vector<unsigned> free_;
  std::array<uint64_t, kRegisteredFiles> registered_{};  // serial numbers
  unsigned next_place_ = 0;
};

class BlockingQueue final : public IoQueue {
 public:
  explicit BlockingQueue(unsigned depth) : depth_(depth) {}

  unsigned room() const override { return depth_ - in_flight(); }
  unsigned in_flight() const override { return static_cast<unsigned>(done_.size()); }

  void Push(const IoRequest& request) override {
    done_.push_back({.tag = request.tag, .error = Run(request)});
  }

  void Wait(unsigned /*at_least*/, std::vector<IoDone>& done) override {
    done.insert(done.end(), done_.begin(), done_.end());
    done_.clear();
  }

 private:
  static int Run(const IoRequest& request) {
    const int fd = FileOf(request).fd();
    if (request.op == IoRequest::Op::kSync) return ::fdatasync(fd) == 0 ? 0 : errno;
    const uint64_t total = request.bytes + request.then_bytes;
    uint64_t transferred = 0;
    while (transferred < total) {
      const Rest rest = RestOf(request, transferred);
      const auto offset = static_cast<off_t>(request.offset + transferred);
      const auto count = static_cast<int>(rest.piece_count);
      const bool read = request.op == IoRequest::Op::kRead;
      const ssize_t result = read ? ::preadv(fd, rest.pieces.data(), count, offset)
                                  : ::pwritev(fd, rest.pieces.data(), count, offset);
      if (result < 0 && errno == EINTR) continue;
      if (result < 0) return errno;
      transferred += static_cast<uint64_t>(result);
      const bool ended = result == 0 || transferred % 512 != 0;
      if (transferred < total && ended) return read ? ENODATA : EIO;
    }
    return 0;
  }

  const unsigned depth_;
  std::vector<IoDone> done_;
};

}  // namespace

DiskFile::DiskFile(Fd fd, uint64_t bytes) : fd_(std::move(fd)), bytes_(bytes) {
  static std::atomic<uint64_t> last_serial{0};
  serial_ = ++last_serial;
}

Result<std::unique_ptr<IoQueue>> MakeRing(const IoQueueOptions& options) {
  auto ring = std::make_unique<Ring>(options.depth);
  KVC_TRY(ring->Make(options));
  return std::unique_ptr<IoQueue>(std::move(ring));
}

std::unique_ptr<IoQueue> MakeBlockingQueue(const IoQueueOptions& options) {
  return std::make_unique<BlockingQueue>(options.depth);
}

}  // namespace kvcfs::iouring
