// Keeps two CPUs from sleeping while calls follow each other closely.
//
// Each call of a file system in user space wakes two threads, one after the other. Where the CPU of
// the one to be woken has halted meanwhile, that takes 30 to 60 us in a virtual machine (and an
// exit from a deep sleep state elsewhere): create, write and close of a 160 KiB block took 500 us
// so, of which 60 were work. While calls come, two threads of the lowest class (SCHED_IDLE,
// sched(7)) turn on the CPU that serves and on the caller's: for the scheduler both are idle, and
// anybody who has work has them at once. They sleep as soon as no call came for kLinger. Threads:
// Called, any. Costs: some ns a call; two CPUs that nobody else wants, while calls come.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <thread>

#include <sched.h>
#include <sys/types.h>

namespace kvcfs::fs {

class CpuWarmer {
 public:
  // On CPUs of `allowed`, or where somebody has put its threads since. With less than two it does
  // nothing.
  explicit CpuWarmer(const cpu_set_t& allowed);
  ~CpuWarmer();
  CpuWarmer(const CpuWarmer&) = delete;
  CpuWarmer& operator=(const CpuWarmer&) = delete;

  // A call of that thread was taken, now, on this CPU. Starts them after kCalls in close order.
  void Called(pid_t caller, std::chrono::steady_clock::time_point instant);

  // How many turn at this moment.
  unsigned turning() const { return turning_.load(std::memory_order_relaxed); }

  static constexpr unsigned kCalls = 16;
  static constexpr unsigned kCallsAlone = 1024;  // instead, where there is only one CPU for now
  static constexpr std::chrono::microseconds kLinger{1000};

 private:
  static constexpr unsigned kThreads = 2;

  void Start(pid_t caller);
  void Run(unsigned which);
  int AnotherCpu(int than) const;

  cpu_set_t allowed_;
  const bool usable_;
  std::atomic<int64_t> last_call_{0};  // ns of the monotonic clock
  std::atomic<unsigned> in_a_row_{0};
  std::atomic<unsigned> turning_{0};
  std::atomic<bool> over_{false};
  std::atomic<uint32_t> burst_{0};  // counts starts; what the threads wait for
  std::array<std::atomic<int>, kThreads> cpu_{};
  std::array<std::thread, kThreads> threads_;
};

}  // namespace kvcfs::fs
