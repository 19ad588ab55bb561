// What was written goes to the cluster: a closed block, or one that fsync has asked for, and where
// its bytes are then.
//
// Where this host holds copies for the cluster (BlockStoreParts::copies), the slot that was written
// is one of them: nothing is copied, and what peers read is what the application wrote. What is
// flushed may still be written, so that its copy is another slot.
#include <sys/mman.h>

#include "base/crash_point.h"
#include "base/crc32c.h"
#include "base/log.h"
#include "fs/about_to_block.h"
#include "fs/block_metrics.h"
#include "fs/block_store.h"
#include "fs/bytes_io.h"
#include "fs/copy_holder.h"

namespace kvcfs::fs {
namespace {

using iouring::SlotId;
using iouring::SlotRecord;
using meta::BlockFacts;
using meta::BlockHash62;
using meta::BlockRef;
using meta::BlockState;
using meta::NamespaceId;
using std::chrono::milliseconds;

constexpr milliseconds kCreateLimit{1500};
constexpr milliseconds kPublishLimit{6000};
// What was just published is not leased, but the last to go.
constexpr milliseconds kOwn{5000};

}  // namespace

BlockStore::Publication BlockStore::PublishToCluster(SlotId slot, const Fd& file, uint64_t length,
                                                     bool closed) {
  AboutToBlock();
  Publication to;
  BlockKey parent;
  std::optional<SlotFacts> known;
  uint8_t replicas = 1;
  {
    MutexLock lock(mutex_);
    const SlotRecord& record = parts_.slots->record(slot);
    const std::optional<Namespace> space = parts_.namespaces->Get(record.namespace_id);
    const bool doomed = (record.flags & iouring::kSlotDoomed) != 0;
    if (!space || doomed || length > space->block_bytes) return to;
    to.id = {SpaceIdOf(space->uuid), record.key};
    parent = record.parent;
    replicas = static_cast<uint8_t>(space->replicas);
    if (const auto found = pending_facts_.find(slot); found != pending_facts_.end()) {
      known = found->second;
    }
  }
  if (!closed) {
    // It may still be written, here and now.
    std::vector<std::byte> bytes(length);
    to.code = ReadExactly(file.get(), bytes)
                  ? Publish(slot, known, parent, replicas, bytes, closed, &to)
                  : Code::kIo;
    return to;
  }
  void* mapped = ::mmap(nullptr, length, PROT_READ, MAP_SHARED, file.get(), 0);
  if (mapped == MAP_FAILED) {
    to.code = Code::kIo;
    return to;
  }
  to.code = Publish(slot, known, parent, replicas, {static_cast<const std::byte*>(mapped), length},
                    closed, &to);
  ::munmap(mapped, length);
  return to;
}

Code BlockStore::Publish(SlotId slot, const std::optional<SlotFacts>& known, const BlockKey& parent,
                         uint8_t replicas, std::span<const std::byte> bytes, bool closed,
                         Publication* to) {
  to->crc32c = Crc32c(bytes);
  CopyHolder* const holder = parts_.copies;
  if (known && known->published) {
    // As it was when it was flushed: what was written since came too late.
    to->held_here = holder != nullptr && holder->Holds(known->facts);
    const bool same = known->facts.length == bytes.size() && known->facts.crc32c == to->crc32c;
    return same ? Code::kOk : Code::kExists;
  }
  BlockFacts facts;
  if (known) {
    facts = known->facts;
  } else {
    // Created while the cluster was away, or under an earlier daemon.
    const Result<BlockFacts> created =
        parts_.cluster->Create(to->id, parent, Patience(kCreateLimit));
    if (!created.ok()) return created.code();
    facts = *created;
  }
  facts.length = static_cast<uint32_t>(bytes.size());
  facts.crc32c = to->crc32c;
  facts.mtime_s = NowSeconds();
  facts.replicas = replicas;
  std::optional<uint64_t> own;
  if (holder != nullptr && holder->Holds(facts)) {
    to->held_here = true;  // published, and the daemon died before it was said
  } else {
    if (holder != nullptr) {
      // Without room for one here, all copies go to others.
      const Result<uint64_t> made =
          closed ? holder->Adopt(facts, slot) : holder->Accept(facts, bytes);
      if (made.ok()) {
        own = *made;
        if (closed) to->adopted = own;
        parts_.cluster->Sealed(facts, *own);
      }
    }
    const Result<uint32_t> copies =
        parts_.cluster->Publish(facts, own, bytes, Patience(kPublishLimit));
    Heard(copies.code());
    if (!copies.ok()) return copies.code();
    to->held_here = own && holder->Holds(facts);
  }
  MutexLock lock(mutex_);
  pending_facts_[slot] = {.facts = facts, .published = true};
  return Code::kOk;
}

FsStatus BlockStore::FlushToCluster(Ino ino, uint64_t length, MutexLock& lock) {
  const auto slot = static_cast<SlotId>(ino & 0xffffffff);
  const std::shared_ptr<Fd> file = PendingFile(slot);
  if (file == nullptr) return Fail(EIO);
  lock.native().unlock();
  const Publication flushed = PublishToCluster(slot, *file, length, false);
  Status durable;
  if (flushed.code == Code::kOk && flushed.held_here) durable = parts_.copies->Persist(flushed.id);
  lock.native().lock();
  if (!durable.ok()) {
    KVC_LOG(Warn, "a block could not be made durable", "error={}", LogValue(durable.error().text));
    return Fail(ErrnoOf(durable.code()));
  }
  const Code code = flushed.code;
  if (code == Code::kOk) return {};
  BlockMetrics& metrics = BlockMetrics::Get();
  SlotRecord* record = PendingOf(ino);
  if (record != nullptr) record->flags |= iouring::kSlotDoomed;
  published_.notify_all();
  if (code == Code::kExists) {
    metrics.lost_race.Add();
  } else if (code == Code::kNotFound) {
    metrics.parent_gone.Add();
  } else {
    metrics.unpublished.Add();
    KVC_LOG(Warn, "the cluster did not take a block that was to be durable", "code={}",
            CodeName(code));
    return Fail(code == Code::kNoSpace ? ENOSPC : EIO);
  }
  return {};
}

void BlockStore::CountUnpublished(const SlotRecord& record, Code code) {
  BlockMetrics& metrics = BlockMetrics::Get();
  if (code == Code::kExists) return metrics.lost_race.Add();
  if (code == Code::kNotFound) return metrics.parent_gone.Add();
  KVC_LOG(Warn, "the cluster did not take a block; it is a miss", "key={} code={}",
          record.key.ToHex(), CodeName(code));
  metrics.unpublished.Add();
}

void BlockStore::SettlePublished(SlotId slot, const Publication& publication) {
  const SlotRecord& record = parts_.slots->record(slot);
  const NamespaceId ns = record.namespace_id;
  const BlockKey key = record.key, parent = record.parent;
  BlockState state;
  if (publication.code == Code::kOk) {
    const BlockFacts& facts = pending_facts_[slot].facts;
    state.length = facts.length;
    state.mtime_s = facts.mtime_s;
  } else {
    CountUnpublished(record, publication.code);
  }
  ForgetPending(slot);
  KVC_CRASH_POINT("publish.before_state");
  if (!publication.adopted || !parts_.copies->Take(publication.id, *publication.adopted)) {
    parts_.slots->Free(slot);
    parts_.resident->RoomMayBeHad();
  }
  KVC_CRASH_POINT("publish.after_state");
  // The slot is not ours any more, nor its record.
  if (publication.code == Code::kOk) {
    BlockMetrics::Get().published.Add();
    state.last_use_s = NowSeconds();
    Result<BlockRef> ref = index_.Insert(ns, key, parent, state);
    if (ref.code() == Code::kExists) {
      if (const auto known = index_.Find(ns, key)) ref = *known;
    } else if (ref.ok()) {
      const uint64_t hash = BlockHash62(ns, key);
      ghosts_.erase(hash);
      if (doomed_readers_.contains(ViewOf(*ref).block_ino())) GiveOtherIno(hash);
    }
    // Where its parent is not known here, it is asked for when it is wanted.
    if (ref.ok()) {
      NoteReuse(*ref, true, true);
      NotePublished(*ref, publication);
    }
  }
  published_.notify_all();
}

void BlockStore::NotePublished(BlockRef ref, const Publication& publication) {
  const uint64_t hash = BlockHash62(index_.namespace_of(ref), index_.key(ref));
  absent_.erase(hash);
  Told& told = told_[hash];
  told = {.crc32c = publication.crc32c,
          .places = {},
          .valid_until = parts_.clock->Monotonic() + kOwn,
          .leased_until = milliseconds(0)};
  if (publication.held_here && publication.adopted) {
    told.places.push_back({parts_.cluster->self(), *publication.adopted});
  }
}

}  // namespace kvcfs::fs
