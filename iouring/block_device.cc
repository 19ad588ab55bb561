#include "iouring/block_device.h"

#include <algorithm>
#include <cerrno>

namespace kvcfs::iouring {
namespace {

constexpr uint64_t kPieceBytes = uint64_t{1} << 20;  // as fast as larger ones, and they run beside

Status Transfer(IoQueue& queue, IoRequest::Op op, BlockFile& file, uint64_t offset,
                std::span<std::byte> memory) {
  KVC_CHECK(queue.in_flight() == 0);
  std::vector<IoDone> done;
  uint64_t begun = 0;
  int error = 0;
  while (begun < memory.size() || queue.in_flight() != 0) {
    while (error == 0 && begun < memory.size() && queue.room() != 0) {
      const uint64_t bytes = std::min<uint64_t>(kPieceBytes, memory.size() - begun);
      queue.Push({.op = op,
                  .file = &file,
                  .offset = offset + begun,
                  .data = memory.data() + begun,
                  .bytes = bytes});
      begun += bytes;
    }
    if (queue.in_flight() == 0) break;
    done.clear();
    queue.Wait(1, done);
    for (const IoDone& one : done) {
      if (one.error != 0) error = one.error;
    }
  }
  if (error == ENODATA) return Error{Code::kCorrupt, "the file ends before"};
  if (error != 0) return ErrnoError(error, op == IoRequest::Op::kRead ? "read" : "write");
  return {};
}

}  // namespace

Status ReadPages(IoQueue& queue, BlockFile& file, uint64_t offset, std::span<std::byte> into) {
  return Transfer(queue, IoRequest::Op::kRead, file, offset, into);
}

Status WritePages(IoQueue& queue, BlockFile& file, uint64_t offset, std::span<std::byte> from) {
  return Transfer(queue, IoRequest::Op::kWrite, file, offset, from);
}

Status SyncFile(IoQueue& queue, BlockFile& file) {
  KVC_CHECK(queue.in_flight() == 0);
  queue.Push({.op = IoRequest::Op::kSync, .file = &file});
  std::vector<IoDone> done;
  queue.Wait(1, done);
  if (done.front().error != 0) return ErrnoError(done.front().error, "fdatasync");
  return {};
}

}  // namespace kvcfs::iouring
