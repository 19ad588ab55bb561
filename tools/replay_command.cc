// kvcfs replay: plays a trace through a mount and checks every byte.
#include <charconv>
#include <csignal>
#include <ctime>
#include <memory>

#include <CLI/CLI.hpp>
#include <fcntl.h>
#include <fmt/chrono.h>
#include <fmt/format.h>
#include <unistd.h>

#include "base/size.h"
#include "tools/replay.h"
#include "tools/replay_target.h"
#include "tools/report.h"
#include "tools/stats.h"
#include "tools/verb.h"

namespace kvcfs::tools {
namespace {

struct Options {
  std::string trace;
  std::string where;
  std::string block_bytes;
  uint64_t concurrency = 1;
  std::string speed = "max";
  uint64_t limit = 0;
  uint64_t seed = 0;
  std::string report;
  bool json = false;
};

std::atomic<bool> g_stop{false};

// 0: as fast as it goes.
Result<double> ParseSpeed(const std::string& text) {
  if (text == "max") return 0.0;
  std::string_view number = text;
  if (number.ends_with('x')) number.remove_suffix(1);
  double speed = 0;
  const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), speed);
  if (error != std::errc() || end != number.data() + number.size() || !(speed > 0)) {
    return Error{
        Code::kInvalid,
        fmt::format("--speed {}: write max, or how many times the trace's speed, as 10", text)};
  }
  return speed;
}

TierOccupancy ReadOccupancy(const std::string& mountpoint) {
  const Result<Json> stats = ReadStats(mountpoint);
  if (!stats.ok()) return {};
  return {.dram_used = CountAt(*stats, "tiers/dram/used_bytes"),
          .dram_capacity = CountAt(*stats, "tiers/dram/capacity_bytes"),
          .nvme_used = CountAt(*stats, "tiers/nvme/used_bytes"),
          .nvme_capacity = CountAt(*stats, "tiers/nvme/capacity_bytes")};
}

void ShowProgress(const ReplayPoint& point, uint64_t total) {
  const double share =
      total == 0 ? 1 : static_cast<double>(point.requests) / static_cast<double>(total);
  const double blocks = static_cast<double>(point.blocks_hit + point.blocks_missed);
  const double left_s = share > 0 ? point.seconds * (1 - share) / share : 0;
  fmt::print(stderr, "\r{} {}/{} requests, hit {:.1f}%, read {}, written {}, {} left\x1b[K",
             FormatBar(share, 24), point.requests, total,
             blocks > 0 ? 100 * static_cast<double>(point.blocks_hit) / blocks : 0.0,
             FormatSizeShort(point.bytes_read), FormatSizeShort(point.bytes_written),
             FormatSeconds(left_s));
}

Status WriteReport(const std::string& path, const std::string& html) {
  std::FILE* file = std::fopen(path.c_str(), "we");
  if (file == nullptr) return ErrnoError(errno, "create", path);
  const bool written = std::fwrite(html.data(), 1, html.size(), file) == html.size();
  if (std::fclose(file) != 0 || !written) return ErrnoError(errno, "write", path);
  return {};
}

std::string ShortCommand(const Options& options, const ReplayOptions& replay) {
  std::string command = fmt::format(
      "kvcfs replay {} --mount {} --block-bytes {} --concurrency {} --speed {}", options.trace,
      options.where, FormatSize(replay.block_bytes), options.concurrency, options.speed);
  if (options.limit > 0) command += fmt::format(" --limit {}", options.limit);
  if (options.seed > 0) command += fmt::format(" --seed {}", options.seed);
  return command;
}

