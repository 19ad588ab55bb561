// Open files of the mounted tree: data, directories, xattrs, the match file and the ioctls.
#include <algorithm>
#include <charconv>
#include <cstring>

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/ioctl.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "base/log.h"
#include "fs/filesystem.h"
#include "fs/kvcfs.h"

namespace kvcfs::fs {
namespace {

using meta::NamespaceId;

constexpr Ino kPendingBit = Ino{1} << 61;
constexpr uint64_t kNamesBeforeTips = 16;   // cookies of a namespace's own entries lie below
constexpr size_t kMatchKeysMax = 1u << 20;  // a conversation's memory has a bound: 32 MiB
constexpr std::string_view kXattrPrefix = "user.kvc.";

bool IsPending(Ino ino) {
  return KindOf(ino) == InoKind::kFixed && (ino & kPendingBit) != 0;
}
bool IsFile(Ino ino) {
  return KindOf(ino) == InoKind::kFile;
}
bool IsBlock(Ino ino) {
  return KindOf(ino) == InoKind::kBlock;
}
bool IsChain(Ino ino) {
  return KindOf(ino) == InoKind::kChain;
}

// xattrs are decimal text.
Result<uint64_t> ParseDecimal(const std::string& text) {
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || text.empty()) {
    return Error{Code::kInvalid, "not a decimal number: " + text};
  }
  return value;
}

std::span<const std::byte> Slice(std::span<const std::byte> all, uint64_t offset, size_t size) {
  if (offset >= all.size()) return {};
  return all.subspan(offset, std::min<uint64_t>(size, all.size() - offset));
}

}  // namespace

// One open of the match file: a question of many keys, then its answer.
struct Filesystem::Conversation {
  Mutex mutex;
  NamespaceId ns = 0;
  std::vector<BlockKey> keys;
  std::string partial;  // a line that has not ended yet
  uint32_t flags = 0;
  bool answering = false;
  std::string answer;
  size_t answer_read = 0;
};

// ---- data

FsResult<OpenReply> Filesystem::Open(const Caller& caller, Ino ino, int flags) {
  if (IsBlock(ino)) return parts_.blocks->Open(caller, ino, flags);
  if (IsFile(ino)) return parts_.files->Open(caller, ino, flags);
  if (IsPending(ino)) return parts_.blocks->PendingOpen(ino, flags);
  NamespaceEntry entry{};
  if (const auto space = NamespaceOf(ino, &entry); space && entry == NamespaceEntry::kMatch) {
    return OpenConversation(space->id);
  }
  const uint64_t index = ino - kFirstVirtualIno;
  if (ino >= kFirstVirtualIno && index < virtual_files_.size()) {
    if ((flags & O_ACCMODE) != O_RDONLY) return Fail(EROFS);
    auto text = TextOf(ino);
    MutexLock lock(mutex_);
    OpenReply open;
    open.handle = next_handle_++;
    open.mode = OpenMode::kDirect;
    texts_[open.handle] = std::move(text);
    return open;
  }
  return Fail(EISDIR);
}

std::shared_ptr<const std::string> Filesystem::TextOf(Ino ino) const {
  const uint64_t index = ino - kFirstVirtualIno;
  if (ino < kFirstVirtualIno || index >= virtual_files_.size()) return nullptr;
  return std::make_shared<const std::string>(virtual_files_[index].text());
}

