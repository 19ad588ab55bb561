// Bytes: versions go to the cluster as blocks, and come from there when a file is opened.
#include <algorithm>
#include <cstring>

#include <fcntl.h>

#include "base/crc32c.h"
#include "base/log.h"
#include "fs/about_to_block.h"
#include "fs/cluster_file_tree.h"
#include "meta/chain_key.h"

namespace kvcfs::fs {
namespace {

using meta::NameError;
using meta::NameOp;
using meta::NameRequest;

// Most files of engines are one.
constexpr uint64_t kExtentBytes = 4u << 20;
// What is longer (pools that are written in place) stays with its host.
constexpr uint64_t kPublishedBytesMax = 1u << 30;
constexpr Millis kSendLimit{6000}, kFindLimit{2000}, kReadLimit{3000}, kDropLimit{4000};
constexpr Millis kRetry{1000};
// As long as the owner keeps what another host's file replaced (NameTable), and a little.
constexpr Millis kOwnName{60'000}, kKept{65'000};
constexpr size_t kOwnNamesMax = 65536;
constexpr size_t kDroppedMax = 65536;
constexpr int kDropTries = 3;
constexpr int kFetchTries = 3;

}  // namespace

BlockKey ClusterFileTree::ExtentKey(const meta::SpaceId& space, const meta::FileId& content,
                                    uint64_t offset) {
  const std::array<uint64_t, 5> words{space.high, space.low, content.high, content.low, offset};
  return meta::Sha256(std::as_bytes(std::span(words)));
}

// ---- publishing

FsResult<ClusterFileTree::Upload> ClusterFileTree::SendBytes(const LocalFile& before) {
  AboutToBlock();
  const FsResult<uint64_t> changes = mirror_->Seal(before.ino);
  if (!changes) return Fail(changes.error().value);
  const FsResult<LocalFile> local = mirror_->Describe(before.ino);
  if (!local) return Fail(local.error().value);
  const InodeRecord& record = local->record;
  if (record.size > kPublishedBytesMax) return Fail(EFBIG);
  Upload upload;
  upload.changes = *changes;
  meta::SharedFile& file = upload.file;
  file.id = local->is_local() ? parts_.cluster->NewFileId() : record.shared.id;
  file.mode = record.mode;
  file.uid = record.uid;
  file.gid = record.gid;
  file.size = record.size;
  file.atime_nanos = record.atime_nanos;
  file.mtime_nanos = record.mtime_nanos;
  file.ctime_nanos = record.ctime_nanos;
  if (record.size > 0) file.content = parts_.cluster->NewFileId();
  if (const auto names = tree_->ListXattrs(local->ino); names && local->is_local()) {
    for (const std::string& name : *names) {
      if (const auto value = tree_->GetXattr(local->ino, name))
        file.xattrs.push_back({name, *value});
    }
    std::sort(file.xattrs.begin(), file.xattrs.end());
  }
  const auto space = parts_.namespaces->FindUuid(UuidOf(local->space));
  std::vector<std::byte> piece(std::min(record.size, kExtentBytes));
  for (uint64_t at = 0; at < record.size; at += kExtentBytes) {
    const auto bytes = std::span(piece).first(std::min(kExtentBytes, record.size - at));
    const FsResult<size_t> got = mirror_->ReadHere(local->ino, at, bytes);
    if (!got) return Fail(got.error().value);
    if (*got != bytes.size()) return Fail(EAGAIN);  // it became shorter meanwhile
    const meta::BlockId id{meta::FilesSpaceOf(local->space),
                           ExtentKey(local->space, file.content, at)};
    Result<meta::BlockFacts> facts = parts_.cluster->Create(id, BlockKey{}, kFindLimit);
    if (!facts.ok()) return Fail(EHOSTUNREACH);
    facts->length = static_cast<uint32_t>(bytes.size());
    facts->crc32c = Crc32c(bytes);
    facts->mtime_s = static_cast<uint32_t>(record.mtime_nanos / 1'000'000'000);
    facts->replicas = static_cast<uint8_t>(space ? space->replicas : 1);
    const Result<uint32_t> sent = parts_.cluster->Publish(*facts, std::nullopt, bytes, kSendLimit);
    if (!sent.ok()) {
      KVC_LOG(Warn, "the cluster does not take the bytes of a file", "ino={:x} error={}",
              local->ino, LogValue(sent.error().text));
      return Fail(sent.code() == Code::kNoSpace ? ENOSPC : EHOSTUNREACH);
    }
  }
  const FsResult<LocalFile> after = mirror_->Describe(before.ino);
  if (!after) return Fail(after.error().value);
  if (after->changes != upload.changes) {
    DropLater(local->space, {file}, Millis(0));
    return Fail(EAGAIN);
  }
  return upload;
}

FsStatus ClusterFileTree::TellVersion(const LocalFile& local, const Upload& upload,
                                      const Target& target) {
  const bool is_new = local.is_local();
  NameRequest request;
  request.space = local.space;
  request.op = NameOp::kPublish;
  request.file = upload.file;
  request.flags = target.flags;
  if (is_new) {
    request.directory = target.directory->shared_id();
    request.name = *target.name;
  }
  const auto reply = Ask(request);
  if (!reply) return Fail(reply.error().error);
  if (reply->error != NameError::kNone) {
    DropLater(local.space, {upload.file}, Millis(0));
    if (reply->error == NameError::kExists) return Fail(EEXIST);
    // Its name, or its directory, went elsewhere: so it goes here.
    KVC_LOG(Info, "a file was removed elsewhere while it was written here", "ino={:x}", local.ino);
    const auto there = mirror_->Find(local.record.parent, local.record.name);
    if (there && *there && (*there)->ino == local.ino) {
      mirror_->Forget(local.record.parent, local.record.name);
    }
    return Fail(reply->error == NameError::kIsDirectory ? EISDIR : ENOENT);
  }
  const bool kept = (target.flags & meta::kNameKeep) != 0;
  DropLater(local.space, reply->removed, kept ? kKept : Millis(0));
  if (is_new) {
    MutexLock lock(mutex_);
    if (own_names_.size() >= kOwnNamesMax) own_names_.clear();
    own_names_[{target.directory->ino, *target.name}] = {reply->file.id,
                                                         parts_.clock->Monotonic() + kOwnName};
  }
  return mirror_->SetPublished(local.ino, reply->file, upload.changes);
}

FsStatus ClusterFileTree::Publish(Ino ino, When when) {
  FsResult<LocalFile> local = mirror_->Describe(ino);
  const auto nothing_to_do = [&] {
    return !local->wants_publishing() || (when == When::kClosed && local->written);
  };
  if (!local) return Fail(local.error().value);
  if (nothing_to_do()) return {};
  FsResult<Upload> upload = SendBytes(*local);
  if (!upload) return Fail(upload.error().value);
  while (true) {
    const Ino parent = local->record.parent;
    const std::string name = local->record.name;
    const std::lock_guard<std::mutex> lock(NamePlace(parent, name));
    local = mirror_->Describe(ino);
    if (!local) return Fail(local.error().value);
    if (local->record.parent != parent || local->record.name != name) continue;
    if (nothing_to_do()) {
      DropLater(local->space, {upload->file}, Millis(0));
      return {};
    }
    const FsResult<LocalFile> directory = mirror_->Describe(parent);
    if (!directory) return Fail(directory.error().value);
    return TellVersion(*local, *upload, {&*directory, &name, meta::kNameKeep});
  }
}

void ClusterFileTree::PublishIfClosed(Ino ino) {
  const std::lock_guard<std::mutex> publishing(files_[ino % kFilePlaces]);
  const FsStatus published = Publish(ino, When::kClosed);
  MutexLock lock(mutex_);
  const int error = published ? 0 : published.error().value;
  if (error == EHOSTUNREACH || error == ETIMEDOUT || error == EAGAIN || error == ENOSPC) {
    unpublished_[ino] = parts_.clock->Monotonic() + kRetry;
    changed_.notify_one();
  } else {
    unpublished_.erase(ino);
    if (error != 0) KVC_LOG(Warn, "a file stays on this host", "ino={:x} errno={}", ino, error);
  }
}

FsStatus ClusterFileTree::Release(Ino ino, uint64_t handle) {
  const FsStatus released = tree_->Release(ino, handle);
  const FsResult<LocalFile> local = mirror_->Describe(ino);
  if (local && local->wants_publishing() && !local->written) PublishIfClosed(ino);
  return released;
}

// ---- opening

Status ClusterFileTree::ReadExtent(const meta::SpaceId& space, const meta::FileId& content,
                                   uint64_t offset, std::span<std::byte> into) {
  const BlockKey key = ExtentKey(space, content, offset);
  const meta::SpaceId blocks = meta::FilesSpaceOf(space);
  KVC_TRY_ASSIGN(const meta::MatchedPrefix found,
                 parts_.cluster->Match(blocks, std::span(&key, 1), true, kFindLimit));
  if (found.blocks.empty()) {
    // A match that found nothing in time looks the same; this one says which.
    KVC_TRY(parts_.cluster->Stat({blocks, key}, kFindLimit));
    return Error{Code::kUnavailable, "just found"};
  }
  if (found.blocks[0].length != into.size()) return Error{Code::kNotFound, "of another length"};
  KVC_TRY(parts_.cluster->Read(blocks, found.blocks[0], into, kReadLimit));
  return {};
}

FsStatus ClusterFileTree::Fetch(Ino ino) {
  AboutToBlock();
  for (int tries = 0; tries < kFetchTries; ++tries) {
    const FsResult<LocalFile> local = mirror_->Describe(ino);
    if (!local) return Fail(local.error().value);
    if (!local->record.shared.remote) return {};
    const meta::FileId content = local->record.shared.content;
    const FsStatus filled = mirror_->Fill(
        ino, content, kExtentBytes, [&](uint64_t offset, std::span<std::byte> into) -> FsStatus {
          const Status read = ReadExtent(local->space, content, offset, into);
          if (read.ok()) return {};
          return Fail(read.code() == Code::kNotFound ? ENOENT : EHOSTUNREACH);
        });
    if (filled) return {};
    if (filled.error().value == EAGAIN || filled.error().value == EHOSTUNREACH) continue;
    if (filled.error().value != ENOENT) return filled;
    // Nobody has them: there is a newer version, or the file goes. A miss is always permitted.
    NameRequest missing;
    missing.space = local->space;
    missing.op = NameOp::kMissing;
    missing.file.id = local->record.shared.id;
    missing.file.content = content;
    const auto told = Ask(missing);
    if (!told) return Fail(ENOENT);
    if (told->error != NameError::kExists) {
      mirror_->Forget(local->record.parent, local->record.name);
      return Fail(ENOENT);
    }
    NameRequest get;
    get.space = local->space;
    get.op = NameOp::kGet;
    get.file.id = local->record.shared.id;
    const auto now = Ask(get);
    if (!now || now->error != NameError::kNone) return Fail(ENOENT);
    mirror_->Update(local->record.root, now->file);
  }
  return Fail(ENOENT);
}

FsResult<OpenReply> ClusterFileTree::Open(const Caller& caller, Ino ino, int flags) {
  const FsResult<LocalFile> local = mirror_->Describe(ino);
  if (!local) return Fail(local.error().value);
  const InodeRecord& record = local->record;
  if (!record.IsRegular() || local->is_local() || record.nlink == 0) {
    return tree_->Open(caller, ino, flags);
  }
  {
    MutexLock lock(mutex_);
    const auto own = own_names_.find({record.parent, record.name});
    if (own != own_names_.end() && own->second.id != record.shared.id) own_names_.erase(own);
  }
  if ((flags & O_TRUNC) != 0 && record.nlink == 1 && record.shared.links <= 1 && !local->open) {
    // A new file under the old name: so two hosts that write one temporary name, and rename it, do
    // not take it from each other.
    const std::lock_guard<std::mutex> publishing(files_[ino % kFilePlaces]);
    const std::lock_guard<std::mutex> lock(NamePlace(record.parent, record.name));
    const FsStatus detached = mirror_->Detach(ino);
    if (!detached) return Fail(detached.error().value);
    FsResult<OpenReply> opened = tree_->Open(caller, ino, flags);
    if (!opened) mirror_->Forget(record.parent, record.name);
    return opened;
  }
  if ((flags & O_TRUNC) == 0 && record.shared.remote) {
    const FsStatus fetched = Fetch(ino);
    if (!fetched) return Fail(fetched.error().value);
  }
  return tree_->Open(caller, ino, flags);
}

FsResult<OpenReply> ClusterFileTree::Create(const Caller& caller, Ino parent,
                                            const std::string& name, mode_t mode, int flags,
                                            EntryReply* entry) {
  {
    // Of this host alone until it is closed: nobody is asked.
    const std::lock_guard<std::mutex> lock(NamePlace(parent, name));
    const FsResult<std::optional<LocalFile>> local = mirror_->Find(parent, name);
    if (!local) return Fail(local.error().value);
    if (!*local || (*local)->is_local()) {
      return tree_->Create(caller, parent, name, mode, flags, entry);
    }
  }
  if ((flags & O_EXCL) != 0) return Fail(EEXIST);
  const FsResult<EntryReply> found = Lookup(caller, parent, name);
  if (!found) return Fail(found.error().value);
  *entry = *found;
  return Open(caller, found->ino, flags);
}

// ---- behind the calls

void ClusterFileTree::DropLater(const meta::SpaceId& space,
                                const std::vector<meta::SharedFile>& removed, Millis delay) {
  if (removed.empty()) return;
  MutexLock lock(mutex_);
  for (const meta::SharedFile& file : removed) {
    // What is not dropped is evicted some day.
    if (!file.content.valid() || dropped_.size() >= kDroppedMax) continue;
    dropped_.push_back({parts_.clock->Monotonic() + delay, space, file, 0});
  }
  changed_.notify_one();
}

void ClusterFileTree::Start() {
  const Millis now = parts_.clock->Monotonic();
  {
    MutexLock lock(mutex_);
    for (const Ino ino : mirror_->Unpublished()) unpublished_[ino] = now;
  }
  publisher_ = std::thread([this] { RunPublisher(); });
}

void ClusterFileTree::Stop() {
  {
    MutexLock lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  if (publisher_.joinable()) publisher_.join();
}

void ClusterFileTree::RunPublisher() {
  SetThreadName("files-publish");
  MutexLock lock(mutex_);
  while (!stopping_) {
    const Millis now = parts_.clock->Monotonic();
    std::vector<Ino> publish;
    for (auto& [ino, due] : unpublished_) {
      if (due > now) continue;
      publish.push_back(ino);
      due = now + kRetry;
    }
    std::vector<Dropped> drop;
    for (auto at = dropped_.begin(); at != dropped_.end();) {
      if (at->due > now) {
        ++at;
        continue;
      }
      drop.push_back(std::move(*at));
      at = dropped_.erase(at);
    }
    if (publish.empty() && drop.empty()) {
      // Whoever has something for us says so; retries and delays are not in a hurry.
      changed_.wait_for(lock.native(), kRetry);
      continue;
    }
    lock.native().unlock();
    for (const Ino ino : publish) PublishIfClosed(ino);
    std::vector<Dropped> again;
    for (Dropped& each : drop) {
      if (!DropBytes(each) && ++each.tries < kDropTries) again.push_back(std::move(each));
    }
    lock.native().lock();
    for (Dropped& each : again) {
      each.due = parts_.clock->Monotonic() + kKept;
      dropped_.push_back(std::move(each));
    }
  }
}

bool ClusterFileTree::DropBytes(const Dropped& dropped) {
  NameRequest get;
  get.space = dropped.space;
  get.op = NameOp::kGet;
  get.file.id = dropped.file.id;
  const auto now = Ask(get);
  if (!now) return false;
  if (now->error == NameError::kNone && now->file.content == dropped.file.content) {
    return now->file.links > 0;  // renamed meanwhile: it stays
  }
  for (uint64_t at = 0; at < dropped.file.size; at += kExtentBytes) {
    const Status gone = parts_.cluster->Drop(
        {meta::FilesSpaceOf(dropped.space), ExtentKey(dropped.space, dropped.file.content, at)},
        kDropLimit);
    if (!gone.ok() && gone.code() != Code::kNotFound) return false;
  }
  return true;
}

Status ClusterFileTree::WriteBackAll() {
  std::vector<Ino> publish;
  {
    MutexLock lock(mutex_);
    for (const auto& [ino, due] : unpublished_) publish.push_back(ino);
  }
  for (const Ino ino : publish) PublishIfClosed(ino);
  return tree_->WriteBackAll();
}

}  // namespace kvcfs::fs
