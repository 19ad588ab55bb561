#include "tools/setting_flags.h"

#include <filesystem>
#include <string_view>
#include <utility>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

namespace kvcfs::tools {

void SettingFlags::Add(CLI::App* verb, std::span<const SettingFlag> flags) {
  for (const SettingFlag& flag : flags) {
    values_.push_back(std::make_unique<Value>(Value{flag, {}, false}));
    Value* value = values_.back().get();
    verb->add_option(flag.flag, value->text, flag.help)->each([value](const std::string&) {
      value->given = true;
    });
  }
}

void SettingFlags::AddNode(CLI::App* verb) {
  static constexpr SettingFlag kFlags[] = {
      {"--data", "node.data", "Directory of everything that is kept (default /var/lib/kvcfs)"},
      {"--dram", "node.dram", "DRAM tier: a size, as 8GiB, or a share of memory (default 25%)"},
      {"--nvme", "node.nvme",
       "NVMe tier: a size, or a share of the free disk (default 50%); 0: none"},
      {"--log-level", "node.log_level", "debug, info, warn or error (default info)"},
      {"--metrics-address", "node.metrics_address",
       "Also serve metrics over HTTP, as 127.0.0.1:9464"},
  };
  Add(verb, kFlags);
}

void SettingFlags::AddConfig(CLI::App* verb, const char* example) {
  verb->add_option("--config", config_, "Settings, as tools/kvcfs.toml shows them")
      ->check(CLI::ExistingFile);
  verb->add_option("--set", sets_, fmt::format("One setting, as {}; may be repeated", example))
      ->expected(1)
      ->take_all();
}

void SettingFlags::Set(const char* flag, const char* key, std::string value) {
  values_.push_back(std::make_unique<Value>(Value{{flag, key, ""}, std::move(value), true}));
}

Result<NodeConfig> SettingFlags::Load() const {
  std::vector<NodeConfigFlag> flags;
  for (const auto& value : values_) {
    if (!value->given) continue;
    std::string text = value->text;
    // A relative directory is one of the caller's.
    if (std::string_view(value->flag.key) == "node.data" && !text.empty()) {
      text = std::filesystem::absolute(text).lexically_normal().string();
    }
    flags.push_back({value->flag.flag, value->flag.key, std::move(text)});
  }
  return LoadNodeConfig(config_, sets_, flags);
}

}  // namespace kvcfs::tools
