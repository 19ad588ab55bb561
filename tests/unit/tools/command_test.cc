// The command line itself: what it says and with which exit code it ends, without a mount.
#include <array>
#include <cstdio>
#include <fstream>
#include <set>
#include <string>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <sys/wait.h>

namespace kvcfs::tools {
namespace {

struct Outcome {
  int exit_code = -1;
  std::string out;  // stdout and stderr together
};

Outcome Kvcfs(const std::string& arguments) {
  Outcome outcome;
  std::FILE* pipe = ::popen((std::string(KVC_COMMAND) + " " + arguments).c_str(), "r");
  std::array<char, 4096> piece{};
  while (const size_t got = std::fread(piece.data(), 1, piece.size(), pipe)) {
    outcome.out.append(piece.data(), got);
  }
  const int status = ::pclose(pipe);
  if (WIFEXITED(status)) outcome.exit_code = WEXITSTATUS(status);
  return outcome;
}

const std::string kKey(64, 'a');

TEST(Command, EveryVerbTeachesByExample) {
  const Outcome top = Kvcfs("--help");
  EXPECT_EQ(top.exit_code, 0);
  for (const char* verb :
       {"lookup", "stat", "top", "drop", "replay", "trace", "trace synth", "trace info", "doctor",
        "version", "serve", "cluster status", "cluster drain", "cluster watch"}) {
    const Outcome help = Kvcfs(std::string(verb) + " --help");
    EXPECT_EQ(help.exit_code, 0) << verb;
    const size_t example = help.out.find("\nExample:");
    ASSERT_NE(example, std::string::npos) << help.out;
    EXPECT_NE(help.out.find("\n  kvcfs " + std::string(verb), example), std::string::npos)
        << help.out;
    EXPECT_TRUE(help.out.ends_with("\n")) << verb;
    const std::string word = std::string(verb).substr(0, std::string(verb).find(' '));
    EXPECT_NE(top.out.find("\n  " + word), std::string::npos) << verb;
  }
}

TEST(Command, MisuseIsTwoAndNamesTheThing) {
  const struct {
    const char* arguments;
    std::string says;
  } cases[] = {
      {"", "A subcommand is required"},
      {"bogus", "'bogus' is not a verb"},
      {"lookup", "NAMESPACE is required"},
      {"lookup /tmp short", "'short' is not a key"},
      {"lookup /tmp", "no keys given"},
      {"lookup /tmp --bogus", "--bogus"},
      {"doctor --data /proc/version", "no directory"},
      {"doctor --dram lots", "--dram"},
      {"serve", "--cluster etcd://"},
      {"serve --cluster etcd://127.0.0.1:1 --listen 192.0.2.1:1", "--tls-cert"},
      {"serve --cluster etcd://127.0.0.1:1 --roles cook", "'cook'"},
      {"cluster status", "--cluster etcd://"},
      {"cluster drain --cluster etcd://127.0.0.1:1", "NODE is required"},
      {"cluster watch --interval 0 --cluster etcd://127.0.0.1:1", "--interval"},
      {"drop /tmp NOTAKEY", "'NOTAKEY' is not a key"},
      {"stat /proc", "/proc is not in a mounted kvcfs"},
      {"top /proc --once", "/proc is not in a mounted kvcfs"},
      {"trace", "A subcommand is required"},
      {"trace synth --requests 0", "--requests must be at least 1"},
      {"trace synth --requests x", "--requests"},
      {"replay x --mount /proc/y --speed slow", "--speed slow"},
      {"replay x --mount /proc/y --block-bytes 5apples", "'5apples' is not a size"},
      {"replay x --mount /proc/y --block-bytes 100MiB", "1 byte to 64MiB"},
      {"replay x --mount /proc/y --concurrency 0", "--concurrency"},
  };
  for (const auto& one : cases) {
    const Outcome outcome = Kvcfs(std::string(one.arguments) + " 2>&1 </dev/null");
    EXPECT_EQ(outcome.exit_code, 2) << one.arguments << ": " << outcome.out;
    EXPECT_NE(outcome.out.find(one.says), std::string::npos) << outcome.out;
    EXPECT_TRUE(outcome.out.starts_with("kvcfs")) << outcome.out;
  }
}

TEST(Command, MessagesGoToStderr) {
  EXPECT_EQ(Kvcfs("lookup /tmp short 2>/dev/null").out, "");
  EXPECT_EQ(Kvcfs("bogus 2>/dev/null").out, "");
}

TEST(Command, FailureIsOne) {
  const Outcome none = Kvcfs("lookup /no/such " + kKey + " 2>&1");
  EXPECT_EQ(none.exit_code, 1);
  EXPECT_NE(none.out.find("there is no namespace /no/such"), std::string::npos) << none.out;
  EXPECT_EQ(Kvcfs("trace info /no/such 2>/dev/null").exit_code, 1);
  EXPECT_EQ(Kvcfs("trace synth --output /no/such/file 2>/dev/null").exit_code, 1);
  EXPECT_EQ(Kvcfs("version >/dev/full 2>/dev/null").exit_code, 1);
  EXPECT_EQ(Kvcfs("trace synth >/dev/full 2>/dev/null").exit_code, 1);
}

TEST(Command, Json) {
  EXPECT_TRUE(nlohmann::json::parse(Kvcfs("version --json").out).at("version").is_string());
  const std::string path = testing::TempDir() + "command_test.jsonl";
  EXPECT_EQ(Kvcfs("trace synth --requests 50 --seed 3 --output " + path).exit_code, 0);
  const nlohmann::json info = nlohmann::json::parse(Kvcfs("trace info --json " + path).out);
  EXPECT_EQ(info.at("requests"), 50);
  EXPECT_EQ(info.at("two_parents"), 0);
  // To standard output comes the same.
  const std::string text = Kvcfs("trace synth --requests 50 --seed 3").out;
  std::ifstream file(path);
  EXPECT_EQ(text, std::string(std::istreambuf_iterator<char>(file), {}));
}

// On this host, whatever is found here: unit/tools/doctor_test knows hosts with every fault.
TEST(Command, DoctorLooksAtThisHost) {
  const Outcome json = Kvcfs("doctor --json --dram 64MiB --data " + testing::TempDir());
  const auto answer = nlohmann::json::parse(json.out);
  bool fails = false;
  std::set<std::string> checks;
  for (const auto& one : answer.at("findings")) {
    checks.insert(one.at("check"));
    fails = fails || one.at("state") == "fail";
    EXPECT_NE(one.at("found"), "") << one;
    EXPECT_EQ(one.at("change").get<std::string>().empty(), one.at("state") == "ok") << one;
  }
  EXPECT_EQ(answer.at("ok"), !fails);
  EXPECT_EQ(json.exit_code, fails ? 1 : 0) << json.out;
  for (const char* check : {"kernel", "io_uring", "memory", "direct_io", "free_space"}) {
    EXPECT_EQ(checks.count(check), 1u) << check;
  }
  // No host has that much memory.
  const Outcome text = Kvcfs("doctor --dram 1024TiB --data " + testing::TempDir());
  EXPECT_EQ(text.exit_code, 1);
  EXPECT_NE(text.out.find("\nfail  memory "), std::string::npos) << text.out;
  EXPECT_NE(text.out.find("change:   --dram "), std::string::npos) << text.out;
}

TEST(Command, KeysFromFileAndStandardInput) {
  const std::string path = testing::TempDir() + "command_test.keys";
  std::ofstream(path) << kKey << "\n\nbad\n";
  const Outcome bad = Kvcfs("lookup /tmp --keys-file " + path + " 2>&1");
  EXPECT_EQ(bad.exit_code, 2);
  EXPECT_NE(bad.out.find(path + ":3: 'bad' is not a key"), std::string::npos) << bad.out;
  const Outcome input = Kvcfs("lookup /tmp - 2>&1 <" + path);
  EXPECT_EQ(input.exit_code, 2);
  EXPECT_NE(input.out.find("standard input:3: 'bad' is not a key"), std::string::npos) << input.out;
}

}  // namespace
}  // namespace kvcfs::tools