FsResult<std::span<const std::byte>> Filesystem::Read(Ino ino, uint64_t handle, uint64_t offset,
                                                      size_t size, std::span<std::byte> buffer) {
  size = std::min(size, buffer.size());
  if (IsBlock(ino)) {
    const auto all = parts_.blocks->Mapped(ino, handle);
    if (!all) return Fail(all.error().value);
    return Slice(*all, offset, size);
  }
  const auto from_buffer =
      [&](const FsResult<size_t>& got) -> FsResult<std::span<const std::byte>> {
    if (!got) return Fail(got.error().value);
    return std::span<const std::byte>(buffer.data(), *got);
  };
  if (IsFile(ino)) return from_buffer(parts_.files->Read(ino, handle, offset, buffer.first(size)));
  if (IsPending(ino)) {
    return from_buffer(parts_.blocks->PendingRead(ino, offset, buffer.first(size)));
  }
  std::shared_ptr<Conversation> conversation;
  std::shared_ptr<const std::string> text;
  {
    MutexLock lock(mutex_);
    if (const auto found = conversations_.find(handle); found != conversations_.end()) {
      conversation = found->second;
    } else if (const auto text_found = texts_.find(handle); text_found != texts_.end()) {
      text = text_found->second;
    }
  }
  // Opened at a daemon that is no more: read anew from the beginning, not on in another text.
  if (text == nullptr && conversation == nullptr && offset == 0) {
    text = TextOf(ino);
    MutexLock lock(mutex_);
    if (text != nullptr) texts_[handle] = text;
  }
  if (text != nullptr) {
    const auto part = Slice(std::as_bytes(std::span(*text)), offset, size);
    std::copy(part.begin(), part.end(), buffer.begin());  // the text may go with its handle
    return std::span<const std::byte>(buffer.data(), part.size());
  }
  if (conversation == nullptr) return Fail(ESTALE);
  MutexLock lock(conversation->mutex);
  if (!conversation->answering) {
    if (!conversation->partial.empty()) {
      // A last key without its newline.
      static constexpr std::byte kNewline{'\n'};
      const auto asked = Ask(*conversation, {&kNewline, 1});
      if (!asked) return Fail(asked.error().value);
    }
    conversation->answer = Answer(*conversation);
    conversation->answer_read = 0;
    conversation->answering = true;
  }
  const auto part =
      Slice(std::as_bytes(std::span(conversation->answer)), conversation->answer_read, size);
  std::copy(part.begin(), part.end(), buffer.begin());
  conversation->answer_read += part.size();
  return std::span<const std::byte>(buffer.data(), part.size());
}

FsResult<size_t> Filesystem::Write(Ino ino, uint64_t handle, uint64_t offset,
                                   std::span<const std::byte> from, bool kill_suid) {
  if (IsFile(ino)) return parts_.files->Write(ino, handle, offset, from, kill_suid);
  if (IsPending(ino)) return parts_.blocks->PendingWrite(ino, offset, from);
  std::shared_ptr<Conversation> conversation;
  {
    MutexLock lock(mutex_);
    const auto found = conversations_.find(handle);
    if (found == conversations_.end()) return Fail(ESTALE);  // the daemon died with its keys
    conversation = found->second;
  }
  MutexLock lock(conversation->mutex);
  return Ask(*conversation, from);
}

FsStatus Filesystem::Flush(const Caller& caller, Ino ino, uint64_t handle) {
  if (IsPending(ino)) return parts_.blocks->PendingFlush(caller, ino);
  if (IsFile(ino)) return parts_.files->Flush(caller, ino, handle);
  return {};
}

void Filesystem::Release(Ino ino, uint64_t handle) {
  if (IsBlock(ino)) return parts_.blocks->Release(ino, handle);
  if (IsPending(ino)) return parts_.blocks->PendingRelease(ino, handle);
  if (IsFile(ino)) {
    (void)parts_.files->Release(ino, handle);
    return;
  }
  MutexLock lock(mutex_);
  conversations_.erase(handle);
  texts_.erase(handle);
}

FsStatus Filesystem::Fsync(Ino ino, uint64_t handle, bool data_only) {
  if (IsBlock(ino)) return parts_.blocks->Fsync(ino);
  if (IsPending(ino)) return parts_.blocks->PendingFsync(ino);
  if (IsFile(ino)) return parts_.files->Fsync(ino, handle, data_only);
  return {};
}

FsStatus Filesystem::Allocate(Ino ino, uint64_t handle, int mode, uint64_t offset,
                              uint64_t length) {
  if (IsFile(ino)) return parts_.files->Allocate(ino, handle, mode, offset, length);
  if (IsPending(ino)) return parts_.blocks->PendingAllocate(ino, mode, offset, length);
  return Fail(EOPNOTSUPP);
}

