#include "fs/block_store.h"

#include <thread>

#include <sys/mman.h>

#include "meta/block_records.h"
#include "tests/unit/fs/block_store_fixture.h"

namespace kvcfs::fs {
namespace {

using meta::ChainKey;

TEST_F(BlockStoreTest, WhatIsWrittenIsReadAndOnlyOnce) {
  const auto keys = PutChain(3, 1);
  for (const BlockKey& key : keys) EXPECT_EQ(Read(key), BytesOf(key, kBlockBytes));
  EXPECT_EQ(Put({}, keys[0]), EEXIST);
  EXPECT_EQ(Put(ChainKey({}, 99), ChainKey({}, 98)), ENOENT);  // no such parent
}

TEST_F(BlockStoreTest, NobodySeesABlockBeforeItsLastClose) {
  const BlockKey key = ChainKey({}, 1);
  const auto ino = Begin({}, key, BytesOf(key, 5000));
  ASSERT_TRUE(ino);
  EXPECT_FALSE(Has(key));
  const auto second = blocks_->PendingOpen(*ino, O_RDWR);
  ASSERT_TRUE(second);
  blocks_->PendingRelease(*ino, 0);
  EXPECT_FALSE(Has(key));
  blocks_->PendingRelease(*ino, second->handle);
  EXPECT_TRUE(Has(key));
  EXPECT_EQ(Read(key), BytesOf(key, 5000));
}

TEST_F(BlockStoreTest, ALookupWaitsForAWriterThatHasFlushed) {
  const BlockKey key = ChainKey({}, 1);
  options_.publish_wait = std::chrono::seconds(30);
  Restart(true);
  const auto ino = Begin({}, key, BytesOf(key, 100));
  ASSERT_TRUE(ino);
  ASSERT_TRUE(blocks_->PendingFlush({.pid = ::getpid()}, *ino));
  std::thread releaser([&] { blocks_->PendingRelease(*ino, 0); });
  EXPECT_TRUE(blocks_->Find(space_.id, key, BlockStore::Use::kLease).has_value());
  releaser.join();
}

TEST_F(BlockStoreTest, TheFirstToPublishWins) {
  const BlockKey key = ChainKey({}, 1);
  const auto first = Begin({}, key, std::string(100, 'a'));
  const auto second = Begin({}, key, std::string(200, 'b'));
  ASSERT_TRUE(first);
  ASSERT_TRUE(second);
  blocks_->PendingRelease(*second, 0);
  blocks_->PendingRelease(*first, 0);
  EXPECT_EQ(Read(key), std::string(200, 'b'));
}

TEST_F(BlockStoreTest, EmptyTooLongAndOrphanedBlocksAreNotPublished) {
  EXPECT_EQ(Put({}, ChainKey({}, 1), 0), 0);
  EXPECT_FALSE(Has(ChainKey({}, 1)));
  EXPECT_EQ(Put({}, ChainKey({}, 2), kBlockBytes + 1), EFBIG);
  EXPECT_FALSE(Has(ChainKey({}, 2)));
  const auto keys = PutChain(2, 7);
  const BlockKey child = ChainKey(keys[1], 5);
  const auto ino = Begin(keys[1], child, "child");
  ASSERT_TRUE(ino);
  ASSERT_TRUE(blocks_->Drop(space_.id, keys[0], nullptr));
  ASSERT_TRUE(blocks_->PendingFlush({.pid = ::getpid()}, *ino));
  blocks_->PendingRelease(*ino, 0);
  EXPECT_FALSE(Has(child));
  EXPECT_EQ(slots_->used_bytes(), 0u);  // nothing of it stays
}

TEST_F(BlockStoreTest, AMappedSlotIsNotSealed) {
  backing_.on = true;
  const BlockKey key = ChainKey({}, 1);
  const auto ino = Begin({}, key, BytesOf(key, 8192));
  ASSERT_TRUE(ino);
  const auto file = slots_->OpenFile(static_cast<iouring::SlotId>(*ino & 0xffffffff), O_RDWR);
  ASSERT_TRUE(file.ok());
  void* mapped = ::mmap(nullptr, 8192, PROT_WRITE, MAP_SHARED, file->get(), 0);
  ASSERT_NE(mapped, MAP_FAILED);
  ASSERT_TRUE(blocks_->PendingFlush({.pid = ::getpid()}, *ino));
  blocks_->PendingRelease(*ino, 0);
  EXPECT_FALSE(Has(key));
  static_cast<char*>(mapped)[0] = 'Z';
  ::munmap(mapped, 8192);
  const_cast<Fd&>(*file).Reset();
  for (int i = 0; i < 500 && !Has(key); ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  ASSERT_TRUE(Has(key));
  EXPECT_EQ(Read(key)->front(), 'Z');
}

TEST_F(BlockStoreTest, DropTakesWhatExtendsItAndNothingElse) {
  const auto trunk = PutChain(3, 1);
  const BlockKey left = ChainKey(trunk[1], 50), right = ChainKey(trunk[1], 51);
  ASSERT_EQ(Put(trunk[1], left), 0);
  ASSERT_EQ(Put(trunk[1], right), 0);
  uint64_t dropped = 0;
  ASSERT_TRUE(blocks_->Drop(space_.id, left, &dropped));
  EXPECT_EQ(dropped, 1u);
  EXPECT_TRUE(Has(right) && Has(trunk[2]));
  ASSERT_TRUE(blocks_->Drop(space_.id, trunk[1], &dropped));
  EXPECT_EQ(dropped, 3u);
  EXPECT_TRUE(Has(trunk[0]));
  EXPECT_FALSE(Has(right) || Has(trunk[1]) || Has(trunk[2]));
  EXPECT_GT(notifier_.epochs, 0);
}

TEST_F(BlockStoreTest, UnlinkInAChainNeverTakesFromAnother) {
  const auto trunk = PutChain(2, 1);
  const BlockKey left = ChainKey(trunk[1], 50), right = ChainKey(trunk[1], 51);
  ASSERT_EQ(Put(trunk[1], left), 0);
  ASSERT_EQ(Put(trunk[1], right), 0);
  EXPECT_EQ(blocks_->UnlinkFromChain(space_.id, left, 0, trunk[0]).error().value, EBUSY);
  EXPECT_EQ(blocks_->RemoveTip(space_.id, trunk[1]).error().value, ENOTEMPTY);
  EXPECT_TRUE(blocks_->UnlinkFromChain(space_.id, left, 2, left));
  EXPECT_FALSE(Has(left));
  EXPECT_TRUE(Has(right) && Has(trunk[0]) && Has(trunk[1]));
  // A name whose block went with an earlier unlink is unlinked with success, and so is its tip.
  EXPECT_TRUE(blocks_->UnlinkFromChain(space_.id, right, 0, trunk[0]));
  EXPECT_TRUE(blocks_->UnlinkFromChain(space_.id, right, 1, trunk[1]));
  EXPECT_TRUE(blocks_->RemoveTip(space_.id, right));
  EXPECT_EQ(blocks_->RemoveTip(space_.id, right).error().value, ENOENT);
}

TEST_F(BlockStoreTest, AnOpenBlockOutlivesItsDrop) {
  const auto keys = PutChain(1, 1);
  const auto view = blocks_->Find(space_.id, keys[0], BlockStore::Use::kPeek);
  const auto open = blocks_->Open({}, view->block_ino(), O_RDONLY);
  ASSERT_TRUE(open);
  ASSERT_TRUE(blocks_->Drop(space_.id, keys[0], nullptr));
  const auto bytes = blocks_->Mapped(view->block_ino(), open->handle);
  ASSERT_TRUE(bytes);
  EXPECT_EQ(std::memcmp(bytes->data(), BytesOf(keys[0], kBlockBytes).data(), kBlockBytes), 0);
  // Written again meanwhile it is another inode, and the old one's number never leads to it.
  ASSERT_EQ(PutChain(1, 1), keys);
  const auto fresh = blocks_->Find(space_.id, keys[0], BlockStore::Use::kPeek);
  EXPECT_NE(fresh->block_ino(), view->block_ino());
  EXPECT_EQ(blocks_->FindIno(fresh->block_ino(), BlockStore::Use::kPeek)->key, keys[0]);
  EXPECT_FALSE(blocks_->FindIno(view->block_ino(), BlockStore::Use::kPeek));
  EXPECT_EQ(blocks_->FindDropped(view->block_ino())->length, kBlockBytes);
  EXPECT_EQ(blocks_->Open({}, view->block_ino(), O_RDONLY).error().value, ESTALE);
  const auto second = blocks_->Open({}, fresh->block_ino(), O_RDONLY);
  ASSERT_TRUE(second);
  ASSERT_TRUE(blocks_->Drop(space_.id, keys[0], nullptr));
  ASSERT_EQ(PutChain(1, 1), keys);
  const auto third = blocks_->Find(space_.id, keys[0], BlockStore::Use::kPeek);
  EXPECT_NE(third->block_ino(), view->block_ino());
  EXPECT_NE(third->block_ino(), fresh->block_ino());
  blocks_->Release(fresh->block_ino(), second->handle);
  blocks_->Release(view->block_ino(), open->handle);
  ASSERT_TRUE(blocks_->Drop(space_.id, keys[0], nullptr));
  ASSERT_EQ(PutChain(1, 1), keys);
  EXPECT_EQ(blocks_->Find(space_.id, keys[0], BlockStore::Use::kPeek)->block_ino(),
            view->block_ino())
      << "nobody has it open any more";
  ASSERT_TRUE(blocks_->Drop(space_.id, keys[0], nullptr));
  EXPECT_EQ(slots_->used_bytes(), 0u);
  EXPECT_TRUE(backing_.AllClosed());
}

TEST_F(BlockStoreTest, MatchCountsThePrefixAndLeasesIt) {
  const auto keys = PutChain(4, 1);
  std::vector<BlockKey> asked = keys;
  asked.push_back(ChainKey(keys[3], 77));
  const MatchAnswer answer = blocks_->Match(space_.id, asked, 0);
  EXPECT_EQ(answer.count, 4u);
  EXPECT_EQ(answer.lease_ms, 30000u);
  EXPECT_EQ(answer.blocks[3].ordinal, 3u);
  EXPECT_EQ(blocks_->Match(space_.id, asked, BlockStore::kMatchNoLease).lease_ms, 0u);
  std::swap(asked[0], asked[4]);
  EXPECT_EQ(blocks_->Match(space_.id, asked, 0).count, 0u);
}

TEST_F(BlockStoreTest, LeasesStopAtTheCapAndKeepFromBeingShed) {
  lease_bytes_max_ = 2 * kBlockBytes;
  Restart(true);
  const auto keys = PutChain(4, 1, true);
  EXPECT_GT(blocks_->Find(space_.id, keys[3], BlockStore::Use::kLease)->lease_ms, 0u);
  EXPECT_GT(blocks_->Find(space_.id, keys[2], BlockStore::Use::kLease)->lease_ms, 0u);
  EXPECT_EQ(blocks_->Find(space_.id, keys[1], BlockStore::Use::kLease)->lease_ms, 0u);
  EXPECT_EQ(blocks_->Shed(1 << 30), 0u);  // the leaf is leased, the rest is its prefix
  clock_.Advance(std::chrono::seconds(60));
  EXPECT_EQ(blocks_->Shed(kBlockBytes), kBlockBytes);
  EXPECT_FALSE(Has(keys[3]));
  EXPECT_TRUE(Has(keys[2]));
}

TEST_F(BlockStoreTest, WhatComesAgainIsShedAfterWhatDoesNot) {
  const auto hot = PutChain(8, 1, true);
  std::vector<BlockKey> once;
  for (uint64_t i = 0; i < 60; ++i) {
    once.push_back(PutChain(1, 100 + i, true)[0]);
    // Twenty others come, or ten, and it is used again and again.
    for (int use = 0; use < 80 && (i == 19 || i == 29 || i == 49 || i == 59); ++use) {
      EXPECT_EQ(blocks_->Match(space_.id, hot, BlockStore::kMatchNoLease).count, hot.size());
    }
  }
  clock_.Advance(std::chrono::seconds(60));
  // Now `hot` is colder than these.
  for (uint64_t i = 0; i < 12; ++i) once.push_back(PutChain(1, 200 + i, true)[0]);
  clock_.Advance(std::chrono::seconds(60));
  EXPECT_GE(blocks_->Shed(66 * kBlockBytes), 66 * kBlockBytes);
  EXPECT_EQ(blocks_->Match(space_.id, hot, BlockStore::kMatchNoLease).count, hot.size());
  // All goes if all must.
  EXPECT_EQ(blocks_->Shed(1 << 30), (hot.size() + once.size() - 66) * kBlockBytes);
  EXPECT_EQ(blocks_->Stats().blocks, 0u);
}

TEST_F(BlockStoreTest, TheTierEvictsToNvmeAndPromotesOnOpen) {
  const auto keys = PutChain(400, 1);  // 25 MiB through a tier of 16
  uint64_t wrong = 0, nvme = 0;
  for (const BlockKey& key : keys) {
    nvme += blocks_->Find(space_.id, key, BlockStore::Use::kPeek)->tier == Tier::kNvme;
    wrong += Read(key) != BytesOf(key, kBlockBytes);
  }
  EXPECT_EQ(wrong, 0u);
  EXPECT_GT(nvme, 20u);  // how many depends on how far prefetch was ahead
  EXPECT_LE(slots_->used_bytes(), dram_bytes_);
}

TEST_F(BlockStoreTest, WithoutNvmeTheColdestLeavesGo) {
  nvme_bytes_ = 0;
  Restart(true);
  std::vector<std::vector<BlockKey>> chains;
  for (uint64_t i = 0; i < 40; ++i) {
    chains.push_back(PutChain(10, i + 1));
    clock_.Advance(std::chrono::seconds(1));
  }
  EXPECT_TRUE(Has(chains.back().back()));
  EXPECT_FALSE(Has(chains.front().back()));
  for (const auto& chain : chains) {
    bool gone = false;  // prefix closure
    for (const BlockKey& key : chain) {
      const bool has = Has(key);
      EXPECT_FALSE(gone && has);
      gone = gone || !has;
    }
  }
}

TEST_F(BlockStoreTest, CleanStopAndStartKeepsEverything) {
  const auto keys = PutChain(20, 1);
  ASSERT_TRUE(blocks_->WriteBackAll().ok());
  Restart(false);
  for (const BlockKey& key : keys) EXPECT_EQ(Read(key), BytesOf(key, kBlockBytes));
}

TEST_F(BlockStoreTest, WhatWasMovedBehindItsChildrenIsRecovered) {
  const auto keys = PutChain(5, 1);
  ASSERT_TRUE(blocks_->WriteBackAll().ok());
  meta::MetaBatch batch;
  for (const size_t moved : {size_t{0}, size_t{2}}) {
    const std::string name = meta::BlockRecordKey(space_.id, keys[moved]);
    const auto bytes = meta_->Get(name);
    ASSERT_TRUE(bytes.ok() && *bytes);
    auto record = meta::DecodeBlockRecord(**bytes);
    ASSERT_TRUE(record);
    record->place.sequence += 1000 - moved;  // and behind each other
    batch.Put(name, meta::EncodeBlockRecord(*record));
  }
  ASSERT_TRUE(meta_->Write(batch, true).ok());
  Restart(false);
  for (const BlockKey& key : keys) EXPECT_TRUE(Has(key));
}

TEST_F(BlockStoreTest, AKillKeepsWhatTheDramTierHolds) {
  options_.writeback_delay = std::chrono::hours(1);
  Restart(true);
  const auto keys = PutChain(20, 1);
  const auto open = Begin(keys[19], ChainKey(keys[19], 3), "half");
  ASSERT_TRUE(open);
  Restart(true);
  for (const BlockKey& key : keys) EXPECT_EQ(Read(key), BytesOf(key, kBlockBytes));
  EXPECT_FALSE(Has(ChainKey(keys[19], 3)));
  EXPECT_EQ(blocks_->Stats().pending, 0u);
}

TEST_F(BlockStoreTest, FsyncSurvivesThePowerCutWithItsWholeChain) {
  options_.writeback_delay = std::chrono::hours(1);
  Restart(true);
  const auto keys = PutChain(5, 1);
  const BlockKey tip = ChainKey(keys[4], 9);
  ASSERT_EQ(Put(keys[4], tip, 3333, true), 0);
  const BlockKey lost = ChainKey(tip, 10);
  ASSERT_EQ(Put(tip, lost), 0);
  Restart(false);
  EXPECT_EQ(Read(tip), BytesOf(tip, 3333));
  for (const BlockKey& key : keys) EXPECT_EQ(Read(key), BytesOf(key, kBlockBytes));
  EXPECT_FALSE(Has(lost));
}

TEST_F(BlockStoreTest, FsyncedAndClosedIsPublishedByRecovery) {
  const BlockKey key = ChainKey({}, 1);
  const auto ino = Begin({}, key, BytesOf(key, 7000));
  ASSERT_TRUE(ino);
  ASSERT_TRUE(blocks_->PendingFsync(*ino));
  ASSERT_TRUE(blocks_->PendingFlush({.pid = ::getpid()}, *ino));
  Restart(false);  // RELEASE never came
  EXPECT_EQ(Read(key), BytesOf(key, 7000));
}

TEST_F(BlockStoreTest, WhatWasDroppedStaysDroppedAfterAKill) {
  const auto keys = PutChain(6, 1, true);
  ASSERT_TRUE(blocks_->Drop(space_.id, keys[3], nullptr));
  ASSERT_TRUE(segments_->Flush(true).ok());
  Restart(false);
  EXPECT_TRUE(Has(keys[2]));
  for (size_t i = 3; i < keys.size(); ++i) EXPECT_FALSE(Has(keys[i])) << i;
}

// The process may die as soon as a drop has returned: its records must not bring the blocks back.
TEST_F(BlockStoreTest, ADropThatReturnedIsInTheRecords) {
  const auto keys = PutChain(20, 1, true);
  const auto has_record = [&](const BlockKey& key) {
    const auto record = meta_->Get(meta::BlockRecordKey(space_.id, key));
    return record.ok() && record->has_value();
  };
  ASSERT_TRUE(blocks_->WriteBackAll().ok());
  for (const BlockKey& key : keys) ASSERT_TRUE(has_record(key));
  for (size_t left = keys.size(); left-- > 3;) {
    ASSERT_TRUE(blocks_->Drop(space_.id, keys[left], nullptr));
    EXPECT_FALSE(has_record(keys[left])) << left;
  }
  ASSERT_TRUE(blocks_->UnlinkFromChain(space_.id, keys[2], 2, keys[2]));
  EXPECT_FALSE(has_record(keys[2]));
  ASSERT_TRUE(blocks_->RemoveTip(space_.id, keys[1]));
  EXPECT_FALSE(has_record(keys[1]));
  blocks_->DropNamespace(space_.id);
  EXPECT_FALSE(has_record(keys[0]));
}

TEST_F(BlockStoreTest, AnotherDaemonTakesOpenFilesOver) {
  const auto keys = PutChain(2, 1);
  const auto view = blocks_->Find(space_.id, keys[0], BlockStore::Use::kPeek);
  const auto open = blocks_->Open({}, view->block_ino(), O_RDONLY);
  ASSERT_TRUE(open);
  const BlockKey child = ChainKey(keys[1], 3);
  const auto writer = Begin(keys[1], child, "child");
  ASSERT_TRUE(writer);
  Restart(true, true);
  const auto again = blocks_->Open({}, view->block_ino(), O_RDONLY);
  ASSERT_TRUE(again);
  EXPECT_EQ(again->backing_id, open->backing_id);  // one id an inode while it is open
  blocks_->Release(view->block_ino(), open->handle);
  blocks_->Release(view->block_ino(), again->handle);
  ASSERT_TRUE(blocks_->PendingFlush({.pid = ::getpid()}, *writer));
  blocks_->PendingRelease(*writer, 0);
  EXPECT_EQ(Read(child), "child");
}

TEST_F(BlockStoreTest, AResentCreateFindsWhatItMade) {
  const BlockKey key = ChainKey({}, 1);
  const auto first = blocks_->Create({.unique = 42}, space_, std::nullopt, key, O_WRONLY);
  ASSERT_TRUE(first);
  const auto again =
      blocks_->Create({.unique = 42, .resent = true}, space_, std::nullopt, key, O_WRONLY);
  ASSERT_TRUE(again);
  EXPECT_EQ(again->ino, first->ino);
}

TEST_F(BlockStoreTest, AQuotaEvictsColdLeavesOfItsNamespace) {
  space_.quota_bytes = 10 * kBlockBytes;
  ASSERT_TRUE(spaces_->Update(space_));
  for (uint64_t i = 0; i < 30; ++i) {
    ASSERT_EQ(Put({}, ChainKey({}, i)), 0) << i;
    clock_.Advance(std::chrono::seconds(1));
  }
  EXPECT_LE(blocks_->BlockCount(space_.id), 10u);
  EXPECT_TRUE(Has(ChainKey({}, 29)));
}

TEST_F(BlockStoreTest, ListsLeavesAndChainsInPages) {
  const auto a = PutChain(5, 1), b = PutChain(3, 2);
  std::set<BlockKey> leaves;
  uint64_t cookie = 0;
  for (int page = 0; page < 10; ++page) {
    blocks_->ListLeaves(space_.id, cookie, [&](const BlockView& view, uint64_t next) {
      leaves.insert(view.key);
      cookie = next;
      return false;  // one a page
    });
  }
  EXPECT_EQ(leaves, (std::set<BlockKey>{a[4], b[2]}));
  std::vector<BlockKey> chain;
  blocks_->ListChain(space_.id, a[4], 2, [&](const BlockView& view, uint64_t) {
    chain.push_back(view.key);
    return true;
  });
  EXPECT_EQ(chain, (std::vector<BlockKey>{a[2], a[3], a[4]}));
}

}  // namespace
}  // namespace kvcfs::fs
