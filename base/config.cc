#include "base/config.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <toml++/toml.h>

#include "base/read_file.h"
#include "base/size.h"

namespace kvcfs {
namespace {

using std::chrono::nanoseconds;

struct DurationUnit {
  const char* name;
  int64_t nanos;
};
constexpr DurationUnit kDurationUnits[] = {
    {"h", 3'600'000'000'000}, {"min", 60'000'000'000}, {"s", 1'000'000'000},
    {"ms", 1'000'000},        {"us", 1'000},           {"ns", 1}};

std::string Quoted(std::string_view text) {
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      quoted += '\\';
      quoted += c;
    } else if (static_cast<unsigned char>(c) < ' ' || c == 127) {
      quoted += fmt::format("\\u{:04X}", static_cast<unsigned char>(c));
    } else {
      quoted += c;
    }
  }
  return quoted + '"';
}

template <typename T>
bool ParseNumber(std::string_view text, T* value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *value);
  return error == std::errc() && end == text.data() + text.size();
}

size_t EditDistance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t replaced = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({replaced, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row[b.size()];
}

Error Reason(std::string text) {
  return Error{Code::kInvalid, std::move(text)};
}

}  // namespace

Result<nanoseconds> ParseDuration(std::string_view text) {
  const auto bad = [&] {
    return Error{
        Code::kInvalid,
        fmt::format("'{}' is not a duration; write a number and a unit, as 50ms, 30s, 1min", text)};
  };
  if (text == "0") return nanoseconds(0);
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || !(value >= 0)) return bad();
  std::string_view unit = text.substr(static_cast<size_t>(end - text.data()));
  while (!unit.empty() && unit.front() == ' ') unit.remove_prefix(1);
  for (const DurationUnit& known : kDurationUnits) {
    if (unit != known.name) continue;
    const double nanos = std::round(value * static_cast<double>(known.nanos));
    if (!(nanos < 9e18)) return bad();
    return nanoseconds(static_cast<int64_t>(nanos));
  }
  return bad();
}

std::string FormatDuration(nanoseconds duration) {
  const int64_t nanos = duration.count();
  if (nanos == 0) return "0s";
  for (const DurationUnit& unit : kDurationUnits) {
    if (nanos % unit.nanos == 0) return fmt::format("{}{}", nanos / unit.nanos, unit.name);
  }
  return fmt::format("{}ns", nanos);
}

Result<SizeOrShare> ParseSizeOrShare(std::string_view text) {
  if (!text.empty() && text.back() == '%') {
    double percent = 0;
    if (!ParseNumber(text.substr(0, text.size() - 1), &percent) || !(percent > 0) ||
        !(percent <= 100)) {
      return Reason(fmt::format("'{}' is not a share; write more than 0% and at most 100%", text));
    }
    return SizeOrShare{.share = percent / 100};
  }
  KVC_TRY_ASSIGN(const uint64_t bytes, ParseSize(text));
  return SizeOrShare{.bytes = bytes};
}

std::string FormatSizeOrShare(const SizeOrShare& value) {
  if (value.share > 0) return fmt::format("{}%", std::round(value.share * 1e8) / 1e6);
  return FormatSize(value.bytes);
}

void ConfigSchema::Section(std::string name, std::string help) {
  sections_.emplace_back(std::move(name), std::move(help));
}

void ConfigSchema::Add(std::string key, std::string help, std::string wanted,
                       std::vector<Kind> kinds, std::function<Status(std::string_view)> parse,
                       std::function<std::string()> format) {
  KVC_CHECK(!sections_.empty() && !help.empty());
  KVC_CHECK(Find(sections_.back().first + "." + key) == nullptr);
  keys_.push_back({.section = sections_.back().first,
                   .name = std::move(key),
                   .help = std::move(help),
                   .wanted = std::move(wanted),
                   .kinds = std::move(kinds),
                   .parse = std::move(parse),
                   .format = std::move(format)});
}

void ConfigSchema::Bool(std::string key, bool* field, std::string help) {
  Add(
      std::move(key), std::move(help), "true or false", {Kind::kBool},
      [field](std::string_view text) -> Status {
        if (text != "true" && text != "false") {
          return Reason(fmt::format("'{}' is not true or false", text));
        }
        *field = text == "true";
        return {};
      },
      [field] { return std::string(*field ? "true" : "false"); });
}

void ConfigSchema::Int(std::string key, int64_t* field, std::string help, IntRange range) {
  Add(
      std::move(key), std::move(help), "a whole number", {Kind::kInteger},
      [field, range](std::string_view text) -> Status {
        int64_t value = 0;
        if (!ParseNumber(text, &value)) {
          return Reason(fmt::format("'{}' is not a whole number", text));
        }
        if (value < range.min || value > range.max) {
          return Reason(fmt::format("{} is out of range: {} to {}", value, range.min, range.max));
        }
        *field = value;
        return {};
      },
      [field] { return fmt::format("{}", *field); });
}

