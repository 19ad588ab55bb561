#include "meta/remote_prober.h"

#include <algorithm>

namespace kvcfs::meta {

using namespace layout;  // NOLINT(google-build-using-namespace): this file reads that layout

namespace {

// A writer changes one thing at a time for well under a microsecond, a segment for some 50: who
// meets a change a thousand times over meets something else.
constexpr int kRoundsMax = 1000;

bool IsWhole(const uint64_t (&bucket)[kBucketWords]) {
  return bucket[0] == bucket[kBucketVersionEnd] && bucket[0] % 2 == 0;
}

}  // namespace

bool RemoteProber::Read(uint64_t address, std::span<uint64_t> words) {
  ++read_count_;
  if (read_(address, words)) return true;
  readable_ = false;
  return false;
}

bool RemoteProber::ReadRoot() {
  rooted_ = false;
  if (!Read(kRootAddress, root_)) return false;
  // Unchanged since: the directory and the table of runs that it names were not given up meanwhile.
  rooted_ = root_[kRootVersionBegin] == root_[kRootVersionEnd] && root_[kRootVersionEnd] % 2 == 0;
  return rooted_;
}

bool RemoteProber::ReadHeader(uint64_t id, uint64_t (&words)[kRunWords]) {
  uint64_t block = 0;
  if (id / kRunBlockHeaders >= root_[kRootRunBlockCount]) return false;
  if (!Read(root_[kRootRunBlocks] + id / kRunBlockHeaders * kWordBytes, std::span(&block, 1))) {
    return false;
  }
  if (!Read(block + id % kRunBlockHeaders * kRunHeaderBytes, words)) return false;
  return Low(words[kRunVersionBegin]) == Low(words[kRunVersionEnd]) &&
         words[kRunVersionBegin] % 2 == 0;
}

bool RemoteProber::ReadRun(uint64_t id, Run* run) {
  run->id = id;
  if (!ReadHeader(id, run->words)) return false;
  const uint32_t length = ShapeLength(run->words[kRunShape]);
  if (length == 0 || length > kRunBlocksMax) return false;
  run->tags.resize(length);
  if (!Read(uint64_t{Low(run->words[kRunBody])} * kWordBytes, run->tags)) return false;
  // The body may have moved and its place been reused: then the header has another version.
  uint64_t again[kRunWords];
  return ReadHeader(id, again) && again[kRunVersionBegin] == run->words[kRunVersionBegin];
}

RemoteProber::Round<std::optional<BlockRef>> RemoteProber::TryFind(NamespaceId ns,
                                                                   const BlockKey& key, Run* run) {
  if (!rooted_ && !ReadRoot()) return std::nullopt;
  if (root_[kRootMagic] != kMagic || root_[kRootLayout] != kVersion) {
    return Result<std::optional<BlockRef>>(Error{Code::kInvalid, "no chain index of this layout"});
  }
  const uint64_t hash = BlockHash(ns, key);
  const auto depth = static_cast<uint32_t>(root_[kRootDepth]);
  if (depth > kDepthMax) return std::nullopt;
  uint64_t entry[kEntryWords];
  // What has changed since the root was read is read again: the next round begins with it.
  rooted_ = false;
  if (!Read(root_[kRootDirectory] + DirectoryIndex(hash, depth) * kEntryBytes, entry)) {
    return std::nullopt;
  }
  const uint32_t pages = PartPages(EntryPart(entry, 0));
  const BucketPair pair = BucketsOf(hash, pages);
  const uint32_t index = pair.first / kPageBuckets;
  if (pages > kSegmentPagesMax) return std::nullopt;
  const uint32_t part = EntryPart(entry, index);
  if (PartPages(part) != pages) return std::nullopt;

  const uint64_t page = PartPage(part) * kPageBytes;
  const uint64_t addresses[2] = {
      page + uint64_t{pair.first % kPageBuckets} * kBucketWords * kWordBytes,
      page + uint64_t{pair.second % kPageBuckets} * kBucketWords * kWordBytes};
  uint64_t buckets[2][kBucketWords];
  for (int i = 0; i < 2; ++i) {
    if (!Read(addresses[i], buckets[i]) || !IsWhole(buckets[i])) return std::nullopt;
    // With the depth that the stamp names, it can only be this one.
    const uint32_t stamp = High(buckets[i][0]);
    if (stamp != Stamp(hash, StampDepth(stamp), pages, index)) return std::nullopt;
  }
  if (High(buckets[0][0]) != High(buckets[1][0])) return std::nullopt;
  bool changed = false;
  for (const auto& bucket : buckets) {
    for (size_t at = 1; at < kBucketVersionEnd; at += 2) {
      if (bucket[at] != SlotTag(hash)) continue;
      const Place place = UnpackPlace(bucket[at + 1]);
      if (!ReadRun(place.run, run)) {
        changed = true;  // just removed, or being moved
        continue;
      }
      const uint32_t generation = High(run->words[kRunVersionBegin]);
      if ((generation & kSlotGenerationMask) != place.generation ||
          place.offset >= run->tags.size()) {
        changed = true;
        continue;
      }
      if (High(run->words[kRunBody]) != ns || run->tags[place.offset] != key.Word(0)) continue;
      rooted_ = true;
      return Result<std::optional<BlockRef>>(BlockRef{place.run, place.offset, generation});
    }
  }
  if (changed) return std::nullopt;
  // It is in neither; unless it moved from the second to the first after that was read.
  uint64_t version = 0;
  if (!Read(addresses[0], std::span(&version, 1)) || version != buckets[0][0]) return std::nullopt;
  rooted_ = true;
  return Result<std::optional<BlockRef>>(std::optional<BlockRef>());
}

template <typename T, typename TryOnce>
Result<T> RemoteProber::Retry(TryOnce&& try_once) {
  readable_ = true;
  for (int round = 0; round < kRoundsMax; ++round) {
    Round<T> answer = try_once();
    if (answer) return std::move(*answer);
    ++round_count_;
    rooted_ = false;
    if (!readable_ && round > 0) return Error{Code::kUnavailable, "index memory cannot be read"};
  }
  return Error{Code::kBusy, "index changes faster than it can be read"};
}

Result<std::optional<BlockRef>> RemoteProber::Find(NamespaceId ns, const BlockKey& key) {
  Run run;
  return Retry<std::optional<BlockRef>>([&] { return TryFind(ns, key, &run); });
}

Result<size_t> RemoteProber::Match(NamespaceId ns, std::span<const BlockKey> keys, BlockRef* refs) {
  size_t matched = 0;
  while (matched < keys.size()) {
    Run run;
    KVC_TRY_ASSIGN(const std::optional<BlockRef> found, Retry<std::optional<BlockRef>>([&] {
                     return TryFind(ns, keys[matched], &run);
                   }));
    if (!found) break;
    if (matched > 0) {
      const BlockRef before = refs[matched - 1];
      const Place parent = UnpackPlace(run.words[kRunParent]);
      const bool next = found->run == before.run && found->offset == before.offset + 1;
      const bool child =
          found->offset == 0 && parent.run == before.run && parent.offset == before.offset;
      if (!next && !child) break;
    }
    for (uint32_t offset = found->offset; matched < keys.size(); ++offset) {
      if (offset >= run.tags.size() || run.tags[offset] != keys[matched].Word(0)) break;
      refs[matched++] = {found->run, offset, found->generation};
    }
  }
  return matched;
}

}  // namespace kvcfs::meta
