#include "meta/cluster_messages.h"

#include <algorithm>
#include <type_traits>
#include <utility>

#include "rdma/wire.h"

namespace kvcfs::meta {
namespace {

// One list of fields a struct, for both ways.
template <typename T>
struct FieldsOf;

#define KVC_FIELDS(Type, ...)                     \
  template <>                                     \
  struct FieldsOf<Type> {                         \
    template <typename Self, typename Visit>      \
    static void Each(Self& self, Visit&& visit) { \
      (void)self;                                 \
      (void)visit;                                \
      KVC_FIELDS_BODY(__VA_ARGS__)                \
    }                                             \
  }
#define KVC_FIELDS_BODY(...) __VA_OPT__(Apply(self, visit, __VA_ARGS__);)

template <typename Self, typename Visit, typename... Members>
void Apply(Self& self, Visit& visit, Members... members) {
  (visit(self.*members), ...);
}

KVC_FIELDS(SpaceId, &SpaceId::high, &SpaceId::low);
KVC_FIELDS(BlockId, &BlockId::space, &BlockId::key);
KVC_FIELDS(NodeId, &NodeId::high, &NodeId::low);
KVC_FIELDS(Place, &Place::node, &Place::generation);
KVC_FIELDS(BlockFacts, &BlockFacts::id, &BlockFacts::parent, &BlockFacts::anchor,
           &BlockFacts::parent_anchor, &BlockFacts::ordinal, &BlockFacts::length,
           &BlockFacts::crc32c, &BlockFacts::mtime_s, &BlockFacts::replicas);
KVC_FIELDS(FoundBlock, &FoundBlock::key, &FoundBlock::length, &FoundBlock::crc32c,
           &FoundBlock::mtime_s, &FoundBlock::places, &FoundBlock::children);
KVC_FIELDS(ResolveRequest, &ResolveRequest::id);
KVC_FIELDS(ResolveReply, &ResolveReply::ordinal, &ResolveReply::anchor);
KVC_FIELDS(LocateRequest, &LocateRequest::id, &LocateRequest::anchor, &LocateRequest::lease);
KVC_FIELDS(LocateReply, &LocateReply::facts, &LocateReply::lease_ms, &LocateReply::block);
KVC_FIELDS(ChainRequest, &ChainRequest::id, &ChainRequest::anchor);
KVC_FIELDS(ChainReply, &ChainReply::first, &ChainReply::parent, &ChainReply::parent_anchor,
           &ChainReply::blocks);
KVC_FIELDS(LeavesRequest, &LeavesRequest::space, &LeavesRequest::shard, &LeavesRequest::after,
           &LeavesRequest::limit);
KVC_FIELDS(LeavesReply, &LeavesReply::keys, &LeavesReply::done);
KVC_FIELDS(ReserveRequest, &ReserveRequest::parent, &ReserveRequest::parent_anchor,
           &ReserveRequest::child);
KVC_FIELDS(CommitRequest, &CommitRequest::facts, &CommitRequest::places);
KVC_FIELDS(CommitReply, &CommitReply::kept, &CommitReply::copies);
KVC_FIELDS(DropRequest, &DropRequest::id, &DropRequest::anchor);
KVC_FIELDS(MissingRequest, &MissingRequest::id, &MissingRequest::anchor, &MissingRequest::place);
KVC_FIELDS(ReleaseItem, &ReleaseItem::id, &ReleaseItem::anchor, &ReleaseItem::generation);
KVC_FIELDS(ReleaseRequest, &ReleaseRequest::holder, &ReleaseRequest::items);
KVC_FIELDS(ReleaseReply, &ReleaseReply::codes);
KVC_FIELDS(AttachRequest, &AttachRequest::child, &AttachRequest::parent,
           &AttachRequest::parent_anchor, &AttachRequest::version);
KVC_FIELDS(DetachRequest, &DetachRequest::child, &DetachRequest::parent,
           &DetachRequest::parent_anchor, &DetachRequest::version);
KVC_FIELDS(DoomRequest, &DoomRequest::id, &DoomRequest::version, &DoomRequest::only_ask);
KVC_FIELDS(PointRequest, &PointRequest::id, &PointRequest::ordinal, &PointRequest::anchor,
           &PointRequest::version);
KVC_FIELDS(UnpointRequest, &UnpointRequest::id, &UnpointRequest::version);
KVC_FIELDS(GrantRequest, &GrantRequest::id, &GrantRequest::node);
KVC_FIELDS(GrantReply, &GrantReply::block, &GrantReply::leased);
KVC_FIELDS(RevokeRequest, &RevokeRequest::id);
KVC_FIELDS(MarkRequest, &MarkRequest::id, &MarkRequest::generation, &MarkRequest::version);
KVC_FIELDS(ForgetRequest, &ForgetRequest::id, &ForgetRequest::generation);
KVC_FIELDS(HaveRequest, &HaveRequest::id, &HaveRequest::generation);
KVC_FIELDS(CopyRequest, &CopyRequest::facts, &CopyRequest::from);
KVC_FIELDS(CopyReply, &CopyReply::generation);
KVC_FIELDS(ShardSet, &ShardSet::words);
KVC_FIELDS(InventoryRequest, &InventoryRequest::shards, &InventoryRequest::after,
           &InventoryRequest::after_generation);
KVC_FIELDS(InventoryEntry, &InventoryEntry::facts, &InventoryEntry::generation,
           &InventoryEntry::version);
KVC_FIELDS(InventoryReply, &InventoryReply::entries, &InventoryReply::done);
KVC_FIELDS(PutRequest, &PutRequest::facts);
KVC_FIELDS(PutReply, &PutReply::generation);
KVC_FIELDS(DiscardRequest, &DiscardRequest::id, &DiscardRequest::generation);
KVC_FIELDS(ReadRequest, &ReadRequest::id, &ReadRequest::generation);
KVC_FIELDS(ReadReply, &ReadReply::key, &ReadReply::generation, &ReadReply::length,
           &ReadReply::crc32c);
KVC_FIELDS(UsedRequest, &UsedRequest::ids);
KVC_FIELDS(EmptyReply);

template <typename T>
inline constexpr bool kIsVector = false;
template <typename T>
inline constexpr bool kIsVector<std::vector<T>> = true;
template <>
inline constexpr bool kIsVector<PlaceList> = true;

// Of a block in the answer to a match, without places; of each place.
constexpr size_t kFoundBytesMin = 4 * sizeof(uint32_t) + sizeof(uint8_t);
constexpr size_t kFoundPlaceBytes = sizeof(uint16_t) + sizeof(uint64_t);
static_assert(sizeof(NodeId) == 16);

struct Put {
  rdma::Writer& writer;

