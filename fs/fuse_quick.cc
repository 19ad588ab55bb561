#include "fs/fuse_quick.h"

#include <array>
#include <cerrno>
#include <cstring>
#include <span>

#include <fcntl.h>
#include <unistd.h>

#include "fs/fuse_metrics.h"

namespace kvcfs::fs {
namespace {

using Instant = std::chrono::steady_clock::time_point;

constexpr uint32_t kNoFlush = 1 << 5;                  // FOPEN_NOFLUSH
constexpr uint32_t kParallelDirectWrites = 1 << 6;     // FOPEN_PARALLEL_DIRECT_WRITES, 6.2
constexpr uint32_t kPassthrough = 1 << 7;              // FOPEN_PASSTHROUGH, 6.9
constexpr uint64_t kUniqueResent = uint64_t{1} << 63;  // FUSE_UNIQUE_RESEND, 6.9

// The body of an answer to OPEN: fuse_open_out, whose last word older headers do not name.
struct OpenBody {
  uint64_t handle = 0;
  uint32_t flags = 0;
  uint32_t backing_id = 0;
};
static_assert(sizeof(OpenBody) == sizeof(fuse_open_out));

template <typename Body>
struct Answer {
  fuse_out_header header{};
  Body body{};
};

// 0, or why the kernel did not take it.
int Send(int device_fd, const void* answer, size_t bytes) {
  return ::write(device_fd, answer, bytes) < 0 ? errno : 0;
}

void SendError(int device_fd, const fuse_in_header& header, int number) {
  const fuse_out_header answer{.len = sizeof answer, .error = -number, .unique = header.unique};
  Send(device_fd, &answer, sizeof answer);
}

OpenBody BodyOf(const OpenReply& open, int flags) {
  const OpenAnswer answer = AnswerOf(open, flags);
  OpenBody body;
  body.handle = open.handle;
  if (answer.keep_cache) body.flags |= FOPEN_KEEP_CACHE;
  if (answer.direct_io) body.flags |= FOPEN_DIRECT_IO;
  if (answer.parallel_direct_writes) body.flags |= kParallelDirectWrites;
  if (answer.no_flush) body.flags |= kNoFlush;
  if (answer.backing_id != 0) body.flags |= kPassthrough;
  body.backing_id = answer.backing_id;
  return body;
}

void AnswerOpen(Filesystem& filesystem, int device_fd, const fuse_in_header& header,
                const fuse_open_in& in, Instant taken) {
  FuseOpTimer timer(FuseOp::kOpen, taken);
  const auto flags = static_cast<int>(in.flags);
  const Caller caller =
      CallerOf(header.uid, header.gid, static_cast<pid_t>(header.pid), header.unique);
  const FsResult<OpenReply> open = filesystem.Open(caller, header.nodeid, flags);
  if (!open) {
    timer.Failed(open.error().value);
    return SendError(device_fd, header, open.error().value);
  }
  Answer<OpenBody> answer;
  answer.header = {.len = sizeof answer, .error = 0, .unique = header.unique};
  answer.body = BodyOf(*open, flags);
  // ENOENT: the open was interrupted, nobody will release it.
  if (Send(device_fd, &answer, sizeof answer) == ENOENT) {
    filesystem.Release(header.nodeid, open->handle);
  }
}

}  // namespace

Caller CallerOf(uint32_t uid, uint32_t gid, pid_t pid, uint64_t unique) {
  return {.uid = uid,
          .gid = gid,
          .pid = pid,
          .unique = unique & ~kUniqueResent,
          .resent = (unique & kUniqueResent) != 0};
}

OpenAnswer AnswerOf(const OpenReply& open, int flags) {
  OpenAnswer answer;
  answer.keep_cache = open.keep_cache;
  answer.direct_io = open.mode == OpenMode::kDirect;
  answer.parallel_direct_writes = open.parallel_direct_writes;
  // Without a FLUSH at close() a reader costs one round trip less.
  answer.no_flush = (flags & O_ACCMODE) == O_RDONLY || open.no_flush;
  // Beside passthrough a direct open needs the same id too, or the kernel refuses it with EIO.
  if (open.mode != OpenMode::kCached) answer.backing_id = open.backing_id;
  return answer;
}

bool AnswerQuickly(Filesystem& filesystem, int device_fd, std::span<const std::byte> request,
                   Instant taken) {
  const auto& header = *reinterpret_cast<const fuse_in_header*>(request.data());
  const void* const in = request.data() + sizeof header;
  const size_t in_bytes = request.size() - sizeof header;
  if (header.opcode == FUSE_OPEN && in_bytes >= sizeof(fuse_open_in)) {
    AnswerOpen(filesystem, device_fd, header, *static_cast<const fuse_open_in*>(in), taken);
    return true;
  }
  if (header.opcode == FUSE_RELEASE && in_bytes >= sizeof(fuse_release_in)) {
    const FuseOpTimer timer(FuseOp::kRelease, taken);
    filesystem.Release(header.nodeid, static_cast<const fuse_release_in*>(in)->fh);
    SendError(device_fd, header, 0);
    return true;
  }
  return false;
}

}  // namespace kvcfs::fs
