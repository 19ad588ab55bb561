// What the requests of a trace cost on a fabric: round trips, READs and bytes, where the index and
// blocks are asked for by calls, and where they are read one-sided. Counted, not timed: whatever
// carries them, a provider counts what loopback counts. Over TCP here; tests/vm counts over verbs.
// KVC_TEST_TRACE: a trace, as Mooncake publishes them; without it one is made.
#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "base/crc32c.h"
#include "base/log.h"
#include "base/mutex.h"
#include "meta/chain_index.h"
#include "meta/chain_key.h"
#include "meta/cluster_peers.h"
#include "meta/copy_reader.h"
#include "meta/index_memory.h"
#include "meta/remote_prober.h"
#include "rdma/loopback.h"
#include "tests/unit/rdma/tcp_fixture.h"
#include "tools/synth.h"
#include "tools/trace.h"

namespace kvcfs::tools {
namespace {

using meta::ChainKey;
using rdma::Bytes;
using rdma::kLong;

constexpr meta::NamespaceId kSpace = 1;
constexpr meta::SpaceId kSpaceId{1, 2};
constexpr meta::NodeId kServer{1, 1};
constexpr uint32_t kBlockBytes = 16 << 10;

Trace TraceToPlay() {
  const std::string limit = rdma::TestSetting("KVC_TEST_REQUESTS");
  const uint64_t requests = limit.empty() ? 200 : std::strtoull(limit.c_str(), nullptr, 10);
  if (const std::string path = rdma::TestSetting("KVC_TEST_TRACE"); !path.empty()) {
    auto trace = ReadTrace(path, requests);
    EXPECT_TRUE(trace.ok()) << trace.error().text;
    return trace.ok() ? std::move(*trace) : Trace();
  }
  Trace trace;
  const Status made = SynthesizeTrace({.requests = requests}, [&](const TraceRequest& request) {
    trace.requests.push_back(request);
  });
  EXPECT_TRUE(made.ok());
  return trace;
}

// One node that has all blocks: its index and one slot, whose bytes are every block's. It answers
// in the cluster's messages, so that these have their length.
class OneNode final : public rdma::Service {
 public:
  explicit OneNode(rdma::Transport* transport) : transport_(transport), headers_(4096) {
    for (size_t i = 0; i < slot_.size(); ++i) slot_[i] = static_cast<std::byte>(i * 7);
    auto* words = reinterpret_cast<std::byte*>(index_.memory().At(0));
    index_region =
        transport_->Expose({words, meta::IndexMemory::kRegionBytes}, rdma::Access::kRead).value();
    headers_region_ = transport_->Expose(headers_.memory(), rdma::Access::kRead).value();
    slot_region_ = transport_->Expose(slot_, rdma::Access::kRead).value();
    for (const uint64_t region : {index_region, headers_region_}) {
      EXPECT_TRUE(transport_->AwaitKey(region).ok());
    }
    slot_key_ = transport_->AwaitKey(slot_region_).value();
  }
  ~OneNode() override {
    MutexLock lock(mutex_);
    for (const uint64_t region : {index_region, headers_region_, slot_region_}) {
      transport_->Withdraw(region);
    }
  }

  void Insert(const std::vector<BlockKey>& keys, size_t from) {
    meta::BlockState state;
    state.length = kBlockBytes;
    MutexLock lock(mutex_);
    for (size_t i = from; i < keys.size(); ++i) {
      EXPECT_TRUE(index_.Insert(kSpace, keys[i], i == 0 ? BlockKey{} : keys[i - 1], state).ok());
      meta::SlotHeader header;
      header.id = {kSpaceId, keys[i]};
      header.generation = 1;
      header.length = kBlockBytes;
      header.crc32c = crc_;
      header.region = slot_region_;
      header.key = slot_key_;
      (void)headers_.Put(header);  // where a bucket is full, it is asked for
    }
  }

  void Serve(rdma::Method method, Bytes bytes, std::span<std::byte>,
             std::unique_ptr<rdma::Responder> responder) override {
    MutexLock lock(mutex_);
    if (method == meta::kMethodSlots) {
      return responder->Answer(meta::Encode(meta::SlotTable{headers_region_, headers_.count()}));
    }
    const auto request = meta::DecodeRequest(method, bytes);
    if (!request.ok()) return responder->Refuse(request.code(), request.error().text);
    if (const auto* match = std::get_if<meta::MatchRequest>(&request->body)) {
      return responder->Answer(meta::Encode(meta::Reply{Code::kOk, 1, Match(*match)}));
    }
    const auto& read = std::get<meta::ReadRequest>(request->body);
    responder->Answer(
        meta::Encode(meta::Reply{Code::kOk, 1,
                                 meta::ReadReply{read.id.key, read.generation, kBlockBytes, crc_}}),
        slot_);
  }

