// A real etcd for one test: a process with ports and a directory of its own, killed at the end.
#pragma once

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <arpa/inet.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "meta/etcd_client.h"

namespace kvcfs::meta {

// A port that nobody has now. Another process may take it first: then etcd fails, and says so.
inline int FreePort() {
  const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(address);
  if (::bind(fd, reinterpret_cast<sockaddr*>(&address), length) != 0) return 0;
  ::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length);
  ::close(fd);
  return ntohs(address.sin_port);
}

// Where it is, if not at this program's loopback address.
struct EtcdServerOptions {
  std::string host = "127.0.0.1";  // as clients name it
  std::string address = "127.0.0.1";
  std::vector<std::string> prefix{};              // words before the command: where it runs
  std::string certificate{}, key{}, authority{};  // TLS, with certificates of clients, too
};

class EtcdServer {
 public:
  explicit EtcdServer(EtcdServerOptions options = {}) : options_(std::move(options)) {
    char directory[] = "/tmp/kvcfs-etcd-XXXXXX";
    directory_ = ::mkdtemp(directory);
    port_ = FreePort();
    peer_port_ = FreePort();
  }
  ~EtcdServer() {
    Kill();
    std::error_code ignored;
    std::filesystem::remove_all(directory_, ignored);
  }
  EtcdServer(const EtcdServer&) = delete;
  EtcdServer& operator=(const EtcdServer&) = delete;

  static bool Installed() { return std::system("command -v etcd >/dev/null 2>&1") == 0; }

  // Starts it, or starts it again on what it had, and waits until it answers.
  bool Start() {
    const std::string scheme = options_.authority.empty() ? "http://" : "https://";
    const std::string port = ":" + std::to_string(port_);
    const std::string peer = "http://127.0.0.1:" + std::to_string(peer_port_);
    std::vector<std::string> words = options_.prefix;
    // An election of 200 ms lets leases be as short as the tests want them.
    words.insert(words.end(), {"etcd",
                               "--name",
                               "t",
                               "--data-dir",
                               directory_ + "/data",
                               "--listen-client-urls",
                               scheme + options_.address + port,
                               "--advertise-client-urls",
                               scheme + options_.host + port,
                               "--listen-peer-urls",
                               peer,
                               "--initial-advertise-peer-urls",
                               peer,
                               "--initial-cluster",
                               "t=" + peer,
                               "--heartbeat-interval",
                               "50",
                               "--election-timeout",
                               "500",
                               "--unsafe-no-fsync"});
    if (!options_.authority.empty()) {
      words.insert(words.end(),
                   {"--client-cert-auth", "--cert-file", options_.certificate, "--key-file",
                    options_.key, "--trusted-ca-file", options_.authority});
    }
    std::vector<char*> arguments;
    for (std::string& word : words) arguments.push_back(word.data());
    arguments.push_back(nullptr);
    pid_ = ::fork();
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      const int log = ::open((directory_ + "/log").c_str(), O_CREAT | O_WRONLY | O_APPEND, 0600);
      ::dup2(log, 1);
      ::dup2(log, 2);
      ::execvp(arguments[0], arguments.data());
      ::_exit(127);
    }
    const auto probe = EtcdClient::Make(Options());
    for (int i = 0; i < 300; ++i) {
      if (probe->List("/").ok()) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
    return false;
  }
  void Kill() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    pid_ = 0;
  }
  void Stop() const { ::kill(pid_, SIGSTOP); }
  void Continue() const { ::kill(pid_, SIGCONT); }

  std::string endpoint() const { return options_.host + ":" + std::to_string(port_); }
  EtcdOptions Options() const {
    EtcdOptions options;
    options.endpoints = {endpoint()};
    options.certificate = options_.certificate;
    options.key = options_.key;
    options.authority = options_.authority;
    return options;
  }

 private:
  const EtcdServerOptions options_;
  std::string directory_;
  int port_ = 0;
  int peer_port_ = 0;
  pid_t pid_ = 0;
};

class EtcdFixture : public testing::Test {
 protected:
  void SetUp() override {
    if (!EtcdServer::Installed()) GTEST_SKIP() << "etcd is not installed: tools/deps/install.sh";
    ASSERT_TRUE(etcd_.Start()) << "etcd does not answer at " << etcd_.endpoint();
  }
  EtcdOptions Options() const { return etcd_.Options(); }
  std::unique_ptr<EtcdClient> Client() const { return EtcdClient::Make(Options()); }

  EtcdServer etcd_;
};

}  // namespace kvcfs::meta
