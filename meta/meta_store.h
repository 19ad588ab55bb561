// The one door to RocksDB: ordered records that survive a restart.
//
// Keys begin with one byte that says what they are (see meta/README.md): 'M' store facts, 'N'
// namespaces, 'b' blocks, 'i' inodes, 'd' directory entries, 'n' names, 'x' xattrs, 'o' orphans.
// Threads: any. Write with sync=false returns when the log is in the page cache (survives kill -9,
//   not a power cut); sync=true after fdatasync of the log. Concurrent syncs share one (group
//   commit, RocksDB's own).
// Fails: kIo, kNoSpace device; kCorrupt checksum. Read errors of a damaged record are kCorrupt.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "base/result.h"

namespace kvcfs::meta {

class MetaBatch {
 public:
  MetaBatch();
  ~MetaBatch();
  MetaBatch(MetaBatch&&) noexcept;
  MetaBatch& operator=(MetaBatch&&) noexcept;
  void Put(std::string_view key, std::string_view value);
  void Delete(std::string_view key);
  void DeleteRange(std::string_view begin, std::string_view end);
  bool empty() const;
  void Clear();

 private:
  friend class MetaStore;
  struct Rep;
  std::unique_ptr<Rep> rep_;
};

// Forward iteration over keys >= some start; a snapshot.
class MetaCursor {
 public:
  virtual ~MetaCursor() = default;
  virtual bool Valid() const = 0;
  virtual std::string_view key() const = 0;
  virtual std::string_view value() const = 0;
  virtual void Next() = 0;
  virtual Status status() const = 0;
};

struct MetaStoreOptions {
  std::string directory;
  uint64_t cache_bytes = 64u << 20;
  uint64_t write_buffer_bytes = 32u << 20;
  bool read_only = false;
};

struct MetaOpenReport {
  bool created = false;    // there was none
  bool repaired = false;   // damaged: what could be read was kept
  bool recreated = false;  // beyond repair: moved aside (directory.damaged-N), begun anew
  std::string text;        // what happened, for the log
};

class MetaStore {
 public:
  // Opens; on damage repairs; beyond repair begins anew beside the old. Never fails because of
  // damaged bytes, only because of the device or permissions.
  static Result<std::unique_ptr<MetaStore>> Open(const MetaStoreOptions& options,
                                                 MetaOpenReport* report);
  virtual ~MetaStore() = default;

  virtual Status Write(MetaBatch& batch, bool sync) = 0;  // clears the batch on success
  virtual Result<std::optional<std::string>> Get(std::string_view key) = 0;
  virtual std::unique_ptr<MetaCursor> Seek(std::string_view from) = 0;
  // All that was written before is durable.
  virtual Status Sync() = 0;
  virtual uint64_t ApproximateBytes() const = 0;

 protected:
  static void* RepOf(MetaBatch& batch);
};

}  // namespace kvcfs::meta
