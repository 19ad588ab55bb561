// std::mutex with clang's thread-safety annotations.
//
// Source: clang.llvm.org/docs/ThreadSafetyAnalysis.html. g++ sees plain mutexes.
#pragma once

#include <condition_variable>
#include <mutex>

#if defined(__clang__)
#define KVC_ANNOTATE(x) __attribute__((x))
#else
#define KVC_ANNOTATE(x)
#endif

#define KVC_CAPABILITY(x) KVC_ANNOTATE(capability(x))
#define KVC_SCOPED_CAPABILITY KVC_ANNOTATE(scoped_lockable)
#define KVC_GUARDED_BY(x) KVC_ANNOTATE(guarded_by(x))
#define KVC_REQUIRES(...) KVC_ANNOTATE(requires_capability(__VA_ARGS__))
#define KVC_EXCLUDES(...) KVC_ANNOTATE(locks_excluded(__VA_ARGS__))
#define KVC_ACQUIRE(...) KVC_ANNOTATE(acquire_capability(__VA_ARGS__))
#define KVC_TRY_ACQUIRE(...) KVC_ANNOTATE(try_acquire_capability(__VA_ARGS__))
#define KVC_RELEASE(...) KVC_ANNOTATE(release_capability(__VA_ARGS__))
#define KVC_NO_ANALYSIS KVC_ANNOTATE(no_thread_safety_analysis)

namespace kvcfs {

class KVC_CAPABILITY("mutex") Mutex {
 public:
  void Lock() KVC_ACQUIRE() { mutex_.lock(); }
  bool TryLock() KVC_TRY_ACQUIRE(true) { return mutex_.try_lock(); }
  void Unlock() KVC_RELEASE() { mutex_.unlock(); }
  std::mutex& native() { return mutex_; }

 private:
  std::mutex mutex_;
};

class KVC_SCOPED_CAPABILITY MutexLock {
 public:
  explicit MutexLock(Mutex& mutex) KVC_ACQUIRE(mutex) : lock_(mutex.native()) {}
  ~MutexLock() KVC_RELEASE() = default;
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;

  // For condition variables and for letting go early.
  std::unique_lock<std::mutex>& native() { return lock_; }

 private:
  std::unique_lock<std::mutex> lock_;
};

}  // namespace kvcfs
