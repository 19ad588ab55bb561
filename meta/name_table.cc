#include "meta/name_table.h"

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include <sys/stat.h>
#include <sys/xattr.h>

#include "base/log.h"
#include "rdma/wire.h"

namespace kvcfs::meta {
namespace {

constexpr char kKind = 'f';
constexpr size_t kPrefixBytes = 17;
constexpr size_t kNameBytesMax = 255;
constexpr size_t kListMax = 512;
constexpr size_t kListBytesMax = 256u << 10;
constexpr uint64_t kRequestPlaces = 16384;
// How long a file that another host's replaced may be renamed by who wrote it.
constexpr int64_t kKeptNanos = 60'000'000'000;
constexpr int kReapedAtOnce = 4;
constexpr uint64_t kFirstCookie = 16;
constexpr int kDepthMax = 4096;

void AppendNumber(std::string& key, uint64_t number) {
  for (int shift = 56; shift >= 0; shift -= 8) key.push_back(static_cast<char>(number >> shift));
}
void AppendId(std::string& key, const FileId& id) {
  AppendNumber(key, id.high);
  AppendNumber(key, id.low);
}
uint64_t NumberAt(std::string_view key, size_t at) {
  uint64_t number = 0;
  for (size_t i = at; i < at + 8 && i < key.size(); ++i)
    number = number << 8 | static_cast<uint8_t>(key[i]);
  return number;
}

std::string PrefixOf(const SpaceId& space) {
  std::string key(1, kKind);
  AppendNumber(key, space.high);
  AppendNumber(key, space.low);
  return key;
}

std::string Text(rdma::Writer& writer) {
  const rdma::Bytes bytes = writer.Take();
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}
std::span<const std::byte> BytesOf(std::string_view text) {
  return std::as_bytes(std::span(text));
}

bool IsDirectory(const SharedFile& file) {
  return (file.mode & S_IFMT) == S_IFDIR;
}
bool IsName(std::string_view name) {
  return !name.empty() && name.size() <= kNameBytesMax && name != "." && name != ".." &&
         name.find('/') == std::string_view::npos && name.find('\0') == std::string_view::npos;
}

struct Entry {
  FileId id;
  uint64_t cookie = 0;
};

}  // namespace

// One request: what it read, and what it is going to change.
class NameTable::Operation {
 public:
  Operation(NameTable& table, int64_t now_nanos) : table_(table), now_(now_nanos) {}

  NameReply Do(const NameRequest& request) {
    switch (request.op) {
      case NameOp::kLookup:
        Lookup(request);
        break;
      case NameOp::kGet:
        if (StoredFile* stored = Find(request.file.id)) reply_.file = stored->file;
        break;
      case NameOp::kList:
        List(request);
        break;
      case NameOp::kMake:
        Make(request);
        break;
      case NameOp::kPublish:
        Publish(request);
        break;
      case NameOp::kLink:
        Link(request);
        break;
      case NameOp::kUnlink:
      case NameOp::kRmdir:
        Remove(request);
        break;
      case NameOp::kRename:
        Rename(request);
        break;
      case NameOp::kSetAttr:
        SetAttr(request);
        break;
      case NameOp::kSetXattr:
      case NameOp::kRemoveXattr:
        ChangeXattr(request);
        break;
      case NameOp::kMissing:
        Missing(request);
        break;
      default:
        reply_.code = Code::kUnsupported;
    }
    return std::move(reply_);
  }

  std::vector<NameRecord> Records() {
    for (const FileId& id : changed_) {
      const auto& stored = files_.at(id);
      if (stored) {
        Put(FileKey(id), EncodeStored(*stored));
      } else {
        Delete(FileKey(id));
      }
    }
    return std::move(records_);
  }
  void Reap() {
    const std::string prefix = table_.prefix_ + 'k';
    int reaped = 0;
    for (const auto cursor = table_.store_.Seek(prefix);
         cursor->Valid() && cursor->key().starts_with(prefix) && reaped < kReapedAtOnce;
         cursor->Next(), ++reaped) {
      if (NumberAt(cursor->key(), prefix.size()) > static_cast<uint64_t>(now_)) break;
      const FileId id{NumberAt(cursor->key(), prefix.size() + 8),
                      NumberAt(cursor->key(), prefix.size() + 16)};
      const StoredFile* stored = Peek(id);
      if (stored != nullptr && stored->file.links == 0 && stored->kept_until_nanos <= now_) {
        Erase(id);
      }
      Delete(std::string(cursor->key()));
    }
  }

