// X5: An error of the disk is counted, its segment retires, and what lies elsewhere is still read.
//
// The disk is a small FUSE filesystem of this test's own, a process that passes calls on to a
// directory and fails those below segments/ on request: no device mapper is needed.
#define FUSE_USE_VERSION 35
#include <atomic>
#include <csignal>
#include <cstring>

#include <fmt/format.h>
#include <fuse.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/wait.h>

#include "tests/integration/mount_fixture.h"

namespace kvcfs::test {
namespace {

constexpr size_t kBlockBytes = 256 << 10;

// Shared with the process that plays the disk.
struct Orders {
  std::atomic<bool> fail_reads, fail_writes, fail_syncs;
  std::atomic<uint64_t> failed;
};
Orders* orders = nullptr;
std::string backing;  // of the disk; set before it is forked

std::string Real(const char* path) {
  return backing + path;
}
bool Fails(const char* path, const std::atomic<bool>& order) {
  if (!order || std::strncmp(path, "/data/segments/", 15) != 0) return false;
  ++orders->failed;
  return true;
}
int Answer(int result) {
  return result < 0 ? -errno : 0;
}

int DiskGetattr(const char* path, struct stat* attr, struct fuse_file_info* /*info*/) {
  return Answer(::lstat(Real(path).c_str(), attr));
}
int DiskReaddir(const char* path, void* buffer, fuse_fill_dir_t fill, off_t /*offset*/,
                struct fuse_file_info* /*info*/, enum fuse_readdir_flags /*flags*/) {
  for (const DirEntry& entry : List(Real(path))) {
    fill(buffer, entry.name.c_str(), nullptr, 0, static_cast<enum fuse_fill_dir_flags>(0));
  }
  return 0;
}
int DiskOpen(const char* path, struct fuse_file_info* info) {
  const int fd = ::open(Real(path).c_str(), (info->flags & ~O_DIRECT) | O_CLOEXEC);
  if (fd < 0) return -errno;
  info->fh = static_cast<uint64_t>(fd);
  return 0;
}
int DiskCreate(const char* path, mode_t mode, struct fuse_file_info* info) {
  const int fd = ::open(Real(path).c_str(), (info->flags & ~O_DIRECT) | O_CLOEXEC | O_CREAT, mode);
  if (fd < 0) return -errno;
  info->fh = static_cast<uint64_t>(fd);
  return 0;
}
int DiskRead(const char* path, char* into, size_t bytes, off_t offset,
             struct fuse_file_info* info) {
  if (Fails(path, orders->fail_reads)) return -EIO;
  const ssize_t count = ::pread(static_cast<int>(info->fh), into, bytes, offset);
  return count < 0 ? -errno : static_cast<int>(count);
}
int DiskWrite(const char* path, const char* from, size_t bytes, off_t offset,
              struct fuse_file_info* info) {
  if (Fails(path, orders->fail_writes)) return -EIO;
  const ssize_t count = ::pwrite(static_cast<int>(info->fh), from, bytes, offset);
  return count < 0 ? -errno : static_cast<int>(count);
}
int DiskFsync(const char* path, int /*data_only*/, struct fuse_file_info* /*info*/) {
  return Fails(path, orders->fail_syncs) ? -EIO : 0;
}
int DiskFsyncDirectory(const char* /*path*/, int /*data_only*/, struct fuse_file_info* /*info*/) {
  return 0;
}
int DiskRelease(const char* /*path*/, struct fuse_file_info* info) {
  return Answer(::close(static_cast<int>(info->fh)));
}
int DiskTruncate(const char* path, off_t bytes, struct fuse_file_info* /*info*/) {
  return Answer(::truncate(Real(path).c_str(), bytes));
}
int DiskFallocate(const char* /*path*/, int mode, off_t offset, off_t bytes,
                  struct fuse_file_info* info) {
  return Answer(::fallocate(static_cast<int>(info->fh), mode, offset, bytes));
}
int DiskMkdir(const char* path, mode_t mode) {
  return Answer(::mkdir(Real(path).c_str(), mode));
}
int DiskUnlink(const char* path) {
  return Answer(::unlink(Real(path).c_str()));
}
int DiskRmdir(const char* path) {
  return Answer(::rmdir(Real(path).c_str()));
}
int DiskRename(const char* from, const char* to, unsigned flags) {
  return Answer(::renameat2(AT_FDCWD, Real(from).c_str(), AT_FDCWD, Real(to).c_str(), flags));
}
int DiskLink(const char* from, const char* to) {
  return Answer(::link(Real(from).c_str(), Real(to).c_str()));
}
int DiskChmod(const char* path, mode_t mode, struct fuse_file_info* /*info*/) {
  return Answer(::chmod(Real(path).c_str(), mode));
}
int DiskUtimens(const char* path, const struct timespec times[2], struct fuse_file_info* /*info*/) {
  return Answer(::utimensat(AT_FDCWD, Real(path).c_str(), times, AT_SYMLINK_NOFOLLOW));
}
int DiskStatfs(const char* path, struct statvfs* space) {
  return Answer(::statvfs(Real(path).c_str(), space));
}

class DiskError : public testing::TestWithParam<Mode> {
 protected:
  void SetUp() override {
    KVC_NEEDS_MOUNT();
    void* memory =
        ::mmap(nullptr, sizeof(Orders), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    ASSERT_NE(memory, MAP_FAILED);
    orders = new (memory) Orders();
    disk_ = scratch_.path() + "/disk";
    backing = scratch_.path() + "/backing";
    ASSERT_OK(::mkdir(disk_.c_str(), 0755));
    ASSERT_OK(::mkdir(backing.c_str(), 0755));
    ASSERT_OK(::mkdir((backing + "/data").c_str(), 0755));
    disk_process_ = ::fork();
    if (disk_process_ == 0) ::_exit(RunDisk());
    ASSERT_TRUE(Eventually([&] { return Exists(disk_ + "/data"); })) << "the disk does not answer";
    MountOptions options = OptionsFor(GetParam());
    options.dram = "32M";
    options.nvme = "512M";
    options.data_directory = disk_ + "/data";
    options.extra.insert(options.extra.end(),
                         {"--set", "fs.lease=0ms", "--set", "fs.lease_hold=0ms", "--set",
                          "fs.entry_timeout=0ms", "--set", "fs.attr_timeout=0ms", "--set",
                          "fs.prefetch_blocks=0", "--set", "iouring.segment_bytes=16MiB"});
    mount_ = std::make_unique<TestMount>(options);
    ASSERT_TRUE(mount_->Start()) << mount_->LogTail();
    ns_ = Namespace(*mount_, "ns", kBlockBytes);
  }
  void TearDown() override {
    mount_.reset();
    if (disk_process_ > 0) {
      ::umount2(disk_.c_str(), MNT_DETACH);
      ::kill(disk_process_, SIGTERM);
      ::waitpid(disk_process_, nullptr, 0);
    }
    if (orders != nullptr) ::munmap(std::exchange(orders, nullptr), sizeof(Orders));
  }
  int RunDisk() {
    struct fuse_operations calls {};
    calls.getattr = DiskGetattr;
    calls.readdir = DiskReaddir;
    calls.open = DiskOpen;
    calls.create = DiskCreate;
    calls.read = DiskRead;
    calls.write = DiskWrite;
    calls.fsync = DiskFsync;
    calls.fsyncdir = DiskFsyncDirectory;
    calls.release = DiskRelease;
    calls.truncate = DiskTruncate;
    calls.fallocate = DiskFallocate;
    calls.mkdir = DiskMkdir;
    calls.unlink = DiskUnlink;
    calls.rmdir = DiskRmdir;
    calls.rename = DiskRename;
    calls.link = DiskLink;
    calls.chmod = DiskChmod;
    calls.utimens = DiskUtimens;
    calls.statfs = DiskStatfs;
    std::vector<std::string> words{"disk", "-f", disk_};
    std::vector<char*> argv;
    argv.reserve(words.size());
    for (std::string& word : words) argv.push_back(word.data());
    return ::fuse_main(static_cast<int>(argv.size()), argv.data(), &calls, nullptr);
  }
  void Put(uint64_t count) {
    for (uint64_t i = 0; i < count; ++i, ++next_) {
      const int failed = ns_.Put("", Key(next_), Bytes(next_, kBlockBytes));
      EXPECT_TRUE(failed == 0 || failed == ENOSPC) << ErrnoName(failed);
    }
  }
  // One more, in a place that holds.
  bool PutDurably() {
    const uint64_t number = next_++;
    Fd fd = Open(ns_.Chain("") + "/" + Key(number), O_CREAT | O_WRONLY);
    if (!fd.valid() || WriteAll(fd.get(), Bytes(number, kBlockBytes)) != 0) return false;
    return ::fsync(fd.get()) == 0 && CloseErrno(std::move(fd)) == 0;
  }
  // How many can be read; those are exact, and no read fails in its middle.
  uint64_t Readable(const char* when) {
    uint64_t found = 0;
    for (uint64_t i = 0; i < next_; ++i) {
      const Fd fd = Open(ns_.ByKey(Key(i)), O_RDONLY);
      if (!fd.valid()) {
        EXPECT_EQ(ErrnoName(errno), "ENOENT") << when;
        continue;
      }
      const auto got = ReadRest(fd.get());
      EXPECT_TRUE(got) << when << " " << ErrnoName(errno);
      if (got) {
        EXPECT_EQ(Difference(Bytes(i, kBlockBytes), *got), "equal") << when;
      }
      ++found;
    }
    return found;
  }

  TemporaryDirectory scratch_;
  std::string disk_;
  pid_t disk_process_ = -1;
  std::unique_ptr<TestMount> mount_;
  Namespace ns_;
  uint64_t next_ = 0;
};
KVC_BOTH_MODES(DiskError);

// X5, reading: what is only on the failing disk is a miss at open; what is in DRAM is read.
TEST_P(DiskError, ReadsThatFailAreMisses) {
  Put(400);  // 100 MiB: most of it only on the disk
  ASSERT_EQ(Readable("healthy"), 400u);
  orders->fail_reads = true;
  const uint64_t while_failing = Readable("reads fail");
  EXPECT_GT(orders->failed.load(), 0u) << "no read was failed: nothing is shown";
  EXPECT_LT(while_failing, 400u);
  EXPECT_GT(while_failing, 0u) << "what is resident is read all the same";
  orders->fail_reads = false;
  Put(50);
  EXPECT_GE(Readable("healthy again"), 50u);
  EXPECT_TRUE(mount_->Answers());
}

// X5, writing: the segment retires, and what lies elsewhere is still read; later writes find
// another.
TEST_P(DiskError, WritesThatFailRetireTheSegment) {
  Put(100);
  orders->fail_writes = true;
  Put(40);
  EXPECT_TRUE(Eventually([] { return orders->failed.load() > 0; })) << "no write was failed";
  EXPECT_GT(Readable("writes fail"), 0u);
  orders->fail_writes = false;
  // The disk is asked again after a while; until then the DRAM tier alone is the cache.
  EXPECT_TRUE(Eventually([&] { return PutDurably(); })) << "no write reached the healthy disk";
  Put(200);
  EXPECT_GT(Readable("healthy again"), 150u) << "of " << next_;
  EXPECT_NE(mount_->Log().find(" ERROR "), std::string::npos) << "somebody must act: it is said";
}

// Nobody writes any more when the disk is well again: what waits for a segment still gets one.
TEST_P(DiskError, WhatWaitsForASegmentTriesAgainByItself) {
  orders->fail_writes = true;
  Put(40);
  EXPECT_TRUE(Eventually([] { return orders->failed.load() >= 8; })) << "no segment was tried";
  orders->fail_writes = false;
  EXPECT_TRUE(Eventually([&] {
    const auto metrics = ReadWhole(mount_->mount_point() + "/.kvcfs/metrics");
    return metrics && metrics->find("\nkvcfs_fs_dirty_bytes 0\n") != std::string::npos;
  })) << "dirty for ever";
}

// fsync says EIO where the disk did, or puts the block elsewhere; never success for what is lost.
TEST_P(DiskError, FsyncTellsTheTruth) {
  Put(20);
  orders->fail_syncs = true;
  std::vector<std::pair<uint64_t, bool>> acknowledged;
  for (int i = 0; i < 5; ++i) {
    const uint64_t number = next_++;
    Fd fd = Open(ns_.Chain("") + "/" + Key(number), O_CREAT | O_WRONLY);
    if (!fd.valid()) continue;
    ASSERT_EQ(WriteAll(fd.get(), Bytes(number, kBlockBytes)), 0);
    const bool synced = ::fsync(fd.get()) == 0;
    const bool closed = CloseErrno(std::move(fd)) == 0;
    EXPECT_FALSE(synced && closed && orders->failed.load() == 0) << "nobody asked the disk";
    EXPECT_FALSE(synced && closed) << "every fsync of the disk fails";
  }
  orders->fail_syncs = false;
  Put(20);
  EXPECT_GE(Readable("healthy again"), 40u);
}

}  // namespace
}  // namespace kvcfs::test
