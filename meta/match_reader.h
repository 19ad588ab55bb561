// Reads what matches say out of the tables of shards' owners (match_table.h), and chooses when.
//
// All groups of a request at once, without the owners' CPUs. Where a peer's table is it tells once
// (Matches); until then, and where it has none, its groups are asked for by calls. Whether a Match
// begins with READs is chosen by what each way took so far, for as many groups.
// Threads: any, a transport's too; nothing waits.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <vector>

#include "base/clock.h"
#include "base/mutex.h"
#include "meta/cluster_client.h"
#include "meta/cluster_peers.h"
#include "meta/copy_reader.h"
#include "meta/match_table.h"
#include "meta/read_way.h"

namespace kvcfs::meta {

class MatchReader {
 public:
  MatchReader(OneSided choice, const Clock* clock, ClusterPeers* peers)
      : choice_(choice), clock_(clock), peers_(peers) {}

  // How a Match of so many groups begins, if it asks for no lease.
  Way Choose(size_t groups) KVC_EXCLUDES(mutex_);
  // That Match has ended. `leased`: it did not have the choice.
  void Took(const Outcome& outcome, bool leased, size_t groups, std::chrono::nanoseconds time)
      KVC_EXCLUDES(mutex_);

  // The words of all buckets of the probe, one after the other; none: they could not be read.
  using Done = std::function<void(std::vector<uint64_t> words)>;
  // False: ask by a call; `done` is never called. Else it is, on a thread of the transport.
  bool Read(const MatchProbe& probe, Millis timeout, Done done) KVC_EXCLUDES(mutex_);

 private:
  struct Owner {
    MatchTablePlace place;
    Millis ask_again{0};  // where there is none
  };
  std::optional<MatchTablePlace> PlaceOf(const NodeId& node, rdma::Peer& peer, Millis timeout)
      KVC_EXCLUDES(mutex_);
  void ForgetPlace(const NodeId& node, const MatchTablePlace& place) KVC_EXCLUDES(mutex_);

  const OneSided choice_;
  const Clock* const clock_;
  ClusterPeers* const peers_;
  Mutex mutex_;
  std::map<NodeId, Owner> owners_ KVC_GUARDED_BY(mutex_);
  ReadWay way_ KVC_GUARDED_BY(mutex_);
};

}  // namespace kvcfs::meta
