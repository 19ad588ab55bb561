#include "tools/replay.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <thread>

#include <fmt/format.h>

#include "meta/chain_key.h"
#include "tools/block_bytes.h"
#include "tools/random.h"

namespace kvcfs::tools {
namespace {

using SteadyClock = std::chrono::steady_clock;

constexpr size_t kPointsMax = 2000;  // then every other one goes, and they come half as often

uint64_t NanosSince(SteadyClock::time_point begin) {
  return static_cast<uint64_t>(
      std::chrono::duration_cast<std::chrono::nanoseconds>(SteadyClock::now() - begin).count());
}

std::string CallName(const CallOutcome& outcome) {
  const char* name = ::strerrorname_np(outcome.error);
  return fmt::format("{} {}", outcome.call, name == nullptr ? "?" : name);
}

// What all workers add to as they go, for the sampler; totals are exact at the end.
struct Progress {
  std::atomic<uint64_t> requests{0}, blocks_hit{0}, blocks_missed{0}, bytes_read{0},
      bytes_written{0};
};

class Worker {
 public:
  Worker(const ReplayOptions& options, ReplayTarget& target, Progress& progress)
      : options_(options), target_(target), progress_(progress), buffer_(options.block_bytes) {}

  void Play(const TraceRequest& request) {
    const std::vector<BlockKey> keys = meta::ChainKeys(request.hash_ids);
    const auto begin = SteadyClock::now();
    const Result<MatchAnswer> answer = target_.Match(keys);
    result_.match_nanos.push_back(NanosSince(begin));
    size_t hits = 0;
    if (answer.ok()) {
      hits = ReadMatched(keys, *answer, begin);
    } else {
      Failed(fmt::format("match {}", CodeName(answer.code())), answer.error().text);
    }
    const uint64_t missed = keys.size() - hits;
    result_.blocks_hit += hits;
    result_.blocks_missed += missed;
    progress_.blocks_hit.fetch_add(hits, std::memory_order_relaxed);
    progress_.blocks_missed.fetch_add(missed, std::memory_order_relaxed);
    for (size_t i = hits; i < keys.size(); ++i) {
      if (!WriteBlock(i == 0 ? nullptr : &keys[i - 1], keys[i])) break;
    }
    ++result_.requests;
    progress_.requests.fetch_add(1, std::memory_order_relaxed);
  }

  void Behind(double seconds) {
    result_.behind_seconds = std::max(result_.behind_seconds, seconds);
  }

  const ReplayResult& result() const { return result_; }

 private:
  void Failed(const std::string& call, const std::string& text) {
    ++result_.failed_calls[call];
    if (result_.first_failure.empty()) result_.first_failure = text;
  }

  void Failed(const CallOutcome& outcome, const BlockKey& key) {
    Failed(CallName(outcome), fmt::format("{} of {}: {}", outcome.call, key.ToHex(),
                                          ::strerrordesc_np(outcome.error)));
  }

  // How many leading blocks came back; a block that is gone is missed, with all behind it.
  size_t ReadMatched(const std::vector<BlockKey>& keys, const MatchAnswer& answer,
                     SteadyClock::time_point asked) {
    for (size_t i = 0; i < answer.count(); ++i) {
      const auto begin = SteadyClock::now();
      uint64_t nanos = 0, length = 0;
      const CallOutcome outcome =
          target_.Read(keys[i], buffer_, &length, [&] { nanos = NanosSince(begin); });
      if (outcome.error != 0) {
        if (outcome.error != ENOENT) {
          Failed(outcome, keys[i]);
        } else if (NanosSince(asked) < uint64_t{answer.lease_ms} * 1'000'000) {
          ++result_.lost_under_lease;
        } else {
          ++result_.lost_unleased;
        }
        return i;
      }
      result_.read_nanos.push_back(nanos);
      result_.bytes_read += outcome.bytes;
      progress_.bytes_read.fetch_add(outcome.bytes, std::memory_order_relaxed);
      const std::span<const std::byte> got(buffer_.data(), outcome.bytes);
      // Every block is written whole: a shorter or longer one is wrong by the difference.
      const uint64_t expected = options_.block_bytes;
      uint64_t wrong = CountWrongBytes(keys[i], got);
      wrong += expected - outcome.bytes;
      if (length > expected) wrong += length - expected;
      result_.wrong_bytes += wrong;
      result_.wrong_blocks += wrong > 0 ? 1 : 0;
      if (wrong > 0 && result_.first_failure.empty()) {
        result_.first_failure =
            fmt::format("block {}: {} wrong bytes; its length is {}, {} was written",
                        keys[i].ToHex(), wrong, length, expected);
      }
    }
    return answer.count();
  }

