#include "fs/copy_holder.h"

#include <algorithm>
#include <cerrno>
#include <optional>
#include <utility>

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/crc32c.h"
#include "base/log.h"
#include "fs/bytes_io.h"
#include "fs/copy_metrics.h"
#include "fs/namespace_table.h"
#include "iouring/aligned_buffer.h"
#include "meta/block_records.h"

namespace kvcfs::fs {

using iouring::SegmentPlace;
using iouring::SlotId;
using iouring::SlotRecord;
using iouring::SlotState;
using meta::BlockFacts;
using meta::BlockId;
using std::chrono::milliseconds;

namespace {

constexpr uint64_t kGenerationsReserved = 1 << 20;  // at a time, in the MetaStore
// A process may have 65,530 mappings unless it was told otherwise.
constexpr uint64_t kMappedSlotsMax = 32768;
constexpr int kFetchTries = 3;  // reclaim may move the bytes while they are read

Error NotHere() {
  return Error{Code::kNotFound, "no such copy"};
}

}  // namespace

// ---- Slots and their bytes

// What a reader has open: a slot's file, mapped, or memory of its own.
class CopyHolder::Mapping {
 public:
  Mapping(std::byte* data, uint64_t bytes) : data_(data), bytes_(bytes) {}
  explicit Mapping(iouring::AlignedBuffer buffer)
      : buffer_(std::move(buffer)), data_(buffer_.data()) {}
  ~Mapping() {
    if (bytes_ != 0) ::munmap(data_, bytes_);
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  std::byte* data() const { return data_; }

 private:
  iouring::AlignedBuffer buffer_;
  std::byte* data_;
  uint64_t bytes_ = 0;  // mapped by us
};

bool CopyHolder::Map(Copy& copy) {
  if (copy.mapping != nullptr) return true;
  const Result<Fd> file = parts_.slots->OpenFile(copy.slot, O_RDONLY);
  if (!file.ok()) return false;
  const uint64_t bytes = iouring::RoundUpToPage(copy.facts.length);
  void* mapped = ::mmap(nullptr, bytes, PROT_READ, MAP_SHARED, file->get(), 0);
  if (mapped == MAP_FAILED) {
    KVC_LOG(Error, "cannot map a slot; raise vm.max_map_count", "slot={}", copy.slot);
    return false;
  }
  copy.mapping = std::make_shared<Mapping>(static_cast<std::byte*>(mapped), bytes);
  ++mapped_slots_;
  return true;
}

meta::PinnedCopy CopyHolder::Pin(Copy& copy) {
  const std::shared_ptr<Mapping> mapping = copy.mapping;
  if (mapped_slots_ > kMappedSlotsMax) {
    // The reader has it alone; the slot may go under it, its bytes stay until then.
    copy.mapping.reset();
    --mapped_slots_;
  }
  return {{mapping->data(), copy.facts.length}, copy.facts.crc32c, [mapping] {}};
}

void CopyHolder::FreeSlot(Copy& copy) {
  if (copy.slot == 0) return;
  if (copy.mapping != nullptr) {
    copy.mapping.reset();
    --mapped_slots_;
  }
  exposed_.Remove(copy.slot);
  const SlotId slot = std::exchange(copy.slot, 0);
  slots_.erase(slot);
  if (copy.lent) return;
  parts_.resident->Remove(slot);
  const uint32_t pins = std::exchange(copy.pins, 0) + std::exchange(copy.old_pins, 0);
  if (pins > 0) {
    doomed_[slot] = pins;
    return;
  }
  CloseBackingOf(slot);
  parts_.slots->Free(slot);
  parts_.resident->RoomMayBeHad();
}

void CopyHolder::Expose(const CopyKey& key, const Copy& copy) {
  if (copy.slot == 0 || !copy.checked || copy.version == 0) return;
  meta::SlotHeader header;
  header.id = key.first;
  header.generation = key.second;
  header.length = copy.facts.length;
  header.crc32c = copy.facts.crc32c;
  exposed_.Add(copy.slot, header);
}

void CopyHolder::ExposeBy(rdma::Transport* transport) {
  if (transport == nullptr) return exposed_.Stop();
  exposed_.Start(transport);
  const MutexLock lock(mutex_);
  for (const auto& [key, copy] : copies_) Expose(key, copy);
}

Result<SlotId> CopyHolder::MakeSlot(std::span<const std::byte> bytes) {
  Fd file;
  KVC_TRY_ASSIGN(const SlotId slot,
                 parts_.resident->CreateSlot(bytes.size(), options_.room_wait, &file));
  if (const int error = WriteFully(file.get(), 0, bytes); error != 0) {
    parts_.slots->Free(slot);
    return ErrnoError(error, "write slot");
  }
  return slot;
}

void CopyHolder::DescribeSlot(SlotId slot, const BlockFacts& facts, uint64_t generation) {
  SlotRecord& record = parts_.slots->record(slot);
  record.flags = iouring::kSlotCopy;
  record.namespace_id = 0;
  record.ino = 0;
  record.length = facts.length;
  record.version = 0;
  record.key = facts.id.key;
  record.parent = facts.parent;
  record.ordinal = facts.ordinal;
  record.readers = record.writers = 0;
  record.backing_id = 0;
  record.place = {};
  record.crc32c = facts.crc32c;
  record.aux = generation;
  record.state.store(SlotState::kBlock, std::memory_order_release);
}

// ---- The books

Result<uint64_t> CopyHolder::NextGeneration() {
  const MutexLock lock(generation_mutex_);
  if (next_generation_ > generation_limit_) {
    const uint64_t limit = next_generation_ + kGenerationsReserved;
    meta::MetaBatch batch;
    batch.Put(meta::GenerationLimitKey(), meta::EncodeCounter(limit));
    KVC_TRY(parts_.meta->Write(batch, true));
    generation_limit_ = limit;
  }
  return next_generation_++;
}

CopyHolder::Copies::iterator CopyHolder::Insert(const CopyKey& key, Copy copy) {
  used_bytes_ += copy.facts.length;
  space_bytes_[key.first.space] += copy.facts.length;
  if (copy.slot != 0) slots_[copy.slot] = key;
  copy.age = ages_.insert(ages_.end(), key);
  return copies_.insert_or_assign(key, std::move(copy)).first;
}

void CopyHolder::Erase(Copies::iterator at) {
  Copy& copy = at->second;
  EndRelease(copy);
  used_bytes_ -= copy.facts.length;
  const auto space = space_bytes_.find(at->first.first.space);
  space->second -= copy.facts.length;
  if (space->second == 0) space_bytes_.erase(space);
  if (copy.version != 0 && !copy.place.valid()) dirty_bytes_ -= copy.facts.length;
  if (copy.place.valid()) parts_.segments->MarkDead(copy.place, copy.facts.length);
  FreeSlot(copy);
  if (copy.version != 0) DeleteRecord(at->first);
  ages_.erase(copy.age);
  copies_.erase(at);
  changed_.notify_all();
}

void CopyHolder::Touch(Copy& copy) {
  ages_.splice(ages_.end(), ages_, copy.age);
  if (copy.slot != 0) parts_.resident->Touch(copy.slot);
}

CopyHolder::Counts CopyHolder::Count() {
  const MutexLock lock(mutex_);
  return {copies_.size(), used_bytes_, slots_.size(), dirty_bytes_, exposed_.Count()};
}

uint64_t CopyHolder::CountSingle() {
  const MutexLock lock(mutex_);
  return static_cast<uint64_t>(std::count_if(copies_.begin(), copies_.end(), [](const auto& each) {
    return each.second.version != 0 && each.second.facts.replicas < 2;
  }));
}

meta::CopyCapacity CopyHolder::Capacity() {
  const MutexLock lock(mutex_);
  const uint64_t capacity = parts_.segments != nullptr ? parts_.segments->Stats().capacity_bytes
                                                       : parts_.slots->capacity_bytes();
  return {capacity, used_bytes_};
}

// ---- CopyStore

Result<uint64_t> CopyHolder::Accept(const BlockFacts& facts, std::span<const std::byte> bytes) {
  if (bytes.empty() || bytes.size() != facts.length) {
    return Error{Code::kInvalid, "the bytes have not the block's length"};
  }
  if (bytes.size() > parts_.slots->capacity_bytes() / 2) {
    return Error{Code::kTooLarge, "the DRAM tier is too small for such a block"};
  }
  // A second copy of what is here is taken like any other: it is the commit that finds it needless.
  KVC_TRY_ASSIGN(const uint64_t generation, NextGeneration());
  const Result<SlotId> slot = MakeSlot(bytes);
  if (!slot.ok()) {
    if (slot.code() == Code::kNoSpace) CopyMetrics::Get().refused.Add();
    return slot.error();
  }
  DescribeSlot(*slot, facts, generation);
  CopyMetrics::Get().accepted_bytes.Add(static_cast<double>(bytes.size()));
  {
    const MutexLock lock(mutex_);
    Copy copy;
    copy.facts = facts;
    copy.slot = *slot;
    Insert({facts.id, generation}, std::move(copy));
    parts_.resident->Add(*slot, this);  // from now on it may be asked to go
  }
  return generation;
}

void CopyHolder::Mark(const BlockId& id, uint64_t generation, uint64_t version) {
  const CopyKey key{id, generation};
  {
    const MutexLock lock(mutex_);
    const auto at = copies_.find(key);
    if (at == copies_.end()) return;
    Copy& copy = at->second;
    const bool first = copy.version == 0;
    copy.version = version;
    Expose(key, copy);
    if (first && !copy.place.valid()) {
      dirty_bytes_ += copy.facts.length;
      QueueWriteBack(key, options_.writeback_delay);
    }
    PutRecord(key, copy);
  }
  Status written;
  if (options_.wants_durable && options_.wants_durable(id.space)) {
    written = MakeDurable(key);
  } else {
    written = FlushRecords(false);
  }
  if (!written.ok()) {
    KVC_LOG(Error, "a published copy could not be written down; it may be gone after a restart",
            "key={} error={}", id.key.ToHex(), LogValue(written.error().text));
  }
}

void CopyHolder::Free(const BlockId& id, uint64_t generation) {
  const MutexLock lock(mutex_);
  const auto at = copies_.find({id, generation});
  if (at == copies_.end()) return;
  CopyMetrics::Get().freed.Add();
  Erase(at);
}

void CopyHolder::Keep(const BlockId& id, uint64_t generation) {
  const MutexLock lock(mutex_);
  const auto at = copies_.find({id, generation});
  if (at == copies_.end()) return;
  CopyMetrics::Get().kept.Add();
  EndRelease(at->second);
  changed_.notify_all();
  Touch(at->second);  // others are asked for before it is its turn again
  parts_.resident->RoomMayBeHad();
}

void CopyHolder::Used(const std::vector<BlockId>& ids) {
  const MutexLock lock(mutex_);
  for (const BlockId& id : ids) {
    for (auto at = copies_.lower_bound({id, 0}); at != copies_.end() && at->first.first == id;
         ++at) {
      Touch(at->second);
    }
  }
}

Result<meta::PinnedCopy> CopyHolder::Open(const BlockId& id, uint64_t generation, bool may_wait) {
  const CopyKey key{id, generation};
  auto opened = OpenOrFetch(key, may_wait);
  if (opened.code() == Code::kCorrupt) SayLost(key);
  return opened;
}

Result<meta::PinnedCopy> CopyHolder::OpenOrFetch(const CopyKey& key, bool may_wait) {
  MutexLock lock(mutex_);
  KVC_TRY_ASSIGN(const std::shared_ptr<Mapping> own, BringIn(key, may_wait, lock));
  Copy& copy = copies_.at(key);
  Touch(copy);
  if (own != nullptr) {
    return meta::PinnedCopy({own->data(), copy.facts.length}, copy.facts.crc32c, [own] {});
  }
  if (!Map(copy)) return Error{Code::kIo, "a slot cannot be mapped"};
  CopyMetrics::Get().reads_dram.Add();
  return Pin(copy);
}

Result<std::shared_ptr<CopyHolder::Mapping>> CopyHolder::BringIn(const CopyKey& key, bool may_wait,
                                                                 MutexLock& lock) {
  for (;;) {
    auto at = copies_.find(key);
    if (at == copies_.end()) return NotHere();
    Copy& copy = at->second;
    if (copy.slot != 0 && copy.checked) return std::shared_ptr<Mapping>();
    if (!may_wait) return Error{Code::kBusy, "not in memory"};
    if (copy.fetching) {
      changed_.wait(lock.native());
      continue;
    }
    copy.fetching = true;
    auto fetched = Fetch(key, lock);
    at = copies_.find(key);
    if (at != copies_.end()) at->second.fetching = false;
    changed_.notify_all();
    if (at == copies_.end()) return NotHere();
    if (!fetched.ok() || *fetched != nullptr) return fetched;
  }
}

Result<std::shared_ptr<CopyHolder::Mapping>> CopyHolder::Fetch(const CopyKey& key,
                                                               MutexLock& lock) {
  auto at = copies_.find(key);
  const BlockFacts facts = at->second.facts;
  const auto is_right = [&](const std::byte* data) {
    return Crc32c({data, facts.length}) == facts.crc32c;
  };
  if (at->second.slot != 0) {
    // It was here when an earlier process died.
    if (!Map(at->second)) return Error{Code::kIo, "a slot cannot be mapped"};
    const std::shared_ptr<Mapping> mapping = at->second.mapping;
    lock.native().unlock();
    const bool right = is_right(mapping->data());
    lock.native().lock();
    at = copies_.find(key);
    if (at == copies_.end() || right) {
      if (at != copies_.end()) {
        at->second.checked = true;
        Expose(key, at->second);
      }
      return std::shared_ptr<Mapping>();
    }
    if (!at->second.place.valid()) return Error{Code::kCorrupt, "the bytes in DRAM are damaged"};
    FreeSlot(at->second);
    at->second.checked = true;
  }
  SegmentPlace place = at->second.place;
  lock.native().unlock();
  Fd file;
  const Result<SlotId> slot = parts_.resident->CreateSlot(facts.length, options_.room_wait, &file);
  std::shared_ptr<Mapping> mapping;
  const uint64_t bytes = iouring::RoundUpToPage(facts.length);
  if (slot.ok() && ::ftruncate(file.get(), static_cast<off_t>(facts.length)) == 0) {
    void* mapped = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file.get(), 0);
    if (mapped != MAP_FAILED) {
      mapping = std::make_shared<Mapping>(static_cast<std::byte*>(mapped), bytes);
    }
  }
  const bool in_slot = mapping != nullptr;
  if (slot.ok() && !in_slot) parts_.slots->Free(*slot);
  // A full DRAM tier must not hide what is on NVMe.
  if (!in_slot) mapping = std::make_shared<Mapping>(iouring::AlignedBuffer(bytes));
  Status read = Error{Code::kCorrupt, "it is on no tier"};
  for (int tries = 0; tries < kFetchTries && place.valid(); ++tries) {
    iouring::EntryMeta meta;
    meta.kind = iouring::EntryKind::kBlock;
    meta.key = facts.id.key;
    meta.length = facts.length;
    meta.namespace_uuid = UuidOf(facts.id.space);
    read = parts_.segments->Read(place, meta, {mapping->data(), bytes});
    if (read.ok()) break;
    lock.native().lock();
    const auto now = copies_.find(key);
    const SegmentPlace moved = now == copies_.end() ? place : now->second.place;
    lock.native().unlock();
    if (moved == place) break;
    place = moved;
  }
  const bool right = read.ok() && is_right(mapping->data());
  if (right && in_slot) DescribeSlot(*slot, facts, key.second);
  lock.native().lock();
  at = copies_.find(key);
  if (at == copies_.end() || !right) {
    if (in_slot) parts_.slots->Free(*slot);
    if (at == copies_.end()) return std::shared_ptr<Mapping>();
    // The device's word is as good as wrong bytes: another holder has it, or it is a miss.
    return Error{Code::kCorrupt,
                 read.ok() ? "the bytes on NVMe are not the block's" : read.error().text};
  }
  CopyMetrics::Get().reads_nvme.Add();
  if (!in_slot) return mapping;
  Copy& copy = at->second;
  copy.slot = *slot;
  copy.checked = true;
  slots_[*slot] = key;
  copy.mapping = mapping;
  ++mapped_slots_;
  parts_.resident->Add(*slot, this);
  Expose(key, copy);
  return std::shared_ptr<Mapping>();
}

void CopyHolder::SayLost(const CopyKey& key) {
  KVC_LOG(Error, "a copy is damaged and gone", "key={}", key.first.key.ToHex());
  CopyMetrics::Get().lost.Add();
  meta::Cluster* cluster = nullptr;
  {
    const MutexLock lock(mutex_);
    cluster = cluster_;
  }
  if (cluster != nullptr) cluster->Lost(key.first, key.second);
}

// ---- Start and end

Result<std::unique_ptr<CopyHolder>> CopyHolder::Open(const CopyHolderOptions& options,
                                                     const CopyHolderParts& parts) {
  std::unique_ptr<CopyHolder> holder(new CopyHolder(options, parts));
  if (parts.segments != nullptr) {
    holder->nvme_bytes_max_ = parts.segments->Stats().entry_bytes_max;
  }
  KVC_TRY(holder->Recover());
  return holder;
}

CopyHolder::~CopyHolder() {
  Stop();
}

void CopyHolder::RecoverSlot(const meta::CopyRecord& record, Copy& copy) {
  if (record.slot == 0 || record.slot > parts_.slots->slot_count()) return;
  SlotRecord& slot = parts_.slots->record(record.slot);
  if (slot.aux != record.generation || slot.key != record.facts.id.key ||
      slot.length != record.facts.length) {
    return;
  }
  const SlotState state = slot.state.load();
  // Published, and the process died before the mount beside this heard of it.
  if (state == SlotState::kPending && options_.beside_mount) SettleSlot(slot);
  if (slot.state.load() != SlotState::kBlock) return;
  copy.slot = record.slot;
  copy.checked = false;
  if (options_.resumed) {
    copy.old_pins = slot.readers;
  } else {
    slot.readers = slot.backing_id = 0;
  }
}

void CopyHolder::RecoverOtherSlots() {
  std::vector<SlotId> worthless;
  parts_.slots->ForEach([&](SlotId slot, SlotRecord& record) KVC_NO_ANALYSIS {
    if (slots_.contains(slot)) return parts_.resident->Add(slot, this);
    if (options_.beside_mount) {
      if (record.state.load() != SlotState::kBlock || (record.flags & iouring::kSlotCopy) == 0) {
        return;
      }
      if (options_.resumed && record.readers > 0) {
        doomed_[slot] = record.readers;
        return;
      }
    }
    worthless.push_back(slot);
  });
  for (const SlotId slot : worthless) parts_.slots->Free(slot);
}

Status CopyHolder::Recover() {
  {
    const MutexLock lock(generation_mutex_);
    KVC_TRY_ASSIGN(const auto stored, parts_.meta->Get(meta::GenerationLimitKey()));
    const uint64_t limit = stored ? meta::DecodeCounter(*stored).value_or(0) : 0;
    // Where the store was lost to damage, the time is past what was used before it.
    const auto nanos = static_cast<uint64_t>(parts_.clock->WallNanos());
    generation_limit_ = std::max(limit, nanos);
    next_generation_ = generation_limit_ + 1;
  }
  const MutexLock lock(mutex_);
  uint64_t damaged = 0, gone = 0;
  std::vector<CopyKey> dead;
  const std::unique_ptr<meta::MetaCursor> cursor = parts_.meta->Seek(meta::kCopyRecordPrefix);
  for (; cursor->Valid() && cursor->key().starts_with(meta::kCopyRecordPrefix); cursor->Next()) {
    const auto record = meta::DecodeCopyRecord(cursor->key(), cursor->value());
    if (!record) {
      ++damaged;
      continue;
    }
    Copy copy;
    copy.facts = record->facts;
    copy.version = record->version;
    const CopyKey key{record->facts.id, record->generation};
    RecoverSlot(*record, copy);
    if (record->place.valid() && parts_.segments != nullptr &&
        parts_.segments->MarkLive(record->place, record->facts.length)) {
      copy.place = record->place;
    }
    if (copy.slot == 0 && !copy.place.valid()) {
      ++gone;
      dead.push_back(key);
      continue;
    }
    const auto at = Insert(key, std::move(copy));
    if (!at->second.place.valid()) {
      dirty_bytes_ += at->second.facts.length;
      QueueWriteBack(key, options_.writeback_delay);
    }
  }
  if (!cursor->status().ok()) {
    KVC_LOG(Error, "copies' records are damaged; what cannot be read is a miss", "error={}",
            LogValue(cursor->status().error().text));
  }
  for (const CopyKey& key : dead) DeleteRecord(key);
  RecoverOtherSlots();
  {
    // It never goes back, whatever is written first.
    const MutexLock records(records_mutex_);
    records_sequence_ = AppliedSequence(*parts_.meta);
  }
  KVC_LOG(Info, "copies found", "copies={} bytes={} in_dram={} gone={} damaged_records={}",
          copies_.size(), used_bytes_, slots_.size(), gone, damaged);
  return {};
}

void CopyHolder::Join(meta::Cluster* cluster) {
  std::vector<meta::InventoryEntry> all;
  {
    const MutexLock lock(mutex_);
    cluster_ = cluster;
    all.reserve(copies_.size());
    for (const auto& [key, copy] : copies_) all.push_back({copy.facts, key.second, copy.version});
  }
  for (const auto& entry : all) cluster->Restore(entry.facts, entry.generation, entry.version);
}

void CopyHolder::Start() {
  write_back_ = std::thread([this] { RunWriteBack(); });
}

void CopyHolder::Stop() {
  {
    const MutexLock lock(mutex_);
    stopping_ = true;
    cluster_ = nullptr;
  }
  due_changed_.notify_all();
  changed_.notify_all();
  if (write_back_.joinable()) write_back_.join();
  (void)FlushRecords(true);
}

}  // namespace kvcfs::fs
