#include "tests/integration/mount_fixture.h"

#include <algorithm>
#include <array>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>
#include <thread>

#include <fmt/format.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <sys/xattr.h>

#include "tests/integration/host_network.h"

namespace kvcfs::test {
namespace {

using std::chrono::seconds;

// pid and all that descends from it, parents first.
std::vector<pid_t> WithDescendants(pid_t pid) {
  std::multimap<pid_t, pid_t> children;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator("/proc", ignored)) {
    const std::string name = entry.path().filename();
    if (name.find_first_not_of("0123456789") != std::string::npos) continue;
    const auto text = ReadWhole(entry.path().string() + "/stat");
    if (!text || text->rfind(')') == std::string::npos) continue;
    std::istringstream words(text->substr(text->rfind(')') + 1));
    char state = 0;
    pid_t parent = 0;
    words >> state >> parent;
    children.emplace(parent, std::stoi(name));
  }
  std::vector<pid_t> found{pid};
  for (size_t i = 0; i < found.size(); ++i) {
    const auto range = children.equal_range(found[i]);
    for (auto child = range.first; child != range.second; ++child) found.push_back(child->second);
  }
  return found;
}

// Innermost first. /proc/self/mountinfo has the mount point as its fifth word.
std::vector<std::string> MountsBelow(const std::string& directory) {
  std::vector<std::string> found;
  std::ifstream mounts("/proc/self/mountinfo");
  for (std::string line; std::getline(mounts, line);) {
    std::istringstream words(line);
    std::string word;
    for (int i = 0; i < 5; ++i) words >> word;
    if (word.rfind(directory + "/", 0) == 0) found.push_back(word);
  }
  std::reverse(found.begin(), found.end());
  return found;
}

void DetachBelow(const std::string& directory) {
  for (int round = 0; round < 5; ++round) {
    const auto mounts = MountsBelow(directory);
    if (mounts.empty()) return;
    for (const std::string& mount : mounts) ::umount2(mount.c_str(), MNT_DETACH);
  }
}

}  // namespace

std::string WhyNoMount() {
  if (::geteuid() != 0) return "root";
  if (::access("/dev/fuse", R_OK | W_OK) != 0) return "/dev/fuse";
  if (::access(KVC_COMMAND, X_OK) != 0) return KVC_COMMAND;
  return "";
}

TestMount::TestMount(MountOptions options)
    : options_(std::move(options)),
      mount_point_(directory_.path() + "/mnt"),
      data_directory_(options_.data_directory.empty() ? directory_.path() + "/data"
                                                      : options_.data_directory),
      log_path_(directory_.path() + "/log") {
  ::chmod(directory_.path().c_str(), 0755);  // other users come through the mount point, too
  std::error_code ignored;
  std::filesystem::create_directory(mount_point_, ignored);
  std::filesystem::create_directory(data_directory_, ignored);
}

TestMount::~TestMount() {
  EXPECT_TRUE(NeverCrashed()) << "the daemon crashed by itself";
  if (testing::Test::HasFailure() && !Log().empty()) {
    fmt::print("--- log of the daemon, its end ---\n{}\n---\n", LogTail());
    (void)std::fflush(stdout);
  }
  Kill();
  DetachMounts();
  janitor_pipe_.Reset();
  if (janitor_ > 0) ::waitpid(janitor_, nullptr, 0);
}

void TestMount::StartJanitor() {
  std::array<int, 2> pipe{};
  if (::pipe2(pipe.data(), O_CLOEXEC) != 0) return;
  janitor_ = ::fork();
  if (janitor_ == 0) {
    // Holds nothing of the program's but its end of the pipe, so that no file stays open by us.
    ::dup2(pipe[0], 3);
    ::close_range(4, ~0u, 0);
    ::setsid();
    char byte = 0;
    while (::read(3, &byte, 1) > 0) {
    }
    // The program has ended; what it started says its group in this file.
    const auto text = ReadWhole(directory_.path() + "/pid");
    if (text && !text->empty()) ::kill(-std::stoi(*text), SIGKILL);
    DetachMounts();
    std::error_code ignored;
    std::filesystem::remove_all(directory_.path(), ignored);
    ::_exit(0);
  }
  ::close(pipe[0]);
  janitor_pipe_ = Fd(pipe[1]);
}

