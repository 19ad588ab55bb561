// The foreground process of `kvcfs mount`: holds the mount, keeps a daemon running in it.
//
// It owns the lock of the data directory, the tmpfs of the DRAM tier and the descriptor of
// /dev/fuse, does nothing else and therefore does not crash; when the daemon dies it starts
// another, which takes over the connection: calls wait, open files go on. Threads: one.
#pragma once

#include "tools/mount_options.h"

namespace kvcfs::tools {

// What DIR/lock says of who holds the data directory.
struct LockHolder {
  int supervisor_pid = 0;
  std::string mountpoint;
};
Result<LockHolder> ReadLock(const std::string& lock_path);

}  // namespace kvcfs::tools