 private:
  // ---- records
  std::string FileKey(const FileId& id) const {
    std::string key = table_.prefix_ + 'i';
    AppendId(key, id);
    return key;
  }
  std::string NameKey(const FileId& directory, std::string_view name) const {
    std::string key = table_.prefix_ + 'n';
    AppendId(key, directory);
    return key.append(name);
  }
  std::string ListPrefix(const FileId& directory) const {
    std::string key = table_.prefix_ + 'd';
    AppendId(key, directory);
    return key;
  }
  std::string ListKey(const FileId& directory, uint64_t cookie) const {
    std::string key = ListPrefix(directory);
    AppendNumber(key, cookie);
    return key;
  }
  void Put(std::string key, std::string value) {
    records_.push_back({std::move(key), std::move(value), false});
  }
  void Delete(std::string key) { records_.push_back({std::move(key), {}, true}); }

  bool Failed(const Error& error) {
    KVC_LOG(Error, "a record of names cannot be read", "error={}", LogValue(error.text));
    reply_.code = Code::kIo;
    return false;
  }
  bool Fail(NameError error) {
    if (reply_.error == NameError::kNone) reply_.error = error;
    return false;
  }

  // Null: there is none (or it cannot be read).
  StoredFile* Peek(const FileId& id) {
    const auto known = files_.find(id);
    if (known != files_.end()) return known->second ? &*known->second : nullptr;
    auto bytes = table_.store_.Get(FileKey(id));
    std::optional<StoredFile> stored;
    if (!bytes.ok()) {
      Failed(bytes.error());
      return nullptr;
    }
    if (*bytes) {
      auto decoded = DecodeStored(**bytes);
      if (!decoded.ok()) {
        Failed(decoded.error());
        return nullptr;
      }
      stored = std::move(*decoded);
    } else if (id == kRootFile) {
      stored.emplace();
      stored->file.id = kRootFile;
      stored->file.mode = S_IFDIR | 0755;
      stored->file.links = 2;
    }
    const auto at = files_.emplace(id, std::move(stored)).first;
    return at->second ? &*at->second : nullptr;
  }
  StoredFile* Find(const FileId& id) {
    StoredFile* stored = Peek(id);
    if (stored == nullptr) Fail(NameError::kNotFound);
    return stored;
  }
  StoredFile* FindDirectory(const FileId& id) {
    StoredFile* stored = Find(id);
    if (stored == nullptr) return nullptr;
    if (IsDirectory(stored->file)) return stored;
    Fail(NameError::kNotDirectory);
    return nullptr;
  }
  void Change(StoredFile* stored) {
    ++stored->file.change;
    stored->file.ctime_nanos = std::max(stored->file.ctime_nanos + 1, now_);
    changed_.insert(stored->file.id);
  }
  void Touch(StoredFile* directory) {
    Change(directory);
    directory->file.mtime_nanos = directory->file.ctime_nanos;
  }
  void Erase(const FileId& id) {
    files_[id].reset();
    changed_.insert(id);
  }

  std::optional<Entry> EntryOf(const FileId& directory, const std::string& name) {
    const auto bytes = table_.store_.Get(NameKey(directory, name));
    if (!bytes.ok()) {
      Failed(bytes.error());
      return std::nullopt;
    }
    if (!*bytes) return std::nullopt;
    rdma::Reader reader(BytesOf(**bytes));
    Entry entry;
    entry.id.high = reader.U64();
    entry.id.low = reader.U64();
    entry.cookie = reader.U64();
    if (!reader.Finished()) {
      Failed({Code::kCorrupt, "a name"});
      return std::nullopt;
    }
    return entry;
  }
  void AddEntry(const FileId& directory, const std::string& name, const FileId& id,
                uint64_t cookie) {
    if (cookie == 0) cookie = table_.state_.next_cookie++;
    rdma::Writer writer;
    writer.U64(id.high).U64(id.low).U64(cookie);
    Put(NameKey(directory, name), Text(writer));
    writer = {};
    writer.U64(id.high).U64(id.low).Text(name);
    Put(ListKey(directory, cookie), Text(writer));
  }
  void RemoveEntry(const FileId& directory, const std::string& name, uint64_t cookie) {
    Delete(NameKey(directory, name));
    Delete(ListKey(directory, cookie));
  }
  bool IsEmpty(const FileId& directory) {
    const std::string prefix = ListPrefix(directory);
    const auto cursor = table_.store_.Seek(prefix);
    return !(cursor->Valid() && cursor->key().starts_with(prefix));
  }

