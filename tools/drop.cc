// kvcfs drop: forget a block and what extends it, or a whole namespace.
#include <memory>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "tools/client.h"
#include "tools/verb.h"

namespace kvcfs::tools {
namespace {

struct Options {
  std::string where;
  std::string key;
  bool json = false;
};

int Drop(const Options& options) {
  std::optional<BlockKey> key;
  if (!options.key.empty()) {
    key = BlockKey::FromHex(options.key);
    if (!key) {
      return Misuse("drop",
                    fmt::format("'{}' is not a key: 64 lower-case hex digits", options.key));
    }
  }
  Result<NamespaceClient> client = NamespaceClient::Open(options.where);
  if (!client.ok()) return FailWith("drop", client.error());
  const Result<DropAnswer> answer = key ? client->Drop(*key) : client->DropAll();
  if (!answer.ok()) return FailWith("drop", answer.error());
  if (options.json) {
    return Print("drop", nlohmann::ordered_json{{"dropped_blocks", answer->blocks},
                                                {"dropped_files", answer->files}}
                                 .dump(2) +
                             "\n");
  }
  return Print("drop", fmt::format("dropped {} blocks, {} files\n", answer->blocks, answer->files));
}

}  // namespace

void AddDropVerb(CLI::App& app, int& exit_code) {
  CLI::App* verb = app.add_subcommand("drop", "Forget a block and what extends it, or everything.");
  auto options = std::make_shared<Options>();
  verb->add_option("NAMESPACE", options->where, "MNT/NS")->required();
  verb->add_option("KEY", options->key, "Drop this block and all that extends it; without: all");
  verb->add_flag("--json", options->json, "One JSON object");
  verb->footer(
      "Readers that have a dropped block open go on reading it. Without KEY every block and every\n"
      "file under files/ of the namespace goes; the namespace itself stays (rmdir removes it).\n\n"
      "Example: forget one conversation, from its first own block on\n"
      "  kvcfs drop /mnt/kvc/llama "
      "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08");
  verb->callback([options, &exit_code] { exit_code = Drop(*options); });
}

}  // namespace kvcfs::tools
