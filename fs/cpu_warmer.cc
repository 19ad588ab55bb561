#include "fs/cpu_warmer.h"

#include "base/log.h"
#include "fs/caller_cpu.h"

namespace kvcfs::fs {

namespace {

int64_t Nanos(std::chrono::steady_clock::time_point instant) {
  return instant.time_since_epoch() / std::chrono::nanoseconds(1);
}
int64_t Now() {
  return Nanos(std::chrono::steady_clock::now());
}

constexpr int64_t kLingerNs = std::chrono::nanoseconds(CpuWarmer::kLinger).count();

void Relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

CpuWarmer::CpuWarmer(const cpu_set_t& allowed)
    : allowed_(allowed), usable_(CPU_COUNT(&allowed) > 1) {
  if (!usable_) return;
  for (unsigned i = 0; i < kThreads; ++i) threads_[i] = std::thread([this, i] { Run(i); });
}

CpuWarmer::~CpuWarmer() {
  over_ = true;
  ++burst_;
  burst_.notify_all();
  for (std::thread& thread : threads_) {
    if (thread.joinable()) thread.join();
  }
}

void CpuWarmer::Called(pid_t caller, std::chrono::steady_clock::time_point instant) {
  if (!usable_) return;
  const int64_t now = Nanos(instant);
  const int64_t before = last_call_.exchange(now, std::memory_order_relaxed);
  if (turning_.load(std::memory_order_relaxed) > 0) return;
  if (now - before > kLingerNs) {
    in_a_row_.store(0, std::memory_order_relaxed);
  } else if (in_a_row_.fetch_add(1, std::memory_order_relaxed) + 1 == kCalls) {
    Start(caller);
  }
}

void CpuWarmer::Start(pid_t caller) {
  const int here = ::sched_getcpu();
  int there = ThreadCpu(caller).Get().value_or(here);
  if (there == here || there < 0 || there >= CPU_SETSIZE || !CPU_ISSET(there, &allowed_)) {
    there = AnotherCpu(here);
  }
  cpu_[0].store(here, std::memory_order_relaxed);
  cpu_[1].store(there, std::memory_order_relaxed);
  in_a_row_.store(0, std::memory_order_relaxed);
  ++burst_;
  burst_.notify_all();
}

int CpuWarmer::AnotherCpu(int than) const {
  for (int i = 1; i <= CPU_SETSIZE; ++i) {
    const int cpu = (than + i) % CPU_SETSIZE;
    if (CPU_ISSET(cpu, &allowed_)) return cpu;
  }
  return than;
}

void CpuWarmer::Run(unsigned which) {
  SetThreadName("awake");
  const sched_param none{};
  if (::sched_setscheduler(0, SCHED_IDLE, &none) != 0) return;  // at another priority it would harm
  for (uint32_t seen = 0;;) {
    burst_.wait(seen);
    seen = burst_.load();
    if (over_) return;
    // Somebody (taskset) may have said since where this process may run. Its only CPU is not asleep
    // while calls come.
    cpu_set_t allowed;
    if (::sched_getaffinity(0, sizeof allowed, &allowed) != 0 || CPU_COUNT(&allowed) < 2) {
      in_a_row_.store(kCalls - kCallsAlone, std::memory_order_relaxed);
      continue;
    }
    const int cpu = cpu_[which].load(std::memory_order_relaxed);
    cpu_set_t only;
    CPU_ZERO(&only);
    CPU_SET(cpu, &only);
    if (!CPU_ISSET(cpu, &allowed) || ::sched_setaffinity(0, sizeof only, &only) != 0) continue;
    turning_.fetch_add(1, std::memory_order_relaxed);
    while (Now() - last_call_.load(std::memory_order_relaxed) < kLingerNs && !over_) {
      for (int i = 0; i < 16; ++i) Relax();
      // The scheduler may have let it begin before one that has work, as a share that it is owed,
      // and would not look again before the next tick.
      ::sched_yield();
    }
    if (cpu_set_t now; ::sched_getaffinity(0, sizeof now, &now) == 0 && CPU_EQUAL(&now, &only)) {
      ::sched_setaffinity(0, sizeof allowed, &allowed);
    }
    turning_.fetch_sub(1, std::memory_order_relaxed);
  }
}

}  // namespace kvcfs::fs
