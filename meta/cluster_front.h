// The asking half of a node or a mount: runs the client core for callers that wait.
//
// The core is under one lock; whoever brings an event (a caller, a thread of the transport) runs it
// there. What a caller's own operation asks of a peer first, the caller asks itself, by a call that
// waits (rdma's shortest way); everything else goes out without waiting. A thread "cluster-tick"
// ticks the core. CRCs of what was read are computed by the caller.
// Threads: any. Lock order: the service's, mutex_, a waiter's.
// Memory: the caller's bytes, until its method returns: it waits for every call that touches them.
// Source: meta/cluster_client.h.
#pragma once

#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <thread>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/mutex.h"
#include "meta/cluster.h"
#include "meta/cluster_client.h"
#include "meta/cluster_peers.h"
#include "meta/cluster_service.h"
#include "meta/copy_reader.h"
#include "meta/match_reader.h"

namespace kvcfs::meta {

class ClusterFront {
 public:
  ClusterFront(const NodeId& self, const ClusterTimes& times, const Clock* clock,
               ClusterPeers* peers, CopyReader* reader, MatchReader* matches,
               ClusterService* service);
  ~ClusterFront() { Stop(); }

  void Start();
  // Every operation ends with kCancelled.
  void Stop() KVC_EXCLUDES(mutex_);
  void SetView(const ClusterView& view) KVC_EXCLUDES(mutex_);

  // Begins an operation under the number that it is given.
  using Begin = std::function<void(ClusterClient&, Millis now, uint64_t op, ClientActions*)>;
  // Runs one to its end. `send`: bytes of Put calls; `into`: of the block that is read.
  Outcome Run(const Begin& begin, std::span<const std::byte> send = {},
              std::span<std::byte> into = {}) KVC_EXCLUDES(mutex_);
  // Of a request all of which is leased here; nothing: Run it. Waits for nobody who is at Run.
  std::optional<GroupCache::Chain> FindLeased(const SpaceId& space,
                                              std::span<const BlockKey> keys) {
    return cache_->FindChain(clock_->Monotonic(), space, keys);
  }
  void NoteUsed(const BlockId& id, const NodeId& holder) KVC_EXCLUDES(mutex_);
  void Describe(ClusterStatus* status) KVC_EXCLUDES(mutex_);

 private:
  // Who waits for an operation, and the bytes of its calls.
  struct Waiter {
    explicit Waiter(std::span<const std::byte> bytes, std::span<std::byte> place)
        : send(bytes), into(place) {}
    const std::span<const std::byte> send;
    const std::span<std::byte> into;

    struct Arrived {
      uint64_t call = 0;
      Reply reply;
      uint32_t bytes = 0;
      bool is_probe = false;
      std::vector<uint64_t> words{};  // of a probe
    };
    Mutex mutex;
    std::condition_variable changed;
    std::optional<Outcome> outcome KVC_GUARDED_BY(mutex);
    std::vector<Arrived> arrived KVC_GUARDED_BY(mutex);  // of reads, to be checked; probes
    int open_calls KVC_GUARDED_BY(mutex) = 0;            // that touch bytes
    uint64_t in_place KVC_GUARDED_BY(mutex) = 0;         // the read that goes straight to `into`
    std::map<uint64_t, rdma::Bytes> aside KVC_GUARDED_BY(mutex);  // the others, by call

    void Finish(Outcome ended) KVC_EXCLUDES(mutex);
    void Arrive(Arrived what) KVC_EXCLUDES(mutex);
    void CallIsOver() KVC_EXCLUDES(mutex);
    std::span<std::byte> PlaceFor(uint64_t call) KVC_EXCLUDES(mutex);
  };
  using WaiterPtr = std::shared_ptr<Waiter>;

  // Does what the core wants. Of operation `own`, one call is left to the caller, who waits anyway.
  std::optional<OutCall> Flush(ClientActions actions, uint64_t own) KVC_REQUIRES(mutex_);
  bool Send(OutCall call, const WaiterPtr& waiter) KVC_REQUIRES(mutex_);
  bool SendProbe(const MatchProbe& probe) KVC_REQUIRES(mutex_);
  std::optional<OutCall> Deliver(uint64_t call, const Reply& reply, uint64_t own)
      KVC_EXCLUDES(mutex_);
  std::optional<OutCall> DeliverProbe(const Waiter::Arrived& probe, uint64_t own)
      KVC_EXCLUDES(mutex_);
  // The call that was left to this thread.
  std::optional<OutCall> CallAndDeliver(const OutCall& call, uint64_t own, Waiter& waiter)
      KVC_EXCLUDES(mutex_);
  // The reply of a read, with length and CRC of what has come.
  static Reply Checked(Reply reply, std::span<const std::byte> bytes, uint32_t received);
  void RunTicks() KVC_EXCLUDES(mutex_);

  const NodeId self_;
  const ClusterTimes times_;
  const Clock* const clock_;
  ClusterPeers* const peers_;
  CopyReader* const reader_;
  MatchReader* const matches_;
  ClusterService* const service_;

  Mutex mutex_;
  std::condition_variable stop_;
  ClusterClient client_ KVC_GUARDED_BY(mutex_);
  const std::shared_ptr<SharedGroupCache> cache_;  // the client's
  std::map<uint64_t, WaiterPtr> waiters_ KVC_GUARDED_BY(mutex_);
  uint64_t next_op_ KVC_GUARDED_BY(mutex_) = 1;
  bool stopping_ KVC_GUARDED_BY(mutex_) = false;
  std::thread ticks_;
};

}  // namespace kvcfs::meta
