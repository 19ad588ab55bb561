#include "rdma/regions.h"

#include <utility>

#include <fmt/format.h>

namespace kvcfs::rdma {

Regions::Loan::Loan(Loan&& other) noexcept
    : regions_(std::exchange(other.regions_, nullptr)),
      region_(other.region_),
      span_(other.span_) {}

Regions::Loan& Regions::Loan::operator=(Loan&& other) noexcept {
  if (this == &other) return *this;
  if (regions_ != nullptr) regions_->Return(region_);
  regions_ = std::exchange(other.regions_, nullptr);
  region_ = other.region_;
  span_ = other.span_;
  return *this;
}

Regions::Loan::~Loan() {
  if (regions_ != nullptr) regions_->Return(region_);
}

Result<uint64_t> Regions::Expose(std::span<std::byte> memory, Access access) {
  if (memory.empty()) return Error{Code::kInvalid, "a region without memory"};
  MutexLock lock(mutex_);
  if (last_ == UINT32_MAX) return Error{Code::kNoSpace, "no region numbers are left"};
  const uint64_t region = uint64_t{incarnation_} << 32 | ++last_;
  regions_[region] = {.memory = memory, .access = access};
  return region;
}

void Regions::Withdraw(uint64_t number) {
  MutexLock lock(mutex_);
  const auto found = regions_.find(number);
  if (found == regions_.end()) return;
  const auto node = regions_.extract(found);  // nobody finds it from now on
  if (node.mapped().users == 0) return;
  leaving_[number] = node.mapped().users;
  unused_.wait(lock.native(), [&]() KVC_NO_ANALYSIS { return leaving_[number] == 0; });
  leaving_.erase(number);
}

Result<Regions::Loan> Regions::Borrow(const PeerIdentity& peer, const RemoteSpan& piece,
                                      bool to_write) {
  if (!peer.all_namespaces) {
    return Error{Code::kDenied,
                 fmt::format("regions are of all namespaces, '{}' is of some", peer.name)};
  }
  MutexLock lock(mutex_);
  const auto found = regions_.find(piece.region);
  if (found == regions_.end()) {
    return Error{Code::kStale, fmt::format("no region {:#x}", piece.region)};
  }
  Region& region = found->second;
  const uint64_t bytes = region.memory.size();
  if (piece.length == 0 || piece.offset > bytes || piece.length > bytes - piece.offset) {
    return Error{Code::kInvalid, fmt::format("{} bytes at {} of a region of {}", piece.length,
                                             piece.offset, bytes)};
  }
  if (to_write && region.access != Access::kReadWrite) {
    return Error{Code::kDenied, fmt::format("region {:#x} is for reading", piece.region)};
  }
  ++region.users;
  return Loan(this, piece.region, region.memory.subspan(piece.offset, piece.length));
}

void Regions::Return(uint64_t number) {
  MutexLock lock(mutex_);
  if (const auto found = regions_.find(number); found != regions_.end()) {
    --found->second.users;
    return;
  }
  const auto left = leaving_.find(number);
  KVC_CHECK(left != leaving_.end() && left->second != 0);
  if (--left->second == 0) unused_.notify_all();
}

}  // namespace kvcfs::rdma
