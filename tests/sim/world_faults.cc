// What goes wrong, and what must be true after everything was healed.
#include <algorithm>

#include <fmt/format.h>

#include "tests/sim/world.h"

namespace kvcfs::sim {

void World::NetworkWeather() {
  const auto some = [&](double chance, double most) {
    return random_.Chance(chance) ? random_.Uniform() * most : 0;
  };
  drop_ = some(0.5, 0.15);
  duplicate_ = some(0.5, 0.2);
  slow_ = some(0.5, 0.15);
  damage_ = some(0.5, 0.1);
}

void World::Crash(Node& node, bool lose_disk, Millis away) {
  Note("crash", node.index, lose_disk ? 1 : 0);
  // What lay in memory only is gone, and the rest comes back.
  const bool lose_memory = evicting_ && !lose_disk && random_.Chance(0.5);
  if (node.holder != nullptr) {
    model_.NodeDown(node.id);
    ghost_incarnations_[node.id] = node.incarnation;
  }
  node.up = false;
  for (Slot& slot : node.slots) {
    if (!lose_disk && !(lose_memory && random_.Chance(0.3))) continue;
    if (slot.used && slot.version != 0) model_.BytesLost(slot.id.key);
    slot = {};
  }
  At(now_ + away, [this, index = node.index, lose_disk] {
    Node& back = nodes_[index];
    if (back.up) return;
    if (lose_disk) {
      back.id.high += 1;
      back.next_generation = 1;
    }
    Note("starts", index);
    Start(back);
  });
}

// Goes in order, and comes back with the next renewal: two changes of the view within that time.
void World::Leave(Node& node) {
  Note("leaves for once", node.index);
  registered_.erase(node.id);
}

// An operator empties a holder; then it goes for good, and another one comes, or it stays after
// all.
void World::Drain(Node& node) {
  Note("drain", node.index);
  ++totals_.drains;
  draining_.insert(node.id);
  const bool leaves = random_.Chance(0.7);
  At(now_ + Millis(500 + static_cast<int64_t>(random_.Below(2500))),
     [this, index = node.index, id = node.id, leaves] { EndDrain(index, id, leaves); });
}

void World::EndDrain(size_t index, NodeId id, bool leaves) {
  Node& node = nodes_[index];
  if (healed_ || node.id != id) return void(draining_.erase(id));
  if (!leaves) {
    Note("drained no longer", index);
    draining_.erase(id);
    return;
  }
  const meta::ClusterNode* seen = views_[node.up ? node.holder->epoch() : 0].Find(id);
  const bool knows = seen != nullptr && (seen->roles & meta::kRoleDraining) != 0;
  if (!Awake(node) || !knows || node.holder->size() != 0) {
    At(now_ + Millis(100), [=, this] { EndDrain(index, id, leaves); });
    return;
  }
  Note("leaves", index);
  registered_.erase(id);
  draining_.erase(id);
  const auto away = Millis(100 + static_cast<int64_t>(random_.Below(1500)));
  last_block_fault_ = now_ + away;
  Crash(node, true, away);
}

void World::Pause(Node& node, Millis length) {
  Note("pause", node.index, static_cast<uint64_t>(length.count()));
  node.paused_until = now_ + length;
}

void World::Partition(const std::set<size_t>& side, bool with_etcd, Millis length) {
  Note("partition", side.size(), with_etcd ? 1 : 0);
  partitioned_ = true;
  side_ = side;
  if (with_etcd) {
    for (const size_t i : side) nodes_[i].etcd = false;
  }
  At(now_ + length, [this, side] {
    partitioned_ = false;
    for (const size_t i : side) nodes_[i].etcd = true;
  });
}

bool World::Calm() const {
  if (views_.back().HasAnyAway()) return false;
  if (partitioned_ || now_ < last_block_fault_ + Millis(1000)) return false;
  for (const Node& node : nodes_) {
    if (!Awake(node) || !node.etcd) return false;
    if (node.roles() != 0 && !views_.back().Has(node.id, node.incarnation)) return false;
    if (node.holder != nullptr && node.holder->epoch() != views_.back().epoch) return false;
    if (node.metadata == nullptr) continue;
    const auto counts = node.metadata->Count();
    if (node.metadata->epoch() != views_.back().epoch || counts.loading != 0 ||
        counts.reconciling != 0 || counts.repairs_waiting != 0 || counts.pending != 0) {
      return false;
    }
  }
  return true;
}

void World::NextFault() {
  if (healed_) return;
  At(now_ + Millis(150 + static_cast<int64_t>(random_.Below(1500))), [this] { NextFault(); });
  const auto length =
      Millis(100 + static_cast<int64_t>(random_.Below(random_.Chance(0.1) ? 6000 : 2500)));
  const size_t metadata = random_.Below(kMetadataNodes);
  const size_t block = kMetadataNodes + random_.Below(kBlockNodes);
  // Where nothing may be lost, only one holder at a time is away, and not before the last is back
  // and everything is repaired.
  const bool block_may = evicting_ || Calm();
  switch (random_.Below(14)) {
    case 12:
    case 13:
      return Leave(nodes_[metadata]);
    case 10:
    case 11:
      if (block_may && nodes_[block].up && draining_.empty()) Drain(nodes_[block]);
      return;
    case 0:
    case 1:
      return NetworkWeather();
    case 2:
      if (nodes_[metadata].up) Crash(nodes_[metadata], false, length);
      return;
    case 3:
      return Pause(nodes_[metadata], length);
    case 4: {
      std::set<size_t> side{metadata};
      if (random_.Chance(0.5)) side.insert(kMetadataNodes + kBlockNodes + random_.Below(3));
      const bool with_block = random_.Chance(0.5) && block_may;
      if (with_block) side.insert(block);
      if (with_block) last_block_fault_ = now_ + length;
      if (!partitioned_) Partition(side, random_.Chance(0.5), length);
      return;
    }
    case 5:
      if (partitioned_ || !block_may) return;
      last_block_fault_ = now_ + length;
      return Partition({block}, random_.Chance(0.5), length);
    case 6:
      if (!block_may) return;
      last_block_fault_ = now_ + length;
      return Pause(nodes_[block], length);
    case 7:
    case 8:
      if (!block_may || !nodes_[block].up) return;
      last_block_fault_ = now_ + length;
      return Crash(nodes_[block], !keeps_ && random_.Chance(0.4), length);
    default:
      // etcd itself.
      if (!partitioned_ && (evicting_ || Calm())) {
        Note("etcd away");
        for (Node& node : nodes_) node.etcd = false;
        last_block_fault_ = now_ + length;
        At(now_ + length, [this] {
          for (Node& node : nodes_) node.etcd = true;
        });
      }
  }
}

void World::Heal() {
  Note("heal");
  healed_ = true;
  drop_ = duplicate_ = slow_ = damage_ = 0;
  partitioned_ = false;
  draining_.clear();
  for (Node& node : nodes_) {
    node.paused_until = std::min(node.paused_until, now_);
    node.etcd = true;
  }
}

// In quiet times, and at the end: each visible block has its parent.
void World::CheckClosure(bool at_end) {
  if (!at_end && (now_ < last_change_ + Millis(4000) || views_.back().HasAnyAway())) return;
  std::set<BlockKey> there;
  std::vector<BlockFacts> visible;
  for (size_t i = 0; i < kMetadataNodes; ++i) {
    const Node& node = nodes_[i];
    if (!CouldServe(node) || node.metadata->epoch() != views_.back().epoch ||
        !views_.back().Has(node.id, node.incarnation)) {
      return;
    }
    const auto counts = node.metadata->Count();
    if (counts.loading != 0 || counts.reconciling != 0) return;
    node.metadata->VisitRecords([&](uint32_t, const meta::MetadataShard::RecordState& record) {
      there.insert(record.facts->id.key);
      if (record.visible && !record.doomed) visible.push_back(*record.facts);
    });
  }
  for (const BlockFacts& facts : visible) {
    if (facts.ordinal == 0 || there.contains(facts.parent)) continue;
    if (!at_end && model_.Disturbed(facts.id.key, now_)) continue;
    model_.Violate(fmt::format("prefix closure: {} is visible and its parent {} is not there, {}",
                               facts.id.key.ToHex().substr(0, 8), facts.parent.ToHex().substr(0, 8),
                               at_end ? "at the end" : "now"));
  }
}

// Holders and metadata say the same of each other.
void World::CheckBooks() {
  std::map<std::pair<NodeId, uint64_t>, BlockKey> named;
  for (size_t i = 0; i < kMetadataNodes; ++i) {
    nodes_[i].metadata->VisitRecords([&](uint32_t, const meta::MetadataShard::RecordState& record) {
      for (const Place& place : record.marked) {
        named[{place.node, place.generation}] = record.facts->id.key;
      }
      const size_t wanted = std::min<size_t>(record.facts->replicas, kBlockNodes);
      if (record.marked.size() < wanted && !evicting_) {
        model_.Violate(fmt::format("repair: {} has {} copies of {}",
                                   record.facts->id.key.ToHex().substr(0, 8), record.marked.size(),
                                   wanted));
      }
    });
  }
  for (const Node& node : nodes_) {
    for (const Slot& slot : node.slots) {
      if (!slot.used) continue;
      const auto at = named.find({node.id, slot.generation});
      if (slot.version == 0) {
        model_.Violate(fmt::format("leak: node {} keeps a copy that nobody published", node.index));
      } else if (at == named.end() || at->second != slot.id.key) {
        model_.Violate(fmt::format("leak: node {} has a published copy of {} that nobody knows of",
                                   node.index, slot.id.key.ToHex().substr(0, 8)));
      } else {
        named.erase(at);
      }
    }
  }
  if (!named.empty()) {
    const auto& [place, key] = *named.begin();
    model_.Violate(fmt::format("books: {} is named at holder {}, which does not have it as {}",
                               key.ToHex().substr(0, 8), place.first.low, place.second));
  }
}

void World::CheckEnd() {
  for (size_t i = 0; i < kMetadataNodes; ++i) {
    const auto counts = nodes_[i].metadata->Count();
    if (!CouldServe(nodes_[i]) || counts.loading + counts.reconciling + counts.pending != 0 ||
        counts.doomed + counts.moving != 0) {
      return model_.Violate(fmt::format(
          "liveness: metadata node {} at the end: {} loading, {} reconciling, {} pending, {} "
          "doomed, {} moving, {} tasks",
          i, counts.loading, counts.reconciling, counts.pending, counts.doomed, counts.moving,
          counts.tasks));
    }
    totals_.moves += counts.moved_total;
  }
  CheckClosure(true);
  CheckBooks();
  ReadEverything();
  ending_ = true;
}

}  // namespace kvcfs::sim
