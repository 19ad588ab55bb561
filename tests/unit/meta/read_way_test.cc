#include "meta/read_way.h"

#include <gtest/gtest.h>

namespace kvcfs::meta {
namespace {

using std::chrono::microseconds;

// Reads by what is chosen; how many of them were calls.
int Calls(ReadWay& way, size_t length, microseconds one_sided, microseconds call, int reads) {
  int calls = 0;
  for (int i = 0; i < reads; ++i) {
    const Way chosen = way.Choose(length);
    way.Took(chosen, length, chosen == Way::kCall ? call : one_sided);
    calls += chosen == Way::kCall ? 1 : 0;
  }
  return calls;
}

TEST(ReadWayTest, WhatTookLessIsChosenAndTheOtherTriedNowAndThen) {
  ReadWay way;
  EXPECT_EQ(way.Choose(1 << 20), Way::kOneSided);
  const int tried = 640 / static_cast<int>(ReadWay::kTryOther);
  EXPECT_NEAR(Calls(way, 1 << 20, microseconds(50), microseconds(90), 640), tried, 2);
  // Lengths of another size are another question.
  EXPECT_NEAR(Calls(way, 20'000, microseconds(50), microseconds(20), 640), 640 - tried, 2);
  EXPECT_NEAR(Calls(way, 1 << 20, microseconds(50), microseconds(90), 640), tried, 2);
}

TEST(ReadWayTest, AChangeIsNoticed) {
  ReadWay way;
  Calls(way, 1 << 20, microseconds(50), microseconds(90), 1000);
  // One-sided reads have become slow: seen at once, since they are what is done.
  EXPECT_GT(Calls(way, 1 << 20, microseconds(500), microseconds(90), 1000), 900);
  // They are fast again: seen by those that are tried.
  Calls(way, 1 << 20, microseconds(5), microseconds(90), 10'000);
  EXPECT_LT(Calls(way, 1 << 20, microseconds(5), microseconds(90), 1000), 100);
}

TEST(ReadWayTest, WhatFailedAndTookLongIsAvoided) {
  ReadWay way;
  way.Took(Way::kOneSided, 1 << 20, std::chrono::seconds(1));
  way.Took(Way::kCall, 1 << 20, std::chrono::milliseconds(1));
  EXPECT_EQ(way.Choose(1 << 20), Way::kCall);
}

}  // namespace
}  // namespace kvcfs::meta
