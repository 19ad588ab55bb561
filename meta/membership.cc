#include "meta/membership.h"

#include <algorithm>
#include <charconv>
#include <map>
#include <set>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/log.h"

namespace kvcfs::meta {

namespace {

using Json = nlohmann::json;

std::string IdText(const NodeId& id) {
  return fmt::format("{:016x}{:016x}", id.high, id.low);
}

std::optional<NodeId> ParseId(const std::string& text) {
  NodeId id;
  if (text.size() != 32) return std::nullopt;
  const char* const middle = text.data() + 16;
  const auto high = std::from_chars(text.data(), middle, id.high, 16);
  const auto low = std::from_chars(middle, middle + 16, id.low, 16);
  if (high.ptr != middle || low.ptr != middle + 16 || !id.valid()) return std::nullopt;
  return id;
}

Json NodeJson(const ClusterNode& node) {
  Json roles = Json::array();
  if ((node.roles & kRoleMetadata) != 0) roles.push_back("meta");
  if ((node.roles & kRoleBlocks) != 0) roles.push_back("blocks");
  if ((node.roles & kRoleDraining) != 0) roles.push_back("draining");
  if (IsAway(node)) roles.push_back("away");
  return {{"id", IdText(node.id)},           {"name", node.name},
          {"incarnation", node.incarnation}, {"roles", roles},
          {"address", node.address},         {"capacity_bytes", node.capacity_bytes}};
}

std::optional<ClusterNode> ParseNode(const Json& json) {
  const auto text = [&](const char* name) -> const std::string* {
    const auto it = json.find(name);
    return it == json.end() ? nullptr : it->get_ptr<const std::string*>();
  };
  if (!json.is_object()) return std::nullopt;
  const auto *id = text("id"), *name = text("name"), *address = text("address");
  const auto incarnation = json.find("incarnation"), roles = json.find("roles");
  if (id == nullptr || name == nullptr || address == nullptr || incarnation == json.end() ||
      !incarnation->is_number_unsigned() || roles == json.end() || !roles->is_array()) {
    return std::nullopt;
  }
  const auto parsed_id = ParseId(*id);
  if (!parsed_id) return std::nullopt;
  ClusterNode node;
  node.id = *parsed_id;
  node.name = *name;
  node.address = *address;
  node.incarnation = incarnation->get<uint64_t>();
  if (const auto capacity = json.find("capacity_bytes");
      capacity != json.end() && capacity->is_number_unsigned()) {
    node.capacity_bytes = capacity->get<uint64_t>();
  }
  for (const Json& role : *roles) {
    if (role == "meta") node.roles |= kRoleMetadata;
    if (role == "blocks") node.roles |= kRoleBlocks;
    if (role == "draining") node.roles |= kRoleDraining;
    if (role == "away") node.roles |= kRoleAway;
  }
  return node;
}

}  // namespace

std::string EncodeView(const ClusterView& view) {
  Json nodes = Json::array();
  for (const ClusterNode& node : view.nodes) nodes.push_back(NodeJson(node));
  return Json{{"epoch", view.epoch}, {"nodes", nodes}}.dump();
}

std::optional<ClusterView> DecodeView(const std::string& json) {
  const Json parsed = Json::parse(json, nullptr, /*allow_exceptions=*/false);
  if (!parsed.is_object()) return std::nullopt;
  const auto epoch = parsed.find("epoch"), nodes = parsed.find("nodes");
  if (epoch == parsed.end() || !epoch->is_number_unsigned()) return std::nullopt;
  if (nodes == parsed.end() || !nodes->is_array()) return std::nullopt;
  ClusterView view;
  view.epoch = epoch->get<uint64_t>();
  for (const Json& one : *nodes) {
    auto node = ParseNode(one);
    if (!node || view.Find(node->id) != nullptr) return std::nullopt;
    view.nodes.push_back(std::move(*node));
  }
  return view;
}

// All keys of the cluster at one revision.
struct Membership::Listed {
  int64_t revision = 0;
  std::vector<ClusterNode> nodes;  // live now, in order of their ids, with what operators want
  std::shared_ptr<const ClusterView> view;  // null: there is none yet
  int64_t view_revision = 0;
};

Membership::Membership(MembershipOptions options, std::unique_ptr<EtcdClient> etcd,
                       const Clock* clock)
    : options_(std::move(options)), etcd_(std::move(etcd)), clock_(clock), right_(options_.lease) {}

Membership::~Membership() {
  Stop();
}

Status Membership::Start(std::optional<ClusterNode> self, Calls calls) {
  calls_ = std::move(calls);
  self_ = std::move(self);
  const Millis give_up = clock_->Monotonic() + options_.start_timeout;
  if (self_) {
    Status registered = Register();
    while (registered.code() == Code::kUnavailable && clock_->Monotonic() < give_up) {
      std::this_thread::sleep_for(Millis(200));
      registered = Register();
    }
    // Where etcd does not answer, the renewal goes on trying.
    if (registered.code() == Code::kUnavailable) {
      NoteEtcd(registered);
    } else {
      KVC_TRY(registered);
    }
    renewal_ = std::thread([this] { RunRenewal(); });
  }
  watch_ = std::thread([this] { RunWatch(); });

  MutexLock lock(mutex_);
  while (true) {
    const bool in = view_ != nullptr && (!self_ || view_->Has(self_->id, incarnation_));
    if (in) return {};
    if (clock_->Monotonic() >= give_up) break;
    wake_.wait_for(lock.native(), Millis(100));
  }
  if (!etcd_status_.ok()) return etcd_status_.error();
  return Error{Code::kTimeout,
               self_ && view_ == nullptr && (self_->roles & kRoleMetadata) == 0
                   ? "the cluster has no metadata node yet: start one with --roles meta"
                   : "the cluster did not agree on a view in time"};
}

int64_t Membership::EndThreads() {
  int64_t lease = 0;
  {
    MutexLock lock(mutex_);
    stopping_ = true;
    lease = std::exchange(lease_, 0);
    right_.Lost();
  }
  wake_.notify_all();
  if (renewal_.joinable()) renewal_.join();
  if (watch_.joinable()) watch_.join();
  return lease;
}

void Membership::StopSilently() {
  (void)EndThreads();
}

void Membership::Stop() {
  if (const int64_t lease = EndThreads(); lease != 0) {
    const Status revoked = etcd_->RevokeLease(lease);
    if (!revoked.ok()) {
      KVC_LOG(Warn, "could not leave the cluster at once: the lease will run out", "error={}",
              LogValue(revoked.error().text));
    }
  }
}

// Under a new incarnation: whatever was promised to or by the one before is void.
Status Membership::Register() {
  ClusterNode self = *self_;
  const std::string key = Prefix() + "nodes/" + self.name;
  KVC_TRY_ASSIGN(const EtcdRange before, etcd_->List(key));
  for (const EtcdValue& value : before.values) {
    if (value.key != key) continue;
    const auto other = ParseNode(Json::parse(value.value, nullptr, false));
    if (other && other->id != self.id) {
      return Error{
          Code::kExists,
          fmt::format("a live node at {} is named {} already: give this one another --name",
                      other->address, self.name)};
    }
  }
  const Millis sent = clock_->Monotonic();
  KVC_TRY_ASSIGN(const int64_t lease, etcd_->GrantLease(options_.lease));
  self.incarnation = static_cast<uint64_t>(clock_->WallNanos());
  KVC_TRY(etcd_->Put(key, NodeJson(self).dump(), lease));
  MutexLock lock(mutex_);
  lease_ = lease;
  incarnation_ = self.incarnation;
  renewed_ = sent;
  right_.Lost();
  right_.Renewed(sent);
  return {};
}

void Membership::NoteEtcd(const Status& status) {
  MutexLock lock(mutex_);
  if (status.ok() != etcd_status_.ok()) {
    if (status.ok()) {
      KVC_LOG(Info, "etcd answers again");
    } else {
      KVC_LOG(Warn, "etcd does not answer: the view stays as it is", "error={}",
              LogValue(status.error().text));
    }
  }
  etcd_status_ = status;
}

void Membership::RunRenewal() {
  SetThreadName("member-renew");
  const Millis period = Millis(options_.lease) / 6;
  while (Wait(period)) {
    int64_t lease = 0;
    {
      MutexLock lock(mutex_);
      lease = lease_;
    }
    const Millis sent = clock_->Monotonic();
    const auto renewed = etcd_->RenewLease(lease);
    if (renewed.ok()) {
      NoteEtcd({});
      MutexLock lock(mutex_);
      renewed_ = sent;
      right_.Renewed(sent);
      continue;
    }
    if (renewed.code() == Code::kNotFound) {
      KVC_LOG(Warn, "the lease at etcd has run out: others have taken over; joining anew");
      {
        MutexLock lock(mutex_);
        right_.Lost();
      }
      NoteEtcd(Register());
      continue;
    }
    NoteEtcd(renewed.error());
    AskForPromises();
  }
}

void Membership::AskForPromises() {
  std::shared_ptr<const ClusterView> view;
  {
    MutexLock lock(mutex_);
    if (view_ == nullptr || !right_.WantsPromises(clock_->Monotonic())) return;
    view = view_;
  }
  for (const ClusterNode& node : view->nodes) {
    if ((node.roles & kRoleMetadata) == 0 || node.id == self_->id) continue;
    const Millis asked = clock_->Monotonic();
    const Millis given = calls_.ask_promise
                             ? calls_.ask_promise(node, view->epoch, Millis(options_.lease) / 6)
                             : Millis(0);
    if (given <= Millis(0)) continue;
    MutexLock lock(mutex_);
    right_.Promised(IdText(node.id), view->epoch, asked + given);
  }
}

void Membership::RunWatch() {
  SetThreadName("member-watch");
  const Millis pause = Millis(options_.lease) / 10;
  while (true) {
    const auto listed = ListAll();
    NoteEtcd(listed.ok() ? Status{} : Status{listed.error()});
    if (!listed.ok() || !Handle(*listed)) {
      if (!Wait(pause)) return;
      continue;
    }
    // A change ends the watch, and everything is listed anew: there is little of it.
    const Status watched = etcd_->Watch(Prefix(), listed->revision, pause, [&](bool something) {
      MutexLock lock(mutex_);
      // Who waits to take over looks again, since nothing more may happen.
      return !something && !stopping_ && members_gone_since_ < Millis(0) &&
             clock_->Monotonic() < next_away_end_;
    });
    if (!watched.ok()) NoteEtcd(watched);
    if (!Wait(watched.ok() ? Millis(0) : pause)) return;
  }
}

Result<Membership::Listed> Membership::ListAll() {
  KVC_TRY_ASSIGN(const EtcdRange range, etcd_->List(Prefix()));
  if (calls_.listed) calls_.listed(range);
  Listed listed;
  listed.revision = range.revision;
  std::set<std::string> draining;
  for (const EtcdValue& value : range.values) {
    const std::string_view rest = std::string_view(value.key).substr(Prefix().size());
    if (rest.starts_with("nodes/")) {
      auto node = ParseNode(Json::parse(value.value, nullptr, false));
      if (node) {
        listed.nodes.push_back(std::move(*node));
      } else {
        KVC_LOG(Warn, "a key at etcd is not a node", "key={}", LogValue(value.key));
      }
    } else if (rest.starts_with("draining/")) {
      draining.emplace(rest.substr(9));
    } else if (rest == "view") {
      auto view = DecodeView(value.value);
      if (!view) {
        return Error{
            Code::kCorrupt,
            fmt::format("{} at etcd is not a view: remove the key to begin anew", value.key)};
      }
      listed.view = std::make_shared<const ClusterView>(std::move(*view));
      listed.view_revision = value.revision;
    }
  }
  for (ClusterNode& node : listed.nodes) {
    node.roles &= static_cast<uint8_t>(~kRoleDraining);
    if (draining.contains(node.name)) node.roles |= kRoleDraining;
  }
  std::sort(listed.nodes.begin(), listed.nodes.end(),
            [](const ClusterNode& a, const ClusterNode& b) { return a.id < b.id; });
  return listed;
}

bool Membership::MayPropose(const Listed& listed) {
  if (!self_ || (self_->roles & kRoleMetadata) == 0) return false;
  const bool live = std::any_of(listed.nodes.begin(), listed.nodes.end(),
                                [&](const auto& node) { return node.id == self_->id; });
  if (!live) return false;
  if (listed.view == nullptr || listed.view->HasNow(self_->id)) {
    members_gone_since_ = Millis(-1);
    return true;
  }
  const bool member_lives =
      std::any_of(listed.nodes.begin(), listed.nodes.end(), [&](const ClusterNode& node) {
        const ClusterNode* member = listed.view->Find(node.id);
        return member != nullptr && (member->roles & kRoleMetadata) != 0;
      });
  const bool had_metadata =
      std::any_of(listed.view->nodes.begin(), listed.view->nodes.end(),
                  [](const ClusterNode& node) { return (node.roles & kRoleMetadata) != 0; });
  const Millis now = clock_->Monotonic();
  if (member_lives) {
    members_gone_since_ = Millis(-1);
    return false;  // that one will
  }
  if (members_gone_since_ < Millis(0)) members_gone_since_ = now;
  return !had_metadata || now >= members_gone_since_ + options_.takeover;
}

std::vector<ClusterNode> Membership::WithAway(const Listed& listed) {
  std::vector<ClusterNode> nodes = listed.nodes;
  next_away_end_ = Millis::max();
  if (listed.view == nullptr) return nodes;
  const Millis now = clock_->Monotonic();
  std::map<NodeId, Millis> since;
  for (ClusterNode node : listed.view->nodes) {
    // Its name is its place: who has taken that is there instead.
    const bool lives = std::any_of(
        listed.nodes.begin(), listed.nodes.end(),
        [&](const ClusterNode& each) { return each.id == node.id || each.name == node.name; });
    // Who was drained was meant to go.
    if (lives || !(IsAway(node) || TakesBlocks(node))) continue;
    const auto known = away_since_.find(node.id);
    const Millis left = known == away_since_.end() ? now : known->second;
    since[node.id] = left;
    if (now >= left + options_.away) continue;
    next_away_end_ = std::min(next_away_end_, left + options_.away);
    node.roles = kRoleAway;
    nodes.push_back(std::move(node));
  }
  away_since_ = std::move(since);
  std::sort(nodes.begin(), nodes.end(),
            [](const ClusterNode& a, const ClusterNode& b) { return a.id < b.id; });
  return nodes;
}

bool Membership::Handle(const Listed& listed) {
  std::shared_ptr<const ClusterView> view;
  {
    MutexLock lock(mutex_);
    if (!right_.MayTakeNewView(clock_->Monotonic())) return false;
  }
  std::vector<ClusterNode> nodes = WithAway(listed);
  if (listed.view == nullptr || listed.view->nodes != nodes) {
    if (MayPropose(listed)) {
      ClusterView next;
      next.epoch = listed.view == nullptr ? 1 : listed.view->epoch + 1;
      next.nodes = std::move(nodes);
      const auto won = etcd_->PutIf(Prefix() + "view", listed.view_revision, EncodeView(next));
      if (!won.ok()) NoteEtcd(won.error());
      return won.ok();  // whoever won: the watch shows what came of it
    }
  }
  if (listed.view == nullptr) return true;
  {
    MutexLock lock(mutex_);
    if (view_ != nullptr && listed.view->epoch <= view_->epoch) return true;
    if (!right_.MayTakeNewView(clock_->Monotonic())) return false;
    std::vector<std::string> others;
    for (const ClusterNode& node : listed.view->nodes) {
      const bool self = self_ && node.id == self_->id;
      if ((node.roles & kRoleMetadata) != 0 && !self) others.push_back(IdText(node.id));
    }
    right_.SetView(listed.view->epoch, std::move(others));
    view_ = listed.view;
    view = view_;
  }
  KVC_LOG(Info, "the cluster's view", "epoch={} nodes={}", view->epoch, view->nodes.size());
  if (calls_.changed) calls_.changed(view);
  wake_.notify_all();
  return true;
}

bool Membership::Wait(Millis time) {
  MutexLock lock(mutex_);
  const auto stopping = [this]() KVC_NO_ANALYSIS { return stopping_; };
  wake_.wait_for(lock.native(), time, stopping);
  return !stopping_;
}

std::shared_ptr<const ClusterView> Membership::view() const {
  MutexLock lock(mutex_);
  return view_;
}

uint64_t Membership::incarnation() const {
  MutexLock lock(mutex_);
  return incarnation_;
}

bool Membership::MayServe() const {
  MutexLock lock(mutex_);
  // Not in the view (yet, or any more): nobody asks this node for anything.
  if (view_ == nullptr || !self_ || !view_->Has(self_->id, incarnation_)) {
    return false;
  }
  return right_.MayServe(clock_->Monotonic());
}

Millis Membership::Promise(uint64_t epoch) {
  MutexLock lock(mutex_);
  return right_.Promise(epoch, clock_->Monotonic());
}

MembershipStatus Membership::status() const {
  MutexLock lock(mutex_);
  MembershipStatus status;
  status.etcd_answers = etcd_status_.ok();
  if (!etcd_status_.ok()) status.etcd_error = etcd_status_.error().text;
  if (!self_) return status;
  const Millis now = clock_->Monotonic();
  status.since_renewal = now - renewed_;
  status.may_serve = right_.MayServe(now);
  status.by_promise = status.may_serve && status.since_renewal >= Millis(options_.lease) / 2;
  return status;
}

Status Membership::SetDraining(const std::string& name, bool draining) {
  const std::string key = Prefix() + "draining/" + name;
  return draining ? etcd_->Put(key, "", 0) : etcd_->Remove(key);
}

}  // namespace kvcfs::meta
