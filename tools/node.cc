#include "tools/node.h"

#include <cerrno>
#include <chrono>
#include <filesystem>
#include <memory>
#include <optional>
#include <thread>

#include <pthread.h>
#include <signal.h>
#include <sys/mount.h>
#include <unistd.h>

#include "base/crash_point.h"
#include "base/log.h"
#include "base/metrics.h"
#include "fs/block_store.h"
#include "fs/cluster_spaces.h"
#include "fs/file_tree.h"
#include "fs/filesystem.h"
#include "fs/namespace_table.h"
#include "fs/resident_set.h"
#include "iouring/segment_store.h"
#include "iouring/slot_tier.h"
#include "meta/meta_store.h"
#include "tools/data_directory.h"
#include "tools/memory_toucher.h"
#include "tools/metrics_server.h"
#include "tools/mount_cluster.h"
#include "tools/node_stats.h"
#include "tools/process.h"
#include "tools/version.h"

namespace kvcfs::tools {
namespace {

using fs::BlockStore;
using fs::FileTree;
using iouring::EntryKind;
using iouring::EntryMeta;
using iouring::SegmentPlace;
using iouring::SegmentStore;
using std::chrono::steady_clock;

bool IsFileEntry(EntryKind kind) {
  return kind == EntryKind::kFile || kind == EntryKind::kFileTombstone;
}

// Entries of the segments belong to the blocks or to the ordinary files.
class EntryDispatch final : public iouring::EntryOwner {
 public:
  EntryDispatch(BlockStore& blocks, FileTree& files) : blocks_(blocks), files_(files) {}

  iouring::Fate Judge(const EntryMeta& meta, const SegmentPlace& place) override {
    return IsFileEntry(meta.kind) ? files_.Judge(meta, place) : blocks_.Judge(meta, place);
  }
  void Moved(const EntryMeta& meta, const SegmentPlace& before, const SegmentPlace& now) override {
    IsFileEntry(meta.kind) ? files_.Moved(meta, before, now) : blocks_.Moved(meta, before, now);
  }
  void Lost(const EntryMeta& meta, const SegmentPlace& place) override {
    IsFileEntry(meta.kind) ? files_.Lost(meta, place) : blocks_.Lost(meta, place);
  }
  void Shed(uint64_t bytes) override {
    // Each kind gives in proportion to what it holds; blocks first, their leaves are exact LRU.
    const uint64_t file_bytes = files_.Stats().content_bytes;
    const uint64_t block_bytes = blocks_.LiveBytes();
    const uint64_t all = file_bytes + block_bytes;
    const double file_share =
        all == 0 ? 0 : static_cast<double>(file_bytes) / static_cast<double>(all);
    const auto from_files = static_cast<uint64_t>(file_share * static_cast<double>(bytes));
    const uint64_t freed = blocks_.Shed(bytes - from_files);
    files_.Shed(from_files + (freed < bytes - from_files ? bytes - from_files - freed : 0),
                std::chrono::seconds(0));
  }

 private:
  BlockStore& blocks_;
  FileTree& files_;
};

void MakeDirectory(const std::string& path) {
  std::error_code ignored;
  std::filesystem::create_directories(path, ignored);
}

// SIGTERM and SIGINT: unmount; the rest follows from /dev/fuse saying that the mount is gone.
class SignalThread {
 public:
  SignalThread(std::string mountpoint, fs::FuseSession& session)
      : mountpoint_(std::move(mountpoint)), session_(session) {
    thread_ = std::thread([this] { Run(); });
  }
  ~SignalThread() {
    over_ = true;
    pthread_kill(thread_.native_handle(), SIGINT);  // it waits for that one too
    thread_.join();
  }

 private:
  void Run() {
    SetThreadName("control");
    const sigset_t stop = StopSignals();
    for (;;) {
      int number = 0;
      sigwait(&stop, &number);
      if (over_) return;
      KVC_LOG(Info, "asked to stop; unmounting", "signal={} mount={}", number,
              LogValue(mountpoint_));
      if (::umount2(mountpoint_.c_str(), 0) == 0 || errno == EINVAL) continue;
      KVC_LOG(Warn, "files are open or a process stands in the mount; detaching it",
              "mount={} errno={}", LogValue(mountpoint_), errno);
      ::umount2(mountpoint_.c_str(), MNT_DETACH);
      session_.StopServing();
    }
  }

