#include "fs/caller_cpu.h"

#include <atomic>
#include <thread>

#include <gtest/gtest.h>
#include <sys/prctl.h>
#include <unistd.h>

namespace kvcfs::fs {
namespace {

std::vector<int> Allowed() {
  cpu_set_t set;
  std::vector<int> cpus;
  if (::sched_getaffinity(0, sizeof set, &set) != 0) return cpus;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
  }
  return cpus;
}

// Stays on one CPU, under a name that a careless parser would stumble over.
class PinnedThread {
 public:
  explicit PinnedThread(int cpu)
      : thread_([this, cpu] {
          ::prctl(PR_SET_NAME, "a) S 1 (b");
          cpu_set_t set;
          CPU_ZERO(&set);
          CPU_SET(cpu, &set);
          ::sched_setaffinity(0, sizeof set, &set);
          tid_ = ::gettid();
          tid_.notify_all();
          over_.wait(false);
        }) {
    tid_.wait(0);
  }
  ~PinnedThread() {
    over_ = true;
    over_.notify_all();
    thread_.join();
  }
  PinnedThread(const PinnedThread&) = delete;
  PinnedThread& operator=(const PinnedThread&) = delete;
  pid_t tid() const { return tid_; }

 private:
  std::atomic<pid_t> tid_{0};
  std::atomic<bool> over_{false};
  std::thread thread_;
};

TEST(CallerCpuTest, TellsWhereAThreadIs) {
  for (const int cpu : Allowed()) {
    const PinnedThread thread(cpu);
    EXPECT_EQ(ThreadCpu(thread.tid()).Get(), cpu);
  }
}

TEST(CallerCpuTest, NoSuchThreadIsNowhere) {
  EXPECT_EQ(ThreadCpu(0x3fffffff).Get(), std::nullopt);
}

void TakeCalls(CallerFollower& follower, pid_t caller, unsigned count) {
  for (unsigned i = 0; i < count; ++i) follower.Took(caller);
}

TEST(CallerCpuTest, StaysWithALoneCaller) {
  const std::vector<int> all = Allowed();
  if (all.size() < 2) GTEST_SKIP() << "one CPU: there is nowhere to go";
  cpu_set_t set;
  ASSERT_EQ(::sched_getaffinity(0, sizeof set, &set), 0);
  CallerFollower follower(set);
  for (const int cpu : all) {
    const PinnedThread caller(cpu);
    for (unsigned i = 0; i < CallerFollower::kCalls; ++i) {
      EXPECT_EQ(Allowed(), all) << "after " << i << " calls, which is too early";
      follower.Took(caller.tid());
      follower.Took(0);  // as RELEASE comes: from nobody
    }
    follower.Took(caller.tid());
    EXPECT_EQ(Allowed(), std::vector<int>{cpu});
    EXPECT_EQ(::sched_getcpu(), cpu);
    follower.Took(caller.tid() + 1);
    EXPECT_EQ(Allowed(), all) << "another one called";
  }
}

TEST(CallerCpuTest, WhatSomebodyElseSetsCounts) {
  const std::vector<int> all = Allowed();
  if (all.size() < 2) GTEST_SKIP() << "one CPU: there is nowhere to go";
  cpu_set_t set;
  ASSERT_EQ(::sched_getaffinity(0, sizeof set, &set), 0);
  std::thread([&] {
    CallerFollower follower(set);
    const PinnedThread caller(all[0]), other(all[1]);
    TakeCalls(follower, caller.tid(), 1 + CallerFollower::kCalls);
    ASSERT_EQ(Allowed(), std::vector<int>{all[0]});
    // As `taskset -a -p` would, back to all, then to one that is not the caller's.
    ASSERT_EQ(::sched_setaffinity(0, sizeof set, &set), 0);
    TakeCalls(follower, caller.tid(), CallerFollower::kCalls);
    EXPECT_EQ(Allowed(), std::vector<int>{all[0]}) << "it follows again";
    cpu_set_t second;
    CPU_ZERO(&second);
    CPU_SET(all[1], &second);
    ASSERT_EQ(::sched_setaffinity(0, sizeof second, &second), 0);
    TakeCalls(follower, caller.tid(), 2 * CallerFollower::kCalls);
    EXPECT_EQ(Allowed(), std::vector<int>{all[1]});
    follower.Took(other.tid());
    EXPECT_EQ(Allowed(), std::vector<int>{all[1]}) << "not what it began with";
  }).join();
}

TEST(CallerCpuTest, AThreadMadeMeanwhileMayRunAnywhere) {
  const std::vector<int> all = Allowed();
  if (all.size() < 2) GTEST_SKIP() << "one CPU: there is nowhere to go";
  cpu_set_t set;
  ASSERT_EQ(::sched_getaffinity(0, sizeof set, &set), 0);
  std::thread([&] {
    CallerFollower follower(set);
    const PinnedThread caller(all[0]);
    TakeCalls(follower, caller.tid(), 1 + CallerFollower::kCalls);
    EXPECT_EQ(Allowed(), std::vector<int>{all[0]});
    std::thread([&] {
      const CallerFollower another(set);
      EXPECT_EQ(Allowed(), all);
    }).join();
  }).join();
}

TEST(CallerCpuTest, ACallerThatHasGoneIsNoHarm) {
  const std::vector<int> before = Allowed();
  cpu_set_t set;
  ASSERT_EQ(::sched_getaffinity(0, sizeof set, &set), 0);
  CallerFollower follower(set);
  TakeCalls(follower, 0x3fffffff, 2 * CallerFollower::kCalls);
  EXPECT_EQ(Allowed(), before);
}

TEST(CallerCpuTest, DoesNotInterruptACallerWithWhomItStays) {
  const std::vector<int> all = Allowed();
  if (all.size() < 2) GTEST_SKIP() << "one CPU: there is nowhere to go";
  cpu_set_t set;
  ASSERT_EQ(::sched_getaffinity(0, sizeof set, &set), 0);
  std::thread([&] {
    CallerFollower follower(set);
    const PinnedThread caller(all[0]), other(all[1]);
    EXPECT_EQ(::sched_getscheduler(0), SCHED_OTHER);
    TakeCalls(follower, caller.tid(), 1 + CallerFollower::kCalls);
    EXPECT_EQ(::sched_getscheduler(0), SCHED_BATCH);
    follower.Took(other.tid());
    EXPECT_EQ(::sched_getscheduler(0), SCHED_OTHER);
    const sched_param none{};
    ASSERT_EQ(::sched_setscheduler(0, SCHED_IDLE, &none), 0);
    TakeCalls(follower, caller.tid(), 1 + CallerFollower::kCalls);
    EXPECT_EQ(::sched_getscheduler(0), SCHED_IDLE) << "what the operator has set";
  }).join();
}

}  // namespace
}  // namespace kvcfs::fs
