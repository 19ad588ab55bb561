// Plain system calls for tests, with their errno as a value, and bytes that can be told apart.
//
// Nothing here knows of kvcfs: what a test says with these can be said of any filesystem.
#pragma once

#include <cerrno>
#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <dirent.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"

namespace kvcfs::test {

// "0" or the name of an errno value, as ENOENT: so that failures read well.
std::string ErrnoName(int number);

// The call's errno by name, and what is expected by name.
#define EXPECT_ERRNO(expected, call) \
  EXPECT_EQ(::kvcfs::test::ErrnoName((call) < 0 ? errno : 0), ::kvcfs::test::ErrnoName(expected))
#define EXPECT_OK(call) EXPECT_ERRNO(0, call)
#define ASSERT_OK(call) \
  ASSERT_EQ(::kvcfs::test::ErrnoName((call) < 0 ? errno : 0), ::kvcfs::test::ErrnoName(0))

// Bytes that belong to a number: each eight of them are a hash of the number and their position, so
// bytes of another file, of another place in this one, or zeros are all seen.
std::string Bytes(uint64_t number, size_t length);
// Where two strings first differ, or that they are equal: for messages that do not print megabytes.
std::string Difference(std::string_view want, std::string_view got);
// EXPECT_SAME_BYTES(want, got)
#define EXPECT_SAME_BYTES(want, got) EXPECT_EQ(::kvcfs::test::Difference(want, got), "equal")
#define ASSERT_SAME_BYTES(want, got) ASSERT_EQ(::kvcfs::test::Difference(want, got), "equal")

// A key: 64 lower-case hex digits that belong to a number.
std::string Key(uint64_t number);

Fd Open(const std::string& path, int flags, mode_t mode = 0644);
// Closes now; the close()'s errno, 0 if it succeeded.
int CloseErrno(Fd fd);
// The errno of open() (0: it could be opened; the descriptor is closed again).
int OpenErrno(const std::string& path, int flags, mode_t mode = 0644);

// All bytes from the current position to the end of the file, in calls of at most `piece`.
// Nothing when a read fails (errno says why).
std::optional<std::string> ReadRest(int fd, size_t piece = 1 << 20);
std::optional<std::string> ReadWhole(const std::string& path);
// The bytes of a mapping; nothing where they cannot be read, instead of SIGBUS.
std::optional<std::string> ReadMap(const void* map, size_t bytes);
// Every byte in one write() each of at most `piece`; the errno of the first that fails or is short
// (a short write counts as EIO).
int WriteAll(int fd, std::string_view bytes, size_t piece = 64u << 20);
// create, write, close: the errno of the first that fails.
int WriteFile(const std::string& path, std::string_view bytes, int flags = O_CREAT | O_TRUNC,
              mode_t mode = 0644);

struct stat StatOf(const std::string& path);  // a failed one is a test failure and all zero
int StatErrno(const std::string& path);
inline bool Exists(const std::string& path) {
  return StatErrno(path) == 0;
}

std::string GetXattr(const std::string& path,
                     const std::string& name);  // "ENODATA" etc. on failure
int SetXattrErrno(const std::string& path, const std::string& name, const std::string& value);
std::vector<std::string> ListXattrs(const std::string& path);

struct DirEntry {
  std::string name;
  uint64_t ino = 0;
  int64_t next = 0;  // the offset that continues behind it
  unsigned char type = DT_UNKNOWN;
};
// As getdents64 gives them, without . and ..
std::vector<DirEntry> List(const std::string& path, size_t buffer_bytes = 32768);
std::vector<DirEntry> ListFrom(int fd, size_t buffer_bytes);
std::vector<std::string> Names(const std::string& path);  // sorted

// Runs the function in a process of its own: its value is the exit status (200 + n: killed by
// signal n).
int InChild(const std::function<int()>& body);

// Waits, without a verdict of its own, until the condition holds: at most so long. What it waited
// for is then asserted by the caller.
bool Eventually(const std::function<bool()>& holds,
                std::chrono::milliseconds at_most = std::chrono::seconds(10));

struct CommandResult {
  int status = -1;  // exit status, 200 + signal
  std::string out, err;
};
// Runs a program (found on PATH) and waits for it.
CommandResult RunCommand(const std::vector<std::string>& words, const std::string& input = "");
// A line for bash -c; a test that needs a tool asks HaveTool first.
CommandResult Shell(const std::string& line);
bool HaveTool(const std::string& name);

// A directory that goes with everything in it at the end.
class TemporaryDirectory {
 public:
  explicit TemporaryDirectory(const std::string& parent = "/tmp");
  ~TemporaryDirectory();
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace kvcfs::test
