// What lies below a data directory, and how a daemon (a mount's, or `kvcfs serve`) takes it into
// use.
//
// Threads: any, none of it is shared.
// Fails: kBusy another daemon has the directory; kIo, kNoSpace as the calls to the system say.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "base/fd.h"
#include "base/result.h"
#include "iouring/segment_store.h"
#include "meta/meta_store.h"
#include "tools/node_config.h"

namespace kvcfs::tools {

struct NodePaths {
  std::string data, dram, segments, meta, files, lock, keep_dram, log, identity;
  explicit NodePaths(const std::string& directory);
};

// What DIR/lock says of who holds the data directory.
struct LockHolder {
  int supervisor_pid = 0;
  std::string use;  // a mount point; "serving NAME"
};
Result<LockHolder> ReadLock(const std::string& lock_path);
// Held until the descriptor is closed.
Result<Fd> TakeLock(const NodePaths& paths, const std::string& use);

// A data directory is a mount's or a server's, from its first use on: they keep other records in
// the same files. kInvalid: it is the other's.
enum class DirectoryUse { kMount, kServer };
Status ClaimDirectory(const NodePaths& paths, meta::MetaStore& store,
                      const meta::MetaOpenReport& opened, DirectoryUse use);

// The tmpfs of the slots. One that a killed daemon left is taken over with all it holds.
Status MountDram(const NodePaths& paths, uint64_t dram_bytes);

uint64_t MemoryBytes();
// A share of the disk is of what is free and of what the tier has taken already.
uint64_t DiskBytes(const NodePaths& paths);

// The UUID of this node, beside the data and in the meta store: one of them may be damaged.
Result<iouring::Uuid> NodeIdentity(const NodePaths& paths, meta::MetaStore& store);

iouring::SegmentStoreOptions SegmentOptionsFor(const NodePaths& paths, const iouring::Uuid& node,
                                               uint64_t nvme_bytes,
                                               const IouringSettings& settings);
// A directory that cannot be used is moved aside, `begun_anew` is called, and then what is visited
// is that of a new one.
Result<std::unique_ptr<iouring::SegmentStore>> OpenSegments(
    const iouring::SegmentStoreOptions& options, uint64_t scan_after,
    const iouring::SegmentStore::Visitor& visitor, const std::function<void()>& begun_anew);

}  // namespace kvcfs::tools
