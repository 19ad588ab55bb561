#include "tests/integration/server_fixture.h"

#include <cerrno>
#include <filesystem>
#include <utility>

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/integration/host_network.h"

namespace kvcfs::test {
namespace {

// Forks and runs it; with descriptors for its stdout and stderr.
pid_t Spawn(const std::vector<std::string>& words, int out, int error) {
  std::vector<char*> arguments;
  for (const std::string& word : words) arguments.push_back(const_cast<char*>(word.c_str()));
  arguments.push_back(nullptr);
  const pid_t child = ::fork();
  if (child != 0) return child;
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  ::dup2(out, STDOUT_FILENO);
  ::dup2(error, STDERR_FILENO);
  ::execvp(arguments[0], arguments.data());
  ::_exit(127);
}

// The DRAM tiers of this program's servers are mounted where nobody else sees them.
bool HaveOwnMounts() {
  static const bool done = ::unshare(CLONE_NEWNS) == 0 &&
                           ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0;
  return done;
}

}  // namespace

std::string WhyNoServer() {
  if (::geteuid() != 0) return "root";
  if (::access(KVC_COMMAND, X_OK) != 0) return std::string(KVC_COMMAND);
  if (!HaveOwnMounts()) return "a mount namespace";
  return "";
}

CommandResult RunKvcfs(const std::vector<std::string>& words) {
  std::vector<std::string> all{KVC_COMMAND};
  all.insert(all.end(), words.begin(), words.end());
  return RunCommand(all);
}

nlohmann::json ClusterStatusOf(const std::string& etcd, const std::vector<std::string>& extra) {
  std::vector<std::string> words{"cluster", "status", "--json", "--cluster", "etcd://" + etcd};
  words.insert(words.end(), extra.begin(), extra.end());
  auto status = nlohmann::json::parse(RunKvcfs(words).out, nullptr, false);
  return status.is_object() ? status : nlohmann::json::object();
}

nlohmann::json NodeIn(const nlohmann::json& status, const std::string& name) {
  for (const auto& node : status.value("nodes", nlohmann::json::array())) {
    if (node.value("name", "") == name) return node;
  }
  return nlohmann::json::object();
}

TestServer::TestServer(std::string name, std::string etcd, ServerOptions options)
    : name_(std::move(name)),
      etcd_(std::move(etcd)),
      options_(std::move(options)),
      data_(directory_.path() + "/data"),
      log_(directory_.path() + "/log") {}

TestServer::~TestServer() {
  if (pid_ > 0) Kill();
  ::umount2((data_ + "/dram").c_str(), MNT_DETACH);
}

void TestServer::Start() {
  std::vector<std::string> words{
      KVC_COMMAND,  "serve",       "--cluster",     "etcd://" + etcd_, "--name",
      name_,        "--listen",    options_.listen, "--data",          data_,
      "--dram",     options_.dram, "--nvme",        "256MiB",          "--metrics-address",
      "127.0.0.1:0"};
  words.insert(words.end(), options_.extra.begin(), options_.extra.end());
  int out[2];
  ASSERT_EQ(::pipe2(out, O_CLOEXEC), 0);
  const Fd log(::open(log_.c_str(), O_CREAT | O_WRONLY | O_APPEND | O_CLOEXEC, 0600));
  const Fd to(out[1]);
  out_ = Fd(out[0]);
  pid_ = Spawn(InNetwork(options_.network, std::move(words)), to.get(), log.get());
  ready_line_.clear();
}

bool TestServer::Await() {
  // A byte at a time: it says one line, and the end of it must not be waited for.
  char byte = 0;
  while (::read(out_.get(), &byte, 1) == 1 && byte != '\n') ready_line_.push_back(byte);
  return ready_line_.starts_with("serving " + name_ + " at ");
}

int TestServer::Wait() {
  int status = 0;
  while (::waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
  }
  pid_ = -1;
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

int TestServer::Stop() {
  ::kill(pid_, SIGTERM);
  return Wait();
}

void TestServer::Kill() {
  ::kill(pid_, SIGKILL);
  (void)Wait();
}

void TestServer::Pause() const {
  ::kill(pid_, SIGSTOP);
}

void TestServer::Continue() const {
  ::kill(pid_, SIGCONT);
}

void TestServer::KillMachine() {
  Kill();
  ::umount2((data_ + "/dram").c_str(), MNT_DETACH);
}

std::string TestServer::LogTail() const {
  const std::string all = ReadWhole(log_).value_or("");
  return all.substr(all.size() - std::min<size_t>(all.size(), 4000));
}

}  // namespace kvcfs::test
