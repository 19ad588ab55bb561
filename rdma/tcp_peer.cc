#include "rdma/tcp_peer.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <thread>
#include <utility>

#include <arpa/inet.h>
#include <fmt/format.h>
#include <netdb.h>

#include "base/log.h"

namespace kvcfs::rdma {
namespace {

constexpr size_t kCallsMax = 1 << 16;       // of one peer, that wait for answers
constexpr int kIndexBits = 20;              // of a request's id; the rest counts
constexpr uint64_t kSmallBytes = 32 << 10;  // a call with more goes over a connection for bulk
constexpr Millis kBackoffFirst{10}, kBackoffMost{1000};
constexpr Millis kAgain{10};  // before one that worked is connected again
constexpr Millis kConnectTimeout{2000};
static_assert(kCallsMax <= 1 << kIndexBits);

Reply RefusalOf(Code code, std::string_view text) {
  const auto bytes = std::as_bytes(std::span(text));
  return {.code = code, .head = {bytes.begin(), bytes.end()}};
}

// 0: `host` is no number.
socklen_t ParseNumeric(const Address& address, sockaddr_storage& out) {
  const std::string host = address.host == "localhost" ? "127.0.0.1" : address.host;
  auto* v4 = reinterpret_cast<sockaddr_in*>(&out);
  auto* v6 = reinterpret_cast<sockaddr_in6*>(&out);
  if (::inet_pton(AF_INET, host.c_str(), &v4->sin_addr) == 1) {
    v4->sin_family = AF_INET;
    v4->sin_port = htons(address.port);
    return sizeof(*v4);
  }
  if (::inet_pton(AF_INET6, host.c_str(), &v6->sin6_addr) == 1) {
    v6->sin6_family = AF_INET6;
    v6->sin6_port = htons(address.port);
    return sizeof(*v6);
  }
  return 0;
}

}  // namespace

TcpPeerCore::TcpPeerCore(std::shared_ptr<TcpShared> shared, std::shared_ptr<TcpLoop> loop,
                         Address address, Status forbidden)
    : shared_(std::move(shared)),
      loop_(std::move(loop)),
      address_(std::move(address)),
      forbidden_(std::move(forbidden)),
      channel_(shared_),
      places_(std::max<uint32_t>(shared_->options.connections_per_peer, 1)) {}

// ---- calls

void TcpPeerCore::Later(Completion done, Reply reply) {
  auto shared = std::make_shared<Done>(Done{std::move(done), std::move(reply)});
  if (!loop_->Post([shared] { (*shared)(); })) (*shared)();
}

void TcpPeerCore::Run(std::vector<Done>& done) {
  for (Done& one : done) one();
}

void TcpPeerCore::Issue(Request request, Completion done) {
  auto& counters = shared_->counters;
  (request.kind == FrameKind::kCall   ? counters.calls
   : request.kind == FrameKind::kRead ? counters.reads
                                      : counters.writes)
      .fetch_add(1, std::memory_order_relaxed);
  const TransportOptions& options = shared_->options;
  if (!forbidden_.ok()) {
    return Later(std::move(done), RefusalOf(forbidden_.code(), forbidden_.error().text));
  }
  if (request.head.size() > options.frame_bytes_max ||
      std::max(request.send.size(), request.receive.size()) > options.bulk_bytes_max) {
    return Later(std::move(done), RefusalOf(Code::kTooLarge, "longer than a frame may be"));
  }
  const uint64_t bytes = request.head.size() + request.send.size() + request.receive.size();
  // Now is rounded down: not a moment too early.
  const Millis deadline = loop_->Now() + request.timeout + Millis(1);
  Reply refusal;
  bool start = false;
  {
    MutexLock lock(mutex_);
    Place* place = Route(bytes);
    if (ended_) {
      refusal = RefusalOf(Code::kCancelled, "stopping");
    } else if (place == nullptr && failing_) {
      refusal = RefusalOf(why_.code, why_.text);
    } else if ((free_.empty() && slots_.size() == kCallsMax) || !Hold(bytes)) {
      refusal = RefusalOf(Code::kBusy, "too much in flight to this peer");
    } else {
      if (free_.empty()) {
        free_.push_back(static_cast<uint32_t>(slots_.size()));
        slots_.emplace_back();
      }
      const uint32_t index = free_.back();
      free_.pop_back();
      Slot& slot = slots_[index];
      slot.id = ++last_sequence_ << kIndexBits | index;
      slot.kind = request.kind;
      slot.deadline = deadline;
      slot.receive = request.receive;
      slot.bytes = bytes;
      slot.done.swap(done);
      earliest_ = std::min(earliest_, deadline);
      Outgoing frame = MakeFrame({.kind = request.kind,
                                  .method = request.method,
                                  .deadline_ms = static_cast<uint32_t>(
                                      std::clamp<int64_t>(request.timeout.count(), 0, UINT32_MAX)),
                                  .request_id = slot.id,
                                  .receive_bytes = static_cast<uint32_t>(request.receive.size())},
                                 std::move(request.head), request.send);
      if (!request.send.empty()) {
        slot.send_busy = true;
        frame.released = [self = shared_from_this(), id = slot.id] {
          std::vector<Done> ended;
          {
            MutexLock inner(self->mutex_);
            Slot* found = self->Find(id);
            if (found == nullptr) return;
            found->send_busy = false;
            if (found->answered) self->Answer(*found, std::move(found->reply), ended);
          }
          Run(ended);
        };
      }
      // Under the lock: else the deadline could pass in between, and `send` be gone.
      if (place != nullptr) {
        SendOn(*place, slot, std::move(frame));
      } else {
        waiting_.push_back(std::move(frame));
        start = !std::exchange(started_, true);
      }
    }
  }
  if (refusal.code != Code::kOk) return Later(std::move(done), std::move(refusal));
  if (start) {
    loop_->Post([self = shared_from_this()] {
      self->loop_->Add(self);
      self->StartLinks();
    });
  }
  loop_->WakeBy(deadline);
}

bool TcpPeerCore::Hold(uint64_t bytes) {
  if (in_flight_bytes_.fetch_add(bytes) + bytes <= shared_->options.in_flight_bytes_max)
    return true;
  LetGo(bytes);
  return false;
}

TcpPeerCore::Place* TcpPeerCore::Route(uint64_t bytes) {
  Place* best = nullptr;
  if (bytes > kSmallBytes) {
    for (size_t i = 1; i < places_.size(); ++i) {
      if (places_[i].ready && (best == nullptr || places_[i].bytes < best->bytes)) {
        best = &places_[i];
      }
    }
  }
  if (best == nullptr && places_[0].ready) best = &places_[0];
  return best;
}

void TcpPeerCore::SendOn(Place& place, Slot& slot, Outgoing frame) {
  slot.link = place.link;
  place.bytes += slot.bytes;
  // If it closes just now, OnLinkClosed ends the slot.
  if (!place.link->Enqueue(std::move(frame))) slot.send_busy = false;
}

TcpPeerCore::Slot* TcpPeerCore::Find(uint64_t id) {
  const size_t index = id & ((1u << kIndexBits) - 1);
  if (index >= slots_.size() || slots_[index].id != id) return nullptr;
  return &slots_[index];
}

void TcpPeerCore::Answer(Slot& slot, Reply reply, std::vector<Done>& done) {
  if (slot.send_busy || slot.receiving) {
    if (!slot.answered) slot.reply = std::move(reply);
    slot.answered = true;
    return;
  }
  if (reply.code == Code::kTimeout) {
    shared_->counters.timeouts.fetch_add(1, std::memory_order_relaxed);
  }
  LetGo(slot.bytes);
  if (slot.link != nullptr) {
    Place& place = places_[slot.link->index()];
    if (place.link == slot.link) place.bytes -= slot.bytes;
  }
  done.push_back({std::move(slot.done), std::move(reply)});
  free_.push_back(static_cast<uint32_t>(&slot - slots_.data()));
  slot = {};
}

Result<std::span<std::byte>> TcpPeerCore::PlaceReply(const FrameHeader& header) {
  MutexLock lock(mutex_);
  Slot* slot = Find(header.request_id);
  if (slot == nullptr || slot->answered) return std::span<std::byte>();  // too late
  if (header.bulk_bytes > slot->receive.size()) {
    return Error{Code::kCorrupt, fmt::format("{} bytes of bulk where {} were asked for",
                                             header.bulk_bytes, slot->receive.size())};
  }
  slot->receiving = true;
  return slot->receive.first(header.bulk_bytes);
}

Status TcpPeerCore::OnReply(const FrameHeader& header, Bytes head) {
  std::vector<Done> done;
  {
    MutexLock lock(mutex_);
    Slot* slot = Find(header.request_id);
    if (slot == nullptr) return {};  // too late
    const FrameKind expected = slot->kind == FrameKind::kCall   ? FrameKind::kReply
                               : slot->kind == FrameKind::kRead ? FrameKind::kReadReply
                                                                : FrameKind::kWriteReply;
    if (header.kind != expected) {
      return Error{Code::kCorrupt,
                   fmt::format("{} where {} was expected", FrameKindName(header.kind),
                               FrameKindName(expected))};
    }
    if (header.kind == FrameKind::kReadReply && header.code == Code::kOk &&
        header.bulk_bytes != slot->receive.size()) {
      return Error{Code::kCorrupt, "a READ_REPLY of another length"};
    }
    slot->receiving = false;
    Reply reply{.code = header.code, .head = std::move(head), .bulk_bytes = header.bulk_bytes};
    if (slot->answered) reply = std::move(slot->reply);
    slot->answered = false;
    Answer(*slot, std::move(reply), done);
  }
  Run(done);
  return {};
}

void TcpPeerCore::OnBulkDropped(uint64_t id) {
  std::vector<Done> done;
  {
    MutexLock lock(mutex_);
    Slot* slot = Find(id);
    if (slot == nullptr) return;
    slot->receiving = false;
    if (slot->answered) Answer(*slot, std::move(slot->reply), done);
  }
  Run(done);
}

// ---- time

void TcpPeerCore::Expire(Millis now) {
  std::vector<Done> done;
  std::vector<std::shared_ptr<TcpLink>> stuck;
  std::vector<std::pair<std::shared_ptr<TcpLink>, uint64_t>> dropping;
  std::vector<Outgoing> taken;  // destroyed without the lock
  {
    MutexLock lock(mutex_);
    if (now < earliest_) return;
    earliest_ = Millis::max();
    for (Slot& slot : slots_) {
      if (slot.id == 0 || slot.answered) continue;
      if (slot.deadline > now) {
        earliest_ = std::min(earliest_, slot.deadline);
        continue;
      }
      const uint64_t id = slot.id;
      if (slot.link == nullptr) {
        const auto found = std::find_if(waiting_.begin(), waiting_.end(),
                                        [id](const Outgoing& frame) { return frame.id == id; });
        if (found != waiting_.end()) {
          taken.push_back(std::move(*found));
          waiting_.erase(found);
        }
        slot.send_busy = false;
      } else if (slot.send_busy) {
        // Else nothing of the caller's is in the queue: the frame may go on.
        switch (slot.link->Unqueue(id)) {
          case TcpConnection::Unqueued::kTaken:
            slot.send_busy = false;
            break;
          case TcpConnection::Unqueued::kBegun:
            stuck.push_back(slot.link);
            break;
          case TcpConnection::Unqueued::kGone:
            break;  // `released` is on its way
        }
      }
      if (slot.receiving) dropping.emplace_back(slot.link, id);
      Answer(slot, RefusalOf(Code::kTimeout, "no answer in time"), done);
    }
  }
  for (const auto& [link, id] : dropping) link->DropBulkOf(id);
  for (const auto& link : stuck) {
    link->Close({Code::kUnavailable, "the peer took half a frame until its deadline"});
  }
  Run(done);
}

void TcpPeerCore::Tick(Millis now) {
  Expire(now);
  bool connect = false, ping = false;
  {
    MutexLock lock(mutex_);
    if (ended_) return;
    ping = now >= ping_at_;
    if (ping) ping_at_ = now + shared_->options.heartbeat;
  }
  if (ping) channel_.Ping();
  {
    MutexLock lock(mutex_);
    if (resolving_) return;
    for (const Place& place : places_) connect |= place.link == nullptr && now >= place.retry_at;
  }
  if (connect) StartLinks();
}

Millis TcpPeerCore::NextTick() const {
  MutexLock lock(mutex_);
  if (ended_) return Millis(0);
  Millis next = std::min(earliest_, ping_at_);
  if (resolving_) return next;
  for (const Place& place : places_) {
    if (place.link == nullptr) next = std::min(next, place.retry_at);
  }
  return next;
}

// ---- connections

void TcpPeerCore::StartLinks() {
  sockaddr_storage address{};
  const socklen_t bytes = ParseNumeric(address_, address);
  if (bytes != 0) return Resolved({}, address, bytes);
  {
    MutexLock lock(mutex_);
    if (std::exchange(resolving_, true)) return;
  }
  Resolve();
}

// A name may take seconds: on a thread of its own.
void TcpPeerCore::Resolve() {
  std::thread([self = shared_from_this()] {
    SetThreadName("tcp-resolve");
    addrinfo hints{};
    hints.ai_socktype = SOCK_STREAM;
    addrinfo* found = nullptr;
    const std::string port = fmt::format("{}", self->address_.port);
    const int result = ::getaddrinfo(self->address_.host.c_str(), port.c_str(), &hints, &found);
    sockaddr_storage address{};
    socklen_t bytes = 0;
    Status status;
    if (result == 0 && found != nullptr) {
      bytes = found->ai_addrlen;
      std::memcpy(&address, found->ai_addr, bytes);
    } else {
      status = Error{Code::kUnavailable,
                     fmt::format("{}: {}", self->address_.host, ::gai_strerror(result))};
    }
    if (found != nullptr) ::freeaddrinfo(found);
    self->loop_->Post([self, status, address, bytes] { self->Resolved(status, address, bytes); });
  }).detach();
}

void TcpPeerCore::Resolved(const Status& status, const sockaddr_storage& address, socklen_t bytes) {
  std::vector<Done> done;
  std::vector<std::shared_ptr<TcpLink>> started;
  {
    MutexLock lock(mutex_);
    resolving_ = false;
    if (ended_) return;
    const Millis now = loop_->Now();
    for (size_t i = 0; i < places_.size(); ++i) {
      Place& place = places_[i];
      if (place.link != nullptr || now < place.retry_at) continue;
      if (!status.ok()) {
        place.retry_at = now + kBackoffMost;
        continue;
      }
      place.link =
          std::make_shared<TcpLink>(shared_, loop_, shared_from_this(), i, address_.ToString());
      started.push_back(place.link);
    }
    if (!status.ok()) {
      failing_ = true;
      why_ = status.error();
      FailWaiting(why_, done);
    }
  }
  for (const auto& link : started) {
    loop_->Add(link);
    link->Start(address, bytes);
  }
  Run(done);
}

void TcpPeerCore::OnReady(TcpLink* link) {
  std::deque<Outgoing> waiting;
  MutexLock lock(mutex_);
  Place& place = places_[link->index()];
  if (place.link.get() != link) return;
  place.ready = true;
  place.backoff = Millis(0);
  if (link->index() != 0) return;
  connected_ = true;
  failing_ = false;
  channel_.SetAddress(link->address(), link->address_bytes());
  waiting.swap(waiting_);
  for (Outgoing& frame : waiting) {
    Slot* slot = Find(frame.id);
    if (slot == nullptr) continue;
    SendOn(*Route(slot->bytes), *slot, std::move(frame));
  }
}

void TcpPeerCore::FailWaiting(const Error& why, std::vector<Done>& done) {
  for (Outgoing& frame : waiting_) {
    Slot* slot = Find(frame.id);
    if (slot == nullptr) continue;
    slot->send_busy = false;
    Answer(*slot, RefusalOf(why.code, why.text), done);
  }
  waiting_.clear();
}

void TcpPeerCore::OnLinkClosed(TcpLink* link, const Error& why) {
  std::vector<Done> done;
  std::shared_ptr<TcpLink> held;  // goes without the lock
  // Refused: what it was sent, it did not look at.
  const bool refused = why.code == Code::kDenied || why.code == Code::kUnsupported;
  const bool worked = link->was_ready() && !refused;
  {
    MutexLock lock(mutex_);
    Place& place = places_[link->index()];
    KVC_CHECK(place.link.get() == link);
    held = std::move(place.link);
    if (worked) shared_->counters.reconnects.fetch_add(1, std::memory_order_relaxed);
    place.ready = false;
    place.bytes = 0;
    place.backoff =
        place.backoff == Millis(0) ? kBackoffFirst : std::min(2 * place.backoff, kBackoffMost);
    place.retry_at = loop_->Now() + (worked ? kAgain : place.backoff);
    const bool ours = ended_ || why.code == Code::kCancelled;  // we are stopping
    const Error told{ours ? Code::kCancelled : refused ? why.code : Code::kUnavailable, why.text};
    for (Slot& slot : slots_) {
      if (slot.id == 0 || slot.link.get() != link) continue;
      slot.send_busy = slot.receiving = false;
      Answer(slot, slot.answered ? std::move(slot.reply) : RefusalOf(told.code, told.text), done);
    }
    if (link->index() == 0) {
      connected_ = false;
      channel_.Cut(false);
      if (!worked) {
        failing_ = true;
        why_ = told;
        FailWaiting(why_, done);
      }
    }
  }
  if (worked && why.code != Code::kCancelled) {
    KVC_LOG(Info, "a connection ended", "peer={} reason={}", LogValue(address_.ToString()),
            LogValue(why.text));
  }
  Run(done);
}

void TcpPeerCore::End(Code code) {
  std::vector<Done> done;
  std::vector<std::shared_ptr<TcpLink>> links;
  {
    MutexLock lock(mutex_);
    if (std::exchange(ended_, true)) return;
    for (Place& place : places_) {
      if (place.link != nullptr) links.push_back(place.link);
    }
    FailWaiting({code, "stopping"}, done);
  }
  channel_.Cut(true);
  for (const auto& link : links) link->Stop();
  Run(done);
}

void TcpPeerCore::Abandon() {
  // Without a loop everything has ended already.
  loop_->Post([self = shared_from_this()] { self->End(Code::kCancelled); });
}

void TcpPeerCore::Stop() {
  End(Code::kCancelled);
}

bool TcpPeerCore::CanGo() const {
  MutexLock lock(mutex_);
  if (!ended_) return false;
  return std::all_of(places_.begin(), places_.end(),
                     [](const Place& place) { return place.link == nullptr; });
}

// ---- a link

TcpLink::TcpLink(std::shared_ptr<TcpShared> shared, std::shared_ptr<TcpLoop> loop,
                 std::shared_ptr<TcpPeerCore> core, size_t index, const std::string& peer_text)
    : TcpConnection(std::move(shared), std::move(loop), false, index != 0, peer_text),
      core_(std::move(core)),
      index_(index) {}

void TcpLink::Start(const sockaddr_storage& address, socklen_t bytes) {
  if (closed()) return;  // stopped before it began
  connecting_ = Fd(::socket(address.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!connecting_.valid()) {
    return Close({Code::kUnavailable, ErrnoError(errno, "socket").text});
  }
  give_up_at_ = loop().Now() + kConnectTimeout;
  address_ = address;
  address_bytes_ = bytes;
  loop().ring().Connect(&connect_op_, connecting_.get(),
                        reinterpret_cast<const sockaddr*>(&address_), bytes);
}

void TcpLink::OnConnected(int result, uint32_t /*flags*/) {
  if (closed()) {
    connecting_.Reset();
    return EndIfQuiet();
  }
  if (result < 0) {
    connecting_.Reset();
    return Close({Code::kUnavailable, ErrnoError(-result, "connect to", peer_text()).text});
  }
  Begin(std::move(connecting_));
}

void TcpLink::Tick(Millis now) {
  if (connect_op_.busy() && now >= give_up_at_ && !closed()) {
    Close({Code::kUnavailable, fmt::format("connect to {}: no answer", peer_text())});
  }
  if (connect_op_.busy() && closed()) loop().ring().Cancel(&connect_op_);
  TcpConnection::Tick(now);
}

Millis TcpLink::NextTick() const {
  if (connect_op_.busy()) return closed() ? Millis(0) : give_up_at_;
  return TcpConnection::NextTick();
}

Status TcpLink::OnHello(const Hello& /*hello*/, PeerIdentity /*identity*/) {
  was_ready_ = true;
  core_->OnReady(this);
  return {};
}

Status TcpLink::OnRequest(const FrameHeader& header, Bytes head, std::span<std::byte> /*bulk*/) {
  switch (header.kind) {
    case FrameKind::kReply:
    case FrameKind::kReadReply:
    case FrameKind::kWriteReply:
      return core_->OnReply(header, std::move(head));
    default:
      return Error{Code::kCorrupt, fmt::format("{} from who serves", FrameKindName(header.kind))};
  }
}

Result<std::span<std::byte>> TcpLink::PlaceOf(const FrameHeader& header,
                                              std::span<const std::byte> /*head*/) {
  if (header.kind != FrameKind::kReply && header.kind != FrameKind::kReadReply) {
    return Error{Code::kCorrupt,
                 fmt::format("{} with bulk from who serves", FrameKindName(header.kind))};
  }
  return core_->PlaceReply(header);
}

void TcpLink::OnClosed(const Error& why) {
  core_->OnLinkClosed(this, why);
}

}  // namespace kvcfs::rdma
