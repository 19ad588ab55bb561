// Programs that make the file system calls of UCM 0.8, AIBrix 0.8, Mooncake's file-per-key store
// and llm-d (recorded with strace, or from their source), in the same order, and check what they
// answer.
#include <algorithm>
#include <array>
#include <thread>

#include <fmt/format.h>
#include <sys/uio.h>

#include "tests/integration/engine_fixture.h"

namespace kvcfs::test {
namespace {

class Ucm : public EngineTest {};
KVC_ALL_PLACES(Ucm);
class AiBrix : public EngineTest {};
KVC_ALL_PLACES(AiBrix);
class OtherStores : public EngineTest {};
KVC_ALL_PLACES(OtherStores);

// Start: 4096 times mkdir and chmod 0774 (fewer here), as often again with EEXIST.
TEST_P(Ucm, Start) {
  for (int start = 0; start < 2; ++start) {
    for (int i = 0; i < 512; ++i) {
      const std::string path = At(fmt::format("{:03x}", i));
      EXPECT_ERRNO(start == 0 ? 0 : EEXIST, ::mkdir(path.c_str(), 0774));
      if (start == 0) {
        EXPECT_OK(::chmod(path.c_str(), 0774));
      }
    }
  }
  EXPECT_EQ(StatOf(At("000")).st_mode, S_IFDIR | 0774u);
  EXPECT_EQ(Names(directory()).size(), 512u);
}

// Lookup asks access(R_OK|W_OK): modes stay as created. Store: `ID.tmp` without TRUNC and EXCL, a
// pwrite for each tensor, close, rename; load: a pread for each tensor.
TEST_P(Ucm, Posix) {
  constexpr size_t kTensors = 8, kTensorBytes = kBlockBytes / kTensors;
  for (const int direct : {O_DIRECT, 0}) {
    for (uint64_t i = 0; i < 12; ++i) {
      const std::string path = At(fmt::format("{}-{:x}", direct, i));
      const std::string block = Bytes(i, kBlockBytes);
      EXPECT_ERRNO(ENOENT, ::access(path.c_str(), R_OK | W_OK));
      Fd fd = Open(path + ".tmp", O_WRONLY | O_CREAT | direct, 0644);
      ASSERT_TRUE(fd.valid()) << ErrnoName(errno);
      for (size_t t = 0; t < kTensors; ++t) {
        PwriteOnce(fd.get(), Buffer(std::string_view(block).substr(t * kTensorBytes, kTensorBytes)),
                   static_cast<off_t>(t * kTensorBytes));
      }
      EXPECT_EQ(CloseErrno(std::move(fd)), 0);
      ASSERT_OK(::rename((path + ".tmp").c_str(), path.c_str()));
      EXPECT_OK(::access(path.c_str(), R_OK | W_OK));
      EXPECT_EQ(StatOf(path).st_mode & 0777, 0644u);
      const Fd reader = Open(path, O_RDONLY | direct);
      for (size_t t = 0; t < kTensors; ++t) {
        Buffer buffer(kTensorBytes);
        PreadOnce(reader.get(), buffer, static_cast<off_t>(t * kTensorBytes));
        EXPECT_SAME_BYTES(std::string_view(block).substr(t * kTensorBytes, kTensorBytes),
                          buffer.view());
      }
    }
  }
}

// Several descriptors write disjoint parts of one temporary file at once; whoever is last renames.
TEST_P(Ucm, SeveralDescriptorsOneFile) {
  constexpr size_t kParts = 4, kPartBytes = kBlockBytes / kParts;
  for (uint64_t i = 0; i < 12; ++i) {
    const std::string path = At(fmt::format("{:x}", i)), block = Bytes(i, kBlockBytes);
    std::vector<std::thread> writers;
    for (size_t p = 0; p < kParts; ++p) {
      writers.emplace_back([&, p] {
        Fd fd = Open(path + ".tmp", O_WRONLY | O_CREAT | O_DIRECT);
        ASSERT_TRUE(fd.valid()) << ErrnoName(errno);
        PwriteOnce(fd.get(), Buffer(std::string_view(block).substr(p * kPartBytes, kPartBytes)),
                   static_cast<off_t>(p * kPartBytes));
        EXPECT_EQ(CloseErrno(std::move(fd)), 0);
      });
    }
    for (std::thread& writer : writers) writer.join();
    ASSERT_OK(::rename((path + ".tmp").c_str(), path.c_str()));
    ExpectFile(fmt::format("{:x}", i), block);
  }
}

// posix-layers: close after each shard and open again: close may not seal, rename may.
TEST_P(Ucm, PosixLayers) {
  constexpr size_t kShards = 8, kShardBytes = kBlockBytes / kShards;
  for (uint64_t i = 0; i < 8; ++i) {
    const std::string path = At(fmt::format("{:x}", i)), block = Bytes(i, kBlockBytes);
    for (size_t s = 0; s < kShards; ++s) {
      Fd fd = Open(path + ".tmp", O_WRONLY | O_CREAT | O_DIRECT);
      ASSERT_TRUE(fd.valid()) << ErrnoName(errno);
      for (size_t half = 0; half < 2; ++half) {
        const size_t at = s * kShardBytes + half * kShardBytes / 2;
        PwriteOnce(fd.get(), Buffer(std::string_view(block).substr(at, kShardBytes / 2)),
                   static_cast<off_t>(at));
      }
      EXPECT_EQ(CloseErrno(std::move(fd)), 0);
    }
    ASSERT_OK(::rename((path + ".tmp").c_str(), path.c_str()));
    for (size_t s = 0; s < kShards; ++s) {
      const Fd fd = Open(path, O_RDONLY | O_DIRECT);
      Buffer buffer(kShardBytes);
      PreadOnce(fd.get(), buffer, static_cast<off_t>(s * kShardBytes));
      EXPECT_SAME_BYTES(std::string_view(block).substr(s * kShardBytes, kShardBytes),
                        buffer.view());
    }
  }
}

// The probe every 10 s: write 4096, read it back from the same descriptor, unlink; buffered: fsync
// too. Any failure there turns the store off.
TEST_P(Ucm, Probe) {
  for (const int direct : {O_DIRECT, 0}) {
    Fd fd = Open(At("probe.tmp"), O_RDWR | O_CREAT | direct);
    ASSERT_TRUE(fd.valid()) << ErrnoName(errno);
    PwriteOnce(fd.get(), Buffer(Bytes(1, 4096)), 0);
    if (direct == 0) {
      EXPECT_OK(::fsync(fd.get()));
    }
    Buffer back(4096);
    PreadOnce(fd.get(), back, 0);
    EXPECT_SAME_BYTES(Bytes(1, 4096), back.view());
    EXPECT_EQ(CloseErrno(std::move(fd)), 0);
    ASSERT_OK(::unlink(At("probe.tmp").c_str()));
  }
}

// The collector: locks made with mkdir, a member file whose mtime is the heartbeat, a scan of all
// files with stat, unlink of the oldest; a stale lock directory is renamed away.
TEST_P(Ucm, Collector) {
  ASSERT_OK(::mkdir(At(".ucm_gc.cfglock").c_str(), 0755));
  EXPECT_ERRNO(EEXIST, ::mkdir(At(".ucm_gc.cfglock").c_str(), 0755));
  Fd config = Open(At(".ucm_gc.config.tmp.1"), O_WRONLY | O_CREAT | O_EXCL);
  PwriteOnce(config.get(), Buffer(Bytes(1, 300)), 0);
  EXPECT_OK(::fsync(config.get()));
  EXPECT_EQ(CloseErrno(std::move(config)), 0);
  ASSERT_OK(::rename(At(".ucm_gc.config.tmp.1").c_str(), At(".ucm_gc.config").c_str()));
  ASSERT_OK(::rmdir(At(".ucm_gc.cfglock").c_str()));
  Fd member = Open(At(".ucm_gc.member.7"), O_RDWR | O_CREAT);
  int64_t last = 0;
  for (int beat = 0; beat < 5; ++beat) {
    const std::array<struct timespec, 2> past{
        {{.tv_sec = 1000000000, .tv_nsec = 0}, {.tv_sec = 1000000000, .tv_nsec = 0}}};
    ASSERT_OK(::utimensat(AT_FDCWD, At(".ucm_gc.member.7").c_str(), past.data(), 0));
    EXPECT_EQ(StatOf(At(".ucm_gc.member.7")).st_mtim.tv_sec, 1000000000);
    ASSERT_OK(::utimensat(AT_FDCWD, At(".ucm_gc.member.7").c_str(), nullptr, 0));
    const struct stat attr = StatOf(At(".ucm_gc.member.7"));
    const int64_t now = attr.st_mtim.tv_sec * 1000000000 + attr.st_mtim.tv_nsec;
    EXPECT_GE(now, last) << "the filesystem's clock is the clock";
    last = now;
  }
  ASSERT_OK(::mkdir(At(".ucm_gc.lock").c_str(), 0755));
  ASSERT_EQ(WriteFile(At(".ucm_gc.lock/heartbeat"), "1"), 0);
  ASSERT_OK(::rename(At(".ucm_gc.lock").c_str(), At(".ucm_gc.lock.stale").c_str()));
  EXPECT_OK(::mkdir(At(".ucm_gc.lock").c_str(), 0755));
  EXPECT_EQ(ReadWhole(At(".ucm_gc.lock.stale/heartbeat")), "1");
  EXPECT_EQ(CloseErrno(std::move(member)), 0);
  EXPECT_OK(::unlink(At(".ucm_gc.member.7").c_str()));
}

// shfs: mkdir of the parent (ENOENT and each level for the first in a subtree), `K.tmp`, rename,
// stats; reads N + 1 bytes and gets N, then one and gets none.
TEST_P(AiBrix, Shfs) {
  for (uint64_t i = 0; i < 12; ++i) {
    const std::string folder = At(fmt::format("ns/{}/{}", i % 2, i % 4));
    const std::string name = fmt::format("{}/{:x}", folder, i);
    EXPECT_EQ(ErrnoName(StatErrno(name)), "ENOENT");
    MakeDirectories(folder);
    Fd fd = PythonOpen(name + ".tmp", O_WRONLY | O_CREAT | O_TRUNC);
    WriteOnce(fd.get(), Buffer(Bytes(i, kBlockBytes)));
    EXPECT_EQ(CloseErrno(std::move(fd)), 0);
    ASSERT_OK(::rename((name + ".tmp").c_str(), name.c_str()));
    EXPECT_EQ(StatOf(name).st_size, static_cast<off_t>(kBlockBytes));
    EXPECT_EQ(StatOf(name).st_size, static_cast<off_t>(kBlockBytes));
    const Fd reader = PythonOpen(name, O_RDONLY);
    EXPECT_EQ(::lseek(reader.get(), 0, SEEK_CUR), 0);
    const Buffer buffer(kBlockBytes + 1);
    EXPECT_EQ(::read(reader.get(), buffer.data(), kBlockBytes + 1),
              static_cast<ssize_t>(kBlockBytes));
    EXPECT_EQ(::read(reader.get(), buffer.data() + kBlockBytes, 1), 0);
    EXPECT_SAME_BYTES(Bytes(i, kBlockBytes), buffer.view().substr(0, kBlockBytes));
    StatErrno(name);
    EXPECT_OK(::unlink(name.c_str()));
  }
}

// Two writers share `K.tmp`; the loser gets ENOENT at its rename. In the end the name holds all of
// the block.
TEST_P(AiBrix, TwoWritersShareATemporaryName) {
  for (uint64_t i = 0; i < 16; ++i) {
    const std::string name = At(fmt::format("{:x}", i));
    std::vector<std::thread> writers;
    for (int w = 0; w < 3; ++w) {
      writers.emplace_back([&] {
        Fd fd = PythonOpen(name + ".tmp", O_WRONLY | O_CREAT | O_TRUNC);
        WriteOnce(fd.get(), Buffer(Bytes(i, kBlockBytes)));
        EXPECT_EQ(CloseErrno(std::move(fd)), 0);
        const int failed = ::rename((name + ".tmp").c_str(), name.c_str()) == 0 ? 0 : errno;
        EXPECT_TRUE(failed == 0 || failed == ENOENT) << ErrnoName(failed);
      });
    }
    for (std::thread& writer : writers) writer.join();
    ExpectFile(fmt::format("{:x}", i), Bytes(i, kBlockBytes));
  }
}

// The RocksDB backend: LOCK with fcntl, `.dbtmp` renamed to CURRENT, fsync of the directory, WAL
// appends with fdatasync, an SST of several MiB read at any offset, and unlinks.
TEST_P(AiBrix, RocksDb) {
  ASSERT_OK(::mkdir(At("db").c_str(), 0755));
  const Fd lock = Open(At("db/LOCK"), O_RDWR | O_CREAT);
  struct flock whole {};
  whole.l_type = F_WRLCK;
  whole.l_whence = SEEK_SET;
  ASSERT_OK(::fcntl(lock.get(), F_SETLK, &whole));
  ASSERT_EQ(WriteFile(At("db/000001.dbtmp"), "MANIFEST-000001\n"), 0);
  ASSERT_OK(::rename(At("db/000001.dbtmp").c_str(), At("db/CURRENT").c_str()));
  const Fd directory_fd = Open(At("db"), O_RDONLY | O_DIRECTORY);
  EXPECT_OK(::fsync(directory_fd.get()));
  Fd wal = Open(At("db/000002.log"), O_WRONLY | O_CREAT | O_TRUNC);
  uint64_t hint = RWH_WRITE_LIFE_SHORT;
  ::fcntl(wal.get(), F_SET_RW_HINT, &hint);  // may be refused: a hint
  ASSERT_OK(::fallocate(wal.get(), FALLOC_FL_KEEP_SIZE, 0, 1 << 20));
  std::string log;
  for (uint64_t i = 0; i < 50; ++i) {
    const std::string record = Bytes(i, 100 + i * 37);
    ASSERT_EQ(WriteAll(wal.get(), record), 0);
    log += record;
    if (i % 10 == 9) {
      EXPECT_OK(::fdatasync(wal.get()));
    }
  }
  ASSERT_OK(::ftruncate(wal.get(), static_cast<off_t>(log.size())));
  EXPECT_EQ(CloseErrno(std::move(wal)), 0);
  ExpectFile("db/000002.log", log);
  const std::string table = Bytes(77, 4 << 20);
  Fd sst = Open(At("db/000003.sst"), O_WRONLY | O_CREAT | O_TRUNC);
  ASSERT_EQ(WriteAll(sst.get(), table, 1 << 20), 0);
  EXPECT_OK(::fsync(sst.get()));
  EXPECT_EQ(CloseErrno(std::move(sst)), 0);
  const Fd reader = Open(At("db/000003.sst"), O_RDONLY);
  EXPECT_EQ(::posix_fadvise(reader.get(), 0, 0, POSIX_FADV_RANDOM), 0);
  EXPECT_OK(::readahead(reader.get(), 0, 1 << 20));
  for (size_t at = 17; at + 70000 < table.size(); at += 333333) {
    Buffer buffer(70000);
    PreadOnce(reader.get(), buffer, static_cast<off_t>(at));
    EXPECT_SAME_BYTES(std::string_view(table).substr(at, 70000), buffer.view());
  }
  EXPECT_OK(::unlink(At("db/000002.log").c_str()));
}

// Mooncake's file-per-key and llm-d: a temporary file through pwritev, replace, then stat; tail
// reads; touch with utimensat(UTIME_OMIT).
TEST_P(OtherStores, ReplaceThenStatAndTailReads) {
  constexpr size_t kPieces = 5, kPieceBytes = kBlockBytes / kPieces;
  for (uint64_t i = 0; i < 8; ++i) {
    const std::string block = Bytes(i, kBlockBytes), path = At(fmt::format("{:x}", i));
    std::vector<std::unique_ptr<Buffer>> pieces;
    std::vector<struct iovec> parts;
    for (size_t p = 0; p < kPieces; ++p) {
      pieces.push_back(std::make_unique<Buffer>(
          std::string_view(block).substr(p * kPieceBytes, kPieceBytes), 13));
      parts.push_back({.iov_base = pieces.back()->data(), .iov_len = kPieceBytes});
    }
    for (int round = 0; round < 2; ++round) {
      Fd fd = Open(path + ".part", O_WRONLY | O_CREAT | O_TRUNC);
      EXPECT_EQ(::pwritev(fd.get(), parts.data(), kPieces, 0), static_cast<ssize_t>(kBlockBytes));
      EXPECT_EQ(CloseErrno(std::move(fd)), 0);
      ASSERT_OK(::rename((path + ".part").c_str(), path.c_str()));
      EXPECT_EQ(StatOf(path).st_size, static_cast<off_t>(kBlockBytes));
    }
    const struct timespec written = StatOf(path).st_mtim;
    const std::array<struct timespec, 2> touch{
        {{.tv_sec = 0, .tv_nsec = UTIME_NOW}, {.tv_sec = 0, .tv_nsec = UTIME_OMIT}}};
    EXPECT_OK(::utimensat(AT_FDCWD, path.c_str(), touch.data(), 0));
    EXPECT_EQ(StatOf(path).st_mtim.tv_sec, written.tv_sec);
    EXPECT_EQ(StatOf(path).st_mtim.tv_nsec, written.tv_nsec);
    // The last KiB first (a footer), then the parts in front of it.
    const Fd reader = Open(path, O_RDONLY);
    Buffer tail(1024), front(kPieceBytes), middle(kPieceBytes);
    PreadOnce(reader.get(), tail, static_cast<off_t>(kBlockBytes - 1024));
    EXPECT_SAME_BYTES(std::string_view(block).substr(kBlockBytes - 1024), tail.view());
    const std::array<struct iovec, 2> into{{{.iov_base = front.data(), .iov_len = kPieceBytes},
                                            {.iov_base = middle.data(), .iov_len = kPieceBytes}}};
    EXPECT_EQ(::preadv(reader.get(), into.data(), 2, 0), static_cast<ssize_t>(2 * kPieceBytes));
    EXPECT_SAME_BYTES(std::string_view(block).substr(0, 2 * kPieceBytes),
                      std::string(front.view()) + std::string(middle.view()));
  }
}

}  // namespace
}  // namespace kvcfs::test
