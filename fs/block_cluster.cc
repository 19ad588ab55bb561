// Blocks of a cluster: what the cluster says of them, for how long that is believed here, and how
// they come and go between this host's tiers and their homes.
//
// The index has what this host has heard of; an entry without slot and segment is a block that only
// others have, or that a copy here is of (copy_holder.h). Until its time is over it is answered
// without asking. What the index has of the tiers is a cache: it may go. No lock is held while the
// cluster is asked.
#include <algorithm>

#include "base/crc32c.h"
#include "base/log.h"
#include "fs/about_to_block.h"
#include "fs/block_metrics.h"
#include "fs/block_store.h"

namespace kvcfs::fs {
namespace {

using iouring::SlotId;
using iouring::SlotRecord;
using meta::BlockFacts;
using meta::BlockHash62;
using meta::BlockId;
using meta::BlockRef;
using meta::BlockState;
using meta::FoundBlock;
using meta::NamespaceId;
using meta::Place;
using std::chrono::milliseconds;

// No call of a user takes 10 s, whatever of the cluster is away: it asks at most two of these, or
// one and the longer one that it is for, or waits for a publication and asks two.
constexpr milliseconds kAskLimit{1500};
constexpr milliseconds kMatchLimit{3500};
constexpr milliseconds kReadLimit{3000};  // twice, and one question
constexpr milliseconds kDropLimit{8000};
// So many calls in a row that nobody answered: then each further one waits no longer than this, and
// the threads of the mount are not all taken by those that wait for nothing.
constexpr int kSilencesMax = 16;
constexpr milliseconds kSilentLimit{300};

// What the cluster did not lease is believed for a moment: the lookup and the open of one open().
constexpr milliseconds kUnleased{1000};
// From a lookup to the create behind it.
constexpr milliseconds kAbsent{1000};
constexpr size_t kAbsentMax = 4096;
// A longer question is cut: one message of 256 KiB.
constexpr size_t kMatchKeysMax = 8192;

}  // namespace

std::optional<BlockId> BlockStore::IdOf(NamespaceId ns, const BlockKey& key) const {
  const std::optional<Namespace> space = parts_.namespaces->Get(ns);
  if (!space) return std::nullopt;
  return BlockId{SpaceIdOf(space->uuid), key};
}

bool BlockStore::IsValid(BlockRef ref) {
  const auto told = told_.find(BlockHash62(index_.namespace_of(ref), index_.key(ref)));
  return told != told_.end() && told->second.valid_until > parts_.clock->Monotonic();
}

uint32_t BlockStore::PromiseOf(uint64_t hash) {
  const auto told = told_.find(hash);
  if (told == told_.end()) return 0;
  const milliseconds left = told->second.leased_until - parts_.clock->Monotonic();
  return left.count() > 0 ? static_cast<uint32_t>(left.count()) : 0;
}

milliseconds BlockStore::Patience(milliseconds limit) const {
  return silences_ < kSilencesMax ? limit : std::min(limit, kSilentLimit);
}

void BlockStore::Heard(Code code) {
  if (code == Code::kTimeout || code == Code::kUnavailable) {
    ++silences_;
  } else if (code != Code::kCancelled) {
    silences_ = 0;
  }
}

// ---- what the cluster says

std::optional<BlockRef> BlockStore::Take(NamespaceId ns, const BlockKey& parent,
                                         const FoundBlock& block, milliseconds leased_until) {
  const uint64_t hash = BlockHash62(ns, block.key);
  std::optional<BlockRef> ref = index_.Find(ns, block.key);
  if (ref) {
    const BlockState state = index_.state(*ref);
    const auto told = told_.find(hash);
    uint32_t crc = told != told_.end() ? told->second.crc32c : 0;
    if (crc == 0 && state.slot != 0) crc = parts_.slots->record(state.slot).crc32c;
    const bool same = state.length == block.length && index_.parent_key(*ref) == parent &&
                      (crc == 0 || crc == block.crc32c);
    if (!same) {
      // Dropped, and written anew with other bytes.
      DropTree(*ref, BlockMetrics::Get().gone, false);
      ref.reset();
    }
  }
  if (!ref) {
    BlockState state;
    state.length = block.length;
    state.mtime_s = block.mtime_s;
    state.last_use_s = NowSeconds();
    const Result<BlockRef> inserted = index_.Insert(ns, block.key, parent, state);
    if (!inserted.ok()) return std::nullopt;  // hashes that collide, or what no server should say
    ref = *inserted;
    ghosts_.erase(hash);
    if (doomed_readers_.contains(ViewOf(*ref).block_ino())) GiveOtherIno(hash);
  }
  Told& told = told_[hash];
  told.crc32c = block.crc32c;
  told.places = block.places;
  told.leased_until = std::max(told.leased_until, leased_until);
  told.valid_until =
      std::max({told.valid_until, told.leased_until, parts_.clock->Monotonic() + kUnleased});
  return ref;
}

void BlockStore::TakeChain(NamespaceId ns, std::span<const FoundBlock> chain,
                           milliseconds leased_until) {
  BlockKey parent;
  for (const FoundBlock& block : chain) {
    if (!Take(ns, parent, block, leased_until)) return;
    parent = block.key;
  }
}

void BlockStore::Forget(NamespaceId ns, const BlockKey& key) {
  const std::optional<BlockRef> ref = index_.Find(ns, key);
  if (ref) DropTree(*ref, BlockMetrics::Get().gone, false);
}

void BlockStore::ForgetNamespace(NamespaceId ns) {
  MutexLock lock(mutex_);
  DropRoots(ns, BlockMetrics::Get().gone, false);
}

void BlockStore::TrimTold() {
  const size_t step = options_.told_blocks_max / 16;
  if (told_.size() <= std::max<size_t>(options_.told_blocks_max, told_trimmed_ + step)) return;
  const size_t wanted = options_.told_blocks_max - step;
  index_.VisitColdestLeaves([&](BlockRef ref) KVC_NO_ANALYSIS {
    const BlockState state = index_.state(ref);
    if (state.slot == 0 && state.segment == 0 && !IsHeld(ref)) {
      RemoveLeaf(ref, BlockMetrics::Get().forgotten);
    }
    return told_.size() > wanted;
  });
  told_trimmed_ = told_.size();
}

std::optional<BlockRef> BlockStore::Confirm(NamespaceId ns, const BlockKey& key, MutexLock& lock) {
  const std::optional<BlockRef> known = index_.Find(ns, key);
  if (known && IsValid(*known)) return known;
  const std::optional<BlockId> id = IdOf(ns, key);
  if (!id) return std::nullopt;
  AboutToBlock();
  lock.native().unlock();
  const Result<meta::LocatedBlock> located = parts_.cluster->Stat(*id, Patience(kAskLimit));
  Heard(located.code());
  lock.native().lock();
  if (!located.ok()) {
    if (located.code() != Code::kNotFound) return std::nullopt;  // not known: a miss
    Forget(ns, key);
    if (absent_.size() >= kAbsentMax) absent_.clear();
    absent_[BlockHash62(ns, key)] = parts_.clock->Monotonic() + kAbsent;
    return std::nullopt;
  }
  const BlockKey parent = located->facts.parent;
  if (!parent.IsZero() && !index_.Find(ns, parent)) {
    lock.native().unlock();
    const auto chain = parts_.cluster->Chain(*id, Patience(kAskLimit));
    lock.native().lock();
    if (!chain.ok() || chain->size() != located->facts.ordinal + size_t{1}) return std::nullopt;
    // What is leased keeps all before it.
    TakeChain(ns, std::span(*chain).first(chain->size() - 1), located->lease_until);
  }
  const std::optional<BlockRef> taken = Take(ns, parent, located->block, located->lease_until);
  TrimTold();
  return taken;
}

size_t BlockStore::ConfirmPrefix(NamespaceId ns, std::span<const BlockKey> keys, bool lease,
                                 BlockRef* refs, size_t count, MutexLock& lock) {
  const auto good = [&](BlockRef ref) KVC_NO_ANALYSIS {
    return IsValid(ref) &&
           (!lease || PromiseOf(BlockHash62(index_.namespace_of(ref), index_.key(ref))) > 0);
  };
  const auto leading = [&](const auto& is_good) {
    return static_cast<size_t>(std::find_if_not(refs, refs + count, is_good) - refs);
  };
  if (leading(good) == keys.size()) return count;
  const std::optional<BlockId> id = IdOf(ns, keys[0]);
  if (!id) return 0;
  // The cluster's questions begin at a chain's root: one that begins in its middle can be asked
  // where what lies before it is known.
  std::vector<BlockKey> asked;
  if (count > 0 && index_.ordinal(refs[0]) > 0) {
    std::vector<BlockRef> chain = index_.Chain(refs[0]);
    chain.pop_back();
    for (const BlockRef ref : chain) asked.push_back(index_.key(ref));
  }
  asked.insert(asked.end(), keys.begin(), keys.end());
  asked.resize(std::min(asked.size(), kMatchKeysMax));
  AboutToBlock();
  lock.native().unlock();
  const auto found = parts_.cluster->Match(id->space, asked, lease, Patience(kMatchLimit));
  lock.native().lock();
  if (found.ok()) {
    if (!found->blocks.empty()) Heard(Code::kOk);
    TakeChain(ns, found->blocks, found->lease_until);
    TrimTold();
  }
  // Without an answer: what may still be believed.
  count = index_.Match(ns, keys, refs);
  return leading([&](BlockRef ref) KVC_NO_ANALYSIS { return IsValid(ref); });
}

void BlockStore::NoteUse(BlockRef ref, Uses* uses) {
  const NamespaceId ns = index_.namespace_of(ref);
  const BlockKey key = index_.key(ref);
  const auto told = told_.find(BlockHash62(ns, key));
  if (told == told_.end() || told->second.places.empty()) return;
  const std::optional<BlockId> id = IdOf(ns, key);
  if (id) uses->emplace_back(*id, told->second.places[0].node);
}

void BlockStore::TellUses(const Uses& uses) {
  for (const auto& [id, holder] : uses) parts_.cluster->NoteUsed(id, holder);
}

// ---- writing

FsResult<uint32_t> BlockStore::AskToCreate(NamespaceId ns, const std::optional<BlockKey>& parent,
                                           const BlockKey& key, std::optional<SlotFacts>* facts,
                                           MutexLock& lock) {
  const milliseconds now = parts_.clock->Monotonic();
  const auto absent = absent_.find(BlockHash62(ns, key));
  const std::optional<BlockRef> known = index_.Find(ns, key);
  if (known || absent == absent_.end() || absent->second <= now) {
    if (Confirm(ns, key, lock)) return Fail(EEXIST);
  }
  if (parent && !index_.Find(ns, *parent)) AwaitPublication(ns, *parent, lock);
  const std::optional<BlockId> id = IdOf(ns, key);
  if (!id) return Fail(ENOENT);
  AboutToBlock();
  lock.native().unlock();
  const Result<BlockFacts> created =
      parts_.cluster->Create(*id, parent.value_or(BlockKey{}), Patience(kAskLimit));
  if (parent) Heard(created.code());  // of a first block nobody is asked
  lock.native().lock();
  if (created.ok()) {
    facts->emplace(SlotFacts{.facts = *created});
    return created->ordinal;
  }
  if (created.code() == Code::kNotFound) {
    if (parent) Forget(ns, *parent);
    return Fail(ENOENT);
  }
  // The cluster is away. It may be back when the block is closed, and a parent that is known here
  // may still be there.
  const std::optional<BlockRef> ref = parent ? index_.Find(ns, *parent) : std::nullopt;
  if (parent && !ref) return Fail(ENOENT);
  return ref ? index_.ordinal(*ref) + 1 : 0;
}

// ---- reading

bool BlockStore::IsAsTold(NamespaceId ns, const BlockKey& key, std::span<const std::byte> bytes,
                          uint32_t* crc) {
  *crc = Crc32c(bytes);
  MutexLock lock(mutex_);
  const auto told = told_.find(BlockHash62(ns, key));
  return told == told_.end() || told->second.crc32c == *crc;
}

Status BlockStore::ReadFromPeers(NamespaceId ns, const BlockKey& key, std::span<std::byte> into,
                                 uint32_t* crc) {
  const std::optional<BlockId> id = IdOf(ns, key);
  if (!id) return Error{Code::kNotFound, "its namespace is gone"};
  FoundBlock block{key, static_cast<uint32_t>(into.size()), 0, 0};
  {
    MutexLock lock(mutex_);
    const auto told = told_.find(BlockHash62(ns, key));
    if (told != told_.end()) {
      block.crc32c = told->second.crc32c;
      block.places = told->second.places;
    }
  }
  for (int round = 0;; ++round) {
    if (!block.places.empty()) {
      const Result<Place> read = parts_.cluster->Read(id->space, block, into, Patience(kReadLimit));
      Heard(read.code());
      if (read.ok()) {
        *crc = block.crc32c;
        BlockMetrics::Get().peer_bytes.Add(static_cast<double>(into.size()));
        return {};
      }
      if (read.code() != Code::kNotFound || round > 0) return read.error();
    }
    if (round > 0) return Error{Code::kNotFound, "nobody has it"};
    // It was published here, or has moved since.
    KVC_TRY_ASSIGN(const meta::LocatedBlock located,
                   parts_.cluster->Stat(*id, Patience(kAskLimit)));
    MutexLock lock(mutex_);
    (void)Take(ns, located.facts.parent, located.block, located.lease_until);
    if (located.block.length != into.size()) return Error{Code::kStale, "replaced meanwhile"};
    block = located.block;
  }
}

void BlockStore::KeepFromPeer(SlotId slot) {
  SlotRecord& record = parts_.slots->record(slot);
  space_bytes_[record.namespace_id] += record.length;
  if (parts_.segments == nullptr) return;
  record.flags |= iouring::kSlotDirty;
  dirty_bytes_ += record.length;
  QueueWriteBack(slot, options_.writeback_delay);
}

// ---- copies here

void BlockStore::DropSegmentCopy(BlockRef ref) {
  BlockState state = index_.state(ref);
  if (state.segment == 0) return;
  parts_.segments->MarkDead({state.segment, state.offset_4k, state.sequence}, state.length);
  DeleteRecord(index_.namespace_of(ref), index_.key(ref));
  if (state.slot == 0) space_bytes_[index_.namespace_of(ref)] -= state.length;
  if (state.slot != 0) parts_.slots->record(state.slot).place = {};
  state.segment = state.offset_4k = 0;
  state.sequence = 0;
  index_.SetState(ref, state);
}

uint64_t BlockStore::ShedCopies(uint64_t bytes) {
  uint64_t freed = 0;
  index_.VisitColdestLeaves([&](BlockRef leaf) KVC_NO_ANALYSIS {
    // Up the chain as far as it is this one's alone: what extends a block was used as late.
    BlockRef ref = leaf;
    for (bool alone = true; alone && ref.valid() && freed < bytes; ref = index_.parent(ref)) {
      alone = ref == leaf || index_.child_count(ref) == 1;
      const BlockState state = index_.state(ref);
      if (!alone || state.segment == 0) continue;
      freed += state.length;
      DropSegmentCopy(ref);
      BlockMetrics::Get().evicted_capacity.Add();
    }
    const BlockState state = index_.state(leaf);
    if (state.slot == 0 && state.segment == 0 && !IsValid(leaf) && !IsHeld(leaf)) {
      RemoveLeaf(leaf, BlockMetrics::Get().forgotten);
    }
    return freed < bytes;
  });
  return freed;
}

// ---- dropping

FsStatus BlockStore::DropInCluster(NamespaceId ns, const BlockKey& key, MutexLock& lock) {
  const std::optional<BlockId> id = IdOf(ns, key);
  if (!id) return Fail(ENOENT);
  AboutToBlock();
  lock.native().unlock();
  const Status dropped = parts_.cluster->Drop(*id, Patience(kDropLimit));
  lock.native().lock();
  if (dropped.ok()) return {};
  if (dropped.code() == Code::kNotFound) {
    Forget(ns, key);
    return Fail(ENOENT);
  }
  KVC_LOG(Warn, "the cluster did not drop a block in time", "key={} error={}", key.ToHex(),
          LogValue(dropped.error().text));
  return Fail(EIO);
}

FsStatus BlockStore::IsOwnTail(NamespaceId ns, const BlockKey& tip, uint32_t ordinal,
                               MutexLock& lock) {
  const std::optional<BlockId> id = IdOf(ns, tip);
  if (!id) return Fail(ENOENT);
  AboutToBlock();
  lock.native().unlock();
  const auto chain = parts_.cluster->Chain(*id, Patience(kAskLimit));
  lock.native().lock();
  if (!chain.ok()) return Fail(chain.code() == Code::kNotFound ? ENOENT : EIO);
  for (size_t at = ordinal; at < chain->size(); ++at) {
    const uint32_t own = at + 1 < chain->size() ? 1 : 0;
    if ((*chain)[at].children > own) return Fail(EBUSY);
  }
  return {};
}

// ---- listing

namespace {

// A place in a listing, in a number: the shard, the first 39 bits of a key, and how many keys with
// these bits lie before it. Real keys are uniform, so that the last is 0 or 1.
constexpr int kRankBits = 15, kPrefixBits = 39;
constexpr uint32_t kLeavesAtOnce = 512;
constexpr int kGoingMax = 100;
constexpr milliseconds kGoingPause{20};

uint64_t PrefixOf(const BlockKey& key) {
  uint64_t prefix = 0;
  for (size_t i = 0; i < 5; ++i) prefix = prefix << 8 | key.bytes[i];
  return prefix >> (40 - kPrefixBits);
}

// The last key before all that have these bits; zero: from the start.
BlockKey Before(uint64_t prefix) {
  BlockKey key;
  uint64_t bits = prefix << (40 - kPrefixBits);
  if (bits == 0) return key;
  --bits;
  for (size_t i = 5; i-- > 0; bits >>= 8) key.bytes[i] = static_cast<uint8_t>(bits);
  for (size_t i = 5; i < BlockKey::kBytes; ++i) key.bytes[i] = 0xff;
  return key;
}

}  // namespace

FsStatus BlockStore::ListClusterLeaves(NamespaceId ns, uint64_t cookie, const Visit& visit) {
  const std::optional<BlockId> space = IdOf(ns, {});
  if (!space) return {};
  AboutToBlock();
  constexpr uint64_t kRankMax = (uint64_t{1} << kRankBits) - 1;
  uint64_t prefix = cookie >> kRankBits & ((uint64_t{1} << kPrefixBits) - 1);
  uint64_t skip = cookie & kRankMax;
  for (auto shard = static_cast<uint32_t>(cookie >> (kRankBits + kPrefixBits));
       shard < meta::kShardCount; ++shard) {
    BlockKey after = Before(prefix);
    uint64_t rank = 0, of_prefix = prefix;
    for (bool done = false; !done;) {
      const auto page =
          parts_.cluster->Leaves(space->space, shard, after, kLeavesAtOnce, Patience(kMatchLimit));
      if (!page.ok()) {
        KVC_LOG(Warn, "a listing stops: a shard does not answer", "shard={} error={}", shard,
                LogValue(page.error().text));
        return Fail(EIO);
      }
      done = page->done || page->keys.empty();
      for (const BlockKey& key : page->keys) {
        after = key;
        rank = PrefixOf(key) == of_prefix ? rank : 0;
        of_prefix = PrefixOf(key);
        if (rank < kRankMax) ++rank;
        if (of_prefix == prefix && rank <= skip) continue;
        BlockView view;
        {
          MutexLock lock(mutex_);
          const std::optional<BlockRef> ref = index_.Find(ns, key);
          if (ref) view = ViewOf(*ref);
        }
        view.ns = ns;
        view.key = key;
        view.leaf = true;
        const uint64_t next = ((uint64_t{shard} << kPrefixBits | of_prefix) << kRankBits) | rank;
        if (!visit(view, next)) return {};
      }
    }
    prefix = skip = 0;
  }
  return {};
}

Result<std::optional<BlockKey>> BlockStore::AnyLeaf(NamespaceId ns, uint32_t* shard) {
  const std::optional<BlockId> space = IdOf(ns, {});
  if (!space) return std::optional<BlockKey>();
  AboutToBlock();
  for (; *shard < meta::kShardCount; ++*shard) {
    KVC_TRY_ASSIGN(const meta::LeafPage page,
                   parts_.cluster->Leaves(space->space, *shard, {}, 1, Patience(kMatchLimit)));
    if (!page.keys.empty()) return std::optional(page.keys[0]);
  }
  return std::optional<BlockKey>();
}

uint64_t BlockStore::DropLeavesOf(NamespaceId ns) {
  uint64_t dropped = 0;
  // A chain's blocks of other shards go with it, so each shard is asked until it has none. What is
  // going already may be listed for a moment.
  int going = 0;
  for (uint32_t shard = 0; shard < meta::kShardCount;) {
    const auto leaf = AnyLeaf(ns, &shard);
    const std::optional<BlockId> id =
        leaf.ok() && leaf->has_value() ? IdOf(ns, **leaf) : std::nullopt;
    if (!id) break;
    const auto chain = parts_.cluster->Chain(*id, Patience(kDropLimit));
    if (!chain.ok() || chain->empty()) {
      if (chain.code() != Code::kNotFound || ++going > kGoingMax) break;
      std::this_thread::sleep_for(kGoingPause);
      continue;
    }
    const Status done = parts_.cluster->Drop({id->space, (*chain)[0].key}, Patience(kDropLimit));
    if (!done.ok() && done.code() != Code::kNotFound) break;
    dropped += chain->size();
    going = 0;
  }
  return dropped;
}

}  // namespace kvcfs::fs
