// fsck: reads and verifies every entry, changes nothing.
#include <utility>

#include <fmt/format.h>

#include "iouring/disk_directory.h"
#include "iouring/segment_contents.h"
#include "iouring/segment_open.h"
#include "iouring/segment_recovery.h"

namespace kvcfs::iouring {
namespace {

class Scan {
 public:
  Scan(BlockDevice& device, const std::function<void(const EntryMeta&, const SegmentPlace&)>& good)
      : device_(device), good_(good), queue_(device.NewQueue({.depth = 64, .registered = {}})) {}

  Result<SegmentScan> Run() {
    KVC_TRY_ASSIGN(const std::vector<std::string> names, device_.List());
    KVC_TRY_ASSIGN(const SuperblockFound found, ReadSuperblock(device_, *queue_));
    bool any_segment = false;
    for (const std::string& name : names) any_segment = any_segment || SegmentNumberOf(name);
    if (!found.both_intact && any_segment) {
      Problem(kSuperblockName, 0,
              found.superblock ? "one of two copies is damaged: nothing is lost"
                               : "both copies are damaged: made again from the segments");
    }
    superblock_ = found.superblock;
    for (const std::string& name : names) {
      const auto number = SegmentNumberOf(name);
      if (number) ScanOne(*number, name);
    }
    return std::move(result_);
  }

 private:
  void Problem(const std::string& name, uint64_t offset, std::string text) {
    result_.problems.push_back({device_.PathOf(name), offset, std::move(text), false, {}});
  }

  void ScanOne(uint32_t number, const std::string& name) {
    ++result_.segments;
    auto file = device_.OpenFile(name);
    if (!file.ok()) {
      Problem(name, 0, "cannot be opened: " + file.error().text);
      return;
    }
    BlockFile* const raw = file->get();
    const uint64_t segment_bytes = SegmentBytes(*raw);
    if (raw->bytes() != segment_bytes) {
      Problem(name, raw->bytes(),
              fmt::format("has {} bytes instead of {}: what was behind is lost", raw->bytes(),
                          segment_bytes));
    }
    const auto ends = ReadSegmentEnds(*queue_, {&raw, 1}, segment_bytes);
    const SegmentContents contents =
        ReadContents(*queue_, *raw, ends.front(),
                     {.number = number,
                      .segment_bytes = segment_bytes,
                      .node_uuid = superblock_ ? superblock_->node_uuid : Uuid{},
                      .any_node = !superblock_,
                      .verify_after = 0});
    for (const ContentsProblem& problem : contents.problems) {
      result_.problems.push_back(
          {device_.PathOf(name), problem.offset, problem.text, problem.has_meta, problem.meta});
    }
    for (size_t i = 0; i < contents.entries.size(); ++i) {
      const FoundEntry& entry = contents.entries[i];
      // What was found without a table was verified on the way.
      Status status;
      if (i < contents.verified_from) {
        status = VerifyEntry(*queue_, *raw, entry, number, contents.first_sequence, segment_bytes);
      }
      if (!status.ok()) {
        result_.problems.push_back({device_.PathOf(name), entry.offset_4k * kPageBytes,
                                    "entry is damaged and lost: " + status.error().text, true,
                                    entry.meta});
        continue;
      }
      ++result_.entries;
      result_.data_bytes += entry.meta.length;
      if (good_) good_(entry.meta, {number, entry.offset_4k, entry.meta.sequence});
    }
  }

  // Without a superblock the segment itself says how long it is.
  uint64_t SegmentBytes(BlockFile& file) {
    if (superblock_) return superblock_->segment_bytes;
    AlignedBuffer page(kPageBytes);
    if (ReadPages(*queue_, file, 0, page.span()).ok()) {
      const auto header = DecodeSegmentHeader(page.span());
      if (header.ok() && header->has_value()) return (*header)->segment_bytes;
    }
    return std::max(file.bytes() / kPageBytes * kPageBytes, kSegmentBytesMin);
  }

  BlockDevice& device_;
  const std::function<void(const EntryMeta&, const SegmentPlace&)>& good_;
  std::unique_ptr<IoQueue> queue_;
  std::optional<Superblock> superblock_;
  SegmentScan result_;
};

}  // namespace

Result<SegmentScan> ScanSegmentsOn(
    BlockDevice& device, const std::function<void(const EntryMeta&, const SegmentPlace&)>& good) {
  return Scan(device, good).Run();
}

Result<SegmentScan> ScanSegments(
    const std::string& directory,
    const std::function<void(const EntryMeta&, const SegmentPlace&)>& good) {
  KVC_TRY_ASSIGN(std::unique_ptr<DiskDirectory> device,
                 DiskDirectory::Open({.path = directory, .read_only = true}));
  return ScanSegmentsOn(*device, good);
}

}  // namespace kvcfs::iouring
