// Writing a block: create into an empty slot, nobody sees it before the last close.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/crash_point.h"
#include "base/crc32c.h"
#include "base/log.h"
#include "fs/about_to_block.h"
#include "fs/block_metrics.h"
#include "fs/block_store.h"
#include "fs/bytes_io.h"

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
constexpr size_t kPendingFilesMax = 4096;  // of the 20,000 descriptors that a process may have
constexpr int kReleaseTries = 60;
constexpr int kReleaseYields = 20;
constexpr std::chrono::microseconds kReleasePause{50};

// True of a process that exits. Who writes blocks closes many, one after the other, so what was
// opened for the last call is kept: more than 1 us of what close() takes. It names that very
// process, and cannot be read once another one has its number.
bool HasNoMemory(pid_t pid) {
  thread_local pid_t known = 0;
  thread_local Fd statm;
  char pages[2];
  const auto read = [&] { return ::pread(statm.get(), pages, sizeof pages, 0) == sizeof pages; };
  if (known != pid || !statm.valid() || !read()) {
    char path[64];
    std::snprintf(path, sizeof path, "/proc/%d/statm", pid);
    statm = Fd(::open(path, O_RDONLY | O_CLOEXEC));
    known = pid;
    if (!statm.valid() || !read()) return false;
  }
  return pages[0] == '0';
}

