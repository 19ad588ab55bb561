#include "fs/name_store.h"

#include <algorithm>
#include <cstring>

#include "base/log.h"

namespace kvcfs::fs {
namespace {

constexpr char kCounterKey[] = "Mfile_numbers";
// Reserved and synced at once: a thousand batches a day would still be nothing.
constexpr uint64_t kNumberBatch = 65536;
// Cookies 1 and 2 are "." and "..".
constexpr uint64_t kFirstNumber = 16;
constexpr uint64_t kNumberMask = (uint64_t{1} << 46) - 1;

std::string EncodeNumber(uint64_t number) {
  return std::string(reinterpret_cast<const char*>(&number), sizeof number);
}

std::optional<uint64_t> DecodeNumber(std::string_view bytes) {
  uint64_t number = 0;
  if (bytes.size() != sizeof number) return std::nullopt;
  std::memcpy(&number, bytes.data(), sizeof number);
  return number;
}

// The end of all keys that begin with `prefix`.
std::string EndOf(std::string prefix) {
  while (!prefix.empty() && static_cast<uint8_t>(prefix.back()) == 0xff) prefix.pop_back();
  if (!prefix.empty()) prefix.back() = static_cast<char>(static_cast<uint8_t>(prefix.back()) + 1);
  return prefix;
}

void LogDamaged(std::string_view what, std::string_view key) {
  KVC_LOG(Error, "a record of an ordinary tree is damaged and counts as absent",
          "record={} number={}", what, NumberIn(key, 1));
}

}  // namespace

Status NameStore::Open(bool resumed, Ino highest) {
  const Result<std::optional<std::string>> bytes = meta_.Get(kCounterKey);
  if (!bytes.ok() && bytes.code() != Code::kCorrupt) return bytes.error();
  const std::optional<uint64_t> counter =
      bytes.ok() && *bytes ? DecodeNumber(**bytes) : std::optional<uint64_t>();
  // The counter may be lost to damage where inodes are not: stay clear of all that was reserved.
  const uint64_t used = highest & kNumberMask;
  const uint64_t floor = used == 0 ? kFirstNumber : used + 1 + (counter ? 0 : kNumberBatch);
  {
    MutexLock lock(mutex_);
    next_number_ = numbers_end_ = std::max(counter.value_or(0), floor);
  }
  if (!resumed) {
    meta::MetaBatch batch;
    batch.DeleteRange("R", "S");
    KVC_TRY(meta_.Write(batch, false));
  }
  return {};
}

FsResult<uint64_t> NameStore::NextNumber() {
  MutexLock lock(mutex_);
  if (next_number_ == numbers_end_) {
    meta::MetaBatch batch;
    batch.Put(kCounterKey, EncodeNumber(numbers_end_ + kNumberBatch));
    const Status written = meta_.Write(batch, true);
    if (!written.ok()) return Fail(ErrnoOf(written.code()));
    numbers_end_ += kNumberBatch;
  }
  return next_number_++;
}

FsResult<std::optional<InodeRecord>> NameStore::GetInode(Ino ino) {
  const std::string key = InodeKey(ino);
  Result<std::optional<std::string>> bytes = meta_.Get(key);
  if (!bytes.ok()) {
    if (bytes.code() != Code::kCorrupt) return Fail(ErrnoOf(bytes.code()));
    LogDamaged("inode", key);
    return std::optional<InodeRecord>();
  }
  if (!*bytes) return std::optional<InodeRecord>();
  std::optional<InodeRecord> record = DecodeInode(**bytes);
  if (!record) LogDamaged("inode", key);
  return record;
}

void NameStore::PutInode(meta::MetaBatch& batch, Ino ino, const InodeRecord& record) {
  batch.Put(InodeKey(ino), EncodeInode(record));
}

void NameStore::DeleteInode(meta::MetaBatch& batch, Ino ino, const InodeRecord& record) {
  batch.Delete(InodeKey(ino));
  DeleteShared(batch, record);
  ClearXattrs(batch, ino, record);
  if (record.Has(InodeRecord::kManyLinks)) {
    batch.DeleteRange(Prefix('l', ino), EndOf(Prefix('l', ino)));
  }
}

FsResult<std::optional<Dentry>> NameStore::Find(Ino directory, std::string_view name) {
  const std::string key = NameKey(directory, name);
  Result<std::optional<std::string>> bytes = meta_.Get(key);
  if (!bytes.ok()) {
    if (bytes.code() != Code::kCorrupt) return Fail(ErrnoOf(bytes.code()));
    LogDamaged("name", key);
    return std::optional<Dentry>();
  }
  if (!*bytes) return std::optional<Dentry>();
  std::optional<Dentry> entry = DecodeDentry(**bytes);
  if (!entry) LogDamaged("name", key);
  return entry;
}

void NameStore::AddEntry(meta::MetaBatch& batch, Ino directory, std::string_view name, Ino ino,
                         uint32_t mode, uint64_t cookie) {
  batch.Put(NameKey(directory, name), EncodeDentry({ino, cookie}));
  batch.Put(CookieKey(directory, cookie), EncodeListed({ino, mode & S_IFMT, std::string(name)}));
}

void NameStore::RemoveEntry(meta::MetaBatch& batch, Ino directory, std::string_view name,
                            uint64_t cookie) {
  batch.Delete(NameKey(directory, name));
  batch.Delete(CookieKey(directory, cookie));
}

FsResult<bool> NameStore::IsEmpty(Ino directory) {
  bool empty = true;
  const FsStatus listed = List(directory, 0, [&](const ListedEntry&, uint64_t) {
    empty = false;
    return false;
  });
  if (!listed) return Fail(listed.error().value);
  return empty;
}

FsStatus NameStore::List(Ino directory, uint64_t cookie, const Visit& visit) {
  const std::string prefix = Prefix('d', directory);
  const std::unique_ptr<meta::MetaCursor> cursor = meta_.Seek(CookieKey(directory, cookie + 1));
  for (; cursor->Valid() && cursor->key().starts_with(prefix); cursor->Next()) {
    const std::optional<ListedEntry> entry = DecodeListed(cursor->value());
    if (!entry) {
      LogDamaged("entry", cursor->key());
      continue;
    }
    if (!visit(*entry, NumberIn(cursor->key(), prefix.size()))) return {};
  }
  const Status status = cursor->status();
  if (!status.ok() && status.code() != Code::kCorrupt) return Fail(ErrnoOf(status.code()));
  return {};
}

void NameStore::AddLink(meta::MetaBatch& batch, Ino ino, Ino directory, std::string_view name) {
  batch.Put(LinkKey(ino, directory, name), "");
}

void NameStore::RemoveLink(meta::MetaBatch& batch, Ino ino, Ino directory, std::string_view name) {
  batch.Delete(LinkKey(ino, directory, name));
}

std::vector<NameStore::LinkName> NameStore::LinksOf(Ino ino, const InodeRecord& record) {
  std::vector<LinkName> links;
  if (!record.Has(InodeRecord::kManyLinks)) {
    if (record.parent != 0) links.push_back({record.parent, record.name});
    return links;
  }
  const std::string prefix = Prefix('l', ino);
  for (const auto cursor = meta_.Seek(prefix); cursor->Valid() && cursor->key().starts_with(prefix);
       cursor->Next()) {
    links.push_back({NumberIn(cursor->key(), prefix.size()),
                     std::string(cursor->key().substr(prefix.size() + 8))});
  }
  return links;
}

FsResult<std::optional<Ino>> NameStore::FindShared(Ino root, const meta::FileId& file) {
  Result<std::optional<std::string>> bytes = meta_.Get(SharedKey(root, file));
  if (!bytes.ok() && bytes.code() != Code::kCorrupt) return Fail(ErrnoOf(bytes.code()));
  if (!bytes.ok() || !*bytes) return std::optional<Ino>();
  const std::optional<Dentry> entry = DecodeDentry(**bytes);
  return entry ? std::optional(entry->ino) : std::nullopt;
}

void NameStore::PutShared(meta::MetaBatch& batch, Ino root, const meta::FileId& file, Ino ino) {
  batch.Put(SharedKey(root, file), EncodeDentry({ino, 0}));
}

void NameStore::DeleteShared(meta::MetaBatch& batch, const InodeRecord& record) {
  if (record.shared.id.valid()) batch.Delete(SharedKey(record.root, record.shared.id));
}

void NameStore::ClearXattrs(meta::MetaBatch& batch, Ino ino, const InodeRecord& record) {
  if (!record.Has(InodeRecord::kHasXattrs)) return;
  batch.DeleteRange(Prefix('x', ino), EndOf(Prefix('x', ino)));
}

FsResult<std::optional<std::string>> NameStore::GetXattr(Ino ino, std::string_view name) {
  Result<std::optional<std::string>> bytes = meta_.Get(XattrKey(ino, name));
  if (!bytes.ok()) {
    if (bytes.code() != Code::kCorrupt) return Fail(ErrnoOf(bytes.code()));
    LogDamaged("xattr", XattrKey(ino, name));
    return std::optional<std::string>();
  }
  return std::move(*bytes);
}

FsResult<std::vector<std::string>> NameStore::ListXattrs(Ino ino) {
  std::vector<std::string> names;
  const std::string prefix = Prefix('x', ino);
  for (const auto cursor = meta_.Seek(prefix); cursor->Valid() && cursor->key().starts_with(prefix);
       cursor->Next()) {
    names.emplace_back(cursor->key().substr(prefix.size()));
  }
  return names;
}

void NameStore::Remember(meta::MetaBatch& batch, uint64_t unique, Ino ino) {
  if (unique == 0) return;  // no request of the kernel
  batch.Put(ResentKey(unique), EncodeDentry({ino, unique}));
}

std::optional<Ino> NameStore::Recall(uint64_t unique) {
  const Result<std::optional<std::string>> bytes = meta_.Get(ResentKey(unique));
  if (!bytes.ok() || !*bytes) return std::nullopt;
  const std::optional<Dentry> entry = DecodeDentry(**bytes);
  if (!entry || entry->cookie != unique) return std::nullopt;
  return entry->ino;
}

FsStatus NameStore::Write(meta::MetaBatch& batch) {
  if (batch.empty()) return {};
  const Status written = meta_.Write(batch, false);
  if (!written.ok()) return Fail(ErrnoOf(written.code()));
  return {};
}

FsStatus NameStore::Sync() {
  const Status synced = meta_.Sync();
  if (!synced.ok()) return Fail(ErrnoOf(synced.code()));
  return {};
}

void NameStore::ForEachInode(Ino from, const std::function<bool(Ino, const InodeRecord&)>& visit) {
  for (const auto cursor = meta_.Seek(InodeKey(from));
       cursor->Valid() && cursor->key().starts_with("i") && cursor->key().size() == 9;
       cursor->Next()) {
    const std::optional<InodeRecord> record = DecodeInode(cursor->value());
    if (!record) {
      LogDamaged("inode", cursor->key());
      continue;
    }
    if (!visit(NumberIn(cursor->key(), 1), *record)) return;
  }
}

}  // namespace kvcfs::fs
