// Two hosts over one cluster in memory: what one writes, the other matches, reads and drops; what
// each may answer for how long, and what becomes of its copies.
#include <unistd.h>

#include "fs/cluster_spaces.h"
#include "fs/copy_holder.h"
#include "tests/unit/fs/block_store_fixture.h"
#include "tests/unit/fs/fake_cluster.h"

namespace kvcfs::fs {
namespace {

using meta::ChainKey;
using Use = BlockStore::Use;

constexpr uint64_t kBlockBytes = 64 << 10;

std::string BytesOf(const BlockKey& key, size_t length = kBlockBytes) {
  std::string bytes(length, 0);
  for (size_t i = 0; i < length; ++i) {
    bytes[i] = static_cast<char>(key.bytes[i % 32] + i / 4096);
  }
  return bytes;
}

// A mount without FUSE.
class Host : private StoreParts {
 public:
  struct Sizes {
    uint64_t dram_bytes = 16u << 20;
    uint64_t nvme_bytes = 0;
    uint64_t told_blocks_max = 1'000'000;
    bool holds = false;  // copies, for the cluster; in DRAM only
  };
  Host(FakeCluster* cluster, ManualClock* clock, const Sizes& sizes)
      : cluster_(cluster),
        clock_(*clock),
        told_blocks_max_(sizes.told_blocks_max),
        holds_(sizes.holds) {
    dram_bytes_ = sizes.dram_bytes;
    nvme_bytes_ = sizes.nvme_bytes;
    Start();
  }
  ~Host() { Stop(); }

  void Start() {
    std::vector<RecoveredEntry> newer;
    OpenParts(BlockStore::AppliedSequence,
              [&](const iouring::EntryMeta& meta, const iouring::SegmentPlace& place) {
                newer.push_back({meta, place});
              });
    if (testing::Test::HasFatalFailure()) return;
    spaces_ = std::make_unique<NamespaceTable>(*meta_, clock_);
    ASSERT_TRUE(spaces_->Load().ok());
    if (holds_) {
      CopyHolderOptions holder;
      holder.beside_mount = true;
      auto opened = CopyHolder::Open(holder, {.meta = meta_.get(),
                                              .slots = slots_.get(),
                                              .resident = resident_.get(),
                                              .clock = &clock_,
                                              .backing = &backing_});
      ASSERT_TRUE(opened.ok());
      copies_ = std::move(*opened);
      copies_->Join(cluster_);
      copies_->Start();
      cluster_->Join(copies_.get());
    }
    BlockStoreOptions options;
    options.writeback_delay = Millis(0);
    options.lease_bytes_max = 32u << 20;
    options.prefetch_blocks = 0;
    options.told_blocks_max = told_blocks_max_;
    blocks = std::make_unique<BlockStore>(options, BlockStoreParts{.namespaces = spaces_.get(),
                                                                   .meta = meta_.get(),
                                                                   .slots = slots_.get(),
                                                                   .resident = resident_.get(),
                                                                   .segments = segments_.get(),
                                                                   .backing = &backing_,
                                                                   .notifier = &notifier_,
                                                                   .clock = &clock_,
                                                                   .cluster = cluster_,
                                                                   .copies = copies_.get()});
    ASSERT_TRUE(blocks->Recover(newer).ok());
    spaces = std::make_unique<ClusterSpaces>(ClusterSpaces::Parts{.cluster = cluster_,
                                                                  .namespaces = spaces_.get(),
                                                                  .blocks = blocks.get(),
                                                                  .files = nullptr,
                                                                  .clock = &clock_});
    owner_.blocks = blocks.get();
    if (segments_ != nullptr) segments_->Start(&owner_);
    resident_->Start();
    blocks->Start();
  }
  void Stop() {
    if (blocks == nullptr) return;
    resident_->Stop();
    blocks->Stop();
    if (copies_ != nullptr) {
      cluster_->Join(nullptr);
      copies_->Stop();
    }
    segments_.reset();
    spaces.reset();
    blocks.reset();
    copies_.reset();
    spaces_.reset();
    CloseParts();
  }

