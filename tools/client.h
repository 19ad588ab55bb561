// A mounted kvcfs as its users see it: where it is, and the questions that are no plain file calls.
//
// Threads: one at a time per NamespaceClient (each has its own conversation with `match`).
// Fails: kNotFound no such path; kInvalid not a kvcfs, or not a namespace of one: texts say what to
//   try next. A miss is no error.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/block_key.h"
#include "base/fd.h"
#include "base/result.h"

namespace kvcfs::tools {

// The mount a path lies in, and what of the path is below it.
struct MountedPath {
  std::string mountpoint;  // the directory that holds .kvcfs
  std::string inside;      // "" for the mount itself, "llama" for a namespace
};
Result<MountedPath> FindMount(const std::string& path);

// FindMount, and kInvalid unless the path is the mountpoint itself or a namespace of it.
Result<MountedPath> FindMountOrNamespace(const std::string& path);
Result<MountedPath> FindNamespace(const std::string& path);

enum class Tier : uint8_t { kNone = 0, kDram = 1, kNvme = 2, kPeer = 3 };
std::string_view TierName(Tier tier);

struct MatchAnswer {
  struct Block {
    Tier tier = Tier::kNone;
    uint64_t bytes = 0;
  };
  uint32_t lease_ms = 0;
  std::vector<Block> blocks;  // [ordinal]; as many as are cached

  size_t count() const { return blocks.size(); }
};

struct MatchOptions {
  bool prefetch = false;
  bool lease = true;
};

struct DropAnswer {
  uint64_t blocks = 0;
  uint64_t files = 0;
};

class NamespaceClient {
 public:
  static Result<NamespaceClient> Open(const std::string& path);

  // How many leading keys are cached. By ioctl where the keys fit it, else by the `match` file.
  Result<MatchAnswer> Match(std::span<const BlockKey> keys, const MatchOptions& options = {});

  // The block and what extends it; kNotFound if it is not cached.
  Result<DropAnswer> Drop(const BlockKey& key);
  Result<DropAnswer> DropAll();

  int directory_fd() const { return directory_.get(); }
  const std::string& path() const { return path_; }

 private:
  Result<MatchAnswer> MatchByIoctl(std::span<const BlockKey> keys, const MatchOptions& options);
  Result<MatchAnswer> MatchByFile(std::span<const BlockKey> keys, const MatchOptions& options);
  Result<DropAnswer> DropByIoctl(const BlockKey& key, uint32_t flags);

  std::string path_;
  Fd directory_;
  Fd match_file_;          // opened when first needed
  bool has_ioctl_ = true;  // until it says ENOTTY
};

// The answer of a `match` file: "COUNT LEASE_MS\n", then "ORDINAL KEY TIER BYTES\n" a block.
// kCorrupt if it is anything else, or not about these keys.
Result<MatchAnswer> ParseMatchAnswer(std::string_view text, std::span<const BlockKey> keys);

}  // namespace kvcfs::tools
