// What lies in docker/ fits the command that is built here: metrics that the dashboard asks for are
// exported, files are what they say.
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
