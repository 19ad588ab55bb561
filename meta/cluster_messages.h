// Every message of the cluster's metadata protocol (CLUSTER.md), as plain data.
//
// A request's number on the wire is its place in RequestBody plus kMethodFirst; ReplyOf names what
// answers it. A reply whose code is not kOk has no body. Bulk bytes of Put and Read travel beside.
// Decode fails with kCorrupt (lengths are checked before memory is taken), kUnsupported (no such
// method).
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <variant>
#include <vector>

#include "base/block_key.h"
#include "base/clock.h"
#include "base/result.h"
#include "meta/cluster_view.h"
#include "meta/place_list.h"
#include "meta/placement.h"
#include "rdma/transport.h"

namespace kvcfs::meta {

// What is true of a block wherever it lies.
struct BlockFacts {
  BlockId id;
  BlockKey parent;         // zero: a first block
  BlockKey anchor;         // of its group; its own key where it begins one
  BlockKey parent_anchor;  // of the parent's group
  uint32_t ordinal = 0;
  uint32_t length = 0;
  uint32_t crc32c = 0;
  uint32_t mtime_s = 0;
  uint8_t replicas = 1;  // wanted by its namespace
  friend bool operator==(const BlockFacts&, const BlockFacts&) = default;

  BlockId anchor_id() const { return {id.space, anchor}; }
  BlockId parent_id() const { return {id.space, parent}; }
  BlockId parent_anchor_id() const { return {id.space, parent_anchor}; }
  bool begins_group() const { return anchor == id.key; }
  bool has_parent_elsewhere() const { return ordinal != 0 && begins_group(); }
};

// A published block as readers need it.
struct FoundBlock {
  BlockKey key;
  uint32_t length = 0;
  uint32_t crc32c = 0;
  uint32_t mtime_s = 0;
  PlaceList places{};
  uint32_t children = 0;  // cached blocks that extend it, as of the answer
  friend bool operator==(const FoundBlock&, const FoundBlock&) = default;
};

// ---- Clients ask metadata nodes

// Parts of groups, each from its anchor on.
struct MatchRequest {
  SpaceId space;
  bool lease = true;
  std::vector<GroupRange> groups{};
  std::vector<BlockKey> keys{};  // of all groups, one after the other

