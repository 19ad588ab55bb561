// Programs that make the file system calls of LMCache 0.5's backends (recorded with strace), in the
// same order, and check what they answer: on the disk, on tmpfs and on a mount.
#include <array>
#include <cstring>
#include <thread>

#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <sys/vfs.h>

#include "tests/integration/engine_fixture.h"

namespace kvcfs::test {
namespace {

class LmCache : public EngineTest {
 protected:
  static constexpr uint64_t kBlocks = 12;
};
KVC_ALL_PLACES(LmCache);

// All that start O_DIRECT ask statfs first: f_bsize decides, and fs-native aligns its buffers to
// it.
TEST_P(LmCache, StatfsDecidesAboutDirect) {
  struct statfs info {};
  ASSERT_OK(::statfs(directory().c_str(), &info));
  EXPECT_EQ(info.f_bsize, 4096);
  EXPECT_EQ(kBlockBytes % static_cast<size_t>(info.f_bsize), 0u);
}

// local-disk: one os.write to the final name; loads by open and one read.
TEST_P(LmCache, LocalDisk) {
  for (uint64_t i = 0; i < kBlocks; ++i) {
    const std::string path = At(fmt::format("model@1@0@{:x}.pt", i));
    Fd fd = PythonOpen(path, O_WRONLY | O_CREAT | O_TRUNC);
    WriteOnce(fd.get(), Buffer(Bytes(i, kBlockBytes)));
    EXPECT_EQ(CloseErrno(std::move(fd)), 0);
  }
  for (uint64_t i = 0; i < kBlocks; ++i) {
    const Fd fd = PythonOpen(At(fmt::format("model@1@0@{:x}.pt", i)), O_RDONLY);
    Buffer buffer(kBlockBytes);
    ReadOnce(fd.get(), buffer);
    EXPECT_SAME_BYTES(Bytes(i, kBlockBytes), buffer.view());
  }
  ASSERT_OK(::unlink(At("model@1@0@3.pt").c_str()));
  EXPECT_EQ(ErrnoName(StatErrno(At("model@1@0@3.pt"))), "ENOENT");
}

// local-disk-direct: final name, no TRUNC; the result of write() is dropped, so it must be whole.
TEST_P(LmCache, LocalDiskDirect) {
  for (uint64_t round = 0; round < 2; ++round) {  // the second writes over the first
    for (uint64_t i = 0; i < kBlocks; ++i) {
      Fd fd = Open(At(fmt::format("{:x}.pt", i)), O_WRONLY | O_CREAT | O_DIRECT, 0644);
      ASSERT_TRUE(fd.valid()) << ErrnoName(errno);
      WriteOnce(fd.get(), Buffer(Bytes(100 * round + i, kBlockBytes)));
      EXPECT_EQ(CloseErrno(std::move(fd)), 0);
    }
    for (uint64_t i = 0; i < kBlocks; ++i) {
      const Fd fd = Open(At(fmt::format("{:x}.pt", i)), O_RDONLY | O_DIRECT);
      struct stat attr {};
      ASSERT_OK(::fstat(fd.get(), &attr));
      ASSERT_EQ(attr.st_size, static_cast<off_t>(kBlockBytes));
      Buffer buffer(kBlockBytes);
      ReadOnce(fd.get(), buffer);
      EXPECT_SAME_BYTES(Bytes(100 * round + i, kBlockBytes), buffer.view());
    }
  }
}

// fs-connector: `K.tmp` with TRUNC, 28 bytes of metadata, the block behind them, close, rename;
// reads 4096 bytes, then the rest to an unaligned address.
TEST_P(LmCache, FsConnector) {
  for (uint64_t round = 0; round < 2; ++round) {  // a key that is there: all again
    for (uint64_t i = 0; i < kBlocks; ++i) {
      const std::string name = fmt::format("{:x}", i);
      EXPECT_EQ(ErrnoName(StatErrno(At(name + ".data"))), round == 0 ? "ENOENT" : "0");
      Fd fd = PythonOpen(At(name + ".tmp"), O_WRONLY | O_CREAT | O_TRUNC);
      WriteOnce(fd.get(), Buffer(std::string(28, 'm')));
      WriteOnce(fd.get(), Buffer(Bytes(100 * round + i, kBlockBytes)));
      EXPECT_EQ(CloseErrno(std::move(fd)), 0);
      ASSERT_OK(::rename(At(name + ".tmp").c_str(), At(name + ".data").c_str()));
    }
    for (uint64_t i = 0; i < kBlocks; ++i) {
      const Fd fd = PythonOpen(At(fmt::format("{:x}.data", i)), O_RDONLY);
      Buffer head(4096), rest(kBlockBytes + 28 - 4096, 4068);
      ReadOnce(fd.get(), head);
      ReadOnce(fd.get(), rest);
      const std::string want = std::string(28, 'm') + Bytes(100 * round + i, kBlockBytes);
      EXPECT_SAME_BYTES(want, std::string(head.view()) + std::string(rest.view()));
      char byte = 0;
      EXPECT_EQ(::read(fd.get(), &byte, 1), 0);
    }
    EXPECT_EQ(Names(directory()).size(), kBlocks) << "no .tmp is left";
  }
}

// fs-connector-direct, l2-fs-direct: `tmp/K.data` with DIRECT, rename across directories.
TEST_P(LmCache, DirectAcrossDirectories) {
  ASSERT_OK(::mkdir(At("tmp").c_str(), 0755));
  for (uint64_t i = 0; i < kBlocks; ++i) {
    const std::string name = fmt::format("{:x}.data", i);
    EXPECT_EQ(ErrnoName(StatErrno(At(name))), "ENOENT");
    Fd fd = Open(At("tmp/" + name), O_WRONLY | O_CREAT | O_DIRECT);
    ASSERT_TRUE(fd.valid()) << ErrnoName(errno);
    WriteOnce(fd.get(), Buffer(Bytes(i, kBlockBytes)));
    EXPECT_EQ(CloseErrno(std::move(fd)), 0);
    ASSERT_OK(::rename(At("tmp/" + name).c_str(), At(name).c_str()));
    const Fd reader = Open(At(name), O_RDONLY | O_DIRECT);
    struct stat attr {};
    ASSERT_OK(::fstat(reader.get(), &attr));
    EXPECT_EQ(attr.st_size, static_cast<off_t>(kBlockBytes));
    Buffer buffer(kBlockBytes);
    ReadOnce(reader.get(), buffer);
    EXPECT_SAME_BYTES(Bytes(i, kBlockBytes), buffer.view());
  }
  EXPECT_TRUE(Names(At("tmp")).empty());
}

// Unaligned O_DIRECT: ext4 refuses it, a mount accepts it (28 bytes, and addresses behind them).
TEST_P(LmCache, UnalignedDirect) {
  if (!on_mount()) GTEST_SKIP() << "EINVAL is right on a plain filesystem";
  Fd fd = Open(At("file"), O_RDWR | O_CREAT | O_DIRECT);
  WriteOnce(fd.get(), Buffer(std::string(28, 'm'), 5));
  WriteOnce(fd.get(), Buffer(Bytes(1, kBlockBytes), 28));
  EXPECT_EQ(CloseErrno(std::move(fd)), 0);
  const Fd reader = Open(At("file"), O_RDONLY | O_DIRECT);
  Buffer head(28, 3), rest(kBlockBytes, 777);
  ReadOnce(reader.get(), head);
  ReadOnce(reader.get(), rest);
  EXPECT_EQ(head.view(), std::string(28, 'm'));
  EXPECT_SAME_BYTES(Bytes(1, kBlockBytes), rest.view());
}

// fs-connector, l2-fs, l2-fs-native: two writers of a key use one temporary name. The loser's
// rename gets ENOENT; afterwards the final name holds all of the block, and whoever has it open
// goes on.
TEST_P(LmCache, TwoWritersOfOneTemporaryName) {
  constexpr uint64_t kRounds = 24;
  for (uint64_t i = 0; i < kRounds; ++i) {
    const std::string temporary = At(fmt::format("{:x}.tmp", i)), name = At(fmt::format("{:x}", i));
    std::array<int, 2> renamed{-1, -1};
    std::array<std::thread, 2> writers;
    for (size_t w = 0; w < 2; ++w) {
      writers[w] = std::thread([&, w] {
        Fd fd = Open(temporary, O_WRONLY | O_CREAT | O_TRUNC);
        ASSERT_TRUE(fd.valid()) << ErrnoName(errno);
        WriteOnce(fd.get(), Buffer(Bytes(i, kBlockBytes)));
        EXPECT_EQ(CloseErrno(std::move(fd)), 0);
        renamed[w] = ::rename(temporary.c_str(), name.c_str()) == 0 ? 0 : errno;
      });
    }
    for (std::thread& writer : writers) writer.join();
    EXPECT_TRUE(renamed[0] == 0 || renamed[1] == 0) << "one of them at least";
    for (const int result : renamed)
      EXPECT_TRUE(result == 0 || result == ENOENT) << ErrnoName(result);
    ExpectFile(fmt::format("{:x}", i), Bytes(i, kBlockBytes));
  }
  EXPECT_EQ(Names(directory()).size(), kRounds);
}

// The same, step by step: the second O_TRUNC empties the inode that the first one renames, and its
// write goes on in the file that has the final name by then.
TEST_P(LmCache, WritesGoOnAfterTheOthersRename) {
  const std::string block = Bytes(1, kBlockBytes);
  Fd first = Open(At("k.tmp"), O_WRONLY | O_CREAT | O_TRUNC);
  WriteOnce(first.get(), Buffer(block));
  Fd second = Open(At("k.tmp"), O_WRONLY | O_CREAT | O_TRUNC);
  ASSERT_TRUE(second.valid());
  EXPECT_EQ(CloseErrno(std::move(first)), 0);
  ASSERT_OK(::rename(At("k.tmp").c_str(), At("k").c_str()));
  EXPECT_EQ(StatOf(At("k")).st_size, 0);
  WriteOnce(second.get(), Buffer(block));
  ExpectFile("k", block);
  EXPECT_EQ(CloseErrno(std::move(second)), 0);
  EXPECT_ERRNO(ENOENT, ::rename(At("k.tmp").c_str(), At("k").c_str()));
  ExpectFile("k", block);
}

// gds-posix, as its POSIX fallback: a 4 KiB header, then ftruncate and a shared mapping, the
// descriptor closed before the copy, rename after the last munmap; then `.metadata` through an
// SQPOLL ring. Two levels of hash directories.
TEST_P(LmCache, GdsPosix) {
  for (uint64_t i = 0; i < kBlocks; ++i) {
    const std::string folder = At(fmt::format("{:02}/{:02}", i % 3, i % 5));
    StatErrno(folder);
    MakeDirectories(folder);
    const std::string name = fmt::format("{}/{:x}.kvcache.safetensors", folder, i);
    EXPECT_EQ(ErrnoName(StatErrno(name + ".metadata")), "ENOENT");
    const std::string temporary = name + ".tmp1234";
    Fd header = PythonOpen(temporary, O_WRONLY | O_CREAT | O_TRUNC);
    WriteOnce(header.get(), Buffer(std::string(4096, 'h')));
    EXPECT_EQ(CloseErrno(std::move(header)), 0);
    Fd fd = Open(temporary, O_RDWR);
    ASSERT_OK(::ftruncate(fd.get(), static_cast<off_t>(kBlockBytes + 4096)));
    struct stat attr {};
    ASSERT_OK(::fstat(fd.get(), &attr));
    ASSERT_EQ(attr.st_size, static_cast<off_t>(kBlockBytes + 4096));
    Fd copy(::dup(fd.get()));
    void* map = ::mmap(nullptr, kBlockBytes + 4096, PROT_WRITE, MAP_SHARED, copy.get(), 0);
    ASSERT_NE(map, MAP_FAILED) << ErrnoName(errno);
    EXPECT_EQ(CloseErrno(std::move(copy)), 0);
    const std::string block = Bytes(i, kBlockBytes);
    std::memcpy(static_cast<char*>(map) + 4096, block.data(), block.size());
    EXPECT_EQ(CloseErrno(std::move(fd)), 0) << "before munmap";
    // The last stores come after every descriptor is closed.
    std::memcpy(static_cast<char*>(map), std::string(28, 'H').data(), 28);
    ASSERT_OK(::munmap(map, kBlockBytes + 4096));
    ASSERT_OK(::rename(temporary.c_str(), name.c_str()));
    Uring ring(8, IORING_SETUP_SQPOLL);
    const Buffer metadata(Bytes(1000 + i, 4096));
    Fd meta = PythonOpen(name + ".metadata.tmp", O_WRONLY | O_CREAT | O_TRUNC);
    if (ring.valid()) {
      ring.Prepare(true, meta.get(), metadata.data(), 4096, 0);
      ring.SubmitAndWait();
    } else {
      WriteOnce(meta.get(), metadata);
    }
    EXPECT_EQ(CloseErrno(std::move(meta)), 0);
    ASSERT_OK(::rename((name + ".metadata.tmp").c_str(), (name + ".metadata").c_str()));
  }
  // Start: scandir of all levels, then every `.metadata` with O_NOATIME.
  size_t found = 0;
  for (const DirEntry& first : List(directory())) {
    ASSERT_EQ(first.type, DT_DIR) << first.name;
    for (const DirEntry& second : List(At(first.name))) {
      ASSERT_EQ(second.type, DT_DIR) << second.name;
      const std::string folder = At(first.name + "/" + second.name);
      for (const DirEntry& file : List(folder)) {
        ASSERT_EQ(file.type, DT_REG) << file.name;
        if (file.name.find(".metadata") == std::string::npos) continue;
        const Fd fd = Open(folder + "/" + file.name, O_RDONLY | O_NOATIME);
        ASSERT_TRUE(fd.valid()) << ErrnoName(errno);
        Buffer metadata(4096);
        ReadOnce(fd.get(), metadata);
        EXPECT_SAME_BYTES(Bytes(1000 + std::stoull(file.name, nullptr, 16), 4096), metadata.view());
        ++found;
      }
    }
  }
  EXPECT_EQ(found, kBlocks);
  for (uint64_t i = 0; i < kBlocks; ++i) {
    const Fd fd =
        Open(At(fmt::format("{:02}/{:02}/{:x}.kvcache.safetensors", i % 3, i % 5, i)), O_RDONLY);
    struct stat attr {};
    ASSERT_OK(::fstat(fd.get(), &attr));
    Fd copy(::dup(fd.get()));
    void* map =
        ::mmap(nullptr, kBlockBytes + 4096, PROT_READ, MAP_PRIVATE | MAP_POPULATE, copy.get(), 0);
    ASSERT_NE(map, MAP_FAILED) << ErrnoName(errno);
    EXPECT_EQ(CloseErrno(std::move(copy)), 0);
    const std::string want =
        std::string(28, 'H') + std::string(4096 - 28, 'h') + Bytes(i, kBlockBytes);
    EXPECT_SAME_BYTES(want, std::string_view(static_cast<char*>(map), kBlockBytes + 4096));
    ::munmap(map, kBlockBytes + 4096);
  }
}

// GDS with O_DIRECT at offset 4096, behind a header that was written buffered.
TEST_P(LmCache, DirectBehindAHeader) {
  Fd header = Open(At("file"), O_WRONLY | O_CREAT | O_TRUNC);
  WriteOnce(header.get(), Buffer(std::string(4096, 'h')));
  EXPECT_EQ(CloseErrno(std::move(header)), 0);
  Fd direct = Open(At("file"), O_RDWR | O_DIRECT);
  PwriteOnce(direct.get(), Buffer(Bytes(1, kBlockBytes)), 4096);
  EXPECT_EQ(CloseErrno(std::move(direct)), 0);
  const Fd reader = Open(At("file"), O_RDONLY | O_DIRECT);
  Buffer buffer(kBlockBytes);
  PreadOnce(reader.get(), buffer, 4096);
  EXPECT_SAME_BYTES(Bytes(1, kBlockBytes), buffer.view());
  ExpectFile("file", std::string(4096, 'h') + Bytes(1, kBlockBytes));
}

// nixl-dynamic, -direct and -uring: O_RDWR|O_CREAT at the final name without TRUNC, one request,
// close; a key that is there is rewritten in place.
TEST_P(LmCache, NixlDynamic) {
  for (const int direct : {0, O_DIRECT}) {
    for (const bool uring : {false, true}) {
      LinuxAio aio(16);
      Uring ring(16);
      const auto transfer = [&](bool write, int fd, const Buffer& buffer) {
        if (uring) {
          ring.Prepare(write, fd, buffer.data(), buffer.size(), 0);
          ring.SubmitAndWait();
        } else {
          aio.Prepare(write, fd, buffer.data(), buffer.size(), 0);
          aio.SubmitAndPoll();
        }
      };
      for (uint64_t round = 0; round < 2; ++round) {
        for (uint64_t i = 0; i < 4; ++i) {
          const std::string path = At(fmt::format("obj_{}_{}_{:x}.bin", direct, uring, i));
          EXPECT_EQ(ErrnoName(StatErrno(path)), round == 0 ? "ENOENT" : "0");
          Fd fd = Open(path, O_RDWR | O_CREAT | direct);
          ASSERT_TRUE(fd.valid()) << ErrnoName(errno);
          transfer(true, fd.get(), Buffer(Bytes(i, kBlockBytes)));
          EXPECT_EQ(CloseErrno(std::move(fd)), 0);
          const Fd reader = Open(path, O_RDONLY | direct);
          const Buffer buffer(kBlockBytes);
          transfer(false, reader.get(), buffer);
          EXPECT_SAME_BYTES(Bytes(i, kBlockBytes), buffer.view());
        }
      }
    }
  }
}

// l2-fs-native: C++ without Python's words, stat before each store.
TEST_P(LmCache, L2FsNative) {
  ASSERT_OK(::mkdir(At("tmp").c_str(), 0755));
  for (const bool direct : {false, true}) {
    for (uint64_t i = 0; i < kBlocks; ++i) {
      const std::string name = fmt::format("{}-{:x}.data", direct, i);
      EXPECT_EQ(ErrnoName(StatErrno(At(name))), "ENOENT");
      const std::string temporary = direct ? At("tmp/" + name) : At(name + ".tmp");
      Fd fd = Open(temporary, O_WRONLY | O_CREAT | O_TRUNC | (direct ? O_DIRECT : 0));
      ASSERT_TRUE(fd.valid()) << ErrnoName(errno);
      WriteOnce(fd.get(), Buffer(Bytes(i, kBlockBytes)));
      EXPECT_EQ(CloseErrno(std::move(fd)), 0);
      ASSERT_OK(::rename(temporary.c_str(), At(name).c_str()));
      const Fd reader = Open(At(name), O_RDONLY | (direct ? O_DIRECT : 0));
      Buffer buffer(kBlockBytes);
      ReadOnce(reader.get(), buffer);
      EXPECT_SAME_BYTES(Bytes(i, kBlockBytes), buffer.view());
    }
  }
}

// l2-nixl-dynamic: `K.bin.tmp.<uuid>` in 256 x 256 directories, AIO, rename; at its end it walks
// the tree and unlinks every `*.tmp.*`.
TEST_P(LmCache, L2NixlDynamic) {
  LinuxAio aio(8);
  for (uint64_t i = 0; i < kBlocks; ++i) {
    const std::string folder = At(fmt::format("{:02x}/{:02x}", i * 37 % 256, i * 91 % 256));
    MakeDirectories(folder);
    const std::string name = fmt::format("{}/{:x}.bin", folder, i);
    Fd fd = Open(name + ".tmp.uuid", O_WRONLY | O_CREAT | O_TRUNC | O_DIRECT);
    ASSERT_TRUE(fd.valid()) << ErrnoName(errno);
    const Buffer block(Bytes(i, kBlockBytes));
    aio.Prepare(true, fd.get(), block.data(), block.size(), 0);
    aio.SubmitAndPoll();
    EXPECT_EQ(CloseErrno(std::move(fd)), 0);
    if (i != 5) {
      ASSERT_OK(::rename((name + ".tmp.uuid").c_str(), name.c_str()));
    }
  }
  size_t files = 0, removed = 0;
  for (const DirEntry& first : List(directory())) {
    for (const DirEntry& second : List(At(first.name))) {
      const std::string folder = At(first.name + "/" + second.name);
      for (const DirEntry& file : List(folder)) {
        ++files;
        if (file.name.find(".tmp.") == std::string::npos) continue;
        ASSERT_OK(::unlink((folder + "/" + file.name).c_str()));
        ++removed;
      }
    }
  }
  EXPECT_EQ(files, kBlocks);
  EXPECT_EQ(removed, 1u);
  const Fd reader =
      Open(At(fmt::format("{:02x}/{:02x}/7.bin", 7 * 37 % 256, 7 * 91 % 256)), O_RDONLY | O_DIRECT);
  const Buffer buffer(kBlockBytes);
  aio.Prepare(false, reader.get(), buffer.data(), buffer.size(), 0);
  aio.SubmitAndPoll();
  EXPECT_SAME_BYTES(Bytes(7, kBlockBytes), buffer.view());
}

}  // namespace
}  // namespace kvcfs::test
