// What lies in docker/ fits the command that is built here: metrics that the dashboard asks for are
// exported, verbs and flags are known, files are what they say.
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "tests/integration/mount_fixture.h"

namespace kvcfs::test {
namespace {

namespace stdfs = std::filesystem;
using Json = nlohmann::json;

const std::string kFolder = std::string(KVC_SOURCE_DIR) + "/docker";

// Of files below docker/, or another folder, that end so.
std::vector<std::string> FilesLike(const std::string& folder, const std::string& ending) {
  std::vector<std::string> files;
  for (const auto& entry : stdfs::recursive_directory_iterator(folder)) {
    const std::string path = entry.path();
    if (entry.is_regular_file() && path.ends_with(ending)) files.push_back(path);
  }
  std::sort(files.begin(), files.end());
  return files;
}

std::vector<std::string> WordsOf(const std::string& text) {
  std::istringstream in(text);
  std::vector<std::string> words;
  for (std::string word; in >> word;) words.push_back(word);
  return words;
}

std::vector<std::string> AllMatches(const std::string& text, const std::regex& pattern) {
  std::vector<std::string> found;
  for (auto it = std::sregex_iterator(text.begin(), text.end(), pattern);
       it != std::sregex_iterator(); ++it) {
    found.push_back((*it)[1]);
  }
  return found;
}

// Calls `visit` for every object and every string in it, wherever it is.
template <typename Visit>
void Walk(const Json& json, const Visit& visit) {
  visit(json);
  if (json.is_structured()) {
    for (const Json& part : json) Walk(part, visit);
  }
}

// ---- Metrics

struct Exported {
  std::map<std::string, std::string> types;  // by name
  std::vector<std::string> series;           // lines without their values
  std::set<std::string> in_sources;          // names that some part of kvcfs may export
};

Exported ParseExported(const std::string& text) {
  Exported exported;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    const auto words = WordsOf(line);
    if (words.size() == 4 && words[1] == "TYPE") exported.types[words[2]] = words[3];
    if (!line.empty() && line[0] != '#') exported.series.push_back(line.substr(0, line.rfind(' ')));
  }
  static const std::regex literal("\"(kvcfs_[a-z0-9_]+)\"");
  for (const char* folder : {"base", "iouring", "rdma", "meta", "fs", "tools"}) {
    for (const auto& file : FilesLike(std::string(KVC_SOURCE_DIR) + "/" + folder, ".cc")) {
      for (const auto& name : AllMatches(ReadWhole(file).value_or(""), literal)) {
        exported.in_sources.insert(name);
      }
    }
  }
  return exported;
}

// Empty: everything that the expression asks for is exported.
std::string WhatIsMissing(const std::string& expression, const Exported& exported) {
  static const std::regex selector("(kvcfs_[a-z0-9_]+)(\\{[^}]*\\})?");
  static const std::regex label("([a-z_]+)\\s*(=~|!=|!~|=)\\s*\"([^\"]*)\"");
  for (auto it = std::sregex_iterator(expression.begin(), expression.end(), selector);
       it != std::sregex_iterator(); ++it) {
    std::string name = (*it)[1];
    for (const std::string suffix : {"_bucket", "_sum", "_count"}) {
      const std::string base = name.substr(0, name.size() - std::min(name.size(), suffix.size()));
      const auto type = exported.types.find(base);
      if (name.ends_with(suffix) && type != exported.types.end() && type->second == "histogram") {
        name = base;
      }
    }
    if (exported.types.count(name) == 0) {
      if (exported.in_sources.count(name) == 0) return name + " is exported by nobody";
      continue;
    }
    const std::string labels = (*it)[2];
    for (auto one = std::sregex_iterator(labels.begin(), labels.end(), label);
         one != std::sregex_iterator(); ++one) {
      if ((*one)[1] == "instance" || (*one)[1] == "job") continue;  // Prometheus' own
      std::istringstream values((*one)[3]);
      for (std::string value; std::getline(values, value, '|');) {
        const std::string wanted = std::string((*one)[1]) + "=\"" + value + "\"";
        const bool there = std::any_of(
            exported.series.begin(), exported.series.end(), [&](const std::string& series) {
              return series.rfind(name, 0) == 0 && series.find(wanted) != std::string::npos;
            });
        if (!there) return name + " is never " + wanted;
      }
    }
  }
  return "";
}

TEST(Dashboard, AsksOnlyForWhatIsExported) {
  KVC_NEEDS_MOUNT();
  TestMount mount;
  ASSERT_TRUE(mount.Start()) << mount.LogTail();
  // Some counters are there only when something was counted.
  const Namespace ns(mount, "llama", 1 << 16);
  const auto keys = ns.PutChain("", 0, 2, 1 << 16);
  EXPECT_EQ(ns.Match(keys), 2);
  EXPECT_TRUE(ns.Read(keys[0]).has_value());
  const Exported exported = ParseExported(mount.Virtual("metrics"));
  EXPECT_EQ(mount.Stop(), 0);

  std::vector<std::string> expressions, rows;
  const Json board = Json::parse(*ReadWhole(kFolder + "/grafana/dashboards/kvcfs.json"));
  Walk(board, [&](const Json& part) {
    if (!part.is_object()) return;
    if (part.contains("expr")) expressions.push_back(part["expr"]);
    if (part.value("type", "") == "row") rows.push_back(part["title"]);
  });
  EXPECT_GT(expressions.size(), 30u);
  for (const auto& expression : expressions) {
    EXPECT_EQ(WhatIsMissing(expression, exported), "") << expression;
  }
  for (const char* question :
       {"Hit rate", "Where reads come from", "Latency", "Capacity", "Evictions", "Health"}) {
    EXPECT_NE(std::find(rows.begin(), rows.end(), question), rows.end()) << question;
  }
  // And what is not exported is seen.
  EXPECT_EQ(
      WhatIsMissing("rate(kvcfs_fs_call_duration_seconds_bucket{call=\"open\"}[1m])", exported),
      "");
  EXPECT_NE(WhatIsMissing("sum(kvcfs_fs_bogus_total)", exported), "");
  EXPECT_NE(WhatIsMissing("kvcfs_fs_dirty_bytes_bucket", exported), "");
  EXPECT_NE(WhatIsMissing("kvcfs_fs_block_opens_total{source=\"tape\"}", exported), "");
}

// ---- YAML

bool HaveYaml() {
  return RunCommand({"python3", "-c", "import yaml"}).status == 0;
}
#define KVC_NEEDS_YAML() \
  if (!HaveYaml()) GTEST_SKIP() << "needs python3-yaml"

// The documents of a YAML text, as JSON.
std::optional<Json> ParseYaml(const std::string& text) {
  const auto result = RunCommand(
      {"python3", "-c",
       "import json, sys, yaml; json.dump(list(yaml.safe_load_all(sys.stdin)), sys.stdout)"},
      text);
  if (result.status != 0) {
    ADD_FAILURE() << result.err;
    return std::nullopt;
  }
  return Json::parse(result.out);
}

const std::map<std::string, Json>& AllYaml() {
  static std::map<std::string, Json> files;
  if (!files.empty()) return files;
  for (const char* ending : {".yaml", ".yml"}) {
    for (const auto& file : FilesLike(kFolder, ending)) {
      const auto json = ParseYaml(ReadWhole(file).value_or(""));
      EXPECT_TRUE(json.has_value()) << file;
      files[stdfs::relative(file, kFolder)] = json.value_or(Json());
    }
  }
  return files;
}

// The words behind `kvcfs` of every container that is one.
std::vector<std::vector<std::string>> CommandsIn(const Json& json) {
  std::vector<std::vector<std::string>> commands;
  Walk(json, [&](const Json& part) {
    if (!part.is_object() || part.value("image", Json()) != "kvcfs") return;
    if (part.contains("entrypoint")) return;  // another program of the image
    const Json words = part.contains("args") ? part["args"] : part.value("command", Json());
    if (words.is_string()) commands.push_back(WordsOf(words));
    if (words.is_array()) commands.push_back(words);
  });
  return commands;
}

// Empty: the verb is there and knows all the flags.
std::string WhatIsUnknown(const std::vector<std::string>& command) {
  const auto help = RunCommand({KVC_COMMAND, command.at(0), "--help"});
  if (help.out.find("Usage: kvcfs " + command[0] + " ") == std::string::npos) {
    return "no verb " + command[0];
  }
  const auto known = AllMatches(help.out, std::regex("(--[a-z][a-z-]*)"));
  for (const std::string& word : command) {
    if (word.rfind("--", 0) != 0) continue;
    const std::string flag = word.substr(0, word.find('='));
    if (std::find(known.begin(), known.end(), flag) == known.end()) {
      return "kvcfs " + command[0] + " does not know " + flag;
    }
  }
  return "";
}

TEST(Deployment, EveryCommandIsKnown) {
  KVC_NEEDS_YAML();
  size_t count = 0;
  for (const auto& [file, json] : AllYaml()) {
    for (const auto& command : CommandsIn(json)) {
      ++count;
      EXPECT_EQ(WhatIsUnknown(command), "") << file;
    }
  }
  EXPECT_EQ(count, 6u) << "three nodes and a mount with compose, a set of each with Kubernetes";
  EXPECT_NE(WhatIsUnknown({"mount", "/mnt", "--bogus=1"}), "");
  EXPECT_NE(WhatIsUnknown({"bogus"}), "");
}

// The value of --flag VALUE or --flag=VALUE.
std::string ValueOf(const std::vector<std::string>& command, const std::string& flag) {
  for (size_t i = 0; i < command.size(); ++i) {
    if (command[i] == flag && i + 1 < command.size()) return command[i + 1];
    if (command[i].rfind(flag + "=", 0) == 0) return command[i].substr(flag.size() + 1);
  }
  return "";
}

TEST(Deployment, ComposeFitsTogether) {
  KVC_NEEDS_YAML();
  const auto& files = AllYaml();
  const Json& services = files.at("compose.yaml").at(0).at("services");
  const Json& made = services.at("certs").at("command");
  std::set<std::string> certificates;
  for (const std::string word : made) certificates.insert(word.substr(word.find(':') + 1));
  for (const auto& [name, service] : services.items()) {
    for (const auto& command : CommandsIn(service)) {
      for (const auto& [flag, ending] :
           {std::pair("--tls-cert", ".pem"), std::pair("--tls-key", ".key")}) {
        const stdfs::path file = ValueOf(command, flag);
        EXPECT_EQ(file.extension(), ending) << name;
        EXPECT_EQ(certificates.count(file.stem()), 1u) << name << " " << flag;
      }
    }
  }
  // Prometheus asks every kvcfs where it answers.
  std::set<std::string> asked, answering;
  Walk(files.at("prometheus.yml"), [&](const Json& part) {
    if (!part.is_object() || !part.contains("targets")) return;
    for (const std::string target : part["targets"]) asked.insert(target);
  });
  for (const auto& [name, service] : services.items()) {
    for (const auto& command : CommandsIn(service)) {
      const std::string address = ValueOf(command, "--metrics-address");
      answering.insert(name + address.substr(address.rfind(':')));
    }
  }
  EXPECT_EQ(asked, answering);
  // The dashboard finds its source.
  const std::string uid =
      files.at("grafana/provisioning/datasources/prometheus.yaml")[0]["datasources"][0]["uid"];
  const Json board = Json::parse(*ReadWhole(kFolder + "/grafana/dashboards/kvcfs.json"));
  size_t sources = 0;
  Walk(board, [&](const Json& part) {
    if (!part.is_object() || part.value("type", "") != "prometheus") return;
    ++sources;
    EXPECT_EQ(part["uid"], uid);
  });
  EXPECT_GT(sources, 20u);
}

TEST(Deployment, TheSecretHoldsWhatThePodsMount) {
  KVC_NEEDS_YAML();
  if (!HaveTool("openssl")) GTEST_SKIP() << "needs the tool openssl";
  const TemporaryDirectory scratch;
  const auto made = RunCommand({kFolder + "/kubernetes/make-secret.sh", scratch.path() + "/certs"});
  ASSERT_EQ(made.status, 0) << made.err;
  const auto secrets = ParseYaml(made.out);
  ASSERT_TRUE(secrets.has_value());
  std::map<std::string, std::set<std::string>> held;
  for (const Json& secret : *secrets) {
    for (const auto& [name, value] : secret.at("data").items()) {
      held[secret.at("metadata").at("name")].insert(name);
      EXPECT_NE(value, "") << name;
    }
  }
  size_t mounted = 0;
  const auto& files = AllYaml();
  for (const char* file :
       {"kubernetes/etcd.yaml", "kubernetes/servers.yaml", "kubernetes/mount.yaml"}) {
    for (const Json& object : files.at(file)) {
      if (!object.at("spec").contains("template")) continue;
      const Json& spec = object["spec"]["template"]["spec"];
      const Json& container = spec.at("containers").at(0);
      const auto secret =
          std::find_if(spec["volumes"].begin(), spec["volumes"].end(),
                       [](const Json& volume) { return volume["name"] == "certs"; });
      ASSERT_NE(secret, spec["volumes"].end()) << file;
      const auto& names = held[(*secret)["secret"]["secretName"]];
      const int replicas = object["spec"].value("replicas", 1);
      for (int i = 0; i < replicas; ++i) {
        const std::string pod = std::string(object["metadata"]["name"]) + "-" + std::to_string(i);
        for (const char* list : {"args", "command"}) {
          for (const std::string word : container.value(list, Json::array())) {
            const size_t at = word.find("=/certs/");
            if (at == std::string::npos) continue;
            const std::string wanted =
                std::regex_replace(word.substr(at + 8), std::regex("\\$\\(POD_NAME\\)"), pod);
            EXPECT_EQ(names.count(wanted), 1u) << file << " " << wanted;
            ++mounted;
          }
        }
      }
    }
  }
  EXPECT_EQ(mounted, 3u + 3 * 3 + 3);
  for (const auto& [secret, names] : held) EXPECT_EQ(names.count("ca.key"), 0u) << secret;
  // A second run changes nothing: nodes keep their certificates.
  const auto again =
      RunCommand({kFolder + "/kubernetes/make-secret.sh", scratch.path() + "/certs"});
  EXPECT_EQ(again.out, made.out);
}

TEST(Deployment, TheImageCopiesWhatIsThere) {
  std::istringstream lines(ReadWhole(kFolder + "/Dockerfile").value_or(""));
  size_t copied = 0;
  for (std::string line; std::getline(lines, line);) {
    auto words = WordsOf(line);
    if (words.size() < 3 || words[0] != "COPY" || words[1].rfind("--", 0) == 0) continue;
    for (size_t i = 1; i + 1 < words.size(); ++i, ++copied) {
      EXPECT_TRUE(Exists(std::string(KVC_SOURCE_DIR) + "/" + words[i])) << line;
    }
  }
  EXPECT_GE(copied, 4u);
}

}  // namespace
}  // namespace kvcfs::test
