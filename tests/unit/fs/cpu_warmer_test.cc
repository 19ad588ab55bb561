#include "fs/cpu_warmer.h"

#include <filesystem>
#include <string>

#include <gtest/gtest.h>
#include <unistd.h>

namespace kvcfs::fs {
namespace {

using std::chrono::steady_clock;

cpu_set_t Allowed() {
  cpu_set_t set;
  CPU_ZERO(&set);
  ::sched_getaffinity(0, sizeof set, &set);
  return set;
}

// Calls one after the other until `done`; false: it never was.
template <typename Done>
bool CallUntil(CpuWarmer& warmer, const Done& done) {
  const auto end = steady_clock::now() + std::chrono::seconds(60);
  while (!done()) {
    if (steady_clock::now() > end) return false;
    warmer.Called(::gettid(), steady_clock::now());
    ::sched_yield();
  }
  return true;
}

bool EndsSoon(const CpuWarmer& warmer) {
  const auto end = steady_clock::now() + std::chrono::seconds(60);
  while (warmer.turning() > 0 && steady_clock::now() < end) ::usleep(1000);
  return warmer.turning() == 0;
}

TEST(CpuWarmerTest, TurnsWhileCallsComeAndStopsBehindThem) {
  const cpu_set_t all = Allowed();
  if (CPU_COUNT(&all) < 2) GTEST_SKIP() << "needs two CPUs";
  CpuWarmer warmer(all);
  for (int burst = 0; burst < 3; ++burst) {
    EXPECT_TRUE(CallUntil(warmer, [&] { return warmer.turning() > 0; })) << "burst " << burst;
    EXPECT_TRUE(EndsSoon(warmer)) << "burst " << burst;
  }
}

TEST(CpuWarmerTest, FewCallsDoNotStartIt) {
  CpuWarmer warmer(Allowed());
  for (unsigned i = 0; i < CpuWarmer::kCalls; ++i) warmer.Called(::gettid(), steady_clock::now());
  for (int i = 0; i < 20; ++i) {
    EXPECT_EQ(warmer.turning(), 0u);
    ::usleep(1000);
  }
}

TEST(CpuWarmerTest, CallsFarFromEachOtherDoNotStartIt) {
  CpuWarmer warmer(Allowed());
  for (unsigned i = 0; i < 3 * CpuWarmer::kCalls; ++i) {
    warmer.Called(::gettid(), steady_clock::now());
    ::usleep(static_cast<useconds_t>(2 * CpuWarmer::kLinger.count()));
    EXPECT_EQ(warmer.turning(), 0u);
  }
}

TEST(CpuWarmerTest, OneCpuIsLeftAlone) {
  const cpu_set_t all = Allowed();
  cpu_set_t one;
  CPU_ZERO(&one);
  for (int cpu = 0; cpu < CPU_SETSIZE && CPU_COUNT(&one) == 0; ++cpu) {
    if (CPU_ISSET(cpu, &all)) CPU_SET(cpu, &one);
  }
  CpuWarmer warmer(one);
  for (unsigned i = 0; i < 100 * CpuWarmer::kCalls; ++i)
    warmer.Called(::gettid(), steady_clock::now());
  ::usleep(10'000);
  EXPECT_EQ(warmer.turning(), 0u);
}

// All threads of this process on these CPUs, as taskset --all-tasks does it.
void PutAllThreadsOn(const cpu_set_t& cpus) {
  for (const auto& thread : std::filesystem::directory_iterator("/proc/self/task")) {
    ASSERT_EQ(::sched_setaffinity(std::stoi(thread.path().filename()), sizeof cpus, &cpus), 0);
  }
}

TEST(CpuWarmerTest, StaysWhereSomebodyHasPutTheProcessSince) {
  const cpu_set_t all = Allowed();
  if (CPU_COUNT(&all) < 2) GTEST_SKIP() << "needs two CPUs";
  CpuWarmer warmer(all);
  ASSERT_TRUE(CallUntil(warmer, [&] { return warmer.turning() > 0; }));
  ASSERT_TRUE(EndsSoon(warmer));
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(static_cast<size_t>(::sched_getcpu()), &one);
  PutAllThreadsOn(one);
  // A thread that was told to turn before may do so now; then none does any more.
  const auto stays_away = [&] {
    const auto end = steady_clock::now() + std::chrono::milliseconds(20);
    while (steady_clock::now() < end) {
      warmer.Called(::gettid(), steady_clock::now());
      ::sched_yield();
      if (warmer.turning() > 0) return false;
    }
    return true;
  };
  int rounds = 0;
  for (const auto end = steady_clock::now() + std::chrono::seconds(60);
       rounds < 3 && steady_clock::now() < end;) {
    rounds = stays_away() ? rounds + 1 : 0;
    ASSERT_TRUE(EndsSoon(warmer));
  }
  EXPECT_EQ(rounds, 3);
  PutAllThreadsOn(all);
  EXPECT_TRUE(CallUntil(warmer, [&] { return warmer.turning() > 0; }));
}

TEST(CpuWarmerTest, EndsWhileItTurns) {
  for (int i = 0; i < 20; ++i) {
    CpuWarmer warmer(Allowed());
    for (unsigned call = 0; call < 10 * CpuWarmer::kCalls; ++call)
      warmer.Called(::gettid(), steady_clock::now());
  }
}

}  // namespace
}  // namespace kvcfs::fs
