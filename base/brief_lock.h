// A lock of a Mutex that many threads hold for a microsecond: who finds it taken looks again for a
// moment before it sleeps, since sleeping and being woken takes longer than they do.
#pragma once

#include "base/mutex.h"

namespace kvcfs {

class KVC_SCOPED_CAPABILITY BriefLock {
 public:
  explicit BriefLock(Mutex& mutex) KVC_ACQUIRE(mutex) : lock_(mutex.native(), std::try_to_lock) {
    for (int i = 0; i < kLooks && !lock_.owns_lock(); ++i) {
      __builtin_ia32_pause();
      (void)lock_.try_lock();
    }
    if (!lock_.owns_lock()) lock_.lock();
  }
  ~BriefLock() KVC_RELEASE() = default;
  BriefLock(const BriefLock&) = delete;
  BriefLock& operator=(const BriefLock&) = delete;

  // For letting go for a while.
  std::unique_lock<std::mutex>& native() { return lock_; }

 private:
  static constexpr int kLooks = 64;  // 2 to 4 us
  std::unique_lock<std::mutex> lock_;
};

}  // namespace kvcfs
