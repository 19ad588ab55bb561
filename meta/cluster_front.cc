#include "meta/cluster_front.h"

#include <cstring>
#include <utility>

#include "base/brief_lock.h"
#include "base/crc32c.h"
#include "base/log.h"

namespace kvcfs::meta {
namespace {

constexpr Millis kTick{10};  // how late a hedge, a retry or a deadline may be

// A drop walks a tree before it is answered.
Millis TimeoutOf(const RequestBody& body, const ClusterTimes& times) {
  return std::holds_alternative<DropRequest>(body) ? 4 * times.call : times.call;
}

}  // namespace

void ClusterFront::Waiter::Finish(Outcome ended) {
  const MutexLock lock(mutex);
  outcome = std::move(ended);
  changed.notify_all();
}

void ClusterFront::Waiter::Arrive(Arrived what) {
  const MutexLock lock(mutex);
  if (!what.is_probe) --open_calls;
  arrived.push_back(std::move(what));
  changed.notify_all();
}

void ClusterFront::Waiter::CallIsOver() {
  const MutexLock lock(mutex);
  --open_calls;
  changed.notify_all();
}

std::span<std::byte> ClusterFront::Waiter::PlaceFor(uint64_t call) {
  const MutexLock lock(mutex);
  ++open_calls;
  if (in_place == 0) {
    in_place = call;
    return into;
  }
  rdma::Bytes& bytes = aside[call];
  bytes.resize(into.size());
  return bytes;
}

ClusterFront::ClusterFront(const NodeId& self, const ClusterTimes& times, const Clock* clock,
                           ClusterPeers* peers, CopyReader* reader, MatchReader* matches,
                           ClusterService* service)
    : self_(self),
      times_(times),
      clock_(clock),
      peers_(peers),
      reader_(reader),
      matches_(matches),
      service_(service),
      client_([&] {
        ClusterClient::Options options;
        options.self = self;
        options.times = times;
        return options;
      }()),
      cache_(client_.cache()) {}

void ClusterFront::Start() {
  ticks_ = std::thread([this] { RunTicks(); });
}

void ClusterFront::Stop() {
  std::map<uint64_t, WaiterPtr> waiters;
  {
    const MutexLock lock(mutex_);
    stopping_ = true;
    waiters.swap(waiters_);
  }
  stop_.notify_all();
  for (auto& [op, waiter] : waiters) {
    Outcome outcome{};
    outcome.code = Code::kCancelled;
    waiter->Finish(std::move(outcome));
  }
  if (ticks_.joinable()) ticks_.join();
}

void ClusterFront::SetView(const ClusterView& view) {
  const MutexLock lock(mutex_);
  if (stopping_) return;
  ClientActions actions;
  client_.SetView(clock_->Monotonic(), view, &actions);
  (void)Flush(std::move(actions), 0);
}

void ClusterFront::RunTicks() {
  SetThreadName("cluster-tick");
  MutexLock lock(mutex_);
  while (!stopping_) {
    stop_.wait_for(lock.native(), kTick);
    const Millis now = clock_->Monotonic();
    if (stopping_ || client_.NextTick() > now) continue;
    ClientActions actions;
    client_.Tick(now, &actions);
    (void)Flush(std::move(actions), 0);
  }
}

void ClusterFront::NoteUsed(const BlockId& id, const NodeId& holder) {
  const MutexLock lock(mutex_);
  client_.NoteUsed(id, holder);
}

void ClusterFront::Describe(ClusterStatus* status) {
  const MutexLock lock(mutex_);
  cache_->With([&](const GroupCache& cache) {
    status->cached_groups = cache.size();
    status->cache_hits_total = cache.hits();
    status->cache_misses_total = cache.misses();
  });
  status->operations = client_.operations();
}

Outcome ClusterFront::Run(const Begin& begin, std::span<const std::byte> send,
                          std::span<std::byte> into) {
  WaiterPtr waiter;
  std::optional<OutCall> own_call;
  uint64_t op = 0;
  {
    const BriefLock lock(mutex_);
    if (stopping_) {
      Outcome outcome{};
      outcome.code = Code::kCancelled;
      return outcome;
    }
    op = next_op_++;
    ClientActions actions;
    begin(client_, clock_->Monotonic(), op, &actions);
    // Known here already.
    if (actions.calls.empty() && actions.probes.empty() && actions.outcomes.size() == 1) {
      return std::move(actions.outcomes.front());
    }
    waiters_[op] = waiter = std::make_shared<Waiter>(send, into);
    own_call = Flush(std::move(actions), op);
  }
  service_->RunIfFree();  // what was asked of this very node
  while (true) {
    while (own_call) own_call = CallAndDeliver(*own_call, op, *waiter);
    std::vector<Waiter::Arrived> arrived;
    {
      MutexLock lock(waiter->mutex);
      while (waiter->arrived.empty() && (!waiter->outcome || waiter->open_calls > 0)) {
        waiter->changed.wait(lock.native());
      }
      if (waiter->outcome && waiter->open_calls == 0) {
        Outcome outcome = std::move(*waiter->outcome);
        // A second place was faster, or the first had other bytes.
        if (outcome.code == Code::kOk && !into.empty() && outcome.call != waiter->in_place) {
          const rdma::Bytes& bytes = waiter->aside.at(outcome.call);
          std::memcpy(into.data(), bytes.data(), into.size());
        }
        return outcome;
      }
      arrived.swap(waiter->arrived);
    }
    for (Waiter::Arrived& one : arrived) {
      // One call is left to this thread; what else is to be asked then goes out without it.
      const uint64_t own = own_call ? 0 : op;
      if (one.is_probe) {
        if (auto left = DeliverProbe(one, own)) own_call = std::move(left);
        continue;
      }
      std::span<const std::byte> bytes = into;
      {
        const MutexLock lock(waiter->mutex);
        if (waiter->outcome) continue;  // too late to matter
        if (one.call != waiter->in_place) bytes = waiter->aside.at(one.call);
      }
      const Reply reply = Checked(std::move(one.reply), bytes, one.bytes);
      if (auto left = Deliver(one.call, reply, own)) own_call = std::move(left);
    }
  }
}

Reply ClusterFront::Checked(Reply reply, std::span<const std::byte> bytes, uint32_t received) {
  if (auto* read = std::get_if<ReadReply>(&reply.body)) {
    read->length = received;
    read->crc32c = Crc32c(bytes.first(std::min<size_t>(received, bytes.size())));
  }
  return reply;
}

std::optional<OutCall> ClusterFront::CallAndDeliver(const OutCall& call, uint64_t own,
                                                    Waiter& waiter) {
  const Millis timeout = TimeoutOf(call.request.body, times_);
  const auto* read = std::get_if<ReadRequest>(&call.request.body);
  if (read == nullptr) {
    uint32_t none = 0;
    return Deliver(call.id, peers_->CallAndWait(call.to, call.request, {.timeout = timeout}, &none),
                   own);
  }
  const std::span<std::byte> place = waiter.PlaceFor(call.id);
  CopyReader::Outcome got = reader_->Read(call.to, *read, place, call.request.epoch, timeout);
  waiter.CallIsOver();
  if (got.one_sided && got.reply.code == Code::kOk) NoteUsed(read->id, call.to);
  return Deliver(call.id, Checked(std::move(got.reply), place, got.received), own);
}

std::optional<OutCall> ClusterFront::Deliver(uint64_t call, const Reply& reply, uint64_t own) {
  const BriefLock lock(mutex_);
  if (stopping_) return std::nullopt;
  ClientActions actions;
  client_.ReceiveReply(clock_->Monotonic(), call, reply, &actions);
  return Flush(std::move(actions), own);
}

std::optional<OutCall> ClusterFront::DeliverProbe(const Waiter::Arrived& probe, uint64_t own) {
  const MutexLock lock(mutex_);
  if (stopping_) return std::nullopt;
  ClientActions actions;
  client_.ReceiveProbe(clock_->Monotonic(), probe.call, probe.words, &actions);
  return Flush(std::move(actions), own);
}

std::optional<OutCall> ClusterFront::Flush(ClientActions actions, uint64_t own) {
  std::optional<OutCall> left;
  while (true) {
    for (Outcome& outcome : actions.outcomes) {
      const auto at = waiters_.find(outcome.op);
      if (at == waiters_.end()) continue;
      const WaiterPtr waiter = std::move(at->second);
      waiters_.erase(at);
      waiter->Finish(std::move(outcome));
    }
    std::vector<uint64_t> failed;
    for (OutCall& call : actions.calls) {
      const auto at = waiters_.find(call.op);
      const WaiterPtr waiter = at == waiters_.end() ? nullptr : at->second;
      const uint64_t id = call.id;
      const bool may_wait = own != 0 && call.op == own && waiter != nullptr && call.to != self_ &&
                            !std::holds_alternative<PutRequest>(call.request.body);
      if (may_wait) {
        if (left && !Send(std::move(*left), waiter)) failed.push_back(left->id);
        left = std::move(call);
      } else if (!Send(std::move(call), waiter)) {
        failed.push_back(id);
      }
    }
    for (const MatchProbe& probe : actions.probes) {
      if (!SendProbe(probe)) failed.push_back(probe.id);
    }
    if (failed.empty()) return left;
    actions = {};
    for (const uint64_t id : failed) {
      client_.ReceiveReply(clock_->Monotonic(), id, {Code::kUnavailable, 0, {}}, &actions);
    }
  }
}

bool ClusterFront::SendProbe(const MatchProbe& probe) {
  const auto at = waiters_.find(probe.op);
  if (at == waiters_.end()) return false;
  return matches_->Read(probe, times_.call,
                        [waiter = at->second, id = probe.id](std::vector<uint64_t> words) {
                          waiter->Arrive({id, {}, 0, true, std::move(words)});
                        });
}

// `waiter`: null where the operation is over, or there was none.
bool ClusterFront::Send(OutCall call, const WaiterPtr& waiter) {
  const auto deliver = [this, id = call.id](const Reply& reply, uint32_t) {
    (void)Deliver(id, reply, 0);
  };
  const bool here = call.to == self_;
  rdma::CallOptions options{.timeout = TimeoutOf(call.request.body, times_)};
  if (const auto* put = std::get_if<PutRequest>(&call.request.body)) {
    if (waiter == nullptr) return false;
    const auto done = [deliver, waiter](const Reply& reply, uint32_t bytes) {
      deliver(reply, bytes);
      waiter->CallIsOver();
    };
    {
      const MutexLock lock(waiter->mutex);
      ++waiter->open_calls;
    }
    options.send = waiter->send;
    const bool sent = here ? service_->PutLocal(put->facts, waiter->send, done)
                           : peers_->Call(call.to, call.request, options, done);
    if (!sent) waiter->CallIsOver();
    return sent;
  }
  if (const auto* read = std::get_if<ReadRequest>(&call.request.body)) {
    if (waiter == nullptr) return false;
    const auto done = [waiter, id = call.id](const Reply& reply, uint32_t bytes) {
      waiter->Arrive({id, reply, bytes});
    };
    options.receive = waiter->PlaceFor(call.id);
    const bool sent = here ? service_->ReadLocal(read->id, read->generation, options.receive, done)
                           : peers_->Call(call.to, call.request, options, done);
    if (!sent) waiter->CallIsOver();
    return sent;
  }
  return here ? service_->ReceiveLocal(std::move(call.request), deliver)
              : peers_->Call(call.to, call.request, options, deliver);
}

}  // namespace kvcfs::meta
