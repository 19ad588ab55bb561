#include "rdma/verbs_device.h"

#include <algorithm>
#include <cerrno>
#include <system_error>

#include <fmt/format.h>
#include <sys/resource.h>

#include "rdma/verbs.h"

namespace kvcfs::rdma {
namespace {

constexpr int kCompletionsMax = 65'536;  // 4 MiB, and some 160 peers; soft-RoCE has half of it
constexpr uint8_t kReadsMax = 16;        // more at once than a NIC keeps busy with

std::string BytesText(uint64_t bytes) {
  if (bytes == RLIM_INFINITY) return "unlimited";
  if (bytes >= (10u << 20)) return fmt::format("{} MiB", bytes >> 20);
  return fmt::format("{} KiB", bytes >> 10);
}

std::string ErrnoText(int number) {
  return std::generic_category().message(number);
}

uint32_t SharedReceives(const ibv_device_attr& limits) {
  return limits.max_srq > 0 ? static_cast<uint32_t>(std::max(limits.max_srq_wr, 0)) : 0;
}

uint64_t LockedMax() {
  rlimit limit{};
  return ::getrlimit(RLIMIT_MEMLOCK, &limit) == 0 ? limit.rlim_cur : RLIM_INFINITY;
}

}  // namespace

Error VerbsError(int number, std::string_view what) {
  const std::string said = fmt::format("{}: {}", what, ErrnoText(number));
  switch (number) {
    case ENODEV:
    case ENOENT:
    case ENOSYS:
      return {Code::kUnsupported,
              said +
                  "; no RDMA device is there: load its driver, rdma_ucm and ib_uverbs "
                  "(modprobe), and let this process see /dev/infiniband"};
    case EACCES:
    case EPERM:
      return {Code::kUnsupported,
              said +
                  "; /dev/infiniband/uverbs* and rdma_cm must be readable and writable for this "
                  "user (in a container: --device=/dev/infiniband)"};
    case ENOMEM:
      return {Code::kNoSpace,
              fmt::format("{}; the device's queues are used up, or the locked memory limit ({}): "
                          "raise LimitMEMLOCK",
                          said, BytesText(LockedMax()))};
    case EMFILE:
    case ENFILE:
      return {Code::kNoSpace, said + "; raise LimitNOFILE"};
    case EADDRNOTAVAIL:
      return {Code::kUnsupported, said + "; no RDMA device has this address"};
    default:
      return {Code::kIo, said};
  }
}

Error RegisterError(int number, uint64_t bytes, uint64_t locked_max) {
  const std::string what = fmt::format("registering {}: {}", BytesText(bytes), ErrnoText(number));
  if ((number == ENOMEM || number == EAGAIN || number == EPERM) && locked_max != RLIM_INFINITY) {
    return {Code::kNoSpace,
            fmt::format("{}; the locked memory limit is {}: raise LimitMEMLOCK (systemd) or "
                        "ulimit -l to more than the DRAM tier, or unlimited",
                        what, BytesText(locked_max))};
  }
  if (number == ENOMEM) {
    return {Code::kNoSpace, what + "; the device takes no more: fewer or smaller tiers"};
  }
  if (number == EFAULT) {
    return {Code::kInvalid, what + "; not all of it is mapped memory"};
  }
  return VerbsError(number, fmt::format("registering {}", BytesText(bytes)));
}

Error CompletionError(ibv_wc_status status) {
  const char* said = ::ibv_wc_status_str(status);
  switch (status) {
    case IBV_WC_SUCCESS:
      return {Code::kOk, ""};
    case IBV_WC_REM_ACCESS_ERR:
    case IBV_WC_REM_INV_REQ_ERR:
    case IBV_WC_REM_OP_ERR:
      return {Code::kStale, fmt::format("{}: the peer withdrew this memory", said)};
    case IBV_WC_RETRY_EXC_ERR:
    case IBV_WC_RESP_TIMEOUT_ERR:
      return {Code::kUnavailable,
              fmt::format("{}: the peer does not acknowledge; is it up, and does UDP port 4791 "
                          "(RoCE) pass between the hosts, with the same MTU?",
                          said)};
    case IBV_WC_RNR_RETRY_EXC_ERR:
      return {Code::kUnavailable, fmt::format("{}: the peer takes no messages", said)};
    case IBV_WC_WR_FLUSH_ERR:
      return {Code::kUnavailable, "the connection ended"};
    case IBV_WC_LOC_LEN_ERR:
    case IBV_WC_LOC_PROT_ERR:
      return {Code::kInternal, fmt::format("{}: memory of ours that is not registered", said)};
    default:
      return {Code::kUnavailable, fmt::format("{}", said)};
  }
}

Error ConnectError(rdma_cm_event_type event, int status, std::string_view peer) {
  const char* name = ::rdma_event_str(event);
  const std::string said =
      status == 0 ? fmt::format("{}: {}", peer, name)
                  : fmt::format("{}: {} ({})", peer, name,
                                status < 0 ? ErrnoText(-status) : fmt::format("{}", status));
  switch (event) {
    case RDMA_CM_EVENT_ADDR_ERROR:
      return {Code::kUnsupported, said + "; no RDMA device has a route to it"};
    case RDMA_CM_EVENT_ROUTE_ERROR:
      return {Code::kUnsupported, said + "; its device does not answer on this fabric"};
    case RDMA_CM_EVENT_UNREACHABLE:
    case RDMA_CM_EVENT_CONNECT_ERROR:
      return {Code::kUnavailable,
              said + "; does UDP port 4791 (RoCE) pass between the hosts, with the same MTU?"};
    case RDMA_CM_EVENT_REJECTED:
      return {Code::kUnavailable, said + "; its offer is over, or it has no queue pairs left"};
    default:
      return {Code::kUnavailable, said};
  }
}

Result<VerbsMemory> VerbsMemory::Register(ibv_pd* domain, std::span<std::byte> memory,
                                          bool remote_read) {
  const int access = IBV_ACCESS_LOCAL_WRITE | (remote_read ? IBV_ACCESS_REMOTE_READ : 0);
  ibv_mr* region = ::ibv_reg_mr(domain, memory.data(), memory.size(), access);
  if (region == nullptr) return RegisterError(errno, memory.size(), LockedMax());
  return VerbsMemory(region);
}

VerbsMemory::~VerbsMemory() {
  if (region_ != nullptr) KVC_CHECK(::ibv_dereg_mr(region_) == 0);
}

Result<std::unique_ptr<VerbsDevice>> VerbsDevice::Open(ibv_context* context) {
  auto device = std::make_unique<VerbsDevice>();
  device->context_ = context;
  ibv_device_attr limits{};
  if (const int result = ::ibv_query_device(context, &limits); result != 0) {
    return VerbsError(result, fmt::format("asking {}", device->name()));
  }
  device->reads_in_ = static_cast<uint8_t>(std::clamp<int>(limits.max_qp_rd_atom, 1, kReadsMax));
  device->reads_out_ =
      static_cast<uint8_t>(std::clamp<int>(limits.max_qp_init_rd_atom, 1, kReadsMax));
  const int entries = std::min(limits.max_cqe, kCompletionsMax);
  device->completions_max_ = static_cast<uint32_t>(entries);
  device->shared_receives_max_ = SharedReceives(limits);
  device->domain_ = ::ibv_alloc_pd(context);
  if (device->domain_ == nullptr) return VerbsError(errno, "a protection domain");
  device->channel_ = ::ibv_create_comp_channel(context);
  if (device->channel_ == nullptr) return VerbsError(errno, "a completion channel");
  device->completions_ = ::ibv_create_cq(context, entries, nullptr, device->channel_, 0);
  if (device->completions_ == nullptr) return VerbsError(errno, "a completion queue");
  return device;
}

bool VerbsDevice::Reserve(uint32_t completions) {
  if (completions > completions_max_ - reserved_) return false;
  reserved_ += completions;
  return true;
}

VerbsDevice::~VerbsDevice() {
  if (completions_ != nullptr) KVC_CHECK(::ibv_destroy_cq(completions_) == 0);
  if (channel_ != nullptr) KVC_CHECK(::ibv_destroy_comp_channel(channel_) == 0);
  if (domain_ != nullptr) KVC_CHECK(::ibv_dealloc_pd(domain_) == 0);
}

Result<std::vector<VerbsDeviceFacts>> AskVerbsDevices() {
  int count = 0;
  ibv_context** contexts = ::rdma_get_devices(&count);
  if (contexts == nullptr) return VerbsError(errno, "RDMA devices");
  std::vector<VerbsDeviceFacts> facts;
  for (int i = 0; i < count; ++i) {
    ibv_device_attr limits{};
    if (::ibv_query_device(contexts[i], &limits) != 0) continue;
    facts.push_back({.name = ::ibv_get_device_name(contexts[i]->device),
                     .shared_receives_max = SharedReceives(limits)});
  }
  ::rdma_free_devices(contexts);
  return facts;
}

Result<std::vector<std::unique_ptr<VerbsDevice>>> OpenVerbsDevices() {
  int count = 0;
  ibv_context** contexts = ::rdma_get_devices(&count);
  if (contexts == nullptr || count == 0) {
    const int number = errno;
    if (contexts != nullptr) ::rdma_free_devices(contexts);
    return VerbsError(contexts == nullptr && number != 0 ? number : ENODEV, "RDMA devices");
  }
  std::vector<std::unique_ptr<VerbsDevice>> devices;
  Status status;
  for (int i = 0; i < count && status.ok(); ++i) {
    auto device = VerbsDevice::Open(contexts[i]);
    if (device.ok()) {
      devices.push_back(std::move(*device));
    } else {
      status = std::move(device).error();
    }
  }
  ::rdma_free_devices(contexts);  // the devices stay open
  KVC_TRY(status);
  return devices;
}

}  // namespace kvcfs::rdma
