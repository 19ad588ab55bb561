// Where segments lie: a directory of files that are read and written in whole pages.
//
// The edge that tests replace: `DiskDirectory` is a real directory with io_uring and O_DIRECT,
// `MemoryDevice` (in the tests) fails, tears and forgets on request.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"

namespace kvcfs::iouring {

class BlockFile {
 public:
  virtual ~BlockFile() = default;
  virtual uint64_t bytes() const = 0;
};

// One read, write or fdatasync. Offsets, lengths and memory are multiples of a page.
struct IoRequest {
  enum class Op : uint8_t { kRead, kWrite, kSync };

  Op op = Op::kRead;
  bool registered = false;  // `data` lies in the memory that the queue was made with
  BlockFile* file = nullptr;
  uint64_t offset = 0;
  std::byte* data = nullptr;
  uint64_t bytes = 0;
  // Reads only: the bytes that follow go here. So a header and its data are one request.
  std::byte* then_data = nullptr;
  uint64_t then_bytes = 0;
  uint64_t tag = 0;
};

struct IoDone {
  uint64_t tag = 0;
  int error = 0;  // an errno; ENODATA: the file ends before
};

// Requests in flight. Short transfers and EINTR are continued inside; order is not kept.
// Threads: one at a time.   Memory: belongs to the queue from Push until its IoDone.
class IoQueue {
 public:
  virtual ~IoQueue() = default;       // waits for what is in flight
  virtual unsigned room() const = 0;  // how many more may be pushed now
  virtual unsigned in_flight() const = 0;
  virtual void Push(const IoRequest& request) = 0;
  // Starts what was pushed, waits until at least that many are done, and appends all that are.
  virtual void Wait(unsigned at_least, std::vector<IoDone>& done) = 0;
};

struct IoQueueOptions {
  unsigned depth = 64;
  std::span<std::byte> registered;  // pinned once, if it can be
  bool registered_files = false;    // for a queue that uses few files for long
};

// Threads: any.
// Fails: kNotFound, kIo, kDenied as the device says; Create: kNoSpace, and then leaves nothing.
class BlockDevice {
 public:
  virtual ~BlockDevice() = default;
  // A file of that many bytes with its space reserved. Its name is durable when this returns, the
  // reservation with the first flush.
  virtual Result<std::unique_ptr<BlockFile>> Create(const std::string& name, uint64_t bytes) = 0;
  virtual Result<std::unique_ptr<BlockFile>> OpenFile(const std::string& name) = 0;
  virtual Status Remove(const std::string& name) = 0;
  virtual Result<std::vector<std::string>> List() = 0;
  virtual std::unique_ptr<IoQueue> NewQueue(const IoQueueOptions& options) = 0;
  virtual std::string PathOf(const std::string& name) const = 0;  // for messages
};

// One blocking request after another on a queue of our own: for what is rare.
Status ReadPages(IoQueue& queue, BlockFile& file, uint64_t offset, std::span<std::byte> into);
Status WritePages(IoQueue& queue, BlockFile& file, uint64_t offset, std::span<std::byte> from);
Status SyncFile(IoQueue& queue, BlockFile& file);

}  // namespace kvcfs::iouring
