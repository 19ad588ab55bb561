#include "tests/integration/calls.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <filesystem>
#include <thread>

#include <fmt/format.h>
#include <poll.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <sys/xattr.h>

namespace kvcfs::test {
namespace {

uint64_t Mix(uint64_t word) {  // splitmix64's finalizer
  word += 0x9e3779b97f4a7c15u;
  word = (word ^ (word >> 30)) * 0xbf58476d1ce4e5b9u;
  word = (word ^ (word >> 27)) * 0x94d049bb133111ebu;
  return word ^ (word >> 31);
}

int StatusOf(int wait_status) {
  return WIFEXITED(wait_status) ? WEXITSTATUS(wait_status) : 200 + WTERMSIG(wait_status);
}

}  // namespace

std::string ErrnoName(int number) {
  if (number == 0) return "0";
  const char* name = ::strerrorname_np(number);
  return name != nullptr ? name : std::to_string(number);
}

std::string Bytes(uint64_t number, size_t length) {
  std::string bytes(length, '\0');
  const uint64_t seed = Mix(number);
  for (size_t at = 0; at < length; at += 8) {
    const uint64_t word = Mix(seed + at);
    std::memcpy(bytes.data() + at, &word, std::min<size_t>(8, length - at));
  }
  return bytes;
}

std::string Difference(std::string_view want, std::string_view got) {
  const auto end = std::mismatch(want.begin(), want.end(), got.begin(), got.end());
  if (end.first == want.end() && end.second == got.end()) return "equal";
  return fmt::format("{} bytes wanted, {} got, different from byte {} on", want.size(), got.size(),
                     end.first - want.begin());
}

std::string Key(uint64_t number) {
  return fmt::format("{:016x}{:016x}{:016x}{:016x}", Mix(number), Mix(number ^ (1ull << 40)),
                     Mix(number ^ (2ull << 40)), Mix(number ^ (3ull << 40)));
}

Fd Open(const std::string& path, int flags, mode_t mode) {
  return Fd(::open(path.c_str(), flags | O_CLOEXEC, mode));
}

int CloseErrno(Fd fd) {
  return ::close(fd.Release()) < 0 ? errno : 0;
}

int OpenErrno(const std::string& path, int flags, mode_t mode) {
  const Fd fd = Open(path, flags, mode);
  return fd.valid() ? 0 : errno;
}

std::optional<std::string> ReadRest(int fd, size_t piece) {
  std::string bytes, buffer(piece, '\0');
  while (true) {
    const ssize_t count = ::read(fd, buffer.data(), buffer.size());
    if (count < 0) return std::nullopt;
    if (count == 0) return bytes;
    bytes.append(buffer, 0, static_cast<size_t>(count));
  }
}

std::optional<std::string> ReadWhole(const std::string& path) {
  const Fd fd = Open(path, O_RDONLY);
  if (!fd.valid()) return std::nullopt;
  return ReadRest(fd.get());
}

std::optional<std::string> ReadMap(const void* map, size_t bytes) {
  std::string copy(bytes, '\0');
  const struct iovec to { .iov_base = copy.data(), .iov_len = bytes };
  const struct iovec from { .iov_base = const_cast<void*>(map), .iov_len = bytes };
  if (::process_vm_readv(::getpid(), &to, 1, &from, 1, 0) != static_cast<ssize_t>(bytes)) {
    return std::nullopt;
  }
  return copy;
}

int WriteAll(int fd, std::string_view bytes, size_t piece) {
  for (size_t at = 0; at < bytes.size(); at += piece) {
    const std::string_view part = bytes.substr(at, piece);
    const ssize_t count = ::write(fd, part.data(), part.size());
    if (count < 0) return errno;
    if (static_cast<size_t>(count) != part.size()) return EIO;
  }
  return 0;
}

int WriteFile(const std::string& path, std::string_view bytes, int flags, mode_t mode) {
  Fd fd = Open(path, O_WRONLY | flags, mode);
  if (!fd.valid()) return errno;
  const int failed = WriteAll(fd.get(), bytes);
  const int closed = CloseErrno(std::move(fd));
  return failed != 0 ? failed : closed;
}

struct stat StatOf(const std::string& path) {
  struct stat attr {};
  EXPECT_EQ(ErrnoName(::lstat(path.c_str(), &attr) < 0 ? errno : 0), "0") << path;
  return attr;
}

int StatErrno(const std::string& path) {
  struct stat attr {};
  return ::lstat(path.c_str(), &attr) < 0 ? errno : 0;
}

std::string GetXattr(const std::string& path, const std::string& name) {
  std::array<char, 4096> value{};
  const ssize_t length = ::getxattr(path.c_str(), name.c_str(), value.data(), value.size());
  if (length < 0) return ErrnoName(errno);
  return {value.data(), static_cast<size_t>(length)};
}

int SetXattrErrno(const std::string& path, const std::string& name, const std::string& value) {
  return ::setxattr(path.c_str(), name.c_str(), value.data(), value.size(), 0) < 0 ? errno : 0;
}

std::vector<std::string> ListXattrs(const std::string& path) {
  std::array<char, 65536> names{};
  const ssize_t length = ::listxattr(path.c_str(), names.data(), names.size());
  EXPECT_GE(length, 0) << ErrnoName(errno) << " " << path;
  std::vector<std::string> list;
  for (ssize_t at = 0; at < length; at += static_cast<ssize_t>(list.back().size()) + 1) {
    list.emplace_back(names.data() + at);
  }
  return list;
}

std::vector<DirEntry> ListFrom(int fd, size_t buffer_bytes) {
  std::vector<DirEntry> entries;
  std::vector<char> buffer(buffer_bytes);
  while (true) {
    const long count = ::syscall(SYS_getdents64, fd, buffer.data(), buffer.size());
    EXPECT_GE(count, 0) << ErrnoName(errno);
    if (count <= 0) return entries;
    for (long at = 0; at < count;) {
      struct dirent64 head {};
      const char* start = buffer.data() + at;
      std::memcpy(&head, start, offsetof(struct dirent64, d_name));
      const std::string name = start + offsetof(struct dirent64, d_name);
      if (name != "." && name != "..") {
        entries.push_back(
            {.name = name, .ino = head.d_ino, .next = head.d_off, .type = head.d_type});
      }
      at += head.d_reclen;
    }
  }
}

std::vector<DirEntry> List(const std::string& path, size_t buffer_bytes) {
  const Fd fd = Open(path, O_RDONLY | O_DIRECTORY);
  EXPECT_TRUE(fd.valid()) << path << " " << ErrnoName(errno);
  return fd.valid() ? ListFrom(fd.get(), buffer_bytes) : std::vector<DirEntry>();
}

std::vector<std::string> Names(const std::string& path) {
  std::vector<std::string> names;
  for (const DirEntry& entry : List(path)) names.push_back(entry.name);
  std::sort(names.begin(), names.end());
  return names;
}

int InChild(const std::function<int()>& body) {
  const pid_t pid = ::fork();
  if (pid == 0) ::_exit(body());
  int status = 0;
  EXPECT_EQ(::waitpid(pid, &status, 0), pid);
  return StatusOf(status);
}

bool Eventually(const std::function<bool()>& holds, std::chrono::milliseconds at_most) {
  const auto until = std::chrono::steady_clock::now() + at_most;
  while (!holds()) {
    if (std::chrono::steady_clock::now() > until) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return true;
}

CommandResult RunCommand(const std::vector<std::string>& words, const std::string& input) {
  std::array<int, 2> in{}, out{}, err{};
  EXPECT_EQ(::pipe2(in.data(), O_CLOEXEC) | ::pipe2(out.data(), O_CLOEXEC) |
                ::pipe2(err.data(), O_CLOEXEC),
            0);
  std::vector<char*> argv;
  argv.reserve(words.size() + 1);
  for (const std::string& word : words) argv.push_back(const_cast<char*>(word.c_str()));
  argv.push_back(nullptr);
  const pid_t pid = ::fork();
  if (pid == 0) {
    ::dup2(in[0], 0);
    ::dup2(out[1], 1);
    ::dup2(err[1], 2);
    ::execvp(argv[0], argv.data());
    ::_exit(127);
  }
  ::close(in[0]);
  ::close(out[1]);
  ::close(err[1]);
  Fd to_child(in[1]);
  CommandResult result;
  std::string_view rest = input;
  std::array<struct pollfd, 3> waits{{{.fd = out[0], .events = POLLIN, .revents = 0},
                                      {.fd = err[0], .events = POLLIN, .revents = 0},
                                      {.fd = in[1], .events = POLLOUT, .revents = 0}}};
  while (waits[0].fd >= 0 || waits[1].fd >= 0) {
    if (rest.empty()) {
      to_child.Reset();
      waits[2].fd = -1;
    }
    if (::poll(waits.data(), waits.size(), -1) < 0 && errno != EINTR) break;
    for (int i = 0; i < 2; ++i) {
      auto& wait = waits[static_cast<size_t>(i)];
      if (wait.fd < 0 || wait.revents == 0) continue;
      std::array<char, 65536> buffer{};
      const ssize_t count = ::read(wait.fd, buffer.data(), buffer.size());
      if (count <= 0) {
        ::close(std::exchange(wait.fd, -1));
      } else {
        (i == 0 ? result.out : result.err).append(buffer.data(), static_cast<size_t>(count));
      }
    }
    if (waits[2].fd >= 0 && waits[2].revents != 0) {
      const size_t part = std::min<size_t>(rest.size(), 4096);
      if (::write(waits[2].fd, rest.data(), part) != static_cast<ssize_t>(part)) {
        rest = {};
      } else {
        rest.remove_prefix(part);
      }
    }
  }
  int status = 0;
  EXPECT_EQ(::waitpid(pid, &status, 0), pid);
  result.status = StatusOf(status);
  return result;
}

CommandResult Shell(const std::string& line) {
  return RunCommand({"bash", "-c", line});
}

bool HaveTool(const std::string& name) {
  return Shell("command -v " + name).status == 0;
}

TemporaryDirectory::TemporaryDirectory(const std::string& parent)
    : path_(parent + "/kvcfs-test.XXXXXX") {
  EXPECT_NE(::mkdtemp(path_.data()), nullptr) << path_ << " " << ErrnoName(errno);
}

TemporaryDirectory::~TemporaryDirectory() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

}  // namespace kvcfs::test
