// Ours over TCP on this machine: a node in a process of its own (index_bench node), etcd, and one
// mount whose threads ask. The node restores its copies before it joins, as after a restart.
#include <atomic>
#include <cstdio>
#include <memory>
#include <thread>

#include <fmt/format.h>
#include <unistd.h>

#include "bench/child_process.h"
#include "bench/cluster_node.h"
#include "bench/core_cluster.h"
#include "bench/index_backend.h"
#include "meta/cluster_runtime.h"
#include "rdma/tcp.h"

namespace kvcfs::bench {
namespace {

constexpr Millis kTimeout{5000};

Result<std::unique_ptr<rdma::Transport>> MakeTransport(uint64_t id, bool is_node) {
  rdma::TransportOptions options;
  options.self = {7, id};
  options.name = is_node ? "node" : "mount";
  options.is_node = is_node;
  return rdma::MakeTcpTransport(options);
}

meta::ClusterRuntimeOptions RuntimeOptions(uint64_t id, uint8_t roles, const std::string& etcd) {
  meta::ClusterRuntimeOptions options;
  options.self = {7, id};
  options.name = roles == 0 ? "mount" : "node";
  options.roles = roles;
  options.listen = {"127.0.0.1", 0};
  options.etcd.endpoints = {etcd};
  options.lease = std::chrono::seconds(10);
  return options;
}

// The metadata is what is measured; nobody reads a byte.
class NoBytes final : public meta::CopyStore {
 public:
  void Mark(const meta::BlockId&, uint64_t, uint64_t) override {}
  void Free(const meta::BlockId&, uint64_t) override {}
  void Keep(const meta::BlockId&, uint64_t) override {}
  void Used(const std::vector<meta::BlockId>&) override {}
  Result<uint64_t> Accept(const meta::BlockFacts&, std::span<const std::byte>) override {
    return Error{Code::kNoSpace, "holds no bytes"};
  }
  Result<meta::PinnedCopy> Open(const meta::BlockId&, uint64_t, bool) override {
    return Error{Code::kNotFound, "holds no bytes"};
  }
  meta::CopyCapacity Capacity() override { return {uint64_t{1} << 40, 0}; }
};

class TcpClient final : public IndexClient {
 public:
  TcpClient(meta::Cluster* cluster, bool warm) : cluster_(cluster), warm_(warm) {}
  Result<size_t> Match(const IndexLoad::Question& question, QuestionCost* cost) override {
    KVC_TRY_ASSIGN(const meta::MatchedPrefix match,
                   cluster_->Match(kBenchSpace, question.keys, warm_, kTimeout));
    // All groups that are not known are asked for at once; core_cluster.h counts what is rarer.
    if (match.from_cache < question.keys.size()) ++cost->round_trips;
    return match.blocks.size();
  }
  Result<size_t> Get(const IndexLoad::Question& prefix, QuestionCost* cost) override {
    const auto located = cluster_->Stat({kBenchSpace, prefix.keys.back()}, kTimeout);
    cost->round_trips += 2;
    if (!located.ok() && located.code() != Code::kNotFound) return located.error();
    return size_t{located.ok() ? 1u : 0u};
  }

 private:
  meta::Cluster* const cluster_;
  const bool warm_;
};

// etcd, the node, and the mount; one for all that ask.
class ClusterHost {
 public:
  ~ClusterHost() {
    if (runtime_ != nullptr) runtime_->Stop();
  }

  Status Start(const BackendHosts& hosts, size_t blocks) {
    const int port = FreePort(), peer_port = FreePort();
    const std::string etcd = fmt::format("127.0.0.1:{}", port);
    const std::string client = "http://" + etcd;
    const std::string peer = fmt::format("http://127.0.0.1:{}", peer_port);
    KVC_TRY(etcd_.Start({"etcd", "--name", "t", "--data-dir", directory_.path() + "/etcd",
                         "--listen-client-urls", client, "--advertise-client-urls", client,
                         "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
                         "--initial-cluster", "t=" + peer, "--unsafe-no-fsync"},
                        directory_.path() + "/etcd.log", false));
    meta::EtcdOptions options;
    options.endpoints = {etcd};
    const auto probe = meta::EtcdClient::Make(options);
    KVC_TRY(etcd_.Await([&] { return probe->List("/").ok(); }, std::chrono::seconds(60)));
    KVC_TRY(node_.Start({hosts.program, "node", "--etcd", etcd, "--trace", hosts.trace, "--limit",
                         std::to_string(hosts.limit)},
                        directory_.path() + "/node.log", true));
    KVC_TRY_ASSIGN(const std::string ready, node_.ReadLine());
    if (ready != "ready") return Error{Code::kInternal, "the node says: " + ready};
    if (blocks > 0) {
      bytes_ = static_cast<double>(node_.ResidentBytes()) / static_cast<double>(blocks);
    }
    KVC_TRY_ASSIGN(auto transport, MakeTransport(2, false));
    runtime_ = std::make_unique<meta::ClusterRuntime>(RuntimeOptions(2, 0, etcd),
                                                      std::move(transport), &clock_);
    return runtime_->Start(nullptr);
  }