  Namespace Space(const std::string& name = "ns") const {
    const auto found = spaces->Find(name);
    EXPECT_TRUE(found) << name;
    return found.value_or(Namespace{});
  }
  std::vector<Namespace> Listed() const {
    spaces->Follow();
    return spaces_->List();
  }
  meta::BlockId Id(const BlockKey& key) const { return {SpaceIdOf(Space().uuid), key}; }

  FsResult<Ino> Begin(const BlockKey& parent, const BlockKey& key, const std::string& bytes) {
    const auto made = blocks->Create(
        {}, Space(), parent.IsZero() ? std::nullopt : std::optional(parent), key, O_WRONLY);
    if (!made) return Fail(made.error().value);
    const auto file =
        slots_->OpenFile(static_cast<iouring::SlotId>(made->ino & 0xffffffff), O_WRONLY);
    EXPECT_TRUE(file.ok());
    EXPECT_EQ(::pwrite(file->get(), bytes.data(), bytes.size(), 0),
              static_cast<ssize_t>(bytes.size()));
    return made->ino;
  }
  int Close(Ino ino) {
    const FsStatus flushed = blocks->PendingFlush({.pid = ::getpid()}, ino);
    blocks->PendingRelease(ino, 0);
    return flushed ? 0 : flushed.error().value;
  }
  int Put(const BlockKey& parent, const BlockKey& key, const std::string& bytes,
          bool fsync = false) {
    const auto ino = Begin(parent, key, bytes);
    if (!ino) return ino.error().value;
    if (fsync) {
      EXPECT_TRUE(blocks->PendingFsync(*ino));
    }
    return Close(*ino);
  }
  int Put(const BlockKey& parent, const BlockKey& key) { return Put(parent, key, BytesOf(key)); }
  std::vector<BlockKey> PutChain(size_t count, uint64_t seed) {
    std::vector<BlockKey> keys;
    BlockKey parent;
    for (size_t i = 0; i < count; ++i) {
      keys.push_back(ChainKey(parent, seed * 1000 + i));
      EXPECT_EQ(Put(parent, keys.back()), 0) << i;
      parent = keys.back();
    }
    return keys;
  }

  std::optional<BlockView> Find(const BlockKey& key, Use use = Use::kLease) {
    return blocks->Find(Space().id, key, use);
  }
  uint32_t Match(std::span<const BlockKey> keys) {
    return blocks->Match(Space().id, keys, 0).count;
  }
  // As stat and open of a user; nothing for a miss.
  std::optional<std::string> Read(const BlockKey& key) {
    const auto view = Find(key);
    return view ? ReadIno(view->block_ino()) : std::nullopt;
  }
  std::optional<std::string> ReadIno(Ino ino) {
    const auto open = blocks->Open({}, ino, O_RDONLY);
    if (!open) return std::nullopt;
    const auto bytes = blocks->Mapped(ino, open->handle);
    EXPECT_TRUE(bytes);
    std::string text(reinterpret_cast<const char*>(bytes->data()), bytes->size());
    blocks->Release(ino, open->handle);
    return text;
  }
  uint32_t used_slots() const { return slots_->used_slots(); }
  Tier TierOf(const BlockKey& key) {
    const auto view = Find(key, Use::kPeek);
    return view ? view->tier : Tier::kNone;
  }
  // Every copy in DRAM goes, as when others need the room.
  void EvictDram() {
    for (iouring::SlotId slot = 1; slot <= slots_->slot_count(); ++slot) {
      if (slots_->record(slot).state.load() == iouring::SlotState::kBlock) {
        EXPECT_TRUE(blocks->TryEvict(slot));
      }
    }
  }
  std::set<BlockKey> ListLeaves(size_t page) {
    std::set<BlockKey> leaves;
    uint64_t cookie = 0;
    for (bool more = true; more;) {
      more = false;
      size_t taken = 0;
      const auto listed =
          blocks->ListLeaves(Space().id, cookie, [&](const BlockView& view, uint64_t next) {
            if (taken == page) return false;
            ++taken;
            more = true;
            EXPECT_TRUE(leaves.insert(view.key).second) << "listed twice";
            EXPECT_GT(next, cookie);
            cookie = next;
            return true;
          });
      EXPECT_TRUE(listed);
    }
    return leaves;
  }

  std::unique_ptr<BlockStore> blocks;
  std::unique_ptr<ClusterSpaces> spaces;

