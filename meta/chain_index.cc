#include "meta/chain_index.h"

#include <algorithm>
#include <array>
#include <bit>
#include <unordered_map>
#include <utility>

#include "meta/flat_map.h"
#include "meta/index_memory.h"
#include "meta/leaf_queue.h"
#include "meta/run_table.h"
#include "meta/slot_table.h"

namespace kvcfs::meta {

using layout::Place;

namespace {

constexpr uint32_t kLengthMax = 64u << 20;
constexpr uint32_t kHitsMax = (1u << 14) - 1;
constexpr uint64_t kSequenceMax = (uint64_t{1} << 40) - 1;
constexpr uint32_t kSegmentMax = (1u << 24) - 1;
constexpr size_t kMatchBatch = 32;
constexpr size_t kMatchStride = 8;  // of a batch, each eighth key is probed

// Of a BlockState all but the slot, which few blocks have, in 192 bits:
//   sequence 40, segment 24 | offset_4k 24, length - 1 26, hits 14 | last use 32, mtime 32
bool Packable(const BlockState& state) {
  return state.length >= 1 && state.length <= kLengthMax && state.sequence <= kSequenceMax &&
         state.segment <= kSegmentMax && state.offset_4k <= kSegmentMax;
}

PackedState Pack(const BlockState& state) {
  const uint64_t hits = std::min<uint32_t>(state.hits, kHitsMax);
  return {{state.sequence | uint64_t{state.segment} << 40,
           state.offset_4k | uint64_t{state.length - 1} << 24 | hits << 50,
           state.last_use_s | uint64_t{state.mtime_s} << 32}};
}

BlockState Unpack(const PackedState& packed) {
  BlockState state;
  state.sequence = packed.words[0] & kSequenceMax;
  state.segment = static_cast<uint32_t>(packed.words[0] >> 40);
  state.offset_4k = static_cast<uint32_t>(packed.words[1]) & kSegmentMax;
  state.length = (static_cast<uint32_t>(packed.words[1] >> 24) & (kLengthMax - 1)) + 1;
  state.hits = static_cast<uint16_t>(packed.words[1] >> 50);
  state.last_use_s = static_cast<uint32_t>(packed.words[2]);
  state.mtime_s = static_cast<uint32_t>(packed.words[2] >> 32);
  return state;
}

uint32_t LastUse(const PackedState& packed) {
  return static_cast<uint32_t>(packed.words[2]);
}

uint64_t Fold(uint64_t a, uint64_t b) {
  const auto product = static_cast<unsigned __int128>(a) * b;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

}  // namespace

// Over all of the key, so that keys that people make up (64 digits of which few differ) do not
// collide. Source: the mixing steps of wyhash and of MurmurHash3's finalizer.
uint64_t BlockHash(NamespaceId ns, const BlockKey& key) {
  const uint64_t seed = (ns + uint64_t{1}) * 0x9e3779b97f4a7c15;
  uint64_t hash = Fold(key.Word(0) ^ 0xa0761d6478bd642f ^ seed, key.Word(1) ^ 0xe7037ed1a0b428db) ^
                  std::rotl(Fold(key.Word(2) ^ 0x8ebc6af09c88c6e3, key.Word(3) ^ seed), 29);
  hash = (hash ^ (hash >> 33)) * 0xff51afd7ed558ccd;
  hash = (hash ^ (hash >> 33)) * 0xc4ceb9fe1a85ec53;
  return hash ^ (hash >> 33);
}

struct ChainIndex::Rep {
  Rep() : root(memory.At(memory.Allocate(1))), table(memory), runs(memory) {
    const auto publish = [](void* rep) { static_cast<Rep*>(rep)->PublishRoot(); };
    table.OnDirectoryMoved(publish, this);
    runs.OnBlocksMoved(publish, this);
    layout::StoreWord(root + layout::kRootMagic, layout::kMagic);
    layout::StoreWord(root + layout::kRootLayout, layout::kVersion);
    PublishRoot();
  }

