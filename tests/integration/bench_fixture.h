// Runs a script of bench/ as a user would, and keeps what it writes. Times decide nothing.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include <gtest/gtest.h>

namespace kvcfs {

class BenchTest : public testing::Test {
 protected:
  BenchTest() {
    std::string name = std::filesystem::temp_directory_path() / "kvcfs-bench-test-XXXXXX";
    EXPECT_NE(::mkdtemp(name.data()), nullptr);
    directory_ = name;
  }
  ~BenchTest() override {
    std::error_code ignored;
    std::filesystem::remove_all(directory_, ignored);
  }
  static std::string BuildDirectory() {
    return std::filesystem::path(KVC_COMMAND).parent_path().string();
  }
  // Its exit code; what it says is in the files `out` and `err`.
  int RunBench(const std::string& script, const std::string& arguments) const {
    const std::string command = std::string(KVC_SOURCE_DIR) + "/bench/" + script + " " + arguments +
                                " >" + Path("out") + " 2>" + Path("err");
    const int status = std::system(command.c_str());
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }
  std::string Path(const std::string& name) const { return directory_ / name; }
  std::string Read(const std::string& name) const {
    std::ifstream in(directory_ / name);
    return {std::istreambuf_iterator<char>(in), {}};
  }

  std::filesystem::path directory_;
};

}  // namespace kvcfs
