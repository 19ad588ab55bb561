// A server that is started for a measurement, and ends with it.
// Threads: one.   Fails: kIo it cannot be started; kTimeout it does not answer.
#pragma once

#include <chrono>
#include <functional>
#include <string>
#include <vector>

#include <sys/types.h>

#include "base/fd.h"
#include "base/result.h"

namespace kvcfs::bench {

class ChildProcess {
 public:
  ChildProcess() = default;
  ~ChildProcess() { Kill(); }
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  // The program is looked for in PATH. Its output goes to the file `log`; what it says on standard
  // output may be had by ReadLine instead.
  Status Start(const std::vector<std::string>& arguments, const std::string& log, bool read_output);
  // Of its standard output; kUnavailable: it ended.
  Result<std::string> ReadLine();
  bool alive();
  // Asks again and again; kTimeout: not true within that time; kUnavailable: it ended.
  Status Await(const std::function<bool()>& answers, std::chrono::seconds limit);
  // User and system time so far.
  double CpuSeconds() const;
  // Resident memory now.
  uint64_t ResidentBytes() const;
  void Kill();

 private:
  pid_t pid_ = -1;
  Fd output_;
  std::string read_;
};

// A directory of its own, removed at the end.
class TemporaryDirectory {
 public:
  TemporaryDirectory();
  ~TemporaryDirectory();
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// A port of 127.0.0.1 that nobody has now.
int FreePort();

bool IsInstalled(const std::string& program);

}  // namespace kvcfs::bench
