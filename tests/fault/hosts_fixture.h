// A cluster of hosts that share no network but a bridge: etcd, three servers and two mounts, each
// in a network namespace of its own, all with certificates; and what must be true of it.
#pragma once

#include <cstdlib>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "tests/fault/ledger.h"
#include "tests/integration/cluster_fixture.h"
#include "tests/integration/host_network.h"
#include "tools/cluster_options.h"

namespace kvcfs::test {

// Replays a trace again and again at one mount, until it is told to stop.
class Player {
 public:
  Player(std::string trace, Namespace ns) : trace_(std::move(trace)), ns_(std::move(ns)) {
    thread_ = std::thread([this] {
      do {
        const nlohmann::json played = Replay(trace_, ns_, 2, true);
        if (!played.is_object()) {
          std::this_thread::sleep_for(std::chrono::milliseconds(50));  // there is no mount now
          continue;
        }
        EXPECT_EQ(played.value("wrong_bytes", -1), 0) << played.dump(2);
        blocks_ += played.value("blocks_hit", uint64_t{0});
        ++rounds_;
      } while (!stop_);
    });
  }
  ~Player() { Stop(); }
  Player(const Player&) = delete;
  Player& operator=(const Player&) = delete;

  void Stop() {
    stop_ = true;
    if (thread_.joinable()) thread_.join();
  }
  uint64_t rounds() const { return rounds_; }
  uint64_t blocks() const { return blocks_; }

 private:
  const std::string trace_;
  const Namespace ns_;
  std::atomic<bool> stop_{false};
  std::atomic<uint64_t> rounds_{0}, blocks_{0};
  std::thread thread_;
};

class HostsTest : public testing::Test {
 protected:
  void SetUp() override {
    KVC_NEEDS_MOUNT();
    for (const std::string& missing : {WhyNoServer(), HostNetwork::WhyNone()}) {
      if (!missing.empty()) GTEST_SKIP() << "needs hosts: " << missing;
    }
    if (!meta::EtcdServer::Installed()) {
      GTEST_SKIP() << "etcd is not installed: tools/deps/install.sh";
    }
    network_ = std::make_unique<HostNetwork>(
        std::vector<std::string>{"etcd", "n1", "n2", "n3", "m1", "m2"});
    for (const char* node : {"etcd", "n1", "n2", "n3"}) Certify("node", node);
    for (const char* client : {"m1", "m2", "operator"}) Certify("client", client);
    const std::string base = certificates_.path() + "/";
    etcd_ = std::make_unique<meta::EtcdServer>(meta::EtcdServerOptions{
        .host = "etcd",
        .address = network_->address("etcd"),
        .prefix = InNetwork(network_->path("etcd"), {}),
        .certificate = base + "etcd.pem",
        .key = base + "etcd.key",
        .authority = base + "ca.pem",
    });
    ASSERT_TRUE(etcd_->Start()) << "etcd does not answer at " << etcd_->endpoint();
    for (const char* name : {"n1", "n2", "n3"}) {
      servers_.push_back(
          std::make_unique<TestServer>(name, etcd_->endpoint(),
                                       ServerOptions{.listen = network_->address(name) + ":7470",
                                                     .network = network_->path(name),
                                                     .extra = Credentials(name)}));
      servers_.back()->Start();
    }
    for (const auto& server : servers_) ASSERT_TRUE(server->Await()) << server->LogTail();
    ASSERT_TRUE(AwaitWhole());
  }
  void TearDown() override {
    if (client_ != nullptr) client_->Stop();
    for (const auto& mount : mounts_) {
      if (mount->running()) {
        EXPECT_EQ(mount->Stop(), 0);
      }
    }
    mounts_.clear();
    if (!HasFailure()) return;
    for (const auto& server : servers_) {
      fmt::print("--- log of {} ---\n{}\n---\n", server->name(), server->LogTail());
    }
  }

  void Certify(const std::string& role, const std::string& name) const {
    const CommandResult made = Shell(fmt::format("{}/tools/dev-certs.sh {} {} {}", KVC_SOURCE_DIR,
                                                 certificates_.path(), role, name));
    ASSERT_EQ(made.status, 0) << made.err;
  }
  std::vector<std::string> Credentials(const std::string& name) const {
    const std::string base = certificates_.path() + "/";
    return {"--tls-cert",         base + name + ".pem", "--tls-key",
            base + name + ".key", "--tls-ca",           base + "ca.pem"};
  }

  TestMount& MountOn(const std::string& host) {
    MountOptions options;
    options.dram = "64M";
    options.nvme = "0";
    options.network = network_->path(host);
    options.extra = Credentials(host);
    options.extra.insert(options.extra.end(),
                         {"--cluster", "etcd://" + etcd_->endpoint(), "--client-only"});
    mounts_.push_back(std::make_unique<TestMount>(options));
    EXPECT_TRUE(mounts_.back()->Start()) << mounts_.back()->LogTail();
    return *mounts_.back();
  }

  nlohmann::json Status() const {
    return ClusterStatusOf(etcd_->endpoint(), Credentials("operator"));
  }
  // All are there, and everything has as many copies as it shall have.
  bool AwaitWhole(uint64_t nodes = 3) const {
    return Eventually(
        [&] {
          const nlohmann::json status = Status();
          return status.value("whole", false) && status["nodes"].size() == nodes &&
                 status["joining"].empty() && status.value("repairs_waiting", 1u) == 0;
        },
        kLong);
  }

  // KVC_TEST_TRACE names one in Mooncake's format; else one is made.
  std::string Trace() const {
    const std::string trace = certificates_.path() + "/trace.jsonl";
    const char* given = std::getenv("KVC_TEST_TRACE");
    const std::string command =
        given != nullptr ? fmt::format("head -n 60 {} >{}", given, trace)
                         : fmt::format("{} trace synth --requests 60 --sessions 10 --output {}",
                                       KVC_COMMAND, trace);
    EXPECT_EQ(Shell(command).status, 0) << command;
    return trace;
  }

