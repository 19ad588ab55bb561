// Result<T> and Status: how every function of this project says that it failed.
//
// Wraps tl::expected once, adds [[nodiscard]] and the two macros. When std::expected can be seen by
// every compiler that we use, only this file changes.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include <tl/expected.hpp>

namespace kvcfs {

// What went wrong, in terms of what the caller should do about it.
enum class Code : uint8_t {
  kOk = 0,
  kNotFound,     // it is not there; for a cache that is an answer
  kExists,       // somebody was first
  kInvalid,      // the caller's words are wrong; do not try again
  kUnsupported,  // this host or build cannot; use the other way
  kBusy,         // full or in use now; back off and try again
  kStale,        // what you hold is of an older generation; refresh it
  kTimeout,      // no answer in time; may have happened
  kUnavailable,  // this copy cannot be had; try another
  kCancelled,    // we are stopping
  kCorrupt,      // bytes are not what was written
  kNoSpace,      // nothing may be evicted
  kIo,           // the device said no
  kInternal,     // our bug
  kNotEmpty,     // a directory or namespace still holds things
  kTooLarge,     // longer than allowed
  kDenied,       // not permitted
};

std::string_view CodeName(Code code);

struct Error {
  Code code = Code::kInternal;
  std::string text;
};

template <typename T>
class [[nodiscard]] Result : public tl::expected<T, Error> {
 public:
  using Base = tl::expected<T, Error>;
  using Base::Base;
  // NOLINTNEXTLINE(google-explicit-constructor): `return Error{...}` is the whole point.
  Result(Error error) : Base(tl::unexpect, std::move(error)) {}

  Code code() const { return this->has_value() ? Code::kOk : this->error().code; }
  bool ok() const { return this->has_value(); }
};

template <>
class [[nodiscard]] Result<void> : public tl::expected<void, Error> {
 public:
  using Base = tl::expected<void, Error>;
  using Base::Base;
  // NOLINTNEXTLINE(google-explicit-constructor)
  Result(Error error) : Base(tl::unexpect, std::move(error)) {}

  Code code() const { return has_value() ? Code::kOk : error().code; }
  bool ok() const { return has_value(); }
};

using Status = Result<void>;

// An Error from errno, naming what was done to what: ErrnoError(errno, "open", path).
Error ErrnoError(int number, std::string_view what, std::string_view name = {});

[[noreturn]] void CheckFailed(const char* file, int line, const char* condition);

}  // namespace kvcfs

#define KVC_CONCAT_INNER(a, b) a##b
#define KVC_CONCAT(a, b) KVC_CONCAT_INNER(a, b)

// Returns the error of a Status or Result to our caller.
#define KVC_TRY(expression)                                            \
  do {                                                                 \
    auto&& kvc_status = (expression);                                  \
    if (!kvc_status.has_value()) return std::move(kvc_status).error(); \
  } while (false)

// KVC_TRY_ASSIGN(auto value, F()): the value, or return the error.
#define KVC_TRY_ASSIGN(declaration, expression)                  \
  auto KVC_CONCAT(kvc_result_, __LINE__) = (expression);         \
  if (!KVC_CONCAT(kvc_result_, __LINE__).has_value())            \
    return std::move(KVC_CONCAT(kvc_result_, __LINE__)).error(); \
  declaration = std::move(*KVC_CONCAT(kvc_result_, __LINE__))

// A broken invariant is our bug: say where and stop, also in release.
#define KVC_CHECK(condition) \
  (static_cast<bool>(condition) ? void(0) : ::kvcfs::CheckFailed(__FILE__, __LINE__, #condition))
