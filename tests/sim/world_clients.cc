// What clients do, and what they see of it.
#include <algorithm>

#include <fmt/format.h>

#include "meta/chain_key.h"
#include "tests/sim/world.h"

namespace kvcfs::sim {
namespace {

constexpr meta::SpaceId kSpace{11, 12};
constexpr Millis kTimeout{2500};

// Version 0: which bytes the usual writer of a block writes. The lowest bit is for damage.
uint64_t ContentOf(const BlockKey& key, uint64_t version) {
  return (key.Word(1) << 16) + 2 * (version % 0x8000);
}

}  // namespace

// A tree of about 50 blocks, two first blocks, some forks, chains of up to 20.
void World::PlantTree() {
  uint64_t id = 1;
  for (int root = 0; root < 2; ++root) {
    std::vector<BlockKey> chain{meta::ChainKey({}, id++)};
    model_.AddBlock(chain[0], {});
    for (int fork = 0; fork < 4; ++fork) {
      if (!chains_.empty() && fork > 0) {
        const auto& older =
            chains_[chains_.size() - 1 - random_.Below(static_cast<uint64_t>(fork))];
        chain.assign(older.begin(),
                     older.begin() + 1 + static_cast<int64_t>(random_.Below(older.size())));
      }
      const uint64_t grow = 1 + random_.Below(random_.Chance(0.3) ? 12 : 5);
      for (uint64_t i = 0; i < grow; ++i) {
        const BlockKey key = meta::ChainKey(chain.back(), id++);
        model_.AddBlock(key, chain.back());
        parents_[key] = chain.back();
        chain.push_back(key);
      }
      chains_.push_back(chain);
    }
  }
}

void World::DoClient(Node& node, const meta::ClientActions& actions) {
  for (const meta::OutCall& call : actions.calls) {
    uint64_t bulk = 0;
    if (const auto* put = std::get_if<meta::PutRequest>(&call.request.body); put != nullptr) {
      for (const auto& [number, job] : jobs_) {
        if (job.kind == 'p' && job.facts == put->facts && job.node == node.index) {
          bulk = job.content;
        }
      }
    }
    SendCall(node, 'c', call, bulk);
  }
  for (const meta::MatchProbe& probe : actions.probes) SendProbe(node, probe);
  if (actions.wants_view) {
    At(now_ + Latency(), [this, index = node.index] {
      if (nodes_[index].etcd) GiveView(nodes_[index], views_.back());
    });
  }
  for (const meta::Outcome& outcome : actions.outcomes) Ended(node, outcome);
  Schedule(node);
}

// What READs bring lies in the target's memory, whatever the target is at; each 64 bytes are of one
// of two moments. Nothing comes from who is down or cut off.
void World::SendProbe(Node& from, const meta::MatchProbe& probe) {
  const Node* target = Find(probe.to);
  if (target == nullptr || random_.Chance(drop_)) return;
  At(now_ + Latency(), [this, from = from.index, life = from.life, to = target->index, probe] {
    const auto before = ReadTable(from, to, probe);
    At(now_ + Millis(static_cast<int64_t>(random_.Below(3))), [=, this] {
      auto words = ReadTable(from, to, probe);
      if (words.empty() || words.size() != before.size()) return;
      constexpr size_t kLineWords = 8;
      for (size_t line = 0; line < words.size(); line += kLineWords) {
        const auto at = static_cast<std::ptrdiff_t>(line);
        if (random_.Chance(0.5)) {
          std::copy_n(before.begin() + at, kLineWords, words.begin() + at);
        }
      }
      At(now_ + Latency(), [=, this] { DeliverProbe(from, life, probe.id, words); });
    });
  });
}

std::vector<uint64_t> World::ReadTable(size_t from, size_t to, const meta::MatchProbe& probe) {
  const Node& target = nodes_[to];
  if (!target.up || target.id != probe.to || !Reachable(from, to)) return {};
  const auto job = jobs_.find(probe.op);
  if (job != jobs_.end() && !(Awake(target) && CouldServe(target))) job->second.read_stale = true;
  std::vector<uint64_t> words;
  for (const meta::MatchProbe::Group& group : probe.groups) {
    const uint64_t bucket =
        meta::MatchBucketOf({probe.space, group.anchor}, target.table->buckets());
    const auto part = target.table->Read(bucket, group.count);
    words.insert(words.end(), part.begin(), part.end());
  }
  return words;
}

void World::DeliverProbe(size_t to, uint64_t life, uint64_t probe,
                         const std::vector<uint64_t>& words) {
  Node& node = nodes_[to];
  if (!node.up || node.life != life) return;
  if (!Awake(node)) {
    return At(node.paused_until, [=, this] { DeliverProbe(to, life, probe, words); });
  }
  Note("probed", to, words.size());
  meta::ClientActions actions;
  node.client->ReceiveProbe(now_, probe, words, &actions);
  DoClient(node, actions);
}

void World::Wake(size_t index) {
  if (healed_) return;
  At(now_ + Millis(5 + static_cast<int64_t>(random_.Below(90))), [this, index] { Wake(index); });
  for (const auto& [number, job] : jobs_) {
    if (job.deadline + Millis(300) < now_ && Awake(nodes_[job.node])) {
      model_.Violate(fmt::format("a call of kind {} hangs", job.kind));
    }
  }
  const auto busy = std::count_if(jobs_.begin(), jobs_.end(),
                                  [&](const auto& each) { return each.second.node == index; });
  if (busy >= 3) return;
  const auto& chain = chains_[random_.Below(chains_.size())];
  Job job;
  job.keys.assign(chain.begin(),
                  chain.begin() + 1 + static_cast<int64_t>(random_.Below(chain.size())));
  const uint64_t dice = random_.Below(100);
  job.kind = dice < 85 ? 'm' : dice < 89 ? 's' : dice < 93 ? 'h' : dice < 95 ? 'l' : 'd';
  BeginJob(std::move(job), nodes_[index]);
}

void World::BeginJob(Job job, Node& node) {
  const uint64_t number = next_job_++;
  job.node = node.index;
  job.begun = now_;
  job.deadline = now_ + kTimeout;
  Note("begin", node.index, static_cast<uint64_t>(job.kind), number);
  const Job& kept = jobs_[number] = std::move(job);
  meta::ClientActions actions;
  const BlockId tip{kSpace, kept.keys.empty() ? BlockKey{} : kept.keys.back()};
  meta::ClusterClient& client = *node.client;
  switch (kept.kind) {
    case 'm': {
      const bool lease = random_.Chance(lease_chance_);
      const auto way = random_.Chance(0.5) ? meta::Way::kOneSided : meta::Way::kCall;
      client.Match(now_, number, kSpace, kept.keys, lease, kTimeout, &actions, way);
      break;
    }
    case 's':
      client.Stat(now_, number, tip, kTimeout, &actions);
      break;
    case 'h':
      client.Chain(now_, number, tip, kTimeout, &actions);
      break;
    case 'l':
      client.Leaves(now_, number, kSpace, static_cast<uint32_t>(random_.Below(256)), {}, 3,
                    kTimeout, &actions);
      break;
    case 'd':
      ++totals_.drops;
      model_.DropBegun(tip.key);
      client.Drop(now_, number, tip, kTimeout, &actions);
      break;
    case 'r':
      client.Read(now_, number, kSpace, kept.block, kTimeout, &actions);
      break;
    case 'c': {
      const size_t at = kept.at;
      client.Create(now_, number, {kSpace, kept.keys[at]}, at == 0 ? BlockKey{} : kept.keys[at - 1],
                    kTimeout, &actions);
      break;
    }
    default: {
      // Sometimes it has a copy on its own node already.
      std::vector<Place> places;
      Node& near = nodes_[kMetadataNodes + random_.Below(kBlockNodes)];
      if (random_.Chance(0.25) && Awake(near)) {
        if (const Slot* slot = TakeSlot(near, kept.facts, kept.content); slot != nullptr) {
          near.holder->Sealed(now_, kept.facts, slot->generation);
          Schedule(near);
          places.push_back({near.id, slot->generation});
        }
      }
      client.Publish(now_, number, kept.facts, std::move(places), kTimeout, &actions);
    }
  }
  DoClient(node, actions);
}

void World::Ended(Node& node, const meta::Outcome& outcome) {
  const auto at = jobs_.find(outcome.op);
  if (at == jobs_.end()) return model_.Violate("an operation ended twice");
  Job job = std::move(at->second);
  jobs_.erase(at);
  Note("end", node.index, static_cast<uint64_t>(outcome.code), outcome.blocks.size());
  switch (job.kind) {
    case 'm': {
      totals_.matched += outcome.blocks.size();
      totals_.cached += outcome.from_cache;
      totals_.probed += outcome.reads.read;
      model_.Matched(job.begun, job.keys, outcome, job.read_stale && outcome.reads.read > 0);
      if (ending_) {
        if (outcome.blocks.size() < job.keys.size()) {
          return model_.Violate(fmt::format("I2: {} was acknowledged and is not found at the end",
                                            job.keys.back().ToHex().substr(0, 8)));
        }
      } else if (outcome.blocks.size() < job.keys.size() && !healed_) {
        Job create;
        create.kind = 'c';
        create.keys = job.keys;
        create.at = outcome.blocks.size();
        BeginJob(std::move(create), node);
      }
      if (outcome.blocks.empty()) return;
      Job read;
      read.kind = 'r';
      const size_t pick =
          ending_ ? outcome.blocks.size() - 1 : random_.Below(outcome.blocks.size());
      read.keys.assign(job.keys.begin(), job.keys.begin() + static_cast<int64_t>(pick) + 1);
      read.block = outcome.blocks[pick];
      if (ending_ || random_.Chance(0.5)) {
        BeginJob(std::move(read), node);
      } else {
        // Late: what was found may have gone, and its place may be used again.
        At(now_ + Millis(static_cast<int64_t>(random_.Below(1500))),
           [this, read, index = node.index]() mutable {
             if (!healed_) BeginJob(std::move(read), nodes_[index]);
           });
      }
      return;
    }
    case 'r': {
      const BlockId id{kSpace, job.block.key};
      const bool ok = outcome.code == Code::kOk;
      ++(ok ? totals_.reads : totals_.misses);
      if (ok) node.client->NoteUsed(id, outcome.place.node);
      const auto bytes = read_bytes_.find({node.index, outcome.call});
      const uint64_t content = bytes == read_bytes_.end() ? 0 : bytes->second;
      model_.Read(id, job.block.crc32c, content, ok);
      if (ending_) {
        const auto& acked = model_.acknowledged().at(id.key);
        // Other bytes may have taken the place of what was away.
        const bool replaced = keeps_ && ok && model_.Disturbed(id.key, acked.when);
        if (!ok || (acked.content != content && !replaced)) {
          model_.Violate(fmt::format("I2: {} was acknowledged and cannot be read at the end",
                                     id.key.ToHex().substr(0, 8)));
        }
      }
      return;
    }
    case 'c': {
      if (outcome.code != Code::kOk) return;
      Job publish;
      publish.kind = 'p';
      publish.keys = job.keys;
      publish.at = job.at;
      publish.facts = outcome.facts;
      const BlockKey& key = publish.facts.id.key;
      publish.content = ContentOf(key, random_.Chance(0.7) ? 0 : next_content_++);
      publish.facts.length = 4096;
      publish.facts.crc32c = CrcOf(publish.content);
      publish.facts.replicas = replicas_;
      BeginJob(std::move(publish), node);
      return;
    }
    case 'p': {
      if (outcome.code != Code::kOk && outcome.code != Code::kExists) return;
      if (outcome.code == Code::kOk) {
        ++totals_.acks;
        model_.Acknowledged(job.begun, job.facts, job.content, outcome.copies);
      }
      if (job.at + 1 < job.keys.size() && !healed_) {
        Job create;
        create.kind = 'c';
        create.keys = job.keys;
        create.at = job.at + 1;
        BeginJob(std::move(create), node);
      }
      return;
    }
    case 's':
      if (ending_ && outcome.code != Code::kOk) {
        model_.Violate(fmt::format("I2: {} was acknowledged and is not found by its key at the end",
                                   job.keys.back().ToHex().substr(0, 8)));
      }
      return;
    case 'h':
      for (size_t i = 0; i < outcome.blocks.size(); ++i) {
        if (i >= job.keys.size() || outcome.blocks[i].key != job.keys[i]) {
          model_.Violate("chain: not the blocks of the chain in their order");
        }
      }
      return;
    default:
      return;
  }
}

// What was acknowledged and nothing permits to be gone must be there.
void World::ReadEverything() {
  if (evicting_) return;
  ending_ = true;
  Node& node = nodes_[kMetadataNodes + kBlockNodes];
  for (const auto& [key, acked] : model_.acknowledged()) {
    if (acked.copies < replicas_ || model_.DroppedSince(key, acked.when)) continue;
    Job job;
    job.kind = 'm';
    for (BlockKey at = key;; at = parents_[at]) {
      job.keys.push_back(at);
      if (!parents_.contains(at)) break;
    }
    std::reverse(job.keys.begin(), job.keys.end());
    Job stat;
    stat.kind = 's';
    stat.keys = job.keys;
    BeginJob(std::move(stat), node);
    BeginJob(std::move(job), node);
    if (!model_.violation().empty()) return;
  }
}

}  // namespace kvcfs::sim
