// The messages about names of ordinary files (CLUSTER.md#names), as plain data.
//
// One request and one reply for all of it: NameOp says which fields count. An answer of the tree
// (there is no such name) is a NameError; a Code other than kOk says that nobody answered as the
// owner. Decode fails with kCorrupt (lengths are checked before memory is taken), kUnsupported.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/result.h"
#include "meta/cluster_view.h"
#include "meta/placement.h"
#include "rdma/transport.h"

namespace kvcfs::meta {

// A file, a directory, or one version of a file's bytes, anywhere in the cluster; never used again.
struct FileId {
  uint64_t high = 0;
  uint64_t low = 0;
  bool valid() const { return high != 0 || low != 0; }
  // NOLINTNEXTLINE(modernize-use-nullptr): clang-tidy 14 sees one in it
  friend auto operator<=>(const FileId&, const FileId&) = default;
};
// The root of every namespace's tree.
inline constexpr FileId kRootFile{0, 1};

// An inode as all hosts agree on it.
struct SharedFile {
  FileId id;
  uint32_t mode = 0, uid = 0, gid = 0, links = 0;
  uint64_t size = 0, device = 0;
  int64_t atime_nanos = 0, mtime_nanos = 0, ctime_nanos = 0;
  uint64_t change = 0;  // counts what happened to it
  FileId content;       // its bytes; not valid: it has none
  FileId parent;        // of directories
  std::string target{};
  std::vector<std::pair<std::string, std::string>> xattrs{};  // by name
  friend bool operator==(const SharedFile&, const SharedFile&) = default;
};

enum class NameOp : uint8_t {
  // Mounts ask the owner. `directory` and `name`: of the name that it is about.
  kLookup,       // -> file
  kGet,          // file.id -> file
  kList,         // directory, cookie, limit -> file (the directory), entries, done
  kMake,         // file (its id made by the asker): directory, symlink, special or empty file
  kPublish,      // file: a version of it; one that is new gets the name. -> file, removed
  kLink,         // file.id gets one more name
  kUnlink,       // -> removed, if that was its last name
  kRmdir,        //
  kRename,       // to to_directory, to_name; file.id: whom the asker means. -> file, removed
  kSetAttr,      // file.id; `flags`: of NameAttr
  kSetXattr,     // file.id, name, value; `flags` as setxattr(2)
  kRemoveXattr,  // file.id, name
  kMissing,      // nobody has the bytes file.content of file.id: it goes
  kSync,         // what was answered so far survives a power cut
  // Metadata nodes ask one another.
  kState,  // -> term, sequence
  kPull,   // the records behind `name` -> records, done, term, sequence
  kPush,   // records of `sequence`; kPushFirst, kPushLast: of a whole copy
};
inline constexpr uint8_t kNameOpLast = static_cast<uint8_t>(NameOp::kPush);

enum NameAttr : uint32_t {
  kNameMode = 1,
  kNameUid = 2,
  kNameGid = 4,
  kNameAtime = 8,
  kNameMtime = 16,
};
enum NameFlag : uint32_t {
  kNameNoReplace = 1,  // of kRename and kPublish: EEXIST where there is one
  kNameExchange = 2,
  kNameKeep = 4,  // of kPublish: what is replaced may still be renamed by who wrote it
  kPushFirst = 8,
  kPushLast = 16,
};

enum class NameError : uint8_t {
  kNone,
  kNotFound,
  kExists,
  kNotEmpty,
  kNotDirectory,
  kIsDirectory,
  kInvalid,
  kNoAttribute,
  kDenied,
};

// One record put, or deleted.
struct NameRecord {
  std::string key;
  std::string value{};
  bool deleted = false;
};

struct NameRequest {
  uint64_t epoch = 0;
  SpaceId space;
  FileId request;  // the same when it is asked again: then it is not done again
  NameOp op = NameOp::kLookup;
  uint32_t flags = 0;
  FileId directory, to_directory;
  std::string name{}, to_name{}, value{};
  SharedFile file{};
  uint64_t cookie = 0;
  uint32_t limit = 0;
  uint64_t term = 0, sequence = 0;
  std::vector<NameRecord> records{};
};

struct NameEntry {
  std::string name{};
  uint64_t cookie = 0;
  SharedFile file{};
};

struct NameReply {
  Code code = Code::kOk;
  uint64_t epoch = 0;
  NameError error = NameError::kNone;
  SharedFile file{};
  std::vector<SharedFile> removed{};  // nobody refers to their bytes any more, or will soon
  std::vector<NameEntry> entries{};
  bool done = false;
  uint64_t term = 0, sequence = 0;
  std::vector<NameRecord> records{};
};

inline constexpr rdma::Method kMethodNames = 0x200;
inline bool IsForNodes(NameOp op) {
  return op >= NameOp::kState;
}
// Changes nothing: may be asked again as it likes.
inline bool IsQuestion(NameOp op) {
  return op <= NameOp::kList || op == NameOp::kSync || IsForNodes(op);
}

rdma::Bytes Encode(const NameRequest& request);
Result<NameRequest> DecodeNameRequest(std::span<const std::byte> bytes);
rdma::Bytes Encode(const NameReply& reply);
Result<NameReply> DecodeNameReply(std::span<const std::byte> bytes);

// An inode as a record: what SharedFile says, and all its names.
struct StoredFile {
  SharedFile file{};
  std::vector<std::pair<FileId, std::string>> names{};  // of all but directories
  int64_t kept_until_nanos = 0;                         // without a name, for who wrote it
  FileId replaced;  // whose name it took; that gets it back when this one is renamed
};
std::string EncodeStored(const StoredFile& stored);
Result<StoredFile> DecodeStored(std::string_view bytes);

}  // namespace kvcfs::meta
