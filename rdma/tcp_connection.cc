#include "rdma/tcp_connection.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include <fmt/format.h>
#include <linux/tcp.h>
#include <netinet/in.h>

#include "base/log.h"

namespace kvcfs::rdma {
namespace {

constexpr int kSilentHeartbeats = 4;
constexpr int kHelloHeartbeats = 10;        // a stranger gets so long to say who it is
constexpr size_t kCipherBytes = 256 << 10;  // encrypted at a time
constexpr size_t kPongsMax = 16;            // what is queued before PINGs are not answered

bool WantsRetry(int result) {
  return result == -EINTR || result == -EAGAIN;
}

}  // namespace

Hello TcpShared::OwnHello(bool bulk) const {
  return {.cluster = options.cluster,
          .node = options.self,
          .name = options.name,
          .is_node = options.is_node && options.self.valid(),
          .bulk = bulk,
          .features = kFeatures};
}

TcpConnection::TcpConnection(std::shared_ptr<TcpShared> shared, std::shared_ptr<TcpLoop> loop,
                             bool server, bool bulk, std::string peer_text)
    : shared_(std::move(shared)),
      loop_(std::move(loop)),
      server_(server),
      bulk_(bulk),
      peer_text_(std::move(peer_text)),
      parser_(shared_->Limits(), this),
      lookahead_(std::make_unique<std::byte[]>(kLookahead)) {}

TcpConnection::~TcpConnection() = default;

void TcpConnection::Begin(Fd fd) {
  if (closing_) return;  // stopped before it began
  fd_ = std::move(fd);
  const int on = 1;
  ::setsockopt(fd_.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  began_ = loop_->Now();
  check_at_ = began_ + shared_->options.heartbeat;
  if (shared_->tls != nullptr) tls_ = shared_->tls->NewSession(server_);
  {
    MutexLock lock(send_mutex_);
    open_ = true;
  }
  if (tls_ != nullptr) {
    // Who connected speaks first; the queue's first send takes that along.
    MutexLock lock(send_mutex_);
    const Status begun = tls_->Handshake();
    KVC_CHECK(begun.ok());  // nothing was received that could be wrong
  }
  Enqueue(MakeFrame({.kind = FrameKind::kHello}, EncodeHello(shared_->OwnHello(bulk_))));
  Receive();
}

// ---- out

bool TcpConnection::Enqueue(Outgoing frame) {
  std::vector<Outgoing> gone;
  bool post = false;
  {
    MutexLock lock(send_mutex_);
    if (!open_) return false;
    queued_bytes_.fetch_add(frame.bytes() + kFrameCost, std::memory_order_relaxed);
    queue_.push_back(std::move(frame));
    if (sending_) return true;
    if (loop_->OnThread()) {
      sending_ = true;
      loop_->MarkDirty(this);
      return true;
    }
    if (!SendInline(gone)) sending_ = post = true;
  }
  if (!gone.empty()) Release(std::move(gone));
  if (post) loop_->Post([self = shared_from_this()] { self->Flush(); });
  return true;
}

bool TcpConnection::SendInline(std::vector<Outgoing>& gone) {
  if (tls_ != nullptr || queue_.size() != 1 || queue_.front().bytes() > kInlineBytes) return false;
  const size_t pieces = Gather();
  gathered_ = 0;
  msghdr message{};
  message.msg_iov = pieces_.data();
  message.msg_iovlen = pieces;
  const ssize_t sent = ::sendmsg(fd_.get(), &message, MSG_DONTWAIT | MSG_NOSIGNAL);
  if (sent <= 0) return false;  // the loop meets the same error
  Consume(static_cast<size_t>(sent), gone);
  return queue_.empty();
}

size_t TcpConnection::Gather() {
  size_t count = 0, skip = sent_of_first_;
  gathered_ = 0;
  const auto add = [&](const std::byte* data, size_t bytes) {
    const size_t over = std::min(skip, bytes);
    skip -= over;
    if (over == bytes) return;
    pieces_[count++] = {const_cast<std::byte*>(data) + over, bytes - over};
  };
  for (const Outgoing& frame : queue_) {
    if (count + 3 > kPieces) break;
    add(frame.header.data(), frame.header.size());
    add(frame.head.data(), frame.head.size());
    add(frame.bulk.data(), frame.bulk.size());
    ++gathered_;
  }
  return count;
}

// Frames are free as soon as they are encrypted.
size_t TcpConnection::GatherTls(std::vector<Outgoing>& gone) {
  if (cipher_sent_ == cipher_.size()) {
    cipher_.clear();
    cipher_sent_ = 0;
    while (tls_->ready() && cipher_.size() < kCipherBytes && Gather() != 0) {
      const iovec& piece = pieces_[0];
      const size_t bytes = std::min(piece.iov_len, kCipherBytes);
      const Status written = tls_->Write({static_cast<const std::byte*>(piece.iov_base), bytes});
      if (!written.ok()) break;  // the receiving side meets it, too
      Consume(bytes, gone);
      tls_->TakeOutput(cipher_);
    }
    gathered_ = 0;
    tls_->TakeOutput(cipher_);
  }
  if (cipher_.empty()) return 0;
  pieces_[0] = {cipher_.data() + cipher_sent_, cipher_.size() - cipher_sent_};
  return 1;
}

void TcpConnection::Consume(size_t bytes, std::vector<Outgoing>& gone) {
  sent_of_first_ += bytes;
  while (!queue_.empty() && queue_.front().bytes() <= sent_of_first_) {
    Outgoing& frame = queue_.front();
    sent_of_first_ -= frame.bytes();
    queued_bytes_.fetch_sub(frame.bytes() + kFrameCost, std::memory_order_relaxed);
    shared_->counters.messages_sent.fetch_add(1, std::memory_order_relaxed);
    shared_->counters.bytes_sent.fetch_add(frame.bytes(), std::memory_order_relaxed);
    gone.push_back(std::move(frame));
    queue_.pop_front();
  }
}

void TcpConnection::StartSend(std::vector<Outgoing>& gone) {
  if (!open_ || send_op_.busy()) return;
  const size_t pieces = tls_ != nullptr ? GatherTls(gone) : Gather();
  if (pieces == 0) {
    sending_ = false;
    if (goodbye_ && queue_.empty()) ::shutdown(fd_.get(), SHUT_WR);
    return;
  }
  sending_ = true;
  message_ = {};
  message_.msg_iov = pieces_.data();
  message_.msg_iovlen = pieces;
  loop_->ring().Send(&send_op_, fd_.get(), &message_);
}

void TcpConnection::Flush() {
  std::vector<Outgoing> gone;
  {
    MutexLock lock(send_mutex_);
    StartSend(gone);
  }
  if (!gone.empty()) Release(std::move(gone));
}

void TcpConnection::OnSent(int result, uint32_t /*flags*/) {
  std::vector<Outgoing> gone;
  {
    MutexLock lock(send_mutex_);
    gathered_ = 0;
    if (result > 0) {
      if (tls_ != nullptr) {
        cipher_sent_ += static_cast<size_t>(result);
      } else {
        Consume(static_cast<size_t>(result), gone);
      }
    }
    if (result > 0 || WantsRetry(result)) StartSend(gone);
  }
  if (!gone.empty()) Release(std::move(gone));
  if (result <= 0 && !WantsRetry(result)) {
    Close({Code::kUnavailable, ErrnoError(-result, "send").text});
  }
  Resume();
  EndIfQuiet();
}

void TcpConnection::Release(std::vector<Outgoing> gone) {
  bool calls = false;
  for (const Outgoing& frame : gone) calls |= frame.released != nullptr;
  if (!calls) return;
  if (loop_->OnThread()) {
    for (const Outgoing& frame : gone) {
      if (frame.released != nullptr) frame.released();
    }
    return;
  }
  // In a shared_ptr: a std::function's contents must be copyable.
  auto shared = std::make_shared<std::vector<Outgoing>>(std::move(gone));
  loop_->Post([shared] {
    for (const Outgoing& frame : *shared) {
      if (frame.released != nullptr) frame.released();
    }
  });
}

TcpConnection::Unqueued TcpConnection::Unqueue(uint64_t id) {
  Outgoing taken;
  MutexLock lock(send_mutex_);
  for (size_t i = 0; i < queue_.size(); ++i) {
    if (queue_[i].id != id) continue;
    if (i < gathered_ || (i == 0 && sent_of_first_ != 0)) return Unqueued::kBegun;
    taken = std::move(queue_[i]);
    queued_bytes_.fetch_sub(taken.bytes() + kFrameCost, std::memory_order_relaxed);
    // Not erase: it might move frames that the kernel reads.
    for (size_t j = i + 1; j < queue_.size(); ++j) queue_[j - 1] = std::move(queue_[j]);
    queue_.pop_back();
    return Unqueued::kTaken;
  }
  return Unqueued::kGone;
}

// ---- in

void TcpConnection::Receive() {
  if (closing_ || receive_op_.busy()) return;
  paused_ = Full();
  if (paused_) return;
  TcpRing& ring = loop_->ring();
  if (multishot_) return ring.ReceiveMultishot(&receive_op_, fd_.get());
  receiving_direct_ = tls_ == nullptr && !parser_.idle() && parser_.wanted() > kLookahead;
  if (receiving_direct_) {
    ring.Receive(&receive_op_, fd_.get(), parser_.Target(), true);
  } else {
    ring.Receive(&receive_op_, fd_.get(), {lookahead_.get(), kLookahead}, false);
  }
}

void TcpConnection::OnReceived(int result, uint32_t flags) {
  Status status;
  const auto bytes = static_cast<size_t>(std::max(result, 0));
  shared_->counters.bytes_received.fetch_add(bytes, std::memory_order_relaxed);
  const bool dropping = std::exchange(drop_bulk_, false);
  const bool pausing = pausing_;
  if (!receive_op_.busy()) pausing_ = false;
  if (closing_) {
    loop_->ring().Recycle(flags);
  } else if (receiving_direct_) {
    receiving_direct_ = false;
    if (bytes != 0) status = parser_.Advance(bytes);
    if (dropping && parser_.receiving_bulk()) {
      const uint64_t id = parser_.header().request_id;
      parser_.DropBulk();
      BulkDropped(id);
    }
  } else if (const auto buffer = loop_->ring().Buffer(result, flags); !buffer.empty()) {
    status = Take(buffer);
    loop_->ring().Recycle(flags);
  } else {
    status = Take({lookahead_.get(), bytes});
  }
  Judge(status);
  if (result == 0) {
    Close({Code::kUnavailable, "the peer ended the connection"});
  } else if (result < 0 && !WantsRetry(result) && result != -ENOBUFS &&
             !((dropping || pausing) && result == -ECANCELED)) {
    Close({Code::kUnavailable, ErrnoError(-result, "receive").text});
  }
  if (receive_op_.busy() && !closing_ && !pausing_ && Full()) {
    paused_ = pausing_ = true;
    loop_->ring().Cancel(&receive_op_);
  }
  Receive();
  Resume();
  EndIfQuiet();
}

void TcpConnection::Judge(const Status& status) {
  if (status.ok() || closing_) return;
  shared_->counters.hostile.fetch_add(1, std::memory_order_relaxed);
  KVC_LOG(Warn, "a connection sent what is not allowed", "peer={} reason={}", LogValue(peer_text_),
          LogValue(status.error().text));
  Close(status.error());
}

void TcpConnection::Resume() {
  if (!paused_ || closing_ || Full()) return;
  paused_ = false;
  Judge(Take({}));
  Receive();
}

Status TcpConnection::Take(std::span<const std::byte> bytes) {
  if (tls_ != nullptr) return TakeTls(bytes);
  if (unread_.empty()) {
    KVC_TRY_ASSIGN(const size_t taken, TakeSome(bytes));
    bytes = bytes.subspan(taken);
  }
  unread_.insert(unread_.end(), bytes.begin(), bytes.end());
  if (unread_.empty()) return {};
  KVC_TRY_ASSIGN(const size_t taken, TakeSome(std::span(unread_).subspan(unread_at_)));
  unread_at_ += taken;
  if (unread_at_ == unread_.size()) {
    unread_.clear();
    unread_at_ = 0;
  }
  return {};
}

Result<size_t> TcpConnection::TakeSome(std::span<const std::byte> bytes) {
  size_t taken = 0;
  while (taken < bytes.size() && !closing_) {
    paused_ = Full();
    if (paused_) break;
    const auto target = parser_.Target();
    const size_t piece = std::min(target.size(), bytes.size() - taken);
    std::memcpy(target.data(), bytes.data() + taken, piece);
    KVC_TRY(parser_.Advance(piece));
    taken += piece;
  }
  return taken;
}

Status TcpConnection::TakeTls(std::span<const std::byte> bytes) {
  {
    MutexLock lock(send_mutex_);
    tls_->Feed(bytes);
  }
  for (;;) {
    Result<size_t> read = size_t{0};
    paused_ = Full();
    if (!paused_) {
      MutexLock lock(send_mutex_);
      read = tls_->Read(parser_.Target());
    }
    if (!read.ok() || *read == 0) {
      Flush();  // of the handshake, or what waited for it; an alert says why it failed
      if (!read.ok()) return read.error();
      return {};
    }
    KVC_TRY(parser_.Advance(*read));
    if (closing_) return {};
  }
}

Result<std::span<std::byte>> TcpConnection::PlaceBulk(const FrameHeader& header,
                                                      std::span<const std::byte> head) {
  if (!hello_seen_) return Error{Code::kCorrupt, "bulk before HELLO"};
  if (goodbye_) return std::span<std::byte>();
  return PlaceOf(header, head);
}

Status TcpConnection::OnFrame(const FrameHeader& header, Bytes head, std::span<std::byte> bulk) {
  if (goodbye_ || closing_) return {};
  if (header.kind == FrameKind::kGoodbye) {
    // kCancelled is only ever our own end.
    const bool plain = header.code == Code::kOk || header.code == Code::kCancelled;
    const Code code = plain ? Code::kUnavailable : header.code;
    Close({code,
           fmt::format("{} says: {}", peer_text_,
                       std::string_view(reinterpret_cast<const char*>(head.data()), head.size()))});
    return {};
  }
  if (!hello_seen_) {
    if (header.kind != FrameKind::kHello) {
      return Error{Code::kCorrupt, fmt::format("{} before HELLO", FrameKindName(header.kind))};
    }
    return TakeHello(head);
  }
  switch (header.kind) {
    case FrameKind::kHello:
      return Error{Code::kCorrupt, "a second HELLO"};
    case FrameKind::kPing: {
      {
        MutexLock lock(send_mutex_);
        if (queue_.size() > kPongsMax) return {};  // what waits there says that we are alive
      }
      Enqueue(MakeFrame({.kind = FrameKind::kPong, .request_id = header.request_id}, {}));
      return {};
    }
    case FrameKind::kPong:
      return {};
    default:
      return OnRequest(header, std::move(head), bulk);
  }
}

Status TcpConnection::TakeHello(std::span<const std::byte> head) {
  KVC_TRY_ASSIGN(const Hello hello, DecodeHello(head));
  Status status = CheckHello(shared_->OwnHello(bulk_), hello);
  PeerIdentity identity;
  identity.node = hello.node;
  identity.name = hello.name;
  identity.is_node = hello.is_node;
  if (status.ok() && tls_ != nullptr) {
    MutexLock lock(send_mutex_);
    auto shown = tls_->Identity();
    if (!shown.ok()) {
      status = std::move(shown).error();
    } else if (shown->name != hello.name) {
      status = Error{Code::kDenied, fmt::format("name: HELLO says '{}', the certificate '{}'",
                                                hello.name, shown->name)};
    } else if (hello.is_node && !shown->is_node) {
      status =
          Error{Code::kDenied, fmt::format("role: '{}' is no node by its certificate", hello.name)};
    } else if (!server_ && !shown->is_node) {
      status = Error{Code::kDenied,
                     fmt::format("role: '{}' serves with a client's certificate", hello.name)};
    } else {
      valid_until_ = tls_->ValidUntil();
      identity.all_namespaces = shown->all_namespaces;
      identity.namespaces = std::move(shown->namespaces);
    }
  }
  peer_name_ = hello.name;
  if (status.ok()) {
    hello_seen_ = true;
    if (server_) bulk_ = hello.bulk;
    multishot_ = !bulk_;
    status = OnHello(hello, std::move(identity));
  }
  if (!status.ok()) Refuse(status.error());
  return {};
}

bool TcpConnection::DropBulkOf(uint64_t id) {
  if (!parser_.receiving_bulk() || parser_.header().request_id != id || closing_) return false;
  if (!receiving_direct_) {
    parser_.DropBulk();
    BulkDropped(id);
  } else if (!drop_bulk_) {
    drop_bulk_ = true;
    loop_->ring().Cancel(&receive_op_);
  }
  return true;
}

// ---- life

void TcpConnection::Refuse(const Error& why) {
  shared_->counters.refused.fetch_add(1, std::memory_order_relaxed);
  KVC_LOG(Warn, "a peer is refused", "peer={} name={} reason={}", LogValue(peer_text_),
          LogValue(peer_name_), LogValue(why.text));
  why_ = why;
  goodbye_ = true;
  Enqueue(MakeGoodbye(why));
  check_at_ = loop_->Now() + shared_->options.heartbeat;
}

void TcpConnection::CheckAlive(Millis now) {
  const Millis heartbeat = shared_->options.heartbeat;
  check_at_ = now + heartbeat;
  if (goodbye_) return Close(why_);
  if (hello_seen_ && shared_->WallSeconds() > valid_until_) {
    return Refuse({Code::kDenied, fmt::format("the certificate of '{}' has expired", peer_name_)});
  }
  tcp_info info{};
  socklen_t bytes = sizeof(info);
  if (::getsockopt(fd_.get(), IPPROTO_TCP, TCP_INFO, &info, &bytes) != 0) return;
  bool queued = false;
  {
    MutexLock lock(send_mutex_);
    queued = !queue_.empty() || !cipher_.empty();
  }
  // A stopped process's kernel still acknowledges: that counts only for what does not fit there.
  if (info.tcpi_bytes_received != received_ || (queued && info.tcpi_bytes_acked != acknowledged_)) {
    silent_checks_ = -1;
  }
  received_ = info.tcpi_bytes_received;
  acknowledged_ = info.tcpi_bytes_acked;
  if (++silent_checks_ >= kSilentHeartbeats) {
    return Close({Code::kUnavailable,
                  fmt::format("{} was silent for {} heartbeats", peer_text_, silent_checks_)});
  }
  if (!hello_seen_ && now - began_ >= kHelloHeartbeats * heartbeat) {
    return Close({Code::kUnavailable, fmt::format("{} says no HELLO", peer_text_)});
  }
  if (!server_ && hello_seen_ && !queued) Enqueue(MakeFrame({.kind = FrameKind::kPing}, {}));
}

void TcpConnection::Tick(Millis now) {
  if (!closing_ && fd_.valid() && now >= check_at_) CheckAlive(now);
}

Millis TcpConnection::NextTick() const {
  return told_ ? Millis(0) : check_at_;
}

void TcpConnection::Close(const Error& why) {
  if (closing_) return;
  closing_ = true;
  if (!goodbye_) why_ = why;  // else it stands already
  {
    MutexLock lock(send_mutex_);
    open_ = false;
    if (fd_.valid()) ::shutdown(fd_.get(), SHUT_RDWR);
  }
  if (receive_op_.busy()) loop_->ring().Cancel(&receive_op_);
  if (send_op_.busy()) loop_->ring().Cancel(&send_op_);
  EndIfQuiet();
}

void TcpConnection::EndIfQuiet() {
  if (!closing_ || told_ || receive_op_.busy() || send_op_.busy() || Busy()) return;
  told_ = true;
  std::vector<Outgoing> gone;
  {
    MutexLock lock(send_mutex_);
    for (Outgoing& frame : queue_) gone.push_back(std::move(frame));
    queue_.clear();
    queued_bytes_ = 0;
    fd_.Reset();
  }
  Release(std::move(gone));
  OnClosed(why_);
}

void TcpConnection::Stop() {
  if (closing_) return;
  {
    // Best effort: what fits into the socket now.
    const Outgoing goodbye = MakeGoodbye({Code::kUnavailable, "stopping"});
    MutexLock lock(send_mutex_);
    if (open_ && tls_ == nullptr && queue_.empty() && !sending_) {
      iovec pieces[2] = {{const_cast<std::byte*>(goodbye.header.data()), goodbye.header.size()},
                         {const_cast<std::byte*>(goodbye.head.data()), goodbye.head.size()}};
      msghdr message{};
      message.msg_iov = pieces;
      message.msg_iovlen = 2;
      (void)::sendmsg(fd_.get(), &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    }
  }
  Close({Code::kCancelled, "stopping"});
}

bool TcpConnection::CanGo() const {
  return told_;
}

}  // namespace kvcfs::rdma
