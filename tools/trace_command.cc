// kvcfs trace: makes request traces, and says what is in one.
#include <cstdio>
#include <memory>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "tools/synth.h"
#include "tools/trace.h"
#include "tools/verb.h"

namespace kvcfs::tools {
namespace {

struct SynthCommand {
  SynthOptions options;
  std::string output;
};

struct FileCloser {
  void operator()(std::FILE* file) const { std::fclose(file); }
};

int Synth(const SynthCommand& command) {
  std::unique_ptr<std::FILE, FileCloser> file;
  if (!command.output.empty()) {
    file.reset(std::fopen(command.output.c_str(), "we"));
    if (!file) return FailWith("trace", ErrnoError(errno, "create", command.output));
  }
  std::FILE* const out = file ? file.get() : stdout;
  bool written = true;
  const Status status = SynthesizeTrace(command.options, [&](const TraceRequest& request) {
    const std::string line = FormatTraceRequest(request) + "\n";
    written = written && std::fwrite(line.data(), 1, line.size(), out) == line.size();
  });
  if (!status.ok()) return FailWith("trace", status.error());
  if (!written || std::fflush(out) != 0) {
    return FailWith(
        "trace",
        ErrnoError(errno, "write", command.output.empty() ? "standard output" : command.output));
  }
  return kExitDone;
}

struct InfoOptions {
  std::string path;
  uint64_t limit = 0;
  bool json = false;
};

int Info(const InfoOptions& options) {
  const Result<Trace> trace = ReadTrace(options.path, options.limit);
  if (!trace.ok()) return FailWith("trace", trace.error());
  const TraceFacts facts = ExamineTrace(*trace);
  const double reuse = static_cast<double>(facts.reused_blocks) / static_cast<double>(facts.blocks);
  if (options.json) {
    const nlohmann::ordered_json object{
        {"requests", facts.requests},
        {"blocks", facts.blocks},
        {"unique_blocks", facts.unique_blocks},
        {"reused_blocks", facts.reused_blocks},
        {"reuse", reuse},
        {"first_blocks", facts.first_blocks},
        {"two_parents", facts.two_parents},
        {"depth_max", facts.depth_max},
        {"children",
         {{"none", facts.children_share[0]},
          {"one", facts.children_share[1]},
          {"two", facts.children_share[2]},
          {"more", facts.children_share[3]},
          {"max", facts.children_max}}},
        {"match_blocks",
         {{"p50", facts.match_p50}, {"p90", facts.match_p90}, {"p99", facts.match_p99}}},
        {"input_tokens",
         {{"p50", facts.input_p50}, {"p90", facts.input_p90}, {"p99", facts.input_p99}}},
        {"output_tokens",
         {{"p50", facts.output_p50}, {"p90", facts.output_p90}, {"p99", facts.output_p99}}},
        {"seconds", facts.seconds}};
    return Print("trace", object.dump(2) + "\n");
  }
  std::string text;
  text += fmt::format("requests       {} in {:.0f} s\n", facts.requests, facts.seconds);
  text +=
      fmt::format("blocks         {}, of which {} are unique\n", facts.blocks, facts.unique_blocks);
  text +=
      fmt::format("reuse          {:.1f}% of blocks, in a cache that never evicts\n", 100 * reuse);
  text += fmt::format("prefix tree    {}; {} first blocks, longest chain {}\n",
                      facts.two_parents == 0
                          ? "yes, no block has two parents"
                          : fmt::format("no, {} ids have two parents", facts.two_parents),
                      facts.first_blocks, facts.depth_max);
  text +=
      fmt::format("children       none {:.1f}%, one {:.1f}%, two {:.1f}%, more {:.2f}%; most: {}\n",
                  100 * facts.children_share[0], 100 * facts.children_share[1],
                  100 * facts.children_share[2], 100 * facts.children_share[3], facts.children_max);
  text += fmt::format("{:<14} {:>8} {:>8} {:>8}\n", "a request", "p50", "p90", "p99");
  text += fmt::format("{:<14} {:>8} {:>8} {:>8}\n", "match, blocks", facts.match_p50,
                      facts.match_p90, facts.match_p99);
  text += fmt::format("{:<14} {:>8} {:>8} {:>8}\n", "input, tokens", facts.input_p50,
                      facts.input_p90, facts.input_p99);
  text += fmt::format("{:<14} {:>8} {:>8} {:>8}\n", "output", facts.output_p50, facts.output_p90,
                      facts.output_p99);
  return Print("trace", text);
}

void AddSynth(CLI::App& trace, int& exit_code) {
  CLI::App* verb = trace.add_subcommand("synth", "Make a trace with the shape of real ones.");
  auto command = std::make_shared<SynthCommand>();
  SynthOptions& options = command->options;
  verb->add_option("--requests", options.requests, "How many")->capture_default_str();
  verb->add_option("--seed", options.seed, "The same seed makes the same trace")
      ->capture_default_str();
  verb->add_option("--output", command->output, "Write here instead of standard output");
  verb->add_option("--sessions", options.sessions, "At most so many are alive at once")
      ->capture_default_str();
  verb->add_option("--system-prompts", options.system_prompts, "All begin with one common block")
      ->capture_default_str();
  verb->add_option("--documents", options.documents, "Long texts that several sessions ask about")
      ->capture_default_str();
  verb->add_option("--agents", options.agent_share, "Share of new sessions that loop as agents do")
      ->capture_default_str();
  verb->add_option("--rate", options.requests_per_second, "Requests a second")
      ->capture_default_str();
  verb->add_option("--block-tokens", options.block_tokens, "Tokens a block")->capture_default_str();
  verb->footer(
      "A true prefix tree: system prompts and documents are shared (Zipf), sessions grow by turns\n"
      "and sometimes fork, agents loop in small steps. The defaults are near the conversation\n"
      "trace that Mooncake published: 91% of blocks have one child, 37% are reused.\n\n"
      "Example:\n"
      "  kvcfs trace synth --requests 1000 --seed 7 --output trace.jsonl");
  verb->callback([command, &exit_code] { exit_code = Synth(*command); });
}

void AddInfo(CLI::App& trace, int& exit_code) {
  CLI::App* verb =
      trace.add_subcommand("info", "What is in a trace: blocks, reuse, tree, lengths.");
  auto options = std::make_shared<InfoOptions>();
  verb->add_option("FILE", options->path, "A trace")->required();
  verb->add_option("--limit", options->limit, "Only the first N requests; 0: all");
  verb->add_flag("--json", options->json, "One JSON object");
  verb->footer("Example:\n  kvcfs trace info trace.jsonl");
  verb->callback([options, &exit_code] { exit_code = Info(*options); });
}

}  // namespace

void AddTraceVerb(CLI::App& app, int& exit_code) {
  CLI::App* verb = app.add_subcommand("trace", "Make request traces, or look into one.");
  verb->require_subcommand(1);
  verb->footer(
      "A trace is JSON lines in Mooncake's format, as `kvcfs replay` plays them:\n"
      "  {\"timestamp\": 3000, \"input_length\": 1300, \"output_length\": 90, \"hash_ids\": [0, 7, "
      "8]}\n\n"
      "Example:\n"
      "  kvcfs trace synth --requests 1000 | tee trace.jsonl | head -n 1");
  AddSynth(*verb, exit_code);
  AddInfo(*verb, exit_code);
}

}  // namespace kvcfs::tools