  // ---- names of files
  static void AddName(StoredFile* file, const FileId& directory, const std::string& name) {
    file->names.emplace_back(directory, name);
    file->file.links = static_cast<uint32_t>(file->names.size());
  }
  static void DropName(StoredFile* file, const FileId& directory, const std::string& name) {
    const auto at = std::find(file->names.begin(), file->names.end(), std::pair(directory, name));
    if (at != file->names.end()) file->names.erase(at);
    file->file.links = static_cast<uint32_t>(file->names.size());
  }
  // A file lost a name; without any it goes, or stays for a while.
  void Unname(StoredFile* file, const FileId& directory, const std::string& name, bool keep) {
    DropName(file, directory, name);
    Change(file);
    if (file->file.links > 0) return;
    reply_.removed.push_back(file->file);
    if (!keep) return Erase(file->file.id);
    file->kept_until_nanos = now_ + kKeptNanos;
    std::string key = table_.prefix_ + 'k';
    AppendNumber(key, static_cast<uint64_t>(file->kept_until_nanos));
    AppendId(key, file->file.id);
    Put(std::move(key), "");
  }

  // ---- requests
  void Lookup(const NameRequest& request) {
    if (FindDirectory(request.directory) == nullptr) return;
    const auto entry = EntryOf(request.directory, request.name);
    if (!entry) {
      Fail(NameError::kNotFound);
      return;
    }
    if (const StoredFile* stored = Find(entry->id)) reply_.file = stored->file;
  }

  void List(const NameRequest& request) {
    const StoredFile* directory = FindDirectory(request.directory);
    if (directory == nullptr) return;
    reply_.file = directory->file;
    const std::string prefix = ListPrefix(request.directory);
    const size_t limit = std::min<size_t>(request.limit, kListMax);
    size_t bytes = 0;
    const auto cursor = table_.store_.Seek(ListKey(request.directory, request.cookie + 1));
    for (; cursor->Valid() && cursor->key().starts_with(prefix); cursor->Next()) {
      if (reply_.entries.size() >= limit || bytes > kListBytesMax) return;
      rdma::Reader reader(BytesOf(cursor->value()));
      FileId id;
      id.high = reader.U64();
      id.low = reader.U64();
      std::string name = reader.Text();
      const StoredFile* stored = reader.Finished() ? Peek(id) : nullptr;
      if (stored == nullptr) continue;
      bytes += name.size() + EncodeStored(*stored).size();
      reply_.entries.push_back(
          {std::move(name), NumberAt(cursor->key(), prefix.size()), stored->file});
      files_.erase(id);
    }
    reply_.done = true;
  }

  void Make(const NameRequest& request) {
    StoredFile* directory = FindDirectory(request.directory);
    if (directory == nullptr) return;
    if (!IsName(request.name) || !request.file.id.valid()) {
      Fail(NameError::kInvalid);
      return;
    }
    if (EntryOf(request.directory, request.name) || Peek(request.file.id) != nullptr) {
      Fail(NameError::kExists);
      return;
    }
    StoredFile made;
    made.file = request.file;
    if ((directory->file.mode & S_ISGID) != 0) {
      made.file.gid = directory->file.gid;
      if (IsDirectory(made.file)) made.file.mode |= S_ISGID;
    }
    made.file.content = {};
    made.file.change = 1;
    if (IsDirectory(made.file)) {
      made.file.parent = request.directory;
      made.file.links = 2;
      ++directory->file.links;
    } else {
      AddName(&made, request.directory, request.name);
    }
    reply_.file = made.file;
    changed_.insert(made.file.id);
    files_[made.file.id] = std::move(made);
    AddEntry(request.directory, request.name, request.file.id, 0);
    Touch(directory);
  }

