// The one door to libfuse: takes requests from /dev/fuse, calls the Filesystem, answers.
//
// The connection outlives us: the supervisor holds the descriptor, keeps the kernel's INIT message,
// and the next daemon replays it and asks for what was left unanswered (FUSE_NOTIFY_RESEND, 6.9).
// Threads: a pool that grows while all of its threads are busy in calls that block; one `notify`
//   thread for pushed invalidations.
// Source: libfuse 3.17 fuse_lowlevel.h; Linux Documentation/filesystems/fuse.rst and
//   include/uapi/linux/fuse.h (passthrough, resend, epoch).
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <memory>
#include <set>
#include <string>
#include <thread>

#include <pthread.h>
#include <sched.h>

#include "base/fd.h"
#include "base/mutex.h"
#include "fs/cpu_warmer.h"
#include "fs/filesystem.h"
#include "fs/fs_types.h"

namespace kvcfs::fs {

// Memory that supervisor and daemons share: what the kernel said at INIT.
struct FuseInitMessage {
  std::atomic<uint32_t> bytes{0};
  char text[4096];
};

struct FuseSessionOptions {
  int device_fd = -1;  // /dev/fuse, mounted already; borrowed
  FuseInitMessage* init = nullptr;
  bool resumed = false;  // replay `init` instead of waiting for one
  enum class Passthrough { kAuto, kOn, kOff } passthrough = Passthrough::kAuto;
  std::string probe_directory;  // a directory of the slots' tmpfs, to try passthrough on
  unsigned threads_max = 64;
  bool follow_caller = true;          // CallerFollower of caller_cpu.h
  bool keep_awake = true;             // CpuWarmer of cpu_warmer.h
  std::chrono::microseconds poll{0};  // spin that long for the next request before sleeping
};

class FuseSession final : public BackingOpener, public Notifier {
 public:
  // Does the INIT handshake: after it, enabled() and reason() are known. kCancelled: unmounted.
  static Result<std::unique_ptr<FuseSession>> Create(const FuseSessionOptions& options);
  ~FuseSession() override;
  static bool BuiltWithPassthrough();  // libfuse has it

  // Serves until the mount is gone. Not more than once.
  void Serve(Filesystem& filesystem);
  // Serve returns although the mount lives on somewhere (detached while files are open).
  void StopServing();

  // BackingOpener
  bool enabled() const override { return passthrough_; }
  Result<uint32_t> OpenBacking(int fd) override;
  void CloseBacking(uint32_t id) override;
  const std::string& reason() const { return reason_; }  // why not, or what makes it possible
  // Names may be cached by the kernel: a drop can be told to it at once.
  bool epoch_supported() const { return epoch_supported_; }

  // Notifier
  void InvalidateInode(Ino ino) override;
  void InvalidateEntry(Ino parent, const std::string& name) override;
  void BumpEpoch() override;

 private:
  struct Door;  // libfuse's types
  friend struct Door;

  FuseSession() = default;
  void ServeThread();
  void SpawnThread() KVC_REQUIRES(mutex_);
  bool Notify(int code);
  void RunNotifier();
  void ProbePassthrough();

  FuseSessionOptions options_;
  std::unique_ptr<Door> door_;
  cpu_set_t cpus_{};                   // where threads may run; empty: the kernel decides
  std::unique_ptr<CpuWarmer> warmer_;  // null: not wanted
  Filesystem* filesystem_ = nullptr;
  bool passthrough_ = false;
  bool epoch_supported_ = false;
  std::string reason_;

  Mutex mutex_;
  std::condition_variable_any ended_;
  std::set<pthread_t> serving_ KVC_GUARDED_BY(mutex_);
  unsigned threads_ KVC_GUARDED_BY(mutex_) = 0;
  std::atomic<unsigned> idle_{0};
  std::atomic<bool> over_{false};

  struct Invalidation {
    Ino ino;
    std::string name;  // empty: the inode itself
  };
  Mutex notify_mutex_;
  std::condition_variable_any notify_changed_;
  std::deque<Invalidation> invalidations_ KVC_GUARDED_BY(notify_mutex_);
  std::thread notifier_;
};

}  // namespace kvcfs::fs
