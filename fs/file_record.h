// The records of ordinary trees in the MetaStore, as bytes.
//
//   'i' ino                -> inode (InodeRecord)
//   'n' directory name     -> ino, cookie: what a name means
//   'd' directory cookie   -> ino, type, name: the same entry in listing order
//   'l' ino directory name -> empty: the links of an inode that has had more than one
//   'x' ino name           -> an extended attribute
//   'g' root file          -> ino: which inode here is that file of the cluster
//   'R' place              -> unique, ino: what a recent request did (for requests that are resent)
// Numbers in keys are big-endian, so that records sort by them; values are little-endian.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "fs/fs_types.h"
#include "iouring/segment_store.h"
#include "meta/name_messages.h"

namespace kvcfs::fs {

// Where the bytes of a file's newest version are.
enum class Home : uint8_t {
  kEmpty = 0,    // it has none
  kDram = 1,     // in a slot only; if the slot is lost, the stable version counts
  kSegment = 2,  // the stable version is the newest
  kDisk = 3,     // in its own file of the data disk
};

// The last version that a crash cannot take: an entry of the segments, or an empty file.
struct StableVersion {
  uint64_t version = 0;  // 0: none
  uint64_t length = 0;
  int64_t mtime_nanos = 0;
  iouring::SegmentPlace place;  // not valid if length is 0
};

// What a host of a cluster knows of an inode that all hosts have (fs/cluster_file_tree.h).
struct SharedState {
  meta::FileId id;       // not valid: it is of this host alone so far
  meta::FileId content;  // the version that the bytes here are, or shall be
  uint64_t change = 0;   // of meta::SharedFile, as of which the attributes are
  uint32_t links = 0;    // of all hosts
  bool remote = false;   // the bytes are not here
  bool dirty = false;    // the bytes here are newer, and to be published
  friend bool operator==(const SharedState&, const SharedState&) = default;
};

struct InodeRecord {
  enum Flags : uint32_t {
    kUnpublished = 1,  // made, and no writer has closed, fsynced or renamed it yet
    kManyLinks = 2,    // has or had more than one name: see the 'l' records
    kHasXattrs = 4,
    kNeverEvict = 8,  // user.kvc.evict=never here or above
    kOnDisk = 16,     // user.kvc.place=disk here or above
  };

  uint32_t mode = 0, uid = 0, gid = 0, nlink = 0;
  uint64_t size = 0;
  uint64_t blocks = 0;  // of 512 bytes
  int64_t atime_nanos = 0, mtime_nanos = 0, ctime_nanos = 0;
  uint64_t device = 0;
  uint32_t flags = 0;
  Home home = Home::kEmpty;
  uint64_t version = 0;  // of the content; counts publications
  StableVersion stable;
  int64_t disk_mtime_nanos = 0;  // of the data-disk file when we last looked
  Ino root = 0;                  // of the tree
  Ino parent = 0;                // directories, and files without kManyLinks
  std::string name;              // in parent
  std::string target;            // symlinks; of a root: the namespace's UUID
  SharedState shared;

  bool IsDirectory() const { return (mode & S_IFMT) == S_IFDIR; }
  bool IsRegular() const { return (mode & S_IFMT) == S_IFREG; }
  bool Has(uint32_t flag) const { return (flags & flag) != 0; }
  void Set(uint32_t flag, bool on) { flags = on ? flags | flag : flags & ~flag; }
};

struct Dentry {
  Ino ino = 0;
  uint64_t cookie = 0;
};

struct ListedEntry {
  Ino ino = 0;
  uint32_t type = 0;  // S_IFMT bits
  std::string name;
};

std::string InodeKey(Ino ino);
std::string NameKey(Ino directory, std::string_view name);
std::string CookieKey(Ino directory, uint64_t cookie);
std::string LinkKey(Ino ino, Ino directory, std::string_view name);
std::string XattrKey(Ino ino, std::string_view name);
std::string ResentKey(uint64_t unique);
std::string SharedKey(Ino root, const meta::FileId& file);
std::string Prefix(char kind, uint64_t number);  // of all records of one inode or directory
uint64_t NumberIn(std::string_view key, size_t at);

// Decoding gives nothing for bytes that are not what was written (length, version, CRC).
std::string EncodeInode(const InodeRecord& record);
std::optional<InodeRecord> DecodeInode(std::string_view bytes);
std::string EncodeDentry(const Dentry& entry);
std::optional<Dentry> DecodeDentry(std::string_view bytes);
std::string EncodeListed(const ListedEntry& entry);
std::optional<ListedEntry> DecodeListed(std::string_view bytes);

}  // namespace kvcfs::fs
