#include "rdma/served_calls.h"

#include <utility>

namespace kvcfs::rdma {

class ServedCalls::Answering final : public Responder {
 public:
  Answering(std::shared_ptr<ServedCalls> calls, const FrameHeader& header, Millis arrived,
            OwnBulk own)
      : calls_(std::move(calls)),
        id_(header.request_id),
        deadline_(arrived + Millis(header.deadline_ms)),
        receive_bytes_(header.receive_bytes),
        bulk_bytes_(header.bulk_bytes),
        own_(std::move(own)) {}

  ~Answering() override {
    if (!answered_) Refuse(Code::kUnavailable, "not answered");
    calls_->serving_bytes_.fetch_sub(bulk_bytes_, std::memory_order_relaxed);
  }

  const PeerIdentity& peer() const override { return *calls_->peer_; }
  Millis deadline() const override { return deadline_; }
  uint32_t receive_bytes() const override { return receive_bytes_; }

  void Answer(Bytes head, std::span<const std::byte> bulk, std::function<void()> sent) override {
    if (bulk.size() > receive_bytes_) {
      Give(Code::kInternal, TextBytes("more bulk than was asked for"), {}, std::move(sent));
    } else if (head.size() > calls_->options_.frame_bytes_max) {
      Give(Code::kTooLarge, TextBytes("the answer is longer than a frame may be"), {},
           std::move(sent));
    } else {
      Give(Code::kOk, std::move(head), bulk, std::move(sent));
    }
  }
  void Refuse(Code code, std::string_view text) override { Give(code, TextBytes(text), {}, {}); }

 private:
  void Give(Code code, Bytes head, std::span<const std::byte> bulk, std::function<void()> sent) {
    KVC_CHECK(!answered_);
    answered_ = true;
    calls_->serving_.fetch_sub(1, std::memory_order_relaxed);
    Outgoing frame = MakeFrame({.kind = FrameKind::kReply, .code = code, .request_id = id_},
                               std::move(head), bulk);
    // Without bulk nothing waits for `sent` but the promise that it is called.
    frame.released = std::move(sent);
    frame.expires = deadline_;
    calls_->connection_->Reply(std::move(frame));
  }

  const std::shared_ptr<ServedCalls> calls_;
  const uint64_t id_;
  const Millis deadline_;
  const uint32_t receive_bytes_, bulk_bytes_;
  const OwnBulk own_;  // goes before the connection, which keeps its counter
  bool answered_ = false;
};

std::span<std::byte> ServedCalls::Place(const FrameHeader& header,
                                        std::span<const std::byte> head) {
  refused_ = {};
  if (serving_.load(std::memory_order_relaxed) >= options_.serving_max ||
      serving_bytes_.load(std::memory_order_relaxed) + header.bulk_bytes >
          options_.in_flight_bytes_max) {
    refused_ = Error{Code::kBusy, "too many requests wait here"};
    return {};
  }
  placed_ = service_->Place(header.method, head, header.bulk_bytes);
  if (!placed_.empty()) {
    KVC_CHECK(placed_.size() == header.bulk_bytes);
    return placed_;
  }
  std::atomic<uint64_t>& all = *serving_bytes_of_all_;
  if (all.fetch_add(header.bulk_bytes, std::memory_order_relaxed) + header.bulk_bytes >
      options_.serving_bytes_max) {
    all.fetch_sub(header.bulk_bytes, std::memory_order_relaxed);
    refused_ = Error{Code::kBusy, "too much bulk waits here"};
    return {};
  }
  own_ = OwnBulk(&all, header.bulk_bytes);
  return own_.span();
}

void ServedCalls::Serve(const std::shared_ptr<ServedCalls>& self, const FrameHeader& header,
                        Bytes head, std::span<std::byte> bulk, Millis arrived) {
  Status status = std::exchange(refused_, {});
  if (status.ok() && bulk.empty() &&
      serving_.load(std::memory_order_relaxed) >= options_.serving_max) {
    status = Error{Code::kBusy, "too many requests wait here"};
  }
  if (!status.ok()) {
    return connection_->Reply(MakeFrame(
        {.kind = FrameKind::kReply, .code = status.code(), .request_id = header.request_id},
        TextBytes(status.error().text)));
  }
  serving_.fetch_add(1, std::memory_order_relaxed);
  serving_bytes_.fetch_add(header.bulk_bytes, std::memory_order_relaxed);
  placed_ = {};
  service_->Serve(
      header.method, std::move(head), bulk,
      std::make_unique<Answering>(self, header, arrived, std::exchange(own_, OwnBulk())));
}

void ServedCalls::Abandon() {
  own_ = {};
  if (!placed_.empty()) service_->Abandon(std::exchange(placed_, {}));
}

}  // namespace kvcfs::rdma
