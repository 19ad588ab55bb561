// How nodes talk: connect, call, one-sided read and write, completions.
//
// One interface, three providers: tcp.h (io_uring, mTLS on every address that is not loopback),
// loopback.h (one process, with faults, and counts under a cost model), verbs.h (RDMA). All promise
// the same:
// - A call is carried out at most once per attempt and answered exactly once: with the peer's
// reply,
//   or with kTimeout (may have happened), kUnavailable (the peer is away; did not or may have
//   happened), kDenied, kStale or kInvalid. Never later than its deadline plus a timer's tick.
// - Calls to one peer may overtake one another. Nothing is sent again by itself.
// - Bulk bytes go straight between the caller's memory and the wire: of a call's `send`, of a
//   reply's into `receive`, of one-sided operations. After the completion, nothing touches them.
// - One-sided reads see bytes as the owner's CPU wrote them, torn at any multiple of 64 B: readers
//   validate versions (meta/remote_layout.h). Regions know no namespaces: a peer whose certificate
//   names some gets kDenied, and asks the service.
// - Everything has a bound: bytes in flight to a peer (kBusy at once beyond it), a frame's length
//   (checked before memory is taken), waiting calls of a server and their bulk (it answers kBusy),
//   answers that a peer does not take (it is not read from), connections.
// Threads: every method from any thread. Completions and Service::Serve run on a thread of the
//   transport, never inside the call that caused them, and must not block.
// Source: DESIGN of the wire: rdma/WIRE.md. The cost model: rdma/cost_model.h.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/result.h"

namespace kvcfs::rdma {

using Bytes = std::vector<std::byte>;

// Made once with the data directory; a node that lost its disk is another node.
struct NodeId {
  uint64_t high = 0;
  uint64_t low = 0;
  bool valid() const { return high != 0 || low != 0; }
  // NOLINTNEXTLINE(modernize-use-nullptr): takes the 0 of <=> for a pointer.
  friend auto operator<=>(const NodeId&, const NodeId&) = default;
};

// What a peer proved of itself: by its certificate, or nothing but its word on loopback addresses.
struct PeerIdentity {
  NodeId node;
  std::string name;
  bool is_node = false;                   // may hold blocks and own shards; else a client
  bool all_namespaces = true;             // else only:
  std::vector<std::string> namespaces{};  // from the certificate

  bool MayUse(std::string_view space) const;
};

// "host:port", "[v6]:port"; for loopback.h any name.
struct Address {
  std::string host;
  uint16_t port = 0;

  static Result<Address> Parse(std::string_view text);
  std::string ToString() const;
  bool IsLoopback() const;  // 127.0.0.0/8, ::1, localhost
  // NOLINTNEXTLINE(modernize-use-nullptr): takes the 0 of <=> for a pointer.
  friend auto operator<=>(const Address&, const Address&) = default;
};

// What a provider wants to know of a peer's region beside its number. Who was told (the owner's
// AwaitKey) says it with the RemoteSpan, and nobody is asked; else it stays zero. Opaque, no
// secret.
struct RegionKey {
  uint64_t address = 0;
  std::array<uint32_t, 4> keys{};  // by the owner's devices
  friend bool operator==(const RegionKey&, const RegionKey&) = default;
};

// Memory of a peer that it exposed. `region` is never used again by that peer's incarnation.
struct RemoteSpan {
  uint64_t region = 0;
  uint64_t offset = 0;
  uint32_t length = 0;
  RegionKey key{};
};

enum class Access : uint8_t { kRead = 1, kReadWrite = 3 };

// A method's number; rdma/WIRE.md lists them. The transport does not look inside of requests.
using Method = uint16_t;

struct Reply {
  Code code = Code::kOk;  // not kOk: `head` is a text for a person
  Bytes head{};
  uint32_t bulk_bytes = 0;  // how much of the caller's `receive` was filled
};
using Completion = std::function<void(Reply)>;

struct CallOptions {
  Millis timeout{1000};
  std::span<const std::byte> send{};  // goes behind the request; stays until completion
  std::span<std::byte> receive{};     // the reply's bulk lands here
};

// One request at a server. Answer exactly once, from any thread; destroyed unanswered:
// kUnavailable.
class Responder {
 public:
  virtual ~Responder() = default;
  virtual const PeerIdentity& peer() const = 0;
  virtual Millis deadline() const = 0;         // of the server's clock; after it nobody listens
  virtual uint32_t receive_bytes() const = 0;  // at most so much bulk may be answered
  // `bulk` must stay until `sent` is called (also when the peer went away).
  virtual void Answer(Bytes head, std::span<const std::byte> bulk = {},
                      std::function<void()> sent = {}) = 0;
  virtual void Refuse(Code code, std::string_view text) = 0;
};

// What a node answers.
class Service {
 public:
  virtual ~Service() = default;
  // `bulk` (the caller's CallOptions::send) is the transport's and goes with the Responder, unless
  // Place gave it a place.
  virtual void Serve(Method method, Bytes request, std::span<std::byte> bulk,
                     std::unique_ptr<Responder> responder) = 0;
  // Where an announced bulk of `bytes` shall land, straight (a slot, say). Empty: the transport
  // takes memory of its own. Good until the Responder of that request answers.
  virtual std::span<std::byte> Place(Method, std::span<const std::byte> /*request*/,
                                     uint32_t /*bytes*/) {
    return {};
  }
  // What Place gave will not come: the connection ended in the middle of it. No Responder follows.
  virtual void Abandon(std::span<std::byte> /*place*/) {}
};

// A peer by its address. Connects when it is first used, and again after errors, with a back-off;
// while it cannot, calls fail with kUnavailable at once.
class Peer {
 public:
  virtual ~Peer() = default;
  virtual void Call(Method method, Bytes request, const CallOptions& options, Completion done) = 0;
  virtual void Read(const RemoteSpan& from, std::span<std::byte> into, Millis timeout,
                    Completion done) = 0;
  virtual void Write(const RemoteSpan& to, std::span<const std::byte> from, Millis timeout,
                     Completion done) = 0;
  // Waits for the completion. Not from a thread of the transport.
  virtual Reply CallAndWait(Method method, Bytes request, const CallOptions& options);
  Reply ReadAndWait(const RemoteSpan& from, std::span<std::byte> into, Millis timeout);
  Reply WriteAndWait(const RemoteSpan& to, std::span<const std::byte> from, Millis timeout);

