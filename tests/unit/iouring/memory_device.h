// A BlockDevice in memory that fails, tears, forgets and dies on request: the fake edge under real
// stores.
//
// What was written is volatile until a flush of its file. A crash keeps an arbitrary part of the
// volatile writes, some of them torn at a sector. Completions come in random order.
// Threads: any.
#pragma once

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "iouring/block_device.h"

namespace kvcfs::iouring {

// The medium: outlives the devices that are opened on it.
class MemoryDisk {
 public:
  struct Write {
    uint64_t offset = 0;
    std::vector<std::byte> bytes;
  };
  struct File {
    std::vector<std::byte> now;      // what reads see
    std::vector<std::byte> durable;  // what a crash leaves for sure
    std::vector<Write> unflushed;
  };

  explicit MemoryDisk(uint64_t seed) : random_(seed) {}

  // A fault for operation number n (from 0, counted over reads, writes and flushes): an errno, or
  // 0.
  using Fault = std::function<int(uint64_t number, const IoRequest& request)>;
  void SetFault(Fault fault) {
    MutexLock lock(mutex_);
    fault_ = std::move(fault);
  }
  void SetRoom(uint64_t bytes) {
    MutexLock lock(mutex_);
    room_ = bytes;
  }
  // From that operation on nothing reaches the medium any more: the machine is dead.
  void DieAt(uint64_t operation) {
    MutexLock lock(mutex_);
    die_at_ = operation;
  }
  uint64_t operations() {
    MutexLock lock(mutex_);
    return operations_;
  }
  uint64_t flushes() {
    MutexLock lock(mutex_);
    return flushes_;
  }
  bool dead() {
    MutexLock lock(mutex_);
    return operations_ > die_at_;
  }

  // Power comes back: some of what was not flushed is there, some is not, some in part.
  void Crash() {
    MutexLock lock(mutex_);
    for (auto& [name, file] : files_) {
      for (const Write& write : file->unflushed) Keep(*file, write);
      file->unflushed.clear();
      file->now = file->durable;
    }
    die_at_ = UINT64_MAX;
    operations_ = 0;
  }

  // For damage by tests: the bytes of a file.
  std::vector<std::byte>& Bytes(const std::string& name) { return files_.at(name)->now; }
  std::vector<std::string> Names() {
    MutexLock lock(mutex_);
    std::vector<std::string> names;
    for (const auto& [name, file] : files_) names.push_back(name);
    return names;
  }
  void Remove(const std::string& name) {
    MutexLock lock(mutex_);
    files_.erase(name);
  }

 private:
  friend class MemoryDevice;
  friend class MemoryQueue;

  void Keep(File& file, const Write& write) {
    const unsigned fate = std::uniform_int_distribution<unsigned>(0, 3)(random_);
    if (fate == 0) return;
    for (size_t at = 0; at < write.bytes.size(); at += 512) {
      if (fate == 1 && (random_() & 1) != 0) continue;  // torn
      const size_t bytes = std::min<size_t>(512, write.bytes.size() - at);
      const size_t to = write.offset + at;
      if (to + bytes > file.durable.size()) file.durable.resize(to + bytes);
      std::memcpy(file.durable.data() + to, write.bytes.data() + at, bytes);
    }
  }

  int Run(const IoRequest& request, File& file) {
    MutexLock lock(mutex_);
    const uint64_t number = operations_++;
    if (number >= die_at_) return EIO;
    if (const int error = fault_ ? fault_(number, request) : 0; error != 0) return error;
    switch (request.op) {
      case IoRequest::Op::kRead: {
        uint64_t at = request.offset;
        for (const auto& [data, bytes] : {std::pair{request.data, request.bytes},
                                          std::pair{request.then_data, request.then_bytes}}) {
          if (at + bytes > file.now.size()) return ENODATA;
          if (bytes != 0) std::memcpy(data, file.now.data() + at, bytes);
          at += bytes;
        }
        return 0;
      }
      case IoRequest::Op::kWrite: {
        const uint64_t end = request.offset + request.bytes;
        if (end > file.now.size()) file.now.resize(end);
        std::memcpy(file.now.data() + request.offset, request.data, request.bytes);
        file.unflushed.push_back(
            {request.offset, std::vector<std::byte>(request.data, request.data + request.bytes)});
        return 0;
      }
      case IoRequest::Op::kSync:
        ++flushes_;
        for (const Write& write : file.unflushed) {
          const uint64_t end = write.offset + write.bytes.size();
          if (end > file.durable.size()) file.durable.resize(end);
          std::memcpy(file.durable.data() + write.offset, write.bytes.data(), write.bytes.size());
        }
        file.unflushed.clear();
        return 0;
    }
    return EINVAL;
  }

