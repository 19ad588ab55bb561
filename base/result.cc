#include "base/result.h"

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <system_error>

namespace kvcfs {

std::string_view CodeName(Code code) {
  switch (code) {
    case Code::kOk:
      return "ok";
    case Code::kNotFound:
      return "not_found";
    case Code::kExists:
      return "exists";
    case Code::kInvalid:
      return "invalid";
    case Code::kUnsupported:
      return "unsupported";
    case Code::kBusy:
      return "busy";
    case Code::kStale:
      return "stale";
    case Code::kTimeout:
      return "timeout";
    case Code::kUnavailable:
      return "unavailable";
    case Code::kCancelled:
      return "cancelled";
    case Code::kCorrupt:
      return "corrupt";
    case Code::kNoSpace:
      return "no_space";
    case Code::kIo:
      return "io";
    case Code::kInternal:
      return "internal";
    case Code::kNotEmpty:
      return "not_empty";
    case Code::kTooLarge:
      return "too_large";
    case Code::kDenied:
      return "denied";
  }
  return "unknown";
}

Error ErrnoError(int number, std::string_view what, std::string_view name) {
  Code code = Code::kIo;
  switch (number) {
    case ENOENT:
      code = Code::kNotFound;
      break;
    case EEXIST:
      code = Code::kExists;
      break;
    case EINVAL:
      code = Code::kInvalid;
      break;
    case EOPNOTSUPP:
    case ENOSYS:
      code = Code::kUnsupported;
      break;
    case EAGAIN:
    case EBUSY:
      code = Code::kBusy;
      break;
    case ENOSPC:
    case EDQUOT:
      code = Code::kNoSpace;
      break;
    case ENOTEMPTY:
      code = Code::kNotEmpty;
      break;
    case EACCES:
    case EPERM:
      code = Code::kDenied;
      break;
    case EFBIG:
      code = Code::kTooLarge;
      break;
    default:
      break;
  }
  std::string text(what);
  if (!name.empty()) text.append(" ").append(name);
  text.append(": ").append(std::generic_category().message(number));
  return Error{code, std::move(text)};
}

void CheckFailed(const char* file, int line, const char* condition) {
  std::fprintf(stderr, "%s:%d: invariant broken: %s\n", file, line, condition);
  std::abort();
}

}  // namespace kvcfs
