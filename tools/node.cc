#include "tools/node.h"

#include <algorithm>
#include <atomic>
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
#include "fs/cluster_file_tree.h"
#include "fs/cluster_spaces.h"
#include "fs/copy_holder.h"
#include "fs/copy_quota.h"
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

// Entries of the segments belong to the blocks, to the ordinary files, or to the copies that are
// held for a cluster (null: there are none).
class EntryDispatch final : public iouring::EntryOwner {
  template <typename Do>
  auto OwnerOf(const EntryMeta& meta, const SegmentPlace& place, const Do& act) {
    if (IsFileEntry(meta.kind)) return act(files_);
    if (copies_ != nullptr && copies_->Has(meta, place)) return act(*copies_);
    return act(blocks_);
  }

 public:
  EntryDispatch(BlockStore& blocks, FileTree& files, fs::CopyHolder* copies)
      : blocks_(blocks), files_(files), copies_(copies) {}

  iouring::Fate Judge(const EntryMeta& meta, const SegmentPlace& place) override {
    return OwnerOf(meta, place, [&](auto& owner) { return owner.Judge(meta, place); });
  }
  void Moved(const EntryMeta& meta, const SegmentPlace& before, const SegmentPlace& now) override {
    OwnerOf(meta, before, [&](auto& owner) { owner.Moved(meta, before, now); });
  }
  void Lost(const EntryMeta& meta, const SegmentPlace& place) override {
    OwnerOf(meta, place, [&](auto& owner) { owner.Lost(meta, place); });
  }
  void Shed(uint64_t bytes) override {
    // Each kind gives in proportion to what it holds; blocks first, their leaves are exact LRU.
    const uint64_t file_bytes = files_.Stats().content_bytes;
    const uint64_t copy_bytes = copies_ != nullptr ? copies_->Count().bytes : 0;
    const uint64_t all = file_bytes + blocks_.LiveBytes() + copy_bytes;
    const double file_share =
        all == 0 ? 0 : static_cast<double>(file_bytes) / static_cast<double>(all);
    const auto from_files = static_cast<uint64_t>(file_share * static_cast<double>(bytes));
    const uint64_t from_blocks = bytes - from_files;
    // What others have goes before what the cluster must be asked for.
    uint64_t missing = from_blocks - std::min(from_blocks, blocks_.Shed(from_blocks));
    if (copy_bytes > 0 && missing > 0) {
      copies_->Shed(missing);
      missing = 0;
    }
    files_.Shed(from_files + missing, std::chrono::seconds(0));
  }
  void PersistMoves() override {
    if (copies_ != nullptr) copies_->PersistMoves();
  }

