// file_bench: the same operations on the files of several directories in turn, and how they
// compare.
//
//   file_bench open-read --set kvcfs=blocks:/mnt/kv/ns --set tmpfs=files:/mnt/tmp --bytes 1MiB
//   --count 2000
//
// The sets take turns batch by batch, so that what else the machine does meets all of them alike;
// the numbers are medians over batches. The first set is compared with each other one.
#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <exception>
#include <map>
#include <memory>
#include <numeric>
#include <random>

#include <CLI/CLI.hpp>
#include <fcntl.h>
#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/size.h"
#include "bench/crew.h"
#include "bench/file_set.h"

namespace kvcfs::bench {
namespace {

constexpr uint64_t kPage = 4096;
constexpr uint64_t kPieceBytes = 1 << 20;  // of reads from open files and of copies from mappings

struct Options {
  std::string what;
  std::vector<std::string> sets;
  std::string bytes_text = "1MiB";
  uint64_t bytes = 0;
  size_t count = 200;
  size_t batch = 50;
  size_t rounds = 3;  // each file of each set is used once a round
  unsigned threads = 1;
  int cpu = -1;
  uint64_t seed = 1;
  bool direct = false;
  bool existing = false;
  bool keep = false;
  bool json = false;
};

[[noreturn]] void Die(const std::string& text) {
  fmt::print(stderr, "file_bench: {}\n", text);
  std::fflush(nullptr);
  ::_exit(1);  // other threads may be at work: no destructors under them
}

void DieUnless(const Status& status) {
  if (!status.ok()) Die(status.error().text);
}

// Memory that is there already: a first touch in a virtual machine costs more than what we measure.
class Buffer {
 public:
  explicit Buffer(uint64_t bytes) : bytes_((bytes + kPage - 1) / kPage * kPage) {
    memory_ = ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (memory_ == MAP_FAILED) Die("no memory");
    std::memset(memory_, 0x5a, bytes_);
  }
  ~Buffer() { ::munmap(memory_, bytes_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  std::byte* data() const { return static_cast<std::byte*>(memory_); }

 private:
  uint64_t bytes_;
  void* memory_ = nullptr;
};

struct Measured {
  std::vector<double> seconds_per_byte;  // one a batch
  std::vector<float> operation_us;
};

template <typename T>
double Percentile(std::vector<T> values, double share) {
  if (values.empty()) return 0;
  const auto at = static_cast<size_t>(std::llround(share * static_cast<double>(values.size() - 1)));
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(at), values.end());
  return static_cast<double>(values[at]);
}

class Bench {
 public:
  explicit Bench(const Options& options)
      : options_(options), crew_(options.threads), random_(options.seed) {
    for (size_t i = 0; i < options.sets.size(); ++i) {
      auto set = FileSet::Parse(options.sets[i], options.count, options.seed);
      if (!set.ok()) Die(set.error().text);
      sets_.push_back(std::move(*set));
    }
    for (unsigned i = 0; i < options.threads; ++i) {
      buffers_.push_back(std::make_unique<Buffer>(options.bytes));
    }
    measured_.resize(sets_.size());
  }

  void Run() {
    if (options_.what == "write") return RunWrite();
    if (!options_.existing) {
      for (const FileSet& set : sets_) DieUnless(set.Make(Content()));
      // Their write-back would otherwise go on beside what is measured.
      for (const FileSet& set : sets_) DieUnless(set.Sync());
    }
    if (options_.what == "fill") return;
    if (options_.what == "open-read") RunOpenRead();
    if (options_.what == "read") RunRead();
    if (options_.what == "mmap") RunMap(false);
    if (options_.what == "mapped") RunMap(true);
    if (options_.existing || options_.keep) return;
    for (const FileSet& set : sets_) DieUnless(set.Remove(set.count()));
  }

  void Print() const {
    nlohmann::json out{{"what", options_.what},
                       {"bytes", options_.bytes},
                       {"threads", options_.threads},
                       {"sets", nlohmann::json::object()},
                       {"ratios", nlohmann::json::object()}};
    std::string text;
    for (size_t i = 0; i < sets_.size(); ++i) {
      const Measured& measured = measured_[i];
      const double per_byte = Percentile(measured.seconds_per_byte, 0.5);
      const double gb_s = per_byte > 0 ? 1e-9 / per_byte : 0;
      const double p50 = Percentile(measured.operation_us, 0.5);
      const double p99 = Percentile(measured.operation_us, 0.99);
      out["sets"][sets_[i].name()] = {{"gb_s", gb_s}, {"p50_us", p50}, {"p99_us", p99}};
      text += fmt::format("{:<12} {:7.2f} GB/s  p50 {:8.1f} us  p99 {:8.1f} us", sets_[i].name(),
                          gb_s, p50, p99);
      if (i > 0 && gb_s > 0) {
        const double ratio = per_byte / Percentile(measured_[0].seconds_per_byte, 0.5);
        const double ratio_p50 = p50 / Percentile(measured_[0].operation_us, 0.5);
        out["ratios"][sets_[i].name()] = {{"throughput", ratio}, {"p50", ratio_p50}};
        text +=
            fmt::format("  {} has {:.2f} of it (p50 {:.2f})", sets_[0].name(), ratio, ratio_p50);
      }
      text += "\n";
    }
    std::fputs(options_.json ? (out.dump() + "\n").c_str() : text.c_str(), stdout);
  }

