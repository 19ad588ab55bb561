// The slots that peers read one-sided: registered in the background, each a region of its own, with
// a header that says so (meta/slot_headers.h).
//
// A slot is read by a call until its header is there, and from Remove on. What peers may still be
// reading by its key stays for a moment after that, so that a READ which has seen the header finds
// the bytes: one that does not costs its queue pair. A slot's file is written before it is added
// and never changed, truncated or punched afterwards. Where locked memory is short, the rest goes
// by calls; it is said once what to raise. Threads: any; one of its own registers, and takes back.
// Add and Remove never wait for it. Memory: a mapping a slot, besides the table; what goes, for
// kStay or until there is too much of it.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <memory>
#include <optional>
#include <thread>
#include <unordered_map>
#include <utility>

#include "base/mutex.h"
#include "iouring/slot_tier.h"
#include "meta/slot_headers.h"
#include "rdma/transport.h"

namespace kvcfs::fs {

class ExposedSlots {
 public:
  // So long after Remove are the bytes there: a READ behind its header takes microseconds.
  static constexpr std::chrono::milliseconds kStay{100};

  explicit ExposedSlots(iouring::SlotTier* slots) : slots_(*slots) {}
  ~ExposedSlots() { Stop(); }
  ExposedSlots(const ExposedSlots&) = delete;
  ExposedSlots& operator=(const ExposedSlots&) = delete;

  void Start(rdma::Transport* transport) KVC_EXCLUDES(mutex_);
  // Everything is withdrawn when it returns; Start may follow.
  void Stop() KVC_EXCLUDES(mutex_);

  // `header`: without region and key. The slot is complete, and stays what it is until Remove. Not
  // started, or too small: nothing.
  void Add(iouring::SlotId slot, const meta::SlotHeader& header) KVC_EXCLUDES(mutex_);
  // Before the slot is freed. One that was not added: nothing.
  void Remove(iouring::SlotId slot) KVC_EXCLUDES(mutex_);

  bool Has(iouring::SlotId slot) KVC_EXCLUDES(mutex_);

  meta::SlotTable table() KVC_EXCLUDES(mutex_);

  struct Counts {
    uint64_t slots = 0, bytes = 0;                  // that are there
    uint64_t waiting_slots = 0, waiting_bytes = 0;  // to be registered
    uint64_t leaving_bytes = 0;
  };
  Counts Count() KVC_EXCLUDES(mutex_);

 private:
  using Clock = std::chrono::steady_clock;
  // A slot's file, mapped: peers read from there, also after the file has lost its name.
  class Mapping {
   public:
    Mapping() = default;
    Mapping(std::byte* data, uint64_t bytes) : data_(data), bytes_(bytes) {}
    Mapping(Mapping&& other) noexcept
        : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
    Mapping& operator=(Mapping&& other) noexcept {
      std::swap(data_, other.data_);
      std::swap(bytes_, other.bytes_);
      return *this;
    }
    ~Mapping();
    std::byte* data() const { return data_; }

   private:
    std::byte* data_ = nullptr;
    uint64_t bytes_ = 0;
  };
  struct Exposed {
    meta::SlotHeader header;
    Mapping mapping;
    std::optional<uint64_t> at;  // its header's; nothing: it waits
    uint64_t number = 0;         // of its Add
    bool begun = false;
  };
  struct Leaving {
    Clock::time_point until;
    Mapping mapping;
    uint64_t region = 0, bytes = 0;
  };
  struct Waiting {
    iouring::SlotId slot = 0;
    uint64_t number = 0;
  };

  void Main() KVC_EXCLUDES(mutex_);
  // Takes back what had its time, or all.
  void TakeBack(bool all, MutexLock& lock) KVC_REQUIRES(mutex_);
  void ExposeNext(MutexLock& lock) KVC_REQUIRES(mutex_);
  // Without the lock: a mapping that peers may read, its region and key in `header`.
  Result<Mapping> Register(iouring::SlotId slot, meta::SlotHeader* header);
  void SayProgress(MutexLock& lock) KVC_REQUIRES(mutex_);

  iouring::SlotTier& slots_;
  rdma::Transport* transport_ = nullptr;  // set before the thread begins
  Mutex mutex_;
  std::condition_variable changed_;
  std::unique_ptr<meta::SlotHeaders> headers_ KVC_GUARDED_BY(mutex_);
  meta::SlotTable table_ KVC_GUARDED_BY(mutex_);
  std::unordered_map<iouring::SlotId, Exposed> exposed_ KVC_GUARDED_BY(mutex_);
  std::deque<Waiting> waiting_ KVC_GUARDED_BY(mutex_);
  std::deque<Leaving> leaving_ KVC_GUARDED_BY(mutex_);
  Counts counts_ KVC_GUARDED_BY(mutex_);
  uint64_t next_number_ KVC_GUARDED_BY(mutex_) = 1;
  uint64_t bytes_max_ KVC_GUARDED_BY(mutex_) = UINT64_MAX;  // while locked memory is short
  Clock::time_point try_more_ KVC_GUARDED_BY(mutex_);
  Clock::time_point said_ KVC_GUARDED_BY(mutex_);
  bool behind_ KVC_GUARDED_BY(mutex_) = false;  // it was said
  bool running_ KVC_GUARDED_BY(mutex_) = false;
  bool stopping_ KVC_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace kvcfs::fs
