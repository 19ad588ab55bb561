// The records of namespaces and blocks, as they stand in the MetaStore.
//
// Fixed-width, little-endian, a version first and a CRC32C last: bits that flipped where RocksDB
// does not look (in memory, in a repaired store) are caught here. Pure functions; bytes: README.md.
// Fails: std::nullopt for anything that was not written by these functions.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "base/block_key.h"
#include "iouring/segment_store.h"
#include "meta/chain_index.h"

namespace kvcfs::meta {

struct NamespaceRecord {
  std::string name;  // at most 255 bytes
  iouring::Uuid uuid{};
  uint64_t block_bytes = 0;
  uint64_t quota_bytes = 0;
  bool sync = false;
  uint32_t replicas = 1;
  uint32_t uid = 0;
  uint32_t gid = 0;
  uint32_t mode = 0;
  int64_t mtime_nanos = 0;
  int64_t ctime_nanos = 0;
  uint64_t files_root = 0;

  friend bool operator==(const NamespaceRecord&, const NamespaceRecord&) = default;
};

// 'N' + id, big-endian: listed in the order in which they were made.
std::string NamespaceRecordKey(NamespaceId id);
std::optional<NamespaceId> DecodeNamespaceRecordKey(std::string_view key);
std::string EncodeNamespaceRecord(const NamespaceRecord& record);
std::optional<NamespaceRecord> DecodeNamespaceRecord(std::string_view value);

struct BlockRecord {
  BlockKey parent;  // zero for a first block
  uint32_t ordinal = 0;
  uint32_t length = 0;
  iouring::SegmentPlace place;
  uint32_t mtime_s = 0;
  uint32_t last_use_s = 0;
  uint32_t crc32c = 0;  // of the data; 0: not known
  uint16_t hits = 0;

  friend bool operator==(const BlockRecord&, const BlockRecord&) = default;
};

// 'b' + namespace id, big-endian + key.
std::string BlockRecordKey(NamespaceId ns, const BlockKey& key);
std::optional<std::pair<NamespaceId, BlockKey>> DecodeBlockRecordKey(std::string_view key);
std::string EncodeBlockRecord(const BlockRecord& record);
std::optional<BlockRecord> DecodeBlockRecord(std::string_view value);

// Store facts that are one number.
std::string EncodeCounter(uint64_t value);
std::optional<uint64_t> DecodeCounter(std::string_view value);
// The highest segment sequence up to which the block records are complete.
std::string AppliedSequenceKey();

}  // namespace kvcfs::meta
