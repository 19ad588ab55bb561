// Memory that peers may read or write, by number.
//
// Numbers: upper half this incarnation's, chosen at random (or given), lower half a counter, so
// that none means memory of an earlier life or of another region. Threads: any. Withdraw waits
// until nobody uses the memory; who borrows must not hold on for long. Fails: kStale no such region
// (any more); kInvalid beyond its end; kDenied to write what is for reading, and to peers of some
// namespaces only: a region has blocks of all.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <span>
#include <unordered_map>

#include "base/mutex.h"
#include "base/result.h"
#include "rdma/transport.h"

namespace kvcfs::rdma {

class Regions {
 public:
  // Keeps a piece of a region from being withdrawn.
  class Loan {
   public:
    Loan() = default;
    Loan(Loan&& other) noexcept;
    Loan& operator=(Loan&& other) noexcept;
    ~Loan();
    std::span<std::byte> span() const { return span_; }

   private:
    friend class Regions;
    Loan(Regions* regions, uint64_t region, std::span<std::byte> span)
        : regions_(regions), region_(region), span_(span) {}
    Regions* regions_ = nullptr;
    uint64_t region_ = 0;
    std::span<std::byte> span_;
  };

  explicit Regions(uint32_t incarnation) : incarnation_(incarnation) {}

  Result<uint64_t> Expose(std::span<std::byte> memory, Access access) KVC_EXCLUDES(mutex_);
  void Withdraw(uint64_t region) KVC_EXCLUDES(mutex_);
  Result<Loan> Borrow(const PeerIdentity& peer, const RemoteSpan& piece, bool to_write)
      KVC_EXCLUDES(mutex_);

 private:
  struct Region {
    std::span<std::byte> memory;
    Access access = Access::kRead;
    uint32_t users = 0;
  };
  void Return(uint64_t region) KVC_EXCLUDES(mutex_);

  const uint32_t incarnation_;
  Mutex mutex_;
  std::condition_variable unused_;
  uint32_t last_ KVC_GUARDED_BY(mutex_) = 0;
  std::unordered_map<uint64_t, Region> regions_ KVC_GUARDED_BY(mutex_);
  // Withdrawn but in use still: by how many.
  std::unordered_map<uint64_t, uint32_t> leaving_ KVC_GUARDED_BY(mutex_);
};

}  // namespace kvcfs::rdma
