// `kvcfs fsck`: reads everything below a data directory, verifies it, names what is damaged.
#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/size.h"
#include "iouring/segment_store.h"
#include "meta/block_records.h"
#include "meta/meta_store.h"
#include "tools/mount_options.h"
#include "tools/node.h"
#include "tools/stats.h"
#include "tools/supervisor.h"
#include "tools/verb.h"

namespace kvcfs::tools {
namespace {

constexpr char kVerb[] = "fsck";

struct Finding {
  std::string what;   // "segment", "block", "namespace", "meta"
  std::string place;  // file and offset, or a name
  std::string text;
  std::string key;  // of a block, if known
};

using PlaceKey = std::tuple<uint32_t, uint32_t, uint64_t>;

struct Report {
  uint64_t segments = 0, entries = 0, data_bytes = 0, records = 0, namespaces = 0;
  std::vector<Finding> findings;
  uint64_t repaired = 0;
};

void CheckSegments(const NodePaths& paths, Report& report, std::set<PlaceKey>& good) {
  if (!std::filesystem::exists(paths.segments)) return;
  const auto scan = iouring::ScanSegments(
      paths.segments, [&](const iouring::EntryMeta&, const iouring::SegmentPlace& place) {
        good.insert({place.segment, place.offset_4k, place.sequence});
      });
  if (!scan.ok()) {
    report.findings.push_back({"segment", paths.segments, scan.error().text, ""});
    return;
  }
  report.segments = scan->segments;
  report.entries = scan->entries;
  report.data_bytes = scan->data_bytes;
  for (const iouring::SegmentProblem& problem : scan->problems) {
    Finding finding{"segment", fmt::format("{}@{}", problem.file, problem.offset), problem.text,
                    ""};
    if (problem.has_meta && !problem.meta.key.IsZero()) finding.key = problem.meta.key.ToHex();
    report.findings.push_back(finding);
  }
}

// Every block record must name a good entry, and its parent must be there.
Status CheckRecords(meta::MetaStore& store, bool repair, const std::set<PlaceKey>& good,
                    Report& report) {
  std::map<meta::NamespaceId, std::string> names;
  for (auto cursor = store.Seek("N"); cursor->Valid() && cursor->key().starts_with('N');
       cursor->Next()) {
    const auto id = meta::DecodeNamespaceRecordKey(cursor->key());
    const auto record = meta::DecodeNamespaceRecord(cursor->value());
    if (id && record) {
      names[*id] = record->name;
      ++report.namespaces;
    } else {
      report.findings.push_back({"namespace", "meta", "the record of a namespace is damaged", ""});
    }
  }
  meta::MetaBatch batch;
  std::set<std::pair<meta::NamespaceId, BlockKey>> sound;
  std::vector<std::tuple<meta::NamespaceId, BlockKey, BlockKey>> links;
  auto cursor = store.Seek("b");
  for (; cursor->Valid() && cursor->key().starts_with('b'); cursor->Next()) {
    ++report.records;
    const auto name = meta::DecodeBlockRecordKey(cursor->key());
    const auto record = meta::DecodeBlockRecord(cursor->value());
    std::string wrong;
    if (!name || !record) {
      wrong = "the record of a block is damaged; the block is a miss";
    } else if (!names.contains(name->first)) {
      wrong = "a block of a namespace that is not there";
    } else if (!good.contains(
                   {record->place.segment, record->place.offset_4k, record->place.sequence})) {
      wrong = "its bytes are damaged or gone; it and what extends it are misses";
    }
    if (wrong.empty()) {
      sound.insert(*name);
      links.emplace_back(name->first, name->second, record->parent);
      continue;
    }
    report.findings.push_back({"block",
                               name && names.contains(name->first) ? names[name->first] : "?",
                               wrong, name ? name->second.ToHex() : ""});
    batch.Delete(cursor->key());
  }
  if (!cursor->status().ok()) {
    report.findings.push_back({"meta", "block records", cursor->status().error().text, ""});
  }
  for (const auto& [ns, key, parent] : links) {
    if (parent.IsZero() || sound.contains({ns, parent})) continue;
    report.findings.push_back(
        {"block", names[ns], "its parent is not there; it is a miss", key.ToHex()});
    batch.Delete(meta::BlockRecordKey(ns, key));
  }
  if (!repair || batch.empty()) return {};
  KVC_TRY(store.Write(batch, true));
  report.repaired = report.findings.size();
  return {};
}

std::string TextOf(const Report& report, const std::string& data) {
  std::string text;
  for (const Finding& finding : report.findings) {
    text += fmt::format("damaged {} {}{}{}: {}\n", finding.what, finding.place,
                        finding.key.empty() ? "" : " ", finding.key, finding.text);
  }
  return text + fmt::format(
                    "{}: {} segments, {} entries, {} verified; {} namespaces, {} block "
                    "records; {} problems\n",
                    data, report.segments, report.entries, FormatSizeShort(report.data_bytes),
                    report.namespaces, report.records, report.findings.size());
}

Json JsonOf(const Report& report) {
  Json json{{"segments", report.segments},     {"entries", report.entries},
            {"data_bytes", report.data_bytes}, {"namespaces", report.namespaces},
            {"records", report.records},       {"repaired", report.repaired}};
  json["problems"] = Json::array();
  for (const Finding& finding : report.findings) {
    json["problems"].push_back({{"what", finding.what},
                                {"place", finding.place},
                                {"key", finding.key},
                                {"text", finding.text}});
  }
  return json;
}

}  // namespace

int RunFsck(const FsckOptions& options) {
  const NodePaths paths(options.data);
  if (!std::filesystem::is_directory(paths.data)) {
    return Fail(kVerb, fmt::format("{} is not a directory", paths.data));
  }
  if (!std::filesystem::exists(paths.segments) && !std::filesystem::exists(paths.meta)) {
    return Fail(kVerb, fmt::format("{} is not a kvcfs data directory", paths.data));
  }
  const Fd lock(::open(paths.lock.c_str(), O_RDWR | O_CLOEXEC));
  if (lock.valid() && ::flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
    const auto holder = ReadLock(paths.lock);
    return Fail(kVerb, fmt::format("{} is in use by kvcfs process {}; unmount {} first", paths.data,
                                   holder.ok() ? holder->supervisor_pid : 0,
                                   holder.ok() ? holder->mountpoint : "it"));
  }
  Report report;
  std::set<PlaceKey> good;
  CheckSegments(paths, report, good);
  if (std::filesystem::exists(paths.meta)) {
    meta::MetaOpenReport opened;
    auto store =
        meta::MetaStore::Open({.directory = paths.meta, .read_only = !options.repair}, &opened);
    if (!store.ok()) {
      report.findings.push_back({"meta", paths.meta, store.error().text, ""});
    } else {
      if (opened.repaired || opened.recreated) {
        report.findings.push_back({"meta", paths.meta, opened.text, ""});
      }
      const Status checked = CheckRecords(**store, options.repair, good, report);
      if (!checked.ok()) return FailWith(kVerb, checked.error());
    }
  }
  const int printed =
      Print(kVerb, options.json ? JsonOf(report).dump(2) + "\n" : TextOf(report, paths.data));
  if (printed != kExitDone) return printed;
  const bool clean = report.findings.empty() || (options.repair && report.repaired > 0);
  return clean ? kExitDone : kExitFailed;
}

}  // namespace kvcfs::tools
