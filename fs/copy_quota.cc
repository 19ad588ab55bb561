#include "fs/copy_quota.h"

#include <algorithm>

#include "base/log.h"
#include "fs/cluster_spaces.h"
#include "fs/copy_metrics.h"
#include "fs/namespace_table.h"

namespace kvcfs::fs {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kPause{1000};
constexpr milliseconds kAskLimit{1000};
constexpr milliseconds kReleaseLimit{1000};
constexpr size_t kReleasedMax = 4096;  // copies that are asked for at a time

}  // namespace

void CopyQuota::Start() {
  thread_ = std::thread([this] { Run(); });
}

void CopyQuota::Stop() {
  {
    const MutexLock lock(mutex_);
    stopping_ = true;
  }
  stop_asked_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void CopyQuota::Run() {
  SetThreadName("quota");
  for (;;) {
    {
      MutexLock lock(mutex_);
      if (!stopping_) stop_asked_.wait_for(lock.native(), kPause);
      if (stopping_) return;
    }
    (void)Enforce();
  }
}

void CopyQuota::ReadQuotas() {
  const uint64_t version = cluster_->SpacesVersion();
  if (version == spaces_version_) return;
  quotas_.clear();
  for (const meta::ClusterSpace& space : cluster_->ListSpaces()) {
    Namespace known;
    ApplySettings(space.settings, &known);
    if (known.quota_bytes == 0) continue;
    quotas_.push_back({space.id, known.quota_bytes, std::max<uint32_t>(known.replicas, 1)});
  }
  spaces_version_ = version;
}

uint64_t CopyQuota::Enforce() {
  ReadQuotas();
  std::vector<Quota> asked;
  std::vector<meta::SpaceId> spaces;
  for (const Quota& quota : quotas_) {
    if (copies_->BytesOf(quota.space) == 0) continue;
    asked.push_back(quota);
    spaces.push_back(quota.space);
  }
  if (asked.empty()) return 0;
  const auto used = cluster_->BytesOf(spaces, kAskLimit);
  if (!used.ok()) return 0;  // another time
  uint64_t gone = 0;
  for (size_t i = 0; i < used->size(); ++i) {
    const Quota& quota = asked[i];
    const auto total = static_cast<double>((*used)[i]), most = static_cast<double>(quota.bytes);
    if (total <= most) continue;
    // A block goes with all its copies, whoever gives up the first.
    const auto here = static_cast<double>(copies_->BytesOf(quota.space));
    const double part = std::min(1.0, here / total) / quota.replicas;
    const double luck = std::uniform_real_distribution<double>()(random_);
    gone += copies_->ReleaseFrom(quota.space, static_cast<uint64_t>((total - most) * part), luck);
  }
  return gone;
}

uint64_t CopyHolder::BytesOf(const meta::SpaceId& space) {
  const MutexLock lock(mutex_);
  const auto at = space_bytes_.find(space);
  return at == space_bytes_.end() ? 0 : at->second;
}

std::vector<CopyHolder::CopyKey> CopyHolder::ColdestOf(const meta::SpaceId& space, double bytes,
                                                       double luck,
                                                       const std::set<CopyKey>& asked) {
  std::vector<CopyKey> keys;
  for (const CopyKey& key : ages_) {
    if (key.first.space != space || asked.contains(key)) continue;
    const Copy& copy = copies_.at(key);
    if (copy.version == 0 || copy.releasing || copy.lent || copy.pins > 0) continue;
    const double length = copy.facts.length;
    if (bytes <= luck * length || asked.size() + keys.size() >= kReleasedMax) break;
    bytes -= length;
    keys.push_back(key);
  }
  return keys;
}

uint64_t CopyHolder::ReleaseFrom(const meta::SpaceId& space, uint64_t bytes, double luck) {
  const auto deadline = std::chrono::steady_clock::now() + kReleaseLimit;
  std::set<CopyKey> asked;
  uint64_t gone = 0;
  // What comes first in a chain is as cold as its end, and must stay: so more at a time, the more
  // are refused.
  double more = 1;
  while (gone < bytes && std::chrono::steady_clock::now() < deadline) {
    std::vector<CopyKey> keys;
    uint64_t asked_bytes = 0, left_bytes = 0;
    {
      const MutexLock lock(mutex_);
      if (cluster_ == nullptr) return gone;
      keys = ColdestOf(space, static_cast<double>(bytes - gone) * more, luck, asked);
      for (const CopyKey& key : keys) {
        Copy& copy = copies_.at(key);
        BeginRelease(copy);
        asked_bytes += copy.facts.length;
      }
    }
    if (keys.empty()) return gone;
    asked.insert(keys.begin(), keys.end());
    AskRelease(keys);
    {
      MutexLock lock(mutex_);
      const auto is_answered = [&](const CopyKey& key) KVC_NO_ANALYSIS {
        const auto at = copies_.find(key);
        return at == copies_.end() || !at->second.releasing;
      };
      while (!std::all_of(keys.begin(), keys.end(), is_answered) &&
             changed_.wait_until(lock.native(), deadline) != std::cv_status::timeout) {
      }
      for (const CopyKey& key : keys) {
        const auto at = copies_.find(key);
        if (at != copies_.end()) left_bytes += at->second.facts.length;
      }
    }
    CopyMetrics::Get().over_quota_bytes.Add(static_cast<double>(asked_bytes - left_bytes));
    gone += asked_bytes - left_bytes;
    more = left_bytes == asked_bytes ? 2 * more : 1;
  }
  return gone;
}

}  // namespace kvcfs::fs
