// Matches that are read out of the tables of the shards' owners (match_table.h).
#include <algorithm>

#include "meta/cluster_client.h"

namespace kvcfs::meta {

// One probe to each owner, all at once: what they bring decides what is to be asked for.
bool ClusterClient::SendProbes(Millis now, uint64_t number, Op& op, ClientActions* out) {
  if (op.probe_rounds == 0) return false;
  --op.probe_rounds;
  std::vector<std::pair<NodeId, uint32_t>> wanted;  // which group of whom
  for (uint32_t i = 0; i < op.groups.size(); ++i) {
    GroupPart& part = op.groups[i];
    if (part.answered || !part.probe) continue;
    part.probe = false;
    const NodeId& owner = placement_.OwnerOf(BlockId{op.id.space, op.keys[part.range.first]});
    if (owner.valid() && owner != options_.self) wanted.emplace_back(owner, i);
  }
  std::sort(wanted.begin(), wanted.end());
  for (size_t begin = 0; begin < wanted.size();) {
    const NodeId owner = wanted[begin].first;
    const uint64_t id = next_call_++;
    op.calls.push_back(id);
    Call& call = calls_[id];
    call = {.op = number,
            .sent = now,
            .epoch = view_.epoch,
            .groups = {},
            .place = {owner, 0},
            .is_probe = true};
    MatchProbe& probe = out->probes.emplace_back();
    probe.to = owner;
    probe.id = id;
    probe.op = number;
    probe.space = op.id.space;
    for (; begin < wanted.size() && wanted[begin].first == owner; ++begin) {
      const GroupRange& range = op.groups[wanted[begin].second].range;
      probe.groups.push_back({op.keys[range.first], range.count});
      call.groups.push_back(wanted[begin].second);
    }
  }
  return !wanted.empty();
}

void ClusterClient::ReceiveProbe(Millis now, uint64_t id, std::span<const uint64_t> words,
                                 ClientActions* out) {
  EndProbe(now, id, words, &MatchReads::failed, out);
}

void ClusterClient::EndProbe(Millis now, uint64_t id, std::span<const uint64_t> words,
                             uint32_t MatchReads::*without_words, ClientActions* out) {
  const auto at = calls_.find(id);
  if (at == calls_.end()) return;
  const Call call = std::move(at->second);
  calls_.erase(at);
  Op& op = ops_.at(call.op);
  std::erase(op.calls, id);
  size_t wanted = 0;
  for (const uint32_t group : call.groups) {
    wanted += op.groups[group].range.count * kMatchBucketWords;
  }
  for (const uint32_t group : call.groups) {
    GroupPart& part = op.groups[group];
    if (words.size() != wanted) {
      ++(op.reads.*without_words);
      continue;
    }
    const size_t count = part.range.count * kMatchBucketWords;
    TakeProbed(op, part, call.place.node, words.first(count));
    words = words.subspan(count);
    wanted -= count;
  }
  if (!op.calls.empty()) return;
  // Behind a group whose last block nothing extends there is nothing.
  for (size_t i = 1; i < op.groups.size(); ++i) {
    const GroupPart& before = op.groups[i - 1];
    GroupPart& part = op.groups[i];
    if (!before.answered || before.count < before.range.count || part.answered) continue;
    if (op.found[part.range.first - 1].children != 0) break;
    part.answered = true;
    part.count = 0;
  }
  if (auto outcome = EndOfMatch(now, op.groups, false, &op.found); outcome.has_value()) {
    return End(call.op, std::move(*outcome), out);
  }
  Run(now, call.op, op, out);
}

// The group is answered when all of it is there, or when nothing extends the last block that is.
void ClusterClient::TakeProbed(Op& op, GroupPart& part, const NodeId& owner,
                               std::span<const uint64_t> words) {
  const SpaceId& space = op.id.space;
  const uint32_t shard = ShardOf({space, op.keys[part.range.first]});
  for (uint32_t i = 0; i < part.range.count; ++i) {
    const size_t at = part.range.first + i;
    const auto bucket = words.subspan(i * kMatchBucketWords).first<kMatchBucketWords>();
    const MatchLookup found = LookUpMatch(bucket, {space, op.keys[at]});
    if (!found.entry) {
      part.probe = found.changing;
      ++(found.changing ? op.reads.changing : op.reads.not_there);
      return;
    }
    const MatchEntry& entry = *found.entry;
    // Memory of who does not own it in this view says nothing; nor does what it said in another.
    const bool is_now = entry.epoch == view_.epoch && placement_.OwnerOf(shard) == owner &&
                        entry.incarnation == placement_.IncarnationOf(shard);
    if (!is_now) {
      ++op.reads.stale;
      return;
    }
    const auto block = entry.ToBlock(view_);
    if (!block || entry.ordinal != at || (at > 0 && entry.parent != op.keys[at - 1].Word(0))) {
      ++op.reads.not_there;
      return;
    }
    if (op.found.size() <= at) op.found.resize(at + 1);
    op.found[at] = *block;
    part.count = i + 1;
    if (entry.children == 0) break;
  }
  part.answered = true;
  ++op.reads.read;
}

}  // namespace kvcfs::meta
