// kvcfs version: what was built, and from what.
#include "tools/version.h"

#include <memory>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "tools/verb.h"

namespace kvcfs::tools {

void AddVersionVerb(CLI::App& app, int& exit_code) {
  CLI::App* verb = app.add_subcommand("version", "What this kvcfs is.");
  auto json = std::make_shared<bool>(false);
  verb->add_flag("--json", *json, "One JSON object");
  verb->footer("Example:\n  kvcfs version --json");
  verb->callback([json, &exit_code] {
    exit_code =
        Print("version", *json ? nlohmann::ordered_json{{"version", kVersion}}.dump(2) + "\n"
                               : fmt::format("kvcfs {}\n", kVersion));
  });
}

}  // namespace kvcfs::tools
