#include "bench/index_run.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <mutex>
#include <thread>

#include <fmt/format.h>
#include <time.h>

#include "tools/random.h"

namespace kvcfs::bench {
namespace {

using Clock = std::chrono::steady_clock;

double MicrosSince(Clock::time_point begin) {
  return std::chrono::duration<double, std::micro>(Clock::now() - begin).count();
}

double ThreadCpuSeconds() {
  timespec used{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used);
  return static_cast<double>(used.tv_sec) + 1e-9 * static_cast<double>(used.tv_nsec);
}

double Quantile(std::vector<double>& values, double share) {
  if (values.empty()) return 0;
  const auto at = static_cast<size_t>(std::lround(share * static_cast<double>(values.size() - 1)));
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(at), values.end());
  return values[at];
}

// What one client saw.
struct Seen {
  std::vector<double> taken_us;
  QuestionCost sum;
  double cpu_seconds = 0;
  Status status;
};

Status AskOnce(IndexClient& client, const IndexLoad::Question& question, QuestionCost* cost) {
  KVC_TRY_ASSIGN(const size_t count, client.Match(question, cost));
  if (count != question.cached) {
    return Error{Code::kInternal, fmt::format("found {} of {} leading blocks where {} are cached",
                                              count, question.keys.size(), question.cached)};
  }
  return {};
}

using QuestionAt = std::function<IndexLoad::Question(size_t)>;

// Client `number` of `clients` asks every `clients`th question; `due_us`: when (empty: at once).
void AskShare(IndexClient& client, const QuestionAt& question_at, size_t question_count,
              size_t number, size_t clients, const std::vector<double>* due_us,
              Clock::time_point start, Seen* seen) {
  const double cpu_before = ThreadCpuSeconds();
  for (size_t i = number; i < question_count; i += clients) {
    const IndexLoad::Question question = question_at(i);
    QuestionCost cost;
    Clock::time_point begin = Clock::now();
    if (due_us != nullptr) {
      begin = start + std::chrono::duration_cast<Clock::duration>(
                          std::chrono::duration<double, std::micro>((*due_us)[i]));
      std::this_thread::sleep_until(begin);
    }
    seen->status = AskOnce(client, question, &cost);
    if (!seen->status.ok()) return;
    seen->taken_us.push_back(cost.model_us > 0 ? cost.model_us : MicrosSince(begin));
    seen->sum.round_trips += cost.round_trips;
    seen->sum.reads += cost.reads;
    seen->sum.bytes += cost.bytes;
  }
  seen->cpu_seconds = ThreadCpuSeconds() - cpu_before;
}

Result<IndexRow> Run(const BackendKind& kind, KeyMode mode, IndexBackend& backend,
                     const QuestionAt& question_at, size_t question_count, size_t clients,
                     const std::vector<double>* due_us) {
  const bool is_model = kind.transport == "model";
  std::vector<std::unique_ptr<IndexClient>> all;
  for (size_t i = 0; i < clients; ++i) {
    KVC_TRY_ASSIGN(all.emplace_back(), backend.Connect());
  }
  std::vector<Seen> seen(clients);
  const auto run = [&](const std::vector<double>* due) {
    const Clock::time_point start = Clock::now();
    // The model's parts belong to one thread, and nothing in it is timed.
    if (is_model || clients == 1) {
      for (size_t i = 0; i < clients; ++i) {
        AskShare(*all[i], question_at, question_count, i, clients, due, start, &seen[i]);
      }
    } else {
      std::vector<std::thread> threads;
      for (size_t i = 0; i < clients; ++i) {
        threads.emplace_back([&, i] {
          AskShare(*all[i], question_at, question_count, i, clients, due, start, &seen[i]);
        });
      }
      for (std::thread& thread : threads) thread.join();
    }
    return std::chrono::duration<double>(Clock::now() - start).count();
  };
  // Once unmeasured: connections, caches of the CPU; of a warm client its own cache.
  run(nullptr);
  for (Seen& client : seen) {
    KVC_TRY(client.status);
    client = Seen{};
  }
  const std::optional<double> cpu_before = backend.ServerCpuSeconds();
  const std::optional<uint64_t> bytes_before = backend.NetworkBytes();
  const double seconds = run(due_us);
  const std::optional<double> cpu_after = backend.ServerCpuSeconds();
  const std::optional<uint64_t> bytes_after = backend.NetworkBytes();

  IndexRow row{.backend = kind.backend,
               .keys = NameOf(mode),
               .transport = kind.transport,
               .cache = kind.cache,
               .clients = clients};
  std::vector<double> taken;
  double cpu = 0, sum_us = 0;
  for (const Seen& client : seen) {
    KVC_TRY(client.status);
    taken.insert(taken.end(), client.taken_us.begin(), client.taken_us.end());
    row.round_trips += static_cast<double>(client.sum.round_trips);
    row.reads += static_cast<double>(client.sum.reads);
    row.bytes += static_cast<double>(client.sum.bytes);
    cpu += client.cpu_seconds;
  }
  for (const double us : taken) sum_us += us;
  const auto count = static_cast<double>(std::max<size_t>(1, taken.size()));
  row.requests = taken.size();
  row.mean_us = sum_us / count;
  row.p50_us = Quantile(taken, 0.5);
  row.p99_us = Quantile(taken, 0.99);
  row.p999_us = Quantile(taken, 0.999);
  row.round_trips /= count;
  row.reads /= count;
  row.bytes /= count;
  if (bytes_after) row.bytes = static_cast<double>(*bytes_after - *bytes_before) / count;
  // Of a model: each client asks one question after the other, and servers are never busy.
  row.requests_per_second =
      is_model ? static_cast<double>(clients) * 1e6 / row.mean_us : count / std::max(seconds, 1e-9);
  if (!is_model) row.client_cpu_us = 1e6 * cpu / count;
  if (cpu_after) {
    row.server_cpu_us = 1e6 * (*cpu_after - *cpu_before) / count;
  } else if (!is_model) {
    row.server_cpu_us = 1e6 * cpu / count;
  }
  return row;
}

}  // namespace

