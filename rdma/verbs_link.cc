#include "rdma/verbs_link.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include <fmt/format.h>

#include "base/log.h"

namespace kvcfs::rdma {
namespace {

constexpr uint32_t kGreetingMagic = 0x5643564b;  // "KVCV"
constexpr uint16_t kGreetingVersion = 1;
constexpr int kResolveMs = 2000;
constexpr uint8_t kNoReceiveTimer = 8;  // InfiniBand's table: 160 us
constexpr uint8_t kRetries = 7;         // the most; 7 of "receiver not ready" are without end

}  // namespace

Bytes VerbsGreeting::Encode() const {
  Writer out;
  out.U32(kGreetingMagic).U16(kGreetingVersion).U16(index).Raw(token).U32(receives).U32(0);
  return out.Take();
}

Result<VerbsGreeting> VerbsGreeting::Decode(std::span<const std::byte> bytes) {
  Reader in(bytes.first(std::min(bytes.size(), kGreetingBytes)));
  const uint32_t magic = in.U32();
  const uint16_t version = in.U16();
  VerbsGreeting greeting;
  greeting.index = in.U16();
  const auto token = in.Raw(greeting.token.size());
  greeting.receives = in.U32();
  if (!in.ok() || magic != kGreetingMagic) return Error{Code::kCorrupt, "no greeting of kvcfs"};
  if (version != kGreetingVersion) {
    return Error{Code::kUnsupported,
                 fmt::format("greeting version {}, we speak {}", version, kGreetingVersion)};
  }
  if (greeting.receives > 1 << 16)
    return Error{Code::kCorrupt, "a greeting with too many receives"};
  std::memcpy(greeting.token.data(), token.data(), token.size());
  return greeting;
}

VerbsLink::VerbsLink(VerbsLoop* loop, VerbsLinkOwner* owner, FrameSink* sink,
                     VerbsCounters* counters, Options options)
    : loop_(loop),
      owner_(owner),
      counters_(counters),
      options_(std::move(options)),
      framed_(sink != nullptr),
      parser_(options_.limits, sink) {}

VerbsLink::~VerbsLink() {
  KVC_CHECK(id_ == nullptr || down_ || !up_);
  if (number_ != 0) loop_->RemoveLink(number_);
  if (id_ != nullptr) {
    DestroyPair();
    ::rdma_destroy_id(id_);
  }
  ReturnHeld();
  for (const Work& work : works_) {
    if (!work.is_read) sends_->Return(work.buffer);
  }
  if (receives_ != nullptr) receives_->Leave();
  if (sends_ != nullptr) sends_->Leave();
  if (device_ != nullptr) device_->Release(kVerbsSendsMax);
}

void VerbsLink::DestroyPair() {
  if (id_ != nullptr && id_->qp != nullptr) loop_->DestroyPair(device_index_, id_);
}

// ---- connecting

void VerbsLink::Connect(const sockaddr_storage& to) {
  if (::rdma_create_id(loop_->channel(), &id_, static_cast<VerbsEvents*>(this), RDMA_PS_TCP) != 0) {
    id_ = nullptr;
    return Break(VerbsError(errno, "an id of librdmacm"));
  }
  sockaddr_storage copy = to;
  // Device and GID follow from the route, never from a name.
  if (::rdma_resolve_addr(id_, nullptr, reinterpret_cast<sockaddr*>(&copy), kResolveMs) != 0) {
    Break(VerbsError(errno, fmt::format("the way to {}", options_.peer_text)));
  }
}

Status VerbsLink::MakeQueuePair() {
  device_index_ = loop_->IndexOf(id_->verbs);
  if (device_index_ == VerbsLoop::kNoDevice) {
    return Error{Code::kUnsupported, "an RDMA device that came after the start: start again"};
  }
  VerbsDevice* device = loop_->devices()[device_index_].get();
  if (!device->Reserve(kVerbsSendsMax)) {
    return Error{Code::kNoSpace, fmt::format("{} has all queue pairs it may", device->name())};
  }
  device_ = device;
  number_ = loop_->AddLink(this);
  if (framed_) {
    KVC_TRY_ASSIGN(sends_, loop_->Sends(device_index_));
    sends_->Join();
    receives_ = loop_->SharedReceives(device_index_);
    if (receives_ != nullptr) receives_->Join();
  }
  ibv_qp_init_attr wanted{};
  wanted.send_cq = wanted.recv_cq = device_->completions();
  wanted.qp_type = IBV_QPT_RC;
  wanted.cap.max_send_wr = kVerbsSendsMax;
  wanted.cap.max_recv_wr = framed_ ? kVerbsReceives : 1;
  if (receives_ != nullptr) {
    wanted.srq = receives_->queue();
    wanted.cap.max_recv_wr = 0;
  }
  wanted.cap.max_send_sge = wanted.cap.max_recv_sge = 1;
  inline_bytes_ = wanted.cap.max_inline_data = kInlineBytes;
  if (::rdma_create_qp(id_, device_->domain(), &wanted) != 0) {
    inline_bytes_ = wanted.cap.max_inline_data = 0;  // not every device can
    if (::rdma_create_qp(id_, device_->domain(), &wanted) != 0) {
      return VerbsError(errno, fmt::format("a queue pair of {}", device_->name()));
    }
  }
  if (!framed_) return {};
  loop_->AddPair(device_index_, id_->qp->qp_num, this);
  if (receives_ == nullptr) {
    KVC_TRY_ASSIGN(receives_, VerbsReceives::Own(device_, id_->qp, number_));
    receives_->Join();
  }
  granted_ = receives_->Share();
  return {};
}

Bytes VerbsLink::Greeting() const {
  VerbsGreeting greeting = options_.greeting;
  greeting.receives = granted_;
  return greeting.Encode();
}

void VerbsLink::Accept(rdma_cm_id* id, const rdma_cm_event& request, const VerbsGreeting& theirs) {
  id_ = id;
  id_->context = static_cast<VerbsEvents*>(this);
  credits_ = theirs.receives;
  if (const Status made = MakeQueuePair(); !made.ok()) {
    ::rdma_reject(id_, nullptr, 0);
    return Break(made.error());
  }
  const Bytes greeting = Greeting();
  rdma_conn_param wanted{};
  wanted.private_data = greeting.data();
  wanted.private_data_len = static_cast<uint8_t>(greeting.size());
  wanted.responder_resources =
      std::min(device_->reads_in(), request.param.conn.responder_resources);
  wanted.initiator_depth = std::min(device_->reads_out(), request.param.conn.initiator_depth);
  wanted.rnr_retry_count = kRetries;
  if (::rdma_accept(id_, &wanted) != 0) Break(VerbsError(errno, "accepting a queue pair"));
}

void VerbsLink::OnConnectEvent(const rdma_cm_event& event) {
  if (down_) return;
  switch (event.event) {
    case RDMA_CM_EVENT_ADDR_RESOLVED:
      if (::rdma_resolve_route(id_, kResolveMs) != 0) {
        Break(VerbsError(errno, fmt::format("the route to {}", options_.peer_text)));
      }
      return;
    case RDMA_CM_EVENT_ROUTE_RESOLVED: {
      if (const Status made = MakeQueuePair(); !made.ok()) return Break(made.error());
      const Bytes greeting = Greeting();
      rdma_conn_param wanted{};
      wanted.private_data = greeting.data();
      wanted.private_data_len = static_cast<uint8_t>(greeting.size());
      wanted.responder_resources = device_->reads_in();
      wanted.initiator_depth = device_->reads_out();
      wanted.retry_count = kRetries;
      wanted.rnr_retry_count = kRetries;
      if (::rdma_connect(id_, &wanted) != 0) {
        Break(VerbsError(errno, fmt::format("connecting to {}", options_.peer_text)));
      }
      return;
    }
    case RDMA_CM_EVENT_ESTABLISHED:
      return OnEstablished(event);
    case RDMA_CM_EVENT_DISCONNECTED:
      return Break({Code::kUnavailable, "the peer ended the connection"});
    case RDMA_CM_EVENT_DEVICE_REMOVAL:
      return Break({Code::kUnavailable, "the RDMA device was taken away"});
    case RDMA_CM_EVENT_ADDR_CHANGE:
    case RDMA_CM_EVENT_TIMEWAIT_EXIT:
      return;
    default:
      return Break(ConnectError(event.event, event.status, options_.peer_text));
  }
}

void VerbsLink::OnEstablished(const rdma_cm_event& event) {
  // Who accepted has read the other's greeting already; who asked finds the answer here.
  if (const auto* data = static_cast<const std::byte*>(event.param.conn.private_data);
      data != nullptr && event.param.conn.private_data_len != 0) {
    const auto theirs = VerbsGreeting::Decode({data, event.param.conn.private_data_len});
    if (!theirs.ok()) return Break(theirs.error());
    credits_ = theirs->receives;
  }
  if (framed_ && receives_->queue() != nullptr) {
    // How long a peer waits that found no receive. What librdmacm sets is the longest, 655 ms.
    ibv_qp_attr soon{};
    soon.qp_state = IBV_QPS_RTS;
    soon.min_rnr_timer = kNoReceiveTimer;
    if (const int result = ::ibv_modify_qp(id_->qp, &soon, IBV_QP_STATE | IBV_QP_MIN_RNR_TIMER);
        result != 0) {
      KVC_LOG(Debug, "a peer that finds no receive waits long", "peer={} errno={}",
              LogValue(options_.peer_text), result);
    }
  }
  up_ = true;
  Dirty();
  owner_->OnLinkUp(this);
}

// ---- out

void VerbsLink::Dirty() {
  if (dirty_ || down_) return;
  dirty_ = true;
  loop_->MarkDirty(shared_from_this());
}

void VerbsLink::Send(Outgoing frame) {
  KVC_CHECK(framed_);
  if (down_) {
    if (frame.released != nullptr) frame.released();
    return;
  }
  queued_bytes_ += frame.bytes();
  queue_.push_back(std::move(frame));
  counters_->messages_sent.fetch_add(1, std::memory_order_relaxed);
  Dirty();
}

VerbsLink::Unqueued VerbsLink::Unqueue(uint64_t id) {
  for (size_t i = 0; i < queue_.size(); ++i) {
    if (queue_[i].id != id) continue;
    if (i == 0 && sent_of_first_ != 0) return Unqueued::kBegun;
    queued_bytes_ -= queue_[i].bytes();
    queue_.erase(queue_.begin() + static_cast<ptrdiff_t>(i));
    return Unqueued::kTaken;
  }
  return Unqueued::kGone;
}

void VerbsLink::Read(VerbsRead read) {
  KVC_CHECK(!down_);
  reads_.push_back(std::move(read));
  Dirty();
}

size_t VerbsLink::Fill(std::span<std::byte> buffer) {
  size_t filled = 0;
  while (!queue_.empty() && filled < buffer.size()) {
    Outgoing& frame = queue_.front();
    if (sent_of_first_ == 0 && frame.expires < loop_->Now()) {
      DropFirst();  // an answer that is late already does not hold up the others
      continue;
    }
    const std::span<const std::byte> parts[] = {frame.header, frame.head, frame.bulk};
    size_t at = sent_of_first_;
    for (const auto& part : parts) {
      if (at >= part.size()) {
        at -= part.size();
        continue;
      }
      const size_t bytes = std::min(part.size() - at, buffer.size() - filled);
      std::memcpy(buffer.data() + filled, part.data() + at, bytes);
      filled += bytes;
      sent_of_first_ += bytes;
      at = 0;
      if (filled == buffer.size()) break;
    }
    if (sent_of_first_ < frame.bytes()) break;
    DropFirst();  // all of it was copied
  }
  return filled;
}

void VerbsLink::DropFirst() {
  sent_of_first_ = 0;
  queued_bytes_ -= queue_.front().bytes();
  const Outgoing gone = std::move(queue_.front());
  queue_.pop_front();
  if (gone.released != nullptr) gone.released();
}

uint32_t VerbsLink::Due() const {
  const size_t known = granted_ + held_.size(), share = receives_->Share();
  if (known < share) return static_cast<uint32_t>(share - known);
  // Who could not even tell of credits would wait for us, and we for it.
  return granted_ == 0 ? 1 : 0;
}

bool VerbsLink::MaySend() const {
  if (!framed_ || sending_ >= sends_->Share()) return false;
  if (!queue_.empty() && credits_ >= 2) return true;
  return credits_ >= 1 && Due() >= receives_->Share() / 2;
}

void VerbsLink::Flush() {
  dirty_ = false;
  if (!up_ || down_) return;
  while (!held_.empty() && !Full() && !down_) {
    const Held next = held_.front();
    held_.pop_front();
    TakeMessage(next);
  }
  if (down_) return;
  if (framed_) {
    // The others do not wait for a peer that does not take its answers.
    if (receives_->queue() != nullptr) LetGoOfReceives();
    if (const Status posted = receives_->PostReturned(); !posted.ok()) {
      return Break(posted.error());
    }
  }
  for (;;) {
    std::array<ibv_send_wr, kChain> chain{};
    std::array<ibv_sge, kChain> places{};
    uint32_t count = 0;
    while (count < kChain && works_.size() < kVerbsSendsMax) {
      Work work{.sequence = ++sequence_};
      ibv_send_wr& wanted = chain[count];
      ibv_sge& place = places[count];
      std::optional<uint32_t> lent;
      if (MaySend()) lent = sends_->Take(shared_from_this());
      if (lent.has_value()) {
        work.buffer = *lent;
        ++sending_;
        const auto buffer = sends_->Buffer(work.buffer);
        // The last credit is for telling, also of what the queue waits for.
        const uint32_t bytes =
            credits_ < 2 ? 0 : static_cast<uint32_t>(Fill(buffer.subspan(kPrefixBytes)));
        const uint32_t prefix[2] = {Due(), bytes};
        static_assert(sizeof(prefix) == kPrefixBytes);
        std::memcpy(buffer.data(), prefix, sizeof(prefix));
        granted_ += prefix[0];
        --credits_;
        place = {.addr = reinterpret_cast<uint64_t>(buffer.data()),
                 .length = static_cast<uint32_t>(kPrefixBytes + bytes),
                 .lkey = sends_->local_key()};
        wanted.opcode = IBV_WR_SEND;
        wanted.send_flags = place.length <= inline_bytes_ ? IBV_SEND_INLINE : 0;
        counters_->bytes_sent.fetch_add(place.length, std::memory_order_relaxed);
        if (++unsignalled_ >= sends_->SignalEvery()) wanted.send_flags |= IBV_SEND_SIGNALED;
      } else if (!reads_.empty()) {
        work.is_read = true;
        work.read = std::move(reads_.front());
        reads_.pop_front();
        ++reads_posted_;
        place = {.addr = reinterpret_cast<uint64_t>(work.read.into.data()),
                 .length = static_cast<uint32_t>(work.read.into.size()),
                 .lkey = work.read.local_key};
        wanted.opcode = IBV_WR_RDMA_READ;
        wanted.wr.rdma.remote_addr = work.read.address;
        wanted.wr.rdma.rkey = work.read.key;
        // The last READ of the chain speaks for those before it.
        if (reads_.empty() || count + 1 == kChain || works_.size() + 1 == kVerbsSendsMax) {
          wanted.send_flags = IBV_SEND_SIGNALED;
        }
        counters_->reads.fetch_add(1, std::memory_order_relaxed);
        counters_->read_bytes.fetch_add(place.length, std::memory_order_relaxed);
      } else {
        --sequence_;
        break;
      }
      if ((wanted.send_flags & IBV_SEND_SIGNALED) != 0) unsignalled_ = 0;
      wanted.wr_id = WorkId(work.sequence);
      wanted.sg_list = &place;
      wanted.num_sge = 1;
      if (count != 0) chain[count - 1].next = &wanted;
      works_.push_back(std::move(work));
      ++count;
    }
    if (count == 0) {
      // There is room again for answers to what was held back.
      if (!held_.empty() && !Full()) Dirty();
      return;
    }
    ibv_send_wr* bad = nullptr;
    if (const int result = ::ibv_post_send(id_->qp, chain.data(), &bad); result != 0) {
      return Break(VerbsError(result, "posting sends"));
    }
  }
}

// ---- in

void VerbsLink::OnCompletion(const ibv_wc& done) {
  if (down_) return;
  const uint64_t rest = done.wr_id & ((uint64_t{1} << 40) - 1);
  if ((rest & kReceiveBit) != 0) {
    const uint32_t buffer = BufferOfWork(done.wr_id);
    receives_->Completed();
    if (done.status != IBV_WC_SUCCESS || granted_ == 0) {
      receives_->Return(buffer);
      if (done.status != IBV_WC_SUCCESS) return Break(CompletionError(done.status));
      return Judge(Error{Code::kCorrupt, "a message without a credit"});
    }
    --granted_;
    // It is held: the first may come before librdmacm's word that the connection is made.
    return OnMessage(buffer, done.byte_len);
  }
  // All before it are done, too.
  while (!works_.empty() && works_.front().sequence <= rest && !down_) {
    if (works_.front().sequence == rest && done.status != IBV_WC_SUCCESS) break;
    const Work work = std::move(works_.front());
    works_.pop_front();
    if (work.is_read) {
      --reads_posted_;
      counters_->bytes_received.fetch_add(work.read.into.size(), std::memory_order_relaxed);
      work.read.done({});
    } else {
      --sending_;
      sends_->Return(work.buffer);
    }
  }
  if (down_) return;
  if (done.status != IBV_WC_SUCCESS) return Break(CompletionError(done.status));
  Dirty();
}

void VerbsLink::OnMessage(uint32_t buffer, uint32_t bytes) {
  const auto message = receives_->Buffer(buffer).first(std::min<size_t>(bytes, kMessageBytes));
  counters_->bytes_received.fetch_add(message.size(), std::memory_order_relaxed);
  uint32_t prefix[2] = {};
  const bool whole = message.size() >= kPrefixBytes;
  if (whole) std::memcpy(prefix, message.data(), sizeof(prefix));
  if (!whole || prefix[1] != message.size() - kPrefixBytes || prefix[0] > kVerbsReceives) {
    receives_->Return(buffer);
    return Judge(Error{Code::kCorrupt, "a message whose prefix is not of it"});
  }
  // Credits count at once, and what tells of nothing else is free again: what is held back may wait
  // for what they allow to be sent.
  credits_ += prefix[0];
  if (prefix[1] == 0) {
    receives_->Return(buffer);
  } else {
    held_.push_back({.buffer = buffer, .bytes = prefix[1], .arrived = loop_->Now()});
  }
  Dirty();
}

void VerbsLink::TakeMessage(const Held& message) {
  arrived_ = message.arrived;
  const auto receives = receives_;  // the link may end
  std::span<const std::byte> bytes = message.copy;
  if (bytes.empty()) bytes = receives->Buffer(message.buffer).subspan(kPrefixBytes, message.bytes);
  Judge(parser_.Feed(bytes));
  if (message.copy.empty()) receives->Return(message.buffer);
}

void VerbsLink::LetGoOfReceives() {
  for (Held& message : held_) {
    if (!message.copy.empty()) continue;
    const auto bytes = receives_->Buffer(message.buffer).subspan(kPrefixBytes, message.bytes);
    message.copy.assign(bytes.begin(), bytes.end());
    receives_->Return(message.buffer);
  }
}

void VerbsLink::ReturnHeld() {
  for (const Held& message : std::exchange(held_, {})) {
    if (message.copy.empty()) receives_->Return(message.buffer);
  }
}

void VerbsLink::Judge(const Status& status) {
  if (status.ok() || down_) return;
  counters_->hostile.fetch_add(1, std::memory_order_relaxed);
  KVC_LOG(Warn, "a queue pair sent what is not allowed", "peer={} reason={}",
          LogValue(options_.peer_text), LogValue(status.error().text));
  Break(status.error());
}

void VerbsLink::DropBulkOf(uint64_t id) {
  if (parser_.receiving_bulk() && parser_.header().request_id == id) parser_.DropBulk();
}

// ---- the end

void VerbsLink::Break(const Error& why) {
  if (down_) return;
  down_ = true;
  const auto self = weak_from_this().lock();  // the owner may let go of it
  if (id_ != nullptr && id_->qp != nullptr) {
    if (up_) ::rdma_disconnect(id_);
    DestroyPair();
  }
  if (number_ != 0) loop_->RemoveLink(std::exchange(number_, 0));
  ReturnHeld();
  auto works = std::exchange(works_, {});
  auto reads = std::exchange(reads_, {});
  auto frames = std::exchange(queue_, {});
  for (const Work& work : works) {
    if (work.is_read) {
      work.read.done(why);
    } else {
      sends_->Return(work.buffer);
    }
  }
  for (const VerbsRead& read : reads) read.done(why);
  for (const Outgoing& frame : frames) {
    if (frame.released != nullptr) frame.released();
  }
  owner_->OnLinkDown(this, why);
}

}  // namespace kvcfs::rdma
