// A cluster in one thread: 3 metadata, 4 block and 3 client nodes over a network, a clock and an
// etcd that are all played from one seed. The cores are those of the product; everything around
// them is here: faults in world_faults.cc, what clients do in world_clients.cc.
// The same seed gives the same events, and so the same hash.
#pragma once

#include <array>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "meta/block_holder.h"
#include "meta/cluster_client.h"
#include "meta/metadata_shard.h"
#include "tests/sim/model.h"
#include "tools/random.h"

namespace kvcfs::sim {

inline constexpr size_t kMetadataNodes = 3, kBlockNodes = 4, kClientNodes = 3;
inline constexpr size_t kNodes = kMetadataNodes + kBlockNodes + kClientNodes;

struct WorldOptions {
  uint64_t seed = 0;
  bool trace = false;
  Millis length{14'000};  // with faults; then everything heals
  Millis quiet{12'000};
};

class World {
 public:
  explicit World(const WorldOptions& options);
  ~World();
  // Empty: nothing was violated.
  std::string Run();

  uint64_t hash() const { return hash_; }
  struct Totals {
    uint64_t events = 0, calls = 0, acks = 0, reads = 0, misses = 0, matched = 0, drops = 0;
    uint64_t views = 0, evictions = 0, cached = 0, drains = 0, moves = 0;
    uint64_t probed = 0;  // groups that matches learned of one-sided
  };
  const Totals& totals() const { return totals_; }

 private:
  struct Slot {
    bool used = false;
    BlockId id;
    uint64_t generation = 0;
    uint64_t content = 0;
    BlockFacts facts;
    uint64_t version = 0;  // as written down
    Millis used_at{0};
    bool releasing = false;
  };
  struct Node;
  class SlotStore;
  struct Message {
    size_t from = 0;
    uint64_t life = 0;  // of the asker
    char asker = 'c';   // which of its cores: m, h, c
    uint64_t id = 0;
    meta::Request request;
    uint64_t bulk = 0;
  };
  struct Asked {
    size_t from = 0;
    uint64_t life = 0;
    char asker = 'c';
    uint64_t id = 0;
    uint64_t bulk = 0;  // of the answer
  };
  struct Node {
    size_t index = 0;
    NodeId id;
    uint64_t life = 0;         // counts starts
    uint64_t incarnation = 0;  // counts starts and absences
    bool up = true;
    Millis paused_until{0};
    bool etcd = true;  // can reach it
    Millis renewed{-100'000};
    Millis next_tick{-1};
    uint64_t next_generation = 1;
    std::vector<Slot> slots;
    std::unique_ptr<SlotStore> store;
    std::unique_ptr<meta::MatchTable> table;  // before who writes it
    std::unique_ptr<meta::MetadataShard> metadata;
    std::unique_ptr<meta::BlockHolder> holder;
    std::unique_ptr<meta::ClusterClient> client;
    uint8_t roles() const {
      return index < kMetadataNodes                 ? meta::kRoleMetadata
             : index < kMetadataNodes + kBlockNodes ? meta::kRoleBlocks
                                                    : 0;
    }
  };
  // What a client is at.
  struct Job {
    size_t node = 0;
    Millis begun{0};
    Millis deadline{0};
    std::vector<BlockKey> keys;
    BlockFacts facts;
    uint64_t content = 0;
    char kind = 'm';  // match, read, create, publish, drop, stat, chain, leaves
    size_t at = 0;
    meta::FoundBlock block;
    bool read_stale = false;  // memory of who may not know what has changed
  };
  struct Registration {
    uint64_t incarnation = 0;
    uint8_t roles = 0;
    Millis expires{0};
  };

  // world.cc
  void At(Millis when, std::function<void()> run);
  void Trace(const std::string& text);
  void Hash(uint64_t value);
  void Note(const char* what, uint64_t a = 0, uint64_t b = 0, uint64_t c = 0);
  Node* Find(const NodeId& id);
  bool Awake(const Node& node) const { return node.up && node.paused_until <= now_; }
  void Start(Node& node);
  void MakeMetadata(Node& node);
  void Do(Node& node, char core, const meta::Actions& actions);
  void DoClient(Node& node, const meta::ClientActions& actions);
  void SendCall(Node& from, char core, const meta::OutCall& call, uint64_t bulk);
  void Deliver(size_t to, uint64_t life, const Message& message);
  void DeliverReply(const Asked& asked, const meta::Reply& reply);
  void Answer(const Asked& asked, size_t from, const meta::Reply& reply);
  void ServeBytes(Node& node, const Asked& asked, const Message& message);
  void Schedule(Node& node);
  void TickNode(size_t index, uint64_t life);
  void GiveView(Node& node, const meta::ClusterView& view);
  void Renew(size_t index, uint64_t life);
  void EtcdTick();
  Slot* TakeSlot(Node& node, const BlockFacts& facts, uint64_t content);
  bool Reachable(size_t a, size_t b) const;
  Millis Latency();
  bool CouldServe(const Node& node) const;
  void ForgetGhosts();
  void CheckOwners();
  void CheckMark(const Node& holder, size_t owner, const meta::Request& request,
                 const meta::Reply& reply);

  // world_faults.cc
  void NextFault();
  void Crash(Node& node, bool lose_disk, Millis away);
  void Leave(Node& node);
  void Drain(Node& node);
  void EndDrain(size_t index, NodeId id, bool leaves);
  void Pause(Node& node, Millis length);
  void Partition(const std::set<size_t>& side, bool with_etcd, Millis length);
  void NetworkWeather();
  bool Calm() const;  // everything is in the view, loaded and repaired
  void Heal();
  void CheckEnd();
  void CheckClosure(bool at_end);
  void CheckBooks();

  // world_clients.cc
  void PlantTree();
  void SendProbe(Node& from, const meta::MatchProbe& probe);
  std::vector<uint64_t> ReadTable(size_t from, size_t to, const meta::MatchProbe& probe);
  void DeliverProbe(size_t to, uint64_t life, uint64_t probe, const std::vector<uint64_t>& words);
  void Wake(size_t index);
  void BeginJob(Job job, Node& node);
  void Ended(Node& node, const meta::Outcome& outcome);
  void ReadEverything();

  const WorldOptions options_;
  tools::Random random_;
  meta::ClusterTimes times_;
  Millis lease_life_{1000};
  Millis now_{1000};
  uint64_t next_event_ = 0;
  std::map<std::pair<Millis, uint64_t>, std::function<void()>> events_;
  std::vector<Node> nodes_;
  std::vector<meta::ClusterView> views_;  // by epoch
  std::map<NodeId, Registration> registered_;
  std::set<NodeId> draining_;  // as an operator wants
  std::map<NodeId, Millis> away_since_;
  uint64_t next_incarnation_ = 1;
  std::map<uint64_t, Asked> asked_;  // by call, at the server
  uint64_t next_call_ = 1;
  std::map<std::pair<size_t, uint64_t>, uint64_t> read_bytes_;  // (client, call) -> bytes
  std::map<uint64_t, Job> jobs_;
  uint64_t next_job_ = 1;
  uint64_t next_content_ = 1;
  std::vector<std::vector<BlockKey>> chains_;
  std::map<BlockKey, BlockKey> parents_;
  std::set<NodeId> ghosts_;  // nodes that went down, with their incarnation of then
  std::map<NodeId, uint64_t> ghost_incarnations_;

  bool evicting_ = false;  // small stores; else nothing may be lost
  bool keeps_ = false;     // then: one copy, which comes back with its holder
  Millis away_{4000};      // so long it is waited for
  uint8_t replicas_ = 1;
  size_t slots_per_node_ = 64;
  double lease_chance_ = 0.7;  // of a match
  size_t joins_late_ = 0;      // this holder; a metadata node: none
  double drop_ = 0, duplicate_ = 0, slow_ = 0, damage_ = 0;
  std::set<size_t> side_;  // of the partition
  bool partitioned_ = false;
  bool healed_ = false, ending_ = false;
  Millis last_block_fault_{-100'000};
  Millis last_change_{0};
  uint64_t hash_ = 0xcbf29ce484222325u;
  Totals totals_;
  Model model_;
};

}  // namespace kvcfs::sim
