// Random calls on a FileTree and on a directory of tmpfs: the same results, bytes and trees, while
// files are evicted, spilled, written back, and the worker is restarted in between.
#include <linux/falloc.h>
#include <linux/fs.h>
#include <sys/stat.h>
#include <sys/xattr.h>

#include "tests/unit/fs/file_tree_fixture.h"

namespace kvcfs::fs {
namespace {

// `--seed N` after gtest's own flags; printed, so that a failure can be had again.
uint64_t Seed() {
  static const uint64_t seed = [] {
    uint64_t value = std::random_device{}();
    const std::vector<std::string> arguments = testing::internal::GetArgvs();
    for (size_t i = 1; i + 1 < arguments.size(); ++i) {
      if (arguments[i] == "--seed") value = std::stoull(arguments[i + 1]);
    }
    std::printf("--seed %llu\n", static_cast<unsigned long long>(value));
    return value;
  }();
  return seed;
}

class FileTreeModelTest : public TreeTest {
 protected:
  struct Opened {
    OpenFile file;
    Fd real;
    int flags = 0;
  };

  void SetUp() override {
    dram_bytes_ = 12u << 20;
    nvme_bytes_ = 128u << 20;
    options_.room_wait = std::chrono::milliseconds(20);
    TreeTest::SetUp();
    options_.disk_file_bytes_min = 300'000;
    Crash();
    char real[] = "/dev/shm/kvc-model-XXXXXX";
    ASSERT_NE(::mkdtemp(real), nullptr);
    real_ = real;
    random_.seed(Seed());
  }
  void TearDown() override {
    opened_.clear();
    std::filesystem::remove_all(real_);
    TreeTest::TearDown();
  }

  uint64_t Below(uint64_t end) { return random_() % end; }
  // Few names, so that they meet.
  std::string RandomPath() {
    static constexpr const char* kNames[] = {"a", "b", "c", "d", "e"};
    std::string path = kNames[Below(5)];
    for (uint64_t depth = Below(4); depth > 0; --depth) path += std::string("/") + kNames[Below(5)];
    return path;
  }
  std::string Real(const std::string& path) { return real_ + "/" + path; }

  // As the kernel walks: ENOENT, ENOTDIR. `parent` and `last` of what may not exist.
  struct Place {
    int error = 0;
    Ino parent = 0;
    std::string last;
    std::vector<Ino> above;  // parent and its ancestors
  };
  // Symbolic links are followed by the kernel before it asks us: such a path tells nothing.
  bool LeadsThroughALink(const std::string& path) {
    for (size_t end = path.find('/'); end != std::string::npos; end = path.find('/', end + 1)) {
      struct stat attr {};
      if (::lstat(Real(path.substr(0, end)).c_str(), &attr) != 0) return false;
      if (S_ISLNK(attr.st_mode)) return true;
    }
    return false;
  }
  Place Walk(const std::string& path) {
    Place place;
    place.parent = root_;
    place.above.push_back(root_);
    size_t begin = 0;
    for (size_t end = path.find('/'); end != std::string::npos;
         begin = end + 1, end = path.find('/', begin)) {
      const auto next = tree_->Lookup(Me(), place.parent, path.substr(begin, end - begin));
      if (!next) return {.error = next.error().value, .parent = 0, .last = {}, .above = {}};
      if (!S_ISDIR(next->attr.st_mode)) {
        return {.error = ENOTDIR, .parent = 0, .last = {}, .above = {}};
      }
      place.parent = next->ino;
      place.above.push_back(next->ino);
    }
    place.last = path.substr(begin);
    return place;
  }
  template <typename F>
  int At(const std::string& path, F&& call) {
    const Place place = Walk(path);
    if (place.error != 0) return place.error;
    return call(place.parent, place.last);
  }
  template <typename F>
  int On(const std::string& path, F&& call) {
    return At(path, [&](Ino parent, const std::string& name) {
      const auto entry = tree_->Lookup(Me(), parent, name);
      return entry ? call(*entry) : entry.error().value;
    });
  }
  static int Result(int64_t returned) { return returned < 0 ? errno : 0; }

