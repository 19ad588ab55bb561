#include "base/crash_point.h"

#include <cstdlib>

#include <signal.h>
#include <unistd.h>

namespace kvcfs {
namespace {

// Written before the flag is set, read after it was seen.
std::string g_name;
std::atomic<int> g_left{0};

}  // namespace

void ArmCrashPoint(const std::string& spec) {
  g_crash_point_armed = false;
  if (spec.empty()) return;
  const size_t colon = spec.find(':');
  g_name = spec.substr(0, colon);
  g_left = colon == std::string::npos ? 1 : std::atoi(spec.c_str() + colon + 1);
  g_crash_point_armed = true;
}

void PassCrashPoint(const char* name) {
  if (g_name != name) return;
  if (g_left.fetch_sub(1) == 1) ::kill(::getpid(), SIGKILL);
}

}  // namespace kvcfs
