// Starting, stopping and replacing the daemon (promises P1, P2, P4 and P5 of fs/SEMANTICS.md).
#include <csignal>

#include <fmt/format.h>
#include <sys/mount.h>
#include <sys/wait.h>

#include "tests/integration/mount_fixture.h"

namespace kvcfs::test {
namespace {

constexpr size_t kBlockBytes = 256 << 10;

class Lifecycle : public testing::Test {
 protected:
  void SetUp() override {
    KVC_NEEDS_MOUNT();
    MountOptions options;
    options.dram = "64M";
    mount_ = std::make_unique<TestMount>(options);
    ASSERT_TRUE(mount_->Start()) << mount_->LogTail();
    ns_ = Namespace(*mount_, "ns", kBlockBytes);
  }
  void WriteThings() {
    keys_ = ns_.PutChain("", 0, 40, kBlockBytes);
    for (uint64_t i = 0; i < 40; ++i) {
      ASSERT_EQ(WriteFile(fmt::format("{}/f{}", ns_.Files(), i), Bytes(100 + i, 1000 + i * 7919)),
                0);
    }
    ASSERT_OK(::symlink("f1", (ns_.Files() + "/soft").c_str()));
    ASSERT_EQ(SetXattrErrno(ns_.Files() + "/f1", "user.mine", "value"), 0);
  }
  void CheckThings(const char* when) {
    EXPECT_EQ(GetXattr(ns_.path(), "user.kvc.block_bytes"), std::to_string(kBlockBytes)) << when;
    for (uint64_t i = 0; i < keys_.size(); ++i) {
      const auto got = ns_.Read(keys_[i]);
      ASSERT_TRUE(got) << when << " block " << i;
      EXPECT_EQ(Difference(Bytes(i, kBlockBytes), *got), "equal") << when;
      EXPECT_EQ(GetXattr(ns_.ByKey(keys_[i]), "user.kvc.ordinal"), std::to_string(i)) << when;
    }
    EXPECT_EQ(ns_.Match(keys_), 40) << when;
    EXPECT_EQ(Names(ns_.Chain(keys_.back())).size(), 40u) << when;
    for (uint64_t i = 0; i < 40; ++i) {
      const auto got = ReadWhole(fmt::format("{}/f{}", ns_.Files(), i));
      ASSERT_TRUE(got) << when << " file " << i;
      EXPECT_EQ(Difference(Bytes(100 + i, 1000 + i * 7919), *got), "equal") << when;
    }
    EXPECT_EQ(GetXattr(ns_.Files() + "/f1", "user.mine"), "value") << when;
    EXPECT_EQ(ReadWhole(ns_.Files() + "/soft"), ReadWhole(ns_.Files() + "/f1")) << when;
  }
  bool DramIsMounted() {
    return ReadWhole("/proc/self/mountinfo")->find(mount_->data_directory() + "/dram") !=
           std::string::npos;
  }

