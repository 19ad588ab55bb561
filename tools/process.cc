#include "tools/process.h"

#include <fcntl.h>
#include <pthread.h>
#include <unistd.h>

#include "base/fd.h"

namespace kvcfs::tools {

sigset_t StopSignals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  return set;
}

void BlockStopSignals() {
  const sigset_t set = StopSignals();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
}

void LeaveTerminal(const std::string& log) {
  ::setsid();
  const Fd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
  const Fd errors(::open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644));
  if (null.valid()) {
    ::dup2(null.get(), STDIN_FILENO);
    ::dup2(null.get(), STDOUT_FILENO);
  }
  if (errors.valid()) ::dup2(errors.get(), STDERR_FILENO);
}

}  // namespace kvcfs::tools
