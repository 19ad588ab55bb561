#include "rdma/verbs.h"

#include <map>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "rdma/tcp.h"
#include "rdma/verbs_peer.h"
#include "rdma/verbs_server.h"

namespace kvcfs::rdma {
namespace {

class VerbsPeer final : public Peer {
 public:
  VerbsPeer(std::shared_ptr<VerbsShared> shared, std::shared_ptr<VerbsPeerCore> core)
      : shared_(std::move(shared)), core_(std::move(core)) {}
  ~VerbsPeer() override { core_->Abandon(); }

  void Call(Method method, Bytes request, const CallOptions& options, Completion done) override {
    shared_->calls.fetch_add(1, std::memory_order_relaxed);
    const uint64_t bytes = request.size() + options.send.size() + options.receive.size();
    if (!Counted(bytes, done)) return;
    core_->Want();
    VerbsPeerCore::CallRequest call{
        .method = method, .head = std::move(request), .options = options};
    if (Fits(call.head, options) && core_->IssueCall(call, done)) return;
    core_->tcp().Call(method, std::move(call.head), options, std::move(done));
  }

  void Read(const RemoteSpan& from, std::span<std::byte> into, Millis timeout,
            Completion done) override {
    KVC_CHECK(into.size() == from.length);
    shared_->one_sided_reads.fetch_add(1, std::memory_order_relaxed);
    if (!Counted(into.size(), done)) return;
    core_->Want();
    if (into.size() <= shared_->options.bulk_bytes_max &&
        core_->IssueRead(from, into, timeout, done)) {
      return;
    }
    core_->tcp().Read(from, into, timeout, std::move(done));
  }

  // What may be written remotely may be written by anybody who guesses a key: WRITEs are asked for.
  void Write(const RemoteSpan& to, std::span<const std::byte> from, Millis timeout,
             Completion done) override {
    shared_->writes.fetch_add(1, std::memory_order_relaxed);
    if (!Counted(from.size(), done)) return;
    core_->Want();
    core_->tcp().Write(to, from, timeout, std::move(done));
  }

  Reply CallAndWait(Method method, Bytes request, const CallOptions& options) override {
    if (core_->up()) return Peer::CallAndWait(method, std::move(request), options);
    const uint64_t bytes = request.size() + options.send.size() + options.receive.size();
    core_->Want();
    if (!core_->Hold(bytes)) return Peer::CallAndWait(method, std::move(request), options);
    shared_->calls.fetch_add(1, std::memory_order_relaxed);
    Reply reply = core_->tcp().CallAndWait(method, std::move(request), options);
    core_->LetGo(bytes);
    return reply;
  }

  bool connected() const override { return core_->up() || core_->tcp().connected(); }
  std::string provider() const override { return core_->up() ? "verbs" : "tcp"; }
  bool reads_past_cpu() const override { return core_->up(); }

 private:
  bool Fits(const Bytes& request, const CallOptions& options) const {
    return request.size() <= shared_->options.frame_bytes_max &&
           std::max(options.send.size(), options.receive.size()) <= shared_->options.bulk_bytes_max;
  }
  // Counts bytes as in flight until `done`; false: there are too many, and `done` is told so.
  bool Counted(uint64_t bytes, Completion& done) {
    if (core_->Hold(bytes)) {
      done = [core = core_, bytes, inner = std::move(done)](Reply reply) {
        core->LetGo(bytes);
        inner(std::move(reply));
      };
      return true;
    }
    auto busy = [inner = std::move(done)] {
      const std::string_view text = "too much in flight to this peer";
      const auto words = std::as_bytes(std::span(text));
      inner({.code = Code::kBusy, .head = {words.begin(), words.end()}});
    };
    if (!shared_->loop->Post(busy)) busy();
    return false;
  }

