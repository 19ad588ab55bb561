// P7: Wrong flags, sizes and settings exit 2 with a message that names them; a config file's
// unknown key with file and line.
#include "tests/integration/mount_fixture.h"

namespace kvcfs::test {
namespace {

struct Case {
  std::vector<std::string> words;
  std::string named;  // in the message
};

class CommandLine : public testing::Test {
 protected:
  void SetUp() override {
    if (::access(KVC_COMMAND, X_OK) != 0) GTEST_SKIP() << "needs " << KVC_COMMAND;
    mnt_ = scratch_.path() + "/mnt";
    data_ = scratch_.path() + "/data";
    ASSERT_OK(::mkdir(mnt_.c_str(), 0755));
  }
  CommandResult Mount(std::vector<std::string> more) {
    // What should be refused and is not would serve for ever.
    std::vector<std::string> words{"timeout", "20", KVC_COMMAND, "mount", mnt_, "--data", data_};
    words.insert(words.end(), more.begin(), more.end());
    return RunCommand(words);
  }

  TemporaryDirectory scratch_;
  std::string mnt_, data_;
};

TEST_F(CommandLine, WrongWordsExitTwo) {
  const std::vector<Case> cases{
      {{}, ""},
      {{"no-such-verb"}, "no-such-verb"},
      {{"mount"}, ""},
      {{"mount", mnt_, "--no-such-flag"}, "--no-such-flag"},
      {{"mount", mnt_, "extra"}, "extra"},
      {{"mount", mnt_, "--log-level", "loud"}, "loud"},
      {{"lookup"}, ""},
      {{"lookup", mnt_, "short"}, "short"},
      {{"lookup", mnt_, Key(1)}, mnt_},  // is there, and no kvcfs
      {{"stat"}, ""},
      {{"stat", mnt_}, mnt_},
      {{"drop", mnt_}, mnt_},
      {{"drop"}, ""},
      {{"fsck", "--data", data_, "--no-such-flag"}, "--no-such-flag"},
      {{"replay"}, ""},
      {{"trace", "synth", "--requests", "many"}, "many"},
      {{"unmount"}, ""},
  };
  for (const Case& one : cases) {
    std::vector<std::string> words{KVC_COMMAND};
    words.insert(words.end(), one.words.begin(), one.words.end());
    const CommandResult result = RunCommand(words);
    const std::string what = one.words.empty() ? "nothing" : one.words.front();
    EXPECT_EQ(result.status, 2) << what << ": " << result.err;
    EXPECT_FALSE(result.err.empty()) << what;
    EXPECT_NE(result.err.find(one.named), std::string::npos) << what << ": " << result.err;
  }
}

TEST_F(CommandLine, WrongSizesExitTwo) {
  for (const std::string size :
       {"0", "-1", "many", "8Gib", "nan", "", "8 apples", "99999999999G", "1M"}) {
    const CommandResult result = Mount({"--dram", size, "--nvme", "1G"});
    EXPECT_EQ(result.status, 2) << "--dram '" << size << "': " << result.err;
    EXPECT_NE(result.err.find("dram"), std::string::npos) << result.err;
  }
  for (const std::string size : {"-1", "many", "1X"}) {
    const CommandResult result = Mount({"--dram", "64M", "--nvme", size});
    EXPECT_EQ(result.status, 2) << "--nvme '" << size << "': " << result.err;
    EXPECT_NE(result.err.find("nvme"), std::string::npos) << result.err;
  }
}

TEST_F(CommandLine, WrongSettingsExitTwo) {
  for (const std::string set : {"fs.no_such_key=1", "nothing", "fs.lease=forever",
                                "fs.passthrough=maybe", "fs.evict_high=7", "fs.evict_low=0.99"}) {
    const CommandResult result = Mount({"--dram", "64M", "--nvme", "1G", "--set", set});
    EXPECT_EQ(result.status, 2) << set << ": " << result.err;
    EXPECT_NE(result.err.find(set.substr(0, set.find('='))), std::string::npos) << result.err;
  }
}

TEST_F(CommandLine, ConfigFilesAreCheckedByLine) {
  const std::string file = scratch_.path() + "/my.toml";
  const std::vector<Case> cases{
      {{"[fs]\nlease = \"30s\"\nno_such_key = 1\n"}, ":3"},
      {{"[fs]\nlease = \"soon\"\n"}, ":2"},
      {{"[no_such_section]\nx = 1\n"}, ":2"},
      {{"[fs\n"}, ":1"},
      {{"\n\n[fs]\nlease = 30\n"}, ":4"},
  };
  for (const Case& one : cases) {
    ASSERT_EQ(WriteFile(file, one.words.front()), 0);
    const CommandResult result = Mount({"--dram", "64M", "--nvme", "1G", "--config", file});
    EXPECT_EQ(result.status, 2) << one.words.front() << result.err;
    EXPECT_NE(result.err.find(file + one.named), std::string::npos) << result.err;
  }
  const CommandResult missing = Mount({"--config", scratch_.path() + "/not-there.toml"});
  EXPECT_NE(missing.status, 0);
  EXPECT_NE(missing.err.find("not-there.toml"), std::string::npos) << missing.err;
}

TEST_F(CommandLine, HelpAndVersion) {
  for (const std::string verb : {"mount", "unmount", "lookup", "stat", "top", "drop", "fsck",
                                 "version", "replay", "trace"}) {
    const CommandResult help = RunCommand({KVC_COMMAND, verb, "--help"});
    EXPECT_EQ(help.status, 0) << verb << help.err;
    EXPECT_FALSE(help.out.empty()) << verb;
  }
  const CommandResult version = RunCommand({KVC_COMMAND, "version"});
  EXPECT_EQ(version.status, 0);
  EXPECT_FALSE(version.out.empty());
}

// What is well said and cannot be done exits 1.
TEST_F(CommandLine, WhatCannotBeDoneExitsOne) {
  const std::string file = scratch_.path() + "/file";
  ASSERT_EQ(WriteFile(file, "no directory"), 0);
  const std::vector<std::vector<std::string>> cases{
      {"lookup", scratch_.path() + "/not-there", Key(1)},
      {"stat", scratch_.path() + "/not-there"},
      {"drop", scratch_.path() + "/not-there"},
      {"unmount", mnt_},
      {"fsck", "--data", scratch_.path() + "/not-there"},
      {"fsck", "--data", mnt_},
      {"mount", mnt_, "--data", file, "--dram", "64M", "--nvme", "1G"}};
  for (const auto& one : cases) {
    std::vector<std::string> words{"timeout", "20", KVC_COMMAND};
    words.insert(words.end(), one.begin(), one.end());
    const CommandResult result = RunCommand(words);
    EXPECT_EQ(result.status, 1) << one.front() << ": " << result.err;
    EXPECT_FALSE(result.err.empty()) << one.front();
  }
}

}  // namespace
}  // namespace kvcfs::test
