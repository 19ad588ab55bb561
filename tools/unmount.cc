// kvcfs unmount: what the line says, for RunUnmount.
#include <filesystem>
#include <memory>

#include <CLI/CLI.hpp>

#include "tools/mount_options.h"
#include "tools/verb.h"

namespace kvcfs::tools {

void AddUnmountVerb(CLI::App& app, int& exit_code) {
  CLI::App* verb = app.add_subcommand("unmount", "Write back what is dirty and end a mount.");
  auto options = std::make_shared<UnmountOptions>();
  verb->add_option("MNT", options->mountpoint, "The mount")->required();
  verb->add_flag("--keep-dram", options->keep_dram,
                 "Leave the DRAM tier in memory for the next mount, as an upgrade wants it");
  verb->footer(
      "Returns when the mount is gone and everything is on NVMe. Fails while a program has a file\n"
      "of it open or is in one of its directories.\n\n"
      "Example: restart with a warm cache\n"
      "  kvcfs unmount /mnt/kvc --keep-dram && kvcfs mount /mnt/kvc --daemon");
  verb->callback([options, &exit_code] {
    options->mountpoint =
        std::filesystem::absolute(options->mountpoint).lexically_normal().string();
    while (options->mountpoint.size() > 1 && options->mountpoint.back() == '/') {
      options->mountpoint.pop_back();
    }
    exit_code = RunUnmount(*options);
  });
}

}  // namespace kvcfs::tools
