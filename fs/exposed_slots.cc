#include "fs/exposed_slots.h"

#include <algorithm>
#include <utility>

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>

#include "base/log.h"
#include "base/metrics.h"

namespace kvcfs::fs {

using iouring::SlotId;

namespace {

// Readers ask for what is smaller by a call.
constexpr uint32_t kBytesMin = 16 << 10;
// A process may have 65,530 mappings unless it was told otherwise; a CopyHolder has as many.
constexpr size_t kSlotsMax = 16'384;
// Of the tier: so much may be locked by slots that are gone already.
constexpr uint64_t kLeavingShare = 32;
constexpr std::chrono::seconds kTryMore{60};
constexpr std::chrono::seconds kSayEvery{5};
// Tables are as long as if slots were so long on average, or they are as long as they may be.
constexpr uint64_t kSlotBytesUsual = 128 << 10;

struct ExposeMetrics {
  static ExposeMetrics& Get() {
    static Metrics& all = Metrics::Get();
    static ExposeMetrics metrics{
        .exposed = all.AddCounter("kvcfs_fs_slots_exposed_total",
                                  "Slots that peers could read one-sided from then on."),
        .withdrawn = all.AddCounter("kvcfs_fs_slots_withdrawn_total",
                                    "Slots that peers could read one-sided until then."),
        .not_exposed = all.AddCounter("kvcfs_fs_slots_not_exposed_total",
                                      "Slots that are read by calls only: no locked memory, "
                                      "mapping or header was left."),
    };
    return metrics;
  }
  Counter& exposed;
  Counter& withdrawn;
  Counter& not_exposed;
};

}  // namespace

ExposedSlots::Mapping::~Mapping() {
  if (data_ != nullptr) ::munmap(data_, bytes_);
}

void ExposedSlots::Start(rdma::Transport* transport) {
  MutexLock lock(mutex_);
  KVC_CHECK(!running_ && transport != nullptr);
  headers_ = std::make_unique<meta::SlotHeaders>(
      std::max<uint64_t>(slots_.capacity_bytes() / kSlotBytesUsual, 1));
  bytes_max_ = UINT64_MAX;
  stopping_ = false;
  running_ = true;
  transport_ = transport;
  thread_ = std::thread([this] { Main(); });
}

void ExposedSlots::Stop() {
  {
    const MutexLock lock(mutex_);
    if (!running_) return;
    stopping_ = true;
    changed_.notify_all();
  }
  thread_.join();
  const MutexLock lock(mutex_);
  running_ = false;
  transport_ = nullptr;
}

void ExposedSlots::Add(SlotId slot, const meta::SlotHeader& header) {
  const MutexLock lock(mutex_);
  if (!running_ || stopping_ || header.length < kBytesMin || exposed_.contains(slot)) return;
  Exposed& added = exposed_[slot];
  added.header = header;
  added.number = next_number_++;
  waiting_.push_back({slot, added.number});
  ++counts_.waiting_slots;
  counts_.waiting_bytes += header.length;
  changed_.notify_all();
}

bool ExposedSlots::Has(SlotId slot) {
  const MutexLock lock(mutex_);
  return exposed_.contains(slot);
}

void ExposedSlots::Remove(SlotId slot) {
  const MutexLock lock(mutex_);
  const auto found = exposed_.find(slot);
  if (found == exposed_.end()) return;
  Exposed gone = std::move(found->second);
  exposed_.erase(found);
  if (!gone.at) {  // who registers it now finds that out
    if (!gone.begun) counts_.waiting_bytes -= gone.header.length;
    return;
  }
  headers_->Remove(*gone.at);
  --counts_.slots;
  counts_.bytes -= gone.header.length;
  counts_.leaving_bytes += gone.header.length;
  leaving_.push_back(
      {Clock::now() + kStay, std::move(gone.mapping), gone.header.region, gone.header.length});
  changed_.notify_all();
}

meta::SlotTable ExposedSlots::table() {
  const MutexLock lock(mutex_);
  return table_;
}

ExposedSlots::Counts ExposedSlots::Count() {
  const MutexLock lock(mutex_);
  return counts_;
}

void ExposedSlots::Main() {
  SetThreadName("copy-expose");
  MutexLock lock(mutex_);
  const std::span<std::byte> memory = headers_->memory();
  lock.native().unlock();
  const Result<uint64_t> region = transport_->Expose(memory, rdma::Access::kRead);
  const Result<rdma::RegionKey> key =
      region.ok() ? transport_->AwaitKey(*region) : Result<rdma::RegionKey>(region.error());
  lock.native().lock();
  if (key.ok()) {
    table_ = {*region, headers_->count()};
  } else {
    KVC_LOG(Warn, "blocks are read by calls, not one-sided", "reason={}",
            LogValue(key.error().text));
  }
  while (!stopping_) {
    TakeBack(false, lock);
    if (table_.headers != 0 && !waiting_.empty()) {
      ExposeNext(lock);
      SayProgress(lock);
    } else if (table_.headers == 0) {
      waiting_.clear();
      changed_.wait(lock.native());
    } else if (leaving_.empty()) {
      changed_.wait(lock.native());
    } else {
      changed_.wait_until(lock.native(), leaving_.front().until);
    }
  }
  table_ = {};
  for (auto& [slot, exposed] : exposed_) {
    if (!exposed.at) continue;
    headers_->Remove(*exposed.at);
    leaving_.push_back({{}, std::move(exposed.mapping), exposed.header.region, 0});
  }
  exposed_.clear();
  waiting_.clear();
  TakeBack(true, lock);
  counts_ = {};
  lock.native().unlock();
  if (region.ok()) transport_->Withdraw(*region);
}

void ExposedSlots::TakeBack(bool all, MutexLock& lock) {
  const auto is_due = [&]() KVC_NO_ANALYSIS {
    return !leaving_.empty() && (all || leaving_.front().until <= Clock::now() ||
                                 counts_.leaving_bytes > slots_.capacity_bytes() / kLeavingShare);
  };
  while (is_due()) {
    std::optional<Leaving> gone(std::move(leaving_.front()));
    leaving_.pop_front();
    counts_.leaving_bytes -= gone->bytes;
    lock.native().unlock();
    transport_->Withdraw(gone->region);
    gone.reset();
    ExposeMetrics::Get().withdrawn.Add();
    lock.native().lock();
  }
}

Result<ExposedSlots::Mapping> ExposedSlots::Register(SlotId slot, meta::SlotHeader* header) {
  // Drivers register only what may be written, also for who may only read.
  KVC_TRY_ASSIGN(const Fd file, slots_.OpenFile(slot, O_RDWR));
  const uint64_t bytes = iouring::RoundUpToPage(header->length);
  void* mapped = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file.get(), 0);
  if (mapped == MAP_FAILED) {
    return Error{Code::kNoSpace, "a slot cannot be mapped; raise vm.max_map_count"};
  }
  Mapping mapping(static_cast<std::byte*>(mapped), bytes);
  KVC_TRY_ASSIGN(header->region,
                 transport_->Expose({mapping.data(), header->length}, rdma::Access::kRead));
  const Result<rdma::RegionKey> key = transport_->AwaitKey(header->region);
  if (!key.ok()) {
    transport_->Withdraw(header->region);
    return key.error();
  }
  header->key = *key;
  return mapping;
}

