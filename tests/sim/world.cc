#include "tests/sim/world.h"

#include <algorithm>
#include <cstdio>

#include <fmt/format.h>

namespace kvcfs::sim {

using meta::Reply;
using meta::Request;

namespace {

constexpr uint64_t kSlotsMax = 64;  // a generation names its slot: counter * 64 + slot

// The block that a request is about, for the trace.
BlockKey KeyOf(const meta::RequestBody& body) {
  return std::visit(
      [](const auto& request) {
        if constexpr (requires { request.id.key; }) {
          return request.id.key;
        } else if constexpr (requires { request.facts.id.key; }) {
          return request.facts.id.key;
        } else if constexpr (requires { request.child.key; }) {
          return request.child.key;
        } else {
          return BlockKey{};
        }
      },
      body);
}

}  // namespace

class World::SlotStore final : public meta::BlockHolder::Store {
 public:
  SlotStore(World* world, size_t index) : world_(world), index_(index) {}

  Slot* Find(const BlockId& id, uint64_t generation) {
    Slot& slot = node().slots[generation % kSlotsMax];
    return slot.used && slot.id == id && slot.generation == generation ? &slot : nullptr;
  }
  void Mark(const BlockId& id, uint64_t generation, uint64_t version) override {
    Slot* slot = Find(id, generation);
    if (slot == nullptr) return world_->model_.Violate("store: a mark of what is not there");
    slot->version = version;
    if (CrcOf(slot->content) != slot->facts.crc32c) {
      world_->model_.Violate("I1: a holder published bytes that are not the block's");
    }
    world_->model_.Marked(node().id, id, generation, slot->content);
    world_->Note("marked", index_, generation, version);
    if (world_->options_.trace) std::printf("%20s %s\n", "", id.key.ToHex().substr(0, 8).c_str());
  }
  void Free(const BlockId& id, uint64_t generation) override {
    Slot* slot = Find(id, generation);
    if (slot == nullptr) return world_->model_.Violate("store: a place was freed twice");
    slot->used = false;
    world_->Note("freed", index_, generation);
    if (world_->options_.trace) std::printf("%20s %s\n", "", id.key.ToHex().substr(0, 8).c_str());
    world_->model_.Freed(node().id, id, generation);
  }
  void Keep(const BlockId& id, uint64_t generation) override {
    Slot* slot = Find(id, generation);
    if (slot == nullptr) return;
    slot->releasing = false;
    slot->used_at = world_->now_;  // others first
  }
  void Fetch(uint64_t order, const BlockFacts& facts, const Place& from) override {
    world_->At(world_->now_ + world_->Latency() + world_->Latency(),
               [=, world = world_, to = index_, life = node().life] {
                 EndFetch(world, to, life, order, facts, from);
               });
  }
  void Used(const std::vector<BlockId>& ids) override {
    for (Slot& slot : node().slots) {
      if (slot.used && std::find(ids.begin(), ids.end(), slot.id) != ids.end()) {
        slot.used_at = world_->now_;
      }
    }
  }

