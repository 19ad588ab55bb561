// The records of a holder's copies of blocks, as they stand in the MetaStore.
//
// Fixed-width, little-endian, a version first and a CRC32C last, as in block_records.h. A copy has
// a record while it is published: with its place on NVMe, or with the slot it lies in, which is
// there after the process was killed, but not after the machine was. Pure functions. Fails:
// std::nullopt for anything that was not written by these functions.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "iouring/segment_store.h"
#include "meta/cluster_messages.h"

namespace kvcfs::meta {

struct CopyRecord {
  BlockFacts facts;
  uint64_t generation = 0;
  uint64_t version = 0;
  iouring::SegmentPlace place;
  uint32_t slot = 0;  // whose record must still name the generation
  friend bool operator==(const CopyRecord&, const CopyRecord&) = default;
};

// 'c' + namespace's UUID + key + generation, big-endian.
std::string CopyRecordKey(const BlockId& id, uint64_t generation);
std::string EncodeCopyRecord(const CopyRecord& record);
// Of a record's key and value; they must agree.
std::optional<CopyRecord> DecodeCopyRecord(std::string_view key, std::string_view value);
// Begins every CopyRecordKey.
inline constexpr std::string_view kCopyRecordPrefix = "c";
// A counter (block_records.h): generations up to it may have been used.
std::string GenerationLimitKey();

}  // namespace kvcfs::meta
