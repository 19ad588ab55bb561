#include "tools/data_directory.h"

#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <thread>

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/magic.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/log.h"

namespace kvcfs::tools {
namespace {

// Of 25 ms: a second for who holds the data directory to stop, half a minute where it is dead.
constexpr int kLockTries = 40, kLockTriesMax = 1200;

// A few segments are always free or half full, so a small tier has shorter ones: 16 of them, but
// none so short that blocks of usual lengths do not fit.
uint64_t SegmentBytesFor(uint64_t nvme_bytes, uint64_t configured) {
  constexpr uint64_t kMiB = 1u << 20, kSegments = 16, kShortest = 16 * kMiB;
  const uint64_t wanted = nvme_bytes / kSegments / kMiB * kMiB;
  return std::min(configured, std::max(kShortest, wanted));
}

bool IsTmpfsMount(const std::string& path) {
  struct statfs info {};
  struct stat here {
  }, above{};
  return ::statfs(path.c_str(), &info) == 0 && info.f_type == TMPFS_MAGIC &&
         ::stat(path.c_str(), &here) == 0 && ::stat((path + "/..").c_str(), &above) == 0 &&
         here.st_dev != above.st_dev;
}

}  // namespace

NodePaths::NodePaths(const std::string& directory)
    : data(directory),
      dram(directory + "/dram"),
      segments(directory + "/segments"),
      meta(directory + "/meta"),
      files(directory + "/files"),
      lock(directory + "/lock"),
      keep_dram(directory + "/keep-dram"),
      log(directory + "/kvcfs.log"),
      identity(directory + "/node.uuid") {}

Result<LockHolder> ReadLock(const std::string& lock_path) {
  const Fd file(::open(lock_path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file.valid()) return ErrnoError(errno, "open", lock_path);
  std::array<char, 4200> text{};
  const ssize_t got = ::read(file.get(), text.data(), text.size() - 1);
  if (got <= 0) return Error{Code::kNotFound, "nobody"};
  LockHolder holder;
  char* end = nullptr;
  holder.supervisor_pid = static_cast<int>(std::strtol(text.data(), &end, 10));
  holder.use = end;
  while (!holder.use.empty() && holder.use.front() == ' ') holder.use.erase(0, 1);
  while (!holder.use.empty() && holder.use.back() == '\n') holder.use.pop_back();
  return holder;
}

Result<Fd> TakeLock(const NodePaths& paths, const std::string& use) {
  Fd lock(::open(paths.lock.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644));
  if (!lock.valid()) return ErrnoError(errno, "open", paths.lock);
  // A daemon that was killed a moment ago lets go as soon as the kernel has buried it, which takes
  // as long as the I/O that it had under way.
  for (int tries = 0; ::flock(lock.get(), LOCK_EX | LOCK_NB) != 0; ++tries) {
    if (errno != EWOULDBLOCK) return ErrnoError(errno, "lock", paths.lock);
    const auto holder = ReadLock(paths.lock);
    const bool dies = holder.ok() && ::kill(holder->supervisor_pid, 0) != 0 && errno == ESRCH;
    if (tries >= (dies ? kLockTriesMax : kLockTries)) {
      const std::string has = holder.ok() ? holder->use : "?";
      return Error{
          Code::kBusy,
          fmt::format("{} is in use by kvcfs process {} {}; one daemon a data directory ({})",
                      paths.data, holder.ok() ? holder->supervisor_pid : 0,
                      has.starts_with('/') ? "mounted at " + has : has,
                      has.starts_with('/') ? fmt::format("`kvcfs unmount {}` ends that one", has)
                                           : "SIGTERM ends that one")};
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(25));
  }
  // A full disk must not stop a mount: the lock is the flock, the text is for people.
  const std::string text = fmt::format("{} {}\n", ::getpid(), use);
  if (::ftruncate(lock.get(), 0) != 0 ||
      ::pwrite(lock.get(), text.data(), text.size(), 0) != static_cast<ssize_t>(text.size())) {
    KVC_LOG(Warn, "cannot write who holds the data directory", "file={} errno={}",
            LogValue(paths.lock), errno);
  }
  return lock;
}

Status ClaimDirectory(const NodePaths& paths, meta::MetaStore& store,
                      const meta::MetaOpenReport& opened, DirectoryUse use) {
  static constexpr char kServesKey[] = "Mserves";
  KVC_TRY_ASSIGN(const auto serves, store.Get(kServesKey));
  if (use == DirectoryUse::kMount) {
    if (!serves.has_value()) return {};
    return Error{Code::kInvalid, fmt::format("{} is the data directory of a server; a mount wants "
                                             "its own",
                                             paths.data)};
  }
  if (serves.has_value()) return {};
  if (!opened.created && !opened.recreated) {
    return Error{Code::kInvalid, fmt::format("{} is the data directory of a mount; a server wants "
                                             "its own",
                                             paths.data)};
  }
  meta::MetaBatch batch;
  batch.Put(kServesKey, "1");
  return store.Write(batch, false);
}

Status MountDram(const NodePaths& paths, uint64_t dram_bytes) {
  std::error_code ignored;
  std::filesystem::create_directories(paths.dram, ignored);
  // Beside the slots' bytes: their records (256 B each) and what rounding costs.
  const uint64_t size = dram_bytes + dram_bytes / 8 + (64u << 20);
  if (IsTmpfsMount(paths.dram)) {
    const std::string options = fmt::format("size={},mode=0700,nr_inodes=0", size);
    if (::mount("kvcfs-dram", paths.dram.c_str(), "tmpfs", MS_REMOUNT | MS_NOSUID | MS_NODEV,
                options.c_str()) != 0) {
      KVC_LOG(Warn, "the DRAM tier keeps its old size", "errno={}", errno);
    }
    return {};
  }
  for (const char* huge : {",huge=within_size", ""}) {
    const std::string options = fmt::format("size={},mode=0700,nr_inodes=0{}", size, huge);
    if (::mount("kvcfs-dram", paths.dram.c_str(), "tmpfs", MS_NOSUID | MS_NODEV, options.c_str()) ==
        0) {
      if (*huge == 0) {
        KVC_LOG(Warn, "tmpfs without huge pages; large blocks are read at half the speed", "");
      }
      return {};
    }
  }
  return ErrnoError(errno, "mount the DRAM tier (tmpfs) at", paths.dram);
}

uint64_t MemoryBytes() {
  return static_cast<uint64_t>(::sysconf(_SC_PHYS_PAGES)) *
         static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
}

uint64_t DiskBytes(const NodePaths& paths) {
  struct statvfs info {};
  if (::statvfs(paths.data.c_str(), &info) != 0) return 0;
  uint64_t taken = 0;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(paths.segments, error)) {
    struct stat each {};
    if (::stat(entry.path().c_str(), &each) == 0) {
      taken += static_cast<uint64_t>(each.st_blocks) * 512;
    }
  }
  return uint64_t{info.f_bavail} * info.f_frsize + taken;
}

Result<iouring::Uuid> NodeIdentity(const NodePaths& paths, meta::MetaStore& store) {
  const std::string& path = paths.identity;
  static constexpr char kKey[] = "Mnode_uuid";
  iouring::Uuid uuid{};
  bool known = false;
  {
    const Fd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    // The UUID and its complement, so that a flipped bit is seen.
    std::array<uint8_t, 32> text{};
    if (file.valid() && ::read(file.get(), text.data(), text.size()) == 32) {
      known = true;
      for (size_t i = 0; i < 16; ++i) {
        uuid[i] = text[i];
        known = known && text[16 + i] == static_cast<uint8_t>(~text[i]);
      }
    }
  }
  const auto stored = store.Get(kKey);
  if (!known && stored.ok() && stored->has_value() && (*stored)->size() == uuid.size()) {
    std::memcpy(uuid.data(), (*stored)->data(), uuid.size());
    known = true;
  }
  if (!known) uuid = iouring::RandomUuid();
  std::array<uint8_t, 32> text{};
  for (size_t i = 0; i < 16; ++i) {
    text[i] = uuid[i];
    text[16 + i] = static_cast<uint8_t>(~uuid[i]);
  }
  const std::string aside = path + ".new";
  {
    const Fd file(::open(aside.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
    if (file.valid() && ::write(file.get(), text.data(), text.size()) == 32 &&
        ::fsync(file.get()) == 0) {
      ::rename(aside.c_str(), path.c_str());
    } else {
      ::unlink(aside.c_str());  // a full disk; the meta store may have it
    }
  }
  if (!stored.ok() || !stored->has_value()) {
    meta::MetaBatch batch;
    batch.Put(kKey, {reinterpret_cast<const char*>(uuid.data()), uuid.size()});
    (void)store.Write(batch, false);
  }
  return uuid;
}

Result<std::unique_ptr<iouring::SegmentStore>> OpenSegments(
    const iouring::SegmentStoreOptions& options, uint64_t scan_after,
    const iouring::SegmentStore::Visitor& visitor, const std::function<void()>& begun_anew) {
  auto opened = iouring::SegmentStore::Open(options, scan_after, visitor);
  if (opened.ok() || opened.code() == Code::kUnsupported) return opened;
  // Not ours, or beyond reading: what is in it is lost as a cache, but not destroyed.
  const std::string aside =
      fmt::format("{}.unusable-{}", options.directory,
                  std::chrono::steady_clock::now().time_since_epoch().count());
  KVC_LOG(Error, "the NVMe tier cannot be used; moved aside and begun anew",
          "directory={} now={} error={}", LogValue(options.directory), LogValue(aside),
          LogValue(opened.error().text));
  if (::rename(options.directory.c_str(), aside.c_str()) != 0) return opened;
  begun_anew();
  return iouring::SegmentStore::Open(options, scan_after, visitor);
}

iouring::SegmentStoreOptions SegmentOptionsFor(const NodePaths& paths, const iouring::Uuid& node,
                                               uint64_t nvme_bytes,
                                               const IouringSettings& settings) {
  iouring::SegmentStoreOptions options;
  options.directory = paths.segments;
  options.node_uuid = node;
  options.capacity_bytes = nvme_bytes;
  options.segment_bytes = SegmentBytesFor(nvme_bytes, settings.segment_bytes);
  options.staging_bytes = settings.staging_bytes;
  options.queue_bytes_max = settings.queue_bytes_max;
  options.live_share_max = settings.live_share_max;
  options.direct = settings.direct;
  return options;
}

}  // namespace kvcfs::tools
