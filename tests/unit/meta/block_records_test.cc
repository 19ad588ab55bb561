#include "meta/block_records.h"

#include <random>

#include <gtest/gtest.h>

#include "meta/chain_key.h"

namespace kvcfs::meta {
namespace {

NamespaceRecord SomeNamespace() {
  NamespaceRecord record;
  record.name = "llama-70b.fp8";
  record.uuid = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16};
  record.block_bytes = 2u << 20;
  record.quota_bytes = uint64_t{1} << 40;
  record.sync = true;
  record.replicas = 2;
  record.uid = 1000;
  record.gid = 100;
  record.mode = 0755;
  record.mtime_nanos = -5;
  record.ctime_nanos = 1'700'000'000'000'000'001;
  record.files_root = uint64_t{3} << 62 | 77;
  return record;
}

BlockRecord SomeBlock() {
  BlockRecord record;
  record.parent = ChainKey(BlockKey{}, 1);
  record.ordinal = 7;
  record.length = 160u << 10;
  record.place = {3, 0x1234, uint64_t{1} << 39};
  record.mtime_s = 1'700'000'000;
  record.last_use_s = 1'700'000'100;
  record.crc32c = 0xdeadbeef;
  record.hits = 65535;
  return record;
}

TEST(BlockRecordsTest, WhatWasWrittenIsRead) {
  EXPECT_EQ(DecodeNamespaceRecord(EncodeNamespaceRecord(SomeNamespace())), SomeNamespace());
  EXPECT_EQ(DecodeBlockRecord(EncodeBlockRecord(SomeBlock())), SomeBlock());
  EXPECT_EQ(DecodeCounter(EncodeCounter(~uint64_t{0})), ~uint64_t{0});
  EXPECT_EQ(DecodeNamespaceRecordKey(NamespaceRecordKey(0x01020304)), 0x01020304u);
  const BlockKey key = ChainKey(BlockKey{}, 9);
  EXPECT_EQ(DecodeBlockRecordKey(BlockRecordKey(300, key)), std::pair(NamespaceId{300}, key));
  // Big-endian: records are listed by id.
  EXPECT_LT(NamespaceRecordKey(255), NamespaceRecordKey(256));
}

TEST(BlockRecordsTest, EveryFlippedBitAndEveryCutIsRefused) {
  for (const std::string& good :
       {EncodeNamespaceRecord(SomeNamespace()), EncodeBlockRecord(SomeBlock()), EncodeCounter(7)}) {
    for (size_t bit = 0; bit < 8 * good.size(); ++bit) {
      std::string bad = good;
      bad[bit / 8] = static_cast<char>(bad[bit / 8] ^ (1 << (bit % 8)));
      EXPECT_FALSE(DecodeNamespaceRecord(bad).has_value());
      EXPECT_FALSE(DecodeBlockRecord(bad).has_value());
      EXPECT_FALSE(DecodeCounter(bad).has_value());
    }
    for (size_t size = 0; size < good.size(); ++size) {
      EXPECT_FALSE(DecodeNamespaceRecord(good.substr(0, size)).has_value());
      EXPECT_FALSE(DecodeBlockRecord(good.substr(0, size)).has_value());
      EXPECT_FALSE(DecodeCounter(good.substr(0, size)).has_value());
    }
    EXPECT_FALSE(DecodeBlockRecord(good + "x").has_value());
  }
  // One kind is never taken for another.
  EXPECT_FALSE(DecodeBlockRecord(EncodeNamespaceRecord(SomeNamespace())).has_value());
  EXPECT_FALSE(DecodeNamespaceRecord(EncodeBlockRecord(SomeBlock())).has_value());
}

TEST(BlockRecordsTest, ImpossibleBlocksAreRefused) {
  BlockRecord record = SomeBlock();
  record.length = 0;
  EXPECT_FALSE(DecodeBlockRecord(EncodeBlockRecord(record)).has_value());
  record.length = (64u << 20) + 1;
  EXPECT_FALSE(DecodeBlockRecord(EncodeBlockRecord(record)).has_value());
  record = SomeBlock();
  record.parent = BlockKey{};
  EXPECT_FALSE(DecodeBlockRecord(EncodeBlockRecord(record)).has_value());
  record = SomeBlock();
  record.ordinal = 0;
  EXPECT_FALSE(DecodeBlockRecord(EncodeBlockRecord(record)).has_value());
  NamespaceRecord space = SomeNamespace();
  space.name.clear();
  EXPECT_FALSE(DecodeNamespaceRecord(EncodeNamespaceRecord(space)).has_value());
  space.name.assign(256, 'n');
  EXPECT_FALSE(DecodeNamespaceRecord(EncodeNamespaceRecord(space)).has_value());
}

TEST(BlockRecordsTest, GarbageIsRefused) {
  std::mt19937_64 random(7);
  for (int i = 0; i < 100'000; ++i) {
    std::string garbage(random() % 400, '\0');
    for (char& byte : garbage) byte = static_cast<char>(random());
    EXPECT_FALSE(DecodeNamespaceRecord(garbage).has_value());
    EXPECT_FALSE(DecodeBlockRecord(garbage).has_value());
    EXPECT_FALSE(DecodeCounter(garbage).has_value());
    if (garbage.size() != 5) {
      EXPECT_FALSE(DecodeNamespaceRecordKey(garbage).has_value());
    }
    if (garbage.size() != 37) {
      EXPECT_FALSE(DecodeBlockRecordKey(garbage).has_value());
    }
  }
}

}  // namespace
}  // namespace kvcfs::meta
