#include "rdma/verbs_server.h"

#include <algorithm>
#include <cerrno>
#include <future>
#include <utility>

#include <fmt/format.h>
#include <netdb.h>
#include <sys/random.h>

#include "base/log.h"

namespace kvcfs::rdma {
namespace {

constexpr Millis kOfferLasts{10'000};
constexpr size_t kGrantsMax = 4096;
constexpr uint32_t kLinksMax = 16;  // of one offer
constexpr int kBacklog = 128;

}  // namespace

// One queue pair of a peer.
class VerbsServed final : public VerbsLinkOwner,
                          public FrameSink,
                          public ServedCalls::Connection,
                          public std::enable_shared_from_this<VerbsServed> {
 public:
  VerbsServed(std::shared_ptr<VerbsServer> server, std::shared_ptr<const PeerIdentity> peer,
              const VerbsGreeting& theirs)
      : server_(std::move(server)),
        shared_(server_->shared_),
        token_(theirs.token),
        calls_(this, server_->service_, shared_->options, &shared_->serving_bytes) {
    calls_.SetPeer(std::move(peer));
    const bool framed = theirs.index == 0;
    link_ = std::make_shared<VerbsLink>(
        shared_->loop.get(), this, framed ? this : nullptr, &shared_->counters,
        VerbsLink::Options{.limits = shared_->Limits(),
                           .unsent_bytes_max = shared_->options.unsent_bytes_max,
                           .greeting = {.index = theirs.index},
                           .peer_text = calls_.peer()->name});
  }

  VerbsLink& link() { return *link_; }
  const PeerIdentity& peer() const { return *calls_.peer(); }
  const VerbsToken& token() const { return token_; }

  void OnLinkUp(VerbsLink* /*link*/) override {}
  void OnLinkDown(VerbsLink* /*link*/, const Error& why) override {
    KVC_LOG(Debug, "a queue pair ended", "peer={} reason={}", LogValue(calls_.peer()->name),
            LogValue(why.text));
    calls_.Abandon();
    server_->Ended(this);
  }

  Result<std::span<std::byte>> PlaceBulk(const FrameHeader& header,
                                         std::span<const std::byte> head) override {
    if (header.kind != FrameKind::kCall) {
      return Error{Code::kCorrupt,
                   fmt::format("{} with bulk over verbs", FrameKindName(header.kind))};
    }
    return calls_.Place(header, head);
  }

  Status OnFrame(const FrameHeader& header, Bytes head, std::span<std::byte> bulk) override {
    if (header.kind != FrameKind::kCall) {
      return Error{Code::kCorrupt, fmt::format("{} over verbs", FrameKindName(header.kind))};
    }
    calls_.Serve({shared_from_this(), &calls_}, header, std::move(head), bulk, link_->arrived());
    return {};
  }

 private:
  void Reply(Outgoing frame) override {
    const auto shared = std::make_shared<Outgoing>(std::move(frame));
    const bool posted = shared_->loop->Post(
        [self = shared_from_this(), shared] { self->link_->Send(std::move(*shared)); });
    if (!posted && shared->released != nullptr) shared->released();
  }

  const std::shared_ptr<VerbsServer> server_;
  const std::shared_ptr<VerbsShared> shared_;
  const VerbsToken token_;
  ServedCalls calls_;
  std::shared_ptr<VerbsLink> link_;
};

// ---- the server

VerbsServer::VerbsServer(std::shared_ptr<VerbsShared> shared, Service* service)
    : shared_(std::move(shared)), service_(service) {}

VerbsServer::~VerbsServer() {
  if (id_ != nullptr) ::rdma_destroy_id(id_);
}

void VerbsServer::Listen(const Address& address) {
  const auto try_it = [&]() -> Status {
    addrinfo hints{};
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_flags = AI_PASSIVE;
    addrinfo* found = nullptr;
    if (const int result = ::getaddrinfo(address.host.c_str(), "0", &hints, &found); result != 0) {
      return Error{Code::kInvalid, fmt::format("{}: {}", address.host, ::gai_strerror(result))};
    }
    const std::unique_ptr<addrinfo, void (*)(addrinfo*)> owned(found, ::freeaddrinfo);
    const auto failed = [&](const char* what) {
      return VerbsError(errno, fmt::format("{} {}", what, address.host));
    };
    if (::rdma_create_id(shared_->loop->channel(), &id_, static_cast<VerbsEvents*>(this),
                         RDMA_PS_TCP) != 0) {
      id_ = nullptr;
      return failed("an id of librdmacm for");
    }
    if (::rdma_bind_addr(id_, found->ai_addr) != 0) return failed("binding queue pairs to");
    if (::rdma_listen(id_, kBacklog) != 0) return failed("listening for queue pairs at");
    return {};
  };
  const Status status = try_it();
  {
    MutexLock lock(mutex_);
    listening_ = status;
    if (status.ok()) port_ = ntohs(::rdma_get_src_port(id_));
  }
  if (!status.ok()) {
    KVC_LOG(Info, "peers reach this node by TCP only", "reason={}", LogValue(status.error().text));
  }
  shared_->loop->Post([self = shared_from_this()] { self->shared_->loop->Add(self); });
}

void VerbsServer::Serve(Method method, Bytes request, std::span<std::byte> bulk,
                        std::unique_ptr<Responder> responder) {
  if (method == kMethodVerbsOffer) return Offer(*responder);
  if (method == kMethodVerbsRegion) return TellKey(request, *responder);
  service_->Serve(method, std::move(request), bulk, std::move(responder));
}

void VerbsServer::Offer(Responder& responder) {
  VerbsOffer offer;
  Error refusal;
  refusal.code = Code::kOk;
  if (!responder.peer().all_namespaces) {
    refusal = {Code::kDenied, "regions are of all namespaces; this peer is of some"};
  }
  if (::getrandom(offer.token.data(), offer.token.size(), 0) !=
      static_cast<ssize_t>(offer.token.size())) {
    refusal = {Code::kInternal, "no random bytes"};
  }
  {
    MutexLock lock(mutex_);
    if (!listening_.ok()) {
      refusal = listening_.error();
    } else if (grants_.size() >= kGrantsMax) {
      refusal = {Code::kBusy, "too many peers have offers"};
    }
    if (refusal.code == Code::kOk) {
      offer.port = port_;
      Grant& grant = grants_[offer.token];
      grant.peer = std::make_shared<const PeerIdentity>(responder.peer());
      grant.expires = shared_->loop->Now() + kOfferLasts;
    }
  }
  if (refusal.code != Code::kOk) return responder.Refuse(refusal.code, refusal.text);
  responder.Answer(offer.Encode());
}

void VerbsServer::TellKey(std::span<const std::byte> request, Responder& responder) {
  const auto asked = VerbsRegionRequest::Decode(request);
  if (!asked.ok()) return responder.Refuse(asked.code(), asked.error().text);
  size_t device = VerbsLoop::kNoDevice;
  {
    MutexLock lock(mutex_);
    const auto found = grants_.find(asked->token);
    if (found != grants_.end() && found->second.peer->node == responder.peer().node &&
        found->second.peer->name == responder.peer().name) {
      device = found->second.device;
    }
  }
  if (device == VerbsLoop::kNoDevice || !responder.peer().all_namespaces) {
    return responder.Refuse(Code::kDenied, "no queue pair of yours is here");
  }
  const auto key = shared_->regions.Find(asked->region, device);
  if (!key.ok()) return responder.Refuse(key.code(), key.error().text);
  responder.Answer(EncodeVerbsKey(*key));
}

void VerbsServer::OnConnectEvent(const rdma_cm_event& event) {
  if (event.event != RDMA_CM_EVENT_CONNECT_REQUEST) {
    KVC_LOG(Warn, "librdmacm says something of where we listen", "event={}",
            ::rdma_event_str(event.event));
    return;
  }
  event.id->context = nullptr;  // for now whatever comes of it is nobody's
  const auto refuse = [&](const char* why) {
    KVC_LOG(Warn, "a queue pair is refused", "reason={}", LogValue(why));
    ::rdma_reject(event.id, nullptr, 0);
    ::rdma_destroy_id(event.id);
  };
  const auto* data = static_cast<const std::byte*>(event.param.conn.private_data);
  const auto theirs = VerbsGreeting::Decode({data, event.param.conn.private_data_len});
  if (stopped_ || !theirs.ok()) return refuse("no greeting of kvcfs");
  std::shared_ptr<const PeerIdentity> peer;
  {
    MutexLock lock(mutex_);
    const auto found = grants_.find(theirs->token);
    if (found != grants_.end() && found->second.links < kLinksMax &&
        (found->second.links != 0 || shared_->loop->Now() < found->second.expires)) {
      ++found->second.links;
      found->second.device = shared_->loop->IndexOf(event.id->verbs);
      peer = found->second.peer;
    }
    // A token may have been given out just before.
    if (peer != nullptr && shared_->revoked.Has(peer->node)) {
      if (--found->second.links == 0) grants_.erase(found);
      peer = nullptr;
    }
  }
  if (peer == nullptr) return refuse("a token that nobody was given");
  auto served = std::make_shared<VerbsServed>(shared_from_this(), std::move(peer), *theirs);
  served_[served.get()] = served;
  served->link().Accept(event.id, event, *theirs);
}

void VerbsServer::EndRevoked() {
  std::promise<void> done;
  const bool posted = shared_->loop->Post([this, &done] {
    std::vector<std::shared_ptr<VerbsServed>> all;
    for (const auto& [raw, owned] : served_) {
      if (shared_->revoked.Has(owned->peer().node)) all.push_back(owned);
    }
    for (const auto& served : all) {
      KVC_LOG(Info, "a peer is revoked: its queue pair ends", "peer={}",
              LogValue(served->peer().name));
      served->link().Break(RevokedError());
    }
    done.set_value();
  });
  if (posted) done.get_future().wait();
}

void VerbsServer::Ended(VerbsServed* served) {
  {
    MutexLock lock(mutex_);
    const auto found = grants_.find(served->token());
    // All of a peer's queue pairs come and go together; its token with them.
    if (found != grants_.end() && --found->second.links == 0) grants_.erase(found);
  }
  const auto found = served_.find(served);
  if (found == served_.end()) return;
  // Whoever calls is inside of it.
  shared_->loop->Post([gone = std::move(found->second)] {});
  served_.erase(found);
}

void VerbsServer::Tick(Millis now) {
  MutexLock lock(mutex_);
  std::erase_if(grants_, [now](const auto& entry) {
    return entry.second.links == 0 && now >= entry.second.expires;
  });
}

void VerbsServer::Stop() {
  if (std::exchange(stopped_, true)) return;
  if (id_ != nullptr) ::rdma_destroy_id(std::exchange(id_, nullptr));
  std::vector<std::shared_ptr<VerbsServed>> all;
  for (const auto& [raw, owned] : served_) all.push_back(owned);
  for (const auto& served : all) served->link().Break({Code::kCancelled, "stopping"});
}

}  // namespace kvcfs::rdma
