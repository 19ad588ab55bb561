#include "tests/integration/host_network.h"

#include <thread>
#include <utility>

#include <fmt/format.h>
#include <sched.h>
#include <sys/mount.h>

namespace kvcfs::test {
namespace {

void MustRun(const std::string& command) {
  const CommandResult ran = Shell(command);
  EXPECT_EQ(ran.status, 0) << command << "\n" << ran.err;
}

}  // namespace

std::string HostNetwork::WhyNone() {
  if (::geteuid() != 0) return "root";
  for (const char* tool : {"ip", "tc", "nsenter"}) {
    if (!HaveTool(tool)) return std::string(tool) + " (iproute2, util-linux)";
  }
  const std::string link = "ip link add kvcprobe type bridge && ip link set kvcprobe up";
  if (Shell("unshare --net bash -c '" + link + "'").status != 0) {
    return "network namespaces and the kernel's bridge";
  }
  return "";
}

HostNetwork::HostNetwork(const std::vector<std::string>& names) {
  EXPECT_EQ(::unshare(CLONE_NEWNET), 0) << ErrnoName(errno);
  MustRun(
      "ip link set lo up && ip link add kvcbridge type bridge && ip link set kvcbridge up && "
      "ip address add 10.78.0.254/24 dev kvcbridge");
  std::string known = "127.0.0.1 localhost\n";
  for (size_t i = 0; i < names.size(); ++i) {
    Host host;
    // The namespace of the thread that makes it.
    std::thread([&] {
      EXPECT_EQ(::unshare(CLONE_NEWNET), 0) << ErrnoName(errno);
      host.space = Open("/proc/thread-self/ns/net", O_RDONLY);
    }).join();
    host.path = fmt::format("/proc/{}/fd/{}", ::getpid(), host.space.get());
    host.address = fmt::format("10.78.0.{}", i + 1);
    known += fmt::format("{} {}\n", host.address, names[i]);
    MustRun(
        fmt::format("ip link add kvcport{0} type veth peer name eth0 netns {1} && "
                    "ip link set kvcport{0} master kvcbridge && ip link set kvcport{0} up",
                    i + 1, host.path));
    const std::string address = host.address;
    hosts_.emplace(names[i], std::move(host));
    Run(names[i], "ip link set lo up");
    Run(names[i], "ip link set eth0 up");
    Run(names[i], fmt::format("ip address add {}/24 dev eth0", address));
  }
  const std::string file = directory_.path() + "/hosts";
  EXPECT_EQ(WriteFile(file, known), 0);
  knows_names_ = ::mount(file.c_str(), "/etc/hosts", nullptr, MS_BIND, nullptr) == 0;
  EXPECT_TRUE(knows_names_) << ErrnoName(errno);
}

HostNetwork::~HostNetwork() {
  if (knows_names_) ::umount2("/etc/hosts", MNT_DETACH);
}

void HostNetwork::Run(const std::string& host, const std::string& command) {
  MustRun(fmt::format("nsenter --net={} {}", path(host), command));
}

void HostNetwork::CutLink(const std::string& host, bool cut) {
  Run(host, fmt::format("ip link set eth0 {}", cut ? "down" : "up"));
}

void HostNetwork::Blackhole(const std::string& at, const std::string& to, bool on) {
  Run(at, fmt::format("ip route {} blackhole {}/32", on ? "add" : "del", address(to)));
}

void HostNetwork::SlowLink(const std::string& host, const std::string& rate) {
  if (rate.empty()) return Run(host, "tc qdisc del dev eth0 root");
  Run(host, fmt::format("tc qdisc add dev eth0 root tbf rate {} burst 64k latency 200ms", rate));
}

std::vector<std::string> InNetwork(const std::string& path, std::vector<std::string> words) {
  if (!path.empty()) words.insert(words.begin(), {"nsenter", "--net=" + path});
  return words;
}

}  // namespace kvcfs::test
