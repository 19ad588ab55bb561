#include "meta/slot_headers.h"

#include <algorithm>
#include <bit>

#include "meta/versioned_words.h"
#include "rdma/wire.h"

namespace kvcfs::meta {
namespace {

// As versioned_words.h begins it; a version in each of the two cache lines.
enum Word : size_t {
  kGeneration = layout::kRecordIdEnd,
  kVersionEnd = 8,
  kLengthAndCrc = 9,
  kRegion = 10,
  kAddress = 11,
  kKeys = 12,  // 2
};
static_assert(kVersionEnd * sizeof(uint64_t) == kSlotHeaderBytes / 2);

constexpr uint64_t kHeadersMin = 256;
constexpr uint64_t kHeadersMax = 1 << 18;  // 32 MiB of locked memory
constexpr uint64_t kHeadersPerSlot = 4;    // one in 270 then finds its bucket full

}  // namespace

rdma::Bytes Encode(const SlotTable& table) {
  rdma::Writer out;
  out.U64(table.region).U64(table.headers);
  return out.Take();
}

Result<SlotTable> DecodeSlotTable(std::span<const std::byte> bytes) {
  rdma::Reader in(bytes);
  SlotTable table;
  table.region = in.U64();
  table.headers = in.U64();
  const bool possible = table.headers == 0 ||
                        (std::has_single_bit(table.headers) && table.headers >= kSlotBucketHeaders);
  if (!in.Finished() || !possible) return Error{Code::kCorrupt, "no table of slots"};
  return table;
}

std::optional<SlotHeader> DecodeSlotHeader(std::span<const uint64_t, kSlotHeaderWords> words) {
  if (!layout::IsWhole(words, kVersionEnd)) return std::nullopt;
  SlotHeader header;
  header.id = layout::IdIn(words);
  header.generation = words[kGeneration];
  header.length = layout::Low(words[kLengthAndCrc]);
  header.crc32c = layout::High(words[kLengthAndCrc]);
  header.region = words[kRegion];
  header.key.address = words[kAddress];
  for (size_t i = 0; i < 2; ++i) {
    header.key.keys[2 * i] = layout::Low(words[kKeys + i]);
    header.key.keys[2 * i + 1] = layout::High(words[kKeys + i]);
  }
  return header;
}

uint64_t SlotBucketOf(const BlockId& id, uint64_t headers) {
  return layout::BucketOf(id, headers) & ~(kSlotBucketHeaders - 1);
}

SlotHeaders::SlotHeaders(uint64_t slots)
    : count_(std::bit_ceil(std::clamp(slots * kHeadersPerSlot, kHeadersMin, kHeadersMax))),
      memory_(count_ * kSlotHeaderBytes) {}

std::span<uint64_t, kSlotHeaderWords> SlotHeaders::At(uint64_t at) const {
  KVC_CHECK(at < count_);
  auto* first = reinterpret_cast<uint64_t*>(memory_.data() + at * kSlotHeaderBytes);
  return std::span<uint64_t, kSlotHeaderWords>(first, kSlotHeaderWords);
}

void SlotHeaders::Change(uint64_t at, const SlotHeader& header) {
  const auto words = At(at);
  layout::ChangeRecord(words, kVersionEnd, [&] {
    layout::StoreId(words, header.id);
    layout::StoreWord(&words[kGeneration], header.generation);
    layout::StoreWord(&words[kLengthAndCrc], layout::Pair(header.length, header.crc32c));
    layout::StoreWord(&words[kRegion], header.region);
    layout::StoreWord(&words[kAddress], header.key.address);
    for (size_t i = 0; i < 2; ++i) {
      layout::StoreWord(&words[kKeys + i],
                        layout::Pair(header.key.keys[2 * i], header.key.keys[2 * i + 1]));
    }
  });
}

std::optional<uint64_t> SlotHeaders::Put(const SlotHeader& header) {
  const uint64_t first = SlotBucketOf(header.id, count_);
  for (uint64_t at = first; at < first + kSlotBucketHeaders; ++at) {
    if (layout::LoadWord(&At(at)[kGeneration]) != 0) continue;
    Change(at, header);
    return at;
  }
  return std::nullopt;
}

void SlotHeaders::Remove(uint64_t at) {
  Change(at, {});
}

}  // namespace kvcfs::meta
