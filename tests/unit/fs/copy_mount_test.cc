// A CopyHolder beside a mount: the slot that was written is the copy, whoever dies when.
#include <cstring>
#include <string>

#include <gtest/gtest.h>
#include <unistd.h>

#include "base/crc32c.h"
#include "base/log.h"
#include "fs/copy_holder.h"
#include "tests/unit/fs/block_store_fixture.h"
#include "tests/unit/fs/store_parts.h"

namespace kvcfs::fs {
namespace {

using iouring::SlotId;
using iouring::SlotState;

class CopyMountTest : public testing::Test, protected StoreParts {
 protected:
  static constexpr uint64_t kBytes = 64 << 10;

  void SetUp() override {
    SetLogLevel(LogLevel::kError);
    Start(false);
  }
  void TearDown() override { Stop(); }

  void Start(bool resumed) {
    OpenParts(CopyHolder::AppliedSequence, [](const auto&, const auto&) {});
    if (HasFatalFailure()) return;
    CopyHolderOptions options;
    options.writeback_delay = std::chrono::milliseconds(0);
    options.beside_mount = true;
    options.resumed = resumed;
    auto opened = CopyHolder::Open(options, {.meta = meta_.get(),
                                             .slots = slots_.get(),
                                             .resident = resident_.get(),
                                             .segments = segments_.get(),
                                             .clock = &clock_,
                                             .backing = &backing_});
    ASSERT_TRUE(opened.ok()) << opened.error().text;
    copies_ = std::move(*opened);
    segments_->Start(copies_.get());
    resident_->Start();
    copies_->Start();
  }
  void Stop() {
    if (copies_ == nullptr) return;
    resident_->Stop();
    copies_->Stop();
    segments_->Stop();
    segments_.reset();
    copies_.reset();
    CloseParts();
  }

  static std::string BytesOf(char which) { return std::string(kBytes, which); }
  static meta::BlockFacts FactsOf(char which) {
    meta::BlockFacts facts;
    facts.id = {{1, 2}, meta::ChainKey({}, static_cast<uint64_t>(which))};
    facts.anchor = facts.id.key;
    facts.length = kBytes;
    const std::string bytes = BytesOf(which);
    facts.crc32c = Crc32c(std::as_bytes(std::span(bytes)));
    return facts;
  }
  // As a writer leaves it: closed, not published.
  SlotId Written(char which) {
    Fd file;
    const auto slot = resident_->CreateSlot(kBytes, std::chrono::milliseconds(100), &file);
    EXPECT_TRUE(slot.ok());
    const std::string bytes = BytesOf(which);
    EXPECT_EQ(::pwrite(file.get(), bytes.data(), kBytes, 0), static_cast<ssize_t>(kBytes));
    iouring::SlotRecord& record = slots_->record(*slot);
    record.key = FactsOf(which).id.key;
    record.state.store(SlotState::kPending);
    return *slot;
  }
  uint64_t Adopted(char which, SlotId slot) {
    const auto generation = copies_->Adopt(FactsOf(which), slot);
    EXPECT_TRUE(generation.ok());
    return generation.ok() ? *generation : 0;
  }
  std::string Read(char which, uint64_t generation) {
    const auto opened = copies_->Open(FactsOf(which).id, generation, true);
    if (!opened.ok()) return "";
    return {reinterpret_cast<const char*>(opened->bytes().data()), opened->bytes().size()};
  }
  Result<SlotId> Pinned(char which, uint32_t other_crc = 0) {
    const meta::BlockFacts facts = FactsOf(which);
    return copies_->PinSlot(facts.id, kBytes, facts.crc32c ^ other_crc, true);
  }

