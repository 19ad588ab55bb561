// The owner of shards goes, again and again, while two mounts work: how long until Match answers
// for all of them, with nothing wrong read and nothing lost. KVC_TEST_FAILOVERS says how often.
#include <cstdlib>

#include "base/crc32c.h"
#include "tests/fault/hosts_fixture.h"

namespace kvcfs::test {
namespace {

using std::chrono::steady_clock;

class FailoverTest : public BusyHostsTest {
 protected:
  static constexpr uint64_t kChains = 64;  // their shards are a good part of the 256

  static BlockKey KeyOf(uint64_t chain) { return *BlockKey::FromHex(Key(1'000'000 + chain)); }

  // Short chains of our own, to be asked for.
  void PublishChains() {
    const auto space = Client().GetSpace("ledger");
    ASSERT_TRUE(space.ok() && *space);
    space_ = (*space)->id;
    for (uint64_t chain = 0; chain < kChains; ++chain) {
      const std::string bytes = Bytes(chain, 1000);
      const auto view = std::as_bytes(std::span(bytes));
      ASSERT_TRUE(Eventually(
          [&] {
            auto facts = Client().Create({space_, KeyOf(chain)}, BlockKey{}, Millis(5000));
            if (!facts.ok()) return false;
            facts->length = static_cast<uint32_t>(bytes.size());
            facts->crc32c = Crc32c(view);
            facts->mtime_s = 1'700'000'000;
            facts->replicas = 2;
            const auto copies = Client().Publish(*facts, std::nullopt, view, Millis(5000));
            return copies.ok() && *copies == 2;
          },
          kLong));
    }
  }
  // Each chain has been found since then.
  bool AllAreMatched() {
    std::vector<uint64_t> left(kChains);
    for (uint64_t chain = 0; chain < kChains; ++chain) left[chain] = chain;
    return Eventually(
        [&] {
          std::erase_if(left, [&](uint64_t chain) {
            const BlockKey key = KeyOf(chain);
            const auto match = Client().Match(space_, std::span(&key, 1), false, Millis(250));
            return match.ok() && match->blocks.size() == 1;
          });
          return left.empty();
        },
        kLong);
  }

  meta::SpaceId space_;
};

TEST_F(FailoverTest, MatchAnswersAgainAndNothingIsLost) {
  PublishChains();
  const char* given = std::getenv("KVC_TEST_FAILOVERS");
  const size_t count = given != nullptr ? std::strtoul(given, nullptr, 10) : 9;
  std::vector<int64_t> took;
  for (size_t i = 0; i < count; ++i) {
    TestServer& server = *servers_[i % 3];
    const size_t how = i / 3 % 3;
    const char* what = std::array{"kill -9", "SIGSTOP", "link down"}[how];
    SCOPED_TRACE(fmt::format("failover {} of {} by {}", i + 1, server.name(), what));
    const auto began = steady_clock::now();
    if (how == 0) server.Kill();
    if (how == 1) server.Pause();
    if (how == 2) network_->CutLink(server.name(), true);
    ASSERT_TRUE(AllAreMatched());
    took.push_back(
        std::chrono::duration_cast<std::chrono::milliseconds>(steady_clock::now() - began).count());
    fmt::print("failover {:>2} of {} by {:<9} {:>5} ms\n", i + 1, server.name(), what, took.back());
    (void)std::fflush(stdout);
    if (how == 0) {
      ASSERT_TRUE(server.StartAndAwait()) << server.LogTail();
    }
    if (how == 1) server.Continue();
    if (how == 2) network_->CutLink(server.name(), false);
    ASSERT_TRUE(AwaitWhole()) << Status().dump(2);
  }
  EXPECT_TRUE(NothingIsLost(*ledger_));
  std::sort(took.begin(), took.end());
  if (took.empty()) return;
  const auto within =
      std::count_if(took.begin(), took.end(), [](int64_t millis) { return millis <= 5000; });
  fmt::print("{} failovers: fastest {} ms, median {} ms, slowest {} ms; {} within 5 s\n",
             took.size(), took.front(), took[took.size() / 2], took.back(), within);
  // 5 s are promised; a machine where all of this runs at once is slow.
  EXPECT_LT(took[took.size() / 2], 15'000);
}

}  // namespace
}  // namespace kvcfs::test
