// kill -9 of the daemon under load and at named points, compared with what was acknowledged
// (promises W13, F10, P6 and P8 of fs/SEMANTICS.md).
//
// What should be there is kept outside the daemon, in memory that the writers share with the test.
// A power cut is played by taking the DRAM tier away between kill and mount.
#include <array>
#include <atomic>
#include <csignal>
#include <functional>
#include <random>
#include <set>
#include <thread>

#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/wait.h>

#include "tests/integration/mount_fixture.h"

namespace kvcfs::test {
namespace {

constexpr size_t kBlockBytes = 64 << 10;

// What a writer knows of one of its blocks or versions of a file. Only ever goes up.
enum class Known : uint8_t {
  kNothing,
  kBegun,    // may be there, whole
  kHalf,     // was left half-written and open: must never be seen
  kClosed,   // close() returned: whole if it is there
  kDurable,  // fsync, then close() returned: must be there
};

struct Block {
  std::atomic<Known> known;
  uint32_t parent;  // number + 1; 0: first of a chain
  uint32_t bytes;
};
struct File {
  std::atomic<uint32_t> begun, durable;  // versions, counting from 1
};

constexpr uint32_t kBlocksMax = 40000;
constexpr uint32_t kFiles = 16;
struct Ledger {
  std::atomic<uint32_t> next_block;
  std::atomic<uint32_t> errors;  // what writers met while the mount was to stay
  std::atomic<int> first_error;
  Block blocks[kBlocksMax];
  File files[kFiles];
};

uint32_t FileBytes(uint64_t file, uint64_t version) {
  return static_cast<uint32_t>(1 + (file * 7919 + version * 104729) % 300000);
}
std::string FileContent(uint64_t file, uint64_t version) {
  const std::string head = fmt::format("{:04} {:012}\n", file, version);
  return head + Bytes((file << 32) + version, FileBytes(file, version));
}

// Works on the mount until a call fails or it is killed.
class Writer {
 public:
  Writer(Ledger& ledger, const Namespace& ns, uint64_t number, uint64_t seed)
      : ledger_(ledger), ns_(ns), number_(number), random_(seed) {}

  int Run() {
    int failed = 0;
    while (failed == 0) failed = random_() % 10 < 7 ? MakeBlock() : MakeFile();
    int none = 0;
    ledger_.first_error.compare_exchange_strong(none, failed);
    ++ledger_.errors;
    while (true) ::pause();  // what is open stays open until the kill
  }

 private:
  int MakeBlock() {
    const uint32_t number = ledger_.next_block++;
    if (number >= kBlocksMax) return EOVERFLOW;
    Block& block = ledger_.blocks[number];
    if (tips_.empty() || random_() % 12 == 0) {
      block.parent = 0;
    } else {
      block.parent = tips_[random_() % 4 == 0 ? random_() % tips_.size() : tips_.size() - 1] + 1;
    }
    block.bytes =
        static_cast<uint32_t>(random_() % 3 == 0 ? kBlockBytes : 1 + random_() % kBlockBytes);
    block.known = Known::kBegun;
    const std::string key = Key(number), bytes = Bytes(number, block.bytes);
    const std::string parent = block.parent == 0 ? "" : Key(block.parent - 1);
    Fd fd = Open(ns_.Chain(parent) + "/" + key, O_CREAT | O_EXCL | O_WRONLY);
    if (!fd.valid()) return errno;
    const uint64_t way = random_() % 8;
    if (way == 0 && open_.size() < 8) {
      if (const int failed = WriteAll(fd.get(), bytes.substr(0, bytes.size() / 2 + 1)))
        return failed;
      block.known = Known::kHalf;
      open_.push_back(std::move(fd));
      return 0;
    }
    if (const int failed = WriteAll(fd.get(), bytes, way % 2 == 0 ? 10000 : kBlockBytes))
      return failed;
    if (way >= 4 && ::fsync(fd.get()) != 0) return errno;
    if (const int failed = CloseErrno(std::move(fd))) return failed;
    block.known = way >= 4 ? Known::kDurable : Known::kClosed;
    tips_.push_back(number);
    return 0;
  }

