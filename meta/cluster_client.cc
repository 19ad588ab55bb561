#include "meta/cluster_client.h"

#include <algorithm>
#include <utility>

#include "meta/planted.h"

namespace kvcfs::meta {
namespace {

// Asked again rather than given up.
bool MayChange(Code code) {
  return code == Code::kStale || code == Code::kUnavailable || code == Code::kTimeout ||
         code == Code::kBusy;
}

}  // namespace

void ClusterClient::SetView(Millis now, const ClusterView& view, ClientActions* out) {
  if (view.epoch <= view_.epoch) return;
  view_ = view;
  placement_ = Placement(view);
  std::vector<uint64_t> waiting;
  for (const auto& [number, op] : ops_) {
    if (op.retry >= Millis(0) && op.calls.empty()) waiting.push_back(number);
  }
  for (const uint64_t number : waiting) {
    if (const auto at = ops_.find(number); at != ops_.end()) Run(now, number, at->second, out);
  }
}

ClusterClient::Op& ClusterClient::Begin(Millis now, uint64_t number, Kind kind, const BlockId& id,
                                        Millis timeout) {
  Op& op = ops_[number];
  op.kind = kind;
  op.id = id;
  op.deadline = now + timeout;
  return op;
}

void ClusterClient::Match(Millis now, uint64_t number, const SpaceId& space,
                          std::span<const BlockKey> keys, bool lease, Millis timeout,
                          ClientActions* out, Way way) {
  std::vector<GroupPart> groups;
  std::vector<FoundBlock> found;
  const std::vector<GroupRange> ranges = GroupsOf(static_cast<uint32_t>(keys.size()));
  groups.reserve(ranges.size());
  for (const GroupRange& range : ranges) {
    GroupPart& part = groups.emplace_back();
    part.range = range;
    part.probe = !lease && way == Way::kOneSided;
  }
  const auto look = [&](GroupCache& cache) {
    found.reserve(keys.size());
    for (const GroupRange& range : ranges) cache.Prefetch(space, keys[range.first]);
    for (GroupPart& part : groups) {
      const GroupRange& range = part.range;
      found.resize(range.first);
      const auto until = cache.Find(now, space, keys.subspan(range.first, range.count), &found);
      if (!until.has_value()) continue;
      part.answered = part.cached = true;
      part.count = range.count;
      part.lease_until = *until;
    }
  };
  if (lease) cache_->With(look);
  const auto is_answered = [](const GroupPart& part) { return part.answered; };
  if (std::all_of(groups.begin(), groups.end(), is_answered)) {
    auto outcome = EndOfMatch(now, groups, true, &found);
    outcome->op = number;
    out->outcomes.push_back(std::move(*outcome));
    return;
  }
  Op& op = Begin(now, number, Kind::kMatch, {space, {}}, timeout);
  op.keys.assign(keys.begin(), keys.end());
  op.lease = lease;
  op.probe_rounds = !lease && way == Way::kOneSided ? kProbeRoundsMax : 0;
  op.groups = std::move(groups);
  op.found = std::move(found);
  Run(now, number, op, out);
}

void ClusterClient::Stat(Millis now, uint64_t number, const BlockId& id, Millis timeout,
                         ClientActions* out) {
  Op& op = Begin(now, number, Kind::kStat, id, timeout);
  Guess(now, op);
  Run(now, number, op, out);
}

void ClusterClient::Create(Millis now, uint64_t number, const BlockId& id, const BlockKey& parent,
                           Millis timeout, ClientActions* out) {
  Op& op = Begin(now, number, Kind::kCreate, {id.space, parent}, timeout);
  op.facts.id = id;
  op.facts.parent = parent;
  if (parent.IsZero()) {
    op.facts.anchor = id.key;
    Outcome outcome{};
    outcome.facts = op.facts;
    return End(number, std::move(outcome), out);
  }
  Guess(now, op);
  Run(now, number, op, out);
}

void ClusterClient::Publish(Millis now, uint64_t number, const BlockFacts& facts,
                            std::vector<Place> places, Millis timeout, ClientActions* out) {
  Op& op = Begin(now, number, Kind::kPublish, facts.id, timeout);
  op.facts = facts;
  op.step = Step::kPut;
  op.enough = now + timeout / 2;
  for (const Place& place : places) op.tried.insert(place.node);
  op.places = std::move(places);
  Run(now, number, op, out);
}

void ClusterClient::Read(Millis now, uint64_t number, const SpaceId& space, const FoundBlock& block,
                         Millis timeout, ClientActions* out) {
  Op& op = Begin(now, number, Kind::kRead, {space, block.key}, timeout);
  op.block = block;
  op.places.assign(block.places.begin(), block.places.end());
  // The own node first; the others in an order that is another one for each reader.
  const auto distance = [&](const Place& place) {
    return place.node == options_.self
               ? 0
               : 1 | MixHash(place.node.low ^ options_.self.low, block.key.Word(0));
  };
  std::sort(op.places.begin(), op.places.end(), [&](const Place& a, const Place& b) {
    return std::pair(distance(a), a) < std::pair(distance(b), b);
  });
  Run(now, number, op, out);
}

void ClusterClient::Drop(Millis now, uint64_t number, const BlockId& id, Millis timeout,
                         ClientActions* out) {
  Op& op = Begin(now, number, Kind::kDrop, id, timeout);
  Guess(now, op);
  cache_->With([&](GroupCache& cache) { cache.Forget(id); });
  published_.erase(id);
  Run(now, number, op, out);
}

void ClusterClient::Chain(Millis now, uint64_t number, const BlockId& tip, Millis timeout,
                          ClientActions* out) {
  Run(now, number, Begin(now, number, Kind::kChain, tip, timeout), out);
}

void ClusterClient::Leaves(Millis now, uint64_t number, const SpaceId& space, uint32_t shard,
                           const BlockKey& after, uint32_t limit, Millis timeout,
                           ClientActions* out) {
  Op& op = Begin(now, number, Kind::kLeaves, {space, after}, timeout);
  op.shard = shard;
  op.limit = limit;
  Run(now, number, op, out);
}

void ClusterClient::NoteUsed(const BlockId& id, const NodeId& holder) {
  std::set<BlockId>& ids = used_[holder];
  if (ids.size() < options_.used_max) ids.insert(id);
}

void ClusterClient::Guess(Millis now, Op& op) {
  op.where = cache_->With([&](GroupCache& cache) { return cache.Resolve(now, op.id); });
  if (op.where.has_value()) return;
  const auto at = published_.find(op.id);
  if (at == published_.end() || at->second.second <= now) return;
  op.where = at->second.first;
  op.guessed = true;
}

uint64_t ClusterClient::Send(Millis now, uint64_t number, Op& op, const NodeId& to,
                             RequestBody body, ClientActions* out) {
  const uint64_t id = next_call_++;
  op.calls.push_back(id);
  calls_[id] = {.op = number,
                .sent = now,
                .epoch = view_.epoch,
                .groups = {},
                .place = {},
                .is_probe = false};
  out->calls.push_back({to, id, {view_.epoch, std::move(body)}, number});
  return id;
}

bool ClusterClient::SendToOwner(Millis now, uint64_t number, Op& op, const BlockId& anchor,
                                RequestBody body, ClientActions* out) {
  const NodeId& owner = placement_.OwnerOf(anchor);
  if (!owner.valid()) {
    Retry(now, op);
    return false;
  }
  Send(now, number, op, owner, std::move(body), out);
  return true;
}

void ClusterClient::Tell(const NodeId& to, RequestBody body, ClientActions* out) {
  out->calls.push_back({to, next_call_++, {view_.epoch, std::move(body)}});
}

void ClusterClient::End(uint64_t number, Outcome outcome, ClientActions* out) {
  const auto at = ops_.find(number);
  for (const uint64_t call : at->second.calls) calls_.erase(call);
  outcome.reads = at->second.reads;
  ops_.erase(at);
  outcome.op = number;
  out->outcomes.push_back(std::move(outcome));
}

// Asks what is to be asked next.
void ClusterClient::Run(Millis now, uint64_t number, Op& op, ClientActions* out) {
  op.retry = Millis(-1);
  switch (op.kind) {
    case Kind::kMatch:
      return RunMatch(now, number, op, out);
    case Kind::kPublish:
      return RunPublish(now, number, op, out);
    case Kind::kRead:
      return RunRead(now, number, op, out);
    case Kind::kLeaves: {
      const NodeId& owner = placement_.OwnerOf(op.shard);
      if (!owner.valid()) return Retry(now, op);
      Send(now, number, op, owner, LeavesRequest{op.id.space, op.shard, op.id.key, op.limit}, out);
      return;
    }
    default:
      break;
  }
  if (!op.where.has_value()) {
    SendToOwner(now, number, op, op.id, ResolveRequest{op.id}, out);
    return;
  }
  const BlockKey anchor = op.where->anchor;
  RequestBody body = LocateRequest{op.id, anchor, true};
  if (op.kind == Kind::kCreate) body = ReserveRequest{op.id, anchor, op.facts.id.key};
  if (op.kind == Kind::kDrop) body = DropRequest{op.id, anchor};
  if (op.kind == Kind::kChain) body = ChainRequest{op.id, anchor};
  SendToOwner(now, number, op, {op.id.space, anchor}, std::move(body), out);
}

// One message to each owner, all at once.
void ClusterClient::RunMatch(Millis now, uint64_t number, Op& op, ClientActions* out) {
  if (SendProbes(now, number, op, out)) return;
  std::vector<std::pair<NodeId, uint32_t>> asked;  // which group of whom
  asked.reserve(op.groups.size());
  bool first_is_open = false;
  for (uint32_t i = 0; i < op.groups.size(); ++i) {
    GroupPart& part = op.groups[i];
    if (part.answered) continue;
    // First blocks are asked of any metadata node, once; then of the owner.
    if (i == 0 && !part.failed) {
      first_is_open = true;
      continue;
    }
    const NodeId& owner = placement_.OwnerOf(BlockId{op.id.space, op.keys[part.range.first]});
    if (!owner.valid()) {
      Retry(now, op);
      continue;
    }
    asked.emplace_back(owner, i);
  }
  if (first_is_open) {
    NodeId node =
        asked.empty()
            ? placement_.OwnerOf(static_cast<uint32_t>(MixHash(options_.self.low, 1) % kShardCount))
            : std::min_element(asked.begin(), asked.end())->first;
    const NodeId& owner = placement_.OwnerOf(BlockId{op.id.space, op.keys[0]});
    for (const auto& [other, group] : asked) {
      if (other == owner) node = owner;
    }
    if (node.valid()) {
      asked.emplace_back(node, 0);
    } else {
      Retry(now, op);
    }
  }
  std::sort(asked.begin(), asked.end());
  for (size_t begin = 0; begin < asked.size();) {
    const NodeId owner = asked[begin].first;
    MatchRequest request{op.id.space, op.lease};
    std::vector<uint32_t> groups;
    groups.reserve(asked.size() - begin);
    request.groups.reserve(asked.size() - begin);
    request.keys.reserve(op.keys.size() - op.groups[asked[begin].second].range.first);
    for (; begin < asked.size() && asked[begin].first == owner; ++begin) {
      const GroupRange& range = op.groups[asked[begin].second].range;
      request.Add(range.first, std::span(op.keys).subspan(range.first, range.count));
      groups.push_back(asked[begin].second);
    }
    op.reads.asked += static_cast<uint32_t>(groups.size());
    calls_[Send(now, number, op, owner, std::move(request), out)].groups = std::move(groups);
  }
  FinishMatch(now, number, op, false, out);
}

// Ends it when enough is known.
void ClusterClient::FinishMatch(Millis now, uint64_t number, Op& op, bool last,
                                ClientActions* out) {
  auto outcome = EndOfMatch(now, op.groups, last, &op.found);
  if (outcome.has_value()) return End(number, std::move(*outcome), out);
  if (op.calls.empty() && op.retry < Millis(0)) Retry(now, op);
}

// What a later group has, its earlier ones had at that time too: a block stays as long as one
// extends it.
std::optional<Outcome> ClusterClient::EndOfMatch(Millis now, std::span<const GroupPart> groups,
                                                 bool last, std::vector<FoundBlock>* found) {
  std::optional<Outcome> outcome(std::in_place);
  outcome->lease_until = Millis::max();
  size_t total = 0;
  for (const GroupPart& part : groups) {
    if (!part.answered) {
      if (last) break;
      return std::nullopt;
    }
    if (part.count > 0 && total != part.range.first) {  // behind a gap
      const auto from = found->begin() + part.range.first;
      std::move(from, from + part.count, found->begin() + static_cast<std::ptrdiff_t>(total));
    }
    total += part.count;
    if (part.count > 0) outcome->lease_until = std::min(outcome->lease_until, part.lease_until);
    if (part.cached) outcome->from_cache += part.count;
    if (part.count < part.range.count && !KVC_PLANTED(19)) break;
  }
  found->resize(total);
  outcome->blocks = std::move(*found);
  if (total == 0 || outcome->lease_until <= now) outcome->lease_until = Millis(0);
  return outcome;
}

void ClusterClient::ReceiveMatch(Millis now, uint64_t number, Op& op, const Call& call,
                                 const Reply& reply, ClientActions* out) {
  const auto* answers = std::get_if<MatchReply>(&reply.body);
  const bool good =
      reply.code == Code::kOk && answers != nullptr && answers->groups.size() == call.groups.size();
  std::span<const FoundBlock> rest;
  if (good) rest = answers->blocks;
  op.found.reserve(op.keys.size());
  for (size_t i = 0; i < call.groups.size(); ++i) {
    GroupPart& part = op.groups[call.groups[i]];
    if (!good || answers->groups[i].code != Code::kOk) {
      if (good) rest = rest.subspan(answers->groups[i].count);
      part.failed = true;
      Retry(now, op);
      continue;
    }
    const GroupAnswer& answer = answers->groups[i];
    const std::span<const FoundBlock> blocks = rest.first(answer.count);
    rest = rest.subspan(answer.count);
    const size_t end = part.range.first + std::min<size_t>(blocks.size(), part.range.count);
    if (op.found.size() < end) op.found.resize(end);
    part.count = static_cast<uint32_t>(end - part.range.first);
    for (size_t at = part.range.first; at < end; ++at) {
      op.found[at] = blocks[at - part.range.first];
      op.found[at].key = op.keys[at];
    }
    part.answered = true;
    // Counted from when it was asked: the server counts from later.
    part.lease_until = answer.lease_ms == 0 ? Millis(0) : call.sent + Millis(answer.lease_ms);
    if (answer.lease_ms > 0) {
      const std::span<const FoundBlock> found(op.found);
      cache_->With([&](GroupCache& cache) {
        cache.Put(op.id.space, part.range.first, found.subspan(part.range.first, part.count),
                  part.lease_until);
      });
    }
  }
  FinishMatch(now, number, op, false, out);
}

// Copies first: as many as are wanted, or as there are holders. One that may take a copy a moment
// later is asked again for a while; then what there is is committed, and the shard's owner has the
// others made.
void ClusterClient::RunPublish(Millis now, uint64_t number, Op& op, ClientActions* out) {
  if (op.step == Step::kPut) {
    if (view_.epoch == 0) return Retry(now, op);
    const auto has = [&](const NodeId& node) {
      return std::any_of(op.places.begin(), op.places.end(),
                         [&](const Place& place) { return place.node == node; });
    };
    const auto others =
        std::count_if(view_.nodes.begin(), view_.nodes.end(),
                      [&](const ClusterNode& node) { return TakesBlocks(node) && !has(node.id); });
    const size_t wanted = std::clamp<size_t>(
        op.facts.replicas, 1, std::max<size_t>(op.places.size() + static_cast<size_t>(others), 1));
    const bool enough = !op.places.empty() && now >= op.enough;
    const size_t have = op.places.size() + op.calls.size();
    if (have < wanted && !enough) {
      const auto targets = HoldersFor(view_, op.id, wanted - have,
                                      [&](const NodeId& node) { return op.tried.contains(node); });
      for (const NodeId& node : targets) {
        op.tried.insert(node);
        calls_[Send(now, number, op, node, PutRequest{op.facts}, out)].place = {node, 0};
      }
    }
    if (!op.calls.empty()) return;
    if (op.places.empty()) {
      op.tried.clear();
      op.later.clear();
      return Retry(now, op);
    }
    if (op.places.size() < wanted && !enough && !op.later.empty()) {
      for (const NodeId& node : std::exchange(op.later, {})) op.tried.erase(node);
      return Retry(now, op);
    }
    op.step = Step::kAct;
  }
  SendToOwner(now, number, op, op.facts.anchor_id(), CommitRequest{op.facts, op.places}, out);
}

void ClusterClient::ReceivePublish(Millis now, uint64_t number, Op& op, const Call& call,
                                   const Reply& reply, ClientActions* out) {
  if (op.step == Step::kPut) {
    const auto* put = std::get_if<PutReply>(&reply.body);
    if (reply.code == Code::kOk && put != nullptr) {
      op.places.push_back({call.place.node, put->generation});
    } else {
      op.refused = reply.code;
      if (MayChange(reply.code)) op.later.insert(call.place.node);
    }
    return RunPublish(now, number, op, out);
  }
  if (MayChange(reply.code)) return Retry(now, op);
  const auto* commit = std::get_if<CommitReply>(&reply.body);
  // Holders keep what is published, whatever they are told to discard.
  if (commit == nullptr || commit->kept < op.places.size()) Discard(op, out);
  Outcome outcome{};
  outcome.code = reply.code;
  outcome.facts = op.facts;
  if (commit != nullptr) outcome.copies = commit->copies;
  if (reply.code == Code::kOk) {
    // Whoever goes on writing behind it asks for it next.
    if (published_.size() >= options_.published_max) published_.clear();
    published_[op.facts.id] = {{op.facts.ordinal, op.facts.anchor}, now + options_.times.lease};
  }
  End(number, std::move(outcome), out);
}

void ClusterClient::Discard(const Op& op, ClientActions* out) {
  for (const Place& place : op.places) {
    Tell(place.node, DiscardRequest{op.id, place.generation}, out);
  }
}

void ClusterClient::RunRead(Millis now, uint64_t number, Op& op, ClientActions* out) {
  op.hedge = Millis(-1);
  if (op.next_place < op.places.size()) {
    const Place place = op.places[op.next_place++];
    calls_[Send(now, number, op, place.node, ReadRequest{op.id, place.generation}, out)].place =
        place;
    if (op.next_place < op.places.size()) op.hedge = now + options_.times.hedge;
    return;
  }
  if (!op.calls.empty()) return;
  cache_->With([&](GroupCache& cache) { cache.Forget(op.id); });
  Outcome outcome{};
  outcome.code = Code::kNotFound;
  End(number, std::move(outcome), out);
}

void ClusterClient::ReceiveRead(Millis now, uint64_t number, Op& op, uint64_t id, const Call& call,
                                const Reply& reply, ClientActions* out) {
  const auto* read = std::get_if<ReadReply>(&reply.body);
  const bool answered = reply.code == Code::kOk && read != nullptr;
  if (answered &&
      (KVC_PLANTED(18) || (read->key == op.id.key && read->generation == call.place.generation)) &&
      ((read->length == op.block.length && read->crc32c == op.block.crc32c) || KVC_PLANTED(27))) {
    Outcome outcome{};
    outcome.place = call.place;
    outcome.call = id;
    return End(number, std::move(outcome), out);
  }
  if (answered || reply.code == Code::kNotFound || reply.code == Code::kCorrupt) {
    // It is not there, and should be: the owner of the shard finds out.
    const auto where = cache_->With([&](GroupCache& cache) { return cache.Resolve(now, op.id); });
    if (where.has_value()) {
      const NodeId& owner = placement_.OwnerOf(BlockId{op.id.space, where->anchor});
      if (owner.valid()) Tell(owner, MissingRequest{op.id, where->anchor, call.place}, out);
    }
  }
  RunRead(now, number, op, out);
}

void ClusterClient::ReceiveReply(Millis now, uint64_t id, const Reply& reply, ClientActions* out) {
  if (reply.epoch > view_.epoch) out->wants_view = true;
  const auto at = calls_.find(id);
  if (at == calls_.end()) return;
  if (at->second.is_probe) {
    const bool unsent = reply.code == Code::kUnavailable;
    return EndProbe(now, id, {}, unsent ? &MatchReads::unsent : &MatchReads::failed, out);
  }
  const Call call = std::move(at->second);
  calls_.erase(at);
  Op& op = ops_.at(call.op);
  std::erase(op.calls, id);
  switch (op.kind) {
    case Kind::kMatch:
      return ReceiveMatch(now, call.op, op, call, reply, out);
    case Kind::kPublish:
      return ReceivePublish(now, call.op, op, call, reply, out);
    case Kind::kRead:
      return ReceiveRead(now, call.op, op, id, call, reply, out);
    default:
      return ReceiveOther(now, call.op, op, reply, out);
  }
}

void ClusterClient::ReceiveOther(Millis now, uint64_t number, Op& op, const Reply& reply,
                                 ClientActions* out) {
  if (MayChange(reply.code)) return Retry(now, op);
  if (reply.code == Code::kNotFound && std::exchange(op.guessed, false)) {
    published_.erase(op.id);
    op.where.reset();
    return Run(now, number, op, out);
  }
  Outcome outcome{};
  outcome.code = reply.code;
  if (const auto* resolved = std::get_if<ResolveReply>(&reply.body);
      resolved != nullptr && reply.code == Code::kOk) {
    op.where = *resolved;
    return Run(now, number, op, out);
  }
  if (const auto* located = std::get_if<LocateReply>(&reply.body); located != nullptr) {
    outcome.facts = located->facts;
    outcome.blocks = {located->block};
    if (located->lease_ms > 0) {
      // From now on is later than the server counted; a retry is the longest that it was under way.
      outcome.lease_until = now + Millis(located->lease_ms) - options_.times.call;
    }
  }
  if (op.kind == Kind::kCreate && reply.code == Code::kOk) {
    BlockFacts& facts = op.facts;
    facts.ordinal = op.where->ordinal + 1;
    facts.parent_anchor = op.where->anchor;
    facts.anchor = AnchorOf(facts.ordinal) == facts.ordinal ? facts.id.key : op.where->anchor;
    outcome.facts = facts;
  }
  if (const auto* chain = std::get_if<ChainReply>(&reply.body); chain != nullptr) {
    op.chain.insert(op.chain.end(), chain->blocks.rbegin(), chain->blocks.rend());
    if (chain->first != 0) {
      op.id.key = chain->parent;
      op.where = ResolveReply{chain->first - 1, chain->parent_anchor};
      return Run(now, number, op, out);
    }
    outcome.blocks.assign(op.chain.rbegin(), op.chain.rend());
  }
  if (const auto* leaves = std::get_if<LeavesReply>(&reply.body); leaves != nullptr) {
    outcome.keys = leaves->keys;
    outcome.done = leaves->done;
  }
  End(number, std::move(outcome), out);
}

// A READ that takes so long is slower than the call that it saves.
Millis ClusterClient::PatienceFor(const Call& call) const {
  if (call.is_probe) return options_.times.retry;
  const auto op = ops_.find(call.op);
  const bool drop = op != ops_.end() && op->second.kind == Kind::kDrop;
  return (drop ? 4 : 1) * options_.times.call;
}

void ClusterClient::Tick(Millis now, ClientActions* out) {
  // An attempt that nobody answered: as if it had failed.
  std::vector<uint64_t> late;
  for (const auto& [id, call] : calls_) {
    if (call.sent + PatienceFor(call) <= now) late.push_back(id);
  }
  for (const uint64_t id : late) ReceiveReply(now, id, {Code::kTimeout, 0, {}}, out);
  std::vector<uint64_t> due;
  for (const auto& [number, op] : ops_) {
    if (op.deadline <= now || (op.retry >= Millis(0) && op.retry <= now) ||
        (op.hedge >= Millis(0) && op.hedge <= now)) {
      due.push_back(number);
    }
  }
  for (const uint64_t number : due) {
    const auto at = ops_.find(number);
    if (at == ops_.end()) continue;
    Op& op = at->second;
    if (op.deadline > now) {
      Run(now, number, op, out);
    } else if (op.kind == Kind::kMatch) {
      FinishMatch(now, number, op, true, out);  // what is known; the rest is a miss
    } else {
      const bool full = op.kind == Kind::kPublish && op.places.empty();
      Outcome outcome{};
      outcome.code = full && op.refused == Code::kNoSpace ? Code::kNoSpace : Code::kTimeout;
      End(number, std::move(outcome), out);
    }
  }
  if (now >= used_due_) {
    used_due_ = now + Millis(1000);
    for (auto& [node, ids] : used_) {
      Tell(node, UsedRequest{{ids.begin(), ids.end()}}, out);
    }
    used_.clear();
  }
}

Millis ClusterClient::NextTick() const {
  Millis next = Millis::max();
  for (const auto& [number, op] : ops_) {
    next = std::min(next, op.deadline);
    if (op.retry >= Millis(0)) next = std::min(next, op.retry);
    if (op.hedge >= Millis(0)) next = std::min(next, op.hedge);
  }
  for (const auto& [id, call] : calls_) {
    next = std::min(next, call.sent + (call.is_probe ? PatienceFor(call) : options_.times.call));
  }
  if (!used_.empty()) next = std::min(next, used_due_);
  return next;
}

}  // namespace kvcfs::meta