  const std::shared_ptr<VerbsShared> shared_;
  const std::shared_ptr<VerbsPeerCore> core_;
};

class VerbsTransport final : public Transport {
 public:
  VerbsTransport(std::shared_ptr<VerbsShared> shared, std::unique_ptr<Transport> tcp)
      : shared_(std::move(shared)), tcp_(std::move(tcp)) {}
  ~VerbsTransport() override {
    shared_->loop->Stop();
    tcp_.reset();  // its threads call the servers
    shared_->regions.Clear();
  }

  Result<Address> Listen(const Address& address, Service* service) override {
    auto server = std::make_shared<VerbsServer>(shared_, service);
    KVC_TRY_ASSIGN(const Address bound, tcp_->Listen(address, server.get()));
    server->Listen(bound);
    MutexLock lock(mutex_);
    servers_.push_back(std::move(server));
    return bound;
  }

  std::shared_ptr<Peer> Connect(const Address& address) override {
    MutexLock lock(mutex_);
    std::weak_ptr<VerbsPeer>& known = peers_[address];
    if (auto peer = known.lock()) return peer;
    auto core = std::make_shared<VerbsPeerCore>(shared_, address, tcp_->Connect(address));
    auto peer = std::make_shared<VerbsPeer>(shared_, std::move(core));
    known = peer;
    return peer;
  }

  Result<uint64_t> Expose(std::span<std::byte> memory, Access access) override {
    KVC_TRY_ASSIGN(const uint64_t region, tcp_->Expose(memory, access));
    shared_->regions.Add(region, memory);
    return region;
  }
  Result<RegionKey> AwaitKey(uint64_t region) override { return shared_->regions.AwaitKey(region); }
  void Withdraw(uint64_t region) override {
    shared_->regions.Remove(region);
    tcp_->Withdraw(region);
  }
  void Revoke(const NodeId& node) override {
    if (node == shared_->options.self) return;
    tcp_->Revoke(node);
    shared_->revoked.Revoke(node);
    std::vector<std::shared_ptr<VerbsServer>> servers;
    {
      MutexLock lock(mutex_);
      servers = servers_;
    }
    for (const auto& server : servers) server->EndRevoked();
  }
  void Admit(const NodeId& node) override {
    shared_->revoked.Admit(node);
    tcp_->Admit(node);
  }
  bool reads_past_cpu() const override { return true; }

  TransportStats Stats() const override {
    TransportStats stats = tcp_->Stats();
    const VerbsCounters& own = shared_->counters;
    stats.calls = shared_->calls;
    stats.reads = shared_->one_sided_reads;
    stats.writes = shared_->writes;
    stats.messages_sent += own.messages_sent;
    stats.bytes_sent += own.bytes_sent;
    stats.bytes_received += own.bytes_received;
    stats.timeouts += shared_->timeouts;
    stats.reconnects += shared_->reconnects;
    stats.hostile_frames += own.hostile;
    stats.read_registrations = own.read_registrations;
    stats.few_receives = shared_->loop->few_receives();
    stats.device_reads = own.reads;
    stats.device_read_bytes = own.read_bytes;
    stats.call_bytes = own.call_bytes;
    return stats;
  }

 private:
  const std::shared_ptr<VerbsShared> shared_;
  std::unique_ptr<Transport> tcp_;
  Mutex mutex_;
  std::vector<std::shared_ptr<VerbsServer>> servers_ KVC_GUARDED_BY(mutex_);
  std::map<Address, std::weak_ptr<VerbsPeer>> peers_ KVC_GUARDED_BY(mutex_);
};

}  // namespace

Result<std::unique_ptr<Transport>> MakeVerbsTransport(const TransportOptions& options) {
  auto loop = std::make_shared<VerbsLoop>();
  KVC_TRY(loop->Start("verbs-0", options.receives));
  KVC_TRY_ASSIGN(auto tcp, MakeTcpTransport(options));
  std::vector<ibv_pd*> domains;
  for (const auto& device : loop->devices()) domains.push_back(device->domain());
  auto shared = std::make_shared<VerbsShared>(options, std::move(loop), std::move(domains));
  return std::unique_ptr<Transport>(
      std::make_unique<VerbsTransport>(std::move(shared), std::move(tcp)));
}

}  // namespace kvcfs::rdma