  SystemClock clock_;
  CountedBacking backing_;
  std::unique_ptr<CopyHolder> copies_;
};

TEST_F(CopyMountTest, TheSlotThatWasWrittenIsTheCopy) {
  const SlotId slot = Written('a');
  const uint64_t generation = Adopted('a', slot);
  EXPECT_EQ(Pinned('a').code(), Code::kNotFound) << "not published";
  copies_->Mark(FactsOf('a').id, generation, 7);
  EXPECT_EQ(Read('a', generation), BytesOf('a')) << "peers may read it at once";
  EXPECT_EQ(slots_->record(slot).state.load(), SlotState::kPending) << "the mount's until Take";
  ASSERT_TRUE(copies_->Take(FactsOf('a').id, generation));
  EXPECT_EQ(slots_->record(slot).state.load(), SlotState::kBlock);
  EXPECT_EQ(slots_->used_slots(), 1u);
  EXPECT_TRUE(copies_->Holds(FactsOf('a')));
  const auto pinned = Pinned('a');
  ASSERT_TRUE(pinned.ok());
  EXPECT_EQ(*pinned, slot);
  EXPECT_EQ(Pinned('a', 1).code(), Code::kNotFound) << "of another version";
  copies_->UnpinSlot(slot);
  EXPECT_TRUE(copies_->Persist(FactsOf('a').id).ok());
  EXPECT_TRUE(copies_->TryEvict(slot));
  EXPECT_EQ(copies_->TierOf(FactsOf('a').id), Tier::kNvme);
  const auto again = Pinned('a');  // from there
  ASSERT_TRUE(again.ok()) << again.error().text;
  EXPECT_EQ(Read('a', generation), BytesOf('a'));
  EXPECT_FALSE(copies_->TryEvict(*again)) << "it is open";
  copies_->UnpinSlot(*again);
  EXPECT_TRUE(copies_->TryEvict(*again));
}

TEST_F(CopyMountTest, ARefusedCopyLeavesTheSlotToTheMount) {
  const SlotId slot = Written('a');
  const uint64_t generation = Adopted('a', slot);
  copies_->Free(FactsOf('a').id, generation);
  EXPECT_EQ(slots_->record(slot).state.load(), SlotState::kPending);
  EXPECT_FALSE(copies_->Take(FactsOf('a').id, generation));
  EXPECT_EQ(slots_->used_slots(), 1u);
}

TEST_F(CopyMountTest, ASlotThatIsOpenOutlivesItsCopy) {
  const SlotId slot = Written('a');
  const uint64_t generation = Adopted('a', slot);
  copies_->Mark(FactsOf('a').id, generation, 7);
  ASSERT_TRUE(copies_->Take(FactsOf('a').id, generation));
  ASSERT_TRUE(Pinned('a').ok());
  copies_->Free(FactsOf('a').id, generation);
  EXPECT_EQ(Pinned('a').code(), Code::kNotFound);
  EXPECT_EQ(slots_->used_slots(), 1u);
  copies_->PinAgain(slot);
  copies_->UnpinSlot(slot);
  EXPECT_EQ(slots_->used_slots(), 1u);
  copies_->UnpinSlot(slot);
  EXPECT_EQ(slots_->used_slots(), 0u);
}

TEST_F(CopyMountTest, WhatWasPublishedIsTakenUpAndTheMountsOwnIsLeftAlone) {
  const SlotId published = Written('a'), unpublished = Written('b'), open = Written('c');
  const uint64_t a = Adopted('a', published), c = Adopted('c', open);
  (void)Adopted('b', unpublished);
  copies_->Mark(FactsOf('a').id, a, 7);  // and then it dies
  copies_->Mark(FactsOf('c').id, c, 8);
  ASSERT_TRUE(copies_->Take(FactsOf('c').id, c));
  slots_->record(open).readers = 1;
  Stop();
  Start(true);
  EXPECT_EQ(copies_->Count().copies, 2u);
  EXPECT_EQ(slots_->record(published).state.load(), SlotState::kBlock);
  EXPECT_EQ(slots_->record(unpublished).state.load(), SlotState::kPending);
  EXPECT_EQ(Read('a', a), BytesOf('a'));
  copies_->Free(FactsOf('c').id, c);
  EXPECT_EQ(slots_->used_slots(), 3u) << "an earlier daemon's reader has it";
  copies_->UnpinSlot(open);
  EXPECT_EQ(slots_->used_slots(), 2u);
}

}  // namespace
}  // namespace kvcfs::fs
