#include "base/config.h"

#include <fstream>

#include <gtest/gtest.h>

namespace kvcfs {
namespace {

using std::chrono::milliseconds;

enum class Colour { kRed, kGreen };

struct Settings {
  bool on = true;
  int64_t count = 7;
  double share = 0.5;
  std::string name = "a \"b\" \\c";
  uint64_t bytes = 4096;
  SizeOrShare room{.share = 0.25};
  milliseconds wait{1500};
  Colour colour = Colour::kGreen;
};

struct ConfigTest : testing::Test {
  ConfigTest() {
    schema.Section("fs", "Files.");
    schema.Bool("on", &settings.on, "On or off.");
    schema.Int("count", &settings.count, "How many.", {.min = 1, .max = 64});
    schema.Double("share", &settings.share, "Of all.");
    schema.String("name", &settings.name, "Any.");
    schema.Section("disk", "Disks.");
    schema.Size("bytes", &settings.bytes, "How long.", {.min = 512, .max = 1 << 20});
    schema.SizeOrShareOf("room", &settings.room, "How much.");
    schema.Duration("wait", &settings.wait, "How late.", {.max = std::chrono::seconds(10)});
    schema.Enum("colour", &settings.colour, "Which.",
                {{"red", Colour::kRed}, {"green", Colour::kGreen}});
  }
  std::string ErrorOf(const std::string& text) {
    const Status status = schema.LoadText(text, "a.toml");
    if (status.ok()) return "accepted";
    EXPECT_EQ(status.code(), Code::kInvalid);
    return status.error().text;
  }
  std::string SetError(const std::string& text) {
    const Status status = schema.Set(text);
    return status.ok() ? "accepted" : status.error().text;
  }
  Settings settings;
  ConfigSchema schema;
};

TEST_F(ConfigTest, EveryTypeFromAFile) {
  const Status status = schema.LoadText(R"(
    [fs]
    on = false
    count = 9
    share = 1
    name = "x"
    [disk]
    bytes = "64KiB"
    room = "8GiB"
    wait = "2s"
    colour = "red"
  )",
                                        "a.toml");
  ASSERT_TRUE(status.ok()) << status.error().text;
  EXPECT_FALSE(settings.on);
  EXPECT_EQ(settings.count, 9);
  EXPECT_EQ(settings.share, 1.0);
  EXPECT_EQ(settings.name, "x");
  EXPECT_EQ(settings.bytes, 65536u);
  EXPECT_EQ(settings.room, (SizeOrShare{.bytes = uint64_t{8} << 30}));
  EXPECT_EQ(settings.wait, milliseconds(2000));
  EXPECT_EQ(settings.colour, Colour::kRed);
}

TEST_F(ConfigTest, WhatIsNotNamedKeepsItsDefault) {
  ASSERT_TRUE(schema.LoadText("[fs]\ncount = 2\n", "a.toml").ok());
  EXPECT_EQ(settings.count, 2);
  EXPECT_EQ(settings.wait, milliseconds(1500));
  ASSERT_TRUE(schema.LoadText("", "a.toml").ok());
}

TEST_F(ConfigTest, UnknownKeyNamesFileLineAndTheNearest) {
  EXPECT_EQ(ErrorOf("[fs]\non = true\ncuont = 2\n"),
            "a.toml:3: unknown key 'fs.cuont'; did you mean 'fs.count'?");
  // The right name in the wrong section.
  EXPECT_EQ(ErrorOf("[fs]\ncolour = \"red\"\n"),
            "a.toml:2: unknown key 'fs.colour'; did you mean 'disk.colour'?");
  EXPECT_EQ(ErrorOf("[fs]\nzebra_crossing = 1\n"),
            "a.toml:2: unknown key 'fs.zebra_crossing'; tools/kvcfs.toml lists all keys");
  EXPECT_EQ(ErrorOf("count = 2\n"), "a.toml:1: unknown key 'count'; did you mean 'fs.count'?");
  EXPECT_EQ(ErrorOf("\n[dsk]\n"), "a.toml:2: unknown section [dsk]");
}

TEST_F(ConfigTest, WrongTypeNamesWhatWouldBeRight) {
  EXPECT_EQ(ErrorOf("[fs]\non = 1\n"), "a.toml:2: fs.on must be true or false");
  EXPECT_EQ(ErrorOf("[fs]\ncount = \"9\"\n"), "a.toml:2: fs.count must be a whole number");
  EXPECT_EQ(ErrorOf("[fs]\ncount = 1.5\n"), "a.toml:2: fs.count must be a whole number");
  EXPECT_EQ(ErrorOf("[fs]\nshare = \"x\"\n"), "a.toml:2: fs.share must be a number");
  EXPECT_EQ(ErrorOf("[fs]\nname = 3\n"), "a.toml:2: fs.name must be a text in quotes");
  EXPECT_EQ(ErrorOf("[disk]\nwait = 3\n"), "a.toml:2: disk.wait must be a duration, as \"50ms\"");
  EXPECT_EQ(ErrorOf("[disk]\nbytes = true\n"), "a.toml:2: disk.bytes must be a size, as \"64MiB\"");
  EXPECT_EQ(ErrorOf("[disk]\nbytes = [1]\n"), "a.toml:2: disk.bytes must be a size, as \"64MiB\"");
  EXPECT_EQ(ErrorOf("[disk]\ncolour = \"blue\"\n"),
            "a.toml:2: disk.colour: 'blue' is not one of red, green");
}

TEST_F(ConfigTest, OutOfRangeNamesTheRange) {
  EXPECT_EQ(ErrorOf("[fs]\ncount = 65\n"), "a.toml:2: fs.count: 65 is out of range: 1 to 64");
  EXPECT_EQ(ErrorOf("[fs]\nshare = 1.5\n"), "a.toml:2: fs.share: 1.5 is out of range: 0 to 1");
  EXPECT_NE(ErrorOf("[fs]\nshare = nan\n"), "accepted");
  EXPECT_EQ(ErrorOf("[disk]\nbytes = \"2MiB\"\n"),
            "a.toml:2: disk.bytes: 2MiB is out of range: 512 to 1MiB");
  EXPECT_EQ(ErrorOf("[disk]\nwait = \"11s\"\n"),
            "a.toml:2: disk.wait: 11s is out of range: 0s to 10s");
  EXPECT_EQ(ErrorOf("[disk]\nwait = \"1us\"\n"),
            "a.toml:2: disk.wait: 1us is finer than this setting's step of 1ms");
  EXPECT_EQ(ErrorOf("[disk]\nroom = \"101%\"\n"),
            "a.toml:2: disk.room: '101%' is not a share; write more than 0% and at most 100%");
  EXPECT_EQ(settings.count, 7) << "a refused value must not stay";
}

TEST_F(ConfigTest, BrokenTomlNamesTheLine) {
  EXPECT_TRUE(ErrorOf("[fs]\non = \n").starts_with("a.toml:2: ")) << ErrorOf("[fs]\non = \n");
  EXPECT_TRUE(ErrorOf("[fs]\ncount = 1\ncount = 2\n").starts_with("a.toml:3: "));
}

TEST_F(ConfigTest, SetGoesThroughTheSameTable) {
  EXPECT_EQ(SetError("fs.count=9"), "accepted");
  EXPECT_EQ(SetError("fs.on=false"), "accepted");
  EXPECT_EQ(SetError("disk.wait=20ms"), "accepted");
  EXPECT_EQ(SetError("disk.room=10%"), "accepted");
  EXPECT_EQ(SetError("fs.name=a=b"), "accepted");
  EXPECT_EQ(SetError("disk.colour=\"red\""), "accepted");
  EXPECT_EQ(settings.count, 9);
  EXPECT_FALSE(settings.on);
  EXPECT_EQ(settings.wait, milliseconds(20));
  EXPECT_EQ(settings.room.Of(1000), 100u);
  EXPECT_EQ(settings.name, "a=b");
  EXPECT_EQ(settings.colour, Colour::kRed);
  EXPECT_EQ(SetError("fs.cont=9"),
            "--set fs.cont=9: unknown key 'fs.cont'; did you mean 'fs.count'?");
  EXPECT_EQ(SetError("fs.count"), "--set fs.count: write it as key=value, as fs.lease=30s");
  EXPECT_EQ(SetError("fs.count=x"), "--set fs.count=x: fs.count: 'x' is not a whole number");
  EXPECT_EQ(SetError("fs.on=maybe"), "--set fs.on=maybe: fs.on: 'maybe' is not true or false");
}

TEST_F(ConfigTest, DumpLoadsBack) {
  const std::string before = schema.Dump();
  for (const char* line : {"# Files.\n[fs]\n", "# How many.\ncount = 7\n",
                           "name = \"a \\\"b\\\" \\\\c\"\n", "share = 0.5\n", "bytes = \"4KiB\"\n",
                           "room = \"25%\"\n", "wait = \"1500ms\"\n", "colour = \"green\"\n"}) {
    EXPECT_NE(before.find(line), std::string::npos) << line << "is not in\n" << before;
  }
  settings = {.on = false,
              .count = 1,
              .share = 0,
              .name = "",
              .bytes = 512,
              .room = {.bytes = 1},
              .wait = milliseconds(0),
              .colour = Colour::kRed};
  ASSERT_TRUE(schema.LoadText(before, "dump").ok());
  EXPECT_EQ(schema.Dump(), before);
  EXPECT_EQ(schema.Keys().size(), 8u);
  EXPECT_EQ(schema.Keys().back(), "disk.colour");
}

TEST_F(ConfigTest, FilesThatCannotBeRead) {
  EXPECT_EQ(schema.LoadFile("/no/such.toml").code(), Code::kNotFound);
  EXPECT_FALSE(schema.LoadFile(testing::TempDir()).ok());
  const std::string path = testing::TempDir() + "config_test.toml";
  std::ofstream(path) << "[fs]\n\ncount = 0\n";
  EXPECT_EQ(schema.LoadFile(path).error().text, path + ":3: fs.count: 0 is out of range: 1 to 64");
}

TEST(Duration, ParseAndFormat) {
  using std::chrono::nanoseconds;
  const struct {
    const char* text;
    int64_t nanos;
  } cases[] = {{"50ms", 50'000'000},
               {"30s", 30'000'000'000},
               {"0", 0},
               {"0us", 0},
               {"1.5s", 1'500'000'000},
               {"2min", 120'000'000'000},
               {"1h", 3'600'000'000'000},
               {"7ns", 7}};
  for (const auto& one : cases) {
    EXPECT_EQ(ParseDuration(one.text).value(), nanoseconds(one.nanos)) << one.text;
    const std::string formatted = FormatDuration(nanoseconds(one.nanos));
    EXPECT_EQ(ParseDuration(formatted).value(), nanoseconds(one.nanos)) << formatted;
  }
  for (const char* text : {"", "5", "ms", "-1s", "5 apples", "1e30h", "nans", "1 s s"}) {
    EXPECT_EQ(ParseDuration(text).code(), Code::kInvalid) << text;
  }
}

}  // namespace
}  // namespace kvcfs
