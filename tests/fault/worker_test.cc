// The worker dies and the supervisor starts another: files that are open go on, calls wait and are
// answered (promise P3 of fs/SEMANTICS.md).
#include <algorithm>
#include <array>
#include <atomic>
#include <csignal>
#include <cstring>
#include <thread>

#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "tests/integration/mount_fixture.h"

namespace kvcfs::test {
namespace {

class Worker : public MountTest {
 protected:
  void KillIt() {
    ASSERT_TRUE(mount().KillWorkers()) << "the supervisor has no worker";
    ASSERT_TRUE(mount().WaitUntilItAnswers()) << mount().LogTail();
  }
  std::string At(const std::string& name) { return ns().Files() + "/" + name; }
};
KVC_BOTH_MODES(Worker);

// P3: A worker that dies is replaced: files that are open for reading go on, calls wait and are
// answered.
TEST_P(Worker, ReadersGoOn) {
  std::vector<Fd> blocks, files;
  std::vector<char*> maps;
  for (uint64_t i = 0; i < 6; ++i) {
    ASSERT_EQ(ns().Put("", Key(i), Bytes(i, kBlockBytes - i)), 0);
    ASSERT_EQ(WriteFile(At(std::to_string(i)), Bytes(100 + i, kBlockBytes + i)), 0);
    blocks.push_back(Open(ns().ByKey(Key(i)), O_RDONLY));
    files.push_back(Open(At(std::to_string(i)), O_RDONLY));
    void* map = ::mmap(nullptr, kBlockBytes, PROT_READ, MAP_SHARED, files.back().get(), 0);
    ASSERT_NE(map, MAP_FAILED);
    maps.push_back(static_cast<char*>(map));
  }
  const Fd listing = Open(ns().path() + "/by-key", O_RDONLY | O_DIRECTORY);
  for (int round = 0; round < 3; ++round) {
    KillIt();
    for (uint64_t i = 0; i < 6; ++i) {
      ASSERT_EQ(::lseek(blocks[i].get(), 0, SEEK_SET), 0);
      ASSERT_EQ(::lseek(files[i].get(), 0, SEEK_SET), 0);
      const auto block = ReadRest(blocks[i].get()), file = ReadRest(files[i].get());
      ASSERT_TRUE(block) << ErrnoName(errno) << " round " << round;
      ASSERT_TRUE(file) << ErrnoName(errno) << " round " << round;
      EXPECT_SAME_BYTES(Bytes(i, kBlockBytes - i), *block);
      EXPECT_SAME_BYTES(Bytes(100 + i, kBlockBytes + i), *file);
      EXPECT_SAME_BYTES(Bytes(100 + i, kBlockBytes),
                        ReadMap(maps[i], kBlockBytes).value_or("unreadable"));
      struct stat attr {};
      ASSERT_OK(::fstat(blocks[i].get(), &attr));
      EXPECT_EQ(attr.st_size, static_cast<off_t>(kBlockBytes - i));
      const auto again = ns().Read(Key(i));
      ASSERT_TRUE(again);
      EXPECT_SAME_BYTES(Bytes(i, kBlockBytes - i), *again);
    }
    ASSERT_EQ(::lseek(listing.get(), 0, SEEK_SET), 0);
    EXPECT_EQ(ListFrom(listing.get(), 32768).size(), 6u);
  }
  for (char* map : maps) ::munmap(map, kBlockBytes);
  // Dropped while open over a restart: the reader keeps its bytes.
  ASSERT_OK(::unlink(ns().ByKey(Key(0)).c_str()));
  KillIt();
  ASSERT_EQ(::lseek(blocks[0].get(), 0, SEEK_SET), 0);
  const auto block = ReadRest(blocks[0].get());
  ASSERT_TRUE(block) << ErrnoName(errno);
  EXPECT_SAME_BYTES(Bytes(0, kBlockBytes), *block);
  EXPECT_FALSE(ns().Has(Key(0)));
}

// P3: A question to `match` that was begun is not mixed up with another's: it must be asked anew.
// What .kvcfs says is read from its beginning again.
TEST_P(Worker, VirtualFilesAreOpenedAnew) {
  ASSERT_EQ(ns().Put("", Key(0), Bytes(0, kBlockBytes)), 0);
  ASSERT_EQ(ns().Put(Key(0), Key(1), Bytes(1, kBlockBytes)), 0);
  const Fd before = Open(ns().path() + "/match", O_RDWR);
  const Fd metrics = Open(mount().mount_point() + "/.kvcfs/metrics", O_RDONLY);
  ASSERT_EQ(WriteAll(before.get(), Key(0) + "\n"), 0);
  std::array<char, 64> text{};
  ASSERT_GT(::read(metrics.get(), text.data(), text.size()), 0);
  KillIt();
  const Fd after = Open(ns().path() + "/match", O_RDWR);
  ASSERT_EQ(WriteAll(after.get(), Key(0) + "\n"), 0);
  EXPECT_EQ(ErrnoName(WriteAll(before.get(), Key(1) + "\n")), "ESTALE");
  EXPECT_EQ(::read(before.get(), text.data(), text.size()), -1);
  EXPECT_EQ(ErrnoName(errno), "ESTALE");
  const auto answer = ReadRest(after.get());
  ASSERT_TRUE(answer) << ErrnoName(errno);
  EXPECT_EQ(answer->substr(0, 2), "1 ") << *answer;
  EXPECT_EQ(::read(metrics.get(), text.data(), text.size()), -1);
  EXPECT_EQ(ErrnoName(errno), "ESTALE");
  EXPECT_GT(::pread(metrics.get(), text.data(), text.size(), 0), 0) << ErrnoName(errno);
}

// P3: Writers, too: what was begun before the restart is written, closed and published after it.
TEST_P(Worker, WritersGoOn) {
  const std::string bytes = Bytes(1, kBlockBytes);
  ASSERT_EQ(ns().Put("", Key(1), bytes), 0);
  Fd block = Open(ns().Chain(Key(1)) + "/" + Key(2), O_CREAT | O_EXCL | O_WRONLY);
  ASSERT_EQ(WriteAll(block.get(), bytes.substr(0, 300000)), 0);
  Fd file = Open(At("file"), O_CREAT | O_RDWR);
  ASSERT_EQ(WriteAll(file.get(), bytes.substr(0, 300000)), 0);
  Fd gone = Open(At("gone"), O_CREAT | O_RDWR);
  ASSERT_EQ(WriteAll(gone.get(), bytes), 0);
  ASSERT_OK(::unlink(At("gone").c_str()));
  KillIt();
  EXPECT_FALSE(ns().Has(Key(2)));
  ASSERT_EQ(ErrnoName(WriteAll(block.get(), bytes.substr(300000))), "0");
  EXPECT_EQ(ErrnoName(CloseErrno(std::move(block))), "0");
  const auto got = ns().Read(Key(2));
  ASSERT_TRUE(got) << ErrnoName(errno);
  EXPECT_SAME_BYTES(bytes, *got);
  ASSERT_EQ(ErrnoName(WriteAll(file.get(), bytes.substr(300000))), "0");
  EXPECT_EQ(ErrnoName(CloseErrno(std::move(file))), "0");
  const auto whole = ReadWhole(At("file"));
  ASSERT_TRUE(whole);
  EXPECT_SAME_BYTES(bytes, *whole);
  ASSERT_EQ(::lseek(gone.get(), 0, SEEK_SET), 0);
  const auto unlinked = ReadRest(gone.get());
  ASSERT_TRUE(unlinked) << ErrnoName(errno);
  EXPECT_SAME_BYTES(bytes, *unlinked);
  EXPECT_EQ(Names(ns().Files()), std::vector<std::string>{"file"});
}

// A writer whose process dies while there is no worker publishes nothing.
TEST_P(Worker, AWriterThatDiesMeanwhile) {
  for (uint64_t i = 0; i < 3; ++i) {
    std::array<int, 2> ready{};
    ASSERT_EQ(::pipe2(ready.data(), O_CLOEXEC), 0);
    const pid_t pid = ::fork();
    if (pid == 0) {
      const Fd fd = Open(ns().Chain("") + "/" + Key(i), O_CREAT | O_WRONLY);
      const char byte = WriteAll(fd.get(), Bytes(i, 5000)) == 0 ? 'y' : 'n';
      (void)!::write(ready[1], &byte, 1);
      while (true) ::pause();
    }
    char byte = 0;
    ASSERT_EQ(::read(ready[0], &byte, 1), 1);
    EXPECT_EQ(byte, 'y');
    ASSERT_TRUE(mount().KillWorkers());
    ::kill(pid, SIGKILL);
    ::waitpid(pid, nullptr, 0);
    ASSERT_TRUE(mount().WaitUntilItAnswers()) << mount().LogTail();
    EXPECT_FALSE(ns().Has(Key(i)));
    EXPECT_EQ(ErrnoName(ns().Put("", Key(i), "whole")), "0");
    EXPECT_EQ(ns().Read(Key(i)), "whole");
    ::close(ready[0]);
    ::close(ready[1]);
  }
}

// Calls in flight are answered once and rightly, whatever the moment: none fails, none is lost,
// none is done twice.
TEST_P(Worker, CallsInFlightAreAnswered) {
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  std::array<uint64_t, 3> done{};
  threads.emplace_back([&] {  // blocks
    for (uint64_t i = 0; !stop.load(); ++i) {
      ASSERT_EQ(ErrnoName(ns().Put(i % 50 == 0 ? "" : Key(i - 1), Key(i), Bytes(i, 20000))), "0")
          << i;
      const auto got = ns().Read(Key(i));
      ASSERT_TRUE(got) << i << " " << ErrnoName(errno);
      ASSERT_SAME_BYTES(Bytes(i, 20000), *got);
      done[0] = i;
    }
  });
  threads.emplace_back([&] {  // names: none of these calls may be repeated
    for (uint64_t i = 0; !stop.load(); ++i) {
      const std::string name = At(fmt::format("n{}", i));
      ASSERT_OK(::mkdir(name.c_str(), 0755)) << i;
      ASSERT_OK(::rename(name.c_str(), (name + "r").c_str())) << i;
      ASSERT_EQ(ErrnoName(WriteFile(name + "r/f", "x", O_CREAT | O_EXCL)), "0") << i;
      ASSERT_OK(::link((name + "r/f").c_str(), (name + "r/g").c_str())) << i;
      ASSERT_OK(::unlink((name + "r/f").c_str())) << i;
      ASSERT_OK(::unlink((name + "r/g").c_str())) << i;
      ASSERT_OK(::rmdir((name + "r").c_str())) << i;
      done[1] = i;
    }
  });
  threads.emplace_back([&] {  // one file, appended to
    Fd fd = Open(At("appended"), O_CREAT | O_RDWR | O_APPEND);
    for (uint64_t i = 0; !stop.load(); ++i) {
      ASSERT_EQ(ErrnoName(WriteAll(fd.get(), fmt::format("{:07}\n", i))), "0") << i;
      done[2] = i;
    }
  });
  for (int round = 0; round < 8 && !HasFatalFailure(); ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(60 + round * 13));
    KillIt();
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();
  for (const uint64_t count : done) EXPECT_GT(count, 0u);
  const auto text = ReadWhole(At("appended"));
  ASSERT_TRUE(text);
  ASSERT_EQ(text->size(), 8 * (done[2] + 1));
  for (uint64_t i = 0; i <= done[2]; ++i) {
    ASSERT_EQ(text->substr(8 * i, 8), fmt::format("{:07}\n", i)) << "appended twice or not";
  }
}

}  // namespace
}  // namespace kvcfs::test
