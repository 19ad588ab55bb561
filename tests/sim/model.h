// What must be true of the simulated cluster, whatever happened: fed by the simulator with what it
// sees of stores, clients and faults; keeps the first violation as a text.
#pragma once

#include <functional>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "meta/cluster_client.h"
#include "meta/metadata_shard.h"

namespace kvcfs::sim {

using meta::BlockFacts;
using meta::BlockId;
using meta::NodeId;
using meta::Place;

// The bytes of a block are one number here; this is their CRC: of the lower 16 bits only, so that
// there are other blocks with the same.
uint32_t CrcOf(uint64_t content);

class Model {
 public:
  void SetNow(Millis now) { now_ = now; }
  // So long somebody could not serve: what was begun goes on after that.
  void Stalled(Millis time);
  // The family of every key that is ever written.
  void AddBlock(const BlockKey& key, const BlockKey& parent);

  // ---- What holders do
  void Marked(const NodeId& node, const BlockId& id, uint64_t generation, uint64_t content);
  void Freed(const NodeId& node, const BlockId& id, uint64_t generation);
  // The copies are gone, but who has the old view may still name them.
  void NodeDown(const NodeId& node);
  void NodeForgotten(const NodeId& node);  // now nobody can name them
  // A holder lost a copy in a crash, which a reader may notice before the view says so.
  void BytesLost(const BlockKey& key);
  // The view excludes it for a while: what it had, and what extends that, may go.
  void NodeAway(const NodeId& node);
  // Visible children of a block, as the metadata nodes have it; for the check of each removal.
  std::function<bool(const BlockId&)> has_visible_child;

  size_t copies_kept = 0;  // of what was acknowledged, when a copy is given up; 0: not checked

  // ---- What clients see
  void DropBegun(const BlockKey& key);
  void Acknowledged(Millis begun, const BlockFacts& facts, uint64_t content, uint32_t copies);
  // `stale`: it was read out of the memory of one that may not know what has changed.
  void Matched(Millis begun, const std::vector<BlockKey>& asked, const meta::Outcome& outcome,
               bool stale);
  void Read(const BlockId& id, uint32_t crc, uint64_t content, bool ok);

  // ---- At the end, after everything was healed
  struct Acked {
    uint64_t content = 0;
    uint32_t copies = 0;
    Millis when{0};  // its publication was begun
  };
  const std::map<BlockKey, Acked>& acknowledged() const { return acked_; }
  // Whether something happened to it or what it extends since then that permits its loss.
  bool Disturbed(const BlockKey& key, Millis since) const;
  // Somebody asked for it, or what it extends, to go, not long before `since` or later.
  bool DroppedSince(const BlockKey& key, Millis since) const;

  void Violate(const std::string& what) {
    if (violation_.empty()) violation_ = what;
  }
  const std::string& violation() const { return violation_; }

 private:
  struct Interval {
    Millis from{0}, to{-1};  // to < 0: still
  };
  struct Block {
    BlockKey parent;
    std::vector<BlockKey> children;
    std::set<std::pair<NodeId, uint64_t>> copies, ghosts;
    std::vector<Interval> cached;
    std::set<uint64_t> published;  // contents
    Millis disturbed{-1'000'000};  // the last time
    Millis lost{-1'000'000};       // the last time a node with it, or with what it extends, went
    Millis freed{-1'000'000};
    Millis dropped{-1'000'000};
    Millis leased{0};  // until when
    Millis leased_at{0};
  };
  void Update(Block& block);
  void Disturb(const BlockKey& key, bool lost);

  Millis now_{0};
  std::map<BlockKey, Block> blocks_;
  std::map<BlockKey, Acked> acked_;
  std::string violation_;
};

}  // namespace kvcfs::sim
