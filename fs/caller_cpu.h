// Serving a call on the CPU that it came from.
//
// A call and its answer are two wake-ups. On the caller's own CPU each is a switch of threads, a
// few microseconds; on another one, each first gets a halted CPU to run: 30 to 60 us in a virtual
// machine, and more from a deep sleep state. The kernel leaves a woken thread where it last ran if
// that CPU is idle (wake_affine_idle in kernel/sched/fair.c), so two threads that came to be apart
// stay apart, however little else there is to do.
#pragma once

#include <optional>

#include <sched.h>
#include <sys/types.h>

namespace kvcfs::fs {

// The CPU on which thread `tid` runs or last ran; nothing if there is no such thread.
std::optional<int> CpuOfThread(pid_t tid);

// Moves the thread that owns it to where a lone caller is; it may run anywhere afterwards, but the
// kernel has no reason to move it. With several callers in turn it does nothing. Used by one
// thread.
class CallerFollower {
 public:
  CallerFollower();

  // A call of that thread was taken. Mostly only counts: looks where the caller is after so many
  // calls of it in a row, and less and less often while it stays the same one.
  void Took(pid_t caller);

  static constexpr unsigned kCallsFirst = 16;
  static constexpr unsigned kCallsMost = 1024;

 private:
  void Follow(pid_t caller) const;

  cpu_set_t allowed_{};
  bool usable_ = false;
  pid_t last_ = 0;
  unsigned in_a_row_ = 0;
  unsigned look_after_ = kCallsFirst;
};

// The calling thread no longer interrupts a caller that goes on running after a call for which it
// does not wait (RELEASE after close): it runs when the caller waits, or at the next tick.
// sched(7), SCHED_BATCH.
void DoNotInterruptCallers();

}  // namespace kvcfs::fs