FsResult<uint64_t> Filesystem::Seek(Ino ino, uint64_t handle, uint64_t offset, int whence) {
  if (IsFile(ino)) return parts_.files->Seek(ino, handle, offset, whence);
  const FsResult<AttrReply> attr = GetAttr({}, ino);
  if (!attr) return Fail(attr.error().value);
  // No holes: data up to the end, one hole behind it.
  const auto size = static_cast<uint64_t>(attr->attr.st_size);
  if (offset >= size) return Fail(ENXIO);
  return whence == SEEK_HOLE ? size : offset;
}

FsResult<size_t> Filesystem::CopyRange(Ino from, uint64_t from_offset, Ino to, uint64_t to_offset,
                                       size_t length) {
  if (IsFile(from) && IsFile(to)) {
    return parts_.files->CopyRange(from, from_offset, to, to_offset, length);
  }
  return Fail(EOPNOTSUPP);  // the kernel copies by reading and writing
}

// ---- directories

FsStatus Filesystem::OpenDirectory(Ino ino) {
  if (IsFile(ino)) {
    const auto attr = parts_.files->GetAttr(ino);
    if (!attr) return Fail(attr.error().value);
    return S_ISDIR(attr->attr.st_mode) ? FsStatus{} : Fail(ENOTDIR);
  }
  if (IsChain(ino)) return BlockOf(ino) ? FsStatus{} : Fail(Unknown());
  const auto attr = GetAttr({}, ino);
  if (!attr) return Fail(attr.error().value);
  return S_ISDIR(attr->attr.st_mode) ? FsStatus{} : Fail(ENOTDIR);
}

FsStatus Filesystem::ReadDirectory(const Caller& caller, Ino ino, uint64_t cookie, DirSink& sink) {
  (void)caller;
  if (IsFile(ino)) return parts_.files->ReadDirectory(ino, cookie, sink);
  const auto dots = [&](Ino self, Ino parent) {
    EntryReply entry;
    entry.attr.st_mode = S_IFDIR;
    if (cookie < 1) {
      entry.attr.st_ino = self;
      if (!sink.Add(".", entry, 1)) return false;
    }
    if (cookie < 2) {
      entry.attr.st_ino = parent;
      if (!sink.Add("..", entry, 2)) return false;
    }
    return true;
  };
  // Listing promises nothing: what is not leased already is asked again when it is used.
  if (ino == kRootIno) {
    if (!dots(kRootIno, kRootIno)) return {};
    if (cookie < 3 && !sink.Add(".kvcfs", ControlEntry(kControlIno), 3)) return {};
    if (parts_.spaces != nullptr) parts_.spaces->Follow();
    for (const Namespace& space : parts_.namespaces->List()) {
      if (cookie >= 3 + uint64_t{space.id}) continue;
      if (!sink.Add(space.name, NamespaceDirectory(space, NamespaceEntry::kDirectory),
                    3 + uint64_t{space.id})) {
        return {};
      }
    }
    return {};
  }
  if (ino == kControlIno) {
    if (!dots(kControlIno, kRootIno)) return {};
    for (size_t i = cookie < 2 ? 0 : cookie - 2; i < virtual_files_.size(); ++i) {
      if (!sink.Add(virtual_files_[i].name, ControlEntry(kFirstVirtualIno + i), i + 3)) return {};
    }
    return {};
  }
  if (IsChain(ino)) {
    const auto tip = BlockOf(ino);
    if (!tip) return {};  // it went while it was listed
    const auto space = parts_.namespaces->Get(tip->ns);
    if (!space) return {};
    if (!dots(ino, NamespaceIno(space->id, NamespaceEntry::kDirectory))) return {};
    parts_.blocks->ListChain(tip->ns, tip->key, cookie < 2 ? 0 : cookie - 2,
                             [&](const BlockView& block, uint64_t next) {
                               return sink.Add(ChainEntryName(block.ordinal, block.key),
                                               BlockEntry(block, *space), next + 2);
                             });
    return {};
  }
  NamespaceEntry entry{};
  const auto space = NamespaceOf(ino, &entry);
  if (!space) return Fail(ENOTDIR);
  const Ino self = NamespaceIno(space->id, NamespaceEntry::kDirectory);
  switch (entry) {
    case NamespaceEntry::kDirectory:
      return ReadNamespace(*space, cookie, sink);
    case NamespaceEntry::kRoot:
      (void)dots(ino, self);
      return {};
    case NamespaceEntry::kByKey:
      if (!dots(ino, self)) return {};
      parts_.blocks->ListBlocks(
          space->id, cookie < 2 ? 0 : cookie - 2, [&](const BlockView& block, uint64_t next) {
            return sink.Add(block.key.ToHex(), BlockEntry(block, *space), next + 2);
          });
      return {};
    case NamespaceEntry::kMatch:
      break;
  }
  return Fail(ENOTDIR);
}

