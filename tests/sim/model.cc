#include "tests/sim/model.h"

#include <algorithm>

#include <fmt/format.h>

namespace kvcfs::sim {
namespace {

// How long what was begun (a drop, the loss of a node) may still take blocks away.
constexpr Millis kAftermath{6000};

std::string Name(const BlockKey& key) {
  return key.ToHex().substr(0, 8);
}

}  // namespace

uint32_t CrcOf(uint64_t content) {
  return static_cast<uint32_t>(meta::MixHash(content & 0xffff, 17) >> 32);
}

void Model::Stalled(Millis time) {
  for (auto& [key, block] : blocks_) {
    for (Millis* since : {&block.disturbed, &block.lost, &block.dropped}) {
      if (*since + kAftermath >= now_) *since = std::min(*since + time, now_);
    }
  }
}

void Model::AddBlock(const BlockKey& key, const BlockKey& parent) {
  blocks_[key].parent = parent;
  if (!parent.IsZero()) blocks_[parent].children.push_back(key);
}

void Model::Update(Block& block) {
  const bool is = !block.copies.empty() || !block.ghosts.empty();
  const bool was = !block.cached.empty() && block.cached.back().to < Millis(0);
  if (is && !was) block.cached.push_back({now_, Millis(-1)});
  if (!is && was) block.cached.back().to = now_;
  if (block.cached.size() > 64) block.cached.erase(block.cached.begin(), block.cached.begin() + 32);
}

void Model::Marked(const NodeId& node, const BlockId& id, uint64_t generation, uint64_t content) {
  Block& block = blocks_[id.key];
  block.copies.insert({node, generation});
  block.published.insert(content);
  Update(block);
}

void Model::Freed(const NodeId& node, const BlockId& id, uint64_t generation) {
  Block& block = blocks_[id.key];
  if (block.copies.erase({node, generation}) == 0) return;  // it was only sealed
  block.freed = now_;
  Update(block);
  if (block.lost + kAftermath > now_) return;
  const auto acked = acked_.find(id.key);
  if (acked != acked_.end() && acked->second.copies >= copies_kept &&
      block.copies.size() + block.ghosts.size() < copies_kept &&
      !DroppedSince(id.key, acked->second.when)) {
    Violate(fmt::format("copies: {} of {} are left of the acknowledged {}", block.copies.size(),
                        copies_kept, Name(id.key)));
  }
  if (!block.copies.empty() || !block.ghosts.empty()) return;
  if (has_visible_child(id)) {
    Violate(fmt::format("prefix closure: {} went while a block that extends it is visible",
                        Name(id.key)));
  }
  if (block.leased > now_ && block.disturbed + kAftermath < block.leased_at) {
    Violate(fmt::format("lease: {} went {} ms before its lease was over", Name(id.key),
                        (block.leased - now_).count()));
  }
}

void Model::NodeDown(const NodeId& node) {
  for (auto& [key, block] : blocks_) {
    for (auto at = block.copies.begin(); at != block.copies.end();) {
      if (at->first == node) {
        block.ghosts.insert(*at);
        at = block.copies.erase(at);
      } else {
        ++at;
      }
    }
  }
}

void Model::NodeForgotten(const NodeId& node) {
  for (auto& [key, block] : blocks_) {
    std::erase_if(block.ghosts, [&](const auto& ghost) { return ghost.first == node; });
    Update(block);
  }
}

void Model::NodeAway(const NodeId& node) {
  std::vector<BlockKey> touched;
  for (const auto& [key, block] : blocks_) {
    const auto on_node = [&](const auto& copy) { return copy.first == node; };
    if (std::any_of(block.copies.begin(), block.copies.end(), on_node) ||
        std::any_of(block.ghosts.begin(), block.ghosts.end(), on_node)) {
      touched.push_back(key);
    }
  }
  for (const BlockKey& key : touched) Disturb(key, true);
}

void Model::Disturb(const BlockKey& key, bool lost) {
  Block& block = blocks_[key];
  if ((lost ? block.lost : block.dropped) == now_) return;
  block.disturbed = now_;
  (lost ? block.lost : block.dropped) = now_;
  for (const BlockKey& child : block.children) Disturb(child, lost);
}

void Model::BytesLost(const BlockKey& key) {
  Disturb(key, true);
}

void Model::DropBegun(const BlockKey& key) {
  Disturb(key, false);
}

bool Model::Disturbed(const BlockKey& key, Millis since) const {
  return blocks_.at(key).disturbed + kAftermath >= since;
}

bool Model::DroppedSince(const BlockKey& key, Millis since) const {
  return blocks_.at(key).dropped + kAftermath >= since;
}

void Model::Acknowledged(Millis begun, const BlockFacts& facts, uint64_t content, uint32_t copies) {
  const BlockKey& key = facts.id.key;
  const Block& block = blocks_[key];
  if (!block.published.contains(content)) {
    Violate(fmt::format("{} was acknowledged, and no holder has it as published", Name(key)));
  }
  const auto before = acked_.find(key);
  if (before != acked_.end() && before->second.content != content &&
      block.freed < before->second.when && block.disturbed + kAftermath < before->second.when) {
    Violate(
        fmt::format("{}: a second version was acknowledged while the first was there", Name(key)));
  }
  acked_[key] = {content, copies, begun};
}

void Model::Matched(Millis begun, const std::vector<BlockKey>& asked, const meta::Outcome& outcome,
                    bool stale) {
  if (outcome.blocks.size() > asked.size()) return Violate("match: more than was asked for");
  for (size_t i = 0; i < outcome.blocks.size(); ++i) {
    if (outcome.blocks[i].key != asked[i]) return Violate("match: no prefix of what was asked for");
    Block& block = blocks_[asked[i]];
    if (outcome.lease_until > block.leased) {
      block.leased = outcome.lease_until;
      block.leased_at = begun;
    }
  }
  if (outcome.from_cache != 0) {
    for (size_t i = 0; i < outcome.blocks.size(); ++i) {
      const Block& block = blocks_[asked[i]];
      const bool is = !block.cached.empty() &&
                      (block.cached.back().to < Millis(0) || block.cached.back().to >= begun);
      if (!is && block.disturbed + 2 * kAftermath < now_) {
        Violate(fmt::format("match: {} from a client's cache, and it is gone", Name(asked[i])));
      }
    }
    return;
  }
  if (stale) return;
  // All at one time within the call; but when a holder was lost, it takes a while until what
  // extended its blocks is gone too.
  for (const auto& found : outcome.blocks) {
    if (blocks_[found.key].lost + kAftermath > begun) return;
  }
  std::vector<Interval> common{{begun, now_}};
  for (const auto& found : outcome.blocks) {
    std::vector<Interval> next;
    for (const Interval& a : common) {
      for (const Interval& b : blocks_[found.key].cached) {
        const Millis from = std::max(a.from, b.from);
        const Millis to = b.to < Millis(0) ? a.to : std::min(a.to, b.to);
        if (from <= to) next.push_back({from, to});
      }
    }
    common = std::move(next);
    if (common.empty()) {
      return Violate(fmt::format("match: {} of {} keys up to {}, never cached at one time",
                                 outcome.blocks.size(), asked.size(), Name(found.key)));
    }
  }
}

void Model::Read(const BlockId& id, uint32_t crc, uint64_t content, bool ok) {
  if (!ok) return;
  const Block& block = blocks_[id.key];
  if (!block.published.contains(content)) {
    Violate(fmt::format("I1: a read of {} returned bytes that were never published", Name(id.key)));
  }
  if (CrcOf(content) != crc) {
    Violate(fmt::format("I1: a read of {} returned another version than the one that was found",
                        Name(id.key)));
  }
}

}  // namespace kvcfs::sim
