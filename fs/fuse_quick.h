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

Caller CallerOf(const fuse_in_header& header);

// True if it was one of those two: it is answered. `taken`: when it came.
bool AnswerQuickly(Filesystem& filesystem, int device_fd, std::span<const std::byte> request,
                   std::chrono::steady_clock::time_point taken);

}  // namespace kvcfs::fs
