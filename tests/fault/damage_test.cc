// Damaged data directories: misses, never wrong bytes (promises X1-X4 of fs/SEMANTICS.md).
#include <algorithm>
#include <array>
#include <filesystem>
#include <random>

#include <fmt/format.h>

#include "tests/integration/mount_fixture.h"

namespace kvcfs::test {
namespace {

namespace stdfs = std::filesystem;

constexpr size_t kBlockBytes = 64 << 10;
constexpr uint64_t kChains = 6, kLength = 20, kFiles = 20;

class Damage : public testing::Test {
 protected:
  void SetUp() override {
    KVC_NEEDS_MOUNT();
    MountOptions options;
    options.dram = "16M";
    options.nvme = "128M";
    mount_ = std::make_unique<TestMount>(options);
    ASSERT_TRUE(mount_->Start()) << mount_->LogTail();
    ns_ = Namespace(*mount_, "ns", kBlockBytes);
    for (uint64_t i = 0; i < kChains; ++i) {
      // Half of the chains fork from the middle of the one before.
      const std::string parent = i % 2 == 1 ? chains_.back()[9] : "";
      chains_.push_back(ns_.PutChain(parent, 1000 * i, kLength, kBlockBytes));
    }
    for (uint64_t i = 0; i < kFiles; ++i) {
      ASSERT_EQ(WriteFile(fmt::format("{}/f{}", ns_.Files(), i), Bytes(90000 + i, FileBytes(i))),
                0);
    }
    ASSERT_EQ(mount_->Stop(), 0);
    good_ = scratch_.path() + "/good";
    Copy(mount_->data_directory(), good_);
  }
  static size_t FileBytes(uint64_t i) { return 1 + i * 17389 % 250000; }
  static void Copy(const std::string& from, const std::string& to) {
    std::error_code ignored;
    stdfs::remove_all(to, ignored);
    ASSERT_EQ(RunCommand({"cp", "-a", "--sparse=always", "--reflink=auto", from, to}).status, 0);
  }

  // (file, page) of every page that is not all zeros.
  static std::vector<std::pair<std::string, off_t>> UsedPages(const std::string& directory) {
    std::vector<std::pair<std::string, off_t>> pages;
    for (const auto& entry : stdfs::recursive_directory_iterator(directory)) {
      if (!entry.is_regular_file() || entry.is_symlink()) continue;
      const std::string path = stdfs::relative(entry.path(), directory);
      const Fd fd = Open(entry.path(), O_RDONLY);
      for (off_t at = 0;; at += 4096) {
        at = ::lseek(fd.get(), at, SEEK_DATA);
        if (at < 0) break;
        at = at / 4096 * 4096;
        std::array<char, 4096> page{};
        const ssize_t count = ::pread(fd.get(), page.data(), page.size(), at);
        if (count <= 0) break;
        if (std::any_of(page.begin(), page.begin() + count, [](char c) { return c != 0; })) {
          pages.emplace_back(path, at);
        }
      }
    }
    return pages;
  }

  // Reads everything. Misses are counted; anything else that is not exact fails the test.
  size_t ReadAll(const std::string& what) {
    size_t missing = 0;
    for (uint64_t i = 0; i < kChains; ++i) {
      for (uint64_t j = 0; j < kLength; ++j) {
        const std::string& key = chains_[i][j];
        const Fd fd = Open(ns_.ByKey(key), O_RDONLY);
        if (!fd.valid()) {
          EXPECT_EQ(ErrnoName(errno), "ENOENT") << what;
          ++missing;
          continue;
        }
        const auto got = ReadRest(fd.get());
        EXPECT_TRUE(got) << what << ": " << ErrnoName(errno) << " in the middle of a block";
        if (got) {
          EXPECT_EQ(Difference(Bytes(1000 * i + j, kBlockBytes), *got), "equal") << what;
        }
        const std::string parent = GetXattr(ns_.ByKey(key), "user.kvc.parent");
        if (!parent.empty() && parent[0] != 'E') {
          EXPECT_TRUE(ns_.Has(parent) || !ns_.Has(key)) << what << ": a block without its parent";
        }
      }
    }
    for (uint64_t i = 0; i < kFiles; ++i) {
      const Fd fd = Open(fmt::format("{}/f{}", ns_.Files(), i), O_RDONLY);
      if (!fd.valid()) {
        EXPECT_TRUE(errno == ENOENT || errno == EIO) << what << ": " << ErrnoName(errno);
        ++missing;
        continue;
      }
      const auto got = ReadRest(fd.get());
      EXPECT_TRUE(got) << what << ": " << ErrnoName(errno) << " in the middle of a file";
      if (got) {
        EXPECT_EQ(Difference(Bytes(90000 + i, FileBytes(i)), *got), "equal") << what;
      }
    }
    return missing;
  }

