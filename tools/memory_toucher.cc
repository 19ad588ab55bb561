#include "tools/memory_toucher.h"

#include <cstdio>
#include <vector>

#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/log.h"

namespace kvcfs::tools {
namespace {

constexpr uint64_t kStep = 32u << 20;
constexpr uint64_t kLeaveFree = 1u << 30;  // for everybody else, while we hold the pages

uint64_t AvailableBytes() {
  std::FILE* file = std::fopen("/proc/meminfo", "re");
  if (file == nullptr) return 0;
  char line[128];
  unsigned long long kib = 0;
  while (std::fgets(line, sizeof line, file) != nullptr) {
    if (std::sscanf(line, "MemAvailable: %llu kB", &kib) == 1) break;
  }
  std::fclose(file);
  return kib << 10;
}

}  // namespace

MemoryToucher::MemoryToucher(uint64_t bytes) {
  if (bytes > 0) thread_ = std::thread([this, bytes] { Run(bytes); });
}

MemoryToucher::~MemoryToucher() {
  stop_ = true;
  if (thread_.joinable()) thread_.join();
}

void MemoryToucher::Run(uint64_t bytes) {
  SetThreadName("touch");
  // Of this thread alone: on Linux priorities are a thread's.
  ::setpriority(PRIO_PROCESS, static_cast<id_t>(::syscall(SYS_gettid)), 19);
  std::vector<void*> held;
  // All of it is held until the end: freed pages would be the next ones handed out.
  for (uint64_t done = 0; done < bytes && !stop_; done += kStep) {
    if (AvailableBytes() < kStep + kLeaveFree) break;
    void* memory =
        ::mmap(nullptr, kStep, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) break;
    ::madvise(memory, kStep, MADV_HUGEPAGE);
    held.push_back(memory);
    auto* at = static_cast<volatile char*>(memory);
    for (uint64_t offset = 0; offset < kStep && !stop_; offset += 4096) at[offset] = 1;
  }
  for (void* memory : held) ::munmap(memory, kStep);
  if (!stop_) KVC_LOG(Info, "memory touched for the DRAM tier", "bytes={}", held.size() * kStep);
}

}  // namespace kvcfs::tools