 private:
  std::span<const std::byte> Content() const { return {buffers_[0]->data(), options_.bytes}; }

  // Batches of all sets in turn, over all files in the given orders; operation(set, thread, index).
  template <typename Operation>
  void TakeTurns(size_t count, uint64_t bytes, const Operation& operation) {
    std::vector<size_t> order(count);
    std::iota(order.begin(), order.end(), 0);
    for (size_t round = 0; round < options_.rounds; ++round) {
      std::shuffle(order.begin(), order.end(), random_);
      for (size_t begin = 0; begin < count; begin += options_.batch) {
        const size_t these = std::min(options_.batch, count - begin);
        for (size_t turn = 0; turn < sets_.size(); ++turn) {
          // Whoever is first in a batch finds the caches of whoever was last; so all take each
          // place.
          const size_t set = (turn + begin / options_.batch + round) % sets_.size();
          Keep(set, these * bytes, crew_.Run(these, [&](unsigned thread, size_t i) {
            operation(set, thread, order[begin + i]);
          }));
        }
      }
    }
  }

  void Keep(size_t set, uint64_t bytes, const Batch& batch) {
    Measured& measured = measured_[set];
    measured.seconds_per_byte.push_back(batch.seconds / static_cast<double>(bytes));
    measured.operation_us.insert(measured.operation_us.end(), batch.operation_us.begin(),
                                 batch.operation_us.end());
  }

  void ReadWhole(const std::string& path, int fd, std::byte* into, uint64_t bytes, off_t offset) {
    const ssize_t got = ::pread(fd, into, bytes, offset);
    if (got != static_cast<ssize_t>(bytes)) {
      Die(got < 0 ? ErrnoError(errno, "read", path).text
                  : fmt::format("{}: read {} of {} bytes", path, got, bytes));
    }
  }

  Fd OpenOrDie(const std::string& path) const {
    Fd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | (options_.direct ? O_DIRECT : 0)));
    if (!file.valid()) Die(ErrnoError(errno, "open", path).text);
    return file;
  }

  void RunOpenRead() {
    TakeTurns(options_.count, options_.bytes, [&](size_t set, unsigned thread, size_t index) {
      const std::string& path = sets_[set].read_path(index);
      const Fd file = OpenOrDie(path);
      ReadWhole(path, file.get(), buffers_[thread]->data(), options_.bytes, 0);
    });
  }

  void RunRead() {
    std::vector<std::vector<Fd>> files(sets_.size());
    for (size_t set = 0; set < sets_.size(); ++set) {
      for (size_t i = 0; i < options_.count; ++i) {
        files[set].push_back(OpenOrDie(sets_[set].read_path(i)));
      }
    }
    const uint64_t piece = std::min(kPieceBytes, options_.bytes);
    const uint64_t pieces = options_.bytes / piece;
    TakeTurns(options_.count * pieces, piece, [&](size_t set, unsigned thread, size_t index) {
      const size_t file = index / pieces;
      ReadWhole(sets_[set].read_path(file), files[set][file].get(), buffers_[thread]->data(), piece,
                static_cast<off_t>(index % pieces * piece));
    });
  }

