// One TCP connection: frames out of a queue, frames in through a parser.
//
// Small frames are sent at once by the thread that has them, where nothing waits before them; what
// is longer, or does not fit into the socket, is sent by the loop in one request for many frames.
// Bulk is received straight into its place; on the connection for small frames bytes come through
// buffers that the kernel fills while we work (multishot).
// Threads: Enqueue and Unqueue, any; all else, its loop's.
// Memory: an Outgoing's bulk is borrowed until it is released; the receiver's place until OnFrame,
// Dropped or Closed.
// Fails: a stream that is no stream of ours, or silent for 4 heartbeats, is closed, counted,
// logged. A server reads nothing more while unsent_bytes_max of answers wait to be sent.
#pragma once

#include <array>
#include <atomic>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <sys/socket.h>
#include <sys/uio.h>

#include "base/fd.h"
#include "base/mutex.h"
#include "rdma/frame_parser.h"
#include "rdma/outgoing.h"
#include "rdma/regions.h"
#include "rdma/revoked_peers.h"
#include "rdma/tcp_loop.h"
#include "rdma/tls_files.h"
#include "rdma/wire.h"

namespace kvcfs::rdma {

// What the connections of a transport share.
struct TcpShared {
  explicit TcpShared(const TransportOptions& given, uint32_t incarnation)
      : options(given), regions(incarnation) {}
  const TransportOptions options;
  Regions regions;
  RevokedPeers revoked;
  std::unique_ptr<TlsFiles> tls;  // null: none was given
  struct Counters {
    std::atomic<uint64_t> calls{0}, reads{0}, writes{0}, messages_sent{0}, bytes_sent{0};
    std::atomic<uint64_t> bytes_received{0}, timeouts{0}, refused{0}, reconnects{0}, hostile{0};
  } counters;
  const SystemClock system_clock{};
  std::atomic<uint64_t> serving_bytes{0};  // memory for bulk of requests
  std::atomic<uint32_t> accepted{0};       // connections

