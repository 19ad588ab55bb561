#include "rdma/verbs_loop.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>

#include <fcntl.h>
#include <sys/eventfd.h>

#include "base/log.h"
#include "rdma/verbs_link.h"

namespace kvcfs::rdma {
namespace {

constexpr Millis kTick{1}, kLongest{1000};
// Polling costs this thread's CPU; sleeping costs who waits a wake-up of some 10 to 50 us. Doubled
// when it was worth it, halved when not.
constexpr int64_t kSpinLeastNs = 1'000, kSpinMostNs = 50'000;
constexpr uint32_t kSendBuffers = 512;  // 8 MiB a device: 16 queue pairs have all that they may use
constexpr int kRoundsWithoutEvents = 64;  // librdmacm is looked at when nothing else comes, or then

int64_t NowNs() {
  return std::chrono::steady_clock::now().time_since_epoch().count();
}

void Unblock(int fd) {
  ::fcntl(fd, F_SETFL, ::fcntl(fd, F_GETFL) | O_NONBLOCK);
}

}  // namespace

VerbsLoop::~VerbsLoop() {
  Stop();
  ports_.clear();
  devices_.clear();
  if (channel_ != nullptr) ::rdma_destroy_event_channel(channel_);
}

Status VerbsLoop::Start(const std::string& name, uint32_t receives) {
  KVC_TRY_ASSIGN(devices_, OpenVerbsDevices());
  ports_.resize(devices_.size());
  receives_wanted_ = receives;
  channel_ = ::rdma_create_event_channel();
  if (channel_ == nullptr) return VerbsError(errno, "librdmacm");
  wake_ = Fd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake_.valid()) return VerbsError(errno, "an eventfd");
  waited_.push_back({wake_.get(), POLLIN, 0});
  waited_.push_back({channel_->fd, POLLIN, 0});
  for (const auto& device : devices_) waited_.push_back({device->channel()->fd, POLLIN, 0});
  for (const pollfd& one : waited_) Unblock(one.fd);
  spin_ns_ = kSpinLeastNs;
  thread_ = std::thread([this, name] { Main(name); });
  return {};
}

void VerbsLoop::Stop() {
  {
    MutexLock lock(mutex_);
    stopping_ = true;
  }
  any_posted_ = true;
  if (wake_.valid()) (void)::eventfd_write(wake_.get(), 1);
  if (thread_.joinable()) thread_.join();
}

bool VerbsLoop::Post(std::function<void()> work) {
  {
    MutexLock lock(mutex_);
    if (stopped_ || !wake_.valid()) return false;
    posted_.push_back(std::move(work));
  }
  // Either it sees this before it sleeps, or we see that it does.
  any_posted_ = true;
  if (asleep_.exchange(false)) (void)::eventfd_write(wake_.get(), 1);
  return true;
}

size_t VerbsLoop::IndexOf(const ibv_context* context) const {
  for (size_t i = 0; i < devices_.size(); ++i) {
    if (devices_[i]->context() == context) return i;
  }
  return kNoDevice;
}

void VerbsLoop::Add(std::shared_ptr<VerbsMember> member) {
  VerbsMember* raw = member.get();
  members_[raw] = std::move(member);
  next_tick_ = Millis(0);
  if (ending_) raw->Stop();
}

uint32_t VerbsLoop::AddLink(VerbsLink* link) {
  do {
    ++last_link_;
  } while (links_.contains(last_link_));
  links_[last_link_] = link;
  return last_link_;
}

uint32_t VerbsLoop::AddReceives(VerbsReceives* receives) {
  uint32_t number = 1;
  while (receives_.contains(number)) ++number;
  receives_[number] = receives;
  return number;
}

std::shared_ptr<VerbsReceives> VerbsLoop::SharedReceives(size_t device) {
  Port& port = ports_[device];
  if (port.receives != nullptr && !port.receives->worn()) return port.receives;
  if (port.never_shares) return nullptr;
  VerbsDevice& of = *devices_[device];
  const uint32_t count = std::min(receives_wanted_, of.shared_receives_max());
  Result<std::shared_ptr<VerbsReceives>> made =
      Error{Code::kUnsupported, receives_wanted_ == 0 ? "it is switched off" : "it has none"};
  if (count != 0) made = VerbsReceives::Shared(this, &of, count);
  if (made.ok()) {
    port.receives = *made;
    KVC_LOG(Info, "a device has a shared receive queue", "device={} receives={} bytes={}",
            of.name(), count, port.receives->bytes());
    return port.receives;
  }
  if (!std::exchange(port.never_shares, true)) {
    KVC_LOG(Warn, "a device has no shared receive queue: memory grows with peers",
            "device={} bytes_a_peer={} reason={}", of.name(), kVerbsReceives * kMessageBytes,
            LogValue(made.error().text));
  }
  return nullptr;
}

