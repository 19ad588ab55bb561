// Space comes back: what is wanted moves, the rest goes, and nothing of an earlier life is seen.
#include <future>

#include "tests/unit/iouring/store_fixture.h"

namespace kvcfs::iouring {
namespace {

class ReclaimTest : public StoreTest {
 protected:
  void Start() {
    books_.SetStore(store_.get());
    for (const Located& one : visited_) books_.Replay(one.meta, one.place);
    for (const Located& one : books_.All()) {
      EXPECT_TRUE(store_->MarkLive(one.place, one.meta.length));
    }
    store_->Start(&books_);
  }
  void Put(const EntryMeta& meta, bool durable = false) {
    const Outcome one = Append(meta, durable);
    ASSERT_TRUE(one.place.ok()) << one.place.error().text;
    books_.Put(one.meta, *one.place);
  }
  // So many live files, overwritten at random, that every segment is reclaimed again and again.
  void Churn() {
    std::mt19937_64 random(Seed());
    for (uint64_t i = 0; i < 1200; ++i) {
      Put(FileMeta(1 + random() % 150, 1'000'000 + i, 50'000));
      ASSERT_FALSE(HasFatalFailure());
    }
  }
  // Entries may move meanwhile: who finds a stale place asks again.
  void ExpectAllReadable() {
    for (const Located& one : books_.All()) {
      Code code = Code::kStale;
      auto now = books_.Find(one.meta);
      while (now && code == Code::kStale) {
        code = ReadBack(now->meta, now->place);
        now = books_.Find(one.meta);
      }
      EXPECT_TRUE(code == Code::kOk || !now) << "it is live and cannot be read";
    }
  }
  Outcome AppendTombstone(const EntryMeta& of) {
    EntryMeta meta = of;
    meta.kind =
        of.kind == EntryKind::kFile ? EntryKind::kFileTombstone : EntryKind::kBlockTombstone;
    meta.length = 0;
    books_.Drop(of);
    return Append(meta, true);
  }
  void Reopen() {
    Close();
    books_.SetStore(nullptr);
    books_.Clear();
    Open();
    Start();
  }

  Books books_;
};

TEST_F(ReclaimTest, WhatIsDeadIsReusedManyTimes) {
  Open();
  Start();
  for (uint64_t i = 0; i < 2000; ++i) {
    Put(FileMeta(1 + i % 50, i + 1, 50'000));
    ASSERT_FALSE(HasFatalFailure());
  }
  EXPECT_EQ(books_.All().size(), 50u);
  ExpectAllReadable();
  EXPECT_GT(store_->Stats().appended_bytes, 5 * options_.capacity_bytes);
  Reopen();
  EXPECT_EQ(books_.All().size(), 50u);
  for (const Located& one : books_.All()) EXPECT_GT(one.meta.version, 1950u);
  ExpectAllReadable();
  EXPECT_TRUE(Scan().problems.empty());
}

TEST_F(ReclaimTest, WhatIsWantedMoves) {
  Open();
  Start();
  // One of ten is never given up, in between of what is overwritten all the time.
  for (uint64_t i = 0; i < 1500; ++i) {
    if (i % 10 == 0 && i < 800) {
      Put(BlockMeta(i, 40'000));
    } else {
      Put(FileMeta(1 + i % 20, i + 1, 50'000));
    }
    ASSERT_FALSE(HasFatalFailure());
  }
  EXPECT_EQ(books_.All().size(), 100u);
  EXPECT_GT(books_.moved_.load(), 50u);
  EXPECT_EQ(books_.lost_.load(), 0u);
  EXPECT_GT(store_->Stats().moved_bytes, 50u * 40'000);
  ExpectAllReadable();
  Reopen();
  EXPECT_EQ(books_.All().size(), 100u);
  ExpectAllReadable();
  EXPECT_TRUE(Scan().problems.empty());
}

TEST_F(ReclaimTest, MovesAreInTheOwnersRecordsBeforeTheOldCopiesGo) {
  // As a metadata store would: what was moved counts when it was persisted.
  class Recorder final : public EntryOwner {
   public:
    explicit Recorder(Books& books) : books_(books) {}
    Fate Judge(const EntryMeta& meta, const SegmentPlace& place) override {
      return books_.Judge(meta, place);
    }
    void Moved(const EntryMeta& meta, const SegmentPlace& before,
               const SegmentPlace& now) override {
      unpersisted_.push_back({meta, before});
      books_.Moved(meta, before, now);
    }
    void Lost(const EntryMeta& meta, const SegmentPlace& place) override {
      books_.Lost(meta, place);
    }
    void Shed(uint64_t bytes) override { books_.Shed(bytes); }
    void PersistMoves() override {
      ++calls_;
      // The old copies are still there, whenever a crash comes.
      for (const Located& one : unpersisted_) {
        AlignedBuffer memory(one.meta.length);
        EXPECT_TRUE(store_->Read(one.place, one.meta, memory.span()).ok());
      }
      unpersisted_.clear();
    }
    Books& books_;
    SegmentStore* store_ = nullptr;
    std::vector<Located> unpersisted_;
    uint64_t calls_ = 0;
  };
  Recorder recorder(books_);
  Open();
  recorder.store_ = store_.get();
  books_.SetStore(store_.get());
  store_->Start(&recorder);
  Churn();
  Close();
  EXPECT_GT(recorder.calls_, 3u);
}

TEST_F(ReclaimTest, AboveTheShareTheOwnerIsAskedToShed) {
  options_.capacity_bytes = 32 * kSegment;
  options_.live_share_max = 0.5;
  Open();
  Start();
  for (uint64_t i = 0; i < 1500; ++i) {
    Put(BlockMeta(i, 50'000));
    ASSERT_FALSE(HasFatalFailure());
  }
  EXPECT_GT(books_.shed_calls_.load(), 0u);
  const SegmentStats stats = store_->Stats();
  EXPECT_GT(stats.live_bytes, stats.capacity_bytes / 4);
  EXPECT_GT(books_.All().size(), 150u);
  ExpectAllReadable();
}

TEST_F(ReclaimTest, AllThatIsQueuedAtOnceGetsThroughAFullStore) {
  Open();
  Start();
  for (uint64_t i = 0; i < 600; ++i) {
    AppendRequest request;
    request.meta = BlockMeta(i, 60'000);
    request.durable = i % 5 == 0;
    request.fill = [meta = request.meta](std::span<std::byte> into) {
      FillContent(meta, into);
      return true;
    };
    request.done = [this](const Result<SegmentPlace>& place, const EntryMeta& meta) {
      EXPECT_TRUE(place.ok());
      if (place.ok()) books_.Put(meta, *place);
    };
    ASSERT_TRUE(store_->Append(std::move(request)).ok());
  }
  EXPECT_TRUE(store_->Flush(true).ok());
  ExpectAllReadable();
}

TEST_F(ReclaimTest, ATombstoneOutlivesWhatItHides) {
  Open();
  // An old version lies in a segment that stays; its tombstone in one that is reclaimed.
  Start();
  Put(FileMeta(7, 1, 30'000), true);
  for (uint64_t i = 0; i < 20; ++i) Put(BlockMeta(i, 45'000), true);  // fills that segment, stays
  ASSERT_TRUE(AppendTombstone(FileMeta(7, 1, 30'000)).place.ok());
  for (uint64_t i = 0; i < 1200; ++i) {
    Put(FileMeta(100 + i % 10, i + 1, 50'000));
    ASSERT_FALSE(HasFatalFailure());
  }
  Reopen();
  EXPECT_FALSE(books_.Find(FileMeta(7, 0, 0))) << "came back";
  EXPECT_EQ(books_.All().size(), 30u);
}

TEST_F(ReclaimTest, ATombstoneGoesWhenItHidesNothing) {
  Open();
  Start();
  for (uint64_t round = 0; round < 12; ++round) {
    for (uint64_t i = 0; i < 30; ++i) {
      const EntryMeta meta = FileMeta(1000 * round + i + 1, 1, 30'000);
      Put(meta, false);
      ASSERT_TRUE(AppendTombstone(meta).place.ok());
    }
  }
  Churn();
  Close();
  uint64_t tombstones = 0;
  MemoryDevice device(disk_);
  auto scan = ScanSegmentsOn(device, [&](const EntryMeta& meta, const SegmentPlace&) {
    if (IsTombstone(meta.kind)) ++tombstones;
  });
  ASSERT_TRUE(scan.ok());
  EXPECT_LT(tombstones, 40u) << "of 360";
}

TEST_F(ReclaimTest, AMovedTombstoneDoesNotHideWhatCameLater) {
  Open();
  Start();
  const EntryMeta block = BlockMeta(5, 30'000);
  Put(block, true);
  for (uint64_t i = 100; i < 120; ++i) Put(BlockMeta(i, 45'000), true);
  ASSERT_TRUE(AppendTombstone(block).place.ok());
  Put(block, true);  // again
  for (uint64_t i = 0; i < 1200; ++i) {
    Put(FileMeta(1 + i % 10, i + 1, 50'000));
    ASSERT_FALSE(HasFatalFailure());
  }
  Reopen();
  const auto found = books_.Find(block);
  ASSERT_TRUE(found);
  EXPECT_EQ(ReadBack(block, found->place), Code::kOk);
}

TEST_F(ReclaimTest, AnEmptySegmentIsFreeAtOnce) {
  Open();
  Start();
  std::vector<EntryMeta> metas;
  for (uint64_t i = 0; i < 64; ++i) {
    metas.push_back(BlockMeta(i, 60'000));
    Put(metas.back());
  }
  const uint64_t before = store_->Stats().segments_free;
  for (const EntryMeta& meta : metas) books_.Drop(meta);
  // Three full ones; the writer may take one for what comes next at any moment.
  EXPECT_GE(store_->Stats().segments_free, before + 2);
}

TEST_F(ReclaimTest, StaleEntriesOfAnEarlierLifeAreNotSeen) {
  Open();
  Start();
  // Lives of different fill: pages of the earlier one lie behind the end of the later one.
  std::vector<Located> old;
  for (uint64_t i = 0; i < 200; ++i) {
    const Outcome one = Append(FileMeta(1, i + 1, 50'000));
    ASSERT_TRUE(one.place.ok());
    books_.Put(one.meta, *one.place);
    old.push_back({one.meta, *one.place});
  }
  const Located last = old.back();
  uint64_t readable = 0;
  for (const Located& one : old) {
    const Code code = ReadBack(one.meta, one.place);
    if (code == Code::kOk) ++readable;
  }
  EXPECT_LT(readable, 200u);
  Crash();  // no checkpoint
  books_.Clear();
  Open();
  EXPECT_EQ(visited_.size(), static_cast<size_t>(std::count_if(
                                 visited_.begin(), visited_.end(), [&](const Located& one) {
                                   return one.meta.version <= last.meta.version;
                                 })));
  for (const Located& one : visited_) {
    const bool known = std::any_of(old.begin(), old.end(), [&](const Located& other) {
      return other.place == one.place && other.meta.version == one.meta.version;
    });
    EXPECT_TRUE(known);
  }
}

TEST_F(ReclaimTest, ReadersAndReclaimDoNotDisturbEachOther) {
  Open();
  Start();
  std::atomic<bool> stop{false};
  std::atomic<uint64_t> good{0}, stale{0}, other{0};
  std::vector<std::thread> readers;
  for (unsigned i = 0; i < 3; ++i) {
    readers.emplace_back([&, i] {
      std::mt19937_64 random(Seed() + i);
      while (!stop) {
        const auto found = books_.Find(FileMeta(1 + random() % 20, 0, 0));
        if (!found) continue;
        const Code code = ReadBack(found->meta, found->place);
        ++(code == Code::kOk ? good : code == Code::kStale ? stale : other);
      }
    });
  }
  for (uint64_t i = 0; i < 1500; ++i) {
    Put(FileMeta(1 + i % 20, i + 1, 60'000));
    if (HasFatalFailure()) break;
  }
  stop = true;
  for (std::thread& reader : readers) reader.join();
  EXPECT_GT(good.load(), 0u);
  EXPECT_EQ(other.load(), 0u) << "neither corrupt nor I/O errors";
}

TEST_F(ReclaimTest, DamageUnderAMoveIsLostAndOthersMove) {
  Quiet();
  Open();
  Start();
  const Outcome bad = Append(BlockMeta(1, 50'000), true);
  books_.Put(bad.meta, *bad.place);
  Put(BlockMeta(2, 50'000), true);
  disk_->Bytes(SegmentName(bad.place->segment))[bad.place->offset_4k * kPageBytes + 5000] ^=
      std::byte{1};
  Churn();
  EXPECT_EQ(books_.lost_.load(), 1u);
  EXPECT_FALSE(books_.Find(BlockMeta(1, 0)));
  ASSERT_TRUE(books_.Find(BlockMeta(2, 0)));
  ExpectAllReadable();
}

}  // namespace
}  // namespace kvcfs::iouring