  TemporaryDirectory scratch_;
  std::unique_ptr<TestMount> mount_;
  Namespace ns_;
  std::string good_;
  std::vector<std::vector<std::string>> chains_;
};

std::string Hurt(const std::string& kind, const std::string& path, off_t at,
                 std::mt19937_64& random, const std::string& other_path, off_t other_at) {
  const Fd fd = Open(path, O_RDWR), other = Open(other_path, O_RDWR);
  if (!fd.valid() || !other.valid()) return "";
  std::string page(4096, '\0'), theirs(4096, '\0');
  const ssize_t count = ::pread(fd.get(), page.data(), page.size(), at);
  if (count <= 0) return "";
  page.resize(static_cast<size_t>(count));
  if (kind == "gone") {
    ::unlink(path.c_str());
  } else if (kind == "cut") {
    EXPECT_OK(
        ::ftruncate(fd.get(), static_cast<off_t>(random() % static_cast<uint64_t>(at + count))));
  } else {
    if (kind == "bit") {
      char& hit = page[random() % page.size()];
      hit = static_cast<char>(hit ^ (1 << random() % 8));
    } else if (kind == "zeros") {
      std::fill_n(page.begin(), std::min<size_t>(512, page.size()), '\0');
    } else if (kind == "noise") {
      const std::string noise = Bytes(random(), page.size());
      page = noise;
    } else if (kind == "torn") {
      std::fill(page.begin() + static_cast<ptrdiff_t>(page.size() / 2), page.end(), '\0');
    } else if (::pread(other.get(), theirs.data(), theirs.size(), other_at) == 4096) {  // swap
      EXPECT_EQ(::pwrite(other.get(), page.data(), page.size(), other_at), count);
      theirs.resize(page.size());
      page = theirs;
    }
    EXPECT_EQ(::pwrite(fd.get(), page.data(), page.size(), at), count);
  }
  return fmt::format("{} {}@{}", kind, path, at);
}

// X1: A read returns the bytes of one fully published version, or the open is a miss (ENOENT).
// Never other bytes, never EIO in the middle of a read. X2: A damaged, torn or lost block goes
// together with what extends it. X4: Mounting works on a damaged data directory.
TEST_F(Damage, NeverWrongBytes) {
  ASSERT_TRUE(mount_->Start()) << mount_->LogTail();
  EXPECT_EQ(ReadAll("no damage"), 0u);
  ASSERT_EQ(mount_->Stop(), 0);
  const auto pages = UsedPages(good_);
  ASSERT_GT(pages.size(), 1000u);
  std::vector<size_t> in_segments, elsewhere;
  for (size_t i = 0; i < pages.size(); ++i) {
    (pages[i].first.rfind("segments/", 0) == 0 ? in_segments : elsewhere).push_back(i);
  }
  ASSERT_GT(in_segments.size(), 1000u);
  const auto seed = static_cast<uint64_t>(::testing::UnitTest::GetInstance()->random_seed()) + 1;
  std::mt19937_64 random(seed);
  size_t missing = 0, complained = 0;
  int round = 0;
  for (const char* kind : {"bit", "noise", "swap", "torn", "zeros", "cut", "gone", "bit", "noise",
                           "swap", "bit", "noise", "cut", "gone"}) {
    Copy(good_, mount_->data_directory());
    std::string what = fmt::format("seed {} round {}: ", seed, round);
    const int hits = std::string(kind) == "gone" ? 1 : 3;
    for (int hit = 0; hit < hits; ++hit) {
      const auto& from = round % 3 == 2 && !elsewhere.empty() ? elsewhere : in_segments;
      const auto& [path, at] = pages[from[random() % from.size()]];
      const auto& [other, other_at] = pages[from[random() % from.size()]];
      what += Hurt(kind, mount_->data_directory() + "/" + path, at, random,
                   mount_->data_directory() + "/" + other, other_at) +
              "; ";
    }
    complained +=
        RunCommand({KVC_COMMAND, "fsck", "--data", mount_->data_directory()}).status == 1 ? 1 : 0;
    ASSERT_TRUE(mount_->Start()) << what << "\n" << mount_->LogTail();
    missing += ReadAll(what);
    ReadAll(what + "(second read)");
    ::mkdir(ns_.path().c_str(), 0755);  // even the namespace may be what was damaged
    EXPECT_EQ(ErrnoName(ns_.Put("", Key(777), "still works")), "0") << what;
    ASSERT_EQ(mount_->Stop(), 0) << what;
    ++round;
  }
  EXPECT_GT(missing, 0u) << "no damage was seen at all: nothing is shown";
  EXPECT_GT(complained, 0u) << "fsck never complained";
}

// X3: `kvcfs fsck --data DIR` lists what is damaged and exits 1; on a healthy directory it exits 0.
// X2: ... counted and logged by name.
TEST_F(Damage, FsckNamesIt) {
  const CommandResult healthy =
      RunCommand({KVC_COMMAND, "fsck", "--data", mount_->data_directory()});
  EXPECT_EQ(healthy.status, 0) << healthy.out << healthy.err;
  // The bytes of one block and of one file are found in a segment by what they are.
  const std::string want = Bytes(2005, kBlockBytes);  // block 5 of the third chain
  const std::string text = Bytes(90000 + 7, FileBytes(7));
  std::string hurt, hurt_too;
  for (const auto& entry : stdfs::directory_iterator(mount_->data_directory() + "/segments")) {
    const auto content = ReadWhole(entry.path());
    ASSERT_TRUE(content);
    for (const std::string& bytes : {want, text}) {
      const size_t at = content->find(bytes);
      if (at == std::string::npos) continue;
      const Fd fd = Open(entry.path(), O_RDWR);
      const char flipped = static_cast<char>(bytes[30000] ^ 1);
      ASSERT_EQ(::pwrite(fd.get(), &flipped, 1, static_cast<off_t>(at + 30000)), 1);
      (bytes == want ? hurt : hurt_too) = entry.path();
    }
  }
  ASSERT_FALSE(hurt_too.empty()) << "the file lies in no segment";
  ASSERT_FALSE(hurt.empty()) << "the block lies in no segment";
  const CommandResult damaged =
      RunCommand({KVC_COMMAND, "fsck", "--data", mount_->data_directory()});
  EXPECT_EQ(damaged.status, 1) << damaged.out << damaged.err;
  EXPECT_NE((damaged.out + damaged.err).find(chains_[2][5]), std::string::npos)
      << "names the block: " << damaged.out;
  EXPECT_NE((damaged.out + damaged.err).find(stdfs::path(hurt).filename().string()),
            std::string::npos);
  EXPECT_NE(damaged.out.find("damaged file ns/files/f7:"), std::string::npos)
      << "names the file: " << damaged.out;
  EXPECT_EQ(damaged.out.find("ns/files/f8"), std::string::npos) << damaged.out;
  ASSERT_TRUE(mount_->Start()) << mount_->LogTail();
  EXPECT_EQ(ErrnoName(OpenErrno(ns_.ByKey(chains_[2][5]), O_RDONLY)), "ENOENT");
  for (uint64_t j = 5; j < kLength; ++j) EXPECT_FALSE(ns_.Has(chains_[2][j])) << j;
  for (uint64_t j = 0; j < 5; ++j) EXPECT_TRUE(ns_.Read(chains_[2][j])) << j;
  EXPECT_FALSE(ns_.Has(chains_[3][15])) << "it extends block 9 of the third chain";
  EXPECT_TRUE(ns_.Read(chains_[0][19]));
  EXPECT_FALSE(ReadWhole(ns_.Files() + "/f7"));
  EXPECT_TRUE(ReadWhole(ns_.Files() + "/f8"));
  EXPECT_NE(mount_->Log().find(chains_[2][5]), std::string::npos) << "logged by name";
  // What is gone may be written again.
  EXPECT_EQ(ErrnoName(ns_.Put(chains_[2][4], chains_[2][5], want)), "0");
  ASSERT_EQ(mount_->Stop(), 0);
  const CommandResult after =
      RunCommand({KVC_COMMAND, "fsck", "--data", mount_->data_directory(), "--repair"});
  EXPECT_TRUE(after.status == 0 || after.status == 1) << after.out << after.err;
  const CommandResult repaired =
      RunCommand({KVC_COMMAND, "fsck", "--data", mount_->data_directory()});
  EXPECT_EQ(repaired.status, 0) << repaired.out << repaired.err;
}

// X3: with --repair, what is damaged is dropped, so that no reader meets it.
TEST_F(Damage, RepairDropsWhatIsDamaged) {
  const auto pages = UsedPages(mount_->data_directory() + "/segments");
  std::mt19937_64 random(5);
  for (int hit = 0; hit < 40; ++hit) {
    const auto& [path, at] = pages[random() % pages.size()];
    if (at == 0) continue;  // the head of a segment
    const std::string whole = mount_->data_directory() + "/segments/" + path;
    ASSERT_NE(Hurt("bit", whole, at, random, whole, at), "");
  }
  const std::vector<std::string> fsck{KVC_COMMAND, "fsck", "--data", mount_->data_directory()};
  const CommandResult damaged = RunCommand(fsck);
  EXPECT_EQ(damaged.status, 1) << damaged.out;
  std::vector<std::string> words = fsck;
  words.emplace_back("--repair");
  const CommandResult repaired = RunCommand(words);
  EXPECT_EQ(repaired.status, 0) << repaired.out << repaired.err;
  ASSERT_TRUE(mount_->Start()) << mount_->LogTail();
  const size_t missing = ReadAll("repaired");
  EXPECT_GT(missing, 0u);
  EXPECT_LT(missing, kChains * kLength + kFiles);
  for (const char* met : {"a block is damaged", "a file is damaged", "is lost on NVMe"}) {
    EXPECT_EQ(mount_->Log().find(met), std::string::npos) << mount_->LogTail();
  }
  ASSERT_EQ(mount_->Stop(), 0);
}

}  // namespace
}  // namespace kvcfs::test
