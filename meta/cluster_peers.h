// The other nodes of the view, as peers of the transport: requests out, replies back.
//
// Threads: any. `done` runs on a thread of the transport, never inside of Call.
// Memory: a connection to each node of the view that was asked for something.
// Fails: a reply that cannot be had comes as kTimeout, kUnavailable or kDenied, with epoch 0.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "base/mutex.h"
#include "meta/cluster_messages.h"
#include "rdma/transport.h"

namespace kvcfs::meta {

// Methods beside those of cluster_messages.h.
inline constexpr rdma::Method kMethodPromise = 0x80;  // epoch u64 -> milliseconds u64
inline constexpr rdma::Method kMethodStatus = 0x81;   // -> ClusterStatus as JSON
inline constexpr rdma::Method kMethodSlots = 0x82;    // -> SlotTable (slot_headers.h)
inline constexpr rdma::Method kMethodUsage = 0x83;    // SpaceIds -> SpaceUsage
inline constexpr rdma::Method kMethodMatches = 0x84;  // -> MatchTablePlace (match_table.h)

// How many bytes of blocks of some namespaces the shards of a node have, each block counted once.
struct SpaceUsage {
  uint64_t epoch = 0;
  std::vector<uint64_t> bytes;
};
inline constexpr size_t kUsageSpacesMax = 4096;  // that are asked for at once

class ClusterPeers {
 public:
  using Done = std::function<void(Reply reply, uint32_t bulk_bytes)>;

  explicit ClusterPeers(rdma::Transport* transport) : transport_(transport) {}

  // Who was in the view before and is not in this one is revoked (Transport::Revoke), until it is
  // in a view again. Not from a thread of the transport.
  void SetView(const ClusterView& view) KVC_EXCLUDES(mutex_, views_mutex_);
  // No such node: null.
  std::shared_ptr<rdma::Peer> Find(const NodeId& node) KVC_EXCLUDES(mutex_);
  // False: no such node, and `done` is never called.
  bool Call(const NodeId& to, const Request& request, const rdma::CallOptions& options, Done done)
      KVC_EXCLUDES(mutex_);
  // The same on the caller's own thread, which waits; not a thread of the transport. Bytes of
  // copies are read by copy_reader.h.
  Reply CallAndWait(const NodeId& to, const Request& request, const rdma::CallOptions& options,
                    uint32_t* bulk_bytes) KVC_EXCLUDES(mutex_);
  // Of a promise; 0: none.
  Millis AskPromise(const ClusterNode& node, uint64_t epoch, Millis timeout) KVC_EXCLUDES(mutex_);
  Result<SpaceUsage> AskUsage(const NodeId& node, std::span<const SpaceId> spaces, Millis timeout)
      KVC_EXCLUDES(mutex_);
  // Lets go of all peers.
  void Clear() KVC_EXCLUDES(mutex_);

 private:
  struct Node {
    std::string address;
    std::shared_ptr<rdma::Peer> peer;  // when it was asked first
  };
  rdma::Transport* const transport_;
  Mutex views_mutex_;  // before mutex_
  std::set<NodeId> revoked_ KVC_GUARDED_BY(views_mutex_);
  Mutex mutex_;
  std::map<NodeId, Node> nodes_ KVC_GUARDED_BY(mutex_);
};

// The body of a promise.
rdma::Bytes EncodeNumber(uint64_t number);
Result<uint64_t> DecodeNumber(std::span<const std::byte> bytes);
// The bodies of a question for usage: (high u64, low u64) of each, and epoch u64, bytes u64 of
// each.
Result<std::vector<SpaceId>> DecodeSpaces(std::span<const std::byte> bytes);
rdma::Bytes Encode(const SpaceUsage& usage);

}  // namespace kvcfs::meta
