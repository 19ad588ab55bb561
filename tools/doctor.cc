#include "tools/doctor.h"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <filesystem>
#include <limits>
#include <optional>
#include <sstream>
#include <system_error>

#include <fmt/format.h>

#include "base/read_file.h"
#include "base/size.h"

namespace kvcfs::tools {
namespace {

namespace stdfs = std::filesystem;

constexpr uint64_t kUnlimited = std::numeric_limits<uint64_t>::max();
constexpr unsigned kCapIpcLock = 14, kCapSysAdmin = 21;

// Of a small file, without the spaces around it; nothing where it cannot be read.
std::optional<std::string> TextOf(const std::string& path) {
  std::error_code ignored;
  if (stdfs::is_directory(path, ignored)) return std::nullopt;
  auto text = ReadFile(path);
  if (!text.ok()) return std::nullopt;
  const size_t begin = text->find_first_not_of(" \t\n");
  if (begin == std::string::npos) return "";
  return text->substr(begin, text->find_last_not_of(" \t\n") - begin + 1);
}

std::optional<uint64_t> NumberOf(std::string_view text, int base = 10) {
  uint64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number, base);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return number;
}

std::optional<uint64_t> NumberIn(const std::string& path) {
  const auto text = TextOf(path);
  return text ? NumberOf(*text) : std::nullopt;
}

// The names in a directory, sorted; none where there is no such directory.
std::vector<std::string> NamesIn(const std::string& path) {
  std::vector<std::string> names;
  std::error_code error;
  for (auto at = stdfs::directory_iterator(path, error);
       !error && at != stdfs::directory_iterator(); at.increment(error)) {
    names.push_back(at->path().filename());
  }
  std::sort(names.begin(), names.end());
  return names;
}

// The word in [brackets] of a list of choices.
std::string Chosen(const std::string& text) {
  const size_t begin = text.find('['), end = text.find(']');
  if (begin == std::string::npos || end == std::string::npos || end < begin) return text;
  return text.substr(begin + 1, end - begin - 1);
}

std::string ReasonOf(int number) {
  return std::error_code(number, std::generic_category()).message();
}

std::string SizeText(uint64_t bytes) {
  return bytes == kUnlimited ? "unlimited" : FormatSizeShort(bytes);
}

class Examination {
 public:
  Examination(const DoctorOptions& options, const HostCalls& calls)
      : options_(options), calls_(calls) {
    const std::string status = TextOf(options.proc + "/self/status").value_or("");
    const size_t at = status.find("CapEff:");
    if (at != std::string::npos) {
      std::istringstream in(status.substr(at + 7));
      std::string word;
      in >> word;
      capabilities_ = NumberOf(word, 16).value_or(0);
    }
    std::istringstream release(TextOf(options.proc + "/sys/kernel/osrelease").value_or(""));
    char dot = 0;
    release >> kernel_major_ >> dot >> kernel_minor_;
    total_memory_ = MemoryLine("MemTotal:").value_or(0);
    if (const auto limit = CgroupLimit(); limit && *limit < total_memory_) total_memory_ = *limit;
    dram_ = options.dram.Of(total_memory_);
  }

  std::vector<HostFinding> Run() {
    Kernel();
    Privileges();
    Fuse();
    IoUring();
    Memory();
    LockedMemory();
    OpenFiles();
    Mappings();
    HugePages();
    Rdma();
    Network();
    Disk();
    return std::move(findings_);
  }

 private:
  void Ok(const char* check, std::string found) {
    findings_.push_back({check, Health::kOk, std::move(found)});
  }
  void Say(Health health, const char* check, std::string found, std::string change,
           std::string cost) {
    findings_.push_back({check, health, std::move(found), std::move(change), std::move(cost)});
  }
  bool Can(unsigned capability) const { return (capabilities_ >> capability & 1) != 0; }
  bool KernelIs(unsigned major, unsigned minor) const {
    return kernel_major_ != major ? kernel_major_ > major : kernel_minor_ >= minor;
  }

  std::optional<uint64_t> MemoryLine(const std::string& name) const {
    std::istringstream in(TextOf(options_.proc + "/meminfo").value_or(""));
    for (std::string line; std::getline(in, line);) {
      if (line.rfind(name, 0) != 0) continue;
      std::istringstream words(line.substr(name.size()));
      uint64_t kib = 0;
      if (words >> kib) return kib << 10;
    }
    return std::nullopt;
  }

