#include "bench/core_cluster.h"

#include <utility>

#include "rdma/wire.h"

namespace kvcfs::bench {

std::vector<meta::BlockFacts> FactsOf(const IndexLoad& load) {
  std::vector<meta::BlockFacts> all;
  std::vector<uint32_t> place(load.tree().block_count());
  for (const Block block : load.blocks()) {
    meta::BlockFacts facts;
    facts.id = {kBenchSpace, load.key(block)};
    facts.ordinal = load.tree().ordinal(block);
    facts.length = 160u << 10;
    facts.crc32c = block;
    facts.mtime_s = 1'700'000'000;
    const Block parent = load.tree().parent(block);
    if (parent != kNoBlock) {
      const meta::BlockFacts& above = all[place[parent]];
      facts.parent = above.id.key;
      facts.parent_anchor = above.anchor;
    }
    facts.anchor =
        meta::AnchorOf(facts.ordinal) == facts.ordinal ? facts.id.key : all[place[parent]].anchor;
    place[block] = static_cast<uint32_t>(all.size());
    all.push_back(facts);
  }
  return all;
}

class CoreCluster::NoStore final : public meta::BlockHolder::Store {
 public:
  void Mark(const meta::BlockId&, uint64_t, uint64_t) override {}
  void Free(const meta::BlockId&, uint64_t) override {}
  void Keep(const meta::BlockId&, uint64_t) override {}
  void Fetch(uint64_t, const meta::BlockFacts&, const meta::Place&) override {}
  void Used(const std::vector<meta::BlockId>&) override {}
};

struct CoreCluster::Node {
  NoStore store;
  std::unique_ptr<meta::MetadataShard> metadata;
  std::unique_ptr<meta::BlockHolder> holder;
};

struct CoreCluster::Message {
  uint64_t time = 0;  // in halves of a round trip
  bool is_reply = false;
  bool from_client = false, from_holder = false;  // who asked
  size_t from = 0, to = 0;                        // who asked, who answers
  uint64_t asker_id = 0;                          // the asker's number of the call
  uint64_t phase = 0;                             // of a client's: when it was sent
  meta::Request request;
  meta::Reply reply;
};

CoreCluster::CoreCluster(size_t nodes, const std::vector<meta::BlockFacts>& facts)
    : groups_asked_(nodes) {
  KVC_CHECK(nodes > 0);
  view_.epoch = 1;
  for (size_t i = 0; i < nodes; ++i) {
    view_.nodes.push_back(
        {IdOf(i), 1, meta::kRoleMetadata | meta::kRoleBlocks, "127.0.0.1:1", "n"});
    auto node = std::make_unique<Node>();
    node->metadata = std::make_unique<meta::MetadataShard>(meta::MetadataShard::Options{
        .self = IdOf(i), .incarnation = 1, .times = {}, .may_serve = [](Millis) { return true; }});
    node->holder = std::make_unique<meta::BlockHolder>(
        meta::BlockHolder::Options{.self = IdOf(i), .times = {}}, &node->store);
    nodes_.push_back(std::move(node));
  }
  uint64_t generation = 1;
  for (const meta::BlockFacts& block : facts) {
    nodes_[block.id.key.Word(2) % nodes]->holder->Restore(now_, block, generation, generation);
    ++generation;
  }
  for (size_t i = 0; i < nodes; ++i) {
    meta::Actions actions;
    nodes_[i]->holder->SetView(now_, view_, &actions);
    TakeActions(i, true, 0, &actions);
    meta::Actions more;
    nodes_[i]->metadata->SetView(now_, view_, &more);
    TakeActions(i, false, 0, &more);
  }
  Run();
  // What must be said again is said at ticks; a minute is enough for leases of before to be over.
  for (int tick = 0; tick < 700; ++tick) {
    now_ += Millis(100);
    for (size_t i = 0; i < nodes; ++i) {
      meta::Actions actions;
      nodes_[i]->metadata->Tick(now_, &actions);
      TakeActions(i, false, 0, &actions);
    }
    Run();
  }
  for (const auto& node : nodes_) KVC_CHECK(node->metadata->Count().loading == 0);
}

CoreCluster::~CoreCluster() = default;

size_t CoreCluster::AddClient() {
  const size_t number = clients_.size();
  clients_.push_back(std::make_unique<meta::ClusterClient>(
      meta::ClusterClient::Options{.self = {2, number + 1}, .times = {}}));
  meta::ClientActions actions;
  clients_.back()->SetView(now_, view_, &actions);
  return number;
}

void CoreCluster::Post(Message message) {
  const uint64_t time = message.time;
  messages_.emplace(time, std::move(message));
}

void CoreCluster::TakeActions(size_t from, bool holder, uint64_t time, meta::Actions* actions) {
  for (meta::OutCall& call : actions->calls) {
    Message message;
    message.time = time + 1;
    message.from = from;
    message.from_holder = holder;
    message.to = call.to.low - 1;
    message.asker_id = call.id;
    message.request = std::move(call.request);
    bytes_ += meta::Encode(message.request).size();
    Post(std::move(message));
  }
  for (meta::OutAnswer& answer : actions->answers) {
    const auto found = open_calls_.find(answer.call);
    KVC_CHECK(found != open_calls_.end());
    Message message = std::move(found->second);
    open_calls_.erase(found);
    message.is_reply = true;
    message.time = time + 1;
    const uint64_t size = meta::Encode(answer.reply).size() + rdma::kHeaderBytes;
    bytes_ += size;
    if (message.from_client) phases_[message.phase].bytes += size;
    message.reply = std::move(answer.reply);
    Post(std::move(message));
  }
}

void CoreCluster::TakeClientActions(uint64_t time, meta::ClientActions* actions) {
  for (meta::OutCall& call : actions->calls) {
    Message message;
    message.time = time + 1;
    message.from_client = true;
    message.from = client_;
    message.to = call.to.low - 1;
    message.asker_id = call.id;
    message.phase = time;
    message.request = std::move(call.request);
    const uint64_t size = meta::Encode(message.request).size() + rdma::kHeaderBytes;
    bytes_ += size;
    ++messages_sent_;
    phases_[time].work_requests += 1;
    phases_[time].bytes += size;
    // Servers are different machines, so each is a queue pair of its own.
    phases_[time].queue_pairs = static_cast<uint32_t>(phases_[time].work_requests);
    if (const auto* match = std::get_if<meta::MatchRequest>(&message.request.body)) {
      groups_asked_[message.to] += match->groups.size();
    }
    Post(std::move(message));
  }
  for (meta::Outcome& outcome : actions->outcomes) {
    outcome_ = std::move(outcome);
    outcome_time_ = time;
  }
}

void CoreCluster::Run() {
  while (!messages_.empty()) {
    Message message = std::move(messages_.extract(messages_.begin()).mapped());
    const uint64_t time = message.time;
    if (message.is_reply && message.from_client) {
      meta::ClientActions actions;
      clients_[message.from]->ReceiveReply(now_, message.asker_id, message.reply, &actions);
      TakeClientActions(time, &actions);
      continue;
    }
    meta::Actions actions;
    if (message.is_reply) {
      Node& node = *nodes_[message.from];
      if (message.from_holder) {
        node.holder->ReceiveReply(now_, message.asker_id, message.reply, &actions);
      } else {
        node.metadata->ReceiveReply(now_, message.asker_id, message.reply, &actions);
      }
      TakeActions(message.from, message.from_holder, time, &actions);
      continue;
    }
    const uint64_t call = next_call_++;
    const size_t to = message.to;
    const meta::Request request = std::move(message.request);
    open_calls_[call] = std::move(message);
    const bool for_holder = meta::IsForHolder(request.body);
    if (for_holder) {
      nodes_[to]->holder->Receive(now_, call, request, &actions);
    } else {
      nodes_[to]->metadata->Receive(now_, call, request, &actions);
    }
    TakeActions(to, for_holder, time, &actions);
  }
}

CoreCluster::Answer CoreCluster::Match(size_t client, std::span<const BlockKey> keys, bool lease) {
  client_ = client;
  outcome_.reset();
  phases_.clear();
  messages_sent_ = bytes_ = 0;
  meta::ClientActions actions;
  clients_[client]->Match(now_, next_op_++, kBenchSpace, {keys.begin(), keys.end()}, lease,
                          Millis(10'000), &actions);
  TakeClientActions(0, &actions);
  Run();
  // Nobody answered for now: the client asks again at its tick.
  for (int tick = 0; tick < 100 && !outcome_; ++tick) {
    now_ += Millis(100);
    for (size_t i = 0; i < nodes_.size(); ++i) {
      meta::Actions more;
      nodes_[i]->metadata->Tick(now_, &more);
      TakeActions(i, false, 0, &more);
    }
    meta::ClientActions more;
    clients_[client]->Tick(now_, &more);
    TakeClientActions(0, &more);
    Run();
  }
  Answer answer;
  KVC_CHECK(outcome_.has_value());
  answer.count = outcome_->blocks.size();
  answer.depth = static_cast<double>(outcome_time_) / 2;
  answer.messages = messages_sent_;
  answer.bytes = bytes_;
  std::vector<rdma::CostPhase> phases;
  for (const auto& [when, phase] : phases_) phases.push_back(phase);
  // Where a server had to ask another one first, the client's phase took longer than a round trip.
  const rdma::CostPhase trip{.work_requests = 1, .bytes = 128, .queue_pairs = 1};
  const uint64_t trips = (outcome_time_ + 1) / 2;
  while (phases.size() < trips) phases.push_back(trip);
  answer.model_us = phases.empty() ? 0 : rdma::CostMicros(phases);
  return answer;
}

}  // namespace kvcfs::bench
