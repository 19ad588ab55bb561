#include "rdma/tcp_loop.h"

#include <algorithm>
#include <future>
#include <utility>

#include "base/log.h"

namespace kvcfs::rdma {
namespace {

constexpr Millis kTick{2};        // deadlines are no finer
constexpr Millis kLongest{1000};  // of one sleep

}  // namespace

TcpLoop::~TcpLoop() {
  Stop();
}

Status TcpLoop::Start(const std::string& name) {
  std::promise<Status> opened;
  auto result = opened.get_future();
  thread_ = std::thread([this, name, &opened] {
    Status status = ring_.Open();  // the ring is this thread's
    id_ = std::this_thread::get_id();
    const bool ok = status.ok();
    opened.set_value(std::move(status));
    if (ok) Main(name);
  });
  Status status = result.get();
  if (!status.ok()) thread_.join();
  return status;
}

void TcpLoop::Stop() {
  if (!thread_.joinable()) return;
  {
    MutexLock lock(mutex_);
    stopping_ = true;
  }
  ring_.Wake();
  thread_.join();
}

bool TcpLoop::Post(std::function<void()> work) {
  {
    MutexLock lock(mutex_);
    if (stopped_) return false;
    posted_.push_back(std::move(work));
  }
  if (asleep_.exchange(false)) ring_.Wake();
  return true;
}

void TcpLoop::WakeBy(Millis when) {
  int64_t wanted = wanted_.load();
  while (when.count() < wanted && !wanted_.compare_exchange_weak(wanted, when.count())) {
  }
  // Either the loop sees what is wanted before it sleeps, or we see how long it sleeps.
  if (when.count() < sleeps_until_.load() && asleep_.exchange(false)) ring_.Wake();
}

void TcpLoop::Add(std::shared_ptr<LoopMember> member) {
  LoopMember* raw = member.get();
  members_[raw] = std::move(member);
  next_tick_ = std::min(next_tick_, Now() + kTick);
  if (ending_) raw->Stop();
}

void TcpLoop::RunPosted() {
  std::vector<std::function<void()>> work;
  {
    MutexLock lock(mutex_);
    work.swap(posted_);
  }
  for (auto& one : work) one();
}

void TcpLoop::TickAll() {
  const Millis now = Now();
  Millis next = now + kLongest;
  std::vector<LoopMember*> all;  // a tick may add members
  all.reserve(members_.size());
  for (const auto& [member, owned] : members_) all.push_back(member);
  next_tick_ = next;
  wanted_ = INT64_MAX;  // members know theirs
  for (LoopMember* member : all) {
    member->Tick(now);
    next = std::min(next, member->NextTick());
  }
  std::erase_if(members_, [this](const auto& entry) {
    if (!entry.second->CanGo()) return false;
    std::erase(dirty_, entry.first);
    return true;
  });
  next_tick_ = std::max(now + kTick, std::min(next, next_tick_));
}

void TcpLoop::Main(const std::string& name) {
  SetThreadName(name);
  for (;;) {
    RunPosted();
    while (!dirty_.empty()) {
      for (LoopMember* member : std::exchange(dirty_, {})) member->Flush();
    }
    asleep_ = true;
    bool work = false;
    {
      MutexLock lock(mutex_);
      work = !posted_.empty();
      if (stopping_ && !ending_) {
        ending_ = work = true;
        std::vector<LoopMember*> all;
        for (const auto& [member, owned] : members_) all.push_back(member);
        lock.native().unlock();
        for (LoopMember* member : all) member->Stop();
        lock.native().lock();
        next_tick_ = Millis(0);
      }
      if (ending_ && members_.empty() && posted_.empty()) {
        stopped_ = true;
        return;
      }
    }
    const Millis now = Now();
    sleeps_until_ = next_tick_.count();
    next_tick_ = std::min(next_tick_, Millis(wanted_.load()));
    const Millis wait = work || next_tick_ <= now ? Millis(0) : next_tick_ - now;
    ring_.Run(ending_ ? std::min(wait, kTick) : wait);
    asleep_ = false;
    if (ending_ || Now() >= next_tick_) TickAll();
  }
}

}  // namespace kvcfs::rdma