// True if the process dies by a signal: while it exits, its files are closed by the kernel, its
// memory is gone already (statm says 0), and stat tells the exit code.
// One that executes another program closes files, too, and waits for us with its exec_update_lock
// held, which is wanted for /proc/PID/exe, fd, and, in newer kernels, stat: these are asked only of
// who has no memory, and so cannot be there.
// Source: proc(5), fields 9 (flags) and 52 (exit_code); kernel/exit.c do_exit(); fs/exec.c.
bool DiesBySignal(pid_t pid) {
  if (pid <= 0) return false;           // of another pid namespace: cannot be seen
  if (!HasNoMemory(pid)) return false;  // alive and well
  char path[64];
  std::snprintf(path, sizeof path, "/proc/%d/stat", pid);
  const Fd fd(::open(path, O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return false;
  char text[1024];
  const ssize_t got = ::read(fd.get(), text, sizeof text - 1);
  if (got <= 0) return false;
  text[got] = 0;
  const char* at = std::strrchr(text, ')');
  if (at == nullptr) return false;
  // The field behind ')' is the third.
  const char* exit_code = std::strrchr(text, ' ');
  if (exit_code == nullptr || exit_code <= at) return false;
  return (std::atoi(exit_code + 1) & 0x7f) != 0;
}

Ino PendingIno(SlotId slot, uint32_t generation) {
  return (Ino{1} << 61) | (static_cast<Ino>(generation & 0xffffff) << 32) | slot;
}

}  // namespace

SlotRecord* BlockStore::PendingOf(Ino ino) {
  const auto slot = static_cast<SlotId>(ino & 0xffffffff);
  if (slot == 0 || slot > parts_.slots->slot_count()) return nullptr;
  SlotRecord& record = parts_.slots->record(slot);
  return record.ino == ino && record.state.load() == SlotState::kPending ? &record : nullptr;
}

FsResult<BlockStore::Created> BlockStore::Create(const Caller& caller, const Namespace& space,
                                                 const std::optional<BlockKey>& parent,
                                                 const BlockKey& key, int flags) {
  const uint64_t hash = BlockHash62(space.id, key);
  uint64_t parent_hash = 0;
  uint32_t ordinal = 0;
  std::optional<SlotFacts> facts;  // with a cluster
  {
    MutexLock lock(mutex_);
    if (caller.resent) {
      // It happened already if a writer of this very request is there.
      const auto found = pending_.find(hash);
      for (const SlotId slot : found == pending_.end() ? std::vector<SlotId>{} : found->second) {
        SlotRecord& record = parts_.slots->record(slot);
        if (record.aux == caller.unique) return CreatedReply(slot);
      }
    }
    if (!pending_.empty()) AwaitPublication(space.id, key, lock);
    if (parts_.cluster != nullptr) {
      const FsResult<uint32_t> asked = AskToCreate(space.id, parent, key, &facts, lock);
      if (!asked) return Fail(asked.error().value);
      ordinal = *asked;
      if (parent) ++pins_[parent_hash = BlockHash62(space.id, *parent)];
    } else if (index_.Find(space.id, key)) {
      return Fail(EEXIST);
    } else if (parent) {
      std::optional<BlockRef> ref = index_.Find(space.id, *parent);
      if (!ref) {
        AwaitPublication(space.id, *parent, lock);
        ref = index_.Find(space.id, *parent);
      }
      if (!ref) return Fail(ENOENT);
      ordinal = index_.ordinal(*ref) + 1;
      parent_hash = BlockHash62(space.id, *parent);
      ++pins_[parent_hash];
      index_.Touch(*ref, NowSeconds(), false);
    }
  }
  const auto unpin = [&]() KVC_NO_ANALYSIS {
    if (parent_hash != 0) Unpin(parent_hash);
  };
  if (parts_.cluster == nullptr && !MakeQuotaRoom(space)) {
    MutexLock lock(mutex_);
    unpin();
    return Fail(ENOSPC);
  }

  Fd file;
  Result<SlotId> slot = parts_.resident->CreateSlot(space.block_bytes, options_.room_wait, &file);
  if (!slot.ok()) {
    MutexLock lock(mutex_);
    unpin();
    KVC_LOG(Warn, "no room for a block; leases or a full data disk hold the tier",
            "namespace={} bytes={} error={}", LogValue(space.name), space.block_bytes,
            LogValue(slot.error().text));
    return Fail(ErrnoOf(slot.code()));
  }
  SlotRecord& record = parts_.slots->record(*slot);
  record.ino = PendingIno(*slot, record.generation);
  record.namespace_id = space.id;
  record.key = key;
  record.parent = parent.value_or(BlockKey{});
  record.ordinal = ordinal;
  record.writers = 1;
  record.aux = caller.unique;
  if (parts_.backing->enabled()) {
    const Result<uint32_t> id = parts_.backing->OpenBacking(file.get());
    if (id.ok()) {
      record.backing_id = *id;
    } else {
      KVC_LOG(Warn, "no passthrough for this block", "error={}", LogValue(id.error().text));
    }
  }
  KVC_CRASH_POINT("create.before_pending");
  MutexLock lock(mutex_);
  pending_[hash].push_back(*slot);
  ++pending_count_;
  if (facts) pending_facts_[*slot] = *facts;
  if (pending_files_.size() < kPendingFilesMax) {
    pending_files_[*slot] = std::make_shared<Fd>(std::move(file));
  }
  record.state.store(SlotState::kPending, std::memory_order_release);
  (void)flags;
  return CreatedReply(*slot);
}

BlockStore::Created BlockStore::CreatedReply(SlotId slot) {
  const SlotRecord& record = parts_.slots->record(slot);
  Created created;
  created.ino = record.ino;
  created.open = PendingOpenReply(record);
  created.attr.st_ino = record.ino;
  created.attr.st_mode = S_IFREG | 0644;
  created.attr.st_nlink = 1;
  created.attr.st_blksize = 4096;
  return created;
}

OpenReply BlockStore::PendingOpenReply(const SlotRecord& record) {
  OpenReply open;
  open.mode = record.backing_id != 0 ? OpenMode::kPassthrough : OpenMode::kDirect;
  open.backing_id = record.backing_id;
  open.handle = (record.ino & 0xffffffff) | (record.backing_id != 0 ? kPassthroughHandle : 0);
  return open;
}

FsResult<struct stat> BlockStore::PendingAttr(Ino ino) {
  MutexLock lock(mutex_);
  const SlotRecord* record = PendingOf(ino);
  if (record == nullptr) return Fail(ENOENT);
  struct stat attr {};
  const std::shared_ptr<Fd> file = PendingFile(static_cast<SlotId>(ino & 0xffffffff));
  if (file == nullptr || ::fstat(file->get(), &attr) != 0) return Fail(EIO);
  const std::optional<Namespace> space = parts_.namespaces->Get(record->namespace_id);
  attr.st_ino = ino;
  attr.st_mode = S_IFREG | 0644;
  attr.st_nlink = 1;
  attr.st_uid = space ? space->uid : 0;
  attr.st_gid = space ? space->gid : 0;
  attr.st_blksize = 4096;
  attr.st_blocks = (attr.st_size + 511) / 512;
  return attr;
}

FsResult<OpenReply> BlockStore::PendingOpen(Ino ino, int flags) {
  MutexLock lock(mutex_);
  SlotRecord* record = PendingOf(ino);
  if (record == nullptr) return Fail(ENOENT);
  if ((flags & O_TRUNC) != 0) {
    const std::shared_ptr<Fd> file = PendingFile(static_cast<SlotId>(ino & 0xffffffff));
    if (file == nullptr || ::ftruncate(file->get(), 0) != 0) return Fail(EIO);
  }
  ++record->writers;
  return PendingOpenReply(*record);
}

FsStatus BlockStore::PendingTruncate(Ino ino, uint64_t length) {
  const auto file = WritableFile(ino, length);
  if (!file.ok()) return Fail(ErrnoOf(file.code()));
  if (::ftruncate((*file)->get(), static_cast<off_t>(length)) != 0) return Fail(errno);
  return {};
}

FsStatus BlockStore::PendingAllocate(Ino ino, int mode, uint64_t offset, uint64_t length) {
  const auto file = WritableFile(ino, offset + length);
  if (!file.ok()) return Fail(ErrnoOf(file.code()));
  if (::fallocate((*file)->get(), mode, static_cast<off_t>(offset), static_cast<off_t>(length)) !=
      0) {
    return Fail(errno);
  }
  return {};
}

std::shared_ptr<Fd> BlockStore::PendingFile(SlotId slot) {
  if (const auto found = pending_files_.find(slot); found != pending_files_.end()) {
    return found->second;
  }
  Result<Fd> file = parts_.slots->OpenFile(slot, O_RDWR);
  if (!file.ok()) return nullptr;
  auto shared = std::make_shared<Fd>(std::move(*file));
  if (pending_files_.size() < kPendingFilesMax) pending_files_[slot] = shared;
  return shared;
}

Result<std::shared_ptr<Fd>> BlockStore::WritableFile(Ino ino, uint64_t end) {
  MutexLock lock(mutex_);
  const SlotRecord* record = PendingOf(ino);
  if (record == nullptr) return Error{Code::kNotFound, "no such unpublished block"};
  if (end > record->reserved_bytes) {
    return Error{Code::kTooLarge, "longer than user.kvc.block_bytes"};
  }
  std::shared_ptr<Fd> file = PendingFile(static_cast<SlotId>(ino & 0xffffffff));
  if (file == nullptr) return Error{Code::kIo, "the slot of an unpublished block is gone"};
  return file;
}

FsResult<size_t> BlockStore::PendingRead(Ino ino, uint64_t offset, std::span<std::byte> into) {
  const auto file = WritableFile(ino, 0);
  if (!file.ok()) return Fail(ErrnoOf(file.code()));
  const ssize_t got = ::pread((*file)->get(), into.data(), into.size(), static_cast<off_t>(offset));
  if (got < 0) return Fail(errno);
  return static_cast<size_t>(got);
}

FsResult<size_t> BlockStore::PendingWrite(Ino ino, uint64_t offset,
                                          std::span<const std::byte> from) {
  const auto file = WritableFile(ino, offset + from.size());
  if (file.code() == Code::kTooLarge) {
    // close() will say so; until then the writer goes on as it does under passthrough.
    MutexLock lock(mutex_);
    if (SlotRecord* record = PendingOf(ino)) record->length = offset + from.size();
    return from.size();
  }
  if (!file.ok()) return Fail(ErrnoOf(file.code()));
  const ssize_t put =
      ::pwrite((*file)->get(), from.data(), from.size(), static_cast<off_t>(offset));
  if (put < 0) return Fail(errno);
  return static_cast<size_t>(put);
}

FsStatus BlockStore::PendingFsync(Ino ino) {
  MutexLock lock(mutex_);
  SlotRecord* record = PendingOf(ino);
  if (record == nullptr) return Fail(ENOENT);
  // What is durable is what close() finds: passthrough hides later writes from us.
  record->flags |= iouring::kSlotFsynced;
  return {};
}

FsStatus BlockStore::PendingFlush(const Caller& caller, Ino ino) {
  const bool dies = DiesBySignal(caller.pid);
  MutexLock lock(mutex_);
  SlotRecord* record = PendingOf(ino);
  if (record == nullptr) return {};
  const auto slot = static_cast<SlotId>(ino & 0xffffffff);
  if (dies) {
    record->flags |= iouring::kSlotDoomed;
    BlockMetrics::Get().writer_died.Add();
    KVC_LOG(Info, "writer of a block died by a signal; nothing is published", "key={} pid={}",
            record->key.ToHex(), caller.pid);
    return {};
  }
  const std::optional<Namespace> space = parts_.namespaces->Get(record->namespace_id);
  struct stat attr {};
  {
    const std::shared_ptr<Fd> file = PendingFile(slot);
    if (file == nullptr || ::fstat(file->get(), &attr) != 0) return Fail(EIO);
  }
  const uint64_t longest = std::max<uint64_t>(static_cast<uint64_t>(attr.st_size), record->length);
  if (space && longest > space->block_bytes) {
    if ((record->flags & iouring::kSlotDoomed) == 0) BlockMetrics::Get().too_long.Add();
    record->flags |= iouring::kSlotDoomed;
    return Fail(EFBIG);
  }
  record->flags |= iouring::kSlotFlushed;
  const bool durable = (record->flags & iouring::kSlotFsynced) != 0 || (space && space->sync);
  const bool nothing = attr.st_size == 0 || (record->flags & iouring::kSlotDoomed) != 0;
  if (parts_.cluster != nullptr) {
    if (!durable || nothing) return {};
    return FlushToCluster(ino, static_cast<uint64_t>(attr.st_size), lock);
  }
  if (!durable || nothing) return {};
  // RELEASE is asynchronous, so the promise of fsync is kept here: length and intent reach the
  // disk before close() returns; recovery publishes what it finds.
  record->flags |= iouring::kSlotFsynced;
  const uint64_t length_before = record->length;
  record->length = static_cast<uint64_t>(attr.st_size);
  const Status status = MakeDurable(slot, iouring::EntryKind::kBlockIntent, lock);
  KVC_CRASH_POINT("flush.after_durable");
  record = PendingOf(ino);
  if (record != nullptr) record->length = length_before;
  if (!status.ok()) {
    if (record != nullptr) record->flags |= iouring::kSlotDoomed;
    published_.notify_all();
    KVC_LOG(Warn, "a block could not be made durable", "error={}", LogValue(status.error().text));
    return Fail(ErrnoOf(status.code()));
  }
  return {};
}

void BlockStore::PendingRelease(Ino ino, uint64_t handle) {
  (void)handle;
  const auto slot = static_cast<SlotId>(ino & 0xffffffff);
  {
    MutexLock lock(mutex_);
    SlotRecord* record = PendingOf(ino);
    if (record == nullptr) return;  // resent after it was done
    if (record->writers > 0) --record->writers;
    if (record->writers > 0) return;
  }
  PublishSlot(slot);
}

void BlockStore::CloseBackingOf(SlotId slot) {
  SlotRecord& record = parts_.slots->record(slot);
  if (record.backing_id == 0) return;
  parts_.backing->CloseBacking(record.backing_id);
  record.backing_id = 0;
}

void BlockStore::PublishSlot(SlotId slot) {
  SlotRecord& record = parts_.slots->record(slot);
  CloseBackingOf(slot);
  std::shared_ptr<Fd> file;
  {
    MutexLock lock(mutex_);
    file = PendingFile(slot);
  }
  // The kernel lets go of the backing file when the closing process returns from close(), which
  // may be a moment after RELEASE.
  bool mapped = file != nullptr && StillMapped(*file);
  for (int tries = 0; mapped && tries < kReleaseTries; ++tries) {
    // It takes a few microseconds; a sleep takes a hundred, and who wants the block waits for us.
    if (tries < kReleaseYields) {
      std::this_thread::yield();
    } else {
      AboutToBlock();
      std::this_thread::sleep_for(kReleasePause);
    }
    mapped = StillMapped(*file);
  }
  if (mapped) {
    // A shared mapping outlives its descriptor: later stores would change a sealed block.
    MutexLock lock(mutex_);
    record.flags &= ~iouring::kSlotFlushed;
    zombies_.push_back(slot);
    published_.notify_all();
    due_changed_.notify_all();
    return;
  }
  struct stat attr {};
  uint32_t crc = 0;
  if (file != nullptr && ::fstat(file->get(), &attr) == 0 && attr.st_size > 0) {
    const auto bytes = static_cast<uint64_t>(attr.st_size);
    parts_.slots->Trim(slot, file->get(), bytes);
    if (record.place.valid()) {
      // Durable already; only the same bytes may be published under that entry.
      AboutToBlock();
      void* mapped_bytes = ::mmap(nullptr, bytes, PROT_READ, MAP_SHARED, file->get(), 0);
      if (mapped_bytes != MAP_FAILED) {
        crc = Crc32c({static_cast<const std::byte*>(mapped_bytes), bytes});
        ::munmap(mapped_bytes, bytes);
      }
    }
  }
  const auto length = static_cast<uint64_t>(attr.st_size);
  BlockMetrics& metrics = BlockMetrics::Get();
  Publication publication;
  if (parts_.cluster != nullptr && length > 0) {
    publication = PublishToCluster(slot, *file, length, true);
    crc = publication.crc32c;
  }

  MutexLock lock(mutex_);
  if (publication.adopted || publication.held_here) return SettlePublished(slot, publication);
  const std::optional<Namespace> space = parts_.namespaces->Get(record.namespace_id);
  if ((record.flags & iouring::kSlotDoomed) != 0) return Discard(slot, nullptr);
  if (length == 0) return Discard(slot, &metrics.empty);
  if (!space || length > space->block_bytes) return Discard(slot, &metrics.too_long);
  if (parts_.cluster != nullptr && publication.code != Code::kOk) {
    CountUnpublished(record, publication.code);
    return Discard(slot, nullptr);
  }

  BlockState state;
  state.length = static_cast<uint32_t>(length);
  state.slot = slot;
  state.last_use_s = state.mtime_s = NowSeconds();
  if (parts_.cluster != nullptr) state.mtime_s = pending_facts_[slot].facts.mtime_s;
  bool dirty = true;
  if (record.place.valid() && record.crc32c == crc) {
    state.segment = record.place.segment;
    state.offset_4k = record.place.offset_4k;
    state.sequence = record.place.sequence;
    dirty = false;
  }
  KVC_CRASH_POINT("publish.before_insert");
  const Result<BlockRef> ref = index_.Insert(record.namespace_id, record.key, record.parent, state);
  if (!ref.ok()) {
    if (ref.code() == Code::kExists) return Discard(slot, &metrics.lost_race);
    if (ref.code() == Code::kNotFound) {
      // In a cluster its parent may be unknown here: it is read from where it went.
      return Discard(slot, parts_.cluster != nullptr ? &metrics.published : &metrics.parent_gone);
    }
    return Discard(slot, &metrics.collision);
  }
  NoteReuse(*ref, true, true);
  const uint64_t hash = BlockHash62(record.namespace_id, record.key);
  ForgetPending(slot);
  ghosts_.erase(hash);
  record.ordinal = index_.ordinal(*ref);
  record.length = length;
  record.mtime_nanos = parts_.clock->WallNanos();
  record.readers = record.writers = 0;
  record.aux = 0;
  if (dirty && record.place.valid()) {
    parts_.segments->MarkDead(record.place, length);  // the intent's bytes are not what was closed
    intents_.erase(record.place.sequence);
    record.place = {};
  }
  KVC_CRASH_POINT("publish.before_state");
  record.state.store(SlotState::kBlock, std::memory_order_release);
  KVC_CRASH_POINT("publish.after_state");
  // Not before the state: until then lookups wait for a flushed writer, and RELEASE, sent again to
  // the next daemon, must find it by its number.
  record.flags = dirty ? iouring::kSlotDirty : 0;
  if (doomed_readers_.contains(ViewOf(*ref).block_ino())) GiveOtherIno(hash);
  record.ino = ViewOf(*ref).block_ino();
  if (parts_.cluster != nullptr) {
    record.crc32c = crc;
    NotePublished(*ref, publication);
  }
  space_bytes_[record.namespace_id] += length;
  ++resident_blocks_;
  parts_.resident->Add(slot, this);
  metrics.published.Add();
  if (dirty) {
    dirty_bytes_ += length;
    QueueWriteBack(slot, options_.writeback_delay);
  } else {
    PutRecord(*ref);
    intents_.erase(state.sequence);
  }
  published_.notify_all();
}

void BlockStore::ForgetPending(SlotId slot) {
  const SlotRecord& record = parts_.slots->record(slot);
  const uint64_t hash = BlockHash62(record.namespace_id, record.key);
  const auto found = pending_.find(hash);
  if (found != pending_.end()) {
    std::erase(found->second, slot);
    if (found->second.empty()) pending_.erase(found);
    --pending_count_;
  }
  if (!record.parent.IsZero()) Unpin(BlockHash62(record.namespace_id, record.parent));
  pending_files_.erase(slot);
  pending_facts_.erase(slot);
}

void BlockStore::Unpin(uint64_t hash) {
  const auto found = pins_.find(hash);
  if (found == pins_.end()) return;
  if (--found->second == 0) pins_.erase(found);
}

void BlockStore::Discard(SlotId slot, Counter* why) {
  SlotRecord& record = parts_.slots->record(slot);
  if (why != nullptr) why->Add();
  KVC_LOG(Debug, "a written block is not published", "key={} parent={}", record.key.ToHex(),
          record.parent.IsZero() ? "none" : record.parent.ToHex());
  ForgetPending(slot);
  if (record.place.valid() && parts_.segments != nullptr) {
    parts_.segments->MarkDead(record.place, record.length);
    intents_.erase(record.place.sequence);
    if (!index_.Find(record.namespace_id, record.key)) {
      AppendTombstone(record.namespace_id, record.key);
    }
  }
  parts_.slots->Free(slot);
  parts_.resident->RoomMayBeHad();
  published_.notify_all();
}

void BlockStore::RetryZombies() {
  std::vector<SlotId> again;
  {
    MutexLock lock(mutex_);
    again.swap(zombies_);
  }
  for (const SlotId slot : again) PublishSlot(slot);
}

}  // namespace kvcfs::fs
