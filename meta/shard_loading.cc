// Changes of the view: which shards come and go, the holders' inventories, repair.
#include <algorithm>

#include "meta/metadata_shard.h"
#include "meta/planted.h"

namespace kvcfs::meta {
namespace {

bool HoldsBlocks(const ClusterNode& node) {
  return (node.roles & kRoleBlocks) != 0;
}

}  // namespace

void MetadataShard::SetView(Millis now, const ClusterView& view, Actions* actions) {
  if (view.epoch <= view_.epoch) return;
  const ClusterView before = std::move(view_);
  const Placement placed_before = placement_;
  const bool in = view.Has(options_.self, options_.incarnation);
  // Views that we did not see may have had other owners.
  const bool continuous = (view.epoch == before.epoch + 1 || KVC_PLANTED(14)) && in &&
                          before.Has(options_.self, options_.incarnation);
  view_ = view;
  placement_ = Placement(view);
  version_counter_ = 0;
  if (options_.table != nullptr) options_.table->Begin(view_, options_.incarnation);
  for (const auto& [id, waiting] : waiting_matches_) {
    for (const WaitingMatch& match : waiting) {
      Answer(match.call, Code::kStale, EmptyReply{}, actions);
    }
  }
  waiting_matches_.clear();
  if (!KVC_PLANTED(24)) first_copies_.clear();
  std::vector<uint32_t> kept;
  for (uint32_t number = 0; number < kShardCount; ++number) {
    std::unique_ptr<Shard>& shard = shards_[number];
    if (shard != nullptr) AnswerWaiting(*shard, actions);
    const bool owned = in && placement_.OwnerOf(number) == options_.self;
    if (owned && shard != nullptr && continuous && shard->loaded) {
      kept.push_back(number);
      continue;
    }
    if (shard != nullptr) {
      for (const auto& [id, record] : shard->records.all()) leases_.Drop(BlockIdHash()(id));
    }
    shard.reset();
    if (!owned) continue;
    shard = std::make_unique<Shard>();
    shard->number = number;
    shard->gained = now;
    shard->records.answers().ShowIn(options_.table);
  }
  std::array<bool, kShardCount> is_kept{};
  for (const uint32_t number : kept) is_kept[number] = true;
  for (auto at = tasks_.begin(); at != tasks_.end();) {
    const auto next = std::next(at);
    const auto& [key, task] = *at;
    const bool lost = task.target_node.valid() && !view_.HasNow(task.target_node);
    if (task.shard >= kShardCount || !is_kept[task.shard] || lost) DropTask(TaskKey(key));
    at = next;
  }
  std::erase_if(moves_, [&](const auto& move) { return !is_kept[move.second.shard]; });
  RestartTasks();
  StartStreams(before);
  balance_ = Balance();
  balance_.on = true;
  for (const uint32_t number : kept) ForgetNodes(now, *shards_[number], before, actions);
  for (const uint32_t number : kept) {
    RestartRecords(now, *shards_[number], placed_before, actions);
  }
  // What waited for who was away waits no longer.
  const bool waits_end = before.HasAnyAway() && !view_.HasAnyAway();
  for (uint32_t number = 0; number < kShardCount; ++number) {
    if (shards_[number] != nullptr && (!shards_[number]->loaded || waits_end) &&
        (shards_[number]->waiting.empty() || KVC_PLANTED(7))) {
      FinishShard(now, *shards_[number], actions);
    }
  }
  SendDue(now, actions);
}

void MetadataShard::AnswerWaiting(Shard& shard, Actions* actions) {
  std::vector<uint64_t> calls;
  for (auto& [id, record] : shard.records.EditAll()) {
    for (const Waiter& waiter : record.committers) calls.push_back(waiter.call);
    calls.insert(calls.end(), record.droppers.begin(), record.droppers.end());
    record.committers.clear();
    record.droppers.clear();
  }
  std::sort(calls.begin(), calls.end());
  for (const uint64_t call : calls) Answer(call, Code::kStale, EmptyReply{}, actions);
}

// What is kept is said anew, now and under the new epoch, as new tasks: late answers miss them.
void MetadataShard::RestartTasks() {
  due_.clear();
  keys_.clear();
  for (auto& [key, task] : tasks_) {
    if (!KVC_PLANTED(4)) task.id = next_id_++;
    task.due = Millis(0);
    task.first_sent = Millis(-1);
    task.postponed = 0;
    keys_.emplace(task.id, key);
    due_.emplace(task.due, task.id);
  }
}

// Copies on nodes that left go; those on nodes that began anew are doubted until they are listed.
void MetadataShard::ForgetNodes(Millis now, Shard& shard, const ClusterView& before,
                                Actions* actions) {
  std::vector<std::pair<BlockId, Place>> lost;
  for (auto& [id, record] : shard.records.EditAll()) {
    std::erase_if(record.grants, [&](const auto& grant) { return !view_.HasNow(grant.first); });
    for (Copy& copy : record.copies) {
      const ClusterNode* node = view_.Find(copy.place.node);
      if (node == nullptr || !HoldsBlocks(*node)) {
        lost.emplace_back(id, copy.place);
      } else if (!before.Has(node->id, node->incarnation) && !KVC_PLANTED(26)) {
        copy.verified = false;
      }
    }
  }
  std::sort(lost.begin(), lost.end());
  for (const auto& [id, place] : lost) {
    Record* record = shard.records.Edit(id);
    if (record == nullptr) continue;
    if (!KeepsAwayCopy(*record, place)) {
      RemoveCopy(now, shard, *record, place, actions);
      continue;
    }
    for (Copy& copy : record->copies) {
      if (copy.place == place && !KVC_PLANTED(45)) copy.verified = false;
    }
    NoteRepair(shard, *record);
  }
  for (const ClusterNode& node : before.nodes) {
    const ClusterNode* still = view_.Find(node.id);
    if (still == nullptr || !HoldsBlocks(*still)) {
      const bool was_waiting = shard.waiting.erase(node.id) != 0;
      if (was_waiting && shard.waiting.empty()) FinishShard(now, shard, actions);
    }
  }
}

bool MetadataShard::KeepsAwayCopy(const Record& record, const Place& place) const {
  const ClusterNode* node = view_.Find(place.node);
  if (node == nullptr || !IsAway(*node) || record.doomed || record.state == State::kRemoving ||
      KVC_PLANTED(43)) {
    return false;
  }
  bool marked = false, others = false;
  for (const Copy& copy : record.copies) {
    marked = marked || (copy.place == place && copy.marked);
    others = others || view_.HasNow(copy.place.node);
  }
  return marked && !others;
}

bool MetadataShard::IsHidden(const Record& record) const {
  return record.state == State::kVisible && !record.doomed &&
         std::none_of(record.copies.begin(), record.copies.end(),
                      [&](const Copy& copy) { return view_.HasNow(copy.place.node); });
}

bool MetadataShard::WaitsForAway(const Shard& shard, const Record& record) const {
  return shard.loaded && view_.HasAnyAway() && record.state == State::kPending && !record.doomed &&
         !shard.unsettled.contains(record.facts.id);
}

// Where there are good copies, those of who is away are not waited for: they come by inventory.
void MetadataShard::NoteVerified(Shard& shard, Record& record) {
  if (GoodCopies(record) == 0) return;
  std::erase_if(record.copies, [&](const Copy& copy) { return !view_.HasNow(copy.place.node); });
  NoteRepair(shard, record);
}

void MetadataShard::RestartRecords(Millis now, Shard& shard, const Placement& before,
                                   Actions* actions) {
  std::vector<std::pair<uint32_t, BlockId>> ids;
  for (const auto& [id, record] : shard.records.all()) ids.emplace_back(record.facts.ordinal, id);
  std::sort(ids.begin(), ids.end());
  for (const auto& [ordinal, id] : ids) {
    Record* record = shard.records.Edit(id);
    if (record == nullptr) continue;
    if (record->state == State::kPending && !record->doomed && !KVC_PLANTED(21)) {
      // What parent and pointer promised, they promised under the old view.
      record->attached = false;
      record->pointed = false;
      DropTasksOf(TaskKind::kMark, id);
    } else if (record->state == State::kVisible && !record->doomed &&
               record->facts.has_parent_elsewhere()) {
      const uint32_t parent_shard = ShardOf(record->facts.parent_anchor_id());
      if (before.OwnerOf(parent_shard) != placement_.OwnerOf(parent_shard) ||
          before.IncarnationOf(parent_shard) != placement_.IncarnationOf(parent_shard)) {
        AskAttach(shard, *record);
      }
    }
    NoteRepair(shard, *record);
    Advance(now, shard, *record, actions);
  }
}

// Every holder is asked for the shards that are loading; one that is new or began anew, or had not
// told everything, also for the others.
void MetadataShard::StartStreams(const ClusterView& before) {
  const std::map<NodeId, Stream> unfinished = std::move(streams_);
  streams_.clear();
  for (const ClusterNode& node : view_.nodes) {
    if (!HoldsBlocks(node)) continue;
    const ClusterNode* known = before.Find(node.id);
    const bool anew =
        known == nullptr || known->incarnation != node.incarnation || !HoldsBlocks(*known);
    const auto old = unfinished.find(node.id);
    Stream stream;
    for (uint32_t number = 0; number < kShardCount; ++number) {
      Shard* shard = shards_[number].get();
      if (shard == nullptr) continue;
      if (!shard->loaded || anew || (old != unfinished.end() && old->second.shards.Has(number))) {
        stream.shards.Add(number);
        shard->waiting.insert(node.id);
      }
    }
    if (stream.shards.Empty()) continue;
    streams_[node.id] = stream;
    AskInventory(node.id, stream);
  }
}

void MetadataShard::AskInventory(const NodeId& node, const Stream& stream) {
  Task& task = EnsureTask({TaskKind::kInventory, {}, {}, node, 0}, kShardCount);
  task.body = InventoryRequest{stream.shards, stream.after, stream.after_generation};
  task.target_node = node;
}

void MetadataShard::ReceiveInventory(Millis now, const NodeId& node, const InventoryReply& reply,
                                     Actions* actions) {
  const auto at = streams_.find(node);
  if (at == streams_.end()) return;
  Stream& stream = at->second;
  for (const InventoryEntry& entry : reply.entries) {
    Merge(now, node, stream.shards, entry, actions);
    stream.after = entry.facts.id;
    stream.after_generation = entry.generation;
  }
  if (reply.done || reply.entries.empty()) {
    FinishStream(now, node, actions);
  } else {
    AskInventory(node, stream);
  }
  SendDue(now, actions);
}

void MetadataShard::Merge(Millis now, const NodeId& node, const ShardSet& shards,
                          const InventoryEntry& entry, Actions* actions) {
  const BlockFacts& facts = entry.facts;
  const uint32_t home = ShardOf(facts.anchor_id());
  if (shards.Has(home) && shards_[home] != nullptr) {
    MergeRecord(now, *shards_[home], {node, entry.generation}, entry, actions);
  }
  if (facts.has_parent_elsewhere()) {
    const uint32_t above = ShardOf(facts.parent_anchor_id());
    if (shards.Has(above) && shards_[above] != nullptr) {
      Shard& shard = *shards_[above];
      Record* parent = shard.records.Edit(facts.parent_id());
      Edge& edge = parent != nullptr ? parent->children[facts.id.key]
                                     : shard.loose[facts.parent_id()][facts.id.key];
      edge.version = std::max(edge.version, entry.version);
      if (parent != nullptr) UpdateLeaf(shard, *parent);
    }
  }
  const uint32_t by_key = ShardOf(facts.id);
  if (shards.Has(by_key) && shards_[by_key] != nullptr && !KVC_PLANTED(42)) {
    Pointer& pointer = shards_[by_key]->pointers[facts.id];
    if (entry.version >= pointer.version) {
      pointer = {facts.ordinal, facts.anchor, entry.version};
    }
  }
}

void MetadataShard::MergeRecord(Millis now, Shard& shard, const Place& place,
                                const InventoryEntry& entry, Actions* actions) {
  const BlockId id = entry.facts.id;
  if (IsForgotten(id, place)) return;
  const auto forget = [&](const Place& stray) { ForgetStray(shard, id, stray); };
  Record* record = shard.records.Edit(id);
  if (record != nullptr) {
    for (Copy& copy : record->copies) {
      if (copy.place != place) continue;
      copy.marked = copy.verified = true;
      return NoteVerified(shard, *record);
    }
    if (entry.version < record->version) {
      const bool ours = record->state != State::kPending || record->doomed ||
                        std::any_of(record->copies.begin(), record->copies.end(),
                                    [](const Copy& copy) { return copy.marked; });
      if (ours || KVC_PLANTED(46)) return forget(place);
      // Nothing of ours is known to be published, and who was away is back in time with its own.
      DropTasksOf(TaskKind::kMark, id);
      for (const Copy& copy : std::exchange(record->copies, {})) forget(copy.place);
      Weigh(shard, record->facts, entry.facts);
      record->version = entry.version;
      record->facts = entry.facts;
      record->copies.push_back({place, true, true});
      AnswerCommitters(*record, actions);
      return Advance(now, shard, *record, actions);
    }
    for (const Copy& copy : record->copies) {
      if (copy.place.node == place.node && copy.verified && entry.version == record->version) {
        return forget(place);  // twice at one node
      }
    }
    if (entry.version > record->version && !record->doomed) {
      // Ours is an older version, which came back while the shard had another owner.
      for (const Copy& copy : record->copies) forget(copy.place);
      DropTasksOf(TaskKind::kMark, id);
      record->copies.clear();
      record->version = entry.version;
      Weigh(shard, record->facts, entry.facts);
      record->facts = entry.facts;
      record->attach_id = NextVersion();
      record->state = State::kPending;
      record->attached = false;
      record->pointed = false;
      shard.unsettled.insert(id);
      UpdateLeaf(shard, *record);
    }
    record->copies.push_back({place, true, true});
    if (record->doomed) return AdvanceRemoval(now, shard, *record, actions);
    return NoteVerified(shard, *record);
  }
  Record& added = AddRecord(shard, entry.facts, entry.version, NextVersion());
  added.pointed = !shard.loaded;  // its shard asks for inventories as ours does
  added.copies.push_back({place, true, true});
}

void MetadataShard::FinishStream(Millis now, const NodeId& node, Actions* actions) {
  const ShardSet shards = streams_[node].shards;
  streams_.erase(node);
  for (uint32_t number = 0; number < kShardCount; ++number) {
    if (!shards.Has(number) || shards_[number] == nullptr) continue;
    Shard& shard = *shards_[number];
    // What it had before it began anew and does not list, it has not any more.
    std::vector<std::pair<BlockId, Place>> lost;
    for (const auto& [id, record] : shard.records.all()) {
      for (const Copy& copy : record.copies) {
        if (copy.place.node == node && copy.marked && !copy.verified) {
          lost.emplace_back(id, copy.place);
        }
      }
    }
    std::sort(lost.begin(), lost.end());
    for (const auto& [id, place] : lost) {
      if (Record* record = shard.records.Edit(id); record != nullptr) {
        RemoveCopy(now, shard, *record, place, actions);
      }
    }
    shard.waiting.erase(node);
    if (shard.waiting.empty()) FinishShard(now, shard, actions);
  }
}

// All inventories are there: from now on what is not found is not there.
void MetadataShard::FinishShard(Millis now, Shard& shard, Actions* actions) {
  shard.loaded = true;
  // Who has the record of a child may not know that we loaded anew, and so not ask for its parent.
  for (const auto& [parent, children] : shard.loose) {
    if (view_.HasAnyAway() && !KVC_PLANTED(44)) break;  // they may wait for who comes back
    for (const auto& [key, edge] : children) {
      if (edge.local || KVC_PLANTED(29)) continue;
      Task& task = EnsureTask({TaskKind::kDoomStray, parent, key, {}, edge.version}, shard.number);
      task.body = DoomRequest{{parent.space, key}, edge.version, false};
      task.target_anchor = {parent.space, key};
    }
  }
  std::vector<std::pair<uint32_t, BlockId>> ids;
  for (const BlockId& id : shard.unsettled) {
    ids.emplace_back(shard.records.Find(id)->facts.ordinal, id);
  }
  std::sort(ids.begin(), ids.end());
  for (const auto& [ordinal, id] : ids) {
    if (Record* record = shard.records.Edit(id); record != nullptr) {
      Advance(now, shard, *record, actions);
    }
  }
}

size_t MetadataShard::WantedCopies(const Record& record) const {
  const auto holders = std::count_if(view_.nodes.begin(), view_.nodes.end(), TakesBlocks);
  return std::min<size_t>(record.facts.replicas, static_cast<size_t>(holders));
}

size_t MetadataShard::StayingCopies(const Record& record) const {
  return static_cast<size_t>(
      std::count_if(record.copies.begin(), record.copies.end(), [&](const Copy& copy) {
        const ClusterNode* node = view_.Find(copy.place.node);
        return ((copy.marked && copy.verified) || KVC_PLANTED(3)) && node != nullptr &&
               (TakesBlocks(*node) || KVC_PLANTED(33));
      }));
}

void MetadataShard::NoteRepair(Shard& shard, const Record& record) {
  if (record.state != State::kVisible || record.doomed) return;
  const BlockId& id = record.facts.id;
  if (IsHidden(record)) {
    shard.repairs.erase(id);
    shard.hidden.insert(id);
    return;
  }
  shard.hidden.erase(id);
  if (KVC_PLANTED(25)) return;
  size_t staying = 0;
  for (const Copy& copy : record.copies) {
    const ClusterNode* node = view_.Find(copy.place.node);
    if (node != nullptr && (TakesBlocks(*node) || KVC_PLANTED(33))) ++staying;
  }
  if (staying < WantedCopies(record)) {
    shard.repairs.insert(id);
  } else {
    shard.repairs.erase(id);
  }
}

void MetadataShard::StartRepairs(Millis now, Actions* /*actions*/) {
  for (const auto& owned : shards_) {
    if (owned == nullptr || !owned->waiting.empty() || owned->repairs.empty()) continue;
    Shard& shard = *owned;
    const std::vector<BlockId> ids(shard.repairs.begin(), shard.repairs.end());
    for (const BlockId& id : ids) {
      if (repairs_running_ >= options_.repairs_max) return;
      Record* record = shard.records.Edit(id);
      if (record == nullptr) {
        shard.repairs.erase(id);
        continue;
      }
      NoteRepair(shard, *record);
      if (!shard.repairs.contains(id)) continue;
      const auto running = tasks_.lower_bound(TaskKey{TaskKind::kCopy, id, {}, {}, 0});
      if (running != tasks_.end() && std::get<0>(running->first) == TaskKind::kCopy &&
          std::get<1>(running->first) == id) {
        continue;
      }
      std::vector<Place> sources;
      for (const Copy& copy : record->copies) {
        if (copy.marked && copy.verified) sources.push_back(copy.place);
      }
      const auto targets = HoldersFor(view_, id, 4, [&](const NodeId& node) {
        return std::any_of(record->copies.begin(), record->copies.end(),
                           [&](const Copy& copy) { return copy.place.node == node; });
      });
      if (sources.empty() || targets.empty()) continue;
      // Another pair each time, for where one cannot.
      const auto turn = static_cast<size_t>(now / options_.times.call);
      const NodeId target = targets[turn % std::min<size_t>(targets.size(), 2)];
      ++repairs_running_;
      Task& task = EnsureTask({TaskKind::kCopy, id, {}, target, 0}, shard.number);
      task.body = CopyRequest{record->facts, sources[turn % sources.size()]};
      task.target_node = target;
    }
  }
}

void MetadataShard::Tick(Millis now, Actions* actions) {
  if (!(options_.may_serve(now) || KVC_PLANTED(6))) {
    if (options_.table != nullptr) options_.table->Clear();
    next_scan_ = now + options_.times.retry;
    return;
  }
  if (now >= next_scan_) {
    next_scan_ = now + options_.times.retry;
    leases_.Expire(now);
    for (const auto& owned : shards_) {
      if (owned == nullptr || !owned->loaded) continue;
      const std::vector<BlockId> ids(owned->unsettled.begin(), owned->unsettled.end());
      for (const BlockId& id : ids) {
        if (Record* record = owned->records.Edit(id); record != nullptr) {
          Advance(now, *owned, *record, actions);
        }
      }
    }
    StartRepairs(now, actions);
    RunBalance(now, actions);
    std::erase_if(first_copies_, [&](const auto& copy) { return copy.second.until <= now; });
  }
  SendDue(now, actions);
}

Millis MetadataShard::NextTick() const {
  Millis next = Millis::max();
  if (!due_.empty()) next = due_.begin()->first;
  for (const auto& shard : shards_) {
    if (shard != nullptr && (!shard->unsettled.empty() || !shard->repairs.empty())) {
      next = std::min(next, next_scan_);
      break;
    }
  }
  // What is shown must go when the right to serve ends.
  const bool shows = options_.table != nullptr && options_.table->used() != 0;
  if (balance_.on || !moves_.empty() || shows) next = std::min(next, next_scan_);
  return std::max(next, next == Millis::max() ? next : Millis(0));
}

}  // namespace kvcfs::meta
