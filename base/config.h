// Settings: one table of typed keys from which kvcfs.toml, --set and the dump are made.
//
// Whoever owns a setting binds its key to a field of a plain struct; what the field holds at that
// moment is the default. Default < file < --set. Values carry units ("64MiB", "50ms").
// Threads: one; the bound structs are const once everything is loaded.
// Fails: kInvalid with `file:line:` (or `--set key=value:`), the key, and what would be right.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/result.h"

namespace kvcfs {

// "8GiB", or "25%" of a whole that is known only on the machine.
struct SizeOrShare {
  uint64_t bytes = 0;  // when share is 0
  double share = 0;

  uint64_t Of(uint64_t whole_bytes) const {
    return share > 0 ? static_cast<uint64_t>(share * static_cast<double>(whole_bytes)) : bytes;
  }
  friend bool operator==(const SizeOrShare&, const SizeOrShare&) = default;
};
Result<SizeOrShare> ParseSizeOrShare(std::string_view text);
std::string FormatSizeOrShare(const SizeOrShare& value);

// "50ms": ns, us, ms, s, min or h; a bare 0 needs no unit.
Result<std::chrono::nanoseconds> ParseDuration(std::string_view text);
// The largest unit that divides it exactly, so that ParseDuration(FormatDuration(d)) == d.
std::string FormatDuration(std::chrono::nanoseconds duration);

// Both ends are allowed.
struct SizeRange {
  uint64_t min = 0;
  uint64_t max = uint64_t{1} << 62;
};
struct DurationRange {
  std::chrono::nanoseconds min{0};
  std::chrono::nanoseconds max = std::chrono::hours(24);
};
struct IntRange {
  int64_t min = 0;
  int64_t max = std::numeric_limits<int64_t>::max();
};
struct DoubleRange {
  double min = 0;
  double max = 1;
};

class ConfigSchema {
 public:
  template <typename T>
  using Names = std::initializer_list<std::pair<const char*, T>>;

  // The keys that follow are in [name]; `help` is a comment above it.
  void Section(std::string name, std::string help);

  void Bool(std::string key, bool* field, std::string help);
  void Int(std::string key, int64_t* field, std::string help, IntRange range);
  void Double(std::string key, double* field, std::string help, DoubleRange range = {});
  void String(std::string key, std::string* field, std::string help);
  void Size(std::string key, uint64_t* field, std::string help, SizeRange range = {});
  void SizeOrShareOf(std::string key, SizeOrShare* field, std::string help);

  template <typename Rep, typename Period>
  void Duration(std::string key, std::chrono::duration<Rep, Period>* field, std::string help,
                DurationRange range = {}) {
    using Unit = std::chrono::duration<Rep, Period>;
    AddDuration(
        std::move(key), std::move(help), range, Unit(1),
        [field](std::chrono::nanoseconds value) {
          *field = std::chrono::duration_cast<Unit>(value);
        },
        [field] { return std::chrono::duration_cast<std::chrono::nanoseconds>(*field); });
  }

  template <typename T>
  void Enum(std::string key, T* field, std::string help, Names<T> names) {
    std::vector<std::string> words;
    std::vector<T> values;
    for (const auto& [word, value] : names) {
      words.emplace_back(word);
      values.push_back(value);
    }
    AddEnum(
        std::move(key), std::move(help), std::move(words),
        [field, values](size_t index) { *field = values[index]; },
        [field, values] {
          size_t index = 0;
          while (index < values.size() && values[index] != *field) ++index;
          return index;
        });
  }

  // One error is reported; what was read before it has been taken.
  Status LoadFile(const std::string& path);
  Status LoadText(std::string_view text, const std::string& file_name);
  // "fs.lease=30s".
  Status Set(std::string_view assignment);
  // As --set, for a flag of its own: errors name `flag`.
  Status SetFlag(std::string_view flag, std::string_view key, std::string_view value);

  // Every key with its help and present value as TOML.
  std::string Dump() const;
  std::vector<std::string> Keys() const;  // "fs.lease", in order

 private:
  // What a TOML value is before we look into it.
  enum class Kind { kText, kBool, kInteger, kFloat };
  struct Value {
    Kind kind = Kind::kText;
    std::string text;
  };
  struct Key {
    std::string section, name, help;
    std::string wanted;  // "a size, as \"64MiB\""
    std::vector<Kind> kinds;
    std::function<Status(std::string_view)> parse;  // an error is the reason alone
    std::function<std::string()> format;            // a TOML literal
  };

  void Add(std::string key, std::string help, std::string wanted, std::vector<Kind> kinds,
           std::function<Status(std::string_view)> parse, std::function<std::string()> format);
  void AddDuration(std::string key, std::string help, DurationRange range,
                   std::chrono::nanoseconds unit, std::function<void(std::chrono::nanoseconds)> set,
                   std::function<std::chrono::nanoseconds()> get);
  void AddEnum(std::string key, std::string help, std::vector<std::string> words,
               std::function<void(size_t)> set, std::function<size_t()> get);
  const Key* Find(std::string_view full_name) const;
  Status Apply(std::string_view where, std::string_view full_name, const Value& value) const;
  Error Unknown(std::string_view where, std::string_view full_name) const;

  std::vector<std::pair<std::string, std::string>> sections_;  // name, help
  std::vector<Key> keys_;
};

}  // namespace kvcfs