bool TestMount::Start() {
  if (!janitor_pipe_.valid()) StartJanitor();
  std::vector<std::string> words{KVC_COMMAND,   "mount",         mount_point_,
                                 "--data",      data_directory_, "--dram",
                                 options_.dram, "--nvme",        options_.nvme};
  words.insert(words.end(), options_.extra.begin(), options_.extra.end());
  words = InNetwork(options_.network, std::move(words));
  std::vector<char*> argv;
  argv.reserve(words.size() + 1);
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  pid_ = ::fork();
  if (pid_ == 0) {
    ::setpgid(0, 0);
    const int log = ::open(log_path_.c_str(), O_CREAT | O_WRONLY | O_APPEND, 0644);
    const int nothing = ::open("/dev/null", O_RDONLY);
    ::dup2(nothing, 0);
    ::dup2(log, 1);
    ::dup2(log, 2);
    ::close_range(3, ~0u, 0);
    ::execvp(argv[0], argv.data());
    ::_exit(127);
  }
  std::ofstream(directory_.path() + "/pid") << pid_;
  return WaitUntilItAnswers();
}

bool TestMount::Answers() const {
  const auto version = ReadWhole(mount_point_ + "/.kvcfs/version");
  return version && !version->empty();
}

bool TestMount::running() {
  if (pid_ <= 0) return false;
  siginfo_t info{};
  return ::waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
         info.si_pid == 0;
}

bool TestMount::WaitUntilItAnswers() {
  // Asked once more, a worker that dies just then (an armed crash point) takes its virtual file
  // along.
  bool answers = false;
  Eventually([&] { return (answers = Answers()) || !running(); }, seconds(60));
  return answers && running();
}

void TestMount::Kill() {
  if (pid_ <= 0) return;
  for (const pid_t pid : WithDescendants(pid_)) ::kill(pid, SIGKILL);
  ::waitpid(pid_, nullptr, 0);
  ::kill(-pid_, SIGKILL);  // a worker that was being born
  pid_ = -1;
}

std::vector<pid_t> TestMount::Workers() const {
  auto pids = WithDescendants(pid_);
  pids.erase(pids.begin());
  return pids;
}

bool TestMount::KillWorkers() {
  const auto pids = Workers();
  for (const pid_t pid : pids) ::kill(pid, SIGKILL);
  return !pids.empty();
}

int TestMount::Stop() {
  if (pid_ <= 0) return -1;
  const CommandResult unmount = RunCommand({KVC_COMMAND, "unmount", mount_point_});
  EXPECT_EQ(unmount.status, 0) << unmount.err;
  if (!Eventually([this] { return !running(); }, seconds(60))) {
    Kill();
    return -1;
  }
  int status = 0;
  ::waitpid(pid_, &status, 0);
  pid_ = -1;
  return WIFEXITED(status) ? WEXITSTATUS(status) : 200 + WTERMSIG(status);
}

void TestMount::DetachMounts() const {
  DetachBelow(directory_.path());
  if (data_directory_.rfind(directory_.path(), 0) != 0) DetachBelow(data_directory_);
}

bool TestMount::NeverCrashed() const {
  const std::string log = Log();
  for (const int signal : {SIGSEGV, SIGABRT, SIGBUS, SIGFPE, SIGILL}) {
    if (log.find(fmt::format(" signal={} ", signal)) != std::string::npos) return false;
  }
  return log.find("AddressSanitizer") == std::string::npos &&
         log.find("ThreadSanitizer") == std::string::npos &&
         log.find("runtime error:") == std::string::npos;
}

std::string TestMount::Log() const {
  return ReadWhole(log_path_).value_or("");
}

std::string TestMount::LogTail(size_t bytes) const {
  const std::string log = Log();
  return log.size() > bytes ? log.substr(log.size() - bytes) : log;
}

std::string TestMount::Virtual(const std::string& name) const {
  return ReadWhole(mount_point_ + "/.kvcfs/" + name).value_or("");
}

