#include "rdma/loopback.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <map>
#include <random>
#include <set>
#include <thread>
#include <unordered_map>
#include <utility>

#include <fmt/format.h>

#include "base/crc32c.h"
#include "base/log.h"
#include "base/mutex.h"
#include "rdma/regions.h"
#include "rdma/revoked_peers.h"
#include "rdma/wire.h"

namespace kvcfs::rdma {
namespace {

constexpr size_t kUnitBytes = 64;  // tears happen between these
constexpr int kSilentHeartbeats = 4;

class FabricClock final : public Clock {
 public:
  Millis Monotonic() const override { return Millis(micros.load() / 1000); }
  int64_t WallNanos() const override { return micros.load() * 1000; }
  std::atomic<int64_t> micros{1'000'000'000};  // not 0: times of before the start exist
};

struct Endpoint;
using EndpointPtr = std::shared_ptr<Endpoint>;

struct EventKey {
  Micros at;
  uint64_t tie = 0;
  uint64_t sequence = 0;
  // NOLINTNEXTLINE(modernize-use-nullptr): takes the 0 of <=> for a pointer.
  friend auto operator<=>(const EventKey&, const EventKey&) = default;
};

struct Event {
  EndpointPtr owner;  // null: the fabric itself
  uint64_t trace = 0;
  std::function<void()> run;
};

struct Endpoint {
  std::string name;
  TransportOptions options;
  PeerIdentity identity;
  std::unique_ptr<Regions> regions;
  RevokedPeers revoked;
  Service* service = nullptr;
  bool alive = true;
  bool paused = false;
  std::map<EventKey, Event> held;  // while it is paused
  TransportStats stats;
  std::map<std::string, uint32_t> serving;  // by the name of who asked
  std::map<Address, std::weak_ptr<Peer>> peers;
};

// One call, READ or WRITE that is not answered yet.
struct Pending {
  EndpointPtr owner, target;
  Address address;
  std::span<std::byte> receive;
  uint64_t bytes = 0;
  EventKey timeout;
  CostMeter* meter = nullptr;
  uint32_t phase = 0;
  FrameKind kind = FrameKind::kCall;
  Completion done;
};

struct Request {
  FrameKind kind = FrameKind::kCall;
  Method method = 0;
  Bytes head;
  RemoteSpan place;
  Bytes bulk;
  uint32_t receive_bytes = 0;
  Millis timeout{0};
};

uint64_t Mix(uint64_t hash, uint64_t value) {
  hash = (hash ^ value) * 0x9e3779b97f4a7c15;
  return hash ^ hash >> 29;
}

Reply RefusalOf(Code code, std::string_view text) {
  const auto bytes = std::as_bytes(std::span(text));
  return {.code = code, .head = {bytes.begin(), bytes.end()}};
}

Hello HelloOf(const Endpoint& endpoint) {
  return {.cluster = endpoint.options.cluster,
          .node = endpoint.options.self,
          .name = endpoint.name,
          .is_node = endpoint.options.is_node && endpoint.options.self.valid()};
}

}  // namespace

class LoopbackFabric::State : public std::enable_shared_from_this<State> {
 public:
  State(uint64_t seed, const LoopbackFaults& faults) : faults_(faults), random_(seed) {}
  ~State() { Stop(); }

  void Stop() {
    {
      MutexLock lock(mutex_);
      stopping_ = true;
      changed_.notify_all();
    }
    if (thread_.joinable()) thread_.join();
  }

  EndpointPtr Make(const std::string& name, const TransportOptions& options,
                   std::optional<PeerIdentity> identity) {
    MutexLock lock(mutex_);
    EndpointPtr& place = endpoints_[name];
    KVC_CHECK(place == nullptr || !place->alive);
    place = std::make_shared<Endpoint>();
    place->name = name;
    place->options = options;
    if (identity.has_value()) {
      place->identity = std::move(*identity);
    } else {
      place->identity.node = options.self;
      place->identity.name = name;
      place->identity.is_node = options.is_node;
    }
    place->regions = std::make_unique<Regions>(static_cast<uint32_t>(random_()));
    return place;
  }

  Address Listen(const EndpointPtr& endpoint, const Address& address, Service* service) {
    MutexLock lock(mutex_);
    const uint16_t port = address.port != 0 ? address.port : ++last_port_;
    Address given{.host = endpoint->name, .port = port};
    listening_[given] = endpoint;
    endpoint->service = service;
    return given;
  }

