// Blocks that close() after an fsync acknowledged, kept where the cluster does not see it: what
// must be there whatever dies. One thread writes chains at one mount, another reads at a second
// one.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <map>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "tests/integration/mount_fixture.h"

namespace kvcfs::test {

class Ledger {
 public:
  static constexpr size_t kBlockBytes = 16 << 10;
  static constexpr uint64_t kChainBlocks = 12;

  // Block i of chain c has the key and the bytes of this number.
  static uint64_t NumberOf(uint64_t chain, uint64_t block) { return chain * 1000 + block; }
  static std::string BytesOf(uint64_t chain, uint64_t block) {
    return Bytes(NumberOf(chain, block), kBlockBytes + block);
  }

  Ledger(Namespace writes, Namespace reads)
      : writes_(std::move(writes)), reads_(std::move(reads)) {}
  ~Ledger() { Stop(); }
  Ledger(const Ledger&) = delete;
  Ledger& operator=(const Ledger&) = delete;

  void Start() {
    stop_ = false;
    threads_.emplace_back([this] { Write(); });
    threads_.emplace_back([this] { Read(); });
  }
  void Stop() {
    stop_ = true;
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
  }

  // How many leading blocks of each chain were acknowledged.
  std::map<uint64_t, uint64_t> acknowledged() {
    std::lock_guard lock(mutex_);
    return acknowledged_;
  }
  uint64_t blocks() {
    std::lock_guard lock(mutex_);
    uint64_t count = 0;
    for (const auto& [chain, blocks] : acknowledged_) count += blocks;
    return count;
  }
  uint64_t reads() const { return read_; }
  // Of all calls of both threads.
  std::chrono::milliseconds longest_call() {
    std::lock_guard lock(mutex_);
    return longest_;
  }
  // What calls said other than 0 and a miss, and how often.
  std::string Describe() {
    std::lock_guard lock(mutex_);
    uint64_t acknowledged = 0;
    for (const auto& [chain, blocks] : acknowledged_) acknowledged += blocks;
    std::string text = fmt::format("{} blocks acknowledged, {} read, {} missed, longest call {} ms",
                                   acknowledged, read_.load(), missed_.load(), longest_.count());
    for (const auto& [what, count] : errors_) text += fmt::format(", {}: {}", what, count);
    return text;
  }

 private:
  // The errno of one call, by the clock.
  template <typename Call>
  int Timed(const char* what, const Call& call) {
    const auto began = std::chrono::steady_clock::now();
    const int error = call();
    const auto took = std::chrono::duration_cast<std::chrono::milliseconds>(
        std::chrono::steady_clock::now() - began);
    std::lock_guard lock(mutex_);
    longest_ = std::max(longest_, took);
    if (error != 0 && error != ENOENT) ++errors_[std::string(what) + " " + ErrnoName(error)];
    return error;
  }

  bool PutDurably(uint64_t chain, uint64_t block) {
    const std::string path = writes_.Chain(block == 0 ? "" : Key(NumberOf(chain, block - 1))) +
                             "/" + Key(NumberOf(chain, block));
    const std::string bytes = BytesOf(chain, block);
    Fd fd;
    const auto open = [&] {
      fd = Open(path, O_WRONLY | O_CREAT | O_EXCL);
      return fd.valid() ? 0 : errno;
    };
    if (Timed("create", open) != 0) return false;
    if (Timed("write", [&] { return WriteAll(fd.get(), bytes); }) != 0) return false;
    if (Timed("fsync", [&] { return ::fsync(fd.get()) == 0 ? 0 : errno; }) != 0) return false;
    return Timed("close", [&] { return CloseErrno(std::move(fd)); }) == 0;
  }
  void Write() {
    for (; !stop_; ++next_chain_) {
      for (uint64_t block = 0; block < kChainBlocks && !stop_; ++block) {
        if (!PutDurably(next_chain_, block)) break;
        {
          std::lock_guard lock(mutex_);
          acknowledged_[next_chain_] = block + 1;
        }
        // All of it must fit, twice: what is evicted is not lost.
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
      }
    }
  }
  void Read() {
    std::mt19937_64 random(1);
    while (!stop_) {
      const auto known = acknowledged();
      if (known.empty()) {
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
        continue;
      }
      const auto& [chain, blocks] =
          *std::next(known.begin(), static_cast<ptrdiff_t>(random() % known.size()));
      // What was never read here comes from a server, what was from this host's own copy.
      const uint64_t block = random() % blocks;
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
      const std::string path = reads_.ByKey(Key(NumberOf(chain, block)));
      Fd fd;
      const auto open = [&] {
        fd = Open(path, O_RDONLY);
        return fd.valid() ? 0 : errno;
      };
      std::optional<std::string> bytes;
      const auto read = [&] {
        bytes = ReadRest(fd.get());
        return bytes ? 0 : errno;
      };
      if (Timed("open", open) != 0 || Timed("read", read) != 0) {
        ++missed_;  // permitted, while something is away
        continue;
      }
      EXPECT_SAME_BYTES(BytesOf(chain, block), *bytes) << path;
      ++read_;
    }
  }

  const Namespace writes_, reads_;
  std::atomic<bool> stop_{false};
  std::atomic<uint64_t> read_{0}, missed_{0};
  uint64_t next_chain_ = 1;  // the writer's
  std::mutex mutex_;
  std::map<uint64_t, uint64_t> acknowledged_;
  std::map<std::string, uint64_t> errors_;
  std::chrono::milliseconds longest_{0};
  std::vector<std::thread> threads_;
};

}  // namespace kvcfs::test
