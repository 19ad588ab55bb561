#include "meta/serving_right.h"

#include <algorithm>
#include <utility>

namespace kvcfs::meta {

void ServingRight::Renewed(Millis sent) {
  held_ = true;
  renewed_ = std::max(renewed_, sent);
}

void ServingRight::Lost() {
  held_ = false;
  for (auto& [node, until] : promises_) until = Millis(0);
}

void ServingRight::SetView(uint64_t epoch, std::vector<std::string> other_metadata_nodes) {
  if (epoch == epoch_) return;
  epoch_ = epoch;
  promises_.clear();
  for (std::string& node : other_metadata_nodes) promises_.emplace(std::move(node), Millis(0));
}

bool ServingRight::WantsPromises(Millis now) const {
  return held_ && epoch_ != 0 && now >= renewed_ + half() / 2;
}

void ServingRight::Promised(const std::string& node, uint64_t epoch, Millis until) {
  const auto it = promises_.find(node);
  if (epoch != epoch_ || it == promises_.end()) return;
  it->second = std::max(it->second, until);
}

bool ServingRight::MayServe(Millis now) const {
  if (!held_) return false;
  if (now < renewed_ + half()) return true;
  // Alone in the view: only it could propose another, and etcd would have to be there for that.
  return epoch_ != 0 && std::all_of(promises_.begin(), promises_.end(),
                                    [&](const auto& promise) { return now < promise.second; });
}

Millis ServingRight::Promise(uint64_t epoch, Millis now) {
  // Whoever renewed lately can see etcd, and might see there that the other has gone.
  if (epoch != epoch_ || !held_ || now < renewed_ + half() / 2) return Millis(0);
  promised_until_ = std::max(promised_until_, now + half());
  return half();
}

}  // namespace kvcfs::meta