FsStatus Filesystem::ReadNamespace(const Namespace& space, uint64_t cookie, DirSink& sink) {
  EntryReply dot;
  dot.attr.st_mode = S_IFDIR;
  dot.attr.st_ino = NamespaceIno(space.id, NamespaceEntry::kDirectory);
  if (cookie < 1 && !sink.Add(".", dot, 1)) return {};
  dot.attr.st_ino = kRootIno;
  if (cookie < 2 && !sink.Add("..", dot, 2)) return {};
  uint64_t next = 3;
  for (const char* name : {"root", "by-key", "match", "files"}) {
    if (cookie < next) {
      const auto entry = LookupInNamespace(space, name);
      if (entry && !sink.Add(name, *entry, next)) return {};
    }
    ++next;
  }
  return parts_.blocks->ListLeaves(
      space.id, cookie < kNamesBeforeTips ? 0 : cookie - kNamesBeforeTips,
      [&](const BlockView& tip, uint64_t after) {
        return sink.Add(tip.key.ToHex(), ChainEntry(tip, space), after + kNamesBeforeTips);
      });
}

FsStatus Filesystem::FsyncDirectory(Ino ino) {
  if (IsFile(ino)) return parts_.files->FsyncDirectory(ino);
  return {};
}

// ---- xattrs

FsResult<std::string> Filesystem::GetXattr(Ino ino, const std::string& name) {
  if (IsFile(ino)) return parts_.files->GetXattr(ino, name);
  if (!name.starts_with(kXattrPrefix)) return Fail(ENODATA);
  const std::string_view what = std::string_view(name).substr(kXattrPrefix.size());
  if (IsBlock(ino)) {
    const auto block = BlockOf(ino);
    if (!block) return Fail(ENOENT);
    if (what == "key") return block->key.ToHex();
    if (what == "parent") return block->parent.IsZero() ? std::string() : block->parent.ToHex();
    if (what == "ordinal") return fmt::format("{}", block->ordinal);
    if (what == "tier") return std::string(TierName(block->tier));
    if (what == "bytes") return fmt::format("{}", block->length);
    if (what == "hits") return fmt::format("{}", block->hits);
    if (what == "lease_ms") return fmt::format("{}", block->lease_ms);
    if (what == "crc32c") {
      const auto crc = parts_.blocks->Crc(ino);
      if (!crc) return Fail(crc.error().value);
      return fmt::format("{}", *crc);
    }
    return Fail(ENODATA);
  }
  NamespaceEntry entry{};
  if (parts_.spaces != nullptr) parts_.spaces->Follow();
  const auto space = NamespaceOf(ino, &entry);
  if (space && entry == NamespaceEntry::kDirectory) {
    if (what == "block_bytes") return fmt::format("{}", space->block_bytes);
    if (what == "quota_bytes") return fmt::format("{}", space->quota_bytes);
    if (what == "durability") return std::string(space->sync ? "sync" : "async");
    if (what == "replicas") return fmt::format("{}", space->replicas);
  }
  return Fail(ENODATA);
}

FsResult<std::vector<std::string>> Filesystem::ListXattrs(Ino ino) {
  if (IsFile(ino)) return parts_.files->ListXattrs(ino);
  std::vector<std::string> names;
  NamespaceEntry entry{};
  if (IsBlock(ino)) {
    for (const char* what :
         {"key", "parent", "ordinal", "tier", "bytes", "hits", "lease_ms", "crc32c"}) {
      names.push_back(std::string(kXattrPrefix) + what);
    }
  } else if (NamespaceOf(ino, &entry) && entry == NamespaceEntry::kDirectory) {
    for (const char* what : {"block_bytes", "quota_bytes", "durability", "replicas"}) {
      names.push_back(std::string(kXattrPrefix) + what);
    }
  }
  return names;
}

