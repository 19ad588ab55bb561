// After a start: what a crash left half done is undone, what survived is taken over.
#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <system_error>

#include <sys/stat.h>

#include "base/log.h"
#include "fs/tiered_file_tree.h"

namespace kvcfs::fs {
namespace {

using iouring::SlotId;
using iouring::SlotRecord;
using iouring::SlotState;

constexpr uint32_t kChanged = iouring::kSlotDirty | iouring::kSlotWriting;
constexpr size_t kBatchChanges = 1000;

}  // namespace

Result<std::unique_ptr<FileTree>> FileTree::Open(const FileTreeOptions& options,
                                                 const FileTreeParts& parts) {
  auto tree = std::make_unique<TieredFileTree>(options, parts);
  KVC_TRY(tree->Recover());
  return std::unique_ptr<FileTree>(std::move(tree));
}

TieredFileTree::TieredFileTree(const FileTreeOptions& options, const FileTreeParts& parts)
    : options_(options),
      parts_(parts),
      store_(*parts.meta),
      table_(store_, options.nodes_max),
      content_(options_, parts_, store_, table_, queues_, this),
      write_back_(options_, parts_, store_, table_, queues_, content_),
      // Never again a number of an earlier daemon: nanoseconds go up faster than opens.
      next_handle_(static_cast<uint64_t>(parts.clock->WallNanos()) & ((uint64_t{1} << 55) - 1)),
      leases_(options.lease_bytes_max) {}

TieredFileTree::~TieredFileTree() {
  write_back_.Stop();
}

Status TieredFileTree::Recover() {
  std::error_code error;
  std::filesystem::create_directories(options_.disk_directory, error);
  if (error) return ErrnoError(error.value(), "make", options_.disk_directory);

  Recovery recovery;
  parts_.slots->ForEach([&](SlotId id, SlotRecord& slot) {
    const SlotState state = slot.state.load();
    if (state != SlotState::kFile && state != SlotState::kDiskFile) return;
    recovery.slots[slot.ino].push_back(id);
    if (options_.resumed) return;
    // Whoever had it open is gone, and with it the kernel's numbers.
    slot.readers = slot.writers = slot.backing_id = 0;
    slot.mode &= kModeDisk | kModeEmpty | kModeMapped;
    slot.key = slot.parent = BlockKey{};
  });
  for (const auto& [meta, place] : parts_.recovered) {
    auto& newest = recovery.entries[meta.ino];
    if (meta.sequence >= newest.first.sequence) newest = {meta, place};
  }
  Ino highest = 0;
  store_.ForEachInode(0, [&](Ino ino, const InodeRecord& record) {
    highest = std::max(highest, ino);
    RecoverInode(ino, record, recovery);
    return true;
  });
  KVC_TRY(parts_.meta->Write(recovery.batch, false));
  for (const auto& [ino, slots] : recovery.slots) {
    for (const SlotId id : slots) parts_.slots->Free(id);  // of no inode that we know
  }
  RecoverDiskDirectory(recovery);
  KVC_TRY(store_.Open(options_.resumed, highest));
  if (recovery.reverted + recovery.removed > 0) {
    KVC_LOG(Info, "files that were being written at a crash", "reverted={} removed={}",
            recovery.reverted, recovery.removed);
  }
  for (const Ino ino : recovery.dirty) {
    queues_.QueueCopy(ino, parts_.clock->Monotonic() + options_.writeback_delay);
  }
  write_back_.Start([this](Ino ino) { DropLost(ino); });
  return {};
}

// The slot of an inode that counts. Two are there if one was taking over from the other: a record
// without bytes gives way, and a finished copy on the data disk comes before its source.
SlotId TieredFileTree::ChooseSlot(Ino ino, Recovery& recovery) {
  const auto found = recovery.slots.find(ino);
  if (found == recovery.slots.end()) return 0;
  const auto rank = [&](SlotId id) {
    const SlotRecord& slot = parts_.slots->record(id);
    if ((slot.mode & kModeDisk) != 0) return 3;
    return slot.state.load() == SlotState::kFile ? 2 : 1;
  };
  SlotId chosen = 0;
  for (const SlotId id : found->second) {
    if (chosen == 0) {
      chosen = id;
      continue;
    }
    const bool better = rank(id) > rank(chosen);
    parts_.slots->Free(better ? chosen : id);
    if (better) chosen = id;
  }
  recovery.slots.erase(found);
  return chosen;
}

// A slot or open record that survived; the MetaStore's record may lag behind it.
void TieredFileTree::TakeOver(Ino ino, InodeRecord& record, SlotId id, Recovery& recovery) {
  SlotRecord& slot = parts_.slots->record(id);
  const bool on_disk = (slot.mode & kModeDisk) != 0;
  const bool has_bytes = slot.state.load() == SlotState::kFile;
  const uint32_t changed = slot.flags & kChanged;
  if (has_bytes || on_disk) {
    struct stat now {};
    const std::string path = has_bytes ? parts_.slots->PathOf(id) : content_.DiskPath(ino);
    if (::stat(path.c_str(), &now) == 0) slot.length = static_cast<uint64_t>(now.st_size);
    record.size = slot.length;
  } else if (changed != 0) {
    record.size = 0;
  }
  if (changed != 0) record.mtime_nanos = slot.mtime_nanos;
  if (slot.version > record.version) record.shared.dirty = true;
  record.ctime_nanos = std::max(record.ctime_nanos, record.mtime_nanos);
  record.version = std::max(record.version, slot.version);
  if (record.home != Home::kDisk) {
    if (changed != 0) {
      record.home = Home::kDram;
    } else if (has_bytes && slot.place.valid() && slot.length > 0) {
      record.stable = {slot.version, slot.length, slot.mtime_nanos, slot.place};
      record.home = Home::kSegment;
    }
  }
  const bool published = (slot.flags & iouring::kSlotWriting) == 0 && slot.length > 0;
  if (published && (has_bytes || on_disk)) record.Set(InodeRecord::kUnpublished, false);
  if (changed == iouring::kSlotDirty) recovery.dirty.push_back(ino);
  if (on_disk) recovery.on_disk.insert(ino);
  table_.SetSlot(ino, id);
  if (has_bytes) {
    content_.books.Add(slot);
    parts_.resident->Add(id, this);
  }
}

// Back to the last version that a crash cannot take. False if there is none.
bool TieredFileTree::Revert(InodeRecord& record, Recovery& recovery) {
  if (record.stable.version == 0) return false;
  ++recovery.reverted;
  record.size = record.stable.length;
  record.mtime_nanos = record.stable.mtime_nanos;
  record.home = record.size > 0 ? Home::kSegment : Home::kEmpty;
  record.blocks = 0;
  record.version = std::max(record.version, record.stable.version);
  record.Set(InodeRecord::kUnpublished, false);
  // An old version, and no news to other hosts.
  record.shared.content = {};
  record.shared.dirty = false;
  return true;
}

// What becomes of a regular file when nobody has it open any more. False: it goes.
bool TieredFileTree::RecoverFile(Ino ino, InodeRecord& record, SlotId id, Recovery& recovery) {
  const bool unpublished = record.Has(InodeRecord::kUnpublished);
  if (id == 0) {
    if (record.home == Home::kDram || unpublished) return Revert(record, recovery);
    return true;
  }
  const SlotRecord& slot = parts_.slots->record(id);
  const bool writing = (slot.flags & iouring::kSlotWriting) != 0;
  const bool has_bytes = slot.state.load() == SlotState::kFile;
  const bool new_on_disk = (slot.mode & kModeDisk) != 0 && record.home != Home::kDisk;
  if ((has_bytes || new_on_disk) && !writing) {
    TakeOver(ino, record, id, recovery);
    return true;
  }
  parts_.slots->Free(id);
  if (record.home == Home::kDisk) return !unpublished;  // in place: as the crash left it
  if (writing || unpublished || record.home == Home::kDram) return Revert(record, recovery);
  return true;
}

void TieredFileTree::RecoverInode(Ino ino, InodeRecord record, Recovery& recovery) {
  const std::string before = EncodeInode(record);
  bool keep = true;
  if (record.IsRegular()) {
    const SlotId id = ChooseSlot(ino, recovery);
    if (record.shared.remote) {
      if (id != 0) parts_.slots->Free(id);  // they were being fetched
    } else if (options_.resumed && id != 0) {
      TakeOver(ino, record, id, recovery);
    } else if (record.nlink == 0) {
      if (id != 0) parts_.slots->Free(id);
      keep = false;
    } else if (!options_.resumed || record.home == Home::kDram) {
      keep = RecoverFile(ino, record, id, recovery);
    }
    if (keep && record.home == Home::kDisk) {
      struct stat now {};
      recovery.on_disk.insert(ino);
      if (::stat(content_.DiskPath(ino).c_str(), &now) != 0) {
        KVC_LOG(Error, "a file of the data disk is gone, and its names with it", "path={} ino={:x}",
                LogValue(PathOf(ino)), ino);
        ++damaged_files_;
        keep = false;
      } else {
        record.size = static_cast<uint64_t>(now.st_size);
      }
    }
    if (const auto entry = recovery.entries.find(ino); entry != recovery.entries.end()) {
      const auto& [meta, place] = entry->second;
      if (record.stable.place.valid() && meta.version == record.stable.version &&
          meta.sequence > record.stable.place.sequence) {
        record.stable.place = place;  // moved just before the crash
        if (const SlotId slot = table_.SlotOf(ino)) parts_.slots->record(slot).place = place;
      }
    }
  }
  if (!keep) {
    RemoveRecord(ino, record, recovery);
    return;
  }
  (record.IsDirectory() ? directories_ : files_) += 1;
  if (record.stable.place.valid() && parts_.segments != nullptr) {
    parts_.segments->MarkLive(record.stable.place, record.stable.length);
    content_.books.AddEntry(record.stable.length);
  }
  if (EncodeInode(record) != before) {
    store_.PutInode(recovery.batch, ino, record);
    WriteSome(recovery);
  }
}

void TieredFileTree::RemoveRecord(Ino ino, const InodeRecord& record, Recovery& recovery) {
  if (record.nlink > 0) ++recovery.removed;
  for (const NameStore::LinkName& link : store_.LinksOf(ino, record)) {
    const FsResult<std::optional<Dentry>> entry = store_.Find(link.directory, link.name);
    if (!entry || !*entry || (*entry)->ino != ino) continue;
    store_.RemoveEntry(recovery.batch, link.directory, link.name, (*entry)->cookie);
  }
  store_.DeleteInode(recovery.batch, ino, record);
  WriteSome(recovery);
}

void TieredFileTree::WriteSome(Recovery& recovery) {
  if (++recovery.batched < kBatchChanges) return;
  recovery.batched = 0;
  (void)parts_.meta->Write(recovery.batch, false);
}

void TieredFileTree::RecoverDiskDirectory(const Recovery& recovery) {
  std::error_code error;
  for (const auto& file :
       std::filesystem::recursive_directory_iterator(options_.disk_directory, error)) {
    if (!file.is_regular_file(error)) continue;
    const std::string name = file.path().filename();
    if (name.size() != 16) continue;
    if (!recovery.on_disk.contains(std::strtoull(name.c_str(), nullptr, 16))) {
      std::filesystem::remove(file.path(), error);
    }
  }
  content_.disk_files = static_cast<int64_t>(recovery.on_disk.size());
}

}  // namespace kvcfs::fs
