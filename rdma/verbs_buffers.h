// The memory of messages: what queue pairs receive into and send from.
//
// Of a fixed size a device, however many peers there are: receives are posted to a shared receive
// queue, and buffers to send from are lent. Where a device has no such queue, each queue pair has
// receives of its own. Threads: the loop's. Memory: owns what it registers; goes
// after the last queue pair that uses it.
// Fails: kNoSpace locked memory, or the device's own resources.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "rdma/verbs_device.h"

namespace kvcfs::rdma {

class VerbsLink;
class VerbsLoop;

inline constexpr size_t kMessageBytes = 16 << 10;

// Work ids. Upper 24 bits: the number of the link or of the receives; then what it is.
inline constexpr uint64_t kReceiveBit = 1ull << 39;  // a receive; the rest is its buffer
inline constexpr uint64_t kSharedBit = 1ull << 38;   // of a shared receive queue
inline uint32_t NumberOfWork(uint64_t id) {
  return static_cast<uint32_t>(id >> 40);
}
inline uint32_t BufferOfWork(uint64_t id) {
  return static_cast<uint32_t>(id);
}

// Receives, of one queue pair or of many.
class VerbsReceives {
 public:
  // Of at most `count` receives. All are posted.
  static Result<std::shared_ptr<VerbsReceives>> Shared(VerbsLoop* loop, VerbsDevice* device,
                                                       uint32_t count);
  static Result<std::shared_ptr<VerbsReceives>> Own(VerbsDevice* device, ibv_qp* pair,
                                                    uint32_t number);
  ~VerbsReceives();
  VerbsReceives(const VerbsReceives&) = delete;
  VerbsReceives& operator=(const VerbsReceives&) = delete;

  ibv_srq* queue() const { return queue_; }  // null: one queue pair's own
  uint64_t bytes() const { return arena_.size(); }
  // How many a peer may be told of. More than there are may be told of in all: who then sends into
  // none is held up by its device, and sends again.
  uint32_t Share() const;
  void Join() { ++links_; }
  // A queue pair that ends in the middle of a message may take its receive along.
  void Leave() { --links_, ++ended_; }
  // Too many may be gone: new queue pairs get other receives.
  bool worn() const { return ended_ >= count_ / 2; }

  // A message came into it, or will not come.
  void Completed();
  std::span<std::byte> Buffer(uint32_t index);
  // Nobody needs what came into it.
  void Return(uint32_t index) { returned_.push_back(index); }
  Status PostReturned();

 private:
  VerbsReceives(VerbsDevice* device, uint32_t count);
  Status PostAll();

  VerbsDevice* const device_;
  const uint32_t count_;
  VerbsLoop* loop_ = nullptr;
  ibv_srq* queue_ = nullptr;
  ibv_qp* pair_ = nullptr;
  uint64_t work_id_ = 0;  // without the buffer
  std::vector<std::byte> arena_;
  VerbsMemory memory_;
  std::vector<uint32_t> returned_;
  uint32_t posted_ = 0, links_ = 0, ended_ = 0;
};

// Buffers to send from, of all queue pairs of a device.
class VerbsSends {
 public:
  static Result<std::shared_ptr<VerbsSends>> Make(VerbsLoop* loop, VerbsDevice* device,
                                                  uint32_t count);
  VerbsSends(const VerbsSends&) = delete;
  VerbsSends& operator=(const VerbsSends&) = delete;

  void Join() { ++links_; }
  void Leave() { --links_; }
  // How many a queue pair may hold at once.
  uint32_t Share() const;
  // One send of so many asks to be told of its end: until then its buffer, and those of the sends
  // before it, are not free. So few that those of idle queue pairs leave enough for the others.
  uint32_t SignalEvery() const;
  // None: `link` is flushed when there is one.
  std::optional<uint32_t> Take(const std::shared_ptr<VerbsLink>& link);
  void Return(uint32_t index);
  std::span<std::byte> Buffer(uint32_t index) {
    return std::span(arena_).subspan(index * kMessageBytes, kMessageBytes);
  }
  uint32_t local_key() const { return memory_.local_key(); }

 private:
  explicit VerbsSends(VerbsLoop* loop) : loop_(loop) {}

  VerbsLoop* const loop_;
  std::vector<std::byte> arena_;
  VerbsMemory memory_;
  std::vector<uint32_t> free_;
  std::map<const VerbsLink*, std::weak_ptr<VerbsLink>> waiting_;
  uint32_t count_ = 0, links_ = 0;
};

// Registered memory for READs into memory that is not: what is read is copied from it, which takes
// less than to register up to kBytesMax. Of all queue pairs of a device.
class VerbsStaging {
 public:
  static constexpr size_t kBytesMax = 256 << 10;
  static Result<std::shared_ptr<VerbsStaging>> Make(VerbsDevice* device);

  // None: all that are long enough are in use, or none is.
  std::optional<uint32_t> Take(size_t bytes);
  void Return(uint32_t piece);
  std::span<std::byte> Piece(uint32_t piece, size_t bytes);
  uint32_t local_key() const { return memory_.local_key(); }

 private:
  static constexpr size_t kSmallBytes = 16 << 10;
  static constexpr uint32_t kSmall = 64, kLarge = 32;  // 9 MiB; the small ones come first

  std::vector<std::byte> arena_;
  VerbsMemory memory_;
  std::vector<uint32_t> free_small_, free_large_;
};

}  // namespace kvcfs::rdma
