// Records of words that change in place between two versions (remote_layout.h says how they are
// read), and the name of a block in them. What slot_headers.h and match_table.h have in common.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include "meta/placement.h"
#include "meta/remote_layout.h"

namespace kvcfs::meta::layout {

// Where both kinds of record have the version at their begin, and the block's name.
inline constexpr size_t kRecordVersionBegin = 0;
inline constexpr size_t kRecordId = 1;  // namespace 2, key 4
inline constexpr size_t kRecordIdEnd = 7;

// Of words as they were read: no writer was at work.
inline bool IsWhole(std::span<const uint64_t> words, size_t version_end) {
  return words[kRecordVersionBegin] == words[version_end] && words[kRecordVersionBegin] % 2 == 0;
}

// By the one writer: `store` stores all else.
template <typename Store>
void ChangeRecord(std::span<uint64_t> words, size_t version_end, Store&& store) {
  const uint64_t version = LoadWord(&words[kRecordVersionBegin]);
  StoreWord(&words[kRecordVersionBegin], version + 1);
  StoreWord(&words[version_end], version + 1);
  store();
  StoreWord(&words[kRecordVersionBegin], version + 2);
  StoreWord(&words[version_end], version + 2);
}

inline BlockId IdIn(std::span<const uint64_t> words) {
  BlockId id;
  id.space = {words[kRecordId], words[kRecordId + 1]};
  std::memcpy(id.key.bytes.data(), &words[kRecordId + 2], BlockKey::kBytes);
  return id;
}
inline void StoreId(std::span<uint64_t> words, const BlockId& id) {
  StoreWord(&words[kRecordId], id.space.high);
  StoreWord(&words[kRecordId + 1], id.space.low);
  for (size_t i = 0; i < 4; ++i) StoreWord(&words[kRecordId + 2 + i], id.key.Word(i));
}

// Spreads keys over `count` buckets, a power of two.
inline uint64_t BucketOf(const BlockId& id, uint64_t count) {
  return MixHash(id.key.Word(0) ^ id.space.low, id.key.Word(1)) & (count - 1);
}

}  // namespace kvcfs::meta::layout
