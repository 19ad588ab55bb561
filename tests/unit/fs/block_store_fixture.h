// A BlockStore on real parts in temporary directories, without FUSE; can crash and come back.
#pragma once

#include <atomic>
#include <cstring>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mutex.h"
#include "fs/block_store.h"
#include "meta/chain_key.h"
#include "tests/unit/fs/store_parts.h"

namespace kvcfs::fs {

// Passthrough that only hands out numbers, and knows which are out.
class CountedBacking final : public BackingOpener {
 public:
  std::atomic<bool> on = true;

  bool enabled() const override { return on; }
  Result<uint32_t> OpenBacking(int) override {
    MutexLock lock(mutex_);
    open_.insert(++last_);
    return last_;
  }
  void CloseBacking(uint32_t id) override {
    MutexLock lock(mutex_);
    EXPECT_EQ(open_.erase(id), 1u) << "id " << id;
  }
  void CloseAll() {
    MutexLock lock(mutex_);
    open_.clear();
  }
  bool AllClosed() {
    MutexLock lock(mutex_);
    return open_.empty();
  }

 private:
  Mutex mutex_;
  std::set<uint32_t> open_ KVC_GUARDED_BY(mutex_);
  uint32_t last_ KVC_GUARDED_BY(mutex_) = 0;
};

class NoNotifier final : public Notifier {
 public:
  std::atomic<int> epochs = 0;
  void InvalidateInode(Ino) override {}
  void InvalidateEntry(Ino, const std::string&) override {}
  void BumpEpoch() override { ++epochs; }
};

class BlockStoreTest : public testing::Test, protected StoreParts {
 protected:
  static constexpr uint64_t kBlockBytes = 64 << 10;

  void SetUp() override {
    SetLogLevel(LogLevel::kError);
    options_.writeback_delay = std::chrono::milliseconds(0);
    options_.room_wait = std::chrono::milliseconds(2000);
    options_.publish_wait = std::chrono::milliseconds(200);
    Start();
    const auto made = spaces_->Create({}, "ns", 0755);
    ASSERT_TRUE(made);
    space_ = *made;
    space_.block_bytes = kBlockBytes;
    ASSERT_TRUE(spaces_->Update(space_));
  }
  void TearDown() override { Stop(); }

  void Start() {
    std::vector<RecoveredEntry> newer;
    OpenParts(BlockStore::AppliedSequence,
              [&](const iouring::EntryMeta& meta, const iouring::SegmentPlace& place) {
                newer.push_back({meta, place});
              });
    if (HasFatalFailure()) return;
    spaces_ = std::make_unique<NamespaceTable>(*meta_, clock_);
    ASSERT_TRUE(spaces_->Load().ok());
    options_.lease_bytes_max = lease_bytes_max_;
    blocks_ = std::make_unique<BlockStore>(options_, BlockStoreParts{.namespaces = spaces_.get(),
                                                                     .meta = meta_.get(),
                                                                     .slots = slots_.get(),
                                                                     .resident = resident_.get(),
                                                                     .segments = segments_.get(),
                                                                     .backing = &backing_,
                                                                     .notifier = &notifier_,
                                                                     .clock = &clock_});
    ASSERT_TRUE(blocks_->Recover(std::move(newer)).ok());
    owner_.blocks = blocks_.get();
    if (segments_ != nullptr) segments_->Start(&owner_);
    resident_->Start();
    blocks_->Start();
  }
  // Everything in memory goes; what lies in the directories stays, as after kill -9.
  void Stop() {
    if (blocks_ == nullptr) return;
    resident_->Stop();
    blocks_->Stop();
    segments_.reset();
    blocks_.reset();
    spaces_.reset();
    CloseParts();
  }
  void Restart(bool keep_dram, bool resumed = false) {
    Stop();
    if (!keep_dram) {
      ForgetDram();
      backing_.CloseAll();
    }
    options_.resumed = resumed;
    Start();
  }

  static BlockKey KeyOf(const BlockKey* parent, uint64_t id) {
    return meta::ChainKey(parent != nullptr ? *parent : BlockKey{}, id);
  }
  static std::string BytesOf(const BlockKey& key, size_t length) {
    std::string bytes(length, 0);
    for (size_t i = 0; i < length; ++i) {
      bytes[i] = static_cast<char>(key.bytes[i % 32] + i / 4096);
    }
    return bytes;
  }
  static std::optional<BlockKey> Parent(const BlockKey& key) {
    return key.IsZero() ? std::nullopt : std::optional(key);
  }

  // Create and write; the caller closes.
  FsResult<Ino> Begin(const BlockKey& parent, const BlockKey& key, const std::string& bytes) {
    const auto made = blocks_->Create({}, space_, Parent(parent), key, O_WRONLY);
    if (!made) return Fail(made.error().value);
    const auto file =
        slots_->OpenFile(static_cast<iouring::SlotId>(made->ino & 0xffffffff), O_WRONLY);
    EXPECT_TRUE(file.ok());
    EXPECT_EQ(::pwrite(file->get(), bytes.data(), bytes.size(), 0),
              static_cast<ssize_t>(bytes.size()));
    return made->ino;
  }
  int Put(const BlockKey& parent, const BlockKey& key, size_t length = kBlockBytes,
          bool fsync = false) {
    const auto ino = Begin(parent, key, BytesOf(key, length));
    if (!ino) return ino.error().value;
    if (fsync) {
      EXPECT_TRUE(blocks_->PendingFsync(*ino));
    }
    const FsStatus flushed = blocks_->PendingFlush({.pid = ::getpid()}, *ino);
    blocks_->PendingRelease(*ino, 0);
    return flushed ? 0 : flushed.error().value;
  }
  // A chain of `count` blocks; returns its keys.
  std::vector<BlockKey> PutChain(size_t count, uint64_t seed, bool fsync = false) {
    std::vector<BlockKey> keys;
    BlockKey parent;
    for (size_t i = 0; i < count; ++i) {
      keys.push_back(meta::ChainKey(parent, seed * 1000 + i));
      EXPECT_EQ(Put(parent, keys.back(), kBlockBytes, fsync), 0) << i;
      parent = keys.back();
    }
    return keys;
  }
  bool Has(const BlockKey& key) {
    return blocks_->Find(space_.id, key, BlockStore::Use::kPeek).has_value();
  }
  // The bytes as a reader gets them, or nothing for a miss.
  std::optional<std::string> Read(const BlockKey& key) {
    const auto view = blocks_->Find(space_.id, key, BlockStore::Use::kPeek);
    if (!view) return std::nullopt;
    const auto open = blocks_->Open({}, view->block_ino(), O_RDONLY);
    if (!open) return std::nullopt;
    const auto bytes = blocks_->Mapped(view->block_ino(), open->handle);
    EXPECT_TRUE(bytes);
    std::string text(reinterpret_cast<const char*>(bytes->data()), bytes->size());
    blocks_->Release(view->block_ino(), open->handle);
    return text;
  }

  uint64_t lease_bytes_max_ = 32u << 20;
  ManualClock clock_;
  CountedBacking backing_;
  NoNotifier notifier_;
  BlockStoreOptions options_;
  std::unique_ptr<NamespaceTable> spaces_;
  std::unique_ptr<BlockStore> blocks_;
  BlockOwner owner_;
  Namespace space_;
};

}  // namespace kvcfs::fs
