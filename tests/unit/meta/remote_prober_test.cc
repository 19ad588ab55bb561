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

// Chains that stay, and keys that come and go around them.
class Churn {
 public:
  static constexpr size_t kStayBlocks = 50;

  Churn(size_t comes_max, size_t stay_chains) : comes_max_(comes_max) {
    for (uint64_t chain = 0; chain < stay_chains; ++chain) {
      stays.push_back(InsertChain(index, BlockKey{}, 1000 * chain, kStayBlocks));
      refs.emplace_back(kStayBlocks);
      EXPECT_EQ(index.Match(1, stays.back(), refs.back().data()), kStayBlocks);
    }
  }

  void Step() {
    if (comes.size() < std::min<size_t>(comes_max_, 200) / 2 ||
        (random_() % 100 < 52 && comes.size() < comes_max_)) {
      BlockKey parent;
      if (random_() % 8 != 0) {
        parent = random_() % 4 == 0 || comes.empty()
                     ? stays[random_() % stays.size()][random_() % kStayBlocks]
                     : comes[comes.size() - 1 - random_() % std::min<size_t>(comes.size(), 20)];
      }
      const BlockKey key = ChainKey(parent, random_() % (1u << 30) * 2);
      if (index.Insert(1, key, parent, SomeState()).ok()) comes.push_back(key);
    } else {
      const size_t at = random_() % comes.size();
      if (!index.RemoveLeaf(*index.Find(1, comes[at])).ok()) return;
      comes[at] = comes.back();
      comes.pop_back();
    }
  }

  ChainIndex index;
  std::vector<std::vector<BlockKey>> stays;
  std::vector<std::vector<BlockRef>> refs;
  std::vector<BlockKey> comes;

 private:
  const size_t comes_max_;
  std::mt19937_64 random_{3};
};

// One-sided reads bring cache lines in any order; here the writer is at work between any two, with
// what is asked for and with its neighbours. What an answer says must have been true at some moment
// during the question.
TEST(RemoteProberTest, AnswersAreTrueWhateverHappensBetweenLines) {
  constexpr size_t kLineWords = 8;
  std::mt19937_64 random(9);
  uint64_t rounds = 0;
  for (int life = 0; life < 60; ++life) {
    // Sometimes so few that all share a page or two, sometimes enough for segments to be split.
    Churn churn(life % 4 == 0 ? 4000 : 60, life % 4 == 0 ? 40 : 1);
    BlockKey asked, parent;
    bool was_there = false, was_missing = false, comes = false;
    const auto look = [&] { (churn.index.Find(1, asked) ? was_there : was_missing) = true; };
    const auto toggle = [&] {
      if (!comes) return;
      if (const auto ref = churn.index.Find(1, asked)) {
        (void)churn.index.RemoveLeaf(*ref);
      } else {
        (void)churn.index.Insert(1, asked, parent, SomeState());
      }
      look();
    };
    RemoteProber prober([&](uint64_t address, std::span<uint64_t> words) {
      std::vector<std::pair<uint64_t, std::span<uint64_t>>> lines;
      for (size_t at = 0; at < words.size();) {
        const size_t in_line = kLineWords - address / 8 % kLineWords;
        const size_t count = std::min(in_line, words.size() - at);
        lines.emplace_back(address, words.subspan(at, count));
        address += 8 * count;
        at += count;
      }
      std::shuffle(lines.begin(), lines.end(), random);
      for (const auto& [from, to] : lines) {
        if (random() % 20 == 0) toggle();
        for (uint64_t steps = random() % 10 == 0 ? random() % 60 : 0; steps > 0; --steps) {
          churn.Step();
        }
        look();
        if (random() % 20 == 0) toggle();
        if (!churn.index.memory().Read(from, to)) return false;
      }
      return true;
    });
    std::vector<BlockRef> found(Churn::kStayBlocks);
    for (int question = 0; question < 1000; ++question) {
      const size_t chain = random() % churn.stays.size(), at = random() % Churn::kStayBlocks;
      comes = question % 3 != 0;
      parent = churn.stays[chain][at];
      asked = comes ? ChainKey(parent, 1) : parent;  // odd: Churn makes no such key
      was_there = was_missing = false;
      look();
      const auto one = prober.Find(1, asked);
      ASSERT_TRUE(one.ok()) << one.error().text;
      ASSERT_TRUE(*one ? was_there : was_missing);
      if (!comes) {
        ASSERT_EQ(**one, churn.refs[chain][at]);
      }
      if (churn.index.Find(1, asked)) toggle();
      if (question % 10 == 0) {
        comes = true;
        asked = ChainKey(churn.stays[chain].back(), 1);
        parent = churn.stays[chain].back();
        const auto all = prober.Match(1, churn.stays[chain], found.data());
        ASSERT_TRUE(all.ok());
        ASSERT_EQ(*all, Churn::kStayBlocks);
        ASSERT_EQ(found, churn.refs[chain]);
        if (churn.index.Find(1, asked)) toggle();
      }
    }
    churn.index.CheckInvariants();
    rounds += prober.round_count();
  }
  EXPECT_GT(rounds, 1000u);
}

// The same with threads: readers must always find what stays, where it is, and never what was not
// there. (For the sanitizer, too: nothing here is a data race.)
TEST(RemoteProberTest, AnswersAreTrueWhileTheIndexChanges) {
  Churn churn(60'000, 40);
  ChainIndex& index = churn.index;
  const auto& stays = churn.stays;
  const auto& refs = churn.refs;
  std::atomic<bool> stop{false};
  std::atomic<uint64_t> answers{0}, rounds{0}, busy{0};
  const auto reader = [&](uint64_t seed) {
    std::mt19937_64 random(seed);
    RemoteProber prober(LocalReads(index));
    std::vector<BlockRef> found(Churn::kStayBlocks);
    while (!stop.load()) {
      const size_t chain = random() % stays.size(), at = random() % Churn::kStayBlocks;
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
        ASSERT_EQ(*all, Churn::kStayBlocks);
        ASSERT_EQ(found, refs[chain]);
      }
      ++answers;
    }
    rounds += prober.round_count();
  };
  std::thread first(reader, 1), second(reader, 2);

  // Until the readers have been met by every kind of change often enough.
  for (uint64_t step = 0; step < 150'000 || answers.load() < 2000; ++step) churn.Step();
  stop = true;
  first.join();
  second.join();
  index.CheckInvariants();
  std::printf("%llu answers, %llu rounds begun anew, %llu busy\n",
              static_cast<unsigned long long>(answers), static_cast<unsigned long long>(rounds),
              static_cast<unsigned long long>(busy));
  EXPECT_LT(busy.load() * 100, answers.load() + 100);
  RemoteProber prober(LocalReads(index));
  for (const BlockKey& key : churn.comes) ASSERT_EQ(*prober.Find(1, key), index.Find(1, key));
}

}  // namespace
}  // namespace kvcfs::meta
