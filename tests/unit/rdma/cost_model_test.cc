#include "rdma/cost_model.h"

#include <array>

#include <gtest/gtest.h>

namespace kvcfs::rdma {
namespace {

TEST(CostModel, OneReadIsOneRoundTrip) {
  const std::array<CostPhase, 1> phases{{{.work_requests = 1, .bytes = 0}}};
  EXPECT_NEAR(CostMicros(phases), 2.75, 1e-9);
}

TEST(CostModel, ADoorbellOf32ReadsIsNotOneRoundTrip) {
  const std::array<CostPhase, 1> one{{{.work_requests = 32, .bytes = 0, .queue_pairs = 1}}};
  EXPECT_NEAR(CostMicros(one), 2.7 + 31 / 2.55 + 1.6, 1e-9);
  const std::array<CostPhase, 1> many{{{.work_requests = 32, .bytes = 0, .queue_pairs = 64}}};
  EXPECT_NEAR(CostMicros(many), 2.7 + 31 / 111.0 + 1.6, 1e-9);
}

TEST(CostModel, PhasesAddUpAndBytesTakeTheirTime) {
  const std::array<CostPhase, 2> phases{
      {{.work_requests = 1, .bytes = 10'400}, {.work_requests = 1, .bytes = 104'000}}};
  EXPECT_NEAR(CostMicros(phases), 2 * 2.75 + 1 + 10, 1e-9);
}

TEST(CostMeter, DepthIsWhatWaitsForOneAnother) {
  CostMeter meter;
  const uint32_t a = meter.Issued(10), b = meter.Issued(20);
  EXPECT_EQ(meter.depth(), 1u);
  meter.Completed(a, 100);
  const uint32_t c = meter.Issued(1);  // it may have used the answer to a
  EXPECT_EQ(meter.depth(), 2u);
  meter.Completed(b, 100);
  EXPECT_EQ(meter.Issued(1), c);
  meter.Completed(c, 0);
  EXPECT_EQ(meter.depth(), 2u);
  EXPECT_EQ(meter.work_requests(), 4u);
  EXPECT_EQ(meter.bytes(), 232u);
}

}  // namespace
}  // namespace kvcfs::rdma
