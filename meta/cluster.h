// The cluster as a mount or a server of blocks sees it: one interface, so that fs is tested without
// a network. cluster_runtime.h is the one that does it.
//
// Cluster: what fs asks. CopyStore: what the cluster asks of who has the bytes (fs again).
// Threads: Cluster, any; what takes a timeout blocks its caller, at most that long and a call's
//   time; all else returns at once. CopyStore is called on threads of the cluster, never from
//   inside a call of Cluster, and may block, and may call Cluster. Neither may be called while the
//   caller holds a lock that the other side's methods take.
// Fails: kTimeout: not known whether it happened; kUnavailable: no view, no owner, no etcd;
//   kCancelled: we are stopping. What else, stands with each method. A miss is always permitted.
// Source: meta/CLUSTER.md.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/result.h"
#include "meta/cluster_messages.h"
#include "meta/membership.h"
#include "meta/name_messages.h"
#include "meta/slot_headers.h"

namespace kvcfs::meta {

// ---- What the cluster asks of who has the bytes

// A copy that cannot go, or change, before this is destroyed.
class PinnedCopy {
 public:
  PinnedCopy() = default;
  PinnedCopy(std::span<const std::byte> bytes, uint32_t crc32c, std::function<void()> release)
      : bytes_(bytes), crc32c_(crc32c), release_(std::move(release)) {}
  PinnedCopy(PinnedCopy&& other) noexcept { *this = std::move(other); }
  PinnedCopy& operator=(PinnedCopy&& other) noexcept {
    if (this == &other) return *this;
    Release();
    bytes_ = std::exchange(other.bytes_, {});
    crc32c_ = other.crc32c_;
    release_ = std::exchange(other.release_, nullptr);
    return *this;
  }
  ~PinnedCopy() { Release(); }

  std::span<const std::byte> bytes() const { return bytes_; }
  uint32_t crc32c() const { return crc32c_; }

 private:
  void Release() {
    if (release_) std::exchange(release_, nullptr)();
  }
  std::span<const std::byte> bytes_;
  uint32_t crc32c_ = 0;
  std::function<void()> release_;
};

struct CopyCapacity {
  uint64_t capacity_bytes = 0;
  uint64_t used_bytes = 0;
};

// A copy is (block, generation). It is sealed (complete, seen by nobody) until Mark, published from
// then on until Free. Generations are never used twice at a node, also after a restart.
// Mark, Free, Keep and Used come in order, from one thread; the others from several at once.
class CopyStore {
 public:
  virtual ~CopyStore() = default;

  // Published, as this version: what Restore says of it after a restart. As durable on return as
  // the namespace promises; who waits for the publication waits for this. A second Mark of the same
  // copy changes its version. Of a copy that is not there: nothing.
  virtual void Mark(const BlockId& id, uint64_t generation, uint64_t version) = 0;
  // The copy is over, also for who reads here; its place may be used again.
  virtual void Free(const BlockId& id, uint64_t generation) = 0;
  // What WantRelease asked for is refused: look for another.
  virtual void Keep(const BlockId& id, uint64_t generation) = 0;
  // Blocks were read, or matched, where this node did not see it.
  virtual void Used(const std::vector<BlockId>& ids) = 0;

  // Bytes from a peer, whole and checked, as a sealed copy: its generation. The cluster then takes
  // it as Sealed. kNoSpace, kTooLarge, kIo, kExists: there is one of this block and these bytes.
  virtual Result<uint64_t> Accept(const BlockFacts& facts, std::span<const std::byte> bytes) = 0;
  // To be read. kNotFound: not there, or of another generation; kBusy: `may_wait` is false and it
  // is not in memory; kCorrupt, kIo: lost (say so by Cluster::Lost, too).
  virtual Result<PinnedCopy> Open(const BlockId& id, uint64_t generation, bool may_wait) = 0;
  virtual CopyCapacity Capacity() = 0;