  std::unique_ptr<TestMount> mount_;
  Namespace ns_;
  std::vector<std::string> keys_;
};

// P2: `kvcfs unmount`, SIGTERM and umount write back what is dirty: everything that was published
// is there after the next mount.
TEST_F(Lifecycle, CleanStopKeepsEverything) {
  WriteThings();
  CheckThings("at first");
  EXPECT_EQ(mount_->Stop(), 0);
  EXPECT_FALSE(DramIsMounted()) << "the DRAM tier is freed";
  EXPECT_FALSE(Exists(mount_->mount_point() + "/.kvcfs"));
  ASSERT_TRUE(mount_->Start()) << mount_->LogTail();
  CheckThings("after kvcfs unmount");
  ASSERT_EQ(::kill(mount_->pid(), SIGTERM), 0);
  ASSERT_TRUE(Eventually([&] { return !mount_->running(); }, std::chrono::seconds(60)));
  EXPECT_FALSE(DramIsMounted());
  ASSERT_TRUE(mount_->Start()) << mount_->LogTail();
  CheckThings("after SIGTERM");
  EXPECT_EQ(RunCommand({"umount", mount_->mount_point()}).status, 0);
  ASSERT_TRUE(Eventually([&] { return !mount_->running(); }, std::chrono::seconds(60)));
  EXPECT_FALSE(DramIsMounted());
  ASSERT_TRUE(mount_->Start()) << mount_->LogTail();
  CheckThings("after umount");
  // --keep-dram leaves the tier for the next mount.
  EXPECT_EQ(RunCommand({KVC_COMMAND, "unmount", "--keep-dram", mount_->mount_point()}).status, 0);
  ASSERT_TRUE(Eventually([&] { return !mount_->running(); }, std::chrono::seconds(60)));
  EXPECT_TRUE(DramIsMounted());
  ASSERT_TRUE(mount_->Start()) << mount_->LogTail();
  CheckThings("after unmount --keep-dram");
  EXPECT_EQ(GetXattr(ns_.ByKey(keys_.back()), "user.kvc.tier"), "dram");
}

// P4: A mount point left dead by a killed daemon is replaced by the next `kvcfs mount`.
TEST_F(Lifecycle, DeadMountIsReplaced) {
  WriteThings();
  mount_->Kill();
  EXPECT_FALSE(mount_->Answers());
  ASSERT_TRUE(mount_->Start()) << mount_->LogTail();
  CheckThings("after kill -9");
  // And again, with a process that sits in the dead mount.
  const Fd inside = Open(ns_.Files(), O_RDONLY | O_DIRECTORY);
  mount_->Kill();
  ASSERT_TRUE(mount_->Start()) << mount_->LogTail();
  CheckThings("with somebody inside");
}

// P5: A second daemon on one data directory says who holds it and exits 1.
TEST_F(Lifecycle, SecondDaemonSaysWhoHoldsIt) {
  const TemporaryDirectory other;
  const std::string point = other.path() + "/mnt";
  ASSERT_OK(::mkdir(point.c_str(), 0755));
  const CommandResult second =
      RunCommand({KVC_COMMAND, "mount", point, "--data", mount_->data_directory(), "--dram", "32M",
                  "--nvme", "256M"});
  EXPECT_EQ(second.status, 1) << second.err;
  EXPECT_NE(second.err.find(std::to_string(mount_->pid())), std::string::npos)
      << "names the holder: " << second.err;
  EXPECT_NE(second.err.find(mount_->data_directory()), std::string::npos) << second.err;
  EXPECT_TRUE(Names(point).empty()) << "nothing is mounted there";
  WriteThings();
  CheckThings("the first goes on");
  // The same on the same mount point.
  const CommandResult same =
      RunCommand({KVC_COMMAND, "mount", mount_->mount_point(), "--data", other.path() + "/data",
                  "--dram", "32M", "--nvme", "256M"});
  EXPECT_NE(same.status, 0) << "something is mounted there and answers";
  CheckThings("the first goes on");
}

// P1: A mount answers when `MNT/.kvcfs/version` can be read; `--daemon` returns when the mount
// answers.
TEST_F(Lifecycle, DaemonReturnsWhenItAnswers) {
  EXPECT_EQ(mount_->Stop(), 0);
  const CommandResult started =
      RunCommand({KVC_COMMAND, "mount", mount_->mount_point(), "--data", mount_->data_directory(),
                  "--dram", "64M", "--nvme", "1G", "--daemon"});
  EXPECT_EQ(started.status, 0) << started.err;
  EXPECT_TRUE(mount_->Answers()) << "at once";
  EXPECT_EQ(RunCommand({KVC_COMMAND, "unmount", mount_->mount_point()}).status, 0);
  EXPECT_FALSE(mount_->Answers());
  // What cannot be mounted is said by the one who asked.
  const std::string no_directory = mount_->mount_point() + "/a-file";
  ASSERT_EQ(WriteFile(no_directory, ""), 0);
  const CommandResult failed =
      RunCommand({KVC_COMMAND, "mount", no_directory, "--data", mount_->data_directory(), "--dram",
                  "64M", "--nvme", "1G", "--daemon"});
  EXPECT_NE(failed.status, 0);
  EXPECT_NE(failed.err.find("a-file"), std::string::npos) << failed.err;
}

// Mounting many times over keeps everything, and leaves nothing behind.
TEST_F(Lifecycle, ManyTimes) {
  WriteThings();
  for (int i = 0; i < 5; ++i) {
    EXPECT_EQ(mount_->Stop(), 0);
    ASSERT_TRUE(mount_->Start()) << mount_->LogTail();
  }
  CheckThings("after five mounts");
  EXPECT_EQ(RunCommand({KVC_COMMAND, "unmount", "/tmp"}).status != 0, true) << "not ours";
}

}  // namespace
}  // namespace kvcfs::test