  virtual bool connected() const = 0;
  virtual std::string provider() const = 0;  // "tcp", "loopback", "verbs"
  // A READ now would not cost the peer's CPU.
  virtual bool reads_past_cpu() const { return false; }
};

struct TransportStats {
  uint64_t calls = 0, reads = 0, writes = 0, messages_sent = 0, bytes_sent = 0, bytes_received = 0;
  uint64_t timeouts = 0, refused = 0, reconnects = 0, hostile_frames = 0;
  uint64_t read_registrations = 0;  // verbs: memory that was registered for one READ
  uint64_t few_receives = 0;        // verbs, times: messages had taken nearly all that are shared
  // What a fabric carries, counted alike by verbs (as it gives work to the device) and loopback; of
  // what goes by TCP nothing is counted here.
  uint64_t device_reads = 0, device_read_bytes = 0;  // one-sided, past the peer's CPU
  uint64_t call_bytes = 0;                           // frames of calls, and of their answers
};

class Transport {
 public:
  virtual ~Transport() = default;  // completes all that is open with kCancelled

  // The address in fact (port 0 chooses one). Any but a loopback address wants TLS in the options.
  virtual Result<Address> Listen(const Address& address, Service* service) = 0;
  // The same Peer for the same address, as long as somebody holds it.
  virtual std::shared_ptr<Peer> Connect(const Address& address) = 0;
  // Lets peers read, or read and write, `memory`, which must stay until Withdraw has returned.
  virtual Result<uint64_t> Expose(std::span<std::byte> memory, Access access) = 0;
  // Waits until peers read the region at its best (verbs: it is registered), and says what they may
  // be told of it. Fails: kStale no such region; kCancelled the transport ends; why it cannot be
  // (kNoSpace: locked memory), and then it is read by way of the owner's CPU.
  virtual Result<RegionKey> AwaitKey(uint64_t /*region*/) { return RegionKey{}; }
  // Waits for who reads or writes it now; not from a thread of the transport.
  virtual void Withdraw(uint64_t region) = 0;
  // Shuts out a node, by what it proved to be: when this returns its queue pairs are gone, and
  // nothing that is written later is read by it; what it asks for is kUnavailable, until Admit.
  // What is being served already is answered. Not from a thread of the transport.
  virtual void Revoke(const NodeId& /*node*/) {}
  virtual void Admit(const NodeId& /*node*/) {}
  // Peers with the same devices may read without this host's CPU.
  virtual bool reads_past_cpu() const { return false; }
  virtual TransportStats Stats() const = 0;
};

// Certificates and keys, PEM files. All three or none. New connections use what they hold then.
struct TlsOptions {
  std::string certificate, key, authority;
  bool given() const { return !authority.empty(); }
};

struct TransportOptions {
  NodeId self;
  std::string name;
  std::string cluster = "kvcfs";  // HELLO refuses another cluster's nodes
  bool is_node = true;
  TlsOptions tls;
  uint32_t threads = 1;                // each with a ring of its own
  uint32_t connections_per_peer = 3;   // one for small frames, the rest for bulk
  uint32_t frame_bytes_max = 1 << 20;  // head of a request or a reply
  uint32_t bulk_bytes_max = 64 << 20;
  uint64_t in_flight_bytes_max = 256 << 20;  // of one peer
  uint32_t serving_max = 4096;               // requests of one connection that wait for answers
  uint64_t unsent_bytes_max = 64 << 20;      // answers of one connection: then it is not read from
  uint64_t serving_bytes_max = 1 << 30;      // own memory for bulk of requests, all connections
  uint32_t connections_max = 16'384;         // accepted ones; who comes then is closed
  uint32_t receives = 512;  // verbs: of messages, 16 KiB each, a device, for all peers (its shared
                            // receive queue); 0: 32 of its own for each peer
  const Clock* clock = nullptr;  // says when certificates expire; null: the system's
  Millis heartbeat{500};         // silence of 4 of them: the connection is dead
};

}  // namespace kvcfs::rdma
