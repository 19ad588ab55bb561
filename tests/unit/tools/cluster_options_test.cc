#include "tools/cluster_options.h"

#include <cstdlib>
#include <filesystem>
#include <string>

#include <CLI/CLI.hpp>
#include <gtest/gtest.h>

namespace kvcfs::tools {
namespace {

ClusterSettings Settings() {
  ClusterSettings settings;
  settings.etcd = "etcd://127.0.0.1:2379,[::1]:2379";
  settings.name = "a";
  return settings;
}

std::string ErrorOf(const ClusterSettings& settings, ClusterUse use = ClusterUse::kServe) {
  const auto options = ParseClusterOptions(settings, use);
  if (options.ok()) return "accepted";
  EXPECT_EQ(options.code(), Code::kInvalid);
  return options.error().text;
}

TEST(ClusterOptions, SettingsBecomeOptions) {
  const auto options = ParseClusterOptions(Settings(), ClusterUse::kServe);
  ASSERT_TRUE(options.ok()) << options.error().text;
  EXPECT_EQ(options->etcd.endpoints, (std::vector<std::string>{"127.0.0.1:2379", "[::1]:2379"}));
  EXPECT_EQ(options->name, "a");
  EXPECT_EQ(options->id, "kvcfs");
  EXPECT_EQ(options->roles, meta::kRoleMetadata | meta::kRoleBlocks);
  EXPECT_EQ(options->listen.ToString(), "127.0.0.1:7470");
  EXPECT_EQ(ParseClusterOptions(Settings(), ClusterUse::kAsk)->roles, 0);
}

TEST(ClusterOptions, AMountHoldsBlocksUnlessItIsAClient) {
  ClusterSettings settings = Settings();
  const auto mount = ParseClusterOptions(settings, ClusterUse::kMount);
  ASSERT_TRUE(mount.ok()) << mount.error().text;
  EXPECT_EQ(mount->roles, meta::kRoleBlocks);
  EXPECT_EQ(mount->listen.ToString(), "127.0.0.1:0");
  settings.roles = "meta,blocks";
  EXPECT_EQ(ParseClusterOptions(settings, ClusterUse::kMount)->roles,
            meta::kRoleMetadata | meta::kRoleBlocks);
  settings.client_only = true;
  EXPECT_NE(ErrorOf(settings, ClusterUse::kMount).find("cluster.client_only"), std::string::npos);
  settings.roles = "";
  EXPECT_EQ(ParseClusterOptions(settings, ClusterUse::kMount)->roles, 0);
}

TEST(ClusterOptions, WhatIsWrongIsNamed) {
  ClusterSettings settings = Settings();
  settings.etcd = "";
  EXPECT_NE(ErrorOf(settings).find("--cluster"), std::string::npos);
  settings.etcd = "http://x";
  EXPECT_NE(ErrorOf(settings).find("etcd://HOST:PORT"), std::string::npos);
  settings = Settings();
  settings.transport = "pigeon";
  EXPECT_NE(ErrorOf(settings).find("cluster.transport"), std::string::npos);
  settings.transport = "auto";
  settings.one_sided = "sometimes";
  EXPECT_NE(ErrorOf(settings).find("cluster.one_sided"), std::string::npos);
  settings.one_sided = "auto";
  settings.roles = "meta,cook";
  EXPECT_NE(ErrorOf(settings).find("cluster.roles"), std::string::npos);
  settings.roles = ",";
  EXPECT_NE(ErrorOf(settings).find("cluster.roles"), std::string::npos);
  settings = Settings();
  settings.name = "a/b";
  EXPECT_NE(ErrorOf(settings).find("cluster.name"), std::string::npos);
  settings = Settings();
  settings.tls_cert = "/nonexistent.pem";
  EXPECT_NE(ErrorOf(settings).find("--tls-key"), std::string::npos);
}

TEST(ClusterOptions, WithoutTlsOnlyLoopbackAddresses) {
  ClusterSettings settings = Settings();
  settings.listen = "192.0.2.1:7470";
  EXPECT_NE(ErrorOf(settings).find("--tls-cert"), std::string::npos);
  EXPECT_NE(ErrorOf(settings, ClusterUse::kMount).find("--tls-cert"), std::string::npos);
  settings.client_only = true;
  EXPECT_EQ(ErrorOf(settings, ClusterUse::kMount), "accepted") << "a client does not listen";
}

TEST(ClusterOptions, ACertificateSaysTheNameAndTheRole) {
  const std::string dir = testing::TempDir() + "cluster_options_certs";
  std::filesystem::remove_all(dir);
  const std::string command = std::string(KVC_SOURCE_DIR) + "/tools/dev-certs.sh '" + dir + "' ";
  ASSERT_EQ(std::system((command + "node n1 >/dev/null 2>&1").c_str()), 0);
  ASSERT_EQ(std::system((command + "client c1 >/dev/null 2>&1").c_str()), 0);
  ClusterSettings settings = Settings();
  settings.name = "";
  settings.listen = "192.0.2.1:7470";
  settings.tls_cert = dir + "/n1.pem";
  settings.tls_key = dir + "/n1.key";
  settings.tls_ca = dir + "/ca.pem";
  auto options = ParseClusterOptions(settings, ClusterUse::kServe);
  ASSERT_TRUE(options.ok()) << options.error().text;
  EXPECT_EQ(options->name, "n1");
  EXPECT_EQ(options->etcd.authority, settings.tls_ca);
  settings.etcd_tls = false;
  EXPECT_EQ(ParseClusterOptions(settings, ClusterUse::kServe)->etcd.authority, "");
  settings.listen = "0.0.0.0:7470";
  EXPECT_NE(ErrorOf(settings).find("--advertise"), std::string::npos);
  settings.advertise = "host:7470";
  EXPECT_EQ(ErrorOf(settings), "accepted");
  settings.name = "n2";
  EXPECT_NE(ErrorOf(settings).find("'n1'"), std::string::npos);
  settings.name = "";
  settings.tls_cert = dir + "/c1.pem";
  settings.tls_key = dir + "/c1.key";
  EXPECT_NE(ErrorOf(settings).find("node's"), std::string::npos);
  EXPECT_NE(ErrorOf(settings, ClusterUse::kMount).find("--client-only"), std::string::npos);
  settings.client_only = true;
  EXPECT_EQ(ErrorOf(settings, ClusterUse::kMount), "accepted");
}

TEST(ClusterOptions, FlagsAreSettings) {
  CLI::App app;
  SettingFlags flags;
  AddClusterFlags(flags, &app, ClusterUse::kServe);
  flags.AddConfig(&app, "cluster.id=test");
  app.parse("--cluster etcd://h:1 --name n --roles blocks --set cluster.name=other", false);
  const auto config = flags.Load();
  ASSERT_TRUE(config.ok()) << config.error().text;
  EXPECT_EQ(config->cluster.etcd, "etcd://h:1");
  EXPECT_EQ(config->cluster.name, "n");
  EXPECT_EQ(config->cluster.roles, "blocks");
  EXPECT_EQ(config->cluster.listen, "");
}

TEST(ClusterOptions, ANodeIsWhoItsUuidSays) {
  iouring::Uuid uuid{};
  uuid[7] = 1;
  uuid[15] = 2;
  EXPECT_EQ(NodeIdOf(uuid), (meta::NodeId{1, 2}));
  EXPECT_NE(RandomNodeId(), RandomNodeId());
}

}  // namespace
}  // namespace kvcfs::tools
