// A whole cluster on this machine: a real etcd, servers as processes, and real mounts.
#pragma once

#include <csignal>
#include <memory>
#include <string>
#include <vector>

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "tests/integration/mount_fixture.h"
#include "tests/unit/meta/etcd_fixture.h"

namespace kvcfs::test {

// One `kvcfs serve`.
class TestServer {
 public:
  TestServer(std::string name, std::string cluster)
      : name_(std::move(name)), cluster_(std::move(cluster)) {}
  ~TestServer() { Kill(); }
  TestServer(const TestServer&) = delete;
  TestServer& operator=(const TestServer&) = delete;

  void Start() {
    const std::string listen = "127.0.0.1:" + std::to_string(meta::FreePort());
    pid_ = ::fork();
    if (pid_ != 0) return;
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    const int log = ::open(log_path().c_str(), O_CREAT | O_WRONLY | O_APPEND | O_CLOEXEC, 0600);
    ::dup2(log, 1);
    ::dup2(log, 2);
    const std::string data = directory_.path() + "/data";
    ::execl(KVC_COMMAND, "kvcfs", "serve", "--cluster", cluster_.c_str(), "--name", name_.c_str(),
            "--listen", listen.c_str(), "--data", data.c_str(), "--dram", "256MiB", "--nvme",
            "256MiB", nullptr);
    ::_exit(127);
  }
  bool Serves() const {
    return ReadWhole(log_path()).value_or("").find("serving ") != std::string::npos;
  }
  void Kill() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    pid_ = 0;
    // Its DRAM tier stays mounted after that.
    RunCommand({"umount", "-l", directory_.path() + "/data/dram"});
  }
  const std::string& name() const { return name_; }
  std::string Log() const { return ReadWhole(log_path()).value_or(""); }

 private:
  std::string log_path() const { return directory_.path() + "/log"; }

  TemporaryDirectory directory_;
  const std::string name_, cluster_;
  pid_t pid_ = 0;
};

// Three servers, and mounts by need.
class ClusterTest : public meta::EtcdFixture {
 protected:
  static constexpr size_t kBlockBytes = 256 << 10;
  // A loaded machine is slow, and a lease that runs out takes its time.
  static constexpr std::chrono::seconds kLong{120};

  void SetUp() override {
    KVC_NEEDS_MOUNT();
    EtcdFixture::SetUp();
    if (IsSkipped() || HasFatalFailure()) return;
    cluster_ = "etcd://" + etcd_.endpoint();
    for (int i = 1; i <= 3; ++i) {
      servers_.push_back(std::make_unique<TestServer>("n" + std::to_string(i), cluster_));
      servers_.back()->Start();
    }
    for (const auto& server : servers_) {
      ASSERT_TRUE(Eventually([&] { return server->Serves(); }, kLong)) << server->Log();
    }
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
      fmt::print("--- log of {} ---\n{}\n---\n", server->name(), server->Log());
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