 private:
  // Every fetch ends; that of a node that was paused, when it goes on. The store may be another by
  // then.
  static void EndFetch(World* world, size_t to, uint64_t life, uint64_t order,
                       const BlockFacts& facts, const Place& from) {
    Node& target = world->nodes_[to];
    if (target.life != life || !target.up) return;
    if (!world->Awake(target)) {
      return world->At(target.paused_until, [=] { EndFetch(world, to, life, order, facts, from); });
    }
    Node* source = world->Find(from.node);
    Slot* made = nullptr;
    uint64_t content = 0;
    if (source != nullptr && world->Awake(*source) && world->Reachable(to, source->index) &&
        !world->random_.Chance(world->drop_)) {
      const Slot& slot = source->slots[from.generation % kSlotsMax];
      if (slot.used && slot.id == facts.id && slot.generation == from.generation) {
        content = slot.content ^ (world->random_.Chance(world->damage_) ? 1 : 0);
        made = world->TakeSlot(target, facts, content);
      }
    }
    meta::Actions actions;
    target.holder->Fetched(world->now_, order, made == nullptr ? Code::kUnavailable : Code::kOk,
                           made == nullptr ? 0 : made->generation, facts.length, CrcOf(content),
                           &actions);
    world->Do(target, 'h', actions);
  }
  Node& node() { return world_->nodes_[index_]; }
  World* const world_;
  const size_t index_;
};

World::World(const WorldOptions& options) : options_(options), random_(options.seed) {
  times_ = {.lease = Millis(3000),
            .lease_hold = Millis(1000),
            .grant = Millis(1500),
            .pin = Millis(2000),
            .settle = lease_life_ / 2,
            .sealed_life = Millis(4000),
            .retry = Millis(40),
            .call = Millis(200),
            .hedge = Millis(15)};
}
World::~World() = default;

void World::At(Millis when, std::function<void()> run) {
  events_.emplace(std::pair(when, next_event_++), std::move(run));
}

void World::Hash(uint64_t value) {
  hash_ = (hash_ ^ value) * 0x100000001b3u;
}

void World::Note(const char* what, uint64_t a, uint64_t b, uint64_t c) {
  Hash(static_cast<uint64_t>(now_.count()));
  for (const char* letter = what; *letter != 0; ++letter) Hash(static_cast<uint8_t>(*letter));
  Hash(a);
  Hash(b);
  Hash(c);
  if (options_.trace) {
    std::printf("%8ld %-12s %lu %lu %lu\n", static_cast<long>(now_.count()), what, a, b, c);
  }
}

World::Node* World::Find(const NodeId& id) {
  for (Node& node : nodes_) {
    if (node.id == id) return &node;
  }
  return nullptr;
}

Millis World::Latency() {
  if (random_.Chance(slow_)) return Millis(1 + static_cast<int64_t>(random_.Below(400)));
  return Millis(1 + static_cast<int64_t>(random_.Below(4)));
}

bool World::Reachable(size_t a, size_t b) const {
  return !partitioned_ || side_.contains(a) == side_.contains(b);
}

bool World::CouldServe(const Node& node) const {
  return node.up && now_ < node.renewed + lease_life_ / 2;
}

void World::MakeMetadata(Node& node) {
  const size_t index = node.index;
  node.metadata = std::make_unique<meta::MetadataShard>(meta::MetadataShard::Options{
      .self = node.id,
      .incarnation = node.incarnation,
      .times = times_,
      .leased_bytes_max = uint64_t{1} << 40,
      .repairs_max = 16,
      .sends_per_tick = 512,
      .moves_max = 4,
      .balance_records_per_scan = 64,
      .may_serve = [this, index](Millis) { return CouldServe(nodes_[index]); },
      .table = node.table.get()});
}

void World::Start(Node& node) {
  ++node.life;
  node.up = true;
  node.next_tick = Millis(-1);
  node.renewed = Millis(-100'000);
  node.incarnation = next_incarnation_++;
  node.metadata.reset();
  node.holder.reset();
  node.client.reset();
  node.table.reset();
  if ((node.roles() & meta::kRoleMetadata) != 0) {
    node.table = std::make_unique<meta::MatchTable>(16);  // too few for all
    MakeMetadata(node);
  }
  if ((node.roles() & meta::kRoleBlocks) != 0) {
    node.slots.resize(slots_per_node_);
    node.store = std::make_unique<SlotStore>(this, node.index);
    node.holder =
        std::make_unique<meta::BlockHolder>(meta::BlockHolder::Options{.self = node.id,
                                                                       .times = times_,
                                                                       .inventory_entries = 7,
                                                                       .fetches_max = 8,
                                                                       .release_items = 8},
                                            node.store.get());
    for (Slot& slot : node.slots) {
      slot.releasing = false;
      if (!slot.used) continue;
      node.holder->Restore(now_, slot.facts, slot.generation, slot.version);
      if (slot.version != 0) model_.Marked(node.id, slot.id, slot.generation, slot.content);
    }
  }
  if (node.roles() == 0) {
    node.client = std::make_unique<meta::ClusterClient>(meta::ClusterClient::Options{
        .self = node.id, .times = times_, .cache_groups_max = 8, .used_max = 64});
    GiveView(node, views_.back());
  }
}

World::Slot* World::TakeSlot(Node& node, const BlockFacts& facts, uint64_t content) {
  for (size_t i = 0; i < node.slots.size(); ++i) {
    Slot& slot = node.slots[i];
    if (slot.used) continue;
    slot = {.used = true,
            .id = facts.id,
            .generation = node.next_generation++ * kSlotsMax + i,
            .content = content,
            .facts = facts,
            .version = 0,
            .used_at = now_,
            .releasing = false};
    return &slot;
  }
  // Full: the coldest is asked back.
  Slot* coldest = nullptr;
  for (Slot& slot : node.slots) {
    if (slot.version == 0 || slot.releasing) continue;
    if (coldest == nullptr || slot.used_at < coldest->used_at) coldest = &slot;
  }
  if (coldest != nullptr && evicting_) {
    coldest->releasing = true;
    ++totals_.evictions;
    node.holder->WantRelease(now_, coldest->id, coldest->generation);
    Schedule(node);
  }
  return nullptr;
}

void World::GiveView(Node& node, const meta::ClusterView& view) {
  meta::Actions actions;
  meta::ClientActions client_actions;
  Note("view", node.index, view.epoch);
  if (node.metadata != nullptr) node.metadata->SetView(now_, view, &actions);
  if (node.holder != nullptr) node.holder->SetView(now_, view, &actions);
  if (node.client != nullptr) {
    node.client->SetView(now_, view, &client_actions);
    return DoClient(node, client_actions);
  }
  Do(node, node.metadata != nullptr ? 'm' : 'h', actions);
  CheckOwners();
}

void World::Do(Node& node, char core, const meta::Actions& actions) {
  for (const meta::OutAnswer& answer : actions.answers) {
    const auto asked = asked_.find(answer.call);
    if (asked == asked_.end()) {
      model_.Violate(fmt::format("node {} answered twice", node.index));
      continue;
    }
    const Asked to = asked->second;
    asked_.erase(asked);
    Answer(to, node.index, answer.reply);
  }
  for (const meta::OutCall& call : actions.calls) SendCall(node, core, call, 0);
  Schedule(node);
}

void World::SendCall(Node& from, char core, const meta::OutCall& call, uint64_t bulk) {
  ++totals_.calls;
  Message message{from.index, from.life, core, call.id, call.request, bulk};
  const Node* target = Find(call.to);
  if (std::holds_alternative<meta::GrantRequest>(call.request.body)) {
    // Transports report what nobody answers; here only this one depends on it.
    const Asked asked{from.index, from.life, core, call.id, 0};
    At(now_ + times_.call, [this, asked] { DeliverReply(asked, {Code::kTimeout, 0, {}}); });
  }
  if (target == nullptr) return;
  const size_t to = target->index;
  if (to == from.index) {
    At(now_, [this, to, message, id = call.to] {
      if (nodes_[to].id == id) Deliver(to, message.life, message);
    });
    return;
  }
  if (!Reachable(from.index, to)) return;
  // A transport carries an attempt out once; only Release relies on it.
  const bool twice = random_.Chance(duplicate_) &&
                     !std::holds_alternative<meta::ReleaseRequest>(call.request.body);
  for (int i = 0; i < (twice ? 2 : 1); ++i) {
    if (random_.Chance(drop_)) continue;
    At(now_ + Latency(), [this, to, message, id = call.to] {
      if (nodes_[to].id == id) Deliver(to, message.life, message);
    });
  }
}

void World::Deliver(size_t to, uint64_t life, const Message& message) {
  Node& node = nodes_[to];
  if (!node.up) return;
  if (node.paused_until > now_) {
    At(node.paused_until, [=, this] { Deliver(to, life, message); });
    return;
  }
  Request request = message.request;
  if (random_.Chance(0.05)) {
    // By way of its bytes.
    auto decoded = meta::DecodeRequest(meta::MethodOf(request.body), meta::Encode(request));
    if (!decoded.has_value()) return model_.Violate("a request did not survive its encoding");
    request = std::move(*decoded);
  }
  const uint64_t call = next_call_++;
  const Asked asked{message.from, message.life, message.asker, message.id, 0};
  Note("request", message.from * 16 + to, request.body.index(), request.epoch);
  if (options_.trace) {
    std::printf("%20s %lu -> %lu %s\n", "", message.from, to,
                KeyOf(request.body).ToHex().substr(0, 8).c_str());
  }
  meta::Actions actions;
  if (std::holds_alternative<meta::PutRequest>(request.body) ||
      std::holds_alternative<meta::ReadRequest>(request.body)) {
    return ServeBytes(node, asked, message);
  }
  asked_[call] = asked;
  if (meta::IsForHolder(request.body)) {
    if (node.holder == nullptr) return model_.Violate("a holder's message at another node");
    node.holder->Receive(now_, call, request, &actions);
    for (const meta::OutAnswer& answer : actions.answers)
      CheckMark(node, message.from, request, answer.reply);
    Do(node, 'h', actions);
  } else {
    if (node.metadata == nullptr) return model_.Violate("a metadata message at another node");
    node.metadata->Receive(now_, call, request, &actions);
    Do(node, 'm', actions);
  }
}

// Put and Read, which the product serves where the bytes are.
void World::ServeBytes(Node& node, const Asked& asked, const Message& message) {
  Asked with_bytes = asked;
  if (const auto* put = std::get_if<meta::PutRequest>(&message.request.body); put != nullptr) {
    Slot* slot = TakeSlot(node, put->facts, message.bulk);
    if (slot == nullptr) return Answer(asked, node.index, {Code::kNoSpace, 0, {}});
    node.holder->Sealed(now_, put->facts, slot->generation);
    Schedule(node);
    return Answer(asked, node.index, {Code::kOk, 0, meta::PutReply{slot->generation}});
  }
  // As a one-sided read: what lies in the slot now, whatever that is.
  const auto& read = std::get<meta::ReadRequest>(message.request.body);
  Slot& slot = node.slots[read.generation % kSlotsMax];
  if (slot.generation == 0) return Answer(asked, node.index, {Code::kNotFound, 0, {}});
  slot.used_at = now_;
  with_bytes.bulk = slot.content ^ (random_.Chance(damage_) ? 1 : 0);
  Answer(
      with_bytes, node.index,
      {Code::kOk, 0,
       meta::ReadReply{slot.id.key, slot.generation, slot.facts.length, CrcOf(with_bytes.bulk)}});
}

void World::Answer(const Asked& asked, size_t from, const Reply& reply) {
  if (from == asked.from) {
    At(now_, [this, asked, reply] { DeliverReply(asked, reply); });
    return;
  }
  if (!Reachable(from, asked.from)) return;
  const int copies = 1 + (random_.Chance(duplicate_) ? 1 : 0);
  for (int i = 0; i < copies; ++i) {
    if (random_.Chance(drop_)) continue;
    At(now_ + Latency(), [this, asked, reply] { DeliverReply(asked, reply); });
  }
}

void World::DeliverReply(const Asked& asked, const Reply& reply) {
  Node& node = nodes_[asked.from];
  if (!node.up || node.life != asked.life) return;
  if (node.paused_until > now_) {
    At(node.paused_until, [=, this] { DeliverReply(asked, reply); });
    return;
  }
  Note("reply", asked.from, static_cast<uint64_t>(reply.code), reply.body.index());
  meta::Actions actions;
  if (asked.asker == 'm') {
    node.metadata->ReceiveReply(now_, asked.id, reply, &actions);
    Do(node, 'm', actions);
    if (std::holds_alternative<meta::InventoryReply>(reply.body)) CheckOwners();
  } else if (asked.asker == 'h') {
    node.holder->ReceiveReply(now_, asked.id, reply, &actions);
    Do(node, 'h', actions);
  } else {
    if (std::holds_alternative<meta::ReadReply>(reply.body)) {
      read_bytes_[{node.index, asked.id}] = asked.bulk;
    }
    meta::ClientActions client_actions;
    if (std::holds_alternative<meta::MatchReply>(reply.body)) {
      // By way of its bytes, which do not say everything.
      const auto method = meta::MethodOf(meta::MatchRequest{});
      const auto decoded = meta::DecodeReply(method, meta::Encode(reply));
      if (!decoded.has_value()) return model_.Violate("a reply did not survive its encoding");
      node.client->ReceiveReply(now_, asked.id, *decoded, &client_actions);
    } else {
      node.client->ReceiveReply(now_, asked.id, reply, &client_actions);
    }
    DoClient(node, client_actions);
    read_bytes_.erase({node.index, asked.id});
  }
}

void World::Schedule(Node& node) {
  Millis next = Millis::max();
  if (node.metadata != nullptr) {
    next = node.metadata->NextTick();
    if (!CouldServe(node)) next = std::max(next, now_ + Millis(50));
  }
  if (node.holder != nullptr) next = node.holder->NextTick();
  if (node.client != nullptr) next = node.client->NextTick();
  if (next == Millis::max()) return;
  next = std::max(next, now_ + Millis(3));
  if (node.next_tick > now_ && node.next_tick <= next) return;
  node.next_tick = next;
  At(next, [this, index = node.index, life = node.life] { TickNode(index, life); });
}

void World::TickNode(size_t index, uint64_t life) {
  Node& node = nodes_[index];
  if (!node.up || node.life != life || node.next_tick != now_) return;
  if (node.paused_until > now_) {
    node.next_tick = node.paused_until;
    At(node.next_tick, [this, index, life] { TickNode(index, life); });
    return;
  }
  node.next_tick = Millis(-1);
  meta::Actions actions;
  meta::ClientActions client_actions;
  if (node.metadata != nullptr) node.metadata->Tick(now_, &actions);
  if (node.holder != nullptr) node.holder->Tick(now_, &actions);
  if (node.client != nullptr) {
    node.client->Tick(now_, &client_actions);
    return DoClient(node, client_actions);
  }
  Do(node, node.metadata != nullptr ? 'm' : 'h', actions);
}

// A node's life at etcd: its lease is renewed four times in it, and each renewal also brings the
// newest view, before the right to serve under it is counted on.
void World::Renew(size_t index, uint64_t life) {
  Node& node = nodes_[index];
  At(std::max(now_ + lease_life_ / 4, node.paused_until),
     [this, index, life] { Renew(index, life); });
  if (!Awake(node) || !node.etcd || node.roles() == 0) return;
  const auto at = registered_.find(node.id);
  if (at == registered_.end()) {
    if (node.renewed > Millis(0)) {
      // It was away for too long: it comes back as another incarnation, a metadata node empty.
      node.incarnation = next_incarnation_++;
      if (node.metadata != nullptr) {
        ++node.life;
        node.next_tick = Millis(-1);
        MakeMetadata(node);
      }
    }
    registered_[node.id] = {node.incarnation, node.roles(), now_ + lease_life_};
    Note("joins", index, node.incarnation);
  } else if (at->second.incarnation != node.incarnation) {
    at->second = {node.incarnation, node.roles(), now_ + lease_life_};
  } else {
    at->second.expires = now_ + lease_life_;
  }
  const uint64_t epoch = node.metadata != nullptr ? node.metadata->epoch() : node.holder->epoch();
  if (epoch < views_.back().epoch) {
    // Watches bring each view in its turn, but for those that were compacted away.
    if (!random_.Chance(0.3)) {
      for (uint64_t next = std::max<uint64_t>(epoch + 1, 1); next < views_.back().epoch; ++next) {
        if (views_.back().epoch - next < 6) GiveView(node, views_[next]);
      }
    }
    GiveView(node, views_.back());
  }
  node.renewed = now_;
  Schedule(node);
}

void World::EtcdTick() {
  At(now_ + Millis(50), [this] { EtcdTick(); });
  const bool all_serve = std::all_of(nodes_.begin(), nodes_.end(), [&](const Node& node) {
    return node.metadata == nullptr || CouldServe(node);
  });
  if (!all_serve) model_.Stalled(Millis(50));
  const bool anybody = std::any_of(nodes_.begin(), nodes_.end(), [&](const Node& node) {
    return node.metadata != nullptr && Awake(node) && node.etcd;
  });
  ForgetGhosts();
  if (!anybody) {
    // A view is proposed by a node; and while etcd itself is away, its leases stand still.
    if (std::none_of(nodes_.begin(), nodes_.end(),
                     [](const Node& node) { return node.roles() != 0 && node.etcd; })) {
      for (auto& [id, registration] : registered_) registration.expires += Millis(50);
    }
    return;
  }
  std::erase_if(registered_, [&](const auto& each) { return each.second.expires <= now_; });
  meta::ClusterView view{.epoch = views_.back().epoch + 1, .nodes = {}};
  for (const auto& [id, registration] : registered_) {
    const uint8_t drains = draining_.contains(id) ? meta::kRoleDraining : 0;
    const auto roles = static_cast<uint8_t>(registration.roles | drains);
    view.nodes.push_back({id, registration.incarnation, roles, ""});
  }
  std::map<NodeId, Millis> away_since;
  for (meta::ClusterNode node : views_.back().nodes) {
    if (registered_.contains(node.id) || !(IsAway(node) || TakesBlocks(node))) continue;
    const auto known = away_since_.find(node.id);
    away_since[node.id] = known == away_since_.end() ? now_ : known->second;
    if (now_ >= away_since[node.id] + away_) continue;
    node.roles = meta::kRoleAway;
    view.nodes.push_back(node);
  }
  away_since_ = std::move(away_since);
  std::sort(view.nodes.begin(), view.nodes.end(),
            [](const auto& a, const auto& b) { return a.id < b.id; });
  if (view.nodes == views_.back().nodes) return;
  for (const meta::ClusterNode& node : views_.back().nodes) {
    const bool stays = view.Has(node.id, node.incarnation) && view.HasNow(node.id);
    if (!stays && (node.roles & (meta::kRoleBlocks | meta::kRoleAway)) != 0) {
      model_.NodeAway(node.id);
    }
  }
  ++totals_.views;
  last_change_ = now_;
  Note("new view", view.epoch, view.nodes.size());
  views_.push_back(view);
  for (Node& node : nodes_) {
    At(now_ + Millis(static_cast<int64_t>(random_.Below(150))),
       [this, index = node.index, life = node.life, epoch = view.epoch] {
         Node& told = nodes_[index];
         if (!Awake(told) || told.life != life || !told.etcd) return;
         GiveView(told, views_[epoch]);
       });
  }
}

// The copies of a node that is down count as there until nobody can serve a view that has it.
void World::ForgetGhosts() {
  for (auto at = ghost_incarnations_.begin(); at != ghost_incarnations_.end();) {
    const auto& [id, incarnation] = *at;
    // It may have started since then without having been noticed.
    const auto has = [&id = id, last = incarnation](const meta::ClusterView& view) {
      const meta::ClusterNode* node = view.Find(id);
      return node != nullptr && !IsAway(*node) && node->incarnation <= last;
    };
    const bool known = std::any_of(nodes_.begin(), nodes_.end(), [&](const Node& node) {
      return node.metadata != nullptr && CouldServe(node) && has(views_[node.metadata->epoch()]);
    });
    if (known || has(views_.back())) {
      ++at;
    } else {
      model_.NodeForgotten(id);
      at = ghost_incarnations_.erase(at);
    }
  }
}

void World::CheckOwners() {
  for (size_t a = 0; a < kMetadataNodes; ++a) {
    for (size_t b = a + 1; b < kMetadataNodes; ++b) {
      const meta::MetadataShard& one = *nodes_[a].metadata;
      const meta::MetadataShard& other = *nodes_[b].metadata;
      if (!CouldServe(nodes_[a]) || !CouldServe(nodes_[b]) || one.epoch() != other.epoch()) {
        continue;
      }
      for (uint32_t shard = 0; shard < meta::kShardCount; ++shard) {
        if (one.Owns(shard) && other.Owns(shard)) {
          return model_.Violate(fmt::format("shard {} has two owners in one epoch", shard));
        }
      }
    }
  }
}

// A mark is taken only from who owns the shard now: not when another has loaded it already.
void World::CheckMark(const Node& holder, size_t owner, const Request& request,
                      const Reply& reply) {
  const auto* mark = std::get_if<meta::MarkRequest>(&request.body);
  if (mark == nullptr || reply.code != Code::kOk) return;
  const Slot& slot = holder.slots[mark->generation % kSlotsMax];
  const uint32_t shard = meta::ShardOf(slot.facts.anchor_id());
  for (size_t i = 0; i < kMetadataNodes; ++i) {
    if (i == owner) continue;
    const Node& node = nodes_[i];
    const auto& view = views_[node.metadata->epoch()];
    if (node.metadata->epoch() > request.epoch && node.metadata->Serves(shard, now_) &&
        view.Has(holder.id, holder.incarnation)) {
      model_.Violate(
          fmt::format("fencing: a mark of epoch {} was taken, and shard {} is loaded in epoch {}",
                      request.epoch, shard, node.metadata->epoch()));
    }
  }
}

std::string World::Run() {
  evicting_ = random_.Chance(0.5);
  slots_per_node_ = evicting_ ? 10 + random_.Below(8) : kSlotsMax;
  keeps_ = !evicting_ && random_.Chance(0.5);
  replicas_ = evicting_ ? static_cast<uint8_t>(1 + random_.Below(2)) : keeps_ ? 1 : 2;
  away_ = keeps_ ? Millis(10'000) : Millis(static_cast<int64_t>(random_.Below(6000)));
  lease_chance_ = random_.Chance(0.4) ? 0.1 : 0.7;
  if (!evicting_) model_.copies_kept = replicas_;
  views_.push_back({});
  model_.SetNow(now_);
  PlantTree();
  nodes_.resize(kNodes);
  for (size_t i = 0; i < kNodes; ++i) {
    nodes_[i].index = i;
    nodes_[i].id = {1, i + 1};
  }
  model_.has_visible_child = [this](const BlockId& id) {
    bool found = false;
    for (size_t i = 0; i < kMetadataNodes; ++i) {
      if (!CouldServe(nodes_[i])) continue;
      nodes_[i].metadata->VisitRecords(
          [&](uint32_t, const meta::MetadataShard::RecordState& record) {
            found = found || (record.facts->parent == id.key && record.visible && !record.doomed &&
                              record.settled && !record.marked.empty());
          });
    }
    return found;
  };
  if (random_.Chance(0.5)) {
    joins_late_ = kMetadataNodes + random_.Below(kBlockNodes);
    At(now_ + Millis(2000 + static_cast<int64_t>(random_.Below(6000))), [this] {
      Note("starts late", joins_late_);
      Start(nodes_[joins_late_]);
    });
  }
  for (Node& node : nodes_) {
    if (joins_late_ != 0 && node.index == joins_late_) {
      node.up = false;
    } else {
      Start(node);
    }
    At(now_ + Millis(static_cast<int64_t>(random_.Below(100))),
       [this, index = node.index] { Renew(index, 0); });
  }
  At(now_ + Millis(200), [this] { EtcdTick(); });
  for (size_t i = kMetadataNodes + kBlockNodes; i < kNodes; ++i) {
    At(now_ + Millis(600), [this, i] { Wake(i); });
  }
  At(now_ + Millis(1500), [this] { NextFault(); });
  At(now_ + options_.length, [this] { Heal(); });
  At(now_ + options_.length + options_.quiet, [this] { CheckEnd(); });
  while (!events_.empty() && model_.violation().empty()) {
    const auto first = events_.begin();
    now_ = first->first.first;
    if (ending_ && jobs_.empty()) break;
    model_.SetNow(now_);
    const std::function<void()> run = std::move(first->second);
    events_.erase(first);
    ++totals_.events;
    run();
    if (totals_.events % 64 == 0) CheckClosure(false);
  }
  return model_.violation();
}

}  // namespace kvcfs::sim