FsStatus Filesystem::SetXattr(const Caller& caller, Ino ino, const std::string& name,
                              const std::string& value, int flags) {
  if (IsFile(ino)) return parts_.files->SetXattr(caller, ino, name, value, flags);
  NamespaceEntry entry{};
  const auto space = NamespaceOf(ino, &entry);
  if (!space || entry != NamespaceEntry::kDirectory) return Fail(EPERM);
  if ((flags & XATTR_CREATE) != 0) return Fail(EEXIST);
  return SetNamespaceXattr(*space, name, value);
}

FsStatus Filesystem::SetNamespaceXattr(Namespace space, const std::string& name,
                                       const std::string& value) {
  if (!name.starts_with(kXattrPrefix)) return Fail(EOPNOTSUPP);
  const std::string_view what = std::string_view(name).substr(kXattrPrefix.size());
  if (what == "durability") {
    if (value != "sync" && value != "async") return Fail(EINVAL);
    space.sync = value == "sync";
    return UpdateNamespace(space);
  }
  const Result<uint64_t> number = ParseDecimal(value);
  if (what == "block_bytes") {
    if (!number.ok() || *number == 0 || *number > kBlockBytesMax) return Fail(EINVAL);
    if (*number == space.block_bytes) return {};
    if (!parts_.blocks->NamespaceIsEmpty(space.id)) return Fail(EBUSY);
    space.block_bytes = *number;
  } else if (what == "quota_bytes") {
    if (!number.ok()) return Fail(EINVAL);
    space.quota_bytes = *number;
  } else if (what == "replicas") {
    if (!number.ok() || *number == 0 || *number > 16) return Fail(EINVAL);
    space.replicas = static_cast<uint32_t>(*number);
  } else {
    return Fail(EOPNOTSUPP);
  }
  return UpdateNamespace(space);
}

FsStatus Filesystem::RemoveXattr(const Caller& caller, Ino ino, const std::string& name) {
  if (IsFile(ino)) return parts_.files->RemoveXattr(caller, ino, name);
  return Fail(EPERM);
}

// ---- longest prefix

FsResult<OpenReply> Filesystem::OpenConversation(NamespaceId ns) {
  auto conversation = std::make_shared<Conversation>();
  conversation->ns = ns;
  MutexLock lock(mutex_);
  OpenReply open;
  open.handle = next_handle_++;
  open.mode = OpenMode::kDirect;
  conversations_[open.handle] = std::move(conversation);
  return open;
}

FsResult<size_t> Filesystem::Ask(Conversation& conversation, std::span<const std::byte> text) {
  if (conversation.answering) {
    conversation.answering = false;
    conversation.keys.clear();
    conversation.flags = 0;
    conversation.partial.clear();
  }
  std::string_view rest(reinterpret_cast<const char*>(text.data()), text.size());
  // All or nothing: a malformed line takes this write back.
  const size_t keys_before = conversation.keys.size();
  const std::string partial_before = conversation.partial;
  const auto refuse = [&] {
    conversation.keys.resize(keys_before);
    conversation.partial = partial_before;
    return Fail(EINVAL);
  };
  while (!rest.empty()) {
    const size_t end = rest.find('\n');
    conversation.partial.append(rest.substr(0, end));
    if (conversation.partial.size() > BlockKey::kHexDigits) return refuse();
    if (end == std::string_view::npos) break;
    rest.remove_prefix(end + 1);
    const std::string line = std::exchange(conversation.partial, {});
    if (line.empty()) continue;
    if (line == "!prefetch") {
      conversation.flags |= BlockStore::kMatchPrefetch;
    } else if (line == "!nolease") {
      conversation.flags |= BlockStore::kMatchNoLease;
    } else if (const auto key = BlockKey::FromHex(line);
               key && conversation.keys.size() < kMatchKeysMax) {
      conversation.keys.push_back(*key);
    } else {
      return refuse();
    }
  }
  return text.size();
}

