#include "tools/cluster_report.h"

#include <algorithm>
#include <condition_variable>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string_view>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "base/mutex.h"
#include "base/size.h"
#include "meta/cluster_peers.h"
#include "meta/membership.h"
#include "meta/placement.h"
#include "rdma/tcp.h"
#include "tools/stats.h"

namespace kvcfs::tools {
namespace {

using meta::ClusterNode;
using rdma::Reply;

// What etcd says, below /kvcfs/<id>/.
struct AtEtcd {
  std::optional<meta::ClusterView> view;
  std::set<std::string> live, draining;  // names
  uint64_t namespaces = 0;
};

Result<AtEtcd> AskEtcd(const ClusterOptions& options) {
  const std::string prefix = "/kvcfs/" + options.id + "/";
  KVC_TRY_ASSIGN(const meta::EtcdRange range, meta::EtcdClient::Make(options.etcd)->List(prefix));
  AtEtcd found;
  for (const meta::EtcdValue& value : range.values) {
    const std::string_view name = std::string_view(value.key).substr(prefix.size());
    const size_t slash = name.find('/');
    const std::string_view kind = name.substr(0, slash);
    const std::string rest(slash == std::string_view::npos ? "" : name.substr(slash + 1));
    if (name == "view") found.view = meta::DecodeView(value.value);
    if (kind == "nodes") found.live.insert(rest);
    if (kind == "draining") found.draining.insert(rest);
    if (kind == "spaces") ++found.namespaces;
  }
  return found;
}

// Each node's answer, in their order.
std::vector<Reply> AskNodes(rdma::Transport& transport, const std::vector<ClusterNode>& nodes,
                            Millis timeout) {
  struct Answers {
    Mutex mutex;
    std::condition_variable all;
    std::vector<Reply> replies KVC_GUARDED_BY(mutex);
    size_t open KVC_GUARDED_BY(mutex) = 0;
  };
  const auto answers = std::make_shared<Answers>();
  {
    const MutexLock lock(answers->mutex);
    answers->replies.resize(nodes.size(), Reply{.code = Code::kInvalid});
    answers->open = nodes.size();
  }
  std::vector<std::shared_ptr<rdma::Peer>> peers;
  for (size_t i = 0; i < nodes.size(); ++i) {
    const auto address = rdma::Address::Parse(nodes[i].address);
    const auto done = [answers, i](Reply reply) {
      const MutexLock lock(answers->mutex);
      answers->replies[i] = std::move(reply);
      if (--answers->open == 0) answers->all.notify_all();
    };
    if (!address.ok()) {
      done(Reply{.code = Code::kInvalid});
      continue;
    }
    peers.push_back(transport.Connect(*address));
    peers.back()->Call(meta::kMethodStatus, {}, {.timeout = timeout}, done);
  }
  MutexLock lock(answers->mutex);
  while (answers->open > 0) answers->all.wait(lock.native());
  return std::move(answers->replies);
}

Json NodeJson(const ClusterNode& node, const AtEtcd& etcd, const Reply& reply) {
  Json json{{"name", node.name},
            {"address", node.address},
            {"metadata", (node.roles & meta::kRoleMetadata) != 0},
            {"blocks", (node.roles & meta::kRoleBlocks) != 0},
            {"draining", etcd.draining.contains(node.name)},
            {"live", etcd.live.contains(node.name)},
            {"answers", false}};
  const auto* text = reinterpret_cast<const char*>(reply.head.data());
  const std::string_view said(text, reply.head.size());
  if (reply.code != Code::kOk) {
    json["error"] = said.empty() ? std::string(CodeName(reply.code)) : std::string(said);
    return json;
  }
  const Json status = Json::parse(said, nullptr, false);
  if (!status.is_object() || TextAt(status, "name") != node.name) {
    json["error"] = "another answers there";
    return json;
  }
  json["answers"] = true;
  json.update(status);
  // It has heard that it shall be, too.
  json["drained"] = (node.roles & meta::kRoleDraining) != 0 && CountAt(json, "copies") == 0;
  return json;
}

std::string Share(uint64_t part, uint64_t whole) {
  if (whole == 0) return "-";
  return fmt::format(
      "{}%", static_cast<uint64_t>(100.0 * static_cast<double>(part) / static_cast<double>(whole)));
}

std::string StateOf(const Json& node) {
  const auto is = [&](const char* name) { return node.value(name, false); };
  if (!is("answers")) return is("live") ? "silent" : "away";
  if (!is("live")) return "leaving";
  return is("drained") ? "drained" : is("draining") ? "draining" : "up";
}

}  // namespace

Result<Json> LookAtCluster(const ClusterOptions& options, Millis timeout) {
  KVC_TRY_ASSIGN(const AtEtcd etcd, AskEtcd(options));
  if (!etcd.view) {
    return Error{Code::kNotFound,
                 fmt::format("no cluster '{}' at that etcd: no node with the role meta has joined "
                             "yet (`kvcfs serve`)",
                             options.id)};
  }
  rdma::TransportOptions transport_options;
  transport_options.self = RandomNodeId();
  transport_options.name = options.name;
  transport_options.cluster = options.id;
  transport_options.is_node = false;
  transport_options.tls = options.tls;
  KVC_TRY_ASSIGN(const auto transport, rdma::MakeTcpTransport(transport_options));
  std::vector<ClusterNode> nodes;
  Json away = Json::array();
  for (const ClusterNode& node : etcd.view->nodes) {
    if (IsAway(node)) {
      away.push_back(node.name);
    } else {
      nodes.push_back(node);
    }
  }
  std::sort(nodes.begin(), nodes.end(),
            [](const ClusterNode& a, const ClusterNode& b) { return a.name < b.name; });
  const std::vector<Reply> replies = AskNodes(*transport, nodes, timeout);
  Json json{{"cluster", options.id},
            {"epoch", etcd.view->epoch},
            {"namespaces", etcd.namespaces},
            {"shards", meta::kShardCount}};
  Json list = Json::array();
  uint64_t owned = 0, loading = 0, capacity = 0, used = 0, copies = 0, waiting = 0, silent = 0;
  uint64_t hidden = 0, moving = 0, to_move = 0;
  for (size_t i = 0; i < nodes.size(); ++i) {
    Json node = NodeJson(nodes[i], etcd, replies[i]);
    if (node["answers"] == true) {
      owned += CountAt(node, "shards");
      loading += CountAt(node, "shards_loading");
      capacity += CountAt(node, "capacity_bytes");
      used += CountAt(node, "used_bytes");
      copies += CountAt(node, "copies");
      waiting += CountAt(node, "repairs_waiting");
      hidden += CountAt(node, "hidden");
      moving += CountAt(node, "moving");
      to_move += CountAt(node, "move_bytes_left");
    } else {
      ++silent;
    }
    list.push_back(std::move(node));
  }
  // Who is alive, but not in the view (yet).
  Json joining = Json::array();
  for (const std::string& name : etcd.live) {
    bool in_view = false;
    for (const ClusterNode& node : nodes) in_view = in_view || node.name == name;
    if (!in_view) joining.push_back(name);
  }
  json["shards_owned"] = owned;
  json["shards_loading"] = loading;
  json["capacity_bytes"] = capacity;
  json["used_bytes"] = used;
  json["copies"] = copies;
  json["repairs_waiting"] = waiting;
  json["away"] = std::move(away);
  json["hidden"] = hidden;
  json["moving"] = moving;
  json["move_bytes_left"] = to_move;
  json["silent_nodes"] = silent;
  json["joining"] = std::move(joining);
  json["whole"] = silent == 0 && owned == meta::kShardCount && loading == 0;
  json["nodes"] = std::move(list);
  return json;
}

std::string ClusterText(const Json& cluster) {
  const uint64_t shards = CountAt(cluster, "shards"), owned = CountAt(cluster, "shards_owned");
  const uint64_t loading = CountAt(cluster, "shards_loading");
  std::string text = fmt::format(
      "cluster {}, epoch {}, {} nodes, {} namespaces\n", TextAt(cluster, "cluster").value_or("?"),
      CountAt(cluster, "epoch"), cluster.at("nodes").size(), CountAt(cluster, "namespaces"));
  text += fmt::format("{:<10} {} of {} answer{}\n", "shards", owned - std::min(owned, loading),
                      shards, loading == 0 ? "" : fmt::format(", {} are loading", loading));
  const uint64_t used = CountAt(cluster, "used_bytes");
  const uint64_t capacity = CountAt(cluster, "capacity_bytes");
  text += fmt::format("{:<10} {} of {} ({}), {} copies\n", "blocks", FormatSizeShort(used),
                      FormatSizeShort(capacity), Share(used, capacity), CountAt(cluster, "copies"));
  text += fmt::format("{:<10} {} blocks wait for another copy\n", "repair",
                      CountAt(cluster, "repairs_waiting"));
  if (CountAt(cluster, "moving") + CountAt(cluster, "move_bytes_left") != 0) {
    text += fmt::format("{:<10} {} blocks move to nodes that have less, about {} to go\n",
                        "balance", CountAt(cluster, "moving"),
                        FormatSizeShort(CountAt(cluster, "move_bytes_left")));
  }
  for (const Json& name : cluster.at("away")) {
    text += fmt::format("{:<10} {} left not long ago, and may come back with its blocks\n", "away",
                        name.get<std::string>());
  }
  if (CountAt(cluster, "hidden") != 0) {
    text += fmt::format("{:<10} {} blocks wait for who is away\n", "hidden",
                        CountAt(cluster, "hidden"));
  }
  for (const Json& name : cluster.at("joining")) {
    text += fmt::format("{:<10} {}\n", "joining", name.get<std::string>());
  }
  text += fmt::format("\n{:<16} {:<9} {:<11} {:<22} {:>6} {:>8} {:>8} {:>12} {:>12} {:>5} {:>8}\n",
                      "NODE", "STATE", "ROLES", "ADDRESS", "SHARDS", "RECORDS", "COPIES", "USED",
                      "CAPACITY", "", "REPAIRS");
  for (const Json& node : cluster.at("nodes")) {
    const bool meta = node.value("metadata", false), blocks = node.value("blocks", false);
    const std::string roles = meta && blocks ? "meta,blocks" : meta ? "meta" : "blocks";
    text += fmt::format("{:<16} {:<9} {:<11} {:<22}", TextAt(node, "name").value_or("?"),
                        StateOf(node), roles, TextAt(node, "address").value_or("?"));
    if (node.value("answers", false)) {
      text += fmt::format(
          " {:>6} {:>8} {:>8} {:>12} {:>12} {:>5} {:>8}", CountAt(node, "shards"),
          CountAt(node, "records"), CountAt(node, "copies"),
          FormatSizeShort(CountAt(node, "used_bytes")),
          FormatSizeShort(CountAt(node, "capacity_bytes")),
          Share(CountAt(node, "used_bytes"), CountAt(node, "capacity_bytes")),
          fmt::format("{}/{}", CountAt(node, "repairs_waiting"), CountAt(node, "repaired_total")));
    } else {
      text += "  " + TextAt(node, "error").value_or("");
    }
    text += "\n";
  }
  return text;
}

}  // namespace kvcfs::tools
