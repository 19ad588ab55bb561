// bench/data.py from end to end, its short form: every suite works on a mount and beside it, every
// row has a value and a ratio, and what is wrong is said. Times decide nothing here.
#include <filesystem>
#include <set>
#include <string>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "tests/integration/bench_fixture.h"

namespace kvcfs {
namespace {

using nlohmann::json;

class DataBenchTest : public BenchTest {
 protected:
  int Run(const std::string& arguments) const {
    return RunBench("data.py", "--build " + BuildDirectory() + " " + arguments);
  }
};

TEST_F(DataBenchTest, RowsOfAllPlaces) {
  if (!std::filesystem::exists("/dev/fuse")) GTEST_SKIP() << "there is no /dev/fuse here";
  const std::string other = Path("other");
  std::filesystem::create_directory(other);
  ASSERT_EQ(Run("--quick --only read-cold,write,small-files-4k --path other=" + other + " --json " +
                Path("rows.json")),
            0)
      << Read("out") << Read("err");
  const json all = json::parse(Read("rows.json"), nullptr, false);
  ASSERT_TRUE(all.is_object());
  EXPECT_TRUE(all["failed"].empty()) << all["failed"];
  ASSERT_EQ(all["places"].size(), 4u) << all["places"];
  std::set<std::string> rows;
  for (const json& row : all["rows"]) {
    const std::string name = row["suite"].get<std::string>() + "/" + row["row"].get<std::string>();
    rows.insert(name);
    // Only a tmpfs cannot be cold.
    EXPECT_EQ(row["values"].size(), row["suite"] == "read-cold" ? 3u : 4u) << name;
    for (const auto& [place, value] : row["values"].items()) {
      EXPECT_GT(value.get<double>(), 0) << name << " of " << place;
    }
    EXPECT_TRUE(row["ratios"].contains("other")) << name;
  }
  for (const char* name : {"read-cold/read read", "write/one-writer write", "write/direct write",
                           "small-files-4k/create", "small-files-4k/open-read",
                           "small-files-4k/list", "small-files-4k/unlink"}) {
    EXPECT_TRUE(rows.contains(name)) << name;
  }
  EXPECT_TRUE(std::filesystem::is_empty(other)) << "nothing stays behind";
}

TEST_F(DataBenchTest, WhatIsWrongIsSaid) {
  EXPECT_EQ(Run("--path nowhere=" + Path("none")), 2);
  EXPECT_NE(Read("err").find("a directory that is there"), std::string::npos) << Read("err");
  EXPECT_EQ(Run("--only nothing"), 2);
  EXPECT_NE(Read("err").find("small-files-4k"), std::string::npos) << Read("err");
}

}  // namespace
}  // namespace kvcfs
