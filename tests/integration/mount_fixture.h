// A real `kvcfs mount` with small tiers of its own, for one test or one program of tests.
//
// Whatever happens to the test program (an assertion, a crash, ctest's timeout), the daemon is
// ended and nothing stays mounted: a small janitor process watches a pipe that dies with the
// program. Only processes that the fixture started are ever ended.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <sys/types.h>

#include "base/fd.h"
#include "tests/integration/calls.h"

namespace kvcfs::test {

struct MountOptions {
  std::string dram = "256M";
  std::string nvme = "1G";
  std::vector<std::string> extra;  // more words for `kvcfs mount`
  std::string data_directory;      // empty: one of its own
  std::string network{};           // see host_network.h; empty: this program's
};

// What is missing here for a mount (root, /dev/fuse, the command); empty: nothing is.
std::string WhyNoMount();
#define KVC_NEEDS_MOUNT()                                                                \
  if (const std::string kvc_missing = ::kvcfs::test::WhyNoMount(); !kvc_missing.empty()) \
  GTEST_SKIP() << "needs a mount: " << kvc_missing

class TestMount {
 public:
  explicit TestMount(MountOptions options = {});
  ~TestMount();
  TestMount(const TestMount&) = delete;
  TestMount& operator=(const TestMount&) = delete;

  // Starts the daemon and waits until it answers. False: it ended or did not answer; LogTail().
  bool Start();
  // `kvcfs unmount`; the daemon's exit status, -1 if it did not end within a minute (and is
  // killed).
  int Stop();
  // SIGKILL to the supervisor and everything below it, at once. The mount point stays dead.
  void Kill();
  // What the supervisor started: the worker.
  std::vector<pid_t> Workers() const;
  // SIGKILL to what the supervisor started; false if that is nothing.
  bool KillWorkers();
  // The mount answers (waits at most a minute for it).
  bool WaitUntilItAnswers();
  bool Answers() const;
  bool running();  // the supervisor has not ended
  pid_t pid() const { return pid_; }

  const std::string& mount_point() const { return mount_point_; }
  const std::string& data_directory() const { return data_directory_; }
  MountOptions& options() { return options_; }
  std::string LogTail(size_t bytes = 6000) const;
  std::string Log() const;
  // No worker of this mount ever ended by a fault of its own (a supervisor hides that from
  // callers).
  bool NeverCrashed() const;

  // The text of one of the files of MNT/.kvcfs.
  std::string Virtual(const std::string& name) const;
  // The sum of all samples of one metric; -1 if there is none of that name.
  double Metric(const std::string& name) const;

 private:
  void StartJanitor();
  void DetachMounts() const;

  MountOptions options_;
  TemporaryDirectory directory_;
  std::string mount_point_, data_directory_, log_path_;
  pid_t pid_ = -1;
  Fd janitor_pipe_;
  pid_t janitor_ = -1;
};

// How the daemon serves open files. Every mode passes the same tests.
enum class Mode { kPassthrough, kClassic };
std::string ModeName(const testing::TestParamInfo<Mode>& info);
MountOptions OptionsFor(Mode mode);

// One mount a mode for all tests of the program, restarted if a test left it dead.
TestMount& SharedMount(Mode mode);

// A namespace of a mount, as its paths.
class Namespace {
 public:
  Namespace() = default;
  // Makes it. block_bytes 0: the default.
  Namespace(TestMount& mount, const std::string& name, uint64_t block_bytes);

  const std::string& path() const { return path_; }
  const std::string& name() const { return name_; }
  std::string Chain(const std::string& tip) const;  // empty: root/
  std::string ByKey(const std::string& key) const { return path_ + "/by-key/" + key; }
  std::string Entry(const std::string& tip, uint32_t ordinal, const std::string& key) const;
  static std::string EntryName(uint32_t ordinal, const std::string& key);
  std::string MatchFile() const { return path_ + "/match"; }
  std::string Files() const { return path_ + "/files"; }

  // create, write, close: the first errno that is not 0.
  int Put(const std::string& parent, const std::string& key, std::string_view bytes) const;
  // A chain of blocks with the keys Key(first), Key(first + 1), ... below the parent, block n with
  // the bytes Bytes(first + n, block_bytes). The keys.
  std::vector<std::string> PutChain(const std::string& parent, uint64_t first, uint32_t count,
                                    size_t block_bytes) const;
  bool Has(const std::string& key) const { return Exists(ByKey(key)); }
  std::optional<std::string> Read(const std::string& key) const { return ReadWhole(ByKey(key)); }
  // What `match` answers first: the count; -1 on an error.
  int64_t Match(const std::vector<std::string>& keys, const std::string& options = "") const;

 private:
  std::string path_, name_;
};

// Runs in both modes, each test in a fresh namespace of 1 MiB blocks.
class MountTest : public testing::TestWithParam<Mode> {
 protected:
  static constexpr size_t kBlockBytes = 1 << 20;

  void SetUp() override;
  void TearDown() override;
  TestMount& mount() { return *mount_; }
  const Namespace& ns() const { return ns_; }

 private:
  TestMount* mount_ = nullptr;
  Namespace ns_;
};

#define KVC_BOTH_MODES(suite)                                                            \
  INSTANTIATE_TEST_SUITE_P(                                                              \
      Modes, suite,                                                                      \
      testing::Values(::kvcfs::test::Mode::kPassthrough, ::kvcfs::test::Mode::kClassic), \
      ::kvcfs::test::ModeName)

}  // namespace kvcfs::test
