#include "meta/copy_reader.h"

#include <algorithm>
#include <array>
#include <chrono>

#include "base/metrics.h"

namespace kvcfs::meta {
namespace {

// Below it, three READs cost more than one call that copies.
constexpr size_t kOneSidedBytesMin = 16 << 10;
constexpr Millis kAskTableAgain{2000};

struct ReadMetrics {
  static ReadMetrics& Get();
  Counter& one_sided_bytes;
  Counter& call_bytes;
  Counter& one_sided;
  Counter& calls;
  Counter& not_there;
  Counter& changed;
  Counter& failed;
  LatencyHistogram& one_sided_time;
  LatencyHistogram& call_time;
};

ReadMetrics& ReadMetrics::Get() {
  static Metrics& all = Metrics::Get();
  static constexpr char kBytes[] = "kvcfs_meta_copy_read_bytes_total";
  static constexpr char kBytesHelp[] = "Bytes of copies that came from peers, by how.";
  static constexpr char kReads[] = "kvcfs_meta_copy_reads_total";
  static constexpr char kReadsHelp[] = "Copies that came from peers, by how.";
  static constexpr char kMisses[] = "kvcfs_meta_one_sided_misses_total";
  static constexpr char kMissesHelp[] =
      "One-sided reads of copies that had to be asked for by a call, by why.";
  static constexpr char kTime[] = "kvcfs_meta_copy_read_duration_seconds";
  static constexpr char kTimeHelp[] = "From asking a peer for a copy to having it, by how.";
  static ReadMetrics metrics{
      .one_sided_bytes = all.AddCounter(kBytes, kBytesHelp, {{"way", "one_sided"}}),
      .call_bytes = all.AddCounter(kBytes, kBytesHelp, {{"way", "call"}}),
      .one_sided = all.AddCounter(kReads, kReadsHelp, {{"way", "one_sided"}}),
      .calls = all.AddCounter(kReads, kReadsHelp, {{"way", "call"}}),
      .not_there = all.AddCounter(kMisses, kMissesHelp, {{"reason", "no_header"}}),
      .changed = all.AddCounter(kMisses, kMissesHelp, {{"reason", "changed"}}),
      .failed = all.AddCounter(kMisses, kMissesHelp, {{"reason", "failed"}}),
      .one_sided_time = all.AddLatency(kTime, kTimeHelp, {{"way", "one_sided"}}),
      .call_time = all.AddLatency(kTime, kTimeHelp, {{"way", "call"}}),
  };
  return metrics;
}

}  // namespace

CopyReader::Outcome CopyReader::Read(const NodeId& from, const ReadRequest& request,
                                     std::span<std::byte> into, uint64_t epoch, Millis timeout) {
  using Steady = std::chrono::steady_clock;
  ReadMetrics& metrics = ReadMetrics::Get();
  const Millis deadline = clock_->Monotonic() + timeout;
  const auto peer = peers_->Find(from);
  const bool may = choice_ != OneSided::kNever && into.size() >= kOneSidedBytesMin &&
                   peer != nullptr && (choice_ == OneSided::kAlways || peer->reads_past_cpu());
  const std::optional<SlotTable> table = may ? TableOf(from, *peer, deadline) : std::nullopt;
  bool measured = false;  // both ways are open
  if (table) {
    Way way = Way::kOneSided;
    if (choice_ == OneSided::kAuto) {
      const MutexLock lock(mutex_);
      way = holders_[from].way.Choose(into.size());
      measured = true;
    }
    if (way == Way::kOneSided) {
      const auto begin = Steady::now();
      auto read = ReadSlot(from, *peer, *table, request, into, deadline);
      const auto time = Steady::now() - begin;
      if (measured) Took(from, Way::kOneSided, into.size(), time);
      measured = false;  // of what is asked for because it was not there, the time says nothing
      if (read) {
        metrics.one_sided_time.Observe(time);
        read->reply.epoch = epoch;
        return std::move(*read);
      }
    }
  }
  Outcome outcome;
  const auto begin = Steady::now();
  outcome.reply = peers_->CallAndWait(
      from, {epoch, request}, {.timeout = Left(deadline), .receive = into}, &outcome.received);
  const auto time = Steady::now() - begin;
  if (measured) Took(from, Way::kCall, into.size(), time);
  metrics.call_time.Observe(time);
  if (outcome.reply.code == Code::kOk) {
    metrics.calls.Add();
    metrics.call_bytes.Add(static_cast<double>(outcome.received));
  }
  return outcome;
}

void CopyReader::Took(const NodeId& from, Way way, size_t bytes, std::chrono::nanoseconds time) {
  const MutexLock lock(mutex_);
  holders_[from].way.Took(way, bytes, time);
}

Millis CopyReader::Left(Millis deadline) const {
  return std::max(deadline - clock_->Monotonic(), Millis(1));
}

std::optional<CopyReader::Outcome> CopyReader::ReadSlot(const NodeId& from, rdma::Peer& peer,
                                                        const SlotTable& table,
                                                        const ReadRequest& request,
                                                        std::span<std::byte> into,
                                                        Millis deadline) {
  ReadMetrics& metrics = ReadMetrics::Get();
  // False: the READ failed, and `outcome` says how.
  Outcome outcome;
  outcome.one_sided = true;
  const auto read = [&](const rdma::RemoteSpan& span, std::span<std::byte> to) {
    const rdma::Reply reply = peer.ReadAndWait(span, to, Left(deadline));
    if (reply.code == Code::kOk) return true;
    metrics.failed.Add();
    outcome.reply.code = reply.code;
    return false;
  };
  const auto give_up = [&]() -> std::optional<Outcome> {
    // A silent peer is not waited for twice; a region that is gone, or memory of ours that cannot
    // be registered, says nothing of the copy.
    if (outcome.reply.code == Code::kTimeout || outcome.reply.code == Code::kUnavailable) {
      return outcome;
    }
    return std::nullopt;
  };
  const uint64_t bucket_at = SlotBucketOf(request.id, table.headers) * kSlotHeaderBytes;
  std::array<uint64_t, kSlotBucketHeaders * kSlotHeaderWords> bucket{};
  if (!read({table.region, bucket_at, kSlotBucketBytes},
            std::as_writable_bytes(std::span(bucket)))) {
    ForgetTable(from, table);
    return give_up();
  }
  std::optional<SlotHeader> found;
  uint64_t found_at = 0;
  for (size_t i = 0; i < kSlotBucketHeaders && !found; ++i) {
    const auto header =
        DecodeSlotHeader(std::span(bucket).subspan(i * kSlotHeaderWords).first<kSlotHeaderWords>());
    if (!header || header->generation != request.generation || header->id != request.id) continue;
    found = header;
    found_at = bucket_at + i * kSlotHeaderBytes;
  }
  if (!found || found->length != into.size()) {
    metrics.not_there.Add();
    return std::nullopt;
  }
  if (!read({found->region, 0, found->length, found->key}, into)) return give_up();
  std::array<uint64_t, kSlotHeaderWords> again{};
  if (!read({table.region, found_at, kSlotHeaderBytes}, std::as_writable_bytes(std::span(again)))) {
    ForgetTable(from, table);
    return give_up();
  }
  if (DecodeSlotHeader(again) != found) {
    metrics.changed.Add();
    return std::nullopt;
  }
  metrics.one_sided.Add();
  metrics.one_sided_bytes.Add(static_cast<double>(into.size()));
  outcome.reply = {Code::kOk, 0,
                   ReadReply{request.id.key, found->generation, found->length, found->crc32c}};
  outcome.received = found->length;
  return outcome;
}

std::optional<SlotTable> CopyReader::TableOf(const NodeId& node, rdma::Peer& peer,
                                             Millis deadline) {
  {
    const MutexLock lock(mutex_);
    Holder& holder = holders_[node];
    if (holder.table.headers != 0) return holder.table;
    const Millis now = clock_->Monotonic();
    if (holder.ask_again > now) return std::nullopt;
    holder.ask_again = now + kAskTableAgain;  // meanwhile the others call
  }
  const rdma::Reply reply = peer.CallAndWait(kMethodSlots, {}, {.timeout = Left(deadline)});
  const auto table = DecodeSlotTable(reply.head);
  if (reply.code != Code::kOk || !table.ok() || table->headers == 0) return std::nullopt;
  const MutexLock lock(mutex_);
  holders_[node].table = *table;
  return *table;
}

void CopyReader::ForgetTable(const NodeId& node, const SlotTable& table) {
  const MutexLock lock(mutex_);
  Holder& holder = holders_[node];
  if (holder.table != table) return;
  holder.table = {};
  holder.ask_again = Millis(0);
}

}  // namespace kvcfs::meta
