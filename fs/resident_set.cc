#include "fs/resident_set.h"

#include <algorithm>

#include "base/log.h"
#include "fs/about_to_block.h"

namespace kvcfs::fs {
namespace {

using iouring::SlotId;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

// 64: one look under the lock yields enough candidates that most rounds free what is wanted.
constexpr size_t kCandidates = 64;

}  // namespace

ResidentSet::ResidentSet(iouring::SlotTier& tier, const ResidentSetOptions& options)
    : tier_(tier), options_(options) {
  MutexLock lock(mutex_);
  nodes_.resize(tier.slot_count() + 1);
}

ResidentSet::~ResidentSet() {
  Stop();
}

void ResidentSet::Start() {
  thread_ = std::thread([this] { Run(); });
}

void ResidentSet::Stop() {
  {
    MutexLock lock(mutex_);
    stopping_ = true;
    ++changes_;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void ResidentSet::Unlink(SlotId slot) {
  Node& node = nodes_[slot];
  if (node.owner == nullptr) return;
  nodes_[node.previous].next = node.next;
  nodes_[node.next].previous = node.previous;
  node = Node{};
}

void ResidentSet::LinkHot(SlotId slot) {
  // nodes_[0] is the ring's head: next is the coldest, previous the hottest.
  Node& node = nodes_[slot];
  node.previous = nodes_[0].previous;
  node.next = 0;
  nodes_[node.previous].next = slot;
  nodes_[0].previous = slot;
}

void ResidentSet::Add(SlotId slot, SlotOwner* owner) {
  {
    MutexLock lock(mutex_);
    Unlink(slot);
    nodes_[slot].owner = owner;
    LinkHot(slot);
  }
  if (!Fits(0, 0, options_.high_share)) changed_.notify_all();
}

void ResidentSet::Touch(SlotId slot) {
  MutexLock lock(mutex_);
  SlotOwner* owner = nodes_[slot].owner;
  if (owner == nullptr || nodes_[0].previous == slot) return;
  Unlink(slot);
  nodes_[slot].owner = owner;
  LinkHot(slot);
}

void ResidentSet::Remove(SlotId slot) {
  MutexLock lock(mutex_);
  Unlink(slot);
}

void ResidentSet::RoomMayBeHad() {
  {
    MutexLock lock(mutex_);
    ++changes_;
  }
  changed_.notify_all();
}

bool ResidentSet::Fits(uint64_t bytes, uint32_t slots, double share) const {
  return static_cast<double>(tier_.used_bytes() + bytes) <=
             share * static_cast<double>(tier_.capacity_bytes()) &&
         static_cast<double>(tier_.used_slots() + slots) <=
             share * static_cast<double>(tier_.slot_count());
}

bool ResidentSet::MakeRoom(uint64_t bytes, uint32_t slots, double share) {
  const auto enough = [&] { return Fits(bytes, slots, share); };
  std::vector<std::pair<SlotId, SlotOwner*>> candidates;
  SlotId from = 0;  // the last one looked at; 0: begin with the coldest
  size_t looked_at = 0;
  while (!enough()) {
    candidates.clear();
    {
      MutexLock lock(mutex_);
      // If that one has moved or gone meanwhile we begin again; looked_at bounds the work.
      SlotId at = nodes_[from].owner != nullptr || from == 0 ? nodes_[from].next : nodes_[0].next;
      while (at != 0 && candidates.size() < kCandidates) {
        candidates.emplace_back(at, nodes_[at].owner);
        at = nodes_[at].next;
      }
      if (looked_at > 2 * nodes_.size()) return false;
    }
    if (candidates.empty()) return false;
    looked_at += candidates.size();
    // Where something went, what was refused before may go now (the parent of a leaf): look at the
    // same cold end again, and go on to hotter slots only when it yields nothing.
    bool went = false;
    for (const auto& [slot, owner] : candidates) {
      if (enough()) return true;
      if (owner->TryEvict(slot)) {
        ++evicted_slots_;
        went = true;
      } else {
        owner->WriteBackSoon(slot);
      }
    }
    if (went) {
      looked_at = 0;
    } else {
      from = candidates.back().first;
    }
  }
  return true;
}

Result<SlotId> ResidentSet::CreateSlot(uint64_t reserve_bytes, milliseconds timeout, Fd* file) {
  const auto deadline = steady_clock::now() + timeout;
  for (;;) {
    uint64_t seen = 0;
    {
      MutexLock lock(mutex_);
      seen = changes_;
    }
    Result<SlotId> slot = tier_.Create(reserve_bytes, file);
    if (slot.ok() || slot.code() != Code::kNoSpace) return slot;
    if (reserve_bytes > tier_.capacity_bytes()) return slot;
    AboutToBlock();
    if (MakeRoom(reserve_bytes + 4096, 1, 1.0)) continue;
    MutexLock lock(mutex_);
    if (stopping_ || steady_clock::now() >= deadline) return slot;
    // Leases end without a signal, so look again in any case after a while.
    changed_.wait_until(lock.native(), std::min(deadline, steady_clock::now() + milliseconds(50)),
                        [&]() KVC_NO_ANALYSIS { return changes_ != seen || stopping_; });
  }
}

Status ResidentSet::Grow(SlotId slot, uint64_t bytes, milliseconds timeout) {
  const auto deadline = steady_clock::now() + timeout;
  for (;;) {
    const uint64_t has = tier_.record(slot).reserved_bytes;
    if (bytes <= has) return {};
    uint64_t seen = 0;
    {
      MutexLock lock(mutex_);
      seen = changes_;
    }
    if (tier_.used_bytes() + (bytes - has) <= tier_.capacity_bytes()) {
      tier_.SetReserved(slot, bytes);
      return {};
    }
    AboutToBlock();
    if (MakeRoom(bytes - has + 4096, 0, 1.0)) continue;
    MutexLock lock(mutex_);
    if (stopping_ || steady_clock::now() >= deadline) {
      return Error{Code::kNoSpace, "DRAM tier: nothing more may be evicted"};
    }
    changed_.wait_until(lock.native(), std::min(deadline, steady_clock::now() + milliseconds(50)),
                        [&]() KVC_NO_ANALYSIS { return changes_ != seen || stopping_; });
  }
}

void ResidentSet::Run() {
  SetThreadName("evictor");
  const auto full = [this] { return !Fits(0, 0, options_.high_share); };
  for (;;) {
    {
      MutexLock lock(mutex_);
      if (stopping_) return;
      const uint64_t seen = changes_;
      changed_.wait_for(lock.native(), milliseconds(100),
                        [&]() KVC_NO_ANALYSIS { return stopping_ || changes_ != seen || full(); });
      if (stopping_) return;
    }
    if (!full()) continue;
    if (!MakeRoom(0, 0, options_.low_share)) {
      // Nothing may go just now: wait for a write-back or the end of a lease.
      MutexLock lock(mutex_);
      const uint64_t seen = changes_;
      changed_.wait_for(lock.native(), milliseconds(50),
                        [&]() KVC_NO_ANALYSIS { return stopping_ || changes_ != seen; });
    }
  }
}

}  // namespace kvcfs::fs
