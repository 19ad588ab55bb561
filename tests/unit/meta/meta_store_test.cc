#include "meta/meta_store.h"

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <optional>
#include <random>

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <unistd.h>

#include "base/log.h"

namespace kvcfs::meta {
namespace {

namespace files = std::filesystem;

class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    std::string name = files::temp_directory_path() / "kvcfs-meta-XXXXXX";
    KVC_CHECK(::mkdtemp(name.data()) != nullptr);
    path_ = name;
  }
  ~TemporaryDirectory() { files::remove_all(path_); }
  std::string path() const { return path_; }

 private:
  std::string path_;
};

MetaStoreOptions Small(const std::string& directory) {
  MetaStoreOptions options;
  options.directory = directory;
  options.cache_bytes = 1u << 20;
  options.write_buffer_bytes = 256u << 10;
  return options;
}

std::unique_ptr<MetaStore> MustOpen(const MetaStoreOptions& options,
                                    MetaOpenReport* report = nullptr) {
  auto store = MetaStore::Open(options, report);
  if (!store.ok()) ADD_FAILURE() << store.error().text;
  return store.ok() ? std::move(*store) : nullptr;
}

std::string KeyOf(int number) {
  char text[32];
  std::snprintf(text, sizeof text, "k%08d", number);
  return text;
}
std::string ValueOf(int number) {
  return std::string(static_cast<size_t>(50 + number % 100), static_cast<char>('a' + number % 26)) +
         std::to_string(number);
}

void Fill(MetaStore& store, int begin, int end) {
  MetaBatch batch;
  for (int i = begin; i < end; ++i) {
    batch.Put(KeyOf(i), ValueOf(i));
    if (i % 10 == 9) {
      ASSERT_TRUE(store.Write(batch, false).ok());
    }
  }
  if (!batch.empty()) {
    ASSERT_TRUE(store.Write(batch, false).ok());
  }
}

// How many of the records are there; none may have other bytes than were written.
int CountRight(MetaStore& store, int count) {
  int right = 0;
  for (int i = 0; i < count; ++i) {
    const auto value = store.Get(KeyOf(i));
    if (!value.ok()) {
      EXPECT_EQ(value.code(), Code::kCorrupt) << value.error().text;
    } else if (value->has_value()) {
      EXPECT_EQ(**value, ValueOf(i));
      ++right;
    }
  }
  return right;
}

int CountListed(MetaStore& store) {
  int listed = 0;
  for (auto cursor = store.Seek(""); cursor->Valid(); cursor->Next()) {
    int number = -1;
    if (std::sscanf(std::string(cursor->key()).c_str(), "k%d", &number) != 1) continue;
    EXPECT_EQ(cursor->value(), ValueOf(number));
    ++listed;
  }
  return listed;
}

TEST(MetaStoreTest, KeepsRecordsInOrderAcrossReopen) {
  TemporaryDirectory directory;
  MetaOpenReport report;
  {
    auto store = MustOpen(Small(directory.path() + "/meta"), &report);
    EXPECT_TRUE(report.created);
    Fill(*store, 0, 3000);
    MetaBatch batch;
    batch.Delete(KeyOf(5));
    batch.DeleteRange(KeyOf(100), KeyOf(200));
    EXPECT_FALSE(batch.empty());
    ASSERT_TRUE(store->Write(batch, true).ok());
    EXPECT_TRUE(batch.empty());
  }
  MetaOpenReport again;
  auto store = MustOpen(Small(directory.path() + "/meta"), &again);
  EXPECT_FALSE(again.created || again.repaired || again.recreated) << again.text;
  EXPECT_EQ(CountRight(*store, 3000), 2899);
  std::string last;
  int seen = 0;
  auto cursor = store->Seek(KeyOf(50));
  for (; cursor->Valid(); cursor->Next(), ++seen) {
    EXPECT_LT(last, cursor->key());
    last = cursor->key();
  }
  EXPECT_TRUE(cursor->status().ok());
  EXPECT_EQ(seen, 2850);
  EXPECT_FALSE(store->Get("absent")->has_value());
}

