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
#include <utility>

#include "rdma/tcp_connection.h"

namespace kvcfs::rdma {

// Memory for the bulk of one request, counted.
class OwnBulk {
 public:
  OwnBulk() = default;
  // Not zeroed: it is overwritten at once.
  OwnBulk(std::atomic<uint64_t>* counter, size_t bytes)
      : counter_(counter), bytes_(bytes), memory_(new std::byte[bytes]) {}
  OwnBulk(OwnBulk&& other) noexcept { *this = std::move(other); }
  OwnBulk& operator=(OwnBulk&& other) noexcept {
    std::swap(counter_, other.counter_);
    std::swap(bytes_, other.bytes_);
    std::swap(memory_, other.memory_);
    return *this;
  }
  ~OwnBulk() {
    if (memory_ != nullptr) counter_->fetch_sub(bytes_, std::memory_order_relaxed);
  }
  std::span<std::byte> span() const { return {memory_.get(), bytes_}; }

 private:
  std::atomic<uint64_t>* counter_ = nullptr;
  size_t bytes_ = 0;
  std::unique_ptr<std::byte[]> memory_;
};

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
