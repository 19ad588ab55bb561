// A holder's copies between the tiers: write-back, eviction, releases, reclaim, records.
#include <algorithm>

#include <fcntl.h>

#include "base/log.h"
#include "fs/bytes_io.h"
#include "fs/copy_holder.h"
#include "fs/copy_metrics.h"
#include "fs/namespace_table.h"
#include "meta/block_records.h"

namespace kvcfs::fs {

using iouring::EntryMeta;
using iouring::SegmentPlace;
using iouring::SlotId;
using std::chrono::milliseconds;

namespace {

constexpr milliseconds kRetryWhenFull{1000};
constexpr milliseconds kIdleWait{1000};
constexpr std::chrono::seconds kDurableLimit{30};
constexpr size_t kShedCopiesMax = 4096;  // asked for at a time
constexpr size_t kColderMax = 256;       // that are looked at before one is asked for

}  // namespace

CopyMetrics& CopyMetrics::Get() {
  static Metrics& all = Metrics::Get();
  static constexpr char kReads[] = "kvcfs_fs_copy_reads_total";
  static constexpr char kReadsHelp[] = "Reads of copies by peers, by where the bytes were.";
  static CopyMetrics metrics{
      .accepted_bytes =
          all.AddCounter("kvcfs_fs_copies_accepted_bytes_total", "Bytes taken from peers."),
      .refused =
          all.AddCounter("kvcfs_fs_copies_refused_total", "Copies that found no room in time."),
      .reads_dram = all.AddCounter(kReads, kReadsHelp, {{"source", "dram"}}),
      .reads_nvme = all.AddCounter(kReads, kReadsHelp, {{"source", "nvme"}}),
      .written_back_bytes = all.AddCounter("kvcfs_fs_copies_written_back_bytes_total",
                                           "Bytes of copies written to NVMe."),
      .evicted_dram = all.AddCounter("kvcfs_fs_copies_evicted_total",
                                     "Copies that left DRAM and stayed on NVMe."),
      .releases_asked = all.AddCounter("kvcfs_fs_copy_releases_asked_total",
                                       "Copies that the cluster was asked to give up."),
      .kept = all.AddCounter("kvcfs_fs_copy_releases_refused_total",
                             "Of those, copies that had to stay."),
      .over_quota_bytes = all.AddCounter("kvcfs_fs_copies_over_quota_bytes_total",
                                         "Bytes that went because of their namespace's quota."),
      .freed = all.AddCounter("kvcfs_fs_copies_freed_total",
                              "Copies that went: released, dropped, or needless."),
      .lost = all.AddCounter("kvcfs_fs_copies_lost_total", "Copies whose bytes were damaged."),
  };
  return metrics;
}

// ---- Write-back

void CopyHolder::QueueWriteBack(const CopyKey& key, milliseconds delay) {
  if (parts_.segments == nullptr) return;
  due_.push_back({parts_.clock->Monotonic() + delay, key});
  due_changed_.notify_all();
}

bool CopyHolder::CanBeWritten(const Copy& copy) const {
  return parts_.segments != nullptr && copy.slot != 0 && copy.version != 0 && !copy.place.valid() &&
         !copy.writing && copy.facts.length <= nvme_bytes_max_;
}

void CopyHolder::WriteBackSoon(SlotId slot) {
  const MutexLock lock(mutex_);
  const auto found = slots_.find(slot);
  if (found == slots_.end()) return;
  Copy& copy = copies_.at(found->second);
  if (copy.hurried || nvme_full_ || !CanBeWritten(copy)) return;
  copy.hurried = true;
  due_.push_front({milliseconds(0), found->second});
  due_changed_.notify_all();
}

void CopyHolder::RunWriteBack() {
  SetThreadName("write-back");
  for (;;) {
    {
      MutexLock lock(mutex_);
      while (!stopping_ && !due_.empty() && due_.front().at <= parts_.clock->Monotonic()) {
        const CopyKey key = due_.front().key;
        due_.pop_front();
        WriteBack(key, lock);
        changed_.notify_all();
      }
    }
    (void)FlushRecords(false);  // tried again; it has been said
    MutexLock lock(mutex_);
    if (stopping_) return;
    milliseconds wait = kIdleWait;
    if (!due_.empty()) wait = std::min(wait, due_.front().at - parts_.clock->Monotonic());
    if (wait > milliseconds(0)) due_changed_.wait_for(lock.native(), wait);
  }
}

void CopyHolder::WriteBack(const CopyKey& key, MutexLock& lock) {
  auto at = copies_.find(key);
  if (at == copies_.end()) return;
  at->second.hurried = false;
  if (!CanBeWritten(at->second)) return;
  const meta::BlockFacts& facts = at->second.facts;
  auto file = parts_.slots->OpenFile(at->second.slot, O_RDONLY);
  if (!file.ok()) return QueueWriteBack(key, kRetryWhenFull);
  iouring::AppendRequest request;
  request.meta.kind = iouring::EntryKind::kBlock;
  request.meta.namespace_uuid = UuidOf(facts.id.space);
  request.meta.key = facts.id.key;
  request.meta.parent = facts.parent;
  request.meta.ordinal = facts.ordinal;
  request.meta.length = facts.length;
  request.meta.mtime_nanos = int64_t{facts.mtime_s} * 1'000'000'000;
  request.fill = FillFrom(std::move(*file));
  request.done = [this, key](const Result<SegmentPlace>& place, const EntryMeta& meta) {
    OnWritten(key, place, meta);
  };
  at->second.writing = true;
  ++writes_in_flight_;
  lock.native().unlock();
  const Status queued = AppendWhenThereIsRoom(*parts_.segments, request);
  lock.native().lock();
  if (queued.ok()) return;
  --writes_in_flight_;
  if (queued.code() == Code::kNoSpace) nvme_full_ = true;
  at = copies_.find(key);
  if (at == copies_.end()) return;
  at->second.writing = false;
  QueueWriteBack(key, kRetryWhenFull);
}

void CopyHolder::OnWritten(const CopyKey& key, const Result<SegmentPlace>& place,
                           const EntryMeta& meta) {
  bool damaged = false;
  {
    const MutexLock lock(mutex_);
    --writes_in_flight_;
    changed_.notify_all();
    const auto at = copies_.find(key);
    if (at != copies_.end()) at->second.writing = false;
    if (!place.ok()) {
      const bool full = place.code() == Code::kNoSpace;
      if (full && !nvme_full_) {
        KVC_LOG(Warn, "the NVMe tier is full; copies stay in DRAM or go", "error={}",
                LogValue(place.error().text));
      }
      nvme_full_ = nvme_full_ || full;
      if (at != copies_.end()) QueueWriteBack(key, kRetryWhenFull);
      parts_.resident->RoomMayBeHad();
      return;
    }
    nvme_full_ = false;
    {
      const MutexLock records(records_mutex_);
      records_sequence_ = std::max(records_sequence_, place->sequence);
    }
    damaged = at != copies_.end() && meta.crc32c != at->second.facts.crc32c;
    if (at == copies_.end() || at->second.place.valid() || damaged) {
      parts_.segments->MarkDead(*place, meta.length);
      if (damaged) FreeSlot(at->second);
    } else {
      Copy& copy = at->second;
      copy.place = *place;
      dirty_bytes_ -= copy.facts.length;
      CopyMetrics::Get().written_back_bytes.Add(static_cast<double>(meta.length));
      PutRecord(key, copy);
      parts_.resident->RoomMayBeHad();
    }
    due_changed_.notify_all();  // for the record
  }
  if (damaged) SayLost(key);
}

Status CopyHolder::MakeDurable(const CopyKey& key) {
  {
    MutexLock lock(mutex_);
    const auto deadline = std::chrono::steady_clock::now() + kDurableLimit;
    for (auto at = copies_.find(key); at != copies_.end(); at = copies_.find(key)) {
      Copy& copy = at->second;
      if (!copy.writing && !CanBeWritten(copy)) break;  // it is there, or never will be
      if (stopping_ || std::chrono::steady_clock::now() >= deadline) {
        return Error{Code::kTimeout, "NVMe does not take it"};
      }
      if (!copy.writing && !copy.hurried) {
        copy.hurried = true;
        due_.push_front({milliseconds(0), key});
        due_changed_.notify_all();
      }
      changed_.wait_until(lock.native(), deadline);
    }
  }
  if (parts_.segments != nullptr) KVC_TRY(parts_.segments->Flush(true));
  return FlushRecords(true);
}

Status CopyHolder::WriteBackAll() {
  if (parts_.segments == nullptr) return FlushRecords(true);
  {
    MutexLock lock(mutex_);
    for (Due& due : due_) due.at = milliseconds(0);
    due_changed_.notify_all();
    // Gives up where nothing moves any more (a full disk): what cannot be kept is a miss.
    uint64_t before = dirty_bytes_;
    int idle_rounds = 0;
    while ((!due_.empty() || writes_in_flight_ > 0) && idle_rounds < 50) {
      changed_.wait_for(lock.native(), milliseconds(100));
      if (nvme_full_ && writes_in_flight_ == 0) idle_rounds += 10;
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

// ---- Room

bool CopyHolder::MayAskFor(const Copy& copy, uint64_t bytes) const {
  return cluster_ != nullptr && copy.version != 0 && !copy.releasing &&
         (releasing_bytes_ == 0 || releasing_bytes_ + copy.facts.length <= bytes);
}

void CopyHolder::BeginRelease(Copy& copy) {
  copy.releasing = true;
  releasing_bytes_ += copy.facts.length;
  CopyMetrics::Get().releases_asked.Add();
}

void CopyHolder::EndRelease(Copy& copy) {
  if (copy.releasing) releasing_bytes_ -= copy.facts.length;
  copy.releasing = false;
}

void CopyHolder::AskRelease(const std::vector<CopyKey>& keys) {
  meta::Cluster* cluster = nullptr;
  {
    const MutexLock lock(mutex_);
    cluster = cluster_;
  }
  if (cluster == nullptr) return;
  for (const CopyKey& key : keys) cluster->WantRelease(key.first, key.second);
}

bool CopyHolder::TryEvict(SlotId slot) {
  CopyKey key;
  {
    const MutexLock lock(mutex_);
    const auto found = slots_.find(slot);
    if (found == slots_.end()) return false;
    key = found->second;
    Copy& copy = copies_.at(key);
    if (copy.IsInUse()) return false;
    if (copy.place.valid()) {
      if (IsOpen(copy)) return false;
      copy.old_pins = 0;
      FreeSlot(copy);
      CopyMetrics::Get().evicted_dram.Add();
      return true;
    }
    // Dirty with nowhere to go: then the copy itself must go, if the cluster can do without.
    const bool nowhere =
        parts_.segments == nullptr || nvme_full_ || copy.facts.length > nvme_bytes_max_;
    if (!nowhere || !MayAskFor(copy, parts_.slots->capacity_bytes() / 16)) return false;
    // Colder ones were refused while as much as may be was asked for already. When that is granted
    // in the middle of a look through the slots, it is still their turn.
    size_t looked_at = 0;
    for (const CopyKey& colder : ages_) {
      if (colder == key || ++looked_at > kColderMax) break;
      const Copy& other = copies_.at(colder);
      if (other.slot == 0 || other.place.valid() || other.version == 0) continue;
      if (other.releasing || other.IsInUse()) continue;
      key = colder;
      break;
    }
    BeginRelease(copies_.at(key));
  }
  AskRelease({key});
  return false;
}

void CopyHolder::Shed(uint64_t bytes) {
  std::vector<CopyKey> keys;
  {
    const MutexLock lock(mutex_);
    uint64_t asked = 0;
    for (const CopyKey& key : ages_) {
      if (asked >= bytes || keys.size() >= kShedCopiesMax) break;
      Copy& copy = copies_.at(key);
      if (!copy.place.valid()) continue;
      if (!copy.releasing) {
        if (cluster_ == nullptr || copy.version == 0) continue;
        BeginRelease(copy);
        keys.push_back(key);
      }
      asked += copy.facts.length;
    }
  }
  AskRelease(keys);
}

// ---- Segments

CopyHolder::Copies::iterator CopyHolder::AtPlace(const EntryMeta& meta, const SegmentPlace& place) {
  const meta::BlockId id{SpaceIdOf(meta.namespace_uuid), meta.key};
  for (auto at = copies_.lower_bound({id, 0}); at != copies_.end() && at->first.first == id; ++at) {
    const SegmentPlace& here = at->second.place;
    if (here.segment == place.segment && here.offset_4k == place.offset_4k) return at;
  }
  return copies_.end();
}

iouring::Fate CopyHolder::Judge(const EntryMeta& meta, const SegmentPlace& place) {
  const MutexLock lock(mutex_);
  return AtPlace(meta, place) == copies_.end() ? iouring::Fate::kDead : iouring::Fate::kMove;
}

void CopyHolder::Moved(const EntryMeta& meta, const SegmentPlace& before, const SegmentPlace& now) {
  const MutexLock lock(mutex_);
  const auto at = AtPlace(meta, before);
  if (at == copies_.end()) return parts_.segments->MarkDead(now, meta.length);
  at->second.place = now;
  PutRecord(at->first, at->second);
}

void CopyHolder::Lost(const EntryMeta& meta, const SegmentPlace& place) {
  CopyKey key;
  {
    const MutexLock lock(mutex_);
    const auto at = AtPlace(meta, place);
    if (at == copies_.end()) return;
    key = at->first;
    Copy& copy = at->second;
    copy.place = {};
    dirty_bytes_ += copy.facts.length;
    if (copy.slot != 0) {
      // Its bytes are in DRAM still: write them again elsewhere.
      PutRecord(key, copy);
      return QueueWriteBack(key, milliseconds(0));
    }
  }
  SayLost(key);
}

void CopyHolder::PersistMoves() {
  const Status written = FlushRecords(true);
  if (!written.ok()) {
    KVC_LOG(Warn, "moved copies could not be written down; what moved is lost if we die now",
            "error={}", LogValue(written.error().text));
  }
}

// ---- Records

void CopyHolder::PutRecord(const CopyKey& key, const Copy& copy) {
  meta::CopyRecord record;
  record.facts = copy.facts;
  record.generation = key.second;
  record.version = copy.version;
  record.place = copy.place;
  record.slot = copy.slot;
  const MutexLock lock(records_mutex_);
  records_.Put(meta::CopyRecordKey(key.first, key.second), meta::EncodeCopyRecord(record));
}

void CopyHolder::DeleteRecord(const CopyKey& key) {
  const MutexLock lock(records_mutex_);
  records_.Delete(meta::CopyRecordKey(key.first, key.second));
}

Status CopyHolder::FlushRecords(bool sync) {
  const MutexLock writing(records_write_mutex_);
  uint64_t applied = 0;
  // What an earlier try could not write comes first: the order of records is their meaning.
  for (const bool retry : {true, false}) {
    if (unwritten_.empty() == retry) continue;
    if (!retry) {
      const MutexLock lock(records_mutex_);
      if (records_.empty()) break;
      std::swap(unwritten_, records_);
      applied = records_sequence_;
      if (!options_.beside_mount) {
        unwritten_.Put(meta::AppliedSequenceKey(), meta::EncodeCounter(records_sequence_));
      }
    }
    Status written = parts_.meta->Write(unwritten_, false);
    if (!written.ok()) {
      if (!records_failing_) {
        KVC_LOG(Warn, "copies' records cannot be written; kept in memory", "error={}",
                LogValue(written.error().text));
      }
      records_failing_ = true;
      return written;
    }
    records_failing_ = false;
  }
  if (applied != 0 && options_.applied) options_.applied(applied);
  return sync ? parts_.meta->Sync() : Status{};
}

uint64_t CopyHolder::AppliedSequence(meta::MetaStore& store) {
  const auto value = store.Get(meta::AppliedSequenceKey());
  if (!value.ok() || !value->has_value()) return 0;
  return meta::DecodeCounter(**value).value_or(0);
}

}  // namespace kvcfs::fs
