// Serving a call on the CPU that it came from.
//
// A call and its answer are two wake-ups. On the caller's own CPU each is a switch of threads, a
// few microseconds; on another one, each first gets a halted CPU to run: 30 to 60 us in a virtual
// machine, and more from a deep sleep state. The kernel prefers an idle CPU for whom it wakes
// (select_idle_sibling in kernel/sched/fair.c): good for work that goes on beside the caller's, bad
// for a call for which the caller waits.
#pragma once

#include <optional>

#include <sched.h>
#include <sys/types.h>

#include "base/fd.h"

namespace kvcfs::fs {

// Tells on which CPU a thread runs or last ran.
class ThreadCpu {
 public:
  ThreadCpu() = default;
  explicit ThreadCpu(pid_t tid);
  std::optional<int> Get() const;  // nothing: there is no such thread (any more)

 private:
  Fd stat_;
};

// Keeps the thread that owns it on the CPU of a lone caller, for as long as that is the only one
// and where it is. As long as it is there it is SCHED_BATCH (sched(7)): it does not interrupt a
// caller that goes on after a call for which it does not wait (RELEASE), and runs when the caller
// waits. Used by one thread, which may run anywhere in `allowed` else, or in what somebody
// (taskset) has given it since; a policy that somebody (chrt) gave it stays.
class CallerFollower {
 public:
  explicit CallerFollower(const cpu_set_t& allowed);

  // A call of that thread was taken. Mostly only counts: looks where the caller is (some us) after
  // so many calls of it in a row.
  void Took(pid_t caller);

  static constexpr unsigned kCalls = 16;

 private:
  void Follow();
  void LookForNewMask();
  void Unpin();

  cpu_set_t allowed_;
  const bool usable_;
  pid_t last_ = 0;
  unsigned in_a_row_ = 0;
  ThreadCpu caller_;
  bool known_ = false;  // caller_ is of last_
  int pinned_to_ = -1;
};

}  // namespace kvcfs::fs