 private:
  FakeCluster* const cluster_;
  ManualClock& clock_;
  const uint64_t told_blocks_max_;
  const bool holds_;
  std::unique_ptr<CopyHolder> copies_;
  CountedBacking backing_;
  NoNotifier notifier_;
  std::unique_ptr<NamespaceTable> spaces_;
  BlockOwner owner_;
};

class ClusterBlockStoreTest : public testing::Test {
 protected:
  void SetUp() override {
    SetLogLevel(LogLevel::kError);
    a_ = std::make_unique<Host>(&cluster_, &clock_, sizes_);
    b_ = std::make_unique<Host>(&cluster_, &clock_, sizes_);
    Namespace space;
    const auto made = a_->spaces->Create({.uid = 5, .gid = 6}, "ns", 0750);
    ASSERT_TRUE(made);
    space = *made;
    space.block_bytes = kBlockBytes;
    space.replicas = 2;
    ASSERT_TRUE(a_->spaces->Update(space));
  }
  void PassLeases() { clock_.Advance(FakeCluster::kLease + Millis(1)); }

  Host::Sizes sizes_;
  ManualClock clock_;
  FakeCluster cluster_{&clock_};
  std::unique_ptr<Host> a_, b_;
};

TEST_F(ClusterBlockStoreTest, NamespacesAreSeenEverywhere) {
  const Namespace mine = a_->Space(), theirs = b_->Space();
  EXPECT_EQ(mine.uuid, theirs.uuid);
  EXPECT_EQ(theirs.block_bytes, kBlockBytes);
  EXPECT_EQ(theirs.replicas, 2u);
  EXPECT_EQ(theirs.uid, 5u);
  EXPECT_EQ(theirs.mode, 0750u);
  EXPECT_EQ(b_->spaces->Create({}, "ns", 0755).error().value, EEXIST);
  EXPECT_EQ(b_->spaces->Create({}, ".hidden", 0755).error().value, EINVAL);

  Namespace changed = theirs;
  changed.sync = true;
  ASSERT_TRUE(b_->spaces->Update(changed));
  EXPECT_TRUE(a_->Space().sync);

  EXPECT_EQ(a_->Put({}, ChainKey({}, 1)), 0);
  ASSERT_TRUE(b_->spaces->Remove(theirs));
  EXPECT_TRUE(a_->Listed().empty());
  EXPECT_FALSE(a_->spaces->Find("ns"));
  // Another one of that name has nothing of it.
  ASSERT_TRUE(a_->spaces->Create({}, "ns", 0755));
  EXPECT_NE(a_->Space().uuid, mine.uuid);
  EXPECT_FALSE(a_->Find(ChainKey({}, 1)));
  EXPECT_FALSE(b_->Find(ChainKey({}, 1)));
}

TEST_F(ClusterBlockStoreTest, SettingsAreJsonThatMayBeWrong) {
  Namespace space;
  space.block_bytes = 4096;
  space.replicas = 3;
  space.sync = true;
  Namespace read;
  ApplySettings(SettingsOf(space), &read);
  EXPECT_EQ(read, space);
  for (const char* text :
       {"", "[]", "nonsense", "{\"block_bytes\":0,\"replicas\":99,\"durability\":7,\"mode\":-1}"}) {
    ApplySettings(text, &read);
    EXPECT_EQ(read, space) << text;
  }
}

TEST_F(ClusterBlockStoreTest, WhatOneHostWritesTheOtherMatchesAndReads) {
  const auto keys = a_->PutChain(20, 1);
  for (const BlockKey& key : keys) {
    EXPECT_EQ(cluster_.BytesHeld(a_->Id(key)), BytesOf(key));
    EXPECT_EQ(cluster_.FactsOf(a_->Id(key)).replicas, 2);
  }
  EXPECT_EQ(b_->Match(keys), 20u);
  EXPECT_EQ(b_->TierOf(keys[7]), Tier::kPeer);
  for (const BlockKey& key : keys) EXPECT_EQ(b_->Read(key), BytesOf(key));
  EXPECT_EQ(b_->TierOf(keys[7]), Tier::kDram);
  const size_t reads = cluster_.reads();
  for (const BlockKey& key : keys) EXPECT_EQ(b_->Read(key), BytesOf(key));
  EXPECT_EQ(cluster_.reads(), reads);  // they are here now

  const auto view = b_->Find(keys[7]);
  ASSERT_TRUE(view);
  EXPECT_EQ(view->ordinal, 7u);
  EXPECT_EQ(view->parent, keys[6]);
  EXPECT_EQ(view->mtime_nanos, a_->Find(keys[7])->mtime_nanos);
  EXPECT_GT(view->lease_ms, 0u);
}

TEST_F(ClusterBlockStoreTest, ABlockIsFoundByItsKeyAlone) {
  const auto keys = a_->PutChain(5, 1);
  EXPECT_EQ(b_->Read(keys[3]), BytesOf(keys[3]));
  std::vector<BlockKey> chain;
  b_->blocks->ListChain(b_->Space().id, keys[3], 0, [&](const BlockView& block, uint64_t) {
    chain.push_back(block.key);
    return true;
  });
  EXPECT_EQ(chain, std::vector<BlockKey>(keys.begin(), keys.begin() + 4));
  // Now a question may begin in the middle.
  EXPECT_EQ(b_->Match(std::span(keys).subspan(2)), 3u);
}

TEST_F(ClusterBlockStoreTest, WritersOfOneChainOnTwoHosts) {
  const auto keys = a_->PutChain(3, 1);
  const BlockKey mine = ChainKey(keys[2], 7), theirs = ChainKey(keys[2], 8);
  EXPECT_EQ(b_->Put(keys[2], theirs), 0);
  EXPECT_EQ(a_->Put(keys[2], mine), 0);
  EXPECT_EQ(b_->Put(keys[2], mine), EEXIST);
  EXPECT_EQ(b_->Put(ChainKey({}, 99), ChainKey({}, 98)), ENOENT);
  EXPECT_EQ(cluster_.FactsOf(a_->Id(theirs)).ordinal, 3u);
  EXPECT_EQ(a_->Read(theirs), BytesOf(theirs));
}

TEST_F(ClusterBlockStoreTest, TheFirstToPublishWins) {
  const BlockKey key = ChainKey({}, 1);
  const auto first = a_->Begin({}, key, "first"), second = b_->Begin({}, key, "second");
  ASSERT_TRUE(first && second);
  EXPECT_EQ(b_->Close(*second), 0);
  EXPECT_EQ(a_->Close(*first), 0);
  EXPECT_EQ(a_->Read(key), "second");
  EXPECT_EQ(b_->Read(key), "second");
}

TEST_F(ClusterBlockStoreTest, AParentThatGoesTakesTheChildWithIt) {
  const auto keys = a_->PutChain(2, 1);
  const BlockKey child = ChainKey(keys[1], 5);
  const auto ino = a_->Begin(keys[1], child, "child");
  ASSERT_TRUE(ino);
  ASSERT_TRUE(b_->blocks->Drop(b_->Space().id, keys[0], nullptr));
  EXPECT_EQ(a_->Close(*ino), 0);
  EXPECT_FALSE(cluster_.Has(a_->Id(child)));
  EXPECT_FALSE(a_->Find(child));
}

TEST_F(ClusterBlockStoreTest, WhatIsDroppedElsewhereIsGoneWithItsLease) {
  const auto keys = a_->PutChain(4, 1);
  ASSERT_EQ(b_->Match(keys), 4u);
  uint64_t dropped = 0;
  ASSERT_TRUE(b_->blocks->Drop(b_->Space().id, keys[1], &dropped));
  EXPECT_EQ(dropped, 3u);
  EXPECT_EQ(b_->Match(keys), 1u);  // here at once
  PassLeases();
  EXPECT_EQ(a_->Match(keys), 1u);
  EXPECT_FALSE(a_->Find(keys[2]));
  EXPECT_EQ(b_->blocks->Drop(b_->Space().id, keys[1], nullptr).error().value, ENOENT);
}

TEST_F(ClusterBlockStoreTest, WithinItsLeaseNobodyIsAsked) {
  const auto keys = a_->PutChain(4, 1);
  ASSERT_EQ(b_->Match(keys), 4u);
  size_t questions = cluster_.questions();
  EXPECT_EQ(b_->Match(keys), 4u);
  EXPECT_TRUE(b_->Find(keys[3]));
  EXPECT_EQ(cluster_.questions(), questions);
  EXPECT_TRUE(cluster_.used().contains(b_->Id(keys[0])));  // but the holders hear of it
  PassLeases();
  EXPECT_EQ(b_->Match(keys), 4u);
  EXPECT_GT(cluster_.questions(), questions);
}

TEST_F(ClusterBlockStoreTest, AwayMeansWhatIsLeasedGoesOnAndTheRestIsAMiss) {
  const auto keys = a_->PutChain(4, 1);
  ASSERT_EQ(b_->Match(std::span(keys).first(2)), 2u);
  EXPECT_EQ(b_->Read(keys[0]), BytesOf(keys[0]));
  cluster_.SetAway(true);
  EXPECT_EQ(b_->Match(keys), 2u);
  EXPECT_EQ(b_->Read(keys[0]), BytesOf(keys[0]));  // its bytes are here
  EXPECT_EQ(b_->Read(keys[1]), std::nullopt);
  EXPECT_FALSE(b_->Find(keys[3]));
  PassLeases();
  EXPECT_EQ(b_->Match(keys), 0u);
  EXPECT_FALSE(b_->Find(keys[0]));
  cluster_.SetAway(false);
  EXPECT_EQ(b_->Match(keys), 4u);
  EXPECT_EQ(b_->TierOf(keys[0]), Tier::kDram);  // confirmed, the copy is good again
}

TEST_F(ClusterBlockStoreTest, WhereNobodyAnswersNobodyIsWaitedForLong) {
  const auto keys = a_->PutChain(1, 1);
  EXPECT_FALSE(a_->Find(ChainKey({}, 2)));
  const Millis usual = cluster_.patience();
  cluster_.SetAway(true);
  for (int i = 0; i < 20; ++i) EXPECT_FALSE(a_->Find(ChainKey({}, 2)));
  EXPECT_LT(cluster_.patience(), usual);
  cluster_.SetAway(false);
  EXPECT_EQ(a_->Match(keys), 1u);
  EXPECT_FALSE(a_->Find(ChainKey({}, 3)));
  EXPECT_EQ(cluster_.patience(), usual);
}

TEST_F(ClusterBlockStoreTest, WhatTheClusterDoesNotTakeIsAMissAndFsyncSaysSo) {
  const auto keys = a_->PutChain(1, 1);
  const BlockKey lost = ChainKey(keys[0], 1), wanted = ChainKey(keys[0], 2);
  const auto one = a_->Begin(keys[0], lost, "lost"), other = a_->Begin(keys[0], wanted, "wanted");
  ASSERT_TRUE(one && other);
  ASSERT_TRUE(a_->blocks->PendingFsync(*other));
  cluster_.SetAway(true);
  EXPECT_EQ(a_->Close(*one), 0);
  EXPECT_EQ(a_->Close(*other), EIO);
  cluster_.SetAway(false);
  EXPECT_FALSE(a_->Find(lost));
  EXPECT_FALSE(a_->Find(wanted));
  EXPECT_EQ(a_->blocks->Stats().pending, 0u);
  EXPECT_EQ(a_->Put(keys[0], wanted, "wanted", true), 0);
  EXPECT_EQ(b_->Read(wanted), "wanted");
  // Where no server has room, fsync's answer is another.
  cluster_.SetFull(true);
  EXPECT_EQ(a_->Put(wanted, ChainKey(wanted, 1), "no room", true), ENOSPC);
  EXPECT_EQ(a_->Put(wanted, ChainKey(wanted, 2), "no room"), 0);
  cluster_.SetFull(false);
  EXPECT_FALSE(a_->Find(ChainKey(wanted, 1)));
  EXPECT_FALSE(a_->Find(ChainKey(wanted, 2)));
  // Begun while it was away, closed when it is back.
  cluster_.SetAway(true);
  const auto late = a_->Begin(keys[0], lost, "late");
  ASSERT_TRUE(late);
  cluster_.SetAway(false);
  EXPECT_EQ(a_->Close(*late), 0);
  EXPECT_EQ(b_->Read(lost), "late");
}

TEST_F(ClusterBlockStoreTest, AVanishedBlockIsAMissAtOpen) {
  const auto keys = a_->PutChain(4, 1);
  ASSERT_EQ(b_->Match(keys), 4u);
  const Ino ino = b_->Find(keys[1])->block_ino();
  cluster_.LoseBytes(b_->Id(keys[1]));
  EXPECT_EQ(b_->ReadIno(ino), std::nullopt);
  // It, and what extends it, are gone here too, whatever the lease.
  EXPECT_EQ(b_->Match(keys), 1u);
  EXPECT_FALSE(b_->Find(keys[3]));
}

TEST_F(ClusterBlockStoreTest, ADroppedKeyMayComeBackWithOtherBytes) {
  const BlockKey key = ChainKey({}, 1);
  ASSERT_EQ(a_->Put({}, key, "old bytes"), 0);
  ASSERT_EQ(b_->Read(key), "old bytes");
  const auto open = b_->blocks->Open({}, b_->Find(key)->block_ino(), O_RDONLY);
  ASSERT_TRUE(open);
  const Ino before = b_->Find(key)->block_ino();
  ASSERT_TRUE(a_->blocks->Drop(a_->Space().id, key, nullptr));
  ASSERT_EQ(a_->Put({}, key, "new bytes"), 0);  // of the same length
  PassLeases();
  EXPECT_EQ(b_->Read(key), "new bytes");
  EXPECT_EQ(a_->Read(key), "new bytes");
  // Who has the old one open reads the old one.
  const auto bytes = b_->blocks->Mapped(before, open->handle);
  ASSERT_TRUE(bytes);
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(bytes->data()), bytes->size()), "old bytes");
  EXPECT_NE(b_->Find(key)->block_ino(), before);
  b_->blocks->Release(before, open->handle);
}

