// The cluster's namespaces, as this host's table has them.
//
// A namespace is made, changed and removed at the cluster first; each host takes up what it hears
// under an id of its own, with the cluster's UUID. Its ordinary files are of this host alone: a
// namespace that the cluster has no longer, and that has some, is hidden and they are kept.
// Threads: any; what asks the cluster blocks. Lock order: mutex_, then those of the table, of files
//   and of blocks.
// Fails: EIO where the cluster does not answer; else as NamespaceTable.
// Source: fs/SEMANTICS.md.
#pragma once

#include <atomic>
#include <string>
#include <string_view>

#include "base/mutex.h"
#include "fs/block_store.h"
#include "fs/file_tree.h"
#include "fs/namespace_table.h"
#include "meta/cluster.h"

namespace kvcfs::fs {

class ClusterSpaces {
 public:
  struct Parts {
    meta::Cluster* cluster = nullptr;
    NamespaceTable* namespaces = nullptr;
    BlockStore* blocks = nullptr;
    FileTree* files = nullptr;  // may be null in tests: no ordinary files
    const Clock* clock = nullptr;
  };
  explicit ClusterSpaces(const Parts& parts) : parts_(parts) {}

  // Takes up what was heard since the last time. Cheap when that is nothing.
  void Follow() KVC_EXCLUDES(mutex_);
  // By name; one that is not known here is asked for.
  std::optional<Namespace> Find(const std::string& name) KVC_EXCLUDES(mutex_);
  FsResult<Namespace> Create(const Caller& caller, const std::string& name, mode_t mode)
      KVC_EXCLUDES(mutex_);
  FsStatus Update(const Namespace& changed) KVC_EXCLUDES(mutex_);
  FsStatus Remove(const Namespace& space) KVC_EXCLUDES(mutex_);

 private:
  void TakeUp(const meta::ClusterSpace& space) KVC_REQUIRES(mutex_);
  void LetGo(const Namespace& space) KVC_REQUIRES(mutex_);
  bool HasFiles(const Namespace& space);

  const Parts parts_;
  Mutex mutex_;
  static constexpr uint64_t kNever = UINT64_MAX;
  std::atomic<uint64_t> followed_{kNever};  // the version of the cluster's that the table is of
};

// What the cluster keeps of a namespace beside name and UUID; JSON. What is missing or wrong in it
// stays as it is in `space`.
std::string SettingsOf(const Namespace& space);
void ApplySettings(std::string_view settings, Namespace* space);
// Whether a publication there waits for NVMe. No: nobody knows it.
bool WantsDurable(meta::Cluster& cluster, const meta::SpaceId& id);

}  // namespace kvcfs::fs
