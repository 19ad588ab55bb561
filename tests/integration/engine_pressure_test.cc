// Ordinary files of engines on tiers that overflow: evicting never disturbs what is open, mapped or
// leased (promises U5 and F11 of fs/SEMANTICS.md), and what is still there is what was written.
#include <algorithm>
#include <atomic>
#include <thread>

#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/vfs.h>

#include "tests/integration/engine_fixture.h"

namespace kvcfs::test {
namespace {

constexpr size_t kFileBytes = 1 << 20;

class Pressure : public testing::TestWithParam<Mode> {
 protected:
  void SetUp() override {
    KVC_NEEDS_MOUNT();
    MountOptions options = OptionsFor(GetParam());
    options.dram = "64M";
    options.nvme = "256M";
    options.extra.insert(options.extra.end(),
                         {"--set", "fs.lease=0ms", "--set", "fs.lease_hold=0ms", "--set",
                          "fs.entry_timeout=0ms", "--set", "fs.attr_timeout=0ms"});
    mount_ = std::make_unique<TestMount>(options);
    ASSERT_TRUE(mount_->Start()) << mount_->LogTail();
    ns_ = Namespace(*mount_, "ns", kFileBytes);
  }
  std::string At(const std::string& name) const { return ns_.Files() + "/" + name; }
  void Flood(uint64_t count) {
    ::mkdir(At("flood").c_str(), 0755);
    for (uint64_t i = 0; i < count; ++i, ++flooded_) {
      ASSERT_EQ(ErrnoName(WriteFile(At(fmt::format("flood/{:06}", flooded_)),
                                    Bytes(flooded_ % 16, kFileBytes))),
                "0")
          << flooded_;
    }
  }
  // The flood did make files go, so that what stayed says something.
  void ExpectOverflow() { EXPECT_LT(Names(At("flood")).size(), flooded_); }

