// What `kvcfs doctor` looks at on a host, what it makes of it, and what to change.
//
// Nothing is changed here. Files are read below roots that a test may give, system calls are made
// through HostCalls. Threads: the caller's. Fails: nothing; what cannot be found out is a finding.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/config.h"
#include "base/result.h"
#include "rdma/verbs.h"

namespace kvcfs::tools {

enum class Health { kOk, kWarn, kFail };
std::string_view HealthName(Health health);  // "ok", "warn", "fail"

struct HostFinding {
  std::string check;  // one word, stable: what programs go by
  Health health = Health::kOk;
  std::string found;
  std::string change = {};  // a command, or what to do; empty: nothing
  std::string cost = {};    // of leaving it
};

// What the kernel offered to a FUSE filesystem.
struct FuseOffer {
  uint32_t minor = 0;  // of protocol 7
  bool passthrough = false;
};

struct DiskFacts {
  std::string path;  // of what was looked at: the directory, or what is there of the way to it
  unsigned device_major = 0, device_minor = 0;
  uint64_t free_bytes = 0;
  int direct_errno = 0;  // of an aligned write with O_DIRECT
};

struct HostCalls {
  std::function<int()> io_uring_setup;  // an errno, 0: it works
  std::function<Result<FuseOffer>()> fuse_offer;
  std::function<Result<DiskFacts>(const std::string& directory)> disk_facts;
  bool libfuse_has_passthrough = false;
  std::function<Result<std::vector<rdma::VerbsDeviceFacts>>()> rdma_devices = {};
};
// Those of this machine.
HostCalls RealHostCalls();

struct DoctorOptions {
  std::string data = "/var/lib/kvcfs";
  SizeOrShare dram{.share = 0.25};
  std::string proc = "/proc", sys = "/sys", dev = "/dev";
};

std::vector<HostFinding> ExamineHost(const DoctorOptions& options, const HostCalls& calls);

}  // namespace kvcfs::tools
