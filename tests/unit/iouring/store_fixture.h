// What tests of the segment store share: entries with known content, an owner that keeps books,
// a store on a MemoryDisk or in a directory, and --seed.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <stdlib.h>

#include "base/log.h"
#include "base/mutex.h"
#include "iouring/aligned_buffer.h"
#include "iouring/segment_format.h"
#include "iouring/segment_open.h"
#include "iouring/segment_store.h"
#include "tests/unit/iouring/memory_device.h"

namespace kvcfs::iouring {

// `--seed N` after gtest's own flags; printed, so that a failure can be had again.
inline uint64_t Seed() {
  static const uint64_t seed = [] {
    uint64_t value = std::random_device{}();
    const std::vector<std::string> arguments = testing::internal::GetArgvs();
    for (size_t i = 1; i < arguments.size(); ++i) {
      if (arguments[i] == "--seed" && i + 1 < arguments.size()) {
        value = std::stoull(arguments[i + 1]);
      } else if (arguments[i].rfind("--seed=", 0) == 0) {
        value = std::stoull(arguments[i].substr(7));
      }
    }
    std::printf("--seed %llu\n", static_cast<unsigned long long>(value));
    return value;
  }();
  return seed;
}

inline constexpr Uuid kNode{1, 2, 3};
inline constexpr Uuid kSpace{7, 7, 7};

inline BlockKey KeyOf(uint64_t id) {
  BlockKey key;
  std::mt19937_64 random(id + 1);
  for (size_t i = 0; i < 4; ++i) {
    const uint64_t word = random();
    std::memcpy(key.bytes.data() + 8 * i, &word, 8);
  }
  return key;
}

inline EntryMeta BlockMeta(uint64_t id, uint64_t length) {
  EntryMeta meta;
  meta.kind = EntryKind::kBlock;
  meta.namespace_uuid = kSpace;
  meta.key = KeyOf(id);
  meta.parent = KeyOf(id / 2);
  meta.ordinal = static_cast<uint32_t>(id % 1000);
  meta.length = length;
  meta.mtime_nanos = 12345;
  return meta;
}

inline EntryMeta FileMeta(uint64_t ino, uint64_t version, uint64_t length) {
  EntryMeta meta;
  meta.kind = EntryKind::kFile;
  meta.namespace_uuid = kSpace;
  meta.ino = ino;
  meta.version = version;
  meta.length = length;
  return meta;
}

// The content follows from the name (and version) alone.
inline void FillContent(const EntryMeta& meta, std::span<std::byte> into) {
  uint64_t state = meta.key.Word(0) ^ (meta.ino * 0x9E3779B97F4A7C15ULL) ^ (meta.version << 32) ^ 1;
  for (size_t at = 0; at < into.size(); at += 8) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    std::memcpy(into.data() + at, &state, std::min<size_t>(8, into.size() - at));
  }
}

inline bool HasContent(const EntryMeta& meta, std::span<const std::byte> data) {
  AlignedBuffer expected(std::max<uint64_t>(1, meta.length));
  FillContent(meta, expected.span().first(meta.length));
  return std::memcmp(expected.data(), data.data(), meta.length) == 0;
}

struct Located {
  EntryMeta meta;
  SegmentPlace place;
};

// Keeps books like the filesystem does: what is live, where it lies.
class Books final : public EntryOwner {
 public:
  using Name = std::pair<BlockKey, uint64_t>;  // key, ino

  static Name NameOf(const EntryMeta& meta) { return {meta.key, meta.ino}; }

  void SetStore(SegmentStore* store) { store_ = store; }

  void Clear() {
    MutexLock lock(mutex_);
    live_.clear();
  }
  void Put(const EntryMeta& meta, const SegmentPlace& place) {
    std::optional<Located> old;
    {
      MutexLock lock(mutex_);
      Located& entry = live_[NameOf(meta)];
      if (entry.place.valid()) old = entry;
      entry = {meta, place};
    }
    if (old && store_ != nullptr) store_->MarkDead(old->place, old->meta.length);
  }
  bool Drop(const EntryMeta& meta) {
    std::optional<Located> old;
    {
      MutexLock lock(mutex_);
      const auto found = live_.find(NameOf(meta));
      if (found == live_.end()) return false;
      old = found->second;
      live_.erase(found);
    }
    if (store_ != nullptr) store_->MarkDead(old->place, old->meta.length);
    return true;
  }
  // As a rebuild from the segments alone would: entries and tombstones in the visitor's order.
  void Replay(const EntryMeta& meta, const SegmentPlace& place) {
    MutexLock lock(mutex_);
    if (IsTombstone(meta.kind)) {
      const auto found = live_.find(NameOf(meta));
      if (found != live_.end() && found->second.place.sequence < place.sequence) live_.erase(found);
    } else {
      live_[NameOf(meta)] = {meta, place};
    }
  }
  std::vector<Located> All() {
    MutexLock lock(mutex_);
    std::vector<Located> all;
    for (const auto& [name, entry] : live_) all.push_back(entry);
    return all;
  }
  std::optional<Located> Find(const EntryMeta& meta) {
    MutexLock lock(mutex_);
    const auto found = live_.find(NameOf(meta));
    if (found == live_.end()) return std::nullopt;
    return found->second;
  }