Result<std::shared_ptr<VerbsSends>> VerbsLoop::Sends(size_t device) {
  Port& port = ports_[device];
  if (port.sends == nullptr) {
    KVC_TRY_ASSIGN(port.sends, VerbsSends::Make(this, devices_[device].get(), kSendBuffers));
  }
  return port.sends;
}

Result<std::shared_ptr<VerbsStaging>> VerbsLoop::Staging(size_t device) {
  Port& port = ports_[device];
  if (port.staging == nullptr) {
    KVC_TRY_ASSIGN(port.staging, VerbsStaging::Make(devices_[device].get()));
  }
  return port.staging;
}

void VerbsLoop::DestroyPair(size_t device, rdma_cm_id* id) {
  const uint32_t pair = id->qp->qp_num;
  // A device may forget completions of a queue pair that goes. Those of shared receives are needed
  // still; in this state no more come.
  ibv_qp_attr failed{};
  failed.qp_state = IBV_QPS_ERR;
  (void)::ibv_modify_qp(id->qp, &failed, IBV_QP_STATE);
  Gather(device);
  ::rdma_destroy_qp(id);  // from here on nothing is touched
  Gather(device);
  ports_[device].pairs.erase(pair);
  // The number may be another's soon.
  for (ibv_wc& done : ports_[device].gathered) {
    if (done.qp_num == pair) done.qp_num = 0;
  }
}

bool VerbsLoop::RunPosted() {
  if (!any_posted_.exchange(false)) return false;
  std::vector<std::function<void()>> work;
  {
    MutexLock lock(mutex_);
    work.swap(posted_);
  }
  for (auto& one : work) one();
  return !work.empty();
}

bool VerbsLoop::PollCompletions() {
  bool any = false;
  for (size_t i = 0; i < ports_.size(); ++i) {
    Gather(i);
    while (!ports_[i].gathered.empty()) {
      const ibv_wc done = ports_[i].gathered.front();
      ports_[i].gathered.pop_front();
      Dispatch(i, done);
      any = true;
    }
  }
  return any;
}

void VerbsLoop::Gather(size_t device) {
  std::array<ibv_wc, 64> done;
  int count = 0;
  do {
    count =
        ::ibv_poll_cq(devices_[device]->completions(), static_cast<int>(done.size()), done.data());
    KVC_CHECK(count >= 0);  // an overrun, which Reserve rules out
    auto& gathered = ports_[device].gathered;
    gathered.insert(gathered.end(), done.begin(), done.begin() + count);
  } while (count == static_cast<int>(done.size()));
}

void VerbsLoop::Dispatch(size_t device, const ibv_wc& done) {
  if ((done.wr_id & kReceiveBit) == 0 || (done.wr_id & kSharedBit) == 0) {
    const auto link = links_.find(NumberOfWork(done.wr_id));
    if (link != links_.end()) link->second->OnCompletion(done);
    return;
  }
  const auto& pairs = ports_[device].pairs;
  if (const auto link = pairs.find(done.qp_num); link != pairs.end()) {
    return link->second->OnCompletion(done);
  }
  const auto receives = receives_.find(NumberOfWork(done.wr_id));
  if (receives == receives_.end()) return;
  receives->second->Completed();
  receives->second->Return(BufferOfWork(done.wr_id));
  if (const Status posted = receives->second->PostReturned(); !posted.ok()) {
    KVC_LOG(Warn, "a shared receive is not posted again", "reason={}",
            LogValue(posted.error().text));
  }
}

void VerbsLoop::FlushDirty() {
  while (!dirty_.empty()) {
    for (const auto& link : std::exchange(dirty_, {})) link->Flush();
  }
}

