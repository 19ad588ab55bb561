// Walks the tree: the layers hold, and every folder says what it is.
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <string>
#include <vector>

#include <gtest/gtest.h>

namespace kvcfs {
namespace {

namespace stdfs = std::filesystem;

// A folder may include its own files and those of a smaller rank. bench and tests stand beside the
// layers and see all of them; bench is seen by tests only, tests by nobody.
const std::map<std::string, int> kRanks{{"base", 0}, {"iouring", 1}, {"rdma", 2},  {"meta", 3},
                                        {"fs", 4},   {"tools", 5},   {"bench", 6}, {"tests", 7}};

struct Include {
  std::string from;  // the file, from the root
  int line = 0;
  std::string what;  // as it is written between the quotes
};

std::string FolderOf(const std::string& path) {
  return path.substr(0, path.find('/'));
}

// Empty: it is allowed.
std::string WhatIsWrong(const Include& include) {
  if (include.what.find('/') == std::string::npos) return "not included from the root";
  const auto from = kRanks.find(FolderOf(include.from)), to = kRanks.find(FolderOf(include.what));
  if (to == kRanks.end()) return "no such layer";
  if (from == kRanks.end()) return "a folder without a layer";
  if (from->first == to->first) return "";
  if (to->first == "bench" && from->first != "tests") return "only tests include bench";
  return to->second < from->second ? "" : "goes back along the layers";
}

std::vector<std::string> SourceFiles() {
  std::vector<std::string> files;
  const stdfs::path root = KVC_SOURCE_DIR;
  for (const auto& [folder, rank] : kRanks) {
    if (!stdfs::exists(root / folder)) continue;
    for (const auto& entry : stdfs::recursive_directory_iterator(root / folder)) {
      const std::string extension = entry.path().extension();
      if (entry.is_regular_file() && (extension == ".h" || extension == ".cc")) {
        files.push_back(stdfs::relative(entry.path(), root));
      }
    }
  }
  std::sort(files.begin(), files.end());
  return files;
}

std::vector<Include> IncludesOf(const std::string& file) {
  static const std::regex include_line("^\\s*#\\s*include\\s*\"([^\"]+)\"");
  std::vector<Include> includes;
  std::ifstream in(stdfs::path(KVC_SOURCE_DIR) / file);
  int number = 0;
  for (std::string line; std::getline(in, line);) {
    ++number;
    std::smatch match;
    if (std::regex_search(line, match, include_line)) includes.push_back({file, number, match[1]});
  }
  return includes;
}

TEST(Tidy, IncludesFollowTheLayers) {
  const auto files = SourceFiles();
  EXPECT_GT(files.size(), 20u);
  for (const std::string& file : files) {
    for (const Include& include : IncludesOf(file)) {
      EXPECT_EQ(WhatIsWrong(include), "")
          << include.from << ":" << include.line << " includes " << include.what;
      EXPECT_TRUE(stdfs::exists(stdfs::path(KVC_SOURCE_DIR) / include.what))
          << include.from << ":" << include.line << " includes " << include.what;
    }
  }
}

TEST(Tidy, AnIncludeThatGoesBackIsSeen) {
  EXPECT_NE(WhatIsWrong({"base/a.h", 1, "iouring/b.h"}), "");
  EXPECT_NE(WhatIsWrong({"meta/a.cc", 1, "fs/b.h"}), "");
  EXPECT_NE(WhatIsWrong({"iouring/a.cc", 1, "rdma/b.h"}), "");
  EXPECT_NE(WhatIsWrong({"fs/a.cc", 1, "tools/b.h"}), "");
  EXPECT_NE(WhatIsWrong({"fs/a.cc", 1, "tests/b.h"}), "");
  EXPECT_NE(WhatIsWrong({"bench/a.cc", 1, "tests/b.h"}), "");
  EXPECT_NE(WhatIsWrong({"tools/a.cc", 1, "bench/b.h"}), "");
  EXPECT_EQ(WhatIsWrong({"tests/a.cc", 1, "bench/b.h"}), "");
  EXPECT_NE(WhatIsWrong({"fs/a.cc", 1, "b.h"}), "");
  EXPECT_EQ(WhatIsWrong({"fs/a.cc", 1, "base/b.h"}), "");
  EXPECT_EQ(WhatIsWrong({"fs/a.cc", 1, "fs/b.h"}), "");
  EXPECT_EQ(WhatIsWrong({"tests/unit/fs/a.cc", 1, "tools/b.h"}), "");
}

TEST(Tidy, EveryFolderHasAReadme) {
  for (const auto& entry : stdfs::directory_iterator(KVC_SOURCE_DIR)) {
    const std::string name = entry.path().filename();
    if (name == "cmake") continue;  // CMake modules, each with its own words
    if (!entry.is_directory() || name.front() == '.' || name.rfind("build", 0) == 0) continue;
    EXPECT_TRUE(stdfs::exists(entry.path() / "README.md")) << name << "/README.md";
  }
}

TEST(Tidy, EveryHeaderIsIncludedOnce) {
  for (const std::string& file : SourceFiles()) {
    if (!file.ends_with(".h")) continue;
    std::ifstream in(stdfs::path(KVC_SOURCE_DIR) / file);
    const std::string text((std::istreambuf_iterator<char>(in)), {});
    // A header for C has a guard instead.
    EXPECT_TRUE(text.find("#pragma once") != std::string::npos ||
                text.find("#ifndef KVC") != std::string::npos)
        << file;
  }
}

TEST(Tidy, FilesFitInTheHead) {
  for (const std::string& file : SourceFiles()) {
    std::ifstream in(stdfs::path(KVC_SOURCE_DIR) / file);
    const auto lines = std::count(std::istreambuf_iterator<char>(in), {}, '\n');
    EXPECT_LE(lines, 900) << file << " holds a second idea: find it and name it";
  }
}

TEST(Tidy, EveryPromiseNamesATestThatIsThere) {
  // In fs/SEMANTICS.md the last cell of a row holds `file_test: Name`, `Name` ... in backquotes.
  std::ifstream in(stdfs::path(KVC_SOURCE_DIR) / "fs/SEMANTICS.md");
  static const std::regex quoted("`([^`]+)`");
  int promises = 0;
  for (std::string line; std::getline(in, line);) {
    if (line.rfind("| **", 0) != 0) continue;
    ++promises;
    const size_t end = line.rfind('|'), begin = line.rfind('|', end - 1) + 1;
    const std::string cell = line.substr(begin, end - begin);
    std::string text;  // of the file that the names are of
    bool any = false;
    for (auto it = std::sregex_iterator(cell.begin(), cell.end(), quoted);
         it != std::sregex_iterator(); ++it) {
      std::string words = (*it)[1];
      std::string test = words;
      if (const size_t file_end = words.find("_test"); file_end != std::string::npos) {
        std::string file = words.substr(0, file_end + 5);
        if (file.find('/') == std::string::npos) file.insert(0, "tests/integration/");
        std::ifstream source(stdfs::path(KVC_SOURCE_DIR) / (file + ".cc"));
        EXPECT_TRUE(source.good()) << file << ".cc is not there: " << line.substr(0, 12);
        text.assign(std::istreambuf_iterator<char>(source), {});
        const size_t colon = words.find(": ");
        test = colon == std::string::npos ? "" : words.substr(colon + 2);
      }
      any = true;
      if (!test.empty()) {
        EXPECT_NE(text.find(", " + test + ")"), std::string::npos)
            << test << ": " << line.substr(0, 12);
      }
    }
    EXPECT_TRUE(any) << "no test: " << line.substr(0, 60);
  }
  EXPECT_GT(promises, 60);
}

}  // namespace
}  // namespace kvcfs
