// The serving half of a node: runs the metadata shard and the block holder, and answers peers.
//
// The two cores are under one lock. A request, or an answer, that finds it free is served at once,
// on the thread that brought it (a transport's, which must not wait); else it is queued for the
// thread "cluster", which also ticks them. What blocks (bytes, CopyStore) is done by worker pools;
// Mark, Free, Keep and Used by one thread, in the order in which the holder said them, and the
// answer to a Mark goes out behind it. Threads: any. Lock order: mutex_, then a local caller's
// locks, then queue_mutex_. Memory: requests that wait, at most `queue_max`; beyond it peers get
// kBusy. Source: meta/CLUSTER.md, meta/metadata_shard.h, meta/block_holder.h.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "base/mutex.h"
#include "meta/block_holder.h"
#include "meta/cluster.h"
#include "meta/cluster_peers.h"
#include "meta/copy_reader.h"
#include "meta/match_table.h"
#include "meta/metadata_shard.h"
#include "meta/name_service.h"
#include "meta/request_access.h"
#include "meta/worker_pool.h"
#include "rdma/transport.h"

namespace kvcfs::meta {

class ClusterService final : public rdma::Service {
 public:
  struct Options {
    NodeId self;
    uint8_t roles = 0;
    ClusterTimes times;
    uint64_t leased_bytes_max = uint64_t{1} << 40;
    size_t serve_threads = 4;
    size_t fetch_threads = 2;
    size_t queue_max = 65536;
    Millis fetch_timeout{5000};
    uint64_t match_buckets = 1 << 16;  // 16 MiB of locked memory, if matches are read one-sided
  };
  struct Parts {
    const Clock* clock = nullptr;
    ClusterPeers* peers = nullptr;
    CopyReader* reader = nullptr;
    std::function<bool()> may_serve;                // Membership's
    std::function<Millis(uint64_t epoch)> promise;  // likewise
    NameOfSpace name_of_space;
    std::function<std::string()> status;  // JSON; may block
    NameService* names = nullptr;         // null: kUnsupported
  };
  ClusterService(const Options& options, Parts parts);
  ~ClusterService() override;

  // Peers may read what matches say here by regions of this transport; before Start, if at all.
  void ExposeBy(rdma::Transport* transport) KVC_EXCLUDES(mutex_);
  void Start(CopyStore* copies);
  // What waits is done or dropped; from then on peers are refused. No peer is called any more.
  void Stop();

  void SetView(const std::shared_ptr<const ClusterView>& view, uint64_t incarnation)
      KVC_EXCLUDES(mutex_, queue_mutex_);

  // ---- This node's own client
  // `done` is called later, on any thread. False: it never is.
  using LocalDone = std::function<void(const Reply&, uint32_t bytes)>;
  bool ReceiveLocal(Request request, LocalDone done) KVC_EXCLUDES(queue_mutex_);
  bool PutLocal(const BlockFacts& facts, std::span<const std::byte> bytes, LocalDone done);
  bool ReadLocal(const BlockId& id, uint64_t generation, std::span<std::byte> into, LocalDone done);
  // What is queued is done on this thread, unless another is at it.
  void RunIfFree() KVC_EXCLUDES(mutex_, queue_mutex_);

  // ---- This node's copies
  void Restore(const BlockFacts& facts, uint64_t generation, uint64_t version)
      KVC_EXCLUDES(mutex_, queue_mutex_);
  void Sealed(const BlockFacts& facts, uint64_t generation) KVC_EXCLUDES(queue_mutex_);
  void WantRelease(const BlockId& id, uint64_t generation) KVC_EXCLUDES(queue_mutex_);
  void Lost(const BlockId& id, uint64_t generation) KVC_EXCLUDES(queue_mutex_);
  // Returns when everything that the holder has told CopyStore so far has been done.
  void AwaitCopyStore();

  void Describe(ClusterStatus* status) KVC_EXCLUDES(mutex_);
  SpaceUsage BytesOf(std::span<const SpaceId> spaces) KVC_EXCLUDES(mutex_);

  void Serve(rdma::Method method, rdma::Bytes request, std::span<std::byte> bulk,
             std::unique_ptr<rdma::Responder> responder) override;