  // False: the rest of the request cannot be written.
  bool WriteBlock(const BlockKey* parent, const BlockKey& key) {
    FillBlockBytes(key, buffer_);
    const auto begin = SteadyClock::now();
    const CallOutcome outcome = target_.Write(parent, key, buffer_);
    switch (outcome.error) {
      case 0:
        result_.write_nanos.push_back(NanosSince(begin));
        ++result_.blocks_written;
        result_.bytes_written += buffer_.size();
        progress_.bytes_written.fetch_add(buffer_.size(), std::memory_order_relaxed);
        return true;
      case EEXIST:
        ++result_.lost_races;
        return true;
      case ENOENT:
        ++result_.parents_gone;
        return false;
      case ENOSPC:
        ++result_.no_space;
        return false;
      default:
        Failed(outcome, key);
        return false;
    }
  }

  const ReplayOptions& options_;
  ReplayTarget& target_;
  Progress& progress_;
  std::vector<std::byte> buffer_;
  ReplayResult result_;
};

// Samples the run at intervals, from its own thread, until destroyed.
class Sampler {
 public:
  Sampler(const ReplayOptions& options, const ReplayHooks& hooks, const Progress& progress,
          uint64_t requests_total)
      : hooks_(hooks), progress_(progress), requests_total_(requests_total) {
    thread_ = std::thread([this, interval = options.sample_interval] { Run(interval); });
  }
  ~Sampler() { Finish(); }

  // Stops; all points, with a last one of now.
  std::vector<ReplayPoint> Finish() {
    {
      std::lock_guard lock(mutex_);
      finished_ = true;
    }
    changed_.notify_all();
    if (thread_.joinable()) thread_.join();
    return std::move(points_);
  }

 private:
  void Run(std::chrono::milliseconds interval) {
    std::unique_lock lock(mutex_);
    for (bool last = false; !last;) {
      last = changed_.wait_for(lock, interval, [this] { return finished_; });
      ReplayPoint point;
      point.seconds = static_cast<double>(NanosSince(begin_)) * 1e-9;
      point.requests = progress_.requests.load(std::memory_order_relaxed);
      point.blocks_hit = progress_.blocks_hit.load(std::memory_order_relaxed);
      point.blocks_missed = progress_.blocks_missed.load(std::memory_order_relaxed);
      point.bytes_read = progress_.bytes_read.load(std::memory_order_relaxed);
      point.bytes_written = progress_.bytes_written.load(std::memory_order_relaxed);
      if (hooks_.occupancy) point.tiers = hooks_.occupancy();
      if (hooks_.progress) hooks_.progress(point, requests_total_);
      points_.push_back(point);
      if (points_.size() < kPointsMax) continue;
      for (size_t i = 0; 2 * i + 1 < points_.size(); ++i) points_[i] = points_[2 * i + 1];
      points_.resize(points_.size() / 2);
      interval *= 2;
    }
  }

