#include "base/read_file.h"

#include <cerrno>

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include "base/fd.h"

namespace kvcfs {

Result<std::string> ReadFile(const std::string& path) {
  constexpr size_t kBytesMax = size_t{1} << 30;
  constexpr size_t kStep = size_t{256} << 10;
  const Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return ErrnoError(errno, "open", path);
  std::string text;
  for (;;) {
    const size_t have = text.size();
    if (have >= kBytesMax) {
      return Error{Code::kTooLarge, fmt::format("{} is larger than 1 GiB", path)};
    }
    text.resize(have + kStep);
    const ssize_t got = ::read(fd.get(), text.data() + have, kStep);
    if (got < 0 && errno == EINTR) {
      text.resize(have);
      continue;
    }
    if (got < 0) return ErrnoError(errno, "read", path);
    text.resize(have + static_cast<size_t>(got));
    if (got == 0) return text;
  }
}

}  // namespace kvcfs