void ConfigSchema::Double(std::string key, double* field, std::string help, DoubleRange range) {
  Add(
      std::move(key), std::move(help), "a number", {Kind::kInteger, Kind::kFloat},
      [field, range](std::string_view text) -> Status {
        double value = 0;
        if (!ParseNumber(text, &value)) return Reason(fmt::format("'{}' is not a number", text));
        if (!(value >= range.min && value <= range.max)) {
          return Reason(fmt::format("{} is out of range: {} to {}", value, range.min, range.max));
        }
        *field = value;
        return {};
      },
      [field] {
        std::string text = fmt::format("{}", *field);
        if (text.find_first_of(".e") == std::string::npos) text += ".0";
        return text;
      });
}

void ConfigSchema::String(std::string key, std::string* field, std::string help) {
  Add(
      std::move(key), std::move(help), "a text in quotes", {Kind::kText},
      [field](std::string_view text) -> Status {
        *field = text;
        return {};
      },
      [field] { return Quoted(*field); });
}

void ConfigSchema::Size(std::string key, uint64_t* field, std::string help, SizeRange range) {
  Add(
      std::move(key), std::move(help), "a size, as \"64MiB\"", {Kind::kText, Kind::kInteger},
      [field, range](std::string_view text) -> Status {
        KVC_TRY_ASSIGN(const uint64_t value, ParseSize(text));
        if (value < range.min || value > range.max) {
          return Reason(fmt::format("{} is out of range: {} to {}", FormatSize(value),
                                    FormatSize(range.min), FormatSize(range.max)));
        }
        *field = value;
        return {};
      },
      [field] { return Quoted(FormatSize(*field)); });
}

void ConfigSchema::SizeOrShareOf(std::string key, SizeOrShare* field, std::string help) {
  Add(
      std::move(key), std::move(help), "a size or a share, as \"8GiB\" or \"25%\"",
      {Kind::kText, Kind::kInteger},
      [field](std::string_view text) -> Status {
        KVC_TRY_ASSIGN(*field, ParseSizeOrShare(text));
        return {};
      },
      [field] { return Quoted(FormatSizeOrShare(*field)); });
}

void ConfigSchema::AddDuration(std::string key, std::string help, DurationRange range,
                               nanoseconds unit, std::function<void(nanoseconds)> set,
                               std::function<nanoseconds()> get) {
  Add(
      std::move(key), std::move(help), "a duration, as \"50ms\"", {Kind::kText},
      [range, unit, set = std::move(set)](std::string_view text) -> Status {
        KVC_TRY_ASSIGN(const nanoseconds value, ParseDuration(text));
        if (value < range.min || value > range.max) {
          return Reason(fmt::format("{} is out of range: {} to {}", FormatDuration(value),
                                    FormatDuration(range.min), FormatDuration(range.max)));
        }
        if (value.count() % unit.count() != 0) {
          return Reason(fmt::format("{} is finer than this setting's step of {}",
                                    FormatDuration(value), FormatDuration(unit)));
        }
        set(value);
        return {};
      },
      [get = std::move(get)] { return Quoted(FormatDuration(get())); });
}

void ConfigSchema::AddEnum(std::string key, std::string help, std::vector<std::string> words,
                           std::function<void(size_t)> set, std::function<size_t()> get) {
  std::string wanted = fmt::format("one of {}", fmt::join(words, ", "));
  Add(
      std::move(key), std::move(help), wanted, {Kind::kText},
      [words, wanted, set = std::move(set)](std::string_view text) -> Status {
        const auto at = std::find(words.begin(), words.end(), text);
        if (at == words.end()) return Reason(fmt::format("'{}' is not {}", text, wanted));
        set(static_cast<size_t>(at - words.begin()));
        return {};
      },
      [words, get = std::move(get)] {
        const size_t index = get();
        KVC_CHECK(index < words.size());
        return Quoted(words[index]);
      });
}

const ConfigSchema::Key* ConfigSchema::Find(std::string_view full_name) const {
  for (const Key& key : keys_) {
    if (full_name.size() == key.section.size() + 1 + key.name.size() &&
        full_name.starts_with(key.section) && full_name[key.section.size()] == '.' &&
        full_name.ends_with(key.name)) {
      return &key;
    }
  }
  return nullptr;
}

Error ConfigSchema::Unknown(std::string_view where, std::string_view full_name) const {
  const std::string_view name = full_name.substr(full_name.find('.') + 1);
  std::string best;
  size_t best_distance = std::max<size_t>(3, full_name.size() / 3) + 1;
  for (const Key& key : keys_) {
    const std::string candidate = key.section + "." + key.name;
    // A right name in the wrong section is as near as one wrong letter.
    const size_t distance = key.name == name ? 1 : EditDistance(full_name, candidate);
    if (distance < best_distance) {
      best_distance = distance;
      best = candidate;
    }
  }
  return Error{
      Code::kInvalid,
      best.empty()
          ? fmt::format("{}: unknown key '{}'; tools/kvcfs.toml lists all keys", where, full_name)
          : fmt::format("{}: unknown key '{}'; did you mean '{}'?", where, full_name, best)};
}

