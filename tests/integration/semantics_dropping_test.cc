// Promises D1-D9 of fs/SEMANTICS.md, through a real mount.
#include <algorithm>
#include <set>

#include <fmt/format.h>
#include <sys/mman.h>

#include "tests/integration/mount_fixture.h"

namespace kvcfs::test {
namespace {

class Dropping : public MountTest {
 protected:
  std::set<std::string> Cached() {
    const auto names = Names(ns().path() + "/by-key");
    return {names.begin(), names.end()};
  }
  std::string Entry(const std::string& tip, uint32_t ordinal, const std::string& key) {
    return ns().Entry(tip, ordinal, key);
  }
};
KVC_BOTH_MODES(Dropping);

// D1: `unlink by-key/<key>` drops the block and all that extends it; nothing else.
TEST_P(Dropping, UnlinkByKeyDropsTheSubtree) {
  // 0 - 1 - 2 - 3 - 4, forks 2 - 50 - 51 and 1 - 60, and another chain 70 - 71.
  const auto trunk = ns().PutChain("", 0, 5, 4096);
  const auto fork = ns().PutChain(trunk[2], 50, 2, 4096);
  const auto side = ns().PutChain(trunk[1], 60, 1, 4096);
  const auto other = ns().PutChain("", 70, 2, 4096);
  ASSERT_EQ(Cached().size(), 10u);
  ASSERT_OK(::unlink(ns().ByKey(trunk[2]).c_str()));
  EXPECT_EQ(Cached(), (std::set<std::string>{trunk[0], trunk[1], side[0], other[0], other[1]}));
  for (const std::string& key : {trunk[2], trunk[3], trunk[4], fork[0], fork[1]}) {
    EXPECT_EQ(ErrnoName(StatErrno(ns().Chain(key))), "ENOENT");
    EXPECT_EQ(ErrnoName(StatErrno(ns().ByKey(key))), "ENOENT");
  }
  EXPECT_EQ(ns().Match(trunk), 2);
  EXPECT_ERRNO(ENOENT, ::unlink(ns().ByKey(trunk[2]).c_str()));
  EXPECT_ERRNO(ENOENT, ::unlink(ns().ByKey("short").c_str()));
  for (uint64_t i = 0; i < 2; ++i) {
    const auto bytes = ns().Read(other[i]);
    ASSERT_TRUE(bytes);
    EXPECT_SAME_BYTES(Bytes(70 + i, 4096), *bytes);
  }
}

// D2: unlink in `<tip>/` never takes from another chain: of a block with a cached descendant off
// this chain it is EBUSY. Otherwise it drops the block and what extends it on this chain.
TEST_P(Dropping, UnlinkInAChain) {
  const auto trunk = ns().PutChain("", 0, 6, 4096);
  const auto fork = ns().PutChain(trunk[2], 50, 2, 4096);
  for (uint32_t i = 0; i <= 2; ++i) {
    EXPECT_ERRNO(EBUSY, ::unlink(Entry(trunk[5], i, trunk[i]).c_str())) << i;
    EXPECT_ERRNO(EBUSY, ::unlink(Entry(fork[1], i, trunk[i]).c_str())) << i;
  }
  EXPECT_EQ(Cached().size(), 8u);
  // 4 and what extends it on this chain: 5.
  ASSERT_OK(::unlink(Entry(trunk[5], 4, trunk[4]).c_str()));
  EXPECT_EQ(Cached(),
            (std::set<std::string>{trunk[0], trunk[1], trunk[2], trunk[3], fork[0], fork[1]}));
  // Seen from a shorter chain, a block that a longer one extends is shared too.
  EXPECT_ERRNO(EBUSY, ::unlink(Entry(fork[0], 3, fork[0]).c_str()));
  // With the fork gone nothing is shared any more.
  ASSERT_OK(::unlink(Entry(fork[1], 3, fork[0]).c_str()));
  ASSERT_OK(::unlink(Entry(trunk[3], 1, trunk[1]).c_str()));
  EXPECT_EQ(Cached(), (std::set<std::string>{trunk[0]}));
}

// D3: `rm -r <tip>` drops the tail that is the chain's own: a name whose block went with an earlier
// unlink is unlinked with success.
TEST_P(Dropping, RmRfOfAChain) {
  const auto chain = ns().PutChain("", 0, 20, 4096);
  const auto other = ns().PutChain("", 50, 3, 4096);
  const CommandResult rm = RunCommand({"rm", "-r", "--", ns().Chain(chain.back())});
  EXPECT_EQ(rm.status, 0) << rm.err;
  EXPECT_EQ(rm.err, "");
  EXPECT_EQ(Cached(), (std::set<std::string>(other.begin(), other.end())));
  for (const std::string& key : chain) EXPECT_FALSE(Exists(ns().Chain(key)));
}

// D3: Over shared blocks rm exits 1 and they stay.
TEST_P(Dropping, RmOfASharedChain) {
  const auto trunk = ns().PutChain("", 0, 4, 4096);
  const auto one = ns().PutChain(trunk.back(), 20, 5, 4096);
  const auto two = ns().PutChain(trunk.back(), 40, 5, 4096);
  const CommandResult rm = RunCommand({"rm", "-r", ns().Chain(one.back())});
  EXPECT_EQ(rm.status, 1) << rm.err;
  std::set<std::string> want(trunk.begin(), trunk.end());
  want.insert(two.begin(), two.end());
  EXPECT_EQ(Cached(), want);
  EXPECT_EQ(Names(ns().Chain(two.back())).size(), 9u);
  // Now it is alone.
  const CommandResult again = RunCommand({"rm", "-r", ns().Chain(two.back())});
  EXPECT_EQ(again.status, 0) << again.err;
  EXPECT_TRUE(Cached().empty());
}

// D4: rmdir of a tip that others extend is ENOTEMPTY. rmdir of any other tip drops the tail that is
// the chain's own.
TEST_P(Dropping, RmdirOfATip) {
  const auto trunk = ns().PutChain("", 0, 3, 4096);
  const auto one = ns().PutChain(trunk.back(), 20, 3, 4096);
  const auto two = ns().PutChain(trunk.back(), 40, 2, 4096);
  EXPECT_ERRNO(ENOTEMPTY, ::rmdir(ns().Chain(trunk[2]).c_str()));
  EXPECT_ERRNO(ENOTEMPTY, ::rmdir(ns().Chain(one[0]).c_str()));
  EXPECT_EQ(Cached().size(), 8u);
  ASSERT_OK(::rmdir(ns().Chain(one[2]).c_str()));
  EXPECT_FALSE(ns().Has(one[2]));
  for (const std::string& key : trunk) EXPECT_TRUE(ns().Has(key));
  for (const std::string& key : two) EXPECT_TRUE(ns().Has(key));
  EXPECT_ERRNO(ENOENT, ::rmdir(ns().Chain(one[2]).c_str()));
  EXPECT_ERRNO(ENOENT, ::rmdir(ns().Chain(Key(99)).c_str()));
}

// D5: rmdir of a namespace that holds blocks or files is ENOTEMPTY; of an empty one it succeeds.
TEST_P(Dropping, RmdirOfANamespace) {
  const Namespace other(mount(), ns().name() + "-other", 4096);
  ASSERT_EQ(other.Put("", Key(1), "block"), 0);
  EXPECT_ERRNO(ENOTEMPTY, ::rmdir(other.path().c_str()));
  ASSERT_OK(::unlink(other.ByKey(Key(1)).c_str()));
  ASSERT_EQ(WriteFile(other.Files() + "/file", "x"), 0);
  EXPECT_ERRNO(ENOTEMPTY, ::rmdir(other.path().c_str()));
  EXPECT_EQ(ReadWhole(other.Files() + "/file"), "x");
  ASSERT_OK(::unlink((other.Files() + "/file").c_str()));
  EXPECT_OK(::rmdir(other.path().c_str()));
  EXPECT_EQ(ErrnoName(StatErrno(other.path())), "ENOENT");
  EXPECT_EQ(ErrnoName(StatErrno(other.ByKey(Key(1)))), "ENOENT");
  // One of the same name begins empty and with defaults.
  ASSERT_OK(::mkdir(other.path().c_str(), 0755));
  EXPECT_EQ(GetXattr(other.path(), "user.kvc.block_bytes"), "2097152");
  EXPECT_TRUE(Names(other.path() + "/by-key").empty());
  EXPECT_OK(::rmdir(other.path().c_str()));
}

// D6: `kvcfs drop MNT/NS` clears a namespace, `kvcfs drop MNT/NS KEY` a block and all that extends
// it, in one call.
TEST_P(Dropping, DropCommand) {
  const auto trunk = ns().PutChain("", 0, 5, 4096);
  const auto fork = ns().PutChain(trunk[1], 50, 2, 4096);
  const CommandResult one = RunCommand({KVC_COMMAND, "drop", ns().path(), trunk[2]});
  EXPECT_EQ(one.status, 0) << one.err;
  EXPECT_EQ(Cached(), (std::set<std::string>{trunk[0], trunk[1], fork[0], fork[1]}));
  const CommandResult gone = RunCommand({KVC_COMMAND, "drop", ns().path(), trunk[2]});
  EXPECT_EQ(gone.status, 1) << "it is not there any more";
  EXPECT_EQ(RunCommand({KVC_COMMAND, "drop", ns().path(), "not-a-key"}).status, 2);
  EXPECT_EQ(RunCommand({KVC_COMMAND, "drop", "/tmp", trunk[0]}).status != 0, true);
  ASSERT_EQ(WriteFile(ns().Files() + "/file", "x"), 0);
  ASSERT_OK(::mkdir((ns().Files() + "/dir").c_str(), 0755));
  const CommandResult all = RunCommand({KVC_COMMAND, "drop", ns().path()});
  EXPECT_EQ(all.status, 0) << all.err;
  EXPECT_TRUE(Cached().empty());
  EXPECT_TRUE(Names(ns().Files()).empty());
  EXPECT_EQ(GetXattr(ns().path(), "user.kvc.block_bytes"), std::to_string(kBlockBytes))
      << "the namespace and its settings stay";
  EXPECT_EQ(ns().Put("", trunk[0], "again"), 0);
}

// D7: rename into or out of a chain directory is EXDEV, so that `mv` copies. link, symlink, mkdir,
// mknod, chmod and chown in one are EPERM.
TEST_P(Dropping, ChainsAreNotOrdinaryDirectories) {
  const auto chain = ns().PutChain("", 0, 3, 4096);
  const std::string tip = ns().Chain(chain[2]), entry = ns().Entry(chain[2], 1, chain[1]);
  const std::string file = ns().Files() + "/file", fresh = tip + "/" + Key(9);
  ASSERT_EQ(WriteFile(file, "an ordinary file"), 0);
  EXPECT_ERRNO(EXDEV, ::rename(file.c_str(), fresh.c_str()));
  EXPECT_ERRNO(EXDEV, ::rename(entry.c_str(), (ns().Files() + "/block").c_str()));
  EXPECT_ERRNO(EXDEV, ::rename(entry.c_str(), fresh.c_str()));
  EXPECT_ERRNO(EXDEV, ::rename(file.c_str(), (ns().Chain("") + "/" + Key(9)).c_str()));
  EXPECT_ERRNO(EXDEV, ::rename(ns().ByKey(chain[2]).c_str(), (ns().Files() + "/block").c_str()));
  EXPECT_ERRNO(EPERM, ::link(file.c_str(), fresh.c_str()));
  EXPECT_ERRNO(EPERM, ::symlink("file", fresh.c_str()));
  EXPECT_ERRNO(EPERM, ::mkdir(fresh.c_str(), 0755));
  EXPECT_ERRNO(EPERM, ::mknod(fresh.c_str(), S_IFIFO | 0644, 0));
  EXPECT_ERRNO(EPERM, ::chmod(entry.c_str(), 0644));
  EXPECT_ERRNO(EPERM, ::chown(entry.c_str(), 1, 1));
  EXPECT_ERRNO(EPERM, ::chmod(tip.c_str(), 0700));
  EXPECT_ERRNO(EPERM, ::chmod(ns().ByKey(chain[0]).c_str(), 0644));
  // A hard link to a block in files/ would be a second name of another kind.
  const int linked = ::link(ns().ByKey(chain[0]).c_str(), (ns().Files() + "/hard").c_str());
  EXPECT_TRUE(linked < 0 && (errno == EPERM || errno == EXDEV)) << ErrnoName(errno);
  EXPECT_EQ(StatOf(entry).st_mode, S_IFREG | 0444u);
  EXPECT_EQ(Names(tip).size(), 3u);
  EXPECT_EQ(Names(ns().Files()), std::vector<std::string>{"file"});
  // mv copies, and then meets the promise about unlink.
  const CommandResult mv = RunCommand({"mv", file, fresh});
  EXPECT_EQ(mv.status, 0) << mv.err;
  EXPECT_EQ(ns().Read(Key(9)), "an ordinary file");
  EXPECT_FALSE(Exists(file));
}

// D8: A dropped key may be written again, with other bytes, and readers of the old block go on
// reading the old bytes.
TEST_P(Dropping, ADroppedKeyIsFree) {
  const std::string old_bytes = Bytes(1, 300000), new_bytes = Bytes(2, 200000);
  ASSERT_EQ(ns().Put("", Key(1), old_bytes), 0);
  const Fd reader = Open(ns().ByKey(Key(1)), O_RDONLY);
  void* map = ::mmap(nullptr, old_bytes.size(), PROT_READ, MAP_SHARED, reader.get(), 0);
  ASSERT_NE(map, MAP_FAILED) << ErrnoName(errno);
  ASSERT_OK(::unlink(ns().ByKey(Key(1)).c_str()));
  EXPECT_FALSE(ns().Has(Key(1)));
  ASSERT_EQ(ErrnoName(ns().Put("", Key(1), new_bytes)), "0");
  const auto fresh = ns().Read(Key(1));
  ASSERT_TRUE(fresh);
  EXPECT_SAME_BYTES(new_bytes, *fresh);
  const auto old = ReadRest(reader.get());
  ASSERT_TRUE(old) << ErrnoName(errno);
  EXPECT_SAME_BYTES(old_bytes, *old);
  const auto mapped = ReadMap(map, old_bytes.size());
  ASSERT_TRUE(mapped) << "the mapping lost its bytes";
  EXPECT_SAME_BYTES(old_bytes, *mapped);
  ::munmap(map, old_bytes.size());
  // Many times over: nothing is left behind by the dropped ones.
  for (uint64_t i = 0; i < 50; ++i) {
    ASSERT_OK(::unlink(ns().ByKey(Key(1)).c_str()));
    ASSERT_EQ(ErrnoName(ns().Put("", Key(1), Bytes(i, 1000 + i))), "0");
    const auto got = ns().Read(Key(1));
    ASSERT_TRUE(got);
    EXPECT_SAME_BYTES(Bytes(i, 1000 + i), *got);
  }
}

// D9: `root/`, `by-key/`, `files/`, `match` and `.kvcfs/` are fixed: they cannot be removed or
// renamed.
TEST_P(Dropping, FixedNamesStay) {
  for (const char* name : {"root", "by-key", "files"}) {
    const std::string path = ns().path() + "/" + name;
    EXPECT_LT(::rmdir(path.c_str()), 0) << name;
    EXPECT_LT(::rename(path.c_str(), (path + "2").c_str()), 0) << name;
  }
  EXPECT_LT(::unlink(ns().MatchFile().c_str()), 0);
  EXPECT_LT(::rename(ns().MatchFile().c_str(), (ns().path() + "/other").c_str()), 0);
  EXPECT_LT(::rmdir((mount().mount_point() + "/.kvcfs").c_str()), 0);
  EXPECT_LT(::unlink((mount().mount_point() + "/.kvcfs/version").c_str()), 0);
  EXPECT_EQ(Names(ns().path()), (std::vector<std::string>{"by-key", "files", "match", "root"}));
}

}  // namespace
}  // namespace kvcfs::test
