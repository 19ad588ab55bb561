#include "iouring/slot_tier.h"

#include <filesystem>
#include <set>

#include <fcntl.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

namespace kvcfs::iouring {
namespace {

class SlotTierTest : public testing::Test {
 protected:
  void SetUp() override {
    char directory[] = "/dev/shm/kvc-slots-XXXXXX";
    ASSERT_NE(::mkdtemp(directory), nullptr);
    directory_ = directory;
    Open();
  }
  void TearDown() override {
    tier_.reset();
    std::filesystem::remove_all(directory_);
  }
  void Open() {
    tier_.reset();
    auto tier = SlotTier::Open({.directory = directory_, .capacity_bytes = 1 << 20});
    ASSERT_TRUE(tier.ok()) << tier.error().text;
    tier_ = std::move(*tier);
  }
  std::string directory_;
  std::unique_ptr<SlotTier> tier_;
};

TEST_F(SlotTierTest, ASlotIsAnEmptyFileWithItsSpaceSetAside) {
  Fd file;
  const auto slot = tier_->Create(10'000, &file);
  ASSERT_TRUE(slot.ok());
  struct stat info {};
  ASSERT_EQ(::fstat(file.get(), &info), 0);
  EXPECT_EQ(info.st_size, 0);
  EXPECT_GE(info.st_blocks * 512, 12'288);
  EXPECT_EQ(tier_->used_bytes(), 12'288u);
  EXPECT_EQ(tier_->record(*slot).state.load(), SlotState::kMaking);
}

TEST_F(SlotTierTest, TheCapacityIsNotPassed) {
  ASSERT_TRUE(tier_->Create(1 << 20).ok());
  EXPECT_EQ(tier_->Create(1).code(), Code::kNoSpace);
}

TEST_F(SlotTierTest, FreeGivesBackFileSpaceAndNumber) {
  const auto first = tier_->Create(4096);
  const uint32_t generation = tier_->record(*first).generation;
  tier_->Free(*first);
  EXPECT_EQ(tier_->used_bytes(), 0u);
  EXPECT_FALSE(tier_->OpenFile(*first, O_RDONLY).ok());
  const auto again = tier_->Create(4096);
  EXPECT_EQ(*again, *first);
  EXPECT_EQ(tier_->record(*again).generation, generation + 1);
}

TEST_F(SlotTierTest, SlotsInUseAreCounted) {
  const auto bytes = tier_->Create(4096), record = tier_->CreateRecord();
  ASSERT_TRUE(bytes.ok());
  ASSERT_TRUE(record.ok());
  tier_->record(*record).state = SlotState::kDiskFile;
  EXPECT_EQ(tier_->used_slots(), 2u);
  tier_->Free(*record);
  EXPECT_EQ(tier_->used_slots(), 1u);
  tier_->Free(*bytes);
  EXPECT_EQ(tier_->used_slots(), 0u);
}

TEST_F(SlotTierTest, TrimGivesBackWhatIsBehindTheEnd) {
  Fd file;
  const auto slot = tier_->Create(100'000, &file);
  ASSERT_EQ(::pwrite(file.get(), "x", 1, 4999), 1);
  tier_->Trim(*slot, file.get(), 5000);
  EXPECT_EQ(tier_->used_bytes(), 8192u);
  struct stat info {};
  ASSERT_EQ(::fstat(file.get(), &info), 0);
  EXPECT_EQ(info.st_size, 5000);
  EXPECT_LE(info.st_blocks * 512, 8192);
}

TEST_F(SlotTierTest, RecordsAndBytesSurviveTheDaemon) {
  const auto gone = tier_->Create(4096), kept = tier_->Create(8192);
  Fd file = std::move(*tier_->OpenFile(*kept, O_RDWR));
  ASSERT_EQ(::pwrite(file.get(), "bytes", 5, 0), 5);
  tier_->record(*kept).length = 5;
  tier_->record(*kept).state = SlotState::kBlock;
  tier_->Free(*gone);
  Open();
  std::set<SlotId> found;
  tier_->ForEach([&](SlotId slot, SlotRecord& record) {
    found.insert(slot);
    EXPECT_EQ(record.length, 5u);
  });
  EXPECT_EQ(found, std::set<SlotId>{*kept});
  EXPECT_EQ(tier_->used_bytes(), 8192u);
  char text[5];
  ASSERT_EQ(::pread(tier_->OpenFile(*kept, O_RDONLY)->get(), text, 5, 0), 5);
  EXPECT_EQ(std::string(text, 5), "bytes");
}

TEST_F(SlotTierTest, AForeignIndexIsNotBelieved) {
  ASSERT_TRUE(tier_->Create(4096).ok());
  tier_.reset();
  const Fd index(::open((directory_ + "/slots.idx").c_str(), O_RDWR));
  ASSERT_EQ(::pwrite(index.get(), "not an index", 12, 0), 12);
  Open();
  EXPECT_EQ(tier_->used_bytes(), 0u);
  EXPECT_TRUE(tier_->Create(1 << 20).ok());
}

}  // namespace
}  // namespace kvcfs::iouring
