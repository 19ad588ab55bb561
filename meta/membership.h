// Who is in the cluster: registers this node at etcd, keeps its lease, follows and proposes views.
//
// Keys at etcd, all JSON that a person can read, below /kvcfs/<cluster>/:
//   nodes/<name>      a live node, under its lease
//   view              epoch and nodes: what everybody goes by; changed by compare-and-swap only.
//                     A holder that left stays in it for a while, as one that is away
//   draining/<name>   an operator wants this node emptied (kvcfs cluster drain)
// Any metadata node of the view that sees that nodes and view differ proposes the next view. One
// that is not in the view does so only where there is no view, or where all its nodes have been
// gone for `takeover`: so that nodes which etcd cannot see, but which see one another, are not
// doubled. Threads: two of its own. Fails: Start where etcd does not answer in time, or another
// live node has this name. Source: meta/CLUSTER.md, meta/serving_right.h.
#pragma once

#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "base/mutex.h"
#include "base/result.h"
#include "meta/cluster_view.h"
#include "meta/etcd_client.h"
#include "meta/serving_right.h"

namespace kvcfs::meta {

struct MembershipOptions {
  std::string cluster = "kvcfs";
  std::chrono::seconds lease{3};
  Millis start_timeout{10000};
  Millis takeover{30000};
  Millis away{600'000};  // so long a holder that left may come back with what it had
};

// What an operator is shown of etcd beside the view.
struct MembershipStatus {
  bool etcd_answers = false;
  std::string etcd_error;   // the last, while it does not
  Millis since_renewal{0};  // of a node's lease
  bool may_serve = false;
  bool by_promise = false;  // the lease is past its half: the others' promises carry it
};

std::string EncodeView(const ClusterView& view);
std::optional<ClusterView> DecodeView(const std::string& json);

class Membership {
 public:
  // All on threads of ours, without a lock. Any may be left out.
  struct Calls {
    // In the order of epochs.
    std::function<void(const std::shared_ptr<const ClusterView>&)> changed{};
    // Asks another metadata node for a promise about `epoch`; how long it promised, from when it
    // was asked, 0: not. May block for about `timeout`.
    std::function<Millis(const ClusterNode& node, uint64_t epoch, Millis timeout)> ask_promise{};
    // Every key of the cluster at etcd, whenever one of them has changed; before the view of it.
    std::function<void(const EtcdRange&)> listed{};
  };

  Membership(MembershipOptions options, std::unique_ptr<EtcdClient> etcd, const Clock* clock);
  ~Membership();

  // Returns when there is a view, for a node: one that has it. No `self`: a client, which follows
  // views and is in none.
  Status Start(std::optional<ClusterNode> self, Calls calls);
  // Leaves at once: a lease that is given back needs no time to run out.
  void Stop();
  // For tests: as if the process had died; the lease runs out by itself.
  void StopSilently();

  std::shared_ptr<const ClusterView> view() const;
  // Of this node as it joined last; a view may still have the one before.
  uint64_t incarnation() const;
  bool MayServe() const;
  // A peer asks this node: ServingRight::Promise.
  Millis Promise(uint64_t epoch);
  MembershipStatus status() const;

  // An operator's wish, kept until it is taken back.
  Status SetDraining(const std::string& name, bool draining);

 private:
  struct Listed;

  int64_t EndThreads();  // the lease that is still held; 0: none
  std::string Prefix() const { return "/kvcfs/" + options_.cluster + "/"; }
  Status Register();
  void RunRenewal();
  void RunWatch();
  void AskForPromises();
  Result<Listed> ListAll();
  // Proposes a view if it must be another, takes up the one there is. False: look again soon.
  bool Handle(const Listed& listed);
  bool MayPropose(const Listed& listed);
  // Nodes that live, and holders of the view that left not long ago.
  std::vector<ClusterNode> WithAway(const Listed& listed);
  bool Wait(Millis time);  // false: we are stopping
  void NoteEtcd(const Status& status);

  const MembershipOptions options_;
  const std::unique_ptr<EtcdClient> etcd_;
  const Clock* const clock_;
  Calls calls_;
  std::optional<ClusterNode> self_;  // since Start

  mutable Mutex mutex_;
  std::condition_variable wake_;
  bool stopping_ KVC_GUARDED_BY(mutex_) = false;
  std::shared_ptr<const ClusterView> view_ KVC_GUARDED_BY(mutex_);
  ServingRight right_ KVC_GUARDED_BY(mutex_);
  int64_t lease_ KVC_GUARDED_BY(mutex_) = 0;
  uint64_t incarnation_ KVC_GUARDED_BY(mutex_) = 0;
  Millis renewed_ KVC_GUARDED_BY(mutex_){0};
  Status etcd_status_ KVC_GUARDED_BY(mutex_);
  // Of the watching thread.
  Millis members_gone_since_{-1};
  std::map<NodeId, Millis> away_since_;
  Millis next_away_end_{Millis::max()};

  std::thread renewal_;
  std::thread watch_;
};

}  // namespace kvcfs::meta