  void Add(uint32_t first, std::span<const BlockKey> group) {
    groups.push_back({first, static_cast<uint32_t>(group.size())});
    keys.insert(keys.end(), group.begin(), group.end());
  }
};
struct GroupAnswer {
  Code code = Code::kOk;  // kUnavailable: the shard is loading; kStale: not mine
  uint32_t lease_ms = 0;  // of all its blocks; 0: none
  uint32_t count = 0;     // of the leading keys that are there
};
struct MatchReply {
  std::vector<GroupAnswer> groups{};
  // Of all groups, one after the other. Without keys: they are those of the request, in order.
  std::vector<FoundBlock> blocks{};
};

// Where the record of a block is, by its key alone.
struct ResolveRequest {
  BlockId id;
};
struct ResolveReply {
  uint32_t ordinal = 0;
  BlockKey anchor;
};

struct LocateRequest {
  BlockId id;
  BlockKey anchor;
  bool lease = true;
};
struct LocateReply {
  BlockFacts facts;
  uint32_t lease_ms = 0;
  FoundBlock block;
};

// The part of a chain that lies in one group: from its anchor to `id`.
struct ChainRequest {
  BlockId id;
  BlockKey anchor;
};
struct ChainReply {
  uint32_t first = 0;
  BlockKey parent;  // of the anchor; zero at the root
  BlockKey parent_anchor;
  std::vector<FoundBlock> blocks;
};

struct LeavesRequest {
  SpaceId space;
  uint32_t shard = 0;
  BlockKey after;  // zero: from the start
  uint32_t limit = 0;
};
struct LeavesReply {
  std::vector<BlockKey> keys;
  bool done = false;
};

// Keeps the parent from eviction while the child is being written.
struct ReserveRequest {
  BlockId parent;
  BlockKey parent_anchor;
  BlockKey child;
};
struct CommitRequest {
  BlockFacts facts;
  std::vector<Place> places;  // where the bytes are sealed
};
struct CommitReply {
  uint32_t kept = 0;    // of the places of the request
  uint32_t copies = 0;  // published in all
};
struct DropRequest {
  BlockId id;
  BlockKey anchor;
};
// A place that should have had a block, and had not.
struct MissingRequest {
  BlockId id;
  BlockKey anchor;
  Place place;
};

// ---- Holders ask metadata nodes

struct ReleaseItem {
  BlockId id;
  BlockKey anchor;
  uint64_t generation = 0;
};
struct ReleaseRequest {
  NodeId holder;
  std::vector<ReleaseItem> items;
};
struct ReleaseReply {
  std::vector<uint8_t> codes;  // of Code, one an item; kOk: the copy may go
};

// ---- Metadata nodes ask one another

struct AttachRequest {
  BlockId child;  // begins a group
  BlockKey parent;
  BlockKey parent_anchor;
  uint64_t version = 0;
};
struct DetachRequest {
  BlockId child;
  BlockKey parent;
  BlockKey parent_anchor;
  uint64_t version = 0;
};
// Removes a block that begins a group, and what extends it. kNotFound: it is not there.
struct DoomRequest {
  BlockId id;
  uint64_t version = 0;
  bool only_ask = false;
};
struct PointRequest {
  BlockId id;
  uint32_t ordinal = 0;
  BlockKey anchor;
  uint64_t version = 0;
};
struct UnpointRequest {
  BlockId id;
  uint64_t version = 0;
};
// Asks the owner of a first block for the right to answer for it.
struct GrantRequest {
  BlockId id;
  NodeId node;  // who asks
};
struct GrantReply {
  FoundBlock block;
  bool leased = false;  // beyond the grant, so that its holder may lease it to clients
};
struct RevokeRequest {
  BlockId id;
};

// ---- Metadata nodes ask holders

struct MarkRequest {
  BlockId id;
  uint64_t generation = 0;
  uint64_t version = 0;
};
struct ForgetRequest {
  BlockId id;
  uint64_t generation = 0;
};
struct HaveRequest {
  BlockId id;
  uint64_t generation = 0;
};
struct CopyRequest {
  BlockFacts facts;
  Place from;
};
struct CopyReply {
  uint64_t generation = 0;
};
// A bit a shard.
struct ShardSet {
  std::array<uint64_t, kShardCount / 64> words{};
  bool Has(uint32_t shard) const { return (words[shard / 64] >> (shard % 64) & 1) != 0; }
  void Add(uint32_t shard) { words[shard / 64] |= uint64_t{1} << (shard % 64); }
  void Remove(uint32_t shard) { words[shard / 64] &= ~(uint64_t{1} << (shard % 64)); }
  bool Empty() const { return words == std::array<uint64_t, kShardCount / 64>{}; }
  friend bool operator==(const ShardSet&, const ShardSet&) = default;
};
// What the holder has published of which the record, the edge to the parent, or the pointer is in
// one of the shards; behind a cursor.
struct InventoryRequest {
  ShardSet shards;
  BlockId after;
  uint64_t after_generation = 0;
};
struct InventoryEntry {
  BlockFacts facts;
  uint64_t generation = 0;
  uint64_t version = 0;
};
struct InventoryReply {
  std::vector<InventoryEntry> entries;
  bool done = false;
};

// ---- Clients ask holders (no epoch is checked)

struct PutRequest {
  BlockFacts facts;
};
struct PutReply {
  uint64_t generation = 0;
};
struct DiscardRequest {
  BlockId id;
  uint64_t generation = 0;
};
struct ReadRequest {
  BlockId id;
  uint64_t generation = 0;
};
// The header that lies beside the bytes that were read; the reader compares.
struct ReadReply {
  BlockKey key;
  uint64_t generation = 0;
  uint32_t length = 0;
  uint32_t crc32c = 0;  // of the bytes, as they came
};
struct UsedRequest {
  std::vector<BlockId> ids;
};

struct EmptyReply {};

using RequestBody =
    std::variant<MatchRequest, ResolveRequest, LocateRequest, ChainRequest, LeavesRequest,
                 ReserveRequest, CommitRequest, DropRequest, MissingRequest, ReleaseRequest,
                 AttachRequest, DetachRequest, DoomRequest, PointRequest, UnpointRequest,
                 GrantRequest, RevokeRequest, MarkRequest, ForgetRequest, HaveRequest, CopyRequest,
                 InventoryRequest, PutRequest, DiscardRequest, ReadRequest, UsedRequest>;
using ReplyBody = std::variant<EmptyReply, MatchReply, ResolveReply, LocateReply, ChainReply,
                               LeavesReply, CommitReply, ReleaseReply, GrantReply, CopyReply,
                               InventoryReply, PutReply, ReadReply>;

struct Request {
  uint64_t epoch = 0;  // of the asker's view
  RequestBody body;
};
struct Reply {
  Code code = Code::kOk;
  uint64_t epoch = 0;  // of the server's view, also of errors
  ReplyBody body;
};

inline constexpr rdma::Method kMethodFirst = 0x100;
inline constexpr size_t kMethodCount = std::variant_size_v<RequestBody>;
inline rdma::Method MethodOf(const RequestBody& body) {
  return static_cast<rdma::Method>(kMethodFirst + body.index());
}
// To be served by a holder's core, not by a metadata node's.
inline bool IsForHolder(const RequestBody& body) {
  return body.index() >= RequestBody(MarkRequest{}).index();
}

rdma::Bytes Encode(const Request& request);
Result<Request> DecodeRequest(rdma::Method method, std::span<const std::byte> bytes);
rdma::Bytes Encode(const Reply& reply);
// `method`: of the request that it answers.
Result<Reply> DecodeReply(rdma::Method method, std::span<const std::byte> bytes);

// ---- What the cores ask of those that run them

// A request to make. The reply comes back with `id`; an attempt that fails comes back as a Reply
// with kTimeout or kUnavailable, epoch 0. `to` may be the node itself.
struct OutCall {
  NodeId to;
  uint64_t id = 0;
  Request request;
  uint64_t op = 0;  // of a client: the operation that asks; 0: none
};
// The answer to a request that was received as `call`. Each is answered at most once; what is
// never answered runs into the asker's deadline.
struct OutAnswer {
  uint64_t call = 0;
  Reply reply;
};
struct Actions {
  std::vector<OutCall> calls;
  std::vector<OutAnswer> answers;
};

// How long things last. The defaults are the product's; the simulator's are shorter.
struct ClusterTimes {
  Millis lease{30'000};        // promised to clients
  Millis lease_hold{10'000};   // kept longer than promised
  Millis grant{10'000};        // of a first block's copy
  Millis pin{30'000};          // of a parent whose child is being written
  Millis settle{5'000};        // half of a node's lease: who lost a shard is silent after that
  Millis sealed_life{60'000};  // of a copy that nobody published
  Millis retry{100};           // of what must be said until it is answered
  Millis call{1'000};          // one attempt of a call
  Millis hedge{20};            // a second holder is asked after that
};

}  // namespace kvcfs::meta
