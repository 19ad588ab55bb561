// Kills, power cuts, worker restarts and damage: what is published or fsynced stays, the rest goes,
// and nothing is ever wrong.
#include <linux/fs.h>

#include "tests/unit/fs/file_tree_fixture.h"

namespace kvcfs::fs {
namespace {

using FileTreeCrashTest = TreeTest;

TEST_F(FileTreeCrashTest, WhatWasNotPublishedIsGone) {
  Put(root_, "closed", "closed");
  const OpenFile open = Create(root_, "open");
  ASSERT_EQ(Write(open, 0, "half"), 0);
  Create(root_, "empty_and_open");
  Close(Create(root_, "empty"));
  const OpenFile linked = Create(root_, "linked");
  ASSERT_EQ(Write(linked, 0, "half"), 0);
  ASSERT_TRUE(tree_->Link(Me(), linked.ino, root_, "other_link"));
  Crash();
  EXPECT_EQ(Get(root_, "closed"), "closed");
  EXPECT_EQ(Get(root_, "open"), std::nullopt);
  EXPECT_EQ(Get(root_, "empty_and_open"), std::nullopt);
  EXPECT_EQ(Get(root_, "empty"), "");
  EXPECT_EQ(Get(root_, "linked"), std::nullopt);
  EXPECT_EQ(Get(root_, "other_link"), std::nullopt);
  EXPECT_EQ(List(root_).size(), 4u);
  EXPECT_EQ(tree_->Stats().files, 2u);
  EXPECT_EQ(tree_->Stats().content_bytes, 6u);
}

TEST_F(FileTreeCrashTest, RenamePublishesAFileThatIsStillOpen) {
  const OpenFile file = Create(root_, "f.tmp");
  ASSERT_EQ(Write(file, 0, "whole"), 0);
  ASSERT_TRUE(tree_->Rename(Me(), root_, "f.tmp", root_, "f", 0));
  Crash();
  EXPECT_EQ(Get(root_, "f"), "whole");
  EXPECT_EQ(Get(root_, "f.tmp"), std::nullopt);
}

TEST_F(FileTreeCrashTest, WritingOnAfterTheRenameIsANewVersion) {
  const OpenFile file = Create(root_, "f.tmp");
  ASSERT_EQ(Write(file, 0, "whole"), 0);
  ASSERT_TRUE(tree_->Fsync(file.ino, file.open.handle, false));
  ASSERT_TRUE(tree_->Rename(Me(), root_, "f.tmp", root_, "f", 0));
  ASSERT_EQ(Write(file, 0, "other and longer"), 0);
  Crash();
  EXPECT_EQ(Get(root_, "f"), "whole");
}

TEST_F(FileTreeCrashTest, FsyncSurvivesAPowerCut) {
  const OpenFile fsynced = Create(root_, "fsynced");
  ASSERT_EQ(Write(fsynced, 0, "one"), 0);
  ASSERT_TRUE(tree_->Fsync(fsynced.ino, fsynced.open.handle, false));
  ASSERT_EQ(Write(fsynced, 0, "two"), 0);  // not acknowledged
  Put(root_, "closed", "in DRAM only");
  const OpenFile empty = Create(root_, "empty");
  ASSERT_TRUE(tree_->Fsync(empty.ino, empty.open.handle, false));
  LosePower();
  EXPECT_EQ(Get(root_, "fsynced"), "one");
  EXPECT_EQ(Get(root_, "closed"), std::nullopt);
  EXPECT_EQ(Get(root_, "empty"), "");
  EXPECT_EQ(List(root_).size(), 4u);
}

TEST_F(FileTreeCrashTest, TruncatingOpenKeepsTheOldVersionUntilTheNewIsPublished) {
  const std::string old = Pattern(200'000, 1);
  const Ino ino = Put(root_, "f", old);
  ASSERT_TRUE(tree_->WriteBackAll().ok());
  for (const bool evicted : {false, true}) {
    if (evicted) EvictAll();
    const OpenFile file = Open(ino, O_WRONLY | O_TRUNC);
    EXPECT_EQ(Stat(ino).st_size, 0);
    if (evicted) {
      ASSERT_EQ(Write(file, 0, "half"), 0);
    }
    Crash();
    EXPECT_TRUE(Get(root_, "f") == old);
  }
  const OpenFile file = Open(ino, O_WRONLY | O_TRUNC);
  ASSERT_EQ(Write(file, 0, "new"), 0);
  Close(file);
  Crash();
  EXPECT_EQ(Get(root_, "f"), "new");
  LosePower();  // the new one had not reached NVMe: the old one had
  EXPECT_TRUE(Get(root_, "f") == old);
}

TEST_F(FileTreeCrashTest, EmptiedAndClosedIsEmpty) {
  const Ino ino = Put(root_, "f", "text");
  ASSERT_TRUE(tree_->WriteBackAll().ok());
  Close(Open(ino, O_WRONLY | O_TRUNC));
  Crash();
  EXPECT_EQ(Get(root_, "f"), "");
  EXPECT_EQ(SlotsInUse(), 0u);
}

TEST_F(FileTreeCrashTest, AcknowledgedReplacementSurvives) {
  for (int version = 0; version < 5; ++version) {
    const std::string text = Pattern(50'000, static_cast<uint64_t>(version));
    const OpenFile file = Create(root_, "f.tmp", O_WRONLY | O_TRUNC);
    ASSERT_EQ(Write(file, 0, text), 0);
    ASSERT_TRUE(tree_->Fsync(file.ino, file.open.handle, false));
    Close(file);
    ASSERT_TRUE(tree_->Rename(Me(), root_, "f.tmp", root_, "f", 0));
    ASSERT_TRUE(tree_->FsyncDirectory(root_));
    if (version % 2 == 0) {
      LosePower();
    } else {
      Crash();
    }
    EXPECT_TRUE(Get(root_, "f") == text);
    EXPECT_EQ(Get(root_, "f.tmp"), std::nullopt);
  }
}

TEST_F(FileTreeCrashTest, OrphansAreFreed) {
  const OpenFile file = Create(root_, "f");
  ASSERT_EQ(Write(file, 0, "text"), 0);
  ASSERT_TRUE(tree_->Unlink(Me(), root_, "f"));
  Crash();
  EXPECT_EQ(ErrorOf(tree_->GetAttr(file.ino)), ESTALE);
  EXPECT_EQ(SlotsInUse(), 0u);
  EXPECT_EQ(tree_->Stats().files, 0u);
}

TEST_F(FileTreeCrashTest, FilesOfTheDataDisk) {
  const std::string text = Pattern(5u << 20, 1);
  Put(root_, "closed", text);
  const OpenFile open = Create(root_, "open");
  ASSERT_EQ(Write(open, 0, text), 0);
  const OpenFile old = Open(Put(root_, "old", "small"), O_RDWR);
  ASSERT_TRUE(tree_->Fsync(old.ino, old.open.handle, false));
  ASSERT_EQ(Write(old, 0, text), 0);  // spills in the middle of a new version
  EXPECT_EQ(tree_->Stats().disk_files, 3u);
  Crash();
  EXPECT_TRUE(Get(root_, "closed") == text);
  EXPECT_EQ(Get(root_, "open"), std::nullopt);
  EXPECT_EQ(Get(root_, "old"), "small");
  EXPECT_EQ(tree_->Stats().disk_files, 1u);
}

TEST_F(FileTreeCrashTest, OftenFsyncedFilesMoveToTheDataDisk) {
  const OpenFile file = Create(root_, "database");
  for (int i = 0; i < 10; ++i) {
    ASSERT_EQ(Write(file, static_cast<uint64_t>(i), std::to_string(i)), 0);
    ASSERT_TRUE(tree_->Fsync(file.ino, file.open.handle, true));
  }
  EXPECT_EQ(tree_->Stats().disk_files, 1u);
  ASSERT_EQ(Write(file, 10, "x"), 0);
  ASSERT_TRUE(tree_->Fsync(file.ino, file.open.handle, true));
  LosePower();
  EXPECT_EQ(Get(root_, "database"), "0123456789x");
}

// ---- a worker that is restarted: the kernel still has everything open

TEST_F(FileTreeCrashTest, OpenFilesGoOnOverAWorkerRestart) {
  const OpenFile file = Create(root_, "f");
  ASSERT_EQ(Write(file, 0, "before "), 0);
  const OpenFile unlinked = Create(root_, "g");
  ASSERT_EQ(Write(unlinked, 0, "nameless"), 0);
  ASSERT_TRUE(tree_->Unlink(Me(), root_, "g"));
  const OpenFile empty = Create(root_, "empty");
  const OpenFile large = Create(root_, "large");
  const std::string text = Pattern(5u << 20, 1);
  ASSERT_EQ(Write(large, 0, text), 0);
  RestartWorker();
  ASSERT_EQ(Write(file, 7, "after"), 0);
  EXPECT_EQ(Read(file, 0, 100), "before after");
  EXPECT_EQ(Read(unlinked, 0, 100), "nameless");
  ASSERT_EQ(Write(empty, 0, "not any more"), 0);
  EXPECT_TRUE(Read(large, 0, text.size()) == text);
  for (const OpenFile& one : {file, unlinked, empty, large}) Close(one);
  EXPECT_EQ(ErrorOf(tree_->Open(Me(), unlinked.ino, O_RDONLY)), ESTALE);
  Crash();
  EXPECT_EQ(Get(root_, "f"), "before after");
  EXPECT_EQ(Get(root_, "empty"), "not any more");
  EXPECT_TRUE(Get(root_, "large") == text);
}

TEST_F(FileTreeCrashTest, RequestsThatAreSentAgainAreDoneOnce) {
  Put(root_, "f", "f");
  Put(root_, "g", "g");
  const auto twice = [&](auto&& call) {
    Caller caller = Me();
    EXPECT_EQ(ErrorOf(call(caller)), 0);
    RestartWorker();
    caller.resent = true;
    EXPECT_EQ(ErrorOf(call(caller)), 0);
  };
  twice([&](const Caller& caller) { return tree_->MakeDirectory(caller, root_, "d", 0755); });
  twice([&](const Caller& caller) { return tree_->Unlink(caller, root_, "f"); });
  twice([&](const Caller& caller) { return tree_->Rename(caller, root_, "g", root_, "h", 0); });
  twice(
      [&](const Caller& caller) { return tree_->Link(caller, *Find(root_, "h"), root_, "link"); });
  twice([&](const Caller& caller) { return tree_->MakeSymlink(caller, root_, "s", "t"); });
  twice([&](const Caller& caller) { return tree_->RemoveDirectory(caller, root_, "d"); });
  EXPECT_EQ(Stat(*Find(root_, "h")).st_nlink, 2u);
  // One that is not the same request is refused as ever.
  Caller other = Me();
  other.resent = true;
  EXPECT_EQ(ErrorOf(tree_->Unlink(other, root_, "f")), ENOENT);
}

TEST_F(FileTreeCrashTest, OpensAndReleasesThatAreSentAgainCountOnce) {
  Caller caller = Me();
  EntryReply entry;
  ASSERT_TRUE(tree_->Create(caller, root_, "f", S_IFREG | 0644, O_RDWR | O_CREAT, &entry));
  RestartWorker();
  caller.resent = true;
  const auto again = tree_->Create(caller, root_, "f", S_IFREG | 0644, O_RDWR | O_CREAT, &entry);
  ASSERT_TRUE(again);
  const OpenFile file{entry.ino, *again};
  ASSERT_EQ(Write(file, 0, "text"), 0);
  Open(entry.ino, O_RDWR);
  ASSERT_TRUE(tree_->Release(file.ino, file.open.handle));
  RestartWorker();
  ASSERT_TRUE(tree_->Release(file.ino, file.open.handle));
  EXPECT_EQ(tree_->Stats().dirty_bytes, 4u);
  Crash();  // the second writer has it open still: unpublished
  EXPECT_EQ(Get(root_, "f"), std::nullopt);
}

// ---- damage

TEST_F(FileTreeCrashTest, ADamagedEntryIsAMissNeverOtherBytes) {
  const std::string text = Pattern(300'000, 1);
  Put(root_, "f", text);
  Put(root_, "g", text);
  ASSERT_TRUE(tree_->Link(Me(), *Find(root_, "f"), root_, "link"));
  ASSERT_TRUE(tree_->WriteBackAll().ok());
  Stop();
  std::filesystem::remove_all(dram_);
  std::filesystem::create_directory(dram_);
  // One byte of the content, wherever it lies (the first copy is that of f).
  const std::string needle = text.substr(100'000, 64);
  bool hit = false;
  for (const auto& entry : std::filesystem::directory_iterator(disk_ + "/segments")) {
    const Fd fd(::open(entry.path().c_str(), O_RDWR));
    std::string bytes(std::filesystem::file_size(entry.path()), 0);
    if (::pread(fd.get(), bytes.data(), bytes.size(), 0) < 0) continue;
    if (const size_t at = bytes.find(needle); at != std::string::npos && !hit) {
      bytes[at] = static_cast<char>(bytes[at] ^ 1);
      ASSERT_EQ(::pwrite(fd.get(), &bytes[at], 1, static_cast<off_t>(at)), 1);
      hit = true;
    }
  }
  ASSERT_TRUE(hit);
  Start();
  const Ino ino = *Find(root_, "f");
  EXPECT_EQ(ErrorOf(tree_->Open(Me(), ino, O_RDONLY)), ENOENT);
  EXPECT_EQ(Find(root_, "f"), std::nullopt);
  EXPECT_EQ(Find(root_, "link"), std::nullopt);
  EXPECT_EQ(tree_->Stats().damaged_files, 1u);
  EXPECT_TRUE(notifier_.Saw(root_, "link"));
  EXPECT_TRUE(Get(root_, "g") == text);
  Put(root_, "f", "again");
  EXPECT_EQ(Get(root_, "f"), "again");
}

TEST_F(FileTreeCrashTest, DamagedRecordsCountAsAbsent) {
  const Ino ino = Put(root_, "f", "text");
  Put(root_, "g", "text");
  const Ino dir = MakeDir(root_, "d");
  Put(dir, "inside", "x");
  Remount();
  Stop();
  {
    meta::MetaOpenReport report;
    auto meta = meta::MetaStore::Open({.directory = disk_ + "/meta"}, &report);
    ASSERT_TRUE(meta.ok());
    for (const Ino damaged : {ino, dir}) {
      std::string key = "i";
      for (int shift = 56; shift >= 0; shift -= 8)
        key.push_back(static_cast<char>(damaged >> shift));
      auto record = (*meta)->Get(key);
      ASSERT_TRUE(record.ok() && *record);
      (**record)[20] = static_cast<char>((**record)[20] ^ 4);
      meta::MetaBatch batch;
      batch.Put(key, **record);
      ASSERT_TRUE((*meta)->Write(batch, true).ok());
    }
  }
  Start();
  EXPECT_EQ(Find(root_, "f"), std::nullopt);
  EXPECT_EQ(Get(root_, "g"), "text");
  // The names that lead nowhere can be removed and used again.
  EXPECT_TRUE(tree_->Unlink(Me(), root_, "f"));
  EXPECT_TRUE(tree_->RemoveDirectory(Me(), root_, "d"));
  Put(root_, "f", "new");
  EXPECT_EQ(Get(root_, "f"), "new");
  ASSERT_TRUE(tree_->ClearRoot(root_));
  EXPECT_TRUE(tree_->RootIsEmpty(root_));
}

// ---- eviction of whole files

TEST_F(FileTreeCrashTest, ShedTakesColdFilesOnly) {
  options_.lease = std::chrono::milliseconds(0);
  options_.entry_timeout_s = options_.attr_timeout_s = 0;
  Crash();
  const std::string text = Pattern(100'000, 1);
  const Ino dir = MakeDir(root_, "d"), kept = MakeDir(root_, "kept");
  ASSERT_TRUE(tree_->SetXattr(Me(), kept, "user.kvc.evict", "never", 0));
  Put(kept, "kept", text);
  Put(root_, "small", "small");
  Put(root_, "open", text);
  Put(dir, "cold", text);
  ASSERT_TRUE(tree_->Link(Me(), *Find(dir, "cold"), root_, "cold2"));
  Put(root_, "dirty", text);
  Open(*Find(root_, "open"), O_RDONLY);
  EvictAll();
  const OpenFile writer = Open(*Find(root_, "dirty"), O_RDWR);
  ASSERT_EQ(Write(writer, 0, "new"), 0);
  EXPECT_EQ(tree_->Shed(1u << 30, std::chrono::seconds(3600)), 0u);  // all used just now
  EXPECT_EQ(tree_->Shed(1u << 30, std::chrono::seconds(0)), 100'000u);
  EXPECT_EQ(tree_->Stats().evicted_files, 1u);
  EXPECT_EQ(Find(dir, "cold"), std::nullopt);
  EXPECT_EQ(Find(root_, "cold2"), std::nullopt);
  EXPECT_TRUE(notifier_.Saw(dir, "cold"));
  EXPECT_TRUE(Get(kept, "kept") == text);
  EXPECT_TRUE(Get(root_, "open") == text);
  EXPECT_EQ(Get(root_, "small"), "small");
  EXPECT_EQ(Read(writer, 0, 3), "new");
}

TEST_F(FileTreeCrashTest, LeasedFilesAreNotShed) {
  Put(root_, "f", Pattern(100'000, 1));
  EvictAll();
  EXPECT_EQ(tree_->Shed(1u << 30, std::chrono::seconds(0)), 0u);  // used within the lease
  EXPECT_NE(Find(root_, "f"), std::nullopt);
}

TEST_F(FileTreeCrashTest, ReclaimKeepsWhatIsWanted) {
  // More is rewritten than the segments hold: the old versions go, the files stay.
  nvme_bytes_ = 64u << 20;
  Stop();
  std::filesystem::remove_all(disk_ + "/segments");
  Start();
  std::map<std::string, uint64_t> seeds;
  for (int round = 0; round < 12; ++round) {
    for (int i = 0; i < 10; ++i) {
      const std::string name = "f" + std::to_string(i);
      if (round > 0 && (i + round) % 3 == 0) continue;
      seeds[name] = static_cast<uint64_t>(round) * 100 + static_cast<uint64_t>(i);
      const OpenFile file = Create(root_, name, O_WRONLY | O_TRUNC);
      ASSERT_EQ(Write(file, 0, Pattern(1'500'000, seeds[name])), 0);
      Close(file);
    }
    EvictAll();
  }
  for (const auto& [name, seed] : seeds) EXPECT_TRUE(Get(root_, name) == Pattern(1'500'000, seed));
  LosePower();
  for (const auto& [name, seed] : seeds) EXPECT_TRUE(Get(root_, name) == Pattern(1'500'000, seed));
  EXPECT_EQ(tree_->Stats().damaged_files, 0u);
}

TEST_F(FileTreeCrashTest, WithoutAnNvmeTierFilesLiveInDramAndOnTheDataDisk) {
  nvme_bytes_ = 0;
  Crash();
  const std::string text = Pattern(100'000, 1);
  const OpenFile file = Create(root_, "fsynced");
  ASSERT_EQ(Write(file, 0, text), 0);
  ASSERT_TRUE(tree_->Fsync(file.ino, file.open.handle, false));
  Close(file);
  Put(root_, "closed", text);
  Crash();
  EXPECT_TRUE(Get(root_, "fsynced") == text);
  EXPECT_TRUE(Get(root_, "closed") == text);
  Remount();
  EXPECT_TRUE(Get(root_, "closed") == text);
}

}  // namespace
}  // namespace kvcfs::fs
