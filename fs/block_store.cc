#include "fs/block_store.h"

#include <algorithm>

#include <sys/mman.h>

#include "base/log.h"
#include "fs/about_to_block.h"
#include "fs/block_metrics.h"
#include "fs/copy_holder.h"

namespace kvcfs::fs {
namespace {

using iouring::SlotRecord;
using meta::BlockHash62;
using meta::BlockRef;
using meta::BlockState;
using meta::NamespaceId;
using std::chrono::milliseconds;

constexpr uint64_t kHashMask = (Ino{1} << kInoKindShift) - 1;

}  // namespace

const char* TierName(Tier tier) {
  switch (tier) {
    case Tier::kDram:
      return "dram";
    case Tier::kNvme:
      return "nvme";
    case Tier::kPeer:
      return "peer";
    case Tier::kNone:
      break;
  }
  return "none";
}

Ino BlockView::block_ino() const {
  if (other_ino != 0) return other_ino;
  return (static_cast<Ino>(InoKind::kBlock) << kInoKindShift) | BlockHash62(ns, key);
}

Ino BlockView::chain_ino() const {
  return (static_cast<Ino>(InoKind::kChain) << kInoKindShift) | BlockHash62(ns, key);
}

BlockStore::BlockStore(const BlockStoreOptions& options, const BlockStoreParts& parts)
    : options_(options),
      parts_(parts),
      nvme_block_bytes_max_(parts.segments != nullptr ? parts.segments->Stats().entry_bytes_max
                                                      : 0),
      leases_(options.lease_bytes_max) {}

BlockStore::~BlockStore() {
  Stop();
  for (const auto& [slot, mapping] : mappings_) ::munmap(mapping.first, mapping.second);
}

void BlockStore::Start() {
  threads_.emplace_back([this] { RunWriteBack(); });
  // Of peers, some blocks are on their way at once.
  const int prefetchers = parts_.cluster != nullptr ? 4 : 1;
  for (int i = 0; i < prefetchers; ++i) threads_.emplace_back([this] { RunPrefetch(); });
  threads_.emplace_back([this] { RunRecords(); });
}

void BlockStore::Stop() {
  {
    MutexLock lock(mutex_);
    stopping_ = true;
  }
  {
    MutexLock lock(records_mutex_);
    records_stopping_ = true;
  }
  due_changed_.notify_all();
  prefetch_changed_.notify_all();
  records_changed_.notify_all();
  published_.notify_all();
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
}

uint32_t BlockStore::NowSeconds() const {
  return static_cast<uint32_t>(parts_.clock->WallNanos() / 1'000'000'000);
}

BlockView BlockStore::ViewOf(BlockRef ref) {
  BlockView view;
  const BlockState state = index_.state(ref);
  view.ns = index_.namespace_of(ref);
  view.key = index_.key(ref);
  view.parent = index_.parent_key(ref);
  view.ordinal = index_.ordinal(ref);
  view.length = state.length;
  view.tier = state.slot != 0 ? Tier::kDram : state.segment != 0 ? Tier::kNvme : Tier::kPeer;
  if (view.tier == Tier::kPeer && parts_.copies != nullptr) {
    const std::optional<meta::BlockId> id = IdOf(view.ns, view.key);
    const Tier here = id ? parts_.copies->TierOf(*id) : Tier::kNone;
    if (here != Tier::kNone) view.tier = here;
  }
  view.hits = state.hits;
  view.mtime_nanos = int64_t{state.mtime_s} * 1'000'000'000;
  view.atime_nanos = int64_t{std::max(state.last_use_s, state.mtime_s)} * 1'000'000'000;
  view.leaf = index_.child_count(ref) == 0;
  if (parts_.cluster != nullptr) {
    view.lease_ms = PromiseOf(BlockHash62(view.ns, view.key));
  } else {
    const milliseconds now = parts_.clock->Monotonic();
    const milliseconds until = leases_.Until(BlockHash62(view.ns, view.key)) - options_.lease_hold;
    if (until > now) view.lease_ms = static_cast<uint32_t>((until - now).count());
  }
  if (!other_inos_.empty()) {
    const auto other = other_inos_.find(BlockHash62(view.ns, view.key));
    if (other != other_inos_.end()) view.other_ino = other->second;
  }
  return view;
}

std::optional<BlockRef> BlockStore::RefOf(Ino ino) {
  const uint64_t hash = ino & kHashMask;
  if (KindOf(ino) == InoKind::kBlock && !other_inos_.empty()) {
    const auto other = other_ino_hashes_.find(ino);
    if (other != other_ino_hashes_.end()) return index_.FindHash(other->second);
    if (other_inos_.contains(hash)) return std::nullopt;  // the dropped one's
  }
  return index_.FindHash(hash);
}

void BlockStore::GiveOtherIno(uint64_t hash) {
  for (uint64_t salt = 1;; ++salt) {
    const uint64_t other = (hash + salt * 0x9E3779B97F4A7C15) & kHashMask;
    const Ino ino = (static_cast<Ino>(InoKind::kBlock) << kInoKindShift) | other;
    if (doomed_readers_.contains(ino) || other_ino_hashes_.contains(ino) ||
        index_.FindHash(other)) {
      continue;
    }
    other_inos_[hash] = ino;
    other_ino_hashes_[ino] = hash;
    return;
  }
}

uint32_t BlockStore::Grant(BlockRef ref) {
  const milliseconds now = parts_.clock->Monotonic();
  const uint64_t hash = BlockHash62(index_.namespace_of(ref), index_.key(ref));
  if (parts_.cluster != nullptr) return PromiseOf(hash);
  const milliseconds held = leases_.Grant(hash, index_.state(ref).length, now,
                                          now + options_.lease + options_.lease_hold);
  const milliseconds promised = held - options_.lease_hold - now;
  return promised.count() > 0 ? static_cast<uint32_t>(promised.count()) : 0;
}

bool BlockStore::IsHeld(BlockRef ref) {
  const uint64_t hash = BlockHash62(index_.namespace_of(ref), index_.key(ref));
  if (leases_.IsLeased(hash, parts_.clock->Monotonic())) return true;
  if (pins_.contains(hash) || fetching_.contains(hash)) return true;
  if (!open_copies_.empty() && open_copies_.contains(ViewOf(ref).block_ino())) return true;
  const uint32_t slot = index_.state(ref).slot;
  return slot != 0 && parts_.slots->record(slot).readers > 0;
}

void BlockStore::AwaitPublication(NamespaceId ns, const BlockKey& key, MutexLock& lock) {
  const uint64_t hash = BlockHash62(ns, key);
  const auto releasing = [&]() KVC_NO_ANALYSIS {
    const auto found = pending_.find(hash);
    if (found == pending_.end()) return false;
    return std::any_of(found->second.begin(), found->second.end(), [this](SlotId slot) {
      const SlotRecord& record = parts_.slots->record(slot);
      return (record.flags & iouring::kSlotFlushed) != 0 &&
             (record.flags & iouring::kSlotDoomed) == 0;
    });
  };
  if (!releasing()) return;
  AboutToBlock();  // its RELEASE may be the next call
  if (published_.wait_for(lock.native(), options_.publish_wait, [&] { return !releasing(); })) {
    return;
  }
  // A duplicate of the descriptor is still open somewhere: ask no more until the next close().
  const auto found = pending_.find(hash);
  if (found == pending_.end()) return;
  for (const SlotId slot : found->second) {
    parts_.slots->record(slot).flags &= ~iouring::kSlotFlushed;
  }
}

void BlockStore::AwaitPublications(NamespaceId ns, MutexLock& lock) {
  std::vector<BlockKey> keys;
  for (const auto& [hash, slots] : pending_) {
    for (const SlotId slot : slots) {
      const SlotRecord& record = parts_.slots->record(slot);
      if (record.namespace_id == ns && (record.flags & iouring::kSlotFlushed) != 0) {
        keys.push_back(record.key);
      }
    }
  }
  for (const BlockKey& key : keys) AwaitPublication(ns, key, lock);
}

std::optional<BlockView> BlockStore::Find(NamespaceId ns, const BlockKey& key, Use use) {
  MutexLock lock(mutex_);
  std::optional<BlockRef> ref = index_.Find(ns, key);
  if (!ref && use == Use::kLease && !pending_.empty()) {
    AwaitPublication(ns, key, lock);
    ref = index_.Find(ns, key);
  }
  if (parts_.cluster != nullptr && use == Use::kLease) ref = Confirm(ns, key, lock);
  if (!ref) return std::nullopt;
  return UseOf(*ref, use);
}

BlockView BlockStore::UseOf(BlockRef ref, Use use) {
  if (use == Use::kPeek) return ViewOf(ref);
  NoteReuseOnce(ref);
  index_.Touch(ref, NowSeconds(), false);
  const uint32_t lease_ms = Grant(ref);
  if (const uint32_t slot = index_.state(ref).slot; slot != 0) parts_.resident->Touch(slot);
  BlockView view = ViewOf(ref);
  view.lease_ms = lease_ms;
  return view;
}

std::optional<BlockView> BlockStore::FindIno(Ino ino, Use use) {
  MutexLock lock(mutex_);
  std::optional<BlockRef> ref = RefOf(ino);
  if (parts_.cluster != nullptr && use == Use::kLease && ref) {
    ref = Confirm(index_.namespace_of(*ref), index_.key(*ref), lock);
  }
  if (!ref) return std::nullopt;
  return UseOf(*ref, use);
}

std::optional<BlockView> BlockStore::FindDropped(Ino ino) {
  MutexLock lock(mutex_);
  SlotId slot = 0;
  if (const auto found = doomed_readers_.find(ino); found != doomed_readers_.end()) {
    slot = found->second;
  } else if (const auto open = open_copies_.find(ino); open != open_copies_.end()) {
    slot = open->second.slot;  // the cluster has it perhaps; nobody has asked since a restart
  }
  if (slot == 0) return std::nullopt;
  const iouring::SlotRecord& record = parts_.slots->record(slot);
  BlockView view;
  view.ns = record.namespace_id;
  view.key = record.key;
  view.parent = record.parent;
  view.ordinal = record.ordinal;
  view.length = record.length;
  view.tier = Tier::kDram;
  view.mtime_nanos = view.atime_nanos = record.mtime_nanos;
  view.other_ino = ino;
  return view;
}

std::optional<BlockView> BlockStore::InChain(NamespaceId ns, const BlockKey& tip, uint32_t ordinal,
                                             Use use) {
  MutexLock lock(mutex_);
  const bool ask = parts_.cluster != nullptr && use == Use::kLease;
  const std::optional<BlockRef> tip_ref = ask ? Confirm(ns, tip, lock) : index_.Find(ns, tip);
  if (!tip_ref || ordinal > index_.ordinal(*tip_ref)) return std::nullopt;
  return UseOf(index_.Chain(*tip_ref)[ordinal], use);
}

void BlockStore::ListChain(NamespaceId ns, const BlockKey& tip, uint64_t from_ordinal,
                           const Visit& visit) {
  MutexLock lock(mutex_);
  const std::optional<BlockRef> tip_ref = index_.Find(ns, tip);
  if (!tip_ref) return;
  const std::vector<BlockRef> chain = index_.Chain(*tip_ref);
  for (uint64_t ordinal = from_ordinal; ordinal < chain.size(); ++ordinal) {
    if (!visit(ViewOf(chain[ordinal]), ordinal + 1)) return;
  }
}

FsStatus BlockStore::ListLeaves(NamespaceId ns, uint64_t cookie, const Visit& visit) {
  {
    MutexLock lock(mutex_);
    if (cookie == 0) AwaitPublications(ns, lock);
    if (parts_.cluster == nullptr) {
      index_.ListLeaves(ns, cookie, [&](BlockRef ref, uint64_t next) KVC_NO_ANALYSIS {
        return visit(ViewOf(ref), next);
      });
      return {};
    }
  }
  return ListClusterLeaves(ns, cookie, visit);
}

void BlockStore::ListBlocks(NamespaceId ns, uint64_t cookie, const Visit& visit) {
  MutexLock lock(mutex_);
  if (cookie == 0) AwaitPublications(ns, lock);
  index_.ListBlocks(ns, cookie, [&](BlockRef ref, uint64_t next) KVC_NO_ANALYSIS {
    return visit(ViewOf(ref), next);
  });
}

bool BlockStore::NamespaceIsEmpty(NamespaceId ns) {
  if (parts_.cluster != nullptr) {
    uint32_t shard = 0;
    const auto leaf = AnyLeaf(ns, &shard);
    if (!leaf.ok() || leaf->has_value()) return false;
  }
  MutexLock lock(mutex_);
  AwaitPublications(ns, lock);
  if (parts_.cluster == nullptr && index_.block_count(ns) > 0) return false;
  for (const auto& [hash, slots] : pending_) {
    for (const SlotId slot : slots) {
      if (parts_.slots->record(slot).namespace_id == ns) return false;
    }
  }
  return true;
}

uint64_t BlockStore::BlockCount(NamespaceId ns) {
  MutexLock lock(mutex_);
  return index_.block_count(ns);
}

uint64_t BlockStore::LiveBytes() {
  MutexLock lock(mutex_);
  uint64_t bytes = 0;
  for (const auto& [ns, each] : space_bytes_) bytes += each;
  return bytes;
}

MatchAnswer BlockStore::Match(NamespaceId ns, std::span<const BlockKey> keys, uint32_t flags) {
  MatchAnswer answer;
  if (keys.empty()) return answer;
  BlockMetrics& metrics = BlockMetrics::Get();
  std::vector<BlockRef> refs(keys.size());
  Uses uses;
  MutexLock lock(mutex_);
  size_t count = index_.Match(ns, keys, refs.data());
  // A writer that has flushed the next block may be about to publish it.
  while (count < keys.size() && !pending_.empty()) {
    AwaitPublication(ns, keys[count], lock);
    const size_t again = index_.Match(ns, keys, refs.data());
    if (again <= count) {
      count = again;
      break;
    }
    count = again;
  }
  if (parts_.cluster != nullptr) {
    const bool lease = (flags & kMatchNoLease) == 0;
    count = ConfirmPrefix(ns, keys, lease, refs.data(), count, lock);
    // What is published here is behind what only the cluster knew.
    while (count < keys.size() && pending_.contains(BlockHash62(ns, keys[count]))) {
      AwaitPublication(ns, keys[count], lock);
      const size_t known = index_.Match(ns, keys, refs.data());
      const size_t again = ConfirmPrefix(ns, keys, lease, refs.data(), known, lock);
      const bool more = again > count;
      count = again;
      if (!more) break;
    }
    for (size_t i = 0; i < count; ++i) NoteUse(refs[i], &uses);
  }
  metrics.match_calls.Add();
  metrics.match_blocks_asked.Add(static_cast<double>(keys.size()));
  metrics.match_blocks_hit.Add(static_cast<double>(count));
  answer.count = static_cast<uint32_t>(count);
  answer.blocks.resize(count);
  const uint32_t now_s = NowSeconds();
  uint32_t lease_ms = UINT32_MAX;
  for (size_t i = 0; i < count; ++i) NoteReuse(refs[i], i + 1 == keys.size(), false);
  // From the tail to the head, so that the head is the more recently used.
  for (size_t i = count; i-- > 0;) {
    index_.Touch(refs[i], now_s, true);
    if ((flags & kMatchNoLease) == 0) lease_ms = std::min(lease_ms, Grant(refs[i]));
    const uint32_t slot = index_.state(refs[i]).slot;
    if (slot != 0) parts_.resident->Touch(slot);
    answer.blocks[i] = ViewOf(refs[i]);
  }
  if ((flags & kMatchPrefetch) != 0) {
    for (const BlockView& block : answer.blocks) {
      if (block.tier != Tier::kDram) prefetch_.emplace_back(ns, block.key);
    }
    prefetch_changed_.notify_all();
  }
  answer.lease_ms = count == 0 || lease_ms == UINT32_MAX ? 0 : lease_ms;
  lock.native().unlock();
  if (!uses.empty()) TellUses(uses);
  return answer;
}

void BlockStore::Touch(Ino ino) {
  (void)FindIno(ino, Use::kLease);
}

BlockStoreStats BlockStore::Stats() {
  MutexLock lock(mutex_);
  const meta::ChainIndexStats index = index_.Stats();
  BlockStoreStats stats;
  stats.blocks = index.blocks;
  stats.leaves = index.leaves;
  stats.index_bytes = index.table_bytes + index.run_bytes;
  stats.dirty_bytes = dirty_bytes_;
  leases_.Expire(parts_.clock->Monotonic());
  stats.leased_bytes = leases_.leased_bytes();
  stats.pending = pending_count_;
  stats.resident_blocks = resident_blocks_;
  stats.pinned_bytes = stats.dirty_bytes + stats.leased_bytes;
  return stats;
}

}  // namespace kvcfs::fs
