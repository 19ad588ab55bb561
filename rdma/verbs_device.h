// RDMA devices of this host: what is opened once and used by all queue pairs, and errors in words
// that say what to do.
//
// One protection domain and one completion queue a device. Remote access is only ever to read.
// Threads: Register and the errors, any; the rest, the loop's. Memory: a VerbsMemory borrows what
// it registers.
// Fails: kUnsupported no RDMA here; kNoSpace locked memory or the device's own resources are used
// up; kIo else.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <infiniband/verbs.h>
#include <rdma/rdma_cma.h>

#include "base/result.h"

namespace kvcfs::rdma {

// `number`: errno after a verb or a call of librdmacm.
Error VerbsError(int number, std::string_view what);
// `locked_max`: RLIMIT_MEMLOCK.
Error RegisterError(int number, uint64_t bytes, uint64_t locked_max);
Error CompletionError(ibv_wc_status status);
Error ConnectError(rdma_cm_event_type event, int status, std::string_view peer);

// A registered piece of memory.
class VerbsMemory {
 public:
  static Result<VerbsMemory> Register(ibv_pd* domain, std::span<std::byte> memory,
                                      bool remote_read);
  VerbsMemory() = default;
  VerbsMemory(VerbsMemory&& other) noexcept : region_(std::exchange(other.region_, nullptr)) {}
  VerbsMemory& operator=(VerbsMemory&& other) noexcept {
    std::swap(region_, other.region_);
    return *this;
  }
  ~VerbsMemory();

  bool valid() const { return region_ != nullptr; }
  uint32_t local_key() const { return region_->lkey; }
  uint32_t remote_key() const { return region_->rkey; }
  std::span<std::byte> span() const {
    return {static_cast<std::byte*>(region_->addr), region_->length};
  }

 private:
  explicit VerbsMemory(ibv_mr* region) : region_(region) {}
  ibv_mr* region_ = nullptr;
};

class VerbsDevice {
 public:
  VerbsDevice() = default;
  VerbsDevice(const VerbsDevice&) = delete;
  VerbsDevice& operator=(const VerbsDevice&) = delete;
  ~VerbsDevice();

  // `context` is librdmacm's, and stays open.
  static Result<std::unique_ptr<VerbsDevice>> Open(ibv_context* context);

  ibv_context* context() const { return context_; }
  ibv_pd* domain() const { return domain_; }
  ibv_cq* completions() const { return completions_; }
  ibv_comp_channel* channel() const { return channel_; }
  std::string name() const { return ::ibv_get_device_name(context_->device); }
  uint8_t reads_in() const { return reads_in_; }    // that a queue pair answers at once
  uint8_t reads_out() const { return reads_out_; }  // that it asks at once
  uint32_t shared_receives_max() const { return shared_receives_max_; }  // 0: it has no such queue
  // Room for so many completions that are not taken yet. False: there is none.
  bool Reserve(uint32_t completions);
  void Release(uint32_t completions) { reserved_ -= completions; }

 private:
  ibv_context* context_ = nullptr;
  ibv_pd* domain_ = nullptr;
  ibv_comp_channel* channel_ = nullptr;
  ibv_cq* completions_ = nullptr;
  uint8_t reads_in_ = 1, reads_out_ = 1;
  uint32_t shared_receives_max_ = 0;
  uint32_t completions_max_ = 0, reserved_ = 0;
};

// All of this host. None is an error.
Result<std::vector<std::unique_ptr<VerbsDevice>>> OpenVerbsDevices();

// What one queue pair may have outstanding: its sends and READs; its receives, if they are its own;
// messages, in either direction.
inline constexpr uint32_t kVerbsSendsMax = 128;
inline constexpr uint32_t kVerbsReceives = 32;

}  // namespace kvcfs::rdma
