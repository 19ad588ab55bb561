// Files that a measurement reads or writes: blocks of a kvcfs namespace, or plain files of any
// directory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"

namespace kvcfs::bench {

enum class FileKind : uint8_t {
  kBlocks,  // one chain of a namespace: written as root/KEY, then PARENT/KEY; read as by-key/KEY
  kFiles,   // DIRECTORY/NAME
};

// One directory to measure, with the names of `count` files that are there or can be made.
// Threads: any; constant but for Make and Remove.
// Fails: kIo and what else errno says, with the path.
class FileSet {
 public:
  // text: NAME=blocks:MNT/NS or NAME=files:DIRECTORY. The seed makes the names, so that a later run
  // finds what an earlier one wrote.
  static Result<FileSet> Parse(const std::string& text, size_t count, uint64_t seed);

  const std::string& name() const { return name_; }
  size_t count() const { return read_paths_.size(); }
  const std::string& read_path(size_t index) const { return read_paths_[index]; }
  const std::string& write_path(size_t index) const { return write_paths_[index]; }

  // Other names than before, for another round of writes.
  void Rename(uint64_t seed);
  // Writes file `index`: create, one write, close.
  Status Write(size_t index, std::span<const std::byte> bytes) const;
  // All files, in order.
  Status Make(std::span<const std::byte> bytes) const;
  // Plain files reach their disk; blocks go their own way.
  Status Sync() const;
  // Files [0, count): blocks go with the first of their chain.
  Status Remove(size_t count) const;

 private:
  std::string name_;
  FileKind kind_ = FileKind::kFiles;
  std::string directory_;
  std::vector<std::string> read_paths_;
  std::vector<std::string> write_paths_;
};

}  // namespace kvcfs::bench
