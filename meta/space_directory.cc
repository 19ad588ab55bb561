#include "meta/space_directory.h"

#include <algorithm>
#include <charconv>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/log.h"

namespace kvcfs::meta {
namespace {

using Json = nlohmann::json;

bool IsName(std::string_view name) {
  return !name.empty() && name.size() <= 255 && name != "." && name != ".." &&
         name.find('/') == std::string_view::npos && name.find('\0') == std::string_view::npos;
}

std::optional<SpaceId> ParseId(std::string_view text) {
  SpaceId id;
  if (text.size() != 32) return std::nullopt;
  const char* const middle = text.data() + 16;
  const auto high = std::from_chars(text.data(), middle, id.high, 16);
  const auto low = std::from_chars(middle, middle + 16, id.low, 16);
  if (high.ptr != middle || low.ptr != middle + 16) return std::nullopt;
  return id;
}

std::optional<ClusterSpace> Parse(std::string_view name, const EtcdValue& value) {
  const Json json = Json::parse(value.value, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object() || !IsName(name)) return std::nullopt;
  const auto uuid = json.find("uuid"), settings = json.find("settings");
  if (uuid == json.end() || !uuid->is_string()) return std::nullopt;
  const auto id = ParseId(uuid->get_ref<const std::string&>());
  if (!id) return std::nullopt;
  ClusterSpace space{std::string(name), *id, "{}", value.revision};
  if (settings != json.end() && settings->is_object()) space.settings = settings->dump();
  return space;
}

}  // namespace

void SpaceDirectory::Take(const EtcdRange& listed) {
  std::map<std::string, ClusterSpace, std::less<>> spaces;
  for (const EtcdValue& value : listed.values) {
    if (!value.key.starts_with(prefix_)) continue;
    auto space = Parse(std::string_view(value.key).substr(prefix_.size()), value);
    if (space) {
      spaces.emplace(space->name, std::move(*space));
    } else {
      KVC_LOG(Warn, "a key at etcd is not a namespace", "key={}", LogValue(value.key));
    }
  }
  const MutexLock lock(mutex_);
  if (listed.revision < revision_) return;  // an answer that was overtaken
  revision_ = listed.revision;
  if (spaces == spaces_) return;
  spaces_ = std::move(spaces);
  ++version_;
}

Status SpaceDirectory::Refresh() {
  KVC_TRY_ASSIGN(const EtcdRange range, etcd_->List(prefix_));
  Take(range);
  return {};
}

std::optional<ClusterSpace> SpaceDirectory::Find(std::string_view name) const {
  const MutexLock lock(mutex_);
  const auto at = spaces_.find(name);
  return at == spaces_.end() ? std::nullopt : std::optional(at->second);
}

std::optional<ClusterSpace> SpaceDirectory::Find(const SpaceId& id) const {
  const MutexLock lock(mutex_);
  const auto at = std::find_if(spaces_.begin(), spaces_.end(), [&](const auto& entry) {
    return entry.second.id == id || entry.second.id == FilesSpaceOf(id);
  });
  return at == spaces_.end() ? std::nullopt : std::optional(at->second);
}

Result<std::optional<ClusterSpace>> SpaceDirectory::Get(std::string_view name) {
  if (auto known = Find(name)) return known;
  if (!IsName(name) || !Refresh().ok()) return std::optional<ClusterSpace>();
  return Find(name);
}

Result<std::optional<ClusterSpace>> SpaceDirectory::Get(const SpaceId& id) {
  if (auto known = Find(id)) return known;
  if (!Refresh().ok()) return std::optional<ClusterSpace>();
  return Find(id);
}

std::vector<ClusterSpace> SpaceDirectory::List() const {
  const MutexLock lock(mutex_);
  std::vector<ClusterSpace> all;
  for (const auto& [name, space] : spaces_) all.push_back(space);
  return all;
}

uint64_t SpaceDirectory::Version() const {
  const MutexLock lock(mutex_);
  return version_;
}

std::optional<std::string> SpaceDirectory::NameOf(const SpaceId& id) const {
  const auto space = Find(id);
  return space ? std::optional(space->name) : std::nullopt;
}

Result<ClusterSpace> SpaceDirectory::Put(const ClusterSpace& space, int64_t revision,
                                         Code otherwise) {
  Json settings = Json::parse(space.settings.empty() ? "{}" : space.settings, nullptr, false);
  if (!IsName(space.name) || !settings.is_object()) {
    return Error{Code::kInvalid,
                 fmt::format("namespace '{}': no name for one, or settings that are no JSON object",
                             space.name)};
  }
  const Json value{{"uuid", fmt::format("{:016x}{:016x}", space.id.high, space.id.low)},
                   {"settings", std::move(settings)}};
  KVC_TRY_ASSIGN(const bool won,
                 etcd_->PutIf(prefix_ + space.name, revision,
                              value.dump(-1, ' ', false, Json::error_handler_t::replace)));
  KVC_TRY(Refresh());
  const auto now = Find(space.name);
  if (!won) {
    const Code code = now || otherwise == Code::kExists ? otherwise : Code::kNotFound;
    return Error{code,
                 fmt::format("namespace {}: {}", space.name,
                             code == Code::kExists ? "it exists" : "it was changed meanwhile")};
  }
  // Removed again, or changed, since: for this caller it was there.
  return now && now->id == space.id ? *now : space;
}

Result<ClusterSpace> SpaceDirectory::Create(const ClusterSpace& space) {
  return Put(space, 0, Code::kExists);
}

Result<ClusterSpace> SpaceDirectory::Set(const ClusterSpace& space) {
  if (space.revision <= 0) return Error{Code::kStale, "settings of no revision"};
  return Put(space, space.revision, Code::kStale);
}

Status SpaceDirectory::Remove(const ClusterSpace& space) {
  KVC_TRY_ASSIGN(const bool removed, etcd_->RemoveIf(prefix_ + space.name, space.revision));
  KVC_TRY(Refresh());
  if (removed || !Find(space.name)) return {};
  return Error{Code::kStale, fmt::format("namespace {}: it was changed meanwhile", space.name)};
}

}  // namespace kvcfs::meta
