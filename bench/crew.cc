#include "bench/crew.h"

#include <atomic>
#include <barrier>
#include <chrono>
#include <thread>

namespace kvcfs::bench {

using std::chrono::steady_clock;

struct Crew::Shared {
  explicit Shared(unsigned threads) : meet(static_cast<std::ptrdiff_t>(threads) + 1) {}
  std::barrier<> meet;
  std::atomic<size_t> next{0};
  size_t count = 0;
  const std::function<void(unsigned, size_t)>* operation = nullptr;  // null: over
  std::vector<std::vector<float>> operation_us;
  std::vector<std::thread> workers;
};

Crew::Crew(unsigned threads) : threads_(threads), shared_(std::make_unique<Shared>(threads)) {
  shared_->operation_us.resize(threads);
  if (threads == 1) return;
  for (unsigned i = 0; i < threads; ++i) {
    shared_->workers.emplace_back([this, i] {
      for (;;) {
        shared_->meet.arrive_and_wait();
        if (shared_->operation == nullptr) return;
        Work(i);
        shared_->meet.arrive_and_wait();
      }
    });
  }
}

Crew::~Crew() {
  if (shared_->workers.empty()) return;
  shared_->operation = nullptr;
  shared_->meet.arrive_and_wait();
  for (std::thread& worker : shared_->workers) worker.join();
}

void Crew::Work(unsigned thread) {
  std::vector<float>& times = shared_->operation_us[thread];
  for (;;) {
    const size_t index = shared_->next.fetch_add(1);
    if (index >= shared_->count) return;
    const auto begin = steady_clock::now();
    (*shared_->operation)(thread, index);
    const std::chrono::duration<float, std::micro> took = steady_clock::now() - begin;
    times.push_back(took.count());
  }
}

Batch Crew::Run(size_t count, const std::function<void(unsigned, size_t)>& operation) {
  shared_->next = 0;
  shared_->count = count;
  shared_->operation = &operation;
  for (auto& times : shared_->operation_us) times.clear();
  const auto begin = steady_clock::now();
  if (threads_ == 1) {
    Work(0);
  } else {
    shared_->meet.arrive_and_wait();
    shared_->meet.arrive_and_wait();
  }
  Batch batch;
  batch.seconds = std::chrono::duration<double>(steady_clock::now() - begin).count();
  for (const auto& times : shared_->operation_us) {
    batch.operation_us.insert(batch.operation_us.end(), times.begin(), times.end());
  }
  return batch;
}

}  // namespace kvcfs::bench
