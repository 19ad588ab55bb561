// Dropping blocks: by name, with what extends them; never from another chain.
#include <algorithm>

#include "base/crash_point.h"
#include "base/log.h"
#include "fs/block_metrics.h"
#include "fs/block_store.h"
#include "meta/block_records.h"

namespace kvcfs::fs {
namespace {

using iouring::SlotId;
using iouring::SlotRecord;
using meta::BlockHash62;
using meta::BlockRef;
using meta::BlockState;
using meta::NamespaceId;

// 30 s: `rm -r <tip>` unlinks the names that went with the first one, then the directory.
constexpr std::chrono::milliseconds kGhostLife{30'000};

}  // namespace

void BlockStore::RemoveLeaf(BlockRef ref, Counter& why) {
  const BlockState state = index_.state(ref);
  const NamespaceId ns = index_.namespace_of(ref);
  const BlockKey key = index_.key(ref);
  const Ino ino = open_copies_.empty() ? 0 : ViewOf(ref).block_ino();
  const Status removed = index_.RemoveLeaf(ref);
  KVC_CHECK(removed.ok());
  leases_.Drop(BlockHash62(ns, key));
  told_.erase(BlockHash62(ns, key));
  if (const auto other = other_inos_.find(BlockHash62(ns, key)); other != other_inos_.end()) {
    other_ino_hashes_.erase(other->second);
    other_inos_.erase(other);
  }
  const bool here = state.slot != 0 || state.segment != 0;
  if (const auto found = space_bytes_.find(ns); here && found != space_bytes_.end()) {
    found->second -= std::min<uint64_t>(found->second, state.length);
  }
  if (state.segment != 0 && parts_.segments != nullptr) {
    parts_.segments->MarkDead({state.segment, state.offset_4k, state.sequence}, state.length);
    DeleteRecord(ns, key);
  }
  if (!open_copies_.empty()) {
    const auto open = open_copies_.find(ino);
    if (open != open_copies_.end()) doomed_readers_[ino] = open->second.slot;
  }
  if (state.slot != 0) {
    --resident_blocks_;
    SlotRecord& record = parts_.slots->record(state.slot);
    if ((record.flags & iouring::kSlotDirty) != 0) dirty_bytes_ -= state.length;
    if (record.readers > 0) {
      // Who has it open goes on reading; the slot goes with the last of them.
      record.flags |= iouring::kSlotDoomed;
      doomed_readers_[record.ino] = state.slot;
      parts_.resident->Remove(state.slot);
    } else {
      FreeBlockSlot(state.slot);
    }
  }
  why.Add();
}

uint64_t BlockStore::DropTree(BlockRef ref, Counter& why, bool tombstone) {
  const NamespaceId ns = index_.namespace_of(ref);
  const BlockKey key = index_.key(ref);
  KVC_CRASH_POINT("drop.before_remove");
  const std::vector<BlockRef> all = index_.Subtree(ref);
  // One tombstone hides the whole subtree from a rebuild: what has no parent is dropped there too.
  // Before the places are given up: a segment may be erased as soon as nothing in it lives.
  if (tombstone) AppendTombstone(ns, key);
  for (const BlockRef each : all) RemoveLeaf(each, why);
  // Capacity takes only what is not leased, so no name of it is cached by the kernel any more.
  const BlockMetrics& metrics = BlockMetrics::Get();
  if (&why == &metrics.dropped || &why == &metrics.damaged || &why == &metrics.gone) {
    parts_.notifier->BumpEpoch();
  }
  return all.size();
}

void BlockStore::AppendTombstone(NamespaceId ns, const BlockKey& key) {
  const std::optional<Namespace> space = parts_.namespaces->Get(ns);
  if (parts_.segments == nullptr || !space) return;
  iouring::AppendRequest request;
  request.meta.kind = iouring::EntryKind::kBlockTombstone;
  request.meta.namespace_uuid = space->uuid;
  request.meta.key = key;
  request.fill = [](std::span<std::byte>) { return true; };
  // A full queue or disk costs only that a rebuild after a crash may bring the block back.
  (void)parts_.segments->Append(std::move(request));
}

FsStatus BlockStore::Drop(NamespaceId ns, const BlockKey& key, uint64_t* dropped) {
  const RecordsWritten behind(this);
  MutexLock lock(mutex_);
  if (!pending_.empty()) AwaitPublication(ns, key, lock);
  if (parts_.cluster != nullptr) {
    const FsStatus done = DropInCluster(ns, key, lock);
    if (dropped != nullptr)
      *dropped = done ? 1 : 0;  // others may have been dropped that we never saw
    if (!done) return done;
  }
  const std::optional<BlockRef> ref = index_.Find(ns, key);
  if (!ref) return parts_.cluster != nullptr ? FsStatus{} : Fail(ENOENT);
  const uint64_t count = DropTree(*ref, BlockMetrics::Get().dropped, true);
  if (dropped != nullptr) *dropped = count;
  return {};
}

void BlockStore::RememberGhosts(const std::vector<BlockRef>& refs) {
  const auto until = parts_.clock->Monotonic() + kGhostLife;
  if (ghosts_.size() > 10'000) {
    const auto now = parts_.clock->Monotonic();
    std::erase_if(ghosts_, [&](const auto& ghost) { return ghost.second.until < now; });
  }
  for (const BlockRef ref : refs) {
    const NamespaceId ns = index_.namespace_of(ref);
    const BlockKey key = index_.key(ref);
    ghosts_[BlockHash62(ns, key)] = {ns, key, until};
  }
}

FsStatus BlockStore::UnlinkFromChain(NamespaceId ns, const BlockKey& tip, uint32_t ordinal,
                                     const BlockKey& key) {
  const RecordsWritten behind(this);
  MutexLock lock(mutex_);
  if (parts_.cluster != nullptr) {
    if (Confirm(ns, key, lock)) {
      const FsStatus own = IsOwnTail(ns, tip, ordinal, lock);
      if (!own) return own;
    }
  }
  std::optional<BlockRef> ref = index_.Find(ns, key);
  if (!ref) {
    // It went with an earlier unlink of its chain.
    return ghosts_.contains(BlockHash62(ns, key)) ? FsStatus{} : Fail(ENOENT);
  }
  const std::optional<BlockRef> tip_ref = index_.Find(ns, tip);
  if (!tip_ref) return Fail(ENOENT);
  const std::vector<BlockRef> chain = index_.Chain(*tip_ref);
  if (ordinal >= chain.size() || !(chain[ordinal] == *ref)) return Fail(ENOENT);
  if (parts_.cluster == nullptr) {
    for (size_t at = ordinal; at < chain.size(); ++at) {
      const uint32_t own = at + 1 < chain.size() ? 1 : 0;
      if (index_.child_count(chain[at]) > own) return Fail(EBUSY);  // another chain shares it
    }
  }
  RememberGhosts(index_.Subtree(*ref));
  if (parts_.cluster != nullptr) {
    const FsStatus done = DropInCluster(ns, key, lock);
    if (!done && done.error().value != ENOENT) return done;
    ref = index_.Find(ns, key);
  }
  if (ref) DropTree(*ref, BlockMetrics::Get().dropped, true);
  return {};
}

FsStatus BlockStore::RemoveTip(NamespaceId ns, const BlockKey& tip) {
  const RecordsWritten behind(this);
  MutexLock lock(mutex_);
  std::optional<BlockRef> ref =
      parts_.cluster != nullptr ? Confirm(ns, tip, lock) : index_.Find(ns, tip);
  if (!ref) {
    const bool ghost = ghosts_.erase(BlockHash62(ns, tip)) > 0;
    return ghost ? FsStatus{} : Fail(ENOENT);
  }
  if (parts_.cluster != nullptr) {
    const FsStatus own = IsOwnTail(ns, tip, index_.ordinal(*ref), lock);
    if (!own) return own.error().value == EBUSY ? Fail(ENOTEMPTY) : own;
    const FsStatus done = DropInCluster(ns, tip, lock);
    if (!done) return done;
    ref = index_.Find(ns, tip);
    if (!ref) return {};
  } else if (index_.child_count(*ref) > 0) {
    return Fail(ENOTEMPTY);
  }
  DropTree(*ref, BlockMetrics::Get().dropped, true);
  return {};
}

uint64_t BlockStore::DropRoots(NamespaceId ns, Counter& why, bool tombstone) {
  uint64_t dropped = 0;
  std::vector<BlockRef> roots;
  index_.ListBlocks(ns, 0, [&](BlockRef ref, uint64_t) KVC_NO_ANALYSIS {
    if (index_.ordinal(ref) == 0) roots.push_back(ref);
    return true;
  });
  for (const BlockRef root : roots) dropped += DropTree(root, why, tombstone);
  return dropped;
}

uint64_t BlockStore::DropNamespace(NamespaceId ns) {
  const RecordsWritten behind(this);
  const uint64_t there = parts_.cluster != nullptr ? DropLeavesOf(ns) : 0;
  MutexLock lock(mutex_);
  const uint64_t here = DropRoots(ns, BlockMetrics::Get().dropped, true);
  return std::max(here, there);
}

bool BlockStore::IsGhost(NamespaceId ns, const BlockKey& key) {
  MutexLock lock(mutex_);
  const auto found = ghosts_.find(BlockHash62(ns, key));
  return found != ghosts_.end() && found->second.until > parts_.clock->Monotonic();
}

std::optional<std::pair<NamespaceId, BlockKey>> BlockStore::GhostOf(Ino chain_ino) {
  MutexLock lock(mutex_);
  const auto found = ghosts_.find(chain_ino & ((Ino{1} << kInoKindShift) - 1));
  if (found == ghosts_.end() || found->second.until <= parts_.clock->Monotonic()) {
    return std::nullopt;
  }
  return std::pair(found->second.ns, found->second.key);
}

}  // namespace kvcfs::fs
