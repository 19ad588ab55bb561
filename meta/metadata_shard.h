// What a metadata node does: the shards that its view gives it, as an index of the holders' truth.
//
// A core without I/O: events go in, Actions come out. Whoever runs it sends the calls (also those
// to the node itself), brings every reply or its failure back to ReceiveReply, and calls Tick when
// NextTick has come. Nothing here is written down: a shard is loaded from the holders' inventories.
// The protocol, and why it is right: CLUSTER.md. Files: metadata_shard.cc (what clients and holders
// ask), shard_records.cc (the life of a record), shard_loading.cc (views, inventories, repair),
// shard_balance.cc (copies move to holders that have less).
// Threads: one at a time.   Memory: all records of its shards.
// Deterministic: the same events give the same actions.
#pragma once

#include <array>
#include <compare>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include "meta/cluster_messages.h"
#include "meta/lease_table.h"
#include "meta/match_answers.h"
#include "meta/match_table.h"

namespace kvcfs::meta {

class MetadataShard {
 public:
  struct Options {
    NodeId self;
    uint64_t incarnation = 0;
    ClusterTimes times;
    uint64_t leased_bytes_max = uint64_t{1} << 40;
    size_t repairs_max = 64;      // at a time
    size_t sends_per_tick = 512;  // the rest waits for the next
    size_t moves_max = 8;         // at a time, to holders that have less
    uint64_t move_bytes_per_second = uint64_t{64} << 20;
    size_t balance_records_per_scan = 2048;  // that are looked at, each `retry`
    // Whether the node's own lease at etcd lets it answer (serving_right.h).
    std::function<bool(Millis)> may_serve;
    // What it shows of its answers to who reads one-sided: its own, as long as it lives. May be
    // null.
    MatchTable* table = nullptr;
  };
  explicit MetadataShard(Options options);
  ~MetadataShard();

  // Views in the order of their epochs. One that was skipped makes it load everything anew.
  void SetView(Millis now, const ClusterView& view, Actions* actions);
  // `call`: chosen by the caller, comes back in the answer, at once or later.
  void Receive(Millis now, uint64_t call, const Request& request, Actions* actions);
  void ReceiveReply(Millis now, uint64_t id, const Reply& reply, Actions* actions);
  void Tick(Millis now, Actions* actions);
  Millis NextTick() const;  // Millis::max(): nothing to do

  struct Counts {
    uint64_t shards = 0, loading = 0, reconciling = 0;
    uint64_t records = 0, pending = 0, doomed = 0, repairs_waiting = 0, tasks = 0;
    uint64_t hidden = 0;
    uint64_t repaired_total = 0, orphans_total = 0, lost_total = 0;
    uint64_t moving = 0, moved_total = 0, move_bytes_left = 0;  // about so many bytes are to move
  };
  Counts Count() const;
  // Of the records here, each block counted once, whatever its copies.
  uint64_t BytesOf(const SpaceId& space) const;
  uint64_t epoch() const { return view_.epoch; }
  bool Owns(uint32_t shard) const { return shards_[shard] != nullptr; }
  bool Serves(uint32_t shard, Millis now) const;  // would answer a Match

  // For tests and the simulator's model, in no particular order.
  struct RecordState {
    const BlockFacts* facts;
    uint64_t version;
    bool visible, doomed, settled;  // settled: its shard is not loading or reconciling
    std::vector<Place> marked;
  };
  void VisitRecords(const std::function<void(uint32_t shard, const RecordState&)>& visit) const;

