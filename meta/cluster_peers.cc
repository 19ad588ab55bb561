#include "meta/cluster_peers.h"

#include <set>
#include <utility>

#include "rdma/wire.h"

namespace kvcfs::meta {
namespace {

// What a core can make of a transport's answer.
Reply Understand(rdma::Method method, const rdma::Reply& reply) {
  if (reply.code == Code::kOk) {
    auto decoded = DecodeReply(method, reply.head);
    if (decoded.ok()) return std::move(*decoded);
    return {Code::kUnavailable, 0, {}};
  }
  switch (reply.code) {
    case Code::kTimeout:
    case Code::kDenied:
      return {reply.code, 0, {}};
    default:
      return {Code::kUnavailable, 0, {}};
  }
}

}  // namespace

void ClusterPeers::SetView(const ClusterView& view) {
  std::map<NodeId, Node> nodes;
  const MutexLock turn(views_mutex_);
  {
    const MutexLock lock(mutex_);
    for (const ClusterNode& node : view.nodes) {
      if (IsAway(node)) continue;
      Node& made = nodes[node.id];
      const auto known = nodes_.find(node.id);
      if (known != nodes_.end() && known->second.address == node.address) {
        made = std::move(known->second);
      } else {
        made.address = node.address;
      }
    }
    std::swap(nodes, nodes_);
  }
  // Who left reads nothing here any more, one-sided neither, until it is back.
  std::set<NodeId> there;
  for (const ClusterNode& node : view.nodes) {
    if (IsAway(node)) continue;
    there.insert(node.id);
    if (revoked_.erase(node.id) != 0) transport_->Admit(node.id);
  }
  for (const auto& [id, node] : nodes) {
    if (!there.contains(id) && revoked_.insert(id).second) transport_->Revoke(id);
  }
  // It is let go of here, without the lock.
}

std::shared_ptr<rdma::Peer> ClusterPeers::Find(const NodeId& node) {
  const MutexLock lock(mutex_);
  const auto at = nodes_.find(node);
  if (at == nodes_.end()) return nullptr;
  if (at->second.peer == nullptr) {
    const auto address = rdma::Address::Parse(at->second.address);
    if (!address.ok()) return nullptr;
    at->second.peer = transport_->Connect(*address);
  }
  return at->second.peer;
}

bool ClusterPeers::Call(const NodeId& to, const Request& request, const rdma::CallOptions& options,
                        Done done) {
  const auto peer = Find(to);
  if (peer == nullptr) return false;
  const rdma::Method method = MethodOf(request.body);
  // It holds on to the peer until it is answered.
  peer->Call(method, Encode(request), options,
             [peer, method, done = std::move(done)](const rdma::Reply& reply) {
               done(Understand(method, reply), reply.bulk_bytes);
             });
  return true;
}

Reply ClusterPeers::CallAndWait(const NodeId& to, const Request& request,
                                const rdma::CallOptions& options, uint32_t* bulk_bytes) {
  const auto peer = Find(to);
  if (peer == nullptr) return {Code::kUnavailable, 0, {}};
  const rdma::Method method = MethodOf(request.body);
  const rdma::Reply reply = peer->CallAndWait(method, Encode(request), options);
  *bulk_bytes = reply.bulk_bytes;
  return Understand(method, reply);
}

Millis ClusterPeers::AskPromise(const ClusterNode& node, uint64_t epoch, Millis timeout) {
  const auto peer = Find(node.id);
  if (peer == nullptr) return Millis(0);
  const rdma::Reply reply =
      peer->CallAndWait(kMethodPromise, EncodeNumber(epoch), {.timeout = timeout});
  const auto promised = DecodeNumber(reply.head);
  if (reply.code != Code::kOk || !promised.ok()) return Millis(0);
  return Millis(static_cast<int64_t>(std::min<uint64_t>(*promised, 60'000)));
}

Result<SpaceUsage> ClusterPeers::AskUsage(const NodeId& node, std::span<const SpaceId> spaces,
                                          Millis timeout) {
  const auto peer = Find(node);
  if (peer == nullptr) return Error{Code::kUnavailable, "not in the view"};
  rdma::Writer writer;
  for (const SpaceId& space : spaces) writer.U64(space.high).U64(space.low);
  const rdma::Reply reply = peer->CallAndWait(kMethodUsage, writer.Take(), {.timeout = timeout});
  if (reply.code != Code::kOk) return Error{reply.code, "usage"};
  rdma::Reader reader(reply.head);
  SpaceUsage usage;
  usage.epoch = reader.U64();
  for (size_t i = 0; i < spaces.size(); ++i) usage.bytes.push_back(reader.U64());
  if (!reader.Finished()) return Error{Code::kCorrupt, "no usage"};
  return usage;
}

void ClusterPeers::Clear() {
  std::map<NodeId, Node> nodes;
  {
    const MutexLock lock(mutex_);
    std::swap(nodes, nodes_);
  }
}

rdma::Bytes EncodeNumber(uint64_t number) {
  rdma::Writer writer;
  writer.U64(number);
  return writer.Take();
}

Result<uint64_t> DecodeNumber(std::span<const std::byte> bytes) {
  rdma::Reader reader(bytes);
  const uint64_t number = reader.U64();
  if (!reader.Finished()) return Error{Code::kCorrupt, "no number"};
  return number;
}

Result<std::vector<SpaceId>> DecodeSpaces(std::span<const std::byte> bytes) {
  rdma::Reader reader(bytes);
  std::vector<SpaceId> spaces(std::min(bytes.size() / 16, kUsageSpacesMax));
  for (SpaceId& space : spaces) {
    space.high = reader.U64();
    space.low = reader.U64();
  }
  if (!reader.Finished()) return Error{Code::kCorrupt, "no list of namespaces"};
  return spaces;
}

rdma::Bytes Encode(const SpaceUsage& usage) {
  rdma::Writer writer;
  writer.U64(usage.epoch);
  for (const uint64_t bytes : usage.bytes) writer.U64(bytes);
  return writer.Take();
}

}  // namespace kvcfs::meta
