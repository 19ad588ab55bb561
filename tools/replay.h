// Plays a trace against a namespace as an engine would, and checks every byte that comes back.
//
// Per request: match the prefix, read and verify every matched block, write the rest. Block i's key
// is SHA-256(parent's key || its id), its bytes are made from the key: any run can check what any
// other wrote.
// Threads: `concurrency` workers, each with a target of its own, take the requests in order; one
//   more samples for progress and the report.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/block_key.h"
#include "base/result.h"
#include "tools/client.h"
#include "tools/trace.h"

namespace kvcfs::tools {

// What became of one call: error 0, or an errno and which call said it.
struct CallOutcome {
  int error = 0;
  const char* call = "";
  size_t bytes = 0;
};

// A namespace for one worker. A real one is made of plain file calls; tests have others.
class ReplayTarget {
 public:
  virtual ~ReplayTarget() = default;
  virtual Result<MatchAnswer> Match(std::span<const BlockKey> keys) = 0;
  // open; one read of `out`; close. `length`: what was read, and more if the file goes on behind
  // it. `read_done` is called when the bytes are there: what follows is not part of the latency.
  virtual CallOutcome Read(const BlockKey& key, std::span<std::byte> out, uint64_t* length,
                           const std::function<void()>& read_done) = 0;
  // create below its parent (none: a first block), one write, close.
  virtual CallOutcome Write(const BlockKey* parent, const BlockKey& key,
                            std::span<const std::byte> bytes) = 0;
};

// Sizes of the tiers at a moment; zeros where they are not known.
struct TierOccupancy {
  uint64_t dram_used = 0, dram_capacity = 0;
  uint64_t nvme_used = 0, nvme_capacity = 0;
};

// The run at a moment, everything since its start.
struct ReplayPoint {
  double seconds = 0;
  uint64_t requests = 0;
  uint64_t blocks_hit = 0, blocks_missed = 0;
  uint64_t bytes_read = 0, bytes_written = 0;
  TierOccupancy tiers;
};

struct ReplayOptions {
  uint64_t block_bytes = uint64_t{2} << 20;
  uint64_t concurrency = 1;
  double speed = 0;   // times the trace's own; 0: as fast as it goes
  uint64_t seed = 0;  // not 0: requests of one timestamp come in another order
  std::chrono::milliseconds sample_interval{100};
};

struct ReplayHooks {
  std::function<Result<std::unique_ptr<ReplayTarget>>()> make_target;         // one a worker
  std::function<TierOccupancy()> occupancy;                                   // may be empty
  std::function<void(const ReplayPoint&, uint64_t requests_total)> progress;  // may be empty
  const std::atomic<bool>* stop = nullptr;  // may be null: end early, with what was done
};

struct ReplayResult {
  ReplayOptions options;
  uint64_t requests = 0, requests_total = 0;
  uint64_t blocks_hit = 0, blocks_missed = 0, blocks_written = 0;
  uint64_t bytes_read = 0, bytes_written = 0;
  uint64_t wrong_bytes = 0;       // differing, missing or too many
  uint64_t wrong_blocks = 0;      // that had any
  uint64_t lost_under_lease = 0;  // matched with a lease that still held, and then not there
  uint64_t lost_unleased = 0;     // the same without a promise: a miss
  uint64_t lost_races = 0;        // somebody else published first
  uint64_t parents_gone = 0;      // evicted between match and create
  uint64_t no_space = 0;
  std::map<std::string, uint64_t> failed_calls;  // "open EIO": how often
  std::string first_failure;                     // in words
  double seconds = 0;
  double read_seconds = 0;    // in open and read, all workers together
  double behind_seconds = 0;  // how late the latest request began, with a given speed
  bool interrupted = false;
  // Nanoseconds, sorted.
  std::vector<uint64_t> match_nanos, read_nanos, write_nanos;
  std::vector<ReplayPoint> points;

  double HitRate() const;
  // While in open and read, all workers together.
  double ReadGigabytesPerSecond() const;
  bool Right() const;  // nothing was wrong, lost or unexpectedly failed
};

double QuantileMicros(const std::vector<uint64_t>& sorted_nanos, double share);

Result<ReplayResult> Replay(const Trace& trace, const ReplayOptions& options,
                            const ReplayHooks& hooks);

std::string ReplayText(const ReplayResult& result);
std::string ReplayJson(const ReplayResult& result);  // scripts rely on its keys: README.md

}  // namespace kvcfs::tools
