// A GroupCache for many threads, under a lock of its own: who asks for what is all leased here does
// not wait for those who talk to the cluster.
//
// Threads: any.   Memory: GroupCache's.
#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <vector>

#include "base/brief_lock.h"
#include "base/mutex.h"
#include "meta/group_cache.h"

namespace kvcfs::meta {

class SharedGroupCache {
 public:
  explicit SharedGroupCache(size_t groups_max) : cache_(groups_max) {}

  std::optional<GroupCache::Chain> FindChain(Millis now, const SpaceId& space,
                                             std::span<const BlockKey> keys) {
    const BriefLock lock(mutex_);
    return cache_.FindChain(now, space, keys);
  }
  // What `use` makes of it. It must be quick.
  template <typename Use>
  auto With(Use&& use) {
    const BriefLock lock(mutex_);
    return use(cache_);
  }

 private:
  Mutex mutex_;
  GroupCache cache_ KVC_GUARDED_BY(mutex_);
};

}  // namespace kvcfs::meta
