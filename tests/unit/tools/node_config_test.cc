#include "tools/node_config.h"

#include <fstream>

#include <gtest/gtest.h>

#include "base/read_file.h"

namespace kvcfs::tools {
namespace {

TEST(NodeConfig, KvcfsTomlShowsEveryKeyAndEqualsTheDefaults) {
  const std::string path = std::string(KVC_SOURCE_DIR) + "/tools/kvcfs.toml";
  const std::string text = ReadFile(path).value();
  const std::string defaults = DumpNodeConfig({});
  ASSERT_TRUE(text.ends_with(defaults)) << "tools/kvcfs.toml must end with exactly this:\n"
                                        << defaults;
  const Result<NodeConfig> loaded = LoadNodeConfig(path, {}, {});
  ASSERT_TRUE(loaded.ok()) << loaded.error().text;
  EXPECT_EQ(DumpNodeConfig(*loaded), defaults);
}

TEST(NodeConfig, DefaultsAreValid) {
  const Result<NodeConfig> config = LoadNodeConfig("", {}, {});
  ASSERT_TRUE(config.ok()) << config.error().text;
  EXPECT_EQ(config->node.data, "/var/lib/kvcfs");
  EXPECT_EQ(config->node.dram.Of(1000), 250u);
}

TEST(NodeConfig, FileThenSetThenFlags) {
  const std::string path = testing::TempDir() + "node_config_test.toml";
  std::ofstream(path) << "[fs]\nlease = \"1min\"\nprefetch_blocks = 1\n[node]\ndram = \"1GiB\"\n";
  const Result<NodeConfig> config =
      LoadNodeConfig(path, {"fs.prefetch_blocks=2", "node.dram=2GiB", "fs.passthrough=off"},
                     {{"--dram", "node.dram", "3GiB"}});
  ASSERT_TRUE(config.ok()) << config.error().text;
  EXPECT_EQ(config->fs.lease, std::chrono::seconds(60));
  EXPECT_EQ(config->fs.prefetch_blocks, 2);
  EXPECT_EQ(config->fs.passthrough, Passthrough::kOff);
  EXPECT_EQ(config->node.dram.bytes, uint64_t{3} << 30);
}

TEST(NodeConfig, ErrorsNameTheFlag) {
  const auto error = [](const std::vector<std::string>& sets,
                        const std::vector<NodeConfigFlag>& flags) {
    const Result<NodeConfig> config = LoadNodeConfig("", sets, flags);
    return config.ok() ? "accepted" : config.error().text;
  };
  EXPECT_EQ(error({}, {{"--dram", "node.dram", "lots"}}),
            "--dram lots: node.dram: 'lots' is not a size; write a number and a unit, as 64KiB, "
            "2MiB, 8GiB");
  EXPECT_EQ(error({"fs.leese=3s"}, {}),
            "--set fs.leese=3s: unknown key 'fs.leese'; did you mean 'fs.lease'?");
}

TEST(NodeConfig, WhatDoesNotFitTogether) {
  for (const char* set : {"fs.evict_low=0.95", "node.data=relative", "node.dram=1KiB",
                          "iouring.segment_bytes=1600KiB", "fs.entry_timeout=1h"}) {
    const Result<NodeConfig> config = LoadNodeConfig("", {set}, {});
    ASSERT_FALSE(config.ok()) << set;
    EXPECT_EQ(config.code(), Code::kInvalid);
    const std::string key = std::string(set).substr(0, std::string(set).find('='));
    EXPECT_NE(config.error().text.find(key), std::string::npos) << config.error().text;
  }
}

}  // namespace
}  // namespace kvcfs::tools
