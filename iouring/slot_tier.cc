#include "iouring/slot_tier.h"

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "base/log.h"

namespace kvcfs::iouring {
namespace {

constexpr uint64_t kPage = 4096;
constexpr char kIndexName[] = "slots.idx";

struct IndexHeader {
  uint64_t magic;
  uint32_t version;
  uint32_t slot_count;
  uint8_t unused[240];
};
static_assert(sizeof(IndexHeader) == sizeof(SlotRecord));  // it stands where record 0 would

constexpr uint64_t kIndexMagic = 0x3158444954534b56;  // "VKSTIDX1"
constexpr uint32_t kIndexVersion = 1;

uint64_t RoundUp(uint64_t bytes) {
  return (bytes + kPage - 1) / kPage * kPage;
}

// Takes a free record into use. Others may look at its atomics at any time; the rest is plain
// memory.
void BeginMaking(SlotRecord& record, uint64_t reserved_bytes) {
  constexpr size_t kInoAt = offsetof(SlotRecord, ino), kInoEnd = kInoAt + sizeof record.ino;
  static_assert(offsetof(SlotRecord, state) == 0);
  const uint32_t generation = record.generation + 1;
  auto* bytes = reinterpret_cast<std::byte*>(&record);
  std::memset(bytes + sizeof record.state, 0, kInoAt - sizeof record.state);
  record.ino.store(0, std::memory_order_relaxed);
  std::memset(bytes + kInoEnd, 0, sizeof record - kInoEnd);
  record.generation = generation;
  record.reserved_bytes = reserved_bytes;
  record.state.store(SlotState::kMaking, std::memory_order_release);
}

std::string FileName(SlotId slot) {
  return fmt::format("s{:08x}", slot);
}

}  // namespace

Result<std::unique_ptr<SlotTier>> SlotTier::Open(const SlotTierOptions& options) {
  std::unique_ptr<SlotTier> tier(new SlotTier);
  tier->directory_ = options.directory;
  tier->capacity_bytes_ = options.capacity_bytes;
  tier->directory_fd_ = Fd(::open(options.directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!tier->directory_fd_.valid()) return ErrnoError(errno, "open", options.directory);

  // 16 KiB: a tier full of the smallest files that engines write still finds a record each.
  uint64_t count = options.slot_count_max;
  if (count == 0) count = std::clamp<uint64_t>(options.capacity_bytes / (16 << 10), 4096, 4u << 20);

  Fd index(::openat(tier->directory_fd_.get(), kIndexName, O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!index.valid()) return ErrnoError(errno, "open", options.directory + "/" + kIndexName);
  IndexHeader header{};
  const ssize_t got = ::pread(index.get(), &header, sizeof header, 0);
  const bool known = got == sizeof header && header.magic == kIndexMagic &&
                     header.version == kIndexVersion && header.slot_count > 0;
  if (known) {
    // A tier that grew gets more records; one that shrank keeps them until its slots are evicted.
    count = std::max<uint64_t>(count, header.slot_count);
  } else if (got > 0) {
    KVC_LOG(Warn, "slot index is of another version or damaged; the DRAM tier starts empty",
            "directory={}", LogValue(options.directory));
    if (::ftruncate(index.get(), 0) != 0) return ErrnoError(errno, "truncate", kIndexName);
  }
  tier->slot_count_ = static_cast<uint32_t>(count);
  tier->mapped_bytes_ = (count + 1) * sizeof(SlotRecord);
  if (::ftruncate(index.get(), static_cast<off_t>(tier->mapped_bytes_)) != 0) {
    return ErrnoError(errno, "grow", kIndexName);
  }
  void* mapped =
      ::mmap(nullptr, tier->mapped_bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, index.get(), 0);
  if (mapped == MAP_FAILED) return ErrnoError(errno, "map", kIndexName);
  tier->records_ = static_cast<SlotRecord*>(mapped);
  auto* mapped_header = static_cast<IndexHeader*>(mapped);
  mapped_header->magic = kIndexMagic;
  mapped_header->version = kIndexVersion;
  mapped_header->slot_count = tier->slot_count_;

  MutexLock lock(tier->mutex_);
  tier->free_.reserve(count);
  for (SlotId slot = tier->slot_count_; slot > 0; --slot) {
    const bool in_use =
        known && slot <= header.slot_count && tier->records_[slot].state.load() != SlotState::kFree;
    if (in_use) {
      tier->used_bytes_ += tier->records_[slot].reserved_bytes;
      ++tier->used_slots_;
    } else {
      tier->free_.push_back(slot);
    }
  }
  return tier;
}

SlotTier::~SlotTier() {
  if (records_ != nullptr) ::munmap(records_, mapped_bytes_);
}

Result<SlotId> SlotTier::Create(uint64_t reserve_bytes, Fd* file) {
  const uint64_t bytes = RoundUp(reserve_bytes);
  SlotId slot = 0;
  {
    MutexLock lock(mutex_);
    if (used_bytes_ + bytes > capacity_bytes_) {
      return Error{Code::kNoSpace, fmt::format("DRAM tier: {} of {} bytes in use, {} wanted",
                                               used_bytes(), capacity_bytes_, bytes)};
    }
    if (free_.empty()) return Error{Code::kNoSpace, "DRAM tier: the slot table is full"};
    slot = free_.back();
    free_.pop_back();
    used_bytes_ += bytes;
    ++used_slots_;
  }
  BeginMaking(records_[slot], bytes);

  const std::string name = FileName(slot);
  // A file of that name can only be what a crash left between unlink and the record.
  Fd fd(::openat(directory_fd_.get(), name.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  if (!fd.valid()) {
    const Error error = ErrnoError(errno, "create slot", name);
    Free(slot);
    return error;
  }
  if (bytes > 0 && ::fallocate(fd.get(), FALLOC_FL_KEEP_SIZE, 0, static_cast<off_t>(bytes)) != 0) {
    const Error error = ErrnoError(errno, "reserve slot", name);
    Free(slot);
    return error;
  }
  if (file != nullptr) *file = std::move(fd);
  return slot;
}

Result<SlotId> SlotTier::CreateRecord() {
  MutexLock lock(mutex_);
  if (free_.empty()) return Error{Code::kNoSpace, "DRAM tier: the slot table is full"};
  const SlotId slot = free_.back();
  free_.pop_back();
  ++used_slots_;
  BeginMaking(records_[slot], 0);
  return slot;
}

void SlotTier::Free(SlotId slot) {
  SlotRecord& record = records_[slot];
  KVC_CHECK(slot > 0 && slot <= slot_count_ && record.state.load() != SlotState::kFree);
  if (record.state.load() != SlotState::kDiskFile) {  // else there are no bytes here
    ::unlinkat(directory_fd_.get(), FileName(slot).c_str(), 0);
  }
  const uint64_t bytes = record.reserved_bytes;
  record.state.store(SlotState::kFree, std::memory_order_release);
  record.reserved_bytes = 0;
  MutexLock lock(mutex_);
  used_bytes_ -= bytes;
  --used_slots_;
  free_.push_back(slot);
}

Result<Fd> SlotTier::OpenFile(SlotId slot, int flags) const {
  const std::string name = FileName(slot);
  Fd fd(::openat(directory_fd_.get(), name.c_str(), flags | O_CLOEXEC));
  if (!fd.valid()) return ErrnoError(errno, "open slot", name);
  return fd;
}

std::string SlotTier::PathOf(SlotId slot) const {
  return directory_ + "/" + FileName(slot);
}

void SlotTier::SetReserved(SlotId slot, uint64_t bytes) {
  bytes = RoundUp(bytes);
  SlotRecord& record = records_[slot];
  MutexLock lock(mutex_);
  used_bytes_ += bytes - record.reserved_bytes;  // modulo 2^64, so less is fine too
  record.reserved_bytes = bytes;
}

void SlotTier::Trim(SlotId slot, int fd, uint64_t length) {
  const uint64_t keep = RoundUp(length);
  const uint64_t reserved = records_[slot].reserved_bytes;
  if (keep >= reserved) return;
  ::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(keep),
              static_cast<off_t>(reserved - keep));
  SetReserved(slot, keep);
}

void SlotTier::ForEach(const std::function<void(SlotId, SlotRecord&)>& visit) {
  for (SlotId slot = 1; slot <= slot_count_; ++slot) {
    if (records_[slot].state.load(std::memory_order_acquire) != SlotState::kFree) {
      visit(slot, records_[slot]);
    }
  }
}

}  // namespace kvcfs::iouring
