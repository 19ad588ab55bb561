// Two mounts of one cluster: what is written on one is used on the other, while servers live and
// while one of them dies.
#include <thread>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "tests/integration/cluster_fixture.h"

namespace kvcfs::test {
namespace {

TEST_F(ClusterTest, AChainWrittenOnOneMountIsUsedOnTheOther) {
  TestMount& a = Mounted();
  TestMount& b = Mounted();
  const Namespace here = Made(a, "llama");
  const auto keys = here.PutChain("", 1, 12, kBlockBytes);

  const Namespace there = Seen(b, "llama");
  EXPECT_TRUE(SettingIs(there, "block_bytes", std::to_string(kBlockBytes)));
  EXPECT_TRUE(Matches(there, keys, 12));
  const auto lookup = RunCommand({KVC_COMMAND, "lookup", there.path(), keys[0], keys[1]});
  EXPECT_EQ(lookup.status, 0) << lookup.err;
  EXPECT_NE(lookup.out.find(keys[1] + " peer"), std::string::npos) << lookup.out;

  // Every name, and every byte.
  EXPECT_EQ(Names(there.path()),
            (std::vector<std::string>{keys[11], "by-key", "files", "match", "root"}));
  const std::vector<std::string> names = Names(there.Chain(keys[11]));
  ASSERT_EQ(names.size(), 12u);
  for (uint32_t i = 0; i < 12; ++i) {
    EXPECT_EQ(names[i], Namespace::EntryName(i, keys[i]));
    const auto bytes = ReadWhole(there.Entry(keys[11], i, keys[i]));
    ASSERT_TRUE(bytes) << i;
    ASSERT_SAME_BYTES(Bytes(1 + i, kBlockBytes), *bytes);
    EXPECT_EQ(GetXattr(there.ByKey(keys[i]), "user.kvc.ordinal"), std::to_string(i));
    EXPECT_EQ(GetXattr(there.ByKey(keys[i]), "user.kvc.tier"), "dram");
    EXPECT_EQ(GetXattr(there.ByKey(keys[i]), "user.kvc.crc32c"),
              GetXattr(here.ByKey(keys[i]), "user.kvc.crc32c"));
    EXPECT_NE(GetXattr(there.ByKey(keys[i]), "user.kvc.lease_ms"), "0");
    EXPECT_EQ(StatOf(there.ByKey(keys[i])).st_mtime, StatOf(here.ByKey(keys[i])).st_mtime);
  }
  EXPECT_EQ(Shell(fmt::format("cmp {} {}", here.ByKey(keys[7]), there.ByKey(keys[7]))).status, 0);

  // And on from there.
  const std::string more = Key(100);
  EXPECT_EQ(ErrnoName(there.Put(keys[11], more, "on the other host")), "0");
  EXPECT_TRUE(Eventually([&] { return here.Has(more); }, kLong));
  EXPECT_EQ(here.Read(more), "on the other host");
  EXPECT_EQ(ErrnoName(here.Put(keys[11], more, "again")), "EEXIST");
  EXPECT_EQ(ErrnoName(there.Put(Key(4711), Key(4712), "orphan")), "ENOENT");
  EXPECT_ERRNO(ENOTEMPTY, ::rmdir(here.path().c_str()));
}

TEST_F(ClusterTest, NamespacesAndDropsAreSeenOnTheOther) {
  TestMount& a = Mounted();
  TestMount& b = Mounted();
  const Namespace here = Made(a, "llama", 2);
  const Namespace there = Seen(b, "llama");
  EXPECT_TRUE(SettingIs(there, "replicas", "2"));
  EXPECT_ERRNO(EEXIST, ::mkdir(there.path().c_str(), 0755));
  EXPECT_EQ(ErrnoName(SetXattrErrno(there.path(), "user.kvc.durability", "sync")), "0");
  EXPECT_TRUE(SettingIs(here, "durability", "sync"));

  const auto keys = here.PutChain("", 1, 6, kBlockBytes);
  ASSERT_TRUE(Matches(there, keys, 6));
  EXPECT_OK(::unlink(here.ByKey(keys[2]).c_str()));
  EXPECT_EQ(here.Match(keys), 2);
  EXPECT_TRUE(Matches(there, keys, 2));  // when its lease is over
  EXPECT_FALSE(there.Has(keys[5]));

  const auto fork = there.PutChain(keys[0], 50, 2, kBlockBytes);
  EXPECT_TRUE(Eventually([&] { return here.Has(fork[1]); }, kLong));
  EXPECT_ERRNO(EBUSY, ::unlink(here.Entry(keys[1], 0, keys[0]).c_str()));
  EXPECT_OK(::unlink(here.Entry(keys[1], 1, keys[1]).c_str()));
  EXPECT_TRUE(here.Has(fork[1]));
  const auto drop = RunCommand({KVC_COMMAND, "drop", here.path()});
  EXPECT_EQ(drop.status, 0) << drop.err;
  EXPECT_OK(::rmdir(here.path().c_str()));
  EXPECT_TRUE(Eventually([&] { return !Exists(there.path()); }, kLong));
  const Namespace again = Made(b, "llama");
  EXPECT_EQ(again.Match(keys), 0);
}

TEST_F(ClusterTest, ATraceIsHitOnTheOtherMountAndSurvivesAServer) {
  TestMount& a = Mounted("128M", "0");
  TestMount& b = Mounted("128M", "0");
  const Namespace here = Made(a, "trace", 2);
  ASSERT_EQ(ErrnoName(SetXattrErrno(here.path(), "user.kvc.block_bytes", "16384")), "0");
  const Namespace there = Seen(b, "trace");
  ASSERT_TRUE(SettingIs(there, "block_bytes", "16384"));
  const TemporaryDirectory directory;
  const std::string trace = directory.path() + "/trace.jsonl";
  ASSERT_EQ(RunCommand({KVC_COMMAND, "trace", "synth", "--requests", "60", "--sessions", "10",
                        "--output", trace})
                .status,
            0);
  const auto written = Replay(trace, here);
  EXPECT_EQ(written.value("wrong_bytes", -1), 0);
  const auto read = Replay(trace, there);
  EXPECT_EQ(read.value("wrong_bytes", -1), 0);
  fmt::print("written: {}\nread on the other: {}\n", written.dump(), read.dump());
  EXPECT_GT(read.value("hit_rate", 0.0), 0.95);

  // A server dies while both play.
  nlohmann::json on_a;
  std::thread player([&] { on_a = Replay(trace, here); });
  servers_[1]->KillMachine();
  const auto on_b = Replay(trace, there, 2);
  player.join();
  fmt::print("a server died: {}\n{}\n", on_a.dump(), on_b.dump());
  EXPECT_EQ(on_a.value("wrong_bytes", -1), 0);
  EXPECT_EQ(on_b.value("wrong_bytes", -1), 0);
  // Everything that was acknowledged is there again when another has taken over.
  EXPECT_TRUE(
      Eventually([&] { return Replay(trace, there).value("hit_rate", 0.0) > 0.95; }, kLong));
  const auto stat = RunCommand({KVC_COMMAND, "stat", a.mount_point()});
  EXPECT_NE(stat.out.find("etcd answers"), std::string::npos) << stat.out;
}

TEST_F(ClusterTest, WithoutEtcdAndServersCallsEndAsMisses) {
  TestMount& a = Mounted();
  const Namespace ns = Made(a, "away");
  const auto keys = ns.PutChain("", 1, 3, kBlockBytes);
  ASSERT_EQ(ns.Match(keys), 3);
  etcd_.Kill();
  for (const auto& server : servers_) server->Kill();
  // Leased, and here.
  EXPECT_EQ(ns.Match(keys), 3);
  EXPECT_EQ(ns.Read(keys[1]), Bytes(2, kBlockBytes));
  EXPECT_EQ(ns.Match({Key(77)}), 0);
  EXPECT_FALSE(ns.Has(Key(77)));
  EXPECT_EQ(ErrnoName(ns.Put(keys[2], Key(78), "not taken")), "0");
  EXPECT_FALSE(ns.Has(Key(78)));
  EXPECT_GT(a.Metric("kvcfs_fs_block_writes_total"), 3);
  // fsync is told the truth.
  Fd fd = Open(ns.Chain(keys[2]) + "/" + Key(79), O_WRONLY | O_CREAT | O_EXCL);
  ASSERT_TRUE(fd.valid());
  EXPECT_EQ(WriteAll(fd.get(), "wanted"), 0);
  EXPECT_OK(::fsync(fd.get()));
  EXPECT_EQ(ErrnoName(CloseErrno(std::move(fd))), "EIO");
  EXPECT_ERRNO(EIO, ::mkdir((a.mount_point() + "/other").c_str(), 0755));
  const auto stat = RunCommand({KVC_COMMAND, "stat", a.mount_point()});
  EXPECT_EQ(stat.status, 0);
}

TEST_F(ClusterTest, AWorkerThatDiesIsReplaced) {
  TestMount& a = Mounted();
  const Namespace ns = Made(a, "worker");
  const auto keys = ns.PutChain("", 1, 5, kBlockBytes);
  ASSERT_TRUE(a.KillWorkers());
  ASSERT_TRUE(a.WaitUntilItAnswers());
  EXPECT_TRUE(Matches(ns, keys, 5));  // when it has told what it holds
  for (uint32_t i = 0; i < 5; ++i) EXPECT_EQ(ns.Read(keys[i]), Bytes(1 + i, kBlockBytes)) << i;
  EXPECT_EQ(ErrnoName(ns.Put(keys[4], Key(9), "on")), "0");
}

// One server, and mounts that hold nothing for others.
class OneServerTest : public ClusterTest {
 protected:
  OneServerTest() : ClusterTest(1) {}
  uint64_t Copies() const { return ClusterStatusOf(etcd_.endpoint()).value("copies", 0u); }
};

TEST_F(OneServerTest, TwoReplicasAreOneUntilAnotherServerComes) {
  TestMount& a = Mounted("256M", "0", {"--client-only"});
  TestMount& b = Mounted("256M", "0", {"--client-only"});
  const Namespace here = Made(a, "two", 2);
  const auto keys = here.PutChain("", 1, 6, kBlockBytes);
  // And what is to be durable is: with one copy, which is all that can be had.
  const std::string synced = Key(60);
  Fd fd = Open(here.Chain(keys[5]) + "/" + synced, O_WRONLY | O_CREAT | O_EXCL);
  ASSERT_TRUE(fd.valid());
  EXPECT_EQ(WriteAll(fd.get(), "synced"), 0);
  EXPECT_OK(::fsync(fd.get()));
  EXPECT_EQ(ErrnoName(CloseErrno(std::move(fd))), "0");

  const Namespace there = Seen(b, "two");
  ASSERT_TRUE(Matches(there, keys, 6));
  for (uint32_t i = 0; i < 6; ++i) EXPECT_EQ(there.Read(keys[i]), Bytes(1 + i, kBlockBytes)) << i;
  EXPECT_EQ(there.Read(synced), "synced");
  EXPECT_EQ(Copies(), 7u);

  servers_.push_back(
      std::make_unique<TestServer>("n2", etcd_.endpoint(), ServerOptions{.dram = "256MiB"}));
  ASSERT_TRUE(servers_.back()->StartAndAwait()) << servers_.back()->LogTail();
  EXPECT_TRUE(Eventually([&] { return Copies() == 14; }, kLong));
  // Either has all: the first may go.
  const auto drained = RunKvcfs({"cluster", "drain", "n1", "--wait", "--cluster", cluster_});
  EXPECT_EQ(drained.status, 0) << drained.err;
  servers_[0]->KillMachine();
  ASSERT_TRUE(Matches(there, keys, 6));
  EXPECT_EQ(there.Read(synced), "synced");
}

// Blocks of a namespace on a server, and on the hosts that wrote them.
TEST_F(OneServerTest, AQuotaBoundsWhatAllHostsHaveTogether) {
  TestMount& a = Mounted();
  TestMount& b = Mounted();
  TestMount& c = Mounted("64M", "0", {"--client-only"});
  constexpr uint64_t kFree = 8, kQuota = 12;
  const Namespace here = Made(a, "bounded"), other = Made(a, "other");
  const auto free = other.PutChain("", 1, kFree, kBlockBytes);
  const std::string quota = std::to_string(kQuota * kBlockBytes);
  EXPECT_EQ(ErrnoName(SetXattrErrno(here.path(), "user.kvc.quota_bytes", quota)), "0");
  const Namespace on_b = Seen(b, "bounded"), on_c = Seen(c, "bounded");
  EXPECT_TRUE(SettingIs(on_b, "quota_bytes", quota));
  const auto chain = here.PutChain("", 100, 12, kBlockBytes);
  std::vector<std::string> all = chain;
  for (uint64_t i = 0; i < 18; ++i) {
    all.push_back(Key(1000 + i));
    EXPECT_EQ(ErrnoName((i % 3 == 0 ? on_c : on_b).Put("", all.back(), Bytes(i, kBlockBytes))),
              "0");
  }
  // Asking for a block would lease it. What a new cluster may have leased is over after 40 s.
  EXPECT_TRUE(Eventually([&] { return Copies() <= kFree + kQuota; }, kLong)) << Copies();
  uint64_t there = 0, of_chain = 0;
  for (size_t i = 0; i < all.size(); ++i) {
    const bool has = here.Has(all[i]);
    there += has ? 1 : 0;
    of_chain += has && i < chain.size() ? 1 : 0;
  }
  EXPECT_LE(there, kQuota);
  EXPECT_GE(there, kQuota / 2) << "no more went than had to";
  EXPECT_EQ(here.Match(chain), static_cast<int64_t>(of_chain)) << "from the end of the chain";
  EXPECT_EQ(other.Match(free), static_cast<int64_t>(kFree));
}

TEST(ClusterFlags, AreCheckedBeforeAnythingIsMounted) {
  const auto wrong = RunCommand({KVC_COMMAND, "mount", "/tmp/kvc-never", "--cluster", "nonsense"});
  EXPECT_EQ(wrong.status, 2);
  EXPECT_NE(wrong.err.find("etcd"), std::string::npos) << wrong.err;
}

}  // namespace
}  // namespace kvcfs::test
