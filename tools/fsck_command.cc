// `kvcfs fsck`: reads everything below a data directory, verifies it, names what is damaged.
#include <filesystem>
#include <map>
#include <optional>
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
#include "fs/block_store.h"
#include "fs/name_store.h"
#include "iouring/segment_format.h"
#include "iouring/segment_store.h"
#include "meta/block_records.h"
#include "meta/copy_records.h"
#include "meta/meta_store.h"
#include "tools/data_directory.h"
#include "tools/mount_options.h"
#include "tools/node.h"
#include "tools/stats.h"
#include "tools/verb.h"

namespace kvcfs::tools {
namespace {

constexpr char kVerb[] = "fsck";

// Segment, offset in pages, sequence.
using PlaceKey = std::tuple<uint32_t, uint32_t, uint64_t>;

PlaceKey KeyOf(const iouring::SegmentPlace& place) {
  return {place.segment, place.offset_4k, place.sequence};
}

struct Finding {
  std::string what;   // "segment", "block", "copy", "file", "namespace", "meta"
  std::string place;  // file and offset, or a name: of an ordinary file its path in the mount
  std::string text;
  std::string key = {};                // of a block or copy, if known
  std::optional<PlaceKey> entry = {};  // of a segment: which entry is hit, if known
};

struct Report {
  uint64_t segments = 0, entries = 0, data_bytes = 0, records = 0, copies = 0, files = 0,
           namespaces = 0;
  std::vector<Finding> findings;
  uint64_t repaired = 0;
};

// What the records say.
struct Records {
  std::map<meta::NamespaceId, std::string> names;
  std::map<fs::Ino, std::string> roots;  // of the ordinary trees: the namespace's name
  std::set<PlaceKey> wanted;             // entries that a block, copy or file refers to
  uint64_t applied_sequence = 0;         // what lies behind it may be news to them
  bool whole = false;
};

void CheckSegments(const NodePaths& paths, Report& report, std::set<PlaceKey>& good) {
  if (!std::filesystem::exists(paths.segments)) return;
  const auto scan = iouring::ScanSegments(
      paths.segments, [&](const iouring::EntryMeta&, const iouring::SegmentPlace& place) {
        good.insert(KeyOf(place));
      });
  if (!scan.ok()) {
    report.findings.push_back({"segment", paths.segments, scan.error().text});
    return;
  }
  report.segments = scan->segments;
  report.entries = scan->entries;
  report.data_bytes = scan->data_bytes;
  for (const iouring::SegmentProblem& problem : scan->problems) {
    Finding finding{"segment", fmt::format("{}@{}", problem.file, problem.offset), problem.text};
    if (problem.has_meta) {
      if (!problem.meta.key.IsZero()) finding.key = problem.meta.key.ToHex();
      const std::string name = std::filesystem::path(problem.file).filename().string();
      finding.entry = {iouring::SegmentNumberOf(name).value_or(0),
                       static_cast<uint32_t>(problem.offset / iouring::kPageBytes),
                       problem.meta.sequence};
    }
    report.findings.push_back(std::move(finding));
  }
}

void ReadNamespaces(meta::MetaStore& store, Records& records, Report& report) {
  for (auto cursor = store.Seek("N"); cursor->Valid() && cursor->key().starts_with('N');
       cursor->Next()) {
    const auto id = meta::DecodeNamespaceRecordKey(cursor->key());
    const auto record = meta::DecodeNamespaceRecord(cursor->value());
    if (id && record) {
      records.names[*id] = record->name;
      records.roots[record->files_root] = record->name;
      ++report.namespaces;
    } else {
      report.findings.push_back({"namespace", "meta", "the record of a namespace is damaged"});
    }
  }
}

// Every block record must name a good entry, and its parent must be there.
void CheckBlocks(meta::MetaStore& store, const std::set<PlaceKey>& good, Records& records,
                 Report& report, meta::MetaBatch& batch) {
  std::set<std::pair<meta::NamespaceId, BlockKey>> sound;
  std::vector<std::tuple<meta::NamespaceId, BlockKey, BlockKey>> links;
  auto cursor = store.Seek("b");
  for (; cursor->Valid() && cursor->key().starts_with('b'); cursor->Next()) {
    ++report.records;
    const auto name = meta::DecodeBlockRecordKey(cursor->key());
    const auto record = meta::DecodeBlockRecord(cursor->value());
    if (record) records.wanted.insert(KeyOf(record->place));
    std::string wrong;
    if (!name || !record) {
      wrong = "the record of a block is damaged; the block is a miss";
    } else if (!records.names.contains(name->first)) {
      wrong = "a block of a namespace that is not there";
    } else if (!good.contains(KeyOf(record->place))) {
      wrong = "its bytes are damaged or gone; it and what extends it are misses";
    }
    if (wrong.empty()) {
      sound.insert(*name);
      links.emplace_back(name->first, name->second, record->parent);
      continue;
    }
    report.findings.push_back(
        {"block", name && records.names.contains(name->first) ? records.names[name->first] : "?",
         wrong, name ? name->second.ToHex() : ""});
    batch.Delete(cursor->key());
  }
  if (!cursor->status().ok()) {
    report.findings.push_back({"meta", "block records", cursor->status().error().text});
    records.whole = false;
  }
  for (const auto& [ns, key, parent] : links) {
    if (parent.IsZero() || sound.contains({ns, parent})) continue;
    report.findings.push_back(
        {"block", records.names[ns], "its parent is not there; it is a miss", key.ToHex()});
    batch.Delete(meta::BlockRecordKey(ns, key));
  }
}

// Of a node of a cluster: every copy that is on NVMe must find its bytes there. One that is in a
// slot only is checked when the node starts and it is first read.
void CheckCopies(meta::MetaStore& store, const std::set<PlaceKey>& good, Records& records,
                 Report& report, meta::MetaBatch& batch) {
  auto cursor = store.Seek(meta::kCopyRecordPrefix);
  for (; cursor->Valid() && cursor->key().starts_with(meta::kCopyRecordPrefix); cursor->Next()) {
    ++report.copies;
    const auto record = meta::DecodeCopyRecord(cursor->key(), cursor->value());
    if (!record) {
      report.findings.push_back({"copy", "meta", "the record of a copy is damaged"});
      batch.Delete(cursor->key());
      continue;
    }
    if (!record->place.valid()) continue;
    records.wanted.insert(KeyOf(record->place));
    if (good.contains(KeyOf(record->place))) continue;
    const meta::BlockId& id = record->facts.id;
    report.findings.push_back(
        {"copy", fmt::format("{:016x}{:016x}", id.space.high, id.space.low),
         "its bytes are damaged or gone; another node's copy is read, or it is a miss",
         id.key.ToHex()});
    batch.Delete(cursor->key());
  }
  if (!cursor->status().ok()) {
    report.findings.push_back({"meta", "copy records", cursor->status().error().text});
    records.whole = false;
  }
}

// "NAMESPACE/files/DIR/NAME", as it is found below a mount point.
std::string PathOf(fs::NameStore& names, const Records& records, fs::Ino directory,
                   const std::string& name) {
  std::string path = name;
  for (int depth = 0; depth < 1000; ++depth) {
    if (const auto root = records.roots.find(directory); root != records.roots.end()) {
      return fmt::format("{}/files/{}", root->second, path);
    }
    const auto above = names.GetInode(directory);
    if (!above || !*above || (*above)->parent == 0) break;
    path = fmt::format("{}/{}", (*above)->name, path);
    directory = (*above)->parent;
  }
  return "?/files/.../" + path;
}

// Every ordinary file whose bytes are in the segments only must find them there, and one on the
// data disk its own file.
void CheckFiles(meta::MetaStore& store, const NodePaths& paths, const std::set<PlaceKey>& good,
                Records& records, Report& report, meta::MetaBatch& batch) {
  fs::NameStore names(store);
  auto cursor = store.Seek("i");
  for (; cursor->Valid() && cursor->key().starts_with('i'); cursor->Next()) {
    const auto inode = fs::DecodeInode(cursor->value());
    const fs::Ino ino = fs::NumberIn(cursor->key(), 1);
    if (!inode) {
      report.findings.push_back({"file", fmt::format("inode {:x}", ino),
                                 "the record of an inode is damaged; its names lead nowhere"});
      batch.Delete(cursor->key());
      continue;
    }
    if (!inode->IsRegular()) continue;
    ++report.files;
    if (inode->stable.place.valid()) records.wanted.insert(KeyOf(inode->stable.place));
    bool sound = true;
    if (inode->home == fs::Home::kSegment && inode->stable.length > 0) {
      sound = good.contains(KeyOf(inode->stable.place));
    } else if (inode->home == fs::Home::kDisk) {
      sound =
          std::filesystem::exists(fmt::format("{}/{:02x}/{:016x}", paths.files, ino & 0xff, ino));
    }
    if (sound) continue;
    for (const fs::NameStore::LinkName& link : names.LinksOf(ino, *inode)) {
      report.findings.push_back({"file", PathOf(names, records, link.directory, link.name),
                                 "its bytes are damaged or gone; it is a miss"});
      const auto entry = names.Find(link.directory, link.name);
      if (entry && *entry) names.RemoveEntry(batch, link.directory, link.name, (*entry)->cookie);
    }
    names.DeleteInode(batch, ino, *inode);
  }
  if (!cursor->status().ok()) {
    report.findings.push_back({"meta", "inode records", cursor->status().error().text});
    records.whole = false;
  }
}

Status CheckRecords(meta::MetaStore& store, const NodePaths& paths, bool repair,
                    const std::set<PlaceKey>& good, Report& report) {
  Records records;
  records.whole = true;
  records.applied_sequence = fs::BlockStore::AppliedSequence(store);
  meta::MetaBatch batch;
  ReadNamespaces(store, records, report);
  CheckBlocks(store, good, records, report, batch);
  CheckCopies(store, good, records, report, batch);
  CheckFiles(store, paths, good, records, report, batch);
  // A damaged entry that nobody refers to costs nothing; it goes when its segment is used again.
  if (records.whole) {
    std::erase_if(report.findings, [&records](const Finding& finding) {
      return finding.entry && !records.wanted.contains(*finding.entry) &&
             std::get<2>(*finding.entry) <= records.applied_sequence;
    });
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
                    "records, {} copies, {} files; {} problems\n",
                    data, report.segments, report.entries, FormatSizeShort(report.data_bytes),
                    report.namespaces, report.records, report.copies, report.files,
                    report.findings.size());
}

Json JsonOf(const Report& report) {
  Json json{{"segments", report.segments},     {"entries", report.entries},
            {"data_bytes", report.data_bytes}, {"namespaces", report.namespaces},
            {"records", report.records},       {"copies", report.copies},
            {"files", report.files},           {"repaired", report.repaired}};
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
                                   holder.ok() ? holder->use : "it"));
  }
  Report report;
  std::set<PlaceKey> good;
  CheckSegments(paths, report, good);
  if (std::filesystem::exists(paths.meta)) {
    meta::MetaOpenReport opened;
    auto store =
        meta::MetaStore::Open({.directory = paths.meta, .read_only = !options.repair}, &opened);
    if (!store.ok()) {
      report.findings.push_back({"meta", paths.meta, store.error().text});
    } else {
      if (opened.repaired || opened.recreated) {
        report.findings.push_back({"meta", paths.meta, opened.text});
      }
      const Status checked = CheckRecords(**store, paths, options.repair, good, report);
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
