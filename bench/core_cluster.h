// The cluster's metadata protocol run by its own cores (meta/metadata_shard.h, block_holder.h,
// cluster_client.h) in one thread, to count what a question costs: round trips that wait for one
// another, messages, bytes of the encoded messages, and the time of these under rdma/cost_model.h.
//
// Every message takes half a round trip; what one event sends leaves together. So what is counted
// is what the protocol does, also where a server asks another one; what servers need to compute is
// not in it. Threads: one.   Memory: all records.
#pragma once

#include <map>
#include <memory>
#include <vector>

#include "bench/index_backend.h"
#include "meta/block_holder.h"
#include "meta/cluster_client.h"
#include "meta/metadata_shard.h"
#include "rdma/cost_model.h"

namespace kvcfs::bench {

inline constexpr meta::SpaceId kBenchSpace{0x62, 0x62};

// The loaded blocks as a holder knows them, parents first.
std::vector<meta::BlockFacts> FactsOf(const IndexLoad& load);

class CoreCluster {
 public:
  // So many nodes, each with both roles; a block lies with one of them.
  CoreCluster(size_t nodes, const std::vector<meta::BlockFacts>& facts);
  ~CoreCluster();
  CoreCluster(const CoreCluster&) = delete;
  CoreCluster& operator=(const CoreCluster&) = delete;

  // A mount; its number.
  size_t AddClient();

  struct Answer {
    size_t count = 0;
    double depth = 0;       // round trips, one after the other
    uint64_t messages = 0;  // requests that the client sent
    uint64_t bytes = 0;     // of all messages
    double model_us = 0;
  };
  // With `lease` the client remembers what it found.
  Answer Match(size_t client, std::span<const BlockKey> keys, bool lease);

  // Of each node, how many groups it was asked for.
  const std::vector<uint64_t>& groups_asked() const { return groups_asked_; }

 private:
  struct Node;
  struct Message;
  class NoStore;

  static meta::NodeId IdOf(size_t node) { return {1, node + 1}; }
  void Run();
  void Post(Message message);
  void TakeActions(size_t from, bool holder, uint64_t time, meta::Actions* actions);
  void TakeClientActions(uint64_t time, meta::ClientActions* actions);

  Millis now_{1};
  meta::ClusterView view_;
  std::vector<std::unique_ptr<Node>> nodes_;
  std::vector<std::unique_ptr<meta::ClusterClient>> clients_;
  std::multimap<uint64_t, Message> messages_;  // by when they come; in order of sending
  std::vector<uint64_t> groups_asked_;
  uint64_t next_op_ = 1, next_call_ = 1;
  std::map<uint64_t, Message> open_calls_;  // that a server has not answered yet

  // Of the question under way.
  size_t client_ = 0;
  std::optional<meta::Outcome> outcome_;
  uint64_t outcome_time_ = 0;
  std::map<uint64_t, rdma::CostPhase> phases_;  // by when they were sent
  uint64_t messages_sent_ = 0, bytes_ = 0;
};

}  // namespace kvcfs::bench