  void Issue(const EndpointPtr& owner, const Address& address, Request request,
             std::span<std::byte> receive, Completion done) {
    MutexLock lock(mutex_);
    if (!owner->alive) return;  // a process that is gone hears nothing
    Count(owner->stats, request);
    const uint64_t bytes = request.head.size() + request.bulk.size() + receive.size();
    if (request.head.size() > owner->options.frame_bytes_max ||
        std::max(request.bulk.size(), receive.size()) > owner->options.bulk_bytes_max) {
      return Later(owner, std::move(done),
                   RefusalOf(Code::kTooLarge, "longer than a frame may be"));
    }
    uint64_t& in_flight = in_flight_[{owner.get(), address}];
    if (in_flight + bytes > owner->options.in_flight_bytes_max) {
      return Later(owner, std::move(done),
                   RefusalOf(Code::kBusy, "too much in flight to this peer"));
    }
    const auto target = Find(address);
    if (target == nullptr || IsSilent(owner->name, target->name)) {
      return Later(owner, std::move(done),
                   RefusalOf(Code::kUnavailable, fmt::format("{} is away", address.ToString())));
    }
    if (const Status hello = CheckHello(HelloOf(*owner), HelloOf(*target)); !hello.ok()) {
      ++owner->stats.refused;
      return Later(owner, std::move(done), RefusalOf(hello.code(), hello.error().text));
    }
    in_flight += bytes;
    if (request.kind == FrameKind::kCall) {
      owner->stats.call_bytes += kHeaderBytes + request.head.size() + request.bulk.size();
    }
    const uint64_t id = ++last_id_;
    Pending pending{.owner = owner,
                    .target = target,
                    .address = address,
                    .receive = receive,
                    .bytes = bytes,
                    .timeout = {},
                    .meter = nullptr,
                    .phase = 0,
                    .kind = request.kind,
                    .done = std::move(done)};
    if (const auto meter = meters_.find(owner->name); meter != meters_.end()) {
      pending.meter = meter->second;
      pending.phase = pending.meter->Issued(request.head.size() + request.bulk.size());
    }
    pending.timeout = Schedule(Now() + request.timeout,
                               {owner, Mix(id, 1), [this, id] {
                                  Complete(id, RefusalOf(Code::kTimeout, "no answer in time"), {});
                                }});
    pending_[id] = std::move(pending);
    ++counts_.round_trips;
    if (request.kind == FrameKind::kRead) ++counts_.reads;
    if (request.kind == FrameKind::kWrite) ++counts_.writes;
    const uint64_t trace = Mix(Mix(static_cast<uint64_t>(request.kind), request.method),
                               uint64_t{Crc32c(request.head)} << 32 | Crc32c(request.bulk));
    const size_t frame = request.head.size() + request.bulk.size();
    auto shared = std::make_shared<Request>(std::move(request));
    Send(owner, target, trace, frame,
         [this, id, owner, target, shared] { Arrive(id, owner, target, *shared); });
  }

  // The answer of a server, and what it was asked for.
  void Answer(uint64_t id, const EndpointPtr& client, const EndpointPtr& server, Reply reply,
              std::span<const std::byte> bulk, std::function<void()> sent) {
    MutexLock lock(mutex_);
    if (!server->alive) return;
    if (sent != nullptr) Schedule(Now() + Micros(1), {server, 0, std::move(sent)});
    const uint64_t trace = Mix(Mix(0x5e, static_cast<uint64_t>(reply.code)),
                               uint64_t{Crc32c(reply.head)} << 32 | Crc32c(bulk));
    auto copy = std::make_shared<Bytes>(bulk.begin(), bulk.end());
    const size_t bytes = reply.head.size() + bulk.size();
    Send(server, client, trace, bytes,
         [this, id, reply = std::move(reply), copy] { Complete(id, reply, *copy); });
  }

  void Served(const EndpointPtr& client, const EndpointPtr& server) {
    MutexLock lock(mutex_);
    --server->serving[client->name];
  }

  void Crash(const std::string& name) {
    std::vector<Pending> gone;  // their functions are destroyed without the lock
    std::map<EventKey, Event> held;
    MutexLock lock(mutex_);
    const auto found = endpoints_.find(name);
    if (found == endpoints_.end() || !found->second->alive) return;
    End(found->second, gone);
    held = std::exchange(found->second->held, {});
  }

