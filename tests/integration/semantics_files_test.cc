// Promises F1-F9 and F12 of fs/SEMANTICS.md, through a real mount.
#include <algorithm>
#include <array>
#include <cstring>
#include <set>

#include <fmt/format.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <termios.h>

#include "tests/integration/mount_fixture.h"

namespace kvcfs::test {
namespace {

class Files : public MountTest {
 protected:
  std::string At(const std::string& name) { return ns().Files() + "/" + name; }
};
KVC_BOTH_MODES(Files);

// F1: On one host `files/` is an ordinary POSIX filesystem: names and bytes are seen at once, as on
// ext4.
TEST_P(Files, SeenAtOnce) {
  const Fd writer = Open(At("file"), O_CREAT | O_RDWR);
  ASSERT_TRUE(writer.valid());
  EXPECT_TRUE(Exists(At("file"))) << "from its creation on";
  ASSERT_EQ(WriteAll(writer.get(), "half"), 0);
  EXPECT_EQ(ReadWhole(At("file")), "half") << "before any close";
  EXPECT_EQ(InChild([&] { return ReadWhole(At("file")) == "half" ? 0 : 1; }), 0);
  const Fd reader = Open(At("file"), O_RDONLY);
  ASSERT_EQ(WriteAll(writer.get(), " and half"), 0);
  EXPECT_EQ(ReadRest(reader.get()), "half and half");
  EXPECT_EQ(StatOf(At("file")).st_size, 13);
  void* map = ::mmap(nullptr, 4096, PROT_READ, MAP_SHARED, reader.get(), 0);
  ASSERT_NE(map, MAP_FAILED);
  ASSERT_EQ(::pwrite(writer.get(), "HALF", 4, 0), 4);
  EXPECT_EQ(std::string_view(static_cast<char*>(map), 13), "HALF and half");
  ::munmap(map, 4096);
  ASSERT_OK(::rename(At("file").c_str(), At("other").c_str()));
  EXPECT_EQ(ErrnoName(StatErrno(At("file"))), "ENOENT");
  EXPECT_EQ(ReadWhole(At("other")), "HALF and half");
  ASSERT_OK(::unlink(At("other").c_str()));
  EXPECT_EQ(ErrnoName(StatErrno(At("other"))), "ENOENT");
}

// F2: Modes and owners are as created (umask applies).
TEST_P(Files, ModesAreAsCreated) {
  const mode_t mask = ::umask(027);
  Open(At("a"), O_CREAT | O_WRONLY, 0666);
  ASSERT_OK(::mkdir(At("d").c_str(), 0777));
  ::umask(0);
  Open(At("b"), O_CREAT | O_WRONLY, 0444);
  ASSERT_OK(::mkdir(At("e").c_str(), 01777));
  ::umask(mask);
  EXPECT_EQ(StatOf(At("a")).st_mode, S_IFREG | 0640u);
  EXPECT_EQ(StatOf(At("d")).st_mode, S_IFDIR | 0750u);
  EXPECT_EQ(StatOf(At("b")).st_mode, S_IFREG | 0444u);
  EXPECT_EQ(StatOf(At("e")).st_mode, S_IFDIR | 01777u);
  EXPECT_EQ(StatOf(At("a")).st_uid, ::getuid());
  ASSERT_EQ(WriteFile(At("a"), "content"), 0);
  EXPECT_EQ(StatOf(At("a")).st_mode, S_IFREG | 0640u) << "writing does not change it";
  ASSERT_OK(::chmod(At("a").c_str(), 0604));
  ASSERT_OK(::chown(At("a").c_str(), 1, 2));
  const struct stat attr = StatOf(At("a"));
  EXPECT_EQ(attr.st_mode, S_IFREG | 0604u);
  EXPECT_EQ(attr.st_uid, 1u);
  EXPECT_EQ(attr.st_gid, 2u);
  EXPECT_EQ(attr.st_nlink, 1u);
  // A set-group-id directory hands its group on.
  ASSERT_OK(::chown(At("d").c_str(), 0, 7));
  ASSERT_OK(::chmod(At("d").c_str(), 02755));
  ASSERT_OK(::mkdir(At("d/sub").c_str(), 0755));
  EXPECT_EQ(StatOf(At("d/sub")).st_gid, 7u);
  EXPECT_EQ(StatOf(At("d/sub")).st_mode & S_ISGID, static_cast<mode_t>(S_ISGID));
}

// F2: ... and are checked by the kernel.
TEST_P(Files, PermissionsAreChecked) {
  ASSERT_EQ(WriteFile(At("secret"), "x", O_CREAT, 0600), 0);
  ASSERT_OK(::mkdir(At("closed").c_str(), 0700));
  ASSERT_OK(::mkdir(At("open").c_str(), 0777));
  ASSERT_OK(::chmod(At("open").c_str(), 0777));
  ASSERT_EQ(ns().Put("", Key(1), "a block"), 0);
  const int status = InChild([&] {
    if (::setgid(65534) != 0 || ::setuid(65534) != 0) return 1;
    if (OpenErrno(At("secret"), O_RDONLY) != EACCES) return 2;
    if (OpenErrno(At("closed/x"), O_CREAT | O_WRONLY) != EACCES) return 3;
    if (WriteFile(At("open/mine"), "y") != 0) return 4;
    struct stat attr {};
    if (::stat(At("open/mine").c_str(), &attr) != 0 || attr.st_uid != 65534) return 5;
    if (::chown(At("open/mine").c_str(), 0, 0) == 0 || errno != EPERM) return 6;
    if (::unlink(At("secret").c_str()) == 0 || errno != EACCES) return 7;
    // Blocks are for everybody to read.
    if (ReadWhole(ns().ByKey(Key(1))) != "a block") return 8;
    if (::access(At("open/mine").c_str(), R_OK | W_OK) != 0) return 9;
    return 0;
  });
  EXPECT_EQ(status, 0) << "the step that went wrong";
}

// F3: Unaligned O_DIRECT is accepted; O_DIRECT and buffered descriptors of one file see the same
// bytes.
TEST_P(Files, UnalignedDirect) {
  const std::string bytes = Bytes(1, 100001);
  Fd direct = Open(At("file"), O_CREAT | O_RDWR | O_DIRECT);
  ASSERT_TRUE(direct.valid()) << ErrnoName(errno);
  ASSERT_EQ(::write(direct.get(), bytes.data() + 0, 28), 28);
  ASSERT_EQ(::pwrite(direct.get(), bytes.data() + 28, bytes.size() - 28, 28),
            static_cast<ssize_t>(bytes.size() - 28));
  const auto buffered = ReadWhole(At("file"));
  ASSERT_TRUE(buffered);
  EXPECT_SAME_BYTES(bytes, *buffered);
  const Fd both = Open(At("file"), O_RDWR);
  ASSERT_EQ(::pwrite(both.get(), "buffered", 8, 50001), 8);
  std::array<char, 9> seen{};
  ASSERT_EQ(::pread(direct.get(), seen.data(), 8, 50001), 8);
  EXPECT_STREQ(seen.data(), "buffered");
  ASSERT_EQ(::pwrite(direct.get(), "directly", 8, 70003), 8);
  ASSERT_EQ(::pread(both.get(), seen.data(), 8, 70003), 8);
  EXPECT_STREQ(seen.data(), "directly");
  EXPECT_EQ(::pread(direct.get(), seen.data(), 8, 100001), 0);
  EXPECT_EQ(::pread(direct.get(), seen.data(), 8, 99998), 3);
}

// F4: A file renamed, unlinked or replaced while open or mapped goes on for those who have it.
TEST_P(Files, OpenFilesOutliveTheirNames) {
  const std::string old_bytes = Bytes(1, 200000), new_bytes = Bytes(2, 150000);
  ASSERT_EQ(WriteFile(At("file"), old_bytes), 0);
  const Fd reader = Open(At("file"), O_RDONLY);
  void* map = ::mmap(nullptr, old_bytes.size(), PROT_READ, MAP_SHARED, reader.get(), 0);
  ASSERT_NE(map, MAP_FAILED);
  Fd writer = Open(At("temporary"), O_CREAT | O_RDWR);
  ASSERT_EQ(WriteAll(writer.get(), new_bytes.substr(0, 100000)), 0);
  ASSERT_OK(::rename(At("temporary").c_str(), At("file").c_str()));
  ASSERT_EQ(WriteAll(writer.get(), new_bytes.substr(100000)), 0) << "renamed while open";
  const auto now = ReadWhole(At("file"));
  ASSERT_TRUE(now);
  EXPECT_SAME_BYTES(new_bytes, *now);
  const auto old = ReadRest(reader.get());
  ASSERT_TRUE(old);
  EXPECT_SAME_BYTES(old_bytes, *old);
  const auto mapped = ReadMap(map, old_bytes.size());
  ASSERT_TRUE(mapped) << "the mapping lost its bytes";
  EXPECT_SAME_BYTES(old_bytes, *mapped);
  struct stat attr {};
  ASSERT_OK(::fstat(reader.get(), &attr));
  EXPECT_EQ(attr.st_nlink, 0u);
  ASSERT_OK(::unlink(At("file").c_str()));
  ASSERT_EQ(::pwrite(writer.get(), "gone", 4, 0), 4);
  std::array<char, 5> seen{};
  ASSERT_EQ(::pread(writer.get(), seen.data(), 4, 0), 4);
  EXPECT_STREQ(seen.data(), "gone");
  ASSERT_OK(::ftruncate(writer.get(), 10));
  ::munmap(map, old_bytes.size());
  EXPECT_TRUE(Names(ns().Files()).empty());
}

// F5: Rewriting in place works.
TEST_P(Files, RewritingInPlace) {
  std::string content = Bytes(1, 400000);
  ASSERT_EQ(WriteFile(At("file"), content), 0);
  const ino_t ino = StatOf(At("file")).st_ino;
  for (uint64_t round = 0; round < 10; ++round) {
    const std::string piece = Bytes(round + 10, 5000 + round * 1000);
    const size_t at = round * 37777;
    Fd fd = Open(At("file"), O_RDWR);
    ASSERT_EQ(::pwrite(fd.get(), piece.data(), piece.size(), static_cast<off_t>(at)),
              static_cast<ssize_t>(piece.size()));
    content.replace(at, piece.size(), piece);
    EXPECT_EQ(CloseErrno(std::move(fd)), 0);
    const auto got = ReadWhole(At("file"));
    ASSERT_TRUE(got);
    EXPECT_SAME_BYTES(content, *got);
  }
  EXPECT_EQ(StatOf(At("file")).st_ino, ino);
  ASSERT_EQ(WriteFile(At("file"), "short"), 0) << "O_TRUNC";
  EXPECT_EQ(ReadWhole(At("file")), "short");
  EXPECT_EQ(StatOf(At("file")).st_ino, ino);
}

// F6: utimensat (UTIME_NOW, UTIME_OMIT) and times to the nanosecond.
TEST_P(Files, Times) {
  ASSERT_EQ(WriteFile(At("file"), "x"), 0);
  const std::array<struct timespec, 2> times{
      {{.tv_sec = 1000000000, .tv_nsec = 123456789}, {.tv_sec = 1100000000, .tv_nsec = 987654321}}};
  ASSERT_OK(::utimensat(AT_FDCWD, At("file").c_str(), times.data(), 0));
  struct stat attr = StatOf(At("file"));
  EXPECT_EQ(attr.st_atim.tv_sec, 1000000000);
  EXPECT_EQ(attr.st_atim.tv_nsec, 123456789);
  EXPECT_EQ(attr.st_mtim.tv_sec, 1100000000);
  EXPECT_EQ(attr.st_mtim.tv_nsec, 987654321);
  const std::array<struct timespec, 2> touch{
      {{.tv_sec = 0, .tv_nsec = UTIME_NOW}, {.tv_sec = 0, .tv_nsec = UTIME_OMIT}}};
  ASSERT_OK(::utimensat(AT_FDCWD, At("file").c_str(), touch.data(), 0));
  attr = StatOf(At("file"));
  EXPECT_GT(attr.st_atim.tv_sec, 1500000000);
  EXPECT_EQ(attr.st_mtim.tv_sec, 1100000000) << "omitted";
  EXPECT_EQ(attr.st_mtim.tv_nsec, 987654321);
  ASSERT_OK(::utimensat(AT_FDCWD, At("file").c_str(), nullptr, 0));
  EXPECT_GT(StatOf(At("file")).st_mtim.tv_sec, 1500000000);
  // Writing moves mtime; making a name moves the directory's.
  ASSERT_OK(::utimensat(AT_FDCWD, At("file").c_str(), times.data(), 0));
  ASSERT_OK(::utimensat(AT_FDCWD, ns().Files().c_str(), times.data(), 0));
  ASSERT_EQ(WriteFile(At("file"), "y", 0), 0);
  EXPECT_GT(StatOf(At("file")).st_mtim.tv_sec, 1500000000);
  ASSERT_EQ(WriteFile(At("another"), ""), 0);
  EXPECT_GT(StatOf(ns().Files()).st_mtim.tv_sec, 1500000000);
}

// F7: Hard links, symlinks, FIFOs, sockets and xattrs.
TEST_P(Files, LinksAndSpecialFiles) {
  ASSERT_EQ(WriteFile(At("file"), "content"), 0);
  ASSERT_OK(::link(At("file").c_str(), At("hard").c_str()));
  EXPECT_EQ(StatOf(At("hard")).st_ino, StatOf(At("file")).st_ino);
  EXPECT_EQ(StatOf(At("hard")).st_nlink, 2u);
  ASSERT_OK(::unlink(At("file").c_str()));
  EXPECT_EQ(StatOf(At("hard")).st_nlink, 1u);
  EXPECT_EQ(ReadWhole(At("hard")), "content");
  ASSERT_OK(::symlink("hard", At("soft").c_str()));
  std::array<char, 16> target{};
  EXPECT_EQ(::readlink(At("soft").c_str(), target.data(), target.size()), 4);
  EXPECT_EQ(ReadWhole(At("soft")), "content");
  ASSERT_OK(::mkfifo(At("fifo").c_str(), 0644));
  EXPECT_TRUE(S_ISFIFO(StatOf(At("fifo")).st_mode));
  ASSERT_OK(::mknod(At("null").c_str(), S_IFCHR | 0666, 0x103));
  EXPECT_TRUE(S_ISCHR(StatOf(At("null")).st_mode));
  EXPECT_EQ(StatOf(At("null")).st_rdev, 0x103u);
  const Fd socket(::socket(AF_UNIX, SOCK_STREAM, 0));
  struct sockaddr_un address {};
  address.sun_family = AF_UNIX;
  // Through the directory's descriptor: a socket's path holds 107 bytes only.
  const Fd directory = Open(ns().Files(), O_RDONLY | O_DIRECTORY);
  const std::string path = fmt::format("/proc/self/fd/{}/socket", directory.get());
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  ASSERT_OK(::bind(socket.get(), reinterpret_cast<struct sockaddr*>(&address), sizeof address));
  EXPECT_TRUE(S_ISSOCK(StatOf(At("socket")).st_mode));
  ASSERT_OK(::mkdir(At("dir").c_str(), 0755));
  EXPECT_EQ(StatOf(At("dir")).st_nlink, 2u);
  ASSERT_OK(::mkdir(At("dir/sub").c_str(), 0755));
  EXPECT_EQ(StatOf(At("dir")).st_nlink, 3u);
  EXPECT_ERRNO(ENOTEMPTY, ::rmdir(At("dir").c_str()));
  EXPECT_ERRNO(EINVAL, ::rename(At("dir").c_str(), At("dir/sub/x").c_str()));
  EXPECT_ERRNO(EPERM, ::link(At("dir").c_str(), At("dir2").c_str()));
}

TEST_P(Files, Xattrs) {
  ASSERT_EQ(WriteFile(At("file"), "x"), 0);
  EXPECT_EQ(ErrnoName(SetXattrErrno(At("file"), "user.mine", "value")), "0");
  EXPECT_EQ(GetXattr(At("file"), "user.mine"), "value");
  EXPECT_ERRNO(EEXIST, ::setxattr(At("file").c_str(), "user.mine", "v", 1, XATTR_CREATE));
  EXPECT_ERRNO(ENODATA, ::setxattr(At("file").c_str(), "user.none", "v", 1, XATTR_REPLACE));
  const auto names = ListXattrs(At("file"));
  EXPECT_EQ(std::count(names.begin(), names.end(), "user.mine"), 1);
  ASSERT_OK(::rename(At("file").c_str(), At("moved").c_str()));
  EXPECT_EQ(GetXattr(At("moved"), "user.mine"), "value");
  EXPECT_OK(::removexattr(At("moved").c_str(), "user.mine"));
  EXPECT_EQ(GetXattr(At("moved"), "user.mine"), "ENODATA");
}

// F8: ioctl(TCGETS) is ENOTTY, as Python's open() expects.
TEST_P(Files, NoTerminal) {
  ASSERT_EQ(WriteFile(At("file"), "x"), 0);
  ASSERT_EQ(ns().Put("", Key(1), "block"), 0);
  struct termios settings {};
  for (const std::string& path : {At("file"), ns().ByKey(Key(1)), ns().MatchFile()}) {
    const Fd fd = Open(path, O_RDONLY);
    ASSERT_TRUE(fd.valid()) << path;
    EXPECT_ERRNO(ENOTTY, ::ioctl(fd.get(), TCGETS, &settings)) << path;
  }
}

// F9: flock and fcntl locks exclude each other's holders.
TEST_P(Files, Locks) {
  ASSERT_EQ(WriteFile(At("file"), "0123456789"), 0);
  const Fd mine = Open(At("file"), O_RDWR);
  ASSERT_OK(::flock(mine.get(), LOCK_EX | LOCK_NB));
  EXPECT_EQ(InChild([&] {
              const Fd theirs = Open(At("file"), O_RDWR);
              return ::flock(theirs.get(), LOCK_EX | LOCK_NB) < 0 && errno == EWOULDBLOCK ? 0 : 1;
            }),
            0);
  ASSERT_OK(::flock(mine.get(), LOCK_UN));
  struct flock range {};
  range.l_type = F_WRLCK;
  range.l_whence = SEEK_SET;
  range.l_start = 2;
  range.l_len = 3;
  ASSERT_OK(::fcntl(mine.get(), F_SETLK, &range));
  EXPECT_EQ(InChild([&] {
              const Fd theirs = Open(At("file"), O_RDWR);
              struct flock other = range;
              if (::fcntl(theirs.get(), F_SETLK, &other) == 0) return 1;
              other.l_start = 5;
              return ::fcntl(theirs.get(), F_SETLK, &other) == 0 ? 0 : 2;
            }),
            0);
}

// F12: 20,000 names in a directory can be removed while they are listed.
TEST_P(Files, RemovedWhileListed) {
  constexpr size_t kNames = 20000;
  ASSERT_OK(::mkdir(At("many").c_str(), 0755));
  const Fd directory = Open(At("many"), O_RDONLY | O_DIRECTORY);
  for (size_t i = 0; i < kNames; ++i) {
    const std::string name = fmt::format("n{:06}", i);
    const Fd fd(::openat(directory.get(), name.c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0644));
    ASSERT_TRUE(fd.valid()) << ErrnoName(errno);
  }
  const CommandResult rm = RunCommand({"rm", "-r", At("many")});
  EXPECT_EQ(rm.status, 0) << rm.err.substr(0, 500);
  EXPECT_FALSE(Exists(At("many")));
}

}  // namespace
}  // namespace kvcfs::test