TEST(MetaStoreTest, CursorIsASnapshot) {
  TemporaryDirectory directory;
  auto store = MustOpen(Small(directory.path()));
  Fill(*store, 0, 10);
  auto cursor = store->Seek("");
  Fill(*store, 10, 20);
  int seen = 0;
  for (; cursor->Valid(); cursor->Next()) ++seen;
  EXPECT_EQ(seen, 10);
}

TEST(MetaStoreTest, SecondOpenIsBusy) {
  TemporaryDirectory directory;
  auto store = MustOpen(Small(directory.path()));
  EXPECT_EQ(MetaStore::Open(Small(directory.path()), nullptr).code(), Code::kBusy);
  EXPECT_EQ(CountRight(*store, 1), 0);
}

TEST(MetaStoreTest, ReadOnlyChangesNothing) {
  TemporaryDirectory directory;
  MetaStoreOptions options = Small(directory.path() + "/meta");
  options.read_only = true;
  EXPECT_FALSE(MetaStore::Open(options, nullptr).ok());  // there is none, and none is made
  EXPECT_FALSE(files::exists(options.directory));
  { Fill(*MustOpen(Small(options.directory)), 0, 100); }
  auto store = MustOpen(options);
  EXPECT_EQ(CountRight(*store, 100), 100);
  MetaBatch batch;
  batch.Put("a", "b");
  EXPECT_EQ(store->Write(batch, false).code(), Code::kUnsupported);
}

TEST(MetaStoreTest, UnsyncedWritesSurviveKill) {
  // The victim is this program started anew, up to here: a child forked beside the threads of
  // RocksDB could start none of its own under the thread sanitizer.
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  constexpr char kVictimPath[] = "KVC_TEST_VICTIM";
  std::optional<TemporaryDirectory> directory;
  if (::getenv(kVictimPath) == nullptr) {
    directory.emplace();
    ::setenv(kVictimPath, (directory->path() + "/meta").c_str(), 1);
  }
  const std::string path = ::getenv(kVictimPath);
  const auto write_until_killed = [&] {
    auto store = MetaStore::Open(Small(path), nullptr);
    if (!store.ok()) ::_exit(1);
    MetaBatch batch;
    for (int i = 0; i < 5000; ++i) {
      batch.Put(KeyOf(i), ValueOf(i));
      if (!(*store)->Write(batch, false).ok()) ::_exit(2);
    }
    ::kill(::getpid(), SIGKILL);
  };
  EXPECT_EXIT(write_until_killed(), testing::KilledBySignal(SIGKILL), "");
  ::unsetenv(kVictimPath);
  MetaOpenReport report;
  auto store = MustOpen(Small(path), &report);
  EXPECT_FALSE(report.repaired || report.recreated) << report.text;
  EXPECT_EQ(CountRight(*store, 5000), 5000);
}

// A store of several tables and a log, to be damaged.
constexpr int kRecords = 10000;
void MakeVictim(const std::string& path) {
  for (int part = 0; part < 4; ++part) {
    Fill(*MustOpen(Small(path)), part * kRecords / 4, (part + 1) * kRecords / 4);
  }
}

enum class Harm { kRemove, kEmpty, kCut, kFlip, kZeroPage };

