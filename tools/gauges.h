// What the metrics say of parts that a mount and a server have in common.
//
// Threads: any. The parts stay until Metrics::ClearReaders.
#pragma once

#include "iouring/segment_store.h"
#include "iouring/slot_tier.h"
#include "meta/cluster.h"

namespace kvcfs::tools {

// `segments` may be null.
void RegisterTierMetrics(const iouring::SlotTier* slots, const iouring::SegmentStore* segments);
void RegisterClusterMetrics(meta::Cluster* cluster);

}  // namespace kvcfs::tools
