// The answering side of a connection: requests to the Service, READs and WRITEs from regions.
//
// Threads: its loop; a Responder's methods, any.
// Memory: the bulk of a request is the transport's unless the service has a place; it goes with
// the Responder.
// Fails: to the asker: kBusy beyond serving_max requests or in_flight_bytes_max of their bulk, or
// serving_bytes_max of the transport's memory for bulk.
#pragma once

#include <atomic>
#include <memory>

#include "rdma/outgoing.h"
#include "rdma/tcp_connection.h"

namespace kvcfs::rdma {

class TcpServed final : public TcpConnection {
 public:
  TcpServed(std::shared_ptr<TcpShared> shared, std::shared_ptr<TcpLoop> loop, Service* service,
            const std::string& peer_text);
  ~TcpServed() override;
  void Start(Fd fd) { Begin(std::move(fd)); }

 protected:
  Status OnHello(const Hello& hello, PeerIdentity identity) override;
  Status OnRequest(const FrameHeader& header, Bytes head, std::span<std::byte> bulk) override;
  Result<std::span<std::byte>> PlaceOf(const FrameHeader& header,
                                       std::span<const std::byte> head) override;
  void OnClosed(const Error& why) override;

 private:
  friend class TcpResponder;
  void Answer(FrameHeader header, Bytes head, std::span<const std::byte> bulk, Regions::Loan loan,
              const std::function<void()>& sent);
  void Refuse(FrameKind kind, uint64_t id, const Error& why);

  Service* const service_;
  std::shared_ptr<const PeerIdentity> identity_;
  std::atomic<uint32_t> serving_{0};        // calls that are not answered
  std::atomic<uint64_t> serving_bytes_{0};  // of their bulk

  // The bulk that comes now.
  OwnBulk own_;
  std::span<std::byte> placed_;  // by the service
  Regions::Loan loan_;
  Status refused_;  // why it is read over
};

}  // namespace kvcfs::rdma
