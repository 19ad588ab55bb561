#include "iouring/segment_reader.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include <fmt/format.h>

#include "base/crc32c.h"

namespace kvcfs::iouring {
namespace {

constexpr uint64_t kPieceBytes = uint64_t{1} << 20;  // bench/segment_bench: 2 and 4 MiB are slower
constexpr unsigned kDepth = 64;
static_assert(kPieceBytes % kCrcChunkBytes == 0);

// Whether it was intended or published when it was written: the bytes of a block are the same.
EntryKind DataKind(EntryKind kind) {
  return kind == EntryKind::kBlockIntent ? EntryKind::kBlock : kind;
}

bool SameName(const EntryMeta& a, const EntryMeta& b) {
  return DataKind(a.kind) == DataKind(b.kind) && a.namespace_uuid == b.namespace_uuid &&
         a.key == b.key && a.ino == b.ino && a.version == b.version && a.length == b.length;
}

}  // namespace

std::unique_ptr<SegmentReader::Desk> SegmentReader::TakeDesk() {
  {
    MutexLock lock(mutex_);
    if (!desks_.empty()) {
      auto desk = std::move(desks_.back());
      desks_.pop_back();
      return desk;
    }
  }
  auto desk = std::make_unique<Desk>();
  desk->queue = device_.NewQueue({.depth = kDepth, .registered = {}});
  desk->header = AlignedBuffer(kPageBytes);
  return desk;
}

void SegmentReader::GiveBack(std::unique_ptr<Desk> desk) {
  MutexLock lock(mutex_);
  desks_.push_back(std::move(desk));
}

Status SegmentReader::Read(const SegmentPlace& place, const EntryMeta& meta,
                           std::span<std::byte> into) {
  const bool aligned = reinterpret_cast<uintptr_t>(into.data()) % kPageBytes == 0;
  if (into.size() < RoundUpToPage(meta.length) || !aligned) {
    return Error{Code::kInvalid, "memory for a read must be whole pages"};
  }
  const EntryLayout layout = LayoutOf(meta.length);
  const uint64_t offset = place.offset_4k * kPageBytes;
  auto pinned = book_.Pin(place);
  if (!pinned) return Error{Code::kStale, "the segment was reused"};
  Status status;
  if (offset + layout.total_bytes > book_.segment_bytes()) {
    status = Error{Code::kCorrupt, "the place lies outside its segment"};
  } else {
    auto desk = TakeDesk();
    if (desk->header.size() < layout.header_bytes)
      desk->header = AlignedBuffer(layout.header_bytes);
    status = ReadPinned(*desk, *pinned->file,
                        {.segment = place.segment,
                         .offset_4k = place.offset_4k,
                         .first_sequence = pinned->first_sequence},
                        place, meta, into);
    GiveBack(std::move(desk));
  }
  book_.Unpin(place.segment);
  if (status.ok()) {
    read_bytes_ += meta.length;
  } else if (status.code() == Code::kCorrupt) {
    ++corrupt_entries_;
  }
  return status;
}

Status SegmentReader::ReadPinned(Desk& desk, BlockFile& file, const EntrySituation& where,
                                 const SegmentPlace& place, const EntryMeta& meta,
                                 std::span<std::byte> into) {
  const EntryLayout layout = LayoutOf(meta.length);
  const uint64_t offset = where.offset_4k * kPageBytes;
  const std::span<std::byte> header = desk.header.span().first(layout.header_bytes);
  const uint64_t data_bytes = layout.inline_data ? 0 : RoundUpToPage(meta.length);
  desk.crcs.assign(layout.chunk_count, 0);
  IoQueue& queue = *desk.queue;

  // The first piece brings the header too; the tag is the piece's number.
  uint64_t begun = 0;
  int error = 0;
  const auto push = [&] {
    const uint64_t bytes = std::min(kPieceBytes, data_bytes - begun);
    IoRequest request{.file = &file, .tag = begun / kPieceBytes};
    if (begun == 0) {
      request.offset = offset;
      request.data = header.data();
      request.bytes = header.size();
      request.then_data = into.data();
      request.then_bytes = bytes;
    } else {
      request.offset = offset + layout.header_bytes + begun;
      request.data = into.data() + begun;
      request.bytes = bytes;
    }
    queue.Push(request);
    begun += bytes;
  };
  push();
  while (queue.in_flight() != 0) {
    while (error == 0 && begun < data_bytes && queue.room() != 0) push();
    desk.done.clear();
    queue.Wait(1, desk.done);
    for (const IoDone& one : desk.done) {
      if (one.error != 0) {
        error = one.error;
        continue;
      }
      const uint64_t begin = one.tag * kPieceBytes;
      const uint64_t end = std::min({begin + kPieceBytes, meta.length, data_bytes});
      for (uint64_t at = begin; at < end; at += kCrcChunkBytes) {
        desk.crcs[at / kCrcChunkBytes] =
            Crc32c(into.subspan(at, std::min(kCrcChunkBytes, end - at)));
      }
    }
  }
  if (error == ENODATA) return Error{Code::kCorrupt, "the segment's file was cut"};
  if (error != 0) {
    ++io_errors_;
    return ErrnoError(error, "read", device_.PathOf(SegmentName(where.segment)));
  }

  const auto entry = DecodeEntry(header, where, book_.segment_bytes());
  if (!entry) return Error{Code::kCorrupt, "header is damaged"};
  if (entry->meta.sequence != place.sequence || !SameName(entry->meta, meta)) {
    return Error{Code::kStale, "another entry lies there"};
  }
  if (layout.inline_data && meta.length != 0) {
    std::memcpy(into.data(), header.data() + layout.inline_offset(), meta.length);
    desk.crcs[0] = Crc32c(into.first(meta.length));
  }
  for (uint32_t chunk = 0; chunk < layout.chunk_count; ++chunk) {
    if (desk.crcs[chunk] != entry->chunk_crcs[chunk]) {
      return Error{Code::kCorrupt, fmt::format("CRC of chunk {} (64 KiB each) is wrong", chunk)};
    }
  }
  return {};
}

}  // namespace kvcfs::iouring
