// The two queues on a real directory: same requests, same answers.
#include "iouring/ring.h"

#include <cstring>
#include <filesystem>

#include <fcntl.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include "iouring/aligned_buffer.h"
#include "iouring/disk_directory.h"

namespace kvcfs::iouring {
namespace {

enum class Kind { kRing, kRegistered, kBlocking };

class RingTest : public testing::TestWithParam<Kind> {
 protected:
  RingTest() : memory_(1 << 20) {
    char path[] = "/var/tmp/kvcfs-ring-XXXXXX";
    EXPECT_NE(::mkdtemp(path), nullptr);
    path_ = path;
    auto directory = DiskDirectory::Open({.path = path_});
    EXPECT_TRUE(directory.ok());
    directory_ = std::move(*directory);
    IoQueueOptions options{.depth = 8, .registered = {}};
    if (GetParam() == Kind::kRegistered) {
      options.registered = memory_.span();
      options.registered_files = true;
    }
    if (GetParam() == Kind::kBlocking) {
      queue_ = MakeBlockingQueue(options);
    } else {
      auto ring = MakeRing(options);
      if (ring.ok()) {
        queue_ = std::move(*ring);
      } else {
        std::printf("skipped: no io_uring here: %s\n", ring.error().text.c_str());
      }
    }
  }
  ~RingTest() override {
    queue_.reset();
    std::filesystem::remove_all(path_);
  }
  void SetUp() override {
    if (!queue_) GTEST_SKIP() << "no io_uring";
  }

  int One(IoRequest request) {
    request.tag = 42;
    queue_->Push(request);
    std::vector<IoDone> done;
    queue_->Wait(1, done);
    EXPECT_EQ(done.size(), 1u);
    EXPECT_EQ(done[0].tag, 42u);
    return done[0].error;
  }

