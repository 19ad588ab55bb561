#include "base/log.h"

#include <atomic>
#include <chrono>
#include <cstring>

#include <fmt/chrono.h>
#include <pthread.h>
#include <unistd.h>

namespace kvcfs {
namespace {

std::atomic<LogLevel> g_level{LogLevel::kInfo};
thread_local std::string t_name = "main";

const char* LevelName(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return "DEBUG";
    case LogLevel::kInfo:
      return "INFO";
    case LogLevel::kWarn:
      return "WARN";
    case LogLevel::kError:
      return "ERROR";
  }
  return "?";
}

// Paths in lines begin at our own folders wherever the tree was built.
const char* ShortFile(const char* file) {
  const char* best = file;
  int slashes = 0;
  for (const char* at = file + std::strlen(file); at != file; --at) {
    if (*at == '/' && ++slashes == 2) {
      best = at + 1;
      break;
    }
  }
  return best;
}

}  // namespace

Result<LogLevel> ParseLogLevel(std::string_view text) {
  if (text == "debug") return LogLevel::kDebug;
  if (text == "info") return LogLevel::kInfo;
  if (text == "warn") return LogLevel::kWarn;
  if (text == "error") return LogLevel::kError;
  return Error{Code::kInvalid,
               fmt::format("'{}' is not a log level; use debug, info, warn or error", text)};
}

void SetLogLevel(LogLevel level) {
  g_level.store(level, std::memory_order_relaxed);
}

bool LogEnabled(LogLevel level) {
  return level >= g_level.load(std::memory_order_relaxed);
}

void SetThreadName(const std::string& name) {
  t_name = name;
  pthread_setname_np(pthread_self(), name.substr(0, 15).c_str());
}

std::string LogValue(std::string_view value) {
  bool plain = !value.empty();
  for (const char c : value) {
    if (c <= ' ' || c == '"' || c == '\\' || c == '=' || c == 127) plain = false;
  }
  if (plain) return std::string(value);
  std::string quoted = "\"";
  for (const char c : value) {
    if (c == '"' || c == '\\') {
      quoted += '\\';
      quoted += c;
    } else if (static_cast<unsigned char>(c) < ' ' || c == 127) {
      quoted += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
    } else {
      quoted += c;
    }
  }
  return quoted + '"';
}

void LogLine(LogLevel level, const char* file, int line, std::string_view message,
             std::string_view fields) {
  const auto now = std::chrono::system_clock::now();
  const auto millis =
      std::chrono::duration_cast<std::chrono::milliseconds>(now.time_since_epoch()).count() % 1000;
  std::string text =
      fmt::format("{:%Y-%m-%dT%H:%M:%S}.{:03}Z {} {} {}:{} \"{}\"{}{}\n",
                  fmt::gmtime(std::chrono::system_clock::to_time_t(now)), millis, LevelName(level),
                  t_name, ShortFile(file), line, message, fields.empty() ? "" : " ", fields);
  // One write a line, so that lines of several threads do not mix.
  [[maybe_unused]] const ssize_t ignored = ::write(STDERR_FILENO, text.data(), text.size());
}

}  // namespace kvcfs
