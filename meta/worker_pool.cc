#include "meta/worker_pool.h"

#include <utility>

#include "base/log.h"

namespace kvcfs::meta {

WorkerPool::WorkerPool(const std::string& name, size_t threads, size_t waiting_max)
    : waiting_max_(waiting_max) {
  for (size_t i = 0; i < threads; ++i) threads_.emplace_back([this, name] { Run(name); });
}

bool WorkerPool::Post(Job job) {
  {
    const MutexLock lock(mutex_);
    if (stopping_ || waiting_.size() >= waiting_max_) return false;
    waiting_.push_back(std::move(job));
  }
  changed_.notify_one();
  return true;
}

void WorkerPool::Stop() {
  {
    const MutexLock lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  for (std::thread& thread : threads_) {
    if (thread.joinable()) thread.join();
  }
}

void WorkerPool::Run(const std::string& name) {
  SetThreadName(name);
  while (true) {
    Job job;
    {
      MutexLock lock(mutex_);
      while (waiting_.empty() && !stopping_) changed_.wait(lock.native());
      if (waiting_.empty()) return;
      job = std::move(waiting_.front());
      waiting_.pop_front();
    }
    job();
  }
}

}  // namespace kvcfs::meta
