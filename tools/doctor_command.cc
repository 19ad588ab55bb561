// kvcfs doctor: what stands in kvcfs' way on this host.
#include <algorithm>
#include <filesystem>
#include <memory>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "tools/doctor.h"
#include "tools/verb.h"

namespace kvcfs::tools {
namespace {

struct Options {
  std::string data = "/var/lib/kvcfs";
  std::string dram = "25%";
  bool json = false;
};

std::string Text(const std::vector<HostFinding>& findings) {
  std::string text;
  for (const HostFinding& one : findings) {
    text += fmt::format("{:<5} {:<14} {}\n", HealthName(one.health), one.check, one.found);
    if (!one.change.empty()) text += fmt::format("{:>18}   {}\n", "change:", one.change);
    if (!one.cost.empty()) text += fmt::format("{:>18}   {}\n", "or:", one.cost);
  }
  const auto count = [&](Health health) {
    return std::count_if(findings.begin(), findings.end(),
                         [=](const HostFinding& one) { return one.health == health; });
  };
  return text + fmt::format("\n{} ok, {} warn, {} fail\n", count(Health::kOk), count(Health::kWarn),
                            count(Health::kFail));
}

nlohmann::ordered_json ToJson(const std::vector<HostFinding>& findings, bool well) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const HostFinding& one : findings) {
    list.push_back({{"check", one.check},
                    {"state", HealthName(one.health)},
                    {"found", one.found},
                    {"change", one.change},
                    {"cost", one.cost}});
  }
  return {{"ok", well}, {"findings", list}};
}

int Doctor(const Options& line) {
  DoctorOptions options;
  std::error_code error;
  options.data = std::filesystem::absolute(line.data, error);
  if (line.data.empty() || error) return Misuse("doctor", "--data wants a directory");
  if (std::filesystem::exists(options.data, error) &&
      !std::filesystem::is_directory(options.data, error)) {
    return Misuse("doctor", fmt::format("--data {}: no directory", line.data));
  }
  const auto dram = ParseSizeOrShare(line.dram);
  if (!dram.ok()) return Misuse("doctor", "--dram: " + dram.error().text);
  options.dram = *dram;
  const auto findings = ExamineHost(options, RealHostCalls());
  const bool well = std::none_of(findings.begin(), findings.end(), [](const HostFinding& one) {
    return one.health == Health::kFail;
  });
  const int printed =
      Print("doctor", line.json ? ToJson(findings, well).dump(2) + "\n" : Text(findings));
  return printed != kExitDone || well ? printed : kExitFailed;
}

}  // namespace

void AddDoctorVerb(CLI::App& app, int& exit_code) {
  CLI::App* verb = app.add_subcommand("doctor", "What stands in kvcfs' way on this host.");
  auto options = std::make_shared<Options>();
  verb->add_option("--data", options->data, "The data directory (default /var/lib/kvcfs)");
  verb->add_option("--dram", options->dram, "The DRAM tier that is planned (default 25%)");
  verb->add_flag("--json", options->json, "One JSON object");
  verb->footer(
      "Looks at kernel, FUSE, io_uring, memory, limits, RDMA, network and disk. Says for each "
      "what\n"
      "it found, what to change, and what it costs to leave it. Changes nothing.\n"
      "Exit 1 if something is missing without which kvcfs does not work.\n\n"
      "Example:\n"
      "  kvcfs doctor --data /nvme/kvcfs --dram 64GiB");
  verb->callback([options, &exit_code] { exit_code = Doctor(*options); });
}

}  // namespace kvcfs::tools
