// How many bytes of ordinary files the tiers hold.
//
// Threads: any; a slot's record is guarded by its node.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "iouring/slot_tier.h"

namespace kvcfs::fs {

class SlotBooks {
 public:
  void Add(const iouring::SlotRecord& slot) { Count(slot, 1); }
  void Remove(const iouring::SlotRecord& slot) { Count(slot, -1); }

  // While one lives, length, flags and state of the slot may change.
  class Change {
   public:
    Change(SlotBooks& books, const iouring::SlotRecord& slot) : books_(books), slot_(slot) {
      books_.Remove(slot_);
    }
    ~Change() { books_.Add(slot_); }
    Change(const Change&) = delete;
    Change& operator=(const Change&) = delete;

   private:
    SlotBooks& books_;
    const iouring::SlotRecord& slot_;
  };

  // An entry of the segments that a file refers to.
  void AddEntry(uint64_t bytes) { nvme_bytes_ += static_cast<int64_t>(bytes); }
  void RemoveEntry(uint64_t bytes) { nvme_bytes_ -= static_cast<int64_t>(bytes); }

  uint64_t dram_bytes() const { return Bytes(dram_bytes_); }
  uint64_t dirty_bytes() const { return Bytes(dirty_bytes_); }  // of those
  uint64_t nvme_bytes() const { return Bytes(nvme_bytes_); }

 private:
  void Count(const iouring::SlotRecord& slot, int64_t sign) {
    if (slot.state.load(std::memory_order_relaxed) != iouring::SlotState::kFile) return;
    const int64_t bytes = sign * static_cast<int64_t>(slot.length);
    dram_bytes_ += bytes;
    if ((slot.flags & iouring::kSlotDirty) != 0) dirty_bytes_ += bytes;
  }
  static uint64_t Bytes(const std::atomic<int64_t>& count) {
    return static_cast<uint64_t>(std::max<int64_t>(0, count.load()));
  }

  std::atomic<int64_t> dram_bytes_{0}, dirty_bytes_{0}, nvme_bytes_{0};
};

}  // namespace kvcfs::fs
