#include "iouring/segment_contents.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <optional>
#include <utility>

#include <fmt/format.h>

#include "base/crc32c.h"

namespace kvcfs::iouring {
namespace {

constexpr uint64_t kHeadBytes = 2 * kPageBytes;           // header, and the first entry's
constexpr uint64_t kTailBytes = uint64_t{64} << 10;       // footer and a table of 426 entries
constexpr uint64_t kWindowBytesMin = uint64_t{64} << 10;  // a header and some small entries
constexpr uint64_t kWindowBytesMax = uint64_t{4} << 20;   // four pieces in flight

bool AllZero(std::span<const std::byte> page) {
  return std::all_of(page.begin(), page.end(), [](std::byte b) { return b == std::byte{0}; });
}

bool SameEntry(const EntryMeta& a, const EntryMeta& b) {
  return a.kind == b.kind && a.namespace_uuid == b.namespace_uuid && a.key == b.key &&
         a.parent == b.parent && a.ordinal == b.ordinal && a.length == b.length && a.ino == b.ino &&
         a.version == b.version && a.sequence == b.sequence && a.origin == b.origin &&
         a.crc32c == b.crc32c;
}

// A part of a file in memory; reads ahead further the longer it is used in order.
class Window {
 public:
  Window(IoQueue& queue, BlockFile& file, uint64_t limit)
      : queue_(queue), file_(file), limit_(limit), memory_(kWindowBytesMax) {}

  // `bytes` (at most kWindowBytesMax) from `offset` on.
  Result<std::span<const std::byte>> Get(uint64_t offset, uint64_t bytes) {
    if (offset < begin_ || offset + bytes > end_) KVC_TRY(Load(offset, bytes));
    return std::span<const std::byte>(memory_.data() + (offset - begin_), bytes);
  }

 private:
  Status Load(uint64_t offset, uint64_t bytes) {
    ahead_ = offset >= begin_ && offset <= end_ ? std::min(2 * ahead_, kWindowBytesMax)
                                                : kWindowBytesMin;
    begin_ = end_ = 0;
    const uint64_t most = limit_ > offset ? limit_ - offset : 0;
    uint64_t wanted = std::min(std::max(bytes, ahead_), most);
    if (wanted < bytes) return Error{Code::kCorrupt, "the file ends before"};
    Status status = ReadPages(queue_, file_, offset, memory_.span().first(wanted));
    if (!status.ok() && wanted > bytes) {
      // Only what is needed: one bad sector must not cost its neighbours.
      wanted = bytes;
      ahead_ = kWindowBytesMin;
      status = ReadPages(queue_, file_, offset, memory_.span().first(wanted));
    }
    KVC_TRY(std::move(status));
    begin_ = offset;
    end_ = offset + wanted;
    return {};
  }

  IoQueue& queue_;
  BlockFile& file_;
  const uint64_t limit_;
  AlignedBuffer memory_;
  uint64_t begin_ = 0, end_ = 0;
  uint64_t ahead_ = kWindowBytesMin / 2;
};

// Is the data what the CRCs of the (valid) header say?
Status VerifyData(Window& window, uint64_t offset, const DecodedEntry& entry) {
  const uint64_t length = entry.meta.length;
  if (CombineChunkCrcs(entry.chunk_crcs, length) != entry.meta.crc32c) {
    return Error{Code::kCorrupt, "its CRCs contradict each other"};
  }
  uint64_t at = offset + (entry.layout.inline_data ? 0 : entry.layout.header_bytes);
  uint64_t left = length;
  for (uint32_t chunk = 0; chunk < entry.layout.chunk_count; ++chunk) {
    const uint64_t bytes = std::min(left, kCrcChunkBytes);
    KVC_TRY_ASSIGN(auto pages, window.Get(at, entry.layout.inline_data ? entry.layout.header_bytes
                                                                       : RoundUpToPage(bytes)));
    const uint64_t skip = entry.layout.inline_data ? entry.layout.inline_offset() : 0;
    if (Crc32c(pages.subspan(skip, bytes)) != entry.chunk_crcs[chunk]) {
      return Error{Code::kCorrupt, fmt::format("CRC of bytes {} to {} is wrong", length - left,
                                               length - left + bytes)};
    }
    at += RoundUpToPage(bytes);
    left -= bytes;
  }
  return {};
}

class Walk {
 public:
  Walk(IoQueue& queue, BlockFile& file, const ContentsOptions& options, SegmentContents& contents)
      : options_(options),
        contents_(contents),
        limit_(std::min(options.segment_bytes, file.bytes() / kPageBytes * kPageBytes)),
        window_(queue, file, limit_) {}