  // A transport that is destroyed: its own calls are cancelled, those to it find it away.
  void Close(const EndpointPtr& endpoint) {
    std::vector<Pending> gone;
    {
      MutexLock lock(mutex_);
      if (endpoint->alive) End(endpoint, gone);
      changed_.wait(lock.native(), [&]() KVC_NO_ANALYSIS {
        return running_ != endpoint || std::this_thread::get_id() == thread_.get_id() ||
               !thread_.joinable();
      });
    }
    for (Pending& pending : gone) pending.done(RefusalOf(Code::kCancelled, "stopping"));
  }

  void Partition(const std::string& from, const std::string& to) {
    MutexLock lock(mutex_);
    if (!cut_.emplace(std::pair{from, to}, Now()).second) return;
    // Who was waiting hears of the dead connection when its heartbeats have been missing.
    Millis patience = kSilentHeartbeats * TransportOptions{}.heartbeat;
    if (const auto end = endpoints_.find(from); end != endpoints_.end()) {
      patience = kSilentHeartbeats * end->second->options.heartbeat;
    }
    Schedule(Now() + patience, {nullptr, 0, [this, from, to] {
                                  MutexLock inner(mutex_);
                                  if (!IsSilent(from, to)) return;
                                  FailBetween(from, to);
                                }});
  }

  void Heal(const std::string& a, const std::string& b) {
    MutexLock lock(mutex_);
    cut_.erase({a, b});
    cut_.erase({b, a});
  }
  void HealAll() {
    MutexLock lock(mutex_);
    cut_.clear();
  }

  void SetPaused(const std::string& name, bool paused) {
    MutexLock lock(mutex_);
    const auto found = endpoints_.find(name);
    if (found == endpoints_.end()) return;
    Endpoint& endpoint = *found->second;
    endpoint.paused = paused;
    if (paused) return;
    for (auto& [key, event] : std::exchange(endpoint.held, {})) {
      queue_[{std::max(key.at, Now()), key.tie, key.sequence}] = std::move(event);
    }
    changed_.notify_all();
  }

  // Runs the first event at or before `limit`.
  bool RunOne(Micros limit) {
    Event event;
    std::vector<Event> dead;  // destroyed without the lock
    {
      MutexLock lock(mutex_);
      for (;;) {
        if (queue_.empty() || queue_.begin()->first.at > limit) return false;
        auto node = queue_.extract(queue_.begin());
        event = std::move(node.mapped());
        if (event.owner != nullptr && !event.owner->alive) {
          dead.push_back(std::move(event));
          continue;
        }
        if (event.owner != nullptr && event.owner->paused) {
          event.owner->held[node.key()] = std::move(event);
          continue;
        }
        if (!started_) clock_.micros = std::max(clock_.micros.load(), node.key().at.count());
        break;
      }
      if (event.trace != 0) {
        trace_hash_ = Mix(Mix(trace_hash_, event.trace), static_cast<uint64_t>(Now().count()));
      }
      running_ = event.owner;
    }
    event.run();
    MutexLock lock(mutex_);
    running_ = nullptr;
    changed_.notify_all();
    return true;
  }

  void MoveTo(Micros when) {
    MutexLock lock(mutex_);
    if (!started_) clock_.micros = std::max(clock_.micros.load(), when.count());
  }

  void After(const std::string& name, Micros delay, std::function<void()> action) {
    MutexLock lock(mutex_);
    const auto found = endpoints_.find(name);
    if (found == endpoints_.end() || !found->second->alive) return;
    const uint64_t trace = Mix(Crc32c(std::as_bytes(std::span(name))), 3);
    Schedule(Now() + delay, {found->second, trace, std::move(action)});
  }

  void Start() {
    MutexLock lock(mutex_);
    KVC_CHECK(!started_);
    started_ = true;
    begin_ = std::chrono::steady_clock::now() - Micros(clock_.micros.load());
    thread_ = std::thread([this] {
      SetThreadName("loopback");
      for (;;) {
        while (RunOne(NowLocked())) {
        }
        MutexLock inner(mutex_);
        if (stopping_) return;
        if (queue_.empty()) {
          changed_.wait(inner.native());
        } else {
          changed_.wait_until(inner.native(), begin_ + queue_.begin()->first.at);
        }
        if (stopping_) return;
      }
    });
  }

  bool Reachable(const EndpointPtr& owner, const Address& address) {
    MutexLock lock(mutex_);
    const auto target = Find(address);
    return target != nullptr && !IsSilent(owner->name, target->name);
  }

