// files/ of two mounts of one cluster: names and versions that one host makes, on the other.
#include <thread>

#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/xattr.h>

#include "tests/integration/cluster_fixture.h"

namespace kvcfs::test {
namespace {

constexpr size_t kFileBytes = 300'000;  // not whole pages

class ClusterFilesTest : public ClusterTest {
 protected:
  void SetUp() override {
    ClusterTest::SetUp();
    if (IsSkipped() || HasFatalFailure()) return;
    TestMount& a = Mounted();
    TestMount& b = Mounted();
    here_ = Made(a, "files", 2).Files();
    there_ = Seen(b, "files").Files();
  }

  // RELEASE comes after close() has returned; what the other mount sees is waited for. It must come
  // by itself: nobody retries the writing.
  static bool ReadsAs(const std::string& path, const std::string& bytes) {
    return Eventually([&] { return ReadWhole(path) == bytes; }, kLong);
  }
  // "equal", or where it differs, or that it cannot be read.
  static std::string Compared(const std::string& path, const std::string& bytes) {
    const auto read = ReadWhole(path);
    return read ? Difference(bytes, *read) : ErrnoName(errno);
  }
  static bool IsGone(const std::string& path) { return StatErrno(path) == ENOENT; }

  std::string here_, there_;
};

TEST_F(ClusterFilesTest, WhatOneHostWritesTheOtherFindsListsAndReads) {
  const std::string bytes = Bytes(1, kFileBytes), large = Bytes(2, 9'000'001);
  // It was asked for before it was there.
  EXPECT_TRUE(IsGone(there_ + "/block"));
  EXPECT_EQ(ErrnoName(WriteFile(here_ + "/block", bytes)), "0");
  EXPECT_TRUE(ReadsAs(there_ + "/block", bytes));
  EXPECT_EQ(Names(there_), std::vector<std::string>{"block"});
  EXPECT_EQ(StatOf(there_ + "/block").st_size, static_cast<off_t>(kFileBytes));
  EXPECT_EQ(StatOf(there_ + "/block").st_mtime, StatOf(here_ + "/block").st_mtime);
  EXPECT_EQ(List(there_)[0].ino, StatOf(there_ + "/block").st_ino);
  EXPECT_EQ(List(there_)[0].type, DT_REG);

  // A temporary file that is renamed is there when rename() has returned.
  EXPECT_TRUE(IsGone(there_ + "/large"));
  EXPECT_EQ(ErrnoName(WriteFile(here_ + "/large.tmp", large)), "0");
  EXPECT_OK(::rename((here_ + "/large.tmp").c_str(), (here_ + "/large").c_str()));
  const auto read = ReadWhole(there_ + "/large");
  ASSERT_TRUE(read);
  EXPECT_SAME_BYTES(large, *read);
  EXPECT_TRUE(IsGone(there_ + "/large.tmp"));
  EXPECT_EQ(Names(there_), (std::vector<std::string>{"block", "large"}));

  // Nothing, and not yet.
  EXPECT_EQ(ErrnoName(WriteFile(here_ + "/empty", "")), "0");
  EXPECT_TRUE(Eventually([&] { return Exists(there_ + "/empty"); }, kLong));
  EXPECT_EQ(ReadWhole(there_ + "/empty"), "");
  Fd fd = Open(here_ + "/young", O_CREAT | O_EXCL | O_WRONLY);
  ASSERT_TRUE(fd.valid());
  EXPECT_EQ(WriteAll(fd.get(), bytes), 0);
  EXPECT_TRUE(Exists(here_ + "/young"));
  EXPECT_TRUE(IsGone(there_ + "/young"));
  EXPECT_EQ(CloseErrno(std::move(fd)), 0);
  EXPECT_TRUE(ReadsAs(there_ + "/young", bytes));
}

TEST_F(ClusterFilesTest, NamesAreOfAllHostsAtOnce) {
  EXPECT_TRUE(IsGone(there_ + "/a"));
  EXPECT_OK(::mkdir((here_ + "/a").c_str(), 0750));
  EXPECT_EQ(StatOf(there_ + "/a").st_mode, static_cast<mode_t>(S_IFDIR | 0750));
  EXPECT_ERRNO(EEXIST, ::mkdir((there_ + "/a").c_str(), 0755));
  EXPECT_OK(::mkdir((there_ + "/a/b").c_str(), 0755));
  EXPECT_EQ(StatOf(here_ + "/a").st_nlink, 3u);
  EXPECT_ERRNO(ENOTEMPTY, ::rmdir((here_ + "/a").c_str()));

  EXPECT_EQ(ErrnoName(WriteFile(here_ + "/a/b/file", "one")), "0");
  EXPECT_TRUE(ReadsAs(there_ + "/a/b/file", "one"));
  EXPECT_OK(::rename((there_ + "/a/b").c_str(), (there_ + "/c").c_str()));
  EXPECT_TRUE(IsGone(here_ + "/a/b/file"));
  EXPECT_EQ(ReadWhole(here_ + "/c/file"), "one");
  EXPECT_OK(::unlink((here_ + "/c/file").c_str()));
  EXPECT_TRUE(IsGone(there_ + "/c/file"));
  EXPECT_EQ(Names(there_ + "/c"), std::vector<std::string>{});
  EXPECT_OK(::rmdir((there_ + "/c").c_str()));
  EXPECT_TRUE(IsGone(here_ + "/c"));
  EXPECT_OK(::rmdir((here_ + "/a").c_str()));
  EXPECT_TRUE(IsGone(there_ + "/a"));

  EXPECT_OK(::symlink("target", (here_ + "/link").c_str()));
  char target[16] = {};
  EXPECT_EQ(::readlink((there_ + "/link").c_str(), target, sizeof target), 6);
  EXPECT_EQ(std::string(target), "target");
}

TEST_F(ClusterFilesTest, ANewVersionIsSeenAndWhoHasTheOldOneGoesOn) {
  const std::string old = Bytes(1, kFileBytes), young = Bytes(2, 200'000);
  ASSERT_EQ(WriteFile(here_ + "/file", old), 0);
  ASSERT_TRUE(ReadsAs(there_ + "/file", old));
  const Fd reader = Open(there_ + "/file", O_RDONLY);
  ASSERT_TRUE(reader.valid());
  ASSERT_EQ(WriteFile(here_ + "/file", young), 0);
  EXPECT_TRUE(ReadsAs(there_ + "/file", young));
  EXPECT_SAME_BYTES(old, *ReadRest(reader.get()));

  // In place, on the other host.
  Fd writer = Open(there_ + "/file", O_RDWR);
  ASSERT_TRUE(writer.valid());
  const Fd still = Open(here_ + "/file", O_RDONLY);
  ASSERT_EQ(::pwrite(writer.get(), "changed", 7, 1000), 7);
  std::string changed = young;
  changed.replace(1000, 7, "changed");
  EXPECT_EQ(Compared(there_ + "/file", changed), "equal");
  EXPECT_EQ(Compared(here_ + "/file", young), "equal");
  EXPECT_EQ(CloseErrno(std::move(writer)), 0);
  EXPECT_TRUE(ReadsAs(here_ + "/file", changed));
  EXPECT_SAME_BYTES(young, *ReadRest(still.get()));
  EXPECT_OK(::truncate((here_ + "/file").c_str(), 10));
  EXPECT_TRUE(ReadsAs(there_ + "/file", young.substr(0, 10)));

  // Removed there, and open here.
  const Fd last = Open(here_ + "/file", O_RDONLY);
  EXPECT_OK(::unlink((there_ + "/file").c_str()));
  EXPECT_TRUE(IsGone(here_ + "/file"));
  EXPECT_EQ(ReadRest(last.get()), young.substr(0, 10));
}

TEST_F(ClusterFilesTest, TwoHostsThatWriteOneTemporaryNameDoNotHarmEachOther) {
  const std::string one = Bytes(1, kFileBytes), other = Bytes(2, 200'000);
  const auto rename = [](const std::string& files, const std::string& name) {
    return ::rename((files + "/block.tmp").c_str(), (files + "/" + name).c_str());
  };
  // Each step of one host may come before or after any of the other.
  for (int order = 0; order < 3; ++order) {
    const std::string mine = fmt::format("mine-{}", order), yours = fmt::format("yours-{}", order);
    Fd first = Open(here_ + "/block.tmp", O_CREAT | O_TRUNC | O_WRONLY);
    Fd second;
    if (order == 0) second = Open(there_ + "/block.tmp", O_CREAT | O_TRUNC | O_WRONLY);
    EXPECT_EQ(WriteAll(first.get(), one), 0);
    EXPECT_EQ(CloseErrno(std::move(first)), 0);
    if (order > 0) {
      EXPECT_TRUE(Eventually([&] { return Exists(there_ + "/block.tmp"); }, kLong));
      second = Open(there_ + "/block.tmp", O_CREAT | O_TRUNC | O_WRONLY);
    }
    if (order == 1) {
      EXPECT_OK(rename(here_, mine));
    }
    EXPECT_EQ(WriteAll(second.get(), other), 0);
    EXPECT_EQ(CloseErrno(std::move(second)), 0);
    if (order == 2) {  // the other's has taken the name
      const auto size = static_cast<off_t>(other.size());
      EXPECT_TRUE(Eventually([&] { return StatOf(here_ + "/block.tmp").st_size == size; }, kLong));
    }
    if (order != 1) {
      EXPECT_OK(rename(here_, mine)) << order;
    }
    EXPECT_OK(rename(there_, yours)) << order;
    for (const std::string& files : {here_, there_}) {
      EXPECT_EQ(Compared(files + "/" + yours, other), "equal") << order;
      EXPECT_TRUE(ReadWhole(files + "/" + mine).has_value()) << order;
    }
    EXPECT_EQ(Compared(there_ + "/" + mine, one), "equal") << order;
  }
}

TEST_F(ClusterFilesTest, AttributesAreOfAllHosts) {
  ASSERT_EQ(WriteFile(here_ + "/file", "bytes"), 0);
  ASSERT_TRUE(ReadsAs(there_ + "/file", "bytes"));
  EXPECT_OK(::chmod((there_ + "/file").c_str(), 0600));
  EXPECT_EQ(StatOf(here_ + "/file").st_mode, static_cast<mode_t>(S_IFREG | 0600));
  EXPECT_EQ(ErrnoName(SetXattrErrno(here_ + "/file", "user.note", "hello")), "0");
  EXPECT_TRUE(Exists(there_ + "/file"));
  EXPECT_EQ(GetXattr(there_ + "/file", "user.note"), "hello");
  EXPECT_OK(::removexattr((there_ + "/file").c_str(), "user.note"));
  EXPECT_TRUE(Exists(here_ + "/file"));
  EXPECT_EQ(GetXattr(here_ + "/file", "user.note"), "ENODATA");
  const struct timespec times[2] = {{1'000'000, 5}, {2'000'000, 7}};
  EXPECT_OK(::utimensat(AT_FDCWD, (here_ + "/file").c_str(), times, 0));
  EXPECT_EQ(StatOf(there_ + "/file").st_mtim.tv_sec, 2'000'000);
  EXPECT_EQ(StatOf(there_ + "/file").st_mtim.tv_nsec, 7);

  EXPECT_OK(::link((there_ + "/file").c_str(), (there_ + "/other").c_str()));
  EXPECT_EQ(StatOf(here_ + "/file").st_nlink, 2u);
  EXPECT_EQ(StatOf(here_ + "/other").st_ino, StatOf(here_ + "/file").st_ino);
  ASSERT_EQ(WriteFile(here_ + "/other", "by the other name", O_TRUNC), 0);
  EXPECT_TRUE(ReadsAs(there_ + "/file", "by the other name"));
  EXPECT_OK(::unlink((here_ + "/file").c_str()));
  EXPECT_EQ(StatOf(there_ + "/other").st_nlink, 1u);
  EXPECT_EQ(ReadWhole(there_ + "/other"), "by the other name");
}

TEST_F(ClusterFilesTest, ManyFilesAreListedOnceEach) {
  constexpr int kFiles = 700;  // several pages
  for (int i = 0; i < kFiles; ++i) {
    ASSERT_EQ(
        WriteFile(fmt::format("{}/file-{:04}", i % 2 == 0 ? here_ : there_, i), std::to_string(i)),
        0);
  }
  for (const std::string& files : {here_, there_}) {
    EXPECT_TRUE(Eventually([&] { return Names(files).size() == kFiles; }, kLong));
    const std::vector<std::string> names = Names(files);
    ASSERT_EQ(names.size(), static_cast<size_t>(kFiles));
    for (int i = 0; i < kFiles; ++i) EXPECT_EQ(names[i], fmt::format("file-{:04}", i));
    EXPECT_EQ(ReadWhole(files + "/file-0123"), "123");
    EXPECT_EQ(ReadWhole(files + "/file-0456"), "456");
  }
  EXPECT_EQ(Shell("rm -r " + there_ + "/*").status, 0);
  EXPECT_EQ(Names(here_).size(), 0u);
}

TEST_F(ClusterFilesTest, AWorkerThatDiesForgetsNothing) {
  const std::string bytes = Bytes(7, kFileBytes);
  ASSERT_EQ(WriteFile(here_ + "/before", bytes), 0);
  ASSERT_TRUE(ReadsAs(there_ + "/before", bytes));
  ASSERT_TRUE(mounts_[1]->KillWorkers());
  ASSERT_TRUE(mounts_[1]->WaitUntilItAnswers());
  EXPECT_EQ(Compared(there_ + "/before", bytes), "equal");
  ASSERT_EQ(WriteFile(there_ + "/after", bytes), 0);
  EXPECT_TRUE(ReadsAs(here_ + "/after", bytes));
}

TEST_F(ClusterFilesTest, WithoutServersWhatIsHereIsUsed) {
  const std::string bytes = Bytes(5, kFileBytes);
  ASSERT_EQ(WriteFile(here_ + "/known", bytes), 0);
  ASSERT_TRUE(ReadsAs(there_ + "/known", bytes));
  for (const auto& server : servers_) server->Kill();
  for (const std::string& files : {here_, there_}) {
    EXPECT_EQ(Compared(files + "/known", bytes), "equal");
    const int error = StatErrno(files + "/unknown");
    EXPECT_TRUE(error == EHOSTUNREACH || error == ETIMEDOUT) << ErrnoName(error);
    EXPECT_NE(::mkdir((files + "/directory").c_str(), 0755), 0);
    EXPECT_TRUE(errno == EHOSTUNREACH || errno == ETIMEDOUT) << ErrnoName(errno);
  }
}

TEST_F(ClusterFilesTest, NamesOutliveTheirOwner) {
  const std::string bytes = Bytes(3, kFileBytes);
  for (int i = 0; i < 20; ++i) {
    ASSERT_EQ(WriteFile(fmt::format("{}/before-{}", here_, i), bytes), 0);
    ASSERT_TRUE(ReadsAs(fmt::format("{}/before-{}", there_, i), bytes));
  }
  // Whoever owns them is among those two: the third has a copy at most.
  for (int victim = 0; victim < 2; ++victim) {
    servers_[victim]->Kill();
    // What was acknowledged is there; a call may fail while another takes over.
    for (int i = 0; i < 20; ++i) {
      const std::string path = fmt::format("{}/before-{}", victim == 0 ? here_ : there_, i);
      EXPECT_TRUE(ReadsAs(path, bytes)) << path;
    }
    const std::string made = fmt::format("/made-{}", victim);
    EXPECT_TRUE(Eventually(
        [&] { return ::mkdir((here_ + made).c_str(), 0755) == 0 || errno == EEXIST; }, kLong));
    EXPECT_TRUE(Exists(there_ + made));
    ASSERT_TRUE(servers_[victim]->StartAndAwait()) << servers_[victim]->LogTail();
    EXPECT_TRUE(Eventually([&] { return Exists(there_ + made) && Exists(here_ + made); }, kLong));
    EXPECT_TRUE(ReadsAs(there_ + "/before-7", bytes));
  }
}

}  // namespace
}  // namespace kvcfs::test
