// The foreground process of `kvcfs mount`: holds the mount, keeps a daemon running in it.
//
// It owns the lock of the data directory, the tmpfs of the DRAM tier and the descriptor of
// /dev/fuse, does nothing else and therefore does not crash; when the daemon dies it starts
// another, which takes over the connection: calls wait, open files go on. Threads: one.

#include <cerrno>
#include <chrono>
#include <filesystem>
#include <thread>

#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"
#include "base/size.h"
#include "tools/data_directory.h"
#include "tools/mount_options.h"
#include "tools/node.h"
#include "tools/process.h"
#include "tools/verb.h"

namespace kvcfs::tools {
namespace {

constexpr char kVerb[] = "mount";
constexpr auto kCrashWindow = std::chrono::seconds(10);
constexpr int kCrashesMax = 5;  // in the window, right after start: it will not get better
constexpr auto kReadyLimit = std::chrono::seconds(120);

volatile sig_atomic_t g_stop = 0;
volatile sig_atomic_t g_child = 0;

void OnSignal(int number) {
  g_stop = number;
  if (g_child > 0) ::kill(static_cast<pid_t>(g_child), SIGTERM);
}

bool Answers(const std::string& mountpoint) {
  const Fd file(::open((mountpoint + "/.kvcfs/version").c_str(), O_RDONLY | O_CLOEXEC));
  char byte = 0;
  return file.valid() && ::read(file.get(), &byte, 1) == 1;
}

// Takes dead mounts away; refuses a live one.
Status PrepareMountpoint(const std::string& mountpoint) {
  struct stat info {};
  for (int tries = 0; tries < 16; ++tries) {
    if (::stat(mountpoint.c_str(), &info) == 0) break;
    if (errno == ENOENT) {
      std::error_code error;
      std::filesystem::create_directories(mountpoint, error);
      if (error) return ErrnoError(error.value(), "make mount point", mountpoint);
      continue;
    }
    if (errno != ENOTCONN && errno != ECONNABORTED && errno != EIO) {
      return ErrnoError(errno, "look at mount point", mountpoint);
    }
    KVC_LOG(Warn, "a dead mount is replaced", "mount={}", LogValue(mountpoint));
    if (::umount2(mountpoint.c_str(), MNT_DETACH) != 0) {
      return ErrnoError(errno, "unmount the dead mount at", mountpoint);
    }
  }
  if (!S_ISDIR(info.st_mode)) {
    return Error{Code::kInvalid, fmt::format("{} is not a directory", mountpoint)};
  }
  if (Answers(mountpoint)) {
    return Error{Code::kExists, fmt::format("a kvcfs is mounted at {} already; see `kvcfs stat {}`",
                                            mountpoint, mountpoint)};
  }
  return {};
}

Result<Fd> MountFuse(const std::string& mountpoint) {
  Fd device(::open("/dev/fuse", O_RDWR | O_CLOEXEC));
  if (!device.valid()) {
    if (errno == ENOENT) {
      return Error{Code::kUnsupported, "/dev/fuse is not there; load the module: modprobe fuse"};
    }
    return ErrnoError(errno, "open", "/dev/fuse");
  }
  const std::string options = fmt::format(
      "fd={},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other,max_read=1048576",
      device.get());
  if (::mount("kvcfs", mountpoint.c_str(), "fuse.kvcfs", MS_NOSUID | MS_NODEV, options.c_str()) !=
      0) {
    const int number = errno;
    Error error = ErrnoError(number, "mount", mountpoint);
    if (number == EPERM) error.text += "; root (CAP_SYS_ADMIN) is needed";
    return error;
  }
  return device;
}

// Runs daemons until one ends well or it makes no sense any more.
int Supervise(NodeOptions node) {
  struct sigaction action {};
  action.sa_handler = OnSignal;
  ::sigaction(SIGTERM, &action, nullptr);
  ::sigaction(SIGINT, &action, nullptr);
  int crashes = 0;
  for (;;) {
    const auto started = std::chrono::steady_clock::now();
    const pid_t child = ::fork();
    if (child < 0) return Fail(kVerb, ErrnoError(errno, "fork").text);
    if (child == 0) {
      ::signal(SIGTERM, SIG_DFL);
      ::signal(SIGINT, SIG_IGN);  // ^C reaches the whole group; the supervisor passes it on
      ::prctl(PR_SET_NAME, "kvcfs-daemon");
      const int code = RunNode(node);
      ::fflush(nullptr);
      ::_exit(code);
    }
    g_child = child;
    if (g_stop != 0) ::kill(child, SIGTERM);
    int status = 0;
    while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    g_child = 0;
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return kExitDone;
    const bool early = std::chrono::steady_clock::now() - started < kCrashWindow;
    crashes = early ? crashes + 1 : 1;
    if (WIFEXITED(status) && (node.init->bytes == 0 || crashes >= kCrashesMax || g_stop != 0)) {
      return kExitFailed;  // it has said why
    }
    if (WIFSIGNALED(status)) {
      KVC_LOG(Error, "the daemon was killed; starting another", "signal={} times={}",
              WTERMSIG(status), crashes);
    }
    // Killed by somebody many times in a row is not a crash loop: a test may do that.
    if (WIFSIGNALED(status) && WTERMSIG(status) != SIGKILL && crashes >= kCrashesMax) {
      return Fail(kVerb, "the daemon crashes again and again; see the log, then `kvcfs fsck`");
    }
    if (g_stop != 0) return kExitFailed;
    node.resumed = node.init->bytes > 0;
  }
}

void CleanUp(const NodeOptions& node, const NodePaths& paths, bool well) {
  // Gone already after a clean end; a daemon that failed leaves it.
  for (int i = 0; i < 4 && !well; ++i) {
    if (::umount2(node.mountpoint.c_str(), MNT_DETACH) != 0) break;
  }
  const bool keep = ::access(paths.keep_dram.c_str(), F_OK) == 0;
  ::unlink(paths.keep_dram.c_str());
  if (well && !keep && ::umount2(paths.dram.c_str(), 0) != 0) {
    ::umount2(paths.dram.c_str(), MNT_DETACH);  // a reader has a slot open still
  }
}

int RunForeground(const MountOptions& options) {
  const NodePaths paths(options.config.node.data);
  SetLogLevel(options.config.node.log_level);
  SetThreadName("supervisor");
  std::error_code error;
  std::filesystem::create_directories(paths.data, error);
  if (error) {
    return Fail(kVerb,
                fmt::format("cannot make the data directory {}: {}", paths.data, error.message()));
  }
  const Result<Fd> lock = TakeLock(paths, options.mountpoint);
  if (!lock.ok()) return FailWith(kVerb, lock.error());
  if (const Status ready = PrepareMountpoint(options.mountpoint); !ready.ok()) {
    return FailWith(kVerb, ready.error());
  }
  NodeOptions node;
  node.mountpoint = options.mountpoint;
  node.data = paths.data;
  node.config = options.config;
  node.supervisor_pid = ::getpid();
  constexpr uint64_t kDramMin = 8u << 20;
  node.dram_bytes = std::max(options.config.node.dram.Of(MemoryBytes()), kDramMin);
  node.nvme_bytes = options.config.node.nvme.Of(DiskBytes(paths));
  if (const Status mounted = MountDram(paths, node.dram_bytes); !mounted.ok()) {
    return FailWith(kVerb, mounted.error());
  }
  void* shared = ::mmap(nullptr, sizeof(fs::FuseInitMessage), PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (shared == MAP_FAILED) return Fail(kVerb, "cannot map shared memory");
  node.init = new (shared) fs::FuseInitMessage;
  const Result<Fd> device = MountFuse(options.mountpoint);
  if (!device.ok()) return FailWith(kVerb, device.error());
  node.device_fd = device->get();
  ::unlink(paths.keep_dram.c_str());
  const int code = Supervise(node);
  CleanUp(node, paths, code == kExitDone);
  return code;
}

// Waits in the parent until the mount answers or the daemon has ended.
int AwaitReady(pid_t child, const MountOptions& options) {
  const auto deadline = std::chrono::steady_clock::now() + kReadyLimit;
  while (std::chrono::steady_clock::now() < deadline) {
    int status = 0;
    if (::waitpid(child, &status, WNOHANG) == child) {
      return WIFEXITED(status) ? WEXITSTATUS(status) : kExitFailed;
    }
    if (Answers(options.mountpoint)) return kExitDone;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return Fail(kVerb, fmt::format("{} does not answer after {} s; see {}", options.mountpoint,
                                 kReadyLimit.count(), NodePaths(options.config.node.data).log));
}

}  // namespace

int RunMount(const MountOptions& options) {
  if (!options.daemon) return RunForeground(options);
  const NodePaths paths(options.config.node.data);
  std::error_code ignored;
  std::filesystem::create_directories(paths.data, ignored);
  // Another's answer must not be taken for ours.
  if (const Status ready = PrepareMountpoint(options.mountpoint); !ready.ok()) {
    return FailWith(kVerb, ready.error());
  }
  const pid_t child = ::fork();
  if (child < 0) return Fail(kVerb, "cannot fork");
  if (child > 0) return AwaitReady(child, options);
  LeaveTerminal(paths.log);
  ::_exit(RunForeground(options));
}

}  // namespace kvcfs::tools