  Micros NowLocked() {
    MutexLock lock(mutex_);
    return Now();
  }

  Mutex mutex_;
  FabricClock clock_;
  LoopbackFaults faults_ KVC_GUARDED_BY(mutex_);
  LoopbackCounts counts_ KVC_GUARDED_BY(mutex_);
  uint64_t trace_hash_ KVC_GUARDED_BY(mutex_) = 1;
  std::map<std::string, CostMeter*> meters_ KVC_GUARDED_BY(mutex_);

 private:
  friend class LoopbackResponder;

  Micros Now() KVC_REQUIRES(mutex_) {
    if (started_) {
      clock_.micros =
          std::chrono::duration_cast<Micros>(std::chrono::steady_clock::now() - begin_).count();
    }
    return Micros(clock_.micros.load());
  }

  bool Happens(double probability) KVC_REQUIRES(mutex_) {
    return static_cast<double>(random_() >> 11) * 0x1p-53 < probability;
  }
  Micros Between(Micros low, Micros high) KVC_REQUIRES(mutex_) {
    const auto width = static_cast<uint64_t>(std::max<int64_t>((high - low).count(), 0)) + 1;
    return low + Micros(static_cast<int64_t>(random_() % width));
  }

  EventKey Schedule(Micros at, Event event) KVC_REQUIRES(mutex_) {
    const EventKey key{.at = at, .tie = random_(), .sequence = ++last_sequence_};
    queue_[key] = std::move(event);
    if (started_) changed_.notify_all();
    return key;
  }

  // A completion that follows from nothing on the wire.
  void Later(const EndpointPtr& owner, Completion done, Reply reply) KVC_REQUIRES(mutex_) {
    Schedule(Now(), {owner, Mix(static_cast<uint64_t>(reply.code), 4),
                     [done = std::move(done), reply = std::move(reply)] { done(reply); }});
  }

  static void Count(TransportStats& stats, const Request& request) {
    if (request.kind == FrameKind::kCall) ++stats.calls;
    if (request.kind == FrameKind::kRead) ++stats.reads;
    if (request.kind == FrameKind::kWrite) ++stats.writes;
  }

  EndpointPtr Find(const Address& address) KVC_REQUIRES(mutex_) {
    const auto found = listening_.find(address);
    return found != listening_.end() && found->second->alive ? found->second : nullptr;
  }

  bool IsCutFor(const std::string& from, const std::string& to, Millis time) KVC_REQUIRES(mutex_) {
    const auto found = cut_.find({from, to});
    return found != cut_.end() && Now() - found->second >= time;
  }
  // Whether a connection between the two would be dead by now.
  bool IsSilent(const std::string& a, const std::string& b) KVC_REQUIRES(mutex_) {
    Millis patience = kSilentHeartbeats * TransportOptions{}.heartbeat;
    if (const auto end = endpoints_.find(a); end != endpoints_.end()) {
      patience = kSilentHeartbeats * end->second->options.heartbeat;
    }
    return IsCutFor(a, b, patience) || IsCutFor(b, a, patience);
  }

  void FailBetween(const std::string& a, const std::string& b) KVC_REQUIRES(mutex_) {
    for (const auto& [id, pending] : pending_) {
      const std::string& owner = pending.owner->name;
      const std::string& target = pending.target->name;
      if ((owner == a && target == b) || (owner == b && target == a)) Fail(id, pending, Micros(0));
    }
  }
  void Fail(uint64_t id, const Pending& pending, Micros after) KVC_REQUIRES(mutex_) {
    Schedule(Now() + after, {pending.owner, Mix(id, 5), [this, id] {
                               Complete(id, RefusalOf(Code::kUnavailable, "the connection ended"),
                                        {});
                             }});
  }

