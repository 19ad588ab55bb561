// What a mount asks of the cluster: match, stat, create, publish, read, drop, listing.
//
// A core without I/O. Each operation is begun by a method, with a number of the caller's choice and
// a time that it may take, and ends as exactly one Outcome with that number, not later than that
// time and a tick. In between, calls go out and replies come in. What is stale is asked again
// under the next view; what may have happened is asked again because it is idempotent.
// Whoever runs it sends the calls, brings replies or their failure back, does the probes by
// one-sided READs, and calls Tick at NextTick. Bytes: it puts them beside Put calls, and takes them
// from Read replies. Files: cluster_client.cc; client_probes.cc (what a Match reads of the owners'
// tables). Threads: one at a time.   Memory: operations under way, and the cache of groups.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "meta/cluster_messages.h"
#include "meta/match_table.h"
#include "meta/read_way.h"
#include "meta/shared_group_cache.h"

namespace kvcfs::meta {

// What became of the groups of a Match that might be read one-sided, and how many were asked for by
// calls.
struct MatchReads {
  uint32_t read = 0;  // known by READs
  uint32_t asked = 0;
  // Why not, counted for each round of READs; unsent: there was nobody to do them.
  uint32_t not_there = 0, changing = 0, stale = 0, failed = 0, unsent = 0;
  bool tried() const { return read + not_there + changing + stale + failed > 0; }
};

// How an operation ended; what does not belong to it is empty.
struct Outcome {
  uint64_t op = 0;
  Code code = Code::kOk;
  std::vector<FoundBlock> blocks;  // Match: the prefix. Stat: one. Chain: from the root on
  Millis lease_until{0};           // Match, Stat: of all of them; 0: not leased
  uint32_t from_cache = 0;         // Match: how many of the blocks nobody was asked for
  MatchReads reads;                // Match
  BlockFacts facts;                // Stat, Create
  uint32_t copies = 0;             // Publish
  Place place;                     // Read: whose bytes are good
  uint64_t call = 0;               // Read: the call that brought them
  std::vector<BlockKey> keys;      // Leaves
  bool done = false;               // Leaves
};

struct ClientActions {
  std::vector<OutCall> calls;
  std::vector<MatchProbe> probes;
  std::vector<Outcome> outcomes;
  bool wants_view = false;  // somebody has a newer one
};

class ClusterClient {
 public:
  struct Options {
    NodeId self;
    ClusterTimes times;
    size_t cache_groups_max = 65536;
    size_t used_max = 1024;       // reports of use that wait, a holder
    size_t published_max = 4096;  // blocks published here, of which it is known where they are
  };
  explicit ClusterClient(Options options)
      : options_(options), cache_(std::make_shared<SharedGroupCache>(options.cache_groups_max)) {}

  void SetView(Millis now, const ClusterView& view, ClientActions* out);

  // How many leading keys are cached. Without `lease`, nothing is promised or remembered; then it
  // may be tried by probes first, and what they do not say is asked for by calls.
  void Match(Millis now, uint64_t op, const SpaceId& space, std::span<const BlockKey> keys,
             bool lease, Millis timeout, ClientActions* out, Way way = Way::kCall);
  void Stat(Millis now, uint64_t op, const BlockId& id, Millis timeout, ClientActions* out);
  // Before a block is written behind `parent` (zero: a first block): kNotFound, or its facts, and
  // the parent stays for a while.
  void Create(Millis now, uint64_t op, const BlockId& id, const BlockKey& parent, Millis timeout,
              ClientActions* out);
  // After that: `places` have the bytes sealed; as many more as `facts.replicas` wants get them by
  // Put. Where there are fewer holders, or some do not take it in half of `timeout`, one copy
  // is enough; the others are made when it can be. kOk: cached, with so many copies. kExists:
  // another version was first. kNotFound: the parent has gone. kNoSpace: no holder has room. Else
  // it is not known.
  void Publish(Millis now, uint64_t op, const BlockFacts& facts, std::vector<Place> places,
               Millis timeout, ClientActions* out);
  // The bytes of a found block, from the nearest place; a second one is asked when that is slow.
  void Read(Millis now, uint64_t op, const SpaceId& space, const FoundBlock& block, Millis timeout,
            ClientActions* out);
  // The block and what extends it.
  void Drop(Millis now, uint64_t op, const BlockId& id, Millis timeout, ClientActions* out);
  void Chain(Millis now, uint64_t op, const BlockId& tip, Millis timeout, ClientActions* out);
  // A page of the leaves of a shard, behind `after`.
  void Leaves(Millis now, uint64_t op, const SpaceId& space, uint32_t shard, const BlockKey& after,
              uint32_t limit, Millis timeout, ClientActions* out);
  // A read that no server saw; told to the holder within a second.
  void NoteUsed(const BlockId& id, const NodeId& holder);

  void ReceiveReply(Millis now, uint64_t call, const Reply& reply, ClientActions* out);
  // `words`: of the groups' buckets, one after the other; none: they could not be read. A probe
  // that nobody can do comes back as a reply with kUnavailable.
  void ReceiveProbe(Millis now, uint64_t probe, std::span<const uint64_t> words,
                    ClientActions* out);
  void Tick(Millis now, ClientActions* out);
  Millis NextTick() const;