std::string Filesystem::Answer(Conversation& conversation) {
  const MatchAnswer answer =
      parts_.blocks->Match(conversation.ns, conversation.keys, conversation.flags);
  std::string text = fmt::format("{} {}\n", answer.count, answer.lease_ms);
  for (const BlockView& block : answer.blocks) {
    fmt::format_to(std::back_inserter(text), "{} {} {} {}\n", block.ordinal, block.key.ToHex(),
                   TierName(block.tier), block.length);
  }
  return text;
}

FsResult<std::string> Filesystem::Ioctl(const Caller& caller, Ino ino, unsigned command,
                                        std::span<const std::byte> in, size_t out_bytes) {
  NamespaceEntry entry{};
  const bool drop = command == static_cast<unsigned>(KVCFS_IOC_DROP);
  const bool match = command == static_cast<unsigned>(KVCFS_IOC_MATCH);
  if (!drop && !match) return Fail(ENOTTY);
  const auto space = NamespaceOf(ino, &entry);
  if (!space || entry != NamespaceEntry::kDirectory) return Fail(ENOTTY);
  if (match) {
    kvcfs_match question;
    if (in.size() < sizeof question || out_bytes < sizeof question) return Fail(EINVAL);
    std::memcpy(&question, in.data(), sizeof question);
    constexpr uint32_t kFlags = KVCFS_MATCH_PREFETCH | KVCFS_MATCH_NOLEASE;
    if (question.request.count == 0 || question.request.count > KVCFS_MATCH_KEYS_MAX ||
        (question.request.flags & ~kFlags) != 0) {
      return Fail(EINVAL);
    }
    static_assert(KVCFS_MATCH_PREFETCH == BlockStore::kMatchPrefetch &&
                  KVCFS_MATCH_NOLEASE == BlockStore::kMatchNoLease);
    std::vector<BlockKey> keys(question.request.count);
    std::memcpy(keys.data(), question.request.keys, keys.size() * sizeof(BlockKey));
    static_assert(sizeof(BlockKey) == KVCFS_KEY_BYTES);
    const MatchAnswer answer = parts_.blocks->Match(space->id, keys, question.request.flags);
    kvcfs_match out{};
    out.reply.count = answer.count;
    out.reply.lease_ms = answer.lease_ms;
    for (size_t i = 0; i < answer.blocks.size(); ++i) {
      out.reply.tiers[i] = static_cast<uint8_t>(answer.blocks[i].tier);
      out.reply.bytes[i] = static_cast<uint32_t>(answer.blocks[i].length);
    }
    return std::string(reinterpret_cast<const char*>(&out), sizeof out);
  }
  kvcfs_drop order;
  if (in.size() < sizeof order || out_bytes < sizeof order) return Fail(EINVAL);
  std::memcpy(&order, in.data(), sizeof order);
  if ((order.flags & ~KVCFS_DROP_ALL) != 0) return Fail(EINVAL);
  if (caller.uid != 0 && caller.uid != space->uid) return Fail(EACCES);
  order.dropped_blocks = order.dropped_files = 0;
  if ((order.flags & KVCFS_DROP_ALL) != 0) {
    const uint64_t files_before = parts_.files->Stats().files;
    order.dropped_blocks = parts_.blocks->DropNamespace(space->id);
    const FsStatus cleared = parts_.files->ClearRoot(space->files_root);
    if (!cleared) return Fail(cleared.error().value);
    const uint64_t files_after = parts_.files->Stats().files;
    order.dropped_files = files_before > files_after ? files_before - files_after : 0;
  } else {
    BlockKey key;
    std::memcpy(key.bytes.data(), order.key, sizeof order.key);
    const FsStatus dropped = parts_.blocks->Drop(space->id, key, &order.dropped_blocks);
    if (!dropped) return Fail(dropped.error().value);
  }
  return std::string(reinterpret_cast<const char*>(&order), sizeof order);
}

}  // namespace kvcfs::fs