  void PublishRoot() {
    const uint64_t version = root[layout::kRootVersionBegin];
    layout::StoreWord(root + layout::kRootVersionBegin, version + 1);
    layout::StoreWord(root + layout::kRootVersionEnd, version + 1);
    layout::StoreWord(root + layout::kRootDirectory, table.directory_address());
    layout::StoreWord(root + layout::kRootDepth, table.depth());
    layout::StoreWord(root + layout::kRootRunBlocks, runs.run_blocks_address());
    layout::StoreWord(root + layout::kRootRunBlockCount, runs.run_blocks_count());
    layout::StoreWord(root + layout::kRootVersionEnd, version + 2);
    layout::StoreWord(root + layout::kRootVersionBegin, version + 2);
  }

  BlockRef RefOf(uint64_t run, uint32_t offset) const {
    return {run, offset, runs.generation(run)};
  }
  static uint64_t BlockId(uint64_t run, uint32_t offset) {
    return run * layout::kRunBlocksMax + offset;
  }
  bool Is(const Place& place, NamespaceId ns, const BlockKey& key) const {
    return runs.namespace_of(place.run) == ns && runs.KeyIs(place.run, place.offset, key);
  }
  Place Find(uint64_t hash, NamespaceId ns, const BlockKey& key) const {
    return table.Find(hash, [&](const Place& place) { return Is(place, ns, key); });
  }
  bool IsTail(const Place& place) const { return place.offset + 1 == runs.length(place.run); }
  // The last block of a run, if nothing extends it.
  bool EndsInLeaf(uint64_t run) const { return runs.forks(run, runs.length(run) - 1) == 0; }

  // A run ends in a leaf that is new or was used earlier than the queue believes.
  void NoteLeaf(uint64_t run) {
    const uint32_t last_use = LastUse(runs.state(run, runs.length(run) - 1));
    if (runs.InQueue(run) && runs.queued_at(run) <= last_use) return;
    runs.SetQueued(run, true, last_use);
    if (queue.Push({last_use, static_cast<uint32_t>(run)}, 2 * runs.count())) return;
    // Too many entries that mean nothing any more: only the others stay.
    queue.Keep([&](const LeafQueue::Entry& entry) {
      return runs.Exists(entry.run) && runs.InQueue(entry.run) &&
             runs.queued_at(entry.run) == entry.second;
    });
  }

  // How many leading keys are cached, the first one behind `before` (run 0: anywhere), and where.
  size_t MatchBatch(NamespaceId ns, std::span<const BlockKey> keys, Place before,
                    Place* places) const;
  size_t MatchFromTheEnd(NamespaceId ns, std::span<const BlockKey> keys, const Place& before,
                         Place* places) const;
  size_t MatchEach(NamespaceId ns, std::span<const BlockKey> keys, Place before,
                   Place* places) const;
  bool Extends(const Place& place, const Place& before) const;

  void SetSlot(uint64_t run, uint32_t offset, uint32_t slot) {
    if (slot != 0) {
      slots.Set(BlockId(run, offset), slot);
    } else {
      slots.Erase(BlockId(run, offset));
    }
  }

  struct Link {
    uint32_t parent = 0, run = 0;
    // NOLINTNEXTLINE(modernize-use-nullptr): takes the 0 of <=> for a pointer.
    friend auto operator<=>(const Link&, const Link&) = default;
  };
  const std::vector<Link>& Links();