void Damage(const files::path& file, Harm harm, std::mt19937_64& random) {
  const auto size = files::file_size(file);
  if (harm == Harm::kRemove) files::remove(file);
  if (harm == Harm::kEmpty) files::resize_file(file, 0);
  if (harm == Harm::kCut && size > 0) files::resize_file(file, random() % size);
  if ((harm == Harm::kFlip || harm == Harm::kZeroPage) && size > 0) {
    std::fstream bytes(file, std::ios::in | std::ios::out | std::ios::binary);
    const auto at = static_cast<std::streamoff>(random() % size);
    bytes.seekg(at);
    const char old = static_cast<char>(bytes.get());
    bytes.seekp(at);
    if (harm == Harm::kFlip) {
      bytes.put(static_cast<char>(old ^ (1 << (random() % 8))));
    } else {
      bytes.write(
          std::string(std::min<size_t>(4096, size - static_cast<size_t>(at)), '\0').data(),
          static_cast<std::streamsize>(std::min<size_t>(4096, size - static_cast<size_t>(at))));
    }
  }
}

TEST(MetaStoreTest, OpensWhateverHappenedToItsFiles) {
  uint64_t seed = std::random_device{}();
  if (const char* given = std::getenv("KVC_SEED")) seed = std::strtoull(given, nullptr, 10);
  std::printf("seed %llu (KVC_SEED)\n", static_cast<unsigned long long>(seed));
  std::mt19937_64 random(seed);
  TemporaryDirectory directory;
  const std::string victim = directory.path() + "/victim";
  MakeVictim(victim);
  std::vector<std::string> names;
  for (const auto& entry : files::directory_iterator(victim)) {
    if (entry.path().filename() != "reserve") names.push_back(entry.path().filename());
  }
  std::sort(names.begin(), names.end());
  files::remove(victim + "/reserve");
  for (const std::string& name : names) {
    for (const Harm harm :
         {Harm::kRemove, Harm::kEmpty, Harm::kCut, Harm::kFlip, Harm::kFlip, Harm::kZeroPage}) {
      SCOPED_TRACE(name + " harm " + std::to_string(static_cast<int>(harm)));
      const std::string path = directory.path() + "/damaged/meta";
      files::create_directories(path);
      files::copy(victim, path, files::copy_options::recursive);
      Damage(path + "/" + name, harm, random);
      int right = 0;
      {
        MetaOpenReport report;
        auto store = MustOpen(Small(path), &report);
        ASSERT_NE(store, nullptr);
        right = CountRight(*store, kRecords);
        EXPECT_EQ(CountListed(*store), right) << report.text;
        if (right < kRecords && name.find(".log") == std::string::npos) {
          EXPECT_TRUE(report.repaired || report.recreated) << right;
        }
        // One flipped bit in a table costs at most the whole table, and nothing else.
        if (harm == Harm::kFlip) {
          EXPECT_GE(right, kRecords / 8) << report.text;
        }
        MetaBatch batch;
        batch.Put("new", "record");
        ASSERT_TRUE(store->Write(batch, true).ok());
      }
      MetaOpenReport again;
      auto store = MustOpen(Small(path), &again);
      ASSERT_NE(store, nullptr);
      EXPECT_FALSE(again.recreated) << again.text;
      EXPECT_EQ(CountRight(*store, kRecords), right) << again.text;
      EXPECT_TRUE(store->Get("new")->has_value());
      store.reset();
      files::remove_all(directory.path() + "/damaged");
    }
  }
}

TEST(MetaStoreTest, FlippedBitInATableCostsOneBlock) {
  TemporaryDirectory directory;
  const std::string path = directory.path() + "/meta";
  { Fill(*MustOpen(Small(path)), 0, kRecords); }
  files::path largest;
  for (const auto& entry : files::directory_iterator(path)) {
    if (entry.path().extension() != ".sst") continue;
    if (largest.empty() || files::file_size(entry) > files::file_size(largest)) largest = entry;
  }
  ASSERT_FALSE(largest.empty());
  {
    std::fstream bytes(largest, std::ios::in | std::ios::out | std::ios::binary);
    bytes.seekp(static_cast<std::streamoff>(files::file_size(largest) / 3));
    bytes.write("harm", 4);
  }
  MetaOpenReport report;
  auto store = MustOpen(Small(path), &report);
  EXPECT_TRUE(report.repaired);
  const int right = CountRight(*store, kRecords);
  EXPECT_LT(right, kRecords);
  EXPECT_GT(right, kRecords - 200) << report.text;
  EXPECT_TRUE(files::exists(path + ".damaged-1"));
}

