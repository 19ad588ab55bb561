#include "meta/meta_files.h"

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include "base/fd.h"

namespace kvcfs::meta {
namespace {

namespace files = std::filesystem;

// The log format of LevelDB and RocksDB: blocks of 32 KiB, records of CRC 4, length 2, type 1.
// A record's checksum is RocksDB's business, here only whether the last one is whole counts.
bool EndsWithinRecord(const std::string& path) {
  constexpr size_t kBlockBytes = 32768;
  constexpr size_t kHeaderBytes = 7;
  constexpr uint8_t kZero = 0, kFull = 1, kFirst = 2, kMiddle = 3, kLast = 4;
  Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return false;
  std::vector<uint8_t> block(kBlockBytes);
  bool inside = false;
  for (off_t at = 0;; at += static_cast<off_t>(kBlockBytes)) {
    const ssize_t got = ::pread(fd.get(), block.data(), kBlockBytes, at);
    if (got <= 0) return inside;
    const auto size = static_cast<size_t>(got);
    size_t position = 0;
    while (position + kHeaderBytes <= size) {
      const size_t length = block[position + 4] | static_cast<size_t>(block[position + 5]) << 8;
      const uint8_t type = block[position + 6];
      if (type == kZero && length == 0) return inside;  // preallocated, never written
      if (position + kHeaderBytes + length > size) return true;
      if (type == kFull || type == kLast) inside = false;
      if (type == kFirst || type == kMiddle) inside = true;
      position += kHeaderBytes + length;
    }
    if (size < kBlockBytes) return inside || position < size;
  }
}

bool HasSuffix(const std::string& name, const char* suffix) {
  const size_t length = std::strlen(suffix);
  return name.size() >= length && name.compare(name.size() - length, length, suffix) == 0;
}

}  // namespace

MetaDirectoryLook LookAtMetaDirectory(const std::string& directory) {
  MetaDirectoryLook look;
  std::error_code error;
  look.exists = files::is_directory(directory, error);
  if (!look.exists) return look;
  for (files::directory_iterator it(directory, error), end; !error && it != end;
       it.increment(error)) {
    const std::string name = it->path().filename().string();
    if (name == "CURRENT") look.has_current = true;
    const bool manifest = name.rfind("MANIFEST-", 0) == 0;
    if (manifest || HasSuffix(name, ".sst") || HasSuffix(name, ".log")) look.has_data = true;
    if (manifest && EndsWithinRecord(it->path().string())) look.manifest_torn = true;
  }
  return look;
}

Status MakeDirectories(const std::string& directory) {
  std::error_code error;
  files::create_directories(directory, error);
  if (error) return ErrnoError(error.value(), "mkdir", directory);
  return {};
}

Result<std::string> MoveAside(const std::string& directory) {
  constexpr int kAsideMax = 8;
  std::error_code error;
  for (int n = 1; n <= kAsideMax; ++n) {
    std::string aside = directory + ".damaged-" + std::to_string(n);
    if (files::exists(aside, error)) {
      if (n < kAsideMax) continue;
      files::remove_all(aside, error);
    }
    files::rename(directory, aside, error);
    if (error) return ErrnoError(error.value(), "rename", directory);
    return aside;
  }
  return Error{Code::kInternal, "no name to move " + directory + " to"};
}

RoomReserve::RoomReserve(std::string directory, uint64_t bytes)
    : path_(directory + "/reserve"), directory_(std::move(directory)), bytes_(bytes) {
  struct stat found {};
  held_ = ::stat(path_.c_str(), &found) == 0;
}

void RoomReserve::GiveUp() {
  if (!held_) return;
  ::unlink(path_.c_str());
  held_ = false;
}

void RoomReserve::MakeAgain() {
  if (held_) return;
  struct statvfs room {};
  if (::statvfs(directory_.c_str(), &room) != 0) return;
  if (static_cast<uint64_t>(room.f_bavail) * room.f_frsize < 2 * bytes_) return;
  Fd fd(::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!fd.valid()) return;
  held_ = true;
  if (::fallocate(fd.get(), 0, 0, static_cast<off_t>(bytes_)) != 0) GiveUp();
}

}  // namespace kvcfs::meta
