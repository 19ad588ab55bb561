// Threads that do the operations of one batch together, and what it took.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

namespace kvcfs::bench {

struct Batch {
  double seconds = 0;               // from the first operation's begin to the last one's end
  std::vector<float> operation_us;  // each operation's own time
};

// A fixed number of clients; with one, operations run on the caller's thread.
// Threads: Run by one thread at a time.
// Fails: never; an operation that fails ends the program with its text, since what is measured
// after it would mean nothing.
class Crew {
 public:
  explicit Crew(unsigned threads);
  ~Crew();
  Crew(const Crew&) = delete;
  Crew& operator=(const Crew&) = delete;

  unsigned threads() const { return threads_; }
  // operation(thread, index) for each index below count, taken by whoever is free.
  Batch Run(size_t count, const std::function<void(unsigned, size_t)>& operation);

 private:
  struct Shared;
  void Work(unsigned thread);

  const unsigned threads_;
  std::unique_ptr<Shared> shared_;
};

}  // namespace kvcfs::bench