  Mutex mutex_;
  std::mt19937_64 random_;
  std::map<std::string, std::shared_ptr<File>> files_;
  Fault fault_;
  uint64_t room_ = UINT64_MAX;
  uint64_t operations_ = 0;
  uint64_t flushes_ = 0;
  uint64_t die_at_ = UINT64_MAX;
};

class MemoryFile final : public BlockFile {
 public:
  explicit MemoryFile(std::shared_ptr<MemoryDisk::File> file) : file_(std::move(file)) {
    bytes_ = file_->now.size();
  }
  uint64_t bytes() const override { return bytes_; }
  MemoryDisk::File& file() const { return *file_; }

 private:
  std::shared_ptr<MemoryDisk::File> file_;
  uint64_t bytes_;
};

class MemoryQueue final : public IoQueue {
 public:
  MemoryQueue(std::shared_ptr<MemoryDisk> disk, unsigned depth, uint64_t seed)
      : disk_(std::move(disk)), depth_(depth), random_(seed) {}

  unsigned room() const override { return depth_ - in_flight(); }
  unsigned in_flight() const override { return static_cast<unsigned>(waiting_.size()); }
  void Push(const IoRequest& request) override { waiting_.push_back(request); }
  void Wait(unsigned at_least, std::vector<IoDone>& done) override {
    // Any of those in flight may be next, and more than were asked for may be done.
    const auto extra = std::uniform_int_distribution<unsigned>(0, 2)(random_);
    unsigned count = std::min(at_least + extra, in_flight());
    while (count-- != 0) {
      const size_t next = std::uniform_int_distribution<size_t>(0, waiting_.size() - 1)(random_);
      const IoRequest request = waiting_[next];
      waiting_.erase(waiting_.begin() + static_cast<ptrdiff_t>(next));
      MemoryDisk::File& file = static_cast<MemoryFile&>(*request.file).file();
      done.push_back({.tag = request.tag, .error = disk_->Run(request, file)});
    }
  }

 private:
  std::shared_ptr<MemoryDisk> disk_;
  const unsigned depth_;
  std::mt19937_64 random_;
  std::vector<IoRequest> waiting_;
};

class MemoryDevice final : public BlockDevice {
 public:
  explicit MemoryDevice(std::shared_ptr<MemoryDisk> disk) : disk_(std::move(disk)) {}

  Result<std::unique_ptr<BlockFile>> Create(const std::string& name, uint64_t bytes) override {
    MutexLock lock(disk_->mutex_);
    if (disk_->operations_ >= disk_->die_at_) return Error{Code::kIo, "dead"};
    uint64_t used = 0;
    for (const auto& [other, file] : disk_->files_) {
      if (other != name) used += file->now.size();
    }
    if (used + bytes > disk_->room_) return Error{Code::kNoSpace, "the disk is full"};
    auto file = std::make_shared<MemoryDisk::File>();
    file->now.resize(bytes);
    file->durable.resize(bytes);
    disk_->files_[name] = file;
    return std::unique_ptr<BlockFile>(std::make_unique<MemoryFile>(std::move(file)));
  }
  Result<std::unique_ptr<BlockFile>> OpenFile(const std::string& name) override {
    MutexLock lock(disk_->mutex_);
    const auto found = disk_->files_.find(name);
    if (found == disk_->files_.end()) return Error{Code::kNotFound, "no such file"};
    return std::unique_ptr<BlockFile>(std::make_unique<MemoryFile>(found->second));
  }
  Status Remove(const std::string& name) override {
    MutexLock lock(disk_->mutex_);
    if (disk_->operations_ >= disk_->die_at_) return Error{Code::kIo, "dead"};
    disk_->files_.erase(name);
    return {};
  }
  Result<std::vector<std::string>> List() override { return disk_->Names(); }
  std::unique_ptr<IoQueue> NewQueue(const IoQueueOptions& options) override {
    return std::make_unique<MemoryQueue>(disk_, options.depth, ++queues_);
  }
  std::string PathOf(const std::string& name) const override { return "memory/" + name; }

 private:
  std::shared_ptr<MemoryDisk> disk_;
  std::atomic<uint64_t> queues_{0};
};

}  // namespace kvcfs::iouring
