// Real `kvcfs serve` processes and an etcd, in a mount namespace of the test's own: whatever
// happens to the test program, nothing stays mounted, and its servers end with it.
#pragma once

#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <sys/types.h>

#include "tests/integration/calls.h"

namespace kvcfs::test {

// What is missing here for a server (root, the command); empty: nothing is.
std::string WhyNoServer();

// `kvcfs WORDS...`, to its end.
CommandResult RunKvcfs(const std::vector<std::string>& words);

// What `kvcfs cluster status` says of it; an empty object where nobody answers. `extra`: words that
// it needs beside.
nlohmann::json ClusterStatusOf(const std::string& etcd, const std::vector<std::string>& extra = {});
// A node of that.
nlohmann::json NodeIn(const nlohmann::json& status, const std::string& name);

struct ServerOptions {
  std::string dram = "64MiB";
  std::string listen = "127.0.0.1:0";
  std::string network{};             // see host_network.h; empty: this program's
  std::vector<std::string> extra{};  // more words for `kvcfs serve`
};

class TestServer {
 public:
  TestServer(std::string name, std::string etcd, ServerOptions options = {});
  ~TestServer();
  TestServer(const TestServer&) = delete;
  TestServer& operator=(const TestServer&) = delete;

  // Starts it; Await waits for the line that says that it serves.
  void Start();
  bool Await();
  bool StartAndAwait() {
    Start();
    return Await();
  }
  // SIGTERM; its exit status.
  int Stop();
  // SIGKILL.
  void Kill();
  // SIGSTOP, SIGCONT.
  void Pause() const;
  void Continue() const;
  // As if the machine had died: with its memory.
  void KillMachine();
  bool running() const { return pid_ > 0; }

  const std::string& name() const { return name_; }
  const std::string& data() const { return data_; }
  const std::string& ready_line() const { return ready_line_; }
  std::string LogTail() const;

 private:
  int Wait();

  const std::string name_, etcd_;
  const ServerOptions options_;
  TemporaryDirectory directory_;
  const std::string data_, log_;
  std::string ready_line_;
  Fd out_;
  pid_t pid_ = -1;
};

}  // namespace kvcfs::test