  const std::string mountpoint_;
  fs::FuseSession& session_;
  std::atomic<bool> over_{false};
  std::thread thread_;
};

// What the segments hold beyond what the meta store knows.
struct NewerEntries {
  std::vector<fs::RecoveredEntry> blocks;
  std::vector<std::pair<EntryMeta, SegmentPlace>> files;
};

}  // namespace

int RunNode(const NodeOptions& options) {
  const auto begin = steady_clock::now();
  SetThreadName("main");
  SetLogLevel(options.config.node.log_level);
  BlockStopSignals();  // the control thread takes them

  const NodePaths paths(options.data);
  const NodeConfig& config = options.config;
  if (!options.resumed) ArmCrashPoint(config.test.crash_point);
  const SystemClock clock;
  const auto fail = [](const char* what, const Error& error) {
    KVC_LOG(Error, "cannot start", "part={} error={}", what, LogValue(error.text));
    return 1;
  };

  fs::FuseSessionOptions session_options;
  session_options.device_fd = options.device_fd;
  session_options.init = options.init;
  session_options.resumed = options.resumed;
  session_options.probe_directory = paths.dram;
  session_options.threads_max = static_cast<unsigned>(config.fs.fuse_threads_max);
  session_options.follow_caller = config.fs.fuse_follow_caller;
  session_options.keep_awake = config.fs.fuse_keep_awake;
  session_options.poll = config.fs.fuse_poll;
  using Wanted = fs::FuseSessionOptions::Passthrough;
  session_options.passthrough = config.fs.passthrough == Passthrough::kOff  ? Wanted::kOff
                                : config.fs.passthrough == Passthrough::kOn ? Wanted::kOn
                                                                            : Wanted::kAuto;
  auto session = fs::FuseSession::Create(session_options);
  if (!session.ok()) {
    if (session.code() == Code::kCancelled) return 0;
    return fail("fuse", session.error());
  }
  KVC_LOG(Info, "connected to the kernel", "passthrough={} reason={} resumed={}",
          (*session)->enabled(), LogValue((*session)->reason()), options.resumed);

  for (const std::string& path : {paths.segments, paths.meta, paths.files}) MakeDirectory(path);
  meta::MetaOpenReport report;
  auto store = meta::MetaStore::Open({.directory = paths.meta,
                                      .cache_bytes = config.meta.cache_bytes,
                                      .write_buffer_bytes = config.meta.write_buffer_bytes},
                                     &report);
  if (!store.ok()) return fail("meta", store.error());
  if (report.repaired || report.recreated) {
    KVC_LOG(Error, "the meta store was damaged", "what={}", LogValue(report.text));
  }
  const Status claimed = ClaimDirectory(paths, **store, report, DirectoryUse::kMount);
  if (!claimed.ok()) return fail("data", claimed.error());
  const auto uuid = NodeIdentity(paths, **store);
  if (!uuid.ok()) return fail("identity", uuid.error());

  auto slots =
      iouring::SlotTier::Open({.directory = paths.dram, .capacity_bytes = options.dram_bytes});
  if (!slots.ok()) return fail("dram", slots.error());

  NewerEntries newer;
  std::unique_ptr<SegmentStore> segments;
  if (options.nvme_bytes > 0) {
    auto opened = OpenSegments(
        SegmentOptionsFor(paths, *uuid, options.nvme_bytes, config.iouring),
        BlockStore::AppliedSequence(**store),
        [&](const EntryMeta& meta, const SegmentPlace& place) {
          if (IsFileEntry(meta.kind)) {
            newer.files.emplace_back(meta, place);
          } else {
            newer.blocks.push_back({meta, place});
          }
        },
        [&] { newer = {}; });
    if (!opened.ok()) return fail("nvme", opened.error());
    segments = std::move(*opened);
  }

  fs::ResidentSet resident(**slots,
                           {.high_share = config.fs.evict_high, .low_share = config.fs.evict_low});
  fs::NamespaceTable namespaces(**store, clock);
  if (const Status loaded = namespaces.Load(); !loaded.ok()) {
    KVC_LOG(Error, "namespaces could not all be read", "error={}", LogValue(loaded.error().text));
  }

  fs::FileTreeOptions tree_options;
  tree_options.disk_directory = paths.files;
  tree_options.disk_file_bytes_min =
      static_cast<uint64_t>(config.fs.file_disk_share * static_cast<double>(options.dram_bytes));
  tree_options.evict_bytes_min = config.fs.file_evict_min;
  tree_options.writeback_delay = config.fs.writeback_delay;
  const auto seconds = [](std::chrono::milliseconds time) {
    return std::chrono::duration<double>(time).count();
  };
  tree_options.attr_timeout_s = seconds(config.fs.attr_timeout);
  tree_options.entry_timeout_s = seconds(config.fs.entry_timeout);
  tree_options.lease = config.fs.lease;
  // Leases of both kinds together cover at most half of the tier.
  const uint64_t capacity = segments != nullptr ? options.nvme_bytes : options.dram_bytes;
  tree_options.lease_bytes_max = capacity / 4;
  tree_options.resumed = options.resumed;
  auto files = FileTree::Open(tree_options, {.meta = store->get(),
                                             .slots = slots->get(),
                                             .resident = &resident,
                                             .segments = segments.get(),
                                             .backing = session->get(),
                                             .notifier = session->get(),
                                             .clock = &clock,
                                             .recovered = std::move(newer.files)});
  if (!files.ok()) return fail("files", files.error());
  // A namespace that lost the root of its tree to damage gets a new one.
  for (fs::Namespace space : namespaces.List()) {
    if (space.files_root != 0 && (*files)->GetAttr(space.files_root)) continue;
    const auto root = (*files)->MakeRoot(space.uid, space.gid, space.mode, space.uuid);
    if (!root) continue;
    space.files_root = *root;
    (void)namespaces.Update(space);
  }

  std::unique_ptr<MountCluster> joined;
  if (!config.cluster.etcd.empty()) {
    auto joining = MountCluster::Join(config.cluster, &clock, options.resumed);
    if (!joining.ok()) return fail("cluster", joining.error());
    joined = std::move(*joining);
  }
  meta::Cluster* const cluster = joined != nullptr ? joined->cluster() : nullptr;

  fs::BlockStoreOptions block_options;
  block_options.lease = config.fs.lease;
  block_options.lease_hold = config.fs.lease_hold;
  block_options.writeback_delay = config.fs.writeback_delay;
  block_options.lease_bytes_max = capacity / 4;
  block_options.prefetch_blocks = static_cast<uint32_t>(config.fs.prefetch_blocks);
  block_options.resumed = options.resumed;
  if (cluster != nullptr) {
    // Publishing goes to other nodes; and every copy here may go at once.
    block_options.publish_wait = std::chrono::seconds(6);
    block_options.room_wait = std::chrono::seconds(1);
  }
  BlockStore blocks(block_options, {.namespaces = &namespaces,
                                    .meta = store->get(),
                                    .slots = slots->get(),
                                    .resident = &resident,
                                    .segments = segments.get(),
                                    .backing = session->get(),
                                    .notifier = session->get(),
                                    .clock = &clock,
                                    .cluster = cluster});
  if (const Status recovered = blocks.Recover(newer.blocks); !recovered.ok()) {
    return fail("blocks", recovered.error());
  }
  EntryDispatch dispatch(blocks, **files);
  if (segments != nullptr) segments->Start(&dispatch);
  resident.Start();
  blocks.Start();
  std::optional<fs::ClusterSpaces> spaces;
  if (cluster != nullptr) {
    spaces.emplace(fs::ClusterSpaces::Parts{.cluster = cluster,
                                            .namespaces = &namespaces,
                                            .blocks = &blocks,
                                            .files = files->get(),
                                            .clock = &clock});
    spaces->Follow();
  }

  NodeStats stats({.options = &options,
                   .session = session->get(),
                   .namespaces = &namespaces,
                   .blocks = &blocks,
                   .files = files->get(),
                   .slots = slots->get(),
                   .resident = &resident,
                   .segments = segments.get(),
                   .cluster = cluster});
  stats.RegisterMetrics();
  fs::FilesystemOptions fs_options;
  // Where a drop cannot be told to the kernel at once, it may not cache names at all.
  fs_options.entry_timeout_s = (*session)->epoch_supported() ? seconds(config.fs.entry_timeout) : 0;
  fs_options.lease = config.fs.lease;
  fs_options.capacity_bytes = capacity;
  fs::Filesystem filesystem(fs_options,
                            {.namespaces = &namespaces,
                             .blocks = &blocks,
                             .files = files->get(),
                             .clock = &clock,
                             .spaces = spaces ? &*spaces : nullptr},
                            {{"version", [] { return std::string(kVersion) + "\n"; }},
                             {"metrics", [] { return Metrics::Get().Text(); }},
                             {"stats.json", [&] { return stats.Json(); }},
                             {"config.toml", [&] { return DumpNodeConfig(config); }}});

  MetricsServer server;
  if (!config.node.metrics_address.empty()) {
    if (const Status started = server.Start(config.node.metrics_address); !started.ok()) {
      KVC_LOG(Error, "metrics are not served", "address={} error={}",
              LogValue(config.node.metrics_address), LogValue(started.error().text));
    }
  }
  KVC_LOG(
      Info, "serving", "mount={} dram={} nvme={} ms={}", LogValue(options.mountpoint),
      options.dram_bytes, options.nvme_bytes,
      std::chrono::duration_cast<std::chrono::milliseconds>(steady_clock::now() - begin).count());
  {
    const MemoryToucher toucher(config.fs.touch_dram && !options.resumed ? options.dram_bytes : 0);
    const SignalThread signals(options.mountpoint, **session);
    (*session)->Serve(filesystem);
  }
  KVC_LOG(Info, "unmounted; writing back what is dirty", "dirty_bytes={}",
          blocks.Stats().dirty_bytes);
  const Status blocks_kept = blocks.WriteBackAll();
  const Status files_kept = (*files)->WriteBackAll();
  Metrics::Get().ClearReaders();
  resident.Stop();
  if (joined != nullptr) joined->Leave();
  blocks.Stop();
  for (const Status* kept : {&blocks_kept, &files_kept}) {
    if (!kept->ok()) {
      KVC_LOG(Error, "not everything was written back", "error={}", LogValue(kept->error().text));
    }
  }
  if (segments != nullptr) segments->Stop();  // it asks blocks and files until here
  files->reset();
  segments.reset();
  KVC_LOG(Info, "stopped", "mount={}", LogValue(options.mountpoint));
  return 0;
}

}  // namespace kvcfs::tools
