// Copies of blocks in memory, as a CopyStore of tests: what it was told, and what it has.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "base/crc32c.h"
#include "base/mutex.h"
#include "meta/cluster.h"

namespace kvcfs::meta {

class MemoryCopies final : public CopyStore {
 public:
  using CopyKey = std::pair<BlockId, uint64_t>;

  // A copy that was written here.
  uint64_t Add(const BlockFacts& facts, std::span<const std::byte> bytes) {
    const MutexLock lock(mutex_);
    const uint64_t generation = next_generation_++;
    copies_[{facts.id, generation}] = {
        facts, std::make_shared<const rdma::Bytes>(bytes.begin(), bytes.end()), 0};
    return generation;
  }
  // As if a bit had flipped where it lies.
  void Damage(const BlockId& id) {
    const MutexLock lock(mutex_);
    for (auto& [key, copy] : copies_) {
      if (key.first != id) continue;
      rdma::Bytes bytes = *copy.bytes;
      bytes[0] ^= std::byte{1};
      copy.bytes = std::make_shared<const rdma::Bytes>(std::move(bytes));
    }
  }
  // Of a published copy: its version.
  std::optional<uint64_t> VersionOf(const BlockId& id) const {
    const MutexLock lock(mutex_);
    for (const auto& [key, copy] : copies_) {
      if (key.first == id && copy.version != 0) return copy.version;
    }
    return std::nullopt;
  }
  bool Has(const BlockId& id) const {
    const MutexLock lock(mutex_);
    const auto at = copies_.lower_bound({id, 0});
    return at != copies_.end() && at->first.first == id;
  }
  size_t size() const {
    const MutexLock lock(mutex_);
    return copies_.size();
  }
  bool WasKept(const BlockId& id, uint64_t generation) const {
    const MutexLock lock(mutex_);
    return kept_.contains({id, generation});
  }
  uint64_t used() const {
    const MutexLock lock(mutex_);
    return used_;
  }
  void RestoreInto(Cluster& cluster) const {
    const MutexLock lock(mutex_);
    for (const auto& [key, copy] : copies_) cluster.Restore(copy.facts, key.second, copy.version);
  }
  // From now on nothing fits.
  void SetFull(bool full) {
    const MutexLock lock(mutex_);
    full_ = full;
  }

  void Mark(const BlockId& id, uint64_t generation, uint64_t version) override {
    const MutexLock lock(mutex_);
    const auto at = copies_.find({id, generation});
    if (at != copies_.end()) at->second.version = version;
  }
  void Free(const BlockId& id, uint64_t generation) override {
    const MutexLock lock(mutex_);
    copies_.erase({id, generation});
  }
  void Keep(const BlockId& id, uint64_t generation) override {
    const MutexLock lock(mutex_);
    kept_.insert({id, generation});
  }
  void Used(const std::vector<BlockId>& ids) override {
    const MutexLock lock(mutex_);
    used_ += ids.size();
  }
  Result<uint64_t> Accept(const BlockFacts& facts, std::span<const std::byte> bytes) override {
    {
      const MutexLock lock(mutex_);
      if (full_) return Error{Code::kNoSpace, "full"};
    }
    return Add(facts, bytes);
  }
  Result<PinnedCopy> Open(const BlockId& id, uint64_t generation, bool may_wait) override {
    const MutexLock lock(mutex_);
    const auto at = copies_.find({id, generation});
    if (at == copies_.end()) return Error{Code::kNotFound, "no such copy"};
    // Every other generation lies on a disk.
    if (!may_wait && generation % 2 == 0) return Error{Code::kBusy, "not in memory"};
    const auto bytes = at->second.bytes;
    return PinnedCopy(*bytes, at->second.facts.crc32c, [bytes] {});
  }
  CopyCapacity Capacity() override { return {1 << 30, 1 << 20}; }

 private:
  struct Copy {
    BlockFacts facts;
    std::shared_ptr<const rdma::Bytes> bytes;
    uint64_t version = 0;
  };
  mutable Mutex mutex_;
  std::map<CopyKey, Copy> copies_ KVC_GUARDED_BY(mutex_);
  std::set<CopyKey> kept_ KVC_GUARDED_BY(mutex_);
  uint64_t used_ KVC_GUARDED_BY(mutex_) = 0;
  uint64_t next_generation_ KVC_GUARDED_BY(mutex_) = 1;
  bool full_ KVC_GUARDED_BY(mutex_) = false;
};

}  // namespace kvcfs::meta
