// The cluster's namespaces: keys at etcd, and what is known of them here.
//
// /kvcfs/<cluster>/spaces/<name> holds {"uuid": 32 hex digits, "settings": {...}}. Made, changed
// and removed by compare-and-swap, so that the first one wins and nobody's change is overwritten.
// What is known here comes from membership's listings (Take) and from what was asked when it was
// not known. Threads: any; what asks etcd blocks. Find and NameOf do not. Fails: as cluster.h says
// of each.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/mutex.h"
#include "base/result.h"
#include "meta/cluster.h"
#include "meta/etcd_client.h"

namespace kvcfs::meta {

class SpaceDirectory {
 public:
  SpaceDirectory(const std::string& cluster, std::unique_ptr<EtcdClient> etcd)
      : prefix_("/kvcfs/" + cluster + "/spaces/"), etcd_(std::move(etcd)) {}

  // All keys of the cluster (or of its spaces), as they are at one revision.
  void Take(const EtcdRange& listed) KVC_EXCLUDES(mutex_);

  Result<std::optional<ClusterSpace>> Get(std::string_view name) KVC_EXCLUDES(mutex_);
  Result<std::optional<ClusterSpace>> Get(const SpaceId& id) KVC_EXCLUDES(mutex_);
  std::vector<ClusterSpace> List() const KVC_EXCLUDES(mutex_);
  uint64_t Version() const KVC_EXCLUDES(mutex_);
  // Of what is known here.
  std::optional<std::string> NameOf(const SpaceId& id) const KVC_EXCLUDES(mutex_);

  Result<ClusterSpace> Create(const ClusterSpace& space) KVC_EXCLUDES(mutex_);
  Result<ClusterSpace> Set(const ClusterSpace& space) KVC_EXCLUDES(mutex_);
  Status Remove(const ClusterSpace& space) KVC_EXCLUDES(mutex_);

 private:
  std::optional<ClusterSpace> Find(std::string_view name) const KVC_EXCLUDES(mutex_);
  std::optional<ClusterSpace> Find(const SpaceId& id) const KVC_EXCLUDES(mutex_);
  Status Refresh() KVC_EXCLUDES(mutex_);
  Result<ClusterSpace> Put(const ClusterSpace& space, int64_t revision, Code otherwise)
      KVC_EXCLUDES(mutex_);

  const std::string prefix_;
  const std::unique_ptr<EtcdClient> etcd_;
  mutable Mutex mutex_;
  int64_t revision_ KVC_GUARDED_BY(mutex_) = -1;  // of etcd, that spaces_ is of
  uint64_t version_ KVC_GUARDED_BY(mutex_) = 0;
  std::map<std::string, ClusterSpace, std::less<>> spaces_ KVC_GUARDED_BY(mutex_);
};

}  // namespace kvcfs::meta