Status ConfigSchema::Apply(std::string_view where, std::string_view full_name,
                           const Value& value) const {
  const Key* key = Find(full_name);
  if (key == nullptr) return Unknown(where, full_name);
  if (std::find(key->kinds.begin(), key->kinds.end(), value.kind) == key->kinds.end()) {
    return Error{Code::kInvalid, fmt::format("{}: {} must be {}", where, full_name, key->wanted)};
  }
  if (Status status = key->parse(value.text); !status.ok()) {
    return Error{Code::kInvalid, fmt::format("{}: {}: {}", where, full_name, status.error().text)};
  }
  return {};
}

Status ConfigSchema::LoadFile(const std::string& path) {
  Result<std::string> text = ReadFile(path);
  if (!text.ok()) {
    return Error{text.code(), fmt::format("cannot read the config file: {}", text.error().text)};
  }
  return LoadText(*text, path);
}

Status ConfigSchema::LoadText(std::string_view text, const std::string& file_name) {
  toml::table table;
  try {
    table = toml::parse(text, file_name);
  } catch (const toml::parse_error& error) {
    return Error{Code::kInvalid, fmt::format("{}:{}: {}", file_name, error.source().begin.line,
                                             error.description())};
  }
  for (const auto& entry : table) {
    // No structured binding: clang 14 cannot capture one.
    const toml::key& section = entry.first;
    const toml::node& node = entry.second;
    const auto where = [&file_name](const toml::node& at) {
      return fmt::format("{}:{}", file_name, at.source().begin.line);
    };
    const toml::table* values = node.as_table();
    const bool known = std::any_of(sections_.begin(), sections_.end(), [&section](const auto& one) {
      return one.first == section.str();
    });
    if (values == nullptr) return Unknown(where(node), section.str());
    if (!known && values->empty()) {
      return Error{Code::kInvalid,
                   fmt::format("{}: unknown section [{}]", where(node), section.str())};
    }
    for (const auto& [name, item] : *values) {
      const std::string full_name = fmt::format("{}.{}", section.str(), name.str());
      Value value;
      if (const auto* as_text = item.as_string()) {
        value = {Kind::kText, **as_text};
      } else if (const auto* as_bool = item.as_boolean()) {
        value = {Kind::kBool, **as_bool ? "true" : "false"};
      } else if (const auto* as_int = item.as_integer()) {
        value = {Kind::kInteger, fmt::format("{}", **as_int)};
      } else if (const auto* as_float = item.as_floating_point()) {
        value = {Kind::kFloat, fmt::format("{}", **as_float)};
      } else {
        const Key* key = Find(full_name);
        if (key == nullptr) return Unknown(where(item), full_name);
        return Error{Code::kInvalid,
                     fmt::format("{}: {} must be {}", where(item), full_name, key->wanted)};
      }
      KVC_TRY(Apply(where(item), full_name, value));
    }
  }
  return {};
}

Status ConfigSchema::Set(std::string_view assignment) {
  const size_t equals = assignment.find('=');
  if (equals == std::string_view::npos || equals == 0) {
    return Error{Code::kInvalid,
                 fmt::format("--set {}: write it as key=value, as fs.lease=30s", assignment)};
  }
  return SetFlag(fmt::format("--set {}", assignment), assignment.substr(0, equals),
                 assignment.substr(equals + 1));
}

Status ConfigSchema::SetFlag(std::string_view flag, std::string_view key, std::string_view value) {
  const Key* known = Find(key);
  if (known == nullptr) return Unknown(flag, key);
  // On a command line everything is text; a text in quotes is what the file would have.
  if (value.size() >= 2 && value.front() == '"' && value.back() == '"') {
    value = value.substr(1, value.size() - 2);
  }
  return Apply(flag, key, {known->kinds.front(), std::string(value)});
}

std::string ConfigSchema::Dump() const {
  std::string text;
  for (const auto& [section, help] : sections_) {
    if (!text.empty()) text += '\n';
    text += fmt::format("# {}\n[{}]\n", help, section);
    for (const Key& key : keys_) {
      if (key.section != section) continue;
      text += fmt::format("\n# {}\n{} = {}\n", key.help, key.name, key.format());
    }
  }
  return text;
}

std::vector<std::string> ConfigSchema::Keys() const {
  std::vector<std::string> names;
  for (const Key& key : keys_) names.push_back(key.section + "." + key.name);
  return names;
}

}  // namespace kvcfs