  Hello OwnHello(bool bulk) const;
  int64_t WallSeconds() const {
    return (options.clock != nullptr ? options.clock : &system_clock)->WallNanos() / 1'000'000'000;
  }
  FrameLimits Limits() const {
    return {.head_bytes_max = options.frame_bytes_max, .bulk_bytes_max = options.bulk_bytes_max};
  }
};

class TcpConnection : public LoopMember,
                      public FrameSink,
                      public std::enable_shared_from_this<TcpConnection> {
 public:
  TcpConnection(std::shared_ptr<TcpShared> shared, std::shared_ptr<TcpLoop> loop, bool server,
                bool bulk, std::string peer_text);
  ~TcpConnection() override;

  // False: it is closed; the frame is let go of without `released`.
  bool Enqueue(Outgoing frame) KVC_EXCLUDES(send_mutex_);
  // Takes back the frame of a request. Gone: it was not there, or is sent already.
  enum class Unqueued : uint8_t { kTaken, kGone, kBegun };
  Unqueued Unqueue(uint64_t id) KVC_EXCLUDES(send_mutex_);

  // Stops receiving into the place of the bulk that comes now, if it is of this request; then
  // BulkDropped. False: it is not.
  bool DropBulkOf(uint64_t id);
  void Close(const Error& why);
  bool closed() const { return closing_; }
  const std::string& peer_text() const { return peer_text_; }

  void Tick(Millis now) override;
  Millis NextTick() const override;
  void Flush() override;
  void Stop() override;
  bool CanGo() const override;

 protected:
  // A connected socket: says HELLO, and begins to receive.
  void Begin(Fd fd);
  // Says why, here and to the other side, and ends.
  void Refuse(const Error& why);
  // The other side's HELLO fits ours and its certificate.
  virtual Status OnHello(const Hello& hello, PeerIdentity identity) = 0;
  // Any other frame but PING, PONG, GOODBYE.
  virtual Status OnRequest(const FrameHeader& header, Bytes head, std::span<std::byte> bulk) = 0;
  virtual Result<std::span<std::byte>> PlaceOf(const FrameHeader& header,
                                               std::span<const std::byte> head) = 0;
  virtual void BulkDropped(uint64_t /*id*/) {}
  // Nothing is received or sent any more; once. Memory that was lent to it is free.
  virtual void OnClosed(const Error& why) = 0;
  virtual bool Busy() const { return false; }  // something else than send or receive is in flight

  TcpShared& shared() const { return *shared_; }
  TcpLoop& loop() const { return *loop_; }
  // For who ends it from outside of send and receive.
  void EndIfQuiet();

  Fd fd_;

 private:
  Result<std::span<std::byte>> PlaceBulk(const FrameHeader& header,
                                         std::span<const std::byte> head) final;
  Status OnFrame(const FrameHeader& header, Bytes head, std::span<std::byte> bulk) final;
  Status TakeHello(std::span<const std::byte> head);

  void Receive();
  void OnReceived(int result, uint32_t flags);
  // Bytes of the stream; empty: those that wait. What is not taken now waits.
  Status Take(std::span<const std::byte> bytes);
  Result<size_t> TakeSome(std::span<const std::byte> bytes);
  Status TakeTls(std::span<const std::byte> bytes);

  void OnSent(int result, uint32_t flags);
  void StartSend(std::vector<Outgoing>& gone) KVC_REQUIRES(send_mutex_);
  // Names what goes next in pieces_: how many.
  size_t Gather() KVC_REQUIRES(send_mutex_);
  size_t GatherTls(std::vector<Outgoing>& gone) KVC_REQUIRES(send_mutex_);
  // `bytes` of the queue are gone: lets go of frames that are complete.
  void Consume(size_t bytes, std::vector<Outgoing>& gone) KVC_REQUIRES(send_mutex_);
  // Whether all of the queue is sent.
  bool SendInline(std::vector<Outgoing>& gone) KVC_REQUIRES(send_mutex_);
  // So much waits to be sent that nothing more is read: who does not take its answers asks no more.
  bool Full() const {
    return server_ &&
           queued_bytes_.load(std::memory_order_relaxed) >= shared_->options.unsent_bytes_max;
  }
  // Goes on with what was received, and receives.
  void Resume();
  void Judge(const Status& status);
  // Calls what the frames want called: here on the loop's thread, there otherwise.
  void Release(std::vector<Outgoing> gone);
  void CheckAlive(Millis now);

  static constexpr size_t kPieces = 64;             // iovecs of one send
  static constexpr size_t kLookahead = 16 << 10;    // a receive that may hold a bulk's beginning
  static constexpr size_t kInlineBytes = 16 << 10;  // at most so much is sent by the caller itself
  static constexpr size_t kFrameCost = 256;         // of a frame in the queue, besides its bytes

  const std::shared_ptr<TcpShared> shared_;
  const std::shared_ptr<TcpLoop> loop_;
  const bool server_;
  bool bulk_;
  const std::string peer_text_;

  FrameParser parser_;
  bool hello_seen_ = false;
  std::string peer_name_;  // by its HELLO
  bool multishot_ = false;
  bool receiving_direct_ = false;
  bool drop_bulk_ = false;
  bool paused_ = false;   // because of Full()
  bool pausing_ = false;  // a multishot receive is being cancelled
  Bytes unread_;          // received while Full()
  size_t unread_at_ = 0;
  std::unique_ptr<std::byte[]> lookahead_;
  MethodOp<TcpConnection, &TcpConnection::OnReceived> receive_op_{this};
  MethodOp<TcpConnection, &TcpConnection::OnSent> send_op_{this};

  Mutex send_mutex_;
  std::deque<Outgoing> queue_ KVC_GUARDED_BY(send_mutex_);
  size_t sent_of_first_ KVC_GUARDED_BY(send_mutex_) = 0;
  size_t gathered_ KVC_GUARDED_BY(send_mutex_) = 0;   // frames that the send in flight names
  bool sending_ KVC_GUARDED_BY(send_mutex_) = false;  // the loop has it, or is about to
  bool open_ KVC_GUARDED_BY(send_mutex_) = false;
  std::unique_ptr<TlsSession> tls_;  // its own calls: under send_mutex_
  Bytes cipher_ KVC_GUARDED_BY(send_mutex_);
  size_t cipher_sent_ KVC_GUARDED_BY(send_mutex_) = 0;
  std::atomic<uint64_t> queued_bytes_{0};
  std::array<iovec, kPieces> pieces_{};
  msghdr message_{};

  bool closing_ = false;
  bool told_ = false;                 // OnClosed
  std::atomic<bool> goodbye_{false};  // no more than that is said; then it ends
  Error why_;
  Millis began_{0}, check_at_{0};
  int64_t valid_until_ = INT64_MAX;  // of the other side's certificate, in seconds since 1970
  int silent_checks_ = 0;  // not milliseconds: a thread that comes late is no proof of silence
  uint64_t received_ = 0, acknowledged_ = 0;  // by the kernel, at the last check
};

}  // namespace kvcfs::rdma
