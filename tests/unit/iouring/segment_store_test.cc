// What the store promises while nothing fails.
#include "iouring/segment_store.h"

#include <future>

#include "tests/unit/iouring/store_fixture.h"

namespace kvcfs::iouring {
namespace {

const std::vector<uint64_t> kLengths{0,    1,     100,   3900,  3916,    3917,    4096,
                                     4097, 65535, 65536, 65537, 200'000, 524'288, 900'000};

TEST_F(StoreTest, EntriesOfAllLengthsComeBack) {
  Open();
  std::vector<Outcome> all;
  for (size_t i = 0; i < kLengths.size(); ++i) {
    all.push_back(Append(BlockMeta(i, kLengths[i]), i % 2 == 0));
  }
  for (const Outcome& one : all) {
    ASSERT_TRUE(one.place.ok()) << one.place.error().text;
    EXPECT_EQ(ReadBack(one.meta, *one.place), Code::kOk) << one.meta.length;
  }
  Close();
  Open();
  ASSERT_EQ(visited_.size(), all.size());
  for (size_t i = 0; i < all.size(); ++i) {
    EXPECT_EQ(visited_[i].place, *all[i].place);
    EXPECT_EQ(visited_[i].meta.key, all[i].meta.key);
    EXPECT_EQ(visited_[i].meta.parent, all[i].meta.parent);
    EXPECT_EQ(visited_[i].meta.ordinal, all[i].meta.ordinal);
    EXPECT_EQ(visited_[i].meta.crc32c, all[i].meta.crc32c);
    EXPECT_EQ(visited_[i].meta.mtime_nanos, all[i].meta.mtime_nanos);
    EXPECT_EQ(ReadBack(all[i].meta, *all[i].place), Code::kOk);
  }
  EXPECT_TRUE(Scan().problems.empty());
}

TEST_F(StoreTest, AnEntryLargerThanTheStagingMemoryIsWritten) {
  options_.segment_bytes = 8 << 20;
  options_.capacity_bytes = 16 * options_.segment_bytes;
  options_.staging_bytes = 1 << 20;
  Open();
  const auto before = Queue(BlockMeta(1, 300'000));
  const auto large = Queue(BlockMeta(2, 5'000'000));
  const auto larger = Queue(BlockMeta(3, EntryBytesMax(options_.segment_bytes)), true);
  const auto after = Queue(BlockMeta(4, 300'000));
  WaitForAll();
  for (const auto& one : {before, large, larger, after}) {
    ASSERT_TRUE(one->place.ok());
    EXPECT_EQ(ReadBack(one->meta, *one->place), Code::kOk);
  }
}

TEST_F(StoreTest, WhatNoSegmentCanHoldIsRefused) {
  Open();
  AppendRequest request;
  request.meta = BlockMeta(1, store_->Stats().entry_bytes_max + 1);
  EXPECT_EQ(store_->Append(request).code(), Code::kTooLarge);
  EXPECT_TRUE(Append(BlockMeta(1, store_->Stats().entry_bytes_max)).place.ok());
}

TEST_F(StoreTest, DoneComesInTheOrderOfTheQueue) {
  Open();
  for (uint64_t i = 0; i < 500; ++i) Queue(BlockMeta(i, (i * 7919) % 40'000), i % 7 == 0);
  WaitForAll();
  ASSERT_EQ(order_.size(), 500u);
  for (uint64_t i = 0; i < 500; ++i) {
    EXPECT_EQ(order_[i].key, KeyOf(i));
    if (i != 0) {
      EXPECT_GT(order_[i].sequence, order_[i - 1].sequence);
    }
  }
}

TEST_F(StoreTest, SmallDurableEntriesShareFlushes) {
  Open();
  // The writer is held in the first fill until all are queued.
  std::promise<void> queued;
  std::shared_future<void> all_queued = queued.get_future().share();
  AppendRequest request;
  request.meta = BlockMeta(1000, 10);
  request.fill = [all_queued](std::span<std::byte>) {
    all_queued.wait();
    return true;
  };
  ASSERT_TRUE(store_->Append(request).ok());
  for (uint64_t i = 0; i < 200; ++i) Queue(BlockMeta(i, 10), true);
  const uint64_t before = disk_->flushes();
  queued.set_value();
  WaitForAll();
  EXPECT_LE(disk_->flushes() - before, 10u);
}

TEST_F(StoreTest, ASourceThatIsGoneIsSkipped) {
  Open();
  Code code = Code::kOk;
  AppendRequest request;
  request.meta = BlockMeta(1, 1000);
  request.fill = [](std::span<std::byte>) { return false; };
  request.done = [&code](const Result<SegmentPlace>& place, const EntryMeta&) {
    code = place.code();
  };
  ASSERT_TRUE(store_->Append(request).ok());
  EXPECT_TRUE(Append(BlockMeta(2, 1000)).place.ok());
  EXPECT_EQ(code, Code::kCancelled);
  Close();
  Open();
  EXPECT_EQ(visited_.size(), 1u);
}

TEST_F(StoreTest, AFullQueueSaysBusyAndHasRoomLater) {
  options_.queue_bytes_max = 100'000;
  Open();
  std::promise<void> go;
  std::shared_future<void> may_go = go.get_future().share();
  AppendRequest request;
  request.meta = BlockMeta(1, 90'000);
  request.fill = [may_go](std::span<std::byte>) {
    may_go.wait();
    return true;
  };
  ASSERT_TRUE(store_->Append(request).ok());
  request.meta = BlockMeta(2, 50'000);
  EXPECT_EQ(store_->Append(request).code(), Code::kBusy);
  EXPECT_FALSE(store_->WaitForRoom(50'000, 0));
  go.set_value();
  EXPECT_TRUE(store_->WaitForRoom(50'000, 60'000));
  EXPECT_TRUE(store_->Append(request).ok());
  // What is larger than the bound still gets through when nothing else waits.
  EXPECT_TRUE(store_->Flush(false).ok());
  request.meta = BlockMeta(3, 200'000);
  EXPECT_TRUE(store_->Append(request).ok());
}

TEST_F(StoreTest, FlushWaitsForAllBefore) {
  Open();
  std::vector<std::shared_ptr<Outcome>> all;
  for (uint64_t i = 0; i < 50; ++i) all.push_back(Queue(BlockMeta(i, 20'000)));
  ASSERT_TRUE(store_->Flush(true).ok());
  MutexLock lock(mutex_);
  for (const auto& one : all) EXPECT_TRUE(one->place.ok());
}

TEST_F(StoreTest, ReadTellsAnotherEntryFromThisOne) {
  Open();
  const Outcome one = Append(BlockMeta(1, 10'000));
  const Outcome two = Append(BlockMeta(2, 10'000));
  EXPECT_EQ(ReadBack(two.meta, *one.place), Code::kStale);
  EntryMeta file = FileMeta(1, 1, 10'000);
  EXPECT_EQ(ReadBack(file, *one.place), Code::kStale);
  SegmentPlace later = *one.place;
  later.sequence = two.meta.sequence;
  EXPECT_EQ(ReadBack(one.meta, later), Code::kStale);
  EXPECT_EQ(ReadBack(one.meta, {}), Code::kStale);
  EXPECT_EQ(ReadBack(one.meta, {9999, 1, 1}), Code::kStale);
  AlignedBuffer memory(4096);
  EXPECT_EQ(store_->Read(*one.place, one.meta, memory.span()).code(), Code::kInvalid);
}

TEST_F(StoreTest, AFlippedBitIsFound) {
  Open();
  const Outcome one = Append(BlockMeta(1, 100'000), true);
  const Outcome two = Append(BlockMeta(2, 50), true);
  auto& bytes = disk_->Bytes(SegmentName(one.place->segment));
  const size_t data = one.place->offset_4k * kPageBytes + kPageBytes;
  bytes[data + 99'999] ^= std::byte{4};
  EXPECT_EQ(ReadBack(one.meta, *one.place), Code::kCorrupt);
  EXPECT_EQ(store_->Stats().corrupt_entries, 1u);
  bytes[data + 99'999] ^= std::byte{4};
  EXPECT_EQ(ReadBack(one.meta, *one.place), Code::kOk);
  bytes[two.place->offset_4k * kPageBytes + 200] ^= std::byte{1};
  EXPECT_EQ(ReadBack(two.meta, *two.place), Code::kCorrupt);
}

TEST_F(StoreTest, ManySmallEntriesFillSegmentsOverAndOver) {
  Open();
  std::vector<std::shared_ptr<Outcome>> all;
  for (uint64_t i = 0; i < 1500; ++i) all.push_back(Queue(FileMeta(i + 1, 1, i % 3000)));
  WaitForAll();
  Close();
  Open();
  EXPECT_EQ(visited_.size(), all.size());
  for (const auto& one : all) {
    ASSERT_TRUE(one->place.ok());
    ASSERT_EQ(ReadBack(one->meta, *one->place), Code::kOk);
  }
  std::set<uint32_t> segments;
  for (const auto& one : all) segments.insert(one->place->segment);
  EXPECT_GT(segments.size(), 4u);
}

TEST_F(StoreTest, ManyThreadsReadWhatIsThere) {
  Open();
  std::vector<std::shared_ptr<Outcome>> all;
  for (uint64_t i = 0; i < 40; ++i) all.push_back(Queue(BlockMeta(i, 100'000 + i)));
  WaitForAll();
  std::vector<std::thread> threads;
  std::atomic<uint64_t> good{0};
  for (unsigned thread = 0; thread < 4; ++thread) {
    threads.emplace_back([&] {
      for (const auto& one : all) {
        if (ReadBack(one->meta, *one->place) == Code::kOk) ++good;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(good.load(), 160u);
}

}  // namespace
}  // namespace kvcfs::iouring