TEST_F(ClusterBlockStoreTest, ALocalCopyIsOnlyACopy) {
  const auto keys = a_->PutChain(4, 1);
  a_->EvictDram();
  EXPECT_EQ(a_->TierOf(keys[2]), Tier::kPeer);
  EXPECT_EQ(a_->Match(keys), 4u);
  for (const BlockKey& key : keys) EXPECT_EQ(a_->Read(key), BytesOf(key));
  // More than its tier holds.
  for (uint64_t i = 0; i < 400; ++i) ASSERT_EQ(a_->Put({}, ChainKey({}, i)), 0) << i;
  for (uint64_t i = 0; i < 400; i += 37) {
    EXPECT_EQ(a_->Read(ChainKey({}, i)), BytesOf(ChainKey({}, i))) << i;
  }
}

TEST_F(ClusterBlockStoreTest, TheRestOfAnotherChainIsNotTaken) {
  const auto keys = a_->PutChain(4, 1);
  const BlockKey fork = ChainKey(keys[1], 77);
  ASSERT_EQ(b_->Put(keys[1], fork), 0);  // which the other host has not seen
  const auto ns = a_->Space().id;
  ASSERT_EQ(a_->Match(keys), 4u);
  EXPECT_EQ(a_->blocks->UnlinkFromChain(ns, keys[3], 1, keys[1]).error().value, EBUSY);
  EXPECT_EQ(a_->blocks->RemoveTip(ns, keys[1]).error().value, ENOTEMPTY);
  EXPECT_TRUE(a_->blocks->UnlinkFromChain(ns, keys[3], 2, keys[2]));
  EXPECT_TRUE(a_->blocks->UnlinkFromChain(ns, keys[3], 3, keys[3]));  // went with it
  EXPECT_FALSE(cluster_.Has(a_->Id(keys[2])));
  EXPECT_TRUE(cluster_.Has(a_->Id(fork)));
  EXPECT_TRUE(a_->blocks->RemoveTip(ns, fork));
  EXPECT_TRUE(a_->blocks->RemoveTip(ns, keys[1]));
  EXPECT_EQ(a_->blocks->RemoveTip(ns, fork).error().value, ENOENT);
  EXPECT_TRUE(cluster_.Has(a_->Id(keys[0])));
}