double TestMount::Metric(const std::string& name) const {
  std::istringstream lines(Virtual("metrics"));
  double sum = 0;
  bool found = false;
  for (std::string line; std::getline(lines, line);) {
    if (line.rfind(name, 0) != 0 || line.size() <= name.size()) continue;
    if (line[name.size()] != ' ' && line[name.size()] != '{') continue;
    sum += std::stod(line.substr(line.rfind(' ') + 1));
    found = true;
  }
  return found ? sum : -1;
}

std::string ModeName(const testing::TestParamInfo<Mode>& info) {
  return info.param == Mode::kPassthrough ? "passthrough" : "classic";
}

MountOptions OptionsFor(Mode mode) {
  MountOptions options;
  if (mode == Mode::kClassic) options.extra = {"--set", "fs.passthrough=off"};
  return options;
}

TestMount& SharedMount(Mode mode) {
  static std::map<Mode, std::unique_ptr<TestMount>> mounts;
  auto& mount = mounts[mode];
  if (mount == nullptr || !mount->running() || !mount->Answers()) {
    mount.reset();
    mount = std::make_unique<TestMount>(OptionsFor(mode));
    EXPECT_TRUE(mount->Start()) << mount->LogTail();
  }
  return *mount;
}

Namespace::Namespace(TestMount& mount, const std::string& name, uint64_t block_bytes)
    : path_(mount.mount_point() + "/" + name), name_(name) {
  if (::mkdir(path_.c_str(), 0755) != 0 && errno != EEXIST) {
    ADD_FAILURE() << "mkdir " << path_ << " " << ErrnoName(errno);
  }
  if (block_bytes != 0) {
    EXPECT_EQ(ErrnoName(SetXattrErrno(path_, "user.kvc.block_bytes", std::to_string(block_bytes))),
              "0");
  }
}

std::string Namespace::Chain(const std::string& tip) const {
  return path_ + "/" + (tip.empty() ? "root" : tip);
}

std::string Namespace::EntryName(uint32_t ordinal, const std::string& key) {
  return fmt::format("{:08}-{}", ordinal, key);
}

std::string Namespace::Entry(const std::string& tip, uint32_t ordinal,
                             const std::string& key) const {
  return Chain(tip) + "/" + EntryName(ordinal, key);
}

int Namespace::Put(const std::string& parent, const std::string& key,
                   std::string_view bytes) const {
  return WriteFile(Chain(parent) + "/" + key, bytes, O_CREAT | O_EXCL);
}

std::vector<std::string> Namespace::PutChain(const std::string& parent, uint64_t first,
                                             uint32_t count, size_t block_bytes) const {
  std::vector<std::string> keys;
  for (uint32_t i = 0; i < count; ++i) {
    const std::string& above = keys.empty() ? parent : keys.back();
    const std::string key = Key(first + i);
    EXPECT_EQ(ErrnoName(Put(above, key, Bytes(first + i, block_bytes))), "0") << "block " << i;
    keys.push_back(key);
  }
  return keys;
}

int64_t Namespace::Match(const std::vector<std::string>& keys, const std::string& options) const {
  const Fd fd = Open(MatchFile(), O_RDWR);
  if (!fd.valid()) return -1;
  std::string question = options;
  for (const std::string& key : keys) question += key + "\n";
  if (WriteAll(fd.get(), question, 65536) != 0) return -1;
  std::array<char, 65536> answer{};
  if (::read(fd.get(), answer.data(), answer.size() - 1) <= 0) return -1;
  return std::stoll(answer.data());
}

void MountTest::SetUp() {
  KVC_NEEDS_MOUNT();
  mount_ = &SharedMount(GetParam());
  std::string name = testing::UnitTest::GetInstance()->current_test_info()->name();
  std::replace(name.begin(), name.end(), '/', '-');
  ns_ = Namespace(*mount_, name, kBlockBytes);
}

void MountTest::TearDown() {
  if (mount_ == nullptr) return;
  EXPECT_TRUE(mount_->running()) << "the daemon ended during this test";
  EXPECT_TRUE(mount_->NeverCrashed()) << "the daemon crashed by itself, in this test or before";
  RunCommand({KVC_COMMAND, "drop", ns_.path()});  // room for the next; `drop` has tests of its own
  if (HasFailure()) {
    fmt::print("--- log of the daemon, its end ---\n{}\n---\n", mount_->LogTail());
    (void)std::fflush(stdout);
  }
}

}  // namespace kvcfs::test
