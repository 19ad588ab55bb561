#include "rdma/frame_parser.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/crc32c.h"

namespace kvcfs::rdma {

size_t FrameParser::total() const {
  switch (state_) {
    case State::kHeader:
      return kHeaderBytes;
    case State::kHead:
      return header_.head_bytes;
    case State::kBulk:
      return header_.bulk_bytes;
  }
  return 0;
}

std::span<std::byte> FrameParser::Target() {
  if (!ok()) return {};
  switch (state_) {
    case State::kHeader:
      return std::span(header_bytes_).subspan(filled_);
    case State::kHead:
      return std::span(head_).subspan(filled_);
    case State::kBulk:
      break;
  }
  if (!bulk_.empty()) return bulk_.subspan(filled_);
  if (over_ == nullptr) over_ = std::make_unique<std::byte[]>(kOverBytes);
  return {over_.get(), std::min(kOverBytes, wanted())};
}

Status FrameParser::Advance(size_t bytes) {
  if (!ok()) return status_;
  KVC_CHECK(bytes <= wanted());
  filled_ += bytes;
  if (filled_ < total()) return {};
  return Filled();
}

Status FrameParser::Feed(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const std::span<std::byte> target = Target();
    if (target.empty()) return status_;
    const size_t piece = std::min(target.size(), bytes.size());
    std::memcpy(target.data(), bytes.data(), piece);
    bytes = bytes.subspan(piece);
    KVC_TRY(Advance(piece));
  }
  return status_;
}

void FrameParser::DropBulk() {
  if (state_ == State::kBulk) bulk_ = {};
}

Status FrameParser::Filled() {
  filled_ = 0;
  if (state_ == State::kBulk) return Finish();
  if (state_ == State::kHead) return HeadDone();
  auto header = DecodeHeader(header_bytes_, limits_);
  if (!header.ok()) return Fail(std::move(header).error());
  header_ = *header;
  bulk_ = {};
  head_.resize(header_.head_bytes);
  if (header_.head_bytes == 0) return HeadDone();
  state_ = State::kHead;
  return {};
}

Status FrameParser::HeadDone() {
  if (Crc32c(head_) != header_.head_crc) {
    return Fail({Code::kCorrupt, "the checksum of a frame's head is wrong"});
  }
  if (header_.bulk_bytes == 0) return Finish();
  auto place = sink_->PlaceBulk(header_, head_);
  if (!place.ok()) return Fail(std::move(place).error());
  KVC_CHECK(place->empty() || place->size() == header_.bulk_bytes);
  bulk_ = *place;
  state_ = State::kBulk;
  return {};
}

Status FrameParser::Finish() {
  state_ = State::kHeader;
  Status status = sink_->OnFrame(header_, std::exchange(head_, {}), std::exchange(bulk_, {}));
  if (!status.ok()) return Fail(std::move(status).error());
  return {};
}

Status FrameParser::Fail(Error error) {
  status_ = std::move(error);
  return status_;
}

}  // namespace kvcfs::rdma
