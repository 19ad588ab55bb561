// Keeps namespaces of a cluster within their quotas, each holder doing its part.
//
// Once a second it asks the metadata nodes how much the namespaces with a quota have. What is too
// much is asked back of the holders in proportion to what each has, coldest first, and only what
// nothing extends and nobody was promised goes. So a namespace has more than its quota for as long
// as that takes: about a second, or while what it has is leased.
// Threads: one of its own, `quota`; Enforce is for tests, which do not Start. Both it asks outlive
//   this, or Stop.
// Source: meta/CLUSTER.md, Quotas.
#pragma once

#include <condition_variable>
#include <random>
#include <thread>
#include <vector>

#include "base/mutex.h"
#include "fs/copy_holder.h"
#include "meta/cluster.h"

namespace kvcfs::fs {

class CopyQuota {
 public:
  CopyQuota(meta::Cluster* cluster, CopyHolder* copies) : cluster_(cluster), copies_(copies) {}
  ~CopyQuota() { Stop(); }
  CopyQuota(const CopyQuota&) = delete;
  CopyQuota& operator=(const CopyQuota&) = delete;

  void Start();
  void Stop();
  // Looks at all namespaces once. How many bytes went here.
  uint64_t Enforce();

 private:
  struct Quota {
    meta::SpaceId space;
    uint64_t bytes = 0;
    uint32_t replicas = 1;
  };
  void Run();
  void ReadQuotas();

  meta::Cluster* const cluster_;
  CopyHolder* const copies_;
  std::vector<Quota> quotas_;  // of one thread
  uint64_t spaces_version_ = UINT64_MAX;
  std::mt19937_64 random_{std::random_device()()};
  Mutex mutex_;
  std::condition_variable stop_asked_;
  bool stopping_ KVC_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace kvcfs::fs
