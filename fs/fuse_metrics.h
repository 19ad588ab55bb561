// Counts and times of the calls that the kernel makes.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>

namespace kvcfs::fs {

enum class FuseOp : uint8_t {
  kLookup,
  kGetAttr,
  kSetAttr,
  kReadLink,
  kMakeNode,
  kMakeDirectory,
  kMakeSymlink,
  kLink,
  kUnlink,
  kRemoveDirectory,
  kRename,
  kOpen,
  kCreate,
  kRead,
  kWrite,
  kFlush,
  kRelease,
  kFsync,
  kOpenDirectory,
  kReadDirectory,
  kReadDirectoryPlus,
  kReleaseDirectory,
  kFsyncDirectory,
  kStatFs,
  kSetXattr,
  kGetXattr,
  kListXattr,
  kRemoveXattr,
  kIoctl,
  kAllocate,
  kSeek,
  kCopyRange,
  kCount
};

// From the request to its answer.
class FuseOpTimer {
 public:
  FuseOpTimer(FuseOp op, std::chrono::steady_clock::time_point begin) : op_(op), begin_(begin) {}
  ~FuseOpTimer();
  FuseOpTimer(const FuseOpTimer&) = delete;
  FuseOpTimer& operator=(const FuseOpTimer&) = delete;

  void Failed(int number) { errno_ = number; }
  void Moved(size_t bytes) { bytes_ = bytes; }

 private:
  FuseOp op_;
  int errno_ = 0;
  size_t bytes_ = 0;
  std::chrono::steady_clock::time_point begin_;
};

}  // namespace kvcfs::fs
