// A cluster of real servers: what one client publishes another reads, and servers come and go.
// How long things take decides nothing.
#include <algorithm>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <fcntl.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <signal.h>
#include <sys/file.h>
#include <unistd.h>

#include "base/crc32c.h"
#include "tests/integration/server_fixture.h"
#include "tests/unit/meta/etcd_fixture.h"
#include "tools/cluster_options.h"

namespace kvcfs::test {
namespace {

using meta::BlockFacts;
using meta::BlockId;
using Json = nlohmann::json;

constexpr Millis kLong{60'000};
constexpr size_t kLength = 300'000;
constexpr meta::SpaceId kSpace{0x1234, 0x5678};

BlockKey KeyOf(uint64_t chain, uint64_t ordinal) {
  BlockKey key;
  for (size_t i = 0; i < 4; ++i) {
    const uint64_t word =
        ((chain + 1) * 1'000'003 + ordinal) * 0x9e3779b97f4a7c15u + (i + 1) * 0xbf58476d1ce4e5b9u;
    std::memcpy(key.bytes.data() + 8 * i, &word, 8);
  }
  return key;
}

std::string BytesOf(uint64_t chain, uint64_t ordinal) {
  return Bytes(chain * 10'000 + ordinal, kLength + ordinal);
}

class ServeTest : public testing::Test {
 protected:
  void SetUp() override {
    if (const std::string missing = WhyNoServer(); !missing.empty()) {
      GTEST_SKIP() << "needs servers: " << missing;
    }
    if (!meta::EtcdServer::Installed()) {
      GTEST_SKIP() << "etcd is not installed: tools/deps/install.sh";
    }
    ASSERT_TRUE(etcd_.Start()) << "etcd does not answer at " << etcd_.endpoint();
  }
  void TearDown() override {
    for (auto& client : clients_) client->Stop();
    if (!HasFailure()) return;
    for (const auto& server : servers_) {
      printf("---- the end of the log of %s\n%s", server->name().c_str(),
             server->LogTail().c_str());
    }
  }

  TestServer& Add(const std::string& name, std::vector<std::string> extra = {}) {
    servers_.push_back(std::make_unique<TestServer>(name, etcd_.endpoint(),
                                                    ServerOptions{.extra = std::move(extra)}));
    return *servers_.back();
  }
  void StartThree() {
    for (const char* name : {"n1", "n2", "n3"}) Add(name).Start();
    for (auto& server : servers_) ASSERT_TRUE(server->Await()) << server->LogTail();
    ASSERT_TRUE(Eventually([&] { return Status().value("whole", false) && NodesUp() == 3; }));
  }
  meta::ClusterRuntime& Client() {
    tools::ClusterSettings settings;
    settings.etcd = "etcd://" + etcd_.endpoint();
    settings.name = "client" + std::to_string(clients_.size());
    const auto options = tools::ParseClusterOptions(settings, tools::ClusterUse::kAsk);
    EXPECT_TRUE(options.ok());
    auto made = tools::MakeRuntime(*options, tools::RandomNodeId(), &clock_);
    EXPECT_TRUE(made.ok());
    clients_.push_back(std::move(*made));
    const kvcfs::Status started = clients_.back()->Start(nullptr);
    EXPECT_TRUE(started.ok()) << started.error().text;
    return *clients_.back();
  }

  static void Publish(meta::Cluster& at, uint64_t chain, uint64_t count, uint8_t replicas) {
    for (uint64_t i = 0; i < count; ++i) {
      const BlockId id{kSpace, KeyOf(chain, i)};
      const std::string bytes = BytesOf(chain, i);
      const auto view = std::as_bytes(std::span(bytes));
      Code code = Code::kTimeout;
      // A cluster that is busy with a change of its view is asked again.
      for (int tries = 0; tries < 5 && code != Code::kOk && code != Code::kExists; ++tries) {
        auto facts = at.Create(id, i == 0 ? BlockKey{} : KeyOf(chain, i - 1), kLong);
        code = facts.code();
        if (!facts.ok()) continue;
        facts->length = static_cast<uint32_t>(bytes.size());
        facts->crc32c = Crc32c(view);
        facts->mtime_s = 1'700'000'000;
        facts->replicas = replicas;
        const auto copies = at.Publish(*facts, std::nullopt, view, kLong);
        code = copies.code();
        // A holder did not take it for long. It would be made later; tests want it now.
        if (copies.ok() && *copies < replicas) code = Code::kBusy;
      }
      ASSERT_TRUE(code == Code::kOk || code == Code::kExists) << i << ": " << CodeName(code);
    }
  }
  // How many leading blocks are matched, and read; wrong bytes are a failure.
  static uint64_t Read(meta::Cluster& at, uint64_t chain, uint64_t count) {
    std::vector<BlockKey> keys;
    for (uint64_t i = 0; i < count; ++i) keys.push_back(KeyOf(chain, i));
    const auto match = at.Match(kSpace, keys, true, Millis(5000));
    if (!match.ok()) return 0;
    uint64_t good = 0;
    for (const meta::FoundBlock& block : match->blocks) {
      std::string bytes(block.length, '\0');
      if (!at.Read(kSpace, block, std::as_writable_bytes(std::span(bytes)), Millis(10'000)).ok()) {
        return good;
      }
      EXPECT_SAME_BYTES(BytesOf(chain, good), bytes);
      ++good;
    }
    return good;
  }
  static bool Eventually(const std::function<bool()>& is_so) {
    const SystemClock clock;
    for (const Millis end = clock.Monotonic() + 3 * kLong; clock.Monotonic() < end;) {
      if (is_so()) return true;
      std::this_thread::sleep_for(Millis(50));
    }
    return false;
  }

  std::vector<std::string> ClusterWords(const std::string& verb) const {
    return {"cluster", verb, "--cluster", "etcd://" + etcd_.endpoint()};
  }
  CommandResult StatusCommand() const {
    auto words = ClusterWords("status");
    words.emplace_back("--json");
    return RunKvcfs(words);
  }
  Json Status() const { return ClusterStatusOf(etcd_.endpoint()); }
  uint64_t NodesUp() const {
    uint64_t up = 0;
    const Json status = Status();
    for (const Json& node : status.value("nodes", Json::array())) {
      up += node.value("answers", false) ? 1 : 0;
    }
    return up;
  }

  const SystemClock clock_{};
  meta::EtcdServer etcd_;
  std::vector<std::unique_ptr<TestServer>> servers_;
  std::vector<std::unique_ptr<meta::ClusterRuntime>> clients_;
};

TEST_F(ServeTest, WhatOneClientPublishesTheOtherReadsAndStatusSaysWhatIsThere) {
  StartThree();
  meta::Cluster& writer = Client();
  meta::Cluster& reader = Client();
  constexpr uint64_t kBlocks = 40;
  Publish(writer, 1, kBlocks, 2);
  EXPECT_EQ(Read(reader, 1, kBlocks + 5), kBlocks);
  // A copy that a slow server took after all, and nobody wanted any more, goes after a minute.
  EXPECT_TRUE(Eventually([&] { return Status().value("copies", 0u) == 2 * kBlocks; }));
  const CommandResult said = StatusCommand();
  EXPECT_EQ(said.status, 0) << said.out << said.err;
  const Json status = Json::parse(said.out);
  EXPECT_EQ(status["copies"], 2 * kBlocks);
  EXPECT_EQ(status["shards_owned"], 256);
  EXPECT_EQ(status["capacity_bytes"], 3u * (256u << 20));
  EXPECT_GT(status["used_bytes"].get<uint64_t>(), 2 * kBlocks * kLength);
  EXPECT_EQ(status["nodes"].size(), 3u);
  uint64_t shards = 0, copies = 0;
  for (const Json& node : status["nodes"]) {
    EXPECT_TRUE(node["answers"] == true && node["live"] == true && node["draining"] == false);
    EXPECT_GT(node["shards"].get<uint64_t>(), 0u);
    EXPECT_GT(node["copies"].get<uint64_t>(), 0u);
    shards += node["shards"].get<uint64_t>();
    copies += node["copies"].get<uint64_t>();
  }
  EXPECT_EQ(shards, 256u);
  EXPECT_EQ(copies, 2 * kBlocks);
  const CommandResult text = RunKvcfs(ClusterWords("status"));
  EXPECT_EQ(text.status, 0);
  for (const char* word : {"n1", "n2", "n3", "meta,blocks", "up", "256 of 256"}) {
    EXPECT_NE(text.out.find(word), std::string::npos) << word << "\n" << text.out;
  }
  auto watch = ClusterWords("watch");
  watch.insert(watch.end(), {"--json", "--count", "2", "--interval", "0.1"});
  const CommandResult watched = RunKvcfs(watch);
  EXPECT_EQ(watched.status, 0);
  EXPECT_EQ(std::count(watched.out.begin(), watched.out.end(), '\n'), 2);
  for (auto& server : servers_) EXPECT_EQ(server->Stop(), 0) << server->LogTail();
}

TEST_F(ServeTest, AKilledServerLosesNothingThatHasTwoCopies) {
  StartThree();
  meta::Cluster& writer = Client();
  meta::Cluster& reader = Client();
  constexpr uint64_t kBlocks = 40;
  for (uint64_t chain = 1; chain <= 2; ++chain) Publish(writer, chain, kBlocks, 2);
  servers_[0]->Kill();
  for (uint64_t chain = 1; chain <= 2; ++chain) {
    EXPECT_TRUE(Eventually([&] { return Read(reader, chain, kBlocks) == kBlocks; })) << chain;
  }
  // Two copies of each again, on those that are left.
  EXPECT_TRUE(Eventually([&] {
    const Json status = Status();
    return status.value("whole", false) && status["nodes"].size() == 2 &&
           status["copies"] >= 4 * kBlocks && status["repairs_waiting"] == 0;
  })) << Status().dump(2);
  // And it comes back with what it had.
  ASSERT_TRUE(servers_[0]->StartAndAwait()) << servers_[0]->LogTail();
  EXPECT_TRUE(Eventually([&] {
    const Json status = Status();
    return status.value("whole", false) && NodeIn(status, "n1").value("copies", 0u) > 0;
  })) << Status().dump(2);
  for (uint64_t chain = 1; chain <= 2; ++chain) {
    EXPECT_TRUE(Eventually([&] { return Read(reader, chain, kBlocks) == kBlocks; })) << chain;
  }
  // Now another one goes, with its memory.
  servers_[1]->KillMachine();
  for (uint64_t chain = 1; chain <= 2; ++chain) {
    EXPECT_TRUE(Eventually([&] { return Read(reader, chain, kBlocks) == kBlocks; })) << chain;
  }
}

// fsck of a server's directory: names the copy that was hit, and drops it when it may.
TEST_F(ServeTest, FsckNamesADamagedCopyAndDropsIt) {
  TestServer& server = Add("alone");
  ASSERT_TRUE(server.StartAndAwait()) << server.LogTail();
  meta::Cluster& client = Client();
  constexpr uint64_t kBlocks = 10, kHit = 6;
  Publish(client, 1, kBlocks, 1);
  EXPECT_EQ(server.Stop(), 0);
  const std::vector<std::string> fsck = {"fsck", "--data", server.data(), "--json"};
  const CommandResult healthy = RunKvcfs(fsck);
  EXPECT_EQ(healthy.status, 0) << healthy.out;
  EXPECT_EQ(Json::parse(healthy.out)["copies"], kBlocks);

  const std::string bytes = BytesOf(1, kHit);
  int hit = 0;
  for (const auto& entry : std::filesystem::directory_iterator(server.data() + "/segments")) {
    const auto content = ReadWhole(entry.path());
    ASSERT_TRUE(content);
    const size_t at = content->find(bytes);
    if (at == std::string::npos) continue;
    const Fd fd = Open(entry.path(), O_RDWR);
    const char flipped = static_cast<char>(bytes[5000] ^ 1);
    ASSERT_EQ(::pwrite(fd.get(), &flipped, 1, static_cast<off_t>(at + 5000)), 1);
    ++hit;
  }
  ASSERT_EQ(hit, 1);
  const auto names_it = [](const CommandResult& result) {
    const Json report = Json::parse(result.out);
    for (const Json& problem : report["problems"]) {
      if (problem["what"] == "copy" && problem["key"] == KeyOf(1, kHit).ToHex()) return true;
    }
    return false;
  };
  const CommandResult damaged = RunKvcfs(fsck);
  EXPECT_EQ(damaged.status, 1);
  EXPECT_TRUE(names_it(damaged)) << damaged.out;
  auto repair = fsck;
  repair.emplace_back("--repair");
  EXPECT_TRUE(names_it(RunKvcfs(repair)));
  const CommandResult repaired = RunKvcfs(fsck);
  EXPECT_EQ(repaired.status, 0) << repaired.out;
  EXPECT_EQ(Json::parse(repaired.out)["copies"], kBlocks - 1);
  ASSERT_TRUE(server.StartAndAwait()) << server.LogTail();
  EXPECT_TRUE(Eventually([&] { return Read(client, 1, kBlocks) == kHit; }));
}

TEST_F(ServeTest, ARestartBringsBackWhatWasPublished) {
  TestServer& server = Add("alone");
  ASSERT_TRUE(server.StartAndAwait()) << server.LogTail();
  meta::Cluster& client = Client();
  constexpr uint64_t kBlocks = 30;
  const auto all_there = [&](uint64_t chain) {
    return Eventually([&] { return Read(client, chain, kBlocks) == kBlocks; });
  };
  // A clean end: everything is on NVMe, the DRAM tier is gone.
  Publish(client, 1, kBlocks, 1);
  EXPECT_EQ(server.Stop(), 0);
  const CommandResult checked = RunKvcfs({"fsck", "--data", server.data()});
  EXPECT_EQ(checked.status, 0) << checked.out;
  EXPECT_NE(checked.out.find("30 entries"), std::string::npos) << checked.out;
  ASSERT_TRUE(server.StartAndAwait()) << server.LogTail();
  EXPECT_TRUE(all_there(1));
  // The process dies: what it had in DRAM is still there.
  Publish(client, 2, kBlocks, 1);
  server.Kill();
  ASSERT_TRUE(server.StartAndAwait()) << server.LogTail();
  EXPECT_TRUE(all_there(1));
  EXPECT_TRUE(all_there(2));
}

TEST_F(ServeTest, AServerThatComesBackHasWhatItHadAndSoHaveTheOthers) {
  StartThree();
  meta::Cluster& client = Client();
  constexpr uint64_t kBlocks = 30;
  for (uint64_t chain = 1; chain <= 3; ++chain) Publish(client, chain, kBlocks, 1);
  ASSERT_GT(NodeIn(Status(), "n1").value("copies", 0u), 0u);
  EXPECT_EQ(servers_[0]->Stop(), 0);
  EXPECT_TRUE(Eventually([&] {
    const Json status = Status();
    return status.value("whole", false) && status["away"] == Json::array({"n1"});
  })) << Status().dump(2);
  ASSERT_TRUE(servers_[0]->StartAndAwait()) << servers_[0]->LogTail();
  for (uint64_t chain = 1; chain <= 3; ++chain) {
    EXPECT_TRUE(Eventually([&] { return Read(client, chain, kBlocks) == kBlocks; })) << chain;
  }
  EXPECT_EQ(Status()["away"], Json::array());
}

TEST_F(ServeTest, WhereTheNamespaceWantsItWhatWasPublishedSurvivesTheMachine) {
  TestServer& server = Add("alone");
  ASSERT_TRUE(server.StartAndAwait()) << server.LogTail();
  meta::Cluster& client = Client();
  ASSERT_TRUE(client.CreateSpace({"ns", kSpace, R"({"durability":"sync"})"}).ok());
  constexpr uint64_t kBlocks = 10;
  Publish(client, 1, kBlocks, 1);
  server.KillMachine();
  ASSERT_TRUE(server.StartAndAwait()) << server.LogTail();
  EXPECT_TRUE(Eventually([&] { return Read(client, 1, kBlocks) == kBlocks; }));
}

TEST_F(ServeTest, ADrainedServerIsEmptyAndMayGo) {
  StartThree();
  meta::Cluster& client = Client();
  constexpr uint64_t kBlocks = 30;
  for (uint64_t chain = 1; chain <= 3; ++chain) Publish(client, chain, kBlocks, 1);
  ASSERT_GT(NodeIn(Status(), "n2").value("copies", 0u), 0u);
  auto words = ClusterWords("drain");
  words.insert(words.end(), {"n2", "--wait"});
  const CommandResult drained = RunKvcfs(words);
  EXPECT_EQ(drained.status, 0) << drained.err;
  const Json node = NodeIn(Status(), "n2");
  EXPECT_EQ(node.value("copies", 99u), 0u);
  EXPECT_EQ(node.value("draining", false), true);
  EXPECT_EQ(node.value("drained", false), true);
  for (uint64_t chain = 1; chain <= 3; ++chain) {
    EXPECT_TRUE(Eventually([&] { return Read(client, chain, kBlocks) == kBlocks; })) << chain;
  }
  EXPECT_EQ(servers_[1]->Stop(), 0);
  for (uint64_t chain = 1; chain <= 3; ++chain) {
    EXPECT_TRUE(Eventually([&] { return Read(client, chain, kBlocks) == kBlocks; })) << chain;
  }
  auto undo = ClusterWords("drain");
  undo.insert(undo.end(), {"n2", "--undo"});
  EXPECT_EQ(RunKvcfs(undo).status, 0);
  auto nobody = ClusterWords("drain");
  nobody.emplace_back("n7");
  EXPECT_EQ(RunKvcfs(nobody).status, 1);
}

TEST_F(ServeTest, WithCertificatesOnlyWhoHasOneIsAnswered) {
  const TemporaryDirectory certs, others;
  const auto make = [](const TemporaryDirectory& at, const std::string& role_and_name) {
    return Shell(std::string(KVC_SOURCE_DIR) + "/tools/dev-certs.sh " + at.path() + " " +
                 role_and_name)
        .status;
  };
  ASSERT_EQ(make(certs, "node n1"), 0);
  ASSERT_EQ(make(certs, "client operator"), 0);
  ASSERT_EQ(make(others, "client operator"), 0);
  // This etcd knows no TLS.
  const auto words = [](const TemporaryDirectory& at, const std::string& name) {
    return std::vector<std::string>{
        "--tls-cert", at.path() + "/" + name + ".pem", "--tls-key", at.path() + "/" + name + ".key",
        "--tls-ca",   at.path() + "/ca.pem",           "--set",     "cluster.etcd_tls=false"};
  };
  TestServer& server = Add("n1", words(certs, "n1"));
  ASSERT_TRUE(server.StartAndAwait()) << server.LogTail();
  const auto status = [&](const std::vector<std::string>& extra) {
    auto all = ClusterWords("status");
    all.insert(all.end(), extra.begin(), extra.end());
    return RunKvcfs(all);
  };
  const CommandResult good = status(words(certs, "operator"));
  EXPECT_EQ(good.status, 0) << good.out << good.err;
  EXPECT_EQ(status(words(others, "operator")).status, 1) << "another authority";
  EXPECT_EQ(status({}).status, 1) << "no certificate";
  EXPECT_NE(status({}).out.find("silent"), std::string::npos);
  const TemporaryDirectory data;
  auto as_client = words(certs, "operator");
  as_client.insert(as_client.begin(), {"serve", "--cluster", "etcd://" + etcd_.endpoint(), "--data",
                                       data.path(), "--listen", "127.0.0.1:0"});
  EXPECT_EQ(RunKvcfs(as_client).status, 2) << "a client's certificate does not serve";
}

TEST_F(ServeTest, WhatCannotBeServedIsSaid) {
  const std::string cluster = "etcd://" + etcd_.endpoint();
  EXPECT_EQ(RunKvcfs(ClusterWords("status")).status, 1) << "there is no cluster yet";
  TestServer& server = Add("n1");
  ASSERT_TRUE(server.StartAndAwait()) << server.LogTail();
  const CommandResult same = RunKvcfs({"serve", "--cluster", cluster, "--name", "other", "--listen",
                                       "127.0.0.1:0", "--data", server.data(), "--dram", "16MiB"});
  EXPECT_EQ(same.status, 1);
  EXPECT_NE(same.err.find("in use by kvcfs process"), std::string::npos) << same.err;
  const TemporaryDirectory directory;
  const CommandResult name =
      RunKvcfs({"serve", "--cluster", cluster, "--name", "n1", "--listen", "127.0.0.1:0", "--data",
                directory.path() + "/data", "--dram", "16MiB", "--nvme", "64MiB"});
  EXPECT_EQ(name.status, 1);
  EXPECT_NE(name.err.find("is named n1 already"), std::string::npos) << name.err;
}

TEST_F(ServeTest, AsADaemonItReturnsWhenItServes) {
  const TemporaryDirectory directory;
  const std::string data = directory.path() + "/data";
  const CommandResult started =
      RunKvcfs({"serve", "--cluster", "etcd://" + etcd_.endpoint(), "--name", "d", "--listen",
                "127.0.0.1:0", "--data", data, "--dram", "16MiB", "--nvme", "64MiB", "--daemon"});
  ASSERT_EQ(started.status, 0) << started.err;
  EXPECT_TRUE(started.out.starts_with("serving d at 127.0.0.1:")) << started.out;
  EXPECT_EQ(StatusCommand().status, 0);
  const auto pid = static_cast<pid_t>(std::stol(ReadWhole(data + "/lock").value_or("0")));
  ASSERT_GT(pid, 1);
  EXPECT_EQ(::kill(pid, SIGTERM), 0);
  // It is nobody's child here: its end shows in the lock that it gives back.
  const Fd lock(::open((data + "/lock").c_str(), O_RDONLY | O_CLOEXEC));
  EXPECT_EQ(::flock(lock.get(), LOCK_EX), 0);
}

}  // namespace
}  // namespace kvcfs::test
