#include "meta/cluster_runtime.h"

#include <algorithm>
#include <random>
#include <thread>
#include <utility>

#include <fmt/format.h>

#include "base/log.h"

namespace kvcfs::meta {
namespace {

constexpr Millis kNameCall{2000};  // one attempt; an owner may have to ask its copy
constexpr Millis kNameRetry{20};

Error Failed(Code code, std::string_view what, const BlockKey& key) {
  return Error{code, fmt::format("{} {}: {}", what, key.ToHex(), CodeName(code))};
}

}  // namespace

ClusterRuntime::ClusterRuntime(const ClusterRuntimeOptions& options,
                               std::unique_ptr<rdma::Transport> transport, const Clock* clock)
    : options_(options),
      clock_(clock),
      file_ids_([] {
        std::random_device random;
        return uint64_t{random()} << 32 | random();
      }()),
      membership_([&] {
        MembershipOptions member;
        member.cluster = options.cluster;
        member.lease = options.lease;
        member.start_timeout = options.start_timeout;
        member.takeover = options.takeover;
        member.away = options.away;
        return std::make_unique<Membership>(member, EtcdClient::Make(options.etcd), clock);
      }()),
      spaces_(options.cluster, EtcdClient::Make(options.etcd)),
      transport_(std::move(transport)),
      peers_(transport_.get()),
      reader_(options.one_sided, clock, &peers_),
      matches_(options.one_sided == OneSided::kAuto && !transport_->reads_past_cpu()
                   ? OneSided::kNever
                   : options.one_sided,
               clock, &peers_),
      names_(options.self, {.clock = clock,
                            .peers = &peers_,
                            .may_serve = [this] { return membership_->MayServe(); }}),
      service_(
          [&] {
            ClusterService::Options service;
            service.self = options.self;
            service.roles = options.roles;
            service.times = options.times;
            service.leased_bytes_max = options.leased_bytes_max;
            return service;
          }(),
          {.clock = clock,
           .peers = &peers_,
           .reader = &reader_,
           .may_serve = [this] { return membership_->MayServe(); },
           .promise = [this](uint64_t epoch) { return membership_->Promise(epoch); },
           .name_of_space = [this](const SpaceId& id) { return spaces_.NameOf(id); },
           .status = [this] { return ToJson(Describe()); },
           .names = &names_}),
      front_(options.self, options.times, clock, &peers_, &reader_, &matches_, &service_) {}

Status ClusterRuntime::Start(CopyStore* copies, MetaStore* names) {
  KVC_CHECK(!started_ && (copies != nullptr || !holds_blocks()));
  started_ = true;
  const bool exposes = options_.one_sided == OneSided::kAlways ||
                       (options_.one_sided == OneSided::kAuto && transport_->reads_past_cpu());
  if (exposes) service_.ExposeBy(transport_.get());
  if (exposes && holds_blocks()) {
    copies_ = copies;
    copies->ExposeBy(transport_.get());
  }
  names_.Start((options_.roles & kRoleMetadata) != 0 ? names : nullptr);
  service_.Start(copies);
  front_.Start();
  std::optional<ClusterNode> node;
  if (options_.roles != 0) {
    KVC_TRY_ASSIGN(address_, transport_->Listen(options_.listen, &service_));
    node.emplace();
    node->id = options_.self;
    node->roles = options_.roles;
    node->address = options_.advertise.empty() ? address_.ToString() : options_.advertise;
    node->name = options_.name;
    if (holds_blocks()) node->capacity_bytes = copies->Capacity().capacity_bytes;
  }
  return membership_->Start(
      std::move(node),
      {.changed = [this](const auto& view) { TakeView(view); },
       .ask_promise = [this](const ClusterNode& peer, uint64_t epoch,
                             Millis timeout) { return peers_.AskPromise(peer, epoch, timeout); },
       .listed = [this](const EtcdRange& range) { spaces_.Take(range); }});
}

void ClusterRuntime::TakeView(const std::shared_ptr<const ClusterView>& view) {
  peers_.SetView(*view);
  names_.SetView(view);
  service_.SetView(view, membership_->incarnation());
  front_.SetView(*view);
}

void ClusterRuntime::Stop() {
  membership_->Stop();
  EndParts();
}

void ClusterRuntime::StopSilently() {
  membership_->StopSilently();
  EndParts();
}

void ClusterRuntime::EndParts() {
  if (!started_ || transport_ == nullptr) return;
  ended_ = true;
  front_.Stop();
  service_.Stop();
  if (copies_ != nullptr) copies_->ExposeBy(nullptr);
  copies_ = nullptr;
  names_.Stop();
  // Calls that are open end now, and with them the last that knows of our memory.
  peers_.Clear();
  transport_.reset();
}

// ---- Blocks

Result<MatchedPrefix> ClusterRuntime::Match(const SpaceId& space, std::span<const BlockKey> keys,
                                            bool lease, Millis timeout) {
  if (lease) {
    auto leased = front_.FindLeased(space, keys);
    if (leased.has_value()) {
      return MatchedPrefix{std::move(leased->blocks), leased->lease_until,
                           static_cast<uint32_t>(keys.size())};
    }
  }
  const size_t groups = GroupsOf(static_cast<uint32_t>(keys.size())).size();
  const Way way = lease ? Way::kCall : matches_.Choose(groups);
  const auto begin = [&](ClusterClient& client, Millis now, uint64_t op, ClientActions* out) {
    client.Match(now, op, space, keys, lease, timeout, out, way);
  };
  const auto begun = std::chrono::steady_clock::now();
  Outcome outcome = front_.Run(std::cref(begin));
  matches_.Took(outcome, lease, groups, std::chrono::steady_clock::now() - begun);
  if (outcome.code != Code::kOk) return Error{outcome.code, "match"};
  return MatchedPrefix{std::move(outcome.blocks), outcome.lease_until, outcome.from_cache};
}

Result<LocatedBlock> ClusterRuntime::Stat(const BlockId& id, Millis timeout) {
  Outcome outcome = front_.Run([&](ClusterClient& client, Millis now, uint64_t op,
                                   ClientActions* out) { client.Stat(now, op, id, timeout, out); });
  if (outcome.code == Code::kOk && outcome.blocks.empty()) outcome.code = Code::kInternal;
  if (outcome.code != Code::kOk) return Failed(outcome.code, "stat", id.key);
  return LocatedBlock{outcome.facts, std::move(outcome.blocks[0]), outcome.lease_until};
}

Result<BlockFacts> ClusterRuntime::Create(const BlockId& id, const BlockKey& parent,
                                          Millis timeout) {
  const Outcome outcome =
      front_.Run([&](ClusterClient& client, Millis now, uint64_t op, ClientActions* out) {
        client.Create(now, op, id, parent, timeout, out);
      });
  if (outcome.code != Code::kOk) return Failed(outcome.code, "create", id.key);
  return outcome.facts;
}

Result<uint32_t> ClusterRuntime::Publish(const BlockFacts& facts,
                                         std::optional<uint64_t> generation,
                                         std::span<const std::byte> bytes, Millis timeout) {
  std::vector<Place> places;
  if (generation && holds_blocks()) places.push_back({options_.self, *generation});
  const Outcome outcome =
      front_.Run([&](ClusterClient& client, Millis now, uint64_t op,
                     ClientActions* out) { client.Publish(now, op, facts, places, timeout, out); },
                 bytes);
  if (outcome.code != Code::kOk) return Failed(outcome.code, "publish", facts.id.key);
  // What the cluster knows, the store here knows too.
  if (!places.empty()) service_.AwaitCopyStore();
  return outcome.copies;
}

Result<Place> ClusterRuntime::Read(const SpaceId& space, const FoundBlock& block,
                                   std::span<std::byte> into, Millis timeout) {
  if (into.size() != block.length || into.empty()) {
    return Error{Code::kInvalid, "a block is read as a whole"};
  }
  const Outcome outcome =
      front_.Run([&](ClusterClient& client, Millis now, uint64_t op,
                     ClientActions* out) { client.Read(now, op, space, block, timeout, out); },
                 {}, into);
  if (outcome.code != Code::kOk) return Failed(outcome.code, "read", block.key);
  return outcome.place;
}

Status ClusterRuntime::Drop(const BlockId& id, Millis timeout) {
  const Outcome outcome =
      front_.Run([&](ClusterClient& client, Millis now, uint64_t op, ClientActions* out) {
        client.Drop(now, op, id, timeout, out);
      });
  if (outcome.code != Code::kOk) return Failed(outcome.code, "drop", id.key);
  return {};
}

Result<std::vector<FoundBlock>> ClusterRuntime::Chain(const BlockId& tip, Millis timeout) {
  Outcome outcome =
      front_.Run([&](ClusterClient& client, Millis now, uint64_t op, ClientActions* out) {
        client.Chain(now, op, tip, timeout, out);
      });
  if (outcome.code != Code::kOk) return Failed(outcome.code, "chain", tip.key);
  return std::move(outcome.blocks);
}

Result<LeafPage> ClusterRuntime::Leaves(const SpaceId& space, uint32_t shard, const BlockKey& after,
                                        uint32_t limit, Millis timeout) {
  if (shard >= kShardCount) return Error{Code::kInvalid, "no such shard"};
  Outcome outcome =
      front_.Run([&](ClusterClient& client, Millis now, uint64_t op, ClientActions* out) {
        client.Leaves(now, op, space, shard, after, limit, timeout, out);
      });
  if (outcome.code != Code::kOk) return Failed(outcome.code, "leaves behind", after);
  return LeafPage{std::move(outcome.keys), outcome.done};
}

void ClusterRuntime::NoteUsed(const BlockId& id, const NodeId& holder) {
  front_.NoteUsed(id, holder);
}

// ---- This node's copies

void ClusterRuntime::Restore(const BlockFacts& facts, uint64_t generation, uint64_t version) {
  service_.Restore(facts, generation, version);
}
void ClusterRuntime::Sealed(const BlockFacts& facts, uint64_t generation) {
  service_.Sealed(facts, generation);
}
void ClusterRuntime::WantRelease(const BlockId& id, uint64_t generation) {
  service_.WantRelease(id, generation);
}
void ClusterRuntime::Lost(const BlockId& id, uint64_t generation) {
  service_.Lost(id, generation);
}

// ---- Namespaces

Result<std::optional<ClusterSpace>> ClusterRuntime::GetSpace(std::string_view name) {
  return spaces_.Get(name);
}
Result<std::optional<ClusterSpace>> ClusterRuntime::GetSpace(const SpaceId& id) {
  return spaces_.Get(id);
}
std::vector<ClusterSpace> ClusterRuntime::ListSpaces() {
  return spaces_.List();
}
uint64_t ClusterRuntime::SpacesVersion() {
  return spaces_.Version();
}
Result<ClusterSpace> ClusterRuntime::CreateSpace(const ClusterSpace& space) {
  return spaces_.Create(space);
}
Result<ClusterSpace> ClusterRuntime::SetSpace(const ClusterSpace& space) {
  return spaces_.Set(space);
}
Status ClusterRuntime::RemoveSpace(const ClusterSpace& space) {
  return spaces_.Remove(space);
}

// ---- Names of ordinary files

FileId ClusterRuntime::NewFileId() {
  return {file_ids_, next_file_id_++};
}

Result<NameReply> ClusterRuntime::AskNames(const NameRequest& asked, Millis timeout) {
  const Millis until = clock_->Monotonic() + timeout;
  NameRequest request = asked;
  request.request = NewFileId();
  Error last{Code::kUnavailable, "nobody owns the names"};
  while (true) {
    const Millis left = until - clock_->Monotonic();
    if (ended_) return Error{Code::kCancelled, "names"};
    if (left <= Millis(0)) return last;
    const auto view = membership_->view();
    const auto nodes = view == nullptr ? std::vector<NodeId>() : NameNodesFor(*view, request.space);
    const auto peer = nodes.empty() ? nullptr : peers_.Find(nodes[0]);
    if (peer != nullptr) {
      request.epoch = view->epoch;
      const rdma::Reply answer =
          peer->CallAndWait(kMethodNames, Encode(request), {.timeout = std::min(left, kNameCall)});
      if (answer.code == Code::kCancelled || answer.code == Code::kDenied) {
        return Error{answer.code, "names"};
      }
      if (answer.code == Code::kOk) {
        KVC_TRY_ASSIGN(NameReply reply, DecodeNameReply(answer.head));
        if (reply.code == Code::kOk) return reply;
        last.code = reply.code;
      } else {
        last.code = answer.code;
      }
    }
    std::this_thread::sleep_for(kNameRetry);
  }
}

// ---- Operation

Result<std::vector<uint64_t>> ClusterRuntime::BytesOf(std::span<const SpaceId> spaces,
                                                      Millis timeout) {
  const auto view = membership_->view();
  if (view == nullptr) return Error{Code::kUnavailable, "no view yet"};
  spaces = spaces.first(std::min(spaces.size(), kUsageSpacesMax));
  std::vector<uint64_t> bytes(spaces.size());
  const Millis deadline = clock_->Monotonic() + timeout;
  for (const ClusterNode& node : view->nodes) {
    if ((node.roles & kRoleMetadata) == 0) continue;
    const Millis left = std::max(deadline - clock_->Monotonic(), Millis(1));
    const Result<SpaceUsage> usage = node.id == options_.self
                                         ? Result<SpaceUsage>(service_.BytesOf(spaces))
                                         : peers_.AskUsage(node.id, spaces, left);
    // Under another view somebody else may count the same blocks.
    if (!usage.ok() || usage->epoch != view->epoch) continue;
    for (size_t i = 0; i < bytes.size(); ++i) bytes[i] += usage->bytes[i];
  }
  return bytes;
}

ClusterStatus ClusterRuntime::Describe() {
  ClusterStatus status;
  status.self = options_.self;
  status.name = options_.name;
  status.roles = options_.roles;
  status.view = membership_->view();
  status.etcd = membership_->status();
  service_.Describe(&status);
  front_.Describe(&status);
  if (transport_ != nullptr) status.transport = transport_->Stats();
  return status;
}

Status ClusterRuntime::SetDraining(std::string_view node, bool draining) {
  return membership_->SetDraining(std::string(node), draining);
}

}  // namespace kvcfs::meta
