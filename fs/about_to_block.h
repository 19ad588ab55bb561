// Where a call of the kernel is about to wait: for I/O, for room, for another call.
//
// One thread at a time takes calls from the kernel, and answers most of them itself before it takes
// the next: waking another one costs more than such a call. A call that may wait says so first, and
// then another thread takes over. One that forgets it delays all others; if it waits for one of
// them, for ever.
// Threads: the hook belongs to the calling thread; where there is none, nothing happens.
#pragma once

#include <utility>

namespace kvcfs::fs {

struct BlockingHook {
  void (*call)(void*) = nullptr;  // once, then it is gone
  void* argument = nullptr;
};

inline thread_local BlockingHook t_blocking_hook;

inline void AboutToBlock() {
  const BlockingHook hook = std::exchange(t_blocking_hook, BlockingHook{});
  if (hook.call != nullptr) hook.call(hook.argument);
}

}  // namespace kvcfs::fs
