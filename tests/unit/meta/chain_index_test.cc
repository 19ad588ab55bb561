#include "meta/chain_index.h"

#include <cstdio>
#include <cstdlib>
#include <map>
#include <random>
#include <set>
#include <string>

#include <gtest/gtest.h>

#include "meta/chain_key.h"

namespace kvcfs::meta {
namespace {

BlockState SomeState(uint32_t seed) {
  BlockState state;
  state.length = 1 + seed * 2654435761u % (64u << 20);
  state.slot = seed % 5 == 0 ? seed + 1 : 0;
  state.segment = seed % 7000;
  state.offset_4k = seed % 16384;
  state.sequence = uint64_t{seed} << 8;
  state.last_use_s = 1000 + seed % 1000;
  state.mtime_s = 1'700'000'000 + seed;
  state.hits = static_cast<uint16_t>(seed % 16000);
  return state;
}

bool Same(const BlockState& a, const BlockState& b) {
  return a.length == b.length && a.slot == b.slot && a.segment == b.segment &&
         a.offset_4k == b.offset_4k && a.sequence == b.sequence && a.last_use_s == b.last_use_s &&
         a.mtime_s == b.mtime_s && a.hits == b.hits;
}

// Inserts the chain of these ids behind `parent` and returns its keys.
std::vector<BlockKey> InsertChain(ChainIndex& index, NamespaceId ns, BlockKey parent,
                                  uint64_t first_id, size_t count) {
  std::vector<BlockKey> keys;
  for (uint64_t id = first_id; id < first_id + count; ++id) {
    const BlockKey key = ChainKey(parent, id);
    EXPECT_TRUE(index.Insert(ns, key, parent, SomeState(static_cast<uint32_t>(id))).ok());
    keys.push_back(parent = key);
  }
  return keys;
}

TEST(ChainIndexTest, AChainIsFoundFromEverySide) {
  ChainIndex index;
  const std::vector<BlockKey> keys = InsertChain(index, 3, BlockKey{}, 1, 150);
  index.CheckInvariants();
  EXPECT_EQ(index.block_count(), 150u);
  EXPECT_EQ(index.block_count(3), 150u);
  EXPECT_EQ(index.block_count(4), 0u);
  EXPECT_EQ(index.Stats().runs, 3u);  // of 64, 64 and 22
  EXPECT_EQ(index.Stats().leaves, 1u);
  for (size_t i = 0; i < keys.size(); ++i) {
    const auto ref = index.Find(3, keys[i]);
    ASSERT_TRUE(ref.has_value());
    EXPECT_EQ(index.key(*ref), keys[i]);
    EXPECT_EQ(index.parent_key(*ref), i == 0 ? BlockKey{} : keys[i - 1]);
    EXPECT_EQ(index.ordinal(*ref), i);
    EXPECT_EQ(index.namespace_of(*ref), 3u);
    EXPECT_EQ(index.child_count(*ref), i + 1 < keys.size() ? 1u : 0u);
    EXPECT_TRUE(Same(index.state(*ref), SomeState(static_cast<uint32_t>(i + 1))));
    EXPECT_EQ(index.FindHash(BlockHash62(3, keys[i])), ref);
    EXPECT_FALSE(index.Find(4, keys[i]).has_value());
  }
  const auto tip = index.Find(3, keys.back());
  const std::vector<BlockRef> chain = index.Chain(*tip);
  ASSERT_EQ(chain.size(), keys.size());
  for (size_t i = 0; i < keys.size(); ++i) EXPECT_EQ(index.key(chain[i]), keys[i]);
  EXPECT_EQ(index.Subtree(chain[0]).size(), keys.size());
  EXPECT_EQ(index.Subtree(chain[0]).back(), chain[0]);
}

TEST(ChainIndexTest, SaysWhyItRefuses) {
  ChainIndex index;
  const BlockKey a = ChainKey(BlockKey{}, 1);
  const BlockKey b = ChainKey(a, 2);
  EXPECT_EQ(index.Insert(1, b, a, SomeState(1)).code(), Code::kNotFound);
  ASSERT_TRUE(index.Insert(1, a, BlockKey{}, SomeState(1)).ok());
  EXPECT_EQ(index.Insert(1, a, BlockKey{}, SomeState(1)).code(), Code::kExists);
  EXPECT_EQ(index.Insert(2, b, a, SomeState(1)).code(), Code::kNotFound);  // another namespace's
  ASSERT_TRUE(index.Insert(1, b, a, SomeState(1)).ok());
  const auto ref = index.Find(1, a);
  EXPECT_EQ(index.RemoveLeaf(*ref).code(), Code::kNotEmpty);
  EXPECT_TRUE(index.RemoveLeaf(*index.Find(1, b)).ok());
  EXPECT_TRUE(index.RemoveLeaf(*ref).ok());
  EXPECT_EQ(index.RemoveLeaf(*ref).code(), Code::kNotFound);
  EXPECT_FALSE(index.IsCurrent(*ref));
  EXPECT_FALSE(index.IsCurrent(BlockRef{}));
  BlockState bad = SomeState(1);
  bad.length = 0;
  EXPECT_EQ(index.Insert(1, a, BlockKey{}, bad).code(), Code::kInvalid);
  bad.length = (64u << 20) + 1;
  EXPECT_EQ(index.Insert(1, a, BlockKey{}, bad).code(), Code::kInvalid);
  EXPECT_EQ(index.Insert(1, BlockKey{}, BlockKey{}, SomeState(1)).code(), Code::kInvalid);
}

TEST(ChainIndexTest, StateKeepsItsLimits) {
  ChainIndex index;
  const BlockKey key = ChainKey(BlockKey{}, 1);
  BlockState state;
  state.length = 64u << 20;
  state.slot = ~0u;
  state.segment = (1u << 24) - 1;
  state.offset_4k = (1u << 24) - 1;
  state.sequence = (uint64_t{1} << 40) - 1;
  state.last_use_s = ~0u;
  state.mtime_s = ~0u;
  state.hits = 16383;
  const BlockRef ref = *index.Insert(1, key, BlockKey{}, state);
  EXPECT_TRUE(Same(index.state(ref), state));
  index.Touch(ref, 5, true);
  EXPECT_EQ(index.state(ref).hits, 16383);
  EXPECT_EQ(index.state(ref).last_use_s, 5u);
  BlockState least;
  least.length = 1;
  index.SetState(ref, least);
  EXPECT_TRUE(Same(index.state(ref), least));
  index.CheckInvariants();
}

TEST(ChainIndexTest, MatchStopsAtTheFirstMissAndAtTheFirstThatIsNotNext) {
  ChainIndex index;
  const std::vector<BlockKey> trunk = InsertChain(index, 1, BlockKey{}, 1, 40);
  const std::vector<BlockKey> branch = InsertChain(index, 1, trunk[9], 1000, 100);
  std::vector<BlockRef> refs(200);
  EXPECT_EQ(index.Match(1, trunk, refs.data()), 40u);
  for (size_t i = 0; i < 40; ++i) EXPECT_EQ(index.key(refs[i]), trunk[i]);
  std::vector<BlockKey> keys(trunk.begin(), trunk.begin() + 10);
  keys.insert(keys.end(), branch.begin(), branch.end());
  EXPECT_EQ(index.Match(1, keys, refs.data()), 110u);
  for (size_t i = 0; i < 110; ++i) EXPECT_EQ(index.key(refs[i]), keys[i]);
  EXPECT_EQ(index.Match(2, keys, refs.data()), 0u);
  EXPECT_EQ(index.Match(1, {}, refs.data()), 0u);
  // A part of a chain.
  EXPECT_EQ(index.Match(1, std::span(keys).subspan(50), refs.data()), 60u);
  keys[77].bytes[31] ^= 1;
  EXPECT_EQ(index.Match(1, keys, refs.data()), 77u);
  // All cached, but not one chain.
  std::vector<BlockKey> mixed = {trunk[0], trunk[1], trunk[3]};
  EXPECT_EQ(index.Match(1, mixed, refs.data()), 2u);
  mixed = {trunk[9], branch[0], trunk[10]};
  EXPECT_EQ(index.Match(1, mixed, refs.data()), 2u);
  mixed = {trunk[8], branch[0]};
  EXPECT_EQ(index.Match(1, mixed, refs.data()), 1u);
  mixed = {trunk[9], trunk[9]};
  EXPECT_EQ(index.Match(1, mixed, refs.data()), 1u);
}

TEST(ChainIndexTest, ABlockMayHaveThousandsOfChildren) {
  ChainIndex index;
  const BlockKey root = InsertChain(index, 1, BlockKey{}, 1, 1)[0];
  std::vector<BlockRef> children;
  for (uint64_t id = 0; id < 7373; ++id) {
    children.push_back(*index.Insert(1, ChainKey(root, 100 + id), root, SomeState(1)));
  }
  EXPECT_EQ(index.child_count(*index.Find(1, root)), 7373u);
  index.CheckInvariants();
  EXPECT_EQ(index.Subtree(*index.Find(1, root)).size(), 7374u);
  std::mt19937_64 random(3);
  std::shuffle(children.begin(), children.end(), random);
  for (const BlockRef child : children) ASSERT_TRUE(index.RemoveLeaf(child).ok());
  EXPECT_EQ(index.child_count(*index.Find(1, root)), 0u);
  EXPECT_EQ(index.Stats().leaves, 1u);
  index.CheckInvariants();
}

// A restart inserts all first blocks, then all second ones ...; an eviction takes from every run.
TEST(ChainIndexTest, MemoryFollowsWhatIsCached) {
  constexpr size_t kChains = 12'000;
  std::mt19937_64 random(17);
  std::vector<BlockKey> tips(kChains);
  std::vector<size_t> lengths(kChains);
  for (size_t& length : lengths) length = 1 + random() % 30;
  ChainIndex index;
  for (size_t ordinal = 0; ordinal < 30; ++ordinal) {
    for (size_t chain = 0; chain < kChains; ++chain) {
      if (ordinal >= lengths[chain]) continue;
      const BlockKey key = ChainKey(tips[chain], chain);
      BlockState state = SomeState(1);
      state.last_use_s = static_cast<uint32_t>(random() % 100'000);
      ASSERT_TRUE(index.Insert(1, key, tips[chain], state).ok());
      tips[chain] = key;
    }
  }
  const auto bytes_each = [&] {
    const ChainIndexStats stats = index.Stats();
    return static_cast<double>(stats.table_bytes + stats.run_bytes) /
           static_cast<double>(stats.blocks);
  };
  index.CheckInvariants();
  EXPECT_LT(bytes_each(), 32 + 70);
  const uint64_t run_bytes = index.Stats().run_bytes;
  const uint64_t blocks = index.block_count();
  index.VisitColdestLeaves([&](BlockRef ref) {
    EXPECT_TRUE(index.RemoveLeaf(ref).ok());
    return index.block_count() > blocks / 3;
  });
  index.CheckInvariants();
  EXPECT_LT(index.Stats().run_bytes, run_bytes * 6 / 10);  // a third, headers, one chunk a size
  index.VisitColdestLeaves([&](BlockRef ref) { return index.RemoveLeaf(ref).ok(); });
  EXPECT_EQ(index.block_count(), 0u);
  index.CheckInvariants();
}

TEST(ChainIndexTest, SomeLeafIsALeafAndAnyOfThem) {
  ChainIndex index;
  EXPECT_FALSE(index.SomeLeaf(1).has_value());
  std::set<BlockKey> leaves;
  for (uint64_t chain = 0; chain < 20; ++chain) {
    BlockKey tip;
    for (uint64_t ordinal = 0; ordinal < 1 + chain; ++ordinal) {
      const BlockKey key = ChainKey(tip, 100 * chain + ordinal);
      ASSERT_TRUE(index.Insert(1, key, tip, SomeState(1)).ok());
      tip = key;
    }
    leaves.insert(tip);
  }
  std::mt19937_64 random(5);
  const auto look = [&] {
    std::set<BlockKey> seen;
    for (int i = 0; i < 2000; ++i) {
      const std::optional<BlockRef> leaf = index.SomeLeaf(random());
      if (!leaf) continue;
      EXPECT_EQ(index.child_count(*leaf), 0u);
      seen.insert(index.key(*leaf));
    }
    return seen;
  };
  EXPECT_EQ(look(), leaves);
  // Whatever visits and removals leave in the queue.
  index.VisitColdestLeaves([&](BlockRef coldest) {
    const std::optional<BlockRef> other = index.SomeLeaf(random());
    const BlockRef victim = other ? *other : coldest;
    leaves.erase(index.key(victim));
    const BlockRef parent = index.parent(victim);
    const BlockKey above = parent.valid() ? index.key(parent) : BlockKey{};
    EXPECT_TRUE(index.RemoveLeaf(victim).ok());
    if (!above.IsZero()) leaves.insert(above);
    return index.block_count() > 150;
  });
  index.CheckInvariants();
  EXPECT_EQ(look(), leaves);
}

// Names that people make up: 64 digits of which few differ.
TEST(ChainIndexTest, KeysThatHardlyDiffer) {
  ChainIndex index;
  for (uint64_t i = 1; i <= 20'000; ++i) {
    BlockKey low, high;
    for (size_t byte = 0; byte < 8; ++byte) {
      low.bytes[31 - byte] = static_cast<uint8_t>(i >> (8 * byte));
      high.bytes[byte] = static_cast<uint8_t>(i >> (8 * byte));
    }
    ASSERT_TRUE(index.Insert(1, low, BlockKey{}, SomeState(1)).ok());
    ASSERT_TRUE(index.Insert(1, high, BlockKey{}, SomeState(1)).ok());
  }
  index.CheckInvariants();
  EXPECT_LT(index.Stats().table_bytes, 40'000u * 32);
}

TEST(ChainIndexTest, ColdestLeavesComeFirstAndParentsInTheirTurn) {
  ChainIndex index;
  const std::vector<BlockKey> a = InsertChain(index, 1, BlockKey{}, 1, 3);
  const std::vector<BlockKey> b = InsertChain(index, 1, BlockKey{}, 100, 2);
  const auto touch = [&](const BlockKey& key, uint32_t now) {
    index.Touch(*index.Find(1, key), now, false);
  };
  touch(a[0], 30), touch(a[1], 20), touch(a[2], 50);
  touch(b[0], 10), touch(b[1], 40);
  std::vector<BlockKey> seen;
  const auto see = [&](BlockRef ref) {
    seen.push_back(index.key(ref));
    return true;
  };
  index.VisitColdestLeaves(see);
  EXPECT_EQ(seen, (std::vector<BlockKey>{b[1], a[2]}));
  seen.clear();
  index.VisitColdestLeaves(see);  // the same again: nothing was removed
  EXPECT_EQ(seen, (std::vector<BlockKey>{b[1], a[2]}));
  seen.clear();
  index.VisitColdestLeaves([&](BlockRef ref) {
    seen.push_back(index.key(ref));
    EXPECT_TRUE(index.RemoveLeaf(ref).ok());
    return seen.size() < 4;
  });
  EXPECT_EQ(seen, (std::vector<BlockKey>{b[1], b[0], a[2], a[1]}));
  EXPECT_EQ(index.block_count(), 1u);
  index.CheckInvariants();
}

// ---- against a plain map

struct Model {
  struct Block {
    BlockKey parent;
    BlockState state;
    std::set<BlockKey> children;
    BlockRef ref;
    uint32_t ordinal = 0;
  };
  using Name = std::pair<NamespaceId, BlockKey>;
  std::map<Name, Block> blocks;
};

class ChainIndexModelTest : public ::testing::TestWithParam<int> {};

TEST_P(ChainIndexModelTest, AgreesWithAPlainMap) {
  uint64_t seed = std::random_device{}();
  if (const char* given = std::getenv("KVC_SEED")) seed = std::strtoull(given, nullptr, 10);
  std::printf("seed %llu (KVC_SEED)\n", static_cast<unsigned long long>(seed));
  std::mt19937_64 random(seed);
  ChainIndex index;
  Model model;
  std::vector<Model::Name> names;  // all that were ever inserted
  std::vector<BlockRef> removed;
  const int growth = GetParam();  // of 100 steps, how many insert
  const auto some_name = [&]() -> Model::Name {
    return names.empty()
               ? Model::Name{1, ChainKey(BlockKey{}, 0)}
               : names[names.size() - 1 - random() % std::min<size_t>(names.size(), 3000)];
  };
  for (int step = 0; step < 60'000; ++step) {
    const auto dice = static_cast<int>(random() % 100);
    if (dice < growth) {
      // Extends the newest block mostly, so that runs grow; else forks anywhere.
      NamespaceId ns = static_cast<NamespaceId>(1 + random() % 3);
      BlockKey parent;
      if (!names.empty() && random() % 10 != 0) {
        std::tie(ns, parent) = random() % 10 < 8 ? names.back() : some_name();
      }
      const BlockKey key = ChainKey(parent, random() % 4);
      const BlockState state = SomeState(static_cast<uint32_t>(random() % 1'000'000));
      const auto result = index.Insert(ns, key, parent, state);
      const auto known = model.blocks.find({ns, parent});
      if (model.blocks.contains({ns, key})) {
        ASSERT_EQ(result.code(), Code::kExists);
      } else if (!parent.IsZero() && known == model.blocks.end()) {
        ASSERT_EQ(result.code(), Code::kNotFound);
      } else {
        ASSERT_TRUE(result.ok());
        Model::Block& block = model.blocks[{ns, key}];
        block.parent = parent;
        block.state = state;
        block.ref = *result;
        if (!parent.IsZero()) {
          known->second.children.insert(key);
          block.ordinal = known->second.ordinal + 1;
        }
        names.emplace_back(ns, key);
      }
    } else if (dice < 90) {
      const Model::Name name = some_name();
      const auto known = model.blocks.find(name);
      const auto ref = index.Find(name.first, name.second);
      ASSERT_EQ(ref.has_value(), known != model.blocks.end());
      if (!ref) continue;
      ASSERT_EQ(*ref, known->second.ref);
      const Status status = index.RemoveLeaf(*ref);
      if (!known->second.children.empty()) {
        ASSERT_EQ(status.code(), Code::kNotEmpty);
        continue;
      }
      ASSERT_TRUE(status.ok());
      if (!known->second.parent.IsZero()) {
        model.blocks[{name.first, known->second.parent}].children.erase(name.second);
      }
      model.blocks.erase(known);
      removed.push_back(*ref);
    } else if (dice < 95) {
      const auto known = model.blocks.find(some_name());
      if (known == model.blocks.end()) continue;
      known->second.state = SomeState(static_cast<uint32_t>(random() % 1'000'000));
      index.SetState(known->second.ref, known->second.state);
    } else if (dice < 97) {
      const auto known = model.blocks.find(some_name());
      if (known == model.blocks.end()) continue;
      const auto now = static_cast<uint32_t>(1000 + random() % 2000);
      index.Touch(known->second.ref, now, true);
      known->second.state.last_use_s = now;
      known->second.state.hits = static_cast<uint16_t>(known->second.state.hits + 1);
    } else if (dice < 99) {
      // A chain, perhaps with more than is cached, perhaps with something wrong in it.
      const Model::Name tip = some_name();
      std::vector<BlockKey> keys;
      for (auto at = model.blocks.find(tip); at != model.blocks.end();
           at = model.blocks.find({tip.first, at->second.parent})) {
        keys.insert(keys.begin(), at->first.second);
      }
      if (random() % 4 == 0) {
        keys.erase(keys.begin(),
                   keys.begin() + static_cast<ptrdiff_t>(random() % (keys.size() + 1)));
      }
      if (random() % 3 == 0) {
        BlockKey parent = keys.empty() ? BlockKey{} : keys.back();
        for (uint64_t more = random() % 40; more > 0; --more) {
          keys.push_back(parent = ChainKey(parent, random() % 2));
        }
      }
      if (random() % 3 == 0 && !keys.empty()) {
        BlockKey& wrong = keys[random() % keys.size()];
        wrong = random() % 2 == 0 ? some_name().second : ChainKey(wrong, 99);
      }
      size_t expected = 0;
      for (; expected < keys.size(); ++expected) {
        const auto at = model.blocks.find({tip.first, keys[expected]});
        if (at == model.blocks.end()) break;
        if (expected > 0 && at->second.parent != keys[expected - 1]) break;
      }
      std::vector<BlockRef> refs(keys.size());
      ASSERT_EQ(index.Match(tip.first, keys, refs.data()), expected);
      for (size_t i = 0; i < expected; ++i) {
        ASSERT_EQ(refs[i], (model.blocks[{tip.first, keys[i]}].ref));
      }
    } else {
      const auto known = model.blocks.find(some_name());
      if (known == model.blocks.end()) continue;
      std::vector<BlockRef> all = index.Subtree(known->second.ref);
      std::set<BlockKey> below = {known->first.second};
      for (size_t i = all.size(); i-- > 0;) {
        const BlockKey key = index.key(all[i]);
        ASSERT_EQ(below.erase(key), 1u);  // a parent came before it
        const auto& children = model.blocks[{known->first.first, key}].children;
        below.insert(children.begin(), children.end());
      }
      ASSERT_TRUE(below.empty());
    }
    if (step % 3000 != 2999) continue;

    index.CheckInvariants();
    ASSERT_EQ(index.block_count(), model.blocks.size());
    std::map<NamespaceId, uint64_t> counts;
    uint64_t leaves = 0;
    for (const auto& [name, block] : model.blocks) {
      ASSERT_TRUE(index.IsCurrent(block.ref));
      ASSERT_TRUE(Same(index.state(block.ref), block.state));
      ASSERT_EQ(index.key(block.ref), name.second);
      ASSERT_EQ(index.parent_key(block.ref), block.parent);
      ASSERT_EQ(index.ordinal(block.ref), block.ordinal);
      ASSERT_EQ(index.child_count(block.ref), block.children.size());
      ASSERT_EQ(index.FindHash(BlockHash62(name.first, name.second)), block.ref);
      ++counts[name.first];
      leaves += block.children.empty() ? 1 : 0;
    }
    ASSERT_EQ(index.Stats().leaves, leaves);
    for (const BlockRef ref : removed) ASSERT_FALSE(index.IsCurrent(ref));
    for (NamespaceId ns = 1; ns <= 3; ++ns) {
      ASSERT_EQ(index.block_count(ns), counts[ns]);
      // In pages of random length.
      std::set<BlockKey> listed;
      uint64_t cookie = 0;
      for (bool more = true; more;) {
        more = false;
        size_t page = 1 + random() % 50;
        index.ListBlocks(ns, cookie, [&](BlockRef ref, uint64_t next) {
          if (page-- == 0) return more = true, false;
          EXPECT_TRUE(listed.insert(index.key(ref)).second);
          cookie = next;
          return true;
        });
      }
      ASSERT_EQ(listed.size(), counts[ns]);
      index.ListLeaves(ns, 0, [&](BlockRef ref, uint64_t) {
        EXPECT_TRUE(model.blocks[std::pair(ns, index.key(ref))].children.empty());
        --leaves;
        return true;
      });
    }
    ASSERT_EQ(leaves, 0u);
    // The coldest leaves, some of which go.
    uint32_t last = 0;
    size_t visited = 0;
    index.VisitColdestLeaves([&](BlockRef ref) {
      const Model::Name name{index.namespace_of(ref), index.key(ref)};
      const auto known = model.blocks.find(name);
      EXPECT_TRUE(known != model.blocks.end() && known->second.children.empty());
      EXPECT_GE(known->second.state.last_use_s, last);
      last = known->second.state.last_use_s;
      if (random() % 4 == 0) {
        const BlockRef parent = index.parent(ref);
        EXPECT_TRUE(index.RemoveLeaf(ref).ok());
        if (parent.valid()) {
          Model::Block& block = model.blocks[{name.first, known->second.parent}];
          block.children.erase(name.second);
          // It comes as a leaf in its turn, which is now if it was used earlier.
          if (block.children.empty()) last = std::min(last, block.state.last_use_s);
        }
        model.blocks.erase(known);
        removed.push_back(ref);
      }
      return ++visited < 100;
    });
    if (removed.size() > 5000) removed.clear();
  }
}

INSTANTIATE_TEST_SUITE_P(Growing, ChainIndexModelTest, ::testing::Values(80));
INSTANTIATE_TEST_SUITE_P(Steady, ChainIndexModelTest, ::testing::Values(50));

}  // namespace
}  // namespace kvcfs::meta
