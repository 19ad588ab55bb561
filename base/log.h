// One line a state change on stderr: `time level thread file:line "message" key=value`.
//
// Threads: any. ERROR: someone must act. WARN: degraded but serving. INFO: state changed (an idle
// node is silent). DEBUG: per request.
#pragma once

#include <string>
#include <string_view>

#include <fmt/format.h>

#include "base/result.h"

namespace kvcfs {

enum class LogLevel { kDebug, kInfo, kWarn, kError };

Result<LogLevel> ParseLogLevel(std::string_view text);
void SetLogLevel(LogLevel level);
bool LogEnabled(LogLevel level);
// Name of this thread in log lines and in /proc (at most 15 characters).
void SetThreadName(const std::string& name);

// `fields` is the part after the message, already `key=value key=value`.
void LogLine(LogLevel level, const char* file, int line, std::string_view message,
             std::string_view fields);

// Quotes a value where it has spaces, quotes or control characters.
std::string LogValue(std::string_view value);

}  // namespace kvcfs

// KVC_LOG(Warn, "segment retired", "segment={} reason={}", id, LogValue(text));
#define KVC_LOG(level, message, ...)                                             \
  do {                                                                           \
    if (::kvcfs::LogEnabled(::kvcfs::LogLevel::k##level))                        \
      ::kvcfs::LogLine(::kvcfs::LogLevel::k##level, __FILE__, __LINE__, message, \
                       ::fmt::format("" __VA_ARGS__));                           \
  } while (false)
