#include <gtest/gtest.h>
#include <signal.h>

#include "base/crash_point.h"

namespace kvcfs {
namespace {

TEST(CrashPointTest, KillsAtTheNthPassOfItsName) {
  EXPECT_EXIT(
      {
        ArmCrashPoint("here:3");
        for (int i = 0; i < 100; ++i) {
          KVC_CRASH_POINT("elsewhere");
          if (i == 2) KVC_CRASH_POINT("here");
        }
        KVC_CRASH_POINT("here");
        std::exit(0);  // two passes: still alive
      },
      testing::ExitedWithCode(0), "");
  EXPECT_EXIT(
      {
        ArmCrashPoint("here:2");
        KVC_CRASH_POINT("here");
        KVC_CRASH_POINT("here");
        std::exit(0);
      },
      testing::KilledBySignal(SIGKILL), "");
}

TEST(CrashPointTest, NothingHappensWhileNothingIsArmed) {
  ArmCrashPoint("");
  KVC_CRASH_POINT("here");
  EXPECT_FALSE(g_crash_point_armed.load());
}

}  // namespace
}  // namespace kvcfs