  // Of a container, whose own group is the root that it sees: version 2, then version 1.
  std::optional<uint64_t> CgroupLimit() const {
    for (const char* file : {"memory.max", "memory/memory.limit_in_bytes"}) {
      if (const auto limit = NumberIn(options_.sys + "/fs/cgroup/" + file)) return limit;
    }
    return std::nullopt;
  }

  // The soft limit, as /proc/self/limits has it.
  std::optional<uint64_t> Limit(const std::string& name) const {
    std::istringstream in(TextOf(options_.proc + "/self/limits").value_or(""));
    for (std::string line; std::getline(in, line);) {
      if (line.rfind(name, 0) != 0) continue;
      std::istringstream words(line.substr(name.size()));
      std::string soft;
      words >> soft;
      if (soft == "unlimited") return kUnlimited;
      return NumberOf(soft);
    }
    return std::nullopt;
  }

  void Kernel() {
    const std::string release =
        TextOf(options_.proc + "/sys/kernel/osrelease").value_or("not to be found out");
    const char* const newer =
        "boot Linux 6.9 or newer; Debian 13 has 6.12, Debian 12 has it in bookworm-backports";
    if (KernelIs(6, 9)) return Ok("kernel", "Linux " + release);
    if (KernelIs(6, 1)) {
      return Say(Health::kWarn, "kernel", "Linux " + release + ", before FUSE passthrough (6.9)",
                 newer, "reads of resident blocks are copied by the daemon: half the speed");
    }
    Say(Health::kWarn, "kernel", "Linux " + release + ", older than any that kvcfs was tried on",
        newer, "io_uring may lack what the transport wants (6.0); reads are copied by the daemon");
  }

  void Privileges() {
    if (Can(kCapSysAdmin)) return Ok("privileges", "CAP_SYS_ADMIN");
    Say(Health::kFail, "privileges", "no CAP_SYS_ADMIN",
        "run kvcfs as root; in a container: --cap-add SYS_ADMIN",
        "the DRAM tier cannot be mounted");
  }

  void Fuse() {
    if (!stdfs::exists(options_.dev + "/fuse")) {
      Say(Health::kFail, "fuse", "no " + options_.dev + "/fuse",
          "modprobe fuse; in a container: --device /dev/fuse",
          "nothing can be mounted (kvcfs serve does without)");
      return;
    }
    const auto offer = calls_.fuse_offer();
    if (offer.ok()) {
      Ok("fuse", fmt::format("protocol 7.{}", offer->minor));
    } else {
      Say(Health::kWarn, "fuse", "not tried: " + offer.error().text, "run kvcfs doctor as root",
          "it is not known what this kernel offers");
    }
    const bool kernel_has = offer.ok() ? offer->passthrough : KernelIs(6, 9);
    const char* const cost = "reads of resident blocks are copied by the daemon: half the speed";
    if (!kernel_has) {
      Say(Health::kWarn, "passthrough", "this kernel does not offer it",
          "boot Linux 6.9 or newer with CONFIG_FUSE_PASSTHROUGH", cost);
    } else if (!calls_.libfuse_has_passthrough) {
      Say(Health::kWarn, "passthrough", "kvcfs was built with a libfuse older than 3.17",
          "tools/deps/libfuse.sh, then build again", cost);
    } else if (!Can(kCapSysAdmin)) {
      Say(Health::kWarn, "passthrough", "no CAP_SYS_ADMIN",
          "run kvcfs as root; in a container: --cap-add SYS_ADMIN", cost);
    } else {
      Ok("passthrough", "kernel, libfuse and privileges allow it");
    }
  }

  void IoUring() {
    const int error = calls_.io_uring_setup();
    if (error == 0) return Ok("io_uring", "works");
    const char* const cost = "neither the NVMe tier nor the network works";
    if (error == ENOMEM) {
      return Say(Health::kFail, "io_uring", "no memory may be locked for it",
                 "ulimit -l unlimited; for systemd: LimitMEMLOCK=infinity", cost);
    }
    const auto disabled = NumberIn(options_.proc + "/sys/kernel/io_uring_disabled");
    if (disabled.value_or(0) != 0) {
      return Say(Health::kFail, "io_uring",
                 fmt::format("kernel.io_uring_disabled is {}", *disabled),
                 "sysctl -w kernel.io_uring_disabled=0", cost);
    }
    if (error == ENOSYS) {
      return Say(
          Health::kFail, "io_uring", "this kernel has none",
          "boot a kernel with CONFIG_IO_URING; in a container: --security-opt seccomp=unconfined",
          cost);
    }
    Say(Health::kFail, "io_uring", "refused: " + ReasonOf(error),
        "in a container: --security-opt seccomp=unconfined (usual profiles forbid it)", cost);
  }

