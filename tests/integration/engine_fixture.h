// What the programs that play an engine share: where they run, and the calls that libraries make.
//
// Each program is a test that makes the calls of one engine's backend in the same order and checks
// what they answer. It knows nothing of kvcfs: it is given a directory. On the disk and on a tmpfs
// it proves itself; under MNT/<namespace>/files it proves the mount, in each mode.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include <gtest/gtest.h>
#include <liburing.h>
#include <linux/aio_abi.h>

#include "tests/integration/mount_fixture.h"

namespace kvcfs::test {

enum class Place { kDisk, kTmpfs, kPassthrough, kClassic };
std::string PlaceName(const testing::TestParamInfo<Place>& info);

class EngineTest : public testing::TestWithParam<Place> {
 protected:
  // A block of real models lies between 160 KiB and 4 MiB; these are of both sizes' kind: a
  // multiple of 4 KiB, as O_DIRECT wants it.
  static constexpr size_t kBlockBytes = 640 << 10;

  void SetUp() override;
  void TearDown() override;
  bool on_mount() const { return GetParam() != Place::kDisk && GetParam() != Place::kTmpfs; }
  const std::string& directory() const { return directory_; }
  std::string At(const std::string& name) const { return directory_ + "/" + name; }
  // Reads the file in the plainest way and compares.
  void ExpectFile(const std::string& name, std::string_view bytes);

 private:
  std::unique_ptr<TemporaryDirectory> scratch_;
  TestMount* mount_ = nullptr;
  std::string directory_;
};

#define KVC_ALL_PLACES(suite)                                                              \
  INSTANTIATE_TEST_SUITE_P(                                                                \
      Places, suite,                                                                       \
      testing::Values(::kvcfs::test::Place::kDisk, ::kvcfs::test::Place::kTmpfs,           \
                      ::kvcfs::test::Place::kPassthrough, ::kvcfs::test::Place::kClassic), \
      ::kvcfs::test::PlaceName)

// Memory as engines have it for O_DIRECT: 4 KiB aligned, `shift` bytes behind that.
class Buffer {
 public:
  explicit Buffer(size_t bytes, size_t shift = 0);
  explicit Buffer(std::string_view content, size_t shift = 0);
  ~Buffer();
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  char* data() const { return memory_ + shift_; }
  size_t size() const { return bytes_; }
  std::string_view view() const { return {data(), bytes_}; }
  void Clear();

 private:
  char* memory_ = nullptr;
  size_t bytes_, shift_;
};

// Python's open(): openat, fstat, ioctl(TCGETS) = ENOTTY, lseek(0, SEEK_CUR).
Fd PythonOpen(const std::string& path, int flags, mode_t mode = 0666);

// write() of the whole buffer in one call; anything else is a failure of the test.
void WriteOnce(int fd, const Buffer& buffer);
void PwriteOnce(int fd, const Buffer& buffer, off_t offset);
// read() into the whole buffer in one call: no short read before the end of the file.
void ReadOnce(int fd, Buffer& buffer);
void PreadOnce(int fd, Buffer& buffer, off_t offset);

// Linux AIO without a library: io_setup, io_submit, io_getevents.
class LinuxAio {
 public:
  explicit LinuxAio(unsigned depth);
  ~LinuxAio();
  LinuxAio(const LinuxAio&) = delete;
  LinuxAio& operator=(const LinuxAio&) = delete;
  void Prepare(bool write, int fd, char* data, size_t bytes, off_t offset);
  // Submits what was prepared and polls, as NIXL does, until all is done; every result must be
  // whole.
  void SubmitAndPoll();

 private:
  aio_context_t context_ = 0;
  std::vector<struct iocb> requests_;
};

// The same through io_uring.
class Uring {
 public:
  explicit Uring(unsigned depth, unsigned flags = 0);
  ~Uring();
  Uring(const Uring&) = delete;
  Uring& operator=(const Uring&) = delete;
  void Prepare(bool write, int fd, char* data, size_t bytes, off_t offset);
  void SubmitAndWait();
  // A ring of these flags is to be had on this kernel.
  bool valid() const { return valid_; }

 private:
  struct io_uring ring_ {};
  bool valid_ = false;
  std::vector<int> wanted_;
};

// mkdir of every level that is missing, as os.makedirs does; EEXIST is no error.
void MakeDirectories(const std::string& path, mode_t mode = 0777);

}  // namespace kvcfs::test
