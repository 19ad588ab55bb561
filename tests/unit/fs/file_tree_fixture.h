// A FileTree on real parts in temporary directories, without FUSE; can crash and come back.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <vector>

#include <fcntl.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"
#include "base/mutex.h"
#include "fs/file_tree.h"
#include "iouring/segment_store.h"
#include "iouring/slot_tier.h"
#include "meta/meta_store.h"

namespace kvcfs::fs {

// Passthrough without a kernel: an id is a duplicate of the descriptor, to read through.
class FakeBacking final : public BackingOpener {
 public:
  std::atomic<bool> on = true;

  bool enabled() const override { return on; }
  Result<uint32_t> OpenBacking(int fd) override {
    const std::string path = "/proc/self/fd/" + std::to_string(fd);
    Fd file(::open(path.c_str(), O_RDWR | O_CLOEXEC));
    if (!file.valid()) return ErrnoError(errno, "open", path);
    MutexLock lock(mutex_);
    files_.emplace(++last_, std::move(file));
    return last_;
  }
  void CloseBacking(uint32_t id) override {
    MutexLock lock(mutex_);
    EXPECT_EQ(files_.erase(id), 1u) << "id " << id;
  }
  // The descriptor of an id, as long as that is open; -1: it is not.
  int FileOf(uint32_t id) {
    MutexLock lock(mutex_);
    const auto found = files_.find(id);
    return found == files_.end() ? -1 : found->second.get();
  }
  void CloseAll() {
    MutexLock lock(mutex_);
    files_.clear();
  }

 private:
  Mutex mutex_;
  std::map<uint32_t, Fd> files_ KVC_GUARDED_BY(mutex_);
  uint32_t last_ KVC_GUARDED_BY(mutex_) = 0;
};

class NotedInvalidations final : public Notifier {
 public:
  void InvalidateInode(Ino) override {}
  void InvalidateEntry(Ino parent, const std::string& name) override {
    MutexLock lock(mutex_);
    entries_.emplace(parent, name);
  }
  void BumpEpoch() override {}
  bool Saw(Ino parent, const std::string& name) {
    MutexLock lock(mutex_);
    return entries_.contains({parent, name});
  }

 private:
  Mutex mutex_;
  std::set<std::pair<Ino, std::string>> entries_ KVC_GUARDED_BY(mutex_);
};

class NameSink final : public DirSink {
 public:
  explicit NameSink(size_t page, bool plus) : page_(page), plus_(plus) {}
  bool plus() const override { return plus_; }
  bool Add(const std::string& name, const EntryReply& entry, uint64_t next) override {
    if (entries.size() == page_) return false;
    entries.emplace_back(name, entry);
    cookie = next;
    return true;
  }
  std::vector<std::pair<std::string, EntryReply>> entries;
  uint64_t cookie = 0;

 private:
  size_t page_;
  bool plus_;
};

class TreeTest : public testing::Test {
 protected:
  void SetUp() override {
    SetLogLevel(LogLevel::kWarn);
    char dram[] = "/dev/shm/kvc-tree-XXXXXX", disk[] = "/tmp/kvc-tree-XXXXXX";
    ASSERT_NE(::mkdtemp(dram), nullptr);
    ASSERT_NE(::mkdtemp(disk), nullptr);
    dram_ = dram;
    disk_ = disk;
    options_.disk_directory = disk_ + "/files";
    options_.disk_file_bytes_min = 4u << 20;
    Start();
    const auto root = tree_->MakeRoot(0, 0, 0755, iouring::Uuid{7});
    ASSERT_TRUE(root);
    root_ = *root;
  }
  void TearDown() override {
    Stop();
    std::filesystem::remove_all(dram_);
    std::filesystem::remove_all(disk_);
  }

  // Hands the entries of files over; blocks are not here.
  class Owner final : public iouring::EntryOwner {
   public:
    FileTree* tree = nullptr;
    iouring::Fate Judge(const iouring::EntryMeta& meta,
                        const iouring::SegmentPlace& place) override {
      return tree->Judge(meta, place);
    }
    void Moved(const iouring::EntryMeta& meta, const iouring::SegmentPlace& before,
               const iouring::SegmentPlace& now) override {
      tree->Moved(meta, before, now);
    }
    void Lost(const iouring::EntryMeta& meta, const iouring::SegmentPlace& place) override {
      tree->Lost(meta, place);
    }
    void Shed(uint64_t bytes) override { tree->Shed(bytes, std::chrono::seconds(0)); }
  };

