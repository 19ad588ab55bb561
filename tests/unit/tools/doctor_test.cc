// What the doctor makes of hosts that are not this one.
#include "tools/doctor.h"

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <set>

#include <gtest/gtest.h>

namespace kvcfs::tools {
namespace {

namespace stdfs = std::filesystem;

// A host without a fault, below a directory.
class Doctor : public testing::Test {
 protected:
  void SetUp() override {
    root_ = testing::TempDir() + "kvc-doctor-" + std::to_string(::getpid());
    stdfs::remove_all(root_);
    options_.proc = root_ + "/proc";
    options_.sys = root_ + "/sys";
    options_.dev = root_ + "/dev";
    options_.data = "/somewhere";
    options_.dram = {.bytes = uint64_t{8} << 30, .share = 0};
    Write("proc/sys/kernel/osrelease", "6.12.9-amd64\n");
    Write("proc/self/status", "Name:\tkvcfs\nCapEff:\t000001ffffffffff\nSeccomp:\t0\n");
    Write("proc/self/limits", Limits("unlimited", "1048576"));
    Write("proc/meminfo",
          "MemTotal:       33554432 kB\nMemFree: 1 kB\nMemAvailable: 16777216 kB\n");
    Write("proc/sys/vm/max_map_count", "65530\n");
    Write("sys/kernel/mm/transparent_hugepage/shmem_enabled",
          "always within_size advise [never] deny force\n");
    Write("dev/fuse", "");
    Write("sys/class/net/eth0/device/vendor", "1\n");
    Write("sys/class/net/eth0/operstate", "up\n");
    Write("sys/class/net/eth0/mtu", "1500\n");
    Write("sys/class/net/eth0/speed", "1000\n");
    Write("sys/devices/nvme0n1/queue/scheduler", "[none] mq-deadline\n");
    Write("sys/devices/nvme0n1/queue/rotational", "0\n");
    Write("sys/devices/nvme0n1/nvme0n1p1/partition", "1\n");
    stdfs::create_directories(root_ + "/sys/dev/block");
    stdfs::create_symlink("../../devices/nvme0n1", root_ + "/sys/dev/block/259:0");
    stdfs::create_symlink("../../devices/nvme0n1/nvme0n1p1", root_ + "/sys/dev/block/259:1");
    disk_ = {.path = "/somewhere",
             .device_major = 259,
             .device_minor = 1,
             .free_bytes = uint64_t{100} << 30,
             .direct_errno = 0};
    calls_.io_uring_setup = [this] { return io_uring_; };
    calls_.fuse_offer = [this] { return offer_; };
    calls_.disk_facts = [this](const std::string& path) -> Result<DiskFacts> {
      EXPECT_EQ(path, "/somewhere");
      return disk_;
    };
    calls_.libfuse_has_passthrough = true;
  }
  void TearDown() override { stdfs::remove_all(root_); }

  void Write(const std::string& path, const std::string& text) {
    const stdfs::path file = stdfs::path(root_) / path;
    stdfs::create_directories(file.parent_path());
    std::ofstream(file) << text;
  }
  void Remove(const std::string& path) { stdfs::remove_all(stdfs::path(root_) / path); }
  static std::string Limits(const std::string& locked, const std::string& files) {
    return "Limit                     Soft Limit           Hard Limit           Units     \n"
           "Max open files            " +
           files +
           "  1048576  files     \n"
           "Max locked memory         " +
           locked + "  unlimited  bytes     \n";
  }
  void WithoutCapabilities() { Write("proc/self/status", "CapEff:\t0000000000000000\n"); }

