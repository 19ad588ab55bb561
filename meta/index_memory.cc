#include "meta/index_memory.h"

#include <sys/mman.h>

#include "base/result.h"

namespace kvcfs::meta {

using layout::kPageBytes;
using layout::kWordBytes;

IndexMemory::IndexMemory() = default;

IndexMemory::~IndexMemory() {
  for (uint64_t i = 0; i < region_count_; ++i) ::munmap(regions_[i].load(), kRegionBytes);
}

// No memory for the index is no memory for anything: as where `new` fails, the process ends.
void IndexMemory::AddRegion() {
  constexpr uint64_t kHugePageBytes = 2u << 20;
  KVC_CHECK(region_count_ < kRegionsMax);
  void* const mapped = ::mmap(nullptr, kRegionBytes + kHugePageBytes, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  KVC_CHECK(mapped != MAP_FAILED);
  auto* const begin = static_cast<std::byte*>(mapped);
  const auto misplaced = reinterpret_cast<uintptr_t>(mapped) % kHugePageBytes;
  const uint64_t skip = misplaced == 0 ? 0 : kHugePageBytes - misplaced;
  if (skip > 0) ::munmap(begin, skip);
  ::munmap(begin + skip + kRegionBytes, kHugePageBytes - skip);
  ::madvise(begin + skip, kRegionBytes, MADV_HUGEPAGE);
  regions_[region_count_++].store(reinterpret_cast<uint64_t*>(begin + skip),
                                  std::memory_order_release);
}

uint64_t IndexMemory::Allocate(uint64_t pages) {
  const uint64_t bytes = pages * kPageBytes;
  KVC_CHECK(pages > 0 && bytes <= kRegionBytes);
  allocated_bytes_ += bytes;
  // The smallest hole that holds it; what is left of it stays a hole.
  const auto hole = free_.lower_bound(pages);
  if (hole != free_.end()) {
    const uint64_t address = hole->second.back();
    const uint64_t left = hole->first - pages;
    hole->second.pop_back();
    if (hole->second.empty()) free_.erase(hole);
    if (left > 0) free_[left].push_back(address + bytes);
    return address;
  }
  const uint64_t room = region_count_ * kRegionBytes - end_;
  if (room < bytes) {
    if (room > 0) free_[room / kPageBytes].push_back(end_);
    end_ = region_count_ * kRegionBytes;
    AddRegion();
  }
  const uint64_t address = end_;
  end_ += bytes;
  return address;
}

void IndexMemory::Free(uint64_t address, uint64_t pages) {
  allocated_bytes_ -= pages * kPageBytes;
  free_[pages].push_back(address);
}

bool IndexMemory::Read(uint64_t address, std::span<uint64_t> words) const {
  const uint64_t bytes = words.size_bytes();
  if (address % kWordBytes != 0 || address >= kRegionBytes * kRegionsMax) return false;
  if (address % kRegionBytes + bytes > kRegionBytes) return false;
  const uint64_t* const region = regions_[address / kRegionBytes].load(std::memory_order_acquire);
  if (region == nullptr) return false;
  const uint64_t* const from = region + address % kRegionBytes / kWordBytes;
  for (size_t i = 0; i < words.size(); ++i) words[i] = layout::LoadWord(from + i);
  return true;
}

}  // namespace kvcfs::meta