  // Takes what is under the name away for another. False: it may not go.
  bool Replace(const NameRequest& request, const FileId& directory, const std::string& name,
               const Entry& there, bool by_directory, bool keep) {
    StoredFile* old = Peek(there.id);
    if (old == nullptr) return reply_.code == Code::kOk;
    if ((request.flags & kNameNoReplace) != 0) return Fail(NameError::kExists);
    if (!IsDirectory(old->file)) {
      if (by_directory) return Fail(NameError::kNotDirectory);
      Unname(old, directory, name, keep);
      return true;
    }
    if (!by_directory) return Fail(NameError::kIsDirectory);
    if (!IsEmpty(there.id)) return Fail(NameError::kNotEmpty);
    Erase(there.id);
    --Peek(directory)->file.links;
    return true;
  }

  void Publish(const NameRequest& request) {
    if (!request.file.id.valid() || (request.file.mode & S_IFMT) != S_IFREG) {
      Fail(NameError::kInvalid);
      return;
    }
    if (StoredFile* known = Peek(request.file.id)) {
      SharedFile& file = known->file;
      if (file.content != request.file.content) {
        if (file.content.valid()) reply_.removed.push_back(file);
        file.content = request.file.content;
        file.size = request.file.size;
        file.mtime_nanos = request.file.mtime_nanos;
        Change(known);
      }
      reply_.file = file;
      return;
    }
    // A file that was there and went meanwhile has no name to come back under.
    if (reply_.code != Code::kOk) return;
    if (request.name.empty()) {
      Fail(NameError::kNotFound);
      return;
    }
    StoredFile* directory = FindDirectory(request.directory);
    if (directory == nullptr) return;
    if (!IsName(request.name)) {
      Fail(NameError::kInvalid);
      return;
    }
    const auto there = EntryOf(request.directory, request.name);
    if (there && !Replace(request, request.directory, request.name, *there, false,
                          (request.flags & kNameKeep) != 0)) {
      return;
    }
    StoredFile made;
    made.file = request.file;
    made.file.change = 1;
    if (there && (request.flags & kNameKeep) != 0) made.replaced = there->id;
    AddName(&made, request.directory, request.name);
    reply_.file = made.file;
    changed_.insert(made.file.id);
    files_[made.file.id] = std::move(made);
    AddEntry(request.directory, request.name, request.file.id, there ? there->cookie : 0);
    Touch(directory);
  }

  void Link(const NameRequest& request) {
    StoredFile* directory = FindDirectory(request.directory);
    if (directory == nullptr) return;
    StoredFile* file = Find(request.file.id);
    if (file == nullptr) return;
    if (IsDirectory(file->file)) {
      Fail(NameError::kDenied);
    } else if (file->file.links == 0) {
      Fail(NameError::kNotFound);
    } else if (!IsName(request.name)) {
      Fail(NameError::kInvalid);
    } else if (EntryOf(request.directory, request.name)) {
      Fail(NameError::kExists);
    } else if (reply_.code == Code::kOk) {
      AddName(file, request.directory, request.name);
      AddEntry(request.directory, request.name, file->file.id, 0);
      Change(file);
      Touch(directory);
      reply_.file = file->file;
    }
  }

  void Remove(const NameRequest& request) {
    StoredFile* directory = FindDirectory(request.directory);
    if (directory == nullptr) return;
    const auto entry = EntryOf(request.directory, request.name);
    if (!entry) {
      Fail(NameError::kNotFound);
      return;
    }
    StoredFile* file = Peek(entry->id);
    if (reply_.code != Code::kOk) return;
    const bool is_directory = file != nullptr && IsDirectory(file->file);
    if (request.op == NameOp::kUnlink && is_directory) {
      Fail(NameError::kIsDirectory);
      return;
    }
    if (request.op == NameOp::kRmdir) {
      if (!is_directory) {
        Fail(NameError::kNotDirectory);
        return;
      }
      if (!IsEmpty(entry->id)) {
        Fail(NameError::kNotEmpty);
        return;
      }
      --directory->file.links;
      Erase(entry->id);
    } else if (file != nullptr) {
      Unname(file, request.directory, request.name, false);
      reply_.file = file->file;
    }
    RemoveEntry(request.directory, request.name, entry->cookie);
    Touch(directory);
  }

