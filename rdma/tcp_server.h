// The answering side of a connection: requests to the Service, READs and WRITEs from regions.
//
// Threads: its loop; Reply, any. Memory and failures of calls: served_calls.h.
#pragma once

#include <memory>

#include "rdma/served_calls.h"
#include "rdma/tcp_connection.h"

namespace kvcfs::rdma {

class TcpServed final : public TcpConnection, public ServedCalls::Connection {
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
  void Reply(Outgoing frame) override;
  void Refuse(FrameKind kind, uint64_t id, const Error& why);
  bool Revoked();

  ServedCalls calls_;
  uint64_t looked_up_ = 0;  // at which version of the revoked
  bool revoked_ = false;
  // The WRITE that comes now.
  Regions::Loan loan_;
  Status refused_;  // why it is read over
};

}  // namespace kvcfs::rdma
