// bench/paper.sh from end to end on a small trace: all backends answer rightly (it fails if one
// does not), and the JSON has the promised shape. Times decide nothing here.
#include <cstdlib>
#include <set>
#include <string>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "tests/integration/bench_fixture.h"

namespace kvcfs {
namespace {

using nlohmann::json;

bool Installed(const std::string& program) {
  return std::system(("command -v " + program + " >/dev/null 2>&1").c_str()) == 0;
}

class PaperTest : public BenchTest {
 protected:
  int Run(const std::string& arguments) const {
    return RunBench("paper.sh", "--no-build --build " + BuildDirectory() + " " + arguments);
  }
};

TEST_F(PaperTest, JsonAndReport) {
  ASSERT_EQ(Run("--limit 60 --open-seconds 0.2 --json " + Path("rows.json") + " --report " +
                Path("page.html")),
            0)
      << Read("out") << Read("err");
  const json all = json::parse(Read("rows.json"), nullptr, false);
  ASSERT_TRUE(all.is_object());

  const std::set<std::string> transports = {"inproc", "tcp", "unix", "model"};
  std::set<std::string> backends;
  ASSERT_TRUE(all["rows"].is_array());
  for (const json& row : all["rows"]) {
    SCOPED_TRACE(row.dump());
    ASSERT_EQ(row.size(), 14u);
    EXPECT_TRUE(row["keys"] == "int" || row["keys"] == "sha256");
    EXPECT_TRUE(row["cache"] == "cold" || row["cache"] == "warm");
    EXPECT_TRUE(transports.contains(row["transport"].get<std::string>()));
    for (const char* number : {"clients", "p50_us", "p99_us", "p999_us", "requests_per_second",
                               "round_trips", "reads", "bytes", "server_cpu_us"}) {
      ASSERT_TRUE(row[number].is_number()) << number;
      EXPECT_GE(row[number].get<double>(), 0) << number;
    }
    EXPECT_LE(row["p50_us"].get<double>(), row["p99_us"].get<double>());
    EXPECT_LE(row["p99_us"].get<double>(), row["p999_us"].get<double>());
    if (row["transport"] != "inproc") {
      EXPECT_GT(row["bytes"].get<double>(), 0);
    }
    backends.insert(row["backend"].get<std::string>() + " " + row["transport"].get<std::string>());
  }
  std::set<std::string> wanted = {
      "kvcfs inproc",  "hash-table inproc", "radix-tree inproc",     "rocksdb inproc",
      "kvcfs model",   "flat-hash model",   "kvcfs-one-sided model", "batch-rpc model",
      "sherman model", "chime model"};
  if (Installed("etcd")) {
    wanted.insert("kvcfs tcp");
  } else {
    std::printf("etcd is not installed (tools/deps/install.sh): kvcfs over TCP is not tried\n");
  }
  if (Installed("redis-server")) {
    for (const char* way : {"get", "pipeline", "mget", "range"}) {
      for (const char* transport : {"tcp", "unix"}) {
        wanted.insert(std::string("redis-") + way + " " + transport);
      }
    }
  } else {
    std::printf("redis-server is not installed (tools/deps/install.sh): Redis is not tried\n");
  }
  EXPECT_EQ(backends, wanted) << all["missing"].dump();

  std::set<std::string> policies;
  for (const json& row : all["policies"]) {
    ASSERT_EQ(row.size(), 3u);
    policies.insert(row["policy"].get<std::string>());
    EXPECT_GT(row["capacity_blocks"].get<uint64_t>(), 0u);
    EXPECT_GE(row["hit_rate"].get<double>(), 0);
    EXPECT_LE(row["hit_rate"].get<double>(), 1);
  }
  EXPECT_EQ(policies, (std::set<std::string>{"fifo", "lru", "leaf-lru", "s3fifo", "sieve",
                                             "wtinylfu", "kvcfs", "belady"}));

  const std::string page = Read("page.html");
  EXPECT_NE(page.find("</html>"), std::string::npos);
  EXPECT_NE(page.find("<svg"), std::string::npos);
  for (const char* elsewhere : {"src=", "href=", "@import", "url("}) {
    EXPECT_EQ(page.find(elsewhere), std::string::npos) << "the page must stand alone";
  }
}

TEST_F(PaperTest, SaysWhatIsWrong) {
  EXPECT_EQ(Run("--no-such-option"), 2);
  EXPECT_NE(Read("err").find("--no-such-option"), std::string::npos);
  EXPECT_EQ(Run("--limit many"), 2);
  EXPECT_EQ(Run("--trace " + Path("no.jsonl")), 1);
  EXPECT_NE(Read("err").find("no.jsonl"), std::string::npos);
}

}  // namespace
}  // namespace kvcfs
