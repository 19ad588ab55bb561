// The names of ordinary files at a metadata node: answers for the namespaces that it owns, and
// keeps copies for those that others own.
//
// The owner of a namespace's names is the metadata node of the view with the highest rendezvous
// hash; the second highest keeps a copy, and has each batch before a change is answered. Who
// becomes owner asks all metadata nodes for the newest copy, under its own epoch: whoever answered
// takes nothing of an older epoch any more, so that an owner before, which has no copy then, cannot
// answer either (and one that left the view lost its right to serve).
// Threads: Serve and SetView from any (a transport's too); the work is done by pools: requests of
//   mounts, which wait for the disk and for the copy; requests of other nodes, which wait for the
//   disk only.
// Fails: kStale: not mine, or another epoch; kUnavailable: not loaded yet, or the copy cannot be
//   had now; the asker asks again.
// Source: CLUSTER.md#names.
#pragma once

#include <atomic>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <shared_mutex>
#include <vector>

#include "base/clock.h"
#include "base/mutex.h"
#include "meta/cluster_peers.h"
#include "meta/meta_store.h"
#include "meta/name_table.h"
#include "meta/worker_pool.h"

namespace kvcfs::meta {

// The metadata nodes of a view, in the order in which they are to own a namespace's names.
std::vector<NodeId> NameNodesFor(const ClusterView& view, const SpaceId& space);

class NameService {
 public:
  struct Parts {
    const Clock* clock = nullptr;
    ClusterPeers* peers = nullptr;
    std::function<bool()> may_serve;  // Membership's
  };
  NameService(const NodeId& self, Parts parts) : self_(self), parts_(std::move(parts)) {}
  ~NameService() { Stop(); }

  void Start(MetaStore* store);
  void Stop();
  void SetView(const std::shared_ptr<const ClusterView>& view) KVC_EXCLUDES(mutex_);
  // Answers later, on a thread of its own. False: too much waits.
  bool Serve(NameRequest request, std::function<void(const NameReply&)> answer);

 private:
  // One namespace here.
  struct Space {
    Space(MetaStore* store, const SpaceId& space) : id(space), table(store, space) {}
    const SpaceId id;
    std::shared_mutex mutex;  // shared: questions; else: changes, and all that follows
    NameTable table;
    bool read = false;         // from the store
    uint64_t owned_epoch = 0;  // in which this node answers as the owner
    NodeId copy;               // who has the copy; not valid: nobody is to
    // What the copy has not taken yet.
    struct Batch {
      uint64_t sequence = 0;
      std::vector<NameRecord> records;
    };
    std::deque<Batch> unsent;
  };
  using SpacePtr = std::shared_ptr<Space>;

  SpacePtr Find(const SpaceId& id) KVC_EXCLUDES(mutex_);
  std::shared_ptr<const ClusterView> view() KVC_EXCLUDES(mutex_);
  NameReply AnswerMount(const NameRequest& request);
  NameReply AnswerNode(const NameRequest& request);
  // Under space.mutex, exclusively: answers for it from now on.
  Status Own(Space& space, const ClusterView& view);
  Status FetchNewest(Space& space, const ClusterView& view, const NodeId& from, uint64_t sequence);
  Status SendWhole(Space& space, uint64_t epoch);
  Status SendRest(Space& space, uint64_t epoch);
  Result<NameReply> Ask(const NodeId& node, const NameRequest& request);
  // Owns what this view gives to this node, so that its copies are made soon.
  void TakeOver(const std::shared_ptr<const ClusterView>& view);

  const NodeId self_;
  const Parts parts_;
  MetaStore* store_ = nullptr;  // null: no names here
  std::atomic<bool> serving_{false};
  std::unique_ptr<WorkerPool> mounts_, nodes_, takeover_;
  Mutex mutex_;
  std::shared_ptr<const ClusterView> view_ KVC_GUARDED_BY(mutex_);
  std::map<SpaceId, SpacePtr> spaces_ KVC_GUARDED_BY(mutex_);
};

}  // namespace kvcfs::meta