 private:
  BlockStore& blocks_;
  FileTree& files_;
  fs::CopyHolder* const copies_;
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

// What leaves the cluster with this mount.
void SayWhatStays(fs::CopyHolder& copies, const NodeOptions& options) {
  const fs::CopyHolder::Counts here = copies.Count();
  if (here.copies == 0) return;
  KVC_LOG(Info,
          "copies stay on this host until its next mount with the same data directory; until then "
          "blocks of one copy are misses to others",
          "copies={} bytes={} of_one={} data={}", here.copies, here.bytes, copies.CountSingle(),
          LogValue(options.data));
  if (here.dirty_bytes > 0) {
    KVC_LOG(Warn, "of those, some are in DRAM only and go with it, if no other host has them",
            "bytes={}", here.dirty_bytes);
  }
}

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
  if (!config.cluster.etcd.empty()) {
    // Other hosts change names and attributes, too.
    tree_options.attr_timeout_s = tree_options.entry_timeout_s = 0;
  }
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
    auto made = MountCluster::Make(config.cluster, *uuid, &clock, options.resumed);
    if (!made.ok()) return fail("cluster", made.error());
    joined = std::move(*made);
  }
  meta::Cluster* const cluster = joined != nullptr ? joined->cluster() : nullptr;
  std::atomic<BlockStore*> block_store{nullptr};
  std::unique_ptr<fs::CopyHolder> copies;
  if (joined != nullptr && joined->holds_blocks()) {
    fs::CopyHolderOptions holder;
    holder.writeback_delay = config.fs.writeback_delay;
    holder.wants_durable = [cluster](const meta::SpaceId& id) {
      return fs::WantsDurable(*cluster, id);
    };
    holder.beside_mount = true;
    holder.resumed = options.resumed;
    holder.applied = [&](uint64_t sequence) {
      if (BlockStore* const known = block_store.load()) known->NoteOthersApplied(sequence);
    };
    auto opened = fs::CopyHolder::Open(holder, {.meta = store->get(),
                                                .slots = slots->get(),
                                                .resident = &resident,
                                                .segments = segments.get(),
                                                .clock = &clock,
                                                .backing = session->get()});
    if (!opened.ok()) return fail("copies", opened.error());
    copies = std::move(*opened);
    copies->Join(cluster);
    std::erase_if(newer.blocks, [&](const fs::RecoveredEntry& entry) {
      return copies->Has(entry.meta, entry.place);
    });
  }
  fs::ClusterFileTree* shared_files = nullptr;
  if (cluster != nullptr) {
    auto shared = std::make_unique<fs::ClusterFileTree>(
        std::move(*files),
        fs::ClusterFileTree::Parts{.cluster = cluster, .namespaces = &namespaces, .clock = &clock});
    shared_files = shared.get();
    *files = std::move(shared);
  }

  fs::BlockStoreOptions block_options;
  block_options.lease = config.fs.lease;
  block_options.lease_hold = config.fs.lease_hold;
  block_options.writeback_delay = config.fs.writeback_delay;
  block_options.lease_bytes_max = capacity / 4;
  block_options.prefetch_blocks = static_cast<uint32_t>(config.fs.prefetch_blocks);
  block_options.resumed = options.resumed;
  if (cluster != nullptr) {
    // Publishing goes to other nodes. What is a cache may go at once, a copy not.
    block_options.publish_wait = std::chrono::seconds(6);
    if (copies == nullptr) block_options.room_wait = std::chrono::seconds(1);
  }
  BlockStore blocks(block_options, {.namespaces = &namespaces,
                                    .meta = store->get(),
                                    .slots = slots->get(),
                                    .resident = &resident,
                                    .segments = segments.get(),
                                    .backing = session->get(),
                                    .notifier = session->get(),
                                    .clock = &clock,
                                    .cluster = cluster,
                                    .copies = copies.get()});
  if (const Status recovered = blocks.Recover(newer.blocks); !recovered.ok()) {
    return fail("blocks", recovered.error());
  }
  block_store = &blocks;
  EntryDispatch dispatch(blocks, **files, copies.get());
  if (segments != nullptr) segments->Start(&dispatch);
  resident.Start();
  blocks.Start();
  if (copies != nullptr) copies->Start();
  std::unique_ptr<fs::CopyQuota> quota;
  // In this order: who is asked may ask those behind it.
  const auto stop = [&] {
    quota.reset();
    Metrics::Get().ClearReaders();
    resident.Stop();
    if (shared_files != nullptr) shared_files->Stop();
    if (joined != nullptr) joined->Leave();
    if (copies != nullptr) {
      // What came until the cluster was left.
      if (const Status kept = copies->WriteBackAll(); !kept.ok()) {
        KVC_LOG(Error, "not everything was written back", "error={}", LogValue(kept.error().text));
      }
      copies->Stop();
      block_store = nullptr;
    }
    blocks.Stop();
    if (segments != nullptr) segments->Stop();  // it asks blocks and files until here
    files->reset();
    segments.reset();
  };
  std::optional<fs::ClusterSpaces> spaces;
  if (cluster != nullptr) {
    if (const Status in = joined->Join(copies.get(), store->get()); !in.ok()) {
      stop();
      return fail("cluster", in.error());
    }
    spaces.emplace(fs::ClusterSpaces::Parts{.cluster = cluster,
                                            .namespaces = &namespaces,
                                            .blocks = &blocks,
                                            .files = files->get(),
                                            .clock = &clock});
    spaces->Follow();
    shared_files->Start();
    if (copies != nullptr) {
      quota = std::make_unique<fs::CopyQuota>(cluster, copies.get());
      quota->Start();
    }
  }

  NodeStats stats({.options = &options,
                   .session = session->get(),
                   .namespaces = &namespaces,
                   .blocks = &blocks,
                   .files = files->get(),
                   .slots = slots->get(),
                   .resident = &resident,
                   .segments = segments.get(),
                   .cluster = cluster,
                   .copies = copies.get()});
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
  const Status copies_kept = copies != nullptr ? copies->WriteBackAll() : Status();
  const Status files_kept = (*files)->WriteBackAll();
  for (const Status* kept : {&blocks_kept, &copies_kept, &files_kept}) {
    if (!kept->ok()) {
      KVC_LOG(Error, "not everything was written back", "error={}", LogValue(kept->error().text));
    }
  }
  if (copies != nullptr) SayWhatStays(*copies, options);
  stop();
  KVC_LOG(Info, "stopped", "mount={}", LogValue(options.mountpoint));
  return 0;
}

}  // namespace kvcfs::tools