 private:
  struct Copy {
    Place place;
    bool marked = false;    // the holder has it as published
    bool verified = false;  // since the holder's present incarnation
  };
  struct Waiter {
    uint64_t call = 0;
    std::vector<Place> places;
  };
  struct Edge {  // a child
    uint64_t version = 0;
    bool local = false;  // in the same group
    Millis asked{0};
  };
  enum class State : uint8_t { kPending, kVisible, kRemoving };
  struct Record {
    BlockFacts facts;
    uint64_t version = 0;    // of the bytes: made at the commit, kept by the holders
    uint64_t attach_id = 0;  // of this record: made when it is, told to the parent and the pointer
    State state = State::kPending;
    bool doomed = false;
    bool attached = false;  // the parent knows of it
    bool pointed = false;   // its pointer is there
    std::vector<Copy> copies;
    std::map<BlockKey, Edge> children;
    std::map<BlockKey, Millis> pins;  // children being written: until when
    std::map<NodeId, Millis> grants;  // of a first block: who may answer for it until when
    std::vector<Waiter> committers;
    std::vector<uint64_t> droppers;
  };
  struct Pointer {
    uint32_t ordinal = 0;
    BlockKey anchor;
    uint64_t version = 0;
  };
  // Who changes a record gets it by Edit, which forgets what matches said of it. Answers are put
  // where nobody holds a record that he may yet change: at the begin of an event.
  class Records {
   public:
    using Map = std::unordered_map<BlockId, Record, BlockIdHash>;
    const Map& all() const { return map_; }
    Map& EditAll() {
      for (const auto& [id, record] : map_) answers_.Drop(id);
      return map_;
    }
    const Record* Find(const BlockId& id) const {
      const auto at = map_.find(id);
      return at == map_.end() ? nullptr : &at->second;
    }
    Record* Edit(const BlockId& id) {
      const auto at = map_.find(id);
      if (at == map_.end()) return nullptr;
      answers_.Drop(id);
      return &at->second;
    }
    Record& Add(const BlockId& id) {
      const auto [at, is_new] = map_.try_emplace(id);
      if (is_new) {
        answers_.AddRecord(id);
      } else {
        answers_.Drop(id);
      }
      return at->second;
    }
    Record Take(const BlockId& id) {
      answers_.EraseRecord(id);
      return std::move(map_.extract(id).mapped());
    }
    MatchAnswers& answers() { return answers_; }
    const MatchAnswers& answers() const { return answers_; }

   private:
    Map map_;
    MatchAnswers answers_;
  };
  struct Shard {
    uint32_t number = 0;
    bool loaded = false;
    Millis gained{0};
    std::set<NodeId> waiting;  // holders whose inventory is not complete
    Records records;
    std::map<BlockId, std::map<BlockKey, Edge>> loose;  // edges whose parent is not there (yet)
    std::unordered_map<BlockId, Pointer, BlockIdHash> pointers;
    std::set<BlockId> leaves;
    std::set<BlockId> unsettled;  // pending or doomed
    std::set<BlockId> repairs;
    std::map<SpaceId, uint64_t> bytes;  // of all records
    std::set<BlockId> hidden;  // visible, but for that all copies are at holders that are away
  };
  // Something said again and again until it is answered under the present view.
  enum class TaskKind : uint8_t {
    kAttach,
    kPoint,
    kMark,
    kForget,
    kDoom,
    kRevoke,
    kCopy,
    kHave,  // so far: of a record of ours
    kInventory,
    kGrant,
    kDetach,  // from here on: of what is gone
    kUnpoint,
    kForgetStray,
    kDoomStray,
  };
  // (kind, what it is about, another key, node, generation): at most one of each.
  using TaskKey = std::tuple<TaskKind, BlockId, BlockKey, NodeId, uint64_t>;
  // Instead of the generation of a kCopy: one that repairs, one that moves.
  static constexpr uint64_t kRepair = 0, kMove = 1;
  struct Task {
    uint64_t id = 0;
    RequestBody body;
    BlockId target_anchor;  // its shard's owner is asked, unless:
    NodeId target_node;
    uint32_t shard = kShardCount;  // that it belongs to
    Millis due{0};
    Millis first_sent{-1};   // under the present view
    uint32_t postponed = 0;  // likewise, so many times
  };
  struct Stream {  // of a holder's inventory
    ShardSet shards;
    BlockId after;
    uint64_t after_generation = 0;
  };
  // A copy that goes to a holder which has less: made there first, then given up here.
  struct Move {
    uint32_t shard = 0;
    Place from;
    NodeId to;
    bool made = false;  // the new copy is in the record, maybe not marked yet
    Millis until{0};    // then the old one stays, too
  };
  // The look for what should move: from a change of the view on, until there is nothing.
  struct Balance {
    bool on = false, weighs = true;  // first what each holder has, then what may move
    bool found_much = false;         // a holder had so little that it was worth a beginning
    bool saw_promised = false;       // what could not move, but may later
    Millis not_before{0};
    uint64_t moved_before = 0;
    uint32_t shard = 0;
    size_t bucket = 0;                          // of its records
    std::map<NodeId, uint64_t> held, weighing;  // bytes in our shards
    std::map<NodeId, uint64_t> room;            // how much those that have little may get
  };
  struct FirstCopy {  // of somebody else's first block
    FoundBlock block;
    bool leased = false;
    Millis until{0};
  };
  struct WaitingMatch {
    uint64_t call = 0;
    MatchRequest request;
  };

