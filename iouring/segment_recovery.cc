#include "iouring/segment_recovery.h"

#include <algorithm>
#include <map>
#include <tuple>
#include <utility>

#include <fmt/format.h>

#include "base/log.h"
#include "base/size.h"

namespace kvcfs::iouring {
namespace {

constexpr uint64_t kSegmentCountWanted = 16;
constexpr uint64_t kSegmentCountMax = 2048;  // each costs a descriptor
constexpr uint64_t kSegmentCountMin = 4;     // two heads, a free one, one to reclaim
constexpr size_t kSegmentsAtATime = 32;      // whose ends are read together
// After damage, sequences that were given out may not be seen any more: go on far beyond.
constexpr uint64_t kSequenceGap = uint64_t{1} << 32;
// A head with less room left than this share is sealed instead of filled on.
constexpr uint64_t kRoomDivisor = 8;

std::string HexOf(const Uuid& uuid) {
  std::string text;
  for (const uint8_t byte : uuid) text += fmt::format("{:02x}", byte);
  return text;
}

uint64_t ChooseSegmentBytes(const SegmentStoreOptions& options) {
  uint64_t bytes = options.segment_bytes;
  while (options.capacity_bytes / bytes < kSegmentCountWanted && bytes / 2 >= kSegmentBytesMin) {
    bytes /= 2;
  }
  while (options.capacity_bytes / bytes > kSegmentCountMax && bytes * 2 <= kSegmentBytesMax) {
    bytes *= 2;
  }
  return std::clamp(bytes / kPageBytes * kPageBytes, kSegmentBytesMin, kSegmentBytesMax);
}

struct SegmentFile {
  uint32_t number = 0;
  std::shared_ptr<BlockFile> file;  // null: could not be opened
};

struct Visit {
  EntryMeta meta;
  SegmentPlace place;
};

// Namespace, then key of a block or number of a file.
using Identity = std::tuple<Uuid, BlockKey, uint64_t>;

Identity IdentityOf(const EntryMeta& meta) {
  const bool file = meta.kind == EntryKind::kFile || meta.kind == EntryKind::kFileTombstone;
  return file ? Identity(meta.namespace_uuid, BlockKey{}, meta.ino)
              : Identity(meta.namespace_uuid, meta.key, 0);
}

class Recovery {
 public:
  Recovery(BlockDevice& device, const SegmentStoreOptions& options, uint64_t scan_after)
      : device_(device),
        options_(options),
        scan_after_(scan_after),
        queue_(device.NewQueue({.depth = 64, .registered = {}})) {}

  Result<RecoveredSegments> Run(const SegmentStore::Visitor& visitor) {
    KVC_TRY(ListFiles());
    KVC_TRY(SettleSuperblock());
    const uint64_t count =
        std::max(kSegmentCountMin, options_.capacity_bytes / result_.segment_bytes);
    result_.book = std::make_unique<SegmentBook>(
        SegmentBookOptions{.segment_count = static_cast<uint32_t>(count),
                           .segment_bytes = result_.segment_bytes,
                           .live_share_max = options_.live_share_max});
    highest_ = scan_after_;
    for (size_t at = 0; at < files_.size(); at += kSegmentsAtATime) {
      ReadGroup(std::span(files_).subspan(at, std::min(kSegmentsAtATime, files_.size() - at)));
    }
    SettleHeads();
    result_.book->SetNextSequence(highest_ + 1 + (damaged_ ? kSequenceGap : 0));
    std::sort(visits_.begin(), visits_.end(), [](const Visit& a, const Visit& b) {
      return std::tie(a.meta.origin, a.place.sequence) < std::tie(b.meta.origin, b.place.sequence);
    });
    Show(visitor);
    return std::move(result_);
  }

 private:
  // Copies that were moved while their tombstone was on its way have the higher sequence, though
  // they are older: nobody else can tell, so they are left out here.
  void Show(const SegmentStore::Visitor& visitor) {
    if (!visitor) return;
    std::map<Identity, uint64_t> hidden_before;
    for (const Visit& visit : visits_) {
      if (IsTombstone(visit.meta.kind)) hidden_before[IdentityOf(visit.meta)] = visit.meta.origin;
    }
    for (const Visit& visit : visits_) {
      if (!hidden_before.empty() && !IsTombstone(visit.meta.kind)) {
        const auto hidden = hidden_before.find(IdentityOf(visit.meta));
        if (hidden != hidden_before.end() && visit.meta.origin < hidden->second) continue;
      }
      visitor(visit.meta, visit.place);
    }
  }