  std::vector<HostFinding> Examine() {
    auto findings = ExamineHost(options_, calls_);
    for (const HostFinding& one : findings) {
      EXPECT_FALSE(one.found.empty()) << one.check;
      // Who is told of a fault is told what to do, and what for.
      EXPECT_EQ(one.change.empty(), one.health == Health::kOk) << one.check << ": " << one.found;
      EXPECT_EQ(one.cost.empty(), one.health == Health::kOk) << one.check << ": " << one.found;
    }
    return findings;
  }
  // The worst finding of that name.
  HostFinding Find(const std::string& check) {
    const auto findings = Examine();
    HostFinding worst{.check = "none", .found = "no finding of " + check};
    for (const HostFinding& one : findings) {
      if (one.check == check && (worst.check == "none" || one.health > worst.health)) worst = one;
    }
    EXPECT_EQ(worst.check, check);
    return worst;
  }
  // Everything but what is named is as on a host without a fault.
  void ExpectOnly(const std::set<std::string>& checks) {
    for (const HostFinding& one : Examine()) {
      EXPECT_EQ(one.health != Health::kOk, checks.count(one.check) > 0)
          << one.check << ": " << one.found;
    }
  }
  void AddRdma(const std::string& layer, const std::string& state, const std::string& type) {
    const std::string port = "sys/class/infiniband/mlx5_0/ports/1/";
    Write(port + "state", state + "\n");
    Write(port + "link_layer", layer + "\n");
    Write(port + "gids/0", "0000:0000:0000:0000:0000:0000:0000:0000\n");
    Write(port + "gids/1", "0000:0000:0000:0000:0000:ffff:0a00:0001\n");
    Write(port + "gid_attrs/types/1", type + "\n");
    Write("dev/infiniband/uverbs0", "");
  }

