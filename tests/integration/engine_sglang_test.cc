// Programs that make the file system calls of SGLang 0.5's backends and of NIXL 1.5 (recorded with
// strace), in the same order, and check what they answer: on the disk, on tmpfs and on a mount.
#include <algorithm>
#include <atomic>
#include <thread>

#include <fmt/format.h>
#include <sys/statvfs.h>
#include <sys/vfs.h>

#include "tests/integration/engine_fixture.h"

namespace kvcfs::test {
namespace {

class Sglang : public EngineTest {};
KVC_ALL_PLACES(Sglang);

// HiCacheFile, as numpy's tofile writes: the descriptor is duplicated, F_GETFL, lseeks, fallocate
// KEEP_SIZE where numpy has it, one write, close, lseeks on the duplicate, close, rename. Flat
// directory; a short read is an error.
TEST_P(Sglang, HiCacheFile) {
  constexpr uint64_t kBlocks = 16;
  for (uint64_t i = 0; i < kBlocks; ++i) {
    const std::string path = At(fmt::format("{:064x}_model_0_1.bin", i));
    EXPECT_EQ(ErrnoName(StatErrno(path)), "ENOENT");
    const std::string temporary = At(fmt::format(".{:032x}.tmp", i));
    Fd fd = PythonOpen(temporary, O_WRONLY | O_CREAT | O_TRUNC);
    Fd copy(::fcntl(fd.get(), F_DUPFD_CLOEXEC, 0));
    EXPECT_EQ(::fcntl(copy.get(), F_GETFL) & O_ACCMODE, O_WRONLY);
    EXPECT_EQ(::lseek(fd.get(), 0, SEEK_CUR), 0);
    EXPECT_EQ(::lseek(copy.get(), 0, SEEK_CUR), 0);
    EXPECT_EQ(::lseek(copy.get(), 0, SEEK_END), 0);
    EXPECT_EQ(::lseek(copy.get(), 0, SEEK_SET), 0);
    struct stat attr {};
    ASSERT_OK(::fstat(copy.get(), &attr));
    EXPECT_EQ(attr.st_size, 0);
    EXPECT_OK(::fallocate(copy.get(), FALLOC_FL_KEEP_SIZE, 0, static_cast<off_t>(kBlockBytes)));
    ASSERT_OK(::fstat(copy.get(), &attr));
    EXPECT_EQ(attr.st_size, 0) << "KEEP_SIZE";
    WriteOnce(copy.get(), Buffer(Bytes(i, kBlockBytes)));
    EXPECT_EQ(CloseErrno(std::move(copy)), 0);
    EXPECT_EQ(::lseek(fd.get(), 0, SEEK_CUR), static_cast<off_t>(kBlockBytes)) << "shared offset";
    EXPECT_EQ(::lseek(fd.get(), static_cast<off_t>(kBlockBytes), SEEK_SET),
              static_cast<off_t>(kBlockBytes));
    EXPECT_EQ(CloseErrno(std::move(fd)), 0);
    ASSERT_OK(::rename(temporary.c_str(), path.c_str()));
  }
  // v2 lists the whole directory per call, with a stat of each.
  const auto names = Names(directory());
  EXPECT_EQ(names.size(), kBlocks);
  for (const std::string& name : names) {
    EXPECT_EQ(StatOf(At(name)).st_size, static_cast<off_t>(kBlockBytes));
  }
  for (uint64_t i = 0; i < kBlocks; ++i) {
    const std::string path = At(fmt::format("{:064x}_model_0_1.bin", i));
    EXPECT_EQ(ErrnoName(StatErrno(path)), "0");
    const Fd fd = Open(path, O_RDONLY);
    struct stat attr {};
    ASSERT_OK(::fstat(fd.get(), &attr));
    Buffer buffer(kBlockBytes);
    ReadOnce(fd.get(), buffer);
    EXPECT_SAME_BYTES(Bytes(i, kBlockBytes), buffer.view());
  }
  // clear: listdir and unlink.
  for (const std::string& name : names) EXPECT_OK(::unlink(At(name).c_str()));
  EXPECT_TRUE(Names(directory()).empty());
}

// Start of the NIXL backend: 257 times stat of the parent and mkdir of `kv/xx`, as often at later
// starts with EEXIST.
TEST_P(Sglang, NixlMakesBuckets) {
  for (int start = 0; start < 2; ++start) {
    EXPECT_ERRNO(start == 0 ? 0 : EEXIST, ::mkdir(At("kv").c_str(), 0777));
    for (int i = 0; i < 256; ++i) {
      EXPECT_EQ(ErrnoName(StatErrno(At("kv"))), "0");
      EXPECT_ERRNO(start == 0 ? 0 : EEXIST, ::mkdir(At(fmt::format("kv/{:02x}", i)).c_str(), 0777));
    }
  }
  EXPECT_EQ(Names(At("kv")).size(), 256u);
}

// NIXL's POSIX plugin: 128 files open at once at their final names, one submission of all requests,
// polled; then the same for reading, and once more over the finished files.
TEST_P(Sglang, Nixl128FilesAtOnce) {
  constexpr uint64_t kFiles = 128;
  constexpr size_t kBytes = 128 << 10;
  for (const bool uring : {false, true}) {
    for (const int direct : {O_DIRECT, 0}) {
      LinuxAio aio(kFiles);
      Uring ring(kFiles);
      std::vector<std::unique_ptr<Buffer>> buffers;
      const auto run = [&](bool write) {
        std::vector<Fd> files;
        for (uint64_t i = 0; i < kFiles; ++i) {
          const std::string path = At(fmt::format("{}{}-{:03x}.bin", uring, direct, i));
          files.push_back(Open(path, write ? O_RDWR | O_CREAT | direct : O_RDONLY | direct));
          ASSERT_TRUE(files.back().valid()) << ErrnoName(errno);
        }
        for (uint64_t i = 0; i < kFiles; ++i) {
          if (uring) {
            ring.Prepare(write, files[i].get(), buffers[i]->data(), kBytes, 0);
          } else {
            aio.Prepare(write, files[i].get(), buffers[i]->data(), kBytes, 0);
          }
        }
        uring ? ring.SubmitAndWait() : aio.SubmitAndPoll();
        for (Fd& fd : files) EXPECT_EQ(CloseErrno(std::move(fd)), 0);
      };
      for (uint64_t i = 0; i < kFiles; ++i) {
        buffers.push_back(std::make_unique<Buffer>(Bytes(i, kBytes)));
      }
      for (int round = 0; round < 2; ++round) {
        run(true);
        for (auto& buffer : buffers) buffer->Clear();
        run(false);
        for (uint64_t i = 0; i < kFiles; ++i) {
          EXPECT_SAME_BYTES(Bytes(i, kBytes), buffers[i]->view());
        }
      }
    }
  }
}

// NIXL opens finished blocks RDWR without TRUNC and writes the same bytes over them, while others
// read: a reader sees the block, whole, all the time.
TEST_P(Sglang, NixlRewritesALiveFile) {
  const std::string block = Bytes(1, kBlockBytes);
  ASSERT_EQ(WriteFile(At("block"), block), 0);
  const ino_t ino = StatOf(At("block")).st_ino;
  std::atomic<bool> stop{false};
  std::thread writer([&] {
    LinuxAio aio(4);
    const Buffer buffer(block);
    while (!stop.load()) {
      Fd fd = Open(At("block"), O_RDWR | O_CREAT | O_DIRECT);
      EXPECT_TRUE(fd.valid()) << ErrnoName(errno);
      if (!fd.valid()) break;
      aio.Prepare(true, fd.get(), buffer.data(), buffer.size(), 0);
      aio.SubmitAndPoll();
      EXPECT_EQ(CloseErrno(std::move(fd)), 0);
    }
  });
  const Fd held = Open(At("block"), O_RDONLY);
  for (int round = 0; round < 200; ++round) {
    EXPECT_EQ(ErrnoName(StatErrno(At("block"))), "0");
    const Fd fd = Open(At("block"), O_RDONLY | (round % 2 == 0 ? O_DIRECT : 0));
    ASSERT_TRUE(fd.valid()) << ErrnoName(errno);
    Buffer buffer(kBlockBytes);
    ReadOnce(fd.get(), buffer);
    ASSERT_SAME_BYTES(block, buffer.view());
    PreadOnce(held.get(), buffer, 0);
    ASSERT_SAME_BYTES(block, buffer.view());
  }
  stop = true;
  writer.join();
  EXPECT_EQ(StatOf(At("block")).st_ino, ino) << "no second copy";
  ExpectFile("block", block);
}

// nixl-zerocopy: two files `_k`, `_v` of half the length, one submission of both.
TEST_P(Sglang, NixlZeroCopy) {
  LinuxAio aio(4);
  for (uint64_t i = 0; i < 8; ++i) {
    const Buffer block(Bytes(i, kBlockBytes)), back(kBlockBytes);
    for (const bool write : {true, false}) {
      std::vector<Fd> files;
      const Buffer& buffer = write ? block : back;
      for (const char* part : {"_k", "_v"}) {
        const std::string path = At(fmt::format("{:x}{}", i, part));
        if (write) {
          EXPECT_EQ(ErrnoName(StatErrno(path)), "ENOENT");
        }
        files.push_back(Open(path, write ? O_RDWR | O_CREAT | O_DIRECT : O_RDONLY | O_DIRECT));
        ASSERT_TRUE(files.back().valid());
      }
      aio.Prepare(write, files[0].get(), buffer.data(), kBlockBytes / 2, 0);
      aio.Prepare(write, files[1].get(), buffer.data() + kBlockBytes / 2, kBlockBytes / 2, 0);
      aio.SubmitAndPoll();
    }
    EXPECT_SAME_BYTES(block.view(), back.view());
  }
}

// hf3fs-mock: four big files of their full size, mode 0777, open all the time, written in place;
// its server's JSON is written to `.tmp` and renamed over itself again and again.
TEST_P(Sglang, Hf3fsMock) {
  constexpr size_t kSlots = 16;
  std::vector<Fd> files;
  for (int i = 0; i < 4; ++i) {
    files.push_back(Open(At(fmt::format("hf3fs-{}", i)), O_RDWR | O_CREAT, 0777));
    ASSERT_OK(::ftruncate(files.back().get(), static_cast<off_t>(kSlots * kBlockBytes)));
  }
  for (uint64_t round = 0; round < 2; ++round) {
    for (uint64_t slot = 0; slot < kSlots; ++slot) {
      const Fd& fd = files[slot % 4];
      PwriteOnce(fd.get(), Buffer(Bytes(round * 100 + slot, kBlockBytes)),
                 static_cast<off_t>(slot * kBlockBytes));
      const std::string json = fmt::format("{{\"slots\": {}}}", round * 100 + slot);
      ASSERT_EQ(WriteFile(At("state.json.tmp"), json), 0);
      ASSERT_OK(::rename(At("state.json.tmp").c_str(), At("state.json").c_str()));
      EXPECT_EQ(ReadWhole(At("state.json")), json);
    }
    for (uint64_t slot = 0; slot < kSlots; ++slot) {
      Buffer buffer(kBlockBytes);
      PreadOnce(files[slot % 4].get(), buffer, static_cast<off_t>(slot * kBlockBytes));
      EXPECT_SAME_BYTES(Bytes(round * 100 + slot, kBlockBytes), buffer.view());
    }
  }
  EXPECT_EQ(StatOf(At("hf3fs-0")).st_size, static_cast<off_t>(kSlots * kBlockBytes));
}

// The cleaner: statfs every so often; above 80 % scandir of all buckets, stat of all, unlink of the
// oldest in several threads until below 70 %. On a mount reclaimable files are free, so that it
// never begins; its calls must work all the same.
TEST_P(Sglang, NixlCleaner) {
  for (uint64_t i = 0; i < 48; ++i) {
    MakeDirectories(At(fmt::format("{:02x}", i % 8)));
    ASSERT_EQ(WriteFile(At(fmt::format("{:02x}/{:x}.bin", i % 8, i)), Bytes(i, 64 << 10)), 0);
  }
  struct statfs space {};
  ASSERT_OK(::statfs(directory().c_str(), &space));
  EXPECT_GT(space.f_blocks, 0u);
  std::vector<std::pair<int64_t, std::string>> found;
  for (const DirEntry& bucket : List(directory())) {
    for (const DirEntry& file : List(At(bucket.name))) {
      const std::string path = At(bucket.name + "/" + file.name);
      const struct stat attr = StatOf(path);
      found.emplace_back(attr.st_mtim.tv_sec * 1000000000 + attr.st_mtim.tv_nsec, path);
    }
  }
  ASSERT_EQ(found.size(), 48u);
  std::sort(found.begin(), found.end());
  std::vector<std::thread> threads;
  for (size_t t = 0; t < 8; ++t) {
    threads.emplace_back([&, t] {
      for (size_t i = t; i < 24; i += 8) EXPECT_OK(::unlink(found[i].second.c_str()));
    });
  }
  for (std::thread& thread : threads) thread.join();
  size_t left = 0;
  for (const DirEntry& bucket : List(directory())) left += List(At(bucket.name)).size();
  EXPECT_EQ(left, 24u);
}

}  // namespace
}  // namespace kvcfs::test
