#include "fs/fuse_metrics.h"

#include <array>
#include <cerrno>

#include "base/metrics.h"

namespace kvcfs::fs {
namespace {

constexpr std::array<const char*, static_cast<size_t>(FuseOp::kCount)> kNames = {
    "lookup",     "getattr",   "setattr", "readlink",       "mknod",    "mkdir",     "symlink",
    "link",       "unlink",    "rmdir",   "rename",         "open",     "create",    "read",
    "write",      "flush",     "release", "fsync",          "opendir",  "readdir",   "readdirplus",
    "releasedir", "fsyncdir",  "statfs",  "setxattr",       "getxattr", "listxattr", "removexattr",
    "ioctl",      "fallocate", "lseek",   "copy_file_range"};

// Errors that callers ask for (a miss, a lost race) and errors that somebody must look at.
constexpr std::array<int, 8> kErrors = {ENOENT, EEXIST, ENOSPC, EIO, EINVAL, EPERM, EBUSY, EFBIG};
constexpr std::array<const char*, 9> kErrorNames = {"ENOENT", "EEXIST", "ENOSPC", "EIO",  "EINVAL",
                                                    "EPERM",  "EBUSY",  "EFBIG",  "other"};

struct OpMetrics {
  std::array<LatencyHistogram*, kNames.size()> latency{};
  std::array<Counter*, kErrorNames.size()> errors{};
  Counter* read_bytes;
  Counter* written_bytes;

  OpMetrics() {
    Metrics& all = Metrics::Get();
    for (size_t i = 0; i < kNames.size(); ++i) {
      latency[i] =
          &all.AddLatency("kvcfs_fs_call_duration_seconds",
                          "From a request of the kernel to its answer.", {{"call", kNames[i]}});
    }
    for (size_t i = 0; i < kErrorNames.size(); ++i) {
      errors[i] = &all.AddCounter("kvcfs_fs_errors_total", "Calls answered with an error.",
                                  {{"code", kErrorNames[i]}});
    }
    read_bytes = &all.AddCounter("kvcfs_fs_read_bytes_total",
                                 "Bytes read through the daemon (passthrough is not seen here).");
    written_bytes =
        &all.AddCounter("kvcfs_fs_written_bytes_total",
                        "Bytes written through the daemon (passthrough is not seen here).");
  }
};

OpMetrics& All() {
  static OpMetrics metrics;
  return metrics;
}

}  // namespace

FuseOpTimer::~FuseOpTimer() {
  OpMetrics& metrics = All();
  metrics.latency[static_cast<size_t>(op_)]->Observe(std::chrono::steady_clock::now() - begin_);
  if (errno_ != 0) {
    size_t which = 0;
    while (which < kErrors.size() && kErrors[which] != errno_) ++which;
    metrics.errors[which]->Add();
  }
  if (bytes_ != 0 && op_ == FuseOp::kRead) metrics.read_bytes->Add(static_cast<double>(bytes_));
  if (bytes_ != 0 && op_ == FuseOp::kWrite) {
    metrics.written_bytes->Add(static_cast<double>(bytes_));
  }
}

}  // namespace kvcfs::fs