  uint64_t index_region = 0;

 private:
  meta::MatchReply Match(const meta::MatchRequest& request) {
    meta::MatchReply reply;
    std::span<const BlockKey> rest(request.keys);
    for (const meta::GroupRange& group : request.groups) {
      const auto keys = rest.first(group.count);
      rest = rest.subspan(group.count);
      std::vector<meta::BlockRef> refs(keys.size());
      const size_t count = index_.Match(kSpace, keys, refs.data());
      for (size_t i = 0; i < count; ++i) {
        meta::FoundBlock block{keys[i], kBlockBytes, crc_, 1'700'000'000};
        block.places.push_back({kServer, 1});
        reply.blocks.push_back(std::move(block));
      }
      reply.groups.push_back({Code::kOk, 30'000, static_cast<uint32_t>(count)});
    }
    return reply;
  }

  rdma::Transport* const transport_;
  Mutex mutex_;  // one thread asks and inserts in turn, but another answers
  meta::ChainIndex index_;
  meta::SlotHeaders headers_;
  Bytes slot_ = Bytes(kBlockBytes);
  const uint32_t crc_ = 0;
  uint64_t headers_region_ = 0, slot_region_ = 0;
  rdma::RegionKey slot_key_;
};

struct Cost {
  uint64_t requests = 0, blocks = 0, found = 0;
  uint64_t round_trips = 0, calls = 0, reads = 0;                    // as asked
  uint64_t device_reads = 0, device_read_bytes = 0, call_bytes = 0;  // as carried
  uint64_t reconnects = 0, refused = 0;
};

// All requests of the trace, by calls or one-sided: match, read what is there, write the rest.
Cost Play(const Trace& trace, rdma::Transport& server, rdma::Transport& client, bool one_sided,
          const rdma::Address& at) {
  auto node = std::make_unique<OneNode>(&server);
  const auto address = server.Listen(at, node.get());
  EXPECT_TRUE(address.ok()) << address.error().text;
  Cost cost;
  if (!address.ok()) return cost;
  SystemClock clock;
  meta::ClusterPeers peers(&client);
  meta::ClusterView view;
  view.epoch = 1;
  view.nodes.push_back({kServer, 1, meta::kRoleMetadata | meta::kRoleBlocks, address->ToString()});
  peers.SetView(view);
  meta::CopyReader reader(one_sided ? meta::OneSided::kAlways : meta::OneSided::kNever, &clock,
                          &peers);
  const auto peer = peers.Find(kServer);
  if (rdma::TestsVerbs() && server.reads_past_cpu()) {
    EXPECT_TRUE(rdma::Eventually([&] {
      (void)peer->CallAndWait(meta::kMethodSlots, {}, {.timeout = kLong});
      return peer->provider() == "verbs";
    }));
  }
  meta::RemoteProber prober([&](uint64_t place, std::span<uint64_t> into) {
    const auto bytes = std::as_writable_bytes(into);
    const auto reply = peer->ReadAndWait(
        {node->index_region, place, static_cast<uint32_t>(bytes.size())}, bytes, kLong);
    // An address that was read from what is something else now may be none.
    cost.refused += reply.code == Code::kOk ? 0 : 1;
    return reply.code == Code::kOk;
  });
  const rdma::TransportStats before = client.Stats();
  Bytes block(kBlockBytes);
  for (const TraceRequest& request : trace.requests) {
    std::vector<BlockKey> keys;
    for (const uint64_t id : request.hash_ids) {
      keys.push_back(ChainKey(keys.empty() ? BlockKey{} : keys.back(), id));
    }
    size_t found = 0;
    if (one_sided) {
      std::vector<meta::BlockRef> refs(keys.size());
      const auto matched = prober.Match(kSpace, keys, refs.data());
      EXPECT_TRUE(matched.ok());
      found = matched.ok() ? *matched : 0;
    } else {
      meta::MatchRequest match;
      match.space = kSpaceId;
      for (const meta::GroupRange& range : meta::GroupsOf(static_cast<uint32_t>(keys.size()))) {
        match.Add(range.first, std::span(keys).subspan(range.first, range.count));
      }
      uint32_t none = 0;
      const meta::Reply reply =
          peers.CallAndWait(kServer, {1, std::move(match)}, {.timeout = kLong}, &none);
      EXPECT_EQ(reply.code, Code::kOk);
      found = std::get<meta::MatchReply>(reply.body).blocks.size();
    }
    for (size_t i = 0; i < found; ++i) {
      const auto got = reader.Read(kServer, {{kSpaceId, keys[i]}, 1}, block, 1, kLong);
      EXPECT_EQ(got.reply.code, Code::kOk);
    }
    node->Insert(keys, found);
    ++cost.requests;
    cost.blocks += keys.size();
    cost.found += found;
  }
  const rdma::TransportStats after = client.Stats();
  cost.calls = after.calls - before.calls;
  cost.reads = after.reads - before.reads;
  cost.round_trips = cost.calls + cost.reads;
  cost.device_reads = after.device_reads - before.device_reads;
  cost.device_read_bytes = after.device_read_bytes - before.device_read_bytes;
  cost.reconnects = after.reconnects - before.reconnects;
  cost.call_bytes = after.call_bytes - before.call_bytes;
  if (rdma::TestsVerbs() && server.reads_past_cpu()) {
    EXPECT_EQ(peer->provider(), "verbs") << "queue pairs broke on the way";
  }
  peers.Clear();
  return cost;
}

void Print(const char* provider, const char* way, const Cost& cost) {
  const auto each = [&](uint64_t sum) {
    return static_cast<double>(sum) / static_cast<double>(std::max<uint64_t>(cost.requests, 1));
  };
  std::printf(
      "%-8s %-9s %llu requests, %.1f blocks each, %.1f found; a request: %.2f round trips, %.2f "
      "calls, %.2f READs; carried: %.2f READs of %.0f bytes, calls of %.0f bytes\n",
      provider, way, static_cast<unsigned long long>(cost.requests), each(cost.blocks),
      each(cost.found), each(cost.round_trips), each(cost.calls), each(cost.reads),
      each(cost.device_reads), each(cost.device_read_bytes), each(cost.call_bytes));
}

TEST(TraceCounts, AProviderCountsWhatLoopbackCounts) {
  SetLogLevel(LogLevel::kError);
  const Trace trace = TraceToPlay();
  ASSERT_FALSE(trace.requests.empty());
  for (const bool one_sided : {false, true}) {
    SCOPED_TRACE(one_sided ? "one-sided" : "by calls");
    const char* way = one_sided ? "one-sided" : "by calls";
    Cost model, real;
    {
      rdma::LoopbackFabric fabric(1);
      fabric.Start();
      auto server = fabric.MakeEndpoint("server", rdma::OptionsOf(1));
      auto client = fabric.MakeEndpoint("client", rdma::OptionsOf(2));
      model = Play(trace, *server, *client, one_sided, {"server", 1});
      client.reset();
      server.reset();
    }
    // What was under way when a queue pair broke is done again, by TCP: that is another count.
    for (int tries = 0; tries == 0 || (real.reconnects != 0 && tries < 4); ++tries) {
      auto server = rdma::MakeTestTransport(rdma::OptionsOf(1));
      auto client = rdma::MakeTestTransport(rdma::OptionsOf(2));
      ASSERT_TRUE(server.ok() && client.ok());
      real = Play(trace, **server, **client, one_sided, {rdma::TestHost(), 0});
      client->reset();
      server->reset();
    }
    Print("loopback", way, model);
    Print(rdma::TestsVerbs() ? "verbs" : "tcp", way, real);
    std::printf("queue pairs that were made again: %llu\n",
                static_cast<unsigned long long>(real.reconnects));
    EXPECT_GT(model.found, 0u);
    EXPECT_EQ(real.found, model.found);
    EXPECT_EQ(real.calls, model.calls);
    EXPECT_EQ(real.reads, model.reads);
    EXPECT_EQ(model.reads, model.device_reads + model.refused);
    EXPECT_EQ(model.reads == 0, !one_sided);
    if (!rdma::TestsVerbs()) continue;  // TCP carries otherwise
    EXPECT_EQ(real.device_reads, model.device_reads);
    EXPECT_EQ(real.device_read_bytes, model.device_read_bytes);
    EXPECT_EQ(real.call_bytes, model.call_bytes);
  }
}

}  // namespace
}  // namespace kvcfs::tools
