// What a holder of copies counts. One set a process.
#pragma once

#include "base/metrics.h"

namespace kvcfs::fs {

struct CopyMetrics {
  static CopyMetrics& Get();

  Counter& accepted_bytes;
  Counter& refused;
  Counter& reads_dram;
  Counter& reads_nvme;
  Counter& written_back_bytes;
  Counter& evicted_dram;
  Counter& releases_asked;
  Counter& kept;
  Counter& over_quota_bytes;
  Counter& freed;
  Counter& lost;
};

}  // namespace kvcfs::fs