  void Names() {
    const std::string path = RandomPath(), other = RandomPath();
    if (LeadsThroughALink(path) || LeadsThroughALink(other)) return;
    switch (Below(8)) {
      case 0:
      case 1:
        Same("mkdir " + path,
             At(path,
                [&](Ino p, const std::string& n) {
                  return ErrorOf(tree_->MakeDirectory(Me(), p, n, 0750));
                }),
             Result(::mkdir(Real(path).c_str(), 0750)));
        break;
      case 2:
        Same("unlink " + path,
             At(path,
                [&](Ino p, const std::string& n) { return ErrorOf(tree_->Unlink(Me(), p, n)); }),
             Result(::unlink(Real(path).c_str())));
        break;
      case 3:
        Same("rmdir " + path,
             At(path,
                [&](Ino p, const std::string& n) {
                  return ErrorOf(tree_->RemoveDirectory(Me(), p, n));
                }),
             Result(::rmdir(Real(path).c_str())));
        break;
      case 4:
        Same("symlink " + path,
             At(path,
                [&](Ino p, const std::string& n) {
                  return ErrorOf(tree_->MakeSymlink(Me(), p, n, other));
                }),
             Result(::symlink(other.c_str(), Real(path).c_str())));
        break;
      case 5:
        LinkOne(path, other);
        break;
      default:
        RenameOne(path, other);
    }
  }

  void LinkOne(const std::string& path, const std::string& other) {
    const Place to = Walk(other);
    int error = On(path, [&](const EntryReply& entry) {
      if (to.error != 0) return to.error;
      return ErrorOf(tree_->Link(Me(), entry.ino, to.parent, to.last));
    });
    const int real =
        Result(::linkat(AT_FDCWD, Real(path).c_str(), AT_FDCWD, Real(other).c_str(), 0));
    // Of a directory, to a name that exists: which of the two is said is the kernel's choice.
    if (error == EPERM && real == EEXIST) error = EEXIST;
    Same("link " + path + " " + other, error, real);
  }

  void RenameOne(const std::string& path, const std::string& other) {
    static constexpr unsigned kFlags[] = {0, 0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE};
    const unsigned flags = kFlags[Below(5)];
    const Place from = Walk(path), to = Walk(other);
    int error = from.error != 0 ? from.error : to.error;
    const int real =
        Result(::renameat2(AT_FDCWD, Real(path).c_str(), AT_FDCWD, Real(other).c_str(), flags));
    if (error == 0) {
      // What the kernel sees before it asks us: a source or target above the other.
      const auto source = tree_->Lookup(Me(), from.parent, from.last);
      const auto target = tree_->Lookup(Me(), to.parent, to.last);
      const auto is_above = [](const auto& entry, const Place& place) {
        return entry && std::count(place.above.begin(), place.above.end(), entry->ino) > 0;
      };
      if (!source || (!target && flags == RENAME_EXCHANGE)) {
        error = ENOENT;
      } else if (flags == RENAME_NOREPLACE && target) {
        error = EEXIST;
      } else if (is_above(source, to)) {
        error = EINVAL;
        EXPECT_EQ(ErrorOf(tree_->Rename(Me(), from.parent, from.last, to.parent, to.last, flags)),
                  EINVAL);
      } else if (is_above(target, from)) {
        error = flags == RENAME_EXCHANGE ? EINVAL : ENOTEMPTY;
        EXPECT_NE(ErrorOf(tree_->Rename(Me(), from.parent, from.last, to.parent, to.last, flags)),
                  0);
      } else {
        error = ErrorOf(tree_->Rename(Me(), from.parent, from.last, to.parent, to.last, flags));
      }
    }
    Same("rename " + path + " " + other + " flags " + std::to_string(flags), error, real);
  }