  // metadata_shard.cc
  void Answer(uint64_t call, Code code, ReplyBody body, Actions* actions) const;
  void Serve(Millis now, uint64_t call, const MatchRequest& request, Actions* actions);
  void Serve(Millis now, uint64_t call, const ResolveRequest& request, Actions* actions);
  void Serve(Millis now, uint64_t call, const LocateRequest& request, Actions* actions);
  void Serve(Millis now, uint64_t call, const ChainRequest& request, Actions* actions);
  void Serve(Millis now, uint64_t call, const LeavesRequest& request, Actions* actions);
  void Serve(Millis now, uint64_t call, const ReserveRequest& request, Actions* actions);
  void Serve(Millis now, uint64_t call, const CommitRequest& request, Actions* actions);
  void Serve(Millis now, uint64_t call, const DropRequest& request, Actions* actions);
  void Serve(Millis now, uint64_t call, const MissingRequest& request, Actions* actions);
  void Serve(Millis now, uint64_t call, const ReleaseRequest& request, Actions* actions);
  void Serve(Millis now, uint64_t call, const AttachRequest& request, Actions* actions);
  void Serve(Millis now, uint64_t call, const DetachRequest& request, Actions* actions);
  void Serve(Millis now, uint64_t call, const DoomRequest& request, Actions* actions);
  void Serve(Millis now, uint64_t call, const PointRequest& request, Actions* actions);
  void Serve(Millis now, uint64_t call, const UnpointRequest& request, Actions* actions);
  void Serve(Millis now, uint64_t call, const GrantRequest& request, Actions* actions);
  void Serve(Millis now, uint64_t call, const RevokeRequest& request, Actions* actions);
  // `first`: what to say of a first block that is neither ours nor copied here; kBusy: ask for it.
  // `remember`: at the begin of an event.
  void AnswerMatch(Millis now, uint64_t call, const MatchRequest& request, Code first,
                   bool remember, Actions* actions);
  void PrefetchMatch(const MatchRequest& request);
  // Appends to `blocks`.
  void MatchGroupHere(Millis now, Shard& shard, const MatchRequest& request, uint32_t first,
                      std::span<const BlockKey> keys, bool remember, GroupAnswer* answer,
                      std::vector<FoundBlock>* blocks);
  Code ReleaseOne(Millis now, const NodeId& holder, const ReleaseItem& item, Actions* actions);
  uint32_t Lease(Millis now, const BlockId& id, uint32_t length);
  FoundBlock Describe(const Record& record) const;
  Shard* ShardFor(const BlockId& anchor, Code* why);

  // shard_records.cc
  // attach_id as the version, where it is made now; else a new one.
  Record& AddRecord(Shard& shard, const BlockFacts& facts, uint64_t version, uint64_t attach_id);
  static void Weigh(Shard& shard, const BlockFacts& before, const BlockFacts& after);
  void Advance(Millis now, Shard& shard, Record& record, Actions* actions);
  void AdvanceRemoval(Millis now, Shard& shard, Record& record, Actions* actions);
  void BecomeVisible(Millis now, Shard& shard, Record& record, Actions* actions);
  void Doom(Millis now, Shard& shard, Record& record, Actions* actions);
  void Erase(Millis now, Shard& shard, const BlockId& id, Actions* actions);
  void EraseEdge(Millis now, Shard& shard, const BlockId& parent, const BlockKey& child,
                 uint64_t version, Actions* actions);
  void RemoveCopy(Millis now, Shard& shard, Record& record, const Place& place, Actions* actions);
  void AnswerCommitters(Record& record, Actions* actions);
  void UpdateLeaf(Shard& shard, const Record& record);
  void NoteRepair(Shard& shard, const Record& record);
  static size_t GoodCopies(const Record& record);
  bool IsEvictable(Millis now, const Shard& shard, const Record& record) const;
  uint64_t NextVersion() { return (view_.epoch << 32) | ++version_counter_; }

