// Promises A1-A7 of fs/SEMANTICS.md, through a real mount.
#include <algorithm>
#include <array>
#include <ctime>
#include <map>
#include <set>
#include <thread>

#include <sys/xattr.h>

#include "tests/integration/mount_fixture.h"

namespace kvcfs::test {
namespace {

class Attributes : public MountTest {};
KVC_BOTH_MODES(Attributes);

bool Before(const struct timespec& a, const struct timespec& b) {
  return a.tv_sec != b.tv_sec ? a.tv_sec < b.tv_sec : a.tv_nsec < b.tv_nsec;
}

struct timespec Now() {
  struct timespec now {};
  ::clock_gettime(CLOCK_REALTIME, &now);
  return now;
}

// A1: A block is a regular file of mode 0444 whose size is its length.
TEST_P(Attributes, ModeAndSize) {
  for (const size_t length : {size_t{1}, size_t{4096}, size_t{4097}, kBlockBytes}) {
    const std::string key = Key(length);
    ASSERT_EQ(ns().Put("", key, Bytes(1, length)), 0);
    const struct stat attr = StatOf(ns().ByKey(key));
    EXPECT_EQ(attr.st_mode, S_IFREG | 0444u);
    EXPECT_EQ(attr.st_size, static_cast<off_t>(length));
    EXPECT_GT(attr.st_blocks, 0);
  }
}

// A2: `st_nlink` of a block is at least 2, so that `du` and `tar` count a shared block once.
// A3: A block has one `st_ino`, the same under every name it has, and no other block has it.
TEST_P(Attributes, OneInodeUnderAllNames) {
  const auto keys = ns().PutChain("", 10, 4, 4096);
  ASSERT_EQ(ns().Put(keys[2], Key(90), "fork"), 0);
  const ino_t ino = StatOf(ns().ByKey(keys[1])).st_ino;
  EXPECT_NE(ino, 0u);
  for (const std::string& path :
       {ns().ByKey(keys[1]), ns().Entry(keys[1], 1, keys[1]), ns().Entry(keys[3], 1, keys[1]),
        ns().Entry(Key(90), 1, keys[1]), ns().Chain(keys[0]) + "/" + keys[1]}) {
    const struct stat attr = StatOf(path);
    EXPECT_EQ(attr.st_ino, ino) << path;
    EXPECT_GE(attr.st_nlink, 2u) << path;
    EXPECT_EQ(attr.st_dev, StatOf(ns().Files()).st_dev);
  }
  std::set<ino_t> different;
  for (const std::string& key : keys) {
    different.insert(StatOf(ns().ByKey(key)).st_ino);
    different.insert(StatOf(ns().Chain(key)).st_ino);
  }
  EXPECT_EQ(different.size(), 8u) << "blocks and chain directories are inodes of their own";
}

// A3: `d_ino` is filled with it and `d_type` with the type, in every directory.
TEST_P(Attributes, DirectoryEntriesSayInodeAndType) {
  const auto keys = ns().PutChain("", 20, 3, 4096);
  ASSERT_OK(::mkdir((ns().Files() + "/sub").c_str(), 0755));
  ASSERT_EQ(WriteFile(ns().Files() + "/file", "x"), 0);
  ASSERT_OK(::symlink("file", (ns().Files() + "/soft").c_str()));
  const std::map<mode_t, unsigned char> types{
      {S_IFREG, DT_REG}, {S_IFDIR, DT_DIR}, {S_IFLNK, DT_LNK}};
  for (const std::string& directory :
       {mount().mount_point(), mount().mount_point() + "/.kvcfs", ns().path(),
        ns().path() + "/by-key", ns().Chain(keys.back()), ns().Files()}) {
    const auto entries = List(directory);
    EXPECT_FALSE(entries.empty()) << directory;
    for (const DirEntry& entry : entries) {
      const struct stat attr = StatOf(directory + "/" + entry.name);
      EXPECT_EQ(entry.ino, attr.st_ino) << directory << "/" << entry.name;
      EXPECT_EQ(entry.type, types.at(attr.st_mode & S_IFMT)) << directory << "/" << entry.name;
    }
  }
}

// A4: mtime is the time of publication and never changes. atime is the last use.
TEST_P(Attributes, Times) {
  const struct timespec before = Now();
  ASSERT_EQ(ns().Put("", Key(1), Bytes(1, 4096)), 0);
  const struct stat made = StatOf(ns().ByKey(Key(1)));
  const struct timespec after = Now();
  // The kernel's coarse clock may be a tick behind: one second of room on either side says enough.
  EXPECT_GE(made.st_mtim.tv_sec, before.tv_sec - 1);
  EXPECT_LE(made.st_mtim.tv_sec, after.tv_sec + 1);
  struct timespec earlier = made.st_atim;
  // Use it until atime has moved on: a use within the same tick may not show.
  EXPECT_TRUE(Eventually([&] {
    EXPECT_TRUE(ns().Read(Key(1)));
    return Before(earlier, StatOf(ns().ByKey(Key(1))).st_atim);
  })) << "reading does not move atime";
  const struct stat used = StatOf(ns().ByKey(Key(1)));
  EXPECT_EQ(used.st_mtim.tv_sec, made.st_mtim.tv_sec);
  EXPECT_EQ(used.st_mtim.tv_nsec, made.st_mtim.tv_nsec);
}

// A5: A block has the xattrs `user.kvc.key`, `parent` (empty for a first block), `ordinal`, `tier`,
// `bytes`, `hits`, `lease_ms`, `crc32c`, all decimal or hex text, all listed, none to be changed.
TEST_P(Attributes, BlockXattrs) {
  ASSERT_EQ(ns().Put("", Key(1), "123456789"), 0);
  ASSERT_EQ(ns().Put(Key(1), Key(2), "abc"), 0);
  const std::string first = ns().Entry(Key(2), 0, Key(1)), second = ns().ByKey(Key(2));
  EXPECT_EQ(GetXattr(first, "user.kvc.key"), Key(1));
  EXPECT_EQ(GetXattr(first, "user.kvc.parent"), "");
  EXPECT_EQ(GetXattr(first, "user.kvc.ordinal"), "0");
  EXPECT_EQ(GetXattr(first, "user.kvc.bytes"), "9");
  EXPECT_EQ(GetXattr(first, "user.kvc.tier"), "dram");
  EXPECT_EQ(GetXattr(second, "user.kvc.key"), Key(2));
  EXPECT_EQ(GetXattr(second, "user.kvc.parent"), Key(1));
  EXPECT_EQ(GetXattr(second, "user.kvc.ordinal"), "1");
  EXPECT_EQ(GetXattr(second, "user.kvc.bytes"), "3");
  // CRC32C of "123456789" is the check value of the polynomial's catalogue entry: e3069283.
  const std::string crc = GetXattr(first, "user.kvc.crc32c");
  EXPECT_TRUE(crc == "3808858755" || crc == "e3069283" || crc == "0xe3069283") << crc;
  EXPECT_TRUE(ns().Read(Key(1)));
  const std::string hits = GetXattr(first, "user.kvc.hits");
  EXPECT_EQ(hits.find_first_not_of("0123456789"), std::string::npos) << hits;
  const std::string lease = GetXattr(first, "user.kvc.lease_ms");
  ASSERT_EQ(lease.find_first_not_of("0123456789"), std::string::npos) << lease;
  EXPECT_GT(std::stoll(lease), 0) << "the stat before has leased it";
  auto names = ListXattrs(first);
  std::sort(names.begin(), names.end());
  EXPECT_EQ(names,
            (std::vector<std::string>{"user.kvc.bytes", "user.kvc.crc32c", "user.kvc.hits",
                                      "user.kvc.key", "user.kvc.lease_ms", "user.kvc.ordinal",
                                      "user.kvc.parent", "user.kvc.tier"}));
  for (const std::string& name : names) {
    const std::string value = GetXattr(first, name);
    EXPECT_EQ(value.rfind('E', 0), std::string::npos) << name << " " << value;
  }
  EXPECT_EQ(GetXattr(first, "user.kvc.other"), "ENODATA");
  EXPECT_EQ(GetXattr(first, "user.other"), "ENODATA");
  // A buffer that is too small, and the question for the size.
  std::array<char, 8> small{};
  EXPECT_ERRNO(ERANGE, ::getxattr(first.c_str(), "user.kvc.key", small.data(), small.size()));
  EXPECT_EQ(::getxattr(first.c_str(), "user.kvc.key", nullptr, 0), 64);
}

// A5: ... none to be changed.
TEST_P(Attributes, BlockXattrsAreReadOnly) {
  ASSERT_EQ(ns().Put("", Key(1), "bytes"), 0);
  const std::string path = ns().ByKey(Key(1));
  for (const char* name : {"user.kvc.key", "user.kvc.parent", "user.kvc.bytes", "user.mine"}) {
    EXPECT_NE(SetXattrErrno(path, name, "x"), 0) << name;
    EXPECT_LT(::removexattr(path.c_str(), name), 0) << name;
  }
  EXPECT_EQ(GetXattr(path, "user.kvc.key"), Key(1));
}

// A6: A namespace has `user.kvc.block_bytes` (default 2 MiB, at most 64 MiB), `quota_bytes`,
// `durability` (`async`, `sync`) and `replicas`.
TEST_P(Attributes, NamespaceXattrs) {
  const std::string fresh = ns().path() + "-fresh";
  ASSERT_OK(::mkdir(fresh.c_str(), 0755));
  EXPECT_EQ(GetXattr(fresh, "user.kvc.block_bytes"), "2097152");
  EXPECT_EQ(GetXattr(fresh, "user.kvc.durability"), "async");
  EXPECT_EQ(GetXattr(fresh, "user.kvc.quota_bytes"), "0");
  EXPECT_EQ(GetXattr(fresh, "user.kvc.replicas"), "1");
  EXPECT_EQ(ErrnoName(SetXattrErrno(fresh, "user.kvc.block_bytes", "67108864")), "0");
  EXPECT_EQ(ErrnoName(SetXattrErrno(fresh, "user.kvc.durability", "sync")), "0");
  EXPECT_EQ(ErrnoName(SetXattrErrno(fresh, "user.kvc.quota_bytes", "100000000")), "0");
  EXPECT_EQ(GetXattr(fresh, "user.kvc.block_bytes"), "67108864");
  EXPECT_EQ(GetXattr(fresh, "user.kvc.durability"), "sync");
  EXPECT_EQ(GetXattr(fresh, "user.kvc.quota_bytes"), "100000000");
  auto names = ListXattrs(fresh);
  std::sort(names.begin(), names.end());
  EXPECT_EQ(names, (std::vector<std::string>{"user.kvc.block_bytes", "user.kvc.durability",
                                             "user.kvc.quota_bytes", "user.kvc.replicas"}));
  EXPECT_OK(::rmdir(fresh.c_str()));
}

// A6: A value that makes no sense is EINVAL, an unknown name ENODATA.
TEST_P(Attributes, BadNamespaceXattrs) {
  for (const char* value : {"67108865", "0", "-1", "many", "", "1.5", "18446744073709551616"}) {
    EXPECT_EQ(ErrnoName(SetXattrErrno(ns().path(), "user.kvc.block_bytes", value)), "EINVAL")
        << value;
  }
  EXPECT_EQ(ErrnoName(SetXattrErrno(ns().path(), "user.kvc.durability", "maybe")), "EINVAL");
  EXPECT_EQ(ErrnoName(SetXattrErrno(ns().path(), "user.kvc.quota_bytes", "-5")), "EINVAL");
  EXPECT_NE(SetXattrErrno(ns().path(), "user.kvc.no_such", "1"), 0);
  EXPECT_EQ(GetXattr(ns().path(), "user.kvc.no_such"), "ENODATA");
  EXPECT_EQ(GetXattr(ns().path(), "user.kvc.block_bytes"), std::to_string(kBlockBytes));
}

// A7: Changing `block_bytes` while blocks are cached is EBUSY; setting the same value is not a
// change; when all are dropped it can be changed.
TEST_P(Attributes, BlockBytesAreFixedWhileCached) {
  ASSERT_EQ(ns().Put("", Key(1), "bytes"), 0);
  EXPECT_EQ(ErrnoName(SetXattrErrno(ns().path(), "user.kvc.block_bytes", "65536")), "EBUSY");
  EXPECT_EQ(
      ErrnoName(SetXattrErrno(ns().path(), "user.kvc.block_bytes", std::to_string(kBlockBytes))),
      "0");
  ASSERT_OK(::unlink(ns().ByKey(Key(1)).c_str()));
  EXPECT_EQ(ErrnoName(SetXattrErrno(ns().path(), "user.kvc.block_bytes", "65536")), "0");
  EXPECT_EQ(ErrnoName(ns().Put("", Key(2), Bytes(2, 65537))), "EFBIG");
  EXPECT_EQ(ErrnoName(ns().Put("", Key(3), Bytes(3, 65536))), "0");
}

}  // namespace
}  // namespace kvcfs::test
