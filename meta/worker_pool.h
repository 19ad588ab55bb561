// A few threads that do what may block, so that threads which must not need not.
//
// Threads: Post from any. With one thread, jobs run in the order of Post.
// Fails: Post is false when `waiting_max` jobs wait, or after Stop. Stop runs what waits.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "base/mutex.h"

namespace kvcfs::meta {

class WorkerPool {
 public:
  using Job = std::function<void()>;

  WorkerPool(const std::string& name, size_t threads, size_t waiting_max);
  ~WorkerPool() { Stop(); }
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  bool Post(Job job) KVC_EXCLUDES(mutex_);
  void Stop() KVC_EXCLUDES(mutex_);

 private:
  void Run(const std::string& name) KVC_EXCLUDES(mutex_);

  const size_t waiting_max_;
  Mutex mutex_;
  std::condition_variable changed_;
  std::deque<Job> waiting_ KVC_GUARDED_BY(mutex_);
  bool stopping_ KVC_GUARDED_BY(mutex_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace kvcfs::meta
