// Promises U1-U6 of fs/SEMANTICS.md, each on a mount whose tiers are small enough to overflow.
#include <algorithm>
#include <array>
#include <chrono>
#include <set>
#include <thread>

#include <fmt/format.h>
#include <sys/mman.h>

#include "tests/integration/mount_fixture.h"

namespace kvcfs::test {
namespace {

constexpr size_t kBlockBytes = 1 << 20;
// Nothing stays because somebody looked at it.
const std::vector<std::string> kNoLeases{
    "--set", "fs.lease=0ms",         "--set", "fs.lease_hold=0ms",
    "--set", "fs.entry_timeout=0ms", "--set", "fs.attr_timeout=0ms"};

class Using : public testing::TestWithParam<Mode> {
 protected:
  void SetUp() override { KVC_NEEDS_MOUNT(); }
  void StartMount(const std::vector<std::string>& extra, const std::string& nvme = "256M") {
    MountOptions options = OptionsFor(GetParam());
    options.dram = "64M";
    options.nvme = nvme;
    options.extra.insert(options.extra.end(), extra.begin(), extra.end());
    mount_ = std::make_unique<TestMount>(options);
    ASSERT_TRUE(mount_->Start()) << mount_->LogTail();
    ns_ = Namespace(*mount_, "ns", kBlockBytes);
  }
  // Blocks of their own in root/, which nobody looks at: what makes room necessary.
  void Flood(uint32_t count) {
    for (uint32_t i = 0; i < count; ++i, ++flooded_) {
      ASSERT_EQ(ErrnoName(ns_.Put("", FloodKey(flooded_), Bytes(flooded_, kBlockBytes))), "0")
          << "block " << flooded_ << ": writing more than the tiers hold never fails";
    }
  }
  static std::string FloodKey(uint64_t number) { return Key(1000000 + number); }
  std::set<std::string> Cached() {  // listed: leases nothing
    const auto names = Names(ns_.path() + "/by-key");
    return {names.begin(), names.end()};
  }

