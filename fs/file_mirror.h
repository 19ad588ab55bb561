// An ordinary tree of this host as the working copy of one that a cluster has.
//
// What the cluster's owner of the names says is taken over here (Mirror, Forget); what is here
// alone (a file that was made here and not published yet, bytes that are newer) is left as it is.
// Bytes of a file that is open are never changed: then another inode takes its name. Threads: any.
// Callers see to it that what they say of one name comes in the order in which the owner said it.
// Fails: errno, as FileTree.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "fs/file_record.h"
#include "fs/fs_types.h"
#include "meta/name_messages.h"

namespace kvcfs::fs {

// An inode as it is here.
struct LocalFile {
  Ino ino = 0;
  InodeRecord record;
  meta::SpaceId space;   // of its namespace
  uint64_t changes = 0;  // of its bytes, since the node is in memory
  bool open = false;
  bool written = false;  // somebody has it open for writing

  // Of this host alone: not published yet.
  bool is_local() const { return !record.shared.id.valid() && record.root != ino; }
  meta::FileId shared_id() const { return record.root == ino ? meta::kRootFile : record.shared.id; }
  bool wants_publishing() const {
    return record.IsRegular() && record.nlink > 0 && (is_local() || record.shared.dirty);
  }
};

class FileMirror {
 public:
  virtual ~FileMirror() = default;

  // ESTALE: no such inode.
  virtual FsResult<LocalFile> Describe(Ino ino) = 0;
  // Null: there is no such name here.
  virtual FsResult<std::optional<LocalFile>> Find(Ino parent, const std::string& name) = 0;
  // The name leads to that file, with these attributes; bytes that differ count as not here. A file
  // of this host alone keeps its name.
  virtual FsResult<Ino> Mirror(Ino parent, const std::string& name,
                               const meta::SharedFile& file) = 0;
  // What is said of a file that has a name here; nothing if it has none.
  virtual void Update(Ino root, const meta::SharedFile& file) = 0;
  // The name goes, and what is below it.
  virtual void Forget(Ino parent, const std::string& name) = 0;
  // Everything below the root that is not of this host alone goes.
  virtual void ForgetShared(Ino directory) = 0;

  // Brings the bytes in: `read` fills a piece. Nothing, where they are here.
  using ReadPiece = std::function<FsStatus(uint64_t offset, std::span<std::byte> into)>;
  virtual FsStatus Fill(Ino ino, const meta::FileId& content, size_t piece_bytes,
                        const ReadPiece& read) = 0;
  // What was written so far is a version: its number of changes.
  virtual FsResult<uint64_t> Seal(Ino ino) = 0;
  // The bytes as they are here; less than asked for only at the end.
  virtual FsResult<size_t> ReadHere(Ino ino, uint64_t offset, std::span<std::byte> into) = 0;
  // It is that file of the cluster now, and its bytes are those as of `changes`.
  virtual FsStatus SetPublished(Ino ino, const meta::SharedFile& file, uint64_t changes) = 0;
  // It is a file of its own again, which is published under its name when it is closed.
  virtual FsStatus Detach(Ino ino) = 0;

  // For a listing: the entry; and that the kernel took it.
  virtual FsResult<EntryReply> EntryOf(Ino ino) = 0;
  virtual void CountLookup(Ino ino) = 0;
  // Names behind `cookie` that are of this host alone.
  using VisitName =
      std::function<bool(const std::string& name, const EntryReply& entry, uint64_t cookie)>;
  virtual FsStatus ListLocal(Ino directory, uint64_t cookie, const VisitName& visit) = 0;
  // Every file that waits for its publication.
  virtual std::vector<Ino> Unpublished() = 0;
};

}  // namespace kvcfs::fs
