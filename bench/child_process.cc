#include "bench/child_process.h"

#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <thread>

#include <arpa/inet.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

namespace kvcfs::bench {

Status ChildProcess::Start(const std::vector<std::string>& arguments, const std::string& log,
                           bool read_output) {
  int pipe_ends[2] = {-1, -1};
  if (::pipe2(pipe_ends, O_CLOEXEC) != 0) return ErrnoError(errno, "pipe");
  output_ = Fd(pipe_ends[0]);
  const Fd write_end(pipe_ends[1]);
  const Fd log_file(::open(log.c_str(), O_CREAT | O_WRONLY | O_APPEND | O_CLOEXEC, 0600));
  if (!log_file.valid()) return ErrnoError(errno, "open", log);
  std::vector<char*> argv;
  argv.reserve(arguments.size() + 1);
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  pid_ = ::fork();
  if (pid_ < 0) return ErrnoError(errno, "fork");
  if (pid_ == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    ::dup2(read_output ? write_end.get() : log_file.get(), STDOUT_FILENO);
    ::dup2(log_file.get(), STDERR_FILENO);
    ::execvp(argv[0], argv.data());
    ::_exit(127);
  }
  return {};
}

Result<std::string> ChildProcess::ReadLine() {
  for (;;) {
    const size_t end = read_.find('\n');
    if (end != std::string::npos) {
      std::string line = read_.substr(0, end);
      read_.erase(0, end + 1);
      return line;
    }
    char buffer[256];
    const ssize_t count = ::read(output_.get(), buffer, sizeof(buffer));
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return Error{Code::kUnavailable, "the program ended before it was ready"};
    read_.append(buffer, static_cast<size_t>(count));
  }
}

bool ChildProcess::alive() {
  if (pid_ <= 0) return false;
  if (::waitpid(pid_, nullptr, WNOHANG) == 0) return true;
  pid_ = -1;
  return false;
}

Status ChildProcess::Await(const std::function<bool()>& answers, std::chrono::seconds limit) {
  const auto end = std::chrono::steady_clock::now() + limit;
  while (!answers()) {
    if (!alive()) return Error{Code::kUnavailable, "the program ended before it answered"};
    if (std::chrono::steady_clock::now() > end) return Error{Code::kTimeout, "it does not answer"};
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  return {};
}

double ChildProcess::CpuSeconds() const {
  clockid_t clock = 0;
  timespec used{};
  if (pid_ <= 0 || ::clock_getcpuclockid(pid_, &clock) != 0) return 0;
  if (::clock_gettime(clock, &used) != 0) return 0;
  return static_cast<double>(used.tv_sec) + 1e-9 * static_cast<double>(used.tv_nsec);
}

uint64_t ChildProcess::ResidentBytes() const {
  uint64_t pages = 0, resident = 0;
  std::ifstream(fmt::format("/proc/{}/statm", pid_)) >> pages >> resident;
  return resident * 4096;
}

void ChildProcess::Kill() {
  if (pid_ <= 0) return;
  ::kill(pid_, SIGKILL);
  ::waitpid(pid_, nullptr, 0);
  pid_ = -1;
}

TemporaryDirectory::TemporaryDirectory() {
  path_ = std::filesystem::temp_directory_path() / "kvcfs-bench-XXXXXX";
  KVC_CHECK(::mkdtemp(path_.data()) != nullptr);
}

TemporaryDirectory::~TemporaryDirectory() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

int FreePort() {
  const Fd socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(address);
  if (::bind(socket.get(), reinterpret_cast<sockaddr*>(&address), length) != 0) return 0;
  ::getsockname(socket.get(), reinterpret_cast<sockaddr*>(&address), &length);
  return ntohs(address.sin_port);
}

bool IsInstalled(const std::string& program) {
  const char* path = std::getenv("PATH");  // NOLINT(concurrency-mt-unsafe): nobody changes it
  std::string rest = path == nullptr ? "/usr/bin:/bin" : path;
  rest += ":";
  for (size_t end = 0; (end = rest.find(':')) != std::string::npos; rest.erase(0, end + 1)) {
    if (::access((rest.substr(0, end) + "/" + program).c_str(), X_OK) == 0) return true;
  }
  return false;
}

}  // namespace kvcfs::bench