  std::string path_;
  AlignedBuffer memory_;
  std::unique_ptr<DiskDirectory> directory_;
  std::unique_ptr<IoQueue> queue_;
};

TEST_P(RingTest, WhatIsWrittenIsReadInTwoParts) {
  auto file = directory_->Create("a", 1 << 20);
  ASSERT_TRUE(file.ok());
  for (size_t i = 0; i < 65536; ++i) memory_.data()[i] = static_cast<std::byte>(i * 7 / 5);
  ASSERT_EQ(One({.op = IoRequest::Op::kWrite,
                 .registered = true,
                 .file = file->get(),
                 .offset = 8192,
                 .data = memory_.data(),
                 .bytes = 65536}),
            0);
  ASSERT_EQ(One({.op = IoRequest::Op::kSync, .file = file->get()}), 0);
  AlignedBuffer header(4096), rest(61440);
  ASSERT_EQ(One({.file = file->get(),
                 .offset = 8192,
                 .data = header.data(),
                 .bytes = 4096,
                 .then_data = rest.data(),
                 .then_bytes = 61440}),
            0);
  EXPECT_EQ(std::memcmp(header.data(), memory_.data(), 4096), 0);
  EXPECT_EQ(std::memcmp(rest.data(), memory_.data() + 4096, 61440), 0);
}

TEST_P(RingTest, AFileThatEndsBeforeSaysSo) {
  auto file = directory_->Create("a", 8192);
  ASSERT_TRUE(file.ok());
  const auto read = [&](uint64_t offset, uint64_t bytes) {
    return One({.file = file->get(), .offset = offset, .data = memory_.data(), .bytes = bytes});
  };
  EXPECT_EQ(read(4096, 4096), 0);
  EXPECT_EQ(read(4096, 8192), ENODATA);
  EXPECT_EQ(read(65536, 4096), ENODATA);
  std::filesystem::resize_file(path_ + "/a", 5000);
  EXPECT_EQ(read(4096, 4096), ENODATA);
}

TEST_P(RingTest, AnErrorIsOfItsRequestOnly) {
  auto file = directory_->Create("a", 8192);
  ASSERT_TRUE(file.ok());
  Fd read_only(::open((path_ + "/a").c_str(), O_RDONLY));
  DiskFile other(std::move(read_only), 8192);
  EXPECT_EQ(
      One({.op = IoRequest::Op::kWrite, .file = &other, .data = memory_.data(), .bytes = 4096}),
      EBADF);
  EXPECT_EQ(One({.op = IoRequest::Op::kWrite,
                 .file = file->get(),
                 .data = memory_.data(),
                 .bytes = 4096}),
            0);
}

TEST_P(RingTest, MoreFilesThanAreRegisteredStayApart) {
  // Each file gets its own number while requests to others are in flight.
  std::vector<std::unique_ptr<BlockFile>> files;
  for (int i = 0; i < 20; ++i) {
    auto file = directory_->Create("f" + std::to_string(i), 4096);
    ASSERT_TRUE(file.ok());
    files.push_back(std::move(*file));
  }
  std::vector<IoDone> done;
  for (size_t i = 0; i < files.size(); ++i) {
    while (queue_->room() == 0) queue_->Wait(1, done);
    std::memset(memory_.data() + i * 4096, static_cast<int>(i + 1), 4096);
    queue_->Push({.op = IoRequest::Op::kWrite,
                  .registered = true,
                  .file = files[i].get(),
                  .data = memory_.data() + i * 4096,
                  .bytes = 4096,
                  .tag = i});
  }
  while (queue_->in_flight() != 0) queue_->Wait(1, done);
  ASSERT_EQ(done.size(), files.size());
  for (const IoDone& one : done) EXPECT_EQ(one.error, 0);
  AlignedBuffer page(4096);
  for (size_t i = 0; i < files.size(); ++i) {
    ASSERT_EQ(One({.file = files[i].get(), .data = page.data(), .bytes = 4096}), 0);
    EXPECT_EQ(page.data()[4095], static_cast<std::byte>(i + 1));
  }
}

TEST_P(RingTest, HelpersSplitAndReport) {
  auto file = directory_->Create("a", 4 << 20);
  ASSERT_TRUE(file.ok());
  AlignedBuffer from(3 << 20), into(3 << 20);
  for (size_t i = 0; i < from.size(); ++i) from.data()[i] = static_cast<std::byte>(i / 4096);
  ASSERT_TRUE(WritePages(*queue_, **file, 4096, from.span()).ok());
  ASSERT_TRUE(SyncFile(*queue_, **file).ok());
  ASSERT_TRUE(ReadPages(*queue_, **file, 4096, into.span()).ok());
  EXPECT_EQ(std::memcmp(from.data(), into.data(), from.size()), 0);
  EXPECT_EQ(ReadPages(*queue_, **file, 2 << 20, into.span()).code(), Code::kCorrupt);
}

INSTANTIATE_TEST_SUITE_P(Queues, RingTest,
                         testing::Values(Kind::kRing, Kind::kRegistered, Kind::kBlocking));

TEST(DiskDirectoryTest, WhatDoesNotFitLeavesNothing) {
  char path[] = "/var/tmp/kvcfs-disk-XXXXXX";
  ASSERT_NE(::mkdtemp(path), nullptr);
  auto directory = DiskDirectory::Open({.path = std::string(path) + "/made/here"});
  ASSERT_TRUE(directory.ok());
  // Longer than any file may be: refused at once, without taking the disk from others first.
  const auto file = (*directory)->Create("huge", uint64_t{1} << 62);
  EXPECT_FALSE(file.ok());
  EXPECT_TRUE((*directory)->List()->empty());
  EXPECT_EQ((*directory)->OpenFile("absent").code(), Code::kNotFound);
  EXPECT_EQ(DiskDirectory::Open({.path = "/proc/nothing/here"}).ok(), false);
  std::filesystem::remove_all(path);
}

}  // namespace
}  // namespace kvcfs::iouring
