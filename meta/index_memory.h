// The memory of one chain index, as other machines may be given to read it.
//
// One flat range of addresses from 0, backed by regions of 64 MiB (what will be registered with a
// network card), given out in pages of 4 KiB. Regions are on huge pages where the host has them:
// at 10 million blocks most of a lookup's time would else go to page tables.
// Threads: one writer; At and Read in any thread, for what was allocated before.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "meta/remote_layout.h"

namespace kvcfs::meta {

class IndexMemory {
 public:
  static constexpr uint64_t kRegionBytes = 64u << 20;
  // 32 GiB, what a run's body can be named in: some 500 million blocks.
  static constexpr uint32_t kRegionsMax = 512;

  IndexMemory();
  ~IndexMemory();
  IndexMemory(const IndexMemory&) = delete;
  IndexMemory& operator=(const IndexMemory&) = delete;

  // The address of so many pages in a row, at most a region. Their content is not cleared.
  uint64_t Allocate(uint64_t pages);
  void Free(uint64_t address, uint64_t pages);

  uint64_t* At(uint64_t address) const {
    return regions_[address / kRegionBytes].load(std::memory_order_acquire) +
           address % kRegionBytes / layout::kWordBytes;
  }
  // A one-sided read: whatever is there. False outside of the memory.
  bool Read(uint64_t address, std::span<uint64_t> words) const;

  uint64_t allocated_bytes() const { return allocated_bytes_; }

 private:
  void AddRegion();

  std::array<std::atomic<uint64_t*>, kRegionsMax> regions_{};
  uint64_t region_count_ = 0;
  uint64_t end_ = 0;  // of what was ever given out
  uint64_t allocated_bytes_ = 0;
  std::map<uint64_t, std::vector<uint64_t>> free_;  // [pages in a row] addresses
};

}  // namespace kvcfs::meta
