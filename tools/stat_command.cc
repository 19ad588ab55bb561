// kvcfs stat: what a mount, or one namespace of it, says of itself.
#include <array>
#include <memory>
#include <set>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <sys/xattr.h>

#include "base/size.h"
#include "tools/client.h"
#include "tools/stats.h"
#include "tools/verb.h"

namespace kvcfs::tools {
namespace {

constexpr const char* kNamespaceAttributes[] = {"block_bytes", "quota_bytes", "durability",
                                                "replicas"};

struct Options {
  std::string where;
  bool json = false;
};

std::string Attribute(const std::string& path, const std::string& name) {
  std::array<char, 256> value{};
  const ssize_t length =
      ::getxattr(path.c_str(), ("user.kvc." + name).c_str(), value.data(), value.size());
  return length < 0 ? "" : std::string(value.data(), static_cast<size_t>(length));
}

// "NAME N, NAME N" of the numbers that are not 0; lengths for people.
std::string NonZero(const Json* object, const std::set<std::string>& without = {}) {
  std::string text;
  if (object == nullptr || !object->is_object()) return text;
  for (const auto& [name, value] : object->items()) {
    if (!value.is_number() || value.get<double>() == 0 || without.count(name) > 0) continue;
    if (!text.empty()) text += ", ";
    if (name.ends_with("_bytes") && value.is_number_unsigned()) {
      text += fmt::format("{} {}", name.substr(0, name.size() - 6),
                          FormatSizeShort(value.get<uint64_t>()));
    } else {
      text += fmt::format("{} {}", name, value.dump());
    }
  }
  return text;
}

std::string TierLine(const Json& stats, const char* tier) {
  const std::string path = fmt::format("tiers/{}/", tier);
  const auto capacity = NumberAt(stats, path + "capacity_bytes");
  if (!capacity) return {};
  const double used = NumberAt(stats, path + "used_bytes").value_or(0);
  const double share = *capacity > 0 ? used / *capacity : 0;
  std::string line = fmt::format("{:<12} {} {:>3.0f}%  {} of {}", tier, FormatBar(share, 20),
                                 100 * share, FormatSizeShort(static_cast<uint64_t>(used)),
                                 FormatSizeShort(static_cast<uint64_t>(*capacity)));
  const std::string details =
      NonZero(FindAt(stats, fmt::format("tiers/{}", tier)), {"capacity_bytes", "used_bytes"});
  if (!details.empty()) line += ", " + details;
  return line + "\n";
}

std::string ClusterText(const Json& stats) {
  const bool answers = FindAt(stats, "cluster/etcd/answers") != nullptr &&
                       *FindAt(stats, "cluster/etcd/answers") == Json(true);
  std::string text = fmt::format(
      "{:<12} epoch {}, etcd {}\n", "cluster", CountAt(stats, "cluster/epoch"),
      answers ? "answers"
              : "away: " + TextAt(stats, "cluster/etcd/error").value_or("not asked yet"));
  const Json* nodes = FindAt(stats, "cluster/nodes");
  for (const Json& node : nodes != nullptr && nodes->is_array() ? *nodes : Json::array()) {
    std::string roles;
    for (const char* role : {"metadata", "blocks", "draining", "away"}) {
      const Json* is_so = FindAt(node, role);
      if (is_so == nullptr || *is_so != Json(true)) continue;
      roles += (roles.empty() ? "" : ", ") + std::string(role);
    }
    text += fmt::format("{:<12} {} at {} ({})\n", "", TextAt(node, "name").value_or("?"),
                        TextAt(node, "address").value_or("?"), roles);
  }
  return text;
}

std::string MountText(const std::string& mountpoint, const Json& stats) {
  std::string text = fmt::format(
      "kvcfs {} at {}, pid {}, up {}\n", TextAt(stats, "version").value_or("?"), mountpoint,
      CountAt(stats, "pid"), FormatSeconds(NumberAt(stats, "uptime_s").value_or(0)));
  if (const auto data = TextAt(stats, "data")) text += fmt::format("{:<12} {}\n", "data", *data);
  text += fmt::format("{:<12} {}\n", "passthrough", FormatMode(stats));
  text += TierLine(stats, "dram");
  text += TierLine(stats, "nvme");
  if (const auto dirty = NumberAt(stats, "dirty_bytes")) {
    text += fmt::format("{:<12} {} not yet on NVMe\n", "dirty",
                        FormatSizeShort(static_cast<uint64_t>(*dirty)));
  }
  if (FindAt(stats, "cluster") != nullptr) text += ClusterText(stats);
  for (const char* name : {"blocks", "files", "counters", "evictions", "errors"}) {
    const std::string list = NonZero(FindAt(stats, name));
    if (!list.empty()) text += fmt::format("{:<12} {}\n", name, list);
  }
  const Json* namespaces = FindAt(stats, "namespaces");
  if (namespaces != nullptr && namespaces->is_array() && !namespaces->empty()) {
    text += fmt::format("\n{:<24} {:>12} {:>12} {:>12}\n", "NAMESPACE", "BLOCKS", "BLOCK SIZE",
                        "DURABILITY");
    for (const Json& one : *namespaces) {
      text += fmt::format("{:<24} {:>12} {:>12} {:>12}\n", TextAt(one, "name").value_or("?"),
                          CountAt(one, "blocks"), FormatSize(CountAt(one, "block_bytes")),
                          TextAt(one, "durability").value_or("?"));
    }
  }
  return text;
}

int StatNamespace(const Options& options, const MountedPath& found, const Json& stats) {
  const std::string path = found.mountpoint + "/" + found.inside;
  Json answer{{"name", found.inside}};
  const Json* namespaces = FindAt(stats, "namespaces");
  if (namespaces != nullptr && namespaces->is_array()) {
    for (const Json& one : *namespaces) {
      if (one.is_object() && TextAt(one, "name") == found.inside) answer.update(one);
    }
  }
  for (const char* name : kNamespaceAttributes) {
    const std::string value = Attribute(path, name);
    if (value.empty()) continue;
    const bool is_number = value.find_first_not_of("0123456789") == std::string::npos;
    answer[name] = is_number && value.size() < 19 ? Json(std::stoull(value)) : Json(value);
  }
  if (options.json) return Print("stat", answer.dump(2) + "\n");
  std::string text;
  for (const auto& [name, value] : answer.items()) {
    std::string shown = value.is_string() ? value.get<std::string>() : value.dump();
    if (name.ends_with("_bytes") && value.is_number_unsigned()) {
      shown += fmt::format(" ({})", FormatSizeShort(value.get<uint64_t>()));
    }
    text += fmt::format("{:<16} {}\n", name, shown);
  }
  return Print("stat", text);
}

int Stat(const Options& options) {
  const Result<MountedPath> found = FindMountOrNamespace(options.where);
  if (!found.ok()) return FailWith("stat", found.error());
  const Result<Json> stats = ReadStats(found->mountpoint);
  if (!stats.ok()) return FailWith("stat", stats.error());
  if (!found->inside.empty()) return StatNamespace(options, *found, *stats);
  if (options.json) return Print("stat", stats->dump(2) + "\n");
  return Print("stat", MountText(found->mountpoint, *stats));
}

}  // namespace

void AddStatVerb(CLI::App& app, int& exit_code) {
  CLI::App* verb = app.add_subcommand("stat", "Tiers, mode and namespaces of a mount.");
  auto options = std::make_shared<Options>();
  verb->add_option("WHERE", options->where, "MNT, or MNT/NS for one namespace")->required();
  verb->add_flag("--json", options->json, "One JSON object");
  verb->footer(
      "Says what is used of each tier, whether reads pass the daemon by (passthrough) and if not\n"
      "why, what is not yet on NVMe, and what went wrong. `kvcfs top` shows it live.\n\n"
      "Example:\n"
      "  kvcfs stat /mnt/kvc --json | jq .tiers.dram");
  verb->callback([options, &exit_code] { exit_code = Stat(*options); });
}

}  // namespace kvcfs::tools
