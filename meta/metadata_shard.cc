#include "meta/metadata_shard.h"

#include <algorithm>

#include "meta/planted.h"

namespace kvcfs::meta {

MetadataShard::MetadataShard(Options options)
    : options_(std::move(options)), leases_(options_.leased_bytes_max) {
  if (options_.table != nullptr) options_.table->Clear();
}
MetadataShard::~MetadataShard() = default;

void MetadataShard::Answer(uint64_t call, Code code, ReplyBody body, Actions* actions) const {
  actions->answers.push_back({call, {code, view_.epoch, std::move(body)}});
}

bool MetadataShard::Serves(uint32_t shard, Millis now) const {
  return shards_[shard] != nullptr && shards_[shard]->loaded && options_.may_serve(now);
}

void MetadataShard::Receive(Millis now, uint64_t call, const Request& request, Actions* actions) {
  const bool may_serve = options_.may_serve(now) || KVC_PLANTED(6);
  if (!may_serve || !view_.Has(options_.self, options_.incarnation) ||
      (request.epoch != view_.epoch && !KVC_PLANTED(30))) {
    return Answer(call, Code::kStale, EmptyReply{}, actions);
  }
  std::visit(
      [&](const auto& body) {
        if constexpr (requires { Serve(now, call, body, actions); }) {
          Serve(now, call, body, actions);
        } else {
          Answer(call, Code::kUnsupported, EmptyReply{}, actions);
        }
      },
      request.body);
  SendDue(now, actions);
}

MetadataShard::Shard* MetadataShard::ShardFor(const BlockId& anchor, Code* why) {
  Shard* shard = shards_[ShardOf(anchor)].get();
  if (shard == nullptr) {
    *why = Code::kStale;
    return nullptr;
  }
  if (!shard->loaded) {
    *why = Code::kUnavailable;
    return nullptr;
  }
  return shard;
}

FoundBlock MetadataShard::Describe(const Record& record) const {
  FoundBlock found{
      record.facts.id.key, record.facts.length, record.facts.crc32c, record.facts.mtime_s, {}};
  for (const Copy& copy : record.copies) {
    if (copy.marked && copy.verified) found.places.push_back(copy.place);
  }
  found.children = static_cast<uint32_t>(record.children.size());
  return found;
}

uint32_t MetadataShard::Lease(Millis now, const BlockId& id, uint32_t length) {
  const ClusterTimes& times = options_.times;
  const Millis until =
      leases_.Grant(BlockIdHash()(id), length, now, now + times.lease + times.lease_hold);
  const Millis promised = until - times.lease_hold - now;
  return promised > Millis(0) ? static_cast<uint32_t>(promised.count()) : 0;
}

// ---- What clients ask

void MetadataShard::Serve(Millis now, uint64_t call, const MatchRequest& request,
                          Actions* actions) {
  PrefetchMatch(request);
  AnswerMatch(now, call, request, Code::kBusy, true, actions);
}

void MetadataShard::AnswerMatch(Millis now, uint64_t call, const MatchRequest& request, Code first,
                                bool remember, Actions* actions) {
  MatchReply reply;
  reply.groups.reserve(request.groups.size());
  reply.blocks.reserve(request.keys.size());
  std::span<const BlockKey> rest(request.keys);
  for (const GroupRange& group : request.groups) {
    const std::span<const BlockKey> keys = rest.first(group.count);
    rest = rest.subspan(group.count);
    GroupAnswer& answer = reply.groups.emplace_back();
    if (keys.empty()) continue;
    const BlockId anchor{request.space, keys[0]};
    Shard* shard = ShardFor(anchor, &answer.code);
    if (shard != nullptr) {
      MatchGroupHere(now, *shard, request, group.first, keys, remember, &answer, &reply.blocks);
      continue;
    }
    if (group.first != 0 || answer.code != Code::kStale) continue;
    // Somebody else's first block: by a copy.
    const auto copy = first_copies_.find(anchor);
    if (copy != first_copies_.end() && copy->second.until > now) {
      answer.code = Code::kOk;
      answer.lease_ms = request.lease && copy->second.leased
                            ? static_cast<uint32_t>(options_.times.lease.count())
                            : 0;
      answer.count = 1;
      reply.blocks.push_back(copy->second.block);
    } else if (first == Code::kBusy) {
      Task& task = EnsureTask({TaskKind::kGrant, anchor, {}, {}, 0}, kShardCount);
      task.body = GrantRequest{anchor, options_.self};
      task.target_anchor = anchor;
      waiting_matches_[anchor].push_back({call, request});
      return SendDue(now, actions);
    } else {
      answer.code = first == Code::kNotFound ? Code::kOk : Code::kUnavailable;
    }
  }
  Answer(call, Code::kOk, std::move(reply), actions);
}

void MetadataShard::PrefetchMatch(const MatchRequest& request) {
  for (const bool second : {false, true}) {
    std::span<const BlockKey> rest(request.keys);
    for (const GroupRange& group : request.groups) {
      const std::span<const BlockKey> keys = rest.first(group.count);
      rest = rest.subspan(group.count);
      if (keys.empty()) continue;
      const Shard* shard = shards_[ShardOf({request.space, keys[0]})].get();
      if (shard == nullptr) continue;
      for (size_t i = 0; i < keys.size() && i < kGroupBlocksMax; ++i) {
        const BlockId id{request.space, keys[i]};
        if (second) {
          shard->records.answers().PrefetchAnswer(id);
        } else {
          shard->records.answers().PrefetchPlace(id);
        }
      }
    }
  }
}

void MetadataShard::MatchGroupHere(Millis now, Shard& shard, const MatchRequest& request,
                                   uint32_t first, std::span<const BlockKey> keys, bool remember,
                                   GroupAnswer* answer, std::vector<FoundBlock>* blocks) {
  answer->lease_ms = request.lease ? UINT32_MAX : 0;
  MatchAnswers& answers = shard.records.answers();
  for (size_t i = 0; i < keys.size() && i < kGroupBlocksMax; ++i) {
    const BlockId id{request.space, keys[i]};
    const auto fits = [&](uint32_t ordinal, const BlockKey& parent) {
      return ordinal == first + i && (i == 0 || parent == keys[i - 1]);
    };
    const MatchAnswers::Answer* known = answers.Find(id);
    if (known != nullptr) {
      if (!fits(known->ordinal, known->parent)) break;
      known->AppendTo(blocks);
    } else {
      const Record* record = answers.MayHaveRecord(id) ? shard.records.Find(id) : nullptr;
      if (record == nullptr || record->state != State::kVisible || record->doomed ||
          GoodCopies(*record) == 0) {
        break;
      }
      FoundBlock block = Describe(*record);
      if (remember) answers.Put(id, record->facts.parent, record->facts.ordinal, block);
      if (!fits(record->facts.ordinal, record->facts.parent)) break;
      blocks->push_back(std::move(block));
    }
    ++answer->count;
    // Who asks without a lease might have read it, had it been shown.
    if (remember && (known == nullptr || !request.lease)) {
      answers.Show(id, {request.space, keys[0]}, static_cast<uint32_t>(i));
    }
    if (request.lease) {
      answer->lease_ms = std::min(answer->lease_ms, Lease(now, id, blocks->back().length));
    }
  }
  if (answer->count == 0) answer->lease_ms = 0;
}

void MetadataShard::Serve(Millis /*now*/, uint64_t call, const ResolveRequest& request,
                          Actions* actions) {
  Code why = Code::kOk;
  Shard* shard = ShardFor(request.id, &why);
  if (shard == nullptr) return Answer(call, why, EmptyReply{}, actions);
  const auto at = shard->pointers.find(request.id);
  if (at == shard->pointers.end()) {
    why = shard->waiting.empty() ? Code::kNotFound : Code::kUnavailable;
    return Answer(call, why, EmptyReply{}, actions);
  }
  Answer(call, Code::kOk, ResolveReply{at->second.ordinal, at->second.anchor}, actions);
}

void MetadataShard::Serve(Millis now, uint64_t call, const LocateRequest& request,
                          Actions* actions) {
  Code why = Code::kOk;
  Shard* shard = ShardFor({request.id.space, request.anchor}, &why);
  if (shard == nullptr) return Answer(call, why, EmptyReply{}, actions);
  const Record* record = shard->records.Find(request.id);
  if (record == nullptr || record->state != State::kVisible || record->doomed ||
      GoodCopies(*record) == 0) {
    why = shard->waiting.empty() ? Code::kNotFound : Code::kUnavailable;
    return Answer(call, why, EmptyReply{}, actions);
  }
  LocateReply reply{record->facts, 0, Describe(*record)};
  if (request.lease) reply.lease_ms = Lease(now, request.id, record->facts.length);
  Answer(call, Code::kOk, std::move(reply), actions);
}

void MetadataShard::Serve(Millis /*now*/, uint64_t call, const ChainRequest& request,
                          Actions* actions) {
  Code why = Code::kOk;
  Shard* shard = ShardFor({request.id.space, request.anchor}, &why);
  if (shard == nullptr) return Answer(call, why, EmptyReply{}, actions);
  ChainReply reply;
  BlockId id = request.id;
  for (uint32_t step = 0; step < kGroupBlocksMax; ++step) {
    const Record* record = shard->records.Find(id);
    if (record == nullptr || record->state != State::kVisible || record->doomed ||
        GoodCopies(*record) == 0) {
      break;
    }
    reply.blocks.push_back(Describe(*record));
    if (record->facts.begins_group()) {
      std::reverse(reply.blocks.begin(), reply.blocks.end());
      reply.first = record->facts.ordinal;
      reply.parent = record->facts.parent;
      reply.parent_anchor = record->facts.parent_anchor;
      return Answer(call, Code::kOk, std::move(reply), actions);
    }
    id.key = record->facts.parent;
  }
  why = shard->waiting.empty() ? Code::kNotFound : Code::kUnavailable;
  Answer(call, why, EmptyReply{}, actions);
}

void MetadataShard::Serve(Millis /*now*/, uint64_t call, const LeavesRequest& request,
                          Actions* actions) {
  Shard* shard = request.shard < kShardCount ? shards_[request.shard].get() : nullptr;
  if (shard == nullptr || !shard->loaded) {
    const Code why = shard == nullptr ? Code::kStale : Code::kUnavailable;
    return Answer(call, why, EmptyReply{}, actions);
  }
  LeavesReply reply;
  const uint32_t limit = std::clamp<uint32_t>(request.limit, 1, 4096);
  reply.done = true;
  for (auto at = shard->leaves.upper_bound({request.space, request.after});
       at != shard->leaves.end() && at->space == request.space; ++at) {
    if (reply.keys.size() == limit) {
      reply.done = false;
      break;
    }
    if (!shard->hidden.contains(*at)) reply.keys.push_back(at->key);
  }
  Answer(call, Code::kOk, std::move(reply), actions);
}

void MetadataShard::Serve(Millis now, uint64_t call, const ReserveRequest& request,
                          Actions* actions) {
  Code why = Code::kOk;
  Shard* shard = ShardFor({request.parent.space, request.parent_anchor}, &why);
  if (shard == nullptr) return Answer(call, why, EmptyReply{}, actions);
  Record* record = shard->records.Edit(request.parent);
  if (record == nullptr || record->doomed) {
    why = record == nullptr && !shard->waiting.empty() ? Code::kUnavailable : Code::kNotFound;
    return Answer(call, why, EmptyReply{}, actions);
  }
  if (record->state != State::kVisible) return Answer(call, Code::kBusy, EmptyReply{}, actions);
  if (IsHidden(*record)) return Answer(call, Code::kNotFound, EmptyReply{}, actions);
  std::erase_if(record->pins, [&](const auto& pin) { return pin.second <= now; });
  record->pins[request.child] = now + options_.times.pin;
  Answer(call, Code::kOk, EmptyReply{}, actions);
}

void MetadataShard::Serve(Millis now, uint64_t call, const CommitRequest& request,
                          Actions* actions) {
  const BlockFacts& facts = request.facts;
  Code why = Code::kOk;
  Shard* shard = ShardFor(facts.anchor_id(), &why);
  if (shard == nullptr) return Answer(call, why, EmptyReply{}, actions);
  if (AnchorOf(facts.ordinal) == facts.ordinal ? !facts.begins_group() : facts.begins_group()) {
    return Answer(call, Code::kInvalid, EmptyReply{}, actions);
  }
  std::vector<Place> places;
  for (const Place& place : request.places) {
    const ClusterNode* node = view_.Find(place.node);
    if (node == nullptr || (node->roles & kRoleBlocks) == 0) continue;
    if (!IsForgotten(facts.id, place)) places.push_back(place);
  }
  Record* record = shard->records.Edit(facts.id);
  if (record != nullptr) {
    if (record->doomed || record->committers.size() >= 16) {
      return Answer(call, Code::kBusy, EmptyReply{}, actions);
    }
    const auto has = [&](const Place& place) {
      return std::any_of(record->copies.begin(), record->copies.end(),
                         [&](const Copy& copy) { return copy.place == place; });
    };
    const bool any = std::any_of(places.begin(), places.end(), has);
    if (record->state == State::kPending) {
      if (!any) return Answer(call, Code::kBusy, EmptyReply{}, actions);
      record->committers.push_back({call, places});
      return;
    }
    if (KVC_PLANTED(13)) {
      record->facts = facts;
      record->copies.clear();
    }
    if (record->facts.length != facts.length || record->facts.crc32c != facts.crc32c ||
        record->facts.parent != facts.parent || record->facts.ordinal != facts.ordinal) {
      if (IsHidden(*record) && record->facts.parent == facts.parent &&
          record->facts.ordinal == facts.ordinal) {
        return Replace(now, *shard, *record, request, call, std::move(places), actions);
      }
      return Answer(call, Code::kExists, EmptyReply{}, actions);
    }
    // The same bytes: further copies of the version that is there.
    for (const Place& place : places) {
      const bool there =
          std::any_of(record->copies.begin(), record->copies.end(),
                      [&](const Copy& copy) { return copy.place.node == place.node; });
      if (there) continue;
      record->copies.push_back({place, false, false});
      AskMark(*shard, *record, place);
    }
    record->committers.push_back({call, places});
    return AnswerCommitters(*record, actions);
  }
  if (!shard->waiting.empty()) {
    // A holder that has not told everything may have it.
    return Answer(call, Code::kUnavailable, EmptyReply{}, actions);
  }
  if (places.empty()) return Answer(call, Code::kUnavailable, EmptyReply{}, actions);
  if (facts.ordinal != 0 && !facts.begins_group()) {
    const Record* parent = shard->records.Find(facts.parent_id());
    if (parent == nullptr || parent->doomed || parent->state != State::kVisible) {
      why = parent != nullptr && !parent->doomed ? Code::kBusy : Code::kNotFound;
      return Answer(call, why, EmptyReply{}, actions);
    }
  }
  const uint64_t version = NextVersion();
  Record& added = AddRecord(*shard, facts, version, version);
  for (const Place& place : places) added.copies.push_back({place, false, false});
  added.committers.push_back({call, places});
  Advance(now, *shard, added, actions);
}

void MetadataShard::Replace(Millis now, Shard& shard, Record& record, const CommitRequest& request,
                            uint64_t call, std::vector<Place> places, Actions* actions) {
  if (!shard.waiting.empty() || places.empty()) {
    return Answer(call, Code::kUnavailable, EmptyReply{}, actions);
  }
  // Its version is higher than what comes back, and that is forgotten then. What extends it stays.
  Weigh(shard, record.facts, request.facts);
  record.facts = request.facts;
  record.version = NextVersion();
  record.state = State::kPending;
  record.attached = false;
  record.copies.clear();
  for (const Place& place : places) record.copies.push_back({place, false, false});
  record.committers.push_back({call, std::move(places)});
  shard.hidden.erase(record.facts.id);
  shard.unsettled.insert(record.facts.id);
  UpdateLeaf(shard, record);
  Advance(now, shard, record, actions);
}

void MetadataShard::Serve(Millis now, uint64_t call, const DropRequest& request, Actions* actions) {
  Code why = Code::kOk;
  Shard* shard = ShardFor({request.id.space, request.anchor}, &why);
  if (shard == nullptr) return Answer(call, why, EmptyReply{}, actions);
  Record* record = shard->records.Edit(request.id);
  if (record == nullptr) {
    why = shard->waiting.empty() ? Code::kNotFound : Code::kUnavailable;
    return Answer(call, why, EmptyReply{}, actions);
  }
  record->droppers.push_back(call);
  Doom(now, *shard, *record, actions);
}

void MetadataShard::Serve(Millis /*now*/, uint64_t call, const MissingRequest& request,
                          Actions* actions) {
  Code why = Code::kOk;
  Shard* shard = ShardFor({request.id.space, request.anchor}, &why);
  if (shard == nullptr) return Answer(call, why, EmptyReply{}, actions);
  Answer(call, Code::kOk, EmptyReply{}, actions);
  const Record* record = shard->records.Find(request.id);
  if (record == nullptr || record->doomed) return;
  for (const Copy& copy : record->copies) {
    if (copy.place != request.place || !copy.marked || !view_.HasNow(copy.place.node)) continue;
    Task& task = EnsureTask(
        {TaskKind::kHave, request.id, {}, copy.place.node, copy.place.generation}, shard->number);
    task.body = HaveRequest{request.id, copy.place.generation};
    task.target_node = copy.place.node;
  }
}

// ---- What holders ask

void MetadataShard::Serve(Millis now, uint64_t call, const ReleaseRequest& request,
                          Actions* actions) {
  ReleaseReply reply;
  for (const ReleaseItem& item : request.items) {
    reply.codes.push_back(static_cast<uint8_t>(ReleaseOne(now, request.holder, item, actions)));
  }
  Answer(call, Code::kOk, std::move(reply), actions);
}

Code MetadataShard::ReleaseOne(Millis now, const NodeId& holder, const ReleaseItem& item,
                               Actions* actions) {
  Code why = Code::kOk;
  Shard* shard = ShardFor({item.id.space, item.anchor}, &why);
  if (shard == nullptr) return why;
  if (shard->waiting.contains(holder)) return Code::kUnavailable;
  const Place place{holder, item.generation};
  // The answer may come too late to be taken, and the holder may have been told to keep it by then.
  const auto grant = [&] {
    if (!KVC_PLANTED(39)) ForgetStray(*shard, item.id, place);
    return Code::kOk;
  };
  Record* record = shard->records.Edit(item.id);
  if (record == nullptr) return grant();
  const auto copy = std::find_if(record->copies.begin(), record->copies.end(),
                                 [&](const Copy& each) { return each.place == place; });
  if (copy == record->copies.end()) return grant();
  const bool is_settled = record->state == State::kVisible || WaitsForAway(*shard, *record);
  if (!is_settled || record->doomed || !copy->marked) return Code::kBusy;
  const ClusterNode* asker = view_.Find(holder);
  const bool counts = asker != nullptr && TakesBlocks(*asker) && copy->verified;
  const size_t others = StayingCopies(*record) - (counts ? 1 : 0);
  if (others > 0 && others >= WantedCopies(*record)) {
    if (!IsTold(item.id)) return Code::kBusy;
    RemoveCopy(now, *shard, *record, place, actions);
    return grant();
  }
  // Who is drained gives away what it has; it does not evict it.
  const bool drained = asker != nullptr && (asker->roles & kRoleDraining) != 0 && !KVC_PLANTED(34);
  if (!drained && shard->waiting.empty() && IsEvictable(now, *shard, *record)) {
    record->copies.erase(copy);
    Doom(now, *shard, *record, actions);
    return grant();
  }
  AskChildren(now, *shard, *record, actions);
  return Code::kBusy;
}

void MetadataShard::AskChildren(Millis now, Shard& shard, Record& record, Actions* actions) {
  const SpaceId space = record.facts.id.space;
  std::vector<BlockKey> local;
  for (auto& [key, edge] : record.children) {
    if (edge.local) {
      local.push_back(key);
      continue;
    }
    if (now < edge.asked + 10 * options_.times.retry) continue;
    edge.asked = now;
    Task& task =
        EnsureTask({TaskKind::kDoom, record.facts.id, key, {}, edge.version}, shard.number);
    task.body = DoomRequest{{space, key}, edge.version, true};
    task.target_anchor = {space, key};
  }
  for (const BlockKey& key : local) GiveUpHidden(now, shard, {space, key}, actions);
}

void MetadataShard::GiveUpHidden(Millis now, Shard& shard, const BlockId& id, Actions* actions) {
  const Record* found = shard.records.Find(id);
  if (found == nullptr || !(IsHidden(*found) || WaitsForAway(shard, *found))) return;
  Record* record = shard.records.Edit(id);
  AskChildren(now, shard, *record, actions);
  if (record->children.empty()) Doom(now, shard, *record, actions);
}

// ---- What metadata nodes ask one another

void MetadataShard::Serve(Millis /*now*/, uint64_t call, const AttachRequest& request,
                          Actions* actions) {
  Code why = Code::kOk;
  const SpaceId space = request.child.space;
  Shard* shard = ShardFor({space, request.parent_anchor}, &why);
  if (shard == nullptr) return Answer(call, why, EmptyReply{}, actions);
  Record* parent = shard->records.Edit({space, request.parent});
  if (parent == nullptr && !shard->waiting.empty()) {
    return Answer(call, Code::kUnavailable, EmptyReply{}, actions);
  }
  if (parent == nullptr && view_.HasAnyAway()) {
    // If who is away brings it, then with this child.
    Edge& edge = shard->loose[{space, request.parent}][request.child.key];
    edge.version = std::max(edge.version, request.version);
  }
  if (parent == nullptr || (parent->doomed && !KVC_PLANTED(10))) {
    return Answer(call, Code::kNotFound, EmptyReply{}, actions);
  }
  const bool waits = WaitsForAway(*shard, *parent);
  if (parent->state == State::kPending && !waits) {
    return Answer(call, Code::kBusy, EmptyReply{}, actions);
  }
  Edge& edge = parent->children[request.child.key];
  edge.version = std::max(edge.version, request.version);
  parent->pins.erase(request.child.key);
  UpdateLeaf(*shard, *parent);
  Answer(call, waits ? Code::kNotFound : Code::kOk, EmptyReply{}, actions);
}

void MetadataShard::Serve(Millis now, uint64_t call, const DetachRequest& request,
                          Actions* actions) {
  Code why = Code::kOk;
  const SpaceId space = request.child.space;
  Shard* shard = ShardFor({space, request.parent_anchor}, &why);
  if (shard == nullptr) return Answer(call, why, EmptyReply{}, actions);
  Answer(call, Code::kOk, EmptyReply{}, actions);
  EraseEdge(now, *shard, {space, request.parent}, request.child.key, request.version, actions);
}

void MetadataShard::Serve(Millis now, uint64_t call, const DoomRequest& request, Actions* actions) {
  Code why = Code::kOk;
  Shard* shard = ShardFor(request.id, &why);
  if (shard == nullptr) return Answer(call, why, EmptyReply{}, actions);
  Record* record = shard->records.Edit(request.id);
  if (record == nullptr) {
    why = shard->waiting.empty() ? Code::kNotFound : Code::kUnavailable;
    return Answer(call, why, EmptyReply{}, actions);
  }
  Answer(call, Code::kOk, EmptyReply{}, actions);
  // An older record may be meant; then this one says so itself, by Attach. Who loaded its children
  // from inventories knows them by the version of their bytes.
  if (request.only_ask) return GiveUpHidden(now, *shard, request.id, actions);
  const bool meant = record->attach_id <= request.version || record->version == request.version;
  if (!record->doomed && meant) {
    Doom(now, *shard, *record, actions);
  }
}

void MetadataShard::Serve(Millis /*now*/, uint64_t call, const PointRequest& request,
                          Actions* actions) {
  Code why = Code::kOk;
  Shard* shard = ShardFor(request.id, &why);
  if (shard == nullptr) return Answer(call, why, EmptyReply{}, actions);
  Pointer& pointer = shard->pointers[request.id];
  if (request.version >= pointer.version) {
    pointer = {request.ordinal, request.anchor, request.version};
  }
  Answer(call, Code::kOk, EmptyReply{}, actions);
}

void MetadataShard::Serve(Millis /*now*/, uint64_t call, const UnpointRequest& request,
                          Actions* actions) {
  Code why = Code::kOk;
  Shard* shard = ShardFor(request.id, &why);
  if (shard == nullptr) return Answer(call, why, EmptyReply{}, actions);
  const auto at = shard->pointers.find(request.id);
  if (at != shard->pointers.end() && (at->second.version <= request.version || KVC_PLANTED(41))) {
    shard->pointers.erase(at);
  }
  Answer(call, Code::kOk, EmptyReply{}, actions);
}

void MetadataShard::Serve(Millis now, uint64_t call, const GrantRequest& request,
                          Actions* actions) {
  Code why = Code::kOk;
  Shard* shard = ShardFor(request.id, &why);
  if (shard == nullptr) return Answer(call, why, EmptyReply{}, actions);
  Record* record = shard->records.Edit(request.id);
  if (record == nullptr || record->doomed || record->state != State::kVisible ||
      GoodCopies(*record) == 0 || record->facts.ordinal != 0) {
    why = shard->waiting.empty() ? Code::kNotFound : Code::kUnavailable;
    return Answer(call, why, EmptyReply{}, actions);
  }
  const ClusterTimes& times = options_.times;
  const Millis over = now + times.grant;
  record->grants[request.node] = over;
  // The copy promises leases to its end.
  const Millis until = over + times.lease + times.lease_hold;
  const bool leased =
      leases_.Grant(BlockIdHash()(request.id), record->facts.length, now, until) >= until;
  Answer(call, Code::kOk, GrantReply{Describe(*record), leased}, actions);
}

void MetadataShard::Serve(Millis /*now*/, uint64_t call, const RevokeRequest& request,
                          Actions* actions) {
  first_copies_.erase(request.id);
  DropTask({TaskKind::kGrant, request.id, {}, {}, 0});
  for (const auto& waiting : waiting_matches_[request.id]) {
    Answer(waiting.call, Code::kStale, EmptyReply{}, actions);
  }
  waiting_matches_.erase(request.id);
  Answer(call, Code::kOk, EmptyReply{}, actions);
}

MetadataShard::Counts MetadataShard::Count() const {
  Counts counts = totals_;
  for (const auto& shard : shards_) {
    if (shard == nullptr) continue;
    ++counts.shards;
    if (!shard->loaded) ++counts.loading;
    if (!shard->waiting.empty()) ++counts.reconciling;
    counts.records += shard->records.all().size();
    counts.repairs_waiting += shard->repairs.size();
    counts.hidden += shard->hidden.size();
    for (const BlockId& id : shard->unsettled) {
      ++(shard->records.all().at(id).doomed ? counts.doomed : counts.pending);
    }
  }
  counts.tasks = tasks_.size();
  counts.moving = moves_.size();
  for (const auto& [node, bytes] : balance_.room) counts.move_bytes_left += bytes;
  return counts;
}

uint64_t MetadataShard::BytesOf(const SpaceId& space) const {
  uint64_t bytes = 0;
  for (const auto& shard : shards_) {
    if (shard == nullptr) continue;
    const auto at = shard->bytes.find(space);
    if (at != shard->bytes.end()) bytes += at->second;
  }
  return bytes;
}

void MetadataShard::VisitRecords(
    const std::function<void(uint32_t shard, const RecordState&)>& visit) const {
  for (const auto& shard : shards_) {
    if (shard == nullptr) continue;
    for (const auto& [id, record] : shard->records.all()) {
      RecordState state{&record.facts,
                        record.version,
                        record.state == State::kVisible,
                        record.doomed,
                        shard->loaded && shard->waiting.empty(),
                        {}};
      for (const Copy& copy : record.copies) {
        if (copy.marked && copy.verified) state.marked.push_back(copy.place);
      }
      visit(shard->number, state);
    }
  }
}

}  // namespace kvcfs::meta
