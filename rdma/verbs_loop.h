// The thread of the verbs provider: completions, events of librdmacm, what others post to it, time.
//
// It polls while completions come, and for a while that it learns from them; then it sleeps on the
// completion channels. Threads: made and stopped by the transport; Post, any thread; the rest, its
// own. Memory: a VerbsMember is kept until its CanGo.
// Fails: Start as OpenVerbsDevices.
#pragma once

#include <atomic>
#include <deque>
#include <functional>
#include <memory>
#include <thread>
#include <unordered_map>
#include <vector>

#include <poll.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/mutex.h"
#include "rdma/verbs_buffers.h"
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
  // `receives`: of one device, for all peers; 0: each queue pair has its own.
  Status Start(const std::string& name, uint32_t receives);
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
  // What is received into a shared queue carries the queue pair's number, which is its device's.
  void AddPair(size_t device, uint32_t pair, VerbsLink* link) { ports_[device].pairs[pair] = link; }
  // Destroys a queue pair: nothing that it did is told to anybody any more.
  void DestroyPair(size_t device, rdma_cm_id* id);
  uint32_t AddReceives(VerbsReceives* receives);
  void RemoveReceives(uint32_t number) { receives_.erase(number); }
  // Null: a queue pair of this device has receives of its own.
  std::shared_ptr<VerbsReceives> SharedReceives(size_t device);
  Result<std::shared_ptr<VerbsSends>> Sends(size_t device);
  Result<std::shared_ptr<VerbsStaging>> Staging(size_t device);
  void CountFewReceives() { few_receives_.fetch_add(1, std::memory_order_relaxed); }
  uint64_t few_receives() const { return few_receives_.load(std::memory_order_relaxed); }
  // To be flushed before the loop looks for completions again.
  void MarkDirty(std::shared_ptr<VerbsLink> link) { dirty_.push_back(std::move(link)); }
  // At the latest then, Tick is called.
  void WakeBy(Millis when) { next_tick_ = std::min(next_tick_, when); }

 private:
  void Main(const std::string& name);
  bool RunPosted() KVC_EXCLUDES(mutex_);
  bool PollCompletions();
  void Gather(size_t device);
  void Dispatch(size_t device, const ibv_wc& done);
  void FlushDirty();
  void TickAll(Millis now);
  void Sleep(Millis now) KVC_EXCLUDES(mutex_);
  // What came to the descriptors; waits so long for it.
  void TakeEvents(int wait_ms);
  void TakeConnectEvents();

  SystemClock clock_;
  rdma_event_channel* channel_ = nullptr;
  std::vector<std::unique_ptr<VerbsDevice>> devices_;
  // What this thread keeps of each.
  struct Port {
    std::shared_ptr<VerbsReceives> receives;
    std::shared_ptr<VerbsSends> sends;
    std::shared_ptr<VerbsStaging> staging;
    bool never_shares = false;  // what was to be said of that was said
    std::unordered_map<uint32_t, VerbsLink*> pairs;
    std::deque<ibv_wc> gathered;  // completions that nobody was told of yet
  };
  std::vector<Port> ports_;
  uint32_t receives_wanted_ = 0;
  std::unordered_map<uint32_t, VerbsReceives*> receives_;
  std::atomic<uint64_t> few_receives_{0};
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
