#include <linux/falloc.h>
#include <linux/fs.h>
#include <sys/xattr.h>

#include "tests/unit/fs/file_tree_fixture.h"

namespace kvcfs::fs {
namespace {

using FileTreeTest = TreeTest;

TEST_F(FileTreeTest, WhatIsWrittenIsRead) {
  for (const size_t bytes : {0ul, 1ul, 4095ul, 4096ul, 163840ul, 2097153ul}) {
    const std::string name = "f" + std::to_string(bytes), text = Pattern(bytes, bytes);
    const OpenFile file = Create(root_, name);
    for (size_t at = 0; at < bytes; at += 100'000) {
      ASSERT_EQ(Write(file, at, text.substr(at, 100'000)), 0);
    }
    EXPECT_TRUE(Read(file, 0, bytes + 10) == text);
    Close(file);
    EXPECT_TRUE(Get(root_, name) == text);
    EXPECT_EQ(Stat(file.ino).st_size, static_cast<off_t>(bytes));
  }
}

TEST_F(FileTreeTest, InodeNumbersSayTheirKindAndAreNeverUsedAgain) {
  std::set<Ino> seen;
  for (int round = 0; round < 3; ++round) {
    for (int i = 0; i < 50; ++i) {
      const Ino ino = Put(root_, "x", "1");
      EXPECT_EQ(KindOf(ino), InoKind::kFile);
      EXPECT_TRUE(seen.insert(ino).second);
      ASSERT_TRUE(tree_->Unlink(Me(), root_, "x"));
    }
    Crash();
  }
}

TEST_F(FileTreeTest, ExactErrorsOfNames) {
  const Ino dir = MakeDir(root_, "d");
  const Ino file = Put(root_, "f", "x");
  const std::string longest(255, 'n'), too_long(256, 'n');
  EXPECT_EQ(ErrorOf(tree_->MakeDirectory(Me(), root_, "d", 0755)), EEXIST);
  EXPECT_EQ(ErrorOf(tree_->MakeDirectory(Me(), root_, "f", 0755)), EEXIST);
  EXPECT_EQ(ErrorOf(tree_->MakeDirectory(Me(), root_, longest, 0755)), 0);
  EXPECT_EQ(ErrorOf(tree_->MakeDirectory(Me(), root_, too_long, 0755)), ENAMETOOLONG);
  EXPECT_EQ(ErrorOf(tree_->Lookup(Me(), root_, too_long)), ENAMETOOLONG);
  EXPECT_EQ(ErrorOf(tree_->Lookup(Me(), root_, "absent")), ENOENT);
  EXPECT_EQ(ErrorOf(tree_->MakeDirectory(Me(), file, "x", 0755)), ENOTDIR);
  EXPECT_EQ(ErrorOf(tree_->Unlink(Me(), root_, "d")), EISDIR);
  EXPECT_EQ(ErrorOf(tree_->RemoveDirectory(Me(), root_, "f")), ENOTDIR);
  EXPECT_EQ(ErrorOf(tree_->Unlink(Me(), root_, "absent")), ENOENT);
  Put(dir, "inside", "");
  EXPECT_EQ(ErrorOf(tree_->RemoveDirectory(Me(), root_, "d")), ENOTEMPTY);
  EXPECT_EQ(ErrorOf(tree_->Link(Me(), dir, root_, "hard")), EPERM);
  EXPECT_EQ(ErrorOf(tree_->Link(Me(), file, root_, "d")), EEXIST);
  EXPECT_EQ(ErrorOf(tree_->MakeSymlink(Me(), root_, "s", std::string(4095, 't'))), 0);
  EXPECT_EQ(ErrorOf(tree_->MakeSymlink(Me(), root_, "s2", std::string(4096, 't'))), ENAMETOOLONG);
  EXPECT_EQ(tree_->ReadLink(*Find(root_, "s"))->size(), 4095u);
  EXPECT_EQ(ErrorOf(tree_->ReadLink(file)), EINVAL);
  EXPECT_EQ(ErrorOf(tree_->GetAttr(file + 100'000)), ESTALE);
  const auto other = tree_->MakeRoot(0, 0, 0755, iouring::Uuid{8});
  ASSERT_TRUE(other);
  EXPECT_EQ(ErrorOf(tree_->Rename(Me(), root_, "f", *other, "f", 0)), EXDEV);
  EXPECT_EQ(ErrorOf(tree_->Link(Me(), file, *other, "f")), EXDEV);
}

TEST_F(FileTreeTest, RenameRules) {
  const Ino a = MakeDir(root_, "a"), b = MakeDir(a, "b");
  Put(root_, "f", "f");
  Put(root_, "g", "g");
  EXPECT_EQ(ErrorOf(tree_->Rename(Me(), root_, "a", b, "x", 0)), EINVAL);
  EXPECT_EQ(ErrorOf(tree_->Rename(Me(), root_, "a", a, "x", 0)), EINVAL);
  EXPECT_EQ(ErrorOf(tree_->Rename(Me(), root_, "f", root_, "a", 0)), EISDIR);
  EXPECT_EQ(ErrorOf(tree_->Rename(Me(), root_, "a", root_, "f", 0)), ENOTDIR);
  MakeDir(root_, "c");
  EXPECT_EQ(ErrorOf(tree_->Rename(Me(), root_, "c", root_, "a", 0)), ENOTEMPTY);
  EXPECT_EQ(ErrorOf(tree_->Rename(Me(), root_, "f", root_, "g", RENAME_NOREPLACE)), EEXIST);
  EXPECT_EQ(ErrorOf(tree_->Rename(Me(), root_, "f", root_, "no", RENAME_EXCHANGE)), ENOENT);
  EXPECT_EQ(ErrorOf(tree_->Rename(Me(), root_, "no", root_, "g", 0)), ENOENT);
  EXPECT_EQ(ErrorOf(tree_->Rename(Me(), root_, "f", root_, "f", 0)), 0);
  EXPECT_EQ(ErrorOf(tree_->Rename(Me(), root_, "f", root_, "g", 0)), 0);
  EXPECT_EQ(Get(root_, "g"), "f");
  EXPECT_EQ(Get(root_, "f"), std::nullopt);
  // A directory moves with all that is in it; link counts and ".." follow.
  Put(b, "deep", "deep");
  EXPECT_EQ(Stat(a).st_nlink, 3u);
  EXPECT_EQ(ErrorOf(tree_->Rename(Me(), a, "b", root_, "moved", 0)), 0);
  EXPECT_EQ(Stat(a).st_nlink, 2u);
  EXPECT_EQ(Get(*Find(root_, "moved"), "deep"), "deep");
  NameSink sink(2, false);
  ASSERT_TRUE(tree_->ReadDirectory(b, 0, sink));
  EXPECT_EQ(sink.entries[1].second.attr.st_ino, root_);
  // Two names change places, of different kinds and directories too.
  EXPECT_EQ(ErrorOf(tree_->Rename(Me(), root_, "g", b, "deep", RENAME_EXCHANGE)), 0);
  EXPECT_EQ(Get(root_, "g"), "deep");
  EXPECT_EQ(Get(b, "deep"), "f");
  EXPECT_EQ(ErrorOf(tree_->Rename(Me(), root_, "moved", root_, "g", RENAME_EXCHANGE)), 0);
  EXPECT_EQ(Get(root_, "moved"), "deep");
  EXPECT_EQ(Find(root_, "g"), b);
}

TEST_F(FileTreeTest, HardLinksCountAndShare) {
  const Ino ino = Put(root_, "one", "text");
  const Ino dir = MakeDir(root_, "d");
  ASSERT_TRUE(tree_->Link(Me(), ino, dir, "two"));
  ASSERT_TRUE(tree_->Link(Me(), ino, root_, "three"));
  EXPECT_EQ(Stat(ino).st_nlink, 3u);
  EXPECT_EQ(ErrorOf(tree_->Rename(Me(), dir, "two", root_, "one", 0)),
            0);  // the same inode: nothing
  EXPECT_EQ(Find(dir, "two"), ino);
  ASSERT_TRUE(tree_->Unlink(Me(), root_, "one"));
  ASSERT_TRUE(tree_->Rename(Me(), dir, "two", dir, "renamed", 0));
  EXPECT_EQ(Get(dir, "renamed"), "text");
  EXPECT_EQ(Stat(ino).st_nlink, 2u);
  Remount();
  EXPECT_EQ(Get(root_, "three"), "text");
  ASSERT_TRUE(tree_->Unlink(Me(), root_, "three"));
  ASSERT_TRUE(tree_->Unlink(Me(), *Find(root_, "d"), "renamed"));
  EXPECT_EQ(ErrorOf(tree_->Open(Me(), ino, O_RDONLY)), ESTALE);
  EXPECT_EQ(SlotsInUse(), 0u);
}

TEST_F(FileTreeTest, AnUnlinkedFileLivesUntilItIsClosed) {
  const OpenFile file = Create(root_, "f");
  ASSERT_EQ(Write(file, 0, "before"), 0);
  ASSERT_TRUE(tree_->Unlink(Me(), root_, "f"));
  EXPECT_EQ(Stat(file.ino).st_nlink, 0u);
  ASSERT_EQ(Write(file, 6, " after"), 0);
  EXPECT_EQ(Read(file, 0, 100), "before after");
  const OpenFile again = Open(file.ino, O_RDONLY);  // by /proc/self/fd
  Close(file);
  EXPECT_EQ(Read(again, 0, 100), "before after");
  Close(again);
  EXPECT_EQ(SlotsInUse(), 0u);
  EXPECT_EQ(ErrorOf(tree_->Open(Me(), file.ino, O_RDONLY)), ESTALE);
}

TEST_F(FileTreeTest, ListingPagesAndSurvivesRemovals) {
  const Ino dir = MakeDir(root_, "d");
  std::set<std::string> want{".", ".."};
  for (int i = 0; i < 3000; ++i) {
    const std::string name = "n" + std::to_string(i);
    ASSERT_TRUE(tree_->MakeNode(Me(), dir, name, S_IFREG | 0644, 0));
    want.insert(name);
  }
  for (const size_t page : {1ul, 7ul, 4000ul}) {
    const std::vector<std::string> names = List(dir, page, page == 7);
    EXPECT_EQ(names.size(), want.size());
    EXPECT_EQ(std::set<std::string>(names.begin(), names.end()), want);
  }
  // What is removed while it is listed makes no other name be skipped.
  std::set<std::string> seen;
  for (uint64_t cookie = 2;;) {
    NameSink sink(10, false);
    ASSERT_TRUE(tree_->ReadDirectory(dir, cookie, sink));
    if (sink.entries.empty()) break;
    for (const auto& [name, entry] : sink.entries) {
      EXPECT_EQ(entry.attr.st_mode, static_cast<mode_t>(S_IFREG));
      EXPECT_TRUE(seen.insert(name).second);
      ASSERT_TRUE(tree_->Unlink(Me(), dir, name));
    }
    cookie = sink.cookie;
  }
  EXPECT_EQ(seen.size(), 3000u);
  EXPECT_TRUE(tree_->RemoveDirectory(Me(), root_, "d"));
}

TEST_F(FileTreeTest, SetgidDirectoriesAndSuidBits) {
  const Ino dir = MakeDir(root_, "d");
  struct stat attr {};
  attr.st_mode = 02775;
  attr.st_gid = 42;
  ASSERT_TRUE(tree_->SetAttr(Me(), dir, attr, kSetMode | kSetGid, 0));
  EXPECT_EQ(Stat(MakeDir(dir, "sub")).st_mode, static_cast<mode_t>(S_IFDIR | 02755));
  EXPECT_EQ(Stat(*Find(dir, "sub")).st_gid, 42u);
  const OpenFile file = Create(dir, "f");
  EXPECT_EQ(Stat(file.ino).st_gid, 42u);
  attr.st_mode = 06755;
  ASSERT_TRUE(tree_->SetAttr(Me(), file.ino, attr, kSetMode, 0));
  const std::string text = "x";
  ASSERT_TRUE(tree_->Write(file.ino, file.open.handle, 0, std::as_bytes(std::span(text)), true));
  EXPECT_EQ(Stat(file.ino).st_mode, static_cast<mode_t>(S_IFREG | 0755));
  attr.st_mode = 06755;
  ASSERT_TRUE(tree_->SetAttr(Me(), file.ino, attr, kSetMode, 0));
  attr.st_uid = 7;
  ASSERT_TRUE(tree_->SetAttr(Me(), file.ino, attr, kSetUid, 0));
  EXPECT_EQ(Stat(file.ino).st_mode, static_cast<mode_t>(S_IFREG | 0755));
  Close(file);
}

TEST_F(FileTreeTest, TimesFollowTheCalls) {
  const Ino dir = MakeDir(root_, "d");
  const auto nanos = [](const struct timespec& time) {
    return time.tv_sec * 1'000'000'000 + time.tv_nsec;
  };
  const struct stat dir_before = Stat(dir);
  const OpenFile file = Create(dir, "f");
  EXPECT_GT(nanos(Stat(dir).st_mtim), nanos(dir_before.st_mtim));
  struct stat before = Stat(file.ino);
  ASSERT_EQ(Write(file, 0, "x"), 0);
  EXPECT_GT(nanos(Stat(file.ino).st_mtim), nanos(before.st_mtim));
  Close(file);
  struct stat attr {};
  attr.st_mtim = {-5, 123};
  attr.st_atim = {4'000'000'000, 999'999'999};
  ASSERT_TRUE(tree_->SetAttr(Me(), file.ino, attr, kSetMtime | kSetAtime, 0));
  Remount();
  EXPECT_EQ(Stat(file.ino).st_mtim.tv_sec, -5);
  EXPECT_EQ(Stat(file.ino).st_mtim.tv_nsec, 123);
  EXPECT_EQ(Stat(file.ino).st_atim.tv_sec, 4'000'000'000);
  before = Stat(file.ino);
  ASSERT_TRUE(tree_->Rename(Me(), dir, "f", dir, "g", 0));
  EXPECT_GT(nanos(Stat(file.ino).st_ctim), nanos(before.st_ctim));
  EXPECT_EQ(nanos(Stat(file.ino).st_mtim), nanos(before.st_mtim));
}

TEST_F(FileTreeTest, Xattrs) {
  const Ino ino = Put(root_, "f", "x");
  EXPECT_EQ(ErrorOf(tree_->GetXattr(ino, "user.a")), ENODATA);
  EXPECT_EQ(ErrorOf(tree_->SetXattr(Me(), ino, "user.a", "1", XATTR_REPLACE)), ENODATA);
  EXPECT_EQ(ErrorOf(tree_->SetXattr(Me(), ino, "user.a", "1", XATTR_CREATE)), 0);
  EXPECT_EQ(ErrorOf(tree_->SetXattr(Me(), ino, "user.a", "2", XATTR_CREATE)), EEXIST);
  EXPECT_EQ(ErrorOf(tree_->SetXattr(Me(), ino, "user.b", std::string(65536, 'v'), 0)), 0);
  EXPECT_EQ(ErrorOf(tree_->SetXattr(Me(), ino, "user.c", std::string(65537, 'v'), 0)), E2BIG);
  EXPECT_EQ(ErrorOf(tree_->SetXattr(Me(), ino, "user.kvc.place", "moon", 0)), EINVAL);
  Remount();
  EXPECT_EQ(*tree_->GetXattr(ino, "user.a"), "1");
  EXPECT_EQ(*tree_->ListXattrs(ino), (std::vector<std::string>{"user.a", "user.b"}));
  EXPECT_EQ(ErrorOf(tree_->RemoveXattr(Me(), ino, "user.a")), 0);
  EXPECT_EQ(ErrorOf(tree_->RemoveXattr(Me(), ino, "user.a")), ENODATA);
}

TEST_F(FileTreeTest, TruncateAllocatePunchSeek) {
  const OpenFile file = Create(root_, "f");
  const std::string text = Pattern(100'000, 1);
  ASSERT_EQ(Write(file, 0, text), 0);
  EXPECT_EQ(Truncate(file.ino, 10), 0);
  EXPECT_EQ(Truncate(file.ino, 20), 0);
  EXPECT_TRUE(Read(file, 0, 100) == text.substr(0, 10) + std::string(10, 0));
  ASSERT_EQ(Write(file, 0, text), 0);
  const int punch = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
  EXPECT_TRUE(tree_->Allocate(file.ino, file.open.handle, punch, 4096, 8192));
  EXPECT_TRUE(Read(file, 4096, 8192) == std::string(8192, 0));
  EXPECT_EQ(*tree_->Seek(file.ino, file.open.handle, 0, SEEK_HOLE), 4096u);
  EXPECT_EQ(*tree_->Seek(file.ino, file.open.handle, 4096, SEEK_DATA), 12288u);
  EXPECT_EQ(ErrorOf(tree_->Seek(file.ino, file.open.handle, 100'000, SEEK_DATA)), ENXIO);
  EXPECT_TRUE(tree_->Allocate(file.ino, file.open.handle, 0, 100'000, 50'000));
  EXPECT_EQ(Stat(file.ino).st_size, 150'000);
  EXPECT_TRUE(tree_->Allocate(file.ino, file.open.handle, FALLOC_FL_KEEP_SIZE, 150'000, 50'000));
  EXPECT_EQ(Stat(file.ino).st_size, 150'000);
  EXPECT_TRUE(tree_->Allocate(file.ino, file.open.handle, FALLOC_FL_ZERO_RANGE, 149'000, 11'000));
  EXPECT_EQ(Stat(file.ino).st_size, 160'000);
  EXPECT_EQ(ErrorOf(tree_->Allocate(file.ino, file.open.handle, FALLOC_FL_COLLAPSE_RANGE, 0, 4096)),
            EOPNOTSUPP);
  Close(file);
  // Of a closed and evicted file too; what is cut off stays off.
  EvictAll();
  EXPECT_EQ(Truncate(file.ino, 5), 0);
  EXPECT_EQ(Truncate(file.ino, 8), 0);
  EXPECT_TRUE(Get(root_, "f") == text.substr(0, 5) + std::string(3, 0));
  EXPECT_EQ(Truncate(file.ino, 0), 0);
  EXPECT_EQ(Get(root_, "f"), "");
}

TEST_F(FileTreeTest, CopyRange) {
  const std::string text = Pattern(3'000'000, 1);
  const Ino from = Put(root_, "from", text);
  const OpenFile source = Open(from, O_RDONLY), target = Create(root_, "to");
  EXPECT_EQ(*tree_->CopyRange(from, 1000, target.ino, 0, 10'000'000), 2'999'000u);
  Close(target);
  Close(source);
  EXPECT_TRUE(Get(root_, "to") == text.substr(1000));
}

TEST_F(FileTreeTest, OneKindOfOpenAtATime) {
  const Ino ino = Put(root_, "f", Pattern(100'000, 1));
  const OpenFile reader = Open(ino, O_RDONLY), other = Open(ino, O_RDONLY);
  EXPECT_EQ(reader.open.mode, OpenMode::kPassthrough);
  EXPECT_EQ(other.open.backing_id, reader.open.backing_id);
  // A writer beside them is seen by us, with their backing id: direct.
  const OpenFile writer = Open(ino, O_RDWR);
  EXPECT_EQ(writer.open.mode, OpenMode::kDirect);
  EXPECT_EQ(writer.open.backing_id, reader.open.backing_id);
  ASSERT_EQ(Write(writer, 0, "new"), 0);
  char seen[3];
  ASSERT_EQ(::pread(backing_.FileOf(reader.open.backing_id), seen, 3, 0), 3);
  EXPECT_EQ(std::string(seen, 3), "new");
  Close(reader);
  Close(other);
  EXPECT_EQ(Open(ino, O_RDONLY).open.mode, OpenMode::kPassthrough);
  RestartWorker();  // neither forgets it
  const OpenFile third = Open(ino, O_RDWR);
  EXPECT_EQ(third.open.mode, OpenMode::kDirect);
  EXPECT_EQ(third.open.backing_id, reader.open.backing_id);
  // The other way round: while a cached writer is there, readers are cached.
  const OpenFile fresh = Create(root_, "g");
  ASSERT_EQ(Write(fresh, 0, "x"), 0);
  EXPECT_EQ(fresh.open.mode, OpenMode::kCached);
  const OpenFile beside = Open(fresh.ino, O_RDONLY);
  EXPECT_EQ(beside.open.mode, OpenMode::kCached);
  EXPECT_TRUE(beside.open.keep_cache);
  Close(fresh);
  EXPECT_EQ(Open(fresh.ino, O_RDONLY).open.mode, OpenMode::kCached);
}

TEST_F(FileTreeTest, AnEvictedFileComesBack) {
  const std::string text = Pattern(300'000, 1);
  const Ino ino = Put(root_, "f", text);
  EvictAll();
  EXPECT_EQ(SlotsInUse(), 0u);
  EXPECT_EQ(Stat(ino).st_size, 300'000);
  EXPECT_TRUE(Get(root_, "f") == text);
  const OpenFile file = Open(ino, O_RDWR);
  ASSERT_EQ(Write(file, 100, "changed"), 0);
  EvictAll();  // open: stays
  EXPECT_EQ(Read(file, 100, 7), "changed");
  Close(file);
  Remount();
  EXPECT_EQ(Get(root_, "f")->substr(100, 7), "changed");
}

TEST_F(FileTreeTest, MappedSlotsAreNotEvicted) {
  const Ino ino = Put(root_, "f", Pattern(10'000, 1));
  const OpenFile reader = Open(ino, O_RDONLY);
  // A mapping outlives its descriptor and is not seen by us: here, a duplicate of the backing file.
  const Fd mapped(::dup(backing_.FileOf(reader.open.backing_id)));
  Close(reader);
  EvictAll();
  EXPECT_EQ(SlotsInUse(), 1u);
}

TEST_F(FileTreeTest, LargeFilesGoToTheDataDisk) {
  const std::string text = Pattern(6u << 20, 1);
  const OpenFile file = Create(root_, "f");
  for (size_t at = 0; at < text.size(); at += 1u << 20) {
    ASSERT_EQ(Write(file, at, text.substr(at, 1u << 20)), 0);
    EXPECT_TRUE(Read(file, at / 2, 10) == text.substr(at / 2, 10));
  }
  EXPECT_TRUE(Read(file, 0, text.size()) == text);
  Close(file);
  EXPECT_EQ(tree_->Stats().disk_files, 1u);
  EXPECT_TRUE(Get(root_, "f") == text);
  Remount();
  EXPECT_TRUE(Get(root_, "f") == text);
  // Now it is one from the start, for writers too.
  const OpenFile writer = Open(file.ino, O_RDWR);
  EXPECT_EQ(writer.open.mode, OpenMode::kPassthrough);
  ASSERT_EQ(Write(writer, 0, "direct"), 0);
  Close(writer);
  EXPECT_EQ(Get(root_, "f")->substr(0, 6), "direct");
  ASSERT_TRUE(tree_->Unlink(Me(), root_, "f"));
  Remount();
  EXPECT_EQ(tree_->Stats().disk_files, 0u);
}

TEST_F(FileTreeTest, PlaceAndEvictAreInherited) {
  const Ino dir = MakeDir(root_, "d");
  ASSERT_TRUE(tree_->SetXattr(Me(), dir, "user.kvc.place", "disk", 0));
  const Ino sub = MakeDir(dir, "sub");
  const OpenFile file = Create(sub, "f");
  EXPECT_EQ(file.open.mode, OpenMode::kPassthrough);
  const std::string path = options_.disk_directory;
  // Writes go past us, through the backing file; here by hand.
  std::string real;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(path)) {
    if (entry.is_regular_file()) real = entry.path();
  }
  const Fd kernel(::open(real.c_str(), O_RDWR));
  ASSERT_EQ(::pwrite(kernel.get(), "hello", 5, 0), 5);
  EXPECT_EQ(Stat(file.ino).st_size, 5);
  ASSERT_TRUE(tree_->Fsync(file.ino, file.open.handle, false));
  Close(file);
  LosePower();
  EXPECT_EQ(Get(sub, "f"), "hello");
}

TEST_F(FileTreeTest, AFullTierSpills) {
  // More than DRAM holds, all of it open: what finds no room goes to the data disk.
  std::vector<OpenFile> files;
  const std::string text = Pattern(3u << 20, 1);
  options_.room_wait = std::chrono::milliseconds(10);
  Crash();
  for (int i = 0; i < 30; ++i) {
    files.push_back(Create(root_, "f" + std::to_string(i)));
    ASSERT_EQ(Write(files.back(), 0, text), 0);
  }
  for (const OpenFile& file : files) {
    EXPECT_TRUE(Read(file, 0, text.size()) == text);
    Close(file);
  }
  EXPECT_GT(tree_->Stats().disk_files, 0u);
  Remount();
  for (int i = 0; i < 30; ++i) EXPECT_TRUE(Get(root_, "f" + std::to_string(i)) == text);
}

TEST_F(FileTreeTest, RootsAreMadeEmptiedAndRemoved) {
  Ino dir = root_;
  for (int depth = 0; depth < 20; ++depth) {
    for (int i = 0; i < 5; ++i) Put(dir, "f" + std::to_string(i), "x");
    dir = MakeDir(dir, "d");
  }
  EXPECT_FALSE(tree_->RootIsEmpty(root_));
  EXPECT_EQ(ErrorOf(tree_->RemoveRoot(root_)), ENOTEMPTY);
  EXPECT_EQ(tree_->Stats().files, 100u);
  ASSERT_TRUE(tree_->ClearRoot(root_));
  EXPECT_TRUE(tree_->RootIsEmpty(root_));
  EXPECT_EQ(tree_->Stats().files, 0u);
  EXPECT_EQ(tree_->Stats().directories, 1u);
  ASSERT_TRUE(tree_->RemoveRoot(root_));
  EXPECT_EQ(ErrorOf(tree_->Lookup(Me(), root_, "x")), ENOENT);
}

}  // namespace
}  // namespace kvcfs::fs
