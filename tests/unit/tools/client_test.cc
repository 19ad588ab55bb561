#include "tools/client.h"

#include <filesystem>
#include <fstream>

#include <gtest/gtest.h>
#include <stdlib.h>

#include "meta/chain_key.h"
#include "tools/stats.h"

namespace kvcfs::tools {
namespace {

const std::vector<uint64_t> kIds{1, 2, 3};

TEST(MatchAnswer, AsTheFileSaysIt) {
  const std::vector<BlockKey> keys = meta::ChainKeys(kIds);
  const Result<MatchAnswer> answer = ParseMatchAnswer(
      "2 30000\n0 " + keys[0].ToHex() + " dram 65536\n1 " + keys[1].ToHex() + " nvme 17\n", keys);
  ASSERT_TRUE(answer.ok()) << answer.error().text;
  EXPECT_EQ(answer->count(), 2u);
  EXPECT_EQ(answer->lease_ms, 30000u);
  EXPECT_EQ(answer->blocks[0].tier, Tier::kDram);
  EXPECT_EQ(answer->blocks[0].bytes, 65536u);
  EXPECT_EQ(answer->blocks[1].tier, Tier::kNvme);
  EXPECT_EQ(ParseMatchAnswer("0 0\n", keys)->count(), 0u);
}

TEST(MatchAnswer, NeverBelievesNonsense) {
  const std::vector<BlockKey> keys = meta::ChainKeys(kIds);
  const std::string first = "0 " + keys[0].ToHex() + " dram 1\n";
  for (const std::string& text :
       {std::string(), std::string("x 0\n"), std::string("1\n"), std::string("4 0\n"),
        std::string("1 0\n"), "2 0\n" + first, "1 0 7\n" + first,
        "1 0\n0 " + keys[1].ToHex() + " dram 1\n", "1 0\n1 " + keys[0].ToHex() + " dram 1\n",
        "1 0\n0 " + keys[0].ToHex() + " dram\n", "1 0\n0 " + keys[0].ToHex() + " dram 1 1\n",
        std::string("-1 0\n")}) {
    EXPECT_EQ(ParseMatchAnswer(text, keys).code(), Code::kCorrupt) << text;
  }
}

// A directory that looks like a mount from outside.
struct ClientTest : testing::Test {
  ClientTest() {
    char name[] = "/tmp/kvcfs-client-test-XXXXXX";
    top = ::mkdtemp(name);
    std::filesystem::create_directories(top + "/.kvcfs");
    std::filesystem::create_directories(top + "/llama/files/deep");
    std::ofstream(top + "/.kvcfs/version") << "0\n";
  }
  ~ClientTest() override { std::filesystem::remove_all(top); }
  std::string top;
};

TEST_F(ClientTest, FindsMountAndNamespace) {
  EXPECT_EQ(FindMount(top)->inside, "");
  EXPECT_EQ(FindMount(top + "/llama/files/deep")->mountpoint, top);
  EXPECT_EQ(FindMount(top + "/llama/files/deep")->inside, "llama/files/deep");
  EXPECT_EQ(FindNamespace(top + "/llama/")->inside, "llama");
  EXPECT_EQ(FindNamespace(top).code(), Code::kInvalid);
  EXPECT_EQ(FindNamespace(top + "/llama/files").code(), Code::kInvalid);
  EXPECT_EQ(FindMountOrNamespace(top + "/.kvcfs").code(), Code::kInvalid);
  EXPECT_TRUE(FindMountOrNamespace(top).ok());
  EXPECT_EQ(FindMount(top + "/nothing").code(), Code::kNotFound);
  const Result<MountedPath> elsewhere = FindMount("/proc");
  EXPECT_EQ(elsewhere.code(), Code::kInvalid);
  EXPECT_NE(elsewhere.error().text.find("kvcfs mount"), std::string::npos) << "the next step";
}

TEST_F(ClientTest, APlainDirectoryIsNoNamespace) {
  Result<NamespaceClient> client = NamespaceClient::Open(top + "/llama");
  ASSERT_TRUE(client.ok());
  const std::vector<BlockKey> keys = meta::ChainKeys(kIds);
  EXPECT_EQ(client->Match(keys).code(), Code::kInvalid);
  EXPECT_EQ(client->Drop(keys[0]).code(), Code::kInvalid);
  EXPECT_EQ(client->Match({})->count(), 0u);
  const Result<NamespaceClient> none = NamespaceClient::Open(top + "/none");
  EXPECT_EQ(none.code(), Code::kNotFound);
  EXPECT_NE(none.error().text.find("mkdir"), std::string::npos) << "the next step";
}

TEST_F(ClientTest, StatsAreReadAsFarAsTheyGo) {
  EXPECT_EQ(ReadStats(top).code(), Code::kNotFound);
  std::ofstream(top + "/.kvcfs/stats.json") << "[]";
  EXPECT_EQ(ReadStats(top).code(), Code::kCorrupt);
  std::ofstream(top + "/.kvcfs/stats.json")
      << R"({"mode": {"passthrough": false, "reason": "kernel 6.1"},
             "tiers": {"dram": {"used_bytes": 7}}, "uptime_s": 3725.5})";
  const Json stats = ReadStats(top).value();
  EXPECT_EQ(FormatMode(stats), "off (kernel 6.1)");
  EXPECT_EQ(CountAt(stats, "tiers/dram/used_bytes"), 7u);
  EXPECT_EQ(CountAt(stats, "tiers/nvme/used_bytes"), 0u);
  EXPECT_FALSE(NumberAt(stats, "mode/reason"));
  EXPECT_FALSE(TextAt(stats, "uptime_s"));
  EXPECT_EQ(FormatSeconds(*NumberAt(stats, "uptime_s")), "1 h 2 min");
  EXPECT_EQ(FormatMode(Json::object()), "unknown");
  EXPECT_EQ(FormatBar(0.5, 4), "[##--]");
  EXPECT_EQ(FormatBar(7, 4), "[####]");
}

}  // namespace
}  // namespace kvcfs::tools
