#include "fs/caller_cpu.h"

#include <algorithm>
#include <charconv>
#include <string_view>

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include "base/fd.h"

namespace kvcfs::fs {

std::optional<int> CpuOfThread(pid_t tid) {
  const Fd file(::open(fmt::format("/proc/{}/stat", tid).c_str(), O_RDONLY | O_CLOEXEC));
  if (!file.valid()) return std::nullopt;
  char text[1024];
  const ssize_t got = ::read(file.get(), text, sizeof text);
  if (got <= 0) return std::nullopt;
  std::string_view rest(text, static_cast<size_t>(got));
  // proc_pid_stat(5): the name, field 2, may hold anything; the CPU is field 39.
  const size_t name_end = rest.rfind(')');
  if (name_end == std::string_view::npos) return std::nullopt;
  rest.remove_prefix(name_end + 1);
  for (int field = 2; field < 38; ++field) {
    const size_t space = rest.find(' ', 1);
    if (space == std::string_view::npos) return std::nullopt;
    rest.remove_prefix(space);
  }
  int cpu = -1;
  const auto [end, error] = std::from_chars(rest.data() + 1, rest.data() + rest.size(), cpu);
  if (error != std::errc() || cpu < 0) return std::nullopt;
  return cpu;
}

CallerFollower::CallerFollower()
    : usable_(::sched_getaffinity(0, sizeof allowed_, &allowed_) == 0 && CPU_COUNT(&allowed_) > 1) {
}

void CallerFollower::Took(pid_t caller) {
  if (!usable_) return;
  if (caller != last_) {
    last_ = caller;
    in_a_row_ = 0;
    look_after_ = kCallsFirst;
    return;
  }
  if (++in_a_row_ < look_after_) return;
  in_a_row_ = 0;
  look_after_ = std::min(look_after_ * 2, kCallsMost);
  Follow(caller);
}

void CallerFollower::Follow(pid_t caller) const {
  const std::optional<int> cpu = CpuOfThread(caller);
  if (!cpu || *cpu >= CPU_SETSIZE || *cpu == ::sched_getcpu()) return;
  if (!CPU_ISSET(*cpu, &allowed_)) return;
  cpu_set_t there;
  CPU_ZERO(&there);
  CPU_SET(*cpu, &there);
  if (::sched_setaffinity(0, sizeof there, &there) != 0) return;
  ::sched_setaffinity(0, sizeof allowed_, &allowed_);
}

void DoNotInterruptCallers() {
  const sched_param none{};
  // What the operator has set for the whole process (real time, idle) stays.
  if (::sched_getscheduler(0) == SCHED_OTHER) ::sched_setscheduler(0, SCHED_BATCH, &none);
}

}  // namespace kvcfs::fs