  Fate Judge(const EntryMeta& meta, const SegmentPlace& place) override {
    MutexLock lock(mutex_);
    const auto found = live_.find(NameOf(meta));
    return found != live_.end() && found->second.place == place ? Fate::kMove : Fate::kDead;
  }
  void Moved(const EntryMeta& meta, const SegmentPlace& before, const SegmentPlace& now) override {
    {
      MutexLock lock(mutex_);
      ++moved_;
      const auto found = live_.find(NameOf(meta));
      if (found != live_.end() && found->second.place == before) {
        found->second.place = now;
        return;
      }
    }
    store_->MarkDead(now, meta.length);
  }
  void Lost(const EntryMeta& meta, const SegmentPlace& place) override {
    MutexLock lock(mutex_);
    ++lost_;
    const auto found = live_.find(NameOf(meta));
    if (found != live_.end() && found->second.place == place) live_.erase(found);
  }
  void Shed(uint64_t bytes) override {
    // The oldest first.
    std::vector<Located> all = All();
    std::sort(all.begin(), all.end(),
              [](const Located& a, const Located& b) { return a.meta.origin < b.meta.origin; });
    uint64_t shed = 0;
    ++shed_calls_;
    if (refuse_to_shed_) return;
    for (const Located& entry : all) {
      if (shed >= bytes) break;
      shed += entry.meta.length;
      Drop(entry.meta);
    }
  }

  std::atomic<uint64_t> moved_{0}, lost_{0}, shed_calls_{0};
  std::atomic<bool> refuse_to_shed_{false};

 private:
  Mutex mutex_;
  SegmentStore* store_ = nullptr;
  std::map<Name, Located> live_;
};

class StoreTest : public testing::Test {
 protected:
  static constexpr uint64_t kSegment = 1 << 20;

  StoreTest() : disk_(std::make_shared<MemoryDisk>(Seed())) {
    SetLogLevel(LogLevel::kError);
    options_.node_uuid = kNode;
    options_.segment_bytes = kSegment;
    options_.capacity_bytes = 16 * kSegment;
    options_.staging_bytes = 2 << 20;
    options_.queue_bytes_max = 64 << 20;
  }

  // What faults cause on purpose need not be read by anybody.
  static void Quiet() {
    SetLogLevel(static_cast<LogLevel>(static_cast<int>(LogLevel::kError) + 1));
  }

  Status TryOpen(uint64_t scan_after = 0) {
    visited_.clear();
    auto store = OpenSegmentStore(std::make_unique<MemoryDevice>(disk_), options_, scan_after,
                                  [this](const EntryMeta& meta, const SegmentPlace& place) {
                                    visited_.push_back({meta, place});
                                  });
    KVC_TRY_ASSIGN(store_, std::move(store));
    return {};
  }
  void Open(uint64_t scan_after = 0) {
    const Status status = TryOpen(scan_after);
    ASSERT_TRUE(status.ok()) << status.error().text;
  }
  void Close() { store_.reset(); }
  void Crash() {
    Quiet();
    disk_->DieAt(0);
    Close();
    disk_->Crash();
  }

  struct Outcome {
    Result<SegmentPlace> place = Error{Code::kInternal, "not done"};
    EntryMeta meta;
  };

  // Queues an entry; the outcome is set when it is done.
  std::shared_ptr<Outcome> Queue(const EntryMeta& meta, bool durable = false) {
    auto outcome = std::make_shared<Outcome>();
    AppendRequest request;
    request.meta = meta;
    request.durable = durable;
    request.fill = [meta](std::span<std::byte> into) {
      FillContent(meta, into);
      return true;
    };
    request.done = [this, outcome](Result<SegmentPlace> place, const EntryMeta& done_meta) {
      MutexLock lock(mutex_);
      outcome->place = std::move(place);
      outcome->meta = done_meta;
      order_.push_back(done_meta);
      ++done_;
      changed_.notify_all();
    };
    const Status status = store_->Append(std::move(request));
    EXPECT_TRUE(status.ok()) << status.error().text;
    MutexLock lock(mutex_);
    ++queued_;
    return outcome;
  }
  void WaitForAll() {
    MutexLock lock(mutex_);
    while (done_ < queued_) changed_.wait(lock.native());
  }
  Outcome Append(const EntryMeta& meta, bool durable = false) {
    const auto outcome = Queue(meta, durable);
    WaitForAll();
    MutexLock lock(mutex_);
    return *outcome;
  }

  // kOk: exact bytes. Anything else: not there. Wrong bytes fail the test.
  Code ReadBack(const EntryMeta& meta, const SegmentPlace& place) {
    AlignedBuffer memory(std::max<uint64_t>(1, meta.length));
    const Status status =
        store_->Read(place, meta, memory.span().first(RoundUpToPage(meta.length)));
    if (status.ok()) {
      EXPECT_TRUE(HasContent(meta, memory.span())) << "wrong bytes";
    }
    return status.code();
  }

  SegmentScan Scan() {
    MemoryDevice device(disk_);
    auto scan = ScanSegmentsOn(device, nullptr);
    EXPECT_TRUE(scan.ok());
    return scan.ok() ? *scan : SegmentScan{};
  }

  std::shared_ptr<MemoryDisk> disk_;
  SegmentStoreOptions options_;
  std::vector<Located> visited_;
  Mutex mutex_;
  std::condition_variable changed_;
  uint64_t queued_ = 0, done_ = 0;
  std::vector<EntryMeta> order_;
  std::unique_ptr<SegmentStore> store_;
};

}  // namespace kvcfs::iouring