  void Memory() {
    const auto available = MemoryLine("MemAvailable:");
    if (!available || total_memory_ == 0) {
      return Say(Health::kWarn, "memory", "not to be found out in /proc/meminfo", "mount /proc",
                 "the DRAM tier may not fit");
    }
    const uint64_t room = std::min(*available, total_memory_);
    const std::string found =
        fmt::format("{} available of {}, a DRAM tier of {}", FormatSizeShort(room),
                    FormatSizeShort(total_memory_), FormatSizeShort(dram_));
    if (dram_ > total_memory_) {
      return Say(Health::kFail, "memory", found,
                 fmt::format("--dram {} or less, or raise the container's limit",
                             FormatSizeShort(total_memory_ / 2)),
                 "kvcfs is killed before the tier is full");
    }
    // A tenth beside it: the index, staging memory, page tables.
    if (dram_ + dram_ / 10 > room) {
      return Say(
          Health::kWarn, "memory", found,
          fmt::format("--dram {} or less, or stop what uses the memory",
                      FormatSizeShort(room - room / 5)),
          "the machine swaps, or the kernel kills the largest process, before the tier is full");
    }
    Ok("memory", found);
  }

  void LockedMemory() {
    const auto limit = Limit("Max locked memory");
    if (Can(kCapIpcLock)) return Ok("locked_memory", "no limit, by CAP_IPC_LOCK");
    if (!limit) {
      return Say(Health::kWarn, "locked_memory", "not to be found out", "mount /proc",
                 "memory may not be registered: more CPU a byte");
    }
    const bool rdma = !NamesIn(options_.sys + "/class/infiniband").empty();
    // Staging memory of the NVMe tier, and rings; RDMA registers the whole DRAM tier.
    const uint64_t wanted = (rdma ? dram_ : 0) + (uint64_t{64} << 20);
    if (*limit >= wanted) return Ok("locked_memory", SizeText(*limit));
    Say(Health::kWarn, "locked_memory",
        fmt::format("{}, {} are wanted", SizeText(*limit), FormatSizeShort(wanted)),
        "ulimit -l unlimited; for systemd: LimitMEMLOCK=infinity; in a container: --ulimit "
        "memlock=-1",
        rdma ? "memory cannot be registered with the RDMA device: TCP is used"
             : "staging memory is not registered with io_uring: more CPU for each read of NVMe");
  }

  void OpenFiles() {
    // A server of a thousand clients: several connections each, and open files of the data disk.
    constexpr uint64_t kWanted = 16384;
    const auto limit = Limit("Max open files");
    if (limit && *limit >= kWanted) return Ok("open_files", fmt::format("{}", *limit));
    Say(Health::kWarn, "open_files",
        limit ? fmt::format("{}", *limit) : std::string("not to be found out"),
        "ulimit -n 1048576; for systemd: LimitNOFILE=1048576; in a container: --ulimit "
        "nofile=1048576",
        "many connections and files of files/ open at once end with EMFILE");
  }

  void Mappings() {
    // An engine that maps every resident block of 256 KiB; the kernel's own default is enough up to
    // 16 GiB.
    const uint64_t wanted = dram_ / (uint64_t{256} << 10);
    const auto most = NumberIn(options_.proc + "/sys/vm/max_map_count");
    if (most && *most >= wanted) {
      return Ok("mappings", fmt::format("{} a process", *most));
    }
    Say(Health::kWarn, "mappings",
        most ? fmt::format("{} a process, the DRAM tier holds {} blocks of 256 KiB", *most, wanted)
             : std::string("vm.max_map_count is not to be found out"),
        fmt::format("sysctl -w vm.max_map_count={}", std::max<uint64_t>(wanted * 2, 262144)),
        "an engine that maps more blocks at once gets ENOMEM from mmap");
  }

  void HugePages() {
    const std::string path = "/kernel/mm/transparent_hugepage/shmem_enabled";
    const auto text = TextOf(options_.sys + path);
    const char* const cost = "large blocks are read at half the speed";
    if (!text) {
      return Say(Health::kWarn, "huge_pages", "this kernel has none for tmpfs",
                 "boot a kernel with CONFIG_TRANSPARENT_HUGEPAGE", cost);
    }
    if (Chosen(*text) == "deny") {
      return Say(Health::kWarn, "huge_pages", "shmem_enabled is deny",
                 "echo never > /sys" + path + "   (kvcfs asks for them for its own tmpfs only)",
                 cost);
    }
    Ok("huge_pages", "tmpfs may have them");
  }

