// Promises N1-N8 of fs/SEMANTICS.md, through a real mount.
#include <algorithm>

#include <fmt/format.h>

#include "tests/integration/mount_fixture.h"

namespace kvcfs::test {
namespace {

class NameRules : public MountTest {};
KVC_BOTH_MODES(NameRules);

std::vector<std::string> WrongSpellings() {
  const std::string key = Key(1);
  std::string upper = key;
  upper[std::min(upper.find_first_of("abcdef"), upper.size() - 1)] = 'A';
  return {"short",
          key.substr(1),
          key + "0",
          upper,
          key.substr(1) + "g",
          key.substr(1) + " ",
          "00000000-" + key,
          "0x" + key.substr(2)};
}

// N1: A key is exactly 64 lower-case hex digits. Any other spelling (short, long, upper-case, not
// hex, an ordinal in front) is EINVAL where a block would be created, and ENOENT where one is
// looked up.
TEST_P(NameRules, KeySpelling) {
  ASSERT_EQ(ns().Put("", Key(1), "bytes"), 0);
  for (const std::string& name : WrongSpellings()) {
    EXPECT_EQ(ErrnoName(OpenErrno(ns().Chain("") + "/" + name, O_CREAT | O_WRONLY)), "EINVAL")
        << "in root: " << name;
    EXPECT_EQ(ErrnoName(OpenErrno(ns().Chain(Key(1)) + "/" + name, O_CREAT | O_EXCL | O_WRONLY)),
              // The one name of these that is there: the chain's own first entry.
              name == "00000000-" + Key(1) ? "EEXIST" : "EINVAL")
        << "in a chain: " << name;
    EXPECT_EQ(ErrnoName(StatErrno(ns().Chain("") + "/" + name)), "ENOENT") << name;
    EXPECT_EQ(ErrnoName(StatErrno(ns().ByKey(name))), "ENOENT") << name;
    EXPECT_EQ(ErrnoName(StatErrno(ns().path() + "/" + name)), "ENOENT") << name;
    EXPECT_EQ(ErrnoName(OpenErrno(ns().ByKey(name), O_RDONLY)), "ENOENT") << name;
  }
  EXPECT_EQ(Names(ns().path() + "/by-key"), std::vector<std::string>{Key(1)});
}

// N2: `mkdir MNT/NAME` makes a namespace, complete with `root/`, `by-key/`, `match` and `files/`.
// Making it again is EEXIST. `.kvcfs` is taken.
TEST_P(NameRules, NamespaceByMkdir) {
  EXPECT_EQ(Names(ns().path()), (std::vector<std::string>{"by-key", "files", "match", "root"}));
  EXPECT_TRUE(S_ISDIR(StatOf(ns().path()).st_mode));
  EXPECT_TRUE(S_ISDIR(StatOf(ns().Chain("")).st_mode));
  EXPECT_TRUE(S_ISDIR(StatOf(ns().path() + "/by-key").st_mode));
  EXPECT_TRUE(S_ISDIR(StatOf(ns().Files()).st_mode));
  EXPECT_TRUE(S_ISREG(StatOf(ns().MatchFile()).st_mode));
  EXPECT_ERRNO(EEXIST, ::mkdir(ns().path().c_str(), 0755));
  EXPECT_ERRNO(EEXIST, ::mkdir((mount().mount_point() + "/.kvcfs").c_str(), 0755));
  const auto top = Names(mount().mount_point());
  EXPECT_EQ(std::count(top.begin(), top.end(), ns().name()), 1);
  EXPECT_EQ(std::count(top.begin(), top.end(), ".kvcfs"), 1);
  // Only namespaces live at the top.
  EXPECT_NE(OpenErrno(mount().mount_point() + "/a-file", O_CREAT | O_WRONLY), 0);
  EXPECT_EQ(ErrnoName(StatErrno(mount().mount_point() + "/a-file")), "ENOENT");
}

// N3: The entries of a chain directory are `%08u-<key>`: the ordinal in decimal from 0, so that
// `ls` sorts them in token order.
TEST_P(NameRules, ChainEntries) {
  const auto keys = ns().PutChain("", 10, 12, 4096);
  std::vector<std::string> want;
  for (uint32_t i = 0; i < keys.size(); ++i) want.push_back(fmt::format("{:08}-{}", i, keys[i]));
  std::vector<std::string> listed;
  for (const DirEntry& entry : List(ns().Chain(keys.back()))) listed.push_back(entry.name);
  EXPECT_EQ(listed, want) << "unsorted, as the kernel gave them";
  for (uint32_t i = 0; i < keys.size(); ++i) {
    const auto bytes = ReadWhole(ns().Entry(keys.back(), i, keys[i]));
    ASSERT_TRUE(bytes) << i;
    EXPECT_SAME_BYTES(Bytes(10 + i, 4096), *bytes);
  }
  // An ordinal that is not the block's, and a block that is not of this chain, are not there.
  EXPECT_EQ(ErrnoName(StatErrno(ns().Entry(keys.back(), 1, keys[0]))), "ENOENT");
  EXPECT_EQ(ErrnoName(StatErrno(ns().Entry(keys[3], 4, keys[4]))), "ENOENT");
  EXPECT_EQ(ErrnoName(StatErrno(ns().Chain(keys[3]) + "/3-" + keys[3])), "ENOENT");
  EXPECT_TRUE(Names(ns().Chain("")).empty()) << "root is the empty chain";
}

// N4: `<parent>/<key>` resolves as soon as the block is published, so that a writer finds what it
// made. It is not listed.
TEST_P(NameRules, WriterFindsWhatItMade) {
  const std::string path = ns().Chain("") + "/" + Key(1);
  EXPECT_EQ(ErrnoName(StatErrno(path)), "ENOENT");
  ASSERT_EQ(WriteFile(path, "first"), 0);
  EXPECT_EQ(StatOf(path).st_size, 5);
  EXPECT_EQ(ReadWhole(path), "first");
  const std::string child = ns().Chain(Key(1)) + "/" + Key(2);
  ASSERT_EQ(WriteFile(child, "second"), 0);
  EXPECT_EQ(ReadWhole(child), "second");
  EXPECT_EQ(Names(ns().Chain(Key(1))), std::vector<std::string>{Namespace::EntryName(0, Key(1))});
  // Another's child does not resolve here.
  EXPECT_EQ(ErrnoName(StatErrno(ns().Chain("") + "/" + Key(2))), "ENOENT");
}

// N5: `<tip>/` exists exactly when block `<tip>` is cached, and lists the chain up to it, whether
// or not other blocks extend it.
TEST_P(NameRules, TipExistsExactlyWhenCached) {
  const auto keys = ns().PutChain("", 20, 5, 4096);
  for (size_t i = 0; i < keys.size(); ++i) {
    EXPECT_TRUE(S_ISDIR(StatOf(ns().Chain(keys[i])).st_mode));
    EXPECT_EQ(Names(ns().Chain(keys[i])).size(), i + 1);
  }
  EXPECT_EQ(ErrnoName(StatErrno(ns().Chain(Key(25)))), "ENOENT");
  ASSERT_OK(::unlink(ns().ByKey(keys[4]).c_str()));
  EXPECT_EQ(ErrnoName(StatErrno(ns().Chain(keys[4]))), "ENOENT");
  EXPECT_TRUE(Exists(ns().Chain(keys[3])));
}

// N6: `by-key/<key>` is every block of the namespace under its key alone. Creating there is
// refused: a block needs to say what it extends.
TEST_P(NameRules, ByKey) {
  const auto keys = ns().PutChain("", 30, 4, 4096);
  ASSERT_EQ(ns().Put(keys[1], Key(40), Bytes(40, 100)), 0);
  auto want = keys;
  want.push_back(Key(40));
  std::sort(want.begin(), want.end());
  EXPECT_EQ(Names(ns().path() + "/by-key"), want);
  for (uint64_t i = 0; i < keys.size(); ++i) {
    const auto bytes = ns().Read(keys[i]);
    ASSERT_TRUE(bytes);
    EXPECT_SAME_BYTES(Bytes(30 + i, 4096), *bytes);
  }
  EXPECT_NE(OpenErrno(ns().ByKey(Key(41)), O_CREAT | O_WRONLY), 0);
  EXPECT_EQ(ErrnoName(StatErrno(ns().ByKey(Key(41)))), "ENOENT");
}

// N7: A name may have 255 bytes. In `files/` it is a name like any other; where only keys live it
// is EINVAL on create and ENOENT on lookup; 256 bytes are ENAMETOOLONG everywhere.
TEST_P(NameRules, LongNames) {
  const std::string longest(255, 'n'), too_long(256, 'n');
  EXPECT_EQ(ErrnoName(WriteFile(ns().Files() + "/" + longest, "x")), "0");
  EXPECT_EQ(ReadWhole(ns().Files() + "/" + longest), "x");
  EXPECT_EQ(Names(ns().Files()), std::vector<std::string>{longest});
  EXPECT_EQ(ErrnoName(OpenErrno(ns().Chain("") + "/" + longest, O_CREAT | O_WRONLY)), "EINVAL");
  EXPECT_EQ(ErrnoName(StatErrno(ns().ByKey(longest))), "ENOENT");
  EXPECT_EQ(ErrnoName(StatErrno(ns().path() + "/" + longest)), "ENOENT");
  for (const std::string& directory : {ns().Files(), ns().Chain(""), ns().path()}) {
    EXPECT_EQ(ErrnoName(OpenErrno(directory + "/" + too_long, O_CREAT | O_WRONLY)), "ENAMETOOLONG")
        << directory;
    EXPECT_EQ(ErrnoName(StatErrno(directory + "/" + too_long)), "ENAMETOOLONG") << directory;
  }
  EXPECT_ERRNO(ENAMETOOLONG, ::mkdir((mount().mount_point() + "/" + too_long).c_str(), 0755));
  // The name of a namespace may have 255 bytes too.
  const std::string wide = mount().mount_point() + "/" + longest;
  EXPECT_OK(::mkdir(wide.c_str(), 0755));
  EXPECT_OK(::rmdir(wide.c_str()));
}

// N8: Namespaces are universes of their own: the same key in two of them is two blocks.
TEST_P(NameRules, NamespacesAreApart) {
  const Namespace other(mount(), ns().name() + "-other", kBlockBytes);
  ASSERT_EQ(ns().Put("", Key(1), "one"), 0);
  EXPECT_FALSE(other.Has(Key(1)));
  ASSERT_EQ(other.Put("", Key(1), "other"), 0);
  EXPECT_EQ(ns().Read(Key(1)), "one");
  EXPECT_EQ(other.Read(Key(1)), "other");
  EXPECT_NE(StatOf(ns().ByKey(Key(1))).st_ino, StatOf(other.ByKey(Key(1))).st_ino);
  ASSERT_OK(::unlink(ns().ByKey(Key(1)).c_str()));
  EXPECT_EQ(other.Read(Key(1)), "other");
  ASSERT_OK(::unlink(other.ByKey(Key(1)).c_str()));
  EXPECT_OK(::rmdir(other.path().c_str()));
}

}  // namespace
}  // namespace kvcfs::test