  bool IsBelow(FileId directory, const FileId& top) {
    for (int depth = 0; depth < kDepthMax; ++depth) {
      if (directory == top) return true;
      const StoredFile* stored = directory.valid() ? Peek(directory) : nullptr;
      if (stored == nullptr) return false;
      directory = stored->file.parent;
    }
    return true;
  }

  void Rename(const NameRequest& request) {
    StoredFile* from_dir = FindDirectory(request.directory);
    StoredFile* to_dir = from_dir == nullptr ? nullptr : FindDirectory(request.to_directory);
    if (to_dir == nullptr) return;
    if (!IsName(request.to_name)) {
      Fail(NameError::kInvalid);
      return;
    }
    auto from = EntryOf(request.directory, request.name);
    const auto to = EntryOf(request.to_directory, request.to_name);
    // Another host's file may have taken the name: then that stays, and who asks means its own.
    if (request.file.id.valid() && (!from || from->id != request.file.id)) {
      const StoredFile* own = Peek(request.file.id);
      const bool kept = own != nullptr && own->file.links == 0 && own->kept_until_nanos > now_;
      if (kept) from = Entry{request.file.id, 0};
    }
    if (reply_.code != Code::kOk) return;
    StoredFile* source = from ? Peek(from->id) : nullptr;
    if (source == nullptr) {
      Fail(NameError::kNotFound);
      return;
    }
    const bool is_directory = IsDirectory(source->file);
    const bool moves = request.directory != request.to_directory;
    if (is_directory && moves && IsBelow(request.to_directory, from->id)) {
      Fail(NameError::kInvalid);
      return;
    }
    if ((request.flags & kNameExchange) != 0) return Exchange(request, *from, to);
    if (to && to->id == from->id) {
      if ((request.flags & kNameNoReplace) != 0) {
        Fail(NameError::kExists);
      }
      reply_.file = source->file;
      return;
    }
    if (to && !Replace(request, request.to_directory, request.to_name, *to, is_directory, false)) {
      return;
    }
    if (from->cookie != 0) {
      RemoveEntry(request.directory, request.name, from->cookie);
      Return(source, request.directory, request.name);
    }
    AddEntry(request.to_directory, request.to_name, from->id, to ? to->cookie : 0);
    if (is_directory) {
      source->file.parent = request.to_directory;
      if (moves) {
        --from_dir->file.links;
        ++to_dir->file.links;
      }
    } else {
      if (from->cookie != 0) DropName(source, request.directory, request.name);
      AddName(source, request.to_directory, request.to_name);
      source->kept_until_nanos = 0;
    }
    Change(source);
    Touch(from_dir);
    if (moves) Touch(to_dir);
    reply_.file = source->file;
  }

  // Two hosts wrote one (temporary) name, and the one that was last renames its file: the other's
  // is what the name means again.
  void Return(StoredFile* renamed, const FileId& directory, const std::string& name) {
    const FileId id = std::exchange(renamed->replaced, {});
    StoredFile* kept = id.valid() ? Peek(id) : nullptr;
    if (kept == nullptr || kept->file.links > 0 || kept->kept_until_nanos <= now_) return;
    kept->kept_until_nanos = 0;
    AddName(kept, directory, name);
    AddEntry(directory, name, id, 0);
    Change(kept);
  }

