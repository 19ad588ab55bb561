#include "fs/bytes_io.h"

#include <algorithm>
#include <cerrno>
#include <memory>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <unistd.h>

namespace kvcfs::fs {
namespace {

constexpr uint64_t kCopyPiece = 1u << 20;
constexpr int kRoomWaitMs = 1000;

}  // namespace

int ReadFully(int fd, uint64_t offset, std::span<std::byte> into, size_t* done) {
  *done = 0;
  while (*done < into.size()) {
    const ssize_t got =
        ::pread(fd, into.data() + *done, into.size() - *done, static_cast<off_t>(offset + *done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return errno;
    if (got == 0) break;
    *done += static_cast<size_t>(got);
  }
  return 0;
}

int WriteFully(int fd, uint64_t offset, std::span<const std::byte> from) {
  size_t done = 0;
  while (done < from.size()) {
    const ssize_t put =
        ::pwrite(fd, from.data() + done, from.size() - done, static_cast<off_t>(offset + done));
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) return errno;
    if (put == 0) return EIO;
    done += static_cast<size_t>(put);
  }
  return 0;
}

int CopyFile(int from, int to, uint64_t bytes) {
  std::vector<std::byte> piece(std::min<uint64_t>(bytes, kCopyPiece));
  off_t at = 0;
  const auto end = static_cast<off_t>(bytes);
  while (at < end) {
    const off_t data = ::lseek(from, at, SEEK_DATA);
    if (data < 0 && errno == ENXIO) break;
    if (data < 0) return errno;
    const off_t hole = ::lseek(from, data, SEEK_HOLE);
    if (hole < 0) return errno;
    for (at = data; at < std::min(hole, end);) {
      const size_t want =
          std::min<size_t>(piece.size(), static_cast<size_t>(std::min(hole, end) - at));
      size_t got = 0;
      if (const int error = ReadFully(from, static_cast<uint64_t>(at), {piece.data(), want}, &got))
        return error;
      if (got == 0) return EIO;
      if (const int error = WriteFully(to, static_cast<uint64_t>(at), {piece.data(), got}))
        return error;
      at += static_cast<off_t>(got);
    }
  }
  return ::ftruncate(to, end) == 0 ? 0 : errno;
}

bool ReadExactly(int fd, std::span<std::byte> into) {
  size_t done = 0;
  return ReadFully(fd, 0, into, &done) == 0 && done == into.size();
}

bool StillMapped(const Fd& file) {
  // A write lease is granted only where no other open file of the inode exists; a mapping keeps
  // its file open. Source: fcntl(2) F_SETLEASE.
  if (::fcntl(file.get(), F_SETLEASE, F_WRLCK) != 0) return errno == EAGAIN;
  ::fcntl(file.get(), F_SETLEASE, F_UNLCK);
  return false;
}

std::function<bool(std::span<std::byte>)> FillFrom(Fd file) {
  return [shared = std::make_shared<const Fd>(std::move(file))](std::span<std::byte> into) {
    return ReadExactly(shared->get(), into);
  };
}

Status AppendWhenThereIsRoom(iouring::SegmentStore& segments,
                             const iouring::AppendRequest& request) {
  Status queued = segments.Append(request);
  while (queued.code() == Code::kBusy) {
    segments.WaitForRoom(request.meta.length, kRoomWaitMs);
    queued = segments.Append(request);
  }
  return queued;
}

}  // namespace kvcfs::fs
