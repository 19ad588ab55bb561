// kvcfs fsck: what the line says, for RunFsck.
#include <filesystem>
#include <memory>

#include <CLI/CLI.hpp>

#include "tools/mount_options.h"
#include "tools/verb.h"

namespace kvcfs::tools {

void AddFsckVerb(CLI::App& app, int& exit_code) {
  CLI::App* verb = app.add_subcommand("fsck", "Check a data directory that is not mounted.");
  auto options = std::make_shared<FsckOptions>();
  verb->add_option("--data", options->data, "The data directory")->required();
  verb->add_flag("--repair", options->repair,
                 "Drop what is damaged, so that the next check finds nothing");
  verb->add_flag("--json", options->json, "One JSON object");
  verb->footer(
      "Reads every segment, checks every checksum, and compares with the metadata. Names each\n"
      "damaged block and file. Exit 0: nothing is damaged (or --repair mended all); 1: damage.\n\n"
      "Example:\n"
      "  kvcfs fsck --data /var/lib/kvcfs --repair");
  verb->callback([options, &exit_code] {
    options->data = std::filesystem::absolute(options->data).lexically_normal().string();
    exit_code = RunFsck(*options);
  });
}

}  // namespace kvcfs::tools
