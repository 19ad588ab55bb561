// The daemon dies exactly between two writes that belong together, at each place that its source
// names with KVC_CRASH_POINT (promises P3 and P6 of fs/SEMANTICS.md).
//
// The worker kills itself when it passes the armed point for the Nth time; the supervisor's next
// worker is not armed. The caller notices nothing: each call waits and is answered. What each call
// answered is kept here, and compared: after the restart, and after a power cut.
#include <algorithm>
#include <filesystem>
#include <map>
#include <random>
#include <regex>
#include <set>

#include <fmt/format.h>
#include <sys/mount.h>

#include "tests/integration/mount_fixture.h"

namespace kvcfs::test {
namespace {

constexpr size_t kBlockBytes = 256 << 10;

// All names in KVC_CRASH_POINT("...") of the source.
std::vector<std::string> CrashPoints() {
  static const std::regex point("KVC_CRASH_POINT\\(\"([^\"]+)\"\\)");
  std::set<std::string> names;
  for (const char* folder : {"iouring", "rdma", "meta", "fs", "tools"}) {
    for (const auto& entry : std::filesystem::recursive_directory_iterator(
             std::string(KVC_SOURCE_DIR) + "/" + folder)) {
      if (entry.path().extension() != ".cc") continue;
      const std::string text = ReadWhole(entry.path()).value_or("");
      for (std::sregex_iterator it(text.begin(), text.end(), point), end; it != end; ++it) {
        names.insert((*it)[1]);
      }
    }
  }
  return {names.begin(), names.end()};
}

struct Kept {
  std::string parent;
  uint64_t number = 0;
  size_t bytes = 0;
  bool durable = false;
};

class CrashPoint : public testing::TestWithParam<Mode> {
 protected:
  void SetUp() override { KVC_NEEDS_MOUNT(); }

  void StartMount(const std::string& point) {
    MountOptions options = OptionsFor(GetParam());
    options.dram = "16M";  // 64 blocks: evicting and fetching begin soon
    options.nvme = "512M";
    options.extra.insert(
        options.extra.end(),
        {"--set", "test.crash_point=" + point, "--set", "fs.lease=0ms", "--set",
         "fs.lease_hold=0ms", "--set", "fs.entry_timeout=0ms", "--set", "fs.attr_timeout=0ms",
         "--set", "fs.writeback_delay=20ms", "--set", "fs.touch_dram=false"});
    mount_ = std::make_unique<TestMount>(options);
    ASSERT_TRUE(mount_->Start()) << mount_->LogTail();
    ns_ = Namespace(*mount_, "ns", kBlockBytes);
    blocks_.clear();
    gone_.clear();
    file_versions_.clear();
  }

  // One step of a small engine's life. Every call must succeed.
  void Step(uint64_t step) {
    const uint64_t number = step + 1;
    if (step % 9 == 8 && !order_.empty()) {
      Drop(order_[random_() % order_.size()]);
    } else if (step % 5 == 4 && !order_.empty()) {
      CheckBlock(order_[random_() % order_.size()], "while working");
    } else if (step % 7 == 6) {
      const uint64_t file = random_() % 5;
      const std::string path = fmt::format("{}/f{}", ns_.Files(), file);
      ASSERT_EQ(ErrnoName(WriteFile(path + ".tmp", Bytes(number, 100000))), "0");
      ASSERT_OK(::rename((path + ".tmp").c_str(), path.c_str()));
      file_versions_[file] = number;
    } else {
      const std::string parent =
          order_.empty() || step % 6 == 0 ? "" : order_[random_() % order_.size()];
      const size_t bytes = step % 3 == 0 ? kBlockBytes : 1 + random_() % kBlockBytes;
      const std::string key = Key(number);
      Fd fd = Open(ns_.Chain(parent) + "/" + key, O_CREAT | O_EXCL | O_WRONLY);
      ASSERT_TRUE(fd.valid()) << ErrnoName(errno) << " step " << step;
      ASSERT_EQ(ErrnoName(WriteAll(fd.get(), Bytes(number, bytes))), "0") << step;
      const bool durable = step % 2 == 0;
      if (durable) {
        ASSERT_OK(::fsync(fd.get())) << step;
      }
      ASSERT_EQ(ErrnoName(CloseErrno(std::move(fd))), "0") << step;
      blocks_[key] = {.parent = parent, .number = number, .bytes = bytes, .durable = durable};
      order_.push_back(key);
      ASSERT_EQ(ErrnoName(StatErrno(ns_.ByKey(key))), "0") << "step " << step;
    }
  }

