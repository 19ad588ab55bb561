// A CopyHolder on real tiers in temporary directories, and a cluster that only listens.
#include "fs/copy_holder.h"

#include <atomic>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <filesystem>
#include <fstream>
#include <functional>
#include <random>
#include <set>
#include <thread>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "base/crc32c.h"
#include "base/log.h"
#include "fs/copy_quota.h"
#include "meta/block_records.h"
#include "tests/unit/fs/store_parts.h"

namespace kvcfs::fs {
namespace {

using meta::BlockFacts;
using meta::BlockId;
using Key = std::pair<BlockId, uint64_t>;
using Bytes = std::vector<std::byte>;

// Hears what a holder says; grants or refuses releases on a thread of its own.
class FakeCluster final : public meta::Cluster {
 public:
  explicit FakeCluster(meta::CopyStore** copies) : copies_(copies) {
    thread_ = std::thread([this] { Run(); });
  }
  ~FakeCluster() override {
    {
      const MutexLock lock(mutex_);
      stopping_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }

  // Whether a release is granted. Called without a lock.
  std::function<bool(const Key&)> grants = [](const Key&) { return true; };
  std::vector<meta::ClusterSpace> spaces;
  std::function<uint64_t(const meta::SpaceId&)> used;

  void Restore(const BlockFacts& facts, uint64_t generation, uint64_t version) override {
    const MutexLock lock(mutex_);
    restored_[{facts.id, generation}] = version;
    facts_[{facts.id, generation}] = facts;
  }
  void WantRelease(const BlockId& id, uint64_t generation) override {
    const MutexLock lock(mutex_);
    asked_.push_back({id, generation});
    queue_.push_back({id, generation});
    changed_.notify_all();
  }
  void Lost(const BlockId& id, uint64_t generation) override {
    const MutexLock lock(mutex_);
    lost_.insert({id, generation});
  }

  std::map<Key, uint64_t> restored() {
    const MutexLock lock(mutex_);
    return restored_;
  }
  BlockFacts restored_facts(const Key& key) {
    const MutexLock lock(mutex_);
    return facts_.at(key);
  }
  std::vector<Key> asked() {
    const MutexLock lock(mutex_);
    return asked_;
  }
  std::set<Key> lost() {
    const MutexLock lock(mutex_);
    return lost_;
  }
  // All releases that were asked for are answered.
  void Settle() {
    MutexLock lock(mutex_);
    changed_.wait(lock.native(), [&]() KVC_NO_ANALYSIS { return queue_.empty() && !answering_; });
  }

  meta::NodeId self() const override { return {1, 1}; }
  bool holds_blocks() const override { return true; }
  Result<meta::MatchedPrefix> Match(const meta::SpaceId&, std::span<const BlockKey>, bool,
                                    Millis) override {
    return No();
  }
  Result<meta::LocatedBlock> Stat(const BlockId&, Millis) override { return No(); }
  Result<BlockFacts> Create(const BlockId&, const BlockKey&, Millis) override { return No(); }
  Result<uint32_t> Publish(const BlockFacts&, std::optional<uint64_t>, std::span<const std::byte>,
                           Millis) override {
    return No();
  }
  Result<meta::Place> Read(const meta::SpaceId&, const meta::FoundBlock&, std::span<std::byte>,
                           Millis) override {
    return No();
  }
  Status Drop(const BlockId&, Millis) override { return No(); }
  Result<std::vector<meta::FoundBlock>> Chain(const BlockId&, Millis) override { return No(); }
  Result<meta::LeafPage> Leaves(const meta::SpaceId&, uint32_t, const BlockKey&, uint32_t,
                                Millis) override {
    return No();
  }
  void NoteUsed(const BlockId&, const meta::NodeId&) override {}
  void Sealed(const BlockFacts&, uint64_t) override {}
  Result<std::optional<meta::ClusterSpace>> GetSpace(std::string_view) override { return No(); }
  Result<std::optional<meta::ClusterSpace>> GetSpace(const meta::SpaceId&) override { return No(); }
  std::vector<meta::ClusterSpace> ListSpaces() override { return spaces; }
  Result<std::vector<uint64_t>> BytesOf(std::span<const meta::SpaceId> of, Millis) override {
    std::vector<uint64_t> bytes;
    for (const meta::SpaceId& space : of) bytes.push_back(used(space));
    return bytes;
  }
  uint64_t SpacesVersion() override { return 0; }
  Result<meta::ClusterSpace> CreateSpace(const meta::ClusterSpace&) override { return No(); }
  Result<meta::ClusterSpace> SetSpace(const meta::ClusterSpace&) override { return No(); }
  Status RemoveSpace(const meta::ClusterSpace&) override { return No(); }
  meta::ClusterStatus Describe() override { return {}; }
  Status SetDraining(std::string_view, bool) override { return No(); }

 private:
  static Error No() { return {Code::kUnsupported, "a holder does not ask this"}; }

  void Run() {
    MutexLock lock(mutex_);
    for (;;) {
      while (!stopping_ && queue_.empty()) changed_.wait(lock.native());
      if (stopping_) return;
      const Key key = queue_.front();
      queue_.pop_front();
      answering_ = true;
      lock.native().unlock();
      if (grants(key)) {
        (*copies_)->Free(key.first, key.second);
      } else {
        (*copies_)->Keep(key.first, key.second);
      }
      lock.native().lock();
      answering_ = false;
      changed_.notify_all();
    }
  }

  meta::CopyStore** const copies_;
  Mutex mutex_;
  std::condition_variable changed_;
  std::map<Key, uint64_t> restored_ KVC_GUARDED_BY(mutex_);
  std::map<Key, BlockFacts> facts_ KVC_GUARDED_BY(mutex_);
  std::vector<Key> asked_ KVC_GUARDED_BY(mutex_);
  std::deque<Key> queue_ KVC_GUARDED_BY(mutex_);
  std::set<Key> lost_ KVC_GUARDED_BY(mutex_);
  bool answering_ KVC_GUARDED_BY(mutex_) = false;
  bool stopping_ KVC_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

class CopyHolderTest : public testing::Test, protected StoreParts {
 protected:
  static constexpr uint32_t kLength = 60'000;  // no multiple of a page
  static constexpr meta::SpaceId kSpace{0x1122334455667788, 0x99};

  void SetUp() override {
    SetLogLevel(LogLevel::kError);
    options_.writeback_delay = std::chrono::milliseconds(0);
    options_.room_wait = std::chrono::seconds(30);
  }
  void TearDown() override { Kill(); }

  void Start() {
    OpenParts(CopyHolder::AppliedSequence, [](const auto&, const auto&) {});
    if (HasFatalFailure()) return;
    auto holder = CopyHolder::Open(options_, {.meta = meta_.get(),
                                              .slots = slots_.get(),
                                              .resident = resident_.get(),
                                              .segments = segments_.get(),
                                              .clock = &clock_});
    ASSERT_TRUE(holder.ok()) << holder.error().text;
    holder_ = std::move(*holder);
    copies_ = holder_.get();
    cluster_ = std::make_unique<FakeCluster>(&copies_);
    holder_->Join(cluster_.get());
    if (segments_ != nullptr) segments_->Start(holder_.get());
    resident_->Start();
    holder_->Start();
  }
  // As if the process had died: nothing is written back any more.
  void Kill() {
    if (holder_ == nullptr) return;
    resident_->Stop();
    holder_->Stop();
    cluster_.reset();
    if (segments_ != nullptr) segments_->Stop();
    segments_.reset();
    holder_.reset();
    CloseParts();
  }
  // For what the cluster was given by reference: declared after it, this ends the cluster before
  // it, however the test ends.
  struct KillFirst {
    explicit KillFirst(CopyHolderTest* of) : test(of) {}
    ~KillFirst() { test->Kill(); }
    KillFirst(const KillFirst&) = delete;
    KillFirst& operator=(const KillFirst&) = delete;
    CopyHolderTest* const test;
  };

  static BlockKey KeyOf(uint64_t n) {
    BlockKey key;
    for (size_t i = 0; i < 4; ++i) {
      const uint64_t word = (n + 1) * 0x9e3779b97f4a7c15u + i * 0xbf58476d1ce4e5b9u;
      std::memcpy(key.bytes.data() + 8 * i, &word, 8);
    }
    return key;
  }
  static Bytes BytesOf(uint64_t n, uint32_t length = kLength) {
    Bytes bytes(length);
    std::mt19937_64 random(n);
    for (size_t i = 0; i < length; i += 8) {
      const uint64_t word = random();
      std::memcpy(bytes.data() + i, &word, std::min<size_t>(8, length - i));
    }
    return bytes;
  }
  static BlockFacts FactsOf(uint64_t n, uint32_t length = kLength) {
    BlockFacts facts;
    facts.id = {kSpace, KeyOf(n)};
    facts.parent = KeyOf(n + 1000);
    facts.anchor = KeyOf(n + 2000);
    facts.parent_anchor = KeyOf(n + 3000);
    facts.ordinal = 7;
    facts.length = length;
    facts.crc32c = Crc32c(BytesOf(n, length));
    facts.mtime_s = 1'700'000'000;
    facts.replicas = 2;
    return facts;
  }
  uint64_t Accept(uint64_t n, uint32_t length = kLength) {
    const auto generation = holder_->Accept(FactsOf(n, length), BytesOf(n, length));
    EXPECT_TRUE(generation.ok()) << n << ": " << generation.error().text;
    return generation.ok() ? *generation : 0;
  }
  Key Put(uint64_t n, uint64_t version = 5) {
    const uint64_t generation = Accept(n);
    holder_->Mark({kSpace, KeyOf(n)}, generation, version);
    return {{kSpace, KeyOf(n)}, generation};
  }
  void ExpectReadable(uint64_t n, const Key& key) {
    const auto copy = holder_->Open(key.first, key.second, true);
    ASSERT_TRUE(copy.ok()) << n << ": " << copy.error().text;
    EXPECT_EQ(Bytes(copy->bytes().begin(), copy->bytes().end()), BytesOf(n)) << n;
    EXPECT_EQ(copy->crc32c(), FactsOf(n).crc32c);
  }
  Code CodeOfOpen(const Key& key, bool may_wait = true) {
    return holder_->Open(key.first, key.second, may_wait).code();
  }
  // Changes a byte of block `n` in each file below `directory`. How often it was there.
  static int Damage(const std::string& directory, uint64_t n) {
    int found = 0;
    const Bytes bytes = BytesOf(n);
    const std::string needle(reinterpret_cast<const char*>(bytes.data()) + 100, 64);
    for (const auto& entry : std::filesystem::directory_iterator(directory)) {
      std::fstream file(entry.path(), std::ios::in | std::ios::out | std::ios::binary);
      const std::string all((std::istreambuf_iterator<char>(file)), {});
      for (size_t at = all.find(needle); at != std::string::npos; at = all.find(needle, at + 1)) {
        file.clear();
        file.seekp(static_cast<std::streamoff>(at));
        file.put(static_cast<char>(~all[at]));
        ++found;
      }
    }
    return found;
  }

  SystemClock clock_;
  CopyHolderOptions options_;
  meta::CopyStore* copies_ = nullptr;
  std::unique_ptr<CopyHolder> holder_;
  std::unique_ptr<FakeCluster> cluster_;
};

TEST_F(CopyHolderTest, WhatIsAcceptedIsReadUntilItIsFreed) {
  Start();
  const Key key = Put(1);
  ExpectReadable(1, key);
  EXPECT_EQ(CodeOfOpen({key.first, key.second + 1}), Code::kNotFound);
  EXPECT_EQ(CodeOfOpen({{kSpace, KeyOf(2)}, key.second}), Code::kNotFound);
  EXPECT_EQ(holder_->Capacity().used_bytes, kLength);
  auto pinned = holder_->Open(key.first, key.second, false);
  ASSERT_TRUE(pinned.ok());
  holder_->Free(key.first, key.second);
  EXPECT_EQ(CodeOfOpen(key), Code::kNotFound);
  EXPECT_EQ(holder_->Capacity().used_bytes, 0u);
  EXPECT_EQ(slots_->used_bytes(), 0u);
  // Who reads it has it to the end.
  EXPECT_EQ(Bytes(pinned->bytes().begin(), pinned->bytes().end()), BytesOf(1));
}

TEST_F(CopyHolderTest, BytesOfAnotherLengthAreRefused) {
  Start();
  EXPECT_EQ(holder_->Accept(FactsOf(1), BytesOf(1, 100)).code(), Code::kInvalid);
  EXPECT_EQ(holder_->Accept(FactsOf(1, 0), {}).code(), Code::kInvalid);
  const auto huge = static_cast<uint32_t>(dram_bytes_);
  EXPECT_EQ(holder_->Accept(FactsOf(1, huge), BytesOf(1, huge)).code(), Code::kTooLarge);
  EXPECT_EQ(slots_->used_bytes(), 0u);
}

TEST_F(CopyHolderTest, GenerationsAreNeverUsedTwice) {
  uint64_t last = 0;
  for (int life = 0; life < 3; ++life) {
    Start();
    for (uint64_t n = 0; n < 5; ++n) {
      const uint64_t generation = Accept(n);
      EXPECT_GT(generation, last);
      last = generation;
    }
    Kill();
  }
  // Even where the store that knew was lost.
  std::filesystem::remove_all(disk_ + "/meta");
  Start();
  EXPECT_GT(Accept(1), last);
}

TEST_F(CopyHolderTest, WhatWasPublishedSurvivesTheProcess) {
  options_.writeback_delay = std::chrono::hours(1);
  Start();
  const Key first = Put(1, 5), again = Put(2, 6);
  const Key sealed{{kSpace, KeyOf(3)}, Accept(3)};
  const Key freed = Put(4, 8);
  holder_->Mark(again.first, again.second, 7);
  holder_->Free(freed.first, freed.second);
  Kill();
  Start();
  EXPECT_EQ(cluster_->restored(), (std::map<Key, uint64_t>{{first, 5}, {again, 7}}));
  EXPECT_EQ(cluster_->restored_facts(first), FactsOf(1));
  EXPECT_EQ(CodeOfOpen(first, false), Code::kBusy) << "it must be checked first";
  ExpectReadable(1, first);
  ExpectReadable(2, again);
  EXPECT_EQ(CodeOfOpen(first, false), Code::kOk);
  EXPECT_EQ(CodeOfOpen(sealed), Code::kNotFound);
  EXPECT_EQ(slots_->used_slots(), 2u);
}

TEST_F(CopyHolderTest, WhatReachedNvmeSurvivesTheMachine) {
  Start();
  std::map<Key, uint64_t> put;
  for (uint64_t n = 0; n < 20; ++n) put[Put(n, n + 1)] = n + 1;
  ASSERT_TRUE(holder_->WriteBackAll().ok());
  EXPECT_EQ(holder_->Count().dirty_bytes, 0u);
  Kill();
  ForgetDram();
  Start();
  EXPECT_EQ(cluster_->restored(), put);
  for (const auto& [key, version] : put) {
    EXPECT_EQ(CodeOfOpen(key, false), Code::kBusy);
    ExpectReadable(version - 1, key);
    EXPECT_EQ(CodeOfOpen(key, false), Code::kOk) << "it is in memory now";
  }
  EXPECT_EQ(cluster_->lost(), std::set<Key>());
}

TEST_F(CopyHolderTest, WhatOnlyWasInDramIsGoneWithTheMachine) {
  options_.writeback_delay = std::chrono::hours(1);
  Start();
  const Key key = Put(1);
  Kill();
  ForgetDram();
  Start();
  EXPECT_TRUE(cluster_->restored().empty());
  EXPECT_EQ(CodeOfOpen(key), Code::kNotFound);
  Kill();
  Start();
  EXPECT_TRUE(cluster_->restored().empty());
}

TEST_F(CopyHolderTest, WhereTheNamespaceWantsItMarkReturnsWhenItIsOnNvme) {
  options_.writeback_delay = std::chrono::hours(1);
  options_.wants_durable = [](const meta::SpaceId& space) { return space == kSpace; };
  Start();
  const Key key = Put(1);
  Kill();
  ForgetDram();
  Start();
  EXPECT_EQ(cluster_->restored(), (std::map<Key, uint64_t>{{key, 5}}));
  ExpectReadable(1, key);
}

TEST_F(CopyHolderTest, DramHoldsAPartOfWhatNvmeHolds) {
  Start();
  std::vector<Key> keys;
  const uint64_t count = 2 * dram_bytes_ / kLength;
  for (uint64_t n = 0; n < count; ++n) keys.push_back(Put(n));
  EXPECT_LT(holder_->Count().resident, count);
  EXPECT_TRUE(cluster_->asked().empty()) << "there is room on NVMe";
  for (uint64_t n = 0; n < count; ++n) ExpectReadable(n, keys[n]);
  for (uint64_t n = 0; n < count; n += 2) holder_->Free(keys[n].first, keys[n].second);
  for (uint64_t n = 0; n < count; ++n) {
    if (n % 2 == 0) {
      EXPECT_EQ(CodeOfOpen(keys[n]), Code::kNotFound);
    } else {
      ExpectReadable(n, keys[n]);
    }
  }
}

TEST_F(CopyHolderTest, WithoutNvmeTheColdestAreAskedToGo) {
  nvme_bytes_ = 0;
  Start();
  const Key hot = Put(0);
  std::vector<Key> keys;
  const uint64_t count = 2 * dram_bytes_ / kLength;
  for (uint64_t n = 1; n < count; ++n) {
    keys.push_back(Put(n));
    holder_->Used({hot.first});
  }
  cluster_->Settle();
  const std::vector<Key> asked = cluster_->asked();
  ASSERT_FALSE(asked.empty());
  EXPECT_EQ(asked.front(), keys.front());
  EXPECT_LT(asked.size(), count * 3 / 4) << "no more than is needed";
  ExpectReadable(0, hot);
  ExpectReadable(count - 1, keys.back());
  EXPECT_EQ(CodeOfOpen(keys.front()), Code::kNotFound);
}

// Releases that are granted while the slots are looked through let that look get to the hottest.
TEST_F(CopyHolderTest, WhicheverIsLookedAtTheColdestIsAskedToGo) {
  nvme_bytes_ = 0;
  Start();
  std::vector<Key> keys;
  for (uint64_t n = 0; n < 3; ++n) keys.push_back(Put(n));
  iouring::SlotId hottest = 0;
  slots_->ForEach([&](iouring::SlotId slot, iouring::SlotRecord& record) {
    if (record.key == KeyOf(2)) hottest = slot;
  });
  ASSERT_NE(hottest, 0u);
  EXPECT_FALSE(holder_->TryEvict(hottest)) << "the cluster is asked first";
  cluster_->Settle();
  EXPECT_EQ(cluster_->asked(), std::vector<Key>{keys[0]});
  ExpectReadable(2, keys[2]);
}

TEST_F(CopyHolderTest, WhatMustStayStaysAndAnotherGoes) {
  nvme_bytes_ = 0;
  Start();
  const Key kept = Put(0);
  const KillFirst before_kept(this);
  cluster_->grants = [&](const Key& key) { return key != kept; };
  const uint64_t count = 2 * dram_bytes_ / kLength;
  for (uint64_t n = 1; n < count; ++n) Put(n);
  ExpectReadable(0, kept);
}

TEST_F(CopyHolderTest, NoSpaceWhereNothingMayGo) {
  nvme_bytes_ = 0;
  options_.room_wait = std::chrono::milliseconds(200);
  Start();
  cluster_->grants = [](const Key&) { return false; };
  Code code = Code::kOk;
  uint64_t n = 0;
  for (; n < 2 * dram_bytes_ / kLength && code == Code::kOk; ++n) {
    const auto generation = holder_->Accept(FactsOf(n), BytesOf(n));
    code = generation.code();
    if (generation.ok()) holder_->Mark(FactsOf(n).id, *generation, 1);
  }
  EXPECT_EQ(code, Code::kNoSpace);
  EXPECT_GT(n, dram_bytes_ / kLength / 2);
}

TEST_F(CopyHolderTest, OverItsQuotaTheColdestOfANamespaceThatMayGoGo) {
  Start();
  std::vector<Key> keys;
  const KillFirst before_keys(this);
  for (uint64_t n = 0; n < 40; ++n) keys.push_back(Put(n));
  // Another namespace has none, and is colder.
  BlockFacts other = FactsOf(50);
  other.id.space = {7, 7};
  const auto strange = holder_->Accept(other, BytesOf(50));
  ASSERT_TRUE(strange.ok());
  holder_->Mark(other.id, *strange, 5);
  for (const Key& key : keys) holder_->Used({key.first});
  const auto there = [&](const Key& key) { return CodeOfOpen(key) == Code::kOk; };
  EXPECT_EQ(holder_->BytesOf(kSpace), 40u * kLength);

  cluster_->spaces = {
      {"quota", kSpace, fmt::format(R"({{"quota_bytes":{},"replicas":1}})", 30 * kLength), 1},
      {"none", {7, 7}, R"({"replicas":1})", 1}};
  cluster_->used = [&](const meta::SpaceId& space) { return holder_->BytesOf(space); };
  // Those that come first in their chains may not go.
  cluster_->grants = [&](const Key& key) {
    return std::find(keys.begin(), keys.begin() + 20, key) == keys.begin() + 20;
  };
  CopyQuota quota(cluster_.get(), holder_.get());
  EXPECT_EQ(quota.Enforce(), 10u * kLength);
  EXPECT_EQ(quota.Enforce(), 0u) << "it is enough";
  EXPECT_EQ(std::count_if(keys.begin(), keys.begin() + 20, there), 20);
  EXPECT_EQ(std::count_if(keys.begin() + 20, keys.begin() + 30, there), 0);
  EXPECT_EQ(std::count_if(keys.begin() + 30, keys.end(), there), 10);
  EXPECT_TRUE(there({other.id, *strange}));

  // Nothing may go: it is tried, and given up.
  cluster_->grants = [](const Key&) { return false; };
  cluster_->used = [&](const meta::SpaceId&) { return 60 * kLength; };
  EXPECT_EQ(quota.Enforce(), 0u);
  EXPECT_EQ(holder_->BytesOf(kSpace), 30u * kLength);
}

// Each of many holders has a part of what is too much, less than a block.
TEST_F(CopyHolderTest, APartOfABlockGoesNowAndThen) {
  Start();
  for (uint64_t n = 0; n < 40; ++n) Put(n);
  EXPECT_EQ(holder_->ReleaseFrom(kSpace, kLength / 4, 0.3), 0u);
  EXPECT_EQ(holder_->ReleaseFrom(kSpace, kLength / 4, 0.2), kLength);
  EXPECT_EQ(holder_->ReleaseFrom(kSpace, kLength * 5 / 2, 0.6), 2u * kLength);
  EXPECT_EQ(holder_->ReleaseFrom(kSpace, kLength * 5 / 2, 0.4), 3u * kLength);
  EXPECT_EQ(holder_->ReleaseFrom({7, 7}, kLength, 0), 0u);
}

TEST_F(CopyHolderTest, WhenNvmeWantsRoomTheColdestAreAskedToGo) {
  Start();
  std::vector<Key> keys;
  for (uint64_t n = 0; n < 10; ++n) keys.push_back(Put(n));
  ASSERT_TRUE(holder_->WriteBackAll().ok());
  holder_->Used({keys[0].first});
  holder_->Shed(2 * kLength);
  cluster_->Settle();
  EXPECT_EQ(cluster_->asked(), (std::vector<Key>{keys[1], keys[2]}));
  EXPECT_EQ(CodeOfOpen(keys[1]), Code::kNotFound);
  ExpectReadable(0, keys[0]);
}

// More is put than the tier has room for, so segments are reclaimed and copies moved.
TEST_F(CopyHolderTest, AFullNvmeTierGoesRound) {
  Start();
  std::map<uint64_t, Key> there;
  Mutex mutex;
  std::set<Key> gone;
  const KillFirst before_gone(this);
  cluster_->grants = [&](const Key& key) {
    const MutexLock lock(mutex);
    gone.insert(key);
    return true;
  };
  const uint64_t count = 3 * nvme_bytes_ / kLength;
  for (uint64_t n = 0; n < count; ++n) there[n] = Put(n);
  ASSERT_TRUE(holder_->WriteBackAll().ok());
  cluster_->Settle();
  uint64_t readable = 0;
  for (const auto& [n, key] : there) {
    const Code code = CodeOfOpen(key);
    const MutexLock lock(mutex);
    if (gone.contains(key)) continue;
    EXPECT_EQ(code, Code::kOk) << n;
    ++readable;
  }
  EXPECT_GT(readable * kLength, nvme_bytes_ / 3);
  EXPECT_EQ(cluster_->lost(), std::set<Key>());
}

TEST_F(CopyHolderTest, DamageOnNvmeIsSaidAndNeverRead) {
  Start();
  const Key bad = Put(1), good = Put(2);
  ASSERT_TRUE(holder_->WriteBackAll().ok());
  Kill();
  ForgetDram();
  ASSERT_EQ(Damage(disk_ + "/segments", 1), 1);
  Start();
  EXPECT_EQ(CodeOfOpen(bad), Code::kCorrupt);
  EXPECT_EQ(cluster_->lost(), (std::set<Key>{bad}));
  ExpectReadable(2, good);
  holder_->Free(bad.first, bad.second);
  EXPECT_EQ(CodeOfOpen(bad), Code::kNotFound);
}

TEST_F(CopyHolderTest, DamageInDramIsFoundAfterARestart) {
  Start();
  const Key both = Put(1);
  ASSERT_TRUE(holder_->WriteBackAll().ok());
  Kill();
  options_.writeback_delay = std::chrono::hours(1);
  Start();
  const Key only = Put(2);
  Kill();
  ASSERT_EQ(Damage(dram_, 1), 1);
  ASSERT_EQ(Damage(dram_, 2), 1);
  Start();
  ExpectReadable(1, both);  // from NVMe
  EXPECT_EQ(CodeOfOpen(only), Code::kCorrupt);
  EXPECT_EQ(cluster_->lost(), (std::set<Key>{only}));
}

TEST_F(CopyHolderTest, ManyAtOnce) {
  dram_bytes_ = 4u << 20;
  Start();
  std::atomic<uint64_t> wrong{0};
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937_64 random(t);
      std::vector<std::pair<uint64_t, Key>> mine;
      for (int i = 0; i < 150; ++i) {
        const uint64_t n = t * 1000 + static_cast<uint64_t>(i);
        const auto generation = holder_->Accept(FactsOf(n), BytesOf(n));
        if (!generation.ok()) continue;
        const Key key{FactsOf(n).id, *generation};
        holder_->Mark(key.first, key.second, 1);
        mine.emplace_back(n, key);
        const auto& [of, which] = mine[random() % mine.size()];
        auto copy = holder_->Open(which.first, which.second, random() % 2 == 0);
        if (copy.ok()) {
          const Bytes bytes(copy->bytes().begin(), copy->bytes().end());
          wrong += bytes == BytesOf(of) ? 0 : 1;
        } else if (copy.code() != Code::kBusy && copy.code() != Code::kNotFound) {
          ++wrong;
        }
        if (i % 5 == 0) {
          const auto dropped = mine.begin() + static_cast<std::ptrdiff_t>(random() % mine.size());
          holder_->Free(dropped->second.first, dropped->second.second);
          mine.erase(dropped);
        }
      }
      for (const auto& [of, key] : mine) wrong += CodeOfOpen(key) == Code::kOk ? 0 : 1;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0u);
}

}  // namespace
}  // namespace kvcfs::fs
