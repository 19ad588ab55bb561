#include "meta/block_holder.h"

#include <algorithm>

#include "meta/planted.h"

namespace kvcfs::meta {

void BlockHolder::Answer(uint64_t call, Code code, ReplyBody body, Actions* actions) const {
  actions->answers.push_back({call, {code, view_.epoch, std::move(body)}});
}

void BlockHolder::SetView(Millis now, const ClusterView& view, Actions* actions) {
  if (view.epoch <= view_.epoch) return;
  view_ = view;
  placement_ = Placement(view);
  // What was asked under the old view is asked again; late grants are not taken.
  for (auto& [id, keys] : asked_) releases_.insert(keys.begin(), keys.end());
  if (!KVC_PLANTED(16)) asked_.clear();
  calls_.clear();
  const ClusterNode* self = view_.Find(options_.self);
  draining_ = self != nullptr && (self->roles & kRoleDraining) != 0;
  SendReleases(now, actions);
}

void BlockHolder::Receive(Millis now, uint64_t call, const Request& request, Actions* actions) {
  if (const auto* used = std::get_if<UsedRequest>(&request.body); used != nullptr) {
    store_->Used(used->ids);
    return Answer(call, Code::kOk, EmptyReply{}, actions);
  }
  if (const auto* discard = std::get_if<DiscardRequest>(&request.body); discard != nullptr) {
    Discard(discard->id, discard->generation);
    return Answer(call, Code::kOk, EmptyReply{}, actions);
  }
  if ((request.epoch != view_.epoch && !KVC_PLANTED(5)) || view_.epoch == 0) {
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
}

void BlockHolder::Serve(Millis /*now*/, uint64_t call, const MarkRequest& request,
                        Actions* actions) {
  const auto at = copies_.find({request.id, request.generation});
  if (at == copies_.end()) return Answer(call, Code::kNotFound, EmptyReply{}, actions);
  Copy& copy = at->second;
  sealed_.erase({copy.sealed_at, at->first});
  if (request.version < copy.version)
    return Answer(call, Code::kOk, EmptyReply{}, actions);  // late
  copy.version = request.version;
  if (!KVC_PLANTED(23)) store_->Mark(request.id, request.generation, request.version);
  // An older version that is still here is one that its shard has given up.
  for (auto other = copies_.lower_bound({request.id, 0});
       other != copies_.end() && other->first.first == request.id;) {
    const auto next = std::next(other);
    if (other->second.version != 0 && other->second.version < request.version) Erase(other);
    other = next;
  }
  Answer(call, Code::kOk, EmptyReply{}, actions);
}

void BlockHolder::Serve(Millis /*now*/, uint64_t call, const ForgetRequest& request,
                        Actions* actions) {
  auto at = copies_.find({request.id, request.generation});
  if (KVC_PLANTED(28)) {
    at = copies_.lower_bound({request.id, request.generation});
    if (at != copies_.end() && at->first.first != request.id) at = copies_.end();
  }
  if (at != copies_.end()) Erase(at);
  Answer(call, Code::kOk, EmptyReply{}, actions);
}

void BlockHolder::Serve(Millis /*now*/, uint64_t call, const HaveRequest& request,
                        Actions* actions) {
  const bool has = copies_.contains({request.id, request.generation});
  Answer(call, has ? Code::kOk : Code::kNotFound, EmptyReply{}, actions);
}

void BlockHolder::Serve(Millis /*now*/, uint64_t call, const CopyRequest& request,
                        Actions* actions) {
  const BlockFacts& facts = request.facts;
  for (auto at = copies_.lower_bound({facts.id, 0});
       at != copies_.end() && at->first.first == facts.id; ++at) {
    // What is being given up may be granted any time.
    if (releasing_.contains(at->first)) return Answer(call, Code::kBusy, EmptyReply{}, actions);
    if (at->second.facts.crc32c == facts.crc32c && at->second.facts.length == facts.length) {
      return Answer(call, Code::kOk, CopyReply{at->first.second}, actions);
    }
  }
  if (const auto order = orders_.find(facts.id); order != orders_.end()) {
    fetches_[order->second].calls = {call};  // the asker has given up the earlier ones
    fetches_[order->second].epoch = view_.epoch;
    return;
  }
  if (fetches_.size() >= options_.fetches_max) {
    return Answer(call, Code::kBusy, EmptyReply{}, actions);
  }
  const uint64_t order = next_id_++;
  fetches_[order] = {facts, {call}, view_.epoch};
  orders_[facts.id] = order;
  store_->Fetch(order, facts, request.from);
}

void BlockHolder::Fetched(Millis now, uint64_t order, Code code, uint64_t generation,
                          uint32_t length, uint32_t crc32c, Actions* actions) {
  const auto at = fetches_.find(order);
  if (at == fetches_.end()) return;
  const Fetching fetching = std::move(at->second);
  fetches_.erase(at);
  orders_.erase(fetching.facts.id);
  const BlockFacts& facts = fetching.facts;
  if (code == Code::kOk && !KVC_PLANTED(36) && (length != facts.length || crc32c != facts.crc32c)) {
    store_->Free(facts.id, generation);
    code = Code::kCorrupt;
  }
  if (code == Code::kOk) Sealed(now, facts, generation);
  for (const uint64_t call : fetching.calls) {
    if (code == Code::kOk) {
      Answer(call, Code::kOk, CopyReply{generation}, actions);
    } else {
      Answer(call, Code::kUnavailable, EmptyReply{}, actions);
    }
  }
}

void BlockHolder::Serve(Millis /*now*/, uint64_t call, const InventoryRequest& request,
                        Actions* actions) {
  InventoryReply reply;
  reply.done = true;
  for (auto at = copies_.upper_bound({request.after, request.after_generation});
       at != copies_.end(); ++at) {
    const BlockFacts& facts = at->second.facts;
    if (at->second.version == 0 && !KVC_PLANTED(17)) continue;
    if (!request.shards.Has(ShardOf(facts.anchor_id())) && !request.shards.Has(ShardOf(facts.id)) &&
        !(facts.ordinal != 0 && request.shards.Has(ShardOf(facts.parent_anchor_id())))) {
      continue;
    }
    if (reply.entries.size() == options_.inventory_entries) {
      reply.done = false;
      break;
    }
    reply.entries.push_back({facts, at->first.second, at->second.version});
  }
  Answer(call, Code::kOk, std::move(reply), actions);
}

void BlockHolder::Restore(Millis now, const BlockFacts& facts, uint64_t generation,
                          uint64_t version) {
  if (version == 0) return Sealed(now, facts, generation);
  copies_[{facts.id, generation}] = {facts, version, now};
}

void BlockHolder::Sealed(Millis now, const BlockFacts& facts, uint64_t generation) {
  copies_[{facts.id, generation}] = {facts, 0, now};
  sealed_.insert({now, {facts.id, generation}});
}

bool BlockHolder::Discard(const BlockId& id, uint64_t generation) {
  const auto at = copies_.find({id, generation});
  if (at == copies_.end() || (at->second.version != 0 && !KVC_PLANTED(38))) return false;
  Erase(at);
  return true;
}

void BlockHolder::Erase(std::map<CopyKey, Copy>::iterator copy) {
  const CopyKey key = copy->first;
  if (copy->second.version == 0) sealed_.erase({copy->second.sealed_at, key});
  releases_.erase(key);
  releasing_.erase(key);
  drained_.erase(key);
  copies_.erase(copy);
  store_->Free(key.first, key.second);
}

void BlockHolder::WantRelease(Millis /*now*/, const BlockId& id, uint64_t generation) {
  const auto at = copies_.find({id, generation});
  if (at == copies_.end() || at->second.version == 0) return store_->Keep(id, generation);
  releases_.insert({id, generation});
  releasing_.insert({id, generation});
  drained_.erase({id, generation});
}

void BlockHolder::Drain(Millis now) {
  next_drain_ = now + 10 * options_.times.retry;
  size_t asked = 0;
  for (auto at = copies_.upper_bound(drain_cursor_); asked < options_.drain_items; ++at) {
    if (at == copies_.end()) {
      drain_cursor_ = {};
      return;
    }
    drain_cursor_ = at->first;
    if (at->second.version == 0 || releasing_.contains(at->first)) continue;
    releases_.insert(at->first);
    releasing_.insert(at->first);
    drained_.insert(at->first);
    ++asked;
  }
}

void BlockHolder::Lost(Millis /*now*/, const BlockId& id, uint64_t generation) {
  const auto at = copies_.find({id, generation});
  if (at != copies_.end()) Erase(at);  // a reader's Missing, or the next inventory, tells the owner
}

void BlockHolder::SendReleases(Millis now, Actions* actions) {
  std::map<NodeId, std::vector<CopyKey>> by_owner;
  for (auto at = releases_.begin(); at != releases_.end();) {
    const auto copy = copies_.find(*at);
    if (copy == copies_.end()) {
      at = releases_.erase(at);
      continue;
    }
    const NodeId& owner = placement_.OwnerOf(copy->second.facts.anchor_id());
    std::vector<CopyKey>& batch = by_owner[owner];
    if (owner.valid() && batch.size() < options_.release_items) {
      batch.push_back(*at);
      at = releases_.erase(at);
    } else {
      ++at;
    }
  }
  for (auto& [owner, keys] : by_owner) {
    if (keys.empty()) continue;
    ReleaseRequest request{options_.self, {}};
    for (const CopyKey& key : keys) {
      request.items.push_back({key.first, copies_.at(key).facts.anchor, key.second});
    }
    const uint64_t id = next_id_++;
    asked_[id] = std::move(keys);
    calls_[now + options_.times.call].push_back(id);
    actions->calls.push_back({owner, id, {view_.epoch, std::move(request)}});
  }
}

void BlockHolder::ReceiveReply(Millis /*now*/, uint64_t id, const Reply& reply,
                               Actions* /*actions*/) {
  const auto at = asked_.find(id);
  if (at == asked_.end()) return;
  const std::vector<CopyKey> keys = std::move(at->second);
  asked_.erase(at);
  const auto* codes = std::get_if<ReleaseReply>(&reply.body);
  const bool current = reply.epoch == view_.epoch || KVC_PLANTED(16);
  const bool answered =
      reply.code == Code::kOk && current && codes != nullptr && codes->codes.size() == keys.size();
  for (size_t i = 0; i < keys.size(); ++i) {
    const auto copy = copies_.find(keys[i]);
    if (copy == copies_.end()) continue;
    const Code code = answered ? static_cast<Code>(codes->codes[i]) : Code::kTimeout;
    if (code == Code::kOk) {
      Erase(copy);
    } else if (code == Code::kBusy) {
      releasing_.erase(keys[i]);
      if (drained_.erase(keys[i]) == 0) store_->Keep(keys[i].first, keys[i].second);
    } else {
      releases_.insert(keys[i]);  // not answered: a grant may have been lost, so ask on
    }
  }
}

void BlockHolder::Tick(Millis now, Actions* actions) {
  while (!sealed_.empty() && sealed_.begin()->first + options_.times.sealed_life <= now &&
         !KVC_PLANTED(37)) {
    Erase(copies_.find(sealed_.begin()->second));
  }
  while (!calls_.empty() && calls_.begin()->first <= now) {
    for (const uint64_t id : calls_.begin()->second) {
      if (const auto at = asked_.find(id); at != asked_.end()) {
        releases_.insert(at->second.begin(), at->second.end());
        asked_.erase(at);
      }
    }
    calls_.erase(calls_.begin());
  }
  if (draining_ && now >= next_drain_) Drain(now);
  SendReleases(now, actions);
}

Millis BlockHolder::NextTick() const {
  Millis next = Millis::max();
  if (!sealed_.empty()) next = sealed_.begin()->first + options_.times.sealed_life;
  if (!calls_.empty()) next = std::min(next, calls_.begin()->first);
  if (!releases_.empty()) next = std::min(next, Millis(0));
  if (draining_ && !copies_.empty()) next = std::min(next, next_drain_);
  return next;
}

void BlockHolder::Visit(
    const std::function<void(const BlockFacts&, uint64_t, uint64_t)>& visit) const {
  for (const auto& [key, copy] : copies_) visit(copy.facts, key.second, copy.version);
}

}  // namespace kvcfs::meta