  void Drop(const std::string& key) {
    ASSERT_OK(::unlink(ns_.ByKey(key).c_str()));
    std::set<std::string> below{key};
    for (const std::string& other : order_) {  // parents come first
      if (below.count(blocks_[other].parent) != 0) below.insert(other);
    }
    for (const std::string& one : below) {
      blocks_.erase(one);
      gone_.insert(one);
    }
    std::erase_if(order_, [&](const std::string& one) { return below.count(one) != 0; });
  }

  void CheckBlock(const std::string& key, const std::string& when) {
    const Kept& kept = blocks_[key];
    const auto got = ns_.Read(key);
    ASSERT_TRUE(got) << when << ": block " << kept.number << " is lost";
    ASSERT_EQ(Difference(Bytes(kept.number, kept.bytes), *got), "equal") << when;
    ASSERT_EQ(GetXattr(ns_.ByKey(key), "user.kvc.parent"), kept.parent) << when;
  }

  void CheckAfterRestart(const std::string& when) {
    for (const std::string& key : order_) {
      CheckBlock(key, when);
      if (HasFatalFailure()) return;
    }
    for (const std::string& key : gone_) {
      ASSERT_EQ(ErrnoName(StatErrno(ns_.ByKey(key))), "ENOENT") << when << ": it was dropped";
    }
    EXPECT_EQ(Names(ns_.path() + "/by-key").size(), order_.size()) << when;
    for (const auto& [file, number] : file_versions_) {
      const auto got = ReadWhole(fmt::format("{}/f{}", ns_.Files(), file));
      ASSERT_TRUE(got) << when;
      ASSERT_EQ(Difference(Bytes(number, 100000), *got), "equal") << when;
    }
  }

  // What fsync acknowledged is there with all above it; the rest is exact if it is there.
  void CheckAfterPowerCut(const std::string& when) {
    for (const std::string& key : order_) {
      const Kept& kept = blocks_[key];
      const auto got = ns_.Read(key);
      if (!got) {
        // An fsync of a block that could not be found again would promise nothing: what is above it
        // is made durable with it.
        EXPECT_FALSE(kept.durable) << when << ": block " << kept.number << " is lost";
        continue;
      }
      ASSERT_EQ(Difference(Bytes(kept.number, kept.bytes), *got), "equal") << when;
      if (!kept.parent.empty()) {
        EXPECT_TRUE(ns_.Has(kept.parent)) << when << ": a hole in a chain";
      }
    }
  }

  std::unique_ptr<TestMount> mount_;
  Namespace ns_;
  std::map<std::string, Kept> blocks_;
  std::vector<std::string> order_;  // as they were published
  std::set<std::string> gone_;
  std::map<uint64_t, uint64_t> file_versions_;
  std::mt19937_64 random_{1};
};
KVC_BOTH_MODES(CrashPoint);

TEST_P(CrashPoint, EachIsSurvived) {
  const auto points = CrashPoints();
  EXPECT_GE(points.size(), 8u);
  for (const std::string& point : points) {
    const std::string armed = fmt::format("{}:{}", point, GetParam() == Mode::kPassthrough ? 3 : 1);
    SCOPED_TRACE(armed);
    order_.clear();
    StartMount(armed);
    const auto first = mount_->Workers();
    ASSERT_EQ(first.size(), 1u);
    bool passed = false;
    for (uint64_t step = 0; step < 1200 && !passed && !HasFatalFailure(); ++step) {
      Step(step);
      passed = step % 8 == 7 && mount_->Workers() != first;
    }
    if (HasFatalFailure()) return;
    EXPECT_TRUE(passed) << "this point was never passed";
    for (uint64_t step = 2000; step < 2020; ++step) Step(step);
    CheckAfterRestart("after the restart");
    mount_->Kill();
    ASSERT_TRUE(mount_->Start()) << mount_->LogTail();
    CheckAfterRestart("after a kill of everything");
    mount_->Kill();
    ::umount2((mount_->data_directory() + "/dram").c_str(), MNT_DETACH);
    // The armed point is in the options still: let it be passed while recovering and writing back.
    ASSERT_TRUE(mount_->Start()) << mount_->LogTail();
    CheckAfterPowerCut("after a power cut");
    if (HasFatalFailure()) return;
    mount_.reset();
  }
}

}  // namespace
}  // namespace kvcfs::test
