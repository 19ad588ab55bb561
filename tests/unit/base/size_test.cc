#include "base/size.h"

#include <gtest/gtest.h>

namespace kvcfs {
namespace {

TEST(Size, UnitsOfTheContract) {
  EXPECT_EQ(ParseSize("64KiB").value(), 64u << 10);
  EXPECT_EQ(ParseSize("2MiB").value(), 2u << 20);
  EXPECT_EQ(ParseSize("8GiB").value(), uint64_t{8} << 30);
  EXPECT_EQ(ParseSize("1TiB").value(), uint64_t{1} << 40);
  // K, M, G, T alone mean the same.
  EXPECT_EQ(ParseSize("64K").value(), 64u << 10);
  EXPECT_EQ(ParseSize("3G").value(), uint64_t{3} << 30);
  EXPECT_EQ(ParseSize("4096").value(), 4096u);
  EXPECT_EQ(ParseSize("512B").value(), 512u);
  EXPECT_EQ(ParseSize("1.5MiB").value(), 3u << 19);
  EXPECT_EQ(ParseSize("0").value(), 0u);
}

TEST(Size, RefusesAnythingElse) {
  for (const char* text : {"", "KiB", "-1", "5 apples", "1MB", "1mib", "1MiBs", "0x10", "1e30",
                           "nan", "inf", "99999999999TiB"}) {
    const Result<uint64_t> size = ParseSize(text);
    ASSERT_FALSE(size.ok()) << text << " gave " << size.value();
    EXPECT_EQ(size.code(), Code::kInvalid);
    EXPECT_NE(size.error().text.find(text), std::string::npos) << size.error().text;
  }
}

TEST(Size, FormatParsesBack) {
  for (const uint64_t bytes :
       {uint64_t{0}, uint64_t{1}, uint64_t{1023}, uint64_t{1024}, uint64_t{65536},
        uint64_t{3} << 19, uint64_t{5} << 30, (uint64_t{1} << 40) + 4096}) {
    EXPECT_EQ(ParseSize(FormatSize(bytes)).value(), bytes) << FormatSize(bytes);
  }
  EXPECT_EQ(FormatSize(64u << 20), "64MiB");
  EXPECT_EQ(FormatSizeShort(3u << 19), "1.5 MiB");
  EXPECT_EQ(FormatSizeShort(12), "12 B");
}

}  // namespace
}  // namespace kvcfs
