// The tools of a shell on a mount (promise W14 of fs/SEMANTICS.md, and that they feel natural).
#include <algorithm>
#include <sstream>

#include <fmt/format.h>

#include "tests/integration/mount_fixture.h"

namespace kvcfs::test {
namespace {

class ShellTools : public MountTest {
 protected:
  void SetUp() override {
    MountTest::SetUp();
    if (IsSkipped()) return;
    // Two chains of 4 that share their first 3.
    trunk_ = ns().PutChain("", 0, 3, kBlock);
    one_ = ns().PutChain(trunk_.back(), 10, 1, kBlock)[0];
    two_ = ns().PutChain(trunk_.back(), 20, 1, kBlock)[0];
  }
  // Runs the line in the namespace's directory; status 0 and nothing on stderr.
  std::string Ok(const std::string& line) {
    const CommandResult result = Shell("cd '" + ns().path() + "' && " + line);
    EXPECT_EQ(result.status, 0) << line << ": " << result.err;
    EXPECT_EQ(result.err, "") << line;
    return result.out;
  }
  static constexpr size_t kBlock = 100000;
  std::vector<std::string> trunk_;
  std::string one_, two_;
};
KVC_BOTH_MODES(ShellTools);

#define KVC_NEEDS_TOOL(name) \
  if (!HaveTool(name)) GTEST_SKIP() << "needs the tool " << name

size_t LinesOf(const std::string& text) {
  return static_cast<size_t>(std::count(text.begin(), text.end(), '\n'));
}

TEST_P(ShellTools, Ls) {
  std::vector<std::string> names{"by-key", "files", "match", "root", one_, two_};
  std::sort(names.begin(), names.end());
  std::string text;
  for (const std::string& name : names) text += name + "\n";
  EXPECT_EQ(Ok("LC_ALL=C ls"), text);
  const std::string list = Ok("ls -l " + one_);
  EXPECT_EQ(LinesOf(list), 5u) << list;
  EXPECT_NE(list.find("-r--r--r--"), std::string::npos) << list;
  EXPECT_NE(list.find("100000"), std::string::npos) << list;
  EXPECT_NE(list.find("00000003-" + one_), std::string::npos) << list;
  Ok("ls -laR . >/dev/null");
  EXPECT_EQ(Ok("ls -i " + one_ + " | head -3 | awk '{print $1}'"),
            Ok("ls -i " + two_ + " | head -3 | awk '{print $1}'"))
      << "shared blocks are the same inodes";
}

TEST_P(ShellTools, CatAndStat) {
  EXPECT_EQ(Ok("cat by-key/" + one_), Bytes(10, kBlock));
  EXPECT_EQ(Ok("cat " + one_ + "/* | wc -c"), "400000\n");
  EXPECT_EQ(Ok("stat -c '%s %a %F' by-key/" + one_), "100000 444 regular file\n");
  EXPECT_EQ(Ok("stat -c '%F' " + one_), "directory\n");
  EXPECT_EQ(Ok("stat -f -c '%s' ."), "4096\n");
  Ok("df . >/dev/null");
  EXPECT_EQ(Ok("head -c 10 by-key/" + one_ + " | wc -c"), "10\n");
  EXPECT_EQ(Ok("tail -c 10 by-key/" + one_), Bytes(10, kBlock).substr(kBlock - 10));
  EXPECT_EQ(Ok("sha256sum < by-key/" + one_), Ok("cat by-key/" + one_ + " | sha256sum"));
  EXPECT_EQ(Ok("cmp by-key/" + one_ + " " + one_ + "/00000003-" + one_), "");
}

// W14: `cp` and `dd` into a chain directory make blocks like any other writer.
TEST_P(ShellTools, CpAndDd) {
  const TemporaryDirectory scratch;
  ASSERT_EQ(WriteFile(scratch.path() + "/block", Bytes(50, 70000)), 0);
  Ok("cp " + scratch.path() + "/block " + one_ + "/" + Key(50));
  EXPECT_EQ(ns().Read(Key(50)), Bytes(50, 70000));
  Ok("dd if=" + scratch.path() + "/block of=" + Key(50) + "/" + Key(51) +
     " bs=4096 conv=fsync status=none");
  EXPECT_EQ(ns().Read(Key(51)), Bytes(50, 70000));
  EXPECT_EQ(Ok("ls " + Key(51) + " | wc -l"), "6\n");
  Ok("cat " + scratch.path() + "/block > root/" + Key(52));
  EXPECT_EQ(ns().Read(Key(52)), Bytes(50, 70000));
  // Out of the cache again, by name and as a whole chain.
  Ok("cp by-key/" + Key(50) + " " + scratch.path() + "/copy");
  EXPECT_EQ(ReadWhole(scratch.path() + "/copy"), Bytes(50, 70000));
  Ok("cp -r " + Key(51) + " " + scratch.path() + "/chain");
  EXPECT_EQ(Names(scratch.path() + "/chain").size(), 6u);
  EXPECT_EQ(ReadWhole(scratch.path() + "/chain/00000001-" + trunk_[1]), Bytes(1, kBlock));
  const CommandResult again =
      Shell("cp " + scratch.path() + "/block " + ns().path() + "/root/" + Key(52));
  EXPECT_NE(again.status, 0) << "blocks never change";
  EXPECT_NE(again.err.find("File exists"), std::string::npos) << again.err;
  Ok("dd if=by-key/" + Key(50) + " of=/dev/null bs=64K iflag=direct status=none");
}

TEST_P(ShellTools, FindAndTree) {
  EXPECT_EQ(Ok("find " + one_ + " " + two_ + " -type f | wc -l"), "8\n");
  EXPECT_EQ(Ok("find by-key -type f -size +90k | wc -l"), "5\n");
  EXPECT_EQ(Ok("find . -name '00000003-*' | wc -l"), "2\n");
  EXPECT_EQ(Ok("find . -samefile by-key/" + trunk_[0] + " | wc -l"), "3\n");
  KVC_NEEDS_TOOL("tree");
  EXPECT_NE(Ok("tree " + one_).find("4 files"), std::string::npos);
}

TEST_P(ShellTools, DuCountsSharedBlocksOnce) {
  EXPECT_EQ(Ok("du -sc --apparent-size --block-size=1 " + one_ + " " + two_ +
               " | tail -1 | awk '{print ($1 >= 500000 && $1 < 560000)}'"),
            "1\n")
      << "five blocks, not eight: " << Ok("du -sc --apparent-size -B1 " + one_ + " " + two_);
  EXPECT_EQ(Ok("du -l -sc --apparent-size --block-size=1 " + one_ + " " + two_ +
               " | tail -1 | awk '{print ($1 >= 800000)}'"),
            "1\n")
      << "with -l each name counts";
}

TEST_P(ShellTools, TarKeepsSharedBlocksOnce) {
  KVC_NEEDS_TOOL("tar");
  const TemporaryDirectory scratch;
  Ok("tar -cf " + scratch.path() + "/chains.tar " + one_ + " " + two_);
  EXPECT_LT(StatOf(scratch.path() + "/chains.tar").st_size, 560000);
  const CommandResult out =
      Shell("tar -C " + scratch.path() + " -xf " + scratch.path() + "/chains.tar");
  EXPECT_EQ(out.status, 0) << out.err;
  EXPECT_EQ(ReadWhole(scratch.path() + "/" + two_ + "/00000002-" + trunk_[2]), Bytes(2, kBlock));
  EXPECT_EQ(ReadWhole(scratch.path() + "/" + one_ + "/00000003-" + one_), Bytes(10, kBlock));
}

TEST_P(ShellTools, RsyncSeesNothingToDo) {
  KVC_NEEDS_TOOL("rsync");
  const TemporaryDirectory scratch;
  Ok("rsync -a " + one_ + "/ " + scratch.path() + "/chain/");
  EXPECT_EQ(Ok("rsync -anci " + one_ + "/ " + scratch.path() + "/chain/"), "");
  EXPECT_EQ(
      Ok("rsync -an --out-format=%n " + one_ + "/ " + scratch.path() + "/empty/ | grep -c 0000"),
      "4\n");
  Ok("mkdir files/tree && rsync -aHAX " + scratch.path() + "/chain/ files/tree/");
  EXPECT_EQ(Ok("rsync -aHAXnci " + scratch.path() + "/chain/ files/tree/"), "");
}

TEST_P(ShellTools, Getfattr) {
  KVC_NEEDS_TOOL("getfattr");
  const std::string text = Ok("getfattr -d -m user.kvc by-key/" + one_);
  for (const char* name :
       {"key", "parent", "ordinal", "tier", "hits", "lease_ms", "crc32c", "bytes"}) {
    EXPECT_NE(text.find(fmt::format("user.kvc.{}=", name)), std::string::npos) << text;
  }
  EXPECT_NE(text.find("user.kvc.parent=\"" + trunk_[2] + "\""), std::string::npos) << text;
  EXPECT_NE(text.find("user.kvc.ordinal=\"3\""), std::string::npos) << text;
  EXPECT_NE(Ok("getfattr -d -m user.kvc .").find("user.kvc.block_bytes=\"1048576\""),
            std::string::npos);
  Ok("setfattr -n user.kvc.quota_bytes -v 1000000000 .");
  EXPECT_NE(Ok("getfattr -n user.kvc.quota_bytes .").find("1000000000"), std::string::npos);
}

TEST_P(ShellTools, MatchFromAShell) {
  EXPECT_EQ(Ok("exec 3<>match; printf '%s\\n' " + trunk_[0] + " " + trunk_[1] + " " + Key(999) +
               " >&3; head -1 <&3 | cut -d' ' -f1"),
            "2\n");
}

}  // namespace
}  // namespace kvcfs::test
