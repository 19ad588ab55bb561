#include "meta/copy_records.h"

#include <bit>
#include <cstring>
#include <span>
#include <type_traits>

#include "base/crc32c.h"

namespace kvcfs::meta {
namespace {

constexpr uint8_t kVersion = 1;

// Every host that we run on is little-endian, so numbers are copied as they are.
static_assert(std::endian::native == std::endian::little);

// What lies between the version byte and the CRC.
struct Packed {
  uint64_t version;
  uint64_t sequence;
  BlockKey parent, anchor, parent_anchor;
  uint32_t ordinal, length, crc32c, mtime_s;
  uint32_t segment, offset_4k;
  uint32_t replicas, slot;
};
static_assert(std::is_trivially_copyable_v<Packed> && sizeof(Packed) == 144);

void AppendBigEndian(std::string& text, uint64_t value) {
  for (int shift = 56; shift >= 0; shift -= 8) text.push_back(static_cast<char>(value >> shift));
}

uint64_t TakeBigEndian(std::string_view& text) {
  uint64_t value = 0;
  for (size_t i = 0; i < 8; ++i) value = value << 8 | static_cast<uint8_t>(text[i]);
  text.remove_prefix(8);
  return value;
}

}  // namespace

std::string CopyRecordKey(const BlockId& id, uint64_t generation) {
  std::string text(kCopyRecordPrefix);
  AppendBigEndian(text, id.space.high);
  AppendBigEndian(text, id.space.low);
  text.append(reinterpret_cast<const char*>(id.key.bytes.data()), BlockKey::kBytes);
  AppendBigEndian(text, generation);
  return text;
}

std::string EncodeCopyRecord(const CopyRecord& record) {
  Packed packed{};
  packed.version = record.version;
  packed.sequence = record.place.sequence;
  packed.parent = record.facts.parent;
  packed.anchor = record.facts.anchor;
  packed.parent_anchor = record.facts.parent_anchor;
  packed.ordinal = record.facts.ordinal;
  packed.length = record.facts.length;
  packed.crc32c = record.facts.crc32c;
  packed.mtime_s = record.facts.mtime_s;
  packed.segment = record.place.segment;
  packed.offset_4k = record.place.offset_4k;
  packed.replicas = record.facts.replicas;
  packed.slot = record.slot;
  std::string text(1, static_cast<char>(kVersion));
  text.append(reinterpret_cast<const char*>(&packed), sizeof packed);
  const uint32_t crc = Crc32c(std::as_bytes(std::span(text)));
  text.append(reinterpret_cast<const char*>(&crc), sizeof crc);
  return text;
}

std::optional<CopyRecord> DecodeCopyRecord(std::string_view key, std::string_view value) {
  Packed packed{};
  uint32_t crc = 0;
  const size_t prefix = kCopyRecordPrefix.size();
  if (key.size() != prefix + 16 + BlockKey::kBytes + 8 || !key.starts_with(kCopyRecordPrefix) ||
      value.size() != 1 + sizeof packed + sizeof crc ||
      static_cast<uint8_t>(value[0]) != kVersion) {
    return std::nullopt;
  }
  std::memcpy(&crc, value.data() + 1 + sizeof packed, sizeof crc);
  if (crc != Crc32c(std::as_bytes(std::span(value.data(), 1 + sizeof packed)))) return std::nullopt;
  std::memcpy(&packed, value.data() + 1, sizeof packed);
  CopyRecord record;
  key.remove_prefix(prefix);
  record.facts.id.space.high = TakeBigEndian(key);
  record.facts.id.space.low = TakeBigEndian(key);
  std::memcpy(record.facts.id.key.bytes.data(), key.data(), BlockKey::kBytes);
  key.remove_prefix(BlockKey::kBytes);
  record.generation = TakeBigEndian(key);
  record.facts.parent = packed.parent;
  record.facts.anchor = packed.anchor;
  record.facts.parent_anchor = packed.parent_anchor;
  record.facts.ordinal = packed.ordinal;
  record.facts.length = packed.length;
  record.facts.crc32c = packed.crc32c;
  record.facts.mtime_s = packed.mtime_s;
  record.facts.replicas = static_cast<uint8_t>(packed.replicas);
  record.version = packed.version;
  record.place = {packed.segment, packed.offset_4k, packed.sequence};
  record.slot = packed.slot;
  if (record.generation == 0 || record.version == 0 || record.facts.length == 0) {
    return std::nullopt;
  }
  return record;
}

std::string GenerationLimitKey() {
  return "Mgeneration_limit";
}

}  // namespace kvcfs::meta