  // Entry by entry from `offset` on, to the end of the segment. A page that is no entry is passed:
  // behind a damaged header the next entry is found again. `all_durable`: no entry may be torn.
  void Run(uint64_t offset, bool all_durable) {
    gap_begin_ = offset;
    while (offset + kPageBytes <= limit_) {
      const std::optional<DecodedEntry> entry = EntryAt(offset);
      if (!entry) {
        offset += kPageBytes;
        continue;
      }
      if (gap_begin_ != offset) suspects_.push_back({gap_begin_, last_sequence(), false, {}, {}});
      contents_.last_sequence = entry->meta.sequence;
      durable_ = std::max(durable_, entry->situation.durable_sequence);
      Status status;
      if (entry->meta.sequence > options_.verify_after) {
        status = VerifyData(window_, offset, *entry);
      }
      if (status.ok()) {
        contents_.entries.push_back({entry->meta, entry->situation.offset_4k});
      } else {
        suspects_.push_back(
            {offset, entry->meta.sequence - 1, true, entry->meta, status.error().text});
      }
      offset += entry->layout.total_bytes;
      contents_.end_offset = gap_begin_ = offset;
    }
    VerifyUnflushed();
    if (!suspects_.empty()) contents_.clean = false;
    for (Suspect& suspect : suspects_) Judge(suspect, all_durable);
  }

 private:
  // An entry that is not right, or pages where one may have been.
  struct Suspect {
    uint64_t offset = 0;
    uint64_t after = 0;  // its sequence is higher
    bool has_meta = false;
    EntryMeta meta;
    std::string text;
  };

  uint64_t last_sequence() const { return contents_.last_sequence; }

  // The metadata may know entries that were never flushed: after a power cut they may be torn too.
  void VerifyUnflushed() {
    const auto torn = [this](const FoundEntry& found) {
      if (found.meta.sequence > options_.verify_after || found.meta.sequence <= durable_) {
        return false;
      }
      const uint64_t offset = found.offset_4k * kPageBytes;
      const std::optional<DecodedEntry> entry = DecodeAt(offset);
      const Status status = entry ? VerifyData(window_, offset, *entry)
                                  : Error{Code::kCorrupt, "its header is damaged"};
      if (status.ok()) return false;
      suspects_.push_back({offset, found.meta.sequence - 1, true, found.meta, status.error().text});
      return true;
    };
    auto& entries = contents_.entries;
    const auto walked = entries.begin() + static_cast<ptrdiff_t>(contents_.verified_from);
    entries.erase(std::remove_if(walked, entries.end(), torn), entries.end());
  }

  std::optional<DecodedEntry> EntryAt(uint64_t offset) {
    auto entry = DecodeAt(offset);
    if (!entry || entry->meta.sequence <= last_sequence() ||
        offset + entry->layout.total_bytes > options_.segment_bytes) {
      return std::nullopt;
    }
    return entry;
  }

  std::optional<DecodedEntry> DecodeAt(uint64_t offset) {
    const auto page = window_.Get(offset, kPageBytes);
    if (!page.ok()) {
      if (page.code() != Code::kCorrupt) {
        contents_.problems.push_back({offset, "the device cannot read this page", false, {}});
      }
      return std::nullopt;
    }
    const auto header_bytes = PeekHeaderBytes(*page, options_.segment_bytes);
    if (!header_bytes || *header_bytes > kWindowBytesMax) return std::nullopt;
    const auto header = window_.Get(offset, *header_bytes);
    if (!header.ok()) return std::nullopt;
    const EntrySituation expected{.segment = options_.number,
                                  .offset_4k = static_cast<uint32_t>(offset / kPageBytes),
                                  .first_sequence = contents_.first_sequence};
    return DecodeEntry(*header, expected, options_.segment_bytes);
  }