  void Start() {
    meta::MetaOpenReport report;
    auto meta = meta::MetaStore::Open({.directory = disk_ + "/meta"}, &report);
    ASSERT_TRUE(meta.ok()) << meta.error().text;
    meta_ = std::move(*meta);
    auto slots = iouring::SlotTier::Open(
        {.directory = dram_, .capacity_bytes = dram_bytes_, .slot_count_max = 0});
    ASSERT_TRUE(slots.ok()) << slots.error().text;
    slots_ = std::move(*slots);
    resident_ = std::make_unique<ResidentSet>(*slots_, ResidentSetOptions{});
    FileTreeParts parts;
    if (nvme_bytes_ > 0) {
      iouring::SegmentStoreOptions segment_options;
      segment_options.directory = disk_ + "/segments";
      segment_options.capacity_bytes = nvme_bytes_;
      segment_options.segment_bytes = 8u << 20;
      segment_options.staging_bytes = 16u << 20;
      auto segments = iouring::SegmentStore::Open(
          segment_options, 0,
          [&](const iouring::EntryMeta& meta_of, const iouring::SegmentPlace& place) {
            if (meta_of.kind == iouring::EntryKind::kFile) {
              parts.recovered.emplace_back(meta_of, place);
            }
          });
      ASSERT_TRUE(segments.ok()) << segments.error().text;
      segments_ = std::move(*segments);
    }
    parts.meta = meta_.get();
    parts.slots = slots_.get();
    parts.resident = resident_.get();
    parts.segments = segments_.get();
    parts.backing = &backing_;
    parts.notifier = &notifier_;
    parts.clock = &clock_;
    auto tree = FileTree::Open(options_, parts);
    ASSERT_TRUE(tree.ok()) << tree.error().text;
    tree_ = std::move(*tree);
    owner_.tree = tree_.get();
    if (segments_ != nullptr) segments_->Start(&owner_);
    resident_->Start();
  }
  // As a killed process would leave it: nothing is written back, the slots stay.
  void Stop() {
    if (resident_ != nullptr) resident_->Stop();
    tree_.reset();
    segments_.reset();
    resident_.reset();
    slots_.reset();
    meta_.reset();
  }
  void Crash() {
    Stop();
    backing_.CloseAll();
    options_.resumed = false;
    Start();
  }
  void RestartWorker() {
    Stop();
    options_.resumed = true;
    Start();
  }
  void LosePower() {
    Stop();
    backing_.CloseAll();
    std::filesystem::remove_all(dram_);
    std::filesystem::create_directory(dram_);
    options_.resumed = false;
    Start();
  }
  void Remount() {
    ASSERT_TRUE(tree_->WriteBackAll().ok());
    LosePower();  // a clean unmount frees the DRAM tier
  }
  // Out of DRAM, as if room had been wanted.
  void EvictAll() {
    ASSERT_TRUE(tree_->WriteBackAll().ok());
    slots_->ForEach([&](iouring::SlotId slot, iouring::SlotRecord& record) {
      if (record.state.load() == iouring::SlotState::kFile) (void)tree_->TryEvict(slot);
    });
  }
  size_t SlotsInUse() {
    size_t count = 0;
    slots_->ForEach([&](iouring::SlotId, iouring::SlotRecord&) { ++count; });
    return count;
  }

  static std::string Pattern(size_t bytes, uint64_t seed) {
    std::mt19937_64 random(seed);
    std::string text(bytes, 0);
    for (char& byte : text) byte = static_cast<char>(random());
    return text;
  }

  Caller Me() { return {.uid = 0, .gid = 0, .pid = 1, .unique = unique_ += 2}; }

