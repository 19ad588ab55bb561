// The thread of the verbs provider: completions, events of librdmacm, what others post to it, time.
//
// It polls while completions come, and for a while that it learns from them; then it sleeps on the
// completion channels. Threads: made and stopped by the transport; Post, any thread; the rest, its
// own. Memory: a VerbsMember is kept until its CanGo.
// Fails: Start as OpenVerbsDevices.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <thread>
#include <unordered_map>
#include <vector>

#include <poll.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/mutex.h"
#include "rdma/verbs_device.h"

namespace kvcfs::rdma {

class VerbsLink;

// Whom librdmacm tells things: the context of an id.
class VerbsEvents {
 public:
  virtual ~VerbsEvents() = default;
  // A copy: the id may be destroyed.
  virtual void OnConnectEvent(const rdma_cm_event& event) = 0;
};

class VerbsMember {
 public:
  virtual ~VerbsMember() = default;
  virtual void Tick(Millis now) = 0;
  virtual Millis NextTick() const = 0;
  virtual void Stop() = 0;
  virtual bool CanGo() const = 0;
};

class VerbsLoop {
 public:
  VerbsLoop() = default;
  ~VerbsLoop();
  VerbsLoop(const VerbsLoop&) = delete;
  VerbsLoop& operator=(const VerbsLoop&) = delete;
  Status Start(const std::string& name);
  // All members are stopped and gone when it returns.
  void Stop();

  // False: it has stopped, nothing will run.
  bool Post(std::function<void()> work) KVC_EXCLUDES(mutex_);
  Millis Now() const { return clock_.Monotonic(); }
  rdma_event_channel* channel() const { return channel_; }
  // Set by Start, and the same ever after.
  const std::vector<std::unique_ptr<VerbsDevice>>& devices() const { return devices_; }
  // Its index; none: a device that came later.
  size_t IndexOf(const ibv_context* context) const;
  static constexpr size_t kNoDevice = SIZE_MAX;

  void Add(std::shared_ptr<VerbsMember> member);
  // Its completions carry the number.
  uint32_t AddLink(VerbsLink* link);
  void RemoveLink(uint32_t number) { links_.erase(number); }
  // To be flushed before the loop looks for completions again.
  void MarkDirty(std::shared_ptr<VerbsLink> link) { dirty_.push_back(std::move(link)); }
  // At the latest then, Tick is called.
  void WakeBy(Millis when) { next_tick_ = std::min(next_tick_, when); }

 private:
  void Main(const std::string& name);
  bool RunPosted() KVC_EXCLUDES(mutex_);
  bool PollCompletions();
  void FlushDirty();
  void TickAll(Millis now);
  void Sleep(Millis now) KVC_EXCLUDES(mutex_);
  // What came to the descriptors; waits so long for it.
  void TakeEvents(int wait_ms);
  void TakeConnectEvents();

  SystemClock clock_;
  rdma_event_channel* channel_ = nullptr;
  std::vector<std::unique_ptr<VerbsDevice>> devices_;
  std::vector<pollfd> waited_;  // the eventfd, librdmacm's, one a device
  Fd wake_;
  std::thread thread_;
  std::atomic<bool> asleep_{false};

  Mutex mutex_;
  bool stopping_ KVC_GUARDED_BY(mutex_) = false;
  bool stopped_ KVC_GUARDED_BY(mutex_) = false;
  std::vector<std::function<void()>> posted_ KVC_GUARDED_BY(mutex_);
  std::atomic<bool> any_posted_{false};

  bool ending_ = false;
  std::unordered_map<VerbsMember*, std::shared_ptr<VerbsMember>> members_;
  std::unordered_map<uint32_t, VerbsLink*> links_;
  uint32_t last_link_ = 0;
  std::vector<std::shared_ptr<VerbsLink>> dirty_;
  Millis next_tick_{0};
  int64_t spin_ns_ = 0;  // how long it polls for nothing before it sleeps
};

}  // namespace kvcfs::rdma