  Status ListFiles() {
    KVC_TRY_ASSIGN(const std::vector<std::string> names, device_.List());
    for (const std::string& name : names) {
      const std::optional<uint32_t> number = SegmentNumberOf(name);
      // Beyond any count that we ever make: not ours, and no reason for a table of that size.
      if (!number || *number > 2 * kSegmentCountMax) continue;
      SegmentFile found{*number, nullptr};
      auto file = device_.OpenFile(name);
      if (file.ok()) {
        found.file = std::move(*file);
      } else {
        KVC_LOG(Error, "segment cannot be opened", "file={} error={}",
                LogValue(device_.PathOf(name)), LogValue(file.error().text));
      }
      files_.push_back(std::move(found));
    }
    return {};
  }

  // Node and segment size: from the superblock, else from the segments, else anew.
  Status SettleSuperblock() {
    KVC_TRY_ASSIGN(SuperblockFound found, ReadSuperblock(device_, *queue_));
    if (!found.superblock) {
      KVC_TRY_ASSIGN(found.superblock, GuessSuperblock());
    }
    if (!found.superblock) {
      found.superblock = Superblock{options_.node_uuid, ChooseSegmentBytes(options_)};
    }
    if (found.superblock->node_uuid != options_.node_uuid) {
      return Error{Code::kInvalid,
                   fmt::format("{} belongs to node {}, not to this one ({}): give another "
                               "directory, or remove it if its cache is not wanted",
                               device_.PathOf(""), HexOf(found.superblock->node_uuid),
                               HexOf(options_.node_uuid))};
    }
    result_.segment_bytes = found.superblock->segment_bytes;
    if (!found.both_intact) WriteSuperblock(*found.superblock);
    return {};
  }

  Result<std::optional<Superblock>> GuessSuperblock() {
    std::map<std::pair<Uuid, uint64_t>, size_t> votes;
    AlignedBuffer page(kPageBytes);
    for (const SegmentFile& segment : files_) {
      if (!segment.file || !ReadPages(*queue_, *segment.file, 0, page.span()).ok()) continue;
      const auto header = DecodeSegmentHeader(page.span());
      if (header.ok() && header->has_value()) {
        ++votes[{(*header)->node_uuid, (*header)->segment_bytes}];
      }
    }
    if (votes.empty()) return std::optional<Superblock>();
    const auto best =
        std::max_element(votes.begin(), votes.end(),
                         [](const auto& a, const auto& b) { return a.second < b.second; });
    KVC_LOG(Warn, "superblock is damaged, made again from the segments", "directory={}",
            LogValue(device_.PathOf("")));
    return std::optional<Superblock>(Superblock{best->first.first, best->first.second});
  }

  void WriteSuperblock(const Superblock& superblock) {
    AlignedBuffer page(kPageBytes);
    EncodeSuperblock(superblock, page.span());
    Status status = [&]() -> Status {
      auto file = device_.OpenFile(kSuperblockName);
      if (!file.ok() || (*file)->bytes() != kSuperblockBytes) {
        file = device_.Create(kSuperblockName, kSuperblockBytes);
      }
      if (!file.ok()) return file.error();
      // One after the other, so that one copy is whole at any time.
      for (uint64_t offset = 0; offset < kSuperblockBytes; offset += kPageBytes) {
        KVC_TRY(WritePages(*queue_, **file, offset, page.span()));
        KVC_TRY(SyncFile(*queue_, **file));
      }
      return {};
    }();
    if (!status.ok()) {  // a full disk: the segments can do without
      KVC_LOG(Warn, "superblock cannot be written", "error={}", LogValue(status.error().text));
    }
  }

  void ReadGroup(std::span<SegmentFile> group) {
    std::vector<BlockFile*> files;
    std::vector<SegmentFile*> readable;
    for (SegmentFile& segment : group) {
      if (segment.file) {
        files.push_back(segment.file.get());
        readable.push_back(&segment);
      } else {
        damaged_ = true;
        SegmentInfo info;
        info.state = SegmentState::kRetired;
        result_.book->Put(segment.number, std::move(info));
      }
    }
    const auto ends = ReadSegmentEnds(*queue_, files, result_.segment_bytes);
    for (size_t i = 0; i < files.size(); ++i) {
      ReadOne(*readable[i], ends[i]);
    }
  }

