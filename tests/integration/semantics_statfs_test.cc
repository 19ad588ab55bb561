// Promises S1-S2 and V1-V2 of fs/SEMANTICS.md, through a real mount.
#include <nlohmann/json.hpp>
#include <sys/statvfs.h>
#include <sys/vfs.h>

#include "tests/integration/mount_fixture.h"

namespace kvcfs::test {
namespace {

class Statfs : public MountTest {
 protected:
  struct statvfs Space() {
    struct statvfs space {};
    EXPECT_OK(::statvfs(ns().Files().c_str(), &space));
    return space;
  }
};
KVC_BOTH_MODES(Statfs);

// S1: `f_bsize` is 4096, `f_namemax` 255.
TEST_P(Statfs, BlockSize) {
  for (const std::string& path :
       {mount().mount_point(), ns().path(), ns().Files(), ns().Chain(""), ns().MatchFile()}) {
    struct statfs info {};
    ASSERT_OK(::statfs(path.c_str(), &info)) << path;
    EXPECT_EQ(info.f_bsize, 4096) << path;
    EXPECT_EQ(info.f_frsize, 4096) << path;
    EXPECT_EQ(info.f_namelen, 255) << path;
    EXPECT_GT(info.f_blocks, 0u) << path;
    EXPECT_LE(info.f_bavail, info.f_blocks) << path;
    EXPECT_GT(info.f_files, 0u) << path;
    EXPECT_GT(info.f_ffree, 0u) << path;
  }
}

// S2: Reclaimable cache counts as free: writing evictable things does not make the filesystem
// fuller. What is used and cannot go does.
TEST_P(Statfs, ReclaimableCountsAsFree) {
  const struct statvfs before = Space();
  // Five times as much as all tiers hold would pass a watcher's 80 % long before the end.
  const uint64_t capacity = before.f_blocks * before.f_frsize;
  EXPECT_GE(capacity, 1u << 30) << "the NVMe tier at least";
  constexpr uint64_t kFiles = 200;
  for (uint64_t i = 0; i < kFiles; ++i) {
    ASSERT_EQ(WriteFile(ns().Files() + "/" + std::to_string(i), Bytes(i, 1 << 20)), 0);
  }
  const auto close_to_before = [&] {
    const struct statvfs after = Space();
    const double used =
        1 - static_cast<double>(after.f_bavail) / static_cast<double>(after.f_blocks);
    const double was =
        1 - static_cast<double>(before.f_bavail) / static_cast<double>(before.f_blocks);
    return used - was < 0.05;
  };
  EXPECT_TRUE(Eventually(close_to_before)) << "closed files of 1 MiB may be evicted: they are free";
}

// V1: `metrics` (Prometheus text), `stats.json` (one JSON object), `config.toml` and `version` can
// be read at any time, whole in one read.
TEST_P(Statfs, VirtualFiles) {
  const std::string directory = mount().mount_point() + "/.kvcfs";
  EXPECT_EQ(Names(directory),
            (std::vector<std::string>{"config.toml", "metrics", "stats.json", "version"}));
  for (const std::string& name : Names(directory)) {
    const std::string whole = mount().Virtual(name);
    EXPECT_FALSE(whole.empty()) << name;
    EXPECT_EQ(whole.back(), '\n') << name;
    EXPECT_TRUE(S_ISREG(StatOf(directory + "/" + name).st_mode)) << name;
    // In one read, and in small ones, of one version.
    const Fd fd = Open(directory + "/" + name, O_RDONLY);
    const auto pieces = ReadRest(fd.get(), 100);
    ASSERT_TRUE(pieces) << name;
    EXPECT_EQ(pieces->back(), '\n') << name;
  }
  EXPECT_NE(mount().Virtual("metrics").find("# HELP kvcfs_"), std::string::npos);
  EXPECT_NE(mount().Virtual("metrics").find("# TYPE kvcfs_"), std::string::npos);
  const auto stats = nlohmann::json::parse(mount().Virtual("stats.json"), nullptr, false);
  EXPECT_TRUE(stats.is_object()) << mount().Virtual("stats.json");
  EXPECT_NE(mount().Virtual("config.toml").find("[fs]"), std::string::npos);
  // What is served how can be seen, with its reason.
  const CommandResult stat = RunCommand({KVC_COMMAND, "stat", mount().mount_point()});
  EXPECT_EQ(stat.status, 0) << stat.err;
  EXPECT_NE(stat.out.find(GetParam() == Mode::kPassthrough ? "passthrough" : "classic"),
            std::string::npos)
      << stat.out;
  const CommandResult json = RunCommand({KVC_COMMAND, "stat", "--json", ns().path()});
  EXPECT_EQ(json.status, 0) << json.err;
  EXPECT_TRUE(nlohmann::json::accept(json.out)) << json.out;
}

// V2: They are read-only, and nothing can be made or removed beside them.
TEST_P(Statfs, VirtualFilesAreReadOnly) {
  const std::string directory = mount().mount_point() + "/.kvcfs";
  for (const std::string& name : Names(directory)) {
    const std::string path = directory + "/" + name;
    EXPECT_NE(OpenErrno(path, O_WRONLY), 0) << name;
    EXPECT_NE(OpenErrno(path, O_RDWR | O_TRUNC), 0) << name;
    EXPECT_LT(::unlink(path.c_str()), 0) << name;
    EXPECT_LT(::truncate(path.c_str(), 0), 0) << name;
    EXPECT_LT(::rename(path.c_str(), (path + "2").c_str()), 0) << name;
    EXPECT_EQ(StatOf(path).st_mode & 0222, 0u) << name;
    EXPECT_FALSE(mount().Virtual(name).empty()) << name;
  }
  EXPECT_NE(OpenErrno(directory + "/mine", O_CREAT | O_WRONLY), 0);
  EXPECT_LT(::mkdir((directory + "/dir").c_str(), 0755), 0);
}

}  // namespace
}  // namespace kvcfs::test
