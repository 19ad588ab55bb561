// `kvcfs unmount MNT`: asks the supervisor to stop and waits until all is written back.
#include <cerrno>
#include <chrono>
#include <thread>

#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "tools/data_directory.h"
#include "tools/mount_options.h"
#include "tools/node.h"
#include "tools/stats.h"
#include "tools/verb.h"

namespace kvcfs::tools {
namespace {

constexpr char kVerb[] = "unmount";
constexpr auto kProgressEvery = std::chrono::seconds(5);

bool IsAlive(int pid) {
  if (::kill(pid, 0) != 0) return errno == EPERM;
  // A zombie is not: somebody else has yet to wait for it.
  const Fd stat(::open(fmt::format("/proc/{}/stat", pid).c_str(), O_RDONLY | O_CLOEXEC));
  std::array<char, 512> text{};
  if (!stat.valid() || ::read(stat.get(), text.data(), text.size() - 1) <= 0) return false;
  const std::string_view all(text.data());
  const size_t at = all.rfind(')');
  return at == std::string_view::npos || at + 2 >= all.size() || all[at + 2] != 'Z';
}

}  // namespace

int RunUnmount(const UnmountOptions& options) {
  struct stat info {};
  if (::stat(options.mountpoint.c_str(), &info) != 0 && errno == ENOTCONN) {
    // The daemon is dead; there is nobody to write anything back.
    if (::umount2(options.mountpoint.c_str(), MNT_DETACH) != 0) {
      return Fail(kVerb, fmt::format("cannot unmount the dead mount at {}", options.mountpoint));
    }
    return kExitDone;
  }
  const Result<Json> stats = ReadStats(options.mountpoint);
  if (!stats.ok()) {
    return Fail(kVerb, fmt::format("no kvcfs is mounted at {}", options.mountpoint));
  }
  const std::string data = TextAt(*stats, "data").value_or("");
  int pid = static_cast<int>(CountAt(*stats, "supervisor_pid"));
  if (pid <= 0 || !IsAlive(pid)) pid = static_cast<int>(CountAt(*stats, "pid"));
  if (options.keep_dram) {
    const Fd keep(::open(NodePaths(data).keep_dram.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
    if (!keep.valid()) return Fail(kVerb, "cannot note that the DRAM tier is to be kept");
  }
  if (pid <= 0 || ::kill(pid, SIGTERM) != 0) {
    return Fail(kVerb, fmt::format("cannot signal process {}", pid));
  }
  auto next = std::chrono::steady_clock::now() + kProgressEvery;
  while (IsAlive(pid)) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    if (std::chrono::steady_clock::now() > next) {
      fmt::print(stderr, "kvcfs unmount: still writing back to {}\n", data);
      next += kProgressEvery;
    }
  }
  return kExitDone;
}

}  // namespace kvcfs::tools
