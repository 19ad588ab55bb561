// A full data disk (promises W15, X4 and F13 of fs/SEMANTICS.md). The disk is a small tmpfs.
#include <fmt/format.h>
#include <sys/mount.h>

#include "tests/integration/mount_fixture.h"

namespace kvcfs::test {
namespace {

constexpr size_t kBlockBytes = 256 << 10;

class FullDisk : public testing::TestWithParam<Mode> {
 protected:
  void SetUp() override {
    KVC_NEEDS_MOUNT();
    disk_ = scratch_.path() + "/disk";
    ASSERT_OK(::mkdir(disk_.c_str(), 0755));
    ASSERT_OK(::mount("kvcfs-full-disk", disk_.c_str(), "tmpfs", 0, "size=192M"));
    ASSERT_OK(::mkdir((disk_ + "/data").c_str(), 0755));
    MountOptions options = OptionsFor(GetParam());
    options.dram = "32M";
    options.nvme = "96M";
    options.data_directory = disk_ + "/data";
    mount_ = std::make_unique<TestMount>(options);
    ASSERT_TRUE(mount_->Start()) << mount_->LogTail();
    ns_ = Namespace(*mount_, "ns", kBlockBytes);
  }
  void TearDown() override {
    mount_.reset();
    ::umount2(disk_.c_str(), MNT_DETACH);
  }
  void Fill() {
    const Fd fd = Open(disk_ + "/filler", O_CREAT | O_WRONLY);
    for (const size_t piece : {size_t{1} << 20, size_t{4096}}) {
      const std::string bytes(piece, 'f');
      while (::write(fd.get(), bytes.data(), piece) == static_cast<ssize_t>(piece)) {
      }
    }
  }
  // Whole, or ENOSPC: 0 or ENOSPC; anything else fails the test.
  int PutNext() {
    const uint64_t number = next_++;
    const int failed = ns_.Put("", Key(number), Bytes(number, kBlockBytes));
    EXPECT_TRUE(failed == 0 || failed == ENOSPC) << ErrnoName(failed) << " at block " << number;
    return failed;
  }
  int PutFile() {
    const uint64_t number = next_file_++;
    const int failed =
        WriteFile(fmt::format("{}/f{}", ns_.Files(), number), Bytes(number, kBlockBytes));
    EXPECT_TRUE(failed == 0 || failed == ENOSPC) << ErrnoName(failed) << " at file " << number;
    return failed;
  }
  // What can be read is exact. How much that is.
  size_t CheckAll(const char* when) {
    size_t found = 0;
    for (uint64_t i = 0; i < next_; ++i) {
      const Fd fd = Open(ns_.ByKey(Key(i)), O_RDONLY);
      if (!fd.valid()) {
        EXPECT_EQ(ErrnoName(errno), "ENOENT") << when;
        continue;
      }
      const auto got = ReadRest(fd.get());
      EXPECT_TRUE(got) << when << " " << ErrnoName(errno);
      if (got) {
        EXPECT_EQ(Difference(Bytes(i, kBlockBytes), *got), "equal") << when << " block " << i;
      }
      ++found;
    }
    for (uint64_t i = 0; i < next_file_; ++i) {
      const std::string path = fmt::format("{}/f{}", ns_.Files(), i);
      const Fd fd = Open(path, O_RDONLY);
      if (!fd.valid()) {
        EXPECT_EQ(ErrnoName(errno), "ENOENT") << when;
        continue;
      }
      const auto got = ReadRest(fd.get());
      EXPECT_TRUE(got) << when << " " << ErrnoName(errno);
      // A writer that was told ENOSPC may have left a shorter file; one that was told nothing not.
      if (got && got->size() == kBlockBytes) {
        EXPECT_EQ(Difference(Bytes(i, kBlockBytes), *got), "equal") << when << " file " << i;
      }
    }
    return found;
  }

  TemporaryDirectory scratch_;
  std::string disk_;
  std::unique_ptr<TestMount> mount_;
  Namespace ns_;
  uint64_t next_ = 0, next_file_ = 0;
};
KVC_BOTH_MODES(FullDisk);

// W15: Space is set aside at create: a writer never meets ENOSPC half-way and never sees a short
// write. Where nothing may be evicted, create says ENOSPC.
// F13: A write that ENOSPC cut short leaves no file that is shorter than its writer believes.
TEST_P(FullDisk, NeverShort) {
  // More than the tiers hold: old ones go, nothing fails.
  for (int i = 0; i < 700; ++i) ASSERT_EQ(PutNext(), 0) << i << "\n" << mount_->LogTail();
  EXPECT_GT(CheckAll("overwritten several times"), 50u);
  Fill();
  int written = 0;
  for (int i = 0; i < 300; ++i) written += PutNext() == 0 ? 1 : 0;
  for (int i = 0; i < 100; ++i) PutFile();
  EXPECT_GT(written, 0) << "old blocks may be evicted: a full disk is no reason to refuse";
  EXPECT_GT(CheckAll("the disk is full"), 0u);
  EXPECT_TRUE(mount_->Answers());
  ASSERT_OK(::unlink((disk_ + "/filler").c_str()));
  const bool recovered = Eventually([&] { return PutNext() == 0 && PutFile() == 0; });
  EXPECT_TRUE(recovered) << "there is room again";
  for (int i = 0; i < 50; ++i) EXPECT_EQ(ErrnoName(PutNext()), "0");
  CheckAll("there is room again");
  EXPECT_EQ(mount_->Stop(), 0);
  ASSERT_TRUE(mount_->Start()) << mount_->LogTail();
  EXPECT_GT(CheckAll("mounted again"), 50u);
}

// X4: Mounting works on a full disk.
TEST_P(FullDisk, MountsOnAFullDisk) {
  for (int i = 0; i < 200; ++i) ASSERT_EQ(PutNext(), 0) << i;
  Fill();
  mount_->Kill();
  ASSERT_TRUE(mount_->Start()) << mount_->LogTail();
  EXPECT_GT(CheckAll("mounted on a full disk after a kill"), 50u);
  for (int i = 0; i < 20; ++i) PutNext();
  EXPECT_EQ(mount_->Stop(), 0);
  ASSERT_TRUE(mount_->Start()) << mount_->LogTail();
  CheckAll("mounted on a full disk after a clean stop");
  ASSERT_OK(::unlink((disk_ + "/filler").c_str()));
  EXPECT_TRUE(Eventually([&] { return PutNext() == 0; })) << "there is room again";
  CheckAll("at the end");
}

}  // namespace
}  // namespace kvcfs::test
