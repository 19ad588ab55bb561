#include "tools/server.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/crash_point.h"
#include "base/fd.h"
#include "base/log.h"
#include "base/metrics.h"
#include "base/size.h"
#include "fs/cluster_spaces.h"
#include "fs/copy_holder.h"
#include "fs/copy_quota.h"
#include "fs/resident_set.h"
#include "iouring/segment_store.h"
#include "iouring/slot_tier.h"
#include "meta/meta_store.h"
#include "tools/data_directory.h"
#include "tools/gauges.h"
#include "tools/metrics_server.h"
#include "tools/process.h"
#include "tools/verb.h"

namespace kvcfs::tools {
namespace {

constexpr char kVerb[] = "serve";
constexpr uint64_t kDramMin = 8u << 20;

std::string RolesOf(uint8_t roles) {
  const bool meta = (roles & meta::kRoleMetadata) != 0, blocks = (roles & meta::kRoleBlocks) != 0;
  return meta && blocks ? "meta,blocks" : meta ? "meta" : "blocks";
}

// The parts of a node, in the order in which they are made; they go the other way round.
class Server {
 public:
  explicit Server(const ServeOptions& options)
      : options_(options), paths_(options.config.node.data) {}
  ~Server() { Stop(); }

  Status Start() {
    std::error_code error;
    std::filesystem::create_directories(paths_.data, error);
    if (error) {
      return Error{Code::kIo, fmt::format("cannot make the data directory {}: {}", paths_.data,
                                          error.message())};
    }
    KVC_TRY_ASSIGN(lock_, TakeLock(paths_, "serving " + options_.cluster.name));
    KVC_TRY(OpenStore());
    KVC_TRY_ASSIGN(const iouring::Uuid uuid, NodeIdentity(paths_, *meta_));
    if (holds_blocks()) KVC_TRY(OpenTiers(uuid));
    KVC_TRY_ASSIGN(cluster_, MakeRuntime(options_.cluster, NodeIdOf(uuid), &clock_));
    if (copies_ != nullptr) {
      copies_->Join(cluster_.get());
      if (segments_ != nullptr) segments_->Start(copies_.get());
      resident_->Start();
      copies_->Start();
      RegisterTierMetrics(slots_.get(), segments_.get());
      Metrics::Get().AddGauge("kvcfs_fs_dirty_bytes", "Bytes not yet on NVMe.", {},
                              [this] { return static_cast<double>(copies_->Count().dirty_bytes); });
      Metrics::Get().AddGauge(
          "kvcfs_fs_one_sided_bytes", "Bytes in DRAM that peers may read one-sided.", {},
          [this] { return static_cast<double>(copies_->Count().exposed.bytes); });
      Metrics::Get().AddGauge(
          "kvcfs_fs_one_sided_waiting_bytes", "Bytes in DRAM that are to be registered.", {},
          [this] { return static_cast<double>(copies_->Count().exposed.waiting_bytes); });
    }
    RegisterClusterMetrics(cluster_.get());
    KVC_LOG(Info, "joining the cluster", "name={} etcd={}", LogValue(options_.cluster.name),
            LogValue(options_.config.cluster.etcd));
    KVC_TRY(cluster_->Start(copies_.get(), meta_.get()));
    if (copies_ != nullptr) {
      quota_ = std::make_unique<fs::CopyQuota>(cluster_.get(), copies_.get());
      quota_->Start();
    }
    const std::string& address = options_.config.node.metrics_address;
    if (!address.empty()) KVC_TRY(metrics_.Start(address));
    serving_ = true;
    return {};
  }

  // What the ready line says.
  std::string Describe() const {
    std::string text = fmt::format("{} at {} roles={}", options_.cluster.name,
                                   cluster_->address().ToString(), RolesOf(options_.cluster.roles));
    if (slots_ != nullptr) text += " dram=" + FormatSize(slots_->capacity_bytes());
    if (segments_ != nullptr) text += " nvme=" + FormatSize(segments_->Stats().capacity_bytes);
    if (metrics_.port() != 0) text += fmt::format(" metrics={}", metrics_.port());
    const auto status = cluster_->Describe();
    return text + fmt::format(" epoch={} pid={}", status.view == nullptr ? 0 : status.view->epoch,
                              ::getpid());
  }

  void Stop() {
    // Who never served may have found there what an earlier one left, and is not the one to lose
    // it.
    const bool kept_dram = !serving_ && (copies_ == nullptr || copies_->Count().resident > 0);
    quota_.reset();
    // While it still answers; then what came meanwhile.
    WriteBack();
    if (cluster_ != nullptr) cluster_->Stop();
    WriteBack();
    Metrics::Get().ClearReaders();
    if (resident_ != nullptr) resident_->Stop();
    if (copies_ != nullptr) copies_->Stop();
    if (segments_ != nullptr) segments_->Stop();
    segments_.reset();
    copies_.reset();
    cluster_.reset();
    resident_.reset();
    slots_.reset();
    if (!kept_dram) ::umount2(paths_.dram.c_str(), 0);
    serving_ = false;
  }

 private:
  bool holds_blocks() const { return (options_.cluster.roles & meta::kRoleBlocks) != 0; }

  Status OpenStore() {
    std::error_code ignored;
    for (const std::string& path : {paths_.meta, paths_.segments}) {
      std::filesystem::create_directories(path, ignored);
    }
    meta::MetaOpenReport report;
    KVC_TRY_ASSIGN(meta_, meta::MetaStore::Open(
                              {.directory = paths_.meta,
                               .cache_bytes = options_.config.meta.cache_bytes,
                               .write_buffer_bytes = options_.config.meta.write_buffer_bytes},
                              &report));
    if (report.repaired || report.recreated) {
      KVC_LOG(Error, "the meta store was damaged", "what={}", LogValue(report.text));
    }
    return ClaimDirectory(paths_, *meta_, report, DirectoryUse::kServer);
  }

