// What is resident in the DRAM tier, coldest first, and how room is made in it.
//
// Blocks and ordinary files share the tier: each slot has an owner that is asked to give it up.
// Threads: any. Owners are called without any lock of ours held.
// Fails: kNoSpace nothing may be evicted within the time.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <thread>
#include <vector>

#include "base/mutex.h"
#include "base/result.h"
#include "iouring/slot_tier.h"

namespace kvcfs::fs {

class SlotOwner {
 public:
  virtual ~SlotOwner() = default;
  // Frees the slot (ResidentSet::Remove, then SlotTier::Free) if nothing needs it: not open, not
  // mapped, and its bytes are on NVMe too or may go altogether. Never blocks on I/O.
  virtual bool TryEvict(iouring::SlotId slot) = 0;
  // It is cold and dirty and room is wanted: begin to write it back.
  virtual void WriteBackSoon(iouring::SlotId slot) = 0;
};

struct ResidentSetOptions {
  double high_share = 0.92;  // of the capacity: above it the evictor thread works ...
  double low_share = 0.88;   // ... down to this
};

class ResidentSet {
 public:
  ResidentSet(iouring::SlotTier& tier, const ResidentSetOptions& options);
  ~ResidentSet();

  void Start();  // the evictor thread
  void Stop();

  // A fresh slot (state kMaking), making room if needed; waits for write-back at most `timeout`.
  // `file` (may be null) gets a read-write descriptor of it.
  Result<iouring::SlotId> CreateSlot(uint64_t reserve_bytes, std::chrono::milliseconds timeout,
                                     Fd* file = nullptr);
  // The slot will hold that many bytes; makes room for the difference.
  Status Grow(iouring::SlotId slot, uint64_t bytes, std::chrono::milliseconds timeout);

  void Add(iouring::SlotId slot, SlotOwner* owner);  // as the most recently used
  void Touch(iouring::SlotId slot);
  void Remove(iouring::SlotId slot);
  // Something became evictable (written back, closed): wakes who waits for room.
  void RoomMayBeHad();

  uint64_t evicted_slots() const { return evicted_slots_.load(); }

 private:
  struct Node {
    iouring::SlotId previous = 0, next = 0;
    SlotOwner* owner = nullptr;
  };

  void Unlink(iouring::SlotId slot) KVC_REQUIRES(mutex_);
  void LinkHot(iouring::SlotId slot) KVC_REQUIRES(mutex_);
  // So much more would be at most this share of the tier: of its bytes, and of its slots.
  bool Fits(uint64_t bytes, uint32_t slots, double share) const;
  // Evicts cold slots until that fits. True if it does.
  bool MakeRoom(uint64_t bytes, uint32_t slots, double share);
  void Run();

  iouring::SlotTier& tier_;
  const ResidentSetOptions options_;
  Mutex mutex_;
  std::condition_variable_any changed_;
  std::vector<Node> nodes_ KVC_GUARDED_BY(mutex_);  // [slot]; 0 is the ring's head
  uint64_t changes_ KVC_GUARDED_BY(mutex_) = 0;
  bool stopping_ KVC_GUARDED_BY(mutex_) = false;
  std::atomic<uint64_t> evicted_slots_{0};
  std::thread thread_;
};

}  // namespace kvcfs::fs
