#include "rdma/tcp_server.h"

#include <utility>

#include <fmt/format.h>

namespace kvcfs::rdma {
namespace {

Bytes TextOf(std::string_view text) {
  const auto bytes = std::as_bytes(std::span(text.substr(0, 4000)));
  return {bytes.begin(), bytes.end()};
}

}  // namespace

class TcpResponder final : public Responder {
 public:
  TcpResponder(std::shared_ptr<TcpServed> connection, const FrameHeader& header, Millis now,
               OwnBulk own)
      : connection_(std::move(connection)),
        identity_(connection_->identity_),
        id_(header.request_id),
        deadline_(now + Millis(header.deadline_ms)),
        receive_bytes_(header.receive_bytes),
        bulk_bytes_(header.bulk_bytes),
        own_(std::move(own)) {}

  ~TcpResponder() override {
    if (!answered_) Refuse(Code::kUnavailable, "not answered");
    connection_->serving_bytes_.fetch_sub(bulk_bytes_, std::memory_order_relaxed);
  }

  const PeerIdentity& peer() const override { return *identity_; }
  Millis deadline() const override { return deadline_; }
  uint32_t receive_bytes() const override { return receive_bytes_; }

  void Answer(Bytes head, std::span<const std::byte> bulk, std::function<void()> sent) override {
    if (bulk.size() > receive_bytes_) {
      Give(Code::kInternal, TextOf("more bulk than was asked for"), {}, sent);
    } else if (head.size() > connection_->shared().options.frame_bytes_max) {
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
    connection_->serving_.fetch_sub(1, std::memory_order_relaxed);
    connection_->Answer({.kind = FrameKind::kReply, .code = code, .request_id = id_},
                        std::move(head), bulk, {}, sent);
  }

  const std::shared_ptr<TcpServed> connection_;
  const std::shared_ptr<const PeerIdentity> identity_;
  const uint64_t id_;
  const Millis deadline_;
  const uint32_t receive_bytes_, bulk_bytes_;
  const OwnBulk own_;  // goes before the connection, which keeps its counter
  bool answered_ = false;
};

TcpServed::TcpServed(std::shared_ptr<TcpShared> shared, std::shared_ptr<TcpLoop> loop,
                     Service* service, const std::string& peer_text)
    : TcpConnection(std::move(shared), std::move(loop), true, false, peer_text), service_(service) {
  this->shared().accepted.fetch_add(1, std::memory_order_relaxed);
}

TcpServed::~TcpServed() {
  shared().accepted.fetch_sub(1, std::memory_order_relaxed);
}

Status TcpServed::OnHello(const Hello& /*hello*/, PeerIdentity identity) {
  identity_ = std::make_shared<const PeerIdentity>(std::move(identity));
  return {};
}

void TcpServed::Answer(FrameHeader header, Bytes head, std::span<const std::byte> bulk,
                       Regions::Loan loan, const std::function<void()>& sent) {
  Outgoing frame = MakeFrame(header, std::move(head), bulk);
  frame.loan = std::move(loan);
  frame.released = sent;
  if (Enqueue(std::move(frame))) return;
  // The peer is gone: nothing will be sent, and the bulk is free, but not inside of Answer.
  if (sent != nullptr && !loop().Post(sent)) sent();
}

void TcpServed::Refuse(FrameKind kind, uint64_t id, const Error& why) {
  Answer({.kind = kind, .code = why.code, .request_id = id}, TextOf(why.text), {}, {}, {});
}

Result<std::span<std::byte>> TcpServed::PlaceOf(const FrameHeader& header,
                                                std::span<const std::byte> head) {
  const TransportOptions& options = shared().options;
  refused_ = {};
  if (header.kind == FrameKind::kWrite) {
    KVC_TRY_ASSIGN(const RemoteSpan place, DecodeSpan(head));
    if (place.length != header.bulk_bytes) {
      return Error{Code::kCorrupt, "a WRITE with another length than its place"};
    }
    auto loan = shared().regions.Borrow(*identity_, place, true);
    if (!loan.ok()) {
      refused_ = std::move(loan).error();
      return std::span<std::byte>();
    }
    loan_ = std::move(*loan);
    return loan_.span();
  }
  if (header.kind != FrameKind::kCall) {
    return Error{Code::kCorrupt,
                 fmt::format("{} with bulk from who asks", FrameKindName(header.kind))};
  }
  if (serving_.load() >= options.serving_max ||
      serving_bytes_.load() + header.bulk_bytes > options.in_flight_bytes_max) {
    refused_ = Error{Code::kBusy, "too many requests wait here"};
    return std::span<std::byte>();
  }
  placed_ = service_->Place(header.method, head, header.bulk_bytes);
  if (!placed_.empty()) {
    KVC_CHECK(placed_.size() == header.bulk_bytes);
    return placed_;
  }
  std::atomic<uint64_t>& all = shared().serving_bytes;
  if (all.fetch_add(header.bulk_bytes, std::memory_order_relaxed) + header.bulk_bytes >
      options.serving_bytes_max) {
    all.fetch_sub(header.bulk_bytes, std::memory_order_relaxed);
    refused_ = Error{Code::kBusy, "too much bulk waits here"};
    return std::span<std::byte>();
  }
  own_ = OwnBulk(&all, header.bulk_bytes);
  return own_.span();
}

Status TcpServed::OnRequest(const FrameHeader& header, Bytes head, std::span<std::byte> bulk) {
  const TransportOptions& options = shared().options;
  FrameKind answer = FrameKind::kReply;
  switch (header.kind) {
    case FrameKind::kCall:
      break;
    case FrameKind::kRead:
      answer = FrameKind::kReadReply;
      break;
    case FrameKind::kWrite:
      answer = FrameKind::kWriteReply;
      break;
    default:
      return Error{Code::kCorrupt, fmt::format("{} from who asks", FrameKindName(header.kind))};
  }
  Status status = std::exchange(refused_, {});
  if (status.ok() && header.kind == FrameKind::kCall && bulk.empty() &&
      serving_.load(std::memory_order_relaxed) >= options.serving_max) {
    status = Error{Code::kBusy, "too many requests wait here"};
  }
  if (!status.ok()) {
    Refuse(answer, header.request_id, status.error());
    return {};
  }
  if (header.kind == FrameKind::kCall) {
    serving_.fetch_add(1, std::memory_order_relaxed);
    serving_bytes_.fetch_add(header.bulk_bytes, std::memory_order_relaxed);
    placed_ = {};
    auto responder =
        std::make_unique<TcpResponder>(std::static_pointer_cast<TcpServed>(shared_from_this()),
                                       header, loop().Now(), std::exchange(own_, OwnBulk()));
    service_->Serve(header.method, std::move(head), bulk, std::move(responder));
    return {};
  }
  if (header.kind == FrameKind::kWrite) {
    if (bulk.empty()) {
      Refuse(answer, header.request_id, {Code::kInvalid, "a WRITE of nothing"});
      return {};
    }
    loan_ = {};
    Answer({.kind = answer, .request_id = header.request_id}, {}, {}, {}, {});
    return {};
  }
  KVC_TRY_ASSIGN(const RemoteSpan place, DecodeSpan(head));
  auto loan = place.length <= options.bulk_bytes_max
                  ? shared().regions.Borrow(*identity_, place, false)
                  : Result<Regions::Loan>(Error{Code::kInvalid, "longer than a frame may be"});
  if (!loan.ok()) {
    Refuse(answer, header.request_id, loan.error());
    return {};
  }
  const std::span<const std::byte> bytes = loan->span();
  Answer({.kind = answer, .request_id = header.request_id}, {}, bytes, std::move(*loan), {});
  return {};
}

void TcpServed::OnClosed(const Error& /*why*/) {
  loan_ = {};
  own_ = {};
  if (!placed_.empty()) service_->Abandon(std::exchange(placed_, {}));
}

}  // namespace kvcfs::rdma
