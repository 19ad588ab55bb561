// Programs that make the file system calls of vLLM 0.33's file tiers (recorded with strace), in the
// same order, and check what they answer: on the disk, on tmpfs and on a mount.
#include <array>
#include <thread>

#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/uio.h>

#include "tests/integration/engine_fixture.h"

namespace kvcfs::test {
namespace {

class Vllm : public EngineTest {
 protected:
  static constexpr uint64_t kBlocks = 24;
  // _r0/<h3>/<h2>_g0/<hash>.bin: nearly every block of a young cache makes its own directories.
  std::string FolderOf(uint64_t i) {
    return At(fmt::format("model/_r0/{:03x}/{:02x}_g0", i * 977 % 4096, i * 53 % 256));
  }
  std::string PathOf(uint64_t i) { return fmt::format("{}/{:016x}.bin", FolderOf(i), i); }
};
KVC_ALL_PLACES(Vllm);

// Start of fs-tier: config.json, and the O_DIRECT probe. EINVAL there turns O_DIRECT off for good.
TEST_P(Vllm, Start) {
  ASSERT_OK(::mkdir(At("model").c_str(), 0777));
  EXPECT_EQ(ErrnoName(StatErrno(At("model/config.json"))), "ENOENT");
  Fd config = PythonOpen(At("model/config.json"), O_WRONLY | O_CREAT | O_TRUNC);
  WriteOnce(config.get(), Buffer(std::string("{\"block_size\": 16}\n")));
  EXPECT_EQ(CloseErrno(std::move(config)), 0);
  Fd probe = Open(At("model/.probe"), O_WRONLY | O_CREAT | O_TRUNC | O_DIRECT);
  ASSERT_TRUE(probe.valid()) << ErrnoName(errno);
  WriteOnce(probe.get(), Buffer(std::string(4096, 'p')));
  EXPECT_EQ(CloseErrno(std::move(probe)), 0);
  ASSERT_OK(::unlink(At("model/.probe").c_str()));
  ExpectFile("model/config.json", "{\"block_size\": 16}\n");
}

// fs-tier in C: access, stats up to four levels, mkdirs, O_EXCL temporary file, one write, rename;
// one read of the whole. A short write fails the job, a short read unlinks the file.
TEST_P(Vllm, FsTier) {
  for (uint64_t i = 0; i < kBlocks; ++i) {
    EXPECT_ERRNO(ENOENT, ::access(PathOf(i).c_str(), F_OK));
    MakeDirectories(FolderOf(i));
    const std::string temporary = fmt::format("{}_{:08x}.tmp", PathOf(i), i * 7919);
    Fd fd = Open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_TRUNC | O_DIRECT, 0644);
    ASSERT_TRUE(fd.valid()) << ErrnoName(errno);
    WriteOnce(fd.get(), Buffer(Bytes(i, kBlockBytes)));
    EXPECT_EQ(CloseErrno(std::move(fd)), 0);
    ASSERT_OK(::rename(temporary.c_str(), PathOf(i).c_str()));
    EXPECT_OK(::access(PathOf(i).c_str(), F_OK));
  }
  // Lookup: access per key in a loop, up to the first that is missing.
  uint64_t hits = 0;
  while (::access(PathOf(hits).c_str(), F_OK) == 0) ++hits;
  EXPECT_EQ(hits, kBlocks);
  for (uint64_t i = 0; i < kBlocks; ++i) {
    const Fd fd = Open(PathOf(i), O_RDONLY | O_DIRECT);
    Buffer buffer(kBlockBytes);
    ReadOnce(fd.get(), buffer);
    EXPECT_SAME_BYTES(Bytes(i, kBlockBytes), buffer.view());
  }
}

// fs-tier-python: stat for access, readv into the layers' buffers.
TEST_P(Vllm, FsTierPython) {
  for (uint64_t i = 0; i < kBlocks; ++i) {
    EXPECT_EQ(ErrnoName(StatErrno(PathOf(i))), "ENOENT");
    MakeDirectories(FolderOf(i));
    const std::string temporary = PathOf(i) + "_x.tmp";
    Fd fd = Open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_TRUNC | O_DIRECT);
    WriteOnce(fd.get(), Buffer(Bytes(i, kBlockBytes)));
    EXPECT_EQ(CloseErrno(std::move(fd)), 0);
    ASSERT_OK(::rename(temporary.c_str(), PathOf(i).c_str()));
    const Fd reader = Open(PathOf(i), O_RDONLY | O_DIRECT);
    const Buffer front(kBlockBytes / 2), back(kBlockBytes / 2);
    const std::array<struct iovec, 2> parts{{{.iov_base = front.data(), .iov_len = front.size()},
                                             {.iov_base = back.data(), .iov_len = back.size()}}};
    EXPECT_EQ(::readv(reader.get(), parts.data(), 2), static_cast<ssize_t>(kBlockBytes));
    EXPECT_SAME_BYTES(Bytes(i, kBlockBytes), std::string(front.view()) + std::string(back.view()));
  }
}

