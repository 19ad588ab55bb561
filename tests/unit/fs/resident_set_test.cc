#include "fs/resident_set.h"

#include <filesystem>
#include <set>
#include <thread>

#include <gtest/gtest.h>
#include <stdlib.h>

namespace kvcfs::fs {
namespace {

using iouring::SlotId;

class ResidentSetTest : public testing::Test, public SlotOwner {
 protected:
  static constexpr uint64_t kSlot = 64 << 10;

  void SetUp() override {
    char directory[] = "/dev/shm/kvc-resident-XXXXXX";
    ASSERT_NE(::mkdtemp(directory), nullptr);
    directory_ = directory;
    auto tier = iouring::SlotTier::Open({.directory = directory_, .capacity_bytes = 8 * kSlot});
    ASSERT_TRUE(tier.ok());
    tier_ = std::move(*tier);
    set_ = std::make_unique<ResidentSet>(*tier_, ResidentSetOptions{});
  }
  void TearDown() override {
    set_.reset();
    tier_.reset();
    std::filesystem::remove_all(directory_);
  }

  bool TryEvict(SlotId slot) override {
    if (held_.contains(slot)) return false;
    evicted_.push_back(slot);
    set_->Remove(slot);
    tier_->Free(slot);
    return true;
  }
  void WriteBackSoon(SlotId slot) override { asked_.insert(slot); }

  SlotId Make() {
    const auto slot = set_->CreateSlot(kSlot, std::chrono::milliseconds(200));
    if (!slot.ok()) return 0;
    tier_->record(*slot).state = iouring::SlotState::kBlock;
    set_->Add(*slot, this);
    return *slot;
  }

  std::string directory_;
  std::unique_ptr<iouring::SlotTier> tier_;
  std::unique_ptr<ResidentSet> set_;
  std::set<SlotId> held_, asked_;
  std::vector<SlotId> evicted_;
};

TEST_F(ResidentSetTest, TheColdestGoesFirst) {
  std::vector<SlotId> slots;
  for (int i = 0; i < 8; ++i) slots.push_back(Make());
  set_->Touch(slots[0]);
  ASSERT_NE(Make(), 0u);
  ASSERT_FALSE(evicted_.empty());
  EXPECT_EQ(evicted_[0], slots[1]);
}

TEST_F(ResidentSetTest, WhatIsHeldStaysAndIsAskedToBeWrittenBack) {
  std::vector<SlotId> slots;
  for (int i = 0; i < 8; ++i) slots.push_back(Make());
  held_ = {slots[0], slots[1]};
  ASSERT_NE(Make(), 0u);
  EXPECT_EQ(evicted_[0], slots[2]);
  EXPECT_TRUE(asked_.contains(slots[0]));
  EXPECT_EQ(set_->evicted_slots(), evicted_.size());
}

TEST_F(ResidentSetTest, NoSpaceWhenNothingMayGo) {
  for (int i = 0; i < 8; ++i) held_.insert(Make());
  const auto slot = set_->CreateSlot(kSlot, std::chrono::milliseconds(20));
  EXPECT_EQ(slot.code(), Code::kNoSpace);
  EXPECT_EQ(set_->CreateSlot(9 * kSlot, std::chrono::seconds(10)).code(), Code::kNoSpace);
}

TEST_F(ResidentSetTest, AWaiterGoesOnWhenRoomMayBeHad) {
  for (int i = 0; i < 8; ++i) held_.insert(Make());
  Result<SlotId> made = Error{Code::kInternal, ""};
  std::thread waiter([&] { made = set_->CreateSlot(kSlot, std::chrono::seconds(30)); });
  tier_->Free(*held_.begin());
  set_->Remove(*held_.begin());
  set_->RoomMayBeHad();
  waiter.join();
  EXPECT_TRUE(made.ok());
}

TEST_F(ResidentSetTest, GrowMakesRoomForTheDifference) {
  const SlotId first = Make();
  held_.insert(first);
  for (int i = 0; i < 7; ++i) Make();
  EXPECT_TRUE(set_->Grow(first, 3 * kSlot, std::chrono::milliseconds(100)).ok());
  EXPECT_EQ(evicted_.size() >= 2, true);
  EXPECT_EQ(tier_->record(first).reserved_bytes, 3 * kSlot);
  EXPECT_EQ(set_->Grow(first, 9 * kSlot, std::chrono::milliseconds(20)).code(), Code::kNoSpace);
}

// Small blocks use up the slots long before the bytes.
TEST_F(ResidentSetTest, WithoutAFreeSlotTheColdestGoes) {
  set_.reset();
  tier_.reset();
  const std::string other = directory_ + "/other";
  ASSERT_TRUE(std::filesystem::create_directory(other));
  auto tier = iouring::SlotTier::Open(
      {.directory = other, .capacity_bytes = 1024 * kSlot, .slot_count_max = 8});
  ASSERT_TRUE(tier.ok());
  tier_ = std::move(*tier);
  ASSERT_EQ(tier_->slot_count(), 8u);
  set_ = std::make_unique<ResidentSet>(*tier_, ResidentSetOptions{});
  std::vector<SlotId> slots;
  for (int i = 0; i < 8; ++i) slots.push_back(Make());
  EXPECT_TRUE(evicted_.empty());
  EXPECT_NE(Make(), 0u);
  EXPECT_EQ(evicted_, std::vector<SlotId>{slots[0]});
  // Nothing may go: it is said, in time.
  for (SlotId slot = 1; slot <= 8; ++slot) held_.insert(slot);
  EXPECT_EQ(Make(), 0u);
}

}  // namespace
}  // namespace kvcfs::fs
