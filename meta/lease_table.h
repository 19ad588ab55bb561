// Leases: what exists() promised, the following read finds.
//
// A lease names a block by the hash of its key and lasts until a time. Together they never cover
// more than a number of bytes: at that cap new grants are refused and old ones kept.
// I/O-free; time comes from the caller. Threads: one at a time (the caller's lock).
// Cost: O(1) each; expiry is a wheel of seconds, so what is over is counted at most a second
// longer.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "base/clock.h"

namespace kvcfs::meta {

class LeaseTable {
 public:
  explicit LeaseTable(uint64_t bytes_max);

  // Until when it is leased now: `until`, or later if that was promised before; 0 where the cap
  // refuses it and nothing was promised before.
  Millis Grant(uint64_t hash, uint64_t bytes, Millis now, Millis until);
  bool IsLeased(uint64_t hash, Millis now) const { return Until(hash) > now; }
  Millis Until(uint64_t hash) const;  // 0: never, or over and forgotten
  void Drop(uint64_t hash);           // the block is gone
  void Expire(Millis now);

  uint64_t leased_bytes() const { return leased_bytes_; }
  size_t size() const { return leases_.size(); }
  uint64_t bytes_max() const { return bytes_max_; }

 private:
  // Longer than leases last (30 s and what caches add), so that most are looked at once.
  static constexpr size_t kWheelSeconds = 64;

  struct Lease {
    Millis until{0};
    uint64_t bytes = 0;
  };

  void Enqueue(uint64_t hash, Millis until);

  const uint64_t bytes_max_;
  uint64_t leased_bytes_ = 0;
  std::unordered_map<uint64_t, Lease> leases_;
  // [second modulo size]: what may be over then. Each lease stands in it once; one that was
  // prolonged is put back when its old second comes.
  std::vector<std::vector<uint64_t>> wheel_;
  int64_t next_second_ = 0;  // the first whose bucket was not emptied yet
};

}  // namespace kvcfs::meta
