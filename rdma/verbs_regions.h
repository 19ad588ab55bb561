// Exposed memory, registered with the devices of this host.
//
// A thread of its own registers: a large tier takes seconds, during which a region is answered for
// by the TCP provider. Threads: any. Memory: borrowed from Add until Remove has returned; by then
// no device reads it. Fails: Find: kStale no such region; kBusy not registered yet; else why it
// cannot be.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <span>
#include <thread>
#include <unordered_map>
#include <vector>

#include "base/mutex.h"
#include "rdma/transport.h"
#include "rdma/verbs_device.h"

namespace kvcfs::rdma {

class VerbsRegions {
 public:
  // `domains`: of the devices, by their index.
  explicit VerbsRegions(std::vector<ibv_pd*> domains);
  ~VerbsRegions();
  VerbsRegions(const VerbsRegions&) = delete;
  VerbsRegions& operator=(const VerbsRegions&) = delete;

  void Add(uint64_t region, std::span<std::byte> memory) KVC_EXCLUDES(mutex_);
  void Remove(uint64_t region) KVC_EXCLUDES(mutex_);

  // Removes all; nothing is added afterwards.
  void Clear() KVC_EXCLUDES(mutex_);

  struct Key {
    uint64_t address = 0, length = 0;
    uint32_t key = 0;
    uint8_t device = 0;  // its index here
  };
  Result<Key> Find(uint64_t region, size_t device) KVC_EXCLUDES(mutex_);
  // Waits until it is registered, or why it cannot be is known.
  Result<RegionKey> AwaitKey(uint64_t region) KVC_EXCLUDES(mutex_);
  // If all of `memory` lies in a region: by which key the device writes there.
  std::optional<uint32_t> LocalKey(size_t device, std::span<std::byte> memory) KVC_EXCLUDES(mutex_);

 private:
  struct Region {
    std::span<std::byte> memory;
    std::vector<VerbsMemory> registered;  // by device; empty: not yet
    Status status;                        // why it could not be
    bool busy = false;                    // being registered now
    bool gone = false;
  };
  void Main() KVC_EXCLUDES(mutex_);

  const std::vector<ibv_pd*> domains_;
  Mutex mutex_;
  std::condition_variable changed_;
  bool ending_ KVC_GUARDED_BY(mutex_) = false;
  std::unordered_map<uint64_t, Region> regions_ KVC_GUARDED_BY(mutex_);
  std::map<const std::byte*, uint64_t> by_address_ KVC_GUARDED_BY(mutex_);
  std::deque<uint64_t> waiting_ KVC_GUARDED_BY(mutex_);
  bool failing_ KVC_GUARDED_BY(mutex_) = false;  // it has been said
  std::thread thread_;
};

}  // namespace kvcfs::rdma
