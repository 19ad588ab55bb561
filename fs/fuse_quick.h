// OPEN and RELEASE, answered past libfuse.
//
// Reading a block is OPEN, bytes that go past us, and RELEASE. The bytes push all else out of the
// CPU's caches, so what a call costs is how many lines of code and data it touches. libfuse's way
// (a request from calloc with a mutex of its own, lists, parts of messages) was a third of them.
// Threads: any. Source: include/uapi/linux/fuse.h of Linux 6.9.
#pragma once

#include <chrono>
#include <cstddef>
#include <span>

#include <linux/fuse.h>

#include "fs/filesystem.h"

namespace kvcfs::fs {

// Who asks; `unique` as the kernel says it, with the bit of a request that is sent again.
Caller CallerOf(uint32_t uid, uint32_t gid, pid_t pid, uint64_t unique);

// What is said of an opened file, whoever says it.
struct OpenAnswer {
  bool keep_cache = false, direct_io = false, parallel_direct_writes = false, no_flush = false;
  uint32_t backing_id = 0;  // 0: its bytes come from us
};
OpenAnswer AnswerOf(const OpenReply& open, int flags);

// True if it was one of those two: it is answered. `taken`: when it came.
bool AnswerQuickly(Filesystem& filesystem, int device_fd, std::span<const std::byte> request,
                   std::chrono::steady_clock::time_point taken);

}  // namespace kvcfs::fs
