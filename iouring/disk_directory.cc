#include "iouring/disk_directory.h"

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <system_error>
#include <utility>

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>

#include "base/log.h"
#include "iouring/ring.h"

namespace kvcfs::iouring {

Result<std::unique_ptr<DiskDirectory>> DiskDirectory::Open(const DiskDirectoryOptions& options) {
  if (!options.read_only) {
    std::error_code error;
    std::filesystem::create_directories(options.path, error);
    if (error) return ErrnoError(error.value(), "mkdir", options.path);
  }
  Fd directory(::open(options.path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!directory.valid()) return ErrnoError(errno, "open", options.path);
  return std::unique_ptr<DiskDirectory>(new DiskDirectory(options, std::move(directory)));
}

Result<Fd> DiskDirectory::OpenFd(const std::string& name, int flags) {
  if (direct_) {
    Fd fd(::openat(directory_.get(), name.c_str(), flags | O_DIRECT | O_CLOEXEC, 0600));
    if (fd.valid() || errno != EINVAL) {
      if (!fd.valid()) return ErrnoError(errno, "open", PathOf(name));
      return fd;
    }
    direct_ = false;
    KVC_LOG(Info, "no O_DIRECT on this filesystem", "directory={}", LogValue(options_.path));
  }
  Fd fd(::openat(directory_.get(), name.c_str(), flags | O_CLOEXEC, 0600));
  if (!fd.valid()) return ErrnoError(errno, "open", PathOf(name));
  return fd;
}

Result<std::unique_ptr<BlockFile>> DiskDirectory::Create(const std::string& name, uint64_t bytes) {
  KVC_TRY_ASSIGN(Fd fd, OpenFd(name, O_RDWR | O_CREAT));
  const auto size = static_cast<off_t>(bytes);
  int failed = 0;
  if (::ftruncate(fd.get(), size) != 0) failed = errno;
  if (failed == 0) {
    int result = 0;
    do {
      result = ::fallocate(fd.get(), 0, 0, size);
    } while (result != 0 && errno == EINTR);
    // Without fallocate (some network filesystems) the space is taken by the writes.
    if (result != 0 && errno != EOPNOTSUPP) failed = errno;
  }
  if (failed == 0 && ::fsync(directory_.get()) != 0) failed = errno;
  if (failed != 0) {
    // A part may have been allocated: give it back.
    ::unlinkat(directory_.get(), name.c_str(), 0);
    return ErrnoError(failed, "allocate", PathOf(name));
  }
  return std::unique_ptr<BlockFile>(std::make_unique<DiskFile>(std::move(fd), bytes));
}

Result<std::unique_ptr<BlockFile>> DiskDirectory::OpenFile(const std::string& name) {
  KVC_TRY_ASSIGN(Fd fd, OpenFd(name, options_.read_only ? O_RDONLY : O_RDWR));
  struct stat info {};
  if (::fstat(fd.get(), &info) != 0) return ErrnoError(errno, "stat", PathOf(name));
  if (!S_ISREG(info.st_mode)) {
    return Error{Code::kInvalid, PathOf(name) + " is not a regular file"};
  }
  return std::unique_ptr<BlockFile>(
      std::make_unique<DiskFile>(std::move(fd), static_cast<uint64_t>(info.st_size)));
}

Status DiskDirectory::Remove(const std::string& name) {
  if (::unlinkat(directory_.get(), name.c_str(), 0) != 0) {
    return ErrnoError(errno, "unlink", PathOf(name));
  }
  return {};
}

Result<std::vector<std::string>> DiskDirectory::List() {
  std::vector<std::string> names;
  std::error_code error;
  for (std::filesystem::directory_iterator at(options_.path, error), end; !error && at != end;
       at.increment(error)) {
    names.push_back(at->path().filename().string());
  }
  if (error) return ErrnoError(error.value(), "list", options_.path);
  std::sort(names.begin(), names.end());
  return names;
}

std::unique_ptr<IoQueue> DiskDirectory::NewQueue(const IoQueueOptions& options) {
  auto ring = MakeRing(options);
  if (ring.ok()) return std::move(*ring);
  if (!ring_refused_.exchange(true)) {
    KVC_LOG(Warn, "no io_uring, plain reads and writes instead", "reason={}",
            LogValue(ring.error().text));
  }
  return MakeBlockingQueue(options);
}

std::string DiskDirectory::PathOf(const std::string& name) const {
  return options_.path + "/" + name;
}

}  // namespace kvcfs::iouring
