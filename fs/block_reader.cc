// Reading a block: what is resident is answered at once, the rest is fetched whole into a slot.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/crash_point.h"
#include "base/crc32c.h"
#include "base/log.h"
#include "fs/about_to_block.h"
#include "fs/block_metrics.h"
#include "fs/block_store.h"
#include "fs/copy_holder.h"

namespace kvcfs::fs {
namespace {

using iouring::SlotId;
using iouring::SlotRecord;
using iouring::SlotState;
using meta::BlockHash62;
using meta::BlockRef;
using meta::BlockState;
using meta::NamespaceId;

constexpr uint64_t kPassthroughHandle = uint64_t{1} << 40;
constexpr uint64_t kPage = 4096;
constexpr std::chrono::milliseconds kOtherFetchLimit{1000};

uint64_t RoundUp(uint64_t bytes) {
  return (bytes + kPage - 1) / kPage * kPage;
}
SlotId SlotOf(uint64_t handle) {
  return static_cast<SlotId>(handle & 0xffffffff);
}

}  // namespace

FsResult<OpenReply> BlockStore::Open(const Caller& caller, Ino ino, int flags) {
  (void)caller;
  if ((flags & O_ACCMODE) != O_RDONLY || (flags & O_TRUNC) != 0) return Fail(EEXIST);
  BlockMetrics& metrics = BlockMetrics::Get();
  bool fetched = false;
  Uses uses;
  // A block that was fetched may be evicted before we open it; then fetch again.
  for (int attempt = 0; attempt < 8; ++attempt) {
    NamespaceId ns = 0;
    BlockKey key;
    bool on_nvme = false;
    {
      MutexLock lock(mutex_);
      const std::optional<BlockRef> ref = RefOf(ino);
      // Found under a name that leads elsewhere by now: the kernel looks it up again.
      if (!ref && doomed_readers_.contains(ino)) return Fail(ESTALE);
      // Nor does this host remember all blocks of a cluster.
      if (!ref && parts_.cluster != nullptr && attempt == 0) return Fail(ESTALE);
      if (!ref) break;
      const BlockState state = index_.state(*ref);
      if (const auto open = open_copies_.find(ino); open != open_copies_.end()) {
        return OpenAgain(*ref, ino, open->second.slot);
      }
      if (state.slot != 0) {
        NoteReuseOnce(*ref);
        index_.Touch(*ref, NowSeconds(), true);
        parts_.resident->Touch(state.slot);
        if (!fetched) metrics.opens_dram.Add();
        if (parts_.cluster != nullptr && !fetched) NoteUse(*ref, &uses);
        const FsResult<OpenReply> open = OpenResident(state.slot);
        lock.native().unlock();
        if (!uses.empty()) TellUses(uses);
        return open;
      }
      on_nvme = state.segment != 0;
      if (parts_.cluster != nullptr && on_nvme) NoteUse(*ref, &uses);
      ns = index_.namespace_of(*ref);
      key = index_.key(*ref);
      if (options_.prefetch_blocks > 0 && attempt == 0) PrefetchBehind(*ref);
    }
    fetched = true;
    if (parts_.copies != nullptr) {
      bool from_nvme = false;
      if (const Result<SlotId> slot = PinCopy(ns, key, &from_nvme); slot.ok()) {
        const FsResult<OpenReply> open = OpenCopy(ino, *slot);
        if (!open && open.error().value == EAGAIN) continue;
        if (open) (from_nvme ? metrics.opens_nvme : metrics.opens_dram).Add();
        return open;
      }
    }
    AboutToBlock();
    if (!FetchBlock(ns, key).ok()) break;
    (on_nvme ? metrics.opens_nvme : metrics.opens_peer).Add();
  }
  metrics.opens_missed.Add();
  return Fail(ENOENT);
}

Result<SlotId> BlockStore::PinCopy(NamespaceId ns, const BlockKey& key, bool* from_nvme) {
  meta::BlockId id;
  uint64_t length = 0;
  uint32_t crc = 0;
  {
    MutexLock lock(mutex_);
    const std::optional<meta::BlockId> named = IdOf(ns, key);
    const std::optional<BlockRef> ref = index_.Find(ns, key);
    if (!named || !ref) return Error{Code::kNotFound, "not cached"};
    id = *named;
    length = index_.state(*ref).length;
    if (const auto told = told_.find(BlockHash62(ns, key)); told != told_.end()) {
      crc = told->second.crc32c;
    }
  }
  Result<SlotId> slot = parts_.copies->PinSlot(id, length, crc, false);
  if (slot.code() != Code::kBusy) return slot;
  AboutToBlock();
  *from_nvme = true;
  return parts_.copies->PinSlot(id, length, crc, true);
}

FsResult<OpenReply> BlockStore::OpenAgain(BlockRef ref, Ino ino, SlotId slot) {
  const uint64_t hash = BlockHash62(index_.namespace_of(ref), index_.key(ref));
  const SlotRecord& record = parts_.slots->record(slot);
  const auto told = told_.find(hash);
  if (record.length != index_.state(ref).length ||
      (told != told_.end() && told->second.crc32c != record.crc32c)) {
    // Of another version than what is open: it gets a number of its own.
    doomed_readers_[ino] = slot;
    GiveOtherIno(hash);
    return Fail(ESTALE);
  }
  // An inode has one backing file while it is open, whatever has become of the copy.
  NoteReuseOnce(ref);
  index_.Touch(ref, NowSeconds(), true);
  const FsResult<OpenReply> open = OpenResident(slot);
  if (!open) return open;
  parts_.copies->PinAgain(slot);
  ++open_copies_[ino].readers;
  BlockMetrics::Get().opens_dram.Add();
  return open;
}

FsResult<OpenReply> BlockStore::OpenCopy(Ino ino, SlotId slot) {
  FsResult<OpenReply> open = Fail(ESTALE);
  {
    MutexLock lock(mutex_);
    // Gone meanwhile: the kernel looks it up again.
    const std::optional<BlockRef> ref = RefOf(ino);
    if (ref && (open_copies_.contains(ino) || index_.state(*ref).slot != 0)) {
      open = Fail(EAGAIN);  // another call was first, perhaps with another slot
    } else if (ref) {
      NoteReuseOnce(*ref);
      index_.Touch(*ref, NowSeconds(), true);
      SlotRecord& record = parts_.slots->record(slot);
      if (record.readers == 0) {
        record.ino = ino;
        record.namespace_id = index_.namespace_of(*ref);
        record.mtime_nanos = ViewOf(*ref).mtime_nanos;
      }
      open = OpenResident(slot);
      if (open) open_copies_[ino] = {slot, 1};
    }
  }
  if (!open) parts_.copies->UnpinSlot(slot);
  return open;
}

FsResult<OpenReply> BlockStore::OpenResident(SlotId slot) {
  SlotRecord& record = parts_.slots->record(slot);
  OpenReply open;
  open.handle = slot;
  open.mode = OpenMode::kDirect;
  if (parts_.backing->enabled()) {
    if (record.backing_id == 0) {
      const Result<Fd> file = parts_.slots->OpenFile(slot, O_RDONLY);
      const Result<uint32_t> id =
          file.ok() ? parts_.backing->OpenBacking(file->get()) : Result<uint32_t>(file.error());
      if (id.ok()) record.backing_id = *id;
    }
    if (record.backing_id != 0) {
      open.mode = OpenMode::kPassthrough;
      open.backing_id = record.backing_id;
      open.handle |= kPassthroughHandle;
    }
  }
  if (open.mode == OpenMode::kDirect && !MapSlot(slot, record.length)) return Fail(ENOMEM);
  ++record.readers;
  if (options_.resumed) opened_here_.insert(slot);
  return open;
}

bool BlockStore::MapSlot(SlotId slot, uint64_t length) {
  if (mappings_.contains(slot)) return true;
  const Result<Fd> file = parts_.slots->OpenFile(slot, O_RDONLY);
  if (!file.ok()) return false;
  void* mapped = ::mmap(nullptr, length, PROT_READ, MAP_SHARED, file->get(), 0);
  if (mapped == MAP_FAILED) {
    KVC_LOG(Error, "cannot map a slot; raise vm.max_map_count", "slot={}", slot);
    return false;
  }
  mappings_[slot] = {mapped, length};
  return true;
}

FsResult<std::span<const std::byte>> BlockStore::Mapped(Ino ino, uint64_t handle) {
  MutexLock lock(mutex_);
  const SlotId slot = SlotOf(handle);
  if (slot == 0 || slot > parts_.slots->slot_count()) return Fail(EBADF);
  const SlotRecord& record = parts_.slots->record(slot);
  if (record.state.load() != SlotState::kBlock || !IsOpenAs(ino, slot)) return Fail(EBADF);
  if (!MapSlot(slot, record.length)) return Fail(ENOMEM);
  const auto& [mapped, bytes] = mappings_[slot];
  return std::span(static_cast<const std::byte*>(mapped), bytes);
}

void BlockStore::Release(Ino ino, uint64_t handle) {
  MutexLock lock(mutex_);
  const SlotId slot = SlotOf(handle);
  if (slot == 0 || slot > parts_.slots->slot_count()) return;
  SlotRecord& record = parts_.slots->record(slot);
  if (record.state.load() != SlotState::kBlock || !IsOpenAs(ino, slot)) return;
  if ((record.flags & iouring::kSlotCopy) != 0) return ReleaseCopy(ino, slot, lock);
  if (record.readers > 0) --record.readers;
  if (record.readers > 0) return;
  opened_here_.erase(slot);
  if (const auto found = mappings_.find(slot); found != mappings_.end()) {
    ::munmap(found->second.first, found->second.second);
    mappings_.erase(found);
  }
  if ((record.flags & iouring::kSlotDoomed) != 0) {
    doomed_readers_.erase(ino);
    FreeBlockSlot(slot);
  }
}

bool BlockStore::IsOpenAs(Ino ino, SlotId slot) {
  if (parts_.slots->record(slot).ino == ino) return true;
  const auto open = open_copies_.find(ino);
  return open != open_copies_.end() && open->second.slot == slot;
}

void BlockStore::ReleaseCopy(Ino ino, SlotId slot, MutexLock& lock) {
  SlotRecord& record = parts_.slots->record(slot);
  if (record.readers == 0) return;
  --record.readers;
  if (const auto open = open_copies_.find(ino); open != open_copies_.end()) {
    if (open->second.readers > 0) --open->second.readers;
    if (open->second.readers == 0) {
      open_copies_.erase(open);
      doomed_readers_.erase(ino);
    }
  }
  if (record.readers == 0) {
    opened_here_.erase(slot);
    if (const auto found = mappings_.find(slot); found != mappings_.end()) {
      ::munmap(found->second.first, found->second.second);
      mappings_.erase(found);
    }
  }
  lock.native().unlock();
  parts_.copies->UnpinSlot(slot);
  lock.native().lock();
}

void BlockStore::FreeBlockSlot(SlotId slot) {
  CloseBackingOf(slot);
  if (const auto found = mappings_.find(slot); found != mappings_.end()) {
    ::munmap(found->second.first, found->second.second);
    mappings_.erase(found);
  }
  parts_.resident->Remove(slot);
  parts_.slots->Free(slot);
  parts_.resident->RoomMayBeHad();
}

Status BlockStore::FetchBlock(NamespaceId ns, const BlockKey& key) {
  const uint64_t hash = BlockHash62(ns, key);
  iouring::SegmentPlace place;
  iouring::EntryMeta meta;
  {
    MutexLock lock(mutex_);
    const auto begin = std::chrono::steady_clock::now();
    while (fetching_.contains(hash)) {
      published_.wait_for(lock.native(), std::chrono::milliseconds(100));
      if (stopping_) return Error{Code::kCancelled, "stopping"};
    }
    const std::optional<BlockRef> ref = index_.Find(ns, key);
    if (!ref) return Error{Code::kNotFound, "not cached"};
    const BlockState state = index_.state(*ref);
    if (state.slot != 0) return {};
    // Another one has waited for peers as long as that may take, and in vain.
    if (parts_.cluster != nullptr && std::chrono::steady_clock::now() - begin > kOtherFetchLimit) {
      return Error{Code::kTimeout, "others waited for it in vain"};
    }
    place = {state.segment, state.offset_4k, state.sequence};
    meta.length = state.length;
    fetching_[hash] = 1;
  }
  const std::optional<Namespace> space = parts_.namespaces->Get(ns);
  meta.kind = iouring::EntryKind::kBlock;
  meta.key = key;
  if (space) meta.namespace_uuid = space->uuid;

  const auto end_fetch = [&]() KVC_NO_ANALYSIS {
    fetching_.erase(hash);
    published_.notify_all();
  };
  const Result<SlotId> slot = parts_.resident->CreateSlot(meta.length, options_.room_wait);
  const bool on_nvme = parts_.segments != nullptr && place.valid();
  if (!slot.ok() || (!on_nvme && parts_.cluster == nullptr)) {
    if (slot.ok()) parts_.slots->Free(*slot);
    MutexLock lock(mutex_);
    end_fetch();
    return slot.ok() ? Status(Error{Code::kNotFound, "nowhere"}) : Status(slot.error());
  }

  Status status;
  bool from_peer = false;
  uint32_t crc = 0;  // with a cluster
  {
    const Result<Fd> file = parts_.slots->OpenFile(*slot, O_RDWR);
    if (!file.ok()) {
      status = file.error();
    } else if (::ftruncate(file->get(), static_cast<off_t>(meta.length)) != 0) {
      status = ErrnoError(errno, "size slot");
    } else {
      // The mapping's last page goes on behind the end of the file; what is read there is padding.
      const uint64_t bytes = RoundUp(meta.length);
      void* mapped = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file->get(), 0);
      if (mapped == MAP_FAILED) {
        status = ErrnoError(errno, "map slot");
      } else {
        for (int attempt = 0; on_nvme && attempt < 3; ++attempt) {
          status = parts_.segments->Read(place, meta, {static_cast<std::byte*>(mapped), bytes});
          if (status.ok()) break;
          // Reclaim may have moved it meanwhile.
          MutexLock lock(mutex_);
          const std::optional<BlockRef> ref = index_.Find(ns, key);
          if (!ref) break;
          const BlockState state = index_.state(*ref);
          if (state.segment == place.segment && state.offset_4k == place.offset_4k) break;
          place = {state.segment, state.offset_4k, state.sequence};
        }
        const std::span into(static_cast<std::byte*>(mapped), meta.length);
        if (parts_.cluster != nullptr &&
            !(on_nvme && status.ok() && IsAsTold(ns, key, into, &crc))) {
          status = ReadFromPeers(ns, key, into, &crc);
          from_peer = true;
        }
        ::munmap(mapped, bytes);
      }
    }
  }