  // From now on peers may read what lies in memory by regions of this transport; null: no more, and
  // all regions are withdrawn when it returns. Called by who runs the cluster, at start and end.
  virtual void ExposeBy(rdma::Transport* /*transport*/) {}
  // Where they find it.
  virtual SlotTable Slots() { return {}; }
};

// ---- What fs asks of the cluster

// A namespace, as all mounts agree on it.
struct ClusterSpace {
  std::string name;
  SpaceId id;            // its UUID, never used again
  std::string settings;  // fs's own; JSON, so that a person can read it at etcd
  int64_t revision = 0;  // of its last change; grows
  friend bool operator==(const ClusterSpace&, const ClusterSpace&) = default;
};

struct MatchedPrefix {
  std::vector<FoundBlock> blocks;
  Millis lease_until{0};    // of all of them, by Clock::Monotonic; 0: none
  uint32_t from_cache = 0;  // of how many blocks nobody was asked
};

struct LocatedBlock {
  BlockFacts facts;
  FoundBlock block;
  Millis lease_until{0};
};

struct LeafPage {
  std::vector<BlockKey> keys;
  bool done = false;  // there is nothing behind the last key in this shard
};

// What an operator is shown of one node, or a mount.
struct ClusterStatus {
  NodeId self;
  std::string name;
  uint8_t roles = 0;
  std::shared_ptr<const ClusterView> view;  // null: none yet
  MembershipStatus etcd;
  uint64_t shards = 0, shards_loading = 0;  // that this node owns
  uint64_t records = 0;
  uint64_t repairs_waiting = 0, repaired_total = 0, lost_total = 0, orphans_total = 0;
  uint64_t hidden = 0;                   // records whose copies are all at holders that are away
  uint64_t moving = 0, moved_total = 0;  // copies, to holders that have less
  uint64_t move_bytes_left = 0;          // about so much is to move
  uint64_t copies = 0;                   // that this node holds
  CopyCapacity capacity;
  uint64_t cached_groups = 0, cache_hits_total = 0, cache_misses_total = 0;
  uint64_t operations = 0;  // under way
  rdma::TransportStats transport;
};
std::string ToJson(const ClusterStatus& status);

class Cluster {
 public:
  virtual ~Cluster() = default;

  virtual NodeId self() const = 0;
  virtual bool holds_blocks() const = 0;  // else no copy of ours is ever published

  // ---- Blocks

  // The leading keys that are cached, at least those found in time. Without `lease` nothing is
  // promised or remembered. Fails: nothing but kCancelled.
  virtual Result<MatchedPrefix> Match(const SpaceId& space, std::span<const BlockKey> keys,
                                      bool lease, Millis timeout) = 0;
  // Leases it. kNotFound.
  virtual Result<LocatedBlock> Stat(const BlockId& id, Millis timeout) = 0;
  // Before a block is written behind `parent` (zero: a first block): its ordinal and anchors, and
  // the parent stays for 30 s. Asked again, it stays on. kNotFound: no such parent.
  virtual Result<BlockFacts> Create(const BlockId& id, const BlockKey& parent, Millis timeout) = 0;
  // `facts`: of Create, with length, CRC, mtime and replicas filled in. `generation`: of our own
  // copy, for which Sealed was called; none: all copies go to others. `bytes` are sent to as many
  // holders as are wanted; they may go when this returns. Where there are fewer, or some do not
  // take it for half of `timeout`, one copy is enough, and the cluster makes the others when
  // it can. Ok: cached, by so many copies; ours was marked (CopyStore::Mark has returned), or freed
  // where it was not needed. A copy with the same bytes as what is there becomes one more of it.
  // kExists: another version was first (ask Stat); kNotFound: the parent has gone; kNoSpace: no
  // holder has room. Then, and after other errors, ours is freed sooner or later (or published,
  // after kTimeout).
  virtual Result<uint32_t> Publish(const BlockFacts& facts, std::optional<uint64_t> generation,
                                   std::span<const std::byte> bytes, Millis timeout) = 0;
  // Bytes of a found block from the nearest place; another is asked where that is slow. Key,
  // generation, length and CRC are checked. `into` has its length; it is ours until this returns.
  // kNotFound: no place has it (any more).
  virtual Result<Place> Read(const SpaceId& space, const FoundBlock& block,
                             std::span<std::byte> into, Millis timeout) = 0;
  // The block and what extends it. kNotFound.
  virtual Status Drop(const BlockId& id, Millis timeout) = 0;
  // From the root to `tip`. kNotFound.
  virtual Result<std::vector<FoundBlock>> Chain(const BlockId& tip, Millis timeout) = 0;
  // A page of the leaves in one of kShardCount shards, behind `after` (zero: from the start).
  virtual Result<LeafPage> Leaves(const SpaceId& space, uint32_t shard, const BlockKey& after,
                                  uint32_t limit, Millis timeout) = 0;
  // A read that no server saw; told to the holder within a second.
  virtual void NoteUsed(const BlockId& id, const NodeId& holder) = 0;