  Status OpenTiers(const iouring::Uuid& uuid) {
    const NodeConfig& config = options_.config;
    const uint64_t dram_bytes = std::max(config.node.dram.Of(MemoryBytes()), kDramMin);
    const uint64_t nvme_bytes = config.node.nvme.Of(DiskBytes(paths_));
    KVC_TRY(MountDram(paths_, dram_bytes));
    KVC_TRY_ASSIGN(
        slots_, iouring::SlotTier::Open({.directory = paths_.dram, .capacity_bytes = dram_bytes}));
    if (nvme_bytes > 0) {
      // What the segments hold beyond the records was never published.
      KVC_TRY_ASSIGN(segments_, OpenSegments(
                                    SegmentOptionsFor(paths_, uuid, nvme_bytes, config.iouring),
                                    fs::CopyHolder::AppliedSequence(*meta_),
                                    [](const auto&, const auto&) {}, [] {}));
    }
    resident_ = std::make_unique<fs::ResidentSet>(
        *slots_, fs::ResidentSetOptions{.high_share = config.fs.evict_high,
                                        .low_share = config.fs.evict_low});
    fs::CopyHolderOptions holder;
    holder.writeback_delay = config.fs.writeback_delay;
    holder.wants_durable = [this](const meta::SpaceId& id) {
      return fs::WantsDurable(*cluster_, id);
    };
    KVC_TRY_ASSIGN(copies_, fs::CopyHolder::Open(holder, {.meta = meta_.get(),
                                                          .slots = slots_.get(),
                                                          .resident = resident_.get(),
                                                          .segments = segments_.get(),
                                                          .clock = &clock_}));
    return {};
  }

  void WriteBack() {
    if (copies_ == nullptr || !serving_) return;
    if (const Status kept = copies_->WriteBackAll(); !kept.ok()) {
      KVC_LOG(Error, "not everything was written back", "error={}", LogValue(kept.error().text));
    }
  }

  const ServeOptions& options_;
  const NodePaths paths_;
  const SystemClock clock_;
  Fd lock_;
  bool serving_ = false;
  std::unique_ptr<meta::MetaStore> meta_;
  std::unique_ptr<iouring::SlotTier> slots_;
  std::unique_ptr<iouring::SegmentStore> segments_;
  std::unique_ptr<fs::ResidentSet> resident_;
  std::unique_ptr<fs::CopyHolder> copies_;
  std::unique_ptr<meta::ClusterRuntime> cluster_;
  std::unique_ptr<fs::CopyQuota> quota_;
  MetricsServer metrics_;
};

// `say`: hears the ready line, or with '!' before it why there is none.
int RunForeground(const ServeOptions& options, const std::function<void(const std::string&)>& say) {
  SetThreadName("main");
  SetLogLevel(options.config.node.log_level);
  BlockStopSignals();
  ArmCrashPoint(options.config.test.crash_point);
  Server server(options);
  if (const Status started = server.Start(); !started.ok()) {
    say("!" + started.error().text);
    return started.code() == Code::kInvalid ? kExitMisused : kExitFailed;
  }
  say("serving " + server.Describe() + "\n");
  KVC_LOG(Info, "serving", "{}", server.Describe());
  const sigset_t stop = StopSignals();
  int number = 0;
  sigwait(&stop, &number);
  KVC_LOG(Info, "asked to stop; writing back and leaving", "signal={}", number);
  server.Stop();
  KVC_LOG(Info, "stopped", "name={}", LogValue(options.cluster.name));
  return kExitDone;
}

// Waits in the parent until the child serves or has ended.
int AwaitReady(pid_t child, const Fd& from, const std::string& log) {
  std::string text;
  char buffer[512];
  for (ssize_t got = 1; got != 0;) {
    got = ::read(from.get(), buffer, sizeof(buffer));
    if (got < 0 && errno != EINTR) break;
    if (got > 0) text.append(buffer, static_cast<size_t>(got));
  }
  if (!text.empty() && text.front() != '!') return Print(kVerb, text);
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  const int code = WIFEXITED(status) ? WEXITSTATUS(status) : kExitFailed;
  const std::string why = text.empty() ? "it ended before it served" : text.substr(1);
  Fail(kVerb, fmt::format("{} (see {})", why, log));
  return code == kExitDone ? kExitFailed : code;
}

}  // namespace

int RunServe(const ServeOptions& options) {
  if (!options.daemon) {
    return RunForeground(options, [](const std::string& text) {
      if (text.front() == '!') {
        Fail(kVerb, text.substr(1));
      } else {
        (void)Print(kVerb, text);
        std::fflush(stdout);
      }
    });
  }
  const NodePaths paths(options.config.node.data);
  std::error_code ignored;
  std::filesystem::create_directories(paths.data, ignored);
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return Fail(kVerb, ErrnoError(errno, "pipe").text);
  const Fd from(ends[0]);
  Fd to(ends[1]);
  const pid_t child = ::fork();
  if (child < 0) return Fail(kVerb, "cannot fork");
  if (child > 0) {
    to.Reset();
    return AwaitReady(child, from, paths.log);
  }
  LeaveTerminal(paths.log);
  const int code = RunForeground(options, [&](const std::string& text) {
    if (text.front() == '!') Fail(kVerb, text.substr(1));
    (void)!::write(to.get(), text.data(), text.size());
    to.Reset();
  });
  ::fflush(nullptr);
  ::_exit(code);
}

}  // namespace kvcfs::tools
