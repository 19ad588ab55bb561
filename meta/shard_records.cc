// The life of a record: pending, visible, doomed, removed; and the tasks that carry it along.
#include <algorithm>

#include "meta/metadata_shard.h"
#include "meta/planted.h"

namespace kvcfs::meta {

MetadataShard::Record& MetadataShard::AddRecord(Shard& shard, const BlockFacts& facts,
                                                uint64_t version, uint64_t attach_id) {
  Record& record = shard.records.Add(facts.id);
  Weigh(shard, {}, facts);
  record.facts = facts;
  record.version = version;
  record.attach_id = attach_id;
  shard.unsettled.insert(facts.id);
  if (const auto loose = shard.loose.find(facts.id); loose != shard.loose.end()) {
    record.children.merge(loose->second);
    shard.loose.erase(loose);
  }
  if (facts.ordinal != 0 && !facts.begins_group()) {
    // The parent is in the same group, so in the same shard.
    const Edge edge{.version = attach_id, .local = true, .asked = Millis(0)};
    if (Record* parent = shard.records.Edit(facts.parent_id()); parent != nullptr) {
      parent->children[facts.id.key] = edge;
      UpdateLeaf(shard, *parent);
    } else {
      shard.loose[facts.parent_id()][facts.id.key] = edge;
    }
  }
  return record;
}

// Either may be none.
void MetadataShard::Weigh(Shard& shard, const BlockFacts& before, const BlockFacts& after) {
  const SpaceId& space = after.length != 0 ? after.id.space : before.id.space;
  uint64_t& bytes = shard.bytes[space];
  bytes = bytes + after.length - before.length;
  if (bytes == 0) shard.bytes.erase(space);
}

void MetadataShard::Advance(Millis now, Shard& shard, Record& record, Actions* actions) {
  if (record.doomed) return AdvanceRemoval(now, shard, record, actions);
  if (record.state != State::kPending || !shard.loaded) return;
  const BlockFacts& facts = record.facts;
  shard.unsettled.insert(facts.id);
  if (!record.attached) {
    if (facts.ordinal == 0 || (facts.begins_group() && KVC_PLANTED(9))) {
      record.attached = true;
    } else if (!facts.begins_group()) {
      Record* parent = shard.records.Edit(facts.parent_id());
      if (parent == nullptr && !shard.waiting.empty()) return;  // may come yet
      if (parent == nullptr && view_.HasAnyAway() && !KVC_PLANTED(44)) {
        shard.unsettled.erase(facts.id);  // likewise; then it, or the next view, calls us
        return;
      }
      if (parent == nullptr || parent->doomed) {
        ++totals_.orphans_total;
        return Doom(now, shard, record, actions);
      }
      if (parent->state != State::kVisible) {
        if (WaitsForAway(shard, *parent)) shard.unsettled.erase(facts.id);
        return;  // it will call us
      }
      record.attached = true;
    } else {
      AskAttach(shard, record);
    }
  }
  if (!record.pointed) AskPoint(shard, record);
  if (!record.attached || !record.pointed) return;
  bool all_marked = true;
  for (const Copy& copy : record.copies) {
    if (copy.marked) continue;
    all_marked = false;
    AskMark(shard, record, copy.place);
  }
  if (record.copies.empty()) return Doom(now, shard, record, actions);
  if (all_marked || KVC_PLANTED(12)) BecomeVisible(now, shard, record, actions);
}

// Who loads the shard of the parent, or of the pointer, just now has maybe asked this copy's holder
// before it had it; the other copies stay until it was told.
void MetadataShard::TellAgain(Shard& shard, const Record& record) {
  const BlockFacts& facts = record.facts;
  if (facts.has_parent_elsewhere()) AskAttach(shard, record);
  AskPoint(shard, record);
}

bool MetadataShard::IsTold(const BlockId& id) const {
  return !tasks_.contains({TaskKind::kAttach, id, {}, {}, 0}) &&
         !tasks_.contains({TaskKind::kPoint, id, {}, {}, 0});
}

void MetadataShard::AskAttach(Shard& shard, const Record& record) {
  const BlockFacts& facts = record.facts;
  Task& task = EnsureTask({TaskKind::kAttach, facts.id, {}, {}, 0}, shard.number);
  task.body = AttachRequest{facts.id, facts.parent, facts.parent_anchor, record.attach_id};
  task.target_anchor = facts.parent_anchor_id();
}

void MetadataShard::AskPoint(Shard& shard, const Record& record) {
  const BlockFacts& facts = record.facts;
  Task& task = EnsureTask({TaskKind::kPoint, facts.id, {}, {}, 0}, shard.number);
  task.body = PointRequest{facts.id, facts.ordinal, facts.anchor, record.attach_id};
  task.target_anchor = facts.id;
}

void MetadataShard::AskMark(Shard& shard, const Record& record, const Place& place) {
  const BlockId id = record.facts.id;
  Task& task = EnsureTask({TaskKind::kMark, id, {}, place.node, place.generation}, shard.number);
  task.body = MarkRequest{id, place.generation, record.version};
  task.target_node = place.node;
}

void MetadataShard::ForgetStray(Shard& shard, const BlockId& id, const Place& place) {
  if (!view_.HasNow(place.node)) return;  // it is asked what it has when it comes back
  Task& task =
      EnsureTask({TaskKind::kForgetStray, id, {}, place.node, place.generation}, shard.number);
  task.body = ForgetRequest{id, place.generation};
  task.target_node = place.node;
}

void MetadataShard::BecomeVisible(Millis now, Shard& shard, Record& record, Actions* actions) {
  record.state = State::kVisible;
  shard.unsettled.erase(record.facts.id);
  UpdateLeaf(shard, record);
  AnswerCommitters(record, actions);
  NoteRepair(shard, record);
  std::vector<BlockKey> children;
  for (const auto& [key, edge] : record.children) {
    if (edge.local) children.push_back(key);
  }
  const SpaceId space = record.facts.id.space;
  for (const BlockKey& key : children) {
    Record* child = shard.records.Edit({space, key});
    if (child != nullptr && child->state == State::kPending) Advance(now, shard, *child, actions);
  }
}

void MetadataShard::AnswerCommitters(Record& record, Actions* actions) {
  uint32_t marked = 0;
  for (const Copy& copy : record.copies) {
    if (!copy.marked && !KVC_PLANTED(12)) return;  // still at it
    if (copy.verified || KVC_PLANTED(12)) ++marked;
  }
  for (const Waiter& waiter : record.committers) {
    CommitReply reply{.kept = 0, .copies = marked};
    for (const Place& place : waiter.places) {
      for (const Copy& copy : record.copies) reply.kept += copy.place == place ? 1 : 0;
    }
    Answer(waiter.call, reply.kept > 0 ? Code::kOk : Code::kExists, reply, actions);
  }
  record.committers.clear();
}

// Marks the block and what extends it; they go from the leaves up.
void MetadataShard::Doom(Millis now, Shard& shard, Record& record, Actions* actions) {
  if (!record.doomed) {
    record.doomed = true;
    shard.unsettled.insert(record.facts.id);
    shard.repairs.erase(record.facts.id);
    shard.hidden.erase(record.facts.id);
    // Who is away is not waited for: what it brings back is looked at then.
    std::erase_if(record.copies, [&](const Copy& copy) { return !view_.HasNow(copy.place.node); });
    UpdateLeaf(shard, record);
    const BlockId id = record.facts.id;
    DropTask({TaskKind::kAttach, id, {}, {}, 0});
    DropTask({TaskKind::kPoint, id, {}, {}, 0});
    DropTasksOf(TaskKind::kMark, id);
    DropTasksOf(TaskKind::kCopy, id);
    DropTasksOf(TaskKind::kHave, id);
    std::vector<BlockKey> local;
    for (const auto& [key, edge] : record.children) {
      if (edge.local) local.push_back(key);
    }
    for (const BlockKey& key : local) {
      if (Record* child = shard.records.Edit({id.space, key}); child != nullptr) {
        Doom(now, shard, *child, actions);
      }
    }
    // The last child may have taken it along.
    Record* still = shard.records.Edit(id);
    if (still != nullptr) AdvanceRemoval(now, shard, *still, actions);
    return;
  }
  AdvanceRemoval(now, shard, record, actions);
}

void MetadataShard::AdvanceRemoval(Millis now, Shard& shard, Record& record, Actions* actions) {
  const BlockId id = record.facts.id;
  if (record.state != State::kRemoving) {
    for (const auto& [key, edge] : record.children) {
      if (edge.local) continue;
      Task& task = EnsureTask({TaskKind::kDoom, id, key, {}, edge.version}, shard.number);
      task.body = DoomRequest{{id.space, key}, edge.version, false};
      task.target_anchor = {id.space, key};
    }
    if (!record.children.empty() && !KVC_PLANTED(15)) return;
    if (now < shard.gained + options_.times.settle && !KVC_PLANTED(31)) return;
    bool granted = false;
    for (const auto& [node, until] : record.grants) {
      if (until <= now) continue;
      granted = true;
      Task& task = EnsureTask({TaskKind::kRevoke, id, {}, node, 0}, shard.number);
      task.body = RevokeRequest{id};
      task.target_node = node;
    }
    if (granted && !KVC_PLANTED(22)) return;
    DropTasksOf(TaskKind::kRevoke, id);
    record.state = State::kRemoving;
  }
  for (const Copy& copy : record.copies) {
    Task& task = EnsureTask({TaskKind::kForget, id, {}, copy.place.node, copy.place.generation},
                            shard.number);
    task.body = ForgetRequest{id, copy.place.generation};
    task.target_node = copy.place.node;
  }
  if (record.copies.empty()) Erase(now, shard, id, actions);
}

void MetadataShard::Erase(Millis now, Shard& shard, const BlockId& id, Actions* actions) {
  Record record = shard.records.Take(id);
  Weigh(shard, record.facts, {});
  // An inventory may have named children after the removal began; and it may yet name the block.
  if (!record.children.empty()) shard.loose[id].merge(record.children);
  shard.leaves.erase(id);
  shard.unsettled.erase(id);
  shard.repairs.erase(id);
  shard.hidden.erase(id);
  leases_.Drop(BlockIdHash()(id));
  for (const uint64_t call : record.droppers) Answer(call, Code::kOk, EmptyReply{}, actions);
  for (const Waiter& waiter : record.committers) {
    Answer(waiter.call, Code::kNotFound, EmptyReply{}, actions);
  }
  for (const TaskKind kind :
       {TaskKind::kAttach, TaskKind::kPoint, TaskKind::kMark, TaskKind::kForget, TaskKind::kDoom,
        TaskKind::kRevoke, TaskKind::kCopy, TaskKind::kHave}) {
    DropTasksOf(kind, id);
  }
  const BlockFacts& facts = record.facts;
  Task& unpoint = EnsureTask({TaskKind::kUnpoint, id, {}, {}, record.attach_id}, shard.number);
  unpoint.body = UnpointRequest{id, record.attach_id};
  unpoint.target_anchor = id;
  if (facts.has_parent_elsewhere()) {
    Task& detach = EnsureTask({TaskKind::kDetach, id, {}, {}, record.attach_id}, shard.number);
    detach.body = DetachRequest{id, facts.parent, facts.parent_anchor, record.attach_id};
    detach.target_anchor = facts.parent_anchor_id();
  } else if (facts.ordinal != 0) {
    EraseEdge(now, shard, facts.parent_id(), id.key, record.attach_id, actions);
  }
}

void MetadataShard::EraseEdge(Millis now, Shard& shard, const BlockId& parent,
                              const BlockKey& child, uint64_t version, Actions* actions) {
  if (const auto loose = shard.loose.find(parent); loose != shard.loose.end()) {
    const auto edge = loose->second.find(child);
    if (edge != loose->second.end() && edge->second.version <= version) loose->second.erase(edge);
    if (loose->second.empty()) shard.loose.erase(loose);
  }
  Record* record = shard.records.Edit(parent);
  if (record == nullptr) return;
  const auto edge = record->children.find(child);
  if (edge == record->children.end() || (edge->second.version > version && !KVC_PLANTED(11))) {
    return;
  }
  DropTask({TaskKind::kDoom, parent, child, {}, edge->second.version});
  record->children.erase(edge);
  UpdateLeaf(shard, *record);
  if (record->doomed) AdvanceRemoval(now, shard, *record, actions);
}

void MetadataShard::RemoveCopy(Millis now, Shard& shard, Record& record, const Place& place,
                               Actions* actions) {
  std::erase_if(record.copies, [&](const Copy& copy) { return copy.place == place; });
  const BlockId id = record.facts.id;
  DropTask({TaskKind::kMark, id, {}, place.node, place.generation});
  DropTask({TaskKind::kForget, id, {}, place.node, place.generation});
  if (record.copies.empty()) {
    if (!record.doomed) ++totals_.lost_total;
    return Doom(now, shard, record, actions);
  }
  if (record.doomed) return AdvanceRemoval(now, shard, record, actions);
  if (record.state == State::kPending) return Advance(now, shard, record, actions);
  AnswerCommitters(record, actions);
  NoteRepair(shard, record);
}

void MetadataShard::UpdateLeaf(Shard& shard, const Record& record) {
  if (record.state == State::kVisible && !record.doomed && record.children.empty()) {
    shard.leaves.insert(record.facts.id);
  } else {
    shard.leaves.erase(record.facts.id);
  }
}

size_t MetadataShard::GoodCopies(const Record& record) {
  return static_cast<size_t>(
      std::count_if(record.copies.begin(), record.copies.end(),
                    [](const Copy& copy) { return copy.marked && copy.verified; }));
}

bool MetadataShard::IsEvictable(Millis now, const Shard& shard, const Record& record) const {
  if (!record.children.empty() && !KVC_PLANTED(1)) return false;
  for (const auto& [child, until] : record.pins) {
    if (until > now) return false;
  }
  return !IsPromised(now, shard, record);
}

// Somebody may have been told where it is, and rely on it.
bool MetadataShard::IsPromised(Millis now, const Shard& shard, const Record& record) const {
  const Millis unknown_leases = shard.gained + options_.times.lease + options_.times.lease_hold;
  if (now < unknown_leases && !KVC_PLANTED(8)) return true;
  for (const auto& [node, until] : record.grants) {
    if (until > now && !KVC_PLANTED(22)) return true;
  }
  return leases_.IsLeased(BlockIdHash()(record.facts.id), now) && !KVC_PLANTED(2);
}

MetadataShard::Task& MetadataShard::EnsureTask(const TaskKey& key, uint32_t shard) {
  const auto [at, added] = tasks_.try_emplace(key);
  Task& task = at->second;
  if (added) {
    task.id = next_id_++;
    task.shard = shard;
    keys_.emplace(task.id, key);
    due_.emplace(task.due, task.id);
  }
  return task;
}

void MetadataShard::DropTask(const TaskKey& key) {
  const auto at = tasks_.find(key);
  if (at == tasks_.end()) return;
  if (std::get<0>(key) == TaskKind::kCopy && std::get<4>(key) == kRepair) --repairs_running_;
  due_.erase({at->second.due, at->second.id});
  keys_.erase(at->second.id);
  tasks_.erase(at);
}

void MetadataShard::DropTasksOf(TaskKind kind, const BlockId& id) {
  for (;;) {
    const auto at = tasks_.lower_bound(TaskKey{kind, id, {}, {}, 0});
    if (at == tasks_.end() || std::get<0>(at->first) != kind || std::get<1>(at->first) != id) {
      return;
    }
    DropTask(TaskKey(at->first));
  }
}

void MetadataShard::SendDue(Millis now, Actions* actions, size_t most) {
  size_t sends = 0;
  most = std::min(most, options_.sends_per_tick);
  while (!due_.empty() && due_.begin()->first <= now && sends < most) {
    const uint64_t id = due_.begin()->second;
    due_.erase(due_.begin());
    Task& task = tasks_.at(keys_.at(id));
    const bool again = task.first_sent >= Millis(0);
    if (!again) task.first_sent = now;
    task.due = now + (again ? 2 : 1) * options_.times.retry;
    due_.emplace(task.due, id);
    const NodeId to =
        task.target_node.valid() ? task.target_node : placement_.OwnerOf(task.target_anchor);
    if (!to.valid()) continue;
    ++sends;
    actions->calls.push_back({to, id, {view_.epoch, task.body}});
  }
}

void MetadataShard::ReceiveReply(Millis now, uint64_t id, const Reply& reply, Actions* actions) {
  const uint64_t before = next_id_;
  TakeReply(now, id, reply, actions);
  // What it led to is not left to the next tick; no more, so that what waits does not go out at
  // once.
  SendDue(now, actions, next_id_ - before);
}

void MetadataShard::TakeReply(Millis now, uint64_t id, const Reply& reply, Actions* actions) {
  const auto at = keys_.find(id);
  if (at == keys_.end()) return;
  const TaskKey key = at->second;
  const Task task = tasks_.at(key);
  const TaskKind kind = std::get<0>(key);
  // What was answered under another view may not be true in this one.
  const bool current = reply.epoch == view_.epoch || (KVC_PLANTED(4) && reply.epoch != 0);
  const bool settled = current && (reply.code == Code::kOk || reply.code == Code::kNotFound);
  if (kind == TaskKind::kGrant) {
    return FinishGrant(now, key, task, settled ? reply : Reply{Code::kUnavailable, 0, {}}, actions);
  }
  if (!settled || !(options_.may_serve(now) || KVC_PLANTED(6))) {
    if (kind == TaskKind::kCopy && current) DropTask(key);  // another holder is tried
    return;                                                 // said again when it is due
  }
  if (Shard* shard = task.shard < kShardCount ? shards_[task.shard].get() : nullptr;
      shard != nullptr && shard->waiting.contains(std::get<3>(key)) && !KVC_PLANTED(40) &&
      (reply.code == Code::kNotFound || kind == TaskKind::kForget ||
       kind == TaskKind::kForgetStray)) {
    return;  // an inventory that is under way may still have it; so it is asked again after that
  }
  if (kind == TaskKind::kAttach && reply.code == Code::kNotFound && view_.HasAnyAway() &&
      !KVC_PLANTED(44)) {
    Shard* shard = shards_[task.shard].get();
    const Record* record = shard == nullptr ? nullptr : shard->records.Find(std::get<1>(key));
    const bool is_published =
        record != nullptr && std::any_of(record->copies.begin(), record->copies.end(),
                                         [](const Copy& copy) { return copy.marked; });
    if (is_published) {
      // Its parent may be with one that is away.
      shard->unsettled.erase(record->facts.id);
      return Postpone(now, tasks_.at(key));
    }
  }
  if (kind == TaskKind::kInventory) {
    DropTask(key);
    if (const auto* page = std::get_if<InventoryReply>(&reply.body); page != nullptr) {
      ReceiveInventory(now, std::get<3>(key), *page, actions);
    }
  } else if (kind >= TaskKind::kDetach) {
    DropTask(key);
    if (kind == TaskKind::kDoomStray && reply.code == Code::kNotFound &&
        shards_[task.shard] != nullptr) {
      const auto& doom = std::get<DoomRequest>(task.body);
      EraseEdge(now, *shards_[task.shard], std::get<1>(key), std::get<2>(key), doom.version,
                actions);
    }
  } else if (shards_[task.shard] != nullptr) {
    FinishOfRecord(now, key, task, reply, actions);
  }
}

void MetadataShard::Postpone(Millis now, Task& task) {
  due_.erase({task.due, task.id});
  task.due = now + options_.times.retry * (int64_t{1} << std::min<uint32_t>(task.postponed++, 6));
  due_.emplace(task.due, task.id);
}

void MetadataShard::FinishGrant(Millis now, const TaskKey& key, const Task& task,
                                const Reply& reply, Actions* actions) {
  const BlockId id = std::get<1>(key);
  DropTask(key);
  if (const auto* grant = std::get_if<GrantReply>(&reply.body);
      grant != nullptr && reply.code == Code::kOk) {
    // Counted from when it was first asked for: the owner counts from later.
    first_copies_[id] = {grant->block, grant->leased, task.first_sent + options_.times.grant};
  }
  const auto at = waiting_matches_.find(id);
  if (at == waiting_matches_.end()) return;
  const std::vector<WaitingMatch> waiting = std::move(at->second);
  waiting_matches_.erase(at);
  if (!options_.may_serve(now)) {
    for (const WaitingMatch& match : waiting) {
      Answer(match.call, Code::kStale, EmptyReply{}, actions);
    }
    return;
  }
  for (const WaitingMatch& match : waiting) {
    AnswerMatch(now, match.call, match.request,
                reply.code == Code::kNotFound ? Code::kNotFound : Code::kUnavailable, false,
                actions);
  }
}

// kOk or kNotFound under the present view, for a task of a record of ours.
void MetadataShard::FinishOfRecord(Millis now, const TaskKey& key, const Task& task,
                                   const Reply& reply, Actions* actions) {
  const auto& [kind, id, other, node, generation] = key;
  const bool gone = reply.code == Code::kNotFound;
  Shard& shard = *shards_[task.shard];
  Record* record = shard.records.Edit(id);
  const auto* doom = std::get_if<DoomRequest>(&task.body);
  if (record == nullptr || !(kind == TaskKind::kDoom && !gone && !doom->only_ask)) DropTask(key);
  if (record == nullptr) return;
  const Place place{node, generation};
  switch (kind) {
    case TaskKind::kAttach:
      if (gone && !KVC_PLANTED(29)) {
        ++totals_.orphans_total;
        return Doom(now, shard, *record, actions);
      }
      record->attached = true;
      return Advance(now, shard, *record, actions);
    case TaskKind::kPoint:
      record->pointed = true;
      return Advance(now, shard, *record, actions);
    case TaskKind::kMark:
      if (gone) return RemoveCopy(now, shard, *record, place, actions);
      for (Copy& copy : record->copies) {
        if (copy.place == place) copy.marked = copy.verified = true;
      }
      if (record->state == State::kPending) return Advance(now, shard, *record, actions);
      if (!record->doomed) TellAgain(shard, *record);
      NoteVerified(shard, *record);
      return AnswerCommitters(*record, actions);
    case TaskKind::kForget:
      return RemoveCopy(now, shard, *record, place, actions);
    case TaskKind::kDoom:
      if (gone) EraseEdge(now, shard, id, other, doom->version, actions);
      return;
    case TaskKind::kRevoke:
      record->grants.erase(node);
      return Advance(now, shard, *record, actions);
    case TaskKind::kHave:
      if (gone) RemoveCopy(now, shard, *record, place, actions);
      return;
    case TaskKind::kCopy: {
      const auto* copied = std::get_if<CopyReply>(&reply.body);
      if (copied == nullptr || record->doomed) return;
      const Place made{node, copied->generation};
      const bool there =
          std::any_of(record->copies.begin(), record->copies.end(),
                      [&made](const Copy& copy) { return copy.place.node == made.node; });
      if (there || IsForgotten(id, made)) return;
      record->copies.push_back({made, false, false});
      if (const auto move = moves_.find(id); generation == kMove && move != moves_.end()) {
        move->second.made = true;
      } else {
        ++totals_.repaired_total;
      }
      AskMark(shard, *record, made);
      return;
    }
    default:
      return;
  }
}

}  // namespace kvcfs::meta