// Two processes make the same directories and the same blocks at once.
TEST_P(Vllm, MkdirRaces) {
  std::array<std::thread, 4> writers;
  for (size_t w = 0; w < writers.size(); ++w) {
    writers[w] = std::thread([&, w] {
      for (uint64_t i = 0; i < kBlocks; ++i) {
        MakeDirectories(FolderOf(i));
        const std::string temporary = fmt::format("{}_{}.tmp", PathOf(i), w);
        Fd fd = Open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_TRUNC | O_DIRECT);
        ASSERT_TRUE(fd.valid()) << ErrnoName(errno);
        WriteOnce(fd.get(), Buffer(Bytes(i, 64 << 10)));
        EXPECT_EQ(CloseErrno(std::move(fd)), 0);
        EXPECT_OK(::rename(temporary.c_str(), PathOf(i).c_str()));
      }
    });
  }
  for (std::thread& writer : writers) writer.join();
  for (uint64_t i = 0; i < kBlocks; ++i) {
    const auto got = ReadWhole(PathOf(i));
    ASSERT_TRUE(got) << i;
    EXPECT_SAME_BYTES(Bytes(i, 64 << 10), *got);
    EXPECT_EQ(Names(FolderOf(i)).size(), 1u);
  }
}

// example-connector, as safetensors saves: ftruncate first, two writes, renameat while the file is
// still open, then close. Loads through two mappings, one of them private and writable.
TEST_P(Vllm, ExampleConnector) {
  const std::string header = Bytes(99, 88), block = Bytes(1, kBlockBytes);
  for (uint64_t round = 0; round < 2; ++round) {
    EXPECT_EQ(ErrnoName(StatErrno(At("prompt"))), round == 0 ? "ENOENT" : "0");
    EXPECT_ERRNO(round == 0 ? 0 : EEXIST, ::mkdir(At("prompt").c_str(), 0777));
    Fd fd = Open(At("prompt/.tmpAbCdEf"), O_RDWR | O_CREAT | O_EXCL, 0600);
    ASSERT_TRUE(fd.valid());
    ASSERT_OK(::ftruncate(fd.get(), static_cast<off_t>(kBlockBytes + 88)));
    WriteOnce(fd.get(), Buffer(header));
    WriteOnce(fd.get(), Buffer(block));
    ASSERT_OK(::renameat(AT_FDCWD, At("prompt/.tmpAbCdEf").c_str(), AT_FDCWD,
                         At("prompt/layer.safetensors").c_str()));
    EXPECT_EQ(CloseErrno(std::move(fd)), 0);
    Fd one = Open(At("prompt/layer.safetensors"), O_RDONLY);
    struct stat attr {};
    ASSERT_OK(::fstat(one.get(), &attr));
    ASSERT_EQ(attr.st_size, static_cast<off_t>(kBlockBytes + 88));
    void* first = ::mmap(nullptr, kBlockBytes + 88, PROT_READ, MAP_PRIVATE, one.get(), 0);
    Fd two = Open(At("prompt/layer.safetensors"), O_RDONLY);
    ASSERT_OK(::fstat(two.get(), &attr));
    void* second =
        ::mmap(nullptr, kBlockBytes + 88, PROT_READ | PROT_WRITE, MAP_PRIVATE, two.get(), 0);
    ASSERT_NE(first, MAP_FAILED) << ErrnoName(errno);
    ASSERT_NE(second, MAP_FAILED) << ErrnoName(errno);
    EXPECT_EQ(::posix_fadvise(two.get(), 0, 0, POSIX_FADV_SEQUENTIAL), 0);
    EXPECT_EQ(CloseErrno(std::move(one)), 0);
    EXPECT_EQ(CloseErrno(std::move(two)), 0);
    static_cast<char*>(second)[5] = 'x';  // its own copy
    EXPECT_SAME_BYTES(header + block,
                      std::string_view(static_cast<char*>(first), kBlockBytes + 88));
    ::munmap(first, kBlockBytes + 88);
    ::munmap(second, kBlockBytes + 88);
    ExpectFile("prompt/layer.safetensors", header + block);
  }
}