TEST_F(ClusterBlockStoreTest, ListsWhatOthersWroteInPages) {
  std::set<BlockKey> tips;
  for (uint64_t chain = 1; chain <= 40; ++chain) tips.insert(a_->PutChain(2, chain)[1]);
  // Keys that people make up are alike.
  for (uint8_t i = 1; i <= 20; ++i) {
    BlockKey key;
    key.bytes[30] = i;
    ASSERT_EQ(a_->Put({}, key, "x"), 0);
    tips.insert(key);
  }
  EXPECT_EQ(b_->ListLeaves(1), tips);
  EXPECT_EQ(b_->ListLeaves(7), tips);
  EXPECT_EQ(b_->ListLeaves(1000), tips);
  EXPECT_FALSE(b_->blocks->NamespaceIsEmpty(b_->Space().id));
  EXPECT_EQ(b_->blocks->DropNamespace(b_->Space().id), 100u);
  EXPECT_TRUE(b_->blocks->NamespaceIsEmpty(b_->Space().id));
  EXPECT_TRUE(b_->ListLeaves(7).empty());
  cluster_.SetAway(true);
  EXPECT_FALSE(b_->blocks->NamespaceIsEmpty(b_->Space().id));  // not known
}

class SmallMemoryTest : public ClusterBlockStoreTest {
 protected:
  SmallMemoryTest() { sizes_.told_blocks_max = 64; }
};

