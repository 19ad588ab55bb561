// The namespaces of a node: names, settings, owners.
//
// Each has a 16-byte UUID that is never reused, so that what an old namespace of the same name left
// in the segments is never taken for the new one's.
// Threads: any. Changes are in the MetaStore before they return.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/mutex.h"
#include "fs/fs_types.h"
#include "iouring/segment_store.h"
#include "meta/chain_index.h"
#include "meta/meta_store.h"
#include "meta/placement.h"

namespace kvcfs::fs {

inline constexpr uint64_t kBlockBytesDefault = 2u << 20;
inline constexpr uint64_t kBlockBytesMax = 64u << 20;

struct Namespace {
  meta::NamespaceId id = 0;
  std::string name;
  iouring::Uuid uuid{};
  uint64_t block_bytes = kBlockBytesDefault;
  uint64_t quota_bytes = 0;  // 0: none
  bool sync = false;         // durability: every close as if preceded by fsync
  uint32_t replicas = 1;
  uid_t uid = 0;
  gid_t gid = 0;
  mode_t mode = 0755;
  int64_t mtime_nanos = 0;
  int64_t ctime_nanos = 0;
  Ino files_root = 0;
  bool hidden = false;  // not the cluster's (any more), but its ordinary files are here; not kept

  friend bool operator==(const Namespace&, const Namespace&) = default;
};

// The name that the cluster has for it.
meta::SpaceId SpaceIdOf(const iouring::Uuid& uuid);
iouring::Uuid UuidOf(const meta::SpaceId& id);

// EINVAL (none, or it starts with a dot), ENAMETOOLONG.
FsStatus CheckNamespaceName(std::string_view name);

class NamespaceTable {
 public:
  NamespaceTable(meta::MetaStore& store, const Clock& clock) : store_(store), clock_(clock) {}

  Status Load();
  std::optional<Namespace> Find(const std::string& name) const;  // none that is hidden
  std::optional<Namespace> Get(meta::NamespaceId id) const;
  std::optional<Namespace> FindUuid(const iouring::Uuid& uuid) const;
  std::vector<Namespace> List() const;     // by id, none that is hidden
  std::vector<Namespace> ListAll() const;  // by id

  // EEXIST; else as CheckNamespaceName.
  FsResult<Namespace> Create(const Caller& caller, const std::string& name, mode_t mode);
  // Made elsewhere: takes it up under a new id. EEXIST.
  FsResult<Namespace> Adopt(Namespace space);
  FsStatus Update(const Namespace& changed);
  FsStatus Remove(meta::NamespaceId id);

 private:
  FsStatus Save(const Namespace& space) KVC_REQUIRES(mutex_);

  meta::MetaStore& store_;
  const Clock& clock_;
  mutable Mutex mutex_;
  std::map<meta::NamespaceId, Namespace> spaces_ KVC_GUARDED_BY(mutex_);
  meta::NamespaceId next_id_ KVC_GUARDED_BY(mutex_) = 1;
};

}  // namespace kvcfs::fs