  // One frame: it is lost, or delivered, perhaps twice.
  void Send(const EndpointPtr& from, const EndpointPtr& to, uint64_t trace, size_t bytes,
            std::function<void()> deliver) KVC_REQUIRES(mutex_) {
    ++counts_.messages;
    counts_.bytes += kHeaderBytes + bytes;
    ++from->stats.messages_sent;
    from->stats.bytes_sent += kHeaderBytes + bytes;
    // All of them are drawn, whatever comes of it: a changed fault changes no later draw.
    const bool drop = Happens(faults_.drop), twice = Happens(faults_.duplicate);
    const bool reorder = Happens(faults_.reorder), slow = Happens(faults_.slow);
    Micros at = Now() + Between(faults_.delay_min, faults_.delay_max);
    const Micros late = Between(Micros(0), faults_.slow_max);
    const Micros again = Now() + Between(faults_.delay_min, faults_.delay_max) + late;
    if (slow) at += late;
    if (drop || IsCutFor(from->name, to->name, Millis(0))) {
      ++counts_.dropped;
      return;
    }
    to->stats.bytes_received += kHeaderBytes + bytes;
    trace = Mix(trace, uint64_t{Crc32c(std::as_bytes(std::span(from->name)))} << 32 |
                           Crc32c(std::as_bytes(std::span(to->name))));
    if (reorder) {
      ++counts_.reordered;
    } else {
      Micros& last = last_delivery_[{from->name, to->name}];
      at = last = std::max(at, last + Micros(1));
    }
    if (twice) {
      ++counts_.duplicated;
      Schedule(again, {to, trace, deliver});
    }
    Schedule(at, {to, trace, std::move(deliver)});
  }

  void Arrive(uint64_t id, const EndpointPtr& client, const EndpointPtr& server,
              const Request& request);
  void Access(uint64_t id, const EndpointPtr& client, const EndpointPtr& server,
              const Request& request);
  void CopyUnits(uint64_t id, const EndpointPtr& client, const EndpointPtr& server,
                 const RemoteSpan& place, const std::shared_ptr<Bytes>& bytes, bool to_write,
                 const std::vector<bool>& late, bool second);

  void Complete(uint64_t id, Reply reply, std::span<const std::byte> bulk) {
    Completion done;
    {
      MutexLock lock(mutex_);
      const auto found = pending_.find(id);
      if (found == pending_.end()) return;  // it had its answer
      Pending pending = std::move(found->second);
      pending_.erase(found);
      queue_.erase(pending.timeout);
      pending.owner->held.erase(pending.timeout);
      in_flight_[{pending.owner.get(), pending.address}] -= pending.bytes;
      if (const auto meter = meters_.find(pending.owner->name);
          meter != meters_.end() && meter->second == pending.meter) {
        pending.meter->Completed(pending.phase, reply.head.size() + bulk.size());
      }
      if (bulk.size() > pending.receive.size()) {
        reply = RefusalOf(Code::kInternal, "more bulk than there is place for");
      } else if (!bulk.empty()) {
        std::memcpy(pending.receive.data(), bulk.data(), bulk.size());
        reply.bulk_bytes = static_cast<uint32_t>(bulk.size());
      }
      if (reply.code == Code::kTimeout) ++pending.owner->stats.timeouts;
      if (pending.kind == FrameKind::kCall) {
        pending.owner->stats.call_bytes += kHeaderBytes + reply.head.size() + bulk.size();
      } else if (pending.kind == FrameKind::kRead && reply.code == Code::kOk) {
        ++pending.owner->stats.device_reads;
        pending.owner->stats.device_read_bytes += bulk.size();
      }
      done = std::move(pending.done);
    }
    done(std::move(reply));
  }

  // What it was waiting for goes to `gone`; who waits for it hears that it is away.
  void End(const EndpointPtr& endpoint, std::vector<Pending>& gone) KVC_REQUIRES(mutex_) {
    endpoint->alive = false;
    endpoint->service = nullptr;
    for (auto it = pending_.begin(); it != pending_.end();) {
      Pending& pending = it->second;
      if (pending.owner == endpoint) {
        queue_.erase(pending.timeout);
        gone.push_back(std::move(pending));
        it = pending_.erase(it);
        continue;
      }
      if (pending.target == endpoint) {
        Fail(it->first, pending, Between(faults_.delay_min, faults_.delay_max));
      }
      ++it;
    }
    std::erase_if(listening_, [&](const auto& entry) { return entry.second == endpoint; });
    std::erase_if(in_flight_, [&](const auto& e) { return e.first.first == endpoint.get(); });
  }

