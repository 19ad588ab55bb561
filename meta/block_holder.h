// What a holder of blocks does for the cluster: it is the truth about the copies it has.
//
// A core without I/O. A copy is *sealed* (its bytes are complete, nobody sees them) and becomes
// *published* when the owner of its shard marks it with a version; it goes when the owner says so
// (Forget) or grants what the store asked for (WantRelease). Orders of another epoch than that of
// the own view are refused: so an owner that was replaced cannot do harm (CLUSTER.md).
// Whoever runs it keeps Store, sends the calls, brings replies back, and calls Tick at NextTick.
// Put and Read are served by who has the bytes; after a Put they call Sealed.
// Threads: one at a time. Store is called from inside the methods and must not call back.
// Memory: facts of all copies.
#pragma once

#include <functional>
#include <map>
#include <set>
#include <unordered_map>
#include <utility>
#include <vector>

#include "meta/cluster_messages.h"

namespace kvcfs::meta {

class BlockHolder {
 public:
  // Where the bytes are.
  class Store {
   public:
    virtual ~Store() = default;
    // The copy is published. Comes back with this version after a restart, as far as the bytes do.
    virtual void Mark(const BlockId& id, uint64_t generation, uint64_t version) = 0;
    // The copy is over: its place may be used again, under another generation.
    virtual void Free(const BlockId& id, uint64_t generation) = 0;
    // What WantRelease asked for is refused; look for another.
    virtual void Keep(const BlockId& id, uint64_t generation) = 0;
    // Fetch a copy from another holder, then call Fetched with the same order.
    virtual void Fetch(uint64_t order, const BlockFacts& facts, const Place& from) = 0;
    // Blocks were read where this node did not see it.
    virtual void Used(const std::vector<BlockId>& ids) = 0;
  };

  struct Options {
    NodeId self;
    ClusterTimes times;
    size_t inventory_entries = 2048;  // a page; about 400 KiB
    size_t fetches_max = 32;
    size_t release_items = 256;  // a request
    size_t drain_items = 1024;   // asked for at a time while this node is drained
  };
  BlockHolder(Options options, Store* store) : options_(options), store_(store) {}

  void SetView(Millis now, const ClusterView& view, Actions* actions);
  void Receive(Millis now, uint64_t call, const Request& request, Actions* actions);
  void ReceiveReply(Millis now, uint64_t id, const Reply& reply, Actions* actions);
  void Tick(Millis now, Actions* actions);
  Millis NextTick() const;

  // What the store found when it started. Version 0: sealed, but not published.
  void Restore(Millis now, const BlockFacts& facts, uint64_t generation, uint64_t version);
  // The bytes are complete. Generations are never used twice at a node, also after a restart.
  void Sealed(Millis now, const BlockFacts& facts, uint64_t generation);
  // False: it is published and stays, or not there.
  bool Discard(const BlockId& id, uint64_t generation);
  // The store wants the place back; it is answered by Free or Keep.
  void WantRelease(Millis now, const BlockId& id, uint64_t generation);
  // The store found that the bytes are gone or damaged; its owner is told.
  void Lost(Millis now, const BlockId& id, uint64_t generation);
  // The end of a Fetch: a sealed copy with these bytes, or none.
  void Fetched(Millis now, uint64_t order, Code code, uint64_t generation, uint32_t length,
               uint32_t crc32c, Actions* actions);

  uint64_t epoch() const { return view_.epoch; }
  size_t size() const { return copies_.size(); }
  bool Has(const BlockId& id, uint64_t generation) const {
    return copies_.contains({id, generation});
  }
  // In the order of ids; version 0: sealed.
  void Visit(const std::function<void(const BlockFacts&, uint64_t generation, uint64_t version)>&
                 visit) const;

 private:
  using CopyKey = std::pair<BlockId, uint64_t>;  // with the generation
  struct Copy {
    BlockFacts facts;
    uint64_t version = 0;
    Millis sealed_at{0};
  };
  struct Fetching {
    BlockFacts facts;
    std::vector<uint64_t> calls;
    uint64_t epoch = 0;
  };

  void Answer(uint64_t call, Code code, ReplyBody body, Actions* actions) const;
  void Serve(Millis now, uint64_t call, const MarkRequest& request, Actions* actions);
  void Serve(Millis now, uint64_t call, const ForgetRequest& request, Actions* actions);
  void Serve(Millis now, uint64_t call, const HaveRequest& request, Actions* actions);
  void Serve(Millis now, uint64_t call, const CopyRequest& request, Actions* actions);
  void Serve(Millis now, uint64_t call, const InventoryRequest& request, Actions* actions);
  void Erase(std::map<CopyKey, Copy>::iterator copy);
  void SendReleases(Millis now, Actions* actions);
  // While this node is drained: asks for the release of a page of what it has.
  void Drain(Millis now);

  const Options options_;
  Store* const store_;
  ClusterView view_;
  Placement placement_;
  std::map<CopyKey, Copy> copies_;
  std::set<std::pair<Millis, CopyKey>> sealed_;  // since when
  std::map<uint64_t, Fetching> fetches_;         // by order
  std::map<BlockId, uint64_t> orders_;
  std::set<CopyKey> releasing_;                               // until they are granted or refused
  std::set<CopyKey> drained_;                                 // of them, what nobody here wanted
  std::set<CopyKey> releases_;                                // to be asked for
  std::unordered_map<uint64_t, std::vector<CopyKey>> asked_;  // by call
  std::map<Millis, std::vector<uint64_t>> calls_;             // asked_, by when they are given up
  bool draining_ = false;
  CopyKey drain_cursor_;
  Millis next_drain_{0};
  uint64_t next_id_ = 1;
};

}  // namespace kvcfs::meta
