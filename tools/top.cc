// kvcfs top: what a mount does now.
#include <chrono>
#include <csignal>
#include <memory>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include "base/read_file.h"
#include "base/size.h"
#include "tools/client.h"
#include "tools/metrics_text.h"
#include "tools/stats.h"
#include "tools/verb.h"

namespace kvcfs::tools {
namespace {

using SteadyClock = std::chrono::steady_clock;

struct Options {
  std::string where;
  double interval_s = 1;
  uint64_t iterations = 0;
  bool once = false;
};

volatile std::sig_atomic_t g_stop = 0;

// Keys arrive at once and unseen, on the other screen, until this goes.
class RawTerminal {
 public:
  RawTerminal() {
    if (::tcgetattr(STDIN_FILENO, &saved_) == 0) {
      termios raw = saved_;
      raw.c_lflag &= ~static_cast<tcflag_t>(ICANON | ECHO);
      is_raw_ = ::tcsetattr(STDIN_FILENO, TCSANOW, &raw) == 0;
    }
    Print("top", "\x1b[?1049h\x1b[?25l");
  }
  ~RawTerminal() {
    Print("top", "\x1b[?25h\x1b[?1049l");
    if (is_raw_) ::tcsetattr(STDIN_FILENO, TCSANOW, &saved_);
  }
  RawTerminal(const RawTerminal&) = delete;
  RawTerminal& operator=(const RawTerminal&) = delete;