  void ReadOne(const SegmentFile& segment, const SegmentEnds& ends) {
    const ContentsOptions options{.number = segment.number,
                                  .segment_bytes = result_.segment_bytes,
                                  .node_uuid = options_.node_uuid,
                                  .verify_after = scan_after_};
    SegmentContents contents = ReadContents(*queue_, *segment.file, ends, options);
    Report(segment.number, contents);
    highest_ = std::max(highest_, contents.last_sequence);

    SegmentInfo info;
    info.file = segment.file;
    info.first_sequence = contents.first_sequence;
    info.last_sequence = contents.last_sequence;
    info.sealed_early = true;
    for (const FoundEntry& entry : contents.entries) {
      info.used_bytes += LayoutOf(entry.meta.length).total_bytes;
      if (IsTombstone(entry.meta.kind)) {
        ++info.tombstones;
      } else {
        info.identities.push_back(IdentityHash(entry.meta));
      }
      Remember(segment.number, entry);
    }
    const bool excess = IsBeyond(segment.number);
    switch (contents.form) {
      case SegmentForm::kErased:
        if (excess || segment.file->bytes() != result_.segment_bytes) {
          // Absent, to be made again when it is needed.
          if (!device_.Remove(SegmentName(segment.number)).ok()) return;
          info = SegmentInfo{};
        } else {
          info.state = SegmentState::kFree;
        }
        break;
      case SegmentForm::kOpen:
        info.state = SegmentState::kSealed;
        if (contents.clean && !excess && HasRoom(contents) && heads_wanted()) {
          info.state = SegmentState::kOpen;
          result_.heads.push_back({.number = segment.number,
                                   .first_sequence = contents.first_sequence,
                                   .last_sequence = contents.last_sequence,
                                   .end_offset = contents.end_offset,
                                   .file = segment.file,
                                   .entries = std::move(contents.entries)});
        } else {
          Seal(segment, contents);
        }
        break;
      case SegmentForm::kSealed:
        info.state = SegmentState::kSealed;
        if (!contents.clean) Seal(segment, contents);
        break;
      case SegmentForm::kDamaged:  // nothing is in it any more: it will be erased
        info.state = SegmentState::kSealed;
        break;
      case SegmentForm::kForeign:
        info.state = SegmentState::kUnknown;
        break;
      case SegmentForm::kUnreadable:
        info.state = SegmentState::kRetired;
        break;
      case SegmentForm::kNewer:
        info.state = SegmentState::kUnknown;
        break;
    }
    result_.book->Put(segment.number, std::move(info));
  }

  bool heads_wanted() const { return result_.heads.size() < 2; }

  bool IsBeyond(uint32_t number) const {
    return number > std::max(kSegmentCountMin, options_.capacity_bytes / result_.segment_bytes);
  }

  bool HasRoom(const SegmentContents& contents) const {
    const uint64_t used = contents.end_offset + TableBytes(contents.entries.size() + 1);
    return used + result_.segment_bytes / kRoomDivisor < result_.segment_bytes;
  }

  void Report(uint32_t number, const SegmentContents& contents) {
    for (const ContentsProblem& problem : contents.problems) {
      damaged_ = true;
      if (problem.has_meta) ++result_.damaged_entries;
      KVC_LOG(Error, "segment is damaged", "file={} offset={} problem={}",
              LogValue(device_.PathOf(SegmentName(number))), problem.offset,
              LogValue(problem.text));
    }
    if (contents.torn_entries != 0) {
      KVC_LOG(Info, "torn tail dropped", "file={} entries={}",
              LogValue(device_.PathOf(SegmentName(number))), contents.torn_entries);
    }
  }

  void Remember(uint32_t number, const FoundEntry& entry) {
    const bool tombstone = IsTombstone(entry.meta.kind);
    const uint64_t age = tombstone ? entry.meta.origin : entry.meta.sequence;
    if (age <= scan_after_) return;
    Visit visit{entry.meta, {number, entry.offset_4k, age}};
    visit.meta.sequence = age;
    visits_.push_back(visit);
  }

