// NVMe tier against fio on the same directory: sustained appends, and reads by several threads.
//
//   segment_bench DIR [--mib N] [--rounds N] [--block-kib N] [--readers N]
// Rounds alternate, because disks drift; the ratio is of the medians. Exit 2: misused or no fio.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <stdlib.h>
#include <unistd.h>

#include "base/log.h"
#include "iouring/aligned_buffer.h"
#include "iouring/segment_store.h"

namespace kvcfs::iouring {
namespace {

struct Plan {
  std::string directory;
  uint64_t mib = 1024;
  uint64_t rounds = 3;
  uint64_t block_kib = 4096;
  unsigned readers = 8;

  uint64_t total_bytes() const { return mib << 20; }
  uint64_t block_bytes() const { return block_kib << 10; }
};

struct Located {
  EntryMeta meta;
  SegmentPlace place;
};

// There is room for all, so nothing is reclaimed; segment files are made in the background.
class NoOwner final : public EntryOwner {
 public:
  Fate Judge(const EntryMeta&, const SegmentPlace&) override { return Fate::kMove; }
  void Moved(const EntryMeta&, const SegmentPlace&, const SegmentPlace&) override {}
  void Lost(const EntryMeta&, const SegmentPlace&) override {}
  void Shed(uint64_t) override {}
};

constexpr uint64_t kWarmUpBytes = uint64_t{64} << 20;

double SecondsSince(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// MB/s as fio measures it; 0: it could not be run.
double Fio(const Plan& plan, bool write) {
  const std::string file = plan.directory + "/fio.data";
  // Writes: preallocated and flushed at the end, as ours. Reads: one job a reader.
  const std::string command = fmt::format(
      "fio --name=x --filename={} --size={} --direct=1 --ioengine=io_uring --output-format=json {}",
      file, plan.total_bytes(),
      write ? std::string("--rw=write --bs=1M --iodepth=16 --fallocate=native --end_fsync=1 "
                          "--unlink=0 --overwrite=0")
            : fmt::format("--rw=randread --bs={} --iodepth=1 --numjobs={} --thread "
                          "--group_reporting --io_size={}",
                          plan.block_bytes(), plan.readers, plan.total_bytes() / plan.readers));
  FILE* pipe = ::popen((command + " 2>/dev/null").c_str(), "r");
  if (pipe == nullptr) return 0;
  std::string text;
  char buffer[65536];
  while (const size_t bytes = std::fread(buffer, 1, sizeof(buffer), pipe))
    text.append(buffer, bytes);
  ::pclose(pipe);
  const auto json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded() || !json.contains("jobs")) return 0;
  return json["jobs"][0][write ? "write" : "read"]["bw_bytes"].get<double>() / 1e6;
}

class Bench {
 public:
  explicit Bench(Plan plan)
      : plan_(std::move(plan)), source_(plan_.block_bytes() + (uint64_t{16} << 20)) {
    std::mt19937_64 random(1);
    for (uint64_t at = 0; at < source_.size(); at += 8) {
      const uint64_t word = random();
      std::memcpy(source_.data() + at, &word, 8);
    }
  }

  // The store as the filesystem uses it, then as much as there is room for is appended.
  double Append() {
    Open();
    AppendAll(kWarmUpBytes / plan_.block_bytes() + 1);  // its memory is touched, its rings are made
    return AppendAll(plan_.total_bytes() / plan_.block_bytes());
  }

  double AppendAll(uint64_t count) {
    entries_.assign(count, {});
    const auto begin = std::chrono::steady_clock::now();
    for (uint64_t i = 0; i < count; ++i) {
      AppendRequest request;
      request.meta.length = plan_.block_bytes();
      request.meta.key.bytes[0] = static_cast<uint8_t>(i);
      request.meta.ordinal = static_cast<uint32_t>(i);
      // Another part of the source each time, as slots are.
      const std::byte* from = source_.data() + (i * 4096) % (uint64_t{16} << 20);
      request.fill = [from](std::span<std::byte> into) {
        std::memcpy(into.data(), from, into.size());
        return true;
      };
      request.done = [this, i](const Result<SegmentPlace>& place, const EntryMeta& meta) {
        if (place.ok()) entries_[i] = {meta, *place};
      };
      while (true) {
        const Status status = store_->Append(request);
        if (status.ok()) break;
        store_->WaitForRoom(plan_.block_bytes(), 1000);
      }
    }
    const Status flushed = store_->Flush(true);
    const double seconds = SecondsSince(begin);
    if (!flushed.ok()) std::fprintf(stderr, "flush: %s\n", flushed.error().text.c_str());
    return static_cast<double>(count * plan_.block_bytes()) / seconds / 1e6;
  }

