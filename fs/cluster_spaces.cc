#include "fs/cluster_spaces.h"

#include <algorithm>

#include <nlohmann/json.hpp>

#include "base/log.h"
#include "fs/about_to_block.h"

namespace kvcfs::fs {
namespace {

constexpr int kChangeTries = 5;  // against others who change the same namespace

int ErrnoOfChange(Code code) {
  switch (code) {
    case Code::kExists:
      return EEXIST;
    case Code::kInvalid:
      return EINVAL;
    case Code::kNotFound:
      return ENOENT;
    case Code::kStale:
      return EBUSY;
    default:
      return EIO;
  }
}

}  // namespace

std::string SettingsOf(const Namespace& space) {
  return nlohmann::json{{"block_bytes", space.block_bytes},
                        {"quota_bytes", space.quota_bytes},
                        {"durability", space.sync ? "sync" : "async"},
                        {"replicas", space.replicas},
                        {"uid", space.uid},
                        {"gid", space.gid},
                        {"mode", space.mode}}
      .dump();
}

void ApplySettings(std::string_view settings, Namespace* space) {
  const auto json = nlohmann::json::parse(settings, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return;
  const auto number = [&](const char* name, uint64_t least, uint64_t most, uint64_t otherwise) {
    const auto at = json.find(name);
    if (at == json.end() || !at->is_number_unsigned()) return otherwise;
    const auto value = at->get<uint64_t>();
    return value >= least && value <= most ? value : otherwise;
  };
  space->block_bytes = number("block_bytes", 1, kBlockBytesMax, space->block_bytes);
  space->quota_bytes = number("quota_bytes", 0, UINT64_MAX, space->quota_bytes);
  space->replicas = static_cast<uint32_t>(number("replicas", 1, 16, space->replicas));
  space->uid = static_cast<uid_t>(number("uid", 0, UINT32_MAX, space->uid));
  space->gid = static_cast<gid_t>(number("gid", 0, UINT32_MAX, space->gid));
  space->mode = static_cast<mode_t>(number("mode", 0, 07777, space->mode));
  const auto durability = json.find("durability");
  if (durability != json.end() && durability->is_string()) space->sync = *durability == "sync";
}

bool WantsDurable(meta::Cluster& cluster, const meta::SpaceId& id) {
  const auto space = cluster.GetSpace(id);
  if (!space.ok() || !space->has_value()) return false;
  Namespace known;
  ApplySettings((*space)->settings, &known);
  return known.sync;
}

bool ClusterSpaces::HasFiles(const Namespace& space) {
  return parts_.files != nullptr && space.files_root != 0 &&
         !parts_.files->RootIsEmpty(space.files_root);
}

void ClusterSpaces::LetGo(const Namespace& space) {
  parts_.blocks->ForgetNamespace(space.id);
  if (!HasFiles(space)) {
    if (parts_.files != nullptr && space.files_root != 0) {
      (void)parts_.files->RemoveRoot(space.files_root);
    }
    (void)parts_.namespaces->Remove(space.id);
    return;
  }
  if (space.hidden) return;
  KVC_LOG(Warn, "the cluster has a namespace no longer; its ordinary files here are kept, hidden",
          "name={} id={}", LogValue(space.name), space.id);
  Namespace hidden = space;
  hidden.hidden = true;
  (void)parts_.namespaces->Update(hidden);
}

void ClusterSpaces::TakeUp(const meta::ClusterSpace& space) {
  const std::optional<Namespace> known = parts_.namespaces->FindUuid(UuidOf(space.id));
  Namespace wanted = known.value_or(Namespace{});
  wanted.name = space.name;
  wanted.uuid = UuidOf(space.id);
  wanted.hidden = false;
  ApplySettings(space.settings, &wanted);
  if (!known) {
    wanted.mtime_nanos = wanted.ctime_nanos = parts_.clock->WallNanos();
    const FsResult<Namespace> adopted = parts_.namespaces->Adopt(wanted);
    if (!adopted) return;  // a name that is none here
    wanted = *adopted;
  }
  if (wanted.files_root == 0 && parts_.files != nullptr) {
    const auto root = parts_.files->MakeRoot(wanted.uid, wanted.gid, wanted.mode, wanted.uuid);
    if (root) wanted.files_root = *root;
  }
  const std::optional<Namespace> now = parts_.namespaces->Get(wanted.id);
  if (now && !(*now == wanted)) (void)parts_.namespaces->Update(wanted);
}

void ClusterSpaces::Follow() {
  if (parts_.cluster->SpacesVersion() == followed_) return;
  AboutToBlock();
  MutexLock lock(mutex_);
  const uint64_t version = parts_.cluster->SpacesVersion();
  if (version == followed_) return;
  // Nothing was heard yet: that is not the same as no namespaces.
  if (followed_ == kNever && parts_.cluster->Describe().view == nullptr) return;
  const std::vector<meta::ClusterSpace> spaces = parts_.cluster->ListSpaces();
  // First what is gone: its name may be another one's by now.
  for (const Namespace& space : parts_.namespaces->ListAll()) {
    const bool there = std::any_of(spaces.begin(), spaces.end(), [&](const auto& each) {
      return each.id == SpaceIdOf(space.uuid);
    });
    if (!there) LetGo(space);
  }
  for (const meta::ClusterSpace& space : spaces) TakeUp(space);
  followed_ = version;
}

std::optional<Namespace> ClusterSpaces::Find(const std::string& name) {
  Follow();
  if (auto known = parts_.namespaces->Find(name)) return known;
  if (!CheckNamespaceName(name)) return std::nullopt;
  AboutToBlock();
  const auto asked = parts_.cluster->GetSpace(name);
  if (!asked.ok() || !asked->has_value()) return std::nullopt;
  Follow();
  return parts_.namespaces->Find(name);
}

FsResult<Namespace> ClusterSpaces::Create(const Caller& caller, const std::string& name,
                                          mode_t mode) {
  if (const FsStatus fits = CheckNamespaceName(name); !fits) return Fail(fits.error().value);
  Namespace space;
  space.uuid = iouring::RandomUuid();
  space.uid = caller.uid;
  space.gid = caller.gid;
  space.mode = mode;
  AboutToBlock();
  const auto made =
      parts_.cluster->CreateSpace({name, SpaceIdOf(space.uuid), SettingsOf(space), 0});
  Follow();
  if (!made.ok()) {
    KVC_LOG(Info, "a namespace was not made", "name={} error={}", LogValue(name),
            LogValue(made.error().text));
    return Fail(ErrnoOfChange(made.code()));
  }
  const auto here = parts_.namespaces->FindUuid(UuidOf(made->id));
  return here ? FsResult<Namespace>(*here) : Fail(EIO);
}

FsStatus ClusterSpaces::Update(const Namespace& changed) {
  const std::optional<Namespace> before = parts_.namespaces->Get(changed.id);
  if (!before) return Fail(ENOENT);
  AboutToBlock();
  if (SettingsOf(*before) != SettingsOf(changed)) {
    Code code = Code::kStale;
    for (int tries = 0; code == Code::kStale && tries < kChangeTries; ++tries) {
      const auto there = parts_.cluster->GetSpace(SpaceIdOf(changed.uuid));
      if (!there.ok()) return Fail(EIO);
      if (!there->has_value()) return Fail(ENOENT);
      meta::ClusterSpace wanted = **there;
      wanted.settings = SettingsOf(changed);
      code = parts_.cluster->SetSpace(wanted).code();
    }
    if (code != Code::kOk) return Fail(ErrnoOfChange(code));
  }
  const FsStatus here = parts_.namespaces->Update(changed);
  Follow();
  return here;
}

FsStatus ClusterSpaces::Remove(const Namespace& space) {
  AboutToBlock();
  Code code = Code::kStale;
  for (int tries = 0; code == Code::kStale && tries < kChangeTries; ++tries) {
    const auto there = parts_.cluster->GetSpace(SpaceIdOf(space.uuid));
    if (!there.ok()) return Fail(EIO);
    if (!there->has_value()) break;  // gone already
    code = parts_.cluster->RemoveSpace(**there).code();
  }
  if (code != Code::kOk && code != Code::kStale) return Fail(ErrnoOfChange(code));
  Follow();
  return {};
}

}  // namespace kvcfs::fs
