#include "iouring/segment_store.h"

#include <cerrno>
#include <utility>

#include <sys/random.h>

#include "base/log.h"
#include "base/size.h"
#include "iouring/disk_directory.h"
#include "iouring/segment_book.h"
#include "iouring/segment_format.h"
#include "iouring/segment_open.h"
#include "iouring/segment_reader.h"
#include "iouring/segment_reclaimer.h"
#include "iouring/segment_recovery.h"
#include "iouring/segment_writer.h"

namespace kvcfs::iouring {
namespace {

// Book, writer, reader and reclaimer, put together.
class SegmentLog final : public SegmentStore {
 public:
  SegmentLog(std::unique_ptr<BlockDevice> device, const SegmentStoreOptions& options,
             RecoveredSegments recovered)
      : device_(std::move(device)),
        damaged_at_open_(recovered.damaged_entries),
        book_(std::move(recovered.book)),
        reader_(*device_, *book_),
        writer_(*device_, *book_,
                {.node_uuid = options.node_uuid,
                 .staging_bytes = options.staging_bytes,
                 .queue_bytes_max = options.queue_bytes_max},
                std::move(recovered.heads)),
        reclaimer_(*device_, *book_, reader_, writer_, options.node_uuid) {}

  ~SegmentLog() override {
    reclaimer_.Stop();
    writer_.Stop();
  }

  void Start(EntryOwner* owner) override { reclaimer_.Start(owner); }
  void Stop() override { reclaimer_.Stop(); }

  Status Append(AppendRequest request) override {
    return writer_.Append(std::move(request), Lane::kAppends, /*origin=*/0);
  }
  bool WaitForRoom(uint64_t bytes, int timeout_ms) override {
    return writer_.WaitForRoom(bytes, timeout_ms);
  }
  Status Flush(bool durable) override { return writer_.Flush(durable); }

  Status Read(const SegmentPlace& place, const EntryMeta& meta,
              std::span<std::byte> into) override {
    return reader_.Read(place, meta, into);
  }

  bool MarkLive(const SegmentPlace& place, uint64_t length) override {
    return book_->MarkLive(place, length);
  }
  void MarkDead(const SegmentPlace& place, uint64_t length) override {
    book_->MarkDead(place, length);
  }

  uint64_t last_sequence() const override { return book_->last_sequence(); }

  SegmentStats Stats() const override {
    SegmentStats stats;
    book_->AddTo(stats);
    stats.appended_bytes = writer_.appended_bytes();
    stats.moved_bytes = writer_.moved_bytes();
    stats.read_bytes = reader_.read_bytes();
    stats.corrupt_entries = damaged_at_open_ + reader_.corrupt_entries();
    stats.io_errors = writer_.io_errors() + reader_.io_errors();
    stats.queue_bytes = writer_.queue_bytes();
    stats.entry_bytes_max = EntryBytesMax(book_->segment_bytes());
    return stats;
  }

 private:
  const std::unique_ptr<BlockDevice> device_;
  const uint64_t damaged_at_open_;
  const std::unique_ptr<SegmentBook> book_;
  SegmentReader reader_;
  SegmentWriter writer_;
  SegmentReclaimer reclaimer_;
};

}  // namespace

Uuid RandomUuid() {
  Uuid uuid{};
  while (::getrandom(uuid.data(), uuid.size(), 0) != static_cast<ssize_t>(uuid.size())) {
    KVC_CHECK(errno == EINTR);  // it is a kernel with the call, or nothing here runs
  }
  return uuid;
}

Result<std::unique_ptr<SegmentStore>> OpenSegmentStore(std::unique_ptr<BlockDevice> device,
                                                       const SegmentStoreOptions& options,
                                                       uint64_t scan_after,
                                                       const SegmentStore::Visitor& visitor) {
  KVC_TRY_ASSIGN(RecoveredSegments recovered,
                 RecoverSegments(*device, options, scan_after, visitor));
  return std::unique_ptr<SegmentStore>(
      std::make_unique<SegmentLog>(std::move(device), options, std::move(recovered)));
}

Result<std::unique_ptr<SegmentStore>> SegmentStore::Open(const SegmentStoreOptions& options,
                                                         uint64_t scan_after,
                                                         const Visitor& visitor) {
  KVC_TRY_ASSIGN(std::unique_ptr<BlockDevice> device,
                 DiskDirectory::Open({.path = options.directory, .direct = options.direct}));
  return OpenSegmentStore(std::move(device), options, scan_after, visitor);
}

}  // namespace kvcfs::iouring
