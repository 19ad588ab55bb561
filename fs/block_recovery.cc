// What is cached after a start: the meta store's records, what the segments know beyond them, and
// the slots that survived in DRAM.
#include <algorithm>
#include <chrono>
#include <unordered_set>

#include "base/log.h"
#include "fs/block_store.h"
#include "meta/block_records.h"

namespace kvcfs::fs {
namespace {

using iouring::EntryKind;
using iouring::SlotId;
using iouring::SlotRecord;
using iouring::SlotState;
using meta::BlockHash62;
using meta::BlockRef;
using meta::BlockState;
using meta::NamespaceId;

struct Found {
  NamespaceId ns = 0;
  BlockKey key;
  BlockKey parent;
  uint32_t ordinal = 0;
  BlockState state;
  bool dropped = false;
};

}  // namespace

Status BlockStore::Recover(const std::vector<RecoveredEntry>& newer) {
  const auto begin = std::chrono::steady_clock::now();
  std::vector<Found> all;
  uint64_t damaged_records = 0;
  const std::string prefix(1, 'b');
  const std::unique_ptr<meta::MetaCursor> cursor = parts_.meta->Seek(prefix);
  for (; cursor->Valid() && cursor->key().substr(0, 1) == prefix; cursor->Next()) {
    const auto name = meta::DecodeBlockRecordKey(cursor->key());
    const auto record = meta::DecodeBlockRecord(cursor->value());
    if (!name || !record) {
      ++damaged_records;
      continue;
    }
    Found found;
    found.ns = name->first;
    found.key = name->second;
    found.parent = record->parent;
    found.ordinal = record->ordinal;
    found.state.length = record->length;
    found.state.segment = record->place.segment;
    found.state.offset_4k = record->place.offset_4k;
    found.state.sequence = record->place.sequence;
    found.state.mtime_s = found.state.last_use_s = record->mtime_s;
    found.state.hits = record->hits;
    all.push_back(found);
  }
  if (!cursor->status().ok()) {
    KVC_LOG(Error, "block records are damaged; what cannot be read is a miss", "error={}",
            LogValue(cursor->status().error().text));
  }

  // Only keys that the segments or the slots speak of need to be found again.
  std::unordered_map<uint64_t, size_t> touched;
  const auto at = [&](NamespaceId ns, const BlockKey& key) -> Found* {
    const auto found = touched.find(BlockHash62(ns, key));
    return found == touched.end() ? nullptr : &all[found->second];
  };
  struct Survivor {
    SlotId slot;
    Found found;
  };
  std::vector<Survivor> survivors;
  std::vector<SlotId> pending, worthless, open;  // of copies: open
  parts_.slots->ForEach([&](SlotId slot, SlotRecord& record) {
    switch (record.state.load()) {
      case SlotState::kMaking:
        worthless.push_back(slot);
        break;
      case SlotState::kPending:
        pending.push_back(slot);
        break;
      case SlotState::kBlock: {
        if ((record.flags & iouring::kSlotCopy) != 0) {
          if (parts_.copies == nullptr) {
            worthless.push_back(slot);
          } else if (options_.resumed && record.readers > 0) {
            open.push_back(slot);
          }
          break;
        }
        if (!parts_.namespaces->Get(record.namespace_id) || record.length == 0 ||
            record.length > kBlockBytesMax) {
          worthless.push_back(slot);
          break;
        }
        Survivor survivor{slot, {}};
        survivor.found.ns = record.namespace_id;
        survivor.found.key = record.key;
        survivor.found.parent = record.parent;
        survivor.found.ordinal = record.ordinal;
        survivor.found.state.length = static_cast<uint32_t>(record.length);
        survivor.found.state.mtime_s = static_cast<uint32_t>(record.mtime_nanos / 1'000'000'000);
        survivor.found.state.last_use_s = survivor.found.state.mtime_s;
        survivors.push_back(survivor);
        break;
      }
      default:
        break;
    }
  });
  if (!newer.empty() || !survivors.empty()) {
    touched.reserve(all.size());
    for (size_t i = 0; i < all.size(); ++i) touched[BlockHash62(all[i].ns, all[i].key)] = i;
  }
  std::unordered_set<uint64_t>
      still_open;  // durable, but its writer has it open across the restart
  if (options_.resumed) {
    for (const SlotId slot : pending) {
      still_open.insert(parts_.slots->record(slot).place.sequence);
    }
  }
  for (const RecoveredEntry& entry : newer) {
    const std::optional<Namespace> space = parts_.namespaces->FindUuid(entry.meta.namespace_uuid);
    if (!space || still_open.contains(entry.place.sequence)) continue;
    Found* known = at(space->id, entry.meta.key);
    if (entry.meta.kind == EntryKind::kBlockTombstone) {
      if (known != nullptr && known->state.sequence < entry.place.sequence) known->dropped = true;
      continue;
    }
    if (entry.meta.kind != EntryKind::kBlock && entry.meta.kind != EntryKind::kBlockIntent) {
      continue;
    }
    if (known == nullptr) {
      touched[BlockHash62(space->id, entry.meta.key)] = all.size();
      all.emplace_back();
      known = &all.back();
      known->ns = space->id;
      known->key = entry.meta.key;
    } else if (known->state.sequence > entry.place.sequence) {
      continue;
    }
    known->dropped = false;
    known->parent = entry.meta.parent;
    known->ordinal = entry.meta.ordinal;
    known->state.length = static_cast<uint32_t>(entry.meta.length);
    known->state.segment = entry.place.segment;
    known->state.offset_4k = entry.place.offset_4k;
    known->state.sequence = entry.place.sequence;
    known->state.mtime_s = static_cast<uint32_t>(entry.meta.mtime_nanos / 1'000'000'000);
    known->state.last_use_s = known->state.mtime_s;
  }
  for (const Survivor& survivor : survivors) {
    SlotRecord& record = parts_.slots->record(survivor.slot);
    Found* known = at(survivor.found.ns, survivor.found.key);
    if ((record.flags & iouring::kSlotDoomed) != 0) continue;  // dropped, perhaps still open
    if (known == nullptr) {
      touched[BlockHash62(survivor.found.ns, survivor.found.key)] = all.size();
      all.push_back(survivor.found);
      known = &all.back();
    }
    known->dropped = false;
    known->state.slot = survivor.slot;
    known->state.length = survivor.found.state.length;
  }

  // In the order of publication a chain's blocks follow each other, and so the index finds each
  // parent where it has just been: four times as fast as from the heads down. What reclaim moved
  // since may come before its parent; it waits for a second round.
  std::sort(all.begin(), all.end(), [](const Found& a, const Found& b) {
    const uint64_t mine = a.state.sequence - 1, other = b.state.sequence - 1;  // none: last
    return mine != other ? mine < other : a.ordinal < b.ordinal;
  });
  std::vector<Found*> early;
  MutexLock lock(mutex_);
  for (const SlotId slot : open) {
    const SlotRecord& record = parts_.slots->record(slot);
    open_copies_[record.ino] = {slot, record.readers};
  }
  uint64_t orphans = 0;
  std::vector<std::pair<int64_t, SlotId>> by_age;
  const auto insert = [&](Found& found, bool again) KVC_NO_ANALYSIS {
    const std::optional<Namespace> space = parts_.namespaces->Get(found.ns);
    const bool somewhere =
        found.state.slot != 0 || (found.state.segment != 0 && parts_.segments != nullptr);
    Result<BlockRef> ref = Error{Code::kNotFound, "gone"};
    if (space && somewhere && !found.dropped) {
      ref = index_.Insert(found.ns, found.key, found.parent, found.state);
      if (ref.code() == Code::kNotFound && !again) return early.push_back(&found);
    }
    if (!ref.ok()) {
      ++orphans;
      DeleteRecord(found.ns, found.key);
      if (found.state.slot != 0) {
        parts_.slots->record(found.state.slot).readers = 0;
        worthless.push_back(found.state.slot);
      }
      return;
    }
    space_bytes_[found.ns] += found.state.length;
    if (found.state.segment != 0) {
      parts_.segments->MarkLive({found.state.segment, found.state.offset_4k, found.state.sequence},
                                found.state.length);
    }
    if (found.state.slot == 0) return;
    SlotRecord& record = parts_.slots->record(found.state.slot);
    record.place = {found.state.segment, found.state.offset_4k, found.state.sequence};
    record.flags = found.state.segment == 0 ? iouring::kSlotDirty : 0;
    record.aux = 0;
    if (options_.resumed && KindOf(record.ino) == InoKind::kBlock &&
        record.ino != ViewOf(*ref).block_ino()) {
      // It had another number, and is perhaps open under it.
      other_inos_[BlockHash62(found.ns, found.key)] = record.ino;
      other_ino_hashes_[record.ino] = BlockHash62(found.ns, found.key);
    }
    record.ino = ViewOf(*ref).block_ino();
    if (!options_.resumed) {
      record.readers = 0;
      record.backing_id = 0;
    }
    ++resident_blocks_;
    by_age.emplace_back(record.mtime_nanos, found.state.slot);
    if (record.flags != 0) {
      dirty_bytes_ += record.length;
      QueueWriteBack(found.state.slot, options_.writeback_delay);
    }
  };
  for (Found& found : all) insert(found, false);
  std::sort(early.begin(), early.end(),
            [](const Found* a, const Found* b) { return a->ordinal < b->ordinal; });
  for (Found* found : early) insert(*found, true);
  for (const RecoveredEntry& entry : newer) {
    const std::optional<Namespace> space = parts_.namespaces->FindUuid(entry.meta.namespace_uuid);
    const std::optional<BlockRef> ref =
        space ? index_.Find(space->id, entry.meta.key) : std::nullopt;
    if (ref && index_.state(*ref).sequence == entry.place.sequence) PutRecord(*ref);
    NoteApplied(entry.place.sequence);
  }
  std::sort(by_age.begin(), by_age.end());
  for (const auto& [age, slot] : by_age) parts_.resident->Add(slot, this);
  for (const Survivor& survivor : survivors) {
    SlotRecord& record = parts_.slots->record(survivor.slot);
    if ((record.flags & iouring::kSlotDoomed) == 0) continue;
    if (options_.resumed && record.readers > 0) {
      doomed_readers_[record.ino] = survivor.slot;
      const uint64_t hash = BlockHash62(record.namespace_id, record.key);
      const std::optional<BlockRef> ref = index_.FindHash(hash);
      if (ref && ViewOf(*ref).block_ino() == record.ino) {
        GiveOtherIno(hash);
        const SlotId slot = index_.state(*ref).slot;
        if (slot != 0) parts_.slots->record(slot).ino = ViewOf(*ref).block_ino();
      }
    } else {
      worthless.push_back(survivor.slot);
    }
  }
  uint64_t writers = 0;
  for (const SlotId slot : pending) {
    SlotRecord& record = parts_.slots->record(slot);
    if (!options_.resumed) {
      // Nobody can close it any more. What fsync and close acknowledged came from the segments.
      worthless.push_back(slot);
      continue;
    }
    ++writers;
    pending_[BlockHash62(record.namespace_id, record.key)].push_back(slot);
    ++pending_count_;
    if (!record.parent.IsZero()) ++pins_[BlockHash62(record.namespace_id, record.parent)];
    if (record.place.valid()) intents_.insert(record.place.sequence);
  }
  for (const SlotId slot : worthless) {
    if (parts_.slots->record(slot).state.load() == SlotState::kFree) continue;
    parts_.slots->record(slot).backing_id = 0;
    parts_.slots->Free(slot);
  }
  const auto took = std::chrono::duration_cast<std::chrono::milliseconds>(
      std::chrono::steady_clock::now() - begin);
  KVC_LOG(Info, "blocks recovered",
          "blocks={} resident={} dirty_bytes={} being_written={} from_segments={} orphans={} "
          "damaged_records={} ms={}",
          index_.block_count(), resident_blocks_, dirty_bytes_, writers, newer.size(), orphans,
          damaged_records, took.count());
  return {};
}

}  // namespace kvcfs::fs
