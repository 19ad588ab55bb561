#include "meta/lease_table.h"

#include <algorithm>

namespace kvcfs::meta {

LeaseTable::LeaseTable(uint64_t bytes_max) : bytes_max_(bytes_max), wheel_(kWheelSeconds) {}

void LeaseTable::Enqueue(uint64_t hash, Millis until) {
  // Rounded up: when its second is over, so is the lease. What lies beyond the wheel is looked at
  // once a turn.
  const int64_t second = std::clamp(until.count() / 1000 + 1, next_second_,
                                    next_second_ + static_cast<int64_t>(kWheelSeconds) - 1);
  wheel_[static_cast<size_t>(second) % kWheelSeconds].push_back(hash);
}

Millis LeaseTable::Grant(uint64_t hash, uint64_t bytes, Millis now, Millis until) {
  Expire(now);
  const auto found = leases_.find(hash);
  if (found != leases_.end() && found->second.until > now) {
    Lease& lease = found->second;
    lease.until = std::max(lease.until, until);
    return lease.until;
  }
  if (found == leases_.end()) {
    if (leased_bytes_ + bytes > bytes_max_) return Millis(0);
    leases_.emplace(hash, Lease{until, bytes});
    Enqueue(hash, until);
  } else {
    // Over, but not expired yet: still counted and still in the wheel.
    const uint64_t others = leased_bytes_ - found->second.bytes;
    if (others + bytes > bytes_max_) return Millis(0);
    leased_bytes_ = others;
    found->second = Lease{until, bytes};
  }
  leased_bytes_ += bytes;
  return until;
}

Millis LeaseTable::Until(uint64_t hash) const {
  const auto found = leases_.find(hash);
  return found == leases_.end() ? Millis(0) : found->second.until;
}

void LeaseTable::Drop(uint64_t hash) {
  const auto found = leases_.find(hash);
  if (found == leases_.end()) return;
  leased_bytes_ -= found->second.bytes;
  leases_.erase(found);  // its place in the wheel is met, and ignored, in its second
}

void LeaseTable::Expire(Millis now) {
  const int64_t second = now.count() / 1000;
  if (second < next_second_) return;
  // After a long pause every bucket is due, once.
  int64_t due = std::max(next_second_, second - static_cast<int64_t>(kWheelSeconds) + 1);
  std::vector<uint64_t> over;
  for (; due <= second; ++due) {
    auto& bucket = wheel_[static_cast<size_t>(due) % kWheelSeconds];
    over.insert(over.end(), bucket.begin(), bucket.end());
    bucket.clear();
  }
  next_second_ = second + 1;
  for (const uint64_t hash : over) {
    const auto found = leases_.find(hash);
    if (found == leases_.end()) continue;
    if (found->second.until > now) {
      Enqueue(hash, found->second.until);
      continue;
    }
    leased_bytes_ -= found->second.bytes;
    leases_.erase(found);
  }
}

}  // namespace kvcfs::meta