  // What was flushed once and is not right now is damage; what was not is a torn tail.
  void Judge(Suspect& suspect, bool all_durable) {
    if (!all_durable && durable_ <= suspect.after) {
      ++contents_.torn_entries;
      return;
    }
    std::string text = suspect.has_meta
                           ? "entry is damaged and lost: " + suspect.text
                           : "pages between entries are damaged: what was there is lost";
    contents_.problems.push_back({suspect.offset, std::move(text), suspect.has_meta, suspect.meta});
  }

  const ContentsOptions& options_;
  SegmentContents& contents_;
  const uint64_t limit_;
  Window window_;
  uint64_t gap_begin_ = 0;
  uint64_t durable_ = 0;
  std::vector<Suspect> suspects_;
};

std::optional<std::vector<FoundEntry>> ReadTable(IoQueue& queue, BlockFile& file,
                                                 const SegmentEnds& ends, const Footer& footer,
                                                 uint64_t segment_bytes) {
  const uint64_t bytes = TableBytes(footer.entry_count);
  if (bytes + 2 * kPageBytes > segment_bytes) return std::nullopt;
  const uint64_t begin = segment_bytes - kPageBytes - bytes;
  if (begin >= ends.tail_offset) {
    return DecodeTable(footer, ends.tail.span().subspan(begin - ends.tail_offset, bytes),
                       segment_bytes);
  }
  AlignedBuffer memory(bytes);
  if (!ReadPages(queue, file, begin, memory.span()).ok()) return std::nullopt;
  return DecodeTable(footer, memory.span(), segment_bytes);
}

}  // namespace

std::vector<SegmentEnds> ReadSegmentEnds(IoQueue& queue, std::span<BlockFile* const> files,
                                         uint64_t segment_bytes) {
  std::vector<SegmentEnds> all(files.size());
  std::vector<IoDone> done;
  const uint64_t tail_bytes = std::min(kTailBytes, segment_bytes);
  const auto reap = [&] {
    for (const IoDone& one : done) {
      SegmentEnds& ends = all[one.tag / 2];
      (one.tag % 2 == 0 ? ends.head_error : ends.tail_error) = one.error;
    }
    done.clear();
  };
  for (size_t i = 0; i < files.size(); ++i) {
    SegmentEnds& ends = all[i];
    ends.head = AlignedBuffer(kHeadBytes);
    ends.tail = AlignedBuffer(tail_bytes);
    ends.tail_offset = segment_bytes - tail_bytes;
    while (queue.room() < 2) {
      queue.Wait(1, done);
      reap();
    }
    queue.Push({.file = files[i], .data = ends.head.data(), .bytes = kHeadBytes, .tag = 2 * i});
    queue.Push({.file = files[i],
                .offset = ends.tail_offset,
                .data = ends.tail.data(),
                .bytes = tail_bytes,
                .tag = 2 * i + 1});
  }
  while (queue.in_flight() != 0) {
    queue.Wait(queue.in_flight(), done);
    reap();
  }
  return all;
}

SegmentContents ReadContents(IoQueue& queue, BlockFile& file, const SegmentEnds& ends,
                             const ContentsOptions& options) {
  SegmentContents contents;
  contents.end_offset = kPageBytes;
  if (ends.head_error != 0 && ends.head_error != ENODATA) {
    contents.form = SegmentForm::kUnreadable;
    contents.problems.push_back({0,
                                 "the device cannot read the header: its entries are lost "
                                 "unless it can later",
                                 false,
                                 {}});
    return contents;
  }
  const auto header = DecodeSegmentHeader(ends.head.span());
  if (!header.ok()) {
    contents.form = SegmentForm::kNewer;
    contents.problems.push_back({0, header.error().text, false, {}});
    return contents;
  }
  std::optional<Footer> footer;
  if (ends.tail_error == 0) footer = DecodeFooter(ends.tail.span().last(kPageBytes));
  bool all_durable = false;
  if (footer && (footer->number != options.number ||
                 (footer->node_uuid != options.node_uuid && !options.any_node))) {
    footer.reset();
  }

  const bool header_right = header->has_value() && (*header)->number == options.number &&
                            (*header)->segment_bytes == options.segment_bytes;
  if (header_right) {
    const SegmentHeader& good = **header;
    if (good.node_uuid != options.node_uuid && !options.any_node) {
      contents.form = SegmentForm::kForeign;
      contents.problems.push_back({0, "segment of another node: ignored", false, {}});
      return contents;
    }
    contents.first_sequence = contents.last_sequence = good.first_sequence;
    if (good.use == SegmentUse::kErased) return contents;
    if (footer && footer->first_sequence != good.first_sequence) footer.reset();
    // Before a footer is written, all that it speaks of is durable, and it is zeroed before more
    // is.
    if (!footer && ends.tail_error == 0 && !AllZero(ends.tail.span().last(kPageBytes))) {
      contents.problems.push_back(
          {options.segment_bytes - kPageBytes,
           "footer is damaged: the entries are read one by one, as far as they are found",
           false,
           {}});
      contents.clean = false;
      all_durable = true;
    }
  } else if (footer) {
    // An erase clears the footer too, so that this one is of the segment's present life.
    contents.first_sequence = contents.last_sequence = footer->first_sequence;
    contents.problems.push_back({0, "header page is damaged: nothing is lost", false, {}});
    contents.clean = false;
  } else {
    if (ends.head_error == 0 && AllZero(ends.head.span().first(kPageBytes)) &&
        !PeekHeaderBytes(ends.head.span().subspan(kPageBytes), options.segment_bytes) &&
        (ends.tail_error != 0 || AllZero(ends.tail.span().last(kPageBytes)))) {
      return contents;  // never used
    }
    contents.form = SegmentForm::kDamaged;
    contents.problems.push_back({0,
                                 "header page is damaged and there is no table: all that was "
                                 "in this segment is lost",
                                 false,
                                 {}});
    return contents;
  }

  uint64_t walk_from = kPageBytes;
  contents.form = SegmentForm::kOpen;
  if (footer) {
    if (footer->sealed || !header_right) contents.form = SegmentForm::kSealed;
    auto table = ReadTable(queue, file, ends, *footer, options.segment_bytes);
    if (table) {
      contents.entries = std::move(*table);
      for (const FoundEntry& entry : contents.entries) {
        contents.last_sequence = std::max(contents.last_sequence, entry.meta.sequence);
      }
      contents.end_offset = walk_from = footer->end_4k * kPageBytes;
      contents.verified_from = contents.entries.size();
      if (footer->sealed) return contents;
    } else {
      contents.problems.push_back({ends.tail_offset,
                                   "table is damaged: its entries are read one "
                                   "by one",
                                   false,
                                   {}});
      contents.clean = false;
      all_durable = footer->sealed;
    }
  }
  Walk(queue, file, options, contents).Run(walk_from, all_durable);
  return contents;
}

Status VerifyEntry(IoQueue& queue, BlockFile& file, const FoundEntry& entry, uint32_t number,
                   uint64_t first_sequence, uint64_t segment_bytes) {
  Window window(queue, file, std::min(segment_bytes, file.bytes() / kPageBytes * kPageBytes));
  const uint64_t offset = entry.offset_4k * kPageBytes;
  KVC_TRY_ASSIGN(auto header, window.Get(offset, LayoutOf(entry.meta.length).header_bytes));
  const auto decoded = DecodeEntry(
      header, {.segment = number, .offset_4k = entry.offset_4k, .first_sequence = first_sequence},
      segment_bytes);
  if (!decoded) return Error{Code::kCorrupt, "its header is damaged"};
  if (!SameEntry(decoded->meta, entry.meta)) {
    return Error{Code::kCorrupt, "its header is not what the table says"};
  }
  return VerifyData(window, offset, *decoded);
}

}  // namespace kvcfs::iouring