Result<int> RunReplay(const Options& options) {
  ReplayOptions replay;
  replay.concurrency = options.concurrency;
  replay.seed = options.seed;
  KVC_TRY_ASSIGN(replay.speed, ParseSpeed(options.speed));
  uint64_t block_bytes = 0;
  if (!options.block_bytes.empty()) {
    KVC_TRY_ASSIGN(block_bytes, ParseSize(options.block_bytes));
    constexpr uint64_t kBlockBytesMax = uint64_t{64} << 20;
    if (block_bytes == 0 || block_bytes > kBlockBytesMax) {
      return Error{Code::kInvalid, fmt::format("--block-bytes {}: blocks have 1 byte to 64MiB",
                                               options.block_bytes)};
    }
  }
  KVC_TRY_ASSIGN(const Trace trace, ReadTrace(options.trace, options.limit));
  KVC_TRY_ASSIGN(replay.block_bytes, PrepareNamespace(options.where, block_bytes));
  KVC_TRY_ASSIGN(const MountedPath mount, FindNamespace(options.where));

  // The first ^C ends after the requests under way and reports; the second ends at once.
  struct sigaction action {};
  action.sa_handler = [](int) { g_stop.store(true); };
  action.sa_flags = SA_RESTART | static_cast<int>(SA_RESETHAND);
  ::sigaction(SIGINT, &action, nullptr);
  ::sigaction(SIGTERM, &action, nullptr);

  const bool show_progress = ::isatty(STDERR_FILENO) == 1;
  ReplayHooks hooks;
  hooks.make_target = [&options] { return OpenReplayTarget(options.where); };
  hooks.occupancy = [&mount] { return ReadOccupancy(mount.mountpoint); };
  hooks.stop = &g_stop;
  if (show_progress) hooks.progress = ShowProgress;
  KVC_TRY_ASSIGN(const ReplayResult result, Replay(trace, replay, hooks));
  if (show_progress) fmt::print(stderr, "\r\x1b[K");

  if (!options.report.empty()) {
    const Result<Json> stats = ReadStats(mount.mountpoint);
    ReportHead head;
    head.trace = options.trace.substr(options.trace.rfind('/') + 1);
    head.where = options.where;
    head.version = stats.ok() ? TextAt(*stats, "version").value_or("?") : "?";
    head.mode = stats.ok() ? FormatMode(*stats) : "unknown";
    head.machine = DescribeMachine();
    head.when = fmt::format("{:%Y-%m-%d %H:%M}", fmt::localtime(std::time(nullptr)));
    head.command = ShortCommand(options, replay);
    KVC_TRY(WriteReport(options.report, RenderReport(head, result)));
  }
  if (Print("replay", options.json ? ReplayJson(result) : ReplayText(result)) != kExitDone) {
    return kExitFailed;
  }
  if (!options.json && !options.report.empty()) {
    KVC_TRY(Print("replay", fmt::format("\nreport       {}\n", options.report)) == kExitDone
                ? Status()
                : Status(Error{Code::kIo, "cannot write"}));
  }
  return result.Right() ? kExitDone : kExitFailed;
}

}  // namespace

void AddReplayVerb(CLI::App& app, int& exit_code) {
  CLI::App* verb = app.add_subcommand("replay", "Play a trace through a mount, check every byte.");
  auto options = std::make_shared<Options>();
  verb->add_option("TRACE", options->trace, "Requests in Mooncake's format, JSON lines")
      ->required();
  verb->add_option("--mount", options->where, "MNT/NS; the namespace is made if it is not there")
      ->type_name("MNT/NS")
      ->required();
  verb->add_option("--block-bytes", options->block_bytes,
                   "Length of each block, as 2MiB (default: what the namespace has)")
      ->type_name("SIZE");
  verb->add_option("--concurrency", options->concurrency, "Requests at a time")
      ->check(CLI::Range(1, 1024).description(""))
      ->type_name("N")
      ->capture_default_str();
  verb->add_option("--speed", options->speed, "max, or how many times the trace's own speed")
      ->type_name("X")
      ->capture_default_str();
  verb->add_option("--limit", options->limit, "Only the first N requests; 0: all")
      ->type_name("N")
      ->capture_default_str();
  verb->add_option("--seed", options->seed,
                   "Not 0: requests of one timestamp come in another order")
      ->type_name("S")
      ->capture_default_str();
  verb->add_option("--report", options->report, "Write a page with plots here (HTML)")
      ->type_name("FILE");
  verb->add_flag("--json", options->json, "One JSON object");
  verb->footer(
      "Per request: match the prefix, read and verify every matched block, write the rest. A\n"
      "block's key is SHA-256(parent's key || id, 64 bits, little-endian), its bytes are made "
      "from\n"
      "the key, so a second run checks what the first one wrote. GB/s counts the time in open and\n"
      "read only. Exit 1 if a byte was wrong, a leased block was lost, or a call failed.\n\n"
      "Example:\n"
      "  kvcfs trace synth --requests 1000 --output trace.jsonl\n"
      "  kvcfs replay trace.jsonl --mount /mnt/kvc/demo --block-bytes 1MiB --report replay.html");
  verb->callback([options, &exit_code] {
    const Result<int> done = RunReplay(*options);
    exit_code = done.ok() ? *done : FailWith("replay", done.error());
  });
}

}  // namespace kvcfs::tools
