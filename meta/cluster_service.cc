#include "meta/cluster_service.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <limits>
#include <utility>

#include <fmt/format.h>

#include "base/crc32c.h"
#include "base/log.h"

namespace kvcfs::meta {
namespace {

constexpr Millis kTick{10};             // how late a tick may be
constexpr Millis kAnswerWithin{10000};  // no asker waits longer

rdma::Bytes TextBytes(std::string_view text) {
  const auto bytes = std::as_bytes(std::span(text));
  return {bytes.begin(), bytes.end()};
}

}  // namespace

// What the holder says, done in order by one thread.
class ClusterService::Store final : public BlockHolder::Store {
 public:
  explicit Store(ClusterService* service) : service_(*service) {}

  void Mark(const BlockId& id, uint64_t generation, uint64_t version) override KVC_NO_ANALYSIS {
    service_.marked_ = true;
    InOrder([=](CopyStore* copies) { copies->Mark(id, generation, version); });
  }
  void Free(const BlockId& id, uint64_t generation) override {
    InOrder([=](CopyStore* copies) { copies->Free(id, generation); });
  }
  void Keep(const BlockId& id, uint64_t generation) override {
    InOrder([=](CopyStore* copies) { copies->Keep(id, generation); });
  }
  void Used(const std::vector<BlockId>& ids) override {
    InOrder([=](CopyStore* copies) { copies->Used(ids); });
  }
  void Fetch(uint64_t order, const BlockFacts& facts, const meta::Place& from) override {
    service_.Fetch(order, facts, from);
  }

