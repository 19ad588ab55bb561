#include "meta/group_cache.h"

#include <algorithm>
#include <utility>

#include "meta/planted.h"

namespace kvcfs::meta {

GroupCache::GroupCache(size_t groups_max)
    : groups_max_(std::min(groups_max, size_t{1} << (32 - kIndexBits))) {}

uint32_t GroupCache::SlotOf(const BlockId& anchor) const {
  const uint32_t slot = index_.Get(Hash(anchor)).value_or(kNone);
  return slot != kNone && groups_[slot].anchor == anchor ? slot : kNone;
}

uint32_t GroupCache::ChildOf(const Group& group, uint32_t parent, const BlockKey& key) {
  uint32_t at = group.blocks[parent].first_child;
  while (at != kNone && group.blocks[at].block.key != key) at = group.blocks[at].sibling;
  return at;
}

std::optional<Millis> GroupCache::Find(Millis now, const SpaceId& space,
                                       std::span<const BlockKey> keys,
                                       std::vector<FoundBlock>* found) {
  const size_t before = found->size();
  const uint32_t slot = keys.empty() ? kNone : SlotOf({space, keys[0]});
  Millis lease_until = Millis::max();
  if (slot != kNone) {
    const Group& group = groups_[slot];
    uint32_t at = 0;
    for (size_t i = 0; i < keys.size(); ++i) {
      if (i > 0) at = ChildOf(group, at, keys[i]);
      if (at == kNone) break;
      const Cached& cached = group.blocks[at];
      if (cached.lease_until <= now && !KVC_PLANTED(20)) break;
      found->push_back(cached.block);
      lease_until = std::min(lease_until, cached.lease_until);
    }
  }
  if (slot == kNone || found->size() - before != keys.size()) {
    found->resize(before);
    ++misses_;
    return std::nullopt;
  }
  ++hits_;
  Touch(slot);
  return lease_until;
}

void GroupCache::PrefetchBlocks(uint32_t slot, size_t count) const {
  if (slot == kNone) return;
  const std::vector<Cached>& blocks = groups_[slot].blocks;
  const auto* begin = reinterpret_cast<const char*>(blocks.data());
  const size_t bytes = std::min(count, blocks.size()) * sizeof(Cached);
  for (size_t at = 0; at < bytes; at += 64) __builtin_prefetch(begin + at);
}

// Everything lies far from everything else: so first all that must be looked at is asked for.
std::optional<GroupCache::Chain> GroupCache::FindChain(Millis now, const SpaceId& space,
                                                       std::span<const BlockKey> keys) {
  // What is missing is mostly the end.
  if (keys.empty() || !Resolve(now, {space, keys.back()}).has_value()) return std::nullopt;
  const std::vector<GroupRange> groups = GroupsOf(static_cast<uint32_t>(keys.size()));
  std::vector<uint32_t> slots(groups.size());
  for (const GroupRange& group : groups) Prefetch(space, keys[group.first]);
  for (size_t i = 0; i < groups.size(); ++i) {
    slots[i] = index_.Get(Hash({space, keys[groups[i].first]})).value_or(kNone);
    if (slots[i] == kNone) return std::nullopt;
    __builtin_prefetch(&groups_[slots[i]]);
  }
  std::optional<Chain> chain(std::in_place);
  chain->lease_until = Millis::max();
  chain->blocks.reserve(keys.size());
  size_t ahead = 0;
  for (const GroupRange& group : groups) {
    for (; ahead < groups.size() && groups[ahead].first <= group.first + kGroupBlocksMax; ++ahead) {
      PrefetchBlocks(slots[ahead], groups[ahead].count);
    }
    const auto until = Find(now, space, keys.subspan(group.first, group.count), &chain->blocks);
    if (!until.has_value()) return std::nullopt;
    chain->lease_until = std::min(chain->lease_until, *until);
  }
  return chain;
}

uint32_t GroupCache::Add(const BlockId& anchor) {
  if (free_.empty()) {
    free_.push_back(static_cast<uint32_t>(groups_.size()));
    groups_.emplace_back();
  }
  const uint32_t slot = free_.back();
  free_.pop_back();
  groups_[slot].anchor = anchor;
  index_.Set(Hash(anchor), slot);
  Link(slot);
  return slot;
}

void GroupCache::Put(const SpaceId& space, uint32_t first, std::span<const FoundBlock> blocks,
                     Millis lease_until) {
  if (blocks.empty() || blocks.size() > kBlocksMax || groups_max_ == 0) return;
  const BlockId anchor{space, blocks[0].key};
  uint32_t slot = SlotOf(anchor);
  uint32_t parent = kNone;
  for (size_t i = 0; i < blocks.size(); ++i) {
    uint32_t at = kNone;
    if (slot != kNone) at = i == 0 ? 0 : ChildOf(groups_[slot], parent, blocks[i].key);
    if (at == kNone) {
      if (slot != kNone && groups_[slot].blocks.size() == kBlocksMax) {
        // Too many forks: it begins anew with this path.
        Erase(slot);
        return Put(space, first, blocks, lease_until);
      }
      if (slot == kNone) {
        while (size() >= groups_max_) Erase((trial_.count == 0 ? protected_ : trial_).oldest);
        slot = Add(anchor);
        groups_[slot].blocks.reserve(blocks.size());
      }
      Group& group = groups_[slot];
      at = static_cast<uint32_t>(group.blocks.size());
      Cached& made = group.blocks.emplace_back();
      made.ordinal = first + static_cast<uint32_t>(i);
      if (i > 0) made.sibling = std::exchange(group.blocks[parent].first_child, at);
      spots_.Set(Hash({space, blocks[i].key}), slot << kIndexBits | at);
    }
    Cached& cached = groups_[slot].blocks[at];
    cached.block = blocks[i];
    cached.lease_until = lease_until;
    parent = at;
  }
}

std::optional<std::pair<uint32_t, uint32_t>> GroupCache::SpotOf(const BlockId& id) const {
  const auto spot = spots_.Get(Hash(id));
  if (!spot.has_value()) return std::nullopt;
  const uint32_t slot = *spot >> kIndexBits, at = *spot & (kBlocksMax - 1);
  const Group& group = groups_[slot];
  if (group.anchor.space != id.space || group.blocks[at].block.key != id.key) return std::nullopt;
  return std::pair(slot, at);
}

std::optional<ResolveReply> GroupCache::Resolve(Millis now, const BlockId& id) const {
  const auto spot = SpotOf(id);
  if (!spot.has_value()) return std::nullopt;
  const Group& group = groups_[spot->first];
  const Cached& cached = group.blocks[spot->second];
  if (cached.lease_until <= now) return std::nullopt;
  return ResolveReply{cached.ordinal, group.anchor.key};
}

void GroupCache::Forget(const BlockId& id) {
  if (const auto spot = SpotOf(id); spot.has_value()) Erase(spot->first);
}

void GroupCache::Link(uint32_t slot) {
  Group& group = groups_[slot];
  List& list = ListOf(group);
  group.newer = kNone;
  group.older = list.newest;
  (list.newest == kNone ? list.oldest : groups_[list.newest].newer) = slot;
  list.newest = slot;
  ++list.count;
  group.moved = ++moves_;
}

void GroupCache::Unlink(uint32_t slot) {
  const Group& group = groups_[slot];
  List& list = ListOf(group);
  (group.newer == kNone ? list.newest : groups_[group.newer].older) = group.older;
  (group.older == kNone ? list.oldest : groups_[group.older].newer) = group.newer;
  --list.count;
}

void GroupCache::Touch(uint32_t slot) {
  Group& group = groups_[slot];
  // Still among the newest eighth: moving it would only touch its neighbours' memory.
  if (group.is_protected && moves_ - group.moved < protected_.count / 8) return;
  Unlink(slot);
  group.is_protected = true;
  Link(slot);
  if (protected_.count > groups_max_ - groups_max_ / 5) {  // four fifths: as CacheLib's 2Q
    const uint32_t last = protected_.oldest;
    Unlink(last);
    groups_[last].is_protected = false;
    Link(last);
  }
}

void GroupCache::Erase(uint32_t slot) {
  Group& group = groups_[slot];
  const auto erase = [](FlatMap& map, uint64_t hash, uint32_t value) {
    if (map.Get(hash) == value) map.Erase(hash);  // else another's by now
  };
  for (uint32_t at = 0; at < group.blocks.size(); ++at) {
    erase(spots_, Hash({group.anchor.space, group.blocks[at].block.key}), slot << kIndexBits | at);
  }
  erase(index_, Hash(group.anchor), slot);
  Unlink(slot);
  group = {};
  free_.push_back(slot);
}

}  // namespace kvcfs::meta