  MutexLock lock(mutex_);
  const std::optional<BlockRef> ref = index_.Find(ns, key);
  BlockMetrics& metrics = BlockMetrics::Get();
  if (!status.ok() || !ref) {
    parts_.slots->Free(*slot);
    if (parts_.cluster != nullptr) {
      fetching_.erase(hash);
      if (status.code() == Code::kNotFound) Forget(ns, key);
      if (const auto told = told_.find(hash); told != told_.end()) {
        told->second.valid_until = told->second.leased_until = {};
      }
    } else if (ref && !status.ok()) {
      KVC_LOG(Error, "a block is damaged on NVMe; it and what extends it are gone",
              "namespace={} key={} segment={} offset={} error={}",
              space ? LogValue(space->name) : "?", key.ToHex(), place.segment,
              uint64_t{place.offset_4k} * kPage, LogValue(status.error().text));
      fetching_.erase(hash);
      DropTree(*ref, metrics.damaged, false);
    }
    end_fetch();
    return status.ok() ? Status(Error{Code::kNotFound, "dropped meanwhile"}) : status;
  }
  SlotRecord& record = parts_.slots->record(*slot);
  if (from_peer) DropSegmentCopy(*ref);
  BlockState state = index_.state(*ref);
  const auto told = told_.find(hash);
  const bool replaced =
      state.length != meta.length || (told != told_.end() && told->second.crc32c != crc);
  if (state.slot != 0 || replaced) {  // written here meanwhile, or dropped and written anew
    parts_.slots->Free(*slot);
    end_fetch();
    return state.slot != 0 ? Status() : Error{Code::kStale, "replaced meanwhile"};
  }
  const BlockView view = ViewOf(*ref);
  record.ino = view.block_ino();
  record.namespace_id = ns;
  record.key = key;
  record.parent = view.parent;
  record.ordinal = view.ordinal;
  record.length = meta.length;
  record.mtime_nanos = view.mtime_nanos;
  record.place = {state.segment, state.offset_4k, state.sequence};
  record.crc32c = crc;
  record.flags = 0;
  KVC_CRASH_POINT("fetch.before_state");
  record.state.store(SlotState::kBlock, std::memory_order_release);
  state.slot = *slot;
  index_.SetState(*ref, state);
  ++resident_blocks_;
  parts_.resident->Add(*slot, this);
  if (from_peer) {
    KeepFromPeer(*slot);
  } else {
    metrics.fetched_bytes.Add(static_cast<double>(meta.length));
  }
  end_fetch();
  return {};
}