  void OpenOne() {
    static constexpr int kFlags[] = {O_RDONLY,
                                     O_RDWR,
                                     O_WRONLY,
                                     O_RDWR | O_TRUNC,
                                     O_RDWR | O_CREAT,
                                     O_WRONLY | O_CREAT | O_TRUNC,
                                     O_WRONLY | O_CREAT | O_EXCL};
    const int flags = kFlags[Below(7)];
    const std::string path = RandomPath();
    if (LeadsThroughALink(path)) return;
    Opened opened;
    opened.flags = flags;
    opened.real = Fd(::open(Real(path).c_str(), flags | O_NOFOLLOW, 0640));
    const int real = opened.real.valid() ? 0 : errno;
    struct stat real_stat {};
    if (real == 0) ::fstat(opened.real.get(), &real_stat);
    if (real == EISDIR || real == ELOOP || (real == 0 && S_ISDIR(real_stat.st_mode))) return;
    const Place place = Walk(path);
    int error = place.error;
    if (error == 0) {
      const auto entry = tree_->Lookup(Me(), place.parent, place.last);
      if (entry && (flags & O_EXCL) != 0) {
        error = EEXIST;
      } else if (entry) {
        const auto open = tree_->Open(Me(), entry->ino, flags & ~O_CREAT);
        error = ErrorOf(open);
        if (open) opened.file = {entry->ino, *open};
      } else if ((flags & O_CREAT) != 0) {
        EntryReply made;
        const auto open =
            tree_->Create(Me(), place.parent, place.last, S_IFREG | 0640, flags, &made);
        error = ErrorOf(open);
        if (open) opened.file = {made.ino, *open};
      } else {
        error = entry.error().value;
      }
    }
    Same("open " + path + " flags " + std::to_string(flags), error, real);
    if (real == 0 && error == 0) opened_.push_back(std::move(opened));
  }

  void Use(Opened& one) {
    const bool writes = (one.flags & O_ACCMODE) != O_RDONLY;
    const bool reads = (one.flags & O_ACCMODE) != O_WRONLY;
    // As the kernel does: passthrough goes to the backing file.
    const bool passthrough = one.file.open.mode == OpenMode::kPassthrough;
    const int backing = passthrough ? backing_.FileOf(one.file.open.backing_id) : -1;
    const uint64_t offset = Below(350'000), length = 1 + Below(Below(4) == 0 ? 200'000 : 5000);
    const Ino ino = one.file.ino;
    const uint64_t handle = one.file.open.handle;
    switch (Below(8)) {
      case 0:
      case 1:
      case 2:
        if (writes) {
          const std::string text = Pattern(length, random_());
          const int error =
              passthrough
                  ? Result(::pwrite(backing, text.data(), length, static_cast<off_t>(offset)))
                  : Write(one.file, offset, text);
          Same("write", error,
               Result(::pwrite(one.real.get(), text.data(), length, static_cast<off_t>(offset))));
        }
        break;
      case 3:
      case 4:
        if (reads) {
          std::string want(length, 0), got(length, 0);
          want.resize(static_cast<size_t>(
              ::pread(one.real.get(), want.data(), length, static_cast<off_t>(offset))));
          if (passthrough) {
            got.resize(static_cast<size_t>(
                ::pread(backing, got.data(), length, static_cast<off_t>(offset))));
          } else {
            got = Read(one.file, offset, length);
          }
          ASSERT_TRUE(got == want) << "read at " << offset << " of " << length << ", ino " << ino;
        }
        break;
      case 5:
        if (writes) {
          const uint64_t size = Below(5) == 0 ? 0 : offset;
          Same("truncate", Truncate(ino, size),
               Result(::ftruncate(one.real.get(), static_cast<off_t>(size))));
        }
        break;
      case 6:
        if (writes) {
          static constexpr int kModes[] = {0, FALLOC_FL_KEEP_SIZE,
                                           FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE};
          const int mode = kModes[Below(3)];
          Same("fallocate", ErrorOf(tree_->Allocate(ino, handle, mode, offset, length)),
               Result(::fallocate(one.real.get(), mode, static_cast<off_t>(offset),
                                  static_cast<off_t>(length))));
        }
        break;
      default:
        if (Below(10) == 0) Same("fsync", ErrorOf(tree_->Fsync(ino, handle, false)), 0);
        struct stat real {};
        ::fstat(one.real.get(), &real);
        const struct stat ours = Stat(ino);
        ASSERT_EQ(ours.st_size, real.st_size);
        ASSERT_EQ(ours.st_nlink, real.st_nlink);
    }
  }