  std::mt19937_64 random_ KVC_GUARDED_BY(mutex_);
  std::condition_variable changed_;
  std::thread thread_;
  bool started_ KVC_GUARDED_BY(mutex_) = false;
  bool stopping_ KVC_GUARDED_BY(mutex_) = false;
  std::chrono::steady_clock::time_point begin_;
  std::map<EventKey, Event> queue_ KVC_GUARDED_BY(mutex_);
  EndpointPtr running_ KVC_GUARDED_BY(mutex_);
  uint64_t last_sequence_ KVC_GUARDED_BY(mutex_) = 0;
  uint64_t last_id_ KVC_GUARDED_BY(mutex_) = 0;
  uint16_t last_port_ KVC_GUARDED_BY(mutex_) = 10'000;
  std::map<std::string, EndpointPtr> endpoints_ KVC_GUARDED_BY(mutex_);
  std::map<Address, EndpointPtr> listening_ KVC_GUARDED_BY(mutex_);
  std::map<uint64_t, Pending> pending_ KVC_GUARDED_BY(mutex_);
  std::map<std::pair<const Endpoint*, Address>, uint64_t> in_flight_ KVC_GUARDED_BY(mutex_);
  std::map<std::pair<std::string, std::string>, Micros> cut_ KVC_GUARDED_BY(mutex_);
  std::map<std::pair<std::string, std::string>, Micros> last_delivery_ KVC_GUARDED_BY(mutex_);
};

class LoopbackResponder final : public Responder {
 public:
  LoopbackResponder(std::shared_ptr<LoopbackFabric::State> state, uint64_t id, EndpointPtr client,
                    EndpointPtr server, const Request& request)
      : state_(std::move(state)),
        id_(id),
        client_(std::move(client)),
        server_(std::move(server)),
        deadline_(state_->clock_.Monotonic() + request.timeout),
        receive_bytes_(request.receive_bytes) {}

  ~LoopbackResponder() override {
    if (!answered_) Refuse(Code::kUnavailable, "not answered");
  }

  const PeerIdentity& peer() const override { return client_->identity; }
  Millis deadline() const override { return deadline_; }
  uint32_t receive_bytes() const override { return receive_bytes_; }

  void Answer(Bytes head, std::span<const std::byte> bulk, std::function<void()> sent) override {
    if (bulk.size() > receive_bytes_) {
      Give(RefusalOf(Code::kInternal, "more bulk than was asked for"), {}, std::move(sent));
    } else {
      Give({.code = Code::kOk, .head = std::move(head)}, bulk, std::move(sent));
    }
  }
  void Refuse(Code code, std::string_view text) override { Give(RefusalOf(code, text), {}, {}); }

  Bytes own_bulk;

 private:
  void Give(Reply reply, std::span<const std::byte> bulk, std::function<void()> sent) {
    KVC_CHECK(!answered_);
    answered_ = true;
    state_->Served(client_, server_);
    state_->Answer(id_, client_, server_, std::move(reply), bulk, std::move(sent));
  }