void BlockStore::PrefetchBehind(BlockRef ref) {
  constexpr size_t kQueueMax = 256;  // beyond it prefetching only steals from who waits
  for (uint32_t i = 0; i < options_.prefetch_blocks && prefetch_.size() < kQueueMax; ++i) {
    const std::optional<BlockRef> next = index_.NextInRun(ref);
    if (!next) break;
    ref = *next;
    if (index_.state(ref).slot == 0) {
      prefetch_.emplace_back(index_.namespace_of(ref), index_.key(ref));
    }
  }
  prefetch_changed_.notify_all();
}

void BlockStore::RunPrefetch() {
  SetThreadName("prefetch");
  for (;;) {
    std::pair<NamespaceId, BlockKey> next;
    {
      MutexLock lock(mutex_);
      prefetch_changed_.wait(lock.native(),
                             [&]() KVC_NO_ANALYSIS { return stopping_ || !prefetch_.empty(); });
      if (stopping_) return;
      next = prefetch_.front();
      prefetch_.pop_front();
      if (fetching_.contains(BlockHash62(next.first, next.second))) continue;
    }
    if (parts_.copies != nullptr) {
      bool from_nvme = false;
      const Result<SlotId> slot = PinCopy(next.first, next.second, &from_nvme);
      if (slot.ok()) {
        parts_.copies->UnpinSlot(*slot);
        if (from_nvme) BlockMetrics::Get().prefetched_blocks.Add();
        continue;
      }
    }
    if (FetchBlock(next.first, next.second).ok()) BlockMetrics::Get().prefetched_blocks.Add();
  }
}