  struct OpenFile {
    Ino ino = 0;
    OpenReply open;
  };
  OpenFile Create(Ino parent, const std::string& name, int flags = O_RDWR) {
    EntryReply entry;
    const auto open = tree_->Create(Me(), parent, name, S_IFREG | 0644, flags | O_CREAT, &entry);
    EXPECT_TRUE(open) << name << ": " << std::strerror(open ? 0 : open.error().value);
    return {entry.ino, open ? *open : OpenReply{}};
  }
  OpenFile Open(Ino ino, int flags) {
    const auto open = tree_->Open(Me(), ino, flags);
    EXPECT_TRUE(open) << std::strerror(open ? 0 : open.error().value);
    return {ino, open ? *open : OpenReply{}};
  }
  int Write(const OpenFile& file, uint64_t offset, const std::string& text) {
    const auto put =
        tree_->Write(file.ino, file.open.handle, offset, std::as_bytes(std::span(text)), false);
    EXPECT_TRUE(!put || *put == text.size()) << "short write";
    return put ? 0 : put.error().value;
  }
  std::string Read(const OpenFile& file, uint64_t offset, size_t bytes) {
    std::string text(bytes, 0);
    const auto got =
        tree_->Read(file.ino, file.open.handle, offset, std::as_writable_bytes(std::span(text)));
    EXPECT_TRUE(got) << std::strerror(got ? 0 : got.error().value);
    text.resize(got ? *got : 0);
    return text;
  }
  void Close(const OpenFile& file) {
    EXPECT_TRUE(tree_->Flush(Me(), file.ino, file.open.handle));
    EXPECT_TRUE(tree_->Release(file.ino, file.open.handle));
  }
  Ino Put(Ino parent, const std::string& name, const std::string& text) {
    const OpenFile file = Create(parent, name);
    EXPECT_EQ(Write(file, 0, text), 0);
    Close(file);
    return file.ino;
  }
  // Whole content under a name; nothing if there is no such name.
  std::optional<std::string> Get(Ino parent, const std::string& name) {
    const auto entry = tree_->Lookup(Me(), parent, name);
    if (!entry) {
      EXPECT_EQ(entry.error().value, ENOENT);
      return std::nullopt;
    }
    const auto open = tree_->Open(Me(), entry->ino, O_RDONLY);
    if (!open) return std::nullopt;
    const OpenFile file{entry->ino, *open};
    std::string text;
    if (open->mode == OpenMode::kPassthrough) {  // as the kernel would read
      const int backing = backing_.FileOf(open->backing_id);
      struct stat now {};
      EXPECT_EQ(::fstat(backing, &now), 0);
      EXPECT_EQ(now.st_size, entry->attr.st_size);
      text.resize(static_cast<size_t>(now.st_size));
      EXPECT_EQ(::pread(backing, text.data(), text.size(), 0), now.st_size);
    } else {
      text = Read(file, 0, static_cast<size_t>(entry->attr.st_size) + 100);
    }
    Close(file);
    return text;
  }
  std::optional<Ino> Find(Ino parent, const std::string& name) {
    const auto entry = tree_->Lookup(Me(), parent, name);
    return entry ? std::optional(entry->ino) : std::nullopt;
  }
  Ino MakeDir(Ino parent, const std::string& name, mode_t mode = 0755) {
    const auto entry = tree_->MakeDirectory(Me(), parent, name, mode);
    EXPECT_TRUE(entry);
    return entry ? entry->ino : 0;
  }
  std::vector<std::string> List(Ino directory, size_t page = 1000, bool plus = false) {
    std::vector<std::string> names;
    for (uint64_t cookie = 0;;) {
      NameSink sink(page, plus);
      EXPECT_TRUE(tree_->ReadDirectory(directory, cookie, sink));
      for (auto& [name, entry] : sink.entries) names.push_back(name);
      if (sink.entries.empty()) return names;
      cookie = sink.cookie;
    }
  }
  struct stat Stat(Ino ino) {
    const auto attr = tree_->GetAttr(ino);
    EXPECT_TRUE(attr);
    return attr ? attr->attr : (struct stat){};
  }
  int Truncate(Ino ino, uint64_t size) {
    struct stat attr {};
    attr.st_size = static_cast<off_t>(size);
    const auto set = tree_->SetAttr(Me(), ino, attr, kSetSize, 0);
    return set ? 0 : set.error().value;
  }
  template <typename T>
  static int ErrorOf(const T& result) {
    return result ? 0 : result.error().value;
  }

  FileTreeOptions options_;
  uint64_t dram_bytes_ = 64u << 20;
  uint64_t nvme_bytes_ = 256u << 20;
  std::string dram_, disk_;
  SystemClock clock_;
  FakeBacking backing_;
  NotedInvalidations notifier_;
  Owner owner_;
  std::unique_ptr<meta::MetaStore> meta_;
  std::unique_ptr<iouring::SlotTier> slots_;
  std::unique_ptr<ResidentSet> resident_;
  std::unique_ptr<iouring::SegmentStore> segments_;
  std::unique_ptr<FileTree> tree_;
  Ino root_ = 0;
  uint64_t unique_ = 0;
};

}  // namespace kvcfs::fs
