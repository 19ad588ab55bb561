#include "bench/file_set.h"

#include <cerrno>

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"

namespace kvcfs::bench {
namespace {

// Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014.
uint64_t SplitMix(uint64_t& state) {
  uint64_t z = (state += 0x9e3779b97f4a7c15);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

std::string NameOf(uint64_t seed, uint64_t index) {
  uint64_t state = seed * 0x2545f4914f6cdd1d + index;
  std::string name;
  for (int i = 0; i < 4; ++i) name += fmt::format("{:016x}", SplitMix(state));
  return name;
}

}  // namespace

Result<FileSet> FileSet::Parse(const std::string& text, size_t count, uint64_t seed) {
  const size_t equals = text.find('=');
  const size_t colon = text.find(':', equals == std::string::npos ? 0 : equals);
  const std::string kind =
      colon == std::string::npos ? "" : text.substr(equals + 1, colon - equals - 1);
  if (equals == std::string::npos || (kind != "blocks" && kind != "files")) {
    return Error{Code::kInvalid,
                 fmt::format("'{}' is not NAME=blocks:MNT/NS or NAME=files:DIRECTORY", text)};
  }
  FileSet set;
  set.name_ = text.substr(0, equals);
  set.kind_ = kind == "blocks" ? FileKind::kBlocks : FileKind::kFiles;
  set.directory_ = text.substr(colon + 1);
  struct stat attr {};
  if (::stat(set.directory_.c_str(), &attr) != 0) return ErrnoError(errno, "stat", set.directory_);
  set.read_paths_.resize(count);
  set.write_paths_.resize(count);
  set.Rename(seed);
  return set;
}

void FileSet::Rename(uint64_t seed) {
  std::string parent = "root";
  for (size_t i = 0; i < count(); ++i) {
    const std::string name = NameOf(seed, i);
    if (kind_ == FileKind::kBlocks) {
      read_paths_[i] = fmt::format("{}/by-key/{}", directory_, name);
      write_paths_[i] = fmt::format("{}/{}/{}", directory_, parent, name);
      parent = name;
    } else {
      read_paths_[i] = write_paths_[i] = fmt::format("{}/{}", directory_, name);
    }
  }
}

Status FileSet::Write(size_t index, std::span<const std::byte> bytes) const {
  const std::string& path = write_paths_[index];
  Fd file(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644));
  if (!file.valid()) return ErrnoError(errno, "create", path);
  const ssize_t put = ::write(file.get(), bytes.data(), bytes.size());
  if (put != static_cast<ssize_t>(bytes.size())) return ErrnoError(errno, "write", path);
  if (::close(file.Release()) != 0) return ErrnoError(errno, "close", path);
  return {};
}

Status FileSet::Make(std::span<const std::byte> bytes) const {
  for (size_t i = 0; i < count(); ++i) KVC_TRY(Write(i, bytes));
  return {};
}

Status FileSet::Sync() const {
  if (kind_ == FileKind::kBlocks) return {};
  const Fd directory(::open(directory_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!directory.valid() || ::syncfs(directory.get()) != 0) {
    return ErrnoError(errno, "sync", directory_);
  }
  return {};
}

Status FileSet::Remove(size_t count) const {
  if (kind_ == FileKind::kBlocks) {
    // The last one's close() has returned, so it is published when it is asked for.
    struct stat attr {};
    if (::stat(read_paths_[count - 1].c_str(), &attr) != 0) {
      return ErrnoError(errno, "stat", read_paths_[count - 1]);
    }
    if (::unlink(read_paths_[0].c_str()) != 0) return ErrnoError(errno, "unlink", read_paths_[0]);
    return {};
  }
  for (size_t i = 0; i < count; ++i) {
    if (::unlink(read_paths_[i].c_str()) != 0) return ErrnoError(errno, "unlink", read_paths_[i]);
  }
  return {};
}

}  // namespace kvcfs::bench
