// What matches say of blocks, where mounts on other machines read it one-sided: a table of fixed
// size in the memory of a metadata node.
//
// Block i of a group stands in the bucket of its group's anchor plus i, so that one READ brings a
// whole group. A bucket has room for two; a third takes the place of one of them. What is not here
// is asked for by a call, which brings it here again. An entry holds for one epoch and incarnation
// of its owner, and names holders by their place in that epoch's view.
// What a reader does: READ the buckets; take what has the whole key between equal, even versions,
// one in each cache line; check epoch, incarnation, ordinal and parent (cluster_client.h).
// Threads: one writer at a time; readers in other threads and on other machines, without a lock.
// Cache lines may come in any order (as in remote_layout.h). Memory: 256 B a bucket, for its life.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <vector>

#include "base/result.h"
#include "iouring/aligned_buffer.h"
#include "meta/cluster_messages.h"
#include "rdma/transport.h"

namespace kvcfs::meta {

inline constexpr size_t kMatchEntryBytes = 128;
inline constexpr size_t kMatchEntryWords = kMatchEntryBytes / sizeof(uint64_t);
inline constexpr size_t kMatchBucketEntries = 2;
inline constexpr size_t kMatchBucketBytes = kMatchBucketEntries * kMatchEntryBytes;
inline constexpr size_t kMatchBucketWords = kMatchBucketEntries * kMatchEntryWords;
// A READ of a group may begin in any bucket, so there are so many more.
inline constexpr uint64_t kMatchBucketsBehind = kGroupBlocksMax - 1;

// One block, as an entry says it.
struct MatchEntry {
  static constexpr size_t kPlacesMax = 2;
  static constexpr uint16_t kNoNode = UINT16_MAX;
  BlockId id;
  uint64_t parent = 0;       // the first word of its key
  uint64_t epoch = 0;        // of the owner's view; 0: nothing is here
  uint64_t incarnation = 0;  // of the owner
  uint32_t ordinal = 0;
  uint32_t length = 0, crc32c = 0, mtime_s = 0, children = 0;
  std::array<uint16_t, kPlacesMax> nodes{kNoNode, kNoNode};  // of the view, by their place in it
  std::array<uint64_t, kPlacesMax> generations{};
  friend bool operator==(const MatchEntry&, const MatchEntry&) = default;

  // As an answer; nothing: its holders are none of this view. Of more copies two are named.
  std::optional<FoundBlock> ToBlock(const ClusterView& view) const;
};

// Where a node's table is, as it tells by Matches (cluster_peers.h).
struct MatchTablePlace {
  uint64_t region = 0;
  uint64_t buckets = 0;  // a power of two, without those behind; 0: there is none
  friend bool operator==(const MatchTablePlace&, const MatchTablePlace&) = default;
};
rdma::Bytes Encode(const MatchTablePlace& place);
Result<MatchTablePlace> DecodeMatchTablePlace(std::span<const std::byte> bytes);

// The bucket of the first block of a group.
uint64_t MatchBucketOf(const BlockId& anchor, uint64_t buckets);
// Of an entry's words as they were read; nothing: it was being changed.
std::optional<MatchEntry> DecodeMatchEntry(std::span<const uint64_t, kMatchEntryWords> words);

// What a bucket as it was read says of a block.
struct MatchLookup {
  std::optional<MatchEntry> entry;
  bool changing = false;  // there is none, but one was being changed
};
MatchLookup LookUpMatch(std::span<const uint64_t, kMatchBucketWords> bucket, const BlockId& id);

// What a client wants to have read of an owner's table: of each group the buckets of so many
// blocks.
struct MatchProbe {
  NodeId to;
  uint64_t id = 0;
  uint64_t op = 0;  // that asks
  SpaceId space;
  struct Group {
    BlockKey anchor;
    uint32_t count = 0;
  };
  std::vector<Group> groups{};
};

class MatchTable {
 public:
  // `buckets`: a power of two.
  explicit MatchTable(uint64_t buckets);

  std::span<std::byte> memory() const { return memory_.span().first(bytes_); }
  uint64_t buckets() const { return buckets_; }
  uint64_t used() const { return used_count_; }
  // As a READ brings it.
  std::vector<uint64_t> Read(uint64_t bucket, uint64_t count) const;

  // Empties it; what is put from now on holds for that view.
  void Begin(const ClusterView& view, uint64_t incarnation);
  void Clear();

  // Block `index` of a group. Where it is now; nothing: its holders are none of the view.
  std::optional<uint32_t> Put(const BlockId& anchor, uint32_t index, const BlockId& id,
                              const BlockKey& parent, uint32_t ordinal, const FoundBlock& block);
  // Another may have taken its place.
  bool Has(uint32_t at, const BlockId& id) const;
  void Remove(uint32_t at, const BlockId& id);

 private:
  std::span<uint64_t, kMatchEntryWords> At(uint64_t at) const;
  void Change(uint64_t at, const MatchEntry& entry);

  const uint64_t buckets_;
  const size_t bytes_;
  const iouring::AlignedBuffer memory_;
  std::vector<bool> used_;  // by entry
  uint64_t used_count_ = 0;
  uint64_t epoch_ = 0, incarnation_ = 0;
  std::map<NodeId, uint16_t> nodes_;
  uint32_t turns_ = 0;
};

}  // namespace kvcfs::meta
