#include "meta/group_cache.h"

#include <algorithm>
#include <utility>

#include "meta/planted.h"

namespace kvcfs::meta {

std::optional<GroupCache::Hit> GroupCache::Find(Millis now, const SpaceId& space,
                                                std::span<const BlockKey> keys) {
  Hit hit{{}, Millis::max()};
  const auto at = keys.empty() ? groups_.end() : groups_.find({space, keys[0]});
  if (at != groups_.end()) {
    BlockKey before{};
    for (const BlockKey& key : keys) {
      const auto block = at->second.blocks.find(key);
      if (block == at->second.blocks.end() || block->second.before != before ||
          (block->second.lease_until <= now && !KVC_PLANTED(20))) {
        break;
      }
      hit.blocks.push_back(block->second.block);
      hit.lease_until = std::min(hit.lease_until, block->second.lease_until);
      before = key;
    }
  }
  if (hit.blocks.size() != keys.size() || keys.empty()) {
    ++misses_;
    return std::nullopt;
  }
  ++hits_;
  Touch(at->first, at->second);
  return hit;
}

void GroupCache::Put(const SpaceId& space, uint32_t first, std::vector<FoundBlock> blocks,
                     Millis lease_until) {
  if (blocks.empty() || groups_max_ == 0) return;
  const BlockId anchor{space, blocks[0].key};
  auto at = groups_.find(anchor);
  if (at != groups_.end() && at->second.blocks.size() + blocks.size() > kBlocksMax) {
    Erase(anchor);
    at = groups_.end();
  }
  if (at == groups_.end()) {
    at = groups_.try_emplace(anchor).first;
    at->second.place = trial_.insert(trial_.begin(), anchor);
  }
  BlockKey before{};
  for (FoundBlock& block : blocks) {
    const BlockKey key = block.key;
    anchors_[{space, key}] = anchor.key;
    at->second.blocks[key] = {std::move(block), before, lease_until, first++};
    before = key;
  }
  Evict();
}

std::optional<ResolveReply> GroupCache::Resolve(Millis now, const BlockId& id) const {
  const auto anchor = anchors_.find(id);
  if (anchor == anchors_.end()) return std::nullopt;
  const Cached& cached = groups_.at({id.space, anchor->second}).blocks.at(id.key);
  if (cached.lease_until <= now) return std::nullopt;
  return ResolveReply{cached.ordinal, anchor->second};
}

void GroupCache::Forget(const BlockId& id) {
  const auto anchor = anchors_.find(id);
  if (anchor != anchors_.end()) Erase({id.space, anchor->second});
}

void GroupCache::Clear() {
  groups_.clear();
  anchors_.clear();
  trial_.clear();
  protected_.clear();
}

void GroupCache::Touch(const BlockId& anchor, Group& group) {
  (group.is_protected ? protected_ : trial_).erase(group.place);
  group.is_protected = true;
  group.place = protected_.insert(protected_.begin(), anchor);
  if (protected_.size() > groups_max_ - groups_max_ / 5) {  // four fifths: as CacheLib's 2Q
    const BlockId last = protected_.back();
    protected_.pop_back();
    Group& demoted = groups_.at(last);
    demoted.is_protected = false;
    demoted.place = trial_.insert(trial_.begin(), last);
  }
}

void GroupCache::Evict() {
  while (groups_.size() > groups_max_) {
    const BlockId last = trial_.empty() ? protected_.back() : trial_.back();
    Erase(last);
  }
}

void GroupCache::Erase(const BlockId& anchor) {
  const auto at = groups_.find(anchor);
  for (const auto& [key, cached] : at->second.blocks) anchors_.erase({anchor.space, key});
  (at->second.is_protected ? protected_ : trial_).erase(at->second.place);
  groups_.erase(at);
}

}  // namespace kvcfs::meta