  // Copies whole files out of mappings: made for each use, or once.
  void RunMap(bool once) {
    std::vector<std::vector<Fd>> files(sets_.size());
    std::vector<std::vector<std::byte*>> mapped(sets_.size());
    const auto map = [&](size_t set, size_t index) {
      void* memory =
          ::mmap(nullptr, options_.bytes, PROT_READ, MAP_SHARED, files[set][index].get(), 0);
      if (memory == MAP_FAILED) Die("mmap " + sets_[set].read_path(index));
      return static_cast<std::byte*>(memory);
    };
    const auto copy = [&](const std::byte* from, std::byte* into) {
      for (uint64_t at = 0; at < options_.bytes; at += kPieceBytes) {
        std::memcpy(into + at, from + at, std::min(kPieceBytes, options_.bytes - at));
      }
    };
    for (size_t set = 0; set < sets_.size(); ++set) {
      for (size_t i = 0; i < options_.count; ++i) {
        files[set].push_back(OpenOrDie(sets_[set].read_path(i)));
        if (!once) continue;
        mapped[set].push_back(map(set, i));
        copy(mapped[set].back(), buffers_[0]->data());
      }
    }
    TakeTurns(options_.count, options_.bytes, [&](size_t set, unsigned thread, size_t index) {
      if (once) return copy(mapped[set][index], buffers_[thread]->data());
      std::byte* memory = map(set, index);
      copy(memory, buffers_[thread]->data());
      ::munmap(memory, options_.bytes);
    });
    for (const auto& set : mapped) {
      for (std::byte* memory : set) ::munmap(memory, options_.bytes);
    }
  }

  // A batch is a chain of its own, written in order by one client, and removed before the next.
  void RunWrite() {
    const size_t batches =
        options_.rounds * ((options_.count + options_.batch - 1) / options_.batch);
    for (size_t batch = 0; batch < batches; ++batch) {
      for (size_t turn = 0; turn < sets_.size(); ++turn) {
        const size_t at = (turn + batch) % sets_.size();
        FileSet& set = sets_[at];
        set.Rename(options_.seed * 1000003 + batch);
        Keep(at, options_.batch * options_.bytes,
             crew_.Run(options_.batch,
                       [&](unsigned, size_t i) { DieUnless(set.Write(i, Content())); }));
        if (!options_.keep) DieUnless(set.Remove(options_.batch));
      }
    }
  }

  const Options options_;
  Crew crew_;
  std::mt19937_64 random_;
  std::vector<FileSet> sets_;
  std::vector<std::unique_ptr<Buffer>> buffers_;
  std::vector<Measured> measured_;
};

int Main(int argc, char** argv) {
  Options options;
  CLI::App app{"The same operations on the files of several directories in turn, compared."};
  app.add_option("what", options.what,
                 "open-read: open, read whole, close, in random order; read: 1 MiB pieces of open "
                 "files; mmap: map, copy, unmap; mapped: copy; write: create, write, close; fill: "
                 "only make the files; touch: use that much memory once")
      ->required()
      ->check(CLI::IsMember({"open-read", "read", "mmap", "mapped", "write", "fill", "touch"}));
  app.add_option("--set", options.sets,
                 "NAME=blocks:MNT/NS or NAME=files:DIRECTORY; the first is "
                 "compared with the others");
  app.add_option("--bytes", options.bytes_text, "length of a file")->capture_default_str();
  app.add_option("--count", options.count, "files of a set")->capture_default_str();
  app.add_option("--batch", options.batch, "operations of a turn")->capture_default_str();
  app.add_option("--rounds", options.rounds, "how often each file is used")->capture_default_str();
  app.add_option("--threads", options.threads, "clients")->capture_default_str();
  app.add_option("--cpu", options.cpu, "run on this CPU alone");
  app.add_option("--seed", options.seed, "of names and orders")->capture_default_str();
  app.add_flag("--direct", options.direct, "O_DIRECT");
  app.add_flag("--existing", options.existing, "the files are there already, by the same seed");
  app.add_flag("--keep", options.keep, "leave the files there");
  app.add_flag("--json", options.json, "one JSON object");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  const auto bytes = ParseSize(options.bytes_text);
  if (!bytes.ok() || *bytes == 0) return app.exit(CLI::ValidationError("--bytes", "not a size")), 2;
  options.bytes = *bytes;
  if (options.what == "write") {
    options.batch = std::min(options.batch, options.count);
    if (options.threads > 1) Die("one chain has one writer: --threads 1");
  }
  if (options.what == "touch") {
    const Buffer touched(options.bytes);
    return 0;
  }
  if (options.sets.empty()) Die("nothing to measure: --set");
  if (options.cpu >= 0) {
    cpu_set_t cpus;
    CPU_ZERO(&cpus);
    CPU_SET(static_cast<size_t>(options.cpu), &cpus);
    if (::sched_setaffinity(0, sizeof cpus, &cpus) != 0) Die("no such CPU");
  }
  Bench bench(options);
  bench.Run();
  if (options.what != "fill") bench.Print();
  return 0;
}

}  // namespace
}  // namespace kvcfs::bench

int main(int argc, char** argv) {
  try {
    return kvcfs::bench::Main(argc, argv);
  } catch (const std::exception& error) {  // of CLI11, fmt and the standard library
    std::fprintf(stderr, "file_bench: %s\n", error.what());
    return 1;
  }
}
