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

// A thread that follows may be moved again at any moment by the kernel, so whether it went there is
// seen by what it may do meanwhile: nothing else is observable for certain. It is asked often
// enough.
bool EverOn(int cpu, CallerFollower& follower, pid_t caller) {
  for (unsigned i = 0; i < 20 * CallerFollower::kCallsMost; ++i) {
    follower.Took(caller);
    if (::sched_getcpu() == cpu) return true;
  }
  return false;
}

TEST(CallerCpuTest, TellsWhereAThreadIs) {
  for (const int cpu : Allowed()) {
    const PinnedThread thread(cpu);
    EXPECT_EQ(CpuOfThread(thread.tid()), cpu);
  }
}

TEST(CallerCpuTest, NoSuchThreadIsNowhere) {
  EXPECT_EQ(CpuOfThread(0x3fffffff), std::nullopt);
}

TEST(CallerCpuTest, FollowsALoneCallerAndMayStillRunAnywhere) {
  const std::vector<int> before = Allowed();
  if (before.size() < 2) GTEST_SKIP() << "one CPU: there is nowhere to go";
  CallerFollower follower;
  for (const int cpu : before) {
    const PinnedThread caller(cpu);
    EXPECT_TRUE(EverOn(cpu, follower, caller.tid())) << "CPU " << cpu;
    EXPECT_EQ(Allowed(), before);
  }
}

TEST(CallerCpuTest, ACallerThatHasGoneIsNoHarm) {
  const std::vector<int> before = Allowed();
  CallerFollower follower;
  for (unsigned i = 0; i < 2 * CallerFollower::kCallsMost; ++i) follower.Took(0x3fffffff);
  EXPECT_EQ(Allowed(), before);
}

TEST(CallerCpuTest, KeepsWhatTheOperatorHasSet) {
  std::thread([] {
    DoNotInterruptCallers();
    EXPECT_EQ(::sched_getscheduler(0), SCHED_BATCH);
    const sched_param none{};
    ASSERT_EQ(::sched_setscheduler(0, SCHED_IDLE, &none), 0);
    DoNotInterruptCallers();
    EXPECT_EQ(::sched_getscheduler(0), SCHED_IDLE);
  }).join();
}

}  // namespace
}  // namespace kvcfs::fs
