#include "meta/slot_headers.h"

#include <algorithm>
#include <array>
#include <vector>

#include <gtest/gtest.h>

#include "meta/chain_key.h"

namespace kvcfs::meta {
namespace {

using Words = std::array<uint64_t, kSlotHeaderWords>;

SlotHeader HeaderOf(uint64_t n) {
  SlotHeader header;
  header.id = {{1, 2}, ChainKey({}, n)};
  header.generation = n + 1;
  header.length = static_cast<uint32_t>(n * 3 + 1);
  header.crc32c = static_cast<uint32_t>(n * 7);
  header.region = n << 32 | 5;
  header.key = {.address = n << 12, .keys = {1, 2, 3, static_cast<uint32_t>(n)}};
  return header;
}

Words WordsAt(const SlotHeaders& headers, uint64_t at) {
  Words words{};
  std::memcpy(words.data(), headers.memory().data() + at * kSlotHeaderBytes, kSlotHeaderBytes);
  return words;
}

TEST(SlotHeadersTest, WhatIsPutIsInTheBucketOfItsKeyUntilItIsRemoved) {
  SlotHeaders headers(1000);
  ASSERT_EQ(headers.memory().size(), headers.count() * kSlotHeaderBytes);
  uint64_t placed = 0;
  for (uint64_t n = 1; n <= 1000; ++n) {
    const SlotHeader header = HeaderOf(n);
    const auto at = headers.Put(header);
    if (!at) continue;
    ++placed;
    EXPECT_EQ(*at / kSlotBucketHeaders * kSlotBucketHeaders,
              SlotBucketOf(header.id, headers.count()));
    EXPECT_EQ(DecodeSlotHeader(WordsAt(headers, *at)), header);
    if (n % 2 == 0) continue;
    headers.Remove(*at);
    EXPECT_EQ(DecodeSlotHeader(WordsAt(headers, *at)), SlotHeader());
  }
  EXPECT_GT(placed, 980u);
}

TEST(SlotHeadersTest, AFullBucketTakesNoMore) {
  SlotHeaders headers(1);
  SlotHeader header = HeaderOf(1);
  std::vector<uint64_t> places;
  for (uint64_t i = 0; i < kSlotBucketHeaders; ++i) {
    ++header.generation;
    places.push_back(headers.Put(header).value());
  }
  EXPECT_FALSE(headers.Put(header).has_value());
  headers.Remove(places[2]);
  EXPECT_EQ(headers.Put(header), places[2]);
}

TEST(SlotHeadersTest, ALineOfBeforeAndOneOfAfterAreNoHeader) {
  SlotHeaders headers(1);
  const uint64_t at = headers.Put(HeaderOf(1)).value();
  const Words before = WordsAt(headers, at);
  headers.Remove(at);
  ASSERT_EQ(headers.Put(HeaderOf(1)), at);
  const Words after = WordsAt(headers, at);
  ASSERT_TRUE(DecodeSlotHeader(before).has_value());
  ASSERT_EQ(DecodeSlotHeader(before), DecodeSlotHeader(after));
  Words mixed = before;
  std::copy(after.begin() + 8, after.end(), mixed.begin() + 8);
  EXPECT_FALSE(DecodeSlotHeader(mixed).has_value());
  mixed = after;
  std::copy(before.begin() + 8, before.end(), mixed.begin() + 8);
  EXPECT_FALSE(DecodeSlotHeader(mixed).has_value());
  Words odd = before;
  ++odd[0];
  ++odd[8];
  EXPECT_FALSE(DecodeSlotHeader(odd).has_value());
}

TEST(SlotHeadersTest, ATableThatIsNoneIsNotTakenForOne) {
  const SlotTable table{.region = 7, .headers = 1024};
  EXPECT_EQ(*DecodeSlotTable(Encode(table)), table);
  EXPECT_EQ(DecodeSlotTable(Encode(SlotTable{.region = 7, .headers = 1000})).code(),
            Code::kCorrupt);
  EXPECT_EQ(DecodeSlotTable(Encode(SlotTable{.region = 7, .headers = 2})).code(), Code::kCorrupt);
  EXPECT_EQ(DecodeSlotTable({}).code(), Code::kCorrupt);
}

}  // namespace
}  // namespace kvcfs::meta
