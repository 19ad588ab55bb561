// Copies move to holders that have much less than others: to those that joined.
//
// After each change of the view an owner weighs what each holder has in its shards (blocks are
// spread over shards by hash, so that is a sample of the whole), against the holder's capacity.
// Where one has much less than the mean, blocks that rendezvous would place there (placement.h) are
// copied to it, from the fullest of the holders where rendezvous would not, until it has nearly the
// mean. So what moves is what a new holder would have been given, and nothing moves back. A copy is
// made and marked first; only then the old one goes, and not while somebody may have been told of
// it.
#include <algorithm>
#include <utility>

#include "meta/metadata_shard.h"
#include "meta/planted.h"

namespace kvcfs::meta {
namespace {

// Less than this part of the mean is worth a beginning; then it goes on to that.
constexpr double kLittle = 0.75, kEnough = 0.9;

double WeightOf(const ClusterView& view, const ClusterNode& node) {
  const bool known = std::all_of(view.nodes.begin(), view.nodes.end(), [](const ClusterNode& each) {
    return !TakesBlocks(each) || each.capacity_bytes != 0;
  });
  return known ? static_cast<double>(node.capacity_bytes) : 1;
}

}  // namespace

void MetadataShard::RunBalance(Millis now, Actions* actions) {
  FinishMoves(now, actions);
  const Millis passed = std::min(now - moves_counted_, Millis(1000));
  moves_counted_ = now;
  const auto rate = static_cast<double>(options_.move_bytes_per_second);
  move_bytes_allowed_ =
      std::min(rate, move_bytes_allowed_ + rate * static_cast<double>(passed.count()) / 1000);
  if (!balance_.on || now < balance_.not_before) return;
  for (const auto& shard : shards_) {
    if (shard != nullptr && (!shard->loaded || !shard->waiting.empty())) return;
  }
  size_t looked = 0;
  while (balance_.shard < kShardCount) {
    Shard* shard = shards_[balance_.shard].get();
    // By buckets, so that it can stop anywhere: what moves in the table meanwhile is looked at
    // twice, or another time.
    while (shard != nullptr && balance_.bucket < shard->records.all().bucket_count()) {
      if (looked >= options_.balance_records_per_scan) return;
      if (!balance_.weighs && (moves_.size() >= options_.moves_max || move_bytes_allowed_ <= 0)) {
        return;
      }
      const size_t bucket = balance_.bucket++;
      ++looked;
      for (auto at = shard->records.all().begin(bucket); at != shard->records.all().end(bucket);
           ++at) {
        const Record& record = at->second;
        if (!balance_.weighs) {
          StartMove(now, record, *shard);
          continue;
        }
        for (const Copy& copy : record.copies) {
          if (copy.marked) balance_.weighing[copy.place.node] += record.facts.length;
        }
      }
    }
    ++balance_.shard;
    balance_.bucket = 0;
  }
  if (balance_.weighs) return EndWeighing();
  if (!moves_.empty()) return;
  // Looked at everything. Again, if that helped: it may be enough now. Or if it could not help yet.
  const bool helped = totals_.moved_total > balance_.moved_before;
  if (!helped) balance_.not_before = now + options_.times.lease + options_.times.lease_hold;
  balance_.on = helped || std::exchange(balance_.saw_promised, false);
  balance_.weighs = true;
  balance_.shard = 0;
  balance_.room.clear();
}

void MetadataShard::EndWeighing() {
  balance_.held = std::exchange(balance_.weighing, {});
  balance_.room.clear();
  balance_.shard = 0;
  balance_.moved_before = totals_.moved_total;
  double held = 0, weights = 0;
  for (const ClusterNode& node : view_.nodes) {
    if (!TakesBlocks(node)) continue;
    held += static_cast<double>(balance_.held[node.id]);
    weights += WeightOf(view_, node);
  }
  for (const ClusterNode& node : view_.nodes) {
    if (!TakesBlocks(node) || weights <= 0) continue;
    const double mean = held * WeightOf(view_, node) / weights;
    const auto has = static_cast<double>(balance_.held[node.id]);
    balance_.found_much = balance_.found_much || has < kLittle * mean;
    if (has < kEnough * mean) balance_.room[node.id] = static_cast<uint64_t>(kEnough * mean - has);
  }
  balance_.weighs = false;
  if (balance_.found_much && !balance_.room.empty()) return;
  balance_.room.clear();
  balance_.on = false;
}

void MetadataShard::StartMove(Millis now, const Record& record, Shard& shard) {
  const BlockFacts& facts = record.facts;
  if (record.state != State::kVisible || record.doomed || !record.committers.empty() ||
      shard.repairs.contains(facts.id) || moves_.contains(facts.id) ||
      moves_.size() >= options_.moves_max ||
      std::any_of(record.copies.begin(), record.copies.end(),
                  [](const Copy& copy) { return !copy.marked || !copy.verified; })) {
    return;
  }
  if (IsPromised(now, shard, record)) {
    balance_.saw_promised = true;
    return;
  }
  const auto wanted = HoldersFor(view_, facts.id, WantedCopies(record), nullptr);
  const auto is_wanted = [&](const NodeId& node) {
    return std::find(wanted.begin(), wanted.end(), node) != wanted.end();
  };
  for (const NodeId& to : wanted) {
    const auto room = balance_.room.find(to);
    const bool has = std::any_of(record.copies.begin(), record.copies.end(),
                                 [&](const Copy& copy) { return copy.place.node == to; });
    if (has || room == balance_.room.end() || room->second == 0) continue;
    // From where there is most; and it must have more even then.
    const double target_load =
        static_cast<double>(balance_.held[to] + facts.length) / WeightOf(view_, *view_.Find(to));
    const Copy* from = nullptr;
    double from_load = target_load;
    for (const Copy& copy : record.copies) {
      const ClusterNode* node = view_.Find(copy.place.node);
      if (node == nullptr || !TakesBlocks(*node) || is_wanted(node->id)) continue;
      const uint64_t held = balance_.held[node->id];
      const double load = static_cast<double>(held - std::min<uint64_t>(held, facts.length)) /
                          WeightOf(view_, *node);
      if (load < from_load) continue;
      from = &copy;
      from_load = load;
    }
    if (from == nullptr) continue;
    balance_.held[to] += facts.length;
    balance_.held[from->place.node] -=
        std::min<uint64_t>(balance_.held[from->place.node], facts.length);
    room->second -= std::min<uint64_t>(room->second, facts.length);
    move_bytes_allowed_ -= facts.length;
    const Millis patience = 2 * (options_.times.lease + options_.times.lease_hold);
    moves_[facts.id] = {shard.number, from->place, to, false, now + patience};
    Task& task = EnsureTask({TaskKind::kCopy, facts.id, {}, to, kMove}, shard.number);
    task.body = CopyRequest{facts, from->place};
    task.target_node = to;
    return;
  }
}

// Gives up the old copies of what has new ones.
void MetadataShard::FinishMoves(Millis now, Actions* actions) {
  for (auto at = moves_.begin(); at != moves_.end();) {
    const BlockId id = at->first;
    const Move move = at->second;
    ++at;
    Shard& shard = *shards_[move.shard];
    Record* record = shard.records.Edit(id);
    const auto copy_at = [&](const NodeId& node) {
      return std::find_if(record->copies.begin(), record->copies.end(),
                          [&](const Copy& copy) { return copy.place.node == node; });
    };
    const bool copying = tasks_.contains({TaskKind::kCopy, id, {}, move.to, kMove});
    if (record == nullptr || record->doomed || (!move.made && !copying) ||
        (move.made && copy_at(move.to) == record->copies.end())) {
      moves_.erase(id);  // it could not, or has no need any more
      continue;
    }
    const bool early = KVC_PLANTED(32);
    if ((!move.made && !early) || !shard.waiting.empty() || record->state != State::kVisible) {
      continue;
    }
    if (!early && !(copy_at(move.to)->marked && IsTold(id))) continue;
    if (IsPromised(now, shard, *record)) {
      if (now >= move.until) moves_.erase(id);  // so many ask for it that two copies are right
      continue;
    }
    const bool there = std::any_of(record->copies.begin(), record->copies.end(),
                                   [&](const Copy& copy) { return copy.place == move.from; });
    if (KVC_PLANTED(35)) continue;
    if (there && (StayingCopies(*record) > WantedCopies(*record) || early)) {
      ++totals_.moved_total;
      RemoveCopy(now, shard, *record, move.from, actions);
      ForgetStray(shard, id, move.from);
    }
    moves_.erase(id);
  }
}

}  // namespace kvcfs::meta
