// Hosts: network namespaces with real servers, an etcd and mounts, which die, hang, lose one
// another, and come back, while two mounts work. Nothing wrong is read, nothing that was
// acknowledged is lost, no call hangs.
#include "tests/fault/hosts_fixture.h"

namespace kvcfs::test {
namespace {

TEST_F(HostsTest, WhatIsWrittenOnOneHostIsReadOnTheOther) {
  TestMount& a = MountOn("m1");
  TestMount& b = MountOn("m2");
  const Namespace here = Made(a, "llama", 2);
  const auto keys = here.PutChain("", 1, 12, kBlockBytes);
  const Namespace there = Seen(b, "llama");
  ASSERT_TRUE(Matches(there, keys, 12));
  for (uint32_t i = 0; i < 12; ++i) {
    const auto bytes = there.Read(keys[i]);
    ASSERT_TRUE(bytes) << i;
    ASSERT_SAME_BYTES(Bytes(1 + i, kBlockBytes), *bytes);
  }
  const std::string trace = Trace();
  const nlohmann::json written = Replay(trace, Made(a, "trace", 2, 16 << 10));
  EXPECT_EQ(written.value("wrong_bytes", -1), 0);
  EXPECT_GT(written.value("blocks_written", 0), 0);
  const Namespace other = Seen(b, "trace");
  ASSERT_TRUE(SettingIs(other, "block_bytes", "16384"));
  const nlohmann::json read = Replay(trace, other);
  fmt::print("written: {}\nread on the other: {}\n", written.dump(), read.dump());
  EXPECT_EQ(read.value("wrong_bytes", -1), 0);
  EXPECT_GT(read.value("hit_rate", 0.0), 0.95);
  EXPECT_GT(read.value("bytes_read", 0), 0);
}

TEST_F(BusyHostsTest, ServersAreKilledOneAfterTheOther) {
  for (const auto& server : servers_) {
    SCOPED_TRACE(server->name());
    server->Kill();
    EXPECT_TRUE(NothingIsLost(*ledger_));
    EXPECT_TRUE(Works());
    ASSERT_TRUE(server->StartAndAwait()) << server->LogTail();
    ASSERT_TRUE(AllIsWell()) << Status().dump(2);
  }
}

TEST_F(BusyHostsTest, AServersMachineDies) {
  servers_[0]->KillMachine();
  EXPECT_TRUE(NothingIsLost(*ledger_));
  // Everything has two copies again, and so another may die.
  ASSERT_TRUE(AwaitWhole(2)) << Status().dump(2);
  EXPECT_TRUE(Works());
  ASSERT_TRUE(servers_[0]->StartAndAwait()) << servers_[0]->LogTail();
  ASSERT_TRUE(AllIsWell()) << Status().dump(2);
}

TEST_F(BusyHostsTest, AServerSleepsUntilOthersHaveTakenOverAndWakes) {
  servers_[1]->Pause();
  EXPECT_TRUE(Eventually([&] { return Status()["nodes"].size() == 2; }, kLong));
  EXPECT_TRUE(NothingIsLost(*ledger_));
  EXPECT_TRUE(Works());
  servers_[1]->Continue();
  ASSERT_TRUE(AllIsWell()) << Status().dump(2);
}

TEST_F(BusyHostsTest, EtcdGoesAndComesBack) {
  const auto epoch = Status().value("epoch", 0);
  etcd_->Kill();
  // The view that there is keeps serving.
  EXPECT_TRUE(Works());
  ASSERT_TRUE(etcd_->Start());
  ASSERT_TRUE(AllIsWell()) << Status().dump(2);
  EXPECT_GE(Status().value("epoch", 0), epoch);
}

TEST_F(BusyHostsTest, AMountsDaemonDies) {
  // The worker: calls wait for the next one.
  for (const auto& mount : mounts_) {
    ASSERT_TRUE(mount->KillWorkers());
    ASSERT_TRUE(mount->WaitUntilItAnswers()) << mount->LogTail();
    EXPECT_TRUE(Works());
  }
  // All of it: what it had acknowledged is at the servers, and another mount takes its place.
  ledger_->Stop();
  mounts_[0]->Kill();
  EXPECT_TRUE(NothingIsLost(*ledger_));
  ASSERT_TRUE(mounts_[0]->Start()) << mounts_[0]->LogTail();
  ledger_->Start();
  ASSERT_TRUE(AllIsWell()) << Status().dump(2);
}

// What that server alone knows is a miss there as long; what another has, too, is read from that
// one.
TEST_F(BusyHostsTest, AMountCannotReachAServer) {
  network_->Blackhole("m2", "n1", true);
  EXPECT_TRUE(Works());
  EXPECT_TRUE(NothingIsLost(*ledger_));
  EXPECT_EQ(Status()["nodes"].size(), 3u) << "all others reach it";
  network_->Blackhole("m2", "n1", false);
  ASSERT_TRUE(AllIsWell()) << Status().dump(2);
}

TEST_F(BusyHostsTest, AServersLinkGoesDownAndComesBack) {
  network_->CutLink("n2", true);
  EXPECT_TRUE(Eventually([&] { return Status()["nodes"].size() == 2; }, kLong));
  EXPECT_TRUE(NothingIsLost(*ledger_));
  EXPECT_TRUE(Works());
  network_->CutLink("n2", false);
  ASSERT_TRUE(AllIsWell()) << Status().dump(2);
}

// The others take it for dead, though it sees them and the mounts see it.
TEST_F(BusyHostsTest, AServerCannotReachEtcd) {
  network_->Blackhole("n3", "etcd", true);
  EXPECT_TRUE(Eventually([&] { return Status()["nodes"].size() == 2; }, kLong));
  EXPECT_TRUE(NothingIsLost(*ledger_));
  EXPECT_TRUE(Works());
  network_->Blackhole("n3", "etcd", false);
  ASSERT_TRUE(AllIsWell()) << Status().dump(2);
}

TEST_F(BusyHostsTest, AServersLinkIsSlow) {
  network_->SlowLink("n1", "8mbit");
  EXPECT_TRUE(Works());
  EXPECT_TRUE(NothingIsLost(*ledger_));
  network_->SlowLink("n1", "");
  ASSERT_TRUE(AllIsWell()) << Status().dump(2);
}

}  // namespace
}  // namespace kvcfs::test
