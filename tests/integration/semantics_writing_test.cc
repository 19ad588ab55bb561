// Promises W1-W12 of fs/SEMANTICS.md, through a real mount.
#include <algorithm>
#include <array>
#include <csignal>
#include <cstring>
#include <thread>

#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "tests/integration/mount_fixture.h"

namespace kvcfs::test {
namespace {

class Writing : public MountTest {
 protected:
  Fd Create(const std::string& parent, const std::string& key, int flags = O_WRONLY) {
    Fd fd = Open(ns().Chain(parent) + "/" + key, O_CREAT | O_EXCL | flags);
    EXPECT_TRUE(fd.valid()) << ErrnoName(errno);
    return fd;
  }
  // Not there by any name, in no listing and for `match`.
  void ExpectUnseen(const std::string& parent, const std::string& key) {
    EXPECT_EQ(ErrnoName(StatErrno(ns().ByKey(key))), "ENOENT");
    EXPECT_EQ(ErrnoName(StatErrno(ns().Chain(key))), "ENOENT");
    EXPECT_EQ(ErrnoName(OpenErrno(ns().ByKey(key), O_RDONLY)), "ENOENT");
    EXPECT_EQ(ErrnoName(OpenErrno(ns().Chain(parent) + "/" + key, O_RDONLY)), "ENOENT");
    const auto flat = Names(ns().path() + "/by-key"), tips = Names(ns().path());
    EXPECT_EQ(std::count(flat.begin(), flat.end(), key), 0);
    EXPECT_EQ(std::count(tips.begin(), tips.end(), key), 0);
    EXPECT_EQ(ns().Match({key}), 0);
  }
  void ExpectBlock(const std::string& key, std::string_view bytes) {
    const auto got = ns().Read(key);
    ASSERT_TRUE(got) << ErrnoName(errno);
    EXPECT_SAME_BYTES(bytes, *got);
  }
};
KVC_BOTH_MODES(Writing);

// W1: Nobody sees a block before the last close of the descriptor that makes it: not by any name,
// not in a listing, not by `match`.
TEST_P(Writing, NobodySeesItBeforeTheLastClose) {
  const std::string bytes = Bytes(1, 300000);
  Fd fd = Create("", Key(1));
  ExpectUnseen("", Key(1));
  ASSERT_EQ(WriteAll(fd.get(), bytes, 70000), 0);
  ExpectUnseen("", Key(1));
  EXPECT_EQ(InChild([&] { return Exists(ns().ByKey(Key(1))) ? 1 : 0; }), 0);
  EXPECT_EQ(CloseErrno(std::move(fd)), 0);
  ExpectBlock(Key(1), bytes);
  // The same below a parent.
  Fd child = Create(Key(1), Key(2));
  ASSERT_EQ(WriteAll(child.get(), "x"), 0);
  ExpectUnseen(Key(1), Key(2));
  EXPECT_EQ(CloseErrno(std::move(child)), 0);
  ExpectBlock(Key(2), "x");
}

// W1: Duplicates of the descriptor (dup, fork) count.
TEST_P(Writing, DuplicatesCount) {
  const std::string bytes = Bytes(2, 100000);
  Fd fd = Create("", Key(1));
  Fd copy(::dup(fd.get()));
  Fd another(::fcntl(fd.get(), F_DUPFD_CLOEXEC, 100));
  ASSERT_EQ(WriteAll(fd.get(), bytes.substr(0, 50000)), 0);
  EXPECT_EQ(CloseErrno(std::move(fd)), 0);
  ExpectUnseen("", Key(1));
  ASSERT_EQ(WriteAll(copy.get(), bytes.substr(50000)), 0);
  EXPECT_EQ(CloseErrno(std::move(copy)), 0);
  ExpectUnseen("", Key(1));
  EXPECT_EQ(CloseErrno(std::move(another)), 0);
  ExpectBlock(Key(1), bytes);
}

// W1: Duplicates of the descriptor (dup, fork) count.
TEST_P(Writing, AForkedChildHoldsIt) {
  const std::string bytes = Bytes(3, 80000);
  std::array<int, 2> go{};
  ASSERT_EQ(::pipe2(go.data(), O_CLOEXEC), 0);
  Fd wait(go[0]), release(go[1]);
  Fd fd = Create("", Key(1));
  ASSERT_EQ(WriteAll(fd.get(), bytes.substr(0, 40000)), 0);
  const pid_t pid = ::fork();
  ASSERT_GE(pid, 0);
  if (pid == 0) {
    release.Reset();
    char byte = 0;
    (void)!::read(wait.get(), &byte, 1);
    ::_exit(WriteAll(fd.get(), bytes.substr(40000)) == 0 && CloseErrno(std::move(fd)) == 0 ? 0 : 1);
  }
  EXPECT_EQ(CloseErrno(std::move(fd)), 0);
  ExpectUnseen("", Key(1));
  release.Reset();
  int status = 0;
  ASSERT_EQ(::waitpid(pid, &status, 0), pid);
  EXPECT_EQ(status, 0);
  ExpectBlock(Key(1), bytes);
}

// W2: When close() has returned, the next call of any process on this host sees the block, by every
// name and by `match`.
TEST_P(Writing, VisibleToTheNextCallOfAnotherProcess) {
  // Another process, told through a pipe after each close(), looks with one call of one kind.
  std::array<int, 2> ask{}, answer{};
  ASSERT_EQ(::pipe2(ask.data(), O_CLOEXEC) | ::pipe2(answer.data(), O_CLOEXEC), 0);
  constexpr uint32_t kRounds = 240;
  const pid_t pid = ::fork();
  ASSERT_GE(pid, 0);
  if (pid == 0) {
    for (uint32_t i = 0; i < kRounds; ++i) {
      char byte = 0;
      if (::read(ask[0], &byte, 1) != 1) ::_exit(1);
      const std::string key = Key(i), parent = i == 0 ? "" : Key(i - 1);
      bool seen = false;
      switch (i % 6) {
        case 0:
          seen = Exists(ns().ByKey(key));
          break;
        case 1:
          seen = Exists(ns().Chain(key));
          break;
        case 2:
          seen = OpenErrno(ns().Entry(key, i, key), O_RDONLY) == 0;
          break;
        case 3:
          seen = ns().Match({Key(0), key}) >= 1 && ns().Match({key}) >= 0 && ns().Has(key);
          break;
        case 4:
          seen = OpenErrno(ns().Chain(key) + "/" + Key(i + 1), O_RDONLY) == ENOENT &&
                 Names(ns().Chain(key)).size() == i + 1;
          break;
        default:
          seen = ns().Put(parent, key, "again") == EEXIST;
          break;
      }
      byte = seen ? 'y' : 'n';
      if (::write(answer[1], &byte, 1) != 1) ::_exit(1);
    }
    ::_exit(0);
  }
  for (uint32_t i = 0; i < kRounds; ++i) {
    ASSERT_EQ(ns().Put(i == 0 ? "" : Key(i - 1), Key(i), Bytes(i, 1 + i * 257)), 0) << i;
    char byte = 'k';
    ASSERT_EQ(::write(ask[1], &byte, 1), 1);
    ASSERT_EQ(::read(answer[0], &byte, 1), 1);
    EXPECT_EQ(byte, 'y') << "block " << i << " was not seen by look " << i % 6;
  }
  int status = 0;
  ASSERT_EQ(::waitpid(pid, &status, 0), pid);
  EXPECT_EQ(status, 0);
  for (const int fd : {ask[0], ask[1], answer[0], answer[1]}) ::close(fd);
  std::vector<std::string> keys;
  for (uint32_t i = 0; i < kRounds; ++i) keys.push_back(Key(i));
  EXPECT_EQ(ns().Match(keys), kRounds);
}

// W3: Two writers of one key: the first to publish wins. The other's close() succeeds and its bytes
// are dropped.
TEST_P(Writing, FirstToPublishWins) {
  const std::string path = ns().Chain("") + "/" + Key(1);
  Fd first = Open(path, O_CREAT | O_WRONLY), second = Open(path, O_CREAT | O_EXCL | O_WRONLY);
  ASSERT_TRUE(first.valid() && second.valid()) << ErrnoName(errno);
  const std::string one = Bytes(1, 5000), two = Bytes(2, 9000);
  ASSERT_EQ(WriteAll(first.get(), one), 0);
  ASSERT_EQ(WriteAll(second.get(), two), 0);
  EXPECT_EQ(CloseErrno(std::move(second)), 0);
  ExpectBlock(Key(1), two);
  EXPECT_EQ(CloseErrno(std::move(first)), 0);
  ExpectBlock(Key(1), two);
  EXPECT_EQ(StatOf(ns().ByKey(Key(1))).st_size, 9000);
  // And with many at once: exactly one of them is what everybody reads afterwards.
  for (uint64_t round = 0; round < 10; ++round) {
    const std::string key = Key(100 + round);
    std::vector<std::thread> writers;
    for (uint64_t i = 0; i < 4; ++i) {
      writers.emplace_back([&, i] {
        const int failed = ns().Put("", key, Bytes(1000 + i, 40000 + 8 * i));
        EXPECT_TRUE(failed == 0 || failed == EEXIST) << ErrnoName(failed);
      });
    }
    for (std::thread& writer : writers) writer.join();
    const auto got = ns().Read(key);
    ASSERT_TRUE(got);
    ASSERT_EQ((got->size() - 40000) % 8, 0u);
    EXPECT_SAME_BYTES(Bytes(1000 + (got->size() - 40000) / 8, got->size()), *got);
  }
}

// W4: Opening a cached block for writing is EEXIST, by any name and with any flags; nothing can
// truncate it. Blocks never change.
TEST_P(Writing, CachedBlocksAreNotWritten) {
  ASSERT_EQ(ns().Put("", Key(1), "as published"), 0);
  ASSERT_EQ(ns().Put(Key(1), Key(2), "child"), 0);
  for (const std::string& path : {ns().ByKey(Key(1)), ns().Entry(Key(1), 0, Key(1)),
                                  ns().Entry(Key(2), 0, Key(1)), ns().Chain("") + "/" + Key(1)}) {
    for (const int flags :
         {O_WRONLY, O_RDWR, O_WRONLY | O_TRUNC, O_RDWR | O_APPEND, O_WRONLY | O_CREAT,
          O_WRONLY | O_CREAT | O_EXCL, O_WRONLY | O_CREAT | O_TRUNC}) {
      EXPECT_EQ(ErrnoName(OpenErrno(path, flags)), "EEXIST") << path << " " << flags;
    }
    EXPECT_LT(::truncate(path.c_str(), 3), 0) << path;
  }
  // Nor through a descriptor for reading.
  const Fd fd = Open(ns().ByKey(Key(1)), O_RDONLY);
  ASSERT_TRUE(fd.valid());
  EXPECT_ERRNO(EBADF, ::pwrite(fd.get(), "x", 1, 0));
  EXPECT_LT(::ftruncate(fd.get(), 0), 0);
  EXPECT_LT(::fallocate(fd.get(), 0, 0, 100), 0);
  void* map = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  EXPECT_EQ(map, MAP_FAILED);
  // An O_CREAT that finds it and only reads is an ordinary open.
  EXPECT_EQ(ErrnoName(OpenErrno(ns().ByKey(Key(1)), O_RDONLY | O_CREAT)), "0");
  ExpectBlock(Key(1), "as published");
  EXPECT_EQ(StatOf(ns().ByKey(Key(1))).st_size, 12);
}

// W5: Creating below a parent that is not cached is ENOENT.
TEST_P(Writing, ParentMustBeCached) {
  EXPECT_EQ(ErrnoName(ns().Put(Key(1), Key(2), "orphan")), "ENOENT");
  ASSERT_EQ(ns().Put("", Key(1), "parent"), 0);
  EXPECT_EQ(ErrnoName(ns().Put(Key(1), Key(2), "child")), "0");
  ASSERT_OK(::unlink(ns().ByKey(Key(1)).c_str()));
  EXPECT_EQ(ErrnoName(ns().Put(Key(1), Key(2), "orphan")), "ENOENT");
  EXPECT_EQ(ErrnoName(ns().Put(Key(2), Key(3), "orphan")), "ENOENT");
}

// W6: A parent that is dropped while its child is being written: close() succeeds, the child is
// dropped, and counted in the metrics.
TEST_P(Writing, ParentGoesMeanwhile) {
  ASSERT_EQ(ns().Put("", Key(1), "parent"), 0);
  Fd fd = Create(Key(1), Key(2));
  ASSERT_EQ(WriteAll(fd.get(), "child"), 0);
  ASSERT_OK(::unlink(ns().ByKey(Key(1)).c_str()));
  ASSERT_EQ(WriteAll(fd.get(), " goes on"), 0);
  EXPECT_EQ(CloseErrno(std::move(fd)), 0);
  EXPECT_EQ(ErrnoName(StatErrno(ns().ByKey(Key(2)))), "ENOENT");
  EXPECT_EQ(ErrnoName(StatErrno(ns().Chain(Key(2)))), "ENOENT");
  // The parent's key made anew does not bring it back, and it can be written below it.
  ASSERT_EQ(ns().Put("", Key(1), "parent"), 0);
  EXPECT_FALSE(ns().Has(Key(2)));
  EXPECT_EQ(ns().Put(Key(1), Key(2), "child"), 0);
  ExpectBlock(Key(2), "child");
}

// W7: More than `block_bytes`: close() says EFBIG and nothing is published. Exactly `block_bytes`
// is fine.
TEST_P(Writing, TooLong) {
  Fd fd = Create("", Key(1));
  const int written = WriteAll(fd.get(), Bytes(1, kBlockBytes + 1));
  EXPECT_TRUE(written == 0 || written == EFBIG) << ErrnoName(written);
  EXPECT_EQ(ErrnoName(CloseErrno(std::move(fd))), "EFBIG");
  ExpectUnseen("", Key(1));
  // In a second write, and by ftruncate.
  Fd late = Create("", Key(2));
  ASSERT_EQ(WriteAll(late.get(), Bytes(2, kBlockBytes)), 0);
  WriteAll(late.get(), "x");
  EXPECT_EQ(ErrnoName(CloseErrno(std::move(late))), "EFBIG");
  ExpectUnseen("", Key(2));
  Fd fits = Create("", Key(3));
  ASSERT_EQ(WriteAll(fits.get(), Bytes(3, kBlockBytes), 65536), 0);
  EXPECT_EQ(ErrnoName(CloseErrno(std::move(fits))), "0");
  ExpectBlock(Key(3), Bytes(3, kBlockBytes));
  // The key of what was too long is free.
  EXPECT_EQ(ErrnoName(ns().Put("", Key(1), "short")), "0");
}

// W8: A descriptor closed with nothing written publishes nothing and is no error.
TEST_P(Writing, NothingWritten) {
  Fd fd = Create("", Key(1));
  EXPECT_EQ(ErrnoName(CloseErrno(std::move(fd))), "0");
  ExpectUnseen("", Key(1));
  Fd truncated = Create("", Key(1));
  ASSERT_EQ(WriteAll(truncated.get(), "something"), 0);
  ASSERT_OK(::ftruncate(truncated.get(), 0));
  EXPECT_EQ(ErrnoName(CloseErrno(std::move(truncated))), "0");
  ExpectUnseen("", Key(1));
  EXPECT_EQ(ErrnoName(ns().Put("", Key(1), "x")), "0");
}

// A writer that becomes another program has closed, and nobody waits for anybody: while its files
// are closed the kernel lets nobody look at it in /proc, the daemon as little as ps.
TEST_P(Writing, ExecClosesWhatIsClosedOnExec) {
  constexpr uint64_t kOpen =
      40;  // more calls in a row than the daemon takes to look for the caller
  const pid_t child = ::fork();
  if (child == 0) {
    std::vector<Fd> open;
    for (uint64_t i = 1; i <= kOpen; ++i) {
      open.push_back(Open(ns().Chain("") + "/" + Key(i), O_CREAT | O_EXCL | O_WRONLY));
      if (!open.back().valid() || WriteAll(open.back().get(), Bytes(i, 1000)) != 0) ::_exit(1);
    }
    ::execlp("true", "true", nullptr);
    ::_exit(2);
  }
  int status = -1;
  if (!Eventually([&] { return ::waitpid(child, &status, WNOHANG) == child; },
                  std::chrono::seconds(60))) {
    // Nothing else frees it, and who looks at it in /proc hangs, too.
    ::kill(-mount().pid(), SIGKILL);
    ::waitpid(child, &status, 0);
    FAIL() << "the daemon and a program that closes its files on exec wait for each other";
  }
  EXPECT_EQ(status, 0);
  for (uint64_t i = 1; i <= kOpen; ++i) ExpectBlock(Key(i), Bytes(i, 1000));
}

// W9: A writer that dies by a signal publishes nothing, and its key can be written again at once.
TEST_P(Writing, KilledWriterPublishesNothing) {
  uint64_t number = 0;
  for (const int signal : {SIGKILL, SIGTERM, SIGSEGV}) {
    for (const size_t length : {size_t{1}, size_t{100000}, kBlockBytes}) {
      const std::string key = Key(++number), path = ns().Chain("") + "/" + key;
      EXPECT_EQ(InChild([&] {
                  const Fd fd = Open(path, O_CREAT | O_EXCL | O_WRONLY);
                  if (!fd.valid() || WriteAll(fd.get(), Bytes(1, length)) != 0) return 1;
                  ::signal(signal, SIG_DFL);
                  ::raise(signal);
                  return 2;
                }),
                200 + signal);
      EXPECT_EQ(ErrnoName(StatErrno(ns().ByKey(key))), "ENOENT") << signal << " " << length;
      EXPECT_EQ(ErrnoName(StatErrno(ns().Chain(key))), "ENOENT") << signal << " " << length;
      EXPECT_EQ(ErrnoName(ns().Put("", key, "another")), "0");
      ExpectBlock(key, "another");
    }
  }
  // One that ends without closing has closed: exit() is no accident.
  EXPECT_EQ(InChild([&] {
              const int fd =
                  ::open((ns().Chain("") + "/" + Key(50)).c_str(), O_CREAT | O_WRONLY, 0644);
              return WriteAll(fd, "by exit");
            }),
            0);
  ExpectBlock(Key(50), "by exit");
}

// W10: Blocks of 1 byte up to 64 MiB, of any length: what is read is what was written.
TEST_P(Writing, AllLengths) {
  const Namespace large(mount(), ns().name() + "-large", 64u << 20);
  std::string parent;
  uint64_t number = 500;
  for (const size_t length :
       {size_t{1}, size_t{2}, size_t{511}, size_t{4095}, size_t{4096}, size_t{4097}, size_t{65535},
        size_t{65537}, size_t{1000003}, size_t{2} << 20, (size_t{2} << 20) + 1, size_t{16} << 20,
        (size_t{64} << 20) - 1, size_t{64} << 20}) {
    const std::string key = Key(++number);
    ASSERT_EQ(ErrnoName(large.Put(parent, key, Bytes(number, length))), "0") << length;
    const auto got = large.Read(key);
    ASSERT_TRUE(got) << length;
    EXPECT_SAME_BYTES(Bytes(number, length), *got);
    EXPECT_EQ(StatOf(large.ByKey(key)).st_size, static_cast<off_t>(length));
    parent = key;
  }
  RunCommand({KVC_COMMAND, "drop", large.path()});
}

// W10: ... written in any order and piece size.
TEST_P(Writing, PiecesInAnyOrder) {
  const std::string bytes = Bytes(7, 700001);
  uint64_t number = 600;
  for (const size_t piece : {size_t{1021}, size_t{4096}, size_t{100000}}) {
    std::vector<size_t> starts(bytes.size() / piece + 1);
    for (size_t i = 0; i < starts.size(); ++i) starts[i] = i * piece;
    std::reverse(starts.begin() + 1, starts.end());
    std::swap(starts.front(), starts[starts.size() / 2]);
    const std::string key = Key(++number);
    Fd fd = Create("", key);
    for (const size_t start : starts) {
      const std::string_view part = std::string_view(bytes).substr(start, piece);
      ASSERT_EQ(::pwrite(fd.get(), part.data(), part.size(), static_cast<off_t>(start)),
                static_cast<ssize_t>(part.size()));
    }
    EXPECT_EQ(CloseErrno(std::move(fd)), 0);
    ExpectBlock(key, bytes);
  }
  // What was never written between two pieces is zeros.
  Fd fd = Create("", Key(699));
  ASSERT_EQ(::pwrite(fd.get(), "end", 3, 50000), 3);
  EXPECT_EQ(CloseErrno(std::move(fd)), 0);
  ExpectBlock(Key(699), std::string(50000, '\0') + "end");
}

// W11: A block may be written through a shared mapping. Stores made after close() and before
// munmap() either are in the published block or it is published without them later; it is never
// published and then changed.
TEST_P(Writing, MappedThenClosedThenUnmapped) {
  const std::string before = Bytes(1, kBlockBytes), after = Bytes(2, kBlockBytes);
  Fd fd = Create("", Key(1), O_RDWR);
  ASSERT_OK(::ftruncate(fd.get(), kBlockBytes));
  void* map = ::mmap(nullptr, kBlockBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  ASSERT_NE(map, MAP_FAILED) << ErrnoName(errno);
  std::memcpy(map, before.data(), before.size());
  EXPECT_EQ(CloseErrno(std::move(fd)), 0);
  const auto early = ns().Read(Key(1));  // may be a miss while it is mapped
  std::memcpy(map, after.data(), after.size() / 2);
  const auto seen_between = ns().Read(Key(1));
  std::memcpy(map, after.data(), after.size());
  ASSERT_OK(::munmap(map, kBlockBytes));
  ASSERT_TRUE(Eventually([&] { return ns().Has(Key(1)); })) << "unmapped and not published";
  const auto got = ns().Read(Key(1));
  ASSERT_TRUE(got);
  if (early) {
    EXPECT_SAME_BYTES(*early, *got);
  }
  if (seen_between) {
    EXPECT_SAME_BYTES(*seen_between, *got);
  }
  if (!early && !seen_between) {
    EXPECT_SAME_BYTES(after, *got);
  }
  // Unmapped before close: visible at once.
  Fd orderly = Create("", Key(2), O_RDWR);
  ASSERT_OK(::ftruncate(orderly.get(), 100000));
  map = ::mmap(nullptr, 100000, PROT_READ | PROT_WRITE, MAP_SHARED, orderly.get(), 0);
  ASSERT_NE(map, MAP_FAILED);
  std::memcpy(map, before.data(), 100000);
  ASSERT_OK(::munmap(map, 100000));
  EXPECT_EQ(CloseErrno(std::move(orderly)), 0);
  ExpectBlock(Key(2), before.substr(0, 100000));
}

// W12: A writer may ftruncate and fallocate its unpublished block, and, opened O_RDWR, read back
// what it wrote.
TEST_P(Writing, WriterMayTruncateAndReadBack) {
  const std::string bytes = Bytes(5, 200000);
  Fd fd = Create("", Key(1), O_RDWR);
  ASSERT_OK(::fallocate(fd.get(), FALLOC_FL_KEEP_SIZE, 0, 300000));
  ASSERT_EQ(WriteAll(fd.get(), bytes), 0);
  struct stat attr {};
  ASSERT_OK(::fstat(fd.get(), &attr));
  EXPECT_EQ(attr.st_size, 200000);
  ASSERT_EQ(::lseek(fd.get(), 0, SEEK_SET), 0);
  const auto back = ReadRest(fd.get());
  ASSERT_TRUE(back);
  EXPECT_SAME_BYTES(bytes, *back);
  ASSERT_OK(::ftruncate(fd.get(), 150000));
  ASSERT_OK(::fstat(fd.get(), &attr));
  EXPECT_EQ(attr.st_size, 150000);
  EXPECT_EQ(CloseErrno(std::move(fd)), 0);
  ExpectBlock(Key(1), bytes.substr(0, 150000));
  Fd longer = Create("", Key(2));
  ASSERT_EQ(WriteAll(longer.get(), "ab"), 0);
  ASSERT_OK(::ftruncate(longer.get(), 4));
  EXPECT_EQ(CloseErrno(std::move(longer)), 0);
  ExpectBlock(Key(2), std::string_view("ab\0\0", 4));
}

// W10 with O_DIRECT, O_APPEND and vectors, which engines use too.
TEST_P(Writing, OtherWaysToWrite) {
  const std::string bytes = Bytes(6, size_t{3} * 4096);
  void* aligned = nullptr;
  ASSERT_EQ(::posix_memalign(&aligned, 4096, bytes.size()), 0);
  std::memcpy(aligned, bytes.data(), bytes.size());
  Fd direct = Create("", Key(1), O_WRONLY | O_DIRECT);
  ASSERT_EQ(::write(direct.get(), aligned, bytes.size()), static_cast<ssize_t>(bytes.size()));
  EXPECT_EQ(CloseErrno(std::move(direct)), 0);
  ExpectBlock(Key(1), bytes);
  const Fd reader = Open(ns().ByKey(Key(1)), O_RDONLY | O_DIRECT);
  std::memset(aligned, 0, bytes.size());
  EXPECT_EQ(::read(reader.get(), aligned, bytes.size()), static_cast<ssize_t>(bytes.size()));
  EXPECT_SAME_BYTES(bytes, std::string_view(static_cast<char*>(aligned), bytes.size()));
  ::free(aligned);
  Fd append = Create("", Key(2), O_WRONLY | O_APPEND);
  ASSERT_EQ(WriteAll(append.get(), "one"), 0);
  ASSERT_EQ(WriteAll(append.get(), "two"), 0);
  EXPECT_EQ(CloseErrno(std::move(append)), 0);
  ExpectBlock(Key(2), "onetwo");
}

}  // namespace
}  // namespace kvcfs::test