  std::unique_ptr<TestMount> mount_;
  Namespace ns_;
  uint64_t flooded_ = 0;
};
KVC_BOTH_MODES(Pressure);

// U5: A block or file that is open or mapped is not disturbed by eviction or by its removal: its
// bytes stay until the last close and munmap.
TEST_P(Pressure, OpenAndMappedFilesStay) {
  constexpr uint64_t kHeld = 8;
  std::vector<Fd> readers, writers;
  std::vector<char*> maps;
  for (uint64_t i = 0; i < kHeld; ++i) {
    ASSERT_EQ(WriteFile(At(fmt::format("r{}", i)), Bytes(i, kFileBytes)), 0);
    ASSERT_EQ(WriteFile(At(fmt::format("m{}", i)), Bytes(100 + i, kFileBytes)), 0);
    readers.push_back(Open(At(fmt::format("r{}", i)), O_RDONLY | (i % 2 == 0 ? O_DIRECT : 0)));
    const Fd fd = Open(At(fmt::format("m{}", i)), i % 2 == 0 ? O_RDWR : O_RDONLY);
    void* map = ::mmap(nullptr, kFileBytes, i % 2 == 0 ? PROT_READ | PROT_WRITE : PROT_READ,
                       MAP_SHARED, fd.get(), 0);
    ASSERT_NE(map, MAP_FAILED) << ErrnoName(errno);
    maps.push_back(static_cast<char*>(map));
    writers.push_back(Open(At(fmt::format("w{}", i)), O_CREAT | O_RDWR));
    ASSERT_EQ(WriteAll(writers.back().get(), Bytes(200 + i, kFileBytes / 2)), 0);
  }
  const auto check = [&](const char* when) {
    for (uint64_t i = 0; i < kHeld; ++i) {
      Buffer buffer(kFileBytes);
      PreadOnce(readers[i].get(), buffer, 0);
      EXPECT_EQ(Difference(Bytes(i, kFileBytes), buffer.view()), "equal") << when << " r" << i;
      EXPECT_EQ(Difference(Bytes(100 + i, kFileBytes),
                           ReadMap(maps[i], kFileBytes).value_or("unreadable")),
                "equal")
          << when << " m" << i;
      Buffer half(kFileBytes / 2);
      PreadOnce(writers[i].get(), half, 0);
      EXPECT_EQ(Difference(Bytes(200 + i, kFileBytes / 2), half.view()), "equal")
          << when << " w" << i;
    }
  };
  Flood(400);
  ExpectOverflow();
  check("after the flood");
  for (uint64_t i = 0; i < kHeld; ++i) {
    EXPECT_EQ(StatErrno(At(fmt::format("r{}", i))), 0) << "open: it stays under its name, too";
    EXPECT_EQ(StatErrno(At(fmt::format("m{}", i))), 0) << "mapped";
    EXPECT_EQ(StatErrno(At(fmt::format("w{}", i))), 0) << "being written";
    ASSERT_OK(::unlink(At(fmt::format("r{}", i)).c_str()));
    ASSERT_OK(::unlink(At(fmt::format("m{}", i)).c_str()));
    ASSERT_OK(::unlink(At(fmt::format("w{}", i)).c_str()));
  }
  Flood(100);
  check("after their removal and more");
  for (char* map : maps) ::munmap(map, kFileBytes);
}

// F11: Only closed, unmapped regular files of 64 KiB or more are ever evicted; never directories,
// symlinks, or what is below a directory with `user.kvc.evict=never`.
TEST_P(Pressure, SmallFilesAndPinnedOnesStay) {
  ASSERT_OK(::mkdir(At("pinned").c_str(), 0755));
  ASSERT_EQ(ErrnoName(SetXattrErrno(At("pinned"), "user.kvc.evict", "never")), "0");
  ASSERT_OK(::mkdir(At("pinned/below").c_str(), 0755));
  ASSERT_OK(::mkdir(At("empty").c_str(), 0755));
  ASSERT_OK(::symlink("nowhere", At("soft").c_str()));
  for (uint64_t i = 0; i < 12; ++i) {
    ASSERT_EQ(WriteFile(At(fmt::format("pinned/below/{}", i)), Bytes(i, kFileBytes)), 0);
    ASSERT_EQ(WriteFile(At(fmt::format("small{}", i)), Bytes(50 + i, (64 << 10) - 1)), 0);
  }
  Flood(500);
  ExpectOverflow();
  for (uint64_t i = 0; i < 12; ++i) {
    const auto pinned = ReadWhole(At(fmt::format("pinned/below/{}", i)));
    ASSERT_TRUE(pinned) << i;
    EXPECT_SAME_BYTES(Bytes(i, kFileBytes), *pinned);
    const auto small = ReadWhole(At(fmt::format("small{}", i)));
    ASSERT_TRUE(small) << i;
    EXPECT_SAME_BYTES(Bytes(50 + i, (64 << 10) - 1), *small);
  }
  EXPECT_TRUE(Exists(At("empty")));
  EXPECT_TRUE(Exists(At("soft")));
}

// Hard links of a file go together or not at all.
TEST_P(Pressure, HardLinksGoTogether) {
  for (uint64_t i = 0; i < 40; ++i) {
    ASSERT_EQ(WriteFile(At(fmt::format("a{}", i)), Bytes(i, kFileBytes)), 0);
    ASSERT_OK(::link(At(fmt::format("a{}", i)).c_str(), At(fmt::format("b{}", i)).c_str()));
  }
  Flood(300);
  ExpectOverflow();
  const auto names = Names(ns_.Files());
  for (uint64_t i = 0; i < 40; ++i) {
    EXPECT_EQ(std::count(names.begin(), names.end(), fmt::format("a{}", i)),
              std::count(names.begin(), names.end(), fmt::format("b{}", i)))
        << i;
  }
}

// Many writers and readers of many files while everything overflows: each open finds a whole
// version or ENOENT.
TEST_P(Pressure, WritersAndReadersWhileEvicting) {
  std::atomic<bool> stop{false};
  std::atomic<uint64_t> found{0}, missed{0};
  std::vector<std::thread> readers;
  for (int t = 0; t < 2; ++t) {
    readers.emplace_back([&, t] {
      for (uint64_t i = 0; !stop.load(); ++i) {
        const uint64_t file = i * 7919 % 300 + static_cast<uint64_t>(t);
        const Fd fd = Open(At(fmt::format("f{}", file)), O_RDONLY);
        if (!fd.valid()) {
          EXPECT_EQ(ErrnoName(errno), "ENOENT");
          ++missed;
          continue;
        }
        const auto got = ReadRest(fd.get());
        ASSERT_TRUE(got) << ErrnoName(errno);
        EXPECT_SAME_BYTES(Bytes(file, kFileBytes), *got);
        ++found;
      }
    });
  }
  for (uint64_t i = 0; i < 500; ++i) {
    const std::string name = At(fmt::format("f{}", i % 302));
    ASSERT_EQ(ErrnoName(WriteFile(name + ".tmp", Bytes(i % 302, kFileBytes))), "0");
    ASSERT_OK(::rename((name + ".tmp").c_str(), name.c_str()));
  }
  stop = true;
  for (std::thread& reader : readers) reader.join();
  EXPECT_GT(found.load(), 0u);
}

// A NIXL cleaner watches statvfs and deletes above 80 %: it must never see that because of files
// that may be evicted.
TEST_P(Pressure, WatcherNeverSeesEightyPercent) {
  double most = 0;
  for (int round = 0; round < 40; ++round) {
    Flood(10);
    struct statfs space {};
    ASSERT_OK(::statfs(ns_.Files().c_str(), &space));
    most = std::max(most,
                    1 - static_cast<double>(space.f_bavail) / static_cast<double>(space.f_blocks));
  }
  ExpectOverflow();
  EXPECT_LT(most, 0.8);
}

}  // namespace
}  // namespace kvcfs::test
