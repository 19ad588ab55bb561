#include "base/read_file.h"

#include <fstream>

#include <gtest/gtest.h>

namespace kvcfs {
namespace {

TEST(ReadFile, WholeAndVirtual) {
  const std::string path = testing::TempDir() + "read_file_test";
  const std::string bytes(700'000, 'x');
  std::ofstream(path) << bytes;
  EXPECT_EQ(ReadFile(path).value(), bytes);
  std::ofstream(path) << "";
  EXPECT_EQ(ReadFile(path).value(), "");
  // st_size of it is 0.
  EXPECT_NE(ReadFile("/proc/self/status")->find("Name:"), std::string::npos);
}

TEST(ReadFile, NamesWhatItCouldNotRead) {
  const Result<std::string> none = ReadFile("/no/such/file");
  EXPECT_EQ(none.code(), Code::kNotFound);
  EXPECT_NE(none.error().text.find("/no/such/file"), std::string::npos);
  EXPECT_FALSE(ReadFile(testing::TempDir()).ok());
}

}  // namespace
}  // namespace kvcfs
