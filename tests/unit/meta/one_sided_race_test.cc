// One-sided reads against a writer that changes and reuses what is read: an index, slots with a
// header beside them, and a table of matches. Over TCP here; tests/vm runs the same over verbs,
// with 100,000 reads.
#include <array>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <random>
#include <thread>

#include <gtest/gtest.h>

#include "meta/chain_index.h"
#include "meta/chain_key.h"
#include "meta/index_memory.h"
#include "meta/match_table.h"
#include "meta/remote_prober.h"
#include "meta/slot_headers.h"
#include "tests/unit/rdma/tcp_fixture.h"

namespace kvcfs::meta {
namespace {

using rdma::kLong;

uint64_t ReadsWanted() {
  const std::string text = rdma::TestSetting("KVC_TEST_READS");
  return text.empty() ? 4000 : std::strtoull(text.c_str(), nullptr, 10);
}

class OneSidedRace : public rdma::TcpTest {
 protected:
  // False: the READ failed, which is a failure of the test.
  bool Read(uint64_t region, uint64_t offset, std::span<std::byte> into) {
    const rdma::Reply reply =
        peer_->ReadAndWait({region, offset, static_cast<uint32_t>(into.size())}, into, kLong);
    EXPECT_EQ(reply.code, Code::kOk) << rdma::ToText(reply.head);
    return reply.code == Code::kOk;
  }
  void TearDown() override {
    if (rdma::TestsVerbs()) {
      EXPECT_EQ(peer_->provider(), "verbs") << "queue pairs broke on the way";
    }
  }
};

TEST_F(OneSidedRace, TheIndexNeverLies) {
  constexpr size_t kStay = 50;
  ChainIndex index;
  BlockState state;
  state.length = 4096;
  const auto insert = [&](BlockKey parent, uint64_t first, size_t count) {
    std::vector<BlockKey> keys;
    for (uint64_t id = first; id < first + count; ++id) {
      keys.push_back(ChainKey(parent, id));
      EXPECT_TRUE(index.Insert(1, keys.back(), parent, state).ok());
      parent = keys.back();
    }
    return keys;
  };
  std::vector<std::vector<BlockKey>> stays;
  std::vector<std::vector<BlockRef>> refs;
  for (uint64_t chain = 0; chain < 10; ++chain) {
    stays.push_back(insert({}, 1000 * chain, kStay));
    refs.emplace_back(kStay);
    ASSERT_EQ(index.Match(1, stays.back(), refs.back().data()), kStay);
  }
  // What is here stays within the first region of the index's memory.
  auto* words = reinterpret_cast<std::byte*>(index.memory().At(0));
  const uint64_t region = *server_->Expose({words, IndexMemory::kRegionBytes}, rdma::Access::kRead);

  std::atomic<bool> stop{false};
  std::thread writer([&] {
    std::mt19937_64 random(5);
    std::vector<BlockKey> comes;
    while (!stop) {
      if (comes.size() < 100 || (random() % 2 == 0 && comes.size() < 2000)) {
        const BlockKey parent = random() % 4 == 0 || comes.empty()
                                    ? stays[random() % stays.size()][random() % kStay]
                                    : comes.back();
        const BlockKey key = ChainKey(parent, random() % (1u << 30) * 2);
        if (index.Insert(1, key, parent, state).ok()) comes.push_back(key);
      } else {
        const size_t at = random() % comes.size();
        if (!index.RemoveLeaf(*index.Find(1, comes[at])).ok()) continue;
        comes[at] = comes.back();
        comes.pop_back();
      }
    }
  });
  RemoteProber prober([&](uint64_t address, std::span<uint64_t> into) {
    if (address + into.size_bytes() > IndexMemory::kRegionBytes) return false;
    return Read(region, address, std::as_writable_bytes(into));
  });
  std::mt19937_64 random(6);
  uint64_t answers = 0, busy = 0, wrong = 0;
  std::vector<BlockRef> found(kStay);
  while (prober.read_count() < ReadsWanted() && !HasFailure()) {
    const size_t chain = random() % stays.size(), at = random() % kStay;
    const auto one = prober.Find(1, stays[chain][at]);
    // Odd: the writer makes no such key.
    const auto none = prober.Find(1, ChainKey(stays[chain][at], random() | 1u));
    const auto all = prober.Match(1, stays[chain], found.data());
    for (const Code code : {one.code(), none.code(), all.code()}) {
      EXPECT_TRUE(code == Code::kOk || code == Code::kBusy);
      busy += code == Code::kBusy ? 1 : 0;
    }
    wrong += one.ok() && (!one->has_value() || **one != refs[chain][at]) ? 1 : 0;
    wrong += none.ok() && none->has_value() ? 1 : 0;
    wrong += all.ok() && (*all != kStay || found != refs[chain]) ? 1 : 0;
    answers += 3;
  }
  stop = true;
  writer.join();
  server_->Withdraw(region);
  std::printf("index: %llu reads, %llu answers, %llu busy, %llu rounds anew, %llu wrong\n",
              static_cast<unsigned long long>(prober.read_count()),
              static_cast<unsigned long long>(answers), static_cast<unsigned long long>(busy),
              static_cast<unsigned long long>(prober.round_count()),
              static_cast<unsigned long long>(wrong));
  EXPECT_EQ(wrong, 0u);
  EXPECT_LT(busy, answers);
}

// Slots that are used again: header, data, header. A block's bytes follow from its generation, so
// wrong ones are seen.
TEST_F(OneSidedRace, ASlotThatIsUsedAgainIsAMissAndWithoutTheCheckWrongBytes) {
  constexpr size_t kSlots = 64, kSlotWords = 512;
  using HeaderWords = std::array<uint64_t, kSlotHeaderWords>;
  SlotHeaders headers(8 * kSlots);
  std::vector<uint64_t> data(kSlots * kSlotWords);
  std::vector<std::atomic<uint64_t>> places(kSlots);  // of headers
  const uint64_t header_region = *server_->Expose(headers.memory(), rdma::Access::kRead);
  const uint64_t data_region =
      *server_->Expose(std::as_writable_bytes(std::span(data)), rdma::Access::kRead);
  const auto byte_of = [](uint64_t key, size_t word) { return key * 0x9e3779b97f4a7c15 ^ word; };
  std::atomic<bool> stop{false};
  const auto recycle = [&](size_t slot, uint64_t generation, bool first = false) {
    if (!first) headers.Remove(places[slot]);
    for (size_t word = 0; word < kSlotWords; ++word) {
      layout::StoreWord(&data[slot * kSlotWords + word], byte_of(generation, word));
    }
    SlotHeader header;
    header.id = {{1, 2}, ChainKey({}, slot)};
    header.generation = generation;
    places[slot] = headers.Put(header).value();
  };
  for (size_t slot = 0; slot < kSlots; ++slot) recycle(slot, slot + 1, true);
  std::thread writer([&] {
    std::mt19937_64 random(7);
    while (!stop) {
      recycle(random() % kSlots, random() | 1);
      std::this_thread::yield();
    }
  });
  std::mt19937_64 random(8);
  uint64_t reads = 0, good = 0, missed = 0, wrong = 0, wrong_unchecked = 0;
  while ((reads < ReadsWanted() || good == 0 || wrong_unchecked == 0) && !HasFailure()) {
    const size_t slot = random() % kSlots;
    HeaderWords before{}, after{};
    std::vector<uint64_t> words(kSlotWords);
    const uint64_t header_at = places[slot] * kSlotHeaderBytes;
    if (!Read(header_region, header_at, std::as_writable_bytes(std::span(before))) ||
        !Read(data_region, slot * kSlotWords * sizeof(uint64_t),
              std::as_writable_bytes(std::span(words))) ||
        !Read(header_region, header_at, std::as_writable_bytes(std::span(after)))) {
      break;
    }
    reads += 3;
    const auto header = DecodeSlotHeader(before);
    // Who does not look at versions believes the generation that it found.
    HeaderWords even = before;
    even[0] = even[kSlotHeaderWords / 2] = 0;
    const uint64_t believed = DecodeSlotHeader(even)->generation;
    bool same = true;
    for (size_t word = 0; word < kSlotWords; ++word) {
      same &= words[word] == byte_of(believed, word);
    }
    const bool valid = header && header->generation != 0 && before == after &&
                       header->id.key == ChainKey({}, slot);
    wrong_unchecked += same ? 0 : 1;
    wrong += valid && !same ? 1 : 0;
    (valid ? good : missed) += 1;
  }
  stop = true;
  writer.join();
  server_->Withdraw(header_region);
  server_->Withdraw(data_region);
  std::printf("slots: %llu reads, %llu good, %llu missed, %llu wrong; unchecked: %llu wrong\n",
              static_cast<unsigned long long>(reads), static_cast<unsigned long long>(good),
              static_cast<unsigned long long>(missed), static_cast<unsigned long long>(wrong),
              static_cast<unsigned long long>(wrong_unchecked));
  EXPECT_EQ(wrong, 0u);
  EXPECT_GT(good, 0u);
  EXPECT_GT(wrong_unchecked, 0u) << "the test could not have failed";
}

// Entries of matches that are used again: parts of a group are read at once. What an entry says
// follows from its generation, so a torn one is seen.
TEST_F(OneSidedRace, AMatchThatIsShownAnewIsOneOfThoseShownAndWithoutTheCheckAMixture) {
  constexpr uint64_t kBuckets = 64, kChains = 3;
  constexpr uint32_t kRead = 8;  // buckets, at once
  MatchTable table(kBuckets);
  ClusterView view{.epoch = 3, .nodes = {}};
  view.nodes.push_back({{7, 1}, 1, kRoleBlocks, ""});
  table.Begin(view, 9);
  const uint64_t region = *server_->Expose(table.memory(), rdma::Access::kRead);
  // Three chains for buckets of two: they push each other out.
  const BlockId anchor{{1, 2}, ChainKey({}, 0)};
  const auto id_of = [&](uint64_t chain, uint32_t index) {
    return BlockId{{1, 2}, ChainKey({}, 1 + chain * 100 + index)};
  };
  std::vector<BlockId> ids;
  for (uint64_t chain = 0; chain < kChains; ++chain) {
    for (uint32_t i = 0; i < kGroupBlocksMax; ++i) ids.push_back(id_of(chain, i));
  }
  const auto number = [](uint64_t generation, uint32_t salt) {
    return static_cast<uint32_t>((generation * 0x9e3779b97f4a7c15 + salt) >> 20);
  };
  const auto is_whole = [&](const MatchEntry& entry, uint32_t index) {
    const uint64_t generation = entry.generations[0];
    return entry.epoch == 3 && entry.incarnation == 9 && entry.ordinal == index + 64 &&
           entry.length == number(generation, 1) && entry.crc32c == number(generation, 2) &&
           entry.mtime_s == number(generation, 3) && entry.children == number(generation, 4) &&
           entry.parent == generation;
  };
  std::atomic<bool> stop{false};
  std::thread writer([&] {
    std::mt19937_64 random(9);
    std::vector<uint32_t> places(ids.size());
    while (!stop) {
      const size_t at = random() % ids.size();
      const auto index = static_cast<uint32_t>(at % kGroupBlocksMax);
      if (random() % 4 == 0) {
        table.Remove(places[at], ids[at]);
        continue;
      }
      const uint64_t generation = random() | 1;
      FoundBlock block{
          ids[at].key, number(generation, 1), number(generation, 2), number(generation, 3),
          {},          number(generation, 4)};
      block.places.push_back({{7, 1}, generation});
      BlockKey parent;
      std::memcpy(parent.bytes.data(), &generation, sizeof(generation));
      places[at] = table.Put(anchor, index, ids[at], parent, index + 64, block).value();
    }
  });
  uint64_t reads = 0, good = 0, changing = 0, wrong = 0, wrong_unchecked = 0;
  std::mt19937_64 random(10);
  std::vector<uint64_t> words(kRead * kMatchBucketWords);
  while ((reads < ReadsWanted() || good == 0 || wrong_unchecked == 0) && !HasFailure()) {
    const auto first = static_cast<uint32_t>(random() % (kGroupBlocksMax - kRead + 1));
    const uint64_t offset = (MatchBucketOf(anchor, kBuckets) + first) * kMatchBucketBytes;
    if (!Read(region, offset, std::as_writable_bytes(std::span(words)))) break;
    ++reads;
    for (uint32_t i = first; i < first + kRead; ++i) {
      auto bucket =
          std::span(words).subspan((i - first) * kMatchBucketWords).first<kMatchBucketWords>();
      for (uint64_t chain = 0; chain < kChains; ++chain) {
        const MatchLookup found = LookUpMatch(bucket, ids[chain * kGroupBlocksMax + i]);
        changing += found.changing ? 1 : 0;
        if (!found.entry) continue;
        const bool whole = is_whole(*found.entry, i);
        (whole ? good : wrong) += 1;
      }
      // Who does not look at versions believes what it found.
      for (size_t entry = 0; entry < kMatchBucketEntries; ++entry) {
        const auto each = bucket.subspan(entry * kMatchEntryWords).first<kMatchEntryWords>();
        each[0] = each[kMatchEntryWords - 1] = 0;
        const auto believed = DecodeMatchEntry(each);
        bool is_one = false;
        for (uint64_t chain = 0; chain < kChains && believed->epoch != 0; ++chain) {
          is_one |= believed->id == ids[chain * kGroupBlocksMax + i];
        }
        wrong_unchecked += is_one && !is_whole(*believed, i) ? 1 : 0;
      }
    }
  }
  stop = true;
  writer.join();
  server_->Withdraw(region);
  std::printf("matches: %llu reads, %llu good, %llu changing, %llu wrong; unchecked: %llu wrong\n",
              static_cast<unsigned long long>(reads), static_cast<unsigned long long>(good),
              static_cast<unsigned long long>(changing), static_cast<unsigned long long>(wrong),
              static_cast<unsigned long long>(wrong_unchecked));
  EXPECT_EQ(wrong, 0u);
  EXPECT_GT(good, 0u);
  EXPECT_GT(wrong_unchecked, 0u) << "the test could not have failed";
}

}  // namespace
}  // namespace kvcfs::meta