// simple-disk: one preallocated O_DIRECT file, one buffer a layer through pwritev2 and preadv2;
// unlinked before it is closed.
TEST_P(Vllm, SimpleDisk) {
  constexpr size_t kSlots = 16, kLayers = 4, kLayerBytes = 64 << 10;
  ::unlink(At("pool").c_str());
  Fd fd = Open(At("pool"), O_RDWR | O_CREAT | O_EXCL | O_DIRECT | O_NOFOLLOW, 0600);
  ASSERT_TRUE(fd.valid()) << ErrnoName(errno);
  ASSERT_OK(::ftruncate(fd.get(), static_cast<off_t>(kSlots * kLayers * kLayerBytes)));
  for (uint64_t round = 0; round < 2; ++round) {
    for (uint64_t slot = 0; slot < kSlots; ++slot) {
      std::vector<std::unique_ptr<Buffer>> layers;
      std::vector<struct iovec> parts;
      for (uint64_t layer = 0; layer < kLayers; ++layer) {
        layers.push_back(
            std::make_unique<Buffer>(Bytes(round * 1000 + slot * 10 + layer, kLayerBytes)));
        parts.push_back({.iov_base = layers.back()->data(), .iov_len = kLayerBytes});
      }
      EXPECT_EQ(::pwritev2(fd.get(), parts.data(), kLayers,
                           static_cast<off_t>(slot * kLayers * kLayerBytes), 0),
                static_cast<ssize_t>(kLayers * kLayerBytes))
          << ErrnoName(errno);
    }
    for (uint64_t slot = kSlots; slot-- > 0;) {
      std::vector<std::unique_ptr<Buffer>> layers;
      std::vector<struct iovec> parts;
      for (uint64_t layer = 0; layer < kLayers; ++layer) {
        layers.push_back(std::make_unique<Buffer>(kLayerBytes));
        parts.push_back({.iov_base = layers.back()->data(), .iov_len = kLayerBytes});
      }
      EXPECT_EQ(::preadv2(fd.get(), parts.data(), kLayers,
                          static_cast<off_t>(slot * kLayers * kLayerBytes), 0),
                static_cast<ssize_t>(kLayers * kLayerBytes));
      for (uint64_t layer = 0; layer < kLayers; ++layer) {
        EXPECT_SAME_BYTES(Bytes(round * 1000 + slot * 10 + layer, kLayerBytes),
                          layers[layer]->view());
      }
    }
  }
  ASSERT_OK(::unlink(At("pool").c_str()));
  EXPECT_EQ(CloseErrno(std::move(fd)), 0);
}

}  // namespace
}  // namespace kvcfs::test
