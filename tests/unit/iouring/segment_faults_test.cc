// The device refuses: writes, flushes and reads that fail, disks without room.
#include <future>

#include "tests/unit/iouring/store_fixture.h"

namespace kvcfs::iouring {
namespace {

class FaultsTest : public StoreTest {
 protected:
  FaultsTest() { Quiet(); }

  // Fails the nth operation of a kind from now on (counted from 0), `count` times.
  void FailNth(IoRequest::Op op, uint64_t nth, uint64_t count, int error) {
    auto seen = std::make_shared<uint64_t>(0);
    disk_->SetFault([=](uint64_t, const IoRequest& request) {
      if (request.op != op) return 0;
      const uint64_t number = (*seen)++;
      return number >= nth && number < nth + count ? error : 0;
    });
  }
};

TEST_F(FaultsTest, AFailedWriteRetiresTheSegmentAndNoEntryIsLost) {
  for (uint64_t nth = 0; nth < 12; ++nth) {
    disk_ = std::make_shared<MemoryDisk>(Seed());
    order_.clear();
    Open();
    Append(BlockMeta(1000, 100), true);  // its segment is open
    FailNth(IoRequest::Op::kWrite, nth, 1, EIO);
    std::vector<std::shared_ptr<Outcome>> all;
    for (uint64_t i = 0; i < 60; ++i) {
      all.push_back(Queue(BlockMeta(i, (i * 7919) % 90'000), i % 3 == 0));
    }
    WaitForAll();
    disk_->SetFault(nullptr);
    EXPECT_EQ(store_->Stats().segments_retired, 1u);
    EXPECT_EQ(store_->Stats().io_errors, 1u);
    for (const auto& one : all) {
      ASSERT_TRUE(one->place.ok()) << one->place.error().text;
      EXPECT_EQ(ReadBack(one->meta, *one->place), Code::kOk);
    }
    for (size_t i = 1; i < order_.size(); ++i) {
      EXPECT_GT(order_[i].sequence, order_[i - 1].sequence) << "order of the queue";
    }
    Close();
    Open();
    std::map<BlockKey, SegmentPlace> last;
    for (const Located& one : visited_) last[one.meta.key] = one.place;
    for (const auto& one : all) EXPECT_EQ(last[one->meta.key], *one->place);
    Close();
  }
}

TEST_F(FaultsTest, AFailedFlushRetiresTheSegmentAndDurableEntriesAreWrittenAgain) {
  Open();
  const Outcome before = Append(BlockMeta(1, 5000), true);
  FailNth(IoRequest::Op::kSync, 0, 1, EIO);
  const Outcome after = Append(BlockMeta(2, 5000), true);
  disk_->SetFault(nullptr);
  ASSERT_TRUE(after.place.ok());
  EXPECT_NE(after.place->segment, before.place->segment);
  EXPECT_EQ(store_->Stats().segments_retired, 1u);
  // What was done before can still be read, and MarkDead of it does no harm.
  EXPECT_EQ(ReadBack(before.meta, *before.place), Code::kOk);
  EXPECT_EQ(ReadBack(after.meta, *after.place), Code::kOk);
  store_->MarkDead(*before.place, before.meta.length);
  // It is durable: lost is only what was not.
  Crash();
  Open();
  EXPECT_EQ(ReadBack(after.meta, *after.place), Code::kOk);
}

TEST_F(FaultsTest, AFlushIsToldOfWhatMayBeLost) {
  Open();
  Append(BlockMeta(1, 5000));
  FailNth(IoRequest::Op::kSync, 0, 1, EIO);
  EXPECT_EQ(store_->Flush(true).code(), Code::kIo);
  disk_->SetFault(nullptr);
  EXPECT_TRUE(store_->Flush(true).ok());
}

TEST_F(FaultsTest, ADeviceThatRefusesEverythingSaysIoAndGoesOnLater) {
  Open();
  const Outcome before = Append(BlockMeta(1, 5000), true);
  disk_->SetFault([](uint64_t, const IoRequest& request) {
    return request.op == IoRequest::Op::kRead ? 0 : EIO;
  });
  for (uint64_t i = 0; i < 30; ++i) {
    const Code code = Append(BlockMeta(100 + i, 5000)).place.code();
    EXPECT_TRUE(code == Code::kIo || code == Code::kNoSpace);
  }
  EXPECT_EQ(ReadBack(before.meta, *before.place), Code::kOk);
  disk_->SetFault(nullptr);
  Close();
  Open();
  EXPECT_EQ(ReadBack(before.meta, *before.place), Code::kOk);
  EXPECT_TRUE(Append(BlockMeta(2, 5000), true).place.ok());
}

TEST_F(FaultsTest, NoSpaceUnderASegmentIsNoSpaceAndNotRetired) {
  Open();
  Append(BlockMeta(1, 5000), true);
  FailNth(IoRequest::Op::kWrite, 0, 1, ENOSPC);
  EXPECT_EQ(Append(BlockMeta(2, 5000)).place.code(), Code::kNoSpace);
  disk_->SetFault(nullptr);
  EXPECT_EQ(store_->Stats().segments_retired, 0u);
  EXPECT_TRUE(Append(BlockMeta(3, 5000), true).place.ok());
}

TEST_F(FaultsTest, AReadErrorIsIoAndOthersGoOn) {
  Open();
  const Outcome one = Append(BlockMeta(1, 200'000), true);
  const Outcome two = Append(BlockMeta(2, 200'000), true);
  FailNth(IoRequest::Op::kRead, 0, 1, EIO);
  EXPECT_EQ(ReadBack(one.meta, *one.place), Code::kIo);
  EXPECT_EQ(ReadBack(two.meta, *two.place), Code::kOk);
  EXPECT_EQ(ReadBack(one.meta, *one.place), Code::kOk);
  EXPECT_EQ(store_->Stats().io_errors, 1u);
}

TEST_F(FaultsTest, ADiskThatFillsUpTurnsToReclaim) {
  // Room for five segments of the sixteen, and the superblock.
  disk_->SetRoom(5 * kSegment + kSuperblockBytes);
  Open();
  Books books;
  books.SetStore(store_.get());
  store_->Start(&books);
  for (uint64_t i = 0; i < 300; ++i) {
    const Outcome one = Append(BlockMeta(i, 60'000));
    ASSERT_TRUE(one.place.ok()) << i << " " << one.place.error().text;
    books.Put(one.meta, *one.place);
  }
  EXPECT_GT(books.shed_calls_.load(), 0u);
  EXPECT_GT(books.All().size(), 10u);
  for (const Located& one : books.All()) EXPECT_EQ(ReadBack(one.meta, one.place), Code::kOk);
  Close();
}

TEST_F(FaultsTest, WhereNothingMayGoItIsNoSpaceAndLaterNot) {
  options_.capacity_bytes = 6 * kSegment;
  Open();
  Books books;
  books.refuse_to_shed_ = true;
  books.SetStore(store_.get());
  store_->Start(&books);
  uint64_t id = 0;
  Code code = Code::kOk;
  for (; code == Code::kOk && id < 1000; ++id) {
    const Outcome one = Append(BlockMeta(id, 60'000));
    code = one.place.code();
    if (code == Code::kOk) books.Put(one.meta, *one.place);
  }
  EXPECT_EQ(code, Code::kNoSpace);
  EXPECT_GT(id, 60u) << "most of the capacity can be used";
  for (const Located& one : books.All()) EXPECT_EQ(ReadBack(one.meta, one.place), Code::kOk);
  EXPECT_EQ(Append(BlockMeta(5000, 60'000)).place.code(), Code::kNoSpace);
  books.refuse_to_shed_ = false;
  // The reclaimer is asked again a while later.
  for (code = Code::kNoSpace; code == Code::kNoSpace;) {
    const Outcome one = Append(BlockMeta(6000, 60'000));
    code = one.place.code();
    std::this_thread::yield();
  }
  EXPECT_EQ(code, Code::kOk);
  Close();
}

}  // namespace
}  // namespace kvcfs::iouring
