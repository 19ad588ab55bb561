// Frames: any bytes, in any pieces; the same frames come out whatever the pieces.
#include <algorithm>
#include <cstring>
#include <span>

#include "rdma/frame_parser.h"
#include "tests/fuzz/fuzz_target.h"

namespace kvcfs {
namespace {

using rdma::Bytes;
using rdma::FrameHeader;
using rdma::FrameKind;

constexpr rdma::FrameLimits kLimits{.head_bytes_max = 1 << 12, .bulk_bytes_max = 1 << 16};

class Sums final : public rdma::FrameSink {
 public:
  Result<std::span<std::byte>> PlaceBulk(const FrameHeader& header,
                                         std::span<const std::byte> head) override {
    KVC_CHECK(head.size() == header.head_bytes && head.size() <= kLimits.head_bytes_max + 4096);
    KVC_CHECK(header.bulk_bytes != 0 && header.bulk_bytes <= kLimits.bulk_bytes_max);
    if (header.request_id % 3 == 0) return std::span<std::byte>();
    place_.assign(header.bulk_bytes, std::byte{0});
    return std::span(place_);
  }
  Status OnFrame(const FrameHeader& header, Bytes head, std::span<std::byte> bulk) override {
    ++frames;
    sum = sum * 31 + header.request_id + head.size() + bulk.size();
    for (const std::byte byte : bulk) sum = sum * 31 + static_cast<uint64_t>(byte);
    return {};
  }
  uint64_t frames = 0, sum = 0;

 private:
  Bytes place_;
};

std::string Frame(FrameHeader header, size_t head, size_t bulk) {
  const Bytes body(head, std::byte{7});
  header.bulk_bytes = static_cast<uint32_t>(bulk);
  const auto bytes = rdma::EncodeHeader(header, body);
  std::string text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  return text + std::string(head, '\7') + std::string(bulk, '\1');
}

}  // namespace

std::vector<std::string> FuzzSeeds() {
  const std::string call = Frame({.kind = FrameKind::kCall, .method = 1, .request_id = 1}, 20, 70);
  const std::string ping = Frame({.kind = FrameKind::kPing}, 0, 0);
  const std::string reply = Frame({.kind = FrameKind::kReply, .request_id = 3}, 5, 100);
  return {ping, call, reply, ping + call + reply,
          Frame({.kind = FrameKind::kRead, .request_id = 4}, rdma::kSpanBytes, 0)};
}

void FuzzOne(std::span<const std::byte> bytes) {
  Sums whole, pieces;
  rdma::FrameParser one(kLimits, &whole), other(kLimits, &pieces);
  const Status first = one.Feed(bytes);
  Status second;
  for (size_t at = 0; at < bytes.size() && second.ok();) {
    const auto target = other.Target();
    KVC_CHECK(!target.empty());
    const size_t piece = std::min(
        {bytes.size() - at, target.size(), size_t{1} + static_cast<size_t>(bytes[at]) % 97});
    std::memcpy(target.data(), bytes.data() + at, piece);
    second = other.Advance(piece);
    at += piece;
  }
  KVC_CHECK(first.ok() == second.ok());
  KVC_CHECK(whole.frames == pieces.frames && whole.sum == pieces.sum);
}

}  // namespace kvcfs
