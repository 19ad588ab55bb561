// Mounts whose tiers hold the cluster's blocks: what is written on a host stays there, is read from
// there by others, and is back when its daemon or its mount is back. No server holds blocks here.
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "tests/integration/cluster_fixture.h"

namespace kvcfs::test {
namespace {

// Every byte of a chain that PutChain wrote as 1, 2, ...
void ExpectChain(const Namespace& ns, const std::vector<std::string>& keys, size_t block_bytes) {
  for (size_t i = 0; i < keys.size(); ++i) {
    const auto bytes = ns.Read(keys[i]);
    ASSERT_TRUE(bytes) << i;
    ASSERT_SAME_BYTES(Bytes(1 + i, block_bytes), *bytes);
  }
}

class PoolTest : public ClusterTest {
 protected:
  PoolTest() : ClusterTest(1, {"--roles", "meta"}) {}
};

TEST_F(PoolTest, ABlockStaysWhereItWasWrittenAndOthersReadIt) {
  TestMount& a = Mounted();
  TestMount& b = Mounted();
  const Namespace here = Made(a, "pool");
  const auto keys = here.PutChain("", 1, 12, kBlockBytes);
  ASSERT_EQ(here.Match(keys), 12);

  const auto status = ClusterStatusOf(etcd_.endpoint());
  ASSERT_TRUE(status.is_object());
  ASSERT_EQ(status["nodes"].size(), 3u) << status.dump();
  int holders = 0, with_copies = 0;
  for (const auto& node : status["nodes"]) {
    holders += node.value("blocks", false);
    with_copies += node.value("copies", 0) == 12;
  }
  EXPECT_EQ(holders, 2) << status.dump();
  EXPECT_EQ(with_copies, 1) << status.dump();

  // One slot a block, and that is what is read here.
  const auto resident = [](TestMount& mount) {
    const auto stats = nlohmann::json::parse(mount.Virtual("stats.json"), nullptr, false);
    return stats["tiers"]["dram"].value("resident_blocks", -1);
  };
  EXPECT_EQ(GetXattr(here.ByKey(keys[3]), "user.kvc.tier"), "dram");
  ExpectChain(here, keys, kBlockBytes);
  EXPECT_EQ(resident(a), 12);
  EXPECT_EQ(a.Metric("kvcfs_fs_peer_bytes_total"), 0);

  const Namespace there = Seen(b, "pool");
  ASSERT_TRUE(Matches(there, keys, 12));
  EXPECT_EQ(GetXattr(there.ByKey(keys[3]), "user.kvc.tier"), "peer");
  ExpectChain(there, keys, kBlockBytes);
  EXPECT_EQ(b.Metric("kvcfs_fs_peer_bytes_total"), 12.0 * kBlockBytes);

  // A client is no node, and reads all the same.
  TestMount& c = Mounted("256M", "0", {"--client-only"});
  const Namespace seen = Seen(c, "pool");
  ASSERT_TRUE(Matches(seen, keys, 12));
  EXPECT_EQ(ClusterStatusOf(etcd_.endpoint())["nodes"].size(), 3u);

  // With its slots, the daemon that died left them to the next; a reader goes on.
  Fd open = Open(here.ByKey(keys[5]), O_RDONLY);
  ASSERT_TRUE(open.valid());
  ASSERT_TRUE(a.KillWorkers());
  ASSERT_TRUE(a.WaitUntilItAnswers());
  ASSERT_TRUE(Matches(here, keys, 12));
  ExpectChain(here, keys, kBlockBytes);
  std::string text(kBlockBytes, 0);
  EXPECT_EQ(::pread(open.get(), text.data(), text.size(), 0), static_cast<ssize_t>(text.size()));
  EXPECT_TRUE(text == Bytes(6, kBlockBytes));
  open.Reset();
  EXPECT_EQ(a.Metric("kvcfs_fs_peer_bytes_total"), 0);
  EXPECT_TRUE(Eventually([&] { return seen.Read(keys[11]) == Bytes(12, kBlockBytes); }, kLong));
  ExpectChain(seen, keys, kBlockBytes);

  // What is dropped is gone while it is open, and may be another block after that.
  Fd dropped = Open(here.ByKey(keys[11]), O_RDONLY);
  ASSERT_TRUE(dropped.valid());
  EXPECT_OK(::unlink(here.ByKey(keys[11]).c_str()));
  EXPECT_EQ(ErrnoName(here.Put(keys[10], keys[11], "another")), "0");
  EXPECT_TRUE(Eventually([&] { return here.Read(keys[11]) == "another"; }, kLong));
  EXPECT_EQ(::pread(dropped.get(), text.data(), text.size(), 0), static_cast<ssize_t>(text.size()));
  EXPECT_TRUE(text == Bytes(12, kBlockBytes));
}

TEST_F(PoolTest, WhatAnUnmountTookAlongIsBackWithTheNextMount) {
  TestMount& a = Mounted();
  TestMount& b = Mounted();
  const Namespace here = Made(a, "pool");
  const auto keys = here.PutChain("", 1, 6, kBlockBytes);
  const Namespace there = Seen(b, "pool");
  ASSERT_TRUE(Matches(there, keys, 6));
  ASSERT_EQ(a.Stop(), 0);
  EXPECT_NE(a.Log().find("copies stay on this host"), std::string::npos) << a.LogTail();
  EXPECT_TRUE(Matches(there, keys, 0));
  ASSERT_TRUE(a.Start()) << a.LogTail();
  EXPECT_TRUE(Matches(there, keys, 6));
  ExpectChain(there, keys, kBlockBytes);
}

// etcd and mounts, nothing else.
class OnlyMountsTest : public ClusterTest {
 protected:
  OnlyMountsTest() : ClusterTest(0) {}
  TestMount& Node() { return Mounted("256M", "1G", {"--roles", "meta,blocks"}); }
};

TEST_F(OnlyMountsTest, AreAClusterThatSurvivesOneOfThem) {
  TestMount& a = Node();
  TestMount& b = Node();
  TestMount& c = Node();
  ASSERT_TRUE(
      Eventually([&] { return ClusterStatusOf(etcd_.endpoint()).value("whole", false); }, kLong));
  const Namespace on_a = Made(a, "three", 2);
  const auto keys = on_a.PutChain("", 1, 12, kBlockBytes);
  ASSERT_EQ(on_a.Match(keys), 12);
  const Namespace on_b = Seen(b, "three"), on_c = Seen(c, "three");
  // Where another was slow to take its copy, it is made by now.
  ASSERT_TRUE(Eventually(
      [&] { return ClusterStatusOf(etcd_.endpoint()).value("copies", 0u) >= 24; }, kLong));
  a.Kill();
  ASSERT_TRUE(Matches(on_b, keys, 12));
  ExpectChain(on_b, keys, kBlockBytes);
  ASSERT_TRUE(Matches(on_c, keys, 12));
  ExpectChain(on_c, keys, kBlockBytes);
}

TEST_F(OnlyMountsTest, OneThatIsAloneCachesWhatIsToHaveTwoCopies) {
  TestMount& a = Node();
  const Namespace ns = Made(a, "alone", 2);
  const auto keys = ns.PutChain("", 1, 6, kBlockBytes);
  ASSERT_TRUE(Matches(ns, keys, 6));
  ExpectChain(ns, keys, kBlockBytes);
  EXPECT_EQ(ClusterStatusOf(etcd_.endpoint()).value("copies", 0u), 6u);
  // The other copies come with the next host.
  TestMount& b = Node();
  EXPECT_TRUE(Eventually(
      [&] { return ClusterStatusOf(etcd_.endpoint()).value("copies", 0u) == 12; }, kLong));
  const Namespace there = Seen(b, "alone");
  ASSERT_TRUE(Matches(there, keys, 6));
  for (const std::string& key : keys) {
    EXPECT_TRUE(
        Eventually([&] { return GetXattr(there.ByKey(key), "user.kvc.tier") == "dram"; }, kLong));
  }
  ExpectChain(there, keys, kBlockBytes);
}

}  // namespace
}  // namespace kvcfs::test
