#include "meta/match_table.h"

#include <bit>
#include <cstring>

#include "meta/planted.h"
#include "meta/versioned_words.h"
#include "rdma/wire.h"

namespace kvcfs::meta {
namespace {

// As versioned_words.h begins it; a version at either end, so also who reads word by word in
// ascending order is safe.
enum Word : size_t {
  kParent = layout::kRecordIdEnd,
  kEpoch = 8,
  kIncarnation = 9,
  kOrdinalAndLength = 10,
  kCrcAndMtime = 11,
  kChildrenAndNodes = 12,
  kGenerations = 13,  // 2
  kVersionEnd = 15,
};
static_assert(kVersionEnd + 1 == kMatchEntryWords && kEpoch * sizeof(uint64_t) == 64);

using layout::High;
using layout::LoadWord;
using layout::Low;
using layout::Pair;
using layout::StoreWord;

}  // namespace

std::optional<FoundBlock> MatchEntry::ToBlock(const ClusterView& view) const {
  FoundBlock block{id.key, length, crc32c, mtime_s, {}, children};
  for (size_t i = 0; i < kPlacesMax; ++i) {
    if (nodes[i] == kNoNode) continue;
    if (nodes[i] >= view.nodes.size()) return std::nullopt;
    block.places.push_back({view.nodes[nodes[i]].id, generations[i]});
  }
  if (block.places.empty()) return std::nullopt;
  return block;
}

rdma::Bytes Encode(const MatchTablePlace& place) {
  rdma::Writer out;
  out.U64(place.region).U64(place.buckets);
  return out.Take();
}

Result<MatchTablePlace> DecodeMatchTablePlace(std::span<const std::byte> bytes) {
  rdma::Reader in(bytes);
  MatchTablePlace place;
  place.region = in.U64();
  place.buckets = in.U64();
  const bool possible = place.buckets == 0 || std::has_single_bit(place.buckets);
  if (!in.Finished() || !possible) return Error{Code::kCorrupt, "no table of matches"};
  return place;
}

uint64_t MatchBucketOf(const BlockId& anchor, uint64_t buckets) {
  return layout::BucketOf(anchor, buckets);
}

std::optional<MatchEntry> DecodeMatchEntry(std::span<const uint64_t, kMatchEntryWords> words) {
  if (!layout::IsWhole(words, kVersionEnd)) return std::nullopt;
  MatchEntry entry;
  entry.id = layout::IdIn(words);
  entry.parent = words[kParent];
  entry.epoch = words[kEpoch];
  entry.incarnation = words[kIncarnation];
  entry.ordinal = Low(words[kOrdinalAndLength]);
  entry.length = High(words[kOrdinalAndLength]);
  entry.crc32c = Low(words[kCrcAndMtime]);
  entry.mtime_s = High(words[kCrcAndMtime]);
  entry.children = Low(words[kChildrenAndNodes]);
  const uint32_t nodes = High(words[kChildrenAndNodes]);
  entry.nodes = {static_cast<uint16_t>(nodes), static_cast<uint16_t>(nodes >> 16)};
  for (size_t i = 0; i < MatchEntry::kPlacesMax; ++i) {
    entry.generations[i] = words[kGenerations + i];
  }
  return entry;
}

MatchLookup LookUpMatch(std::span<const uint64_t, kMatchBucketWords> bucket, const BlockId& id) {
  MatchLookup found;
  for (size_t i = 0; i < kMatchBucketEntries; ++i) {
    const auto entry =
        DecodeMatchEntry(bucket.subspan(i * kMatchEntryWords).first<kMatchEntryWords>());
    if (!entry) {
      found.changing = true;
    } else if (entry->epoch != 0 && entry->id == id) {
      return {entry, false};
    }
  }
  return found;
}

MatchTable::MatchTable(uint64_t buckets)
    : buckets_(buckets),
      bytes_((buckets + kMatchBucketsBehind) * kMatchBucketBytes),
      memory_(bytes_),
      used_(bytes_ / kMatchEntryBytes) {
  KVC_CHECK(std::has_single_bit(buckets));
}

std::span<uint64_t, kMatchEntryWords> MatchTable::At(uint64_t at) const {
  KVC_CHECK(at < used_.size());
  auto* first = reinterpret_cast<uint64_t*>(memory_.data() + at * kMatchEntryBytes);
  return std::span<uint64_t, kMatchEntryWords>(first, kMatchEntryWords);
}

std::vector<uint64_t> MatchTable::Read(uint64_t bucket, uint64_t count) const {
  std::vector<uint64_t> words;
  words.reserve(count * kMatchBucketWords);
  for (uint64_t at = bucket * kMatchBucketEntries; at < (bucket + count) * kMatchBucketEntries;
       ++at) {
    for (const uint64_t& word : At(at)) words.push_back(LoadWord(&word));
  }
  return words;
}

void MatchTable::Change(uint64_t at, const MatchEntry& entry) {
  const auto words = At(at);
  layout::ChangeRecord(words, kVersionEnd, [&] {
    layout::StoreId(words, entry.id);
    StoreWord(&words[kParent], entry.parent);
    StoreWord(&words[kEpoch], entry.epoch);
    StoreWord(&words[kIncarnation], entry.incarnation);
    StoreWord(&words[kOrdinalAndLength], Pair(entry.ordinal, entry.length));
    StoreWord(&words[kCrcAndMtime], Pair(entry.crc32c, entry.mtime_s));
    const uint32_t nodes = entry.nodes[0] | uint32_t{entry.nodes[1]} << 16;
    StoreWord(&words[kChildrenAndNodes], Pair(entry.children, nodes));
    for (size_t i = 0; i < MatchEntry::kPlacesMax; ++i) {
      StoreWord(&words[kGenerations + i], entry.generations[i]);
    }
  });
  const bool is_used = entry.epoch != 0;
  if (used_[at] != is_used) used_count_ += is_used ? 1 : UINT64_MAX;
  used_[at] = is_used;
}

void MatchTable::Begin(const ClusterView& view, uint64_t incarnation) {
  Clear();
  epoch_ = view.epoch;
  incarnation_ = incarnation;
  nodes_.clear();
  for (size_t i = 0; i < view.nodes.size() && i < MatchEntry::kNoNode; ++i) {
    nodes_[view.nodes[i].id] = static_cast<uint16_t>(i);
  }
}

void MatchTable::Clear() {
  if (used_count_ == 0) return;
  for (uint64_t at = 0; at < used_.size(); ++at) {
    if (used_[at]) Change(at, {});
  }
}

std::optional<uint32_t> MatchTable::Put(const BlockId& anchor, uint32_t index, const BlockId& id,
                                        const BlockKey& parent, uint32_t ordinal,
                                        const FoundBlock& block) {
  if (epoch_ == 0 || index >= kGroupBlocksMax) return std::nullopt;
  MatchEntry entry;
  entry.id = id;
  entry.parent = parent.Word(0);
  entry.epoch = epoch_;
  entry.incarnation = incarnation_;
  entry.ordinal = ordinal;
  entry.length = block.length;
  entry.crc32c = block.crc32c;
  entry.mtime_s = block.mtime_s;
  entry.children = block.children;
  size_t places = 0;
  for (const Place& place : block.places) {
    const auto node = nodes_.find(place.node);
    if (places == MatchEntry::kPlacesMax || node == nodes_.end()) continue;
    entry.nodes[places] = node->second;
    entry.generations[places++] = place.generation;
  }
  if (places == 0) return std::nullopt;
  const uint64_t first = (MatchBucketOf(anchor, buckets_) + index) * kMatchBucketEntries;
  uint64_t at = first + ++turns_ % kMatchBucketEntries;
  for (size_t i = kMatchBucketEntries; i-- > 0;) {
    if (!used_[first + i]) at = first + i;
  }
  for (size_t i = 0; i < kMatchBucketEntries; ++i) {
    if (Has(static_cast<uint32_t>(first + i), id)) at = first + i;
  }
  Change(at, entry);
  return static_cast<uint32_t>(at);
}

bool MatchTable::Has(uint32_t at, const BlockId& id) const {
  if (at >= used_.size() || !used_[at]) return false;
  const auto entry = DecodeMatchEntry(At(at));
  return entry && entry->id == id;
}

void MatchTable::Remove(uint32_t at, const BlockId& id) {
  if (Has(at, id) && !KVC_PLANTED(47)) Change(at, {});
}

}  // namespace kvcfs::meta