TEST_F(SmallMemoryTest, WhatOthersHaveIsForgottenColdestFirst) {
  std::vector<std::vector<BlockKey>> chains;
  for (uint64_t i = 1; i <= 30; ++i) chains.push_back(a_->PutChain(10, i));
  for (const auto& chain : chains) {
    EXPECT_EQ(b_->Match(chain), 10u);
    clock_.Advance(Millis(1000));
  }
  EXPECT_LE(b_->blocks->Stats().blocks, 80u);
  EXPECT_EQ(b_->TierOf(chains.back()[9]), Tier::kPeer);
  EXPECT_EQ(b_->TierOf(chains.front()[9]), Tier::kNone);
  EXPECT_EQ(b_->Match(chains.front()), 10u);
  EXPECT_EQ(b_->Read(chains.front()[9]), BytesOf(chains.front()[9]));
}

class NvmeCacheTest : public ClusterBlockStoreTest {
 protected:
  NvmeCacheTest() {
    sizes_.dram_bytes = 4u << 20;
    sizes_.nvme_bytes = 32u << 20;
  }
};

TEST_F(NvmeCacheTest, BlocksOfPeersAreKeptOnNvmeAndCheckedAfterARestart) {
  const auto keys = a_->PutChain(8, 1);
  for (const BlockKey& key : keys) ASSERT_EQ(b_->Read(key), BytesOf(key));
  ASSERT_TRUE(b_->blocks->WriteBackAll().ok());
  b_->EvictDram();
  EXPECT_EQ(b_->TierOf(keys[3]), Tier::kNvme);
  const size_t reads = cluster_.reads();
  EXPECT_EQ(b_->Read(keys[3]), BytesOf(keys[3]));
  EXPECT_EQ(cluster_.reads(), reads);
  ASSERT_TRUE(b_->blocks->WriteBackAll().ok());

  // While it is away, one of them is written anew with as many other bytes.
  b_->Stop();
  ASSERT_TRUE(a_->blocks->Drop(a_->Space().id, keys[7], nullptr));
  ASSERT_EQ(a_->Put(keys[6], keys[7], std::string(kBlockBytes, 'n')), 0);
  b_->Start();
  b_->EvictDram();
  EXPECT_EQ(b_->Match(keys), 8u);
  EXPECT_EQ(b_->Read(keys[7]), std::string(kBlockBytes, 'n'));
  EXPECT_EQ(b_->Read(keys[3]), BytesOf(keys[3]));
}