  void Exchange(const NameRequest& request, const Entry& from, const std::optional<Entry>& to) {
    StoredFile* one = Peek(from.id);
    StoredFile* other = to ? Peek(to->id) : nullptr;
    if (other == nullptr || from.cookie == 0) {
      Fail(NameError::kNotFound);
      return;
    }
    if (one == other) return;
    const bool moves = request.directory != request.to_directory;
    if (IsDirectory(other->file) && moves && IsBelow(request.directory, to->id)) {
      Fail(NameError::kInvalid);
      return;
    }
    const auto move = [&](StoredFile* file, const FileId& old_dir, const std::string& old_name,
                          const FileId& new_dir, const std::string& new_name) {
      if (IsDirectory(file->file)) {
        file->file.parent = new_dir;
        if (moves) {
          --Peek(old_dir)->file.links;
          ++Peek(new_dir)->file.links;
        }
      } else {
        DropName(file, old_dir, old_name);
        AddName(file, new_dir, new_name);
      }
      Change(file);
    };
    move(one, request.directory, request.name, request.to_directory, request.to_name);
    move(other, request.to_directory, request.to_name, request.directory, request.name);
    AddEntry(request.to_directory, request.to_name, from.id, to->cookie);
    AddEntry(request.directory, request.name, to->id, from.cookie);
    Touch(Peek(request.directory));
    if (moves) Touch(Peek(request.to_directory));
    reply_.file = one->file;
  }

  void SetAttr(const NameRequest& request) {
    StoredFile* stored = Find(request.file.id);
    if (stored == nullptr) return;
    SharedFile& file = stored->file;
    if ((request.flags & kNameMode) != 0)
      file.mode = (file.mode & S_IFMT) | (request.file.mode & 07777);
    if ((request.flags & kNameUid) != 0) file.uid = request.file.uid;
    if ((request.flags & kNameGid) != 0) file.gid = request.file.gid;
    if ((request.flags & kNameAtime) != 0) file.atime_nanos = request.file.atime_nanos;
    if ((request.flags & kNameMtime) != 0) file.mtime_nanos = request.file.mtime_nanos;
    Change(stored);
    reply_.file = file;
  }

  void ChangeXattr(const NameRequest& request) {
    StoredFile* stored = Find(request.file.id);
    if (stored == nullptr) return;
    auto& all = stored->file.xattrs;
    const auto at = std::lower_bound(
        all.begin(), all.end(), request.name,
        [](const auto& each, const std::string& name) { return each.first < name; });
    const bool there = at != all.end() && at->first == request.name;
    if (request.op == NameOp::kRemoveXattr) {
      if (!there) {
        Fail(NameError::kNoAttribute);
        return;
      }
      all.erase(at);
    } else {
      if (there && (request.flags & XATTR_CREATE) != 0) {
        Fail(NameError::kExists);
        return;
      }
      if (!there && (request.flags & XATTR_REPLACE) != 0) {
        Fail(NameError::kNoAttribute);
        return;
      }
      if (there) {
        at->second = request.value;
      } else {
        all.insert(at, {request.name, request.value});
      }
    }
    Change(stored);
    reply_.file = stored->file;
  }

  void Missing(const NameRequest& request) {
    StoredFile* stored = Find(request.file.id);
    if (stored == nullptr) return;
    if (!request.file.content.valid() || stored->file.content != request.file.content) {
      Fail(NameError::kExists);  // another version is there
      return;
    }
    for (const auto& [directory, name] : stored->names) {
      const auto entry = EntryOf(directory, name);
      if (!entry || entry->id != request.file.id) continue;
      RemoveEntry(directory, name, entry->cookie);
      if (StoredFile* above = Peek(directory)) Touch(above);
    }
    Erase(request.file.id);
  }

