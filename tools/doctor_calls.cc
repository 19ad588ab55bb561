// The system calls of `kvcfs doctor`: each is tried in a way that leaves nothing behind.
#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <memory>
#include <thread>

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/fuse.h>
#include <linux/io_uring.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "base/fd.h"
#include "fs/fuse_session.h"
#include "tools/doctor.h"

namespace kvcfs::tools {
namespace {

int TryIoUring() {
  io_uring_params params{};
  const Fd ring(static_cast<int>(::syscall(__NR_io_uring_setup, 8, &params)));
  return ring.valid() ? 0 : errno;
}

// The first message of the kernel on a new mount says what it can do. On a thread with a mount
// namespace of its own: nobody else sees that mount, and it goes with the thread.
Result<FuseOffer> AskFuse() {
  const Fd device(::open("/dev/fuse", O_RDWR | O_CLOEXEC | O_NONBLOCK));
  if (!device.valid()) return ErrnoError(errno, "open", "/dev/fuse");
  if (::unshare(CLONE_FS | CLONE_NEWNS) != 0) return ErrnoError(errno, "unshare");
  if (::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) {
    return ErrnoError(errno, "mount", "private /");
  }
  const std::string options =
      fmt::format("fd={},rootmode=40000,user_id=0,group_id=0", device.get());
  if (::mount("kvcfs-doctor", "/", "fuse", MS_NOSUID | MS_NODEV, options.c_str()) != 0) {
    return ErrnoError(errno, "mount", "fuse");
  }
  // More than the kernel's least for any request.
  std::array<char, 131072> buffer;  // NOLINT(cppcoreguidelines-pro-type-member-init)
  const ssize_t got = ::read(device.get(), buffer.data(), buffer.size());
  if (got < 0) return ErrnoError(errno, "read", "/dev/fuse");
  // Headers of old kernels end after `flags`.
  struct {
    uint32_t major, minor, max_readahead, flags, flags2;
  } init{};
  if (static_cast<size_t>(got) < sizeof(fuse_in_header) + 16) {
    return Error{Code::kInternal, "a short first message of FUSE"};
  }
  std::memcpy(&init, buffer.data() + sizeof(fuse_in_header),
              std::min(sizeof(init), static_cast<size_t>(got) - sizeof(fuse_in_header)));
  // include/uapi/linux/fuse.h: FUSE_INIT_EXT, and FUSE_PASSTHROUGH in the upper half of the flags.
  constexpr uint32_t kInitExt = 1u << 30, kPassthrough = 1u << (37 - 32);
  return FuseOffer{
      .minor = init.minor,
      .passthrough = (init.flags & kInitExt) != 0 && (init.flags2 & kPassthrough) != 0};
}

Result<FuseOffer> FuseOfferHere() {
  Result<FuseOffer> offer = Error{Code::kInternal, ""};
  std::thread([&offer] { offer = AskFuse(); }).join();
  return offer;
}

int TryDirect(const std::string& directory) {
  const Fd file(::open(directory.c_str(), O_TMPFILE | O_WRONLY | O_DIRECT | O_CLOEXEC, 0600));
  if (!file.valid()) return errno;
  constexpr size_t kPage = 4096;
  const std::unique_ptr<void, decltype(&std::free)> page(std::aligned_alloc(kPage, kPage),
                                                         &std::free);
  std::memset(page.get(), 0, kPage);
  const ssize_t written = ::write(file.get(), page.get(), kPage);
  if (written < 0) return errno;
  return written == kPage ? 0 : EIO;
}

Result<DiskFacts> DiskFactsOf(const std::string& directory) {
  // Before the first mount the directory is not there: what is, tells the same.
  std::filesystem::path path = directory;
  std::error_code ignored;
  while (!std::filesystem::exists(path, ignored) && path.has_relative_path()) {
    path = path.parent_path();
  }
  struct stat found {};
  if (::stat(path.c_str(), &found) != 0) return ErrnoError(errno, "stat", path.string());
  if (!S_ISDIR(found.st_mode)) {
    return Error{Code::kInvalid, fmt::format("{} is no directory", path.string())};
  }
  struct statvfs space {};
  if (::statvfs(path.c_str(), &space) != 0) return ErrnoError(errno, "statvfs", path.string());
  return DiskFacts{.path = path,
                   .device_major = major(found.st_dev),
                   .device_minor = minor(found.st_dev),
                   .free_bytes = space.f_bavail * space.f_frsize,
                   .direct_errno = TryDirect(path)};
}

}  // namespace

HostCalls RealHostCalls() {
  return {.io_uring_setup = TryIoUring,
          .fuse_offer = FuseOfferHere,
          .disk_facts = DiskFactsOf,
          .libfuse_has_passthrough = fs::FuseSession::BuiltWithPassthrough(),
          .rdma_devices = rdma::AskVerbsDevices};
}

}  // namespace kvcfs::tools
