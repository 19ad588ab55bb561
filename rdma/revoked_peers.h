// Peers that may not ask for anything now: nodes that left the view.
//
// Threads: any. version() is what a connection looks at for each request; Has only if that is
// another.
#pragma once

#include <atomic>
#include <cstdint>
#include <set>

#include "base/mutex.h"
#include "rdma/transport.h"

namespace kvcfs::rdma {

inline Error RevokedError() {
  return {Code::kUnavailable, "revoked: this node is not in the view"};
}

class RevokedPeers {
 public:
  void Revoke(const NodeId& node) KVC_EXCLUDES(mutex_) {
    const MutexLock lock(mutex_);
    if (nodes_.insert(node).second) version_.fetch_add(1, std::memory_order_release);
  }
  void Admit(const NodeId& node) KVC_EXCLUDES(mutex_) {
    const MutexLock lock(mutex_);
    if (nodes_.erase(node) != 0) version_.fetch_add(1, std::memory_order_release);
  }
  bool Has(const NodeId& node) const KVC_EXCLUDES(mutex_) {
    const MutexLock lock(mutex_);
    return nodes_.contains(node);
  }
  // Another one after each change; 0: nobody was ever revoked.
  uint64_t version() const { return version_.load(std::memory_order_acquire); }

 private:
  mutable Mutex mutex_;
  std::set<NodeId> nodes_ KVC_GUARDED_BY(mutex_);
  std::atomic<uint64_t> version_{0};
};

}  // namespace kvcfs::rdma
