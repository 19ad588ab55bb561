#include "rdma/tcp_server.h"

#include <utility>

#include <fmt/format.h>

namespace kvcfs::rdma {

TcpServed::TcpServed(std::shared_ptr<TcpShared> shared, std::shared_ptr<TcpLoop> loop,
                     Service* service, const std::string& peer_text)
    : TcpConnection(std::move(shared), std::move(loop), true, false, peer_text),
      calls_(this, service, this->shared().options, &this->shared().serving_bytes) {
  this->shared().accepted.fetch_add(1, std::memory_order_relaxed);
}

TcpServed::~TcpServed() {
  shared().accepted.fetch_sub(1, std::memory_order_relaxed);
}

Status TcpServed::OnHello(const Hello& /*hello*/, PeerIdentity identity) {
  calls_.SetPeer(std::make_shared<const PeerIdentity>(std::move(identity)));
  if (Revoked()) return RevokedError();
  return {};
}

bool TcpServed::Revoked() {
  const RevokedPeers& revoked = shared().revoked;
  // Once it is, the connection ends.
  if (const uint64_t now = revoked.version(); !revoked_ && now != looked_up_) {
    looked_up_ = now;
    revoked_ = revoked.Has(calls_.peer()->node);
  }
  return revoked_;
}

void TcpServed::Reply(Outgoing frame) {
  const std::function<void()> released = frame.released;
  if (Enqueue(std::move(frame))) return;
  // The peer is gone: nothing will be sent, and the bulk is free, but not inside of this.
  if (released != nullptr && !loop().Post(released)) released();
}

void TcpServed::Refuse(FrameKind kind, uint64_t id, const Error& why) {
  Enqueue(MakeFrame({.kind = kind, .code = why.code, .request_id = id}, TextBytes(why.text)));
}

Result<std::span<std::byte>> TcpServed::PlaceOf(const FrameHeader& header,
                                                std::span<const std::byte> head) {
  if (Revoked()) return std::span<std::byte>();  // it is read over, and then refused
  if (header.kind == FrameKind::kCall) return calls_.Place(header, head);
  if (header.kind != FrameKind::kWrite) {
    return Error{Code::kCorrupt,
                 fmt::format("{} with bulk from who asks", FrameKindName(header.kind))};
  }
  refused_ = {};
  KVC_TRY_ASSIGN(const RemoteSpan place, DecodeSpan(head));
  if (place.length != header.bulk_bytes) {
    return Error{Code::kCorrupt, "a WRITE with another length than its place"};
  }
  auto loan = shared().regions.Borrow(*calls_.peer(), place, true);
  if (!loan.ok()) {
    refused_ = std::move(loan).error();
    return std::span<std::byte>();
  }
  loan_ = std::move(*loan);
  return loan_.span();
}

Status TcpServed::OnRequest(const FrameHeader& header, Bytes head, std::span<std::byte> bulk) {
  const uint64_t id = header.request_id;
  if (Revoked()) {
    loan_ = {};
    calls_.Abandon();
    TcpConnection::Refuse(RevokedError());
    return {};
  }
  switch (header.kind) {
    case FrameKind::kCall:
      calls_.Serve({shared_from_this(), &calls_}, header, std::move(head), bulk, loop().Now());
      return {};
    case FrameKind::kWrite: {
      const Status refused = std::exchange(refused_, {});
      if (!refused.ok()) {
        Refuse(FrameKind::kWriteReply, id, refused.error());
      } else if (bulk.empty()) {
        Refuse(FrameKind::kWriteReply, id, {Code::kInvalid, "a WRITE of nothing"});
      } else {
        loan_ = {};
        Enqueue(MakeFrame({.kind = FrameKind::kWriteReply, .request_id = id}, {}));
      }
      return {};
    }
    case FrameKind::kRead: {
      KVC_TRY_ASSIGN(const RemoteSpan place, DecodeSpan(head));
      auto loan = place.length <= shared().options.bulk_bytes_max
                      ? shared().regions.Borrow(*calls_.peer(), place, false)
                      : Result<Regions::Loan>(Error{Code::kInvalid, "longer than a frame may be"});
      if (!loan.ok()) {
        Refuse(FrameKind::kReadReply, id, loan.error());
        return {};
      }
      Outgoing frame =
          MakeFrame({.kind = FrameKind::kReadReply, .request_id = id}, {}, loan->span());
      frame.loan = std::move(*loan);
      Enqueue(std::move(frame));
      return {};
    }
    default:
      return Error{Code::kCorrupt, fmt::format("{} from who asks", FrameKindName(header.kind))};
  }
}

void TcpServed::OnClosed(const Error& /*why*/) {
  loan_ = {};
  calls_.Abandon();
}

}  // namespace kvcfs::rdma
