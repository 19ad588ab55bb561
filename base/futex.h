// Threads that sleep until a word has another value.
//
// The kernel compares: whoever stores the other value first, and then wakes, wakes nobody in vain
// and forgets nobody. A wake may also be for nothing: ask the word again.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <ctime>

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace kvcfs {

// Until it is woken, or the time has come, or at once where `word` is not `value`.
inline void FutexWait(const std::atomic<uint32_t>& word, uint32_t value,
                      std::chrono::steady_clock::time_point until) {
  const auto since = std::chrono::nanoseconds(until.time_since_epoch()).count();
  timespec time{};
  time.tv_sec = since / 1'000'000'000;
  time.tv_nsec = since % 1'000'000'000;
  (void)::syscall(SYS_futex, &word, FUTEX_WAIT_BITSET_PRIVATE, value, &time, nullptr,
                  FUTEX_BITSET_MATCH_ANY);
}

// One who waits. Only the address counts: the word itself may be gone already.
inline void FutexWake(const std::atomic<uint32_t>* word) {
  (void)::syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1);
}

}  // namespace kvcfs