 private:
  termios saved_{};
  bool is_raw_ = false;
};

struct Sample {
  SteadyClock::time_point at;
  Json stats;
  MetricsSample metrics;
};

Result<Sample> Take(const std::string& mountpoint) {
  Sample sample;
  sample.at = SteadyClock::now();
  KVC_TRY_ASSIGN(sample.stats, ReadStats(mountpoint));
  KVC_TRY_ASSIGN(const std::string text, ReadFile(mountpoint + "/.kvcfs/metrics"));
  sample.metrics = ParseMetrics(text);
  return sample;
}

std::string Micros(double seconds) {
  if (seconds <= 0) return "-";
  if (seconds < 1e-3) return fmt::format("{:.0f} us", seconds * 1e6);
  if (seconds < 1) return fmt::format("{:.0f} ms", seconds * 1e3);
  return fmt::format("{:.0f} s", seconds);
}

// "kvcfs_fs_read_duration_seconds{source="nvme"}" -> "fs_read{source="nvme"}".
std::string ShortName(std::string name) {
  if (name.starts_with("kvcfs_")) name.erase(0, 6);
  for (const char* suffix : {"_duration_seconds", "_seconds", "_total"}) {
    const size_t end = std::min(name.find('{'), name.size());
    const size_t length = std::string_view(suffix).size();
    if (end > length && name.compare(end - length, length, suffix) == 0) {
      name.erase(end - length, length);
      break;
    }
  }
  return name;
}

std::string TierText(const Json& stats, const char* tier) {
  const std::string path = fmt::format("tiers/{}/", tier);
  const double capacity = NumberAt(stats, path + "capacity_bytes").value_or(0);
  const double used = NumberAt(stats, path + "used_bytes").value_or(0);
  return fmt::format("{} {} {} of {}", tier, FormatBar(capacity > 0 ? used / capacity : 0, 20),
                     FormatSizeShort(static_cast<uint64_t>(used)),
                     FormatSizeShort(static_cast<uint64_t>(capacity)));
}

std::vector<std::string> Frame(const std::string& mountpoint, const Sample& before,
                               const Sample& now) {
  const double seconds = std::chrono::duration<double>(now.at - before.at).count();
  std::vector<std::string> lines;
  lines.push_back(fmt::format("kvcfs {} at {}, up {}, passthrough {}",
                              TextAt(now.stats, "version").value_or("?"), mountpoint,
                              FormatSeconds(NumberAt(now.stats, "uptime_s").value_or(0)),
                              FormatMode(now.stats)));
  lines.push_back(TierText(now.stats, "dram") + "   " + TierText(now.stats, "nvme"));
  lines.push_back(fmt::format("dirty {}", FormatSizeShort(CountAt(now.stats, "dirty_bytes"))));
  lines.emplace_back();
  lines.push_back(
      fmt::format("{:<42} {:>12} {:>10} {:>10}", "OPERATION", "a second", "p50", "p99"));
  for (const auto& [name, histogram] : now.metrics.histograms) {
    const auto earlier = before.metrics.histograms.find(name);
    const HistogramSample delta =
        earlier == before.metrics.histograms.end() ? histogram : histogram.Since(earlier->second);
    if (!(delta.count > 0)) continue;
    lines.push_back(fmt::format("{:<42} {:>12.1f} {:>10} {:>10}", ShortName(name),
                                delta.count / seconds, Micros(delta.Quantile(0.5)),
                                Micros(delta.Quantile(0.99))));
  }
  lines.emplace_back();
  lines.push_back(fmt::format("{:<42} {:>12} {:>21}", "COUNTER", "a second", "total"));
  for (const auto& [name, value] : now.metrics.counters) {
    const auto earlier = before.metrics.counters.find(name);
    const double rate =
        (value - (earlier == before.metrics.counters.end() ? 0 : earlier->second)) / seconds;
    if (!(rate > 0)) continue;
    const bool is_bytes = name.find("_bytes_") != std::string::npos;
    lines.push_back(fmt::format(
        "{:<42} {:>12} {:>21}", ShortName(name),
        is_bytes ? FormatSizeShort(static_cast<uint64_t>(rate)) : fmt::format("{:.1f}", rate),
        is_bytes ? FormatSizeShort(static_cast<uint64_t>(value)) : fmt::format("{:.0f}", value)));
  }
  return lines;
}

std::string OnScreen(const std::vector<std::string>& lines) {
  winsize size{};
  size_t rows = 24, columns = 80;
  if (::ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_row > 1 && size.ws_col > 1) {
    rows = size.ws_row;
    columns = size.ws_col;
  }
  std::string text = "\x1b[H";
  for (size_t i = 0; i < lines.size() && i + 1 < rows; ++i) {
    text += lines[i].substr(0, columns) + "\x1b[K\r\n";
  }
  return text + "\x1b[Jq ends";
}

// True: the user wants to go.
bool WaitOrQuit(double seconds, bool is_live) {
  const auto until = SteadyClock::now() + std::chrono::duration<double>(seconds);
  while (g_stop == 0) {
    const auto left =
        std::chrono::duration_cast<std::chrono::milliseconds>(until - SteadyClock::now()).count();
    if (left <= 0) return false;
    pollfd input{.fd = is_live ? STDIN_FILENO : -1, .events = POLLIN, .revents = 0};
    if (::poll(&input, 1, static_cast<int>(left)) <= 0 || input.revents == 0) continue;
    char key = 0;
    const ssize_t got = ::read(STDIN_FILENO, &key, 1);
    if (got <= 0) is_live = false;  // no more keys: ^C is left
    if (got > 0 && (key == 'q' || key == 'Q')) return true;
  }
  return true;
}

int Top(const Options& options) {
  const Result<MountedPath> found = FindMount(options.where);
  if (!found.ok()) return FailWith("top", found.error());
  if (!(options.interval_s > 0)) return Misuse("top", "--interval must be above 0 seconds");
  Result<Sample> before = Take(found->mountpoint);
  if (!before.ok()) return FailWith("top", before.error());

  // No SA_RESTART: a signal ends the wait.
  struct sigaction action {};
  action.sa_handler = [](int) { g_stop = 1; };
  ::sigaction(SIGINT, &action, nullptr);
  ::sigaction(SIGTERM, &action, nullptr);

  const uint64_t iterations = options.once ? 1 : options.iterations;
  const bool is_live =
      iterations == 0 && ::isatty(STDOUT_FILENO) == 1 && ::isatty(STDIN_FILENO) == 1;
  std::unique_ptr<RawTerminal> terminal;
  if (is_live) terminal = std::make_unique<RawTerminal>();
  for (uint64_t i = 0; iterations == 0 || i < iterations; ++i) {
    if (WaitOrQuit(options.interval_s, is_live)) break;
    Result<Sample> now = Take(found->mountpoint);
    if (!now.ok()) {
      terminal.reset();
      return FailWith("top", now.error());
    }
    const std::vector<std::string> lines = Frame(found->mountpoint, *before, *now);
    std::string text;
    if (is_live) {
      text = OnScreen(lines);
    } else {
      if (i > 0) text = "\n";
      for (const std::string& line : lines) text += line + "\n";
    }
    if (Print("top", text) != kExitDone) return kExitFailed;
    before = std::move(now);
  }
  return kExitDone;
}

}  // namespace

void AddTopVerb(CLI::App& app, int& exit_code) {
  CLI::App* verb = app.add_subcommand("top", "What a mount does now: rates and latencies, live.");
  auto options = std::make_shared<Options>();
  verb->add_option("MNT", options->where, "The mount")->required();
  verb->add_option("--interval", options->interval_s, "Seconds between two looks")
      ->capture_default_str();
  verb->add_option("--iterations", options->iterations, "End after so many looks; 0: never")
      ->capture_default_str();
  verb->add_flag("--once", options->once, "One look, the same as --iterations 1");
  verb->footer(
      "q or ^C ends. Only what happened since the last look is shown. Where output is no "
      "terminal,\n"
      "or with --once or --iterations, plain lines are printed.\n\n"
      "Example: rates over the next ten seconds, for a script\n"
      "  kvcfs top /mnt/kvc --once --interval 10");
  verb->callback([options, &exit_code] { exit_code = Top(*options); });
}

}  // namespace kvcfs::tools