FsResult<uint32_t> BlockStore::Crc(Ino ino) {
  // Asked for by people (getfattr), so it may cost a read of the block.
  AboutToBlock();
  const FsResult<OpenReply> open = Open({}, ino, O_RDONLY);
  if (!open) return Fail(open.error().value);
  FsResult<uint32_t> crc = Fail(EIO);
  if (const auto bytes = Mapped(ino, open->handle)) crc = Crc32c(*bytes);
  Release(ino, open->handle);
  return crc;
}

FsStatus BlockStore::Fsync(Ino ino) {
  MutexLock lock(mutex_);
  const std::optional<BlockRef> ref = RefOf(ino);
  if (!ref) return Fail(ENOENT);
  if (parts_.copies != nullptr && index_.state(*ref).slot == 0) {
    const std::optional<meta::BlockId> id = IdOf(index_.namespace_of(*ref), index_.key(*ref));
    lock.native().unlock();
    const Status kept = id ? parts_.copies->Persist(*id) : Status();
    lock.native().lock();
    if (!kept.ok()) return Fail(ErrnoOf(kept.code()));
    return {};
  }
  const SlotId slot = index_.state(*ref).slot;
  const bool dirty = slot != 0 && (parts_.slots->record(slot).flags & iouring::kSlotDirty) != 0;
  Status status;
  if (parts_.segments == nullptr) {
    return {};  // DRAM only: there is nothing more durable than it
  }
  if (dirty) {
    status = MakeDurable(slot, iouring::EntryKind::kBlock, lock);
  } else {
    lock.native().unlock();
    status = parts_.segments->Flush(true);
    lock.native().lock();
  }
  if (!status.ok()) return Fail(ErrnoOf(status.code()));
  return {};
}

}  // namespace kvcfs::fs
