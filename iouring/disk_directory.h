// A BlockDevice in a directory of the real filesystem.
//
// Threads: any.
// Fails: kNoSpace the disk is full (nothing is left behind); others as the system says.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "base/fd.h"
#include "iouring/block_device.h"

namespace kvcfs::iouring {

struct DiskDirectoryOptions {
  std::string path;
  bool direct = true;      // O_DIRECT where the filesystem has it
  bool read_only = false;  // for fsck: nothing is made
};

class DiskDirectory final : public BlockDevice {
 public:
  // Makes the directory if it is absent.
  static Result<std::unique_ptr<DiskDirectory>> Open(const DiskDirectoryOptions& options);

  Result<std::unique_ptr<BlockFile>> Create(const std::string& name, uint64_t bytes) override;
  Result<std::unique_ptr<BlockFile>> OpenFile(const std::string& name) override;
  Status Remove(const std::string& name) override;
  Result<std::vector<std::string>> List() override;
  std::unique_ptr<IoQueue> NewQueue(const IoQueueOptions& options) override;
  std::string PathOf(const std::string& name) const override;

 private:
  DiskDirectory(const DiskDirectoryOptions& options, Fd directory)
      : options_(options), directory_(std::move(directory)), direct_(options.direct) {}
  Result<Fd> OpenFd(const std::string& name, int flags);

  const DiskDirectoryOptions options_;
  Fd directory_;
  std::atomic<bool> direct_;
  std::atomic<bool> ring_refused_{false};
};

}  // namespace kvcfs::iouring
