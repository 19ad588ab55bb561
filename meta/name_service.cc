#include "meta/name_service.h"

#include <algorithm>
#include <utility>

#include "base/log.h"

namespace kvcfs::meta {
namespace {

constexpr size_t kMountThreads = 4, kNodeThreads = 2;
constexpr size_t kWaitingMax = 4096;
constexpr size_t kPageBytes = 256u << 10;
constexpr size_t kUnsentMax = 256;  // batches; beyond it the copy is made as a whole
constexpr Millis kNodeCall{1000};

NameReply Refused(Code code, uint64_t epoch) {
  NameReply reply;
  reply.code = code;
  reply.epoch = epoch;
  return reply;
}

}  // namespace

std::vector<NodeId> NameNodesFor(const ClusterView& view, const SpaceId& space) {
  std::vector<std::pair<uint64_t, NodeId>> scored;
  const uint64_t hash = MixHash(space.high, space.low);
  for (const ClusterNode& node : view.nodes) {
    if ((node.roles & kRoleMetadata) == 0) continue;
    scored.emplace_back(~MixHash(MixHash(node.id.high, node.id.low), hash), node.id);
  }
  std::sort(scored.begin(), scored.end());
  std::vector<NodeId> nodes;
  nodes.reserve(scored.size());
  for (const auto& [score, node] : scored) nodes.push_back(node);
  return nodes;
}

void NameService::Start(MetaStore* store) {
  store_ = store;
  if (store == nullptr) return;
  mounts_ = std::make_unique<WorkerPool>("names", kMountThreads, kWaitingMax);
  nodes_ = std::make_unique<WorkerPool>("names-copy", kNodeThreads, kWaitingMax);
  takeover_ = std::make_unique<WorkerPool>("names-own", 1, kWaitingMax);
  serving_ = true;
}

void NameService::Stop() {
  if (!serving_.exchange(false)) return;
  takeover_->Stop();
  mounts_->Stop();
  nodes_->Stop();
}

void NameService::SetView(const std::shared_ptr<const ClusterView>& view) {
  {
    const MutexLock lock(mutex_);
    view_ = view;
  }
  if (serving_) (void)takeover_->Post([this, view] { TakeOver(view); });
}

std::shared_ptr<const ClusterView> NameService::view() {
  const MutexLock lock(mutex_);
  return view_;
}

NameService::SpacePtr NameService::Find(const SpaceId& id) {
  const MutexLock lock(mutex_);
  SpacePtr& space = spaces_[id];
  if (space == nullptr) space = std::make_shared<Space>(store_, id);
  return space;
}

bool NameService::Serve(NameRequest request, std::function<void(const NameReply&)> answer) {
  if (!serving_) {
    answer(Refused(Code::kUnsupported, 0));
    return true;
  }
  const bool of_node = IsForNodes(request.op);
  return (of_node ? nodes_ : mounts_)
      ->Post([this, of_node, request = std::move(request), answer = std::move(answer)] {
        answer(of_node ? AnswerNode(request) : AnswerMount(request));
      });
}

Result<NameReply> NameService::Ask(const NodeId& node, const NameRequest& request) {
  const auto peer = parts_.peers->Find(node);
  if (peer == nullptr) return Error{Code::kUnavailable, "no such node"};
  const rdma::Reply reply =
      peer->CallAndWait(kMethodNames, Encode(request), {.timeout = kNodeCall});
  if (reply.code != Code::kOk) return Error{reply.code, "a node does not answer"};
  KVC_TRY_ASSIGN(NameReply decoded, DecodeNameReply(reply.head));
  if (decoded.code != Code::kOk) return Error{decoded.code, "a node refuses"};
  return decoded;
}

// ---- mounts

NameReply NameService::AnswerMount(const NameRequest& request) {
  const auto now = view();
  if (now == nullptr || !serving_) return Refused(Code::kUnavailable, 0);
  const uint64_t epoch = now->epoch;
  const auto nodes = NameNodesFor(*now, request.space);
  if (request.epoch != epoch || nodes.empty() || nodes[0] != self_ || !parts_.may_serve()) {
    return Refused(Code::kStale, epoch);
  }
  const SpacePtr space = Find(request.space);
  // Under the lock: who asked for our state under a newer view has it, and we end there.
  const auto is_over = [&] { return view()->epoch != epoch; };
  // Whoever was told something by us may rely on it: no answer after another may be owner.
  const auto answer = [&](NameReply reply) {
    if (!parts_.may_serve()) return Refused(Code::kStale, epoch);
    reply.epoch = epoch;
    return reply;
  };
  if (IsQuestion(request.op)) {
    const std::shared_lock<std::shared_mutex> lock(space->mutex);
    if (is_over()) return Refused(Code::kStale, epoch);
    if (space->owned_epoch == epoch && space->unsent.empty()) {
      if (request.op != NameOp::kSync) return answer(space->table.Ask(request));
      NameReply reply;
      reply.code = store_->Sync().code();
      return answer(std::move(reply));
    }
  }
  const std::unique_lock<std::shared_mutex> lock(space->mutex);
  if (is_over()) return Refused(Code::kStale, epoch);
  if (space->owned_epoch != epoch) {
    if (const Status owned = Own(*space, *now); !owned.ok()) {
      return Refused(Code::kUnavailable, epoch);
    }
  }
  // What was said to be so must be so at the copy, too.
  if (!SendRest(*space, epoch).ok()) return Refused(Code::kUnavailable, epoch);
  if (IsQuestion(request.op)) {
    if (request.op == NameOp::kSync) (void)store_->Sync();
    return answer(request.op == NameOp::kSync ? NameReply{} : space->table.Ask(request));
  }
  std::vector<NameRecord> records;
  NameReply reply = space->table.Apply(request, parts_.clock->WallNanos(), &records);
  if (records.empty()) return answer(std::move(reply));
  if (const Status written = space->table.Write(records); !written.ok()) {
    KVC_LOG(Error, "names cannot be written", "error={}", LogValue(written.error().text));
    (void)space->table.Load();
    return Refused(Code::kIo, epoch);
  }
  if (space->copy.valid()) {
    space->unsent.push_back({space->table.state().sequence, std::move(records)});
    if (!SendRest(*space, epoch).ok()) return Refused(Code::kUnavailable, epoch);
  }
  return answer(std::move(reply));
}

// ---- taking over

void NameService::TakeOver(const std::shared_ptr<const ClusterView>& view_then) {
  for (const SpaceId& id : SpacesWithNames(*store_)) {
    if (!serving_ || view() != view_then) return;  // the next one is on its way
    const auto nodes = NameNodesFor(*view_then, id);
    if (nodes.empty() || nodes[0] != self_) continue;
    const SpacePtr space = Find(id);
    const std::unique_lock<std::shared_mutex> lock(space->mutex);
    if (space->owned_epoch != view_then->epoch) (void)Own(*space, *view_then);
  }
}

Status NameService::Own(Space& space, const ClusterView& now) {
  space.owned_epoch = 0;
  space.unsent.clear();
  KVC_TRY(space.table.Load());
  const std::vector<NodeId> nodes = NameNodesFor(now, space.id);
  NameRequest ask;
  ask.epoch = now.epoch;
  ask.space = space.id;
  ask.op = NameOp::kState;
  NodeId newest = self_;
  uint64_t term = space.table.state().term, sequence = space.table.state().sequence;
  for (const NodeId& node : nodes) {
    if (node == self_) continue;
    // All must answer, or leave the view: any may have been the owner.
    KVC_TRY_ASSIGN(const NameReply reply, Ask(node, ask));
    if (std::pair(reply.term, reply.sequence) <= std::pair(term, sequence)) continue;
    term = reply.term;
    sequence = reply.sequence;
    newest = node;
  }
  if (newest != self_) KVC_TRY(FetchNewest(space, now, newest, sequence));
  std::vector<NameRecord> records;
  space.table.Begin(now.epoch, &records);
  KVC_TRY(space.table.Write(records));
  space.copy = nodes.size() > 1 ? nodes[1] : NodeId{};
  if (space.copy.valid()) KVC_TRY(SendWhole(space, now.epoch));
  space.owned_epoch = now.epoch;
  KVC_LOG(Info, "owns a namespace's names", "space={:x}{:016x} epoch={} sequence={}", space.id.high,
          space.id.low, now.epoch, space.table.state().sequence);
  return {};
}

Status NameService::FetchNewest(Space& space, const ClusterView& now, const NodeId& from,
                                uint64_t sequence) {
  KVC_TRY(space.table.Clear());
  NameRequest ask;
  ask.epoch = now.epoch;
  ask.space = space.id;
  ask.op = NameOp::kPull;
  // The record of its state comes with the last page: a copy that broke off counts as none.
  std::vector<NameRecord> state;
  for (bool done = false; !done;) {
    KVC_TRY_ASSIGN(NameReply page, Ask(from, ask));
    if (page.sequence != sequence) return Error{Code::kStale, "it changed meanwhile"};
    done = page.done;
    if (!page.records.empty()) ask.name = page.records.back().key;
    std::vector<NameRecord> records;
    for (NameRecord& record : page.records) {
      (space.table.IsState(record) ? state : records).push_back(std::move(record));
    }
    KVC_TRY(space.table.Write(records));
  }
  KVC_TRY(space.table.Write(state));
  return space.table.Load();
}

Status NameService::SendWhole(Space& space, uint64_t epoch) {
  NameRequest push;
  push.epoch = epoch;
  push.space = space.id;
  push.op = NameOp::kPush;
  push.flags = kPushFirst;
  std::string after;
  std::vector<NameRecord> state;
  for (bool done = false; !done;) {
    std::vector<NameRecord> page;
    KVC_TRY_ASSIGN(const bool is_last, space.table.Page(after, kPageBytes, &page));
    done = is_last;
    if (!page.empty()) after = page.back().key;
    push.records.clear();
    for (NameRecord& record : page) {
      (space.table.IsState(record) ? state : push.records).push_back(std::move(record));
    }
    if (done) {
      push.flags |= kPushLast;
      push.records.insert(push.records.end(), state.begin(), state.end());
    }
    if (const auto pushed = Ask(space.copy, push); !pushed.ok()) return pushed.error();
    push.flags = 0;
  }
  return {};
}

Status NameService::SendRest(Space& space, uint64_t epoch) {
  if (space.unsent.size() > kUnsentMax) {
    KVC_TRY(SendWhole(space, epoch));
    space.unsent.clear();
  }
  NameRequest push;
  push.epoch = epoch;
  push.space = space.id;
  push.op = NameOp::kPush;
  while (!space.unsent.empty()) {
    push.sequence = space.unsent.front().sequence;
    push.records = space.unsent.front().records;
    const auto pushed = Ask(space.copy, push);
    if (pushed.code() == Code::kNotFound) {  // it has lost something
      KVC_TRY(SendWhole(space, epoch));
      space.unsent.clear();
      return {};
    }
    if (!pushed.ok()) return pushed.error();
    space.unsent.pop_front();
  }
  return {};
}

// ---- other nodes

NameReply NameService::AnswerNode(const NameRequest& request) {
  const auto now = view();
  if (now == nullptr || !serving_) return Refused(Code::kUnavailable, 0);
  if (request.epoch != now->epoch) return Refused(Code::kStale, now->epoch);
  const SpacePtr space = Find(request.space);
  NameReply reply;
  reply.epoch = now->epoch;
  const std::unique_lock<std::shared_mutex> lock(space->mutex);
  // The view may have changed while we waited.
  if (view()->epoch != request.epoch) return Refused(Code::kStale, now->epoch);
  NameTable& table = space->table;
  if (const Status loaded = table.Load(); !loaded.ok()) {
    return Refused(loaded.code(), now->epoch);
  }
  reply.term = table.state().term;
  reply.sequence = table.state().sequence;
  if (request.op == NameOp::kState) return reply;
  if (request.op == NameOp::kPull) {
    const auto done = table.Page(request.name, kPageBytes, &reply.records);
    reply.done = done.ok() && *done;
    reply.code = done.code();
    return reply;
  }
  space->owned_epoch = 0;
  if ((request.flags & kPushFirst) != 0) {
    if (const Status cleared = table.Clear(); !cleared.ok()) {
      return Refused(cleared.code(), now->epoch);
    }
  } else if (request.sequence != 0) {
    if (request.sequence <= reply.sequence) return reply;  // sent again
    if (request.sequence != reply.sequence + 1) return Refused(Code::kNotFound, now->epoch);
  }
  reply.code = table.Write(request.records).code();
  return reply;
}

}  // namespace kvcfs::meta
