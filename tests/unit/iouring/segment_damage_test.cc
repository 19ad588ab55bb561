// A real directory, damaged at random while nobody looks: it opens, and what it reads is exact.
#include <fstream>

#include <fcntl.h>

#include "tests/unit/iouring/store_fixture.h"

namespace kvcfs::iouring {
namespace {

namespace filesystem = std::filesystem;

class DamageTest : public StoreTest {
 protected:
  DamageTest() {
    Quiet();
    char path[] = "/var/tmp/kvcfs-damage-XXXXXX";
    EXPECT_NE(::mkdtemp(path), nullptr);
    path_ = path;
    options_.directory = path_ + "/work";
    options_.segment_bytes = 256 * 1024;
    options_.capacity_bytes = 40 * options_.segment_bytes;
  }
  ~DamageTest() override {
    store_.reset();
    filesystem::remove_all(path_);
  }

  Status OpenDirectory(uint64_t scan_after = 0) {
    visited_.clear();
    auto store = SegmentStore::Open(options_, scan_after,
                                    [this](const EntryMeta& meta, const SegmentPlace& place) {
                                      visited_.push_back({meta, place});
                                    });
    KVC_TRY_ASSIGN(store_, std::move(store));
    return {};
  }

  std::vector<filesystem::path> Files() {
    std::vector<filesystem::path> files;
    for (const auto& entry : filesystem::directory_iterator(options_.directory)) {
      files.push_back(entry.path());
    }
    std::sort(files.begin(), files.end());
    return files;
  }

  struct Page {
    filesystem::path file;
    uint64_t offset = 0;
  };
  // A page that holds something.
  Page Choose(std::mt19937_64& random) {
    const auto files = Files();
    for (;;) {
      const auto& file = files[random() % files.size()];
      const uint64_t size = filesystem::file_size(file);
      if (size < kPageBytes) continue;
      const Page page{file, random() % (size / kPageBytes) * kPageBytes};
      const auto bytes = Get(page);
      if (random() % 20 == 0 ||
          std::any_of(bytes.begin(), bytes.end(), [](char c) { return c != 0; })) {
        return page;
      }
    }
  }
  bool HasFooter(const filesystem::path& file) const {
    const std::string page = Get({file, options_.segment_bytes - kPageBytes});
    return std::any_of(page.begin(), page.end(), [](char c) { return c != 0; });
  }
  static std::string Get(const Page& page) {
    std::string bytes(kPageBytes, '\0');
    std::ifstream in(page.file, std::ios::binary);
    in.seekg(static_cast<std::streamoff>(page.offset));
    in.read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    return bytes;
  }
  static void Set(const Page& page, const std::string& bytes) {
    std::fstream out(page.file, std::ios::binary | std::ios::in | std::ios::out);
    out.seekp(static_cast<std::streamoff>(page.offset));
    out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  }

  std::string DamageOnce(std::mt19937_64& random) {
    const Page page = Choose(random);
    std::string bytes = Get(page);
    const unsigned kind = static_cast<unsigned>(random() % 8);
    switch (kind) {
      case 0:
        bytes[random() % kPageBytes] ^= static_cast<char>(1u << (random() % 8));
        break;
      case 1:
        bytes.assign(kPageBytes, '\0');
        break;
      case 2:
        std::fill_n(bytes.begin() + static_cast<long>(random() % 8 * 512), 512, '\0');
        break;
      case 3:
        for (char& c : bytes) c = static_cast<char>(random());
        break;
      case 4: {
        const Page other = Choose(random);
        const std::string theirs = Get(other);
        Set(other, bytes);
        bytes = theirs;
        break;
      }
      case 5:
        bytes = Get(Choose(random));
        break;
      case 6:
        filesystem::resize_file(page.file, random() % filesystem::file_size(page.file));
        return "cut";
      default:
        if (random() % 4 != 0) break;
        filesystem::remove(page.file);
        return "gone";
    }
    Set(page, bytes);
    return fmt::format("kind {} {}@{}", kind, page.file.filename().string(), page.offset);
  }