  NameTable& table_;
  const int64_t now_;
  NameReply reply_;
  std::map<FileId, std::optional<StoredFile>> files_;  // as they will be
  std::set<FileId> changed_;
  std::vector<NameRecord> records_;
};

NameTable::NameTable(MetaStore* store, const SpaceId& space)
    : store_(*store), prefix_(PrefixOf(space)) {}

Status NameTable::Load() {
  state_ = {};
  state_.next_cookie = kFirstCookie;
  KVC_TRY_ASSIGN(const auto bytes, store_.Get(prefix_ + 'S'));
  if (!bytes) return {};
  rdma::Reader reader(BytesOf(*bytes));
  state_.term = reader.U64();
  state_.sequence = reader.U64();
  state_.next_cookie = reader.U64();
  if (!reader.Finished()) {
    state_ = {};
    return Error{Code::kCorrupt, "the state of a namespace's names"};
  }
  return {};
}

void NameTable::AddState(std::vector<NameRecord>* records) const {
  rdma::Writer writer;
  writer.U64(state_.term).U64(state_.sequence).U64(state_.next_cookie);
  records->push_back({prefix_ + 'S', Text(writer), false});
}

void NameTable::Begin(uint64_t term, std::vector<NameRecord>* records) {
  state_.term = term;
  ++state_.sequence;
  AddState(records);
}

NameReply NameTable::Ask(const NameRequest& request) {
  return Operation(*this, 0).Do(request);
}

std::optional<NameReply> NameTable::DoneBefore(const FileId& request) {
  std::string key = prefix_ + 'R';
  AppendNumber(key, MixHash(request.high, request.low) % kRequestPlaces);
  const auto bytes = store_.Get(key);
  if (!bytes.ok() || !*bytes) return std::nullopt;
  rdma::Reader reader(BytesOf(**bytes));
  const FileId known{reader.U64(), reader.U64()};
  if (known != request) return std::nullopt;
  auto reply = DecodeNameReply(reader.Sized());
  if (!reader.Finished() || !reply.ok()) return std::nullopt;
  return std::move(*reply);
}

NameReply NameTable::Apply(const NameRequest& request, int64_t now_nanos,
                           std::vector<NameRecord>* records) {
  if (auto before = DoneBefore(request.request)) return std::move(*before);
  const uint64_t next_cookie = state_.next_cookie;
  Operation operation(*this, now_nanos);
  NameReply reply = operation.Do(request);
  if (reply.code != Code::kOk || reply.error != NameError::kNone) {
    state_.next_cookie = next_cookie;
    reply.removed.clear();
    return reply;
  }
  operation.Reap();
  *records = operation.Records();
  if (records->empty()) return reply;
  std::string key = prefix_ + 'R';
  AppendNumber(key, MixHash(request.request.high, request.request.low) % kRequestPlaces);
  rdma::Writer writer;
  writer.U64(request.request.high).U64(request.request.low).Sized(Encode(reply));
  records->push_back({std::move(key), Text(writer), false});
  ++state_.sequence;
  AddState(records);
  return reply;
}

Status NameTable::Write(const std::vector<NameRecord>& records) {
  MetaBatch batch;
  for (const NameRecord& record : records) {
    if (!record.key.starts_with(prefix_)) return Error{Code::kInvalid, "another's record"};
    if (record.deleted) {
      batch.Delete(record.key);
    } else {
      batch.Put(record.key, record.value);
    }
  }
  if (batch.empty()) return {};
  return store_.Write(batch, false);
}

Result<bool> NameTable::Page(const std::string& after, size_t bytes,
                             std::vector<NameRecord>* records) {
  const auto cursor = store_.Seek(after.empty() ? prefix_ : after + '\0');
  size_t taken = 0;
  for (; cursor->Valid() && cursor->key().starts_with(prefix_); cursor->Next()) {
    if (taken >= bytes) return false;
    taken += cursor->key().size() + cursor->value().size() + 16;
    records->push_back({std::string(cursor->key()), std::string(cursor->value()), false});
  }
  KVC_TRY(cursor->status());
  return true;
}

Status NameTable::Clear() {
  std::string end = prefix_;
  end.push_back('\xff');
  MetaBatch batch;
  batch.DeleteRange(prefix_, end);
  KVC_TRY(store_.Write(batch, false));
  return Load();
}

std::vector<SpaceId> SpacesWithNames(MetaStore& store) {
  std::vector<SpaceId> spaces;
  std::string from(1, kKind);
  while (true) {
    const auto cursor = store.Seek(from);
    if (!cursor->Valid() || cursor->key().size() < kPrefixBytes || cursor->key()[0] != kKind) break;
    spaces.push_back({NumberAt(cursor->key(), 1), NumberAt(cursor->key(), 9)});
    from = std::string(cursor->key().substr(0, kPrefixBytes));
    from.push_back('\xff');
  }
  return spaces;
}

}  // namespace kvcfs::meta