  std::unique_ptr<TestMount> mount_;
  Namespace ns_;
  uint64_t flooded_ = 0;
};
KVC_BOTH_MODES(Using);

// U1: A stat, access, lookup or match that finds a block or a file leases it (30 s): what was
// promised there, the following read finds, whatever else is written meanwhile.
TEST_P(Using, WhatWasFoundCanBeRead) {
  StartMount({});
  const auto by_stat = ns_.PutChain("", 0, 4, kBlockBytes);
  const auto by_access = ns_.PutChain("", 10, 4, kBlockBytes);
  const auto by_match = ns_.PutChain("", 20, 4, kBlockBytes);
  const auto by_command = ns_.PutChain("", 30, 4, kBlockBytes);
  Flood(20);
  EXPECT_TRUE(Exists(ns_.Chain(by_stat.back()))) << "a tip stands for its whole chain";
  EXPECT_OK(::access(ns_.ByKey(by_access.back()).c_str(), R_OK));
  EXPECT_EQ(ns_.Match(by_match), 4);
  std::vector<std::string> words{KVC_COMMAND, "lookup", ns_.path()};
  words.insert(words.end(), by_command.begin(), by_command.end());
  EXPECT_EQ(RunCommand(words).status, 0);
  Flood(500);
  EXPECT_EQ(Cached().count(FloodKey(0)), 0u) << "the tiers did not overflow: nothing is shown";
  uint64_t first = 0;
  for (const auto& chain : {by_stat, by_access, by_match, by_command}) {
    for (uint64_t i = 0; i < chain.size(); ++i) {
      const auto got = ns_.Read(chain[i]);
      ASSERT_TRUE(got) << ErrnoName(errno) << " chain " << first << " block " << i;
      EXPECT_SAME_BYTES(Bytes(first + i, kBlockBytes), *got);
    }
    first += 10;
  }
}

TEST_P(Using, FilesAreLeasedToo) {
  // Long enough for the slowest machine: the flood must end before the leases do.
  StartMount({"--set", "fs.lease=10min"});
  for (uint64_t i = 0; i < 8; ++i) {
    ASSERT_EQ(WriteFile(fmt::format("{}/kept-{}", ns_.Files(), i), Bytes(i, kBlockBytes)), 0);
  }
  for (uint64_t i = 0; i < 8; ++i) {
    EXPECT_TRUE(Exists(fmt::format("{}/kept-{}", ns_.Files(), i)));
  }
  for (uint64_t i = 0; i < 500; ++i) {
    ASSERT_EQ(ErrnoName(WriteFile(fmt::format("{}/flood-{}", ns_.Files(), i),
                                  Bytes(100 + i, kBlockBytes))),
              "0");
  }
  EXPECT_LT(Names(ns_.Files()).size(), 508u) << "the tiers did not overflow: nothing is shown";
  for (uint64_t i = 0; i < 8; ++i) {
    const auto got = ReadWhole(fmt::format("{}/kept-{}", ns_.Files(), i));
    ASSERT_TRUE(got) << i;
    EXPECT_SAME_BYTES(Bytes(i, kBlockBytes), *got);
  }
}

// U2: Leases never cover more than half of a tier: beyond it new ones are refused (0 ms) and
// writing goes on.
TEST_P(Using, LeasesNeverStopWriters) {
  StartMount({});
  bool refused = false;
  for (uint32_t i = 0; i < 500; ++i) {
    Flood(1);
    const std::string lease = GetXattr(ns_.ByKey(FloodKey(i)), "user.kvc.lease_ms");
    refused |= lease == "0";
    EXPECT_GE(ns_.Match({FloodKey(i)}), 0);
  }
  EXPECT_TRUE(refused) << "all 500 MiB were promised for 30 s on tiers of 320 MiB";
}

// U3: Eviction goes from the ends of chains: what is cached is always a prefix. Writing more than
// the tiers hold never fails.
TEST_P(Using, WhatIsCachedIsAlwaysAPrefix) {
  StartMount(kNoLeases);
  std::vector<std::vector<std::string>> chains;
  for (uint64_t i = 0; i < 60; ++i) {
    // Every third grows out of the middle of an earlier one, if that middle is still there.
    std::string parent;
    std::vector<std::string> above;
    if (i % 3 == 2) {
      const auto& other = chains[i - 1];
      if (Cached().count(other[3]) != 0) {
        above.assign(other.begin(), other.begin() + 4);
        parent = other[3];
      }
    }
    std::vector<std::string> chain = above;
    for (uint64_t j = 0; j < 8; ++j) {
      const std::string key = Key(i * 100 + j);
      const int failed = ns_.Put(parent, key, Bytes(i * 100 + j, kBlockBytes));
      if (failed == ENOENT) break;  // its parent was evicted meanwhile
      ASSERT_EQ(ErrnoName(failed), "0");
      chain.push_back(key);
      parent = key;
    }
    chains.push_back(chain);
  }
  const auto cached = Cached();
  size_t whole = 0, cut = 0;
  for (const auto& chain : chains) {
    size_t length = 0;
    while (length < chain.size() && cached.count(chain[length]) != 0) ++length;
    for (size_t i = length; i < chain.size(); ++i) {
      EXPECT_EQ(cached.count(chain[i]), 0u) << "a block behind a hole";
    }
    (length == chain.size() ? whole : cut) += 1;
  }
  EXPECT_GT(whole, 0u);
  EXPECT_GT(cut, 0u) << "the tiers did not overflow: nothing is shown";
  for (const std::string& key : cached) EXPECT_TRUE(Exists(ns_.Chain(key)) || !ns_.Has(key));
}

// U4: utimensat on a block counts as use.
TEST_P(Using, UtimensCountsAsUse) {
  StartMount(kNoLeases);
  const auto touched = ns_.PutChain("", 0, 4, kBlockBytes);
  const auto idle = ns_.PutChain("", 10, 4, kBlockBytes);
  // Through O_PATH, so that no lookup counts as use in its stead.
  std::vector<Fd> paths;
  for (const std::string& key : touched) paths.push_back(Open(ns_.ByKey(key), O_PATH));
  const struct stat before = StatOf(ns_.ByKey(touched[0]));
  for (int round = 0; round < 60; ++round) {
    for (const Fd& path : paths) {
      const std::array<struct timespec, 2> now{
          {{.tv_sec = 0, .tv_nsec = UTIME_NOW}, {.tv_sec = 0, .tv_nsec = UTIME_NOW}}};
      ASSERT_OK(
          ::utimensat(AT_FDCWD, fmt::format("/proc/self/fd/{}", path.get()).c_str(), now.data(), 0))
          << "in round " << round;
    }
    Flood(8);
    // Use is counted to the second: the tiers must not be turned over within one.
    std::this_thread::sleep_for(std::chrono::milliseconds(60));
  }
  const auto cached = Cached();
  for (const std::string& key : touched) EXPECT_EQ(cached.count(key), 1u);
  for (const std::string& key : idle) EXPECT_EQ(cached.count(key), 0u);
  const struct stat after = StatOf(ns_.ByKey(touched[0]));
  EXPECT_EQ(after.st_mtim.tv_sec, before.st_mtim.tv_sec) << "mtime stays the publication";
  EXPECT_EQ(after.st_mtim.tv_nsec, before.st_mtim.tv_nsec);
}

// U5: A block or file that is open or mapped is not disturbed by eviction or by its removal: its
// bytes stay until the last close and munmap.
TEST_P(Using, OpenBlocksAreNotDisturbed) {
  StartMount(kNoLeases);
  constexpr uint64_t kHeld = 8;
  std::vector<Fd> open;
  std::vector<char*> maps;
  for (uint64_t i = 0; i < kHeld; ++i) {
    ASSERT_EQ(ns_.Put("", Key(i), Bytes(i, kBlockBytes)), 0);
    ASSERT_EQ(ns_.Put("", Key(100 + i), Bytes(100 + i, kBlockBytes)), 0);
    open.push_back(Open(ns_.ByKey(Key(i)), O_RDONLY));
    const Fd fd = Open(ns_.ByKey(Key(100 + i)), O_RDONLY);
    void* map =
        ::mmap(nullptr, kBlockBytes, PROT_READ, i % 2 == 0 ? MAP_SHARED : MAP_PRIVATE, fd.get(), 0);
    ASSERT_NE(map, MAP_FAILED) << ErrnoName(errno);
    maps.push_back(static_cast<char*>(map));
  }
  const auto check = [&](const char* when) {
    for (uint64_t i = 0; i < kHeld; ++i) {
      ASSERT_EQ(::lseek(open[i].get(), 0, SEEK_SET), 0);
      const auto got = ReadRest(open[i].get(), 100000);
      ASSERT_TRUE(got) << when << " " << ErrnoName(errno);
      EXPECT_EQ(Difference(Bytes(i, kBlockBytes), *got), "equal") << when;
      EXPECT_EQ(Difference(Bytes(100 + i, kBlockBytes),
                           ReadMap(maps[i], kBlockBytes).value_or("unreadable")),
                "equal")
          << when;
    }
  };
  check("at first");
  Flood(500);
  check("after the flood");
  for (uint64_t i = 0; i < kHeld; ++i) {
    ::unlink(ns_.ByKey(Key(i)).c_str());
    ::unlink(ns_.ByKey(Key(100 + i)).c_str());
  }
  check("after their removal");
  Flood(100);
  check("after another flood");
  for (char* map : maps) ::munmap(map, kBlockBytes);
}

// U6: A cold block comes back from NVMe with the same bytes, and says its tier in `user.kvc.tier`.
TEST_P(Using, ColdBlocksComeBack) {
  StartMount(kNoLeases, "1G");
  constexpr uint64_t kChains = 40, kLength = 6;
  std::vector<std::vector<std::string>> chains;
  for (uint64_t i = 0; i < kChains; ++i) {
    // Lengths of all kinds, the full one among them.
    std::vector<std::string> keys;
    for (uint64_t j = 0; j < kLength; ++j) {
      const uint64_t number = i * 100 + j;
      keys.push_back(Key(number));
      const size_t length = j % 2 == 0 ? kBlockBytes : 1 + number * 7919 % kBlockBytes;
      ASSERT_EQ(ns_.Put(j == 0 ? "" : keys[j - 1], keys[j], Bytes(number, length)), 0);
    }
    chains.push_back(keys);
  }
  // 40 chains of 6 hold about 180 MiB, DRAM 64.
  std::set<std::string> tiers;
  for (int round = 0; round < 2; ++round) {
    for (uint64_t i = 0; i < kChains; ++i) {
      ASSERT_EQ(ns_.Match(chains[i], round == 0 ? "" : "!prefetch\n"), int64_t{kLength}) << i;
      for (uint64_t j = 0; j < kLength; ++j) {
        const uint64_t number = i * 100 + j;
        const size_t length = j % 2 == 0 ? kBlockBytes : 1 + number * 7919 % kBlockBytes;
        tiers.insert(GetXattr(ns_.ByKey(chains[i][j]), "user.kvc.tier"));
        const auto got = ns_.Read(chains[i][j]);
        ASSERT_TRUE(got) << ErrnoName(errno);
        EXPECT_SAME_BYTES(Bytes(number, length), *got);
      }
    }
  }
  EXPECT_EQ(tiers, (std::set<std::string>{"dram", "nvme"}));
}

}  // namespace
}  // namespace kvcfs::test
