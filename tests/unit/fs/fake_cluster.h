// A cluster in memory, for tests of fs: blocks with their bytes, leases, namespaces. One may stand
// behind several hosts. Obeys cluster.h; knows nothing of nodes, shards are by the key's last byte.
#pragma once

#include <algorithm>
#include <atomic>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/crc32c.h"
#include "base/mutex.h"
#include "meta/cluster.h"

namespace kvcfs::fs {

class FakeCluster final : public meta::Cluster {
 public:
  static constexpr Millis kLease{30'000};

  explicit FakeCluster(const Clock* clock) : clock_(*clock) {}

  // ---- What tests do to it
  void SetAway(bool away) {
    MutexLock lock(mutex_);
    away_ = away;
  }
  // No holder has room.
  void SetFull(bool full) {
    MutexLock lock(mutex_);
    full_ = full;
  }
  void SetLeasing(bool on) {
    MutexLock lock(mutex_);
    leasing_ = on;
  }
  // Its last copy is lost: it is still named, until somebody asks.
  void LoseBytes(const meta::BlockId& id) {
    MutexLock lock(mutex_);
    blocks_.at(id).bytes.clear();
  }
  // One of its hosts holds copies, or no longer.
  void Join(meta::CopyStore* copies) { copies_ = copies; }
  // That host's copy goes, another has one.
  void MoveAway(const meta::BlockId& id) {
    uint64_t generation = 0;
    {
      MutexLock lock(mutex_);
      Block& block = blocks_.at(id);
      generation = std::exchange(block.generation, next_generation_++);
      block.holder = kHolder;
    }
    copies_.load()->Free(id, generation);
  }
  bool Has(const meta::BlockId& id) {
    MutexLock lock(mutex_);
    return blocks_.contains(id);
  }
  std::string BytesHeld(const meta::BlockId& id) {
    MutexLock lock(mutex_);
    const auto at = blocks_.find(id);
    return at == blocks_.end() ? std::string() : at->second.bytes;
  }
  meta::BlockFacts FactsOf(const meta::BlockId& id) {
    MutexLock lock(mutex_);
    return blocks_.at(id).facts;
  }
  size_t reads() {
    MutexLock lock(mutex_);
    return reads_;
  }
  size_t questions() {  // of Match and Stat
    MutexLock lock(mutex_);
    return questions_;
  }
  Millis patience() {  // of the last Stat
    MutexLock lock(mutex_);
    return patience_;
  }
  std::set<meta::BlockId> used() {
    MutexLock lock(mutex_);
    return used_;
  }

  // ---- Cluster
  meta::NodeId self() const override { return {1, 1}; }
  bool holds_blocks() const override { return copies_.load() != nullptr; }

  Result<meta::MatchedPrefix> Match(const meta::SpaceId& space, std::span<const BlockKey> keys,
                                    bool lease, Millis) override {
    MutexLock lock(mutex_);
    ++questions_;
    meta::MatchedPrefix prefix;
    BlockKey parent;
    for (const BlockKey& key : keys) {
      const auto at = away_ ? blocks_.end() : blocks_.find({space, key});
      if (at == blocks_.end() || at->second.facts.parent != parent) break;
      prefix.blocks.push_back(Found(at->second));
      parent = key;
    }
    if (lease && leasing_ && !prefix.blocks.empty()) {
      prefix.lease_until = clock_.Monotonic() + kLease;
    }
    return prefix;
  }
  Result<meta::LocatedBlock> Stat(const meta::BlockId& id, Millis timeout) override {
    MutexLock lock(mutex_);
    ++questions_;
    patience_ = timeout;
    if (away_) return Away();
    const auto at = blocks_.find(id);
    if (at == blocks_.end()) return Error{Code::kNotFound, "no such block"};
    return meta::LocatedBlock{at->second.facts, Found(at->second),
                              leasing_ ? clock_.Monotonic() + kLease : Millis(0)};
  }
  Result<meta::BlockFacts> Create(const meta::BlockId& id, const BlockKey& parent,
                                  Millis) override {
    MutexLock lock(mutex_);
    if (away_) return Away();
    meta::BlockFacts facts;
    facts.id = id;
    facts.parent = parent;
    facts.anchor = id.key;
    if (!parent.IsZero()) {
      const auto at = blocks_.find({id.space, parent});
      if (at == blocks_.end()) return Error{Code::kNotFound, "no such parent"};
      facts.ordinal = at->second.facts.ordinal + 1;
    }
    return facts;
  }
  Result<uint32_t> Publish(const meta::BlockFacts& facts, std::optional<uint64_t> own,
                           std::span<const std::byte> bytes, Millis) override {
    const Result<uint32_t> published = Commit(facts, own, bytes);
    if (own && published.ok()) {
      copies_.load()->Mark(facts.id, *own, *own);
    } else if (own) {
      copies_.load()->Free(facts.id, *own);
    }
    return published;
  }
  Result<uint32_t> Commit(const meta::BlockFacts& facts, std::optional<uint64_t> own,
                          std::span<const std::byte> bytes) {
    MutexLock lock(mutex_);
    if (away_) return Away();
    if (full_) return Error{Code::kNoSpace, "nobody has room"};
    if (facts.length != bytes.size() || facts.crc32c != Crc32c(bytes)) {
      return Error{Code::kInvalid, "facts of other bytes"};
    }
    if (const auto at = blocks_.find(facts.id); at != blocks_.end()) {
      if (at->second.facts.crc32c != facts.crc32c) return Error{Code::kExists, "another version"};
      return facts.replicas;
    }
    if (!facts.parent.IsZero() && !blocks_.contains({facts.id.space, facts.parent})) {
      return Error{Code::kNotFound, "the parent has gone"};
    }
    blocks_[facts.id] = {facts,
                         {reinterpret_cast<const char*>(bytes.data()), bytes.size()},
                         own ? *own : next_generation_++,
                         own ? self() : kHolder};
    return facts.replicas;
  }
  Result<meta::Place> Read(const meta::SpaceId& space, const meta::FoundBlock& block,
                           std::span<std::byte> into, Millis) override {
    MutexLock lock(mutex_);
    ++reads_;
    if (away_) return Away();
    const auto at = blocks_.find({space, block.key});
    for (const meta::Place& place : block.places) {
      if (at == blocks_.end() || at->second.generation != place.generation ||
          at->second.bytes.size() != into.size() || at->second.facts.crc32c != block.crc32c) {
        continue;
      }
      const auto bytes = std::as_bytes(std::span(at->second.bytes));
      std::copy(bytes.begin(), bytes.end(), into.begin());
      return place;
    }
    if (at != blocks_.end() && at->second.bytes.empty()) Erase({space, block.key});
    return Error{Code::kNotFound, "nobody has it"};
  }
  Status Drop(const meta::BlockId& id, Millis) override {
    std::map<meta::BlockId, uint64_t> own;
    {
      MutexLock lock(mutex_);
      if (away_) return Away();
      if (!blocks_.contains(id)) return Error{Code::kNotFound, "no such block"};
      for (const auto& [each, block] : blocks_) {
        if (block.holder == self()) own[each] = block.generation;
      }
      Erase(id);
      std::erase_if(own,
                    [&](const auto& each) KVC_NO_ANALYSIS { return blocks_.contains(each.first); });
    }
    for (const auto& [each, generation] : own) copies_.load()->Free(each, generation);
    return {};
  }
  Result<std::vector<meta::FoundBlock>> Chain(const meta::BlockId& tip, Millis) override {
    MutexLock lock(mutex_);
    if (away_) return Away();
    std::vector<meta::FoundBlock> chain;
    meta::BlockId id = tip;
    while (!id.key.IsZero()) {
      const auto at = blocks_.find(id);
      if (at == blocks_.end()) return Error{Code::kNotFound, "no such block"};
      chain.push_back(Found(at->second));
      id.key = at->second.facts.parent;
    }
    std::reverse(chain.begin(), chain.end());
    return chain;
  }
  Result<meta::LeafPage> Leaves(const meta::SpaceId& space, uint32_t shard, const BlockKey& after,
                                uint32_t limit, Millis) override {
    MutexLock lock(mutex_);
    if (away_) return Away();
    limit = std::min<uint32_t>(limit, 3);  // pages are short, so that there are some
    meta::LeafPage page{{}, true};
    for (auto at = blocks_.upper_bound({space, after});
         at != blocks_.end() && at->first.space == space; ++at) {
      if (at->first.key.bytes[31] != shard || Children(at->first) > 0) continue;
      if (page.keys.size() == limit) {
        page.done = false;
        break;
      }
      page.keys.push_back(at->first.key);
    }
    return page;
  }
  void NoteUsed(const meta::BlockId& id, const meta::NodeId& holder) override {
    MutexLock lock(mutex_);
    if (holder == kHolder) used_.insert(id);
  }

  void Restore(const meta::BlockFacts&, uint64_t, uint64_t) override {}
  void Sealed(const meta::BlockFacts&, uint64_t) override {}
  void WantRelease(const meta::BlockId&, uint64_t) override {}
  void Lost(const meta::BlockId&, uint64_t) override {}

  Result<std::optional<meta::ClusterSpace>> GetSpace(std::string_view name) override {
    MutexLock lock(mutex_);
    const auto at = spaces_.find(std::string(name));
    if (at == spaces_.end()) return std::optional<meta::ClusterSpace>();
    return std::optional(at->second);
  }
  Result<std::optional<meta::ClusterSpace>> GetSpace(const meta::SpaceId& id) override {
    MutexLock lock(mutex_);
    for (const auto& [name, space] : spaces_) {
      if (space.id == id) return std::optional(space);
    }
    return std::optional<meta::ClusterSpace>();
  }
  std::vector<meta::ClusterSpace> ListSpaces() override {
    MutexLock lock(mutex_);
    std::vector<meta::ClusterSpace> all;
    for (const auto& [name, space] : spaces_) all.push_back(space);
    return all;
  }
  uint64_t SpacesVersion() override {
    MutexLock lock(mutex_);
    return spaces_version_;
  }
  Result<meta::ClusterSpace> CreateSpace(const meta::ClusterSpace& space) override {
    MutexLock lock(mutex_);
    if (away_) return Away();
    if (spaces_.contains(space.name)) return Error{Code::kExists, "it exists"};
    return Put(space);
  }
  Result<meta::ClusterSpace> SetSpace(const meta::ClusterSpace& space) override {
    MutexLock lock(mutex_);
    if (away_) return Away();
    const auto at = spaces_.find(space.name);
    if (at == spaces_.end()) return Error{Code::kNotFound, "no such namespace"};
    if (at->second.revision != space.revision) return Error{Code::kStale, "changed"};
    return Put(space);
  }
  Status RemoveSpace(const meta::ClusterSpace& space) override {
    MutexLock lock(mutex_);
    if (away_) return Away();
    const auto at = spaces_.find(space.name);
    if (at == spaces_.end()) return {};
    if (at->second.revision != space.revision) return Error{Code::kStale, "changed"};
    spaces_.erase(at);
    ++spaces_version_;
    return {};
  }

  meta::ClusterStatus Describe() override {
    meta::ClusterStatus status;
    status.view = std::make_shared<const meta::ClusterView>(meta::ClusterView{1, {}});
    return status;
  }
  Status SetDraining(std::string_view, bool) override { return {}; }

 private:
  static constexpr meta::NodeId kHolder{7, 7};
  struct Block {
    meta::BlockFacts facts;
    std::string bytes;
    uint64_t generation = 0;
    meta::NodeId holder = kHolder;
  };
  static Error Away() { return {Code::kTimeout, "nobody answers"}; }

  uint32_t Children(const meta::BlockId& id) KVC_REQUIRES(mutex_) {
    return static_cast<uint32_t>(
        std::count_if(blocks_.begin(), blocks_.end(), [&](const auto& each) {
          return each.first.space == id.space && each.second.facts.parent == id.key;
        }));
  }
  meta::FoundBlock Found(const Block& block) KVC_REQUIRES(mutex_) {
    const meta::BlockFacts& facts = block.facts;
    return {facts.id.key,
            facts.length,
            facts.crc32c,
            facts.mtime_s,
            {{block.holder, block.generation}},
            Children(facts.id)};
  }
  void Erase(const meta::BlockId& id) KVC_REQUIRES(mutex_) {
    std::vector<meta::BlockId> all = {id};
    for (size_t i = 0; i < all.size(); ++i) {
      for (const auto& [other, block] : blocks_) {
        if (other.space == id.space && block.facts.parent == all[i].key) all.push_back(other);
      }
    }
    for (const meta::BlockId& each : all) blocks_.erase(each);
  }
  meta::ClusterSpace Put(meta::ClusterSpace space) KVC_REQUIRES(mutex_) {
    space.revision = ++revision_;
    ++spaces_version_;
    return spaces_[space.name] = space;
  }

  const Clock& clock_;
  std::atomic<meta::CopyStore*> copies_{nullptr};
  Mutex mutex_;
  bool away_ KVC_GUARDED_BY(mutex_) = false;
  bool full_ KVC_GUARDED_BY(mutex_) = false;
  bool leasing_ KVC_GUARDED_BY(mutex_) = true;
  std::map<meta::BlockId, Block> blocks_ KVC_GUARDED_BY(mutex_);
  std::map<std::string, meta::ClusterSpace> spaces_ KVC_GUARDED_BY(mutex_);
  uint64_t spaces_version_ KVC_GUARDED_BY(mutex_) = 0;
  int64_t revision_ KVC_GUARDED_BY(mutex_) = 0;
  uint64_t next_generation_ KVC_GUARDED_BY(mutex_) = 1;
  size_t reads_ KVC_GUARDED_BY(mutex_) = 0;
  size_t questions_ KVC_GUARDED_BY(mutex_) = 0;
  Millis patience_ KVC_GUARDED_BY(mutex_){0};
  std::set<meta::BlockId> used_ KVC_GUARDED_BY(mutex_);
};

}  // namespace kvcfs::fs
