// The three cores of the cluster, joined by a queue without delays or faults, under a clock that
// tests move. For faults of all kinds there is tests/sim.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <utility>
#include <vector>

#include "meta/block_holder.h"
#include "meta/chain_key.h"
#include "meta/cluster_client.h"
#include "meta/metadata_shard.h"

namespace kvcfs::meta {

inline constexpr SpaceId kTestSpace{1, 2};

class MapStore final : public BlockHolder::Store {
 public:
  void Mark(const BlockId& id, uint64_t generation, uint64_t version) override {
    marked[{id, generation}] = version;
  }
  void Free(const BlockId& id, uint64_t generation) override {
    marked.erase({id, generation});
    freed.insert({id, generation});
  }
  void Keep(const BlockId& id, uint64_t generation) override { kept.insert({id, generation}); }
  void Fetch(uint64_t order, const BlockFacts& facts, const Place& from) override {
    fetches.push_back({order, facts, from});
  }
  void Used(const std::vector<BlockId>& ids) override {
    used.insert(used.end(), ids.begin(), ids.end());
  }

  struct Fetching {
    uint64_t order;
    BlockFacts facts;
    Place from;
  };
  std::map<std::pair<BlockId, uint64_t>, uint64_t> marked;
  std::set<std::pair<BlockId, uint64_t>> freed, kept;
  std::vector<Fetching> fetches;
  std::vector<BlockId> used;
};

class SmallCluster {
 public:
  struct Node {
    NodeId id;
    bool up = true;
    MatchTable table{64};  // of a metadata node
    std::unique_ptr<MetadataShard> metadata;
    MapStore store;
    std::unique_ptr<BlockHolder> holder;
  };

