// Frames on their way out, and memory for the bulk of those that came in: what connections of all
// providers have in common.
//
// Threads: one at a time each.
#pragma once

#include <atomic>
#include <cstddef>
#include <functional>
#include <memory>
#include <span>
#include <string_view>
#include <utility>

#include "rdma/regions.h"
#include "rdma/wire.h"

namespace kvcfs::rdma {

// A frame on its way out.
struct Outgoing {
  HeaderBytes header{};
  Bytes head;
  std::span<const std::byte> bulk;
  Regions::Loan loan;              // if the bulk is of a region
  std::function<void()> released;  // the bulk is free again; on the loop
  uint64_t id = 0;                 // of the request
  Millis expires = Millis::max();  // nobody wants it afterwards; only verbs looks
  size_t bytes() const { return header.size() + head.size() + bulk.size(); }
};

Outgoing MakeFrame(FrameHeader header, Bytes head, std::span<const std::byte> bulk = {});
Outgoing MakeGoodbye(const Error& why);
// A text for a person, as far as a refusal may be long.
Bytes TextBytes(std::string_view text);

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

}  // namespace kvcfs::rdma
