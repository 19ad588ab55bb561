// Touches as much memory as the DRAM tier will take, in the background, once.
//
// In a virtual machine a page that was never used costs the hypervisor's fault too (2.5 ms a MiB
// measured), which the first writers would pay. Threads: its own, of lowest priority.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>

namespace kvcfs::tools {

class MemoryToucher {
 public:
  explicit MemoryToucher(uint64_t bytes);
  ~MemoryToucher();
  MemoryToucher(const MemoryToucher&) = delete;
  MemoryToucher& operator=(const MemoryToucher&) = delete;

 private:
  void Run(uint64_t bytes);

  std::atomic<bool> stop_{false};
  std::thread thread_;
};

}  // namespace kvcfs::tools
