// A node of a cluster, or a mount that is none: everything of meta that makes Cluster work, put
// together over a transport and etcd.
//
// Parts: membership.h (etcd), cluster_service.h (what peers ask), cluster_front.h (what fs asks),
// space_directory.h (namespaces). Order: make it, Restore what is on disk, Start; at the end Stop,
// while CopyStore still lives. Threads and failures: cluster.h.
// Start fails: as Membership::Start and Transport::Listen.
#pragma once

#include <atomic>
#include <chrono>
#include <memory>
#include <string>

#include "base/clock.h"
#include "base/mutex.h"
#include "meta/cluster.h"
#include "meta/cluster_front.h"
#include "meta/cluster_peers.h"
#include "meta/cluster_service.h"
#include "meta/copy_reader.h"
#include "meta/match_reader.h"
#include "meta/membership.h"
#include "meta/name_service.h"
#include "meta/space_directory.h"
#include "rdma/transport.h"

namespace kvcfs::meta {

struct ClusterRuntimeOptions {
  std::string cluster = "kvcfs";
  NodeId self;            // the transport's too
  std::string name;       // likewise
  uint8_t roles = 0;      // of Role; 0: a client, which nobody asks
  rdma::Address listen;   // with roles
  std::string advertise;  // empty: where it listens
  EtcdOptions etcd;
  ClusterTimes times;
  std::chrono::seconds lease{3};  // of the node at etcd
  Millis start_timeout{10000};
  Millis takeover{30000};
  Millis away{600'000};
  uint64_t leased_bytes_max = uint64_t{1} << 40;  // of the blocks of our shards
  OneSided one_sided = OneSided::kAuto;  // of blocks' bytes and of matches, ours and others'
};

class ClusterRuntime final : public Cluster {
 public:
  ClusterRuntime(const ClusterRuntimeOptions& options, std::unique_ptr<rdma::Transport> transport,
                 const Clock* clock);
  ~ClusterRuntime() override { Stop(); }

  // Joins (or follows). `copies`: with the role of blocks. `names`: where a metadata node keeps
  // names of ordinary files; null: it has none.
  Status Start(CopyStore* copies, MetaStore* names = nullptr);
  // Leaves. Whoever waits in a method gets kCancelled.
  void Stop();
  // For tests: as if the process had died.
  void StopSilently();

  NodeId self() const override { return options_.self; }
  bool holds_blocks() const override { return (options_.roles & kRoleBlocks) != 0; }

  Result<MatchedPrefix> Match(const SpaceId& space, std::span<const BlockKey> keys, bool lease,
                              Millis timeout) override;
  Result<LocatedBlock> Stat(const BlockId& id, Millis timeout) override;
  Result<BlockFacts> Create(const BlockId& id, const BlockKey& parent, Millis timeout) override;
  Result<uint32_t> Publish(const BlockFacts& facts, std::optional<uint64_t> generation,
                           std::span<const std::byte> bytes, Millis timeout) override;
  Result<Place> Read(const SpaceId& space, const FoundBlock& block, std::span<std::byte> into,
                     Millis timeout) override;
  Status Drop(const BlockId& id, Millis timeout) override;
  Result<std::vector<FoundBlock>> Chain(const BlockId& tip, Millis timeout) override;
  Result<LeafPage> Leaves(const SpaceId& space, uint32_t shard, const BlockKey& after,
                          uint32_t limit, Millis timeout) override;
  void NoteUsed(const BlockId& id, const NodeId& holder) override;

  void Restore(const BlockFacts& facts, uint64_t generation, uint64_t version) override;
  void Sealed(const BlockFacts& facts, uint64_t generation) override;
  void WantRelease(const BlockId& id, uint64_t generation) override;
  void Lost(const BlockId& id, uint64_t generation) override;

  Result<std::optional<ClusterSpace>> GetSpace(std::string_view name) override;
  Result<std::optional<ClusterSpace>> GetSpace(const SpaceId& id) override;
  std::vector<ClusterSpace> ListSpaces() override;
  uint64_t SpacesVersion() override;
  Result<ClusterSpace> CreateSpace(const ClusterSpace& space) override;
  Result<ClusterSpace> SetSpace(const ClusterSpace& space) override;
  Status RemoveSpace(const ClusterSpace& space) override;

  Result<std::vector<uint64_t>> BytesOf(std::span<const SpaceId> spaces, Millis timeout) override;

  Result<NameReply> AskNames(const NameRequest& asked, Millis timeout) override;
  FileId NewFileId() override;

  ClusterStatus Describe() override;
  Status SetDraining(std::string_view node, bool draining) override;

  // Where it listens, after Start.
  const rdma::Address& address() const { return address_; }

 private:
  void TakeView(const std::shared_ptr<const ClusterView>& view);
  void EndParts();

  const ClusterRuntimeOptions options_;
  const Clock* const clock_;
  const uint64_t file_ids_;  // the upper half of all that this one gives away
  std::atomic<uint64_t> next_file_id_{1};
  rdma::Address address_;
  bool started_ = false;
  CopyStore* copies_ = nullptr;  // that lets peers read by regions
  std::atomic<bool> ended_{false};
  // The transport goes first: it calls the service, and completes calls of the front.
  std::unique_ptr<Membership> membership_;
  SpaceDirectory spaces_;
  std::unique_ptr<rdma::Transport> transport_;
  ClusterPeers peers_;
  CopyReader reader_;
  MatchReader matches_;
  NameService names_;
  ClusterService service_;
  ClusterFront front_;
};

}  // namespace kvcfs::meta
