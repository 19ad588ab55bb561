// What an open finds: after a clean end, a torn one, damage, another size, another node.
#include "base/crc32c.h"
#include "tests/unit/iouring/store_fixture.h"

namespace kvcfs::iouring {
namespace {

class RecoveryTest : public StoreTest {
 protected:
  std::byte* PageOf(const SegmentPlace& place, uint64_t page = 0) {
    return disk_->Bytes(SegmentName(place.segment)).data() + (place.offset_4k + page) * kPageBytes;
  }
  void FlipHeader(const SegmentPlace& place) { PageOf(place)[40] ^= std::byte{1}; }
  void FlipData(const SegmentPlace& place) { PageOf(place, 1)[40] ^= std::byte{1}; }
};

TEST_F(RecoveryTest, OnlyWhatIsNewerIsVisited) {
  Open();
  std::vector<Outcome> all;
  for (uint64_t i = 0; i < 100; ++i) all.push_back(Append(BlockMeta(i, 30'000)));
  Close();
  Open(all[59].meta.sequence);
  ASSERT_EQ(visited_.size(), 40u);
  for (size_t i = 0; i < 40; ++i) EXPECT_EQ(visited_[i].place, *all[60 + i].place);
  EXPECT_GE(store_->last_sequence(), all[99].meta.sequence);
  EXPECT_EQ(ReadBack(all[0].meta, *all[0].place), Code::kOk);
  EXPECT_TRUE(store_->MarkLive(*all[0].place, 30'000));
  EXPECT_FALSE(store_->MarkLive({77, 1, 1}, 30'000));
}

TEST_F(RecoveryTest, SealedSegmentsAreReadByTheirTableOnly) {
  Open();
  for (uint64_t i = 0; i < 200; ++i) Queue(BlockMeta(i, 60'000));
  WaitForAll();
  Close();
  uint64_t bytes_read = 0;
  disk_->SetFault([&](uint64_t, const IoRequest& request) {
    if (request.op == IoRequest::Op::kRead) bytes_read += request.bytes + request.then_bytes;
    return 0;
  });
  Open();
  disk_->SetFault(nullptr);
  EXPECT_EQ(visited_.size(), 200u);
  // 12 segments of 1 MiB: their ends, and what follows the checkpoint of the last one.
  EXPECT_LT(bytes_read, 13 * (64 + 8) * 1024 + (1u << 20));
}

TEST_F(RecoveryTest, ARestartFillsTheSameSegmentOn) {
  Open();
  const Outcome before = Append(BlockMeta(1, 50'000));
  for (uint64_t life = 0; life < 5; ++life) {
    Close();
    Open();
    const Outcome next = Append(BlockMeta(10 + life, 50'000));
    EXPECT_EQ(next.place->segment, before.place->segment);
    EXPECT_GT(next.meta.sequence, before.meta.sequence);
    EXPECT_EQ(visited_.size(), 1 + life);
  }
  EXPECT_EQ(ReadBack(before.meta, *before.place), Code::kOk);
  EXPECT_TRUE(Scan().problems.empty());
}

TEST_F(RecoveryTest, ATornTailIsDroppedAndTheRestStays) {
  Quiet();
  Open();
  const Outcome one = Append(BlockMeta(1, 50'000), true);
  const Outcome two = Append(BlockMeta(2, 50'000));
  const Outcome three = Append(BlockMeta(3, 50'000));
  disk_->DieAt(0);
  Close();
  disk_->DieAt(UINT64_MAX);
  FlipData(*two.place);
  EXPECT_TRUE(Scan().problems.empty()) << "a torn tail is no damage";
  Open();
  ASSERT_EQ(visited_.size(), 2u);
  EXPECT_EQ(visited_[0].place, *one.place);
  EXPECT_EQ(visited_[1].place, *three.place);
  EXPECT_EQ(ReadBack(three.meta, *three.place), Code::kOk);
  // It is not filled on: a later fsck could not tell the torn entry from a damaged one.
  EXPECT_NE(Append(BlockMeta(4, 10)).place->segment, one.place->segment);
  EXPECT_TRUE(Scan().problems.empty());
}

TEST_F(RecoveryTest, ATornEntryThatTheMetadataKnowsIsDroppedToo) {
  Quiet();
  Open();
  const Outcome one = Append(BlockMeta(1, 50'000), true);
  const Outcome two = Append(BlockMeta(2, 50'000));
  disk_->DieAt(0);
  Close();
  disk_->DieAt(UINT64_MAX);
  FlipData(*two.place);
  Open(two.meta.sequence);
  EXPECT_NE(Append(BlockMeta(3, 10), true).place->segment, one.place->segment) << "sealed";
  EXPECT_TRUE(Scan().problems.empty()) << "a power cut is no damage";
  EXPECT_EQ(ReadBack(two.meta, *two.place), Code::kCorrupt);
}

TEST_F(RecoveryTest, DamageBeforeTheLastFlushIsNamed) {
  Quiet();
  Open();
  const Outcome one = Append(BlockMeta(1, 50'000), true);
  const Outcome two = Append(BlockMeta(2, 50'000), true);
  const Outcome three = Append(BlockMeta(3, 50'000), true);
  const Outcome four = Append(BlockMeta(4, 50'000), true);
  disk_->DieAt(0);
  Close();
  disk_->DieAt(UINT64_MAX);
  FlipData(*one.place);
  FlipHeader(*three.place);
  const SegmentScan scan = Scan();
  ASSERT_EQ(scan.problems.size(), 2u);
  EXPECT_TRUE(scan.problems[0].has_meta);
  EXPECT_EQ(scan.problems[0].meta.key, KeyOf(1));
  EXPECT_FALSE(scan.problems[1].has_meta);
  EXPECT_EQ(scan.entries, 2u);
  Open();
  EXPECT_EQ(visited_.size(), 2u);
  EXPECT_EQ(store_->Stats().corrupt_entries, 1u);
  EXPECT_EQ(ReadBack(two.meta, *two.place), Code::kOk);
  EXPECT_EQ(ReadBack(four.meta, *four.place), Code::kOk);
}

TEST_F(RecoveryTest, ADamagedTableCostsNothing) {
  Quiet();
  Open();
  std::vector<std::shared_ptr<Outcome>> all;
  for (uint64_t i = 0; i < 40; ++i) all.push_back(Queue(BlockMeta(i, 60'000), true));
  WaitForAll();
  Close();
  for (const char* name : {"seg-000001.kvs", "seg-000002.kvs"}) {
    auto& bytes = disk_->Bytes(name);
    bytes[bytes.size() - 2 * kPageBytes + 50] ^= std::byte{8};  // a record
  }
  EXPECT_EQ(Scan().problems.size(), 2u);
  Open();
  EXPECT_EQ(visited_.size(), 40u);
  for (const auto& one : all) EXPECT_EQ(ReadBack(one->meta, *one->place), Code::kOk);
  // Written again by the recovery.
  EXPECT_TRUE(Scan().problems.empty());
}

TEST_F(RecoveryTest, ADamagedHeaderOfASealedSegmentCostsNothing) {
  Quiet();
  Open();
  std::vector<std::shared_ptr<Outcome>> all;
  for (uint64_t i = 0; i < 40; ++i) all.push_back(Queue(BlockMeta(i, 60'000)));
  WaitForAll();
  Close();
  const std::string name = SegmentName(all[0]->place->segment);
  disk_->Bytes(name)[20] ^= std::byte{1};
  EXPECT_EQ(Scan().problems.size(), 1u);
  Open();
  EXPECT_EQ(visited_.size(), 40u);
  EXPECT_TRUE(Scan().problems.empty());
}

TEST_F(RecoveryTest, ADamagedHeaderOfAnOpenSegmentCostsTheSegment) {
  Quiet();
  Open();
  const Outcome one = Append(BlockMeta(1, 50'000), true);
  disk_->DieAt(0);
  Close();
  disk_->DieAt(UINT64_MAX);
  std::fill_n(disk_->Bytes(SegmentName(one.place->segment)).data(), kPageBytes, std::byte{0});
  EXPECT_EQ(Scan().problems.size(), 1u);
  Open();
  EXPECT_TRUE(visited_.empty());
  EXPECT_EQ(ReadBack(one.meta, *one.place), Code::kStale);
  // Sequences that were given out are not given again.
  EXPECT_GT(Append(BlockMeta(2, 10)).meta.sequence, one.meta.sequence);
}

TEST_F(RecoveryTest, EitherSuperblockCopyIsEnough) {
  Quiet();
  Open();
  const Outcome one = Append(BlockMeta(1, 5000), true);
  for (const uint64_t offset : {uint64_t{0}, kPageBytes}) {
    Close();
    disk_->Bytes(kSuperblockName)[offset + 9] ^= std::byte{1};
    EXPECT_EQ(Scan().problems.size(), 1u);
    Open();
    EXPECT_EQ(ReadBack(one.meta, *one.place), Code::kOk);
    EXPECT_TRUE(Scan().problems.empty()) << "both are written again";
  }
}

TEST_F(RecoveryTest, WithoutASuperblockTheSegmentsSayIt) {
  Quiet();
  options_.capacity_bytes = 64 << 20;
  Open();
  const Outcome one = Append(BlockMeta(1, 5000), true);
  Close();
  disk_->Remove(kSuperblockName);
  EXPECT_EQ(Scan().problems.size(), 1u);
  options_.segment_bytes = 2 << 20;  // what new directories would get
  Open();
  EXPECT_EQ(visited_.size(), 1u);
  EXPECT_EQ(ReadBack(one.meta, *one.place), Code::kOk);
}

TEST_F(RecoveryTest, AnotherNodesDirectoryIsRefused) {
  Open();
  Append(BlockMeta(1, 5000), true);
  Close();
  options_.node_uuid = {9, 9};
  Status status = TryOpen();
  EXPECT_EQ(status.code(), Code::kInvalid);
  EXPECT_NE(status.error().text.find("belongs to node"), std::string::npos);
  disk_->Remove(kSuperblockName);
  EXPECT_EQ(TryOpen().code(), Code::kInvalid) << "the segments say it too";
}

TEST_F(RecoveryTest, ANewerFormatIsRefusedWithAText) {
  Open();
  Append(BlockMeta(1, 5000), true);
  Close();
  for (const bool version : {true, false}) {
    AlignedBuffer page(kPageBytes);
    EncodeSuperblock({kNode, options_.segment_bytes}, page.span());
    SuperblockRecord record;
    std::memcpy(&record, page.data(), sizeof(record));
    if (version) {
      record.version = kFormatVersion + 1;
    } else {
      record.incompatible_features = 4;
    }
    record.crc32c = 0;
    std::memcpy(page.data(), &record, sizeof(record));
    record.crc32c = Crc32c(page.span());
    std::memcpy(page.data(), &record, sizeof(record));
    std::copy_n(page.data(), kPageBytes, disk_->Bytes(kSuperblockName).data());
    const Status status = TryOpen();
    EXPECT_EQ(status.code(), Code::kUnsupported);
    EXPECT_NE(status.error().text.find("newer"), std::string::npos) << status.error().text;
  }
}

TEST_F(RecoveryTest, ALargerCapacityKeepsAllAndHasMoreRoom) {
  Open();
  std::vector<std::shared_ptr<Outcome>> all;
  for (uint64_t i = 0; i < 100; ++i) all.push_back(Queue(BlockMeta(i, 60'000)));
  WaitForAll();
  Close();
  options_.capacity_bytes *= 3;
  Open();
  EXPECT_EQ(visited_.size(), 100u);
  EXPECT_EQ(store_->Stats().capacity_bytes, 48u << 20);
  for (uint64_t i = 100; i < 500; ++i) all.push_back(Queue(BlockMeta(i, 60'000)));
  WaitForAll();
  for (const auto& one : all) EXPECT_EQ(ReadBack(one->meta, *one->place), Code::kOk);
}

TEST_F(RecoveryTest, ASmallerCapacityKeepsWhatFitsAndRemovesFiles) {
  Open();
  Books books;
  for (uint64_t i = 0; i < 200; ++i) Queue(BlockMeta(i, 60'000));
  WaitForAll();
  Close();
  options_.capacity_bytes = 6 * kSegment;
  Open();
  books.SetStore(store_.get());
  for (const Located& one : visited_) books.Put(one.meta, one.place);
  for (const Located& one : visited_) EXPECT_TRUE(store_->MarkLive(one.place, one.meta.length));
  store_->Start(&books);
  // 12 segments were in use. Appends go on while the rest is emptied.
  for (uint64_t i = 1000; i < 1060; ++i) {
    const Outcome one = Append(BlockMeta(i, 60'000));
    ASSERT_TRUE(one.place.ok());
    books.Put(one.meta, *one.place);
  }
  const auto excess_files = [&] {
    const auto names = disk_->Names();
    return std::count_if(names.begin(), names.end(), [](const std::string& name) {
      return SegmentNumberOf(name).value_or(0) > 6;
    });
  };
  const auto begin = std::chrono::steady_clock::now();
  while (excess_files() != 0 &&
         std::chrono::steady_clock::now() - begin < std::chrono::seconds(60)) {
    std::this_thread::yield();
  }
  EXPECT_EQ(excess_files(), 0);
  EXPECT_GT(books.All().size(), 5u);
  for (const Located& one : books.All()) {
    // It may move, or go, while we read: who finds a stale place asks again.
    Code code = Code::kStale;
    auto now = books.Find(one.meta);
    while (now && code == Code::kStale) {
      code = ReadBack(now->meta, now->place);
      now = books.Find(one.meta);
    }
    EXPECT_TRUE(code == Code::kOk || !now) << "it is live and cannot be read";
  }
  Close();
}

TEST_F(RecoveryTest, AFullDiskOpensAndSaysNoSpace) {
  Quiet();
  disk_->SetRoom(0);
  Open();
  EXPECT_EQ(Append(BlockMeta(1, 5000)).place.code(), Code::kNoSpace);
  disk_->SetRoom(UINT64_MAX);
  Close();
  Open();
  EXPECT_TRUE(Append(BlockMeta(1, 5000)).place.ok());
}

TEST_F(RecoveryTest, ACutFileCostsWhatWasBehind) {
  Quiet();
  Open();
  std::vector<std::shared_ptr<Outcome>> all;
  for (uint64_t i = 0; i < 40; ++i) all.push_back(Queue(BlockMeta(i, 60'000)));
  WaitForAll();
  Close();
  const std::string name = SegmentName(all[0]->place->segment);
  disk_->Bytes(name).resize(500'000);
  EXPECT_GE(Scan().problems.size(), 1u);
  Open();
  EXPECT_GT(visited_.size(), 20u);
  EXPECT_LT(visited_.size(), 40u);
  for (const Located& one : visited_) EXPECT_EQ(ReadBack(one.meta, one.place), Code::kOk);
}

}  // namespace
}  // namespace kvcfs::iouring
