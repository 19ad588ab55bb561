#include "meta/match_reader.h"

#include <algorithm>
#include <memory>
#include <span>
#include <utility>

#include "base/metrics.h"

namespace kvcfs::meta {
namespace {

constexpr Millis kAskPlaceAgain{2000};

struct MatchMetrics {
  static MatchMetrics& Get();
  Counter& one_sided;
  Counter& calls;
  Counter& groups_read;
  Counter& groups_asked;
  Counter& not_there;
  Counter& changing;
  Counter& stale;
  Counter& failed;
  LatencyHistogram& one_sided_time;
  LatencyHistogram& call_time;
};

MatchMetrics& MatchMetrics::Get() {
  static Metrics& all = Metrics::Get();
  static constexpr char kMatches[] = "kvcfs_meta_matches_total";
  static constexpr char kMatchesHelp[] =
      "Matches that asked the cluster: by READs of its memory alone, or by calls.";
  static constexpr char kGroups[] = "kvcfs_meta_match_groups_total";
  static constexpr char kGroupsHelp[] = "Groups of blocks that matches learned of, by how.";
  static constexpr char kMisses[] = "kvcfs_meta_match_read_misses_total";
  static constexpr char kMissesHelp[] =
      "Groups of matches that one-sided READs did not bring, by why.";
  static constexpr char kTime[] = "kvcfs_meta_match_duration_seconds";
  static constexpr char kTimeHelp[] = "Of matches that asked the cluster, by how.";
  static MatchMetrics metrics{
      .one_sided = all.AddCounter(kMatches, kMatchesHelp, {{"way", "one_sided"}}),
      .calls = all.AddCounter(kMatches, kMatchesHelp, {{"way", "call"}}),
      .groups_read = all.AddCounter(kGroups, kGroupsHelp, {{"way", "one_sided"}}),
      .groups_asked = all.AddCounter(kGroups, kGroupsHelp, {{"way", "call"}}),
      .not_there = all.AddCounter(kMisses, kMissesHelp, {{"reason", "no_entry"}}),
      .changing = all.AddCounter(kMisses, kMissesHelp, {{"reason", "changed"}}),
      .stale = all.AddCounter(kMisses, kMissesHelp, {{"reason", "stale"}}),
      .failed = all.AddCounter(kMisses, kMissesHelp, {{"reason", "failed"}}),
      .one_sided_time = all.AddLatency(kTime, kTimeHelp, {{"way", "one_sided"}}),
      .call_time = all.AddLatency(kTime, kTimeHelp, {{"way", "call"}}),
  };
  return metrics;
}

// READs of one probe that are under way.
struct Round {
  Mutex mutex;
  std::vector<uint64_t> words;  // where they land
  size_t open KVC_GUARDED_BY(mutex) = 0;
  bool failed KVC_GUARDED_BY(mutex) = false;
  MatchReader::Done done;

  void OneIsOver(bool ok) KVC_EXCLUDES(mutex) {
    {
      const MutexLock lock(mutex);
      failed |= !ok;
      if (--open > 0) return;
      if (failed) words.clear();
    }
    done(std::move(words));
  }
};

}  // namespace

Way MatchReader::Choose(size_t groups) {
  if (choice_ == OneSided::kNever) return Way::kCall;
  if (choice_ == OneSided::kAlways) return Way::kOneSided;
  const MutexLock lock(mutex_);
  return way_.Choose(groups);
}

void MatchReader::Took(const Outcome& outcome, bool leased, size_t groups,
                       std::chrono::nanoseconds time) {
  MatchMetrics& metrics = MatchMetrics::Get();
  const MatchReads& reads = outcome.reads;
  const bool called = reads.asked > 0;
  if (!called && reads.read == 0) return;
  (called ? metrics.calls : metrics.one_sided).Add();
  (called ? metrics.call_time : metrics.one_sided_time).Observe(time);
  metrics.groups_read.Add(reads.read);
  metrics.groups_asked.Add(reads.asked);
  metrics.not_there.Add(reads.not_there);
  metrics.changing.Add(reads.changing);
  metrics.stale.Add(reads.stale);
  metrics.failed.Add(reads.failed);
  if (choice_ != OneSided::kAuto || leased) return;
  // What had to be asked for after all is a part of what READs cost.
  const Way way = reads.tried() ? Way::kOneSided : Way::kCall;
  const MutexLock lock(mutex_);
  way_.Took(way, groups, time);
}

bool MatchReader::Read(const MatchProbe& probe, Millis timeout, Done done) {
  const auto peer = peers_->Find(probe.to);
  if (choice_ == OneSided::kNever || peer == nullptr || probe.groups.empty()) return false;
  if (choice_ == OneSided::kAuto && !peer->reads_past_cpu()) return false;
  const auto place = PlaceOf(probe.to, *peer, timeout);
  if (!place) return false;
  const auto round = std::make_shared<Round>();
  size_t words = 0;
  for (const MatchProbe::Group& group : probe.groups) words += group.count * kMatchBucketWords;
  round->words.resize(words);
  round->done = std::move(done);
  {
    const MutexLock lock(round->mutex);
    round->open = probe.groups.size();
  }
  std::span<uint64_t> into(round->words);
  for (const MatchProbe::Group& group : probe.groups) {
    const auto part = std::as_writable_bytes(into.first(group.count * kMatchBucketWords));
    into = into.subspan(group.count * kMatchBucketWords);
    const uint64_t bucket = MatchBucketOf({probe.space, group.anchor}, place->buckets);
    peer->Read({place->region, bucket * kMatchBucketBytes, static_cast<uint32_t>(part.size())},
               part, timeout,
               [this, round, node = probe.to, place = *place](const rdma::Reply& reply) {
                 if (reply.code != Code::kOk) ForgetPlace(node, place);
                 round->OneIsOver(reply.code == Code::kOk);
               });
  }
  return true;
}

std::optional<MatchTablePlace> MatchReader::PlaceOf(const NodeId& node, rdma::Peer& peer,
                                                    Millis timeout) {
  {
    const MutexLock lock(mutex_);
    Owner& owner = owners_[node];
    if (owner.place.buckets != 0) return owner.place;
    const Millis now = clock_->Monotonic();
    if (owner.ask_again > now) return std::nullopt;
    owner.ask_again = now + kAskPlaceAgain;
  }
  peer.Call(kMethodMatches, {}, {.timeout = timeout}, [this, node](const rdma::Reply& reply) {
    const auto place = DecodeMatchTablePlace(reply.head);
    if (reply.code != Code::kOk || !place.ok()) return;
    const MutexLock lock(mutex_);
    owners_[node].place = *place;
  });
  return std::nullopt;
}

void MatchReader::ForgetPlace(const NodeId& node, const MatchTablePlace& place) {
  const MutexLock lock(mutex_);
  Owner& owner = owners_[node];
  if (owner.place != place) return;
  owner.place = {};
  owner.ask_again = Millis(0);
}

}  // namespace kvcfs::meta
