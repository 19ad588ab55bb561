// What we do ourselves to the directory of the record store, below RocksDB: look at it before it is
// opened, move it aside, and keep a reserve of room in it.
#pragma once

#include <cstdint>
#include <string>

#include "base/result.h"

namespace kvcfs::meta {

// What lies in a store's directory, found without opening it.
struct MetaDirectoryLook {
  bool exists = false;
  bool has_current = false;    // CURRENT: RocksDB takes it for a store
  bool has_data = false;       // tables, logs or manifests
  bool manifest_torn = false;  // a manifest ends within a record, which RocksDB would not mind: it
                               // would take an old state for the newest and delete newer tables
};
MetaDirectoryLook LookAtMetaDirectory(const std::string& directory);

Status MakeDirectories(const std::string& directory);

// Renames it to `directory.damaged-N`, N from 1 to 8; the eighth is replaced when all are taken.
Result<std::string> MoveAside(const std::string& directory);

// A file of real room in a directory: given up so that the store can be opened, and things can be
// deleted, on a full disk; made again when there is room.
// Threads: one at a time.
class RoomReserve {
 public:
  RoomReserve(std::string directory, uint64_t bytes);

  bool held() const { return held_; }
  void GiveUp();
  // Only where `bytes` twice over are free, so that it never fills the disk itself.
  void MakeAgain();

 private:
  std::string path_;
  std::string directory_;
  uint64_t bytes_;
  bool held_ = false;
};

}  // namespace kvcfs::meta
