// Flags of a verb that are settings' short forms, and the two that all such verbs share, --config
// and
// --set.
//
// Default < --config < --set < flags. Threads: one.
// Fails: as LoadNodeConfig.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "tools/node_config.h"

namespace CLI {
class App;
}  // namespace CLI

namespace kvcfs::tools {

struct SettingFlag {
  const char* flag;
  const char* key;
  const char* help;
};

class SettingFlags {
 public:
  // Each may be called once for a verb. The texts must stay.
  void Add(CLI::App* verb, std::span<const SettingFlag> flags);
  // --data, --dram, --nvme and what else a process has that holds blocks.
  void AddNode(CLI::App* verb);
  // --config and --set; `example`: of the latter.
  void AddConfig(CLI::App* verb, const char* example);
  // A flag of another kind was given.
  void Set(const char* flag, const char* key, std::string value);

  Result<NodeConfig> Load() const;

 private:
  struct Value {
    SettingFlag flag;
    std::string text;
    bool given = false;
  };
  std::vector<std::unique_ptr<Value>> values_;
  std::string config_;
  std::vector<std::string> sets_;
};

}  // namespace kvcfs::tools
