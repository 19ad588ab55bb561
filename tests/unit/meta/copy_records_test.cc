#include "meta/copy_records.h"

#include <gtest/gtest.h>

namespace kvcfs::meta {
namespace {

CopyRecord Record() {
  CopyRecord record;
  record.facts.id.space = {0x0102030405060708, 0x1112131415161718};
  for (size_t i = 0; i < BlockKey::kBytes; ++i) {
    record.facts.id.key.bytes[i] = static_cast<uint8_t>(i);
    record.facts.parent.bytes[i] = static_cast<uint8_t>(i + 50);
    record.facts.anchor.bytes[i] = static_cast<uint8_t>(i + 100);
    record.facts.parent_anchor.bytes[i] = static_cast<uint8_t>(i + 150);
  }
  record.facts.ordinal = 3;
  record.facts.length = 1 << 20;
  record.facts.crc32c = 0xfeedface;
  record.facts.mtime_s = 1'700'000'000;
  record.facts.replicas = 2;
  record.generation = 77;
  record.version = 0x1234567890;
  record.place = {5, 6, 7};
  record.slot = 8;
  return record;
}

TEST(CopyRecords, WhatIsEncodedIsDecoded) {
  const CopyRecord record = Record();
  const std::string key = CopyRecordKey(record.facts.id, record.generation);
  EXPECT_TRUE(key.starts_with(kCopyRecordPrefix));
  EXPECT_EQ(DecodeCopyRecord(key, EncodeCopyRecord(record)), record);
}

TEST(CopyRecords, KeysAreInTheOrderOfGenerations) {
  const BlockId id = Record().facts.id;
  EXPECT_LT(CopyRecordKey(id, 0xff), CopyRecordKey(id, 0x100));
}

TEST(CopyRecords, AnyChangedBitIsSeen) {
  const CopyRecord record = Record();
  const std::string key = CopyRecordKey(record.facts.id, record.generation);
  const std::string value = EncodeCopyRecord(record);
  for (size_t bit = 0; bit < value.size() * 8; ++bit) {
    std::string damaged = value;
    damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ (1 << (bit % 8)));
    EXPECT_EQ(DecodeCopyRecord(key, damaged), std::nullopt) << bit;
  }
  for (size_t length = 0; length < value.size(); ++length) {
    EXPECT_EQ(DecodeCopyRecord(key, value.substr(0, length)), std::nullopt);
  }
  EXPECT_EQ(DecodeCopyRecord(key + "x", value), std::nullopt);
  EXPECT_EQ(DecodeCopyRecord("", value), std::nullopt);
}

TEST(CopyRecords, ACopyThatIsNotPublishedHasNoRecord) {
  CopyRecord record = Record();
  record.version = 0;
  const std::string key = CopyRecordKey(record.facts.id, record.generation);
  EXPECT_EQ(DecodeCopyRecord(key, EncodeCopyRecord(record)), std::nullopt);
}

}  // namespace
}  // namespace kvcfs::meta
