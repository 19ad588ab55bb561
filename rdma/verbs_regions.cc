#include "rdma/verbs_regions.h"

#include <algorithm>

#include <fmt/format.h>

#include "base/log.h"

namespace kvcfs::rdma {

VerbsRegions::VerbsRegions(std::vector<ibv_pd*> domains) : domains_(std::move(domains)) {
  thread_ = std::thread([this] { Main(); });
}

VerbsRegions::~VerbsRegions() {
  Clear();
}

void VerbsRegions::Clear() {
  {
    MutexLock lock(mutex_);
    ending_ = true;
    changed_.notify_all();
  }
  if (thread_.joinable()) thread_.join();
  MutexLock lock(mutex_);
  by_address_.clear();
  regions_.clear();
}

void VerbsRegions::Add(uint64_t number, std::span<std::byte> memory) {
  MutexLock lock(mutex_);
  regions_[number].memory = memory;
  waiting_.push_back(number);
  changed_.notify_all();
}

void VerbsRegions::Remove(uint64_t number) {
  std::vector<VerbsMemory> registered;
  {
    MutexLock lock(mutex_);
    const auto found = regions_.find(number);
    if (found == regions_.end()) return;
    found->second.gone = true;
    changed_.wait(lock.native(), [&]() KVC_NO_ANALYSIS { return !regions_[number].busy; });
    registered = std::move(regions_[number].registered);
    const auto at = by_address_.find(regions_[number].memory.data());
    if (at != by_address_.end() && at->second == number) by_address_.erase(at);
    regions_.erase(number);
    std::erase(waiting_, number);
  }
  // Taken back here: a READ that comes now is refused, and one under way is waited for.
}

Result<VerbsRegions::Key> VerbsRegions::Find(uint64_t number, size_t device) {
  MutexLock lock(mutex_);
  const auto found = regions_.find(number);
  if (found == regions_.end() || found->second.gone) {
    return Error{Code::kStale, fmt::format("no region {:#x}", number)};
  }
  const Region& region = found->second;
  KVC_TRY(region.status);
  if (region.registered.empty()) return Error{Code::kBusy, "not registered yet"};
  KVC_CHECK(device < region.registered.size());
  return Key{.address = reinterpret_cast<uint64_t>(region.memory.data()),
             .length = region.memory.size(),
             .key = region.registered[device].remote_key(),
             .device = static_cast<uint8_t>(device)};
}

Result<RegionKey> VerbsRegions::AwaitKey(uint64_t number) {
  MutexLock lock(mutex_);
  for (;;) {
    const auto found = regions_.find(number);
    if (ending_) return Error{Code::kCancelled, "the transport ends"};
    if (found == regions_.end() || found->second.gone) {
      return Error{Code::kStale, fmt::format("no region {:#x}", number)};
    }
    const Region& region = found->second;
    KVC_TRY(region.status);
    if (!region.registered.empty()) {
      RegionKey key{.address = reinterpret_cast<uint64_t>(region.memory.data())};
      const size_t devices = std::min(region.registered.size(), key.keys.size());
      for (size_t i = 0; i < devices; ++i) key.keys[i] = region.registered[i].remote_key();
      return key;
    }
    changed_.wait(lock.native());
  }
}

std::optional<uint32_t> VerbsRegions::LocalKey(size_t device, std::span<std::byte> memory) {
  MutexLock lock(mutex_);
  auto at = by_address_.upper_bound(memory.data());
  if (at == by_address_.begin()) return std::nullopt;
  const Region& region = regions_[std::prev(at)->second];
  if (region.gone || region.registered.empty() ||
      memory.data() + memory.size() > region.memory.data() + region.memory.size()) {
    return std::nullopt;
  }
  return region.registered[device].local_key();
}

void VerbsRegions::Main() {
  SetThreadName("verbs-register");
  MutexLock lock(mutex_);
  for (;;) {
    changed_.wait(lock.native(), [this]() KVC_NO_ANALYSIS { return ending_ || !waiting_.empty(); });
    if (ending_) return;
    const uint64_t number = waiting_.front();
    waiting_.pop_front();
    const auto found = regions_.find(number);
    if (found == regions_.end() || found->second.gone) continue;
    const std::span<std::byte> memory = found->second.memory;
    found->second.busy = true;
    lock.native().unlock();
    std::vector<VerbsMemory> registered;
    Status status;
    for (ibv_pd* domain : domains_) {
      auto one = VerbsMemory::Register(domain, memory, true);
      if (one.ok()) {
        registered.push_back(std::move(*one));
      } else {
        status = std::move(one).error();
        break;
      }
    }
    if (!status.ok()) registered.clear();
    lock.native().lock();
    if (!status.ok() && !failing_) {
      KVC_LOG(Warn, "memory is not registered, peers read it over TCP", "bytes={} reason={}",
              memory.size(), LogValue(status.error().text));
    }
    failing_ = !status.ok();
    Region& region = regions_[number];
    region.busy = false;
    region.registered = std::move(registered);
    region.status = status;
    if (status.ok() && !region.gone) by_address_[memory.data()] = number;
    changed_.notify_all();
  }
}

}  // namespace kvcfs::rdma