  IndexMemory memory;
  uint64_t* const root;  // page 0
  SlotTable table;
  RunTable runs;
  FlatMap slots;  // of blocks that are resident
  LeafQueue queue;
  std::vector<Link> links;  // for Subtree; empty: not known
  uint64_t leaves = 0;
  std::unordered_map<NamespaceId, uint64_t> counts;
};

ChainIndex::ChainIndex() : rep_(std::make_unique<Rep>()) {}
ChainIndex::~ChainIndex() = default;

Result<BlockRef> ChainIndex::Insert(NamespaceId ns, const BlockKey& key, const BlockKey& parent,
                                    const BlockState& state) {
  Rep& rep = *rep_;
  if (key.IsZero() || !Packable(state)) {
    return Error{Code::kInvalid, "block state out of bounds, or a key of zeros"};
  }
  const uint64_t hash = BlockHash(ns, key);
  const uint64_t parent_hash = parent.IsZero() ? 0 : BlockHash(ns, parent);
  rep.table.Prefetch(hash);
  if (!parent.IsZero()) rep.table.Prefetch(parent_hash);

  bool collides = false;
  const Place known = rep.table.Find(hash, [&](const Place& place) {
    if (rep.Is(place, ns, key)) return true;
    const BlockKey other = rep.runs.key(place.run, place.offset);
    collides |= BlockHash62(rep.runs.namespace_of(place.run), other) == hash >> 2;
    return false;
  });
  if (known.run != 0) return Error{Code::kExists, "block is cached"};
  if (collides) return Error{Code::kBusy, "another block has the same 62-bit hash"};
  Place behind;
  if (!parent.IsZero()) {
    behind = rep.Find(parent_hash, ns, parent);
    if (behind.run == 0) return Error{Code::kNotFound, "parent is not cached"};
  }

  const bool append = behind.run != 0 && rep.IsTail(behind) && rep.runs.CanGrow(behind.run);
  const bool covers_leaf =
      behind.run != 0 && rep.IsTail(behind) && rep.runs.forks(behind.run, behind.offset) == 0;
  Place place = behind;
  if (!append) {
    const uint32_t ordinal = behind.run == 0 ? 0 : rep.runs.ordinal(behind.run) + behind.offset + 1;
    place.run = rep.runs.Create(ns, behind, ordinal);
    std::vector<Rep::Link>().swap(rep.links);
  }
  place.offset = rep.runs.Append(place.run, key, Pack(state));
  place.generation = rep.runs.generation(place.run);
  if (!rep.table.Insert(hash, place)) {
    rep.runs.Truncate(place.run);
    if (!append) rep.runs.Free(place.run);
    return Error{Code::kBusy, "too many blocks with hashes alike"};
  }
  if (!append && behind.run != 0) rep.runs.AddFork(behind.run, behind.offset);
  if (state.slot != 0) rep.SetSlot(place.run, place.offset, state.slot);
  if (!covers_leaf) ++rep.leaves;
  ++rep.counts[ns];
  rep.NoteLeaf(place.run);
  return rep.RefOf(place.run, place.offset);
}

Status ChainIndex::RemoveLeaf(BlockRef ref) {
  Rep& rep = *rep_;
  if (!IsCurrent(ref)) return Error{Code::kNotFound, "block is gone"};
  if (child_count(ref) > 0) return Error{Code::kNotEmpty, "block has children"};
  const NamespaceId ns = rep.runs.namespace_of(ref.run);
  rep.table.Remove(BlockHash(ns, key(ref)), {ref.run, ref.offset, ref.generation});
  rep.SetSlot(ref.run, ref.offset, 0);
  const Place behind = ref.offset > 0 ? Place{ref.run, ref.offset - 1} : rep.runs.parent(ref.run);
  rep.runs.Truncate(ref.run);
  if (ref.offset == 0) {
    rep.runs.Free(ref.run);
    if (behind.run != 0) rep.runs.RemoveFork(behind.run, behind.offset);
  }
  --rep.leaves;
  const auto count = rep.counts.find(ns);
  if (--count->second == 0) rep.counts.erase(count);
  if (behind.run != 0 && rep.IsTail(behind) && rep.EndsInLeaf(behind.run)) {
    ++rep.leaves;
    rep.NoteLeaf(behind.run);
  }
  return {};
}

std::optional<BlockRef> ChainIndex::Find(NamespaceId ns, const BlockKey& key) const {
  const Place place = rep_->Find(BlockHash(ns, key), ns, key);
  if (place.run == 0) return std::nullopt;
  return rep_->RefOf(place.run, place.offset);
}

std::optional<BlockRef> ChainIndex::FindHash(uint64_t hash62) const {
  const RunTable& runs = rep_->runs;
  const Place place = rep_->table.Find(hash62 << 2, [&](const Place& at) {
    return BlockHash62(runs.namespace_of(at.run), runs.key(at.run, at.offset)) == hash62;
  });
  if (place.run == 0) return std::nullopt;
  return rep_->RefOf(place.run, place.offset);
}

// A chain is found from its end: the deepest of a few keys that is cached names, through the
// parents of its run, where all keys before it must lie, and comparing them shows whether they do.
// So a batch takes the cache misses of four probes, at once, instead of one or two for each key.
size_t ChainIndex::Rep::MatchBatch(NamespaceId ns, std::span<const BlockKey> keys, Place before,
                                   Place* places) const {
  const size_t matched = MatchFromTheEnd(ns, keys, before, places);
  if (matched > 0) before = places[matched - 1];
  return matched + MatchEach(ns, keys.subspan(matched), before, places + matched);
}

bool ChainIndex::Rep::Extends(const Place& place, const Place& before) const {
  if (before.run == 0) return true;
  if (place.offset > 0) return place.run == before.run && place.offset == before.offset + 1;
  const Place parent = runs.parent(place.run);
  return parent.run == before.run && parent.offset == before.offset;
}

size_t ChainIndex::Rep::MatchFromTheEnd(NamespaceId ns, std::span<const BlockKey> keys,
                                        const Place& before, Place* places) const {
  constexpr size_t kProbes = kMatchBatch / kMatchStride;
  std::array<uint64_t, kProbes> hashes;
  const size_t probes = keys.size() / kMatchStride;
  for (size_t i = 0; i < probes; ++i) {
    hashes[i] = BlockHash(ns, keys[(i + 1) * kMatchStride - 1]);
    table.Prefetch(hashes[i]);
  }
  Place deepest;
  size_t deepest_at = 0;
  for (size_t i = 0; i < probes; ++i) {
    const Place place = table.Find(hashes[i], [](const Place&) { return true; });
    if (place.run == 0) continue;
    runs.PrefetchHeader(place.run);
    deepest = place;
    deepest_at = (i + 1) * kMatchStride - 1;
  }
  if (deepest.run == 0) return 0;

  // Pieces of runs, from the last to the first; a tag's word is taken for it until keys are
  // compared.
  struct Piece {
    uint64_t run = 0;
    uint32_t offset = 0;
    size_t begin = 0, count = 0;
  };
  std::array<Piece, kMatchBatch> pieces;
  size_t piece_count = 0;
  for (size_t end = deepest_at + 1; end > 0;) {
    if (deepest.run == 0) return 0;  // its chain is shorter: this is no chain
    const size_t count = std::min<size_t>(end, deepest.offset + size_t{1});
    const auto offset = static_cast<uint32_t>(deepest.offset + 1 - count);
    end -= count;
    pieces[piece_count++] = {deepest.run, offset, end, count};
    runs.PrefetchKeys(deepest.run, offset, static_cast<uint32_t>(count));
    deepest = runs.parent(deepest.run);
  }
  for (size_t i = piece_count; i-- > 0;) {
    const Piece& piece = pieces[i];
    if (runs.namespace_of(piece.run) != ns) return piece.begin;
    if (piece.begin == 0 && !Extends({piece.run, piece.offset}, before)) return 0;
    const size_t equal =
        runs.CountEqual(piece.run, piece.offset, keys.subspan(piece.begin, piece.count));
    for (size_t at = 0; at < equal; ++at) {
      places[piece.begin + at] = {piece.run, static_cast<uint32_t>(piece.offset + at)};
    }
    if (equal < piece.count) return piece.begin + equal;
  }
  return deepest_at + 1;
}

// Key after key, until the first that is not cached or does not extend the one before it.
size_t ChainIndex::Rep::MatchEach(NamespaceId ns, std::span<const BlockKey> keys, Place before,
                                  Place* places) const {
  std::array<uint64_t, kMatchStride> hashes;
  for (size_t i = 0; i < keys.size(); ++i) {
    if (i % kMatchStride == 0) {
      for (size_t ahead = i; ahead < std::min(keys.size(), i + kMatchStride); ++ahead) {
        hashes[ahead % kMatchStride] = BlockHash(ns, keys[ahead]);
        table.Prefetch(hashes[ahead % kMatchStride]);
      }
    }
    const Place place = Find(hashes[i % kMatchStride], ns, keys[i]);
    if (place.run == 0 || !Extends(place, before)) return i;
    places[i] = before = place;
  }
  return keys.size();
}

size_t ChainIndex::Match(NamespaceId ns, std::span<const BlockKey> keys, BlockRef* refs) const {
  std::array<Place, kMatchBatch> places;
  Place before;
  for (size_t begin = 0; begin < keys.size(); begin += kMatchBatch) {
    const auto batch = keys.subspan(begin, std::min(kMatchBatch, keys.size() - begin));
    const size_t matched = rep_->MatchBatch(ns, batch, before, places.data());
    for (size_t i = 0; i < matched; ++i) {
      refs[begin + i] = rep_->RefOf(places[i].run, places[i].offset);
    }
    if (matched < batch.size()) return begin + matched;
    before = places[matched - 1];
  }
  return keys.size();
}

BlockKey ChainIndex::key(BlockRef ref) const {
  return rep_->runs.key(ref.run, ref.offset);
}

BlockRef ChainIndex::parent(BlockRef ref) const {
  if (ref.offset > 0) return {ref.run, ref.offset - 1, ref.generation};
  const Place behind = rep_->runs.parent(ref.run);
  return behind.run == 0 ? BlockRef{} : rep_->RefOf(behind.run, behind.offset);
}

BlockKey ChainIndex::parent_key(BlockRef ref) const {
  const BlockRef behind = parent(ref);
  return behind.valid() ? key(behind) : BlockKey{};
}

std::optional<BlockRef> ChainIndex::NextInRun(BlockRef ref) const {
  if (ref.offset + 1 >= rep_->runs.length(ref.run)) return std::nullopt;
  return BlockRef{ref.run, ref.offset + 1, ref.generation};
}

uint32_t ChainIndex::ordinal(BlockRef ref) const {
  return rep_->runs.ordinal(ref.run) + ref.offset;
}

NamespaceId ChainIndex::namespace_of(BlockRef ref) const {
  return rep_->runs.namespace_of(ref.run);
}

uint32_t ChainIndex::child_count(BlockRef ref) const {
  const uint32_t next = ref.offset + 1 < rep_->runs.length(ref.run) ? 1 : 0;
  return rep_->runs.forks(ref.run, ref.offset) + next;
}

bool ChainIndex::IsCurrent(BlockRef ref) const {
  return rep_->runs.Exists(ref.run) && rep_->runs.generation(ref.run) == ref.generation &&
         ref.offset < rep_->runs.length(ref.run);
}

BlockState ChainIndex::state(BlockRef ref) const {
  BlockState state = Unpack(rep_->runs.state(ref.run, ref.offset));
  state.slot = rep_->slots.Get(Rep::BlockId(ref.run, ref.offset)).value_or(0);
  return state;
}

void ChainIndex::SetState(BlockRef ref, const BlockState& state) {
  KVC_CHECK(Packable(state));
  rep_->runs.SetState(ref.run, ref.offset, Pack(state));
  rep_->SetSlot(ref.run, ref.offset, state.slot);
  if (child_count(ref) == 0) rep_->NoteLeaf(ref.run);
}

// Costs no more than the store: the queue of leaves learns of it when the leaf's turn comes.
void ChainIndex::Touch(BlockRef ref, uint32_t now_s, bool hit) {
  BlockState state = Unpack(rep_->runs.state(ref.run, ref.offset));
  const bool earlier = now_s < state.last_use_s;
  state.last_use_s = now_s;
  if (hit && state.hits < kHitsMax) ++state.hits;
  rep_->runs.SetState(ref.run, ref.offset, Pack(state));
  if (earlier && child_count(ref) == 0) rep_->NoteLeaf(ref.run);
}

// Runs do not know who extends them, that would cost each 12 bytes. One walk over all headers finds
// out, and is good until a run is added: whoever drops a namespace asks for thousands of subtrees.
const std::vector<ChainIndex::Rep::Link>& ChainIndex::Rep::Links() {
  if (links.empty()) {
    for (uint64_t run = 1; run < runs.id_limit(); ++run) {
      if (runs.Exists(run) && runs.parent(run).run != 0) {
        links.push_back({static_cast<uint32_t>(runs.parent(run).run), static_cast<uint32_t>(run)});
      }
    }
    std::sort(links.begin(), links.end());
  }
  return links;
}

std::vector<BlockRef> ChainIndex::Subtree(BlockRef ref) const {
  const RunTable& runs = rep_->runs;
  std::vector<std::pair<uint64_t, uint32_t>> order = {{ref.run, ref.offset}};  // run, from offset
  for (size_t i = 0; i < order.size(); ++i) {
    const auto [parent, from] = order[i];
    if (!runs.HasForks(parent, from)) continue;
    const std::vector<Rep::Link>& links = rep_->Links();
    auto link =
        std::lower_bound(links.begin(), links.end(), Rep::Link{static_cast<uint32_t>(parent), 0});
    for (; link != links.end() && link->parent == parent; ++link) {
      // Of those that were removed since, the header says so.
      if (!runs.Exists(link->run)) continue;
      if (runs.parent(link->run).offset >= from) order.emplace_back(link->run, 0);
    }
  }
  std::vector<BlockRef> all;
  for (auto it = order.rbegin(); it != order.rend(); ++it) {
    for (uint32_t offset = runs.length(it->first); offset-- > it->second;) {
      all.push_back(rep_->RefOf(it->first, offset));
    }
  }
  return all;
}

std::vector<BlockRef> ChainIndex::Chain(BlockRef tip) const {
  std::vector<BlockRef> chain(ordinal(tip) + size_t{1});
  for (size_t i = chain.size(); i-- > 0; tip = parent(tip)) chain[i] = tip;
  return chain;
}

void ChainIndex::ListLeaves(
    NamespaceId ns, uint64_t cookie,
    const std::function<bool(BlockRef, uint64_t next_cookie)>& visit) const {
  const RunTable& runs = rep_->runs;
  for (uint64_t run = std::max<uint64_t>(cookie, 1); run < runs.id_limit(); ++run) {
    if (!runs.Exists(run) || runs.namespace_of(run) != ns || !rep_->EndsInLeaf(run)) continue;
    if (!visit(rep_->RefOf(run, runs.length(run) - 1), run + 1)) return;
  }
}

void ChainIndex::ListBlocks(
    NamespaceId ns, uint64_t cookie,
    const std::function<bool(BlockRef, uint64_t next_cookie)>& visit) const {
  const RunTable& runs = rep_->runs;
  auto first = static_cast<uint32_t>(cookie % layout::kRunBlocksMax);
  for (uint64_t run = cookie / layout::kRunBlocksMax; run < runs.id_limit(); ++run, first = 0) {
    if (!runs.Exists(run) || runs.namespace_of(run) != ns) continue;
    for (uint32_t offset = first; offset < runs.length(run); ++offset) {
      if (!visit(rep_->RefOf(run, offset), Rep::BlockId(run, offset) + 1)) return;
    }
  }
}

void ChainIndex::VisitColdestLeaves(const std::function<bool(BlockRef)>& visit) {
  Rep& rep = *rep_;
  std::vector<uint64_t> kept;
  bool more = true;
  while (more && !rep.queue.empty()) {
    const LeafQueue::Entry entry = rep.queue.Pop();
    const uint64_t run = entry.run;
    if (!rep.runs.Exists(run) || !rep.runs.InQueue(run) ||
        rep.runs.queued_at(run) != entry.second) {
      continue;
    }
    rep.runs.SetQueued(run, false, 0);
    if (!rep.EndsInLeaf(run)) continue;
    const uint32_t tail = rep.runs.length(run) - 1;
    if (LastUse(rep.runs.state(run, tail)) != entry.second) {
      rep.NoteLeaf(run);  // was used meanwhile
      continue;
    }
    const BlockRef ref = rep.RefOf(run, tail);
    more = visit(ref);
    if (IsCurrent(ref)) kept.push_back(run);
  }
  for (const uint64_t run : kept) {
    if (rep.runs.Exists(run) && rep.EndsInLeaf(run)) rep.NoteLeaf(run);
  }
}

std::optional<BlockRef> ChainIndex::SomeLeaf(uint64_t random) const {
  const Rep& rep = *rep_;
  if (rep.queue.empty()) return std::nullopt;
  const LeafQueue::Entry& entry = rep.queue.At(random % rep.queue.size());
  const uint64_t run = entry.run;
  if (!rep.runs.Exists(run) || !rep.runs.InQueue(run) || !rep.EndsInLeaf(run) ||
      rep.runs.queued_at(run) != entry.second) {
    return std::nullopt;
  }
  return rep.RefOf(run, rep.runs.length(run) - 1);
}

uint64_t ChainIndex::block_count() const {
  return rep_->table.slot_count();
}

uint64_t ChainIndex::block_count(NamespaceId ns) const {
  const auto found = rep_->counts.find(ns);
  return found == rep_->counts.end() ? 0 : found->second;
}

ChainIndexStats ChainIndex::Stats() const {
  ChainIndexStats stats;
  stats.blocks = block_count();
  stats.runs = rep_->runs.count();
  stats.leaves = rep_->leaves;
  stats.buckets = rep_->table.bucket_count();
  stats.table_bytes = rep_->table.bytes();
  stats.run_bytes = rep_->runs.bytes() + rep_->slots.bytes() + rep_->queue.bytes() +
                    rep_->links.capacity() * sizeof(Rep::Link);
  stats.key_bytes = stats.blocks * BlockKey::kBytes;
  return stats;
}

const IndexMemory& ChainIndex::memory() const {
  return rep_->memory;
}

void ChainIndex::CheckInvariants() const {
  const Rep& rep = *rep_;
  rep.table.CheckInvariants();
  rep.runs.CheckInvariants();
  uint64_t blocks = 0, leaves = 0, resident = 0;
  std::unordered_map<NamespaceId, uint64_t> counts;
  std::unordered_map<uint64_t, uint32_t> forks;
  for (uint64_t run = 1; run < rep.runs.id_limit(); ++run) {
    if (!rep.runs.Exists(run)) continue;
    const NamespaceId ns = rep.runs.namespace_of(run);
    const uint32_t length = rep.runs.length(run);
    for (uint32_t offset = 0; offset < length; ++offset) {
      const Place found =
          rep.Find(BlockHash(ns, rep.runs.key(run, offset)), ns, rep.runs.key(run, offset));
      KVC_CHECK(found.run == run && found.offset == offset);
      KVC_CHECK(found.generation == (rep.runs.generation(run) & layout::kSlotGenerationMask));
      resident += rep.slots.Get(Rep::BlockId(run, offset)).has_value() ? 1 : 0;
    }
    blocks += length;
    counts[ns] += length;
    const Place behind = rep.runs.parent(run);
    KVC_CHECK((behind.run == 0) == (rep.runs.ordinal(run) == 0));
    if (behind.run != 0) {
      KVC_CHECK(rep.runs.Exists(behind.run) && behind.offset < rep.runs.length(behind.run));
      KVC_CHECK(rep.runs.namespace_of(behind.run) == ns);
      KVC_CHECK(rep.runs.ordinal(run) == rep.runs.ordinal(behind.run) + behind.offset + 1);
      ++forks[Rep::BlockId(behind.run, behind.offset)];
    }
    if (!rep.EndsInLeaf(run)) continue;
    ++leaves;
    KVC_CHECK(rep.runs.InQueue(run));
    KVC_CHECK(rep.runs.queued_at(run) <= LastUse(rep.runs.state(run, length - 1)));
  }
  for (uint64_t run = 1; run < rep.runs.id_limit(); ++run) {
    for (uint32_t offset = 0; offset < rep.runs.length(run); ++offset) {
      const auto found = forks.find(Rep::BlockId(run, offset));
      KVC_CHECK(rep.runs.forks(run, offset) == (found == forks.end() ? 0 : found->second));
    }
  }
  KVC_CHECK(blocks == block_count() && leaves == rep.leaves && resident == rep.slots.size());
  KVC_CHECK(counts == rep.counts);
}

}  // namespace kvcfs::meta
