#include "meta/remote_prober.h"

#include <atomic>
#include <random>
#include <thread>

#include <gtest/gtest.h>

#include "meta/chain_key.h"
#include "meta/index_memory.h"

namespace kvcfs::meta {
namespace {

BlockState SomeState() {
  BlockState state;
  state.length = 4096;
  return state;
}

ReadWords LocalReads(const ChainIndex& index) {
  return [&index](uint64_t address, std::span<uint64_t> words) {
    return index.memory().Read(address, words);
  };
}

std::vector<BlockKey> InsertChain(ChainIndex& index, BlockKey parent, uint64_t first_id,
                                  size_t count) {
  std::vector<BlockKey> keys;
  for (uint64_t id = first_id; id < first_id + count; ++id) {
    const BlockKey key = ChainKey(parent, id);
    EXPECT_TRUE(index.Insert(1, key, parent, SomeState()).ok());
    keys.push_back(parent = key);
  }
  return keys;
}

TEST(RemoteProberTest, FindsWhatTheIndexFinds) {
  ChainIndex index;
  RemoteProber prober(LocalReads(index));
  std::vector<BlockKey> keys;
  for (uint64_t chain = 0; chain < 300; ++chain) {
    const auto more = InsertChain(index, BlockKey{}, 1000 * chain, 30);
    keys.insert(keys.end(), more.begin(), more.end());
  }
  for (const BlockKey& key : keys) {
    const auto found = prober.Find(1, key);
    ASSERT_TRUE(found.ok()) << found.error().text;
    EXPECT_EQ(*found, index.Find(1, key));
    EXPECT_EQ(*prober.Find(2, key), std::nullopt);
  }
  for (uint64_t id = 0; id < 1000; ++id) {
    EXPECT_EQ(*prober.Find(1, ChainKey(keys[0], 1'000'000 + id)), std::nullopt);
  }
  // At most one round for the root that became old while the index grew.
  EXPECT_LE(prober.round_count(), 1u);
}

TEST(RemoteProberTest, MatchesAlongRunsWithFewReads) {
  ChainIndex index;
  const std::vector<BlockKey> trunk = InsertChain(index, BlockKey{}, 1, 40);
  const std::vector<BlockKey> branch = InsertChain(index, trunk[19], 1000, 40);
  std::vector<BlockKey> keys(trunk.begin(), trunk.begin() + 20);
  keys.insert(keys.end(), branch.begin(), branch.end());
  keys.push_back(ChainKey(keys.back(), 7));  // not cached
  RemoteProber prober(LocalReads(index));
  std::vector<BlockRef> refs(keys.size()), expected(keys.size());
  ASSERT_EQ(index.Match(1, keys, expected.data()), 60u);
  const auto matched = prober.Match(1, keys, refs.data());
  ASSERT_TRUE(matched.ok());
  EXPECT_EQ(*matched, 60u);
  for (size_t i = 0; i < 60; ++i) EXPECT_EQ(refs[i], expected[i]);
  EXPECT_LE(prober.read_count(), 30u);  // three probes, not sixty
  const std::vector<BlockKey> mixed = {trunk[0], trunk[1], branch[0]};
  EXPECT_EQ(*prober.Match(1, mixed, refs.data()), 2u);
}

TEST(RemoteProberTest, SaysWhyItCannot) {
  RemoteProber none([](uint64_t, std::span<uint64_t>) { return false; });
  EXPECT_EQ(none.Find(1, ChainKey(BlockKey{}, 1)).code(), Code::kUnavailable);
  RemoteProber zeros([](uint64_t, std::span<uint64_t> words) {
    std::fill(words.begin(), words.end(), 0);
    return true;
  });
  EXPECT_EQ(zeros.Find(1, ChainKey(BlockKey{}, 1)).code(), Code::kInvalid);
  ChainIndex index;
  InsertChain(index, BlockKey{}, 1, 10);
  // A root and nothing else that makes sense: it gives up.
  std::mt19937_64 random(5);
  RemoteProber garbage([&](uint64_t address, std::span<uint64_t> words) {
    if (address == layout::kRootAddress) return index.memory().Read(address, words);
    for (uint64_t& word : words) word = random();
    return true;
  });
  EXPECT_EQ(garbage.Find(1, ChainKey(BlockKey{}, 1)).code(), Code::kBusy);
}

// A writer changes everything around some chains that stay. Readers must always find those, where
// they are, and never what was not there.
TEST(RemoteProberTest, AnswersAreTrueWhileTheIndexChanges) {
  constexpr uint64_t kStays = 40, kStayBlocks = 50;
  ChainIndex index;
  std::vector<std::vector<BlockKey>> stays;
  std::vector<std::vector<BlockRef>> refs;
  for (uint64_t chain = 0; chain < kStays; ++chain) {
    stays.push_back(InsertChain(index, BlockKey{}, 1000 * chain, kStayBlocks));
    refs.emplace_back(kStayBlocks);
    ASSERT_EQ(index.Match(1, stays.back(), refs.back().data()), kStayBlocks);
  }
  std::atomic<bool> stop{false};
  std::atomic<uint64_t> answers{0}, rounds{0}, busy{0};
  const auto reader = [&](uint64_t seed) {
    std::mt19937_64 random(seed);
    RemoteProber prober(LocalReads(index));
    std::vector<BlockRef> found(kStayBlocks);
    while (!stop.load()) {
      const size_t chain = random() % kStays, at = random() % kStayBlocks;
      const auto one = prober.Find(1, stays[chain][at]);
      if (one.code() == Code::kBusy) {
        ++busy;
      } else {
        ASSERT_TRUE(one.ok() && one->has_value());
        ASSERT_EQ(**one, refs[chain][at]);
      }
      const auto none = prober.Find(1, ChainKey(stays[chain][at], random() | 1u << 31));
      ASSERT_TRUE(none.code() == Code::kBusy || (none.ok() && !none->has_value()));
      const auto all = prober.Match(1, stays[chain], found.data());
      if (all.ok()) {
        ASSERT_EQ(*all, kStayBlocks);
        ASSERT_EQ(found, refs[chain]);
      }
      ++answers;
    }
    rounds += prober.round_count();
  };
  std::thread first(reader, 1), second(reader, 2);

  std::mt19937_64 random(3);
  std::vector<BlockKey> comes;  // keys that come and go, forks of the chains that stay among them
  // Until the readers have been met by every kind of change often enough.
  for (uint64_t step = 0; step < 150'000 || answers.load() < 2000; ++step) {
    if (comes.size() < 200 || (random() % 100 < 52 && comes.size() < 60'000)) {
      BlockKey parent;
      if (random() % 8 != 0) {
        parent = random() % 4 == 0 || comes.empty()
                     ? stays[random() % kStays][random() % kStayBlocks]
                     : comes[comes.size() - 1 - random() % std::min<size_t>(comes.size(), 20)];
      }
      const BlockKey key = ChainKey(parent, random() % (1u << 30) * 2);
      if (index.Insert(1, key, parent, SomeState()).ok()) comes.push_back(key);
    } else {
      const size_t at = random() % comes.size();
      if (!index.RemoveLeaf(*index.Find(1, comes[at])).ok()) continue;
      comes[at] = comes.back();
      comes.pop_back();
    }
  }
  stop = true;
  first.join();
  second.join();
  index.CheckInvariants();
  std::printf("%llu answers, %llu rounds begun anew, %llu busy\n",
              static_cast<unsigned long long>(answers), static_cast<unsigned long long>(rounds),
              static_cast<unsigned long long>(busy));
  EXPECT_LT(busy.load() * 100, answers.load() + 100);
  RemoteProber prober(LocalReads(index));
  for (const BlockKey& key : comes) ASSERT_EQ(*prober.Find(1, key), index.Find(1, key));
}

}  // namespace
}  // namespace kvcfs::meta