  template <typename T>
  void operator()(const T& value) {
    if constexpr (std::is_same_v<T, bool> || std::is_enum_v<T>) {
      writer.U8(static_cast<uint8_t>(value));
    } else if constexpr (std::is_same_v<T, uint8_t>) {
      writer.U8(value);
    } else if constexpr (std::is_same_v<T, uint32_t>) {
      writer.U32(value);
    } else if constexpr (std::is_same_v<T, uint64_t>) {
      writer.U64(value);
    } else if constexpr (std::is_same_v<T, BlockKey>) {
      writer.Raw(std::as_bytes(std::span(value.bytes)));
    } else if constexpr (kIsVector<T>) {
      writer.U32(static_cast<uint32_t>(value.size()));
      for (const auto& each : value) (*this)(each);
    } else if constexpr (std::is_same_v<T, decltype(ShardSet::words)>) {
      for (uint64_t word : value) writer.U64(word);
    } else {
      FieldsOf<T>::Each(value, *this);
    }
  }

  // On the wire, what belongs to a group follows it.
  void operator()(const MatchRequest& match) {
    writer.Reserve(32 + 8 * match.groups.size() + BlockKey::kBytes * match.keys.size());
    (*this)(match.space);
    (*this)(match.lease);
    writer.U32(static_cast<uint32_t>(match.groups.size()));
    auto keys = std::as_bytes(std::span(match.keys));
    for (const GroupRange& group : match.groups) {
      const size_t bytes = BlockKey::kBytes * group.count;
      writer.U32(group.first).U32(group.count).Raw(keys.first(bytes));
      keys = keys.subspan(bytes);
    }
  }
  // Keys are not said again: whoever asked knows them. Nodes are said once.
  void operator()(const MatchReply& match) {
    std::vector<NodeId> nodes;
    size_t places = 0, last = 0;
    const auto index_of = [&](const NodeId& node) {
      if (last == nodes.size() || nodes[last] != node) {
        last = static_cast<size_t>(std::find(nodes.begin(), nodes.end(), node) - nodes.begin());
      }
      return last;
    };
    for (const FoundBlock& block : match.blocks) {
      places += block.places.size();
      for (const Place& place : block.places) {
        if (index_of(place.node) == nodes.size()) nodes.push_back(place.node);
      }
    }
    writer.Reserve(8 + 9 * match.groups.size() + sizeof(NodeId) * nodes.size() +
                   kFoundBytesMin * match.blocks.size() + kFoundPlaceBytes * places);
    writer.U32(static_cast<uint32_t>(match.groups.size()));
    for (const GroupAnswer& group : match.groups) {
      (*this)(group.code);
      writer.U32(group.lease_ms).U32(group.count);
    }
    writer.U16(static_cast<uint16_t>(nodes.size()));
    for (const NodeId& node : nodes) (*this)(node);
    for (const FoundBlock& block : match.blocks) {
      writer.U32(block.length).U32(block.crc32c).U32(block.mtime_s).U32(block.children);
      writer.U8(static_cast<uint8_t>(block.places.size()));
      for (const Place& place : block.places) {
        writer.U16(static_cast<uint16_t>(index_of(place.node))).U64(place.generation);
      }
    }
  }
};
static_assert(sizeof(BlockKey) == BlockKey::kBytes);

struct Get {
  rdma::Reader& reader;
  bool valid = true;

