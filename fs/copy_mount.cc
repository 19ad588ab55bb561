// A holder's copies beside a mount: what is written there becomes a copy in its place, and what is
// read there is the copy itself.
#include <algorithm>

#include <fcntl.h>

#include "fs/bytes_io.h"
#include "fs/copy_holder.h"
#include "fs/copy_metrics.h"

namespace kvcfs::fs {

using iouring::SlotId;
using iouring::SlotRecord;
using iouring::SlotState;
using meta::BlockFacts;
using meta::BlockId;

bool CopyHolder::Holds(const BlockFacts& facts) {
  const MutexLock lock(mutex_);
  for (auto at = copies_.lower_bound({facts.id, 0});
       at != copies_.end() && at->first.first == facts.id; ++at) {
    const Copy& copy = at->second;
    if (copy.version != 0 && copy.facts.length == facts.length &&
        copy.facts.crc32c == facts.crc32c) {
      return true;
    }
  }
  return false;
}

Result<uint64_t> CopyHolder::Adopt(const BlockFacts& facts, SlotId slot) {
  KVC_TRY_ASSIGN(const uint64_t generation, NextGeneration());
  const MutexLock lock(mutex_);
  SlotRecord& record = parts_.slots->record(slot);
  record.length = facts.length;
  record.ordinal = facts.ordinal;
  record.crc32c = facts.crc32c;
  record.mtime_nanos = int64_t{facts.mtime_s} * 1'000'000'000;
  record.aux = generation;  // by which a restart finds it, if it was published until then
  Copy copy;
  copy.facts = facts;
  copy.slot = slot;
  copy.lent = true;
  Insert({facts.id, generation}, std::move(copy));
  return generation;
}

void CopyHolder::SettleSlot(SlotRecord& slot) {
  slot.ino = 0;
  slot.readers = slot.writers = 0;
  slot.place = {};
  // Before the state: what is a block and no copy is the mount's.
  slot.flags = iouring::kSlotCopy;
  slot.state.store(SlotState::kBlock, std::memory_order_release);
}

bool CopyHolder::Take(const BlockId& id, uint64_t generation) {
  const MutexLock lock(mutex_);
  const auto at = copies_.find({id, generation});
  if (at == copies_.end() || at->second.slot == 0) return false;
  Copy& copy = at->second;
  copy.lent = false;
  SettleSlot(parts_.slots->record(copy.slot));
  parts_.resident->Add(copy.slot, this);  // from now on it may be asked to go
  return true;
}

Result<SlotId> CopyHolder::PinSlot(const BlockId& id, uint64_t length, uint32_t crc32c,
                                   bool may_wait) {
  CopyKey key{id, 0};
  const auto pin = [&]() -> Result<SlotId> {
    MutexLock lock(mutex_);
    uint64_t version = 0;
    for (auto at = copies_.lower_bound({id, 0}); at != copies_.end() && at->first.first == id;
         ++at) {
      const Copy& copy = at->second;
      if (copy.version <= version || copy.lent || copy.facts.length != length ||
          (crc32c != 0 && copy.facts.crc32c != crc32c)) {
        continue;
      }
      version = copy.version;
      key = at->first;
    }
    if (version == 0) return Error{Code::kNotFound, "no such copy here"};
    KVC_TRY_ASSIGN(const std::shared_ptr<Mapping> own, BringIn(key, may_wait, lock));
    if (own != nullptr) return Error{Code::kNoSpace, "the DRAM tier is full"};
    Copy& copy = copies_.at(key);
    Touch(copy);
    ++copy.pins;
    return copy.slot;
  };
  Result<SlotId> pinned = pin();
  if (pinned.code() == Code::kCorrupt) SayLost(key);
  return pinned;
}

void CopyHolder::PinAgain(SlotId slot) {
  const MutexLock lock(mutex_);
  if (const auto doomed = doomed_.find(slot); doomed != doomed_.end()) {
    ++doomed->second;
  } else if (const auto found = slots_.find(slot); found != slots_.end()) {
    ++copies_.at(found->second).pins;
  }
}

void CopyHolder::UnpinSlot(SlotId slot) {
  const MutexLock lock(mutex_);
  if (const auto doomed = doomed_.find(slot); doomed != doomed_.end()) {
    if (--doomed->second > 0) return;
    doomed_.erase(doomed);
    CloseBackingOf(slot);
    parts_.slots->Free(slot);
  } else if (const auto found = slots_.find(slot); found != slots_.end()) {
    Copy& copy = copies_.at(found->second);
    if (copy.pins > 0) {
      --copy.pins;
    } else if (copy.old_pins > 0) {
      --copy.old_pins;
    }
    if (copy.pins + copy.old_pins > 0) return;
  }
  parts_.resident->RoomMayBeHad();
}

void CopyHolder::CloseBackingOf(SlotId slot) {
  SlotRecord& record = parts_.slots->record(slot);
  if (record.backing_id == 0 || parts_.backing == nullptr) return;
  parts_.backing->CloseBacking(record.backing_id);
  record.backing_id = 0;
}

bool CopyHolder::IsOpen(Copy& copy) {
  if (parts_.backing == nullptr) return false;
  if (copy.pins > 0) return true;
  // Where only the kernel has the file open, the file says whether that is so.
  const bool exposed = exposed_.Has(copy.slot);
  if (copy.old_pins > 0 && (exposed || !parts_.backing->enabled())) return true;
  // What is mapped and was closed keeps its memory, whatever becomes of the slot.
  if (exposed) return false;
  if (copy.mapping != nullptr) {
    copy.mapping.reset();
    --mapped_slots_;
  }
  CloseBackingOf(copy.slot);
  const Result<Fd> file = parts_.slots->OpenFile(copy.slot, O_RDONLY);
  return file.ok() && StillMapped(*file);
}

Tier CopyHolder::TierOf(const BlockId& id) {
  const MutexLock lock(mutex_);
  Tier tier = Tier::kNone;
  for (auto at = copies_.lower_bound({id, 0}); at != copies_.end() && at->first.first == id; ++at) {
    if (at->second.version == 0) continue;
    if (at->second.slot != 0) return Tier::kDram;
    tier = Tier::kNvme;
  }
  return tier;
}

Status CopyHolder::Persist(const BlockId& id) {
  std::vector<CopyKey> keys;
  {
    const MutexLock lock(mutex_);
    for (auto at = copies_.lower_bound({id, 0}); at != copies_.end() && at->first.first == id;
         ++at) {
      if (at->second.version != 0) keys.push_back(at->first);
    }
  }
  for (const CopyKey& key : keys) KVC_TRY(MakeDurable(key));
  return {};
}

bool CopyHolder::Has(const iouring::EntryMeta& meta, const iouring::SegmentPlace& place) {
  const MutexLock lock(mutex_);
  return AtPlace(meta, place) != copies_.end();
}

}  // namespace kvcfs::fs
