#include "meta/flat_map.h"

#include <random>
#include <unordered_map>

#include <gtest/gtest.h>

namespace kvcfs::meta {
namespace {

TEST(FlatMapTest, AgreesWithAPlainMap) {
  std::mt19937_64 random(4);
  FlatMap map;
  std::unordered_map<uint64_t, uint32_t> model;
  EXPECT_EQ(map.Get(5), std::nullopt);
  map.Erase(5);
  for (int step = 0; step < 300'000; ++step) {
    const uint64_t key = 1 + random() % 3000;
    if (random() % 2 == 0) {
      map.Erase(key);
      model.erase(key);
    } else {
      const auto value = static_cast<uint32_t>(random());
      map.Set(key, value);
      model[key] = value;
    }
    const uint64_t asked = 1 + random() % 3000;
    const auto found = model.find(asked);
    ASSERT_EQ(map.Get(asked), found == model.end() ? std::nullopt : std::optional(found->second));
    ASSERT_EQ(map.size(), model.size());
  }
  EXPECT_LE(map.bytes(), 4096u * 16);
}

}  // namespace
}  // namespace kvcfs::meta
