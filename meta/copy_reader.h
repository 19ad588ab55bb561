// Brings the bytes of a copy from its holder: by one-sided READs of its slot, or by a call.
//
// One-sided: header, bytes, header (slot_headers.h), straight into `into`, without the holder's
// CPU; what does not fit, or is not there, is asked for by a call. Where a peer's headers are it
// tells once (Slots). Threads: any but a transport's; it waits. The caller checks the CRC.
// Fails: as ClusterPeers::CallAndWait.
#pragma once

#include <chrono>
#include <map>
#include <optional>
#include <span>

#include "base/clock.h"
#include "base/mutex.h"
#include "meta/cluster_peers.h"
#include "meta/read_way.h"
#include "meta/slot_headers.h"

namespace kvcfs::meta {

enum class OneSided : uint8_t {
  kNever,
  kAuto,    // where the hardware does it, and it takes less time than a call
  kAlways,  // also where the peer's CPU does, which costs more than a call: for tests
};

class CopyReader {
 public:
  CopyReader(OneSided choice, const Clock* clock, ClusterPeers* peers)
      : choice_(choice), clock_(clock), peers_(peers) {}

  struct Outcome {
    Reply reply;
    uint32_t received = 0;
    bool one_sided = false;  // the holder knows nothing of it
  };
  // `into` has the copy's length. `epoch`: of the asker's view.
  Outcome Read(const NodeId& from, const ReadRequest& request, std::span<std::byte> into,
               uint64_t epoch, Millis timeout) KVC_EXCLUDES(mutex_);

 private:
  struct Holder {
    SlotTable table;
    Millis ask_again{0};  // where there is none
    ReadWay way;
  };
  // Nothing: ask by a call.
  std::optional<Outcome> ReadSlot(const NodeId& from, rdma::Peer& peer, const SlotTable& table,
                                  const ReadRequest& request, std::span<std::byte> into,
                                  Millis deadline) KVC_EXCLUDES(mutex_);
  std::optional<SlotTable> TableOf(const NodeId& node, rdma::Peer& peer, Millis deadline)
      KVC_EXCLUDES(mutex_);
  void Took(const NodeId& from, Way way, size_t bytes, std::chrono::nanoseconds time)
      KVC_EXCLUDES(mutex_);
  void ForgetTable(const NodeId& node, const SlotTable& table) KVC_EXCLUDES(mutex_);
  Millis Left(Millis deadline) const;

  const OneSided choice_;
  const Clock* const clock_;
  ClusterPeers* const peers_;
  Mutex mutex_;
  std::map<NodeId, Holder> holders_ KVC_GUARDED_BY(mutex_);
};

}  // namespace kvcfs::meta
