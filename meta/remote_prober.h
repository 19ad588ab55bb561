// Finds keys in a chain index of which it has nothing but the memory, read in pieces.
//
// The reader's side of remote_layout.h: for other threads, and for other machines by one-sided
// reads. Every answer was true at some moment during the call; nothing is locked, and a writer at
// work at worst sends it round again. A found place is a hint all the same: the full key is checked
// where the data is read.
// Threads: one at a time each. Fails: kBusy after so many rounds; kUnavailable memory that cannot
// be read; kInvalid no index there, or one of another layout.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "base/block_key.h"
#include "base/result.h"
#include "meta/chain_index.h"
#include "meta/remote_layout.h"

namespace kvcfs::meta {

// Reads words at an address of the index's memory; false if that cannot be had. Cache lines of 64 B
// come whole, in any order and from different moments, as one-sided reads bring them; or words one
// by one in ascending order.
using ReadWords = std::function<bool(uint64_t address, std::span<uint64_t> words)>;

class RemoteProber {
 public:
  explicit RemoteProber(ReadWords read) : read_(std::move(read)) {}

  // Where the key is, by its hash and the first 8 bytes of it; nothing: it is not cached.
  Result<std::optional<BlockRef>> Find(NamespaceId ns, const BlockKey& key);
  // How many leading keys are cached as one chain: follows runs, and probes only where they end.
  Result<size_t> Match(NamespaceId ns, std::span<const BlockKey> keys, BlockRef* refs);

  uint64_t read_count() const { return read_count_; }    // calls of ReadWords
  uint64_t round_count() const { return round_count_; }  // begun anew for a writer's sake

 private:
  // A round: an answer, or nothing when what was read does not fit together.
  template <typename T>
  using Round = std::optional<Result<T>>;

  struct Run {
    uint64_t id = 0;
    uint64_t words[layout::kRunWords] = {};
    std::vector<uint64_t> tags;  // from offset 0
  };

  bool ReadRoot();
  bool Read(uint64_t address, std::span<uint64_t> words);
  Round<std::optional<BlockRef>> TryFind(NamespaceId ns, const BlockKey& key, Run* run);
  // True: read whole, and alive.
  bool ReadRun(uint64_t id, Run* run);
  bool ReadHeader(uint64_t id, uint64_t (&words)[layout::kRunWords]);
  template <typename T, typename TryOnce>
  Result<T> Retry(TryOnce&& try_once);

  const ReadWords read_;
  bool readable_ = true;
  bool rooted_ = false;
  uint64_t root_[layout::kRootWords] = {};
  uint64_t read_count_ = 0, round_count_ = 0;
};

}  // namespace kvcfs::meta
