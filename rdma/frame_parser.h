// Takes a stream of bytes apart into frames. No I/O.
//
// Threads: one at a time.   Memory: one head, taken when its length was checked; bulk goes where
// the sink says, so that whoever receives may receive straight into Target(). Fails: kCorrupt,
// kUnsupported, kTooLarge as DecodeHeader; from then on it takes nothing.
#pragma once

#include <cstddef>
#include <memory>
#include <span>

#include "base/result.h"
#include "rdma/wire.h"

namespace kvcfs::rdma {

// Who is told of frames.
class FrameSink {
 public:
  virtual ~FrameSink() = default;
  // Header and head are there and bulk follows: where it goes, exactly header.bulk_bytes long.
  // Empty: it is read over. An error ends the stream.
  virtual Result<std::span<std::byte>> PlaceBulk(const FrameHeader& header,
                                                 std::span<const std::byte> head) = 0;
  // All of it is there. `bulk` is what PlaceBulk gave. An error ends the stream.
  virtual Status OnFrame(const FrameHeader& header, Bytes head, std::span<std::byte> bulk) = 0;
};

class FrameParser {
 public:
  FrameParser(const FrameLimits& limits, FrameSink* sink) : limits_(limits), sink_(sink) {}

  // Where the next bytes of the stream belong; never empty while ok(). Fill a beginning of it, then
  // say how much with Advance. Feed does both, for bytes that came to another place.
  std::span<std::byte> Target();
  Status Advance(size_t bytes);
  Status Feed(std::span<const std::byte> bytes);

  // The bulk that is being received now is wanted no more: the rest is read over, and OnFrame gets
  // an empty bulk. No receive into Target() may be under way.
  void DropBulk();
  // Whether Target() is memory that the sink gave, and of which request.
  bool receiving_bulk() const { return state_ == State::kBulk && !bulk_.empty(); }
  const FrameHeader& header() const { return header_; }
  // Between two frames.
  bool idle() const { return state_ == State::kHeader && filled_ == 0; }
  // What is left of the present head or bulk.
  size_t wanted() const { return total() - filled_; }
  bool ok() const { return status_.ok(); }

 private:
  enum class State : uint8_t { kHeader, kHead, kBulk };
  static constexpr size_t kOverBytes = 64 << 10;  // a piece of what is read over

  size_t total() const;
  Status Filled();    // the present part is complete
  Status HeadDone();  // header and head are
  Status Finish();
  Status Fail(Error error);

  FrameLimits limits_;
  FrameSink* sink_;
  State state_ = State::kHeader;
  size_t filled_ = 0;
  HeaderBytes header_bytes_{};
  FrameHeader header_;
  Bytes head_;
  std::span<std::byte> bulk_;
  std::unique_ptr<std::byte[]> over_;
  Status status_;
};

}  // namespace kvcfs::rdma