  SmallCluster(uint64_t metadata_nodes, uint64_t holders) {
    for (uint64_t i = 0; i < metadata_nodes + holders; ++i) {
      auto node = std::make_unique<Node>();
      node->id = {7, i + 1};
      const bool is_metadata = i < metadata_nodes;
      view.nodes.push_back({node->id, 1, is_metadata ? kRoleMetadata : kRoleBlocks, ""});
      if (is_metadata) {
        node->metadata = std::make_unique<MetadataShard>(
            MetadataShard::Options{.self = node->id,
                                   .incarnation = 1,
                                   .times = {},
                                   .may_serve = [this](Millis) { return serving; },
                                   .table = &node->table});
      } else {
        node->holder = std::make_unique<BlockHolder>(
            BlockHolder::Options{.self = node->id, .times = {}, .inventory_entries = 3},
            &node->store);
      }
      nodes.push_back(std::move(node));
    }
    client = std::make_unique<ClusterClient>(ClusterClient::Options{.self = {9, 9}, .times = {}});
    GiveView();
    Advance(Millis(60'000));  // past the leases that a former owner may have given
  }

  // The view as it is now, under the next epoch, to all nodes that are up.
  void GiveView() {
    ++view.epoch;
    for (auto& node : nodes) {
      if (!node->up) continue;
      Actions actions;
      if (node->metadata) node->metadata->SetView(now, view, &actions);
      if (node->holder) node->holder->SetView(now, view, &actions);
      Take(*node, actions);
    }
    ClientActions out;
    client->SetView(now, view, &out);
    TakeClient(out);
    Settle();
  }
  // A node that was removed, with what it had.
  void Add(size_t index) {
    nodes[index]->up = true;
    view.nodes.push_back({nodes[index]->id, 2, kRoleBlocks, ""});
    GiveView();
  }
  void Remove(size_t index) {
    nodes[index]->up = false;
    std::erase_if(view.nodes, [&](const ClusterNode& node) { return node.id == nodes[index]->id; });
    GiveView();
  }
  Node* Find(const NodeId& id) {
    for (auto& node : nodes) {
      if (node->id == id) return node.get();
    }
    return nullptr;
  }
  void Settle() {
    while (!queue.empty()) {
      const auto run = std::move(queue.front());
      queue.pop_front();
      run();
    }
  }
  // In steps of 20 ms, with ticks.
  void Advance(Millis by) {
    for (const Millis end = now + by; now < end;) {
      const Millis step = end - now > Millis(2000) ? Millis(500) : Millis(20);
      now += step;
      for (auto& node : nodes) {
        if (!node->up) continue;
        Actions actions;
        if (node->metadata) node->metadata->Tick(now, &actions);
        if (node->holder) node->holder->Tick(now, &actions);
        Take(*node, actions);
      }
      ClientActions out;
      client->Tick(now, &out);
      TakeClient(out);
      Settle();
    }
  }
  // Begins an operation of the client and runs until it has ended.
  Outcome Do(const std::function<void(uint64_t op, ClientActions*)>& begin) {
    const uint64_t op = next_op++;
    ClientActions out;
    begin(op, &out);
    TakeClient(out);
    Settle();
    for (int i = 0; i < 1000 && !outcomes.contains(op); ++i) Advance(Millis(20));
    return outcomes.at(op);
  }
  Outcome Match(const std::vector<BlockKey>& keys, bool lease = false, Way way = Way::kCall) {
    return Do([&](uint64_t op, ClientActions* out) {
      client->Match(now, op, kTestSpace, keys, lease, Millis(2000), out, way);
    });
  }
  Outcome Create(const BlockKey& key, const BlockKey& parent) {
    return Do([&](uint64_t op, ClientActions* out) {
      client->Create(now, op, {kTestSpace, key}, parent, Millis(2000), out);
    });
  }
  Outcome Publish(BlockFacts facts, uint32_t crc, uint8_t replicas) {
    facts.length = 4096;
    facts.crc32c = crc;
    facts.replicas = replicas;
    return Do([&](uint64_t op, ClientActions* out) {
      client->Publish(now, op, facts, {}, Millis(2000), out);
    });
  }
  Outcome Drop(const BlockKey& key) {
    return Do([&](uint64_t op, ClientActions* out) {
      client->Drop(now, op, {kTestSpace, key}, Millis(8000), out);
    });
  }
  // A chain of so many blocks, published one after the other. Its keys.
  std::vector<BlockKey> PublishChain(uint64_t count, uint8_t replicas = 1, uint64_t salt = 0) {
    std::vector<BlockKey> keys;
    for (uint64_t i = 0; i < count; ++i) {
      const BlockKey parent = keys.empty() ? BlockKey{} : keys.back();
      keys.push_back(ChainKey(parent, salt + i));
      const Outcome created = Create(keys.back(), parent);
      if (created.code != Code::kOk) return {};
      if (Publish(created.facts, 77, replicas).code != Code::kOk) return {};
    }
    return keys;
  }
  // What holders were told to fetch comes, or does not. How many it were.
  size_t CompleteFetches(Code code) {
    size_t fetched = 0;
    for (auto& node : nodes) {
      for (const auto& fetch : std::exchange(node->store.fetches, {})) {
        Actions actions;
        node->holder->Fetched(now, fetch.order, code, next_generation++, fetch.facts.length,
                              fetch.facts.crc32c, &actions);
        Take(*node, actions);
        ++fetched;
      }
    }
    Settle();
    return fetched;
  }
  void Release(Node& holder, const BlockId& id, uint64_t generation) {
    holder.holder->WantRelease(now, id, generation);
    Advance(Millis(20));
  }

  void Take(Node& node, const Actions& actions) {
    for (const OutAnswer& answer : actions.answers) {
      queue.push_back([this, answer] { Answered(answer.call, answer.reply); });
    }
    for (const OutCall& call : actions.calls) {
      Call(call, [this, &node, id = call.id](const Reply& reply) {
        Actions more;
        if (node.metadata) node.metadata->ReceiveReply(now, id, reply, &more);
        if (node.holder) node.holder->ReceiveReply(now, id, reply, &more);
        Take(node, more);
      });
    }
  }
  void TakeClient(const ClientActions& actions) {
    for (const OutCall& call : actions.calls) {
      sent.push_back(call);
      Call(call, [this, id = call.id](const Reply& reply) {
        ClientActions more;
        client->ReceiveReply(now, id, reply, &more);
        TakeClient(more);
      });
    }
    for (const MatchProbe& probe : actions.probes) {
      probes.push_back(probe);
      queue.push_back([this, probe] {
        ClientActions more;
        client->ReceiveProbe(now, probe.id, ReadTable(probe), &more);
        TakeClient(more);
      });
    }
    for (const Outcome& outcome : actions.outcomes) outcomes[outcome.op] = outcome;
  }
  // As READs bring it, also of a node that does nothing any more.
  std::vector<uint64_t> ReadTable(const MatchProbe& probe) {
    std::vector<uint64_t> words;
    const MatchTable& table = Find(probe.to)->table;
    for (const MatchProbe::Group& group : probe.groups) {
      const uint64_t bucket = MatchBucketOf({probe.space, group.anchor}, table.buckets());
      const auto part = table.Read(bucket, group.count);
      words.insert(words.end(), part.begin(), part.end());
    }
    if (spoil) spoil(&words);
    return words;
  }
  void Call(const OutCall& call, std::function<void(const Reply&)> done) {
    queue.push_back([this, call, done = std::move(done)] {
      if (holds && holds(call, done)) return;
      Node* node = Find(call.to);
      if (node == nullptr || !node->up) return done({Code::kUnavailable, 0, {}});
      if (const auto* put = std::get_if<PutRequest>(&call.request.body); put != nullptr) {
        if (refuse_puts != Code::kOk) return done({refuse_puts, 0, {}});
        const uint64_t generation = next_generation++;
        node->holder->Sealed(now, put->facts, generation);
        return done({Code::kOk, 0, PutReply{generation}});
      }
      if (const auto* read = std::get_if<ReadRequest>(&call.request.body); read != nullptr) {
        return done(serve_read ? serve_read(*node, *read) : Reply{Code::kNotFound, 0, {}});
      }
      const uint64_t number = next_call++;
      waiting[number] = done;
      Actions actions;
      if (IsForHolder(call.request.body)) {
        node->holder->Receive(now, number, call.request, &actions);
      } else {
        node->metadata->Receive(now, number, call.request, &actions);
      }
      Take(*node, actions);
    });
  }
  void Answered(uint64_t number, const Reply& reply) {
    const auto done = std::move(waiting.at(number));
    waiting.erase(number);
    done(reply);
  }

  Millis now{1000};
  bool serving = true;
  Code refuse_puts = Code::kOk;  // of all holders
  ClusterView view;
  std::vector<std::unique_ptr<Node>> nodes;
  std::unique_ptr<ClusterClient> client;
  std::deque<std::function<void()>> queue;
  std::map<uint64_t, std::function<void(const Reply&)>> waiting;
  std::map<uint64_t, Outcome> outcomes;
  std::vector<OutCall> sent;                          // by the client
  std::vector<MatchProbe> probes;                     // likewise
  std::function<void(std::vector<uint64_t>*)> spoil;  // what a probe brings
  std::function<Reply(Node&, const ReadRequest&)> serve_read;
  // True: the call is not made now; a test may make it later, by Call().
  std::function<bool(const OutCall&, const std::function<void(const Reply&)>& done)> holds;
  uint64_t next_call = 1, next_op = 1, next_generation = 1;
};

}  // namespace kvcfs::meta
