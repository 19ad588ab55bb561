#include "tools/verb.h"

#include <cerrno>
#include <cstdio>

#include <fmt/format.h>
#include <unistd.h>

namespace kvcfs::tools {
namespace {

int Say(std::string_view verb, std::string_view text, int exit_code) {
  fmt::print(stderr, "kvcfs {}: {}\n", verb, text);
  return exit_code;
}

}  // namespace

int Fail(std::string_view verb, std::string_view text) {
  return Say(verb, text, kExitFailed);
}

int Misuse(std::string_view verb, std::string_view text) {
  return Say(verb, text, kExitMisused);
}

int FailWith(std::string_view verb, const Error& error) {
  return Say(verb, error.text, error.code == Code::kInvalid ? kExitMisused : kExitFailed);
}

int Print(std::string_view verb, std::string_view text) {
  while (!text.empty()) {
    const ssize_t done = ::write(STDOUT_FILENO, text.data(), text.size());
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) return Fail(verb, ErrnoError(errno, "write to standard output").text);
    text.remove_prefix(static_cast<size_t>(done));
  }
  return kExitDone;
}

}  // namespace kvcfs::tools