  // The state and the GIDs of one port.
  void RdmaPort(const std::string& name, const std::string& path) {
    const std::string state = TextOf(path + "/state").value_or("?");
    const std::string layer = TextOf(path + "/link_layer").value_or("?");
    const bool ethernet = layer == "Ethernet";
    if (state.find("ACTIVE") == std::string::npos) {
      return Say(Health::kWarn, "rdma", fmt::format("{}: {}, port {}", name, layer, state),
                 ethernet ? "ip link set dev INTERFACE up   (`rdma link` names the interface)"
                          : "cable and subnet manager: ibstat",
                 "TCP is used: more CPU a byte, longer round trips");
    }
    size_t gids = 0, v2 = 0;
    for (const std::string& index : NamesIn(path + "/gids")) {
      const std::string gid = TextOf(fmt::format("{}/gids/{}", path, index)).value_or("");
      if (gid.find_first_not_of("0:") == std::string::npos) continue;
      ++gids;
      if (TextOf(fmt::format("{}/gid_attrs/types/{}", path, index)).value_or("") == "RoCE v2") ++v2;
    }
    if (ethernet && v2 == 0) {
      return Say(Health::kWarn, "rdma", fmt::format("{}: {} GIDs, none of RoCE v2", name, gids),
                 "give its interface an address; for mlx5: cma_roce_mode -d DEVICE -p PORT -m 2",
                 "peers behind a router are reached by TCP only");
    }
    if (gids == 0) {
      return Say(Health::kWarn, "rdma", name + ": no GID", "give its interface an address",
                 "TCP is used: more CPU a byte, longer round trips");
    }
    Ok("rdma", fmt::format("{}: {}, active, {} GIDs", name, layer, gids));
  }

  void Rdma() {
    const std::string devices = options_.sys + "/class/infiniband";
    const auto names = NamesIn(devices);
    if (names.empty()) return Ok("rdma", "no device: TCP is used");
    if (NamesIn(options_.dev + "/infiniband").empty()) {
      Say(Health::kWarn, "rdma", "devices, but no " + options_.dev + "/infiniband/uverbs*",
          "modprobe ib_uverbs rdma_ucm; in a container: --device /dev/infiniband",
          "TCP is used: more CPU a byte, longer round trips");
    }
    for (const std::string& name : names) {
      const std::string ports = fmt::format("{}/{}/ports", devices, name);
      for (const std::string& port : NamesIn(ports)) {
        RdmaPort(fmt::format("{}/{}", name, port), fmt::format("{}/{}", ports, port));
      }
    }
    RdmaReceives();
  }

  // Not in a file: devices are asked, if they may be.
  void RdmaReceives() {
    if (calls_.rdma_devices == nullptr) return;
    const auto devices = calls_.rdma_devices();
    if (!devices.ok()) return;
    for (const rdma::VerbsDeviceFacts& device : *devices) {
      if (device.shared_receives_max != 0) {
        Ok("rdma", fmt::format("{}: a shared receive queue, of at most {}", device.name,
                               device.shared_receives_max));
        continue;
      }
      Say(Health::kWarn, "rdma", device.name + ": no shared receive queue",
          "a device that has one (max_srq in ibv_devinfo -v); else LimitMEMLOCK for all peers",
          "512 KiB of locked memory for each peer, instead of 8 MiB for all");
    }
  }

  void Network() {
    bool any = false;
    for (const std::string& name : NamesIn(options_.sys + "/class/net")) {
      const std::string path = options_.sys + "/class/net/" + name;
      // Those with hardware, real or paravirtual, that are up.
      if (!stdfs::exists(path + "/device")) continue;
      if (TextOf(path + "/operstate").value_or("") == "down") continue;
      const auto mtu = NumberIn(path + "/mtu");
      if (!mtu) continue;
      any = true;
      const uint64_t megabits = NumberIn(path + "/speed").value_or(0);  // -1: not known
      const std::string found = megabits == 0
                                    ? fmt::format("{}: MTU {}", name, *mtu)
                                    : fmt::format("{}: MTU {} at {} Mb/s", name, *mtu, megabits);
      if (*mtu >= 4096 || megabits < 10000) {
        Ok("mtu", found);
        continue;
      }
      Say(Health::kWarn, "mtu", found,
          fmt::format("ip link set dev {} mtu 9000   (switches and all peers must have it too)",
                      name),
          "more packets a byte: more CPU for blocks of peers");
    }
    if (!any) Ok("mtu", "no interface but loopback");
  }

