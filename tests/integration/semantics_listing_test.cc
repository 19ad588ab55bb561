// Promises L1-L5 of fs/SEMANTICS.md, through a real mount.
#include <algorithm>
#include <map>
#include <set>
#include <thread>

#include <fmt/format.h>

#include "tests/integration/mount_fixture.h"

namespace kvcfs::test {
namespace {

class Listing : public MountTest {
 protected:
  std::set<std::string> Tips() {
    std::set<std::string> tips;
    for (const std::string& name : Names(ns().path())) {
      if (name.size() == 64) tips.insert(name);
    }
    return tips;
  }
};
KVC_BOTH_MODES(Listing);

// L1: Listing a namespace shows its fixed entries and the leaf chains only: tips that no cached
// block extends. Every other tip still resolves.
TEST_P(Listing, OnlyLeavesAreListed) {
  const auto trunk = ns().PutChain("", 0, 5, 4096);
  EXPECT_EQ(Tips(), (std::set<std::string>{trunk[4]}));
  const auto fork = ns().PutChain(trunk[1], 50, 3, 4096);
  EXPECT_EQ(Tips(), (std::set<std::string>{trunk[4], fork[2]}));
  const auto more = ns().PutChain(trunk[4], 60, 1, 4096);
  EXPECT_EQ(Tips(), (std::set<std::string>{more[0], fork[2]}));
  for (const std::string& key : trunk) EXPECT_TRUE(Exists(ns().Chain(key)));
  ASSERT_OK(::unlink(ns().ByKey(more[0]).c_str()));
  EXPECT_EQ(Tips(), (std::set<std::string>{trunk[4], fork[2]})) << "its parent is a leaf again";
  ASSERT_OK(::unlink(ns().ByKey(trunk[2]).c_str()));
  EXPECT_EQ(Tips(), (std::set<std::string>{fork[2]}));
  const auto all = Names(ns().path());
  for (const char* fixed : {"root", "by-key", "files", "match"}) {
    EXPECT_EQ(std::count(all.begin(), all.end(), fixed), 1) << fixed;
  }
}

// L2: Directories list in pages with buffers of any size: every entry exactly once.
TEST_P(Listing, PagesOfAnySize) {
  constexpr uint32_t kTips = 300;
  std::set<std::string> tips;
  for (uint32_t i = 0; i < kTips; ++i) {
    tips.insert(Key(i));
    ASSERT_EQ(ns().Put("", Key(i), "x"), 0);
    ASSERT_EQ(WriteFile(fmt::format("{}/file-{}", ns().Files(), i), ""), 0);
  }
  const auto chain = ns().PutChain(Key(0), 1000, 299, 16);
  tips.erase(Key(0));
  tips.insert(chain.back());
  for (const size_t buffer : {size_t{300}, size_t{1000}, size_t{4096}, size_t{1} << 20}) {
    std::multiset<std::string> seen;
    for (const DirEntry& entry : List(ns().path(), buffer)) {
      if (entry.name.size() == 64) seen.insert(entry.name);
    }
    EXPECT_EQ(seen, (std::multiset<std::string>(tips.begin(), tips.end()))) << buffer;
    EXPECT_EQ(List(ns().path() + "/by-key", buffer).size(), kTips + 299u) << buffer;
    const auto files = List(ns().Files(), buffer);
    EXPECT_EQ(files.size(), kTips) << buffer;
    const auto blocks = List(ns().Chain(chain.back()), buffer);
    ASSERT_EQ(blocks.size(), 300u) << buffer;
    EXPECT_TRUE(std::is_sorted(blocks.begin(), blocks.end(), [](const auto& a, const auto& b) {
      return a.name < b.name;
    })) << buffer;
  }
}

// L2: ... that is there from the beginning to the end of the listing, whatever comes and goes
// meanwhile.
// L5: A name that was listed and has gone meanwhile is ENOENT when it is opened, nothing else.
TEST_P(Listing, ChangesDuringAListing) {
  constexpr uint32_t kStay = 300, kGo = 300, kCome = 300;
  for (uint32_t i = 0; i < kStay + kGo; ++i) ASSERT_EQ(ns().Put("", Key(i), "x"), 0);
  std::thread changer([&] {
    for (uint32_t i = 0; i < kGo; ++i) {
      EXPECT_OK(::unlink(ns().ByKey(Key(kStay + i)).c_str()));
      if (i < kCome) {
        EXPECT_EQ(ns().Put("", Key(10000 + i), "new"), 0);
      }
    }
  });
  for (const std::string& directory : {ns().path(), ns().path() + "/by-key"}) {
    std::map<std::string, int> seen;
    for (const DirEntry& entry : List(directory, 1000)) {
      ++seen[entry.name];
      const int failed = OpenErrno(directory + "/" + entry.name, O_RDONLY);
      EXPECT_TRUE(failed == 0 || failed == ENOENT) << entry.name << " " << ErrnoName(failed);
    }
    for (uint32_t i = 0; i < kStay; ++i) EXPECT_EQ(seen[Key(i)], 1) << directory << " " << i;
    for (const auto& [name, times] : seen) EXPECT_EQ(times, 1) << name;
  }
  changer.join();
  EXPECT_EQ(Tips().size(), kStay + kCome);
}

// L3: telldir and seekdir work, and rewinddir sees what is new. In a chain directory the offset
// behind an entry continues at the next ordinal.
TEST_P(Listing, SeekAndTell) {
  const auto chain = ns().PutChain("", 0, 40, 64);
  for (uint32_t i = 0; i < 40; ++i) {
    ASSERT_EQ(ns().Put("", Key(1000 + i), "x"), 0);
    ASSERT_EQ(WriteFile(fmt::format("{}/file-{}", ns().Files(), i), ""), 0);
  }
  for (const std::string& directory :
       {ns().Chain(chain.back()), ns().path(), ns().path() + "/by-key", ns().Files()}) {
    DIR* stream = ::opendir(directory.c_str());
    ASSERT_NE(stream, nullptr);
    std::vector<std::pair<long, std::string>> positions;  // before each entry
    while (true) {
      const long at = ::telldir(stream);
      const struct dirent* entry = ::readdir(stream);  // NOLINT(concurrency-mt-unsafe): our stream
      if (entry == nullptr) break;
      positions.emplace_back(at, entry->d_name);
    }
    EXPECT_GE(positions.size(), 40u) << directory;
    for (size_t i = positions.size(); i-- > 0;) {
      ::seekdir(stream, positions[i].first);
      const struct dirent* entry = ::readdir(stream);  // NOLINT(concurrency-mt-unsafe)
      ASSERT_NE(entry, nullptr) << directory << " " << i;
      EXPECT_EQ(entry->d_name, positions[i].second) << directory << " " << i;
    }
    ::rewinddir(stream);
    size_t again = 0;
    while (::readdir(stream) != nullptr) ++again;  // NOLINT(concurrency-mt-unsafe)
    EXPECT_EQ(again, positions.size()) << directory;
    ::closedir(stream);
  }
  DIR* files = ::opendir(ns().Files().c_str());
  ASSERT_NE(files, nullptr);
  while (::readdir(files) != nullptr) {  // NOLINT(concurrency-mt-unsafe)
  }
  ASSERT_EQ(WriteFile(ns().Files() + "/new", ""), 0);
  ::rewinddir(files);
  bool seen = false;
  while (const struct dirent* entry = ::readdir(files)) {  // NOLINT(concurrency-mt-unsafe)
    seen |= std::string_view(entry->d_name) == "new";
  }
  EXPECT_TRUE(seen);
  ::closedir(files);
  // The offset of a chain is its ordinal: what an earlier listing gave is good in a new one.
  const auto entries = List(ns().Chain(chain.back()));
  ASSERT_EQ(entries.size(), 40u);
  const Fd fresh = Open(ns().Chain(chain.back()), O_RDONLY | O_DIRECTORY);
  ASSERT_GE(::lseek(fresh.get(), entries[29].next, SEEK_SET), 0);
  const auto rest = ListFrom(fresh.get(), 32768);
  ASSERT_EQ(rest.size(), 10u);
  EXPECT_EQ(rest.front().name, Namespace::EntryName(30, chain[30]));
}

// L4: Listing leases nothing.
TEST_P(Listing, ListingLeasesNothing) {
  ASSERT_EQ(ns().Put("", Key(1), "x"), 0);
  const Fd by_key = Open(ns().path() + "/by-key", O_RDONLY | O_DIRECTORY);
  // `ls -l` as readdirplus makes it: the attributes come with the entries.
  EXPECT_EQ(ListFrom(by_key.get(), 32768).size(), 1u);
  EXPECT_EQ(List(ns().Chain(Key(1))).size(), 1u);
  const double leased = mount().Metric("kvcfs_fs_leased_bytes");
  if (leased < 0) GTEST_SKIP() << "needs the metric kvcfs_fs_leased_bytes";
  const double before = mount().Metric("kvcfs_fs_leased_bytes");
  ASSERT_EQ(ns().Put("", Key(2), Bytes(2, kBlockBytes)), 0);
  EXPECT_EQ(List(ns().path() + "/by-key").size(), 2u);
  EXPECT_EQ(mount().Metric("kvcfs_fs_leased_bytes"), before);
  EXPECT_TRUE(ns().Has(Key(2)));
  EXPECT_GE(mount().Metric("kvcfs_fs_leased_bytes"), before + static_cast<double>(kBlockBytes));
}

}  // namespace
}  // namespace kvcfs::test
