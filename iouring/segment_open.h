// Opens a store on any BlockDevice: SegmentStore::Open on a directory, tests on memory.
#pragma once

#include <memory>

#include "iouring/block_device.h"
#include "iouring/segment_store.h"

namespace kvcfs::iouring {

// As SegmentStore::Open; `options.directory` and `direct` are not used.
Result<std::unique_ptr<SegmentStore>> OpenSegmentStore(std::unique_ptr<BlockDevice> device,
                                                       const SegmentStoreOptions& options,
                                                       uint64_t scan_after,
                                                       const SegmentStore::Visitor& visitor);

Result<SegmentScan> ScanSegmentsOn(
    BlockDevice& device, const std::function<void(const EntryMeta&, const SegmentPlace&)>& good);

}  // namespace kvcfs::iouring