  std::shared_ptr<LoopbackFabric::State> state_;
  const uint64_t id_;
  const EndpointPtr client_, server_;
  const Millis deadline_;
  const uint32_t receive_bytes_;
  bool answered_ = false;
};

void LoopbackFabric::State::Arrive(uint64_t id, const EndpointPtr& client,
                                   const EndpointPtr& server, const Request& request) {
  if (server->revoked.Has(client->identity.node)) {
    const Error why = RevokedError();
    return Answer(id, client, server, RefusalOf(why.code, why.text), {}, {});
  }
  if (request.kind != FrameKind::kCall) return Access(id, client, server, request);
  Service* service = nullptr;
  {
    MutexLock lock(mutex_);
    service = server->service;
    uint32_t& serving = server->serving[client->name];
    if (service != nullptr && serving >= server->options.serving_max) service = nullptr;
    if (service != nullptr) ++serving;
  }
  if (service == nullptr) {
    return Answer(id, client, server, RefusalOf(Code::kBusy, "too many requests wait here"), {},
                  {});
  }
  auto responder =
      std::make_unique<LoopbackResponder>(shared_from_this(), id, client, server, request);
  std::span<std::byte> bulk;
  if (!request.bulk.empty()) {
    const auto bytes = static_cast<uint32_t>(request.bulk.size());
    bulk = service->Place(request.method, request.head, bytes);
    if (bulk.empty()) {
      responder->own_bulk.resize(bytes);
      bulk = responder->own_bulk;
    }
    KVC_CHECK(bulk.size() == bytes);
    std::memcpy(bulk.data(), request.bulk.data(), bytes);
  }
  service->Serve(request.method, request.head, bulk, std::move(responder));
}

void LoopbackFabric::State::Access(uint64_t id, const EndpointPtr& client,
                                   const EndpointPtr& server, const Request& request) {
  const bool to_write = request.kind == FrameKind::kWrite;
  auto bytes = std::make_shared<Bytes>(request.bulk);
  bytes->resize(request.place.length);
  std::vector<bool> late(request.place.length / kUnitBytes + 2, false);
  bool torn = false;
  Micros delay{0};
  {
    MutexLock lock(mutex_);
    torn = Happens(faults_.torn);
    delay = Between(faults_.delay_min, faults_.delay_max);
    if (torn) {
      ++counts_.torn;
      for (size_t unit = 0; unit < late.size(); ++unit) late[unit] = (random_() & 1) != 0;
    }
  }
  CopyUnits(id, client, server, request.place, bytes, to_write, late, !torn);
  if (!torn) return;
  MutexLock lock(mutex_);
  late.flip();
  Schedule(Now() + delay,
           {server, Mix(id, 6),
            [this, id, client, server, place = request.place, bytes, to_write, late] {
              CopyUnits(id, client, server, place, bytes, to_write, late, true);
            }});
}

// Copies the units that are not late; the `second` time it answers.
void LoopbackFabric::State::CopyUnits(uint64_t id, const EndpointPtr& client,
                                      const EndpointPtr& server, const RemoteSpan& place,
                                      const std::shared_ptr<Bytes>& bytes, bool to_write,
                                      const std::vector<bool>& late, bool second) {
  const auto loan = server->revoked.Has(client->identity.node)
                        ? Result<Regions::Loan>(RevokedError())
                        : server->regions->Borrow(client->identity, place, to_write);
  if (!loan.ok()) {
    if (second) Answer(id, client, server, RefusalOf(loan.code(), loan.error().text), {}, {});
    return;
  }
  const std::span<std::byte> memory = loan->span();
  // Units are those of the owner's memory, not of the request.
  const size_t skew = reinterpret_cast<uintptr_t>(memory.data()) % kUnitBytes;
  for (size_t begin = 0; begin < memory.size();) {
    const size_t end =
        std::min(memory.size(), (begin + skew) / kUnitBytes * kUnitBytes + kUnitBytes - skew);
    if (!late[(begin + skew) / kUnitBytes]) {
      if (to_write) std::memcpy(memory.data() + begin, bytes->data() + begin, end - begin);
      if (!to_write) std::memcpy(bytes->data() + begin, memory.data() + begin, end - begin);
    }
    begin = end;
  }
  if (!second) return;
  Answer(id, client, server, {}, to_write ? std::span<const std::byte>() : *bytes, {});
}

class LoopbackPeer final : public Peer {
 public:
  LoopbackPeer(std::shared_ptr<LoopbackFabric::State> state, EndpointPtr owner, Address address)
      : state_(std::move(state)), owner_(std::move(owner)), address_(std::move(address)) {}

  void Call(Method method, Bytes request, const CallOptions& options, Completion done) override {
    Request asked{.kind = FrameKind::kCall,
                  .method = method,
                  .head = std::move(request),
                  .place = {},
                  .bulk = {options.send.begin(), options.send.end()},
                  .receive_bytes = static_cast<uint32_t>(options.receive.size()),
                  .timeout = options.timeout};
    state_->Issue(owner_, address_, std::move(asked), options.receive, std::move(done));
  }

  void Read(const RemoteSpan& from, std::span<std::byte> into, Millis timeout,
            Completion done) override {
    KVC_CHECK(into.size() == from.length);
    Request asked{.kind = FrameKind::kRead,
                  .method = 0,
                  .head = EncodeSpan(from),
                  .place = from,
                  .bulk = {},
                  .receive_bytes = from.length,
                  .timeout = timeout};
    state_->Issue(owner_, address_, std::move(asked), into, std::move(done));
  }

  void Write(const RemoteSpan& to, std::span<const std::byte> from, Millis timeout,
             Completion done) override {
    KVC_CHECK(from.size() == to.length);
    Request asked{.kind = FrameKind::kWrite,
                  .method = 0,
                  .head = EncodeSpan(to),
                  .place = to,
                  .bulk = {from.begin(), from.end()},
                  .receive_bytes = 0,
                  .timeout = timeout};
    state_->Issue(owner_, address_, std::move(asked), {}, std::move(done));
  }

  bool connected() const override { return state_->Reachable(owner_, address_); }
  std::string provider() const override { return "loopback"; }