  meta::Cluster* cluster() { return runtime_.get(); }
  double CpuSeconds() const { return node_.CpuSeconds(); }
  double bytes_per_block() const { return bytes_; }

 private:
  const TemporaryDirectory directory_;
  const SystemClock clock_{};
  ChildProcess etcd_, node_;
  std::unique_ptr<meta::ClusterRuntime> runtime_;
  double bytes_ = 0;
};

// A cold client asks without a lease: then nothing is looked up or kept in the mount's cache.
class ClusterBackend final : public IndexBackend {
 public:
  ClusterBackend(std::shared_ptr<ClusterHost> host, bool warm)
      : host_(std::move(host)), warm_(warm) {}
  Result<std::unique_ptr<IndexClient>> Connect() override {
    return std::unique_ptr<IndexClient>(std::make_unique<TcpClient>(host_->cluster(), warm_));
  }
  std::optional<double> ServerCpuSeconds() override { return host_->CpuSeconds(); }
  std::optional<uint64_t> NetworkBytes() override {
    const rdma::TransportStats stats = host_->cluster()->Describe().transport;
    return stats.bytes_sent + stats.bytes_received;
  }
  double bytes_per_block() const override { return host_->bytes_per_block(); }

 private:
  const std::shared_ptr<ClusterHost> host_;
  const bool warm_;
};

}  // namespace

std::vector<BackendKind> ClusterBackends(const BackendHosts& hosts) {
  std::vector<BackendKind> kinds;
  const auto shared = std::make_shared<std::shared_ptr<ClusterHost>>();
  for (const bool warm : {false, true}) {
    kinds.push_back({"kvcfs",
                     "tcp",
                     warm ? "warm" : "cold",
                     {KeyMode::kInt, KeyMode::kSha256},
                     [hosts, warm, shared](const IndexLoad& load,
                                           KeyMode) -> Result<std::unique_ptr<IndexBackend>> {
                       if (!IsInstalled("etcd")) {
                         return Error{Code::kUnsupported, "etcd-server is not installed"};
                       }
                       if (*shared == nullptr) {
                         auto host = std::make_shared<ClusterHost>();
                         KVC_TRY(host->Start(hosts, load.blocks().size()));
                         *shared = std::move(host);
                       }
                       return std::unique_ptr<IndexBackend>(
                           std::make_unique<ClusterBackend>(*shared, warm));
                     }});
  }
  return kinds;
}

Status RunClusterNode(const std::string& etcd, const std::string& trace_file, uint64_t limit) {
  KVC_TRY_ASSIGN(const tools::Trace trace, tools::ReadTrace(trace_file, limit));
  const TraceTree tree(trace);
  const IndexLoad load(tree, 0);
  NoBytes copies;
  const SystemClock clock{};
  KVC_TRY_ASSIGN(auto transport, MakeTransport(1, true));
  meta::ClusterRuntime runtime(RuntimeOptions(1, meta::kRoleMetadata | meta::kRoleBlocks, etcd),
                               std::move(transport), &clock);
  uint64_t generation = 1;
  for (const meta::BlockFacts& facts : FactsOf(load)) {
    runtime.Restore(facts, generation, generation);
    ++generation;
  }
  KVC_TRY(runtime.Start(&copies));
  // Shards are loaded from its own inventory, and each record waits until its parent's shard has
  // told of the parent: when all leading blocks are found, it is through.
  for (size_t i = 0; i < load.question_count();) {
    const IndexLoad::Question question = load.question(i);
    const auto match = runtime.Match(kBenchSpace, question.keys, false, kTimeout);
    if (match.ok() && match->blocks.size() == question.cached) {
      ++i;
    } else {
      std::this_thread::sleep_for(Millis(20));
    }
  }
  std::printf("ready\n");
  std::fflush(stdout);
  for (;;) ::pause();
}

}  // namespace kvcfs::bench