// A tmpfs of a few MiB.
class TinyDisk {
 public:
  explicit TinyDisk(const std::string& size) {
    mounted_ =
        ::mount("tmpfs", directory_.path().c_str(), "tmpfs", 0, ("size=" + size).c_str()) == 0;
  }
  ~TinyDisk() {
    if (mounted_) ::umount2(directory_.path().c_str(), MNT_DETACH);
  }
  bool mounted() const { return mounted_; }
  std::string path() const { return directory_.path(); }
  std::string ballast() const { return path() + "/ballast"; }
  void Fill() const {
    const int fd = ::open(ballast().c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
    const std::string some(1u << 16, 'x');
    while (::write(fd, some.data(), some.size()) > 0) continue;
    while (::write(fd, some.data(), 1) > 0) continue;
    ::close(fd);
  }

 private:
  TemporaryDirectory directory_;
  bool mounted_ = false;
};

TEST(MetaStoreTest, OpensAndDeletesOnAFullDisk) {
  TinyDisk disk("40m");
  if (!disk.mounted()) GTEST_SKIP() << "cannot mount a tmpfs";
  const std::string path = disk.path() + "/meta";
  { Fill(*MustOpen(Small(path)), 0, 2000); }
  disk.Fill();
  auto store = MustOpen(Small(path));
  ASSERT_NE(store, nullptr);
  EXPECT_EQ(CountRight(*store, 2000), 2000);
  // Nothing is lost while it fills up for good.
  disk.Fill();
  MetaBatch batch;
  int written = 2000;
  Status status;
  for (; status.ok() && written < 1'000'000; ++written) {
    batch.Put(KeyOf(written), ValueOf(written));
    status = store->Write(batch, false);
  }
  EXPECT_EQ(status.code(), Code::kNoSpace);
  --written;
  EXPECT_EQ(CountRight(*store, written), written);
  // There is room again: goes on without a restart.
  files::remove(disk.ballast());
  status = Error{Code::kNoSpace, ""};
  for (int tries = 0; !status.ok() && tries < 200; ++tries) {
    status = store->Write(batch, true);
    if (!status.ok()) ::usleep(10'000);  // resuming is tried ten times a second
  }
  EXPECT_TRUE(status.ok()) << status.error().text;
  EXPECT_EQ(CountRight(*store, written + 1), written + 1);
  store.reset();
  store = MustOpen(Small(path));
  EXPECT_EQ(CountRight(*store, written + 1), written + 1);
}

TEST(MetaStoreTest, ReserveLetsAFullDiskBeEmptied) {
  TinyDisk disk("40m");
  if (!disk.mounted()) GTEST_SKIP() << "cannot mount a tmpfs";
  const std::string path = disk.path() + "/meta";
  auto store = MustOpen(Small(path));
  ASSERT_NE(store, nullptr);
  Fill(*store, 0, 1000);
  EXPECT_TRUE(files::exists(path + "/reserve"));
  disk.Fill();
  MetaBatch batch;
  Status status;
  for (int i = 0; status.ok() && i < 1'000'000; ++i) {
    batch.Put("full", ValueOf(i));
    status = store->Write(batch, false);
  }
  EXPECT_EQ(status.code(), Code::kNoSpace);
  for (int i = 0; i < 1000; ++i) {
    MetaBatch drop;
    drop.Delete(KeyOf(i));
    status = store->Write(drop, true);
    ASSERT_TRUE(status.ok()) << i << " " << status.error().text;
  }
  EXPECT_EQ(CountRight(*store, 1000), 0);
}

}  // namespace
}  // namespace kvcfs::meta
