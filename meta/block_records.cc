#include "meta/block_records.h"

#include <bit>
#include <cstring>
#include <span>
#include <type_traits>

#include "base/crc32c.h"

namespace kvcfs::meta {
namespace {

constexpr uint8_t kVersion = 1;
constexpr char kNamespaceKind = 'N';
constexpr char kBlockKind = 'b';
constexpr size_t kNameBytesMax = 255;
constexpr uint64_t kBlockBytesMax = 64u << 20;

// Every host that we run on is little-endian, so numbers are copied as they are.
static_assert(std::endian::native == std::endian::little);

class Writer {
 public:
  Writer() { Number(kVersion); }
  template <typename T>
  void Number(T value) {
    static_assert(std::is_integral_v<T>);
    Bytes(&value, sizeof value);
  }
  void Bytes(const void* bytes, size_t size) {
    text_.append(static_cast<const char*>(bytes), size);
  }
  std::string Finish() && {
    Number(Crc32c(std::as_bytes(std::span(text_))));
    return std::move(text_);
  }

 private:
  std::string text_;
};

class Reader {
 public:
  // Takes what Writer made: checks version and CRC before anything is believed.
  explicit Reader(std::string_view text) {
    uint32_t crc = 0;
    if (text.size() < 1 + sizeof crc) return;
    const std::string_view body = text.substr(0, text.size() - sizeof crc);
    std::memcpy(&crc, text.data() + body.size(), sizeof crc);
    ok_ = static_cast<uint8_t>(text[0]) == kVersion &&
          crc == Crc32c(std::as_bytes(std::span(body.data(), body.size())));
    rest_ = body.substr(1);
  }
  template <typename T>
  T Number() {
    T value{};
    Bytes(&value, sizeof value);
    return value;
  }
  void Bytes(void* to, size_t size) {
    ok_ = ok_ && rest_.size() >= size;
    if (!ok_) return;
    std::memcpy(to, rest_.data(), size);
    rest_.remove_prefix(size);
  }
  bool Finished() const { return ok_ && rest_.empty(); }

 private:
  bool ok_ = false;
  std::string_view rest_;
};

std::string BigEndian(char kind, NamespaceId id) {
  std::string text(1, kind);
  for (int shift = 24; shift >= 0; shift -= 8) text.push_back(static_cast<char>(id >> shift));
  return text;
}

std::optional<NamespaceId> FromBigEndian(char kind, std::string_view text) {
  if (text.size() < 5 || text[0] != kind) return std::nullopt;
  NamespaceId id = 0;
  for (size_t i = 1; i < 5; ++i) id = id << 8 | static_cast<uint8_t>(text[i]);
  return id;
}

}  // namespace

std::string NamespaceRecordKey(NamespaceId id) {
  return BigEndian(kNamespaceKind, id);
}

std::optional<NamespaceId> DecodeNamespaceRecordKey(std::string_view key) {
  if (key.size() != 5) return std::nullopt;
  return FromBigEndian(kNamespaceKind, key);
}

std::string EncodeNamespaceRecord(const NamespaceRecord& record) {
  Writer writer;
  writer.Bytes(record.uuid.data(), record.uuid.size());
  writer.Number(record.block_bytes);
  writer.Number(record.quota_bytes);
  writer.Number(static_cast<uint8_t>(record.sync));
  writer.Number(record.replicas);
  writer.Number(record.uid);
  writer.Number(record.gid);
  writer.Number(record.mode);
  writer.Number(record.mtime_nanos);
  writer.Number(record.ctime_nanos);
  writer.Number(record.files_root);
  writer.Number(static_cast<uint16_t>(record.name.size()));
  writer.Bytes(record.name.data(), record.name.size());
  return std::move(writer).Finish();
}

std::optional<NamespaceRecord> DecodeNamespaceRecord(std::string_view value) {
  Reader reader(value);
  NamespaceRecord record;
  reader.Bytes(record.uuid.data(), record.uuid.size());
  record.block_bytes = reader.Number<uint64_t>();
  record.quota_bytes = reader.Number<uint64_t>();
  const auto sync = reader.Number<uint8_t>();
  record.sync = sync == 1;
  record.replicas = reader.Number<uint32_t>();
  record.uid = reader.Number<uint32_t>();
  record.gid = reader.Number<uint32_t>();
  record.mode = reader.Number<uint32_t>();
  record.mtime_nanos = reader.Number<int64_t>();
  record.ctime_nanos = reader.Number<int64_t>();
  record.files_root = reader.Number<uint64_t>();
  const auto name_bytes = reader.Number<uint16_t>();
  if (name_bytes == 0 || name_bytes > kNameBytesMax || sync > 1) return std::nullopt;
  record.name.resize(name_bytes);
  reader.Bytes(record.name.data(), record.name.size());
  if (!reader.Finished()) return std::nullopt;
  return record;
}

std::string BlockRecordKey(NamespaceId ns, const BlockKey& key) {
  std::string text = BigEndian(kBlockKind, ns);
  text.append(reinterpret_cast<const char*>(key.bytes.data()), key.bytes.size());
  return text;
}

std::optional<std::pair<NamespaceId, BlockKey>> DecodeBlockRecordKey(std::string_view key) {
  if (key.size() != 5 + BlockKey::kBytes) return std::nullopt;
  const auto ns = FromBigEndian(kBlockKind, key);
  if (!ns) return std::nullopt;
  BlockKey block;
  std::memcpy(block.bytes.data(), key.data() + 5, BlockKey::kBytes);
  return std::pair(*ns, block);
}

std::string EncodeBlockRecord(const BlockRecord& record) {
  Writer writer;
  writer.Bytes(record.parent.bytes.data(), record.parent.bytes.size());
  writer.Number(record.ordinal);
  writer.Number(record.length);
  writer.Number(record.place.segment);
  writer.Number(record.place.offset_4k);
  writer.Number(record.place.sequence);
  writer.Number(record.mtime_s);
  writer.Number(record.last_use_s);
  writer.Number(record.crc32c);
  writer.Number(record.hits);
  return std::move(writer).Finish();
}

std::optional<BlockRecord> DecodeBlockRecord(std::string_view value) {
  Reader reader(value);
  BlockRecord record;
  reader.Bytes(record.parent.bytes.data(), record.parent.bytes.size());
  record.ordinal = reader.Number<uint32_t>();
  record.length = reader.Number<uint32_t>();
  record.place.segment = reader.Number<uint32_t>();
  record.place.offset_4k = reader.Number<uint32_t>();
  record.place.sequence = reader.Number<uint64_t>();
  record.mtime_s = reader.Number<uint32_t>();
  record.last_use_s = reader.Number<uint32_t>();
  record.crc32c = reader.Number<uint32_t>();
  record.hits = reader.Number<uint16_t>();
  if (!reader.Finished()) return std::nullopt;
  // A length is bounded before anyone takes memory for it; ordinal 0 is what has no parent.
  if (record.length == 0 || record.length > kBlockBytesMax) return std::nullopt;
  if ((record.ordinal == 0) != record.parent.IsZero()) return std::nullopt;
  return record;
}

std::string EncodeCounter(uint64_t value) {
  Writer writer;
  writer.Number(value);
  return std::move(writer).Finish();
}

std::optional<uint64_t> DecodeCounter(std::string_view value) {
  Reader reader(value);
  const auto counter = reader.Number<uint64_t>();
  if (!reader.Finished()) return std::nullopt;
  return counter;
}

std::string AppliedSequenceKey() {
  return "Mapplied_sequence";
}

}  // namespace kvcfs::meta
