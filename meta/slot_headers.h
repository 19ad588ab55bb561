// The headers of slots that peers may read one-sided: a table of 128 bytes each, found by the key.
//
// What a reader does: READ the bucket of the key, which says where the bytes lie; READ the bytes;
// READ the header again. If it says the same, with equal and even versions, the bytes are those of
// (key, generation): the writer makes both versions odd before a header changes, and takes the
// bytes' region back only after. A bucket is four headers, read as one; where it is full a slot is
// not in the table, and is asked for. The CRC of the bytes is checked all the same.
// Threads: one writer at a time; readers in other threads and on other machines, without a lock.
// Cache lines may come in any order (as in remote_layout.h). Memory: 128 B a header, for its life.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "iouring/aligned_buffer.h"
#include "meta/placement.h"
#include "rdma/transport.h"

namespace kvcfs::meta {

inline constexpr size_t kSlotHeaderBytes = 128;
inline constexpr size_t kSlotHeaderWords = kSlotHeaderBytes / sizeof(uint64_t);
inline constexpr uint64_t kSlotBucketHeaders = 4;
inline constexpr size_t kSlotBucketBytes = kSlotBucketHeaders * kSlotHeaderBytes;

struct SlotHeader {
  BlockId id;
  uint64_t generation = 0;  // of the copy; 0: nothing is here
  uint32_t length = 0;
  uint32_t crc32c = 0;
  uint64_t region = 0;  // its bytes are all of it
  rdma::RegionKey key;
  friend bool operator==(const SlotHeader&, const SlotHeader&) = default;
};

// A peer's table, as it tells by Slots (cluster_peers.h).
struct SlotTable {
  uint64_t region = 0;
  uint64_t headers = 0;  // a power of two; 0: there is none
  friend bool operator==(const SlotTable&, const SlotTable&) = default;
};
rdma::Bytes Encode(const SlotTable& table);
Result<SlotTable> DecodeSlotTable(std::span<const std::byte> bytes);

// Of a header's words as they were read; nothing: it was being changed.
std::optional<SlotHeader> DecodeSlotHeader(std::span<const uint64_t, kSlotHeaderWords> words);
// The first header of the bucket of a copy.
uint64_t SlotBucketOf(const BlockId& id, uint64_t headers);

class SlotHeaders {
 public:
  // Room for `slots` of them, most of which then find a place.
  explicit SlotHeaders(uint64_t slots);

  std::span<std::byte> memory() const { return memory_.span().first(count_ * kSlotHeaderBytes); }
  uint64_t count() const { return count_; }

  // Where it is now; nothing: its bucket is full.
  std::optional<uint64_t> Put(const SlotHeader& header);
  void Remove(uint64_t at);

 private:
  std::span<uint64_t, kSlotHeaderWords> At(uint64_t at) const;
  void Change(uint64_t at, const SlotHeader& header);

  const uint64_t count_;
  const iouring::AlignedBuffer memory_;
};

}  // namespace kvcfs::meta
