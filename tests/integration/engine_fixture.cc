#include "tests/integration/engine_fixture.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <termios.h>

namespace kvcfs::test {

std::string PlaceName(const testing::TestParamInfo<Place>& info) {
  switch (info.param) {
    case Place::kDisk:
      return "disk";
    case Place::kTmpfs:
      return "tmpfs";
    case Place::kPassthrough:
      return "passthrough";
    case Place::kClassic:
      return "classic";
  }
  return "";
}

void EngineTest::SetUp() {
  if (!on_mount()) {
    scratch_ =
        std::make_unique<TemporaryDirectory>(GetParam() == Place::kDisk ? "/tmp" : "/dev/shm");
    directory_ = scratch_->path();
    return;
  }
  KVC_NEEDS_MOUNT();
  mount_ = &SharedMount(GetParam() == Place::kPassthrough ? Mode::kPassthrough : Mode::kClassic);
  const Namespace space(*mount_, "engine", 0);
  std::string name = testing::UnitTest::GetInstance()->current_test_info()->name();
  std::replace(name.begin(), name.end(), '/', '-');
  directory_ = space.Files() + "/" + name;
  ASSERT_OK(::mkdir(directory_.c_str(), 0777));
}

void EngineTest::TearDown() {
  if (mount_ == nullptr) return;
  EXPECT_TRUE(mount_->running()) << "the daemon ended during this test";
  EXPECT_TRUE(mount_->NeverCrashed()) << "the daemon crashed by itself, in this test or before";
  const CommandResult rm = RunCommand({"rm", "-r", directory_});
  EXPECT_EQ(rm.status, 0) << rm.err.substr(0, 500);
  if (HasFailure()) {
    fmt::print("--- log of the daemon, its end ---\n{}\n---\n", mount_->LogTail());
    (void)std::fflush(stdout);
  }
}

void EngineTest::ExpectFile(const std::string& name, std::string_view bytes) {
  const auto got = ReadWhole(At(name));
  ASSERT_TRUE(got) << name << " " << ErrnoName(errno);
  EXPECT_EQ(Difference(bytes, *got), "equal") << name;
  EXPECT_EQ(StatOf(At(name)).st_size, static_cast<off_t>(bytes.size())) << name;
}

Buffer::Buffer(size_t bytes, size_t shift) : bytes_(bytes), shift_(shift) {
  void* memory = nullptr;
  const size_t whole = (bytes + shift + 4095) / 4096 * 4096;
  if (::posix_memalign(&memory, 4096, std::max<size_t>(whole, 4096)) != 0) std::abort();
  memory_ = static_cast<char*>(memory);
  std::memset(memory_, 0, whole);
}

Buffer::Buffer(std::string_view content, size_t shift) : Buffer(content.size(), shift) {
  std::memcpy(data(), content.data(), content.size());
}

Buffer::~Buffer() {
  std::free(memory_);
}

void Buffer::Clear() {
  std::memset(data(), 0, bytes_);
}

Fd PythonOpen(const std::string& path, int flags, mode_t mode) {
  Fd fd = Open(path, flags, mode);
  EXPECT_TRUE(fd.valid()) << path << " " << ErrnoName(errno);
  if (!fd.valid()) return fd;
  struct stat attr {};
  EXPECT_OK(::fstat(fd.get(), &attr));
  struct termios settings {};
  EXPECT_ERRNO(ENOTTY, ::ioctl(fd.get(), TCGETS, &settings));
  EXPECT_EQ(::lseek(fd.get(), 0, SEEK_CUR), 0);
  return fd;
}

void WriteOnce(int fd, const Buffer& buffer) {
  EXPECT_EQ(::write(fd, buffer.data(), buffer.size()), static_cast<ssize_t>(buffer.size()))
      << ErrnoName(errno);
}

void PwriteOnce(int fd, const Buffer& buffer, off_t offset) {
  EXPECT_EQ(::pwrite(fd, buffer.data(), buffer.size(), offset), static_cast<ssize_t>(buffer.size()))
      << ErrnoName(errno) << " at " << offset;
}

void ReadOnce(int fd, Buffer& buffer) {
  EXPECT_EQ(::read(fd, buffer.data(), buffer.size()), static_cast<ssize_t>(buffer.size()))
      << ErrnoName(errno);
}

void PreadOnce(int fd, Buffer& buffer, off_t offset) {
  EXPECT_EQ(::pread(fd, buffer.data(), buffer.size(), offset), static_cast<ssize_t>(buffer.size()))
      << ErrnoName(errno) << " at " << offset;
}

LinuxAio::LinuxAio(unsigned depth) {
  EXPECT_EQ(::syscall(SYS_io_setup, depth, &context_), 0) << ErrnoName(errno);
}

LinuxAio::~LinuxAio() {
  ::syscall(SYS_io_destroy, context_);
}

void LinuxAio::Prepare(bool write, int fd, char* data, size_t bytes, off_t offset) {
  struct iocb request {};
  request.aio_fildes = static_cast<uint32_t>(fd);
  request.aio_lio_opcode = write ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD;
  request.aio_buf = reinterpret_cast<uint64_t>(data);
  request.aio_nbytes = bytes;
  request.aio_offset = offset;
  request.aio_data = bytes;
  requests_.push_back(request);
}

void LinuxAio::SubmitAndPoll() {
  std::vector<struct iocb*> pointers;
  for (struct iocb& request : requests_) pointers.push_back(&request);
  size_t submitted = 0, done = 0;
  std::array<struct io_event, 64> events{};
  while (done < pointers.size()) {
    if (submitted < pointers.size()) {
      const long count = ::syscall(SYS_io_submit, context_, pointers.size() - submitted,
                                   pointers.data() + submitted);
      ASSERT_TRUE(count > 0 || errno == EAGAIN) << ErrnoName(errno);
      if (count > 0) submitted += static_cast<size_t>(count);
    }
    struct timespec no_wait {};
    const long count =
        ::syscall(SYS_io_getevents, context_, 0, events.size(), events.data(), &no_wait);
    ASSERT_GE(count, 0) << ErrnoName(errno);
    for (long i = 0; i < count; ++i) {
      const struct io_event& event = events[static_cast<size_t>(i)];
      EXPECT_EQ(event.res, static_cast<int64_t>(event.data)) << "a short completion";
    }
    done += static_cast<size_t>(count);
  }
  requests_.clear();
}

Uring::Uring(unsigned depth, unsigned flags) {
  valid_ = ::io_uring_queue_init(depth, &ring_, flags) == 0;
}

Uring::~Uring() {
  if (valid_) ::io_uring_queue_exit(&ring_);
}

void Uring::Prepare(bool write, int fd, char* data, size_t bytes, off_t offset) {
  struct io_uring_sqe* entry = ::io_uring_get_sqe(&ring_);
  ASSERT_NE(entry, nullptr);
  if (write) {
    ::io_uring_prep_write(entry, fd, data, static_cast<unsigned>(bytes),
                          static_cast<uint64_t>(offset));
  } else {
    ::io_uring_prep_read(entry, fd, data, static_cast<unsigned>(bytes),
                         static_cast<uint64_t>(offset));
  }
  ::io_uring_sqe_set_data64(entry, wanted_.size());
  wanted_.push_back(static_cast<int>(bytes));
}

void Uring::SubmitAndWait() {
  ASSERT_EQ(::io_uring_submit(&ring_), static_cast<int>(wanted_.size()));
  for (size_t i = 0; i < wanted_.size(); ++i) {
    struct io_uring_cqe* completion = nullptr;
    ASSERT_EQ(::io_uring_wait_cqe(&ring_, &completion), 0);
    const uint64_t which = ::io_uring_cqe_get_data64(completion);
    EXPECT_EQ(completion->res, wanted_[which]) << "a short completion or an error";
    ::io_uring_cqe_seen(&ring_, completion);
  }
  wanted_.clear();
}

void MakeDirectories(const std::string& path, mode_t mode) {
  if (::mkdir(path.c_str(), mode) == 0) return;
  if (errno == ENOENT) {
    MakeDirectories(path.substr(0, path.rfind('/')), mode);
    if (::mkdir(path.c_str(), mode) == 0) return;
  }
  ASSERT_EQ(ErrnoName(errno), "EEXIST") << path;  // somebody was faster
  EXPECT_TRUE(S_ISDIR(StatOf(path).st_mode)) << path;
}

}  // namespace kvcfs::test