  int MakeFile() {
    const uint64_t file = number_ * (kFiles / 4) + random_() % (kFiles / 4);
    const uint32_t version = ++ledger_.files[file].begun;
    const std::string path = fmt::format("{}/d{}/f{}", ns_.Files(), number_, file);
    const std::string directory = path.substr(0, path.rfind('/'));
    ::mkdir(directory.c_str(), 0755);
    Fd fd = Open(path + ".tmp", O_CREAT | O_TRUNC | O_WRONLY);
    if (!fd.valid()) return errno;
    if (const int failed = WriteAll(fd.get(), FileContent(file, version), 90000)) return failed;
    if (::fsync(fd.get()) != 0) return errno;
    if (const int failed = CloseErrno(std::move(fd))) return failed;
    if (::rename((path + ".tmp").c_str(), path.c_str()) != 0) return errno;
    if (random_() % 2 == 0) return 0;
    const Fd parent = Open(directory, O_RDONLY | O_DIRECTORY);
    if (!parent.valid() || ::fsync(parent.get()) != 0) return errno;
    ledger_.files[file].durable = version;
    return 0;
  }

  Ledger& ledger_;
  const Namespace& ns_;
  const uint64_t number_;
  std::mt19937_64 random_;
  std::vector<uint32_t> tips_;
  std::vector<Fd> open_;
};

class Kill : public testing::TestWithParam<Mode> {
 protected:
  void SetUp() override {
    KVC_NEEDS_MOUNT();
    MountOptions options = OptionsFor(GetParam());
    options.dram = "64M";
    options.nvme = "4G";
    options.extra.insert(options.extra.end(), {"--set", "fs.touch_dram=false"});
    mount_ = std::make_unique<TestMount>(options);
    ASSERT_TRUE(mount_->Start()) << mount_->LogTail();
    ns_ = Namespace(*mount_, "ns", kBlockBytes);
    void* memory =
        ::mmap(nullptr, sizeof(Ledger), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    ASSERT_NE(memory, MAP_FAILED);
    ledger_ = new (memory) Ledger();
  }
  void TearDown() override {
    if (ledger_ != nullptr) ::munmap(ledger_, sizeof(Ledger));
  }

  // Everything in DRAM is gone, as after a power cut.
  void LoseDram() { ::umount2((mount_->data_directory() + "/dram").c_str(), MNT_DETACH); }

  std::vector<pid_t> StartWriters(uint64_t seed) {
    std::vector<pid_t> pids;
    for (uint64_t i = 0; i < 2; ++i) {
      const pid_t pid = ::fork();
      if (pid == 0) ::_exit(Writer(*ledger_, ns_, i, seed * 10 + i).Run());
      pids.push_back(pid);
    }
    return pids;
  }
  static void EndWriters(const std::vector<pid_t>& pids) {
    for (const pid_t pid : pids) ::kill(pid, SIGKILL);
    for (const pid_t pid : pids) ::waitpid(pid, nullptr, 0);
  }

  void CheckBlock(uint32_t number, const std::string& when) {
    const Block& block = ledger_->blocks[number];
    const Known known = block.known;
    const std::string key = Key(number);
    const Fd fd = Open(ns_.ByKey(key), O_RDONLY);
    if (!fd.valid()) {
      ASSERT_EQ(ErrnoName(errno), "ENOENT") << when;
      ASSERT_NE(known, Known::kDurable)
          << when << ": block " << number << " was fsynced and is lost";
      EXPECT_EQ(ErrnoName(StatErrno(ns_.Chain(key))), "ENOENT") << when;
      return;
    }
    const auto got = ReadRest(fd.get());
    ASSERT_TRUE(got) << when << " " << ErrnoName(errno);
    ASSERT_NE(known, Known::kHalf) << when << ": block " << number << " of " << got->size()
                                   << " bytes was never closed and is there";
    ASSERT_EQ(Difference(Bytes(number, block.bytes), *got), "equal")
        << when << ": block " << number;
    EXPECT_TRUE(Exists(ns_.Chain(key))) << when;
    if (block.parent != 0) {
      ASSERT_TRUE(ns_.Has(Key(block.parent - 1)))
          << when << ": block " << number << " is there, its parent is not";
    }
  }

  void CheckFile(uint64_t file, const std::string& when) {
    const std::string path = fmt::format("{}/d{}/f{}", ns_.Files(), file / (kFiles / 4), file);
    const uint32_t durable = ledger_->files[file].durable, begun = ledger_->files[file].begun;
    for (const std::string& name : {path, path + ".tmp"}) {
      const auto got = ReadWhole(name);
      if (!got) {
        ASSERT_EQ(ErrnoName(errno), "ENOENT") << when << " " << name;
        if (name == path) {
          ASSERT_EQ(durable, 0u) << when << ": " << name << " was fsynced and is lost";
        }
        continue;
      }
      if (name != path) continue;  // what was not renamed may be of any length
      ASSERT_GE(got->size(), 18u) << when << " " << name;
      const auto version = static_cast<uint32_t>(std::stoul(got->substr(5, 12)));
      ASSERT_GE(version, durable) << when << " " << name;
      ASSERT_LE(version, begun) << when << " " << name;
      ASSERT_EQ(Difference(FileContent(file, version), *got), "equal") << when << " " << name;
    }
  }

  void CheckRange(uint32_t begin, uint32_t end, const std::string& when) {
    for (uint32_t i = begin; i < std::min(end, kBlocksMax); ++i) CheckBlock(i, when);
  }
  void CheckAll(const std::string& when) {
    CheckRange(0, ledger_->next_block, when);
    for (uint64_t file = 0; file < kFiles / 2; ++file) CheckFile(file, when);
    std::set<std::string> known;
    for (uint32_t i = 0; i < ledger_->next_block; ++i) known.insert(Key(i));
    for (const std::string& name : Names(ns_.path() + "/by-key")) {
      EXPECT_EQ(known.count(name), 1u) << "nobody wrote " << name;
    }
  }

  std::unique_ptr<TestMount> mount_;
  Namespace ns_;
  Ledger* ledger_ = nullptr;
};
KVC_BOTH_MODES(Kill);

// P6: Killed at any moment: what fsync acknowledged is there, what was not published is gone, what
// is there is exact, and every chain is whole.
TEST_P(Kill, AtAnyMoment) {
  // 60 kills of everything, 60 of the worker alone, in each mode: 240 in one run of this program.
  // A sanitizer looks at the code, not for rare moments, and each start takes it ten times as long.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  constexpr int kKills = 8;
#else
  constexpr int kKills = 120;
#endif
  const uint64_t seed =
      static_cast<uint64_t>(::testing::UnitTest::GetInstance()->random_seed()) + 1;
  std::mt19937_64 random(seed);
  int workers = 0;
  for (int round = 0; round < kKills && !HasFatalFailure(); ++round) {
    const std::string when = fmt::format("seed {} round {}", seed, round);
    const uint32_t before = ledger_->next_block;
    ledger_->errors = 0;
    const auto writers = StartWriters(seed * 1000 + static_cast<uint64_t>(round));
    std::this_thread::sleep_for(std::chrono::milliseconds(random() % 120));
    if (round % 2 == 0) {
      // Some blocks are open for reading meanwhile, and go on being read.
      std::vector<std::pair<uint32_t, Fd>> held;
      for (int i = 0; i < 4 && before > 0; ++i) {
        const auto number = static_cast<uint32_t>(random() % before);
        Fd fd = Open(ns_.ByKey(Key(number)), O_RDONLY);
        if (fd.valid()) held.emplace_back(number, std::move(fd));
      }
      ASSERT_TRUE(mount_->KillWorkers()) << when;
      ++workers;
      ASSERT_TRUE(mount_->WaitUntilItAnswers()) << when << "\n" << mount_->LogTail();
      std::this_thread::sleep_for(std::chrono::milliseconds(random() % 30));
      for (const auto& [number, fd] : held) {
        const auto got = ReadRest(fd.get());
        ASSERT_TRUE(got) << when << " " << ErrnoName(errno);
        ASSERT_EQ(Difference(Bytes(number, ledger_->blocks[number].bytes), *got), "equal") << when;
      }
      EXPECT_EQ(ledger_->errors.load(), 0u)
          << when << ": writers met " << ErrnoName(ledger_->first_error.load());
      EndWriters(writers);
    } else {
      mount_->Kill();
      EndWriters(writers);
      if (round % 4 == 3) LoseDram();
      ASSERT_TRUE(mount_->Start()) << when << "\n" << mount_->LogTail();
    }
    CheckRange(before, ledger_->next_block, when);
    for (int i = 0; i < 20 && before > 0; ++i) {
      CheckBlock(static_cast<uint32_t>(random() % before), when);
    }
    for (uint64_t file = 0; file < kFiles / 2; ++file) CheckFile(file, when);
  }
  EXPECT_EQ(workers, kKills / 2);
  if (HasFatalFailure()) return;
  CheckAll("after all kills");
  EXPECT_EQ(mount_->Stop(), 0);
  ASSERT_TRUE(mount_->Start()) << mount_->LogTail();
  CheckAll("after a clean stop");
  EXPECT_EQ(mount_->Stop(), 0);
  const CommandResult fsck = RunCommand({KVC_COMMAND, "fsck", "--data", mount_->data_directory()});
  EXPECT_EQ(fsck.status, 0) << fsck.out << fsck.err;
}

// P6 at named points of a block's and a file's life: the kill comes exactly there.
TEST_P(Kill, AtNamedPoints) {
  struct Point {
    const char* name;
    bool must_be_there, must_be_gone;  // after the kill
    std::function<void(Fd&, const std::string& path, const std::string& bytes)> reach;
  };
  const std::vector<Point> points{
      {"created", false, true, [](Fd&, const std::string&, const std::string&) {}},
      {"half written", false, true,
       [](Fd& fd, const std::string&, const std::string& bytes) {
         EXPECT_EQ(WriteAll(fd.get(), bytes.substr(0, bytes.size() / 2)), 0);
       }},
      {"written", false, true,
       [](Fd& fd, const std::string&, const std::string& bytes) {
         EXPECT_EQ(WriteAll(fd.get(), bytes), 0);
       }},
      {"fsynced, not closed", false, true,
       [](Fd& fd, const std::string&, const std::string& bytes) {
         EXPECT_EQ(WriteAll(fd.get(), bytes), 0);
         EXPECT_OK(::fsync(fd.get()));
       }},
      {"fsynced, closed once of two", false, false,
       [](Fd& fd, const std::string&, const std::string& bytes) {
         EXPECT_EQ(WriteAll(fd.get(), bytes), 0);
         EXPECT_OK(::fsync(fd.get()));
         EXPECT_EQ(CloseErrno(Fd(::dup(fd.get()))), 0);
       }},
      {"closed", false, false,
       [](Fd& fd, const std::string&, const std::string& bytes) {
         EXPECT_EQ(WriteAll(fd.get(), bytes), 0);
         EXPECT_EQ(CloseErrno(std::move(fd)), 0);
       }},
      {"fsynced and closed", true, false,
       [](Fd& fd, const std::string&, const std::string& bytes) {
         EXPECT_EQ(WriteAll(fd.get(), bytes), 0);
         EXPECT_OK(::fsync(fd.get()));
         EXPECT_EQ(CloseErrno(std::move(fd)), 0);
       }},
      {"closed, then fsynced by a reader", true, false,
       [](Fd& fd, const std::string& path, const std::string& bytes) {
         EXPECT_EQ(WriteAll(fd.get(), bytes), 0);
         EXPECT_EQ(CloseErrno(std::move(fd)), 0);
         const Fd reader = Open(path, O_RDONLY);
         EXPECT_OK(::fsync(reader.get()));
       }},
  };
  uint64_t number = 100000;
  for (int round = 0; round < 2; ++round) {
    for (const Point& point : points) {
      const std::string key = Key(++number), bytes = Bytes(number, kBlockBytes - number % 977);
      const std::string path = ns_.Chain("") + "/" + key;
      Fd fd = Open(path, O_CREAT | O_EXCL | O_WRONLY);
      ASSERT_TRUE(fd.valid()) << ErrnoName(errno);
      point.reach(fd, path, bytes);
      mount_->Kill();
      fd.Reset();
      if (round == 1) LoseDram();
      ASSERT_TRUE(mount_->Start()) << mount_->LogTail();
      const auto got = ns_.Read(key);
      EXPECT_TRUE(got || !point.must_be_there) << point.name << " round " << round;
      EXPECT_TRUE(!got || !point.must_be_gone) << point.name << " round " << round;
      if (got) {
        EXPECT_EQ(Difference(bytes, *got), "equal") << point.name;
      } else {
        EXPECT_EQ(ErrnoName(ns_.Put("", key, bytes)), "0") << point.name;
      }
    }
  }
}

// W13: fsync, then close: when close has returned, the block and its metadata survive a crash.
TEST_P(Kill, FsyncThenCloseSurvives) {
  std::vector<std::string> keys;
  for (int round = 0; round < 4; ++round) {
    for (uint64_t i = 0; i < 6; ++i) {
      const uint64_t number = keys.size();
      const std::string key = Key(number);
      Fd fd = Open(ns_.Chain(keys.empty() ? "" : keys.back()) + "/" + key, O_CREAT | O_WRONLY);
      ASSERT_EQ(WriteAll(fd.get(), Bytes(number, kBlockBytes - i)), 0);
      ASSERT_OK(i % 2 == 0 ? ::fsync(fd.get()) : ::fdatasync(fd.get()));
      ASSERT_EQ(CloseErrno(std::move(fd)), 0);
      keys.push_back(key);
    }
    mount_->Kill();
    if (round % 2 == 1) LoseDram();
    ASSERT_TRUE(mount_->Start()) << mount_->LogTail();
    for (uint64_t i = 0; i < keys.size(); ++i) {
      const auto got = ns_.Read(keys[i]);
      ASSERT_TRUE(got) << "block " << i << " round " << round << " " << ErrnoName(errno);
      EXPECT_SAME_BYTES(Bytes(i, kBlockBytes - i % 6), *got);
      EXPECT_EQ(GetXattr(ns_.ByKey(keys[i]), "user.kvc.ordinal"), std::to_string(i));
      EXPECT_EQ(GetXattr(ns_.ByKey(keys[i]), "user.kvc.parent"), i == 0 ? "" : keys[i - 1]);
    }
    EXPECT_EQ(ns_.Match(keys), static_cast<int64_t>(keys.size()));
  }
}

// P8: `sync` namespaces: as if every close were preceded by fsync.
TEST_P(Kill, SyncNamespacesSurvive) {
  ASSERT_EQ(ErrnoName(SetXattrErrno(ns_.path(), "user.kvc.durability", "sync")), "0");
  std::vector<std::string> keys;
  for (int round = 0; round < 2; ++round) {
    const auto more = ns_.PutChain(keys.empty() ? "" : keys.back(), keys.size(), 8, kBlockBytes);
    keys.insert(keys.end(), more.begin(), more.end());
    mount_->Kill();
    LoseDram();
    ASSERT_TRUE(mount_->Start()) << mount_->LogTail();
    EXPECT_EQ(GetXattr(ns_.path(), "user.kvc.durability"), "sync");
    for (uint64_t i = 0; i < keys.size(); ++i) {
      const auto got = ns_.Read(keys[i]);
      ASSERT_TRUE(got) << "block " << i << " round " << round;
      EXPECT_SAME_BYTES(Bytes(i, kBlockBytes), *got);
    }
  }
}

// W10, W13: The longest block reaches NVMe like any other.
TEST_P(Kill, TheLongestBlockSurvives) {
  mount_.reset();
  MountOptions options = OptionsFor(GetParam());
  options.dram = "256M";
  options.nvme = "4G";
  mount_ = std::make_unique<TestMount>(options);
  ASSERT_TRUE(mount_->Start()) << mount_->LogTail();
  constexpr size_t kLongest = 64 << 20;
  ns_ = Namespace(*mount_, "long", kLongest);
  const std::string bytes = Bytes(1, kLongest);
  Fd fd = Open(ns_.Chain("") + "/" + Key(1), O_CREAT | O_EXCL | O_WRONLY);
  ASSERT_EQ(ErrnoName(WriteAll(fd.get(), bytes)), "0");
  ASSERT_OK(::fsync(fd.get()));
  ASSERT_EQ(ErrnoName(CloseErrno(std::move(fd))), "0");
  mount_->Kill();
  LoseDram();
  ASSERT_TRUE(mount_->Start()) << mount_->LogTail();
  const auto got = ns_.Read(Key(1));
  ASSERT_TRUE(got) << ErrnoName(errno);
  EXPECT_SAME_BYTES(bytes, *got);
}

// F10: fsync of a file, and of its directory after a rename: both survive a crash.
TEST_P(Kill, FsyncedFilesSurvive) {
  const std::string directory = ns_.Files() + "/dir";
  ASSERT_OK(::mkdir(directory.c_str(), 0755));
  std::vector<size_t> sizes{1, 4096, 100000, 1 << 20, 20 << 20};  // the last lives on the data disk
  for (int round = 0; round < 2; ++round) {
    for (size_t i = 0; i < sizes.size(); ++i) {
      const std::string path = fmt::format("{}/f{}", directory, i);
      Fd fd = Open(path + ".tmp", O_CREAT | O_TRUNC | O_WRONLY);
      ASSERT_EQ(WriteAll(fd.get(), Bytes(i + 10 * static_cast<uint64_t>(round), sizes[i])), 0);
      ASSERT_OK(::fsync(fd.get()));
      ASSERT_EQ(CloseErrno(std::move(fd)), 0);
      ASSERT_OK(::rename((path + ".tmp").c_str(), path.c_str()));
    }
    const Fd parent = Open(directory, O_RDONLY | O_DIRECTORY);
    ASSERT_OK(::fsync(parent.get()));
    // And one that is fsynced in the middle of its life, still open.
    const Fd open = Open(directory + "/open", O_CREAT | O_RDWR);
    ASSERT_EQ(WriteAll(open.get(), Bytes(77, 50000)), 0);
    ASSERT_OK(::fsync(open.get()));
    ASSERT_OK(::fsync(parent.get()));
    mount_->Kill();
    LoseDram();
    ASSERT_TRUE(mount_->Start()) << mount_->LogTail();
    for (size_t i = 0; i < sizes.size(); ++i) {
      const auto got = ReadWhole(fmt::format("{}/f{}", directory, i));
      ASSERT_TRUE(got) << "file " << i << " round " << round;
      EXPECT_SAME_BYTES(Bytes(i + 10 * static_cast<uint64_t>(round), sizes[i]), *got);
      EXPECT_FALSE(Exists(fmt::format("{}/f{}.tmp", directory, i)));
    }
    const auto got = ReadWhole(directory + "/open");
    ASSERT_TRUE(got);
    EXPECT_SAME_BYTES(Bytes(77, 50000), *got);
  }
}

}  // namespace
}  // namespace kvcfs::test