  // May be asked beside this, by any thread.
  const std::shared_ptr<SharedGroupCache>& cache() const { return cache_; }
  uint64_t epoch() const { return view_.epoch; }
  size_t operations() const { return ops_.size(); }

 private:
  enum class Kind : uint8_t {
    kMatch,
    kStat,
    kCreate,
    kPublish,
    kRead,
    kDrop,
    kChain,
    kLeaves,
  };
  // How often what was being changed is read before it is asked for.
  static constexpr uint32_t kProbeRoundsMax = 3;
  enum class Step : uint8_t { kResolve, kAct, kPut };
  struct GroupPart {
    GroupRange range;
    bool answered = false, cached = false, failed = false;
    bool probe = false;  // to be read before it is asked for
    uint32_t count = 0;  // of leading blocks that are there
    Millis lease_until{0};
  };
  struct Op {
    Kind kind = Kind::kMatch;
    Step step = Step::kResolve;
    Millis deadline{0};
    Millis retry{-1};  // when to ask again; negative: not
    BlockId id;        // what it is about; of Match only the space
    std::optional<ResolveReply> where;
    bool guessed = false;         // `where`; when it is not there, its key shard is asked
    std::vector<uint64_t> calls;  // under way
    bool lease = true;
    std::vector<BlockKey> keys;
    std::vector<GroupPart> groups;
    std::vector<FoundBlock> found;  // of Match, by ordinal; as the groups say
    uint32_t probe_rounds = 0;      // of Match, that may begin yet
    MatchReads reads;               // of Match
    BlockFacts facts;
    std::vector<Place> places;  // Publish: sealed. Read: to try, nearest first
    std::set<NodeId> tried;     // Publish: asked to take a copy
    std::set<NodeId> later;     // of them, those that may take one when they are asked again
    Millis enough{0};           // from then on any copies are enough
    Code refused = Code::kOk;   // why the last one did not take it
    size_t next_place = 0;      // Read
    size_t failed_places = 0;
    Millis hedge{-1};
    FoundBlock block;
    std::vector<FoundBlock> chain;  // from the tip on
    uint32_t shard = 0, limit = 0;
  };
  struct Call {
    uint64_t op = 0;
    Millis sent{0};
    uint64_t epoch = 0;
    std::vector<uint32_t> groups;  // of Match
    Place place;                   // of Put and Read; of a probe, whose table
    bool is_probe = false;
  };

  Op& Begin(Millis now, uint64_t op, Kind kind, const BlockId& id, Millis timeout);
  void Run(Millis now, uint64_t number, Op& op, ClientActions* out);
  void RunMatch(Millis now, uint64_t number, Op& op, ClientActions* out);
  // False: there is nothing to be read.
  bool SendProbes(Millis now, uint64_t number, Op& op, ClientActions* out);
  void EndProbe(Millis now, uint64_t id, std::span<const uint64_t> words,
                uint32_t MatchReads::*without_words, ClientActions* out);
  void TakeProbed(Op& op, GroupPart& part, const NodeId& owner, std::span<const uint64_t> words);
  Millis PatienceFor(const Call& call) const;
  void RunPublish(Millis now, uint64_t number, Op& op, ClientActions* out);
  void RunRead(Millis now, uint64_t number, Op& op, ClientActions* out);
  void FinishMatch(Millis now, uint64_t number, Op& op, bool last, ClientActions* out);
  // What a Match ends as; nothing: it cannot end yet. Empties `found`.
  static std::optional<Outcome> EndOfMatch(Millis now, std::span<const GroupPart> groups, bool last,
                                           std::vector<FoundBlock>* found);
  void ReceiveMatch(Millis now, uint64_t number, Op& op, const Call& call, const Reply& reply,
                    ClientActions* out);
  void ReceivePublish(Millis now, uint64_t number, Op& op, const Call& call, const Reply& reply,
                      ClientActions* out);
  void ReceiveRead(Millis now, uint64_t number, Op& op, uint64_t id, const Call& call,
                   const Reply& reply, ClientActions* out);
  void ReceiveOther(Millis now, uint64_t number, Op& op, const Reply& reply, ClientActions* out);
  void Discard(const Op& op, ClientActions* out);
  // Where the block of `op` is, if that is known here.
  void Guess(Millis now, Op& op);
  uint64_t Send(Millis now, uint64_t number, Op& op, const NodeId& to, RequestBody body,
                ClientActions* out);
  // False: nobody owns it now; tried again later.
  bool SendToOwner(Millis now, uint64_t number, Op& op, const BlockId& anchor, RequestBody body,
                   ClientActions* out);
  void Retry(Millis now, Op& op) { op.retry = now + options_.times.retry; }
  void End(uint64_t number, Outcome outcome, ClientActions* out);
  void Tell(const NodeId& to, RequestBody body, ClientActions* out);

  const Options options_;
  ClusterView view_;
  Placement placement_;
  const std::shared_ptr<SharedGroupCache> cache_;
  std::map<uint64_t, Op> ops_;
  std::map<uint64_t, Call> calls_;
  std::map<NodeId, std::set<BlockId>> used_;
  // By this client, lately: until when it is believed to be there still.
  std::map<BlockId, std::pair<ResolveReply, Millis>> published_;
  Millis used_due_{0};
  uint64_t next_call_ = 1;
};

}  // namespace kvcfs::meta