  // Somebody without a cache, on no host of the others.
  meta::ClusterRuntime& Client() {
    if (client_ != nullptr) return *client_;
    tools::ClusterSettings settings;
    settings.etcd = "etcd://" + etcd_->endpoint();
    const std::string base = certificates_.path() + "/operator";
    settings.tls_cert = base + ".pem";
    settings.tls_key = base + ".key";
    settings.tls_ca = certificates_.path() + "/ca.pem";
    const auto options = tools::ParseClusterOptions(settings, tools::ClusterUse::kAsk);
    EXPECT_TRUE(options.ok()) << options.error().text;
    auto made = tools::MakeRuntime(*options, tools::RandomNodeId(), &clock_);
    EXPECT_TRUE(made.ok());
    client_ = std::move(*made);
    const kvcfs::Status started = client_->Start(nullptr);
    EXPECT_TRUE(started.ok()) << started.error().text;
    return *client_;
  }

  // How many of the blocks, of those that were acknowledged, are matched and read at the servers.
  // Wrong bytes are a failure.
  uint64_t CountAtServers(const std::map<uint64_t, uint64_t>& acknowledged,
                          const std::string& name = "ledger") {
    meta::ClusterRuntime& client = Client();
    const auto space = client.GetSpace(name);
    if (!space.ok() || !*space) return 0;
    uint64_t good = 0;
    for (const auto& [chain, blocks] : acknowledged) {
      std::vector<BlockKey> keys;
      for (uint64_t i = 0; i < blocks; ++i) {
        keys.push_back(*BlockKey::FromHex(Key(Ledger::NumberOf(chain, i))));
      }
      const auto match = client.Match((*space)->id, keys, false, Millis(5000));
      if (!match.ok()) return good;
      uint64_t ordinal = 0;
      for (const meta::FoundBlock& block : match->blocks) {
        std::string bytes(block.length, '\0');
        const auto into = std::as_writable_bytes(std::span(bytes));
        if (!client.Read((*space)->id, block, into, Millis(10'000)).ok()) break;
        EXPECT_SAME_BYTES(Ledger::BytesOf(chain, ordinal), bytes) << chain << " " << ordinal;
        ++ordinal;
        ++good;
      }
    }
    return good;
  }
  // What was acknowledged until now is there, when whoever takes over has done so.
  bool NothingIsLost(Ledger& ledger) {
    const auto acknowledged = ledger.acknowledged();
    uint64_t wanted = 0, found = 0;
    for (const auto& [chain, blocks] : acknowledged) wanted += blocks;
    Eventually([&] { return (found = CountAtServers(acknowledged)) == wanted; }, kLong);
    EXPECT_EQ(found, wanted) << "of what was acknowledged, so much is there";
    return found == wanted;
  }

  const SystemClock clock_{};
  TemporaryDirectory certificates_;
  std::unique_ptr<HostNetwork> network_;
  std::unique_ptr<meta::EtcdServer> etcd_;
  std::vector<std::unique_ptr<TestServer>> servers_;
  std::vector<std::unique_ptr<TestMount>> mounts_;
  std::unique_ptr<meta::ClusterRuntime> client_;
};

// Two mounts at work: a trace is replayed at both, and one writes what the other reads.
class BusyHostsTest : public HostsTest {
 protected:
  void SetUp() override {
    HostsTest::SetUp();
    if (IsSkipped() || HasFatalFailure()) return;
    TestMount& a = MountOn("m1");
    TestMount& b = MountOn("m2");
    const std::string trace = Trace();
    const Namespace played = Made(a, "trace", 2, 16 << 10);
    const Namespace ledger = Made(a, "ledger", 2, 32 << 10);
    ASSERT_TRUE(SettingIs(Seen(b, "trace"), "replicas", "2"));
    ASSERT_TRUE(SettingIs(Seen(b, "ledger"), "replicas", "2"));
    ledger_ = std::make_unique<Ledger>(ledger, Seen(b, "ledger"));
    ledger_->Start();
    for (const Namespace& at : {played, Seen(b, "trace")}) {
      players_.push_back(std::make_unique<Player>(trace, at));
    }
    ASSERT_TRUE(Works());
  }
  void TearDown() override {
    if (ledger_ != nullptr) {
      ledger_->Stop();
      for (const auto& player : players_) player->Stop();
      fmt::print("{}; replayed {} and {} times, {} blocks hit\n", ledger_->Describe(),
                 players_[0]->rounds(), players_[1]->rounds(),
                 players_[0]->blocks() + players_[1]->blocks());
      // A machine where all of this runs at once is slow: 10 s are promised.
      EXPECT_LT(ledger_->longest_call(), std::chrono::seconds(30)) << "a call hung";
    }
    players_.clear();
    ledger_.reset();
    HostsTest::TearDown();
  }

  // More is acknowledged, and more is read.
  bool Works() {
    const uint64_t blocks = ledger_->blocks(), reads = ledger_->reads();
    const bool works = Eventually(
        [&] { return ledger_->blocks() > blocks + 5 && ledger_->reads() > reads + 5; }, kLong);
    EXPECT_TRUE(works) << ledger_->Describe();
    return works;
  }
  // Everything is as it should be, and stays so.
  bool AllIsWell() { return AwaitWhole() && Works() && NothingIsLost(*ledger_); }

  std::unique_ptr<Ledger> ledger_;
  std::vector<std::unique_ptr<Player>> players_;
};

}  // namespace kvcfs::test
