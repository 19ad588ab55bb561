// The calls of engines' file backends, on two mounts of one cluster: what one host's engine has put
// there, the other's finds and reads whole, in one call, as it would on one host.
#include <thread>

#include <fcntl.h>
#include <fmt/format.h>

#include "tests/integration/cluster_fixture.h"
#include "tests/integration/engine_fixture.h"

namespace kvcfs::test {
namespace {

constexpr size_t kFileBytes = 640 << 10;
constexpr uint64_t kFiles = 12;

class ClusterEnginesTest : public ClusterTest {
 protected:
  void SetUp() override {
    ClusterTest::SetUp();
    if (IsSkipped() || HasFatalFailure()) return;
    TestMount& a = Mounted();
    TestMount& b = Mounted();
    here_ = Made(a, "engines", 2).Files() + "/";
    there_ = Seen(b, "engines").Files() + "/";
  }
  // Opened and read in one call; nothing is short, and nothing is EIO.
  static void ExpectRead(const std::string& path, int flags, uint64_t seed) {
    const Fd fd = Open(path, O_RDONLY | flags);
    ASSERT_TRUE(fd.valid()) << path << ": " << ErrnoName(errno);
    Buffer buffer(kFileBytes);
    ReadOnce(fd.get(), buffer);
    EXPECT_SAME_BYTES(Bytes(seed, kFileBytes), buffer.view()) << path;
  }

  std::string here_, there_;
};

// vLLM's fs tier: access() of each key, makedirs, one O_DIRECT write to a temporary name, rename.
TEST_F(ClusterEnginesTest, Vllm) {
  const auto path = [](uint64_t i) {
    return fmt::format("{:03x}/{:02x}_g0/{:x}.bin", i % 3, i, i);
  };
  for (uint64_t i = 0; i < kFiles; ++i) {
    EXPECT_ERRNO(ENOENT, ::access((there_ + path(i)).c_str(), F_OK));
    const std::string name = here_ + path(i), temporary = name + ".tmp";
    MakeDirectories(name.substr(0, name.rfind('/')));
    Fd fd = Open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_TRUNC | O_DIRECT, 0644);
    ASSERT_TRUE(fd.valid()) << ErrnoName(errno);
    WriteOnce(fd.get(), Buffer(Bytes(i, kFileBytes)));
    EXPECT_EQ(CloseErrno(std::move(fd)), 0);
    EXPECT_OK(::rename(temporary.c_str(), name.c_str()));
    // At once, who was just told ENOENT too.
    EXPECT_OK(::access((there_ + path(i)).c_str(), F_OK));
    ExpectRead(there_ + path(i), O_DIRECT, i);
    EXPECT_ERRNO(ENOENT, ::access((there_ + path(i) + ".tmp").c_str(), F_OK));
  }
}

// SGLang's HiCacheFile: one flat directory; space is reserved, then replace; the other lists it.
TEST_F(ClusterEnginesTest, SglangHiCache) {
  std::vector<std::string> names;
  for (uint64_t i = 0; i < kFiles; ++i) {
    names.push_back(fmt::format("{:064x}_model_8_0.bin", i));
    const std::string name = here_ + names.back(), temporary = name + ".tmp";
    Fd fd = PythonOpen(temporary, O_WRONLY | O_CREAT | O_TRUNC);
    EXPECT_OK(::fallocate(fd.get(), FALLOC_FL_KEEP_SIZE, 0, kFileBytes));
    WriteOnce(fd.get(), Buffer(Bytes(100 + i, kFileBytes)));
    EXPECT_EQ(CloseErrno(std::move(fd)), 0);
    EXPECT_OK(::rename(temporary.c_str(), name.c_str()));
  }
  EXPECT_EQ(Names(there_), names);
  for (uint64_t i = 0; i < kFiles; ++i) {
    EXPECT_EQ(StatOf(there_ + names[i]).st_size, static_cast<off_t>(kFileBytes));
    ExpectRead(there_ + names[i], 0, 100 + i);
  }
  // It is cleared on one host.
  for (const std::string& name : names) EXPECT_OK(::unlink((there_ + name).c_str()));
  EXPECT_EQ(Names(here_), std::vector<std::string>());
}

// LMCache's local disk: written under its final name. Who looks meanwhile finds all of it, or
// nothing.
TEST_F(ClusterEnginesTest, LmCacheLocalDisk) {
  std::thread writer([&] {
    for (uint64_t i = 0; i < kFiles; ++i) {
      Fd fd = PythonOpen(here_ + fmt::format("model@1@0@{:x}.pt", i), O_WRONLY | O_CREAT | O_TRUNC);
      WriteOnce(fd.get(), Buffer(Bytes(200 + i, kFileBytes)));
      EXPECT_EQ(CloseErrno(std::move(fd)), 0);
    }
  });
  for (uint64_t i = 0; i < kFiles; ++i) {
    const std::string name = there_ + fmt::format("model@1@0@{:x}.pt", i);
    EXPECT_TRUE(Eventually([&] { return Exists(name); }, kLong)) << name;
    ExpectRead(name, 0, 200 + i);
  }
  writer.join();
}

// Both hosts have computed the same block, and store it under the same names at the same time.
TEST_F(ClusterEnginesTest, BothStoreTheSameBlocks) {
  const auto store = [](const std::string& files) {
    for (uint64_t i = 0; i < kFiles; ++i) {
      const std::string name = files + fmt::format("{:x}.safetensors", i);
      Fd fd = PythonOpen(name + ".tmp", O_WRONLY | O_CREAT | O_TRUNC);
      WriteOnce(fd.get(), Buffer(Bytes(300 + i, kFileBytes)));
      EXPECT_EQ(CloseErrno(std::move(fd)), 0);
      EXPECT_OK(::rename((name + ".tmp").c_str(), name.c_str()));
    }
  };
  std::thread other([&] { store(there_); });
  store(here_);
  other.join();
  for (uint64_t i = 0; i < kFiles; ++i) {
    const std::string name = fmt::format("{:x}.safetensors", i);
    ExpectRead(here_ + name, 0, 300 + i);
    ExpectRead(there_ + name, 0, 300 + i);
  }
  EXPECT_EQ(Names(here_), Names(there_));
  EXPECT_EQ(Names(here_).size(), kFiles);
}

}  // namespace
}  // namespace kvcfs::test