void ExposedSlots::ExposeNext(MutexLock& lock) {
  const Waiting next = waiting_.front();
  waiting_.pop_front();
  --counts_.waiting_slots;
  const auto is_wanted = [&]() KVC_NO_ANALYSIS {
    const auto found = exposed_.find(next.slot);
    return found != exposed_.end() && found->second.number == next.number ? &found->second
                                                                          : nullptr;
  };
  Exposed* wanted = is_wanted();
  if (wanted == nullptr) return;
  if (Clock::now() >= try_more_) bytes_max_ = UINT64_MAX;
  meta::SlotHeader header = wanted->header;
  counts_.waiting_bytes -= header.length;
  wanted->begun = true;
  const bool fits = counts_.slots < kSlotsMax &&
                    counts_.bytes + counts_.leaving_bytes + header.length <= bytes_max_;
  const uint64_t bytes_before = counts_.bytes + counts_.leaving_bytes;
  Result<Mapping> mapping = Error{Code::kNoSpace, ""};
  if (fits) {
    lock.native().unlock();
    mapping = Register(next.slot, &header);
    lock.native().lock();
    wanted = is_wanted();
    if (!mapping.ok() && mapping.code() != Code::kCancelled && wanted != nullptr) {
      if (bytes_max_ == UINT64_MAX) {
        KVC_LOG(Warn, "a part of the DRAM tier is read by calls, not one-sided",
                "one_sided_bytes={} reason={}", bytes_before, LogValue(mapping.error().text));
      }
      bytes_max_ = bytes_before;
      try_more_ = Clock::now() + kTryMore;
    }
  }
  if (mapping.ok() && wanted != nullptr) wanted->at = headers_->Put(header);
  if (wanted == nullptr || !wanted->at) {
    if (wanted != nullptr) {
      ExposeMetrics::Get().not_exposed.Add();
      exposed_.erase(next.slot);
    }
    if (!mapping.ok()) return;
    lock.native().unlock();
    transport_->Withdraw(header.region);
    lock.native().lock();
    return;
  }
  wanted->header = header;
  wanted->mapping = std::move(*mapping);
  ++counts_.slots;
  counts_.bytes += header.length;
  ExposeMetrics::Get().exposed.Add();
}

void ExposedSlots::SayProgress(MutexLock& lock) {
  if (Clock::now() - said_ < kSayEvery) return;
  said_ = Clock::now();
  // What was written a moment ago is no news; what an earlier process left may take a while.
  if (counts_.waiting_slots == 0 && !behind_) return;
  behind_ = counts_.waiting_slots != 0;
  const Counts counts = counts_;
  lock.native().unlock();
  KVC_LOG(Info, "slots are being registered", "done={} bytes={} waiting={} waiting_bytes={}",
          counts.slots, counts.bytes, counts.waiting_slots, counts.waiting_bytes);
  lock.native().lock();
}

}  // namespace kvcfs::fs
