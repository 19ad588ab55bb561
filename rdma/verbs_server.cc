#include "rdma/verbs_server.h"

#include <algorithm>
#include <cerrno>
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

Bytes TextOf(std::string_view text) {
  const auto bytes = std::as_bytes(std::span(text.substr(0, 4000)));
  return {bytes.begin(), bytes.end()};
}

}  // namespace

// One queue pair of a peer.
class VerbsServed final : public VerbsLinkOwner,
                          public FrameSink,
                          public std::enable_shared_from_this<VerbsServed> {
 public:
  VerbsServed(std::shared_ptr<VerbsServer> server, std::shared_ptr<const PeerIdentity> peer,
              const VerbsGreeting& theirs)
      : server_(std::move(server)),
        shared_(server_->shared_),
        peer_(std::move(peer)),
        token_(theirs.token) {
    const bool framed = theirs.index == 0;
    link_ = std::make_shared<VerbsLink>(
        shared_->loop.get(), this, framed ? this : nullptr, &shared_->counters,
        VerbsLink::Options{.limits = shared_->Limits(),
                           .unsent_bytes_max = shared_->options.unsent_bytes_max,
                           .greeting = {.index = theirs.index,
                                        .token = {},
                                        .receives = framed ? kVerbsReceives : 0},
                           .peer_text = peer_->name});
  }

  VerbsLink& link() { return *link_; }
  const VerbsToken& token() const { return token_; }

  void OnLinkUp(VerbsLink* /*link*/) override {}
  void OnLinkDown(VerbsLink* /*link*/, const Error& why) override {
    KVC_LOG(Debug, "a queue pair ended", "peer={} reason={}", LogValue(peer_->name),
            LogValue(why.text));
    own_ = {};
    if (!placed_.empty()) server_->service_->Abandon(std::exchange(placed_, {}));
    server_->Ended(this);
  }

  Result<std::span<std::byte>> PlaceBulk(const FrameHeader& header,
                                         std::span<const std::byte> head) override {
    const TransportOptions& options = shared_->options;
    refused_ = {};
    if (header.kind != FrameKind::kCall) {
      return Error{Code::kCorrupt,
                   fmt::format("{} with bulk over verbs", FrameKindName(header.kind))};
    }
    if (serving_.load() >= options.serving_max ||
        serving_bytes_.load() + header.bulk_bytes > options.in_flight_bytes_max) {
      refused_ = Error{Code::kBusy, "too many requests wait here"};
      return std::span<std::byte>();
    }
    placed_ = server_->service_->Place(header.method, head, header.bulk_bytes);
    if (!placed_.empty()) {
      KVC_CHECK(placed_.size() == header.bulk_bytes);
      return placed_;
    }
    std::atomic<uint64_t>& all = shared_->serving_bytes;
    if (all.fetch_add(header.bulk_bytes) + header.bulk_bytes > options.serving_bytes_max) {
      all.fetch_sub(header.bulk_bytes);
      refused_ = Error{Code::kBusy, "too much bulk waits here"};
      return std::span<std::byte>();
    }
    own_ = OwnBulk(&all, header.bulk_bytes);
    return own_.span();
  }

  Status OnFrame(const FrameHeader& header, Bytes head, std::span<std::byte> bulk) override;

 private:
  friend class VerbsResponder;
  // From any thread.
  void Answer(uint64_t id, Code code, Bytes head, std::span<const std::byte> bulk,
              const std::function<void()>& sent, Millis expires = Millis::max()) {
    auto frame = std::make_shared<Outgoing>(MakeFrame(
        {.kind = FrameKind::kReply, .code = code, .request_id = id}, std::move(head), bulk));
    frame->released = sent;
    frame->expires = expires;
    const bool posted = shared_->loop->Post(
        [self = shared_from_this(), frame] { self->link_->Send(std::move(*frame)); });
    if (!posted && sent != nullptr) sent();
  }

  const std::shared_ptr<VerbsServer> server_;
  const std::shared_ptr<VerbsShared> shared_;
  const std::shared_ptr<const PeerIdentity> peer_;
  const VerbsToken token_;
  std::shared_ptr<VerbsLink> link_;
  std::atomic<uint32_t> serving_{0};
  std::atomic<uint64_t> serving_bytes_{0};

  OwnBulk own_;  // of the bulk that comes now
  std::span<std::byte> placed_;
  Status refused_;
};

class VerbsResponder final : public Responder {
 public:
  VerbsResponder(std::shared_ptr<VerbsServed> served, const FrameHeader& header, Millis arrived,
                 OwnBulk own)
      : served_(std::move(served)),
        id_(header.request_id),
        deadline_(arrived + Millis(header.deadline_ms)),
        receive_bytes_(header.receive_bytes),
        bulk_bytes_(header.bulk_bytes),
        own_(std::move(own)) {}
  ~VerbsResponder() override {
    if (!answered_) Refuse(Code::kUnavailable, "not answered");
    served_->serving_bytes_.fetch_sub(bulk_bytes_);
  }

  const PeerIdentity& peer() const override { return *served_->peer_; }
  Millis deadline() const override { return deadline_; }
  uint32_t receive_bytes() const override { return receive_bytes_; }

  void Answer(Bytes head, std::span<const std::byte> bulk, std::function<void()> sent) override {
    if (bulk.size() > receive_bytes_) {
      Give(Code::kInternal, TextOf("more bulk than was asked for"), {}, sent);
    } else if (head.size() > served_->shared_->options.frame_bytes_max) {
      Give(Code::kTooLarge, TextOf("the answer is longer than a frame may be"), {}, sent);
    } else {
      Give(Code::kOk, std::move(head), bulk, sent);
    }
  }
  void Refuse(Code code, std::string_view text) override { Give(code, TextOf(text), {}, {}); }

 private:
  void Give(Code code, Bytes head, std::span<const std::byte> bulk,
            const std::function<void()>& sent) {
    KVC_CHECK(!answered_);
    answered_ = true;
    served_->serving_.fetch_sub(1);
    // Without bulk nothing waits for `sent` but the promise that it is called.
    served_->Answer(id_, code, std::move(head), bulk, sent, deadline_);
  }

  const std::shared_ptr<VerbsServed> served_;
  const uint64_t id_;
  const Millis deadline_;
  const uint32_t receive_bytes_, bulk_bytes_;
  const OwnBulk own_;
  bool answered_ = false;
};

Status VerbsServed::OnFrame(const FrameHeader& header, Bytes head, std::span<std::byte> bulk) {
  if (header.kind != FrameKind::kCall) {
    return Error{Code::kCorrupt, fmt::format("{} over verbs", FrameKindName(header.kind))};
  }
  Status status = std::exchange(refused_, {});
  if (status.ok() && bulk.empty() && serving_.load() >= shared_->options.serving_max) {
    status = Error{Code::kBusy, "too many requests wait here"};
  }
  if (!status.ok()) {
    Answer(header.request_id, status.code(), TextOf(status.error().text), {}, {});
    return {};
  }
  serving_.fetch_add(1);
  serving_bytes_.fetch_add(header.bulk_bytes);
  placed_ = {};
  auto responder = std::make_unique<VerbsResponder>(shared_from_this(), header, link_->arrived(),
                                                    std::exchange(own_, OwnBulk()));
  server_->service_->Serve(header.method, std::move(head), bulk, std::move(responder));
  return {};
}

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
  }
  if (peer == nullptr) return refuse("a token that nobody was given");
  auto served = std::make_shared<VerbsServed>(shared_from_this(), std::move(peer), *theirs);
  served_[served.get()] = served;
  served->link().Accept(event.id, event, *theirs);
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