const char* NameOf(KeyMode mode) {
  return mode == KeyMode::kInt ? "int" : "sha256";
}

Result<IndexRow> RunClosed(const BackendKind& kind, KeyMode mode, IndexBackend& backend,
                           const IndexLoad& load, size_t clients) {
  return Run(
      kind, mode, backend, [&](size_t i) { return load.question(i); }, load.question_count(),
      clients, nullptr);
}

Result<IndexRow> RunOpen(const BackendKind& kind, KeyMode mode, IndexBackend& backend,
                         const IndexLoad& load, size_t clients, double seconds) {
  constexpr double kGridMs = 3000;
  tools::Random random(1);
  std::vector<double> due_us;
  for (size_t i = 0; i < load.question_count(); ++i) {
    due_us.push_back(static_cast<double>(load.question(i).timestamp_ms) +
                     random.Uniform() * kGridMs);
  }
  std::sort(due_us.begin(), due_us.end());
  const double span = due_us.empty() ? 1 : std::max(1.0, due_us.back() - due_us.front());
  const double first = due_us.empty() ? 0 : due_us.front();
  for (double& due : due_us) due = (due - first) / span * seconds * 1e6;
  return Run(
      kind, mode, backend, [&](size_t i) { return load.question(i); }, load.question_count(),
      clients, &due_us);
}

Result<IndexRow> RunFixed(const BackendKind& kind, IndexBackend& backend, const IndexLoad& load,
                          size_t clients, size_t keys) {
  std::vector<IndexLoad::Question> questions;
  for (size_t i = 0; i < load.question_count(); ++i) {
    IndexLoad::Question question = load.question(i);
    if (question.cached < keys) continue;
    question.keys = question.keys.first(keys);
    question.ids = question.ids.first(keys);
    question.cached = keys;
    questions.push_back(question);
  }
  if (questions.empty()) {
    return Error{Code::kNotFound, fmt::format("no request has {} cached blocks", keys)};
  }
  const size_t few = questions.size();
  while (questions.size() < 2000) questions.push_back(questions[questions.size() - few]);
  // Five rounds and their medians: what else runs on the machine meets some of them only.
  std::vector<double> p99_us, mean_us;
  IndexRow row;
  for (int round = 0; round < 5; ++round) {
    KVC_TRY_ASSIGN(row, Run(
                            kind, KeyMode::kSha256, backend, [&](size_t i) { return questions[i]; },
                            questions.size(), clients, nullptr));
    p99_us.push_back(row.p99_us);
    mean_us.push_back(row.mean_us);
  }
  row.p99_us = Quantile(p99_us, 0.5);
  row.mean_us = Quantile(mean_us, 0.5);
  return row;
}

Result<std::vector<IndexInterval>> RunIntervals(IndexBackend& backend, const IndexLoad& load,
                                                bool warm, size_t intervals) {
  std::vector<IndexInterval> all(intervals);
  if (load.question_count() == 0) return all;
  const uint64_t end_ms = load.question(load.question_count() - 1).timestamp_ms + 1;
  KVC_TRY_ASSIGN(const std::unique_ptr<IndexClient> client, backend.Connect());
  for (int round = warm ? 0 : 1; round < 2; ++round) {
    std::vector<std::vector<double>> ranges(intervals), gets(intervals);
    for (size_t i = 0; i < load.question_count(); ++i) {
      const IndexLoad::Question question = load.question(i);
      const size_t interval = std::min<size_t>(
          intervals - 1, static_cast<size_t>(question.timestamp_ms * intervals / end_ms));
      for (size_t at = 0; at < question.ids.size();) {
        size_t end = at + 1;
        while (end < question.ids.size() && question.ids[end] == question.ids[end - 1] + 1) ++end;
        const IndexLoad::Question prefix{question.keys.first(end), question.ids.first(end),
                                         std::min(question.cached, end), question.timestamp_ms};
        QuestionCost cost;
        const Clock::time_point begin = Clock::now();
        const Result<size_t> found =
            end - at > 1 ? client->Range(prefix, at, &cost) : client->Get(prefix, &cost);
        const double taken = cost.model_us > 0 ? cost.model_us : MicrosSince(begin);
        if (!found.ok()) return found.error();
        (end - at > 1 ? ranges : gets)[interval].push_back(taken);
        at = end;
      }
    }
    for (size_t i = 0; i < intervals; ++i) {
      const uint64_t begin_ms = end_ms * i / intervals;
      all[i] = {.begin_s = 1e-3 * static_cast<double>(begin_ms),
                .ranges = ranges[i].size(),
                .gets = gets[i].size(),
                .range_p99_us = Quantile(ranges[i], 0.99),
                .get_p99_us = Quantile(gets[i], 0.99)};
    }
  }
  return all;
}

}  // namespace kvcfs::bench
