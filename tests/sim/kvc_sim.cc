// kvc_sim: runs the simulated cluster. Each seed twice; both must give the same hash.
#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include <sys/wait.h>
#include <unistd.h>

#include "tests/sim/planted.h"
#include "tests/sim/world.h"

namespace kvcfs::meta {
extern int planted_bug;
}

namespace kvcfs::sim {
namespace {

constexpr const char* kUsage =
    "usage: kvc_sim [--seeds A..B] [--planted N] [--trace] [--jobs N] | --all-planted | "
    "--list-planted\n"
    "  --seeds A..B    from A to before B; default 0..200\n"
    "  --planted N     with bug N switched on: exit 0 if a seed finds it\n"
    "  --all-planted   every bug; exit 0 if at least 18 are found\n"
    "  --trace         prints every event\n"
    "  --jobs N        processes at a time; default 1\n";

struct Arguments {
  uint64_t first = 0, last = 200;
  int planted = 0;
  bool all_planted = false, list = false, trace = false;
  unsigned jobs = 1;
};

bool Parse(int argc, char** argv, Arguments* arguments) {
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    const char* value = i + 1 < argc ? argv[i + 1] : nullptr;
    if (word == "--trace") {
      arguments->trace = true;
    } else if (word == "--all-planted") {
      arguments->all_planted = true;
    } else if (word == "--list-planted") {
      arguments->list = true;
    } else if (word == "--planted" && value != nullptr) {
      arguments->planted = std::atoi(argv[++i]);
    } else if (word == "--jobs" && value != nullptr) {
      arguments->jobs = static_cast<unsigned>(std::max(1, std::atoi(argv[++i])));
    } else if (word == "--seeds" && value != nullptr &&
               std::sscanf(argv[++i], "%" SCNu64 "..%" SCNu64, &arguments->first,
                           &arguments->last) == 2) {
    } else {
      return false;
    }
  }
  return true;
}

struct Result {
  std::string violation;
  uint64_t hash = 0;
  World::Totals totals;
};

Result RunOnce(uint64_t seed, bool trace) {
  World world({.seed = seed, .trace = trace});
  Result result;
  result.violation = world.Run();
  result.hash = world.hash();
  result.totals = world.totals();
  return result;
}

// How many of the seeds were violated, in this process.
int RunSeeds(const Arguments& arguments, uint64_t first, uint64_t last, uint64_t step) {
  int failed = 0;
  World::Totals sum;
  for (uint64_t seed = first; seed < last; seed += step) {
    const Result one = RunOnce(seed, arguments.trace);
    const Result other = RunOnce(seed, false);
    sum.events += one.totals.events;
    sum.acks += one.totals.acks;
    sum.reads += one.totals.reads;
    sum.misses += one.totals.misses;
    sum.drops += one.totals.drops;
    sum.views += one.totals.views;
    sum.evictions += one.totals.evictions;
    sum.cached += one.totals.cached;
    sum.probed += one.totals.probed;
    sum.drains += one.totals.drains;
    sum.moves += one.totals.moves;
    if (one.hash != other.hash) {
      std::printf("seed %" PRIu64 ": two runs differ: %016" PRIx64 " and %016" PRIx64 "\n", seed,
                  one.hash, other.hash);
      ++failed;
    }
    if (!one.violation.empty()) {
      std::printf("seed %" PRIu64 ": %s\n", seed, one.violation.c_str());
      ++failed;
    }
    std::fflush(stdout);
  }
  std::printf("seeds %" PRIu64 "..%" PRIu64 " by %" PRIu64 ": %" PRIu64 " events, %" PRIu64
              " acknowledged, %" PRIu64 " read, %" PRIu64 " missed, %" PRIu64 " dropped, %" PRIu64
              " evictions asked, %" PRIu64 " from caches, %" PRIu64
              " groups read one-sided, %" PRIu64 " drains, %" PRIu64 " moves, %" PRIu64
              " views; %d failed\n",
              first, last, step, sum.events, sum.acks, sum.reads, sum.misses, sum.drops,
              sum.evictions, sum.cached, sum.probed, sum.drains, sum.moves, sum.views, failed);
  return failed;
}

bool Find(const Planted& planted, const Arguments& arguments) {
  meta::planted_bug = planted.number;
  for (uint64_t seed = arguments.first; seed < arguments.last; ++seed) {
    const Result result = RunOnce(seed, arguments.trace);
    if (result.violation.empty()) continue;
    std::printf("%2d FOUND by seed %" PRIu64 ": %s\n     %s\n", planted.number, seed, planted.what,
                result.violation.c_str());
    return true;
  }
  std::printf("%2d not found in %" PRIu64 " seeds: %s\n", planted.number,
              arguments.last - arguments.first, planted.what);
  return false;
}

// Each in a process of its own, so that a planted bug may also crash.
bool FindInChild(const Planted& planted, const Arguments& arguments) {
  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    const bool found = Find(planted, arguments);
    std::fflush(stdout);
    _exit(found ? 0 : 1);
  }
  int status = 0;
  waitpid(child, &status, 0);
  if (WIFSIGNALED(status)) {
    std::printf("%2d FOUND by a crash (signal %d): %s\n", planted.number, WTERMSIG(status),
                planted.what);
    return true;
  }
  return WEXITSTATUS(status) == 0;
}

int Main(int argc, char** argv) {
  Arguments arguments;
  if (!Parse(argc, argv, &arguments)) {
    std::fputs(kUsage, stderr);
    return 2;
  }
  if (arguments.list) {
    for (const Planted& planted : AllPlanted()) {
      std::printf("%2d %s\n", planted.number, planted.what);
    }
    return 0;
  }
  if (arguments.all_planted || arguments.planted != 0) {
    int found = 0;
    for (const Planted& planted : AllPlanted()) {
      if (!arguments.all_planted && planted.number != arguments.planted) continue;
      found += FindInChild(planted, arguments) ? 1 : 0;
      std::fflush(stdout);
    }
    std::printf("%d of %zu planted bugs found\n", found,
                arguments.all_planted ? AllPlanted().size() : 1);
    return found >= (arguments.all_planted ? 18 : 1) ? 0 : 1;
  }
  if (arguments.jobs == 1) {
    return RunSeeds(arguments, arguments.first, arguments.last, 1) == 0 ? 0 : 1;
  }
  std::vector<pid_t> children;
  for (unsigned i = 0; i < arguments.jobs; ++i) {
    std::fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
      const int failed = RunSeeds(arguments, arguments.first + i, arguments.last, arguments.jobs);
      std::fflush(stdout);
      _exit(failed == 0 ? 0 : 1);
    }
    children.push_back(child);
  }
  bool good = true;
  for (const pid_t child : children) {
    int status = 0;
    waitpid(child, &status, 0);
    good = good && WIFEXITED(status) && WEXITSTATUS(status) == 0;
  }
  return good ? 0 : 1;
}

}  // namespace
}  // namespace kvcfs::sim

int main(int argc, char** argv) {
  return kvcfs::sim::Main(argc, argv);
}
