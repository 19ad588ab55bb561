// The calls of one connection that are being served: how many and how much at a time, where their
// bulk goes, and who answers them. The same for all providers.
//
// Threads: its connection's; a Responder's methods, any.
// Memory: the bulk of a request is the transport's unless the service has a place; it goes with
// the Responder, which also keeps the connection.
// Fails: to the asker: kBusy beyond serving_max calls or in_flight_bytes_max of their bulk, or
// serving_bytes_max of the transport's memory for bulk.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>

#include "rdma/outgoing.h"
#include "rdma/transport.h"

namespace kvcfs::rdma {

class ServedCalls {
 public:
  // Where answers go.
  class Connection {
   public:
    virtual ~Connection() = default;
    // From any thread. Calls `frame.released`, if there is one, even if the peer is gone, but not
    // inside of this.
    virtual void Reply(Outgoing frame) = 0;
  };

  // `serving_bytes` counts the transport's memory for bulk, of all connections.
  ServedCalls(Connection* connection, Service* service, const TransportOptions& options,
              std::atomic<uint64_t>* serving_bytes)
      : connection_(connection),
        service_(service),
        options_(options),
        serving_bytes_of_all_(serving_bytes) {}

  void SetPeer(std::shared_ptr<const PeerIdentity> peer) { peer_ = std::move(peer); }
  const std::shared_ptr<const PeerIdentity>& peer() const { return peer_; }

  // FrameSink's two, of a kCall. `self`: this, kept by whoever owns the connection.
  std::span<std::byte> Place(const FrameHeader& header, std::span<const std::byte> head);
  void Serve(const std::shared_ptr<ServedCalls>& self, const FrameHeader& header, Bytes head,
             std::span<std::byte> bulk, Millis arrived);
  // What was placed will not come any more.
  void Abandon();

 private:
  class Answering;

  Connection* const connection_;
  Service* const service_;
  const TransportOptions& options_;
  std::atomic<uint64_t>* const serving_bytes_of_all_;
  std::shared_ptr<const PeerIdentity> peer_;
  std::atomic<uint32_t> serving_{0};        // that are not answered
  std::atomic<uint64_t> serving_bytes_{0};  // of their bulk

  // The bulk that comes now.
  OwnBulk own_;
  std::span<std::byte> placed_;  // by the service
  Status refused_;               // why it is read over
};

}  // namespace kvcfs::rdma
