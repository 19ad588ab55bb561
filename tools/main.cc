// The kvcfs command: understands the line and calls the verb.
#include <clocale>
#include <csignal>
#include <cstdio>
#include <exception>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "tools/verb.h"
#include "tools/version.h"

namespace {

using AddVerb = void (*)(CLI::App&, int&);
constexpr AddVerb kVerbs[] = {
    kvcfs::tools::AddMountVerb,   kvcfs::tools::AddUnmountVerb, kvcfs::tools::AddLookupVerb,
    kvcfs::tools::AddStatVerb,    kvcfs::tools::AddTopVerb,     kvcfs::tools::AddDropVerb,
    kvcfs::tools::AddReplayVerb,  kvcfs::tools::AddTraceVerb,   kvcfs::tools::AddFsckVerb,
    kvcfs::tools::AddDoctorVerb,  kvcfs::tools::AddServeVerb,   kvcfs::tools::AddClusterVerb,
    kvcfs::tools::AddVersionVerb,
};

// CLI11 prints help without its last newline.
void EndHelpLines(CLI::App& app) {
  app.footer(app.get_footer() + "\n");
  for (CLI::App* verb : app.get_subcommands([](CLI::App*) { return true; })) EndHelpLines(*verb);
}

// For a word where a verb should be, CLI11 would only say that a verb is missing.
std::string Explain(const CLI::App& app, const CLI::ParseError& error, int argc, char** argv) {
  const std::string word = argc > 1 ? argv[1] : "";
  const auto named =
      app.get_subcommands([&word](const CLI::App* verb) { return verb->get_name() == word; });
  if (!word.empty() && word.front() != '-' && named.empty()) {
    return fmt::format("'{}' is not a verb", word);
  }
  return error.what();
}

int Main(int argc, char** argv) {
  // `kvcfs lookup ... | head` ends with a message, not by a signal.
  std::signal(SIGPIPE, SIG_IGN);
  CLI::App app("A filesystem for LLM key-value cache: tiered, prefix-aware, shared.", "kvcfs");
  app.set_version_flag("--version", fmt::format("kvcfs {}", kvcfs::tools::kVersion));
  app.require_subcommand(1);
  app.footer(
      "Exit: 0 done, 1 failed or damaged or partial, 2 misused.\n\n"
      "Example:\n"
      "  kvcfs mount /mnt/kvc --dram 8GiB --daemon && mkdir /mnt/kvc/llama\n"
      "  kvcfs VERB --help   tells more, with an example");
  int exit_code = kvcfs::tools::kExitDone;
  for (const AddVerb add : kVerbs) add(app, exit_code);
  EndHelpLines(app);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);
    std::string verb;
    for (const CLI::App* used = &app; !used->get_subcommands().empty();) {
      used = used->get_subcommands().front();
      verb += " " + used->get_name();
    }
    fmt::print(stderr, "kvcfs{}: {}\n`kvcfs{} --help` says what fits\n", verb,
               Explain(app, error, argc, argv), verb);
    return kvcfs::tools::kExitMisused;
  }
  return exit_code;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return Main(argc, argv);
  } catch (const std::exception& error) {  // of CLI11, fmt and the standard library
    std::fprintf(stderr, "kvcfs: %s\n", error.what());
    return kvcfs::tools::kExitFailed;
  }
}