 private:
  void InOrder(std::function<void(CopyStore*)> say) {
    service_.in_order_->Post([copies = service_.copies_, say = std::move(say)] { say(copies); });
  }
  ClusterService& service_;
};

void ClusterService::Asker::Answer(const Reply& reply) const {
  if (peer != nullptr) {
    peer->Answer(Encode(reply));
  } else if (local) {
    local(reply, 0);
  }
}

ClusterService::ClusterService(const Options& options, Parts parts)
    : options_(options), parts_(std::move(parts)) {
  const MutexLock lock(mutex_);
  if (!has_holder()) return;
  store_ = std::make_unique<Store>(this);
  BlockHolder::Options holder;
  holder.self = options_.self;
  holder.times = options_.times;
  holder_ = std::make_unique<BlockHolder>(holder, store_.get());
}

ClusterService::~ClusterService() {
  Stop();
}

void ClusterService::ExposeBy(rdma::Transport* transport) {
  if (!has_shard()) return;
  matches_ = std::make_unique<MatchTable>(options_.match_buckets);
  const Result<uint64_t> region = transport->Expose(matches_->memory(), rdma::Access::kRead);
  if (!region.ok()) return;
  exposed_by_ = transport;
  match_region_ = *region;
}

void ClusterService::AwaitRegion() {
  const Result<rdma::RegionKey> key = exposed_by_->AwaitKey(match_region_);
  shows_matches_ = key.ok();
  if (key.ok() || key.code() == Code::kStale || key.code() == Code::kCancelled) return;
  KVC_LOG(Warn, "matches are asked for by calls, not read one-sided", "reason={}",
          LogValue(key.error().text));
}

void ClusterService::Start(CopyStore* copies) {
  copies_ = copies;
  in_order_ = std::make_unique<WorkerPool>("copies", 1, std::numeric_limits<size_t>::max());
  serve_pool_ = std::make_unique<WorkerPool>("copy-serve", options_.serve_threads, 1024);
  fetch_pool_ = std::make_unique<WorkerPool>("copy-fetch", options_.fetch_threads, 1024);
  if (exposed_by_ != nullptr) serve_pool_->Post([this] { AwaitRegion(); });
  if (options_.roles != 0) loop_ = std::thread([this] { RunLoop(); });
  serving_ = true;
}

void ClusterService::Stop() {
  if (!serving_.exchange(false) && !loop_.joinable()) return;
  {
    const MutexLock lock(queue_mutex_);
    stopping_ = true;
  }
  queued_.notify_all();
  shows_matches_ = false;
  if (exposed_by_ != nullptr) exposed_by_->Withdraw(match_region_);
  if (loop_.joinable()) loop_.join();
  fetch_pool_->Stop();
  serve_pool_->Stop();
  in_order_->Stop();
  std::map<uint64_t, Pending> pending;
  std::deque<Event> queue;
  {
    const MutexLock lock(mutex_);
    pending.swap(pending_);
    const MutexLock queue_lock(queue_mutex_);
    queue.swap(queue_);
  }
  for (auto& [call, waiting] : pending) {
    if (waiting.asker.local) waiting.asker.local(Plain(Code::kCancelled), 0);
  }
}

Reply ClusterService::Plain(Code code) const {
  return {code, epoch_.load(), EmptyReply{}};
}

// ---- The queue

bool ClusterService::Queue(Event event, bool bounded) {
  {
    const MutexLock lock(queue_mutex_);
    if (stopping_ || (bounded && queue_.size() >= options_.queue_max)) return false;
    queue_.push_back(std::move(event));
  }
  if (!IsRunner()) queued_.notify_one();
  return true;
}

bool ClusterService::NothingWaits() {
  const MutexLock lock(queue_mutex_);
  return queue_.empty() && !stopping_;
}

void ClusterService::RunQueue() {
  runner_ = std::this_thread::get_id();
  while (true) {
    std::deque<Event> batch;
    {
      const MutexLock lock(queue_mutex_);
      if (queue_.empty()) break;
      batch.swap(queue_);
    }
    for (const Event& event : batch) event();
  }
  runner_ = std::thread::id();
}

void ClusterService::RunIfFree() {
  if (!mutex_.TryLock()) return;
  RunQueue();
  mutex_.Unlock();
}

bool ClusterService::RunNow(const Event& event) {
  if (!mutex_.TryLock()) return false;
  // What is queued comes first: it may be what this relies on.
  const bool first = NothingWaits();
  if (first) {
    runner_ = std::this_thread::get_id();
    event();
    RunQueue();
  }
  mutex_.Unlock();
  return first;
}

void ClusterService::RunSoon(Event event) {
  if (IsRunner() || !RunNow(event)) Post(std::move(event));
}

void ClusterService::RunLoop() {
  SetThreadName("cluster");
  while (true) {
    {
      MutexLock lock(queue_mutex_);
      if (!stopping_ && queue_.empty()) queued_.wait_for(lock.native(), kTick);
      if (stopping_) return;
    }
    const MutexLock lock(mutex_);
    RunQueue();
    runner_ = std::this_thread::get_id();
    TickCores();
    RunQueue();
  }
}

void ClusterService::TickCores() {
  const Millis now = parts_.clock->Monotonic();
  // Whoever is due again at once waits for the next tick.
  if (now < next_tick_) return;
  next_tick_ = now + kTick;
  if (holder_ != nullptr && holder_->NextTick() <= now) {
    Actions actions;
    holder_->Tick(now, &actions);
    Flush(Core::kHolder, std::move(actions));
  }
  if (shard_ != nullptr && shard_->NextTick() <= now) {
    Actions actions;
    shard_->Tick(now, &actions);
    Flush(Core::kShard, std::move(actions));
  }
  // In the order in which they came, all with the same patience.
  while (!pending_.empty() && pending_.begin()->second.until <= now) {
    if (pending_.begin()->second.asker.local) {
      pending_.begin()->second.asker.local({Code::kTimeout, 0, {}}, 0);
    }
    pending_.erase(pending_.begin());
  }
}

// ---- The cores

void ClusterService::SetView(const std::shared_ptr<const ClusterView>& view, uint64_t incarnation) {
  epoch_ = view->epoch;
  if (options_.roles == 0) return;
  Post([this, view, incarnation]() KVC_NO_ANALYSIS {
    const Millis now = parts_.clock->Monotonic();
    if (holder_ != nullptr) {
      Actions actions;
      holder_->SetView(now, *view, &actions);
      Flush(Core::kHolder, std::move(actions));
    }
    if (!has_shard()) return;
    // Joined anew: whatever it knew as the one before is void.
    if (shard_ == nullptr || incarnation_ != incarnation) {
      MetadataShard::Options options;
      options.self = options_.self;
      options.incarnation = incarnation;
      options.times = options_.times;
      options.leased_bytes_max = options_.leased_bytes_max;
      options.may_serve = [this](Millis) { return parts_.may_serve(); };
      options.table = matches_.get();
      shard_ = std::make_unique<MetadataShard>(options);
      incarnation_ = incarnation;
    }
    Actions actions;
    shard_->SetView(now, *view, &actions);
    Flush(Core::kShard, std::move(actions));
  });
}

void ClusterService::Receive(const Asker& asker, const Request& request) {
  const Millis now = parts_.clock->Monotonic();
  const bool for_holder = IsForHolder(request.body);
  if (for_holder ? holder_ == nullptr : shard_ == nullptr) {
    // A metadata node that has no view yet, or one that is none (any more).
    return asker.Answer(Plain(for_holder ? Code::kUnsupported : Code::kStale));
  }
  const uint64_t call = next_call_++;
  Actions actions;
  marked_ = false;
  if (!for_holder) {
    shard_->Receive(now, call, request, &actions);
    // Mostly it is answered at once, and need not be remembered.
    const auto own = std::find_if(actions.answers.begin(), actions.answers.end(),
                                  [&](const OutAnswer& answer) { return answer.call == call; });
    if (own == actions.answers.end()) {
      pending_[call] = {asker, now + kAnswerWithin};
    } else {
      asker.Answer(own->reply);
      actions.answers.erase(own);
    }
    return Flush(Core::kShard, std::move(actions));
  }
  pending_[call] = {asker, now + kAnswerWithin};
  holder_->Receive(now, call, request, &actions);
  if (marked_) {
    // The holder answers for what has been written down only.
    for (OutAnswer& answer : actions.answers) {
      const auto waiting = pending_.find(answer.call);
      if (waiting == pending_.end()) continue;
      in_order_->Post([asker = std::move(waiting->second.asker), reply = std::move(answer.reply)] {
        asker.Answer(reply);
      });
      pending_.erase(waiting);
    }
    actions.answers.clear();
  }
  Flush(Core::kHolder, std::move(actions));
}

void ClusterService::Flush(Core core, Actions actions) {
  for (OutAnswer& answer : actions.answers) {
    const auto waiting = pending_.find(answer.call);
    if (waiting == pending_.end()) continue;
    const Asker asker = std::move(waiting->second.asker);
    pending_.erase(waiting);
    asker.Answer(answer.reply);
  }
  for (OutCall& call : actions.calls) Send(core, std::move(call));
}

void ClusterService::Send(Core core, OutCall call) {
  const auto reply_later = [this, core, id = call.id](const Reply& reply, uint32_t) {
    RunSoon([this, core, id, reply]() KVC_NO_ANALYSIS { ReceiveReply(core, id, reply); });
  };
  const bool sent = call.to == options_.self
                        ? ReceiveLocal(std::move(call.request), reply_later)
                        : parts_.peers->Call(call.to, call.request,
                                             {.timeout = options_.times.call}, reply_later);
  if (!sent) reply_later({Code::kUnavailable, 0, {}}, 0);
}

void ClusterService::ReceiveReply(Core core, uint64_t id, const Reply& reply) {
  const Millis now = parts_.clock->Monotonic();
  Actions actions;
  // To a core, a refusal is one more way of not being answered.
  const Reply lost{Code::kUnavailable, 0, {}};
  const Reply& heard = reply.code == Code::kDenied ? lost : reply;
  if (core == Core::kHolder && holder_ != nullptr) {
    holder_->ReceiveReply(now, id, heard, &actions);
  } else if (core == Core::kShard && shard_ != nullptr) {
    shard_->ReceiveReply(now, id, heard, &actions);
  }
  Flush(core, std::move(actions));
}

bool ClusterService::ReceiveLocal(Request request, LocalDone done) {
  return Queue(
      [this, request = std::move(request), done = std::move(done)]() KVC_NO_ANALYSIS {
        Receive({nullptr, done}, request);
      },
      false);
}

// ---- Copies

void ClusterService::Restore(const BlockFacts& facts, uint64_t generation, uint64_t version) {
  const MutexLock lock(mutex_);
  if (holder_ != nullptr) {
    holder_->Restore(parts_.clock->Monotonic(), facts, generation, version);
  }
}

void ClusterService::Sealed(const BlockFacts& facts, uint64_t generation) {
  RunSoon([this, facts, generation]() KVC_NO_ANALYSIS {
    if (holder_ != nullptr) holder_->Sealed(parts_.clock->Monotonic(), facts, generation);
  });
}

void ClusterService::WantRelease(const BlockId& id, uint64_t generation) {
  Post([this, id, generation]() KVC_NO_ANALYSIS {
    if (holder_ != nullptr) holder_->WantRelease(parts_.clock->Monotonic(), id, generation);
  });
}

void ClusterService::Lost(const BlockId& id, uint64_t generation) {
  Post([this, id, generation]() KVC_NO_ANALYSIS {
    if (holder_ != nullptr) holder_->Lost(parts_.clock->Monotonic(), id, generation);
  });
}

void ClusterService::AwaitCopyStore() {
  Mutex mutex;
  std::condition_variable done;
  bool is_done = false;
  const bool posted = in_order_->Post([&]() KVC_NO_ANALYSIS {
    const MutexLock lock(mutex);
    is_done = true;
    done.notify_all();
  });
  MutexLock lock(mutex);
  while (posted && !is_done) done.wait(lock.native());
}

void ClusterService::Fetch(uint64_t order, const BlockFacts& facts, const meta::Place& from) {
  const bool posted = fetch_pool_->Post([this, order, facts, from] {
    rdma::Bytes bytes(facts.length);
    const CopyReader::Outcome got = parts_.reader->Read(
        from.node, {facts.id, from.generation}, bytes, epoch_.load(), options_.fetch_timeout);
    const auto* read = std::get_if<ReadReply>(&got.reply.body);
    if (got.reply.code != Code::kOk || read == nullptr || read->key != facts.id.key ||
        read->generation != from.generation || got.received != facts.length ||
        Crc32c(bytes) != facts.crc32c) {
      return FinishFetch(order, Error{Code::kUnavailable, "no such copy"}, facts);
    }
    FinishFetch(order, copies_->Accept(facts, bytes), facts);
  });
  if (!posted) FinishFetch(order, Error{Code::kBusy, "too many fetches"}, facts);
}

void ClusterService::FinishFetch(uint64_t order, const Result<uint64_t>& generation,
                                 const BlockFacts& facts) {
  const Code code = generation.code();
  const uint64_t made = generation.ok() ? *generation : 0;
  Post([this, order, code, made, facts]() KVC_NO_ANALYSIS {
    if (holder_ == nullptr) return;
    Actions actions;
    holder_->Fetched(parts_.clock->Monotonic(), order, code, made, facts.length, facts.crc32c,
                     &actions);
    Flush(Core::kHolder, std::move(actions));
  });
}

bool ClusterService::ServePut(const BlockFacts& facts, std::span<const std::byte> bytes,
                              const Asker& asker) {
  return serve_pool_->Post([this, facts, bytes, asker] {
    if (bytes.size() != facts.length || Crc32c(bytes) != facts.crc32c) {
      return asker.Answer(Plain(Code::kCorrupt));
    }
    const auto generation = copies_->Accept(facts, bytes);
    if (!generation.ok()) return asker.Answer(Plain(generation.code()));
    // Before the answer: so the holder knows of it when it is told to mark it.
    Sealed(facts, *generation);
    asker.Answer({Code::kOk, epoch_.load(), PutReply{*generation}});
  });
}

bool ClusterService::PutLocal(const BlockFacts& facts, std::span<const std::byte> bytes,
                              LocalDone done) {
  return has_holder() && ServePut(facts, bytes, {nullptr, std::move(done)});
}

bool ClusterService::ReadLocal(const BlockId& id, uint64_t generation, std::span<std::byte> into,
                               LocalDone done) {
  if (!has_holder()) return false;
  return serve_pool_->Post([this, id, generation, into, done = std::move(done)] {
    const auto copy = copies_->Open(id, generation, true);
    if (!copy.ok()) return done(Plain(copy.code()), 0);
    if (copy->bytes().size() != into.size()) return done(Plain(Code::kCorrupt), 0);
    std::memcpy(into.data(), copy->bytes().data(), into.size());
    const auto length = static_cast<uint32_t>(into.size());
    done({Code::kOk, epoch_.load(), ReadReply{id.key, generation, length, copy->crc32c()}}, length);
  });
}

void ClusterService::ServeRead(const ReadRequest& request,
                               const std::shared_ptr<rdma::Responder>& responder, bool may_wait) {
  auto copy = copies_->Open(request.id, request.generation, may_wait);
  if (copy.code() == Code::kBusy && !may_wait) {
    const bool posted =
        serve_pool_->Post([this, request, responder] { ServeRead(request, responder, true); });
    if (!posted) responder->Answer(Encode(Plain(Code::kBusy)));
    return;
  }
  if (!copy.ok()) {
    const bool gone = copy.code() == Code::kNotFound || copy.code() == Code::kBusy;
    return responder->Answer(Encode(Plain(gone ? copy.code() : Code::kCorrupt)));
  }
  const auto length = static_cast<uint32_t>(copy->bytes().size());
  if (length > responder->receive_bytes()) {
    return responder->Answer(Encode(Plain(Code::kInvalid)));
  }
  const ReadReply reply{request.id.key, request.generation, length, copy->crc32c()};
  // Pinned until the last byte is with the kernel.
  const auto pinned = std::make_shared<PinnedCopy>(std::move(*copy));
  responder->Answer(Encode(Reply{Code::kOk, epoch_.load(), reply}), pinned->bytes(),
                    [pinned] { *pinned = PinnedCopy(); });
}

// ---- Peers

void ClusterService::Serve(rdma::Method method, rdma::Bytes bytes, std::span<std::byte> bulk,
                           std::unique_ptr<rdma::Responder> from) {
  // std::function wants what can be copied.
  const std::shared_ptr<rdma::Responder> responder = std::move(from);
  if (!serving_) return responder->Refuse(Code::kUnavailable, "not serving");
  const rdma::PeerIdentity& peer = responder->peer();
  if (method == kMethodPromise) {
    const auto epoch = DecodeNumber(bytes);
    if (!epoch.ok()) return responder->Refuse(epoch.code(), epoch.error().text);
    if (!peer.is_node) return responder->Refuse(Code::kDenied, "promises are for nodes");
    return responder->Answer(EncodeNumber(static_cast<uint64_t>(parts_.promise(*epoch).count())));
  }
  if (method == kMethodStatus) {
    const bool posted =
        serve_pool_->Post([this, responder] { responder->Answer(TextBytes(parts_.status())); });
    if (!posted) responder->Refuse(Code::kBusy, "too much waits here");
    return;
  }
  if (method == kMethodSlots) {
    // A region has blocks of all namespaces.
    if (!peer.all_namespaces)
      return responder->Refuse(Code::kDenied, "slots are of all namespaces");
    return responder->Answer(meta::Encode(has_holder() ? copies_->Slots() : SlotTable()));
  }
  if (method == kMethodMatches) {
    if (!peer.all_namespaces)
      return responder->Refuse(Code::kDenied, "matches are of all namespaces");
    MatchTablePlace place;
    if (shows_matches_) place = {match_region_, matches_->buckets()};
    return responder->Answer(meta::Encode(place));
  }
  if (method == kMethodUsage) {
    const auto spaces = DecodeSpaces(bytes);
    if (!spaces.ok()) return responder->Refuse(spaces.code(), spaces.error().text);
    if (!peer.is_node || !peer.all_namespaces) {
      return responder->Refuse(Code::kDenied, "usage is for nodes");
    }
    const bool posted = serve_pool_->Post(
        [this, responder, asked = *spaces] { responder->Answer(meta::Encode(BytesOf(asked))); });
    if (!posted) responder->Refuse(Code::kBusy, "too much waits here");
    return;
  }
  if (method == kMethodNames) return ServeNames(bytes, responder);
  const auto request = DecodeRequest(method, bytes);
  if (!request.ok()) return responder->Refuse(request.code(), request.error().text);
  const Code allowed = CheckAccess(peer, *request, parts_.name_of_space);
  if (allowed == Code::kDenied) {
    KVC_LOG(Warn, "a peer asked what it may not", "peer={} method={}", LogValue(peer.name), method);
    return responder->Refuse(allowed, fmt::format("{} may not ask this", peer.name));
  }
  if (allowed != Code::kOk) return responder->Answer(Encode(Plain(allowed)));
  if (const auto* put = std::get_if<PutRequest>(&request->body)) {
    if (!has_holder()) return responder->Answer(Encode(Plain(Code::kUnsupported)));
    if (!ServePut(put->facts, bulk, {responder, nullptr})) {
      responder->Answer(Encode(Plain(Code::kBusy)));
    }
    return;
  }
  if (const auto* read = std::get_if<ReadRequest>(&request->body)) {
    if (!has_holder()) return responder->Answer(Encode(Plain(Code::kUnsupported)));
    return ServeRead(*read, responder, false);
  }
  ServeCore({responder, nullptr}, *request);
}

void ClusterService::ServeNames(const rdma::Bytes& bytes,
                                const std::shared_ptr<rdma::Responder>& responder) {
  auto request = DecodeNameRequest(bytes);
  if (!request.ok()) return responder->Refuse(request.code(), request.error().text);
  if (parts_.names == nullptr) return responder->Refuse(Code::kUnsupported, "no names here");
  const rdma::PeerIdentity& peer = responder->peer();
  const Code allowed = CheckNameAccess(peer, *request, parts_.name_of_space);
  if (allowed == Code::kDenied) {
    KVC_LOG(Warn, "a peer asked what it may not", "peer={} method={}", LogValue(peer.name),
            kMethodNames);
    return responder->Refuse(allowed, fmt::format("{} may not ask this", peer.name));
  }
  const auto answer = [responder](const NameReply& reply) { responder->Answer(Encode(reply)); };
  NameReply refused;
  refused.code = allowed != Code::kOk ? allowed : Code::kBusy;
  refused.epoch = epoch_.load();
  if (allowed != Code::kOk || !parts_.names->Serve(std::move(*request), answer)) answer(refused);
}

void ClusterService::ServeCore(const Asker& asker, const Request& request) {
  const auto receive = [this, &asker, &request]() KVC_NO_ANALYSIS { Receive(asker, request); };
  if (RunNow(std::cref(receive))) return;
  if (!Queue([this, asker, request]() KVC_NO_ANALYSIS { Receive(asker, request); }, true)) {
    asker.Answer(Plain(Code::kBusy));
  }
}

SpaceUsage ClusterService::BytesOf(std::span<const SpaceId> spaces) {
  SpaceUsage usage;
  usage.bytes.resize(spaces.size());
  const MutexLock lock(mutex_);
  if (shard_ == nullptr) return usage;
  usage.epoch = shard_->epoch();
  for (size_t i = 0; i < spaces.size(); ++i) usage.bytes[i] = shard_->BytesOf(spaces[i]);
  return usage;
}

void ClusterService::Describe(ClusterStatus* status) {
  {
    const MutexLock lock(mutex_);
    if (shard_ != nullptr) {
      const MetadataShard::Counts counts = shard_->Count();
      status->shards = counts.shards;
      status->shards_loading = counts.loading;
      status->records = counts.records;
      status->repairs_waiting = counts.repairs_waiting;
      status->repaired_total = counts.repaired_total;
      status->lost_total = counts.lost_total;
      status->orphans_total = counts.orphans_total;
      status->hidden = counts.hidden;
      status->moving = counts.moving;
      status->moved_total = counts.moved_total;
      status->move_bytes_left = counts.move_bytes_left;
    }
    if (holder_ != nullptr) status->copies = holder_->size();
  }
  if (copies_ != nullptr) status->capacity = copies_->Capacity();
}

}  // namespace kvcfs::meta