  // So that it is decided by its table from now on, whatever else lies in it.
  void Seal(const SegmentFile& segment, const SegmentContents& contents) {
    Footer footer{.node_uuid = options_.node_uuid,
                  .number = segment.number,
                  .first_sequence = contents.first_sequence,
                  .end_4k = static_cast<uint32_t>(contents.end_offset / kPageBytes),
                  .sealed = true};
    Status status = [&]() -> Status {
      const uint64_t end = contents.end_offset + TableBytes(contents.entries.size()) + kPageBytes;
      if (end > result_.segment_bytes) return Error{Code::kNoSpace, "no room for a table"};
      KVC_TRY(SyncFile(*queue_, *segment.file));
      KVC_TRY(WriteTable(*queue_, *segment.file, footer, result_.segment_bytes, contents.entries));
      AlignedBuffer page(kPageBytes);
      EncodeSegmentHeader({.node_uuid = options_.node_uuid,
                           .number = segment.number,
                           .use = SegmentUse::kFilled,
                           .segment_bytes = result_.segment_bytes,
                           .first_sequence = contents.first_sequence},
                          page.span());
      return WritePages(*queue_, *segment.file, 0, page.span());
    }();
    if (!status.ok()) {  // it will be read entry by entry again
      KVC_LOG(Warn, "segment cannot be sealed", "file={} error={}",
              LogValue(device_.PathOf(SegmentName(segment.number))), LogValue(status.error().text));
    }
  }

  // What a head holds must be durable before anything says so of later entries.
  void SettleHeads() {
    auto& heads = result_.heads;
    std::sort(heads.begin(), heads.end(), [](const ResumedHead& a, const ResumedHead& b) {
      return a.end_offset < b.end_offset;
    });
    AlignedBuffer nothing(kPageBytes);
    for (const ResumedHead& head : heads) {
      // A checkpoint's table would be overwritten by the next one, page by page.
      Status status =
          WritePages(*queue_, *head.file, result_.segment_bytes - kPageBytes, nothing.span());
      if (status.ok()) status = SyncFile(*queue_, *head.file);
      if (!status.ok()) {
        KVC_LOG(Error, "flush failed", "segment={} error={}", head.number,
                LogValue(status.error().text));
      }
    }
  }

  BlockDevice& device_;
  const SegmentStoreOptions& options_;
  const uint64_t scan_after_;
  std::unique_ptr<IoQueue> queue_;
  std::vector<SegmentFile> files_;
  std::vector<Visit> visits_;
  uint64_t highest_ = 0;
  bool damaged_ = false;
  RecoveredSegments result_;
};

}  // namespace

Result<RecoveredSegments> RecoverSegments(BlockDevice& device, const SegmentStoreOptions& options,
                                          uint64_t scan_after,
                                          const SegmentStore::Visitor& visitor) {
  return Recovery(device, options, scan_after).Run(visitor);
}

Result<SuperblockFound> ReadSuperblock(BlockDevice& device, IoQueue& queue) {
  SuperblockFound found;
  auto file = device.OpenFile(kSuperblockName);
  if (!file.ok()) return found;
  AlignedBuffer page(kPageBytes);
  found.both_intact = true;
  for (uint64_t offset = 0; offset < kSuperblockBytes; offset += kPageBytes) {
    std::optional<Superblock> copy;
    if (ReadPages(queue, **file, offset, page.span()).ok()) {
      KVC_TRY_ASSIGN(copy, DecodeSuperblock(page.span()));
    }
    if (!copy) {
      found.both_intact = false;
    } else if (!found.superblock) {
      found.superblock = copy;
    }
  }
  return found;
}

Status WriteTable(IoQueue& queue, BlockFile& file, const Footer& footer, uint64_t segment_bytes,
                  std::span<const FoundEntry> entries) {
  const AlignedBuffer table = EncodeTable(footer, entries);
  const uint64_t records = table.size() - kPageBytes;
  KVC_TRY(WritePages(queue, file, segment_bytes - table.size(), table.span().first(records)));
  KVC_TRY(SyncFile(queue, file));  // the footer says that the table is there
  KVC_TRY(WritePages(queue, file, segment_bytes - kPageBytes, table.span().last(kPageBytes)));
  return SyncFile(queue, file);
}

Status EraseSegment(IoQueue& queue, BlockFile& file, SegmentHeader header) {
  AlignedBuffer page(kPageBytes), nothing(kPageBytes);
  header.use = SegmentUse::kErased;
  EncodeSegmentHeader(header, page.span());
  KVC_TRY(WritePages(queue, file, 0, page.span()));
  KVC_TRY(WritePages(queue, file, header.segment_bytes - kPageBytes, nothing.span()));
  return SyncFile(queue, file);
}

Result<std::unique_ptr<BlockFile>> MakeSegment(BlockDevice& device, IoQueue& queue,
                                               const SegmentHeader& header) {
  const std::string name = SegmentName(header.number);
  auto file = device.Create(name, header.segment_bytes);
  if (!file.ok()) return file;
  const Status erased = EraseSegment(queue, **file, header);
  if (!erased.ok()) {
    (void)device.Remove(name);
    return erased.error();
  }
  return file;
}

}  // namespace kvcfs::iouring