  Task& EnsureTask(const TaskKey& key, uint32_t shard);
  void DropTask(const TaskKey& key);
  void DropTasksOf(TaskKind kind, const BlockId& id);
  void AskAttach(Shard& shard, const Record& record);
  void AskPoint(Shard& shard, const Record& record);
  void AskMark(Shard& shard, const Record& record, const Place& place);
  void TellAgain(Shard& shard, const Record& record);
  bool IsTold(const BlockId& id) const;  // nobody is to be told of it
  // A copy of no record. Until its holder has answered, nothing may be made of it.
  void ForgetStray(Shard& shard, const BlockId& id, const Place& place);
  bool IsForgotten(const BlockId& id, const Place& place) const {
    return tasks_.contains({TaskKind::kForgetStray, id, {}, place.node, place.generation});
  }
  void FinishGrant(Millis now, const TaskKey& key, const Task& task, const Reply& reply,
                   Actions* actions);
  void FinishOfRecord(Millis now, const TaskKey& key, const Task& task, const Reply& reply,
                      Actions* actions);
  void TakeReply(Millis now, uint64_t id, const Reply& reply, Actions* actions);
  void SendDue(Millis now, Actions* actions, size_t most = SIZE_MAX);

  // shard_loading.cc
  void RestartTasks();
  void AnswerWaiting(Shard& shard, Actions* actions);
  void ForgetNodes(Millis now, Shard& shard, const ClusterView& before, Actions* actions);
  void RestartRecords(Millis now, Shard& shard, const Placement& before, Actions* actions);
  void StartStreams(const ClusterView& before);
  void AskInventory(const NodeId& node, const Stream& stream);
  void Merge(Millis now, const NodeId& node, const ShardSet& shards, const InventoryEntry& entry,
             Actions* actions);
  void MergeRecord(Millis now, Shard& shard, const Place& place, const InventoryEntry& entry,
                   Actions* actions);
  void FinishStream(Millis now, const NodeId& node, Actions* actions);
  void FinishShard(Millis now, Shard& shard, Actions* actions);
  void ReceiveInventory(Millis now, const NodeId& node, const InventoryReply& reply,
                        Actions* actions);
  void StartRepairs(Millis now, Actions* actions);
  // A record whose last copies are at a holder that left for now is kept, and is a miss.
  bool KeepsAwayCopy(const Record& record, const Place& place) const;
  bool IsHidden(const Record& record) const;
  // It is published, and what it extends may be with one that is away.
  bool WaitsForAway(const Shard& shard, const Record& record) const;
  // What extends a block must not keep it where nobody can read that, or it is not there any more.
  void AskChildren(Millis now, Shard& shard, Record& record, Actions* actions);
  void GiveUpHidden(Millis now, Shard& shard, const BlockId& id, Actions* actions);
  void NoteVerified(Shard& shard, Record& record);
  // Other bytes than those of holders that are away.
  void Replace(Millis now, Shard& shard, Record& record, const CommitRequest& request,
               uint64_t call, std::vector<Place> places, Actions* actions);
  void Postpone(Millis now, Task& task);
  size_t WantedCopies(const Record& record) const;
  size_t StayingCopies(const Record& record) const;  // marked, and not on nodes that drain

  // shard_balance.cc
  void RunBalance(Millis now, Actions* actions);
  void FinishMoves(Millis now, Actions* actions);
  void EndWeighing();
  void StartMove(Millis now, const Record& record, Shard& shard);
  bool IsPromised(Millis now, const Shard& shard, const Record& record) const;

  const Options options_;
  ClusterView view_;
  Placement placement_;
  std::array<std::unique_ptr<Shard>, kShardCount> shards_;
  LeaseTable leases_;
  uint64_t version_counter_ = 0;
  uint64_t next_id_ = 1;
  std::map<TaskKey, Task> tasks_;
  std::unordered_map<uint64_t, TaskKey> keys_;  // of tasks by id
  std::set<std::pair<Millis, uint64_t>> due_;
  std::map<NodeId, Stream> streams_;
  std::map<BlockId, FirstCopy> first_copies_;
  std::map<BlockId, std::vector<WaitingMatch>> waiting_matches_;
  size_t repairs_running_ = 0;
  std::map<BlockId, Move> moves_;
  Balance balance_;
  double move_bytes_allowed_ = 0;
  Millis moves_counted_{0};
  Millis next_scan_{0};
  Counts totals_;
};

}  // namespace kvcfs::meta
