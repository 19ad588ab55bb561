#include "rdma/wire.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

#include <fmt/format.h>

#include "base/crc32c.h"

namespace kvcfs::rdma {
namespace {

constexpr uint32_t kMagic = 0x5743564b;  // "KVCW"
constexpr uint8_t kHeaderVersion = 1;
constexpr uint32_t kTextBytesMax = 4096;  // of a refusal, of kHello

template <typename T>
void Put(std::byte* at, T value) {
  for (size_t i = 0; i < sizeof(T); ++i) {
    at[i] = static_cast<std::byte>(static_cast<uint64_t>(value) >> (8 * i) & 0xff);
  }
}

template <typename T>
T Get(const std::byte* at) {
  uint64_t value = 0;
  for (size_t i = 0; i < sizeof(T); ++i) value |= static_cast<uint64_t>(at[i]) << (8 * i);
  return static_cast<T>(value);
}

// Places of the header's fields.
enum Place : size_t {
  kAtMagic = 0,
  kAtVersion = 4,
  kAtKind = 5,
  kAtCode = 6,
  kAtZero = 7,
  kAtMethod = 8,
  kAtZero2 = 10,
  kAtDeadline = 12,
  kAtRequest = 16,
  kAtHead = 24,
  kAtBulk = 28,
  kAtReceive = 32,
  kAtHeadCrc = 36,
  kAtZero3 = 40,
  kAtHeaderCrc = 44,
};
static_assert(kAtHeaderCrc + sizeof(uint32_t) == kHeaderBytes);

// How long head and bulk of a kind may be.
struct KindLimits {
  uint32_t head_min = 0;
  uint32_t head_max = 0;
  uint32_t bulk_max = 0;
};

KindLimits LimitsOf(const FrameHeader& header, const FrameLimits& limits) {
  const uint32_t text = std::min(kTextBytesMax, limits.head_bytes_max);
  switch (header.kind) {
    case FrameKind::kHello:
      return {1, kTextBytesMax, 0};
    case FrameKind::kPing:
    case FrameKind::kPong:
      return {0, 0, 0};
    case FrameKind::kCall:
      return {0, limits.head_bytes_max, limits.bulk_bytes_max};
    case FrameKind::kReply:
      if (header.code != Code::kOk) return {0, text, 0};
      return {0, limits.head_bytes_max, limits.bulk_bytes_max};
    case FrameKind::kRead:
      return {kSpanBytes, kSpanBytes, 0};
    case FrameKind::kReadReply:
      if (header.code != Code::kOk) return {0, text, 0};
      return {0, 0, limits.bulk_bytes_max};
    case FrameKind::kWrite:
      return {kSpanBytes, kSpanBytes, limits.bulk_bytes_max};
    case FrameKind::kWriteReply:
    case FrameKind::kGoodbye:
      return {0, text, 0};
  }
  return {1, 0, 0};  // no kind of ours; DecodeHeader has refused it already
}

}  // namespace

void Writer::Grow(size_t bytes) {
  constexpr size_t kLeast = 128;  // most messages are shorter
  bytes_.resize(std::max({kLeast, 2 * bytes_.size(), size_ + bytes}));
}

Writer& Writer::Raw(std::span<const std::byte> bytes) {
  if (!bytes.empty()) std::memcpy(Next(bytes.size()), bytes.data(), bytes.size());
  return *this;
}

Writer& Writer::Sized(std::span<const std::byte> bytes) {
  KVC_CHECK(bytes.size() <= UINT32_MAX);
  return U32(static_cast<uint32_t>(bytes.size())).Raw(bytes);
}

Reader::Reader(std::span<const std::byte> bytes) : rest_(bytes) {}

std::span<const std::byte> Reader::Sized() {
  return Raw(U32());
}

std::string Reader::Text() {
  const auto bytes = Sized();
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

uint32_t Reader::Count(size_t each) {
  const uint32_t count = U32();
  if (each == 0 || count <= rest_.size() / each) return count;
  (void)Miss();
  return 0;
}

std::string_view FrameKindName(FrameKind kind) {
  switch (kind) {
    case FrameKind::kHello:
      return "HELLO";
    case FrameKind::kPing:
      return "PING";
    case FrameKind::kPong:
      return "PONG";
    case FrameKind::kCall:
      return "CALL";
    case FrameKind::kReply:
      return "REPLY";
    case FrameKind::kRead:
      return "READ";
    case FrameKind::kReadReply:
      return "READ_REPLY";
    case FrameKind::kWrite:
      return "WRITE";
    case FrameKind::kWriteReply:
      return "WRITE_REPLY";
    case FrameKind::kGoodbye:
      return "GOODBYE";
  }
  return "?";
}

HeaderBytes EncodeHeader(FrameHeader header, std::span<const std::byte> head) {
  HeaderBytes bytes{};
  KVC_CHECK(head.size() <= UINT32_MAX);
  Put<uint32_t>(&bytes[kAtMagic], kMagic);
  Put<uint8_t>(&bytes[kAtVersion], kHeaderVersion);
  Put<uint8_t>(&bytes[kAtKind], static_cast<uint8_t>(header.kind));
  Put<uint8_t>(&bytes[kAtCode], static_cast<uint8_t>(header.code));
  Put<uint16_t>(&bytes[kAtMethod], header.method);
  Put<uint32_t>(&bytes[kAtDeadline], header.deadline_ms);
  Put<uint64_t>(&bytes[kAtRequest], header.request_id);
  Put<uint32_t>(&bytes[kAtHead], static_cast<uint32_t>(head.size()));
  Put<uint32_t>(&bytes[kAtBulk], header.bulk_bytes);
  Put<uint32_t>(&bytes[kAtReceive], header.receive_bytes);
  Put<uint32_t>(&bytes[kAtHeadCrc], Crc32c(head));
  Put<uint32_t>(&bytes[kAtHeaderCrc], Crc32c(std::span(bytes).first(kAtHeaderCrc)));
  return bytes;
}

Result<FrameHeader> DecodeHeader(std::span<const std::byte, kHeaderBytes> bytes,
                                 const FrameLimits& limits) {
  const std::byte* at = bytes.data();
  if (const auto magic = Get<uint32_t>(at + kAtMagic); magic != kMagic) {
    return Error{Code::kCorrupt, fmt::format("not a frame of kvcfs: it begins with {:#x}", magic)};
  }
  if (const auto version = Get<uint8_t>(at + kAtVersion); version != kHeaderVersion) {
    return Error{Code::kUnsupported,
                 fmt::format("frame version {}, we speak {}", version, kHeaderVersion)};
  }
  if (Get<uint32_t>(at + kAtHeaderCrc) != Crc32c(bytes.first<kAtHeaderCrc>())) {
    return Error{Code::kCorrupt, "the checksum of a frame's header is wrong"};
  }
  const auto kind = Get<uint8_t>(at + kAtKind), code = Get<uint8_t>(at + kAtCode);
  if (kind < static_cast<uint8_t>(FrameKind::kHello) ||
      kind > static_cast<uint8_t>(FrameKind::kGoodbye)) {
    return Error{Code::kCorrupt, fmt::format("frame kind {}", kind)};
  }
  if (code > static_cast<uint8_t>(Code::kDenied)) {
    return Error{Code::kCorrupt, fmt::format("code {} in a frame", code)};
  }
  if (Get<uint8_t>(at + kAtZero) != 0 || Get<uint16_t>(at + kAtZero2) != 0 ||
      Get<uint32_t>(at + kAtZero3) != 0) {
    return Error{Code::kCorrupt, "reserved bytes of a frame are not zero"};
  }
  const FrameHeader header{.kind = static_cast<FrameKind>(kind),
                           .code = static_cast<Code>(code),
                           .method = Get<uint16_t>(at + kAtMethod),
                           .deadline_ms = Get<uint32_t>(at + kAtDeadline),
                           .request_id = Get<uint64_t>(at + kAtRequest),
                           .head_bytes = Get<uint32_t>(at + kAtHead),
                           .bulk_bytes = Get<uint32_t>(at + kAtBulk),
                           .receive_bytes = Get<uint32_t>(at + kAtReceive),
                           .head_crc = Get<uint32_t>(at + kAtHeadCrc)};
  const KindLimits allowed = LimitsOf(header, limits);
  if (header.head_bytes < allowed.head_min || header.head_bytes > allowed.head_max) {
    return Error{Code::kTooLarge, fmt::format("{} with a head of {} bytes; {} to {} are allowed",
                                              FrameKindName(header.kind), header.head_bytes,
                                              allowed.head_min, allowed.head_max)};
  }
  if (header.bulk_bytes > allowed.bulk_max) {
    return Error{Code::kTooLarge,
                 fmt::format("{} with {} bytes of bulk; {} are allowed", FrameKindName(header.kind),
                             header.bulk_bytes, allowed.bulk_max)};
  }
  return header;
}

Bytes EncodeHello(const Hello& hello) {
  Writer out;
  out.Text(hello.cluster).U64(hello.node.high).U64(hello.node.low).Text(hello.name);
  out.U8(hello.is_node ? 1 : 0).U8(hello.bulk ? 1 : 0);
  out.U16(hello.protocol_min).U16(hello.protocol_max);
  out.U64(hello.features).U64(hello.features_required);
  return out.Take();
}

Result<Hello> DecodeHello(std::span<const std::byte> head) {
  Reader in(head);
  Hello hello;
  hello.cluster = in.Text();
  hello.node.high = in.U64();
  hello.node.low = in.U64();
  hello.name = in.Text();
  hello.is_node = in.U8() != 0;
  hello.bulk = in.U8() != 0;
  hello.protocol_min = in.U16();
  hello.protocol_max = in.U16();
  hello.features = in.U64();
  hello.features_required = in.U64();
  // A later protocol may say more behind this: what is left over is not looked at.
  if (!in.ok()) return Error{Code::kCorrupt, "a HELLO that ends too early"};
  if (hello.cluster.size() > kNameBytesMax || hello.name.size() > kNameBytesMax) {
    return Error{Code::kCorrupt, "a HELLO with a name that is too long"};
  }
  return hello;
}

Status CheckHello(const Hello& ours, const Hello& theirs) {
  if (ours.cluster != theirs.cluster) {
    return Error{Code::kDenied, fmt::format("cluster: we are of '{}', the peer is of '{}'",
                                            ours.cluster, theirs.cluster)};
  }
  if (theirs.protocol_min > ours.protocol_max || theirs.protocol_max < ours.protocol_min) {
    return Error{Code::kUnsupported,
                 fmt::format("protocol: we speak {} to {}, the peer {} to {}", ours.protocol_min,
                             ours.protocol_max, theirs.protocol_min, theirs.protocol_max)};
  }
  if (const uint64_t lacking = theirs.features_required & ~ours.features; lacking != 0) {
    return Error{Code::kUnsupported,
                 fmt::format("features: the peer insists on {:#x}, which we lack", lacking)};
  }
  if (const uint64_t lacking = ours.features_required & ~theirs.features; lacking != 0) {
    return Error{Code::kUnsupported,
                 fmt::format("features: we insist on {:#x}, which the peer lacks", lacking)};
  }
  if (!theirs.node.valid() && theirs.is_node) {
    return Error{Code::kDenied, "node id: a node without one"};
  }
  return {};
}

Bytes EncodeSpan(const RemoteSpan& span) {
  Writer out;
  out.U64(span.region).U64(span.offset).U32(span.length);
  return out.Take();
}

Result<RemoteSpan> DecodeSpan(std::span<const std::byte> head) {
  Reader in(head);
  RemoteSpan span;
  span.region = in.U64();
  span.offset = in.U64();
  span.length = in.U32();
  if (!in.Finished()) return Error{Code::kCorrupt, "a place that is not 20 bytes long"};
  return span;
}

}  // namespace kvcfs::rdma