  // ---- This node's copies

  // What was there when the node started; before it joins. Version 0: sealed, not published.
  virtual void Restore(const BlockFacts& facts, uint64_t generation, uint64_t version) = 0;
  // The bytes are complete. Goes (CopyStore::Free) if nobody publishes it within a minute.
  virtual void Sealed(const BlockFacts& facts, uint64_t generation) = 0;
  // The place is wanted back: CopyStore::Free or Keep follows.
  virtual void WantRelease(const BlockId& id, uint64_t generation) = 0;
  // Gone or damaged. CopyStore::Free follows.
  virtual void Lost(const BlockId& id, uint64_t generation) = 0;

  // ---- Namespaces: at etcd, followed by a watch

  // What is not known here is asked for; etcd away: what was known last.
  virtual Result<std::optional<ClusterSpace>> GetSpace(std::string_view name) = 0;
  virtual Result<std::optional<ClusterSpace>> GetSpace(const SpaceId& id) = 0;
  virtual std::vector<ClusterSpace> ListSpaces() = 0;  // by name
  // Grows with each change of them that was heard of.
  virtual uint64_t SpacesVersion() = 0;
  // The first one wins: kExists. kInvalid: a name that is none. `revision` is ignored.
  virtual Result<ClusterSpace> CreateSpace(const ClusterSpace& space) = 0;
  // New settings. kStale: it was changed after `space.revision`; kNotFound.
  virtual Result<ClusterSpace> SetSpace(const ClusterSpace& space) = 0;
  // As it was at `space.revision`: kStale else. That nothing is in it any more is the caller's
  // word.
  virtual Status RemoveSpace(const ClusterSpace& space) = 0;

  // How many bytes of blocks each of these has in the cluster, a block counted once, whatever its
  // copies: of the metadata nodes that answer under the present view, so maybe too few.
  virtual Result<std::vector<uint64_t>> BytesOf(std::span<const SpaceId> /*spaces*/,
                                                Millis /*timeout*/) {
    return Error{Code::kUnsupported, "not counted here"};
  }

  // ---- Names of ordinary files: one node of the cluster owns those of a namespace

  // Asks it, again and again until it answers; `request.epoch` and `request.request` are filled in.
  // What the tree says is in NameReply::error.
  virtual Result<NameReply> AskNames(const NameRequest& /*request*/, Millis /*timeout*/) {
    return Error{Code::kUnsupported, "no names here"};
  }
  // One that nobody else ever gets.
  virtual FileId NewFileId() { return {}; }

  // ---- Operation

  virtual ClusterStatus Describe() = 0;
  // Empties a node, or no longer.
  virtual Status SetDraining(std::string_view node, bool draining) = 0;
};

// The universe of the blocks that ordinary files of a namespace are made of: beside its own, so
// that they are no blocks of it. Twice is back again.
constexpr SpaceId FilesSpaceOf(const SpaceId& space) {
  return {space.high ^ 0x6b76'6366'732d'6669u, space.low};
}

// Facts of block `index` of a chain that is known from its root on, as of Match or Chain: to
// publish a further copy of it.
BlockFacts FactsInChain(const SpaceId& space, std::span<const FoundBlock> chain, uint32_t index,
                        uint8_t replicas);

}  // namespace kvcfs::meta
