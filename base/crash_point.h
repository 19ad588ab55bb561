// Named places at which a test may have the daemon killed: between two writes that belong together.
//
// KVC_CRASH_POINT("publish.before_insert") costs one load while nothing is armed. Armed by
// `--set test.crash_point=NAME` or `NAME:N` (the Nth time it is passed); the daemon that replaces
// the killed one is not armed. Threads: any.
#pragma once

#include <atomic>
#include <string>

namespace kvcfs {

inline std::atomic<bool> g_crash_point_armed{false};

// "" disarms.
void ArmCrashPoint(const std::string& spec);
// SIGKILLs this process if that point is armed and its count is reached.
void PassCrashPoint(const char* name);

}  // namespace kvcfs

#define KVC_CRASH_POINT(name)                                         \
  do {                                                                \
    if (::kvcfs::g_crash_point_armed.load(std::memory_order_relaxed)) \
      ::kvcfs::PassCrashPoint(name);                                  \
  } while (false)