 private:
  class Store;
  enum class Core : uint8_t { kShard, kHolder };
  // Who waits for an answer: a peer, or somebody here.
  struct Asker {
    std::shared_ptr<rdma::Responder> peer;
    LocalDone local;
    void Answer(const Reply& reply) const;
  };
  struct Pending {
    Asker asker;
    Millis until{0};
  };
  using Event = std::function<void()>;  // run with mutex_ held

  bool has_shard() const { return (options_.roles & kRoleMetadata) != 0; }
  bool has_holder() const { return (options_.roles & kRoleBlocks) != 0; }

  bool Queue(Event event, bool bounded) KVC_EXCLUDES(queue_mutex_);
  bool NothingWaits() KVC_EXCLUDES(queue_mutex_);  // and it is not stopping
  void Post(Event event) KVC_EXCLUDES(queue_mutex_) { (void)Queue(std::move(event), false); }
  // Now, on this thread, if the cores and the queue are free; else it is queued. Whoever calls it
  // holds no lock, unless it runs the cores.
  void RunSoon(Event event) KVC_EXCLUDES(queue_mutex_);
  bool RunNow(const Event& event) KVC_EXCLUDES(mutex_, queue_mutex_);
  // This thread runs the cores, and will look at the queue again.
  bool IsRunner() const { return runner_.load() == std::this_thread::get_id(); }
  void RunQueue() KVC_REQUIRES(mutex_) KVC_EXCLUDES(queue_mutex_);
  void RunLoop() KVC_EXCLUDES(mutex_, queue_mutex_);
  void TickCores() KVC_REQUIRES(mutex_);

  void Receive(const Asker& asker, const Request& request) KVC_REQUIRES(mutex_);
  void Flush(Core core, Actions actions) KVC_REQUIRES(mutex_);
  void Send(Core core, OutCall call) KVC_REQUIRES(mutex_);
  void ReceiveReply(Core core, uint64_t id, const Reply& reply) KVC_REQUIRES(mutex_);
  void AwaitRegion();
  void Fetch(uint64_t order, const BlockFacts& facts, const meta::Place& from);
  void FinishFetch(uint64_t order, const Result<uint64_t>& generation, const BlockFacts& facts);

  bool ServePut(const BlockFacts& facts, std::span<const std::byte> bytes, const Asker& asker);
  void ServeRead(const ReadRequest& request, const std::shared_ptr<rdma::Responder>& responder,
                 bool may_wait);
  void ServeNames(const rdma::Bytes& bytes, const std::shared_ptr<rdma::Responder>& responder);
  void ServeCore(const Asker& asker, const Request& request) KVC_EXCLUDES(mutex_, queue_mutex_);
  Reply Plain(Code code) const;

  const Options options_;
  const Parts parts_;
  CopyStore* copies_ = nullptr;  // set by Start, before anything is served

  // The cores write it, peers read it. Its region goes before it does.
  std::unique_ptr<MatchTable> matches_;
  rdma::Transport* exposed_by_ = nullptr;
  uint64_t match_region_ = 0;
  std::atomic<bool> shows_matches_{false};  // peers may be told of the region

  Mutex mutex_;
  std::unique_ptr<Store> store_ KVC_GUARDED_BY(mutex_);
  std::unique_ptr<BlockHolder> holder_ KVC_GUARDED_BY(mutex_);
  std::unique_ptr<MetadataShard> shard_ KVC_GUARDED_BY(mutex_);
  uint64_t incarnation_ KVC_GUARDED_BY(mutex_) = 0;
  std::map<uint64_t, Pending> pending_ KVC_GUARDED_BY(mutex_);
  uint64_t next_call_ KVC_GUARDED_BY(mutex_) = 1;
  bool marked_ KVC_GUARDED_BY(mutex_) = false;  // by the request that is being served
  Millis next_tick_ KVC_GUARDED_BY(mutex_){0};

  std::atomic<std::thread::id> runner_;  // who holds mutex_ and will run the queue

  Mutex queue_mutex_;
  std::condition_variable queued_;
  std::deque<Event> queue_ KVC_GUARDED_BY(queue_mutex_);
  bool stopping_ KVC_GUARDED_BY(queue_mutex_) = false;
  std::atomic<bool> serving_{false};
  std::atomic<uint64_t> epoch_{0};

  std::unique_ptr<WorkerPool> in_order_, serve_pool_, fetch_pool_;
  std::thread loop_;
};

}  // namespace kvcfs::meta
