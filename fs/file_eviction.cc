// Ordinary files in the tiers: what the owners of slots and segments ask, and whole files that go.
#include <algorithm>

#include "base/log.h"
#include "fs/tiered_file_tree.h"

namespace kvcfs::fs {
namespace {

using iouring::EntryKind;
using iouring::Fate;
using iouring::SlotRecord;

// Enough to choose the coldest among, and soon looked through.
constexpr size_t kShedCandidates = 4096;
// A round over a million inodes takes a second.
constexpr Millis kShedPause{2000};
// A lease is given for so much longer, so that what is looked at all the time takes the lock once
// in that time.
constexpr Millis kLeaseAhead{5000};

}  // namespace

bool TieredFileTree::IsLeased(const FileNode& node) const {
  return Millis(node.lease_until_ms.load()) > parts_.clock->Monotonic();
}

void TieredFileTree::Lease(FileNode& node, Look look) {
  const uint64_t bytes = node.record.size;
  // Shorter ones are never evicted, and leases are counted by what was there first.
  if (!node.record.IsRegular() || bytes < options_.evict_bytes_min) return;
  // What the kernel may still answer by itself is promised that much longer.
  const auto cached = std::chrono::duration_cast<Millis>(
      std::chrono::duration<double>(std::max(options_.entry_timeout_s, options_.attr_timeout_s)));
  const Millis now = parts_.clock->Monotonic(), until = now + options_.lease + cached;
  if (until == now || Millis(node.lease_until_ms.load()) >= until) return;
  MutexLock lock(lease_mutex_);
  leases_.Expire(now);
  // Writers alone must not use up what those who ask are promised.
  if (look == Look::kWritten && leases_.leased_bytes() >= leases_.bytes_max() / 2) return;
  const Millis granted = leases_.Grant(node.ino, bytes, now, until + kLeaseAhead);
  if (granted > now) node.lease_until_ms = granted.count();
}

void TieredFileTree::WriteBackSoon(iouring::SlotId slot) {
  if (const Ino ino = content_.WaitsForCopy(slot); ino != 0) write_back_.CopySoon(ino);
}

bool TieredFileTree::RemoveEverywhere(const NodeRef& node, Why why) {
  std::string path;
  uint64_t bytes = 0;
  std::vector<NameStore::LinkName> links;
  {
    MutexLock names(names_);
    path = PathOf(node->ino);
    RecordChanges changes(store_, {node});
    InodeRecord& record = changes.Of(node);
    const bool in_use = [&]() KVC_NO_ANALYSIS {
      if (node->gone) return true;
      if (content_.IsOpen(*node)) return true;
      if (why == Why::kEvicted && (IsLeased(*node) || record.home != Home::kSegment)) return true;
      if (why == Why::kUnfinished) return !record.Has(InodeRecord::kUnpublished);
      if (node->slot == 0 || why != Why::kEvicted) return false;
      content_.CloseBacking(*node);
      node->file.reset();
      return !content_.IsUnused(node->slot);
    }();
    if (in_use) return false;
    bytes = record.size;
    links = store_.LinksOf(node->ino, record);
    for (const NameStore::LinkName& link : links) {
      const FsResult<std::optional<Dentry>> entry = store_.Find(link.directory, link.name);
      if (!entry || !*entry || (*entry)->ino != node->ino) continue;
      store_.RemoveEntry(changes.batch(), link.directory, link.name, (*entry)->cookie);
    }
    record.nlink = 0;
    changes.Delete(node);
    if (!changes.Write([this](FileNode& gone) KVC_NO_ANALYSIS { MarkGone(gone); })) return false;
  }
  DiscardContent(node);
  const int64_t now = NowNanos();
  for (const NameStore::LinkName& link : links) {
    if (const FsResult<NodeRef> directory = table_.Find(link.directory); directory && *directory)
      TouchDirectory(**directory, now);
    if (parts_.notifier != nullptr) parts_.notifier->InvalidateEntry(link.directory, link.name);
  }
  if (parts_.notifier != nullptr) parts_.notifier->InvalidateInode(node->ino);
  if (why == Why::kDamaged) {
    ++damaged_files_;
    KVC_LOG(Error, "a file is damaged and was removed", "path={} ino={:x} bytes={}", LogValue(path),
            node->ino, bytes);
  } else if (why == Why::kEvicted) {
    ++evicted_files_;
    KVC_LOG(Debug, "evicted a file", "path={} bytes={}", LogValue(path), bytes);
  }
  return true;
}

uint64_t TieredFileTree::Shed(uint64_t bytes, std::chrono::seconds younger_than) {
  struct Candidate {
    int64_t age_ms = 0;
    Ino ino = 0;
    uint64_t bytes = 0;
  };
  MutexLock shedding(shed_mutex_);
  const Millis now = parts_.clock->Monotonic();
  if (shed_failed_at_ >= Millis(0) && now < shed_failed_at_ + kShedPause &&
      younger_than >= shed_failed_age_) {
    return 0;
  }
  const int64_t now_ms = now.count(), now_nanos = NowNanos();
  uint64_t shed = 0;
  // Once around at most; each stretch gives its coldest.
  bool wrapped = false;
  for (const Ino begin = shed_hand_; shed < bytes;) {
    std::vector<Candidate> candidates;
    Ino next = 0;
    store_.ForEachInode(shed_hand_, [&](Ino ino, const InodeRecord& record) {
      if (candidates.size() >= kShedCandidates || (wrapped && ino >= begin)) {
        next = ino;
        return false;
      }
      if (!record.IsRegular() || record.home != Home::kSegment || record.nlink == 0 ||
          record.size < options_.evict_bytes_min || record.Has(InodeRecord::kNeverEvict)) {
        return true;
      }
      // The last use: in memory to the millisecond, else what the record tells.
      int64_t age_ms = (now_nanos - std::max(record.atime_nanos, record.mtime_nanos)) / 1'000'000;
      if (const NodeRef node = table_.Peek(ino)) {
        if (IsLeased(*node)) return true;
        if (const int64_t used = node->last_use_ms.load(); used != 0) age_ms = now_ms - used;
      }
      if (age_ms < std::chrono::duration_cast<Millis>(younger_than).count()) return true;
      candidates.push_back({age_ms, ino, record.size});
      return true;
    });
    std::sort(candidates.begin(), candidates.end(),
              [](const Candidate& a, const Candidate& b) { return a.age_ms > b.age_ms; });
    for (const Candidate& candidate : candidates) {
      if (shed >= bytes) break;
      const FsResult<NodeRef> node = table_.Find(candidate.ino);
      if (node && *node != nullptr && RemoveEverywhere(*node, Why::kEvicted)) {
        shed += candidate.bytes;
      }
    }
    const bool stopped_at_begin = wrapped && next >= begin;
    shed_hand_ = next;
    if (next == 0) {
      if (wrapped || begin == 0) break;
      wrapped = true;
    } else if (stopped_at_begin) {
      break;
    }
  }
  shed_failed_at_ = shed == 0 ? now : Millis(-1);
  shed_failed_age_ = younger_than;
  if (shed > 0) write_back_.GiveBackRetired();
  return shed;
}

// ---- entries of the segments

Fate TieredFileTree::Judge(const iouring::EntryMeta& meta, const iouring::SegmentPlace& place) {
  // Tombstones are never written: names and inodes are not rebuilt from segments, so an entry that
  // no record refers to is dead by itself.
  if (meta.kind != EntryKind::kFile) return Fate::kDead;
  if (const NodeRef node = table_.Peek(meta.ino)) {
    MutexLock lock(node->attr);
    return node->record.stable.place == place ? Fate::kMove : Fate::kDead;
  }
  const FsResult<std::optional<InodeRecord>> record = store_.GetInode(meta.ino);
  if (!record) return Fate::kMove;  // cannot tell now
  return *record && (*record)->stable.place == place ? Fate::kMove : Fate::kDead;
}

void TieredFileTree::Moved(const iouring::EntryMeta& meta, const iouring::SegmentPlace& before,
                           const iouring::SegmentPlace& now) {
  bool wanted = false;
  if (const FsResult<NodeRef> node = table_.Find(meta.ino); node && *node != nullptr) {
    MutexLock lock((*node)->attr);
    InodeRecord& record = (*node)->record;
    wanted = record.stable.place == before && !(*node)->gone;
    if (wanted) {
      record.stable.place = now;
      if ((*node)->slot != 0 && content_.Slot(**node).place == before) {
        content_.Slot(**node).place = now;
      }
      (void)content_.Persist(**node);
    }
  }
  if (!wanted) queues_.Retire({now, meta.length, 0});
}

void TieredFileTree::Lost(const iouring::EntryMeta& meta, const iouring::SegmentPlace& place) {
  const FsResult<NodeRef> node = table_.Find(meta.ino);
  if (!node || *node == nullptr) return;
  MutexLock lock((*node)->attr);
  InodeRecord& record = (*node)->record;
  if (record.stable.place != place) return;
  const bool newest = record.stable.version == record.version;
  (void)content_.ReplaceStable(record, {});
  if (content_.WhereIs(**node) == Where::kSlot) {
    // Its bytes are in DRAM too: write them once more.
    SlotRecord& slot = content_.Slot(**node);
    const SlotBooks::Change change(content_.books, slot);
    slot.place = {};
    slot.flags |= iouring::kSlotDirty;
    record.home = Home::kDram;
    (void)content_.Persist(**node);
    content_.QueueCopy(**node, Millis(0));
  } else if (newest) {
    record.home = Home::kDram;  // which is not there: it is lost
    queues_.QueueLost(meta.ino);
  }
}

void TieredFileTree::DropLost(Ino ino) {
  const FsResult<NodeRef> node = table_.Find(ino);
  if (!node || *node == nullptr) return;
  {
    MutexLock lock((*node)->attr);
    if (content_.WhereIs(**node) != Where::kLost) return;
  }
  RemoveEverywhere(*node, Why::kDamaged);
}

FileTreeStats TieredFileTree::Stats() {
  FileTreeStats stats;
  stats.files = static_cast<uint64_t>(std::max<int64_t>(0, files_.load()));
  stats.directories = static_cast<uint64_t>(std::max<int64_t>(0, directories_.load()));
  stats.evicted_files = evicted_files_.load();
  stats.damaged_files = damaged_files_.load();
  stats.content_bytes = content_.books.nvme_bytes() + content_.books.dirty_bytes();
  stats.dirty_bytes = content_.books.dirty_bytes();
  stats.disk_files = static_cast<uint64_t>(std::max<int64_t>(0, content_.disk_files.load()));
  return stats;
}

}  // namespace kvcfs::fs