  const ReplayHooks& hooks_;
  const Progress& progress_;
  const uint64_t requests_total_;
  const SteadyClock::time_point begin_ = SteadyClock::now();
  std::mutex mutex_;
  std::condition_variable changed_;
  bool finished_ = false;
  std::vector<ReplayPoint> points_;
  std::thread thread_;
};

// Indices in the order in which requests begin.
std::vector<size_t> RequestOrder(const Trace& trace, uint64_t seed) {
  std::vector<size_t> order(trace.requests.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  if (seed == 0) return order;
  Random random(seed);
  for (size_t begin = 0; begin < order.size();) {
    size_t end = begin;
    while (end < order.size() &&
           trace.requests[end].timestamp_ms == trace.requests[begin].timestamp_ms) {
      ++end;
    }
    for (size_t i = end - 1; i > begin; --i) {
      std::swap(order[i], order[begin + random.Below(i - begin + 1)]);
    }
    begin = end;
  }
  return order;
}

void Append(std::vector<uint64_t>& to, const std::vector<uint64_t>& from) {
  to.insert(to.end(), from.begin(), from.end());
}

void Merge(ReplayResult& total, const ReplayResult& part) {
  total.requests += part.requests;
  total.blocks_hit += part.blocks_hit;
  total.blocks_missed += part.blocks_missed;
  total.blocks_written += part.blocks_written;
  total.bytes_read += part.bytes_read;
  total.bytes_written += part.bytes_written;
  total.wrong_bytes += part.wrong_bytes;
  total.wrong_blocks += part.wrong_blocks;
  total.lost_under_lease += part.lost_under_lease;
  total.lost_unleased += part.lost_unleased;
  total.lost_races += part.lost_races;
  total.parents_gone += part.parents_gone;
  total.no_space += part.no_space;
  for (const auto& [call, count] : part.failed_calls) total.failed_calls[call] += count;
  if (total.first_failure.empty()) total.first_failure = part.first_failure;
  total.behind_seconds = std::max(total.behind_seconds, part.behind_seconds);
  Append(total.match_nanos, part.match_nanos);
  Append(total.read_nanos, part.read_nanos);
  Append(total.write_nanos, part.write_nanos);
}

}  // namespace

Result<ReplayResult> Replay(const Trace& trace, const ReplayOptions& options,
                            const ReplayHooks& hooks) {
  Progress progress;
  std::vector<std::unique_ptr<ReplayTarget>> targets;
  std::vector<std::unique_ptr<Worker>> workers;
  for (uint64_t i = 0; i < options.concurrency; ++i) {
    KVC_TRY_ASSIGN(std::unique_ptr<ReplayTarget> target, hooks.make_target());
    workers.push_back(std::make_unique<Worker>(options, *target, progress));
    targets.push_back(std::move(target));
  }
  const std::vector<size_t> order = RequestOrder(trace, options.seed);
  const uint64_t first_ms = trace.requests.empty() ? 0 : trace.requests.front().timestamp_ms;
  const auto stopped = [&] { return hooks.stop != nullptr && hooks.stop->load(); };
  std::atomic<size_t> next{0};
  const auto begin = SteadyClock::now();

  const auto work = [&](Worker& worker) {
    while (!stopped()) {
      const size_t at = next.fetch_add(1);
      if (at >= order.size()) return;
      const TraceRequest& request = trace.requests[order[at]];
      if (options.speed > 0 && request.timestamp_ms > first_ms) {
        const double due =
            static_cast<double>(request.timestamp_ms - first_ms) / 1000 / options.speed;
        const auto when = begin + std::chrono::duration_cast<SteadyClock::duration>(
                                      std::chrono::duration<double>(due));
        // In short naps, so that a request to stop is heard.
        while (SteadyClock::now() < when && !stopped()) {
          std::this_thread::sleep_until(
              std::min(when, SteadyClock::now() + std::chrono::milliseconds(100)));
        }
        if (stopped()) return;
        worker.Behind(static_cast<double>(NanosSince(begin)) * 1e-9 - due);
      }
      worker.Play(request);
    }
  };

  ReplayResult total;
  {
    Sampler sampler(options, hooks, progress, order.size());
    std::vector<std::thread> threads;
    threads.reserve(workers.size());
    for (const auto& worker : workers) threads.emplace_back(work, std::ref(*worker));
    for (std::thread& thread : threads) thread.join();
    total.seconds = static_cast<double>(NanosSince(begin)) * 1e-9;
    total.points = sampler.Finish();
  }
  total.options = options;
  total.requests_total = order.size();
  for (const auto& worker : workers) Merge(total, worker->result());
  for (auto* nanos : {&total.match_nanos, &total.read_nanos, &total.write_nanos}) {
    std::sort(nanos->begin(), nanos->end());
  }
  for (const uint64_t nanos : total.read_nanos) {
    total.read_seconds += static_cast<double>(nanos) * 1e-9;
  }
  total.interrupted = total.requests < total.requests_total;
  return total;
}

}  // namespace kvcfs::tools
