// Programs that keep blocks in the slots of one large preallocated file, as KVBM, FlexKV,
// TensorRT-LLM, nixl-static, raw-block and dax do: written in place, for the whole life of an
// engine.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <random>
#include <thread>

#include <fmt/format.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "tests/integration/engine_fixture.h"

namespace kvcfs::test {
namespace {

class Pool : public EngineTest {
 protected:
  static constexpr size_t kSlots = 80;
  static constexpr size_t kPoolBytes = kSlots * kBlockBytes;  // 50 MiB: above 1/8 of the DRAM tier
  static off_t OffsetOf(uint64_t slot) { return static_cast<off_t>(slot * kBlockBytes); }
};
KVC_ALL_PLACES(Pool);

// KVBM: mkostemp, fcntl(F_SETFL, O_DIRECT), fallocate, then NIXL on that one file.
TEST_P(Pool, Kvbm) {
  std::string name = At("kvbm-XXXXXX");
  Fd fd(::mkostemp(name.data(), O_CLOEXEC));
  ASSERT_TRUE(fd.valid()) << ErrnoName(errno);
  const int flags = ::fcntl(fd.get(), F_GETFL);
  ASSERT_OK(::fcntl(fd.get(), F_SETFL, flags | O_DIRECT));
  if (::fallocate(fd.get(), 0, 0, static_cast<off_t>(kPoolBytes)) != 0) {
    ASSERT_EQ(ErrnoName(errno), "EOPNOTSUPP");
    ASSERT_OK(::ftruncate(fd.get(), static_cast<off_t>(kPoolBytes)));
  }
  struct stat attr {};
  ASSERT_OK(::fstat(fd.get(), &attr));
  EXPECT_EQ(attr.st_size, static_cast<off_t>(kPoolBytes));
  LinuxAio aio(32);
  std::vector<uint64_t> version(kSlots, 0);
  std::mt19937_64 random(1);
  for (uint64_t round = 1; round <= 6; ++round) {
    std::vector<std::unique_ptr<Buffer>> buffers;
    for (int i = 0; i < 16; ++i) {
      const uint64_t slot = random() % kSlots;
      if (version[slot] / 1000 == round) continue;  // one write of a slot in flight
      version[slot] = round * 1000 + slot;
      buffers.push_back(std::make_unique<Buffer>(Bytes(version[slot], kBlockBytes)));
      aio.Prepare(true, fd.get(), buffers.back()->data(), kBlockBytes, OffsetOf(slot));
    }
    aio.SubmitAndPoll();
    for (uint64_t slot = 0; slot < kSlots; ++slot) {
      if (slot % 7 != round % 7 && version[slot] / 1000 != round) continue;
      Buffer buffer(kBlockBytes);
      PreadOnce(fd.get(), buffer, OffsetOf(slot));
      EXPECT_SAME_BYTES(
          version[slot] == 0 ? std::string(kBlockBytes, '\0') : Bytes(version[slot], kBlockBytes),
          buffer.view());
    }
  }
}

// FlexKV, TensorRT-LLM and nixl-static: several descriptors of one preallocated file, several
// threads, each with its own slots; io_uring.
TEST_P(Pool, SeveralDescriptors) {
  {
    const Fd fd = Open(At("pool"), O_RDWR | O_CREAT);
    ASSERT_OK(::ftruncate(fd.get(), static_cast<off_t>(kPoolBytes)));
  }
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      const Fd fd = Open(At("pool"), O_RDWR | (t % 2 == 0 ? O_DIRECT : 0));
      ASSERT_TRUE(fd.valid()) << ErrnoName(errno);
      Uring ring(8);
      for (uint64_t round = 0; round < 3; ++round) {
        for (uint64_t slot = t; slot < kSlots; slot += 4) {
          const Buffer block(Bytes(round * 1000 + slot, kBlockBytes)), back(kBlockBytes);
          ring.Prepare(true, fd.get(), block.data(), kBlockBytes, OffsetOf(slot));
          ring.SubmitAndWait();
          ring.Prepare(false, fd.get(), back.data(), kBlockBytes, OffsetOf(slot));
          ring.SubmitAndWait();
          EXPECT_SAME_BYTES(block.view(), back.view());
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  const Fd fd = Open(At("pool"), O_RDONLY | O_DIRECT);
  for (uint64_t slot = 0; slot < kSlots; ++slot) {
    Buffer buffer(kBlockBytes);
    PreadOnce(fd.get(), buffer, OffsetOf(slot));
    EXPECT_SAME_BYTES(Bytes(2000 + slot, kBlockBytes), buffer.view());
  }
}

// raw-block: ioctl(BLKGETSIZE64) = ENOTTY, fstat for the size, both checkpoints read; a store is
// two writes, 4 KiB and the block behind it.
TEST_P(Pool, RawBlock) {
  constexpr size_t kStride = kBlockBytes + 4096;
  {
    const Fd fd = Open(At("raw"), O_RDWR | O_CREAT);
    ASSERT_OK(::ftruncate(fd.get(), static_cast<off_t>(8192 + 40 * kStride)));
  }
  for (uint64_t start = 0; start < 2; ++start) {
    Fd fd = Open(At("raw"), O_RDWR | O_DIRECT);
    ASSERT_TRUE(fd.valid()) << ErrnoName(errno);
    uint64_t size = 0;
    EXPECT_ERRNO(ENOTTY, ::ioctl(fd.get(), BLKGETSIZE64, &size));
    struct stat attr {};
    ASSERT_OK(::fstat(fd.get(), &attr));
    EXPECT_EQ(attr.st_size, static_cast<off_t>(8192 + 40 * kStride));
    for (uint64_t checkpoint = 0; checkpoint < 2; ++checkpoint) {
      Buffer buffer(4096);
      PreadOnce(fd.get(), buffer, static_cast<off_t>(checkpoint * 4096));
      EXPECT_SAME_BYTES(start == 0 ? std::string(4096, '\0') : Bytes(900 + checkpoint, 4096),
                        buffer.view());
    }
    for (uint64_t slot = 0; slot < 40; ++slot) {
      const auto at = static_cast<off_t>(8192 + slot * kStride);
      if (start == 0) {
        PwriteOnce(fd.get(), Buffer(Bytes(500 + slot, 4096)), at);
        PwriteOnce(fd.get(), Buffer(Bytes(slot, kBlockBytes)), at + 4096);
      }
      Buffer buffer(kBlockBytes);
      PreadOnce(fd.get(), buffer, at + 4096);
      EXPECT_SAME_BYTES(Bytes(slot, kBlockBytes), buffer.view());
    }
    for (uint64_t checkpoint = 0; checkpoint < 2; ++checkpoint) {
      PwriteOnce(fd.get(), Buffer(Bytes(900 + checkpoint, 4096)),
                 static_cast<off_t>(checkpoint * 4096));
    }
    EXPECT_EQ(CloseErrno(std::move(fd)), 0);
  }
}

// dax: memcpy into and out of one shared mapping, by two processes.
TEST_P(Pool, Dax) {
  const Fd fd = Open(At("dax"), O_RDWR | O_CREAT);
  ASSERT_OK(::ftruncate(fd.get(), static_cast<off_t>(kPoolBytes)));
  void* map = ::mmap(nullptr, kPoolBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  ASSERT_NE(map, MAP_FAILED) << ErrnoName(errno);
  char* pool = static_cast<char*>(map);
  for (uint64_t slot = 0; slot < kSlots; slot += 2) {
    const std::string block = Bytes(slot, kBlockBytes);
    std::copy(block.begin(), block.end(), pool + slot * kBlockBytes);
  }
  EXPECT_EQ(InChild([&] {
              const Fd own = Open(At("dax"), O_RDWR);
              void* other =
                  ::mmap(nullptr, kPoolBytes, PROT_READ | PROT_WRITE, MAP_SHARED, own.get(), 0);
              if (other == MAP_FAILED) return 1;
              char* theirs = static_cast<char*>(other);
              for (uint64_t slot = 0; slot < kSlots; ++slot) {
                const std::string block = Bytes(slot, kBlockBytes);
                if (slot % 2 == 0) {
                  if (std::memcmp(theirs + slot * kBlockBytes, block.data(), block.size()) != 0) {
                    return 2;
                  }
                } else {
                  std::memcpy(theirs + slot * kBlockBytes, block.data(), block.size());
                }
              }
              return 0;
            }),
            0);
  for (uint64_t slot = 0; slot < kSlots; ++slot) {
    EXPECT_SAME_BYTES(Bytes(slot, kBlockBytes),
                      std::string_view(pool + slot * kBlockBytes, kBlockBytes));
  }
  EXPECT_OK(::msync(map, kPoolBytes, MS_SYNC));
  ASSERT_OK(::munmap(map, kPoolBytes));
  // What the mapping wrote is what read() finds.
  Buffer buffer(kBlockBytes);
  PreadOnce(fd.get(), buffer, OffsetOf(3));
  EXPECT_SAME_BYTES(Bytes(3, kBlockBytes), buffer.view());
}

// A file that grows from small to a pool while it is open, and shrinks again: its bytes move with
// it wherever it lives.
TEST_P(Pool, GrowsWhileOpen) {
  const Fd fd = Open(At("growing"), O_RDWR | O_CREAT);
  std::string want;
  for (uint64_t i = 0; i < kSlots; ++i) {
    PwriteOnce(fd.get(), Buffer(Bytes(i, kBlockBytes)), OffsetOf(i));
    if (i % 20 == 3) {
      Buffer buffer(kBlockBytes);
      PreadOnce(fd.get(), buffer, OffsetOf(i / 2));
      EXPECT_SAME_BYTES(Bytes(i / 2, kBlockBytes), buffer.view());
      const Fd other = Open(At("growing"), O_RDONLY);
      PreadOnce(other.get(), buffer, OffsetOf(i));
      EXPECT_SAME_BYTES(Bytes(i, kBlockBytes), buffer.view());
    }
  }
  ASSERT_OK(::ftruncate(fd.get(), static_cast<off_t>(kBlockBytes + 5)));
  ASSERT_OK(::ftruncate(fd.get(), static_cast<off_t>(kPoolBytes)));
  ASSERT_OK(::fallocate(fd.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 4096, 8192));
  std::string first = Bytes(0, kBlockBytes);
  first.replace(4096, 8192, 8192, '\0');
  Buffer buffer(kBlockBytes);
  PreadOnce(fd.get(), buffer, 0);
  EXPECT_SAME_BYTES(first, buffer.view());
  PreadOnce(fd.get(), buffer, OffsetOf(1));
  EXPECT_SAME_BYTES(Bytes(1, 5) + std::string(kBlockBytes - 5, '\0'), buffer.view());
  PreadOnce(fd.get(), buffer, OffsetOf(kSlots - 1));
  EXPECT_SAME_BYTES(std::string(kBlockBytes, '\0'), buffer.view());
}

}  // namespace
}  // namespace kvcfs::test