  template <typename T>
  void operator()(T& value) {
    if constexpr (std::is_same_v<T, bool>) {
      const uint8_t byte = reader.U8();
      valid = valid && byte <= 1;
      value = byte == 1;
    } else if constexpr (std::is_same_v<T, Code>) {
      const uint8_t byte = reader.U8();
      valid = valid && byte <= static_cast<uint8_t>(Code::kDenied);
      value = static_cast<Code>(byte);
    } else if constexpr (std::is_same_v<T, uint8_t>) {
      value = reader.U8();
    } else if constexpr (std::is_same_v<T, uint32_t>) {
      value = reader.U32();
    } else if constexpr (std::is_same_v<T, uint64_t>) {
      value = reader.U64();
    } else if constexpr (std::is_same_v<T, BlockKey>) {
      const auto raw = reader.Raw(BlockKey::kBytes);
      if (raw.size() == BlockKey::kBytes) std::memcpy(value.bytes.data(), raw.data(), raw.size());
    } else if constexpr (kIsVector<T>) {
      using Element = typename T::value_type;
      const uint32_t count = reader.Count(SmallestSize<Element>());
      value.clear();
      for (uint32_t i = 0; i < count && reader.ok(); ++i) (*this)(value.emplace_back());
    } else if constexpr (std::is_same_v<T, decltype(ShardSet::words)>) {
      for (uint64_t& word : value) word = reader.U64();
    } else {
      FieldsOf<T>::Each(value, *this);
    }
  }

  void operator()(MatchRequest& match) {
    (*this)(match.space);
    (*this)(match.lease);
    match.groups.resize(reader.Count(2 * sizeof(uint32_t)));
    match.keys.reserve(reader.left() / BlockKey::kBytes);
    for (GroupRange& group : match.groups) {
      group.first = reader.U32();
      group.count = reader.Count(BlockKey::kBytes);
      const auto raw = reader.Raw(BlockKey::kBytes * group.count);
      const size_t before = match.keys.size();
      match.keys.resize(before + raw.size() / BlockKey::kBytes);
      if (!raw.empty()) std::memcpy(match.keys[before].bytes.data(), raw.data(), raw.size());
    }
  }
  void operator()(MatchReply& match) {
    size_t count = 0;
    match.groups.resize(reader.Count(sizeof(uint8_t) + 2 * sizeof(uint32_t)));
    for (GroupAnswer& group : match.groups) {
      (*this)(group.code);
      group.lease_ms = reader.U32();
      count += group.count = reader.U32();
    }
    const size_t node_count = reader.U16();
    valid = valid && node_count <= reader.left() / sizeof(NodeId);
    if (!valid) return;
    std::vector<NodeId> nodes(node_count);
    for (NodeId& node : nodes) (*this)(node);
    valid = count <= reader.left() / kFoundBytesMin;
    if (!valid) return;
    match.blocks.resize(count);
    for (FoundBlock& block : match.blocks) {
      block.length = reader.U32();
      block.crc32c = reader.U32();
      block.mtime_s = reader.U32();
      block.children = reader.U32();
      for (uint8_t left = reader.U8(); left > 0; --left) {
        const size_t node = reader.U16();
        valid = valid && node < nodes.size();
        if (!valid) return;
        block.places.push_back({nodes[node], reader.U64()});
      }
    }
  }

