// A whole cluster on this machine: a real etcd, servers as processes, and real mounts.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "tests/integration/mount_fixture.h"
#include "tests/integration/server_fixture.h"
#include "tests/unit/meta/etcd_fixture.h"

namespace kvcfs::test {

// Three servers, and mounts by need.
class ClusterTest : public meta::EtcdFixture {
 protected:
  static constexpr size_t kBlockBytes = 256 << 10;
  // A loaded machine is slow, and a lease that runs out takes its time.
  static constexpr std::chrono::seconds kLong{120};

  void SetUp() override {
    KVC_NEEDS_MOUNT();
    if (const std::string missing = WhyNoServer(); !missing.empty()) {
      GTEST_SKIP() << "needs servers: " << missing;
    }
    EtcdFixture::SetUp();
    if (IsSkipped() || HasFatalFailure()) return;
    cluster_ = "etcd://" + etcd_.endpoint();
    for (int i = 1; i <= 3; ++i) {
      servers_.push_back(std::make_unique<TestServer>("n" + std::to_string(i), etcd_.endpoint(),
                                                      ServerOptions{.dram = "256MiB"}));
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

  TestMount& Mounted(const std::string& dram = "256M", const std::string& nvme = "1G") {
    MountOptions options;
    options.dram = dram;
    options.nvme = nvme;
    options.extra = {"--cluster", cluster_};
    mounts_.push_back(std::make_unique<TestMount>(options));
    EXPECT_TRUE(mounts_.back()->Start()) << mounts_.back()->LogTail();
    return *mounts_.back();
  }
  static Namespace Made(TestMount& mount, const std::string& name, int replicas = 1) {
    Namespace ns(mount, name, kBlockBytes);
    EXPECT_EQ(ErrnoName(SetXattrErrno(ns.path(), "user.kvc.replicas", std::to_string(replicas))),
              "0");
    return ns;
  }
  // A namespace that another mount made.
  static Namespace Seen(TestMount& mount, const std::string& name) {
    EXPECT_TRUE(Eventually([&] { return Exists(mount.mount_point() + "/" + name); }, kLong));
    return {mount, name, 0};
  }

  // What another mount has set is seen a moment later.
  static bool SettingIs(const Namespace& ns, const std::string& name, const std::string& value) {
    return Eventually([&] { return GetXattr(ns.path(), "user.kvc." + name) == value; }, kLong);
  }
  // What another mount has closed is seen a moment later.
  static bool Matches(const Namespace& ns, const std::vector<std::string>& keys, int64_t count) {
    return Eventually([&] { return ns.Match(keys) == count; }, kLong);
  }

  std::string cluster_;
  std::vector<std::unique_ptr<TestServer>> servers_;
  std::vector<std::unique_ptr<TestMount>> mounts_;
};

}  // namespace kvcfs::test
