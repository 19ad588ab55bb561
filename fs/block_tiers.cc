// Between the tiers: write-back, eviction, reclaim of segments, and the records that say where.
#include <algorithm>
#include <future>

#include <fcntl.h>

#include "base/crash_point.h"
#include "base/log.h"
#include "fs/about_to_block.h"
#include "fs/block_metrics.h"
#include "fs/block_store.h"
#include "fs/bytes_io.h"
#include "meta/block_records.h"
#include "meta/placement.h"

namespace kvcfs::fs {
namespace {

using iouring::EntryKind;
using iouring::EntryMeta;
using iouring::SegmentPlace;
using iouring::SlotId;
using iouring::SlotRecord;
using iouring::SlotState;
using meta::BlockHash62;
using meta::BlockRef;
using meta::BlockState;
using meta::NamespaceId;
using std::chrono::milliseconds;

constexpr milliseconds kRetryWhenFull{1000};
constexpr std::chrono::seconds kDurableLimit{30};
constexpr milliseconds kRecordsDelay{20};  // group commit: many records, one write
constexpr uint64_t kRecordsCountMax = 4096;
// What matches a block, looks it up, and opens it does so within less.
constexpr uint32_t kOneRequestSeconds = 2;

}  // namespace

// ---- write-back

void BlockStore::QueueWriteBack(SlotId slot, milliseconds delay) {
  if (parts_.slots->record(slot).length > nvme_block_bytes_max_) return;
  const milliseconds at = parts_.clock->Monotonic() + delay;
  due_.push_back({at, slot, parts_.slots->record(slot).generation});
  // Else it looks in time by itself: a wake-up a block would cost a writer more than its create.
  if (at < due_looked_at_) due_changed_.notify_all();
}

void BlockStore::WriteBackSoon(SlotId slot) {
  MutexLock lock(mutex_);
  const SlotRecord& record = parts_.slots->record(slot);
  if (record.state.load() != SlotState::kBlock || (record.flags & iouring::kSlotDirty) == 0) return;
  // What is due is in order of publication; the coldest dirty slot is near its front.
  for (Due& due : due_) {
    if (due.slot == slot) {
      due.at = milliseconds(0);
      due_changed_.notify_all();
      return;
    }
  }
}

void BlockStore::AppendSlot(SlotId slot, bool durable, EntryKind kind,
                            const std::function<void(Code)>& done, MutexLock& lock) {
  const SlotRecord& record = parts_.slots->record(slot);
  const std::optional<Namespace> space = parts_.namespaces->Get(record.namespace_id);
  Result<Fd> file = parts_.slots->OpenFile(slot, O_RDONLY);
  if (!space || !file.ok()) {
    if (done) done(Code::kNotFound);
    return;
  }
  iouring::AppendRequest request;
  request.meta.kind = kind;
  request.meta.namespace_uuid = space->uuid;
  request.meta.key = record.key;
  request.meta.parent = record.parent;
  request.meta.ordinal = record.ordinal;
  request.meta.length = record.length;
  request.meta.mtime_nanos = record.mtime_nanos;
  request.durable = durable;
  request.fill = FillFrom(std::move(*file));
  const uint32_t generation = record.generation;
  request.done = [this, slot, generation, done](const Result<SegmentPlace>& place,
                                                const EntryMeta& meta) {
    OnWritten(slot, generation, place, meta);
    if (done) done(place.code());
  };
  in_flight_.insert(slot);
  ++appends_in_flight_;
  lock.native().unlock();
  const Status queued = AppendWhenThereIsRoom(*parts_.segments, request);
  lock.native().lock();
  if (!queued.ok()) {
    in_flight_.erase(slot);
    --appends_in_flight_;
    if (queued.code() == Code::kNoSpace) nvme_full_ = true;
    if (parts_.slots->record(slot).generation == generation) QueueWriteBack(slot, kRetryWhenFull);
    if (done) done(queued.code());
  }
}

void BlockStore::OnWritten(SlotId slot, uint32_t generation, const Result<SegmentPlace>& place,
                           const EntryMeta& meta) {
  KVC_CRASH_POINT("writeback.after_append");
  MutexLock lock(mutex_);
  in_flight_.erase(slot);
  --appends_in_flight_;
  due_changed_.notify_all();
  SlotRecord& record = parts_.slots->record(slot);
  const bool ours = record.generation == generation && record.key == meta.key;
  const SlotState state_now = record.state.load();
  if (!place.ok()) {
    const bool full = place.code() == Code::kNoSpace;
    if (full && !nvme_full_) {
      KVC_LOG(Warn, "the NVMe tier is full; what is dirty stays in DRAM or goes", "error={}",
              LogValue(place.error().text));
    }
    nvme_full_ = nvme_full_ || full;
    if (ours && state_now == SlotState::kBlock) {
      QueueWriteBack(slot, kRetryWhenFull);
      parts_.resident->RoomMayBeHad();
    }
    return;
  }
  nvme_full_ = false;
  if (meta.kind == EntryKind::kBlockIntent) {
    if (ours && state_now == SlotState::kPending) {
      if (record.place.valid()) {
        parts_.segments->MarkDead(record.place, record.length);
        intents_.erase(record.place.sequence);
      }
      record.place = *place;
      record.crc32c = meta.crc32c;
      intents_.insert(place->sequence);
    } else {
      parts_.segments->MarkDead(*place, meta.length);
    }
    NoteApplied(place->sequence);
    return;
  }
  const std::optional<BlockRef> ref =
      ours ? index_.Find(record.namespace_id, record.key) : std::nullopt;
  if (!ref || index_.state(*ref).slot != slot || state_now != SlotState::kBlock) {
    parts_.segments->MarkDead(*place, meta.length);  // dropped meanwhile
    NoteApplied(place->sequence);
    return;
  }
  BlockState state = index_.state(*ref);
  if (state.segment != 0) {
    parts_.segments->MarkDead({state.segment, state.offset_4k, state.sequence}, state.length);
  }
  state.segment = place->segment;
  state.offset_4k = place->offset_4k;
  state.sequence = place->sequence;
  index_.SetState(*ref, state);
  record.place = *place;
  record.crc32c = meta.crc32c;
  if ((record.flags & iouring::kSlotDirty) != 0) dirty_bytes_ -= record.length;
  record.flags &= ~iouring::kSlotDirty;
  BlockMetrics::Get().written_back_bytes.Add(static_cast<double>(meta.length));
  PutRecord(*ref);
  NoteApplied(place->sequence);
  parts_.resident->RoomMayBeHad();
}

void BlockStore::RunWriteBack() {
  SetThreadName("write-back");
  MutexLock lock(mutex_);
  while (!stopping_) {
    const milliseconds now = parts_.clock->Monotonic();
    milliseconds wait{1000};
    if (!zombies_.empty()) {
      wait = milliseconds(20);
      lock.native().unlock();
      RetryZombies();
      lock.native().lock();
    }
    bool worked = false;
    for (size_t i = 0; i < due_.size() && !stopping_; ++i) {
      // Requeued ones stand behind younger ones only by their delay: look no further than the first
      // that is not due yet, but for those that were hurried (at 0).
      if (due_[i].at > now) {
        wait = std::min(wait, due_[i].at - now);
        if (i > 64) break;
        continue;
      }
      const Due due = due_[i];
      due_.erase(due_.begin() + static_cast<std::ptrdiff_t>(i));
      const SlotRecord& record = parts_.slots->record(due.slot);
      worked = true;
      if (record.generation == due.generation && record.state.load() == SlotState::kBlock &&
          (record.flags & iouring::kSlotDirty) != 0 && (record.flags & iouring::kSlotDoomed) == 0 &&
          !in_flight_.contains(due.slot)) {
        AppendSlot(due.slot, false, EntryKind::kBlock, {}, lock);
      }
      break;
    }
    if (worked) continue;
    wait = std::max(wait, milliseconds(1));
    due_looked_at_ = now + wait;
    due_changed_.wait_for(lock.native(), wait);
    due_looked_at_ = milliseconds(0);
  }
}

Status BlockStore::MakeDurable(SlotId slot, EntryKind kind, MutexLock& lock) {
  if (parts_.segments == nullptr) return {};
  AboutToBlock();
  const uint32_t generation = parts_.slots->record(slot).generation;
  // The chain up to it must survive with it, oldest first.
  std::vector<SlotId> dirty;
  const SlotRecord& record = parts_.slots->record(slot);
  if (!record.parent.IsZero()) {
    std::optional<BlockRef> ref = index_.Find(record.namespace_id, record.parent);
    while (ref && ref->valid()) {
      const SlotId at = index_.state(*ref).slot;
      if (at != 0 && (parts_.slots->record(at).flags & iouring::kSlotDirty) != 0) {
        dirty.push_back(at);
      } else if (index_.state(*ref).segment != 0 && dirty.empty()) {
        break;  // written back from head to tail: above it everything is
      }
      ref = index_.parent(*ref);
    }
  }
  for (auto at = dirty.rbegin(); at != dirty.rend(); ++at) {
    const SlotRecord& above = parts_.slots->record(*at);
    if (above.state.load() == SlotState::kBlock && (above.flags & iouring::kSlotDirty) != 0 &&
        !in_flight_.contains(*at)) {
      AppendSlot(*at, false, EntryKind::kBlock, {}, lock);
    }
  }
  if (parts_.slots->record(slot).generation != generation) {
    return Error{Code::kNotFound, "dropped meanwhile"};
  }
  auto promise = std::make_shared<std::promise<Code>>();
  std::future<Code> answer = promise->get_future();
  AppendSlot(
      slot, true, kind, [promise](Code code) { promise->set_value(code); }, lock);
  lock.native().unlock();
  // A device that neither writes nor fails must not hold a close() for ever.
  const bool answered = answer.wait_for(kDurableLimit) == std::future_status::ready;
  const Code code = answered ? answer.get() : Code::kIo;
  lock.native().lock();
  if (code != Code::kOk) {
    return Error{code, "write to the NVMe tier: " + std::string(CodeName(code))};
  }
  return {};
}

Status BlockStore::WriteBackAll() {
  if (parts_.segments == nullptr) return {};
  {
    MutexLock lock(mutex_);
    for (Due& due : due_) due.at = milliseconds(0);
    due_changed_.notify_all();
    // Gives up where nothing moves any more (a full disk): what cannot be kept is a miss.
    uint64_t before = dirty_bytes_;
    int idle_rounds = 0;
    // What is dirty and not due can only live in DRAM.
    while (((dirty_bytes_ > 0 && !due_.empty()) || appends_in_flight_ > 0) && idle_rounds < 50) {
      due_changed_.notify_all();
      due_changed_.wait_for(lock.native(), milliseconds(100));
      if (nvme_full_ && appends_in_flight_ == 0) idle_rounds += 10;
      idle_rounds = dirty_bytes_ == before ? idle_rounds + 1 : 0;
      before = dirty_bytes_;
    }
    if (dirty_bytes_ > 0) {
      KVC_LOG(Warn, "not everything reached NVMe", "dirty_bytes={}", dirty_bytes_);
    }
  }
  KVC_TRY(parts_.segments->Flush(true));
  return FlushRecords(true);
}

// ---- records

void BlockStore::PutRecord(BlockRef ref) {
  const BlockState state = index_.state(ref);
  meta::BlockRecord record;
  record.parent = index_.parent_key(ref);
  record.ordinal = index_.ordinal(ref);
  record.length = state.length;
  record.place = {state.segment, state.offset_4k, state.sequence};
  record.mtime_s = state.mtime_s;
  record.hits = state.hits;
  MutexLock lock(records_mutex_);
  records_.Put(meta::BlockRecordKey(index_.namespace_of(ref), index_.key(ref)),
               meta::EncodeBlockRecord(record));
  if (++records_count_ >= kRecordsCountMax) records_changed_.notify_one();
}

void BlockStore::DeleteRecord(NamespaceId ns, const BlockKey& key) {
  MutexLock lock(records_mutex_);
  records_.Delete(meta::BlockRecordKey(ns, key));
  ++records_count_;
}

void BlockStore::NoteApplied(uint64_t sequence) {
  // A durable block that is not published yet must be found by the next recovery.
  const uint64_t applied = intents_.empty() ? sequence : std::min(sequence, *intents_.begin() - 1);
  MutexLock lock(records_mutex_);
  records_sequence_ = std::max(records_sequence_, applied);
}

void BlockStore::NoteOthersApplied(uint64_t sequence) {
  MutexLock lock(mutex_);
  NoteApplied(sequence);
}

Status BlockStore::FlushRecords(bool sync) {
  MutexLock writing(records_write_mutex_);
  // What an earlier try could not write comes first: the order of records is their meaning. The
  // applied sequence goes with them, so that a restart finds in the segments what is not written.
  for (const bool retry : {true, false}) {
    if (unwritten_.empty() == retry) continue;
    if (!retry) {
      MutexLock lock(records_mutex_);
      if (records_count_ == 0 && records_sequence_ == records_sequence_written_) break;
      std::swap(unwritten_, records_);
      records_count_ = 0;
      records_sequence_written_ = records_sequence_;
      unwritten_.Put(meta::AppliedSequenceKey(), meta::EncodeCounter(records_sequence_));
    }
    KVC_CRASH_POINT("records.before_write");
    Status written = parts_.meta->Write(unwritten_, false);
    KVC_CRASH_POINT("records.after_write");
    if (!written.ok()) {
      if (!records_failing_) {
        KVC_LOG(Warn, "block records cannot be written; kept in memory", "error={}",
                LogValue(written.error().text));
      }
      records_failing_ = true;
      return written;
    }
    records_failing_ = false;
  }
  return sync ? parts_.meta->Sync() : Status{};
}

void BlockStore::RunRecords() {
  SetThreadName("meta-log");
  for (;;) {
    {
      MutexLock lock(records_mutex_);
      records_changed_.wait_for(lock.native(), kRecordsDelay, [&]() KVC_NO_ANALYSIS {
        return records_stopping_ || records_count_ >= kRecordsCountMax;
      });
      if (records_stopping_) break;
      if (records_count_ == 0 && records_sequence_ == records_sequence_written_) continue;
    }
    if (!FlushRecords(false).ok()) std::this_thread::sleep_for(kRetryWhenFull);
  }
  (void)FlushRecords(false);
}

uint64_t BlockStore::AppliedSequence(meta::MetaStore& store) {
  const auto value = store.Get(meta::AppliedSequenceKey());
  if (!value.ok() || !value->has_value()) return 0;
  return meta::DecodeCounter(**value).value_or(0);
}

// ---- eviction

bool BlockStore::TryEvict(SlotId slot) {
  MutexLock lock(mutex_);
  SlotRecord& record = parts_.slots->record(slot);
  if (record.state.load() != SlotState::kBlock) return false;
  // What an earlier worker counted may have been closed while nobody listened. What we have opened
  // is open: the kernel may not have taken its backing id out of our answer yet, and with an id
  // that was closed meanwhile that open() fails with EIO.
  if (record.readers > 0 && (!options_.resumed || opened_here_.contains(slot))) return false;
  const std::optional<BlockRef> ref = index_.Find(record.namespace_id, record.key);
  if (!ref || index_.state(*ref).slot != slot) return false;
  if (in_flight_.contains(slot)) return false;
  const bool dirty = (record.flags & iouring::kSlotDirty) != 0;
  // Dirty with nowhere to go: then the cache itself is what must shrink, from the leaves.
  const bool nowhere = nvme_full_ || record.length > nvme_block_bytes_max_;
  const bool elsewhere = parts_.cluster != nullptr;  // its homes have it, whatever goes here
  if (dirty && !elsewhere && (!nowhere || index_.child_count(*ref) > 0 || IsHeld(*ref)))
    return false;
  // Opens count in the record, but mappings outlive them: closing the backing id and asking for a
  // write lease finds both.
  const uint32_t backing_id = record.backing_id;
  CloseBackingOf(slot);
  const Result<Fd> file = parts_.slots->OpenFile(slot, O_RDONLY);
  if (file.ok() && StillMapped(*file)) {
    if (backing_id != 0 && record.readers > 0) record.backing_id = 0;
    return false;
  }
  if (dirty && !elsewhere) {
    DropTree(*ref, BlockMetrics::Get().evicted_capacity, false);
    return true;
  }
  KVC_CRASH_POINT("evict.before_free");
  BlockState state = index_.state(*ref);
  if (dirty) dirty_bytes_ -= state.length;
  if (state.segment == 0) space_bytes_[record.namespace_id] -= state.length;
  state.slot = 0;
  index_.SetState(*ref, state);
  --resident_blocks_;
  FreeBlockSlot(slot);
  BlockMetrics::Get().evicted_dram.Add();
  return true;
}

void BlockStore::NoteReuse(BlockRef ref, bool tip, bool published) {
  const NamespaceId ns = index_.namespace_of(ref);
  reuse_.Used({.hash = meta::BlockHash(ns, index_.key(ref)),
               .tip = tip,
               .was_cached = !published,
               .cached_blocks = index_.block_count()});
  if (published && index_.ordinal(ref) > 0) {
    reuse_.Extended(meta::BlockHash(ns, index_.parent_key(ref)));
  }
}

void BlockStore::NoteReuseOnce(BlockRef ref) {
  if (NowSeconds() - index_.state(ref).last_use_s <= kOneRequestSeconds) return;
  NoteReuse(ref, index_.child_count(ref) == 0, false);
}

uint64_t BlockStore::EvictLeaves(const std::function<bool(BlockRef)>& may_go,
                                 const std::function<bool(uint64_t freed)>& enough) {
  uint64_t freed = 0;
  const auto hash_of = [&](BlockRef ref) KVC_NO_ANALYSIS {
    return meta::BlockHash(index_.namespace_of(ref), index_.key(ref));
  };
  std::vector<BlockRef> leaves;
  std::vector<uint64_t> hashes;
  const auto evict = [&](bool choose) KVC_NO_ANALYSIS {
    index_.VisitColdestLeaves([&](BlockRef coldest) KVC_NO_ANALYSIS {
      if (!may_go(coldest)) return !enough(freed);
      leaves.assign(1, coldest);
      hashes.assign(1, hash_of(coldest));
      for (size_t i = 1; i < ReusePolicy::kCandidates && choose; ++i) {
        const auto other = index_.SomeLeaf(meta::MixHash(++choices_, 0));
        if (!other || !may_go(*other)) continue;
        leaves.push_back(*other);
        hashes.push_back(hash_of(*other));
      }
      const BlockRef victim = leaves[reuse_.Choose(hashes)];
      freed += index_.state(victim).length;
      RemoveLeaf(victim, BlockMetrics::Get().evicted_capacity);
      return !enough(freed);
    });
  };
  if (reuse_.learned()) evict(true);
  // Leaves that were spared as the coldest were seen once; if all others were not enough, they go.
  if (!enough(freed)) evict(false);
  return freed;
}

uint64_t BlockStore::Shed(uint64_t bytes) {
  MutexLock lock(mutex_);
  if (parts_.cluster != nullptr) return ShedCopies(bytes);
  return EvictLeaves([&](BlockRef ref)
                         KVC_NO_ANALYSIS { return index_.state(ref).segment != 0 && !IsHeld(ref); },
                     [&](uint64_t freed) { return freed >= bytes; });
}

bool BlockStore::MakeQuotaRoom(const Namespace& space) {
  if (space.quota_bytes == 0) return true;
  MutexLock lock(mutex_);
  const auto fits = [&]() KVC_NO_ANALYSIS {
    return space_bytes_[space.id] + space.block_bytes <= space.quota_bytes;
  };
  if (fits()) return true;
  (void)EvictLeaves(
      [&](BlockRef ref)
          KVC_NO_ANALYSIS { return index_.namespace_of(ref) == space.id && !IsHeld(ref); },
      [&](uint64_t) { return fits(); });
  return fits();
}

// ---- segments

iouring::Fate BlockStore::Judge(const EntryMeta& meta, const SegmentPlace& place) {
  const std::optional<Namespace> space = parts_.namespaces->FindUuid(meta.namespace_uuid);
  if (!space) return iouring::Fate::kDead;
  MutexLock lock(mutex_);
  if (meta.kind == EntryKind::kBlockIntent && intents_.contains(place.sequence)) {
    return iouring::Fate::kMove;
  }
  const std::optional<BlockRef> ref = index_.Find(space->id, meta.key);
  if (!ref) return iouring::Fate::kDead;
  const BlockState state = index_.state(*ref);
  const bool ours = state.segment == place.segment && state.offset_4k == place.offset_4k;
  return ours ? iouring::Fate::kMove : iouring::Fate::kDead;
}

void BlockStore::Moved(const EntryMeta& meta, const SegmentPlace& before, const SegmentPlace& now) {
  const std::optional<Namespace> space = parts_.namespaces->FindUuid(meta.namespace_uuid);
  MutexLock lock(mutex_);
  if (space && meta.kind == EntryKind::kBlockIntent && intents_.erase(before.sequence) > 0) {
    const auto found = pending_.find(BlockHash62(space->id, meta.key));
    for (const SlotId slot : found == pending_.end() ? std::vector<SlotId>{} : found->second) {
      SlotRecord& record = parts_.slots->record(slot);
      if (!(record.place == before)) continue;
      record.place = now;
      intents_.insert(now.sequence);
      return;
    }
  }
  const std::optional<BlockRef> ref = space ? index_.Find(space->id, meta.key) : std::nullopt;
  BlockState state = ref ? index_.state(*ref) : BlockState{};
  if (!ref || state.segment != before.segment || state.offset_4k != before.offset_4k) {
    parts_.segments->MarkDead(now, meta.length);
    return;
  }
  state.segment = now.segment;
  state.offset_4k = now.offset_4k;
  state.sequence = now.sequence;
  index_.SetState(*ref, state);
  if (state.slot != 0) parts_.slots->record(state.slot).place = now;
  PutRecord(*ref);
}

void BlockStore::Lost(const EntryMeta& meta, const SegmentPlace& place) {
  const std::optional<Namespace> space = parts_.namespaces->FindUuid(meta.namespace_uuid);
  if (!space) return;
  MutexLock lock(mutex_);
  const std::optional<BlockRef> ref = index_.Find(space->id, meta.key);
  if (!ref) return;
  BlockState state = index_.state(*ref);
  if (state.segment != place.segment || state.offset_4k != place.offset_4k) return;
  if (state.slot != 0) {
    // Its bytes are in DRAM still: write them again elsewhere.
    SlotRecord& record = parts_.slots->record(state.slot);
    state.segment = state.offset_4k = 0;
    state.sequence = 0;
    index_.SetState(*ref, state);
    record.place = {};
    record.flags |= iouring::kSlotDirty;
    dirty_bytes_ += state.length;
    QueueWriteBack(state.slot, milliseconds(0));
    return;
  }
  if (parts_.cluster != nullptr) return DropSegmentCopy(*ref);
  KVC_LOG(Error, "a block is lost on NVMe; it and what extends it are gone", "namespace={} key={}",
          LogValue(space->name), meta.key.ToHex());
  DropTree(*ref, BlockMetrics::Get().damaged, false);
}

}  // namespace kvcfs::fs
