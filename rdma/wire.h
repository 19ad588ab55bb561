// Frames and the bytes of message bodies, as they stand in rdma/WIRE.md. No I/O.
//
// Threads: any; nothing here is shared.   Memory: a Reader borrows what it reads.
// Fails: kCorrupt bytes that are no frame of ours; kUnsupported another version; kTooLarge a length
// beyond the limits, before any memory is taken for it.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "rdma/transport.h"

namespace kvcfs::rdma {

// Numbers are copied as they lie.
static_assert(std::endian::native == std::endian::little);

// Appends fields to the body of a message, little-endian.
class Writer {
 public:
  Writer& U8(uint8_t value) { return Number(value); }
  Writer& U16(uint16_t value) { return Number(value); }
  Writer& U32(uint32_t value) { return Number(value); }
  Writer& U64(uint64_t value) { return Number(value); }
  // As they are: for what has a fixed length, as a key.
  Writer& Raw(std::span<const std::byte> bytes);
  // With their length in front, 32 bits.
  Writer& Sized(std::span<const std::byte> bytes);
  Writer& Text(std::string_view text) { return Sized(std::as_bytes(std::span(text))); }

  size_t size() const { return size_; }
  // Room for so many more, at once.
  void Reserve(size_t bytes) {
    if (size_ + bytes > bytes_.size()) bytes_.resize(size_ + bytes);
  }
  Bytes Take() {
    bytes_.resize(size_);
    size_ = 0;
    return std::move(bytes_);
  }

 private:
  std::byte* Next(size_t bytes) {
    if (bytes > bytes_.size() - size_) Grow(bytes);
    std::byte* const at = bytes_.data() + size_;
    size_ += bytes;
    return at;
  }
  void Grow(size_t bytes);
  template <typename T>
  Writer& Number(T value) {
    std::memcpy(Next(sizeof(T)), &value, sizeof(T));
    return *this;
  }
  Bytes bytes_;      // as long as there is room
  size_t size_ = 0;  // of what is written
};

// Takes them apart again. What is not there reads as zero or empty, and from then on ok() is false:
// read everything, then ask once. Lengths are checked against what is left.
class Reader {
 public:
  // Not inline: g++ 12 sees uninitialized bytes in short strings that are read.
  explicit Reader(std::span<const std::byte> bytes);

  uint8_t U8() { return Number<uint8_t>(); }
  uint16_t U16() { return Number<uint16_t>(); }
  uint32_t U32() { return Number<uint32_t>(); }
  uint64_t U64() { return Number<uint64_t>(); }
  std::span<const std::byte> Raw(size_t bytes) {
    if (bytes > rest_.size()) return Miss();
    const auto taken = rest_.first(bytes);
    rest_ = rest_.subspan(bytes);
    return taken;
  }
  std::span<const std::byte> Sized();
  std::string Text();
  // A count of things that take at least `each` bytes; 0 and not ok() where so many cannot be left.
  uint32_t Count(size_t each);

  bool ok() const { return ok_; }
  size_t left() const { return rest_.size(); }
  // Everything was there and nothing is left over.
  bool Finished() const { return ok_ && rest_.empty(); }

 private:
  std::span<const std::byte> Miss() {
    ok_ = false;
    rest_ = {};
    return {};
  }
  template <typename T>
  T Number() {
    T value{};
    if (sizeof(T) > rest_.size()) {
      (void)Miss();
      return value;
    }
    std::memcpy(&value, rest_.data(), sizeof(T));
    rest_ = rest_.subspan(sizeof(T));
    return value;
  }
  std::span<const std::byte> rest_;  // empty, if not ok
  bool ok_ = true;
};

inline constexpr uint16_t kProtocolMin = 1;
inline constexpr uint16_t kProtocolMax = 1;

enum class FrameKind : uint8_t {
  kHello = 1,
  kPing = 2,
  kPong = 3,
  kCall = 4,
  kReply = 5,
  kRead = 6,
  kReadReply = 7,
  kWrite = 8,
  kWriteReply = 9,
  kGoodbye = 10,
};
std::string_view FrameKindName(FrameKind kind);

// In memory; its bytes are made by Encode and read by DecodeHeader.
struct FrameHeader {
  FrameKind kind = FrameKind::kPing;
  Code code = Code::kOk;     // of replies and of kGoodbye
  uint16_t method = 0;       // of kCall
  uint32_t deadline_ms = 0;  // how long the asker waits from the arrival on
  uint64_t request_id = 0;   // the asker's; a reply repeats it
  uint32_t head_bytes = 0;
  uint32_t bulk_bytes = 0;
  uint32_t receive_bytes = 0;  // of kCall: at most so much bulk may be answered
  uint32_t head_crc = 0;       // CRC32C of the head
  friend bool operator==(const FrameHeader&, const FrameHeader&) = default;
};
inline constexpr size_t kHeaderBytes = 48;
using HeaderBytes = std::array<std::byte, kHeaderBytes>;

struct FrameLimits {
  uint32_t head_bytes_max = 1 << 20;
  uint32_t bulk_bytes_max = 64 << 20;
};

// Fills in length and CRC of `head`.
HeaderBytes EncodeHeader(FrameHeader header, std::span<const std::byte> head);
Result<FrameHeader> DecodeHeader(std::span<const std::byte, kHeaderBytes> bytes,
                                 const FrameLimits& limits);

// The first frame in either direction: who speaks, and what it understands.
struct Hello {
  std::string cluster{};
  NodeId node{};
  std::string name{};
  bool is_node = false;
  bool bulk = false;  // this connection is for large frames
  uint16_t protocol_min = kProtocolMin;
  uint16_t protocol_max = kProtocolMax;
  uint64_t features = 0;           // bits that the speaker understands
  uint64_t features_required = 0;  // bits that it insists on
  friend bool operator==(const Hello&, const Hello&) = default;
};
inline constexpr uint64_t kFeatures = 0;  // none is defined yet
inline constexpr size_t kNameBytesMax = 255;

Bytes EncodeHello(const Hello& hello);
Result<Hello> DecodeHello(std::span<const std::byte> head);
// Whether we may talk with `theirs`; else a text that names what differs, and both values.
Status CheckHello(const Hello& ours, const Hello& theirs);

// The head of kRead and kWrite.
inline constexpr size_t kSpanBytes = 20;
Bytes EncodeSpan(const RemoteSpan& span);
Result<RemoteSpan> DecodeSpan(std::span<const std::byte> head);

}  // namespace kvcfs::rdma
