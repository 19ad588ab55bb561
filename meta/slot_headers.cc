#include "meta/slot_headers.h"

#include <algorithm>
#include <bit>

#include "meta/remote_layout.h"
#include "rdma/wire.h"

namespace kvcfs::meta {
namespace {

// A version in each of the two cache lines; all else is between them.
enum Word : size_t {
  kVersionBegin = 0,
  kSpace = 1,  // 2 words
  kKey = 3,    // 4
  kGeneration = 7,
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
  if (words[kVersionBegin] != words[kVersionEnd] || words[kVersionBegin] % 2 != 0) {
    return std::nullopt;
  }
  SlotHeader header;
  header.id.space = {words[kSpace], words[kSpace + 1]};
  std::memcpy(header.id.key.bytes.data(), &words[kKey], BlockKey::kBytes);
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
  return MixHash(id.key.Word(0) ^ id.space.low, id.key.Word(1)) & (headers - kSlotBucketHeaders);
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
  const uint64_t version = layout::LoadWord(&words[kVersionBegin]);
  layout::StoreWord(&words[kVersionBegin], version + 1);
  layout::StoreWord(&words[kVersionEnd], version + 1);
  layout::StoreWord(&words[kSpace], header.id.space.high);
  layout::StoreWord(&words[kSpace + 1], header.id.space.low);
  for (size_t i = 0; i < 4; ++i) layout::StoreWord(&words[kKey + i], header.id.key.Word(i));
  layout::StoreWord(&words[kGeneration], header.generation);
  layout::StoreWord(&words[kLengthAndCrc], layout::Pair(header.length, header.crc32c));
  layout::StoreWord(&words[kRegion], header.region);
  layout::StoreWord(&words[kAddress], header.key.address);
  for (size_t i = 0; i < 2; ++i) {
    layout::StoreWord(&words[kKeys + i],
                      layout::Pair(header.key.keys[2 * i], header.key.keys[2 * i + 1]));
  }
  layout::StoreWord(&words[kVersionBegin], version + 2);
  layout::StoreWord(&words[kVersionEnd], version + 2);
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
