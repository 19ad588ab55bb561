#include "rdma/verbs_peer.h"

#include <algorithm>
#include <cstring>
#include <thread>

#include <arpa/inet.h>
#include <fmt/format.h>
#include <netdb.h>
#include <netinet/in.h>

#include "base/log.h"

namespace kvcfs::rdma {
namespace {

constexpr size_t kCallsMax = 1 << 16;  // of one peer, that wait for answers; READs too
constexpr Millis kBackoffFirst{10}, kBackoffMost{1000};
constexpr Millis kUnsupportedPause{30'000};  // a host that has no RDMA may get some
constexpr Millis kAskTimeout{5000};
constexpr Millis kKeyPause{50};            // before a key that was refused is asked for again
constexpr uint32_t kSmallBytes = 4096;     // READs of at most so much go over the first queue pair
constexpr uint64_t kReadBit = 1ull << 63;  // of ids: READs'

Reply RefusalOf(const Error& why) {
  const auto bytes = std::as_bytes(std::span(why.text));
  return {.code = why.code, .head = {bytes.begin(), bytes.end()}};
}

std::string TextOf(const Bytes& head) {
  return {reinterpret_cast<const char*>(head.data()), head.size()};
}

}  // namespace

VerbsPeerCore::VerbsPeerCore(std::shared_ptr<VerbsShared> shared, Address address,
                             std::shared_ptr<Peer> tcp)
    : shared_(std::move(shared)),
      loop_(*shared_->loop),
      address_(std::move(address)),
      tcp_(std::move(tcp)) {}

VerbsPeerCore::~VerbsPeerCore() = default;

bool VerbsPeerCore::Hold(uint64_t bytes) {
  if (in_flight_bytes_.fetch_add(bytes) + bytes <= shared_->options.in_flight_bytes_max) {
    return true;
  }
  LetGo(bytes);
  return false;
}

Millis VerbsPeerCore::Left(Millis deadline) const {
  return std::max(deadline - loop_.Now(), Millis(0));
}

// ---- connecting

void VerbsPeerCore::Want() {
  if (up_ || wanted_.load(std::memory_order_relaxed) ||
      loop_.Now().count() < retry_at_ms_.load(std::memory_order_relaxed)) {
    return;
  }
  if (wanted_.exchange(true)) return;
  loop_.Post([self = shared_from_this()] {
    if (self->ended_) return;
    self->loop_.Add(self);
    self->Connect();
  });
}

void VerbsPeerCore::Connect() {
  if (ended_ || connecting_ || up_) return;
  connecting_ = true;
  tcp_->Call(kMethodVerbsOffer, {}, {.timeout = kAskTimeout},
             [weak = weak_from_this()](Reply reply) {
               const auto self = weak.lock();
               if (self == nullptr) return;
               self->loop_.Post([self, reply = std::move(reply)] { self->OnOffer(reply); });
             });
}

void VerbsPeerCore::OnOffer(const Reply& reply) {
  if (ended_) return;
  if (reply.code != Code::kOk) {
    // Who does not know the method has no verbs.
    const bool never = reply.code == Code::kUnsupported || reply.code == Code::kDenied;
    Drop({never ? Code::kUnsupported : reply.code, TextOf(reply.head)});
    return;
  }
  const auto offer = VerbsOffer::Decode(reply.head);
  if (!offer.ok()) return Drop(offer.error());
  token_ = offer->token;
  // A name may take seconds; a number is there at once.
  const auto resolve = [host = address_.host](int flags, sockaddr_storage* to) -> Status {
    addrinfo hints{};
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_flags = flags;
    addrinfo* found = nullptr;
    const int result = ::getaddrinfo(host.c_str(), nullptr, &hints, &found);
    if (result != 0 || found == nullptr) {
      return Error{Code::kUnavailable, fmt::format("{}: {}", host, ::gai_strerror(result))};
    }
    std::memcpy(to, found->ai_addr, found->ai_addrlen);
    ::freeaddrinfo(found);
    return {};
  };
  sockaddr_storage to{};
  if (resolve(AI_NUMERICHOST, &to).ok()) return OnAddress(*offer, {}, to);
  std::thread([self = shared_from_this(), resolve, offer = *offer] {
    SetThreadName("verbs-resolve");
    sockaddr_storage found{};
    const Status status = resolve(0, &found);
    self->loop_.Post([self, offer, status, found] { self->OnAddress(offer, status, found); });
  }).detach();
}

void VerbsPeerCore::OnAddress(const VerbsOffer& offer, const Status& status,
                              const sockaddr_storage& to) {
  if (ended_) return;
  if (!status.ok()) return Drop(status.error());
  sockaddr_storage address = to;
  // The port is at the same place in both.
  reinterpret_cast<sockaddr_in*>(&address)->sin_port = htons(offer.port);
  const uint32_t count = std::max<uint32_t>(shared_->options.connections_per_peer, 1);
  links_.clear();
  for (uint32_t i = 0; i < count; ++i) {
    links_.push_back(std::make_shared<VerbsLink>(
        &loop_, this, i == 0 ? this : nullptr, &shared_->counters,
        VerbsLink::Options{.limits = shared_->Limits(),
                           .greeting = {.index = static_cast<uint16_t>(i), .token = token_},
                           .peer_text = address_.ToString()}));
  }
  const auto links = links_;  // one that fails at once lets go of all
  for (const auto& link : links) {
    if (!link->down()) link->Connect(address);
  }
}

void VerbsPeerCore::OnLinkUp(VerbsLink* /*link*/) {
  if (!std::all_of(links_.begin(), links_.end(), [](const auto& link) { return link->up(); })) {
    return;
  }
  if (std::any_of(links_.begin(), links_.end(), [&](const auto& link) {
        return link->device_index() != links_[0]->device_index();
      })) {
    return Drop({Code::kUnavailable, "the routes of two queue pairs differ"});
  }
  auto staging = loop_.Staging(links_[0]->device_index());
  if (staging.ok()) staging_ = std::move(*staging);
  connecting_ = false;
  backoff_ = Millis(0);
  up_ = true;
  if (std::exchange(was_up_, true)) shared_->reconnects.fetch_add(1);
  check_at_ = loop_.Now() + shared_->options.heartbeat;
  loop_.WakeBy(check_at_);
  KVC_LOG(Info, "a peer is reached by verbs", "peer={} device={} queue_pairs={}",
          LogValue(address_.ToString()), links_[0]->device()->name(), links_.size());
}

void VerbsPeerCore::OnLinkDown(VerbsLink* /*link*/, const Error& why) {
  if (!dropping_) Drop(why);
}

void VerbsPeerCore::Drop(const Error& why) {
  if (dropping_) return;
  dropping_ = true;
  const bool was = up_.exchange(false);
  for (const auto& link : links_) link->Break(why);
  // Whoever calls may be inside of one of them.
  loop_.Post([gone = std::exchange(links_, {})] {});
  keys_.clear();
  asking_.clear();
  device_ = SIZE_MAX;
  staging_.reset();
  check_at_ = Millis::max();
  connecting_ = false;
  backoff_ = why.code == Code::kUnsupported
                 ? kUnsupportedPause
                 : std::clamp(2 * std::min(backoff_, kBackoffMost), kBackoffFirst, kBackoffMost);
  retry_at_ms_ = (loop_.Now() + backoff_).count();
  wanted_ = false;
  dropping_ = false;
  if (was) {
    KVC_LOG(Info, "a peer is reached by TCP", "peer={} reason={}", LogValue(address_.ToString()),
            LogValue(why.text));
  } else {
    KVC_LOG(Debug, "no verbs to a peer", "peer={} reason={}", LogValue(address_.ToString()),
            LogValue(why.text));
  }
  // Their memory is free now.
  auto calls = std::exchange(calls_, {});
  auto reads = std::exchange(reads_, {});
  deadlines_.clear();
  const Error said =
      ended_ ? Error{Code::kCancelled, "stopping"}
             : Error{Code::kUnavailable, fmt::format("{}: {}", address_.ToString(), why.text)};
  for (auto& [id, call] : calls) Complete(call.done, RefusalOf(said));
  for (auto& [id, read] : reads) {
    if (ended_) {
      Complete(read.done, RefusalOf(said));
    } else {
      ReadByTcp(std::move(read));
    }
  }
}

// ---- calls

bool VerbsPeerCore::IssueCall(CallRequest& request, Completion& done) {
  if (!up_) return false;
  const Millis deadline = loop_.Now() + request.options.timeout + Millis(1);
  // A std::function's contents must be copyable.
  auto taken =
      std::make_shared<std::pair<CallRequest, Completion>>(std::move(request), std::move(done));
  if (loop_.Post([self = shared_from_this(), taken, deadline] {
        self->StartCall(std::move(taken->first), std::move(taken->second), deadline);
      })) {
    return true;
  }
  request = std::move(taken->first);
  done = std::move(taken->second);
  return false;
}

void VerbsPeerCore::StartCall(CallRequest request, Completion done, Millis deadline) {
  if (ended_) return Complete(done, RefusalOf({Code::kCancelled, "stopping"}));
  if (!up_) {
    request.options.timeout = Left(deadline);
    return tcp_->Call(request.method, std::move(request.head), request.options, std::move(done));
  }
  if (calls_.size() + reads_.size() >= kCallsMax) {
    return Complete(done, RefusalOf({Code::kBusy, "too much in flight to this peer"}));
  }
  const uint64_t id = ++last_id_;
  calls_[id] = {.deadline = deadline, .receive = request.options.receive, .done = std::move(done)};
  deadlines_.insert({deadline, id});
  loop_.WakeBy(deadline);
  shared_->counters.call_bytes.fetch_add(
      kHeaderBytes + request.head.size() + request.options.send.size(), std::memory_order_relaxed);
  links_[0]->Send(MakeFrame(
      {.kind = FrameKind::kCall,
       .method = request.method,
       .deadline_ms =
           static_cast<uint32_t>(std::clamp<int64_t>(Left(deadline).count(), 0, UINT32_MAX)),
       .request_id = id,
       .receive_bytes = static_cast<uint32_t>(request.options.receive.size())},
      std::move(request.head), request.options.send));
}

Result<std::span<std::byte>> VerbsPeerCore::PlaceBulk(const FrameHeader& header,
                                                      std::span<const std::byte> /*head*/) {
  const auto found = calls_.find(header.request_id);
  if (found == calls_.end()) return std::span<std::byte>();  // too late
  if (header.bulk_bytes > found->second.receive.size()) {
    return Error{Code::kCorrupt, fmt::format("{} bytes of bulk where {} were asked for",
                                             header.bulk_bytes, found->second.receive.size())};
  }
  found->second.begun = true;
  return found->second.receive.first(header.bulk_bytes);
}

Status VerbsPeerCore::OnFrame(const FrameHeader& header, Bytes head,
                              std::span<std::byte> /*bulk*/) {
  if (header.kind != FrameKind::kReply) {
    return Error{Code::kCorrupt,
                 fmt::format("{} from who answers over verbs", FrameKindName(header.kind))};
  }
  const auto found = calls_.find(header.request_id);
  if (found == calls_.end()) return {};
  shared_->counters.call_bytes.fetch_add(kHeaderBytes + header.head_bytes + header.bulk_bytes,
                                         std::memory_order_relaxed);
  if (links_[0]->Unqueue(header.request_id) == VerbsLink::Unqueued::kBegun) {
    return Error{Code::kCorrupt, "an answer to half a call"};
  }
  OpenCall call = std::move(found->second);
  deadlines_.erase({call.deadline, found->first});
  calls_.erase(found);
  Complete(call.done,
           {.code = header.code, .head = std::move(head), .bulk_bytes = header.bulk_bytes});
  return {};
}

// ---- READs

bool VerbsPeerCore::IssueRead(const RemoteSpan& from, std::span<std::byte> into, Millis timeout,
                              Completion& done) {
  if (!up_) return false;
  const Millis deadline = loop_.Now() + timeout + Millis(1);
  auto shared = std::make_shared<Completion>(done);
  return loop_.Post([self = shared_from_this(), from, into, deadline, shared] {
    OpenRead read{.from = from, .into = into, .deadline = deadline, .done = std::move(*shared)};
    if (self->ended_) {
      return Complete(read.done, RefusalOf({Code::kCancelled, "stopping"}));
    }
    if (!self->up_) return self->ReadByTcp(std::move(read));
    if (self->calls_.size() + self->reads_.size() >= kCallsMax) {
      return Complete(read.done, RefusalOf({Code::kBusy, "too much in flight to this peer"}));
    }
    const uint64_t id = ++self->last_id_ | kReadBit;
    self->reads_[id] = std::move(read);
    self->deadlines_.insert({deadline, id});
    self->loop_.WakeBy(deadline);
    self->StartRead(id);
  });
}

void VerbsPeerCore::ReadByTcp(OpenRead read) {
  read.memory = {};
  tcp_->Read(read.from, read.into, Left(read.deadline), std::move(read.done));
}

void VerbsPeerCore::StartRead(uint64_t id) {
  OpenRead& read = reads_[id];
  const auto key = keys_.find(read.from.region);
  const RegionKey& told = read.from.key;
  if (key == keys_.end() && told.address != 0 && device_ < told.keys.size()) {
    // Said with the READ; that it may be over costs a queue pair, not more.
    const VerbsRegions::Key known{.address = told.address, .key = told.keys[device_]};
    if (known.key != 0) return PostRead(id, read, known);
  }
  if (key == keys_.end()) {
    auto& waiting = asking_[read.from.region];
    waiting.push_back(id);
    if (waiting.size() == 1) AskKey(read.from.region, read.deadline);
    return;
  }
  const VerbsRegions::Key& known = key->second.key;
  const bool fits = known.length != 0 && read.from.length != 0 &&
                    read.from.offset <= known.length &&
                    read.from.length <= known.length - read.from.offset;
  if (!fits) {
    // No key, or a place that is none: TCP reads it, or says what is wrong.
    if (known.length == 0 && loop_.Now() >= key->second.ask_again) keys_.erase(key);
    OpenRead given = std::move(read);
    deadlines_.erase({given.deadline, id});
    reads_.erase(id);
    return ReadByTcp(std::move(given));
  }
  PostRead(id, read, known);
}

void VerbsPeerCore::AskKey(uint64_t region, Millis deadline) {
  const VerbsRegionRequest request{.region = region, .token = token_};
  tcp_->Call(kMethodVerbsRegion, request.Encode(), {.timeout = std::max(Left(deadline), Millis(1))},
             [weak = weak_from_this(), region, token = token_](Reply reply) {
               const auto self = weak.lock();
               if (self == nullptr) return;
               self->loop_.Post([self, region, token, reply = std::move(reply)] {
                 // Keys of queue pairs that are gone are worth nothing.
                 if (self->up_ && self->token_ == token) self->OnKey(region, reply);
               });
             });
}

void VerbsPeerCore::OnKey(uint64_t region, const Reply& reply) {
  Key& key = keys_[region];
  const auto told = DecodeVerbsKey(reply.head);
  if (reply.code == Code::kOk && told.ok()) {
    key.key = *told;
    device_ = told->device;
  } else {
    key.ask_again = loop_.Now() + kKeyPause;
  }
  const auto found = asking_.find(region);
  if (found == asking_.end()) return;
  const std::vector<uint64_t> waiting = std::move(found->second);
  asking_.erase(found);
  for (const uint64_t id : waiting) {
    if (up_ && reads_.contains(id)) StartRead(id);
  }
}

void VerbsPeerCore::PostRead(uint64_t id, OpenRead& read, const VerbsRegions::Key& key) {
  // The small ones do not wait behind large ones.
  size_t best = 0;
  if (read.from.length > kSmallBytes) {
    for (size_t i = 1; i < links_.size(); ++i) {
      if (best == 0 || links_[i]->reads_waiting() < links_[best]->reads_waiting()) best = i;
    }
  }
  const std::shared_ptr<VerbsLink> link = links_[best];
  VerbsRead wanted{.address = key.address + read.from.offset, .key = key.key, .into = read.into};
  std::weak_ptr<VerbsPeerCore> weak = weak_from_this();
  if (const auto local = shared_->regions.LocalKey(link->device_index(), read.into)) {
    wanted.local_key = *local;
  } else if (const auto piece = staging_ != nullptr ? staging_->Take(read.from.length)
                                                    : std::optional<uint32_t>()) {
    // Copied afterwards: that costs less than to register.
    wanted.into = staging_->Piece(*piece, read.from.length);
    wanted.local_key = staging_->local_key();
    read.link = nullptr;  // its memory is touched by nobody: a timeout need not break the link
    wanted.done = [weak, id, piece = *piece, staging = staging_,
                   from = wanted.into](const Status& status) {
      const auto self = weak.lock();
      if (self != nullptr && status.ok()) {
        const auto found = self->reads_.find(id);
        if (found != self->reads_.end()) {
          std::memcpy(found->second.into.data(), from.data(), from.size());
        }
      }
      staging->Return(piece);
      if (self != nullptr) self->OnRead(id, status);
    };
    return link->Read(std::move(wanted));
  } else {
    auto memory = VerbsMemory::Register(link->device()->domain(), read.into, false);
    if (!memory.ok()) {
      KVC_LOG(Warn, "memory is not registered, it is read into over TCP", "reason={}",
              LogValue(memory.error().text));
      OpenRead given = std::move(read);
      deadlines_.erase({given.deadline, id});
      reads_.erase(id);
      return ReadByTcp(std::move(given));
    }
    shared_->counters.read_registrations.fetch_add(1, std::memory_order_relaxed);
    read.memory = std::move(*memory);
    wanted.local_key = read.memory.local_key();
  }
  read.link = link;
  wanted.done = [weak, id](const Status& status) {
    if (const auto self = weak.lock()) self->OnRead(id, status);
  };
  link->Read(std::move(wanted));
}

void VerbsPeerCore::OnRead(uint64_t id, const Status& status) {
  if (!status.ok()) return;  // the link breaks: Drop asks again by TCP
  const auto found = reads_.find(id);
  if (found == reads_.end()) return;  // it had its time
  OpenRead read = std::move(found->second);
  deadlines_.erase({read.deadline, id});
  reads_.erase(found);
  read.memory = {};
  Complete(read.done, {.code = Code::kOk, .bulk_bytes = read.from.length});
}

// ---- time

void VerbsPeerCore::Expire(Millis now) {
  while (!deadlines_.empty() && deadlines_.begin()->first <= now) {
    const uint64_t id = deadlines_.begin()->second;
    deadlines_.erase(deadlines_.begin());
    Completion done;
    bool touched = false;  // memory of the caller's may still be
    if ((id & kReadBit) != 0) {
      const auto found = reads_.find(id);
      KVC_CHECK(found != reads_.end());
      touched = found->second.link != nullptr;
      done = std::move(found->second.done);
      if (!touched) reads_.erase(found);
    } else {
      const auto found = calls_.find(id);
      KVC_CHECK(found != calls_.end());
      touched = links_[0]->Unqueue(id) == VerbsLink::Unqueued::kBegun;
      if (found->second.begun) links_[0]->DropBulkOf(id);
      done = std::move(found->second.done);
      calls_.erase(found);
    }
    shared_->timeouts.fetch_add(1);
    if (touched) {
      // Its own completion is ours; the others are answered by Drop.
      std::optional<OpenRead> kept;  // its registration outlives the queue pair
      if ((id & kReadBit) != 0) {
        kept = std::move(reads_[id]);
        reads_.erase(id);
      }
      Drop({Code::kUnavailable, "a request had its time with its memory still in use"});
    }
    Complete(done, RefusalOf({Code::kTimeout, "no answer in time"}));
  }
}

void VerbsPeerCore::Tick(Millis now) {
  if (ended_) return;
  Expire(now);
  if (up_ && now >= check_at_) {
    check_at_ = now + shared_->options.heartbeat;
    // A NIC answers for a process that is stopped; TCP's heartbeats do not.
    if (!tcp_->connected()) Drop({Code::kUnavailable, "the peer is silent over TCP"});
  }
}

Millis VerbsPeerCore::NextTick() const {
  if (ended_) return Millis(0);
  return deadlines_.empty() ? check_at_ : std::min(check_at_, deadlines_.begin()->first);
}

void VerbsPeerCore::Abandon() {
  loop_.Post([self = shared_from_this()] { self->End(); });
}

void VerbsPeerCore::End() {
  if (std::exchange(ended_, true)) return;
  Drop({Code::kCancelled, "stopping"});
}

}  // namespace kvcfs::rdma
