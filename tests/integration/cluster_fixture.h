// A whole cluster on this machine: a real etcd, servers as processes, and real mounts.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "tests/integration/mount_fixture.h"
#include "tests/integration/server_fixture.h"
#include "tests/unit/meta/etcd_fixture.h"

namespace kvcfs::test {

inline constexpr size_t kBlockBytes = 256 << 10;
// A loaded machine is slow, and a lease that runs out takes its time.
inline constexpr std::chrono::seconds kLong{120};

inline Namespace Made(TestMount& mount, const std::string& name, int replicas = 1,
                      size_t block_bytes = kBlockBytes) {
  Namespace ns(mount, name, block_bytes);
  EXPECT_EQ(ErrnoName(SetXattrErrno(ns.path(), "user.kvc.replicas", std::to_string(replicas))),
            "0");
  return ns;
}
// What another mount has set is seen a moment later.
inline bool SettingIs(const Namespace& ns, const std::string& name, const std::string& value) {
  return Eventually([&] { return GetXattr(ns.path(), "user.kvc." + name) == value; }, kLong);
}
// A namespace that another mount made.
inline Namespace Seen(TestMount& mount, const std::string& name) {
  EXPECT_TRUE(Eventually([&] { return Exists(mount.mount_point() + "/" + name); }, kLong));
  return {mount, name, 0};
}
// What another mount has closed is seen a moment later.
inline bool Matches(const Namespace& ns, const std::vector<std::string>& keys, int64_t count) {
  return Eventually([&] { return ns.Match(keys) == count; }, kLong);
}

// What `kvcfs replay` says; calls may fail only where something is away.
inline nlohmann::json Replay(const std::string& trace, const Namespace& ns, int concurrency = 1,
                             bool may_fail = false) {
  const auto played = RunCommand({KVC_COMMAND, "replay", trace, "--mount", ns.path(), "--json",
                                  "--concurrency", std::to_string(concurrency)});
  if (!may_fail) {
    EXPECT_EQ(played.status, 0) << played.err << played.out;
  }
  return nlohmann::json::parse(played.out, nullptr, false);
}

// Servers, and mounts by need.
class ClusterTest : public meta::EtcdFixture {
 protected:
  explicit ClusterTest(int servers = 3, std::vector<std::string> server_words = {})
      : server_count_(servers), server_words_(std::move(server_words)) {}

  void SetUp() override {
    KVC_NEEDS_MOUNT();
    if (const std::string missing = WhyNoServer(); !missing.empty()) {
      GTEST_SKIP() << "needs servers: " << missing;
    }
    EtcdFixture::SetUp();
    if (IsSkipped() || HasFatalFailure()) return;
    cluster_ = "etcd://" + etcd_.endpoint();
    for (int i = 1; i <= server_count_; ++i) {
      servers_.push_back(
          std::make_unique<TestServer>("n" + std::to_string(i), etcd_.endpoint(),
                                       ServerOptions{.dram = "256MiB", .extra = server_words_}));
      servers_.back()->Start();
    }
    for (const auto& server : servers_) ASSERT_TRUE(server->Await()) << server->LogTail();
  }
  void TearDown() override {
    for (const auto& mount : mounts_) {
      if (mount->running()) {
        EXPECT_EQ(mount->Stop(), 0);
      }
    }
    mounts_.clear();
    if (!HasFailure()) return;
    for (const auto& server : servers_) {
      fmt::print("--- log of {} ---\n{}\n---\n", server->name(), server->LogTail());
    }
  }

  TestMount& Mounted(const std::string& dram = "256M", const std::string& nvme = "1G",
                     const std::vector<std::string>& words = {}) {
    MountOptions options;
    options.dram = dram;
    options.nvme = nvme;
    options.extra = {"--cluster", cluster_};
    options.extra.insert(options.extra.end(), words.begin(), words.end());
    mounts_.push_back(std::make_unique<TestMount>(options));
    EXPECT_TRUE(mounts_.back()->Start()) << mounts_.back()->LogTail();
    return *mounts_.back();
  }

  const int server_count_;
  const std::vector<std::string> server_words_;
  std::string cluster_;
  std::vector<std::unique_ptr<TestServer>> servers_;
  std::vector<std::unique_ptr<TestMount>> mounts_;
};

}  // namespace kvcfs::test
