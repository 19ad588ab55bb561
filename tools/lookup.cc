// kvcfs lookup: how much of a chain is cached.
#include <algorithm>
#include <iostream>
#include <memory>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <unistd.h>

#include "base/read_file.h"
#include "base/size.h"
#include "tools/client.h"
#include "tools/verb.h"

namespace kvcfs::tools {
namespace {

struct Options {
  std::string where;
  std::vector<std::string> keys;
  std::string keys_file;
  bool prefetch = false;
  bool no_lease = false;
  bool json = false;
};

// Appends the keys of a text, one a line.
Status ReadKeys(const std::string& source, const std::string& text, std::vector<BlockKey>* keys) {
  size_t line_number = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    std::string line = text.substr(at, end - at);
    at = end + 1;
    ++line_number;
    while (!line.empty() && (line.back() == '\r' || line.back() == ' ')) line.pop_back();
    if (line.empty()) continue;
    const std::optional<BlockKey> key = BlockKey::FromHex(line);
    if (!key) {
      return Error{Code::kInvalid, fmt::format("{}:{}: '{}' is not a key: 64 lower-case hex digits",
                                               source, line_number, line)};
    }
    keys->push_back(*key);
  }
  return {};
}

Result<std::vector<BlockKey>> GatherKeys(const Options& options) {
  std::vector<BlockKey> keys;
  if (!options.keys_file.empty()) {
    KVC_TRY_ASSIGN(const std::string text, ReadFile(options.keys_file));
    KVC_TRY(ReadKeys(options.keys_file, text, &keys));
  }
  for (const std::string& word : options.keys) {
    if (word == "-") {
      const std::string text((std::istreambuf_iterator<char>(std::cin)), {});
      KVC_TRY(ReadKeys("standard input", text, &keys));
      continue;
    }
    const std::optional<BlockKey> key = BlockKey::FromHex(word);
    if (!key) {
      return Error{Code::kInvalid,
                   fmt::format("'{}' is not a key: 64 lower-case hex digits", word)};
    }
    keys.push_back(*key);
  }
  if (keys.empty()) {
    return Error{Code::kInvalid, "no keys given; name them, or --keys-file FILE, or - for stdin"};
  }
  return keys;
}

int Lookup(const Options& options) {
  const Result<std::vector<BlockKey>> keys = GatherKeys(options);
  if (!keys.ok()) return FailWith("lookup", keys.error());
  Result<NamespaceClient> client = NamespaceClient::Open(options.where);
  if (!client.ok()) return FailWith("lookup", client.error());
  const Result<MatchAnswer> answer =
      client->Match(*keys, {.prefetch = options.prefetch, .lease = !options.no_lease});
  if (!answer.ok()) return FailWith("lookup", answer.error());

  uint64_t bytes = 0;
  for (const MatchAnswer::Block& block : answer->blocks) bytes += block.bytes;
  std::string text;
  if (options.json) {
    nlohmann::ordered_json blocks = nlohmann::ordered_json::array();
    for (size_t i = 0; i < answer->count(); ++i) {
      blocks.push_back({{"ordinal", i},
                        {"key", (*keys)[i].ToHex()},
                        {"tier", TierName(answer->blocks[i].tier)},
                        {"bytes", answer->blocks[i].bytes}});
    }
    text = nlohmann::ordered_json{{"count", answer->count()},
                                  {"asked", keys->size()},
                                  {"lease_ms", answer->lease_ms},
                                  {"bytes", bytes},
                                  {"blocks", blocks}}
               .dump(2) +
           "\n";
  } else {
    text = fmt::format("{} of {} blocks cached, {}", answer->count(), keys->size(),
                       FormatSizeShort(bytes));
    text += answer->lease_ms > 0 ? fmt::format(", for at least {} s\n", answer->lease_ms / 1000)
                                 : std::string(", no lease\n");
    for (size_t i = 0; i < answer->count(); ++i) {
      text += fmt::format("{:08} {} {} {}\n", i, (*keys)[i].ToHex(),
                          TierName(answer->blocks[i].tier), answer->blocks[i].bytes);
    }
  }
  return Print("lookup", text);
}

}  // namespace

void AddLookupVerb(CLI::App& app, int& exit_code) {
  CLI::App* verb = app.add_subcommand("lookup", "How much of a chain is cached: longest prefix.");
  auto options = std::make_shared<Options>();
  verb->add_option("NAMESPACE", options->where, "MNT/NS")->required();
  verb->add_option("KEY", options->keys,
                   "Keys of a chain from its first block on; - reads them from standard input");
  verb->add_option("--keys-file", options->keys_file, "Read keys from this file, one a line");
  verb->add_flag("--prefetch", options->prefetch, "Matched blocks start to move into DRAM");
  verb->add_flag("--no-lease", options->no_lease, "Only ask: promise nothing");
  verb->add_flag("--json", options->json, "One JSON object");
  verb->footer(
      "Prints how many leading keys are cached and for how long that is promised (the lease),\n"
      "then ORDINAL KEY TIER BYTES for each. Nothing cached is an answer, not a failure.\n\n"
      "Example: what is cached of the prompt whose keys an engine wrote into keys.txt\n"
      "  kvcfs lookup /mnt/kvc/llama --keys-file keys.txt");
  verb->callback([options, &exit_code] { exit_code = Lookup(*options); });
}

}  // namespace kvcfs::tools
