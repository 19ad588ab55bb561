#include "meta/copy_reader.h"

#include <algorithm>
#include <array>
#include <cstring>

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
  static ReadMetrics metrics{
      .one_sided_bytes = all.AddCounter(kBytes, kBytesHelp, {{"way", "one_sided"}}),
      .call_bytes = all.AddCounter(kBytes, kBytesHelp, {{"way", "call"}}),
      .one_sided = all.AddCounter(kReads, kReadsHelp, {{"way", "one_sided"}}),
      .calls = all.AddCounter(kReads, kReadsHelp, {{"way", "call"}}),
      .not_there = all.AddCounter(kMisses, kMissesHelp, {{"reason", "no_header"}}),
      .changed = all.AddCounter(kMisses, kMissesHelp, {{"reason", "changed"}}),
      .failed = all.AddCounter(kMisses, kMissesHelp, {{"reason", "failed"}}),
  };
  return metrics;
}

}  // namespace

CopyReader::Outcome CopyReader::Read(const NodeId& from, const ReadRequest& request,
                                     std::span<std::byte> into, uint64_t epoch, Millis timeout) {
  const Millis deadline = clock_->Monotonic() + timeout;
  if (choice_ != OneSided::kNever && into.size() >= kOneSidedBytesMin) {
    if (auto read = ReadSlot(from, request, into, deadline)) {
      read->reply.epoch = epoch;
      return std::move(*read);
    }
  }
  Outcome outcome;
  outcome.reply = peers_->CallAndWait(
      from, {epoch, request}, {.timeout = Left(deadline), .receive = into}, &outcome.received);
  if (outcome.reply.code == Code::kOk) {
    ReadMetrics::Get().calls.Add();
    ReadMetrics::Get().call_bytes.Add(static_cast<double>(outcome.received));
  }
  return outcome;
}

Millis CopyReader::Left(Millis deadline) const {
  return std::max(deadline - clock_->Monotonic(), Millis(1));
}

std::optional<CopyReader::Outcome> CopyReader::ReadSlot(const NodeId& from,
                                                        const ReadRequest& request,
                                                        std::span<std::byte> into,
                                                        Millis deadline) {
  ReadMetrics& metrics = ReadMetrics::Get();
  const auto peer = peers_->Find(from);
  if (peer == nullptr || (choice_ == OneSided::kAuto && !peer->reads_past_cpu())) {
    return std::nullopt;
  }
  const std::optional<SlotTable> table = TableOf(from, *peer, deadline);
  if (!table) return std::nullopt;
  // False: the READ failed, and `outcome` says how.
  Outcome outcome;
  outcome.one_sided = true;
  const auto read = [&](const rdma::RemoteSpan& span, std::span<std::byte> to) {
    const rdma::Reply reply = peer->ReadAndWait(span, to, Left(deadline));
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
  const uint64_t bucket_at = SlotBucketOf(request.id, table->headers) * kSlotHeaderBytes;
  std::array<uint64_t, kSlotBucketHeaders * kSlotHeaderWords> bucket{};
  if (!read({table->region, bucket_at, kSlotBucketBytes},
            std::as_writable_bytes(std::span(bucket)))) {
    ForgetTable(from, *table);
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
  if (!read({table->region, found_at, kSlotHeaderBytes},
            std::as_writable_bytes(std::span(again)))) {
    ForgetTable(from, *table);
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
