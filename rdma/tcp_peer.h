// The asking side: a peer's connections, and the calls that wait for its answers.
//
// Threads: Issue, any; all else, the peer's loop. Completions run on the loop.
// Memory: a call's `send` and `receive` are let go of before its completion, whatever happened: a
// call that times out while its bytes are under way takes its frame back, stops the receive, or,
// where half of it was sent already, ends the connection. Fails: kBusy too many bytes or calls in
// flight; kUnavailable (or what the peer said) while it cannot be connected to; kTooLarge; else the
// reply.
#pragma once

#include <atomic>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include <netinet/in.h>

#include "base/mutex.h"
#include "rdma/tcp_channel.h"
#include "rdma/tcp_connection.h"

namespace kvcfs::rdma {

class TcpLink;

class TcpPeerCore final : public LoopMember, public std::enable_shared_from_this<TcpPeerCore> {
 public:
  // `forbidden`: not kOk, if this address may not be connected to.
  TcpPeerCore(std::shared_ptr<TcpShared> shared, std::shared_ptr<TcpLoop> loop, Address address,
              Status forbidden);

  struct Request {
    FrameKind kind = FrameKind::kCall;
    Method method = 0;
    Bytes head;
    std::span<const std::byte> send;
    std::span<std::byte> receive;
    Millis timeout{0};
  };
  void Issue(Request request, Completion done) KVC_EXCLUDES(mutex_);
  bool connected() const { return connected_; }
  // Counts bytes as in flight, unless that would be too many.
  bool Hold(uint64_t bytes);
  void LetGo(uint64_t bytes) { in_flight_bytes_.fetch_sub(bytes); }
  // For who waits.
  TcpChannel& channel() { return channel_; }
  // Nobody holds the peer any more: cancels what is open, and goes.
  void Abandon();

  void Tick(Millis now) override;
  Millis NextTick() const override;
  void Flush() override {}
  void Stop() override;
  bool CanGo() const override;

  // From its links.
  void OnReady(TcpLink* link) KVC_EXCLUDES(mutex_);
  void OnLinkClosed(TcpLink* link, const Error& why) KVC_EXCLUDES(mutex_);
  Result<std::span<std::byte>> PlaceReply(const FrameHeader& header) KVC_EXCLUDES(mutex_);
  Status OnReply(const FrameHeader& header, Bytes head) KVC_EXCLUDES(mutex_);
  void OnBulkDropped(uint64_t id) KVC_EXCLUDES(mutex_);

 private:
  struct Slot {
    uint64_t id = 0;  // 0: free
    FrameKind kind = FrameKind::kCall;
    Millis deadline{0};
    std::span<std::byte> receive;
    uint64_t bytes = 0;
    std::shared_ptr<TcpLink> link;  // null: waits for a connection
    bool send_busy = false;         // `send` is borrowed still
    bool receiving = false;         // so is `receive`
    bool answered = false;          // `reply` waits for the two
    Reply reply;
    Completion done;
  };
  struct Place {
    std::shared_ptr<TcpLink> link;
    bool ready = false;
    uint64_t bytes = 0;  // in flight there
    Millis retry_at{0};
    Millis backoff{0};
  };
  struct Done {
    Completion done;
    Reply reply;
    void operator()() { done(std::move(reply)); }
  };

  Slot* Find(uint64_t id) KVC_REQUIRES(mutex_);
  // Ends a slot, or remembers the answer until its memory is let go of.
  void Answer(Slot& slot, Reply reply, std::vector<Done>& done) KVC_REQUIRES(mutex_);
  Place* Route(uint64_t bytes) KVC_REQUIRES(mutex_);
  void SendOn(Place& place, Slot& slot, Outgoing frame) KVC_REQUIRES(mutex_);
  void Later(Completion done, Reply reply);
  void StartLinks() KVC_EXCLUDES(mutex_);
  void StartLink(size_t index, const sockaddr_storage& address, socklen_t bytes);
  void Resolve();
  void Resolved(const Status& status, const sockaddr_storage& address, socklen_t bytes);
  void FailWaiting(const Error& why, std::vector<Done>& done) KVC_REQUIRES(mutex_);
  void Expire(Millis now);
  void End(Code code);
  static void Run(std::vector<Done>& done);

  const std::shared_ptr<TcpShared> shared_;
  const std::shared_ptr<TcpLoop> loop_;
  const Address address_;
  const Status forbidden_;
  TcpChannel channel_;
  std::atomic<bool> connected_{false};
  std::atomic<uint64_t> in_flight_bytes_{0};

  mutable Mutex mutex_;
  bool started_ KVC_GUARDED_BY(mutex_) = false;
  bool ended_ KVC_GUARDED_BY(mutex_) = false;
  bool resolving_ KVC_GUARDED_BY(mutex_) = false;
  bool failing_ KVC_GUARDED_BY(mutex_) = false;  // the last attempt to connect failed
  Error why_ KVC_GUARDED_BY(mutex_);
  std::vector<Slot> slots_ KVC_GUARDED_BY(mutex_);
  std::vector<uint32_t> free_ KVC_GUARDED_BY(mutex_);
  uint64_t last_sequence_ KVC_GUARDED_BY(mutex_) = 0;
  std::vector<Place> places_ KVC_GUARDED_BY(mutex_);  // the first for small frames
  std::deque<Outgoing> waiting_ KVC_GUARDED_BY(mutex_);
  Millis earliest_ KVC_GUARDED_BY(mutex_) = Millis::max();
  Millis ping_at_ KVC_GUARDED_BY(mutex_) = Millis(0);
};

// One of a peer's connections.
class TcpLink final : public TcpConnection {
 public:
  TcpLink(std::shared_ptr<TcpShared> shared, std::shared_ptr<TcpLoop> loop,
          std::shared_ptr<TcpPeerCore> core, size_t index, const std::string& peer_text);
  void Start(const sockaddr_storage& address, socklen_t bytes);
  const sockaddr_storage& address() const { return address_; }
  socklen_t address_bytes() const { return address_bytes_; }
  size_t index() const { return index_; }
  bool was_ready() const { return was_ready_; }
  void Tick(Millis now) override;
  Millis NextTick() const override;

 protected:
  Status OnHello(const Hello& hello, PeerIdentity identity) override;
  Status OnRequest(const FrameHeader& header, Bytes head, std::span<std::byte> bulk) override;
  Result<std::span<std::byte>> PlaceOf(const FrameHeader& header,
                                       std::span<const std::byte> head) override;
  void BulkDropped(uint64_t id) override { core_->OnBulkDropped(id); }
  void OnClosed(const Error& why) override;
  bool Busy() const override { return connect_op_.busy(); }

 private:
  void OnConnected(int result, uint32_t flags);

  const std::shared_ptr<TcpPeerCore> core_;
  const size_t index_;
  bool was_ready_ = false;
  Fd connecting_;
  Millis give_up_at_{0};
  sockaddr_storage address_{};
  socklen_t address_bytes_ = 0;
  MethodOp<TcpLink, &TcpLink::OnConnected> connect_op_{this};
};

}  // namespace kvcfs::rdma
