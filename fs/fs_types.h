// Words that all of fs shares: what a FUSE call brings and what it gets.
//
// Results of filesystem calls are errno values: they are the interface itself here (CONTRACT of
// open(2) and friends), so fs speaks errno and only fs does; below it there is Code.
#pragma once

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <string>

#include <sys/stat.h>
#include <sys/types.h>
#include <tl/expected.hpp>

#include "base/result.h"

namespace kvcfs::fs {

using Ino = uint64_t;

// Bits 63-62 of an inode number say what it is; the rest is its own business.
inline constexpr int kInoKindShift = 62;
enum class InoKind : uint64_t {
  kFixed = 0,  // root, .kvcfs, namespaces and their fixed entries, blocks being written
  kBlock = 1,  // 62 bits of the block's hash
  kChain = 2,  // the same, as a directory
  kFile = 3,   // ordinary: allocator id 16 bits, counter 46, never reused
};
inline InoKind KindOf(Ino ino) {
  return static_cast<InoKind>(ino >> kInoKindShift);
}

struct Errno {
  int value = 0;
};

template <typename T>
using FsResult = tl::expected<T, Errno>;
using FsStatus = FsResult<void>;

inline tl::unexpected<Errno> Fail(int number) {
  return tl::unexpected<Errno>(Errno{number});
}

// The one table from Code to errno.
int ErrnoOf(Code code);

struct Caller {
  uid_t uid = 0;
  gid_t gid = 0;
  pid_t pid = 0;
  uint64_t unique = 0;  // the request's number; resent requests carry the same one
  bool resent = false;  // the kernel sends it again after our restart: it may have happened
};

struct EntryReply {
  Ino ino = 0;
  struct stat attr {};
  double entry_timeout_s = 0;
  double attr_timeout_s = 0;
};

struct AttrReply {
  struct stat attr {};
  double timeout_s = 0;
};

// Where the bytes of a block are, as seen from this host.
enum class Tier : uint8_t { kNone = 0, kDram = 1, kNvme = 2, kPeer = 3 };

// How the kernel is to treat an open file. An inode in passthrough mode is so until its last
// release; kDirect goes beside either.
enum class OpenMode : uint8_t { kPassthrough, kCached, kDirect };

struct OpenReply {
  uint64_t handle = 0;
  OpenMode mode = OpenMode::kCached;
  uint32_t backing_id = 0;  // kPassthrough, and kDirect beside it (mappings then go past us)
  bool keep_cache = false;  // kCached: pages of earlier opens are still right
  bool parallel_direct_writes = false;
  bool no_flush = false;  // close() need not ask us
};

// A directory entry goes to the sink; false means the buffer is full and it was not taken.
class DirSink {
 public:
  virtual ~DirSink() = default;
  // True: readdirplus. Then give the attributes (and count the lookup when Add returns true).
  virtual bool plus() const = 0;
  virtual bool Add(const std::string& name, const EntryReply& entry, uint64_t next_cookie) = 0;
};

// Passthrough of one connection. Ids belong to the connection and survive a restart of the daemon.
class BackingOpener {
 public:
  virtual ~BackingOpener() = default;
  virtual bool enabled() const = 0;
  virtual Result<uint32_t> OpenBacking(int fd) = 0;
  virtual void CloseBacking(uint32_t id) = 0;
};

// Pushed invalidations, from one thread that holds no lock; nobody waits for it.
class Notifier {
 public:
  virtual ~Notifier() = default;
  virtual void InvalidateInode(Ino ino) = 0;  // attributes and pages
  virtual void InvalidateEntry(Ino parent, const std::string& name) = 0;
  // Every cached name is asked again from now on (FUSE_NOTIFY_INC_EPOCH, 6.16; else the thread
  // invalidates what was named). Cheap and immediate: may be called from a request.
  virtual void BumpEpoch() = 0;
};

}  // namespace kvcfs::fs