TEST_F(NvmeCacheTest, MoreThanNvmeHolds) {
  for (uint64_t i = 0; i < 1000; ++i) {
    ASSERT_EQ(a_->Put({}, ChainKey({}, i)), 0) << i;
    if (i % 100 == 0) clock_.Advance(Millis(1000));
  }
  for (uint64_t i = 0; i < 1000; i += 97) {
    EXPECT_EQ(a_->Read(ChainKey({}, i)), BytesOf(ChainKey({}, i))) << i;
    EXPECT_EQ(b_->Read(ChainKey({}, i)), BytesOf(ChainKey({}, i))) << i;
  }
}

// One of the hosts holds blocks for the cluster: what it writes.
class HolderHostTest : public ClusterBlockStoreTest {
 protected:
  void SetUp() override {
    ClusterBlockStoreTest::SetUp();
    sizes_.holds = true;
    a_ = std::make_unique<Host>(&cluster_, &clock_, sizes_);
  }
  void TearDown() override { a_->Stop(); }  // before the cluster that it holds copies for

  static std::string Other() { return std::string(kBlockBytes, 'o'); }
};

TEST_F(HolderHostTest, WhatItWritesItReadsInTheSameSlots) {
  const auto keys = a_->PutChain(5, 1);
  EXPECT_EQ(a_->used_slots(), 5u);
  for (const BlockKey& key : keys) {
    EXPECT_EQ(a_->TierOf(key), Tier::kDram);
    EXPECT_EQ(a_->Read(key), BytesOf(key));
  }
  EXPECT_EQ(a_->used_slots(), 5u);
  EXPECT_EQ(cluster_.reads(), 0u);
  EXPECT_EQ(b_->Match(keys), 5u);
  EXPECT_EQ(b_->TierOf(keys[2]), Tier::kPeer);
  EXPECT_EQ(b_->Read(keys[2]), BytesOf(keys[2]));
}

