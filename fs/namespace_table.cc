#include "fs/namespace_table.h"

#include "base/log.h"
#include "meta/block_records.h"

namespace kvcfs::fs {
namespace {

constexpr char kNextIdKey[] = "Mnext_namespace";

meta::NamespaceRecord ToRecord(const Namespace& space) {
  meta::NamespaceRecord record;
  record.name = space.name;
  record.uuid = space.uuid;
  record.block_bytes = space.block_bytes;
  record.quota_bytes = space.quota_bytes;
  record.sync = space.sync;
  record.replicas = space.replicas;
  record.uid = space.uid;
  record.gid = space.gid;
  record.mode = space.mode;
  record.mtime_nanos = space.mtime_nanos;
  record.ctime_nanos = space.ctime_nanos;
  record.files_root = space.files_root;
  return record;
}

Namespace FromRecord(meta::NamespaceId id, const meta::NamespaceRecord& record) {
  Namespace space;
  space.id = id;
  space.name = record.name;
  space.uuid = record.uuid;
  space.block_bytes = record.block_bytes;
  space.quota_bytes = record.quota_bytes;
  space.sync = record.sync;
  space.replicas = record.replicas;
  space.uid = record.uid;
  space.gid = record.gid;
  space.mode = record.mode;
  space.mtime_nanos = record.mtime_nanos;
  space.ctime_nanos = record.ctime_nanos;
  space.files_root = record.files_root;
  return space;
}

}  // namespace

meta::SpaceId SpaceIdOf(const iouring::Uuid& uuid) {
  meta::SpaceId id;
  for (size_t i = 0; i < 8; ++i) {
    id.high = id.high << 8 | uuid[i];
    id.low = id.low << 8 | uuid[8 + i];
  }
  return id;
}

iouring::Uuid UuidOf(const meta::SpaceId& id) {
  iouring::Uuid uuid{};
  for (size_t i = 0; i < 8; ++i) {
    uuid[i] = static_cast<uint8_t>(id.high >> (56 - 8 * i));
    uuid[8 + i] = static_cast<uint8_t>(id.low >> (56 - 8 * i));
  }
  return uuid;
}

Status NamespaceTable::Load() {
  MutexLock lock(mutex_);
  for (auto cursor = store_.Seek("N"); cursor->Valid() && cursor->key().starts_with('N');
       cursor->Next()) {
    const auto id = meta::DecodeNamespaceRecordKey(cursor->key());
    const auto record = meta::DecodeNamespaceRecord(cursor->value());
    if (!id || !record) {
      KVC_LOG(Error, "a namespace record is damaged; its blocks are misses", "record={}",
              LogValue(cursor->key()));
      continue;
    }
    spaces_[*id] = FromRecord(*id, *record);
    next_id_ = std::max(next_id_, *id + 1);
  }
  KVC_TRY_ASSIGN(const std::optional<std::string> next, store_.Get(kNextIdKey));
  if (next) {
    const auto value = meta::DecodeCounter(*next);
    if (value) next_id_ = std::max(next_id_, static_cast<meta::NamespaceId>(*value));
  }
  return {};
}

std::optional<Namespace> NamespaceTable::Find(const std::string& name) const {
  MutexLock lock(mutex_);
  for (const auto& [id, space] : spaces_) {
    if (space.name == name && !space.hidden) return space;
  }
  return std::nullopt;
}

std::optional<Namespace> NamespaceTable::Get(meta::NamespaceId id) const {
  MutexLock lock(mutex_);
  const auto found = spaces_.find(id);
  if (found == spaces_.end()) return std::nullopt;
  return found->second;
}

std::optional<Namespace> NamespaceTable::FindUuid(const iouring::Uuid& uuid) const {
  MutexLock lock(mutex_);
  for (const auto& [id, space] : spaces_) {
    if (space.uuid == uuid) return space;
  }
  return std::nullopt;
}

std::vector<Namespace> NamespaceTable::List() const {
  MutexLock lock(mutex_);
  std::vector<Namespace> all;
  all.reserve(spaces_.size());
  for (const auto& [id, space] : spaces_) {
    if (!space.hidden) all.push_back(space);
  }
  return all;
}

std::vector<Namespace> NamespaceTable::ListAll() const {
  MutexLock lock(mutex_);
  std::vector<Namespace> all;
  all.reserve(spaces_.size());
  for (const auto& [id, space] : spaces_) all.push_back(space);
  return all;
}

FsStatus NamespaceTable::Save(const Namespace& space) {
  meta::MetaBatch batch;
  batch.Put(meta::NamespaceRecordKey(space.id), meta::EncodeNamespaceRecord(ToRecord(space)));
  batch.Put(kNextIdKey, meta::EncodeCounter(next_id_));
  // Durable: blocks of a namespace that recovery does not know would be lost.
  const Status written = store_.Write(batch, true);
  if (!written.ok()) return Fail(ErrnoOf(written.code()));
  return {};
}

FsStatus CheckNamespaceName(std::string_view name) {
  if (name.empty() || name.front() == '.') return Fail(EINVAL);
  if (name.size() > 255) return Fail(ENAMETOOLONG);
  return {};
}

FsResult<Namespace> NamespaceTable::Create(const Caller& caller, const std::string& name,
                                           mode_t mode) {
  Namespace space;
  space.name = name;
  space.uuid = iouring::RandomUuid();
  space.uid = caller.uid;
  space.gid = caller.gid;
  space.mode = mode;
  space.mtime_nanos = space.ctime_nanos = clock_.WallNanos();
  return Adopt(space);
}

FsResult<Namespace> NamespaceTable::Adopt(Namespace space) {
  if (const FsStatus fits = CheckNamespaceName(space.name); !fits) return Fail(fits.error().value);
  MutexLock lock(mutex_);
  for (const auto& [id, other] : spaces_) {
    if (other.name == space.name && !other.hidden) return Fail(EEXIST);
  }
  space.id = next_id_++;
  const FsStatus saved = Save(space);
  if (!saved) return Fail(saved.error().value);
  spaces_[space.id] = space;
  KVC_LOG(Info, "namespace made", "name={} id={}", LogValue(space.name), space.id);
  return space;
}

FsStatus NamespaceTable::Update(const Namespace& changed) {
  MutexLock lock(mutex_);
  const auto found = spaces_.find(changed.id);
  if (found == spaces_.end()) return Fail(ENOENT);
  const FsStatus saved = Save(changed);
  if (saved) found->second = changed;
  return saved;
}

FsStatus NamespaceTable::Remove(meta::NamespaceId id) {
  MutexLock lock(mutex_);
  const auto found = spaces_.find(id);
  if (found == spaces_.end()) return Fail(ENOENT);
  meta::MetaBatch batch;
  batch.Delete(meta::NamespaceRecordKey(id));
  const Status written = store_.Write(batch, true);
  if (!written.ok()) return Fail(ErrnoOf(written.code()));
  KVC_LOG(Info, "namespace removed", "name={} id={}", LogValue(found->second.name), id);
  spaces_.erase(found);
  return {};
}

}  // namespace kvcfs::fs