  std::string path_;
};

TEST_F(DamageTest, WhateverIsDamagedTheRestIsExactAndNothingIsWrong) {
  std::mt19937_64 random(Seed());
  ASSERT_TRUE(OpenDirectory().ok());
  std::vector<std::shared_ptr<Outcome>> all;
  const uint64_t lengths[] = {10, 3000, 5000, 30'000, 70'000, 200'000};
  for (uint64_t i = 0; i < 60; ++i) {
    all.push_back(Queue(i % 3 == 0 ? FileMeta(i + 1, 1, lengths[i % 5])
                                   : BlockMeta(i, lengths[random() % 6])));
  }
  WaitForAll();
  uint64_t middle = all[30]->meta.sequence;
  for (const auto& one : all) ASSERT_TRUE(one->place.ok());
  Close();
  filesystem::rename(options_.directory, path_ + "/good");

  const auto begin = std::chrono::steady_clock::now();
  uint64_t rounds = 0, lost = 0, kept = 0, named = 0;
  for (; rounds < 150; ++rounds) {
    filesystem::remove_all(options_.directory);
    filesystem::copy(path_ + "/good", options_.directory, filesystem::copy_options::recursive);
    std::string what;
    const uint64_t hits = 1 + random() % 6;
    for (uint64_t i = 0; i < hits; ++i) what += DamageOnce(random) + "; ";
    SCOPED_TRACE(what);
    // fsck first: it changes nothing and does not fall over either.
    std::set<std::pair<uint32_t, uint32_t>> good;
    auto scan =
        ScanSegments(options_.directory, [&good](const EntryMeta&, const SegmentPlace& place) {
          good.insert({place.segment, place.offset_4k});
        });
    ASSERT_TRUE(scan.ok());
    if (!scan->problems.empty()) ++named;
    const uint64_t scan_after = random() % 3 == 0 ? middle : 0;
    const Status status = OpenDirectory(scan_after);
    ASSERT_TRUE(status.ok()) << status.error().text;
    for (const auto& one : all) {
      const Code code = ReadBack(one->meta, *one->place);  // exact if kOk
      if (code == Code::kOk) {
        ++kept;
      } else {
        ++lost;
        // Of a file that is gone only the metadata knows; without its footer (zeroed) a segment
        // looks as if its last entries had not been finished.
        const filesystem::path file = options_.directory + "/" + SegmentName(one->place->segment);
        const bool gone = !filesystem::exists(file) || !HasFooter(file);
        EXPECT_TRUE(gone || !scan->problems.empty()) << "lost, and fsck says nothing";
      }
      if (good.count({one->place->segment, one->place->offset_4k}) != 0) {
        EXPECT_EQ(code, Code::kOk) << "fsck calls it good";
      }
    }
    for (const Located& one : visited_) (void)ReadBack(one.meta, one.place);
    // It can be used.
    Books books;
    books.SetStore(store_.get());
    for (const Located& one : visited_) {
      books.Put(one.meta, one.place);
      store_->MarkLive(one.place, one.meta.length);
    }
    store_->Start(&books);
    const Outcome more = Append(BlockMeta(777, 5000), true);
    EXPECT_TRUE(more.place.ok()) << more.place.error().text;
    if (more.place.ok()) {
      EXPECT_EQ(ReadBack(more.meta, *more.place), Code::kOk);
    }
    Close();
    ASSERT_FALSE(HasFailure());
    if (std::chrono::steady_clock::now() - begin > std::chrono::seconds(4)) break;
  }
  std::printf("%lu rounds: %lu entries exact, %lu lost; fsck named damage in %lu\n", rounds, kept,
              lost, named);
  EXPECT_GT(lost, 0u);
  EXPECT_GT(kept, 10 * lost / 10);
}

// Of a table that cannot be used it may not be known which entries there were: that must be said.
TEST_F(DamageTest, ADamagedFooterIsNamedAndWhatWasBeforeItIsNoTornTail) {
  ASSERT_TRUE(OpenDirectory().ok());
  std::vector<std::shared_ptr<Outcome>> all;
  for (uint64_t i = 0; i < 20; ++i) all.push_back(Queue(BlockMeta(i, 70'000)));
  WaitForAll();
  for (const auto& one : all) ASSERT_TRUE(one->place.ok());
  Close();
  const SegmentPlace last = *all.back()->place;
  const filesystem::path file = options_.directory + "/" + SegmentName(last.segment);
  const Page footer{file, options_.segment_bytes - kPageBytes};
  std::string bytes = Get(footer);
  bytes[20] ^= 1;
  Set(footer, bytes);
  const auto scan_for = [&] {
    std::string texts;
    const auto scan = ScanSegments(options_.directory, nullptr);
    EXPECT_TRUE(scan.ok());
    for (const SegmentProblem& problem : scan->problems) texts += problem.text + "\n";
    return texts;
  };
  EXPECT_NE(scan_for().find("footer is damaged"), std::string::npos);
  EXPECT_EQ(scan_for().find("lost"), std::string::npos) << scan_for();

  // Data of the last entry: it was durable before there was a footer.
  const Page data{file, uint64_t{last.offset_4k} * kPageBytes + 2 * kPageBytes};
  bytes = Get(data);
  bytes[7] ^= 1;
  Set(data, bytes);
  EXPECT_NE(scan_for().find("entry is damaged and lost"), std::string::npos) << scan_for();
}

TEST_F(DamageTest, AFileInTheWayOfTheDirectoryIsAnError) {
  std::ofstream(options_.directory) << "no directory";
  EXPECT_FALSE(OpenDirectory().ok());
}

}  // namespace
}  // namespace kvcfs::iouring
