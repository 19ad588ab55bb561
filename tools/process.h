// What the processes that stay have in common: the signals that stop them, and life without a
// terminal.
//
// Threads: one, before others are started.
#pragma once

#include <string>

#include <signal.h>

namespace kvcfs::tools {

// SIGTERM and SIGINT.
sigset_t StopSignals();
// All threads inherit the mask; who waits for StopSignals() takes them.
void BlockStopSignals();

// A session of its own; input and output are nothing, errors go to the end of `log`.
void LeaveTerminal(const std::string& log);

}  // namespace kvcfs::tools
