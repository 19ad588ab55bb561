// Whole reads and writes of files, and of files into segments: what blocks, copies and ordinary
// files have in common.
//
// Threads: any. Fails: as the system calls, with their errno where an int is returned (0: done).
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>

#include "base/fd.h"
#include "base/result.h"
#include "iouring/segment_store.h"

namespace kvcfs::fs {

// As much as there is: `done` bytes. 0 or an errno.
int ReadFully(int fd, uint64_t offset, std::span<std::byte> into, size_t* done);
int WriteFully(int fd, uint64_t offset, std::span<const std::byte> from);
// Holes stay holes.
int CopyFile(int from, int to, uint64_t bytes);

// Exactly these bytes, from the file's beginning; false: there are not so many.
bool ReadExactly(int fd, std::span<std::byte> into);
// Somebody else has the file open, or mapped: a mapping outlives its descriptor. The caller has no
// further descriptor or mapping of it.
bool StillMapped(const Fd& file);

// For AppendRequest::fill. The descriptor keeps the bytes even if their place is given up
// meanwhile.
std::function<bool(std::span<std::byte>)> FillFrom(Fd file);

// Waits while too much is queued. Not on a thread on which the queue is emptied.
Status AppendWhenThereIsRoom(iouring::SegmentStore& segments,
                             const iouring::AppendRequest& request);

}  // namespace kvcfs::fs