 private:
  const std::shared_ptr<LoopbackFabric::State> state_;
  const EndpointPtr owner_;
  const Address address_;
};

class LoopbackTransport final : public Transport {
 public:
  LoopbackTransport(std::shared_ptr<LoopbackFabric::State> state, EndpointPtr endpoint)
      : state_(std::move(state)), endpoint_(std::move(endpoint)) {}
  ~LoopbackTransport() override { state_->Close(endpoint_); }

  Result<Address> Listen(const Address& address, Service* service) override {
    if (!address.host.empty() && address.host != endpoint_->name) {
      return Error{Code::kInvalid, fmt::format("'{}' is not '{}'", address.host, endpoint_->name)};
    }
    return state_->Listen(endpoint_, address, service);
  }

  std::shared_ptr<Peer> Connect(const Address& address) override {
    MutexLock lock(state_->mutex_);
    std::weak_ptr<Peer>& known = endpoint_->peers[address];
    if (auto peer = known.lock()) return peer;
    auto peer = std::make_shared<LoopbackPeer>(state_, endpoint_, address);
    known = peer;
    return peer;
  }

  Result<uint64_t> Expose(std::span<std::byte> memory, Access access) override {
    return endpoint_->regions->Expose(memory, access);
  }
  void Withdraw(uint64_t region) override { endpoint_->regions->Withdraw(region); }
  void Revoke(const NodeId& node) override {
    if (node != endpoint_->options.self) endpoint_->revoked.Revoke(node);
  }
  void Admit(const NodeId& node) override { endpoint_->revoked.Admit(node); }
  TransportStats Stats() const override {
    MutexLock lock(state_->mutex_);
    return endpoint_->stats;
  }

 private:
  const std::shared_ptr<LoopbackFabric::State> state_;
  const EndpointPtr endpoint_;
};

LoopbackFabric::LoopbackFabric(uint64_t seed, const LoopbackFaults& faults)
    : state_(std::make_shared<State>(seed, faults)) {}
LoopbackFabric::~LoopbackFabric() {
  state_->Stop();
}

std::unique_ptr<Transport> LoopbackFabric::MakeEndpoint(const std::string& name,
                                                        const TransportOptions& options,
                                                        std::optional<PeerIdentity> identity) {
  auto endpoint = state_->Make(name, options, std::move(identity));
  return std::make_unique<LoopbackTransport>(state_, std::move(endpoint));
}

void LoopbackFabric::SetFaults(const LoopbackFaults& faults) {
  MutexLock lock(state_->mutex_);
  state_->faults_ = faults;
}
void LoopbackFabric::Partition(const std::string& from, const std::string& to) {
  state_->Partition(from, to);
}
void LoopbackFabric::PartitionBoth(const std::string& a, const std::string& b) {
  state_->Partition(a, b);
  state_->Partition(b, a);
}
void LoopbackFabric::Heal(const std::string& a, const std::string& b) {
  state_->Heal(a, b);
}
void LoopbackFabric::HealAll() {
  state_->HealAll();
}
void LoopbackFabric::Crash(const std::string& name) {
  state_->Crash(name);
}
void LoopbackFabric::Pause(const std::string& name) {
  state_->SetPaused(name, true);
}
void LoopbackFabric::Resume(const std::string& name) {
  state_->SetPaused(name, false);
}
bool LoopbackFabric::Step() {
  return state_->RunOne(Micros::max());
}
void LoopbackFabric::RunUntil(Micros when) {
  while (state_->RunOne(when)) {
  }
  state_->MoveTo(when);
}
void LoopbackFabric::RunUntilIdle(uint64_t steps) {
  while (steps-- != 0 && Step()) {
  }
}
void LoopbackFabric::After(const std::string& name, Micros delay, std::function<void()> action) {
  state_->After(name, delay, std::move(action));
}
void LoopbackFabric::Start() {
  state_->Start();
}
Micros LoopbackFabric::now() const {
  return state_->NowLocked();
}
const Clock& LoopbackFabric::clock() const {
  return state_->clock_;
}
uint64_t LoopbackFabric::trace_hash() const {
  MutexLock lock(state_->mutex_);
  return state_->trace_hash_;
}
LoopbackCounts LoopbackFabric::counts() const {
  MutexLock lock(state_->mutex_);
  return state_->counts_;
}
void LoopbackFabric::Measure(const std::string& name, CostMeter* meter) {
  MutexLock lock(state_->mutex_);
  if (meter == nullptr) {
    state_->meters_.erase(name);
  } else {
    state_->meters_[name] = meter;
  }
}

}  // namespace kvcfs::rdma