  std::string root_;
  DoctorOptions options_;
  HostCalls calls_;
  int io_uring_ = 0;
  Result<FuseOffer> offer_ = FuseOffer{.minor = 41, .passthrough = true};
  DiskFacts disk_;
};

TEST_F(Doctor, AHostWithoutAFaultHasNone) {
  ExpectOnly({});
  std::set<std::string> checks;
  for (const HostFinding& one : Examine()) checks.insert(one.check);
  EXPECT_EQ(checks, (std::set<std::string>{"kernel", "privileges", "fuse", "passthrough",
                                           "io_uring", "memory", "locked_memory", "open_files",
                                           "mappings", "huge_pages", "rdma", "mtu", "disk",
                                           "direct_io", "free_space"}));
}

TEST_F(Doctor, Kernel) {
  Write("proc/sys/kernel/osrelease", "6.1.0-30-amd64\n");
  offer_ = FuseOffer{.minor = 38, .passthrough = false};
  ExpectOnly({"kernel", "passthrough"});
  EXPECT_EQ(Find("kernel").health, Health::kWarn);
  EXPECT_NE(Find("passthrough").change.find("6.9"), std::string::npos);
  Write("proc/sys/kernel/osrelease", "5.10.0\n");
  EXPECT_NE(Find("kernel").found.find("older"), std::string::npos);
  Write("proc/sys/kernel/osrelease", "10.0\n");
  EXPECT_EQ(Find("kernel").health, Health::kOk);
}

TEST_F(Doctor, WithoutPrivilegesNothingIsMounted) {
  WithoutCapabilities();
  ExpectOnly({"privileges", "passthrough"});
  EXPECT_EQ(Find("privileges").health, Health::kFail);
  EXPECT_NE(Find("passthrough").found.find("CAP_SYS_ADMIN"), std::string::npos);
}

TEST_F(Doctor, Fuse) {
  Remove("dev/fuse");
  EXPECT_EQ(Find("fuse").health, Health::kFail);
  EXPECT_NE(Find("fuse").change.find("modprobe fuse"), std::string::npos);
  Write("dev/fuse", "");
  // Not to be tried: the version of the kernel decides.
  offer_ = Error{Code::kDenied, "unshare: not permitted"};
  ExpectOnly({"fuse"});
  EXPECT_EQ(Find("fuse").health, Health::kWarn);
}

TEST_F(Doctor, PassthroughWantsANewLibfuse) {
  calls_.libfuse_has_passthrough = false;
  ExpectOnly({"passthrough"});
  EXPECT_NE(Find("passthrough").change.find("libfuse"), std::string::npos);
}

TEST_F(Doctor, IoUring) {
  const struct {
    int error;
    const char* disabled;
    std::string change;
  } cases[] = {{EPERM, "2", "sysctl -w kernel.io_uring_disabled=0"},
               {EPERM, "0", "seccomp=unconfined"},
               {EPERM, nullptr, "seccomp=unconfined"},
               {ENOSYS, nullptr, "CONFIG_IO_URING"},
               {ENOMEM, "0", "ulimit -l"}};
  for (const auto& one : cases) {
    io_uring_ = one.error;
    Remove("proc/sys/kernel/io_uring_disabled");
    if (one.disabled != nullptr) Write("proc/sys/kernel/io_uring_disabled", one.disabled);
    const HostFinding found = Find("io_uring");
    EXPECT_EQ(found.health, Health::kFail) << one.error;
    EXPECT_NE(found.change.find(one.change), std::string::npos) << found.change;
  }
  // It works where only others are kept out.
  io_uring_ = 0;
  Write("proc/sys/kernel/io_uring_disabled", "1\n");
  EXPECT_EQ(Find("io_uring").health, Health::kOk);
}

TEST_F(Doctor, TheDramTierHasToFit) {
  options_.dram = {.bytes = uint64_t{15} << 30, .share = 0};  // and a tenth, of 16 GiB
  EXPECT_EQ(Find("memory").health, Health::kWarn);
  options_.dram = {.bytes = uint64_t{33} << 30, .share = 0};
  EXPECT_EQ(Find("memory").health, Health::kFail);
  options_.dram = {.bytes = 0, .share = 0.25};  // of 32 GiB
  EXPECT_EQ(Find("memory").health, Health::kOk);
  // In a container, of what it may have.
  options_.dram = {.bytes = uint64_t{8} << 30, .share = 0};
  Write("sys/fs/cgroup/memory.max", "4294967296\n");
  EXPECT_EQ(Find("memory").health, Health::kFail);
  Write("sys/fs/cgroup/memory.max", "max\n");
  EXPECT_EQ(Find("memory").health, Health::kOk);
  Write("sys/fs/cgroup/memory/memory.limit_in_bytes", "4294967296\n");
  EXPECT_EQ(Find("memory").health, Health::kFail);
  Remove("proc/meminfo");
  EXPECT_EQ(Find("memory").health, Health::kWarn);
}

TEST_F(Doctor, LockedMemory) {
  Write("proc/self/limits", Limits("65536", "1048576"));
  EXPECT_EQ(Find("locked_memory").health, Health::kOk) << "privileged";
  WithoutCapabilities();
  EXPECT_EQ(Find("locked_memory").health, Health::kWarn);
  EXPECT_NE(Find("locked_memory").change.find("LimitMEMLOCK"), std::string::npos);
  Write("proc/self/limits", Limits("134217728", "1048576"));
  EXPECT_EQ(Find("locked_memory").health, Health::kOk);
  // RDMA registers the whole tier.
  AddRdma("InfiniBand", "4: ACTIVE", "IB/RoCE v1");
  EXPECT_EQ(Find("locked_memory").health, Health::kWarn);
  Write("proc/self/limits", Limits("unlimited", "1048576"));
  EXPECT_EQ(Find("locked_memory").health, Health::kOk);
}

TEST_F(Doctor, LimitsOfFilesAndMappings) {
  Write("proc/self/limits", Limits("unlimited", "1024"));
  ExpectOnly({"open_files"});
  Write("proc/self/limits", Limits("unlimited", "unlimited"));
  ExpectOnly({});
  // 32 GiB of blocks of 256 KiB are 131072.
  options_.dram = {.bytes = uint64_t{32} << 30, .share = 0};
  EXPECT_EQ(Find("mappings").health, Health::kWarn);
  EXPECT_EQ(Find("mappings").change, "sysctl -w vm.max_map_count=262144");
  Write("proc/sys/vm/max_map_count", "1048576\n");
  EXPECT_EQ(Find("mappings").health, Health::kOk);
}

TEST_F(Doctor, HugePages) {
  Write("sys/kernel/mm/transparent_hugepage/shmem_enabled",
        "always within_size advise never [deny] force\n");
  ExpectOnly({"huge_pages"});
  Remove("sys/kernel/mm/transparent_hugepage");
  ExpectOnly({"huge_pages"});
}

TEST_F(Doctor, Rdma) {
  AddRdma("Ethernet", "4: ACTIVE", "RoCE v2");
  ExpectOnly({});
  EXPECT_NE(Find("rdma").found.find("mlx5_0/1"), std::string::npos);
  AddRdma("Ethernet", "4: ACTIVE", "IB/RoCE v1");
  ExpectOnly({"rdma"});
  AddRdma("Ethernet", "1: DOWN", "RoCE v2");
  EXPECT_NE(Find("rdma").change.find("ip link set"), std::string::npos);
  AddRdma("InfiniBand", "4: ACTIVE", "IB/RoCE v1");
  ExpectOnly({});
  Remove("sys/class/infiniband/mlx5_0/ports/1/gids/1");
  ExpectOnly({"rdma"});
  AddRdma("InfiniBand", "4: ACTIVE", "IB/RoCE v1");
  calls_.rdma_devices = [] {
    return std::vector<rdma::VerbsDeviceFacts>{{.name = "mlx5_0", .shared_receives_max = 32767}};
  };
  ExpectOnly({});
  calls_.rdma_devices = [] {
    return std::vector<rdma::VerbsDeviceFacts>{{.name = "mlx5_0", .shared_receives_max = 0}};
  };
  EXPECT_NE(Find("rdma").found.find("no shared receive queue"), std::string::npos);
  calls_.rdma_devices = nullptr;
  Remove("dev/infiniband");
  EXPECT_NE(Find("rdma").change.find("ib_uverbs"), std::string::npos);
}

TEST_F(Doctor, SmallPacketsMatterOnFastLinks) {
  Write("sys/class/net/eth0/speed", "100000\n");
  ExpectOnly({"mtu"});
  EXPECT_NE(Find("mtu").change.find("dev eth0 mtu 9000"), std::string::npos);
  Write("sys/class/net/eth0/mtu", "9000\n");
  ExpectOnly({});
  Write("sys/class/net/eth0/mtu", "1500\n");
  Write("sys/class/net/eth0/operstate", "down\n");
  ExpectOnly({});
  // Without hardware: not asked.
  Write("sys/class/net/eth0/operstate", "up\n");
  Remove("sys/class/net/eth0/device");
  ExpectOnly({});
}

TEST_F(Doctor, Disk) {
  Write("sys/devices/nvme0n1/queue/scheduler", "none [mq-deadline] kyber\n");
  ExpectOnly({"disk"});
  EXPECT_EQ(Find("disk").change, "echo none > /sys/block/nvme0n1/queue/scheduler");
  disk_.device_minor = 0;  // the whole disk
  ExpectOnly({"disk"});
  Write("sys/devices/nvme0n1/queue/scheduler", "[none] mq-deadline kyber\n");
  ExpectOnly({});
  Write("sys/devices/nvme0n1/queue/rotational", "1\n");
  ExpectOnly({"disk"});
  Write("sys/devices/nvme0n1/queue/rotational", "0\n");
  disk_.device_major = 0;  // a tmpfs
  ExpectOnly({"disk"});
  disk_.device_major = 259;
  disk_.direct_errno = EINVAL;
  ExpectOnly({"direct_io"});
  disk_.direct_errno = EACCES;
  EXPECT_NE(Find("direct_io").found.find("not tried"), std::string::npos);
}

TEST_F(Doctor, FreeSpace) {
  disk_.free_bytes = uint64_t{12} << 30;
  ExpectOnly({"free_space"});
  EXPECT_EQ(Find("free_space").health, Health::kWarn);
  disk_.free_bytes = uint64_t{100} << 20;
  EXPECT_EQ(Find("free_space").health, Health::kFail);
}

TEST_F(Doctor, ADataDirectoryThatIsNone) {
  calls_.disk_facts = [](const std::string&) -> Result<DiskFacts> {
    return Error{Code::kInvalid, "/etc/passwd is no directory"};
  };
  ExpectOnly({"disk"});
  EXPECT_EQ(Find("disk").health, Health::kFail);
}

// A host of which nothing can be read is told so, and nothing breaks.
TEST_F(Doctor, AnEmptyHost) {
  Remove("");
  const auto findings = Examine();
  EXPECT_GT(std::count_if(findings.begin(), findings.end(),
                          [](const HostFinding& one) { return one.health != Health::kOk; }),
            8);
}

}  // namespace
}  // namespace kvcfs::tools
