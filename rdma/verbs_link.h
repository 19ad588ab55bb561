// One reliable queue pair: frames as a stream of messages, and one-sided READs.
//
// Frames go in messages of at most kMessageBytes, each into a receive that the other side has
// told us of (credits); the last credit is kept for telling of credits. Receives are shared by the
// queue pairs of a device (verbs_buffers.h): who is told of how many depends on how many they are.
// READs and sends of one turn of the loop are one chain, of which the last is signalled.
// Threads: the loop's.
// Memory: a frame's bulk is borrowed until `released`; a VerbsRead's memory until `done`, or until
// OnLinkDown has returned: by then the queue pair is gone, and nothing touches it.
// Fails: any error ends the queue pair; OnLinkDown says why.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <sys/socket.h>

#include "rdma/frame_parser.h"
#include "rdma/outgoing.h"
#include "rdma/verbs_loop.h"

namespace kvcfs::rdma {

using VerbsToken = std::array<std::byte, 16>;

// What both sides say when they connect: librdmacm's private data.
struct VerbsGreeting {
  uint16_t index = 0;  // of the queue pair; 0 carries frames
  VerbsToken token{};  // proves who it is: it was given out over TCP
  uint32_t receives = 0;
  Bytes Encode() const;
  static Result<VerbsGreeting> Decode(std::span<const std::byte> bytes);
};
inline constexpr size_t kGreetingBytes = 32;

struct VerbsRead {
  uint64_t address = 0;
  uint32_t key = 0;
  std::span<std::byte> into;
  uint32_t local_key = 0;
  std::function<void(const Status&)> done{};
};

struct VerbsCounters {
  std::atomic<uint64_t> messages_sent{0}, bytes_sent{0}, bytes_received{0}, hostile{0};
  std::atomic<uint64_t> reads{0}, read_bytes{0}, call_bytes{0};
  std::atomic<uint64_t> read_registrations{0};
};

class VerbsLinkOwner {
 public:
  virtual ~VerbsLinkOwner() = default;
  virtual void OnLinkUp(VerbsLink* link) = 0;
  // Once, if it was connected or tried to.
  virtual void OnLinkDown(VerbsLink* link, const Error& why) = 0;
};

class VerbsLink final : public VerbsEvents, public std::enable_shared_from_this<VerbsLink> {
 public:
  struct Options {
    FrameLimits limits;
    uint64_t unsent_bytes_max = UINT64_MAX;  // beyond it, nothing more is taken from the peer
    VerbsGreeting greeting;
    std::string peer_text;
  };
  // `sink`: null where no frames go.
  VerbsLink(VerbsLoop* loop, VerbsLinkOwner* owner, FrameSink* sink, VerbsCounters* counters,
            Options options);
  ~VerbsLink() override;

  void Connect(const sockaddr_storage& to);
  // Who asks is `theirs`. Takes the id.
  void Accept(rdma_cm_id* id, const rdma_cm_event& request, const VerbsGreeting& theirs);

  void Send(Outgoing frame);
  enum class Unqueued : uint8_t { kTaken, kGone, kBegun };
  Unqueued Unqueue(uint64_t id);
  // The bulk that is being received, if it is of this request, is wanted no more.
  void DropBulkOf(uint64_t id);
  void Read(VerbsRead read);
  // What it does not do yet, and what it waits for.
  size_t reads_waiting() const { return reads_.size() + reads_posted_; }
  void Break(const Error& why);
  // When the message came that a frame is of; it may have waited since.
  Millis arrived() const { return arrived_; }

  bool up() const { return up_ && !down_; }
  bool down() const { return down_; }
  uint16_t index() const { return options_.greeting.index; }
  VerbsDevice* device() const { return device_; }
  size_t device_index() const { return device_index_; }
  const std::string& peer_text() const { return options_.peer_text; }

  void OnConnectEvent(const rdma_cm_event& event) override;
  void OnCompletion(const ibv_wc& done);
  void Flush();

 private:
  struct Work {
    uint64_t sequence = 0;
    bool is_read = false;
    uint32_t buffer = 0;  // of a send
    VerbsRead read{};
  };
  struct Held {
    uint32_t buffer = 0, bytes = 0;
    Millis arrived{0};
    Bytes copy{};  // not empty: the buffer is another's already
  };
  static constexpr uint32_t kInlineBytes = 220;
  static constexpr uint32_t kChain = 32;     // work requests of one doorbell
  static constexpr size_t kPrefixBytes = 8;  // credits u32, bytes of the stream u32

  Status MakeQueuePair();
  Bytes Greeting() const;
  // Receives that the other side may be told of.
  uint32_t Due() const;
  bool MaySend() const;
  void ReturnHeld();
  void DestroyPair();
  void OnEstablished(const rdma_cm_event& event);
  void OnMessage(uint32_t buffer, uint32_t bytes);
  void TakeMessage(const Held& message);
  void LetGoOfReceives();
  void Judge(const Status& status);
  bool Full() const { return queued_bytes_ >= options_.unsent_bytes_max; }
  // How much of the queue is in the buffer now.
  size_t Fill(std::span<std::byte> buffer);
  void DropFirst();
  void Dirty();
  uint64_t WorkId(uint64_t rest) const { return uint64_t{number_} << 40 | rest; }

  VerbsLoop* const loop_;
  VerbsLinkOwner* const owner_;
  VerbsCounters* const counters_;
  const Options options_;
  const bool framed_;
  FrameParser parser_;
  rdma_cm_id* id_ = nullptr;
  VerbsDevice* device_ = nullptr;
  size_t device_index_ = VerbsLoop::kNoDevice;
  uint32_t number_ = 0;
  uint32_t inline_bytes_ = 0;
  bool up_ = false, down_ = false, dirty_ = false, taking_ = false;

  std::shared_ptr<VerbsReceives> receives_;
  std::shared_ptr<VerbsSends> sends_;
  uint32_t sending_ = 0;  // buffers of `sends_`
  Millis arrived_{0};
  std::deque<Held> held_;               // received, and not looked at yet
  uint32_t credits_ = 0, granted_ = 0;  // receives of theirs, and of ours, that may be sent into

  std::deque<Outgoing> queue_;
  uint64_t queued_bytes_ = 0;
  size_t sent_of_first_ = 0;
  std::deque<VerbsRead> reads_;  // not posted yet
  size_t reads_posted_ = 0;
  std::deque<Work> works_;  // posted
  uint64_t sequence_ = 0;
  uint32_t unsignalled_ = 0;
};

}  // namespace kvcfs::rdma
