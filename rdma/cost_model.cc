#include "rdma/cost_model.h"

#include <algorithm>

namespace kvcfs::rdma {
namespace {

constexpr double kRoundTripMicros = 2.7;
constexpr double kPerQueuePairMicro = 2.55;  // work requests
constexpr double kPerCardMicro = 111;
constexpr double kBytesPerMicro = 10'400;
constexpr double kPostMicros = 0.05;

}  // namespace

double CostMicros(std::span<const CostPhase> phases) {
  double micros = 0;
  for (const CostPhase& phase : phases) {
    const auto work = static_cast<double>(phase.work_requests);
    const double rate = std::min(kPerQueuePairMicro * phase.queue_pairs, kPerCardMicro);
    micros += kRoundTripMicros + kPostMicros * work;
    micros += std::max(work - 1, 0.0) / rate + static_cast<double>(phase.bytes) / kBytesPerMicro;
  }
  return micros;
}

uint32_t CostMeter::Issued(uint64_t bytes) {
  if (phases_.size() <= seen_) phases_.push_back({.queue_pairs = queue_pairs_});
  ++phases_[seen_].work_requests;
  phases_[seen_].bytes += bytes;
  return seen_;
}

void CostMeter::Completed(uint32_t phase, uint64_t bytes) {
  phases_[phase].bytes += bytes;
  seen_ = std::max(seen_, phase + 1);
}

uint64_t CostMeter::work_requests() const {
  uint64_t sum = 0;
  for (const CostPhase& phase : phases_) sum += phase.work_requests;
  return sum;
}

uint64_t CostMeter::bytes() const {
  uint64_t sum = 0;
  for (const CostPhase& phase : phases_) sum += phase.bytes;
  return sum;
}

}  // namespace kvcfs::rdma