void VerbsLoop::TickAll(Millis now) {
  Millis next = now + kLongest;
  std::vector<VerbsMember*> all;  // a tick may add members
  all.reserve(members_.size());
  for (const auto& [member, owned] : members_) all.push_back(member);
  next_tick_ = next;
  for (VerbsMember* member : all) {
    member->Tick(now);
    next = std::min(next, member->NextTick());
  }
  std::erase_if(members_, [](const auto& entry) { return entry.second->CanGo(); });
  next_tick_ = std::max(now + kTick, std::min(next, next_tick_));
}

void VerbsLoop::TakeConnectEvents() {
  for (;;) {
    rdma_cm_event* event = nullptr;
    if (::rdma_get_cm_event(channel_, &event) != 0) return;
    rdma_cm_event copy = *event;
    std::array<std::byte, 256> data;  // dies with the event
    const size_t bytes = std::min<size_t>(copy.param.conn.private_data_len, data.size());
    if (copy.param.conn.private_data != nullptr) {
      std::memcpy(data.data(), copy.param.conn.private_data, bytes);
      copy.param.conn.private_data = data.data();
      copy.param.conn.private_data_len = static_cast<uint8_t>(std::min<size_t>(bytes, 255));
    }
    void* context =
        copy.event == RDMA_CM_EVENT_CONNECT_REQUEST ? copy.listen_id->context : copy.id->context;
    ::rdma_ack_cm_event(event);
    if (context != nullptr) static_cast<VerbsEvents*>(context)->OnConnectEvent(copy);
  }
}

void VerbsLoop::TakeEvents(int wait_ms) {
  if (::poll(waited_.data(), waited_.size(), wait_ms) <= 0) return;
  if (waited_[0].revents != 0) {
    eventfd_t count = 0;
    (void)::eventfd_read(wake_.get(), &count);
  }
  if (waited_[1].revents != 0) TakeConnectEvents();
  for (size_t i = 0; i < devices_.size(); ++i) {
    if (waited_[2 + i].revents == 0) continue;
    ibv_cq* queue = nullptr;
    void* context = nullptr;
    unsigned events = 0;
    while (::ibv_get_cq_event(devices_[i]->channel(), &queue, &context) == 0) ++events;
    if (events != 0) ::ibv_ack_cq_events(devices_[i]->completions(), events);
  }
}

void VerbsLoop::Sleep(Millis now) {
  for (const auto& device : devices_) {
    KVC_CHECK(::ibv_req_notify_cq(device->completions(), 0) == 0);
  }
  // What came before that says nothing of itself.
  if (PollCompletions()) return;
  asleep_ = true;
  const Millis wait = std::clamp(next_tick_ - now, Millis(0), kLongest);
  TakeEvents(any_posted_.load() ? 0 : static_cast<int>(wait.count()));
  asleep_ = false;
}

void VerbsLoop::Main(const std::string& name) {
  SetThreadName(name);
  int64_t idle_since = 0;  // 0: it is not
  int rounds = 0;
  for (;;) {
    const bool worked = RunPosted() | PollCompletions();
    FlushDirty();
    const Millis now = Now();
    if (now >= next_tick_) TickAll(now);
    FlushDirty();
    {
      MutexLock lock(mutex_);
      if (stopping_ && !ending_) {
        ending_ = true;
        std::vector<std::shared_ptr<VerbsMember>> all;
        for (const auto& [member, owned] : members_) all.push_back(owned);
        lock.native().unlock();
        for (const auto& member : all) member->Stop();
        lock.native().lock();
        next_tick_ = Millis(0);
      }
      if (ending_ && members_.empty() && posted_.empty()) {
        stopped_ = true;
        return;
      }
    }
    if (ending_) next_tick_ = Millis(0);
    if (worked) {
      if (idle_since != 0) spin_ns_ = std::min(2 * spin_ns_, kSpinMostNs);
      idle_since = 0;
      if (++rounds >= kRoundsWithoutEvents) {
        rounds = 0;
        TakeEvents(0);
      }
      continue;
    }
    const int64_t at = NowNs();
    if (idle_since == 0) idle_since = at;
    if (at - idle_since < spin_ns_) continue;
    spin_ns_ = std::max(spin_ns_ / 2, kSpinLeastNs);
    rounds = 0;
    Sleep(now);
    idle_since = 0;
  }
}

}  // namespace kvcfs::rdma