  void CloseSome(size_t leave) {
    while (opened_.size() > leave) {
      const size_t which = Below(opened_.size());
      Close(opened_[which].file);
      opened_.erase(opened_.begin() + static_cast<std::ptrdiff_t>(which));
    }
  }

  void Same(const std::string& what, int ours, int real) {
    steps_.push_back(what + " = " + std::strerror(real));
    ASSERT_EQ(std::string(std::strerror(ours)), std::strerror(real)) << what;
  }

  // Names, kinds, modes, links and bytes of both trees.
  void Compare(Ino directory, const std::string& real) {
    std::vector<std::string> names = List(directory, 7, Below(2) == 0);
    std::set<std::string> ours(names.begin(), names.end());
    ASSERT_EQ(ours.size(), names.size());
    std::set<std::string> theirs{".", ".."};
    for (const auto& entry : std::filesystem::directory_iterator(real)) {
      theirs.insert(entry.path().filename());
    }
    ASSERT_EQ(ours, theirs) << real;
    for (const std::string& name : ours) {
      if (name == "." || name == "..") continue;
      const std::string path = real + "/" + name;
      const auto entry = tree_->Lookup(Me(), directory, name);
      ASSERT_TRUE(entry) << path;
      struct stat want {};
      ::lstat(path.c_str(), &want);
      EXPECT_EQ(entry->attr.st_mode, want.st_mode) << path;
      EXPECT_EQ(entry->attr.st_nlink, want.st_nlink) << path;
      if (S_ISDIR(want.st_mode)) {
        Compare(entry->ino, path);
      } else if (S_ISLNK(want.st_mode)) {
        EXPECT_EQ(*tree_->ReadLink(entry->ino), std::filesystem::read_symlink(path));
      } else {
        std::string bytes(static_cast<size_t>(want.st_size), 0);
        const Fd fd(::open(path.c_str(), O_RDONLY));
        ASSERT_EQ(::pread(fd.get(), bytes.data(), bytes.size(), 0), want.st_size);
        ASSERT_TRUE(Get(directory, name) == bytes) << path;
      }
      if (HasFatalFailure()) return;
    }
  }

  std::string real_;
  std::mt19937_64 random_;
  std::vector<Opened> opened_;
  std::vector<std::string> steps_;
};

TEST_F(FileTreeModelTest, BehavesAsTmpfs) {
  for (int round = 0; round < 12 && !HasFailure(); ++round) {
    for (int step = 0; step < 700 && !HasFailure(); ++step) {
      const uint64_t what = Below(100);
      if (what < 35) {
        Names();
      } else if (what < 55) {
        if (opened_.size() < 12) OpenOne();
      } else if (what < 92) {
        if (!opened_.empty()) Use(opened_[Below(opened_.size())]);
      } else if (what < 97) {
        CloseSome(opened_.size() - std::min<size_t>(opened_.size(), 1));
      } else if (what < 98) {
        EvictAll();
      } else {
        backing_.on = Below(3) != 0;
        if (Below(4) == 0) RestartWorker();
      }
    }
    if (HasFailure()) break;
    if (round % 2 == 0) CloseSome(0);
    Compare(root_, real_);
    if (opened_.empty() && round % 4 == 0) {
      Remount();
      Compare(root_, real_);
    }
  }
  if (HasFailure()) {
    for (size_t i = steps_.size() > 30 ? steps_.size() - 30 : 0; i < steps_.size(); ++i) {
      std::printf("%s\n", steps_[i].c_str());
    }
  }
  CloseSome(0);
  EXPECT_EQ(tree_->Stats().damaged_files, 0u);
  ASSERT_TRUE(tree_->ClearRoot(root_));
  EXPECT_EQ(tree_->Stats().content_bytes, 0u);
  EXPECT_EQ(tree_->Stats().dirty_bytes, 0u);
  EXPECT_EQ(SlotsInUse(), 0u);
  EXPECT_EQ(slots_->used_bytes(), 0u);
}

}  // namespace
}  // namespace kvcfs::fs