  void Disk() {
    const auto disk = calls_.disk_facts(options_.data);
    if (!disk.ok()) {
      return Say(Health::kFail, "disk", disk.error().text,
                 "--data DIR: a directory on a local disk", "nothing can be kept");
    }
    Scheduler(*disk);
    DirectIo(*disk);
    FreeSpace(*disk);
  }

  void Scheduler(const DiskFacts& disk) {
    std::string device =
        options_.sys + fmt::format("/dev/block/{}:{}", disk.device_major, disk.device_minor);
    std::error_code ignored;
    // A partition has its queue at the disk.
    if (const auto real = stdfs::canonical(device, ignored); !ignored) {
      device = stdfs::exists(real / "queue") ? real : real.parent_path();
    }
    const std::string name = stdfs::path(device).filename();
    const auto scheduler = TextOf(device + "/queue/scheduler");
    if (!scheduler) {
      return Say(
          Health::kWarn, "disk",
          fmt::format("{} is on no block device of its own (tmpfs, overlay, network?)", disk.path),
          "--data DIR on a local NVMe disk; in a container: a volume",
          "the NVMe tier is as slow, or as short-lived, as that");
    }
    if (NumberIn(device + "/queue/rotational").value_or(0) == 1) {
      return Say(Health::kWarn, "disk", name + " says that it turns",
                 "--data DIR on an NVMe disk; in a virtual machine: "
                 "echo 0 > /sys/block/" +
                     name + "/queue/rotational if it is none",
                 "cold blocks come slower than they are computed");
    }
    const std::string chosen = Chosen(*scheduler);
    const bool nvme = name.rfind("nvme", 0) == 0;
    if (chosen != "none" && nvme) {
      return Say(Health::kWarn, "disk", fmt::format("{} with the scheduler {}", name, chosen),
                 fmt::format("echo none > /sys/block/{}/queue/scheduler", name),
                 "more CPU and longer waits for each read of NVMe");
    }
    Ok("disk", fmt::format("{} with the scheduler {}", name, chosen));
  }

  void DirectIo(const DiskFacts& disk) {
    if (disk.direct_errno == 0) return Ok("direct_io", "O_DIRECT works at " + disk.path);
    if (disk.direct_errno == EACCES || disk.direct_errno == EPERM || disk.direct_errno == EROFS) {
      return Say(Health::kWarn, "direct_io",
                 fmt::format("not tried, {}: {}", disk.path, ReasonOf(disk.direct_errno)),
                 "run kvcfs doctor as who runs kvcfs", "it is not known whether it works");
    }
    Say(Health::kWarn, "direct_io",
        fmt::format("no O_DIRECT at {}: {}", disk.path, ReasonOf(disk.direct_errno)),
        "--data DIR on ext4 or XFS on a local disk",
        "the NVMe tier goes through the page cache: each byte is in memory twice");
  }

  void FreeSpace(const DiskFacts& disk) {
    const std::string found =
        fmt::format("{} free at {}", FormatSizeShort(disk.free_bytes), disk.path);
    // 16 segments of 16 MiB and as much again for files and records.
    constexpr uint64_t kLeast = uint64_t{512} << 20;
    if (disk.free_bytes < kLeast) {
      return Say(Health::kFail, "free_space", found, "make room, or --data DIR on another disk",
                 "there is no room for an NVMe tier");
    }
    if (disk.free_bytes / 2 < dram_) {
      return Say(
          Health::kWarn, "free_space",
          fmt::format("{}, less than twice the DRAM tier of {}", found, FormatSizeShort(dram_)),
          "make room, or --data DIR on a larger disk",
          "the NVMe tier (half of it, unless --nvme says otherwise) holds little more than DRAM");
    }
    Ok("free_space", found);
  }

  const DoctorOptions& options_;
  const HostCalls& calls_;
  uint64_t capabilities_ = 0;
  unsigned kernel_major_ = 0, kernel_minor_ = 0;
  uint64_t total_memory_ = 0, dram_ = 0;
  std::vector<HostFinding> findings_;
};

}  // namespace

std::string_view HealthName(Health health) {
  switch (health) {
    case Health::kOk:
      return "ok";
    case Health::kWarn:
      return "warn";
    case Health::kFail:
      return "fail";
  }
  return "?";
}

std::vector<HostFinding> ExamineHost(const DoctorOptions& options, const HostCalls& calls) {
  return Examination(options, calls).Run();
}

}  // namespace kvcfs::tools