  double Read() {
    ReadFirst(plan_.readers);
    return ReadFirst(entries_.size());
  }

  double ReadFirst(size_t count) {
    std::atomic<uint64_t> next{0}, failed{0};
    std::vector<size_t> order(count);
    for (size_t i = 0; i < order.size(); ++i) order[i] = i;
    std::shuffle(order.begin(), order.end(), std::mt19937_64(7));
    std::vector<AlignedBuffer> buffers;
    for (unsigned i = 0; i < plan_.readers; ++i) {
      buffers.emplace_back(plan_.block_bytes());
      std::memset(buffers.back().data(), 1, buffers.back().size());
    }
    const auto begin = std::chrono::steady_clock::now();
    std::vector<std::thread> threads;
    for (unsigned reader = 0; reader < plan_.readers; ++reader) {
      threads.emplace_back([&, reader] {
        for (uint64_t i = next++; i < order.size(); i = next++) {
          const Located& entry = entries_[order[i]];
          if (!store_->Read(entry.place, entry.meta, buffers[reader].span()).ok()) ++failed;
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    const double seconds = SecondsSince(begin);
    if (failed != 0) std::fprintf(stderr, "%lu reads failed\n", failed.load());
    return static_cast<double>(order.size() * plan_.block_bytes()) / seconds / 1e6;
  }

  void Close() {
    store_.reset();
    std::filesystem::remove_all(plan_.directory + "/segments");
  }

 private:
  void Open() {
    std::filesystem::remove_all(plan_.directory + "/segments");
    SegmentStoreOptions options;
    options.directory = plan_.directory + "/segments";
    options.capacity_bytes = plan_.total_bytes() * 3 / 2 + (uint64_t{1} << 30);
    auto store = SegmentStore::Open(options, 0, nullptr);
    if (!store.ok()) {
      std::fprintf(stderr, "%s\n", store.error().text.c_str());
      ::_exit(2);
    }
    store_ = std::move(*store);
    store_->Start(&owner_);
  }

  const Plan plan_;
  AlignedBuffer source_;
  NoOwner owner_;
  std::unique_ptr<SegmentStore> store_;
  std::vector<Located> entries_;
};

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

int Main(int argc, char** argv) {
  Plan plan;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    const uint64_t value = i + 1 < argc ? std::strtoull(argv[i + 1], nullptr, 10) : 0;
    if (word[0] != '-') {
      plan.directory = word;
      continue;
    }
    ++i;
    if (word == "--mib" && value != 0)
      plan.mib = value;
    else if (word == "--rounds" && value != 0)
      plan.rounds = value;
    else if (word == "--block-kib" && value != 0)
      plan.block_kib = value;
    else if (word == "--readers" && value != 0)
      plan.readers = static_cast<unsigned>(value);
    else
      plan.directory.clear(), i = argc;
  }
  if (plan.directory.empty()) {
    std::fprintf(stderr,
                 "usage: segment_bench DIR [--mib N] [--rounds N] [--block-kib N] "
                 "[--readers N]\n");
    return 2;
  }
  SetLogLevel(LogLevel::kWarn);
  std::filesystem::create_directories(plan.directory);
  std::vector<double> fio_write, fio_read, write, read;
  Bench bench(plan);
  for (uint64_t round = 0; round < plan.rounds; ++round) {
    std::filesystem::remove(plan.directory + "/fio.data");
    fio_write.push_back(Fio(plan, true));
    if (fio_write.back() == 0) {
      std::fprintf(stderr, "fio could not be run here\n");
      return 2;
    }
    write.push_back(bench.Append());
    fio_read.push_back(Fio(plan, false));
    read.push_back(bench.Read());
    fmt::print("round {}: append {:.0f} MB/s (fio {:.0f}), read {:.0f} MB/s (fio {:.0f})\n",
               round + 1, write.back(), fio_write.back(), read.back(), fio_read.back());
    std::fflush(stdout);
    bench.Close();
  }
  std::filesystem::remove(plan.directory + "/fio.data");
  fmt::print("append {} KiB blocks: {:.2f} of fio's sequential O_DIRECT write (goal 0.85)\n",
             plan.block_kib, Median(write) / Median(fio_write));
  fmt::print("read {} KiB blocks, {} readers: {:.2f} of fio's O_DIRECT randread (goal 0.90)\n",
             plan.block_kib, plan.readers, Median(read) / Median(fio_read));
  return 0;
}

}  // namespace
}  // namespace kvcfs::iouring

int main(int argc, char** argv) {
  return kvcfs::iouring::Main(argc, argv);
}
