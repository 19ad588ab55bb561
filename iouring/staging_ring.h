// The writer's registered memory, handed out front to back and round again.
//
// Threads: the writer's only.   Memory: one mapping, page-aligned pieces.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>

#include "iouring/aligned_buffer.h"

namespace kvcfs::iouring {

class StagingRing {
 public:
  explicit StagingRing(uint64_t bytes) : memory_(bytes) {}

  std::span<std::byte> memory() const { return memory_.span(); }

  // Contiguous memory; null while too much is handed out.
  std::byte* Allocate(uint64_t bytes) {
    const uint64_t size = memory_.size();
    if (pieces_.empty()) head_ = 0;
    const uint64_t tail = pieces_.empty() ? 0 : pieces_.front().offset;
    const bool wrapped = !pieces_.empty() && head_ <= tail;  // free: [head, tail)
    if (wrapped) {
      if (tail - head_ < bytes) return nullptr;
    } else if (size - head_ < bytes) {
      if (tail < bytes) return nullptr;  // free: [head, size) and [0, tail)
      head_ = 0;
    }
    pieces_.push_back({.offset = head_, .released = false});
    head_ += bytes;
    return memory_.data() + pieces_.back().offset;
  }

  // In any order; the memory is free again when all older pieces are released too.
  void Release(const std::byte* piece) {
    const auto offset = static_cast<uint64_t>(piece - memory_.data());
    for (Piece& one : pieces_) {
      if (one.offset == offset && !one.released) {
        one.released = true;
        break;
      }
    }
    while (!pieces_.empty() && pieces_.front().released) pieces_.pop_front();
  }

  bool Owns(const std::byte* piece) const {
    return piece >= memory_.data() && piece < memory_.data() + memory_.size();
  }

 private:
  struct Piece {
    uint64_t offset = 0;
    bool released = false;
  };

  AlignedBuffer memory_;
  uint64_t head_ = 0;  // where the next piece begins, if it fits
  std::deque<Piece> pieces_;
};

}  // namespace kvcfs::iouring
