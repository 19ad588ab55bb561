// An IoQueue on io_uring: the one door to liburing.
//
// Threads: one at a time (several threads may hand a ring on, so no single-issuer mode).
// Memory: `registered` is pinned once; where that is refused (memlock), it is used unpinned.
#pragma once

#include <memory>

#include "base/fd.h"
#include "base/result.h"
#include "iouring/block_device.h"

namespace kvcfs::iouring {

// A file of the real filesystem. `serial` is never given twice, unlike descriptor numbers.
class DiskFile final : public BlockFile {
 public:
  DiskFile(Fd fd, uint64_t bytes);
  uint64_t bytes() const override { return bytes_; }
  int fd() const { return fd_.get(); }
  uint64_t serial() const { return serial_; }

 private:
  Fd fd_;
  uint64_t bytes_;
  uint64_t serial_;
};

// Requests must name DiskFiles.
// Fails: kUnsupported this host has no io_uring (an old kernel, a container that forbids it).
Result<std::unique_ptr<IoQueue>> MakeRing(const IoQueueOptions& options);

// The same by plain system calls, one after another.
std::unique_ptr<IoQueue> MakeBlockingQueue(const IoQueueOptions& options);

}  // namespace kvcfs::iouring
