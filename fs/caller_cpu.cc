#include "fs/caller_cpu.h"

#include <charconv>
#include <string_view>

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include "base/fd.h"

namespace kvcfs::fs {

namespace {

cpu_set_t Only(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  return set;
}

void ChangePolicy(int from, int to) {
  const sched_param none{};
  if (::sched_getscheduler(0) == from) ::sched_setscheduler(0, to, &none);
}

}  // namespace

ThreadCpu::ThreadCpu(pid_t tid)
    : stat_(::open(fmt::format("/proc/{}/stat", tid).c_str(), O_RDONLY | O_CLOEXEC)) {}

std::optional<int> ThreadCpu::Get() const {
  char text[1024];
  const ssize_t got = stat_.valid() ? ::pread(stat_.get(), text, sizeof text, 0) : -1;
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

CallerFollower::CallerFollower(const cpu_set_t& allowed)
    : allowed_(allowed), usable_(CPU_COUNT(&allowed) > 1) {
  // A thread begins on the CPUs of the one that made it, which may follow a caller just now.
  if (!usable_) return;
  ::sched_setaffinity(0, sizeof allowed_, &allowed_);
  ChangePolicy(SCHED_BATCH, SCHED_OTHER);
}

void CallerFollower::Took(pid_t caller) {
  // 0: a call that nobody waits for (RELEASE, FORGET).
  if (!usable_ || caller == 0) return;
  if (caller != last_) {
    last_ = caller;
    in_a_row_ = 0;
    known_ = false;
    Unpin();
    return;
  }
  if (++in_a_row_ < kCalls) return;
  in_a_row_ = 0;
  Follow();
}

void CallerFollower::Follow() {
  LookForNewMask();
  if (!known_) caller_ = ThreadCpu(last_);
  known_ = true;
  const std::optional<int> cpu = caller_.Get();
  if (!cpu || *cpu >= CPU_SETSIZE || *cpu == pinned_to_ || !CPU_ISSET(*cpu, &allowed_)) return;
  const cpu_set_t there = Only(*cpu);
  if (::sched_setaffinity(0, sizeof there, &there) != 0) return;
  pinned_to_ = *cpu;
  ChangePolicy(SCHED_OTHER, SCHED_BATCH);
}

void CallerFollower::LookForNewMask() {
  const cpu_set_t expected = pinned_to_ >= 0 ? Only(pinned_to_) : allowed_;
  cpu_set_t now;
  if (::sched_getaffinity(0, sizeof now, &now) != 0 || CPU_EQUAL(&now, &expected)) return;
  allowed_ = now;
  pinned_to_ = -1;
  ChangePolicy(SCHED_BATCH, SCHED_OTHER);
}

void CallerFollower::Unpin() {
  if (pinned_to_ < 0) return;
  LookForNewMask();
  if (pinned_to_ < 0) return;
  ::sched_setaffinity(0, sizeof allowed_, &allowed_);
  pinned_to_ = -1;
  ChangePolicy(SCHED_BATCH, SCHED_OTHER);
}

}  // namespace kvcfs::fs
