#include "meta/cluster.h"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

namespace kvcfs::meta {
namespace {

BlockKey Key(uint32_t number) {
  BlockKey key;
  key.bytes[0] = static_cast<uint8_t>(number + 1);
  key.bytes[9] = 7;
  return key;
}

TEST(FactsInChain, SayWhereABlockBelongs) {
  std::vector<FoundBlock> chain;
  for (uint32_t i = 0; i < 130; ++i) chain.push_back({Key(i), 100 + i, 200 + i, 300 + i, {}});
  const SpaceId space{1, 2};

  const BlockFacts first = FactsInChain(space, chain, 0, 2);
  EXPECT_EQ(first.id, (BlockId{space, Key(0)}));
  EXPECT_TRUE(first.parent.IsZero());
  EXPECT_TRUE(first.begins_group());
  EXPECT_FALSE(first.has_parent_elsewhere());

  const BlockFacts inside = FactsInChain(space, chain, 7, 2);
  EXPECT_EQ(inside.anchor, Key(4));
  EXPECT_EQ(inside.parent, Key(6));
  EXPECT_EQ(inside.parent_anchor, Key(4));
  EXPECT_EQ(inside.ordinal, 7u);
  EXPECT_EQ(inside.length, 107u);
  EXPECT_EQ(inside.crc32c, 207u);
  EXPECT_EQ(inside.mtime_s, 307u);
  EXPECT_EQ(inside.replicas, 2);

  const BlockFacts begins = FactsInChain(space, chain, 128, 1);
  EXPECT_TRUE(begins.begins_group());
  EXPECT_TRUE(begins.has_parent_elsewhere());
  EXPECT_EQ(begins.parent_anchor, Key(64));
}

TEST(ClusterStatusText, IsJsonWhateverNamesAreMadeOf) {
  ClusterStatus status;
  status.name = "a\"\xff";
  status.records = 7;
  const auto json = nlohmann::json::parse(ToJson(status), nullptr, false);
  ASSERT_TRUE(json.is_object());
  EXPECT_EQ(json["records"], 7);
  EXPECT_EQ(json["epoch"], 0);
}

TEST(PinnedCopy, LetsGoOnce) {
  int released = 0;
  {
    PinnedCopy a({}, 0, [&] { ++released; });
    PinnedCopy b = std::move(a);
    PinnedCopy c({}, 0, [&] { released += 10; });
    c = std::move(b);
    EXPECT_EQ(released, 10);
  }
  EXPECT_EQ(released, 11);
}

}  // namespace
}  // namespace kvcfs::meta