TEST_F(HolderHostTest, WhatIsSyncedBeforeItIsClosedIsOneSlotInTheEnd) {
  const BlockKey key = ChainKey({}, 1);
  EXPECT_EQ(a_->Put({}, key, BytesOf(key), true), 0);
  EXPECT_EQ(a_->used_slots(), 1u);
  EXPECT_EQ(a_->Read(key), BytesOf(key));
  EXPECT_EQ(cluster_.reads(), 0u);
}

TEST_F(HolderHostTest, ALostRaceLeavesNothing) {
  const BlockKey key = ChainKey({}, 1);
  const auto ino = a_->Begin({}, key, Other());
  ASSERT_TRUE(ino);
  ASSERT_EQ(b_->Put({}, key), 0);
  EXPECT_EQ(a_->Close(*ino), 0);
  EXPECT_EQ(a_->used_slots(), 0u);
  PassLeases();
  EXPECT_EQ(a_->Read(key), BytesOf(key));
}

TEST_F(HolderHostTest, AnOpenFileKeepsItsSlotWhenTheCopyMovesAway) {
  const auto keys = a_->PutChain(1, 1);
  const Ino ino = a_->Find(keys[0])->block_ino();
  const auto first = a_->blocks->Open({}, ino, O_RDONLY);
  ASSERT_TRUE(first);
  cluster_.MoveAway(a_->Id(keys[0]));
  const auto second = a_->blocks->Open({}, ino, O_RDONLY);
  ASSERT_TRUE(second);
  EXPECT_EQ(second->backing_id, first->backing_id) << "an inode has one while it is open";
  a_->blocks->Release(ino, first->handle);
  a_->blocks->Release(ino, second->handle);
  EXPECT_EQ(a_->used_slots(), 0u);
  PassLeases();
  EXPECT_EQ(a_->Read(keys[0]), BytesOf(keys[0]));
  EXPECT_EQ(cluster_.reads(), 1u);
}

TEST_F(HolderHostTest, ADroppedBlockIsReadOnAndItsSuccessorIsAnother) {
  const auto keys = a_->PutChain(1, 1);
  const Ino ino = a_->Find(keys[0])->block_ino();
  const auto open = a_->blocks->Open({}, ino, O_RDONLY);
  ASSERT_TRUE(open);
  ASSERT_TRUE(a_->blocks->Drop(a_->Space().id, keys[0], nullptr));
  EXPECT_EQ(a_->used_slots(), 1u);
  EXPECT_TRUE(a_->blocks->FindDropped(ino));
  ASSERT_EQ(a_->Put({}, keys[0], Other()), 0);
  const auto now = a_->Find(keys[0]);
  ASSERT_TRUE(now);
  EXPECT_NE(now->block_ino(), ino);
  EXPECT_EQ(a_->ReadIno(now->block_ino()), Other());
  const auto bytes = a_->blocks->Mapped(ino, open->handle);
  ASSERT_TRUE(bytes);
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(bytes->data()), bytes->size()),
            BytesOf(keys[0]));
  a_->blocks->Release(ino, open->handle);
  EXPECT_EQ(a_->used_slots(), 1u);
}

}  // namespace
}  // namespace kvcfs::fs
