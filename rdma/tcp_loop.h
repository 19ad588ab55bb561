// A thread of the TCP provider: its ring, its connections, what others post to it, and time.
//
// Threads: made and stopped by the transport; Post and WakeBy, any thread; the rest, its own.
// Memory: a LoopMember is kept until its CanGo, so that operations in flight find it.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <thread>
#include <unordered_map>
#include <vector>

#include "base/clock.h"
#include "base/mutex.h"
#include "rdma/tcp_ring.h"

namespace kvcfs::rdma {

// Whoever has operations or deadlines on a loop.
class LoopMember {
 public:
  virtual ~LoopMember() = default;
  // Called about when NextTick said, maybe more often.
  virtual void Tick(Millis now) = 0;
  virtual Millis NextTick() const = 0;
  // Frames were queued on this thread: send them in one go.
  virtual void Flush() = 0;
  // Begins to end: operations are cancelled, what waits is completed.
  virtual void Stop() = 0;
  // It has ended and nothing is in flight: the loop lets go of it.
  virtual bool CanGo() const = 0;
};

class TcpLoop {
 public:
  ~TcpLoop();
  Status Start(const std::string& name);
  // All members are stopped and gone when it returns.
  void Stop();

  // False: it has stopped, nothing will run.
  bool Post(std::function<void()> work);
  // Somebody has a deadline at `when`: do not sleep longer.
  void WakeBy(Millis when);
  bool OnThread() const { return std::this_thread::get_id() == id_.load(); }
  Millis Now() const { return clock_.Monotonic(); }

  TcpRing& ring() { return ring_; }
  void Add(std::shared_ptr<LoopMember> member);
  void MarkDirty(LoopMember* member) { dirty_.push_back(member); }

 private:
  void Main(const std::string& name);
  void RunPosted();
  void TickAll();

  TcpRing ring_;
  SystemClock clock_;
  std::thread thread_;
  std::atomic<std::thread::id> id_;
  std::atomic<bool> asleep_{false};
  std::atomic<int64_t> sleeps_until_{0};    // ms
  std::atomic<int64_t> wanted_{INT64_MAX};  // ms: the earliest of WakeBy since the last tick
  Mutex mutex_;
  bool stopping_ KVC_GUARDED_BY(mutex_) = false;
  bool stopped_ KVC_GUARDED_BY(mutex_) = false;
  std::vector<std::function<void()>> posted_ KVC_GUARDED_BY(mutex_);
  std::unordered_map<LoopMember*, std::shared_ptr<LoopMember>> members_;
  std::vector<LoopMember*> dirty_;
  Millis next_tick_{0};
  bool ending_ = false;  // members that come now are stopped at once
};

}  // namespace kvcfs::rdma
