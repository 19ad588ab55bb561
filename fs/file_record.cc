#include "fs/file_record.h"

#include <cstring>

#include "base/crc32c.h"

namespace kvcfs::fs {
namespace {

constexpr uint32_t kInodeVersion = 1;
constexpr uint32_t kSharedVersion = 2;    // with SharedBytes at the end
constexpr uint64_t kResentPlaces = 1024;  // far more than requests that can be without an answer

struct InodeHead {
  uint32_t crc32c;  // of all that follows
  uint32_t version;
  uint32_t mode, uid, gid, nlink;
  uint64_t size, blocks;
  int64_t atime_nanos, mtime_nanos, ctime_nanos;
  uint64_t device;
  uint32_t flags;
  uint32_t home;
  uint64_t content_version;
  uint64_t stable_version, stable_length;
  int64_t stable_mtime_nanos;
  uint32_t stable_segment, stable_offset_4k;
  uint64_t stable_sequence;
  int64_t disk_mtime_nanos;
  uint64_t root, parent;
  uint32_t name_bytes, target_bytes;  // both follow
};
static_assert(sizeof(InodeHead) == 160);

struct SharedBytes {
  uint64_t id_high, id_low, content_high, content_low;
  uint64_t change;
  uint32_t links, flags;
};
static_assert(sizeof(SharedBytes) == 48);
constexpr uint32_t kRemote = 1, kDirty = 2;

struct DentryBytes {
  uint64_t ino, cookie;
  uint32_t crc32c, unused;
};
static_assert(sizeof(DentryBytes) == 24);

struct ListedHead {
  uint32_t crc32c;  // of all that follows
  uint32_t type;
  uint64_t ino;
};
static_assert(sizeof(ListedHead) == 16);

void AppendNumber(std::string& key, uint64_t number) {
  for (int shift = 56; shift >= 0; shift -= 8) key.push_back(static_cast<char>(number >> shift));
}

uint32_t CrcOf(std::string_view bytes) {
  return Crc32c(std::as_bytes(std::span(bytes)));
}

template <typename T>
std::string_view BytesOf(const T& value) {
  return {reinterpret_cast<const char*>(&value), sizeof value};
}

}  // namespace

std::string Prefix(char kind, uint64_t number) {
  std::string key(1, kind);
  AppendNumber(key, number);
  return key;
}

uint64_t NumberIn(std::string_view key, size_t at) {
  uint64_t number = 0;
  for (size_t index = at; index < at + 8 && index < key.size(); ++index)
    number = number << 8 | static_cast<uint8_t>(key[index]);
  return number;
}

std::string InodeKey(Ino ino) {
  return Prefix('i', ino);
}
std::string NameKey(Ino directory, std::string_view name) {
  return Prefix('n', directory).append(name);
}
std::string CookieKey(Ino directory, uint64_t cookie) {
  std::string key = Prefix('d', directory);
  AppendNumber(key, cookie);
  return key;
}
std::string LinkKey(Ino ino, Ino directory, std::string_view name) {
  std::string key = Prefix('l', ino);
  AppendNumber(key, directory);
  return key.append(name);
}
std::string XattrKey(Ino ino, std::string_view name) {
  return Prefix('x', ino).append(name);
}
// Uniques of a connection are even and count up.
std::string ResentKey(uint64_t unique) {
  return Prefix('R', unique / 2 % kResentPlaces);
}

std::string SharedKey(Ino root, const meta::FileId& file) {
  std::string key = Prefix('g', root);
  AppendNumber(key, file.high);
  AppendNumber(key, file.low);
  return key;
}

std::string EncodeInode(const InodeRecord& record) {
  InodeHead head{};
  const bool shared = record.shared.id.valid();
  head.version = shared ? kSharedVersion : kInodeVersion;
  head.mode = record.mode;
  head.uid = record.uid;
  head.gid = record.gid;
  head.nlink = record.nlink;
  head.size = record.size;
  head.blocks = record.blocks;
  head.atime_nanos = record.atime_nanos;
  head.mtime_nanos = record.mtime_nanos;
  head.ctime_nanos = record.ctime_nanos;
  head.device = record.device;
  head.flags = record.flags;
  head.home = static_cast<uint32_t>(record.home);
  head.content_version = record.version;
  head.stable_version = record.stable.version;
  head.stable_length = record.stable.length;
  head.stable_mtime_nanos = record.stable.mtime_nanos;
  head.stable_segment = record.stable.place.segment;
  head.stable_offset_4k = record.stable.place.offset_4k;
  head.stable_sequence = record.stable.place.sequence;
  head.disk_mtime_nanos = record.disk_mtime_nanos;
  head.root = record.root;
  head.parent = record.parent;
  head.name_bytes = static_cast<uint32_t>(record.name.size());
  head.target_bytes = static_cast<uint32_t>(record.target.size());
  std::string bytes;
  bytes.reserve(sizeof head + record.name.size() + record.target.size() + sizeof(SharedBytes));
  bytes.append(BytesOf(head)).append(record.name).append(record.target);
  if (shared) {
    const SharedState& state = record.shared;
    const SharedBytes tail{state.id.high,
                           state.id.low,
                           state.content.high,
                           state.content.low,
                           state.change,
                           state.links,
                           (state.remote ? kRemote : 0) | (state.dirty ? kDirty : 0)};
    bytes.append(BytesOf(tail));
  }
  const uint32_t crc = CrcOf(std::string_view(bytes).substr(sizeof crc));
  std::memcpy(bytes.data(), &crc, sizeof crc);
  return bytes;
}

std::optional<InodeRecord> DecodeInode(std::string_view bytes) {
  InodeHead head{};
  if (bytes.size() < sizeof head) return std::nullopt;
  std::memcpy(&head, bytes.data(), sizeof head);
  const bool shared = head.version == kSharedVersion;
  if ((!shared && head.version != kInodeVersion) ||
      head.crc32c != CrcOf(bytes.substr(sizeof head.crc32c)) ||
      bytes.size() != sizeof head + uint64_t{head.name_bytes} + head.target_bytes +
                          (shared ? sizeof(SharedBytes) : 0) ||
      head.home > static_cast<uint32_t>(Home::kDisk)) {
    return std::nullopt;
  }
  InodeRecord record;
  record.mode = head.mode;
  record.uid = head.uid;
  record.gid = head.gid;
  record.nlink = head.nlink;
  record.size = head.size;
  record.blocks = head.blocks;
  record.atime_nanos = head.atime_nanos;
  record.mtime_nanos = head.mtime_nanos;
  record.ctime_nanos = head.ctime_nanos;
  record.device = head.device;
  record.flags = head.flags;
  record.home = static_cast<Home>(head.home);
  record.version = head.content_version;
  record.stable.version = head.stable_version;
  record.stable.length = head.stable_length;
  record.stable.mtime_nanos = head.stable_mtime_nanos;
  record.stable.place.segment = head.stable_segment;
  record.stable.place.offset_4k = head.stable_offset_4k;
  record.stable.place.sequence = head.stable_sequence;
  record.disk_mtime_nanos = head.disk_mtime_nanos;
  record.root = head.root;
  record.parent = head.parent;
  record.name = bytes.substr(sizeof head, head.name_bytes);
  record.target = bytes.substr(sizeof head + head.name_bytes, head.target_bytes);
  if (shared) {
    SharedBytes tail{};
    std::memcpy(&tail, bytes.data() + bytes.size() - sizeof tail, sizeof tail);
    record.shared.id = {tail.id_high, tail.id_low};
    record.shared.content = {tail.content_high, tail.content_low};
    record.shared.change = tail.change;
    record.shared.links = tail.links;
    record.shared.remote = (tail.flags & kRemote) != 0;
    record.shared.dirty = (tail.flags & kDirty) != 0;
  }
  return record;
}

std::string EncodeDentry(const Dentry& entry) {
  DentryBytes bytes{entry.ino, entry.cookie, 0, 0};
  bytes.crc32c = CrcOf(BytesOf(bytes).substr(0, 16));
  return std::string(BytesOf(bytes));
}

std::optional<Dentry> DecodeDentry(std::string_view bytes) {
  DentryBytes entry{};
  if (bytes.size() != sizeof entry) return std::nullopt;
  std::memcpy(&entry, bytes.data(), sizeof entry);
  if (entry.crc32c != CrcOf(bytes.substr(0, 16))) return std::nullopt;
  return Dentry{entry.ino, entry.cookie};
}

std::string EncodeListed(const ListedEntry& entry) {
  const ListedHead head{0, entry.type, entry.ino};
  std::string bytes(BytesOf(head));
  bytes.append(entry.name);
  const uint32_t crc = CrcOf(std::string_view(bytes).substr(sizeof crc));
  std::memcpy(bytes.data(), &crc, sizeof crc);
  return bytes;
}

std::optional<ListedEntry> DecodeListed(std::string_view bytes) {
  ListedHead head{};
  if (bytes.size() <= sizeof head) return std::nullopt;
  std::memcpy(&head, bytes.data(), sizeof head);
  if (head.crc32c != CrcOf(bytes.substr(sizeof head.crc32c))) return std::nullopt;
  return ListedEntry{head.ino, head.type, std::string(bytes.substr(sizeof head))};
}

}  // namespace kvcfs::fs
