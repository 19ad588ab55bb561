// What operations would cost on a fabric that we cannot measure here.
//
// T = 2.7 us x depth + sum((W-1) / min(2.55 M/s x QPs, 111 M/s) + bytes / 10.4 GB/s) + 0.05 us x W
// depth: round trips that wait for one another; the sum is over them. W: work requests (a READ, a
// WRITE, or a call) posted together; QPs: queue pairs that they are spread over.
// So a doorbell of 32 READs on one queue pair is not one round trip's 2.7 us but about 15.
// Source: DESIGN of the cluster: published numbers of 100 Gbit/s RoCE cards.   Threads: one.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace kvcfs::rdma {

// What is posted together, and waited for together.
struct CostPhase {
  uint64_t work_requests = 0;
  uint64_t bytes = 0;
  uint32_t queue_pairs = 1;
};

double CostMicros(std::span<const CostPhase> phases);

// Counts the phases of one operation: what is issued before any answer was seen is one phase, what
// is issued after an answer of it is the next.
class CostMeter {
 public:
  explicit CostMeter(uint32_t queue_pairs = 1) : queue_pairs_(queue_pairs) {}

  // The phase, for Completed.
  uint32_t Issued(uint64_t bytes);
  void Completed(uint32_t phase, uint64_t bytes);

  uint64_t depth() const { return phases_.size(); }
  uint64_t work_requests() const;
  uint64_t bytes() const;
  std::span<const CostPhase> phases() const { return phases_; }
  double micros() const { return CostMicros(phases_); }

 private:
  uint32_t queue_pairs_;
  uint32_t seen_ = 0;  // phases of which an answer was seen
  std::vector<CostPhase> phases_;
};

}  // namespace kvcfs::rdma