  // How few bytes one can take: what an empty one is written as.
  template <typename T>
  static size_t SmallestSize() {
    static const size_t size = [] {
      rdma::Writer writer;
      Put put{writer};
      put(T{});
      return writer.size();
    }();
    return size;
  }
};

template <size_t... kIndexes>
bool ReadRequestBody(size_t index, Get& get, RequestBody* body,
                     std::index_sequence<kIndexes...> /*all*/) {
  return ((index == kIndexes ? (get(body->emplace<kIndexes>()), true) : false) || ...);
}

// What answers a request.
template <typename T>
struct ReplyOf {
  using Type = EmptyReply;
};
#define KVC_REPLY(RequestType, ReplyType) \
  template <>                             \
  struct ReplyOf<RequestType> {           \
    using Type = ReplyType;               \
  }
KVC_REPLY(MatchRequest, MatchReply);
KVC_REPLY(ResolveRequest, ResolveReply);
KVC_REPLY(LocateRequest, LocateReply);
KVC_REPLY(ChainRequest, ChainReply);
KVC_REPLY(LeavesRequest, LeavesReply);
KVC_REPLY(CommitRequest, CommitReply);
KVC_REPLY(ReleaseRequest, ReleaseReply);
KVC_REPLY(GrantRequest, GrantReply);
KVC_REPLY(CopyRequest, CopyReply);
KVC_REPLY(InventoryRequest, InventoryReply);
KVC_REPLY(PutRequest, PutReply);
KVC_REPLY(ReadRequest, ReadReply);

template <size_t... kIndexes>
bool ReadReplyBody(size_t index, Get& get, ReplyBody* body,
                   std::index_sequence<kIndexes...> /*all*/) {
  return ((index == kIndexes
               ? (get(body->emplace<
                      typename ReplyOf<std::variant_alternative_t<kIndexes, RequestBody>>::Type>()),
                  true)
               : false) ||
          ...);
}

}  // namespace

rdma::Bytes Encode(const Request& request) {
  rdma::Writer writer;
  writer.U64(request.epoch);
  Put put{writer};
  std::visit(put, request.body);
  return writer.Take();
}

Result<Request> DecodeRequest(rdma::Method method, std::span<const std::byte> bytes) {
  if (method < kMethodFirst || method >= kMethodFirst + kMethodCount) {
    return Error{Code::kUnsupported, "no such method"};
  }
  rdma::Reader reader(bytes);
  Request request;
  request.epoch = reader.U64();
  Get get{reader};
  ReadRequestBody(method - kMethodFirst, get, &request.body,
                  std::make_index_sequence<kMethodCount>());
  if (!get.valid || !reader.Finished()) return Error{Code::kCorrupt, "a request that is none"};
  return request;
}

rdma::Bytes Encode(const Reply& reply) {
  rdma::Writer writer;
  writer.U8(static_cast<uint8_t>(reply.code)).U64(reply.epoch);
  Put put{writer};
  if (reply.code == Code::kOk) std::visit(put, reply.body);
  return writer.Take();
}

Result<Reply> DecodeReply(rdma::Method method, std::span<const std::byte> bytes) {
  if (method < kMethodFirst || method >= kMethodFirst + kMethodCount) {
    return Error{Code::kUnsupported, "no such method"};
  }
  rdma::Reader reader(bytes);
  Get get{reader};
  Reply reply;
  get(reply.code);
  reply.epoch = reader.U64();
  if (reply.code == Code::kOk) {
    ReadReplyBody(method - kMethodFirst, get, &reply.body,
                  std::make_index_sequence<kMethodCount>());
  }
  if (!get.valid || !reader.Finished()) return Error{Code::kCorrupt, "a reply that is none"};
  return reply;
}

}  // namespace kvcfs::meta
