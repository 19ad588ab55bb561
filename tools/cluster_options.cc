#include "tools/cluster_options.h"

#include <algorithm>
#include <array>
#include <utility>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <unistd.h>

#include "base/log.h"
#include "rdma/tcp.h"
#include "rdma/tls.h"
#include "rdma/verbs.h"

namespace kvcfs::tools {

void AddClusterFlags(SettingFlags& flags, CLI::App* verb, ClusterUse use) {
  static constexpr SettingFlag kAll[] = {
      {"--cluster", "cluster.etcd", "The cluster's etcd, as etcd://HOST:2379,HOST:2379"},
      {"--tls-cert", "cluster.tls_cert", "Certificate, PEM; tools/dev-certs.sh makes some"},
      {"--tls-key", "cluster.tls_key", "The certificate's key, PEM"},
      {"--tls-ca", "cluster.tls_ca", "The authority of all certificates, PEM"},
  };
  // Of no meaning to who only asks.
  static constexpr SettingFlag kOfNodes[] = {
      {"--name", "cluster.name", "This node's name (default: the certificate's, or the host's)"},
      {"--listen", "cluster.listen",
       "Where peers reach this node (default 127.0.0.1:7470, of a mount 127.0.0.1 and any port); "
       "with TLS, any address"},
      {"--advertise", "cluster.advertise", "The address by which peers know it, if another"},
      {"--transport", "cluster.transport",
       "verbs, tcp or auto (default: verbs where there is RDMA)"},
  };
  static constexpr SettingFlag kRolesOfServer[] = {
      {"--roles", "cluster.roles", "meta, blocks or meta,blocks (default both)"},
  };
  static constexpr SettingFlag kRolesOfMount[] = {
      {"--roles", "cluster.roles",
       "meta, blocks or meta,blocks (default blocks: its tiers hold blocks for the cluster)"},
  };
  flags.Add(verb, kAll);
  if (use != ClusterUse::kAsk) flags.Add(verb, kOfNodes);
  if (use == ClusterUse::kServe) flags.Add(verb, kRolesOfServer);
  if (use == ClusterUse::kMount) flags.Add(verb, kRolesOfMount);
}

namespace {

Error Wrong(std::string_view key, std::string_view text) {
  return Error{Code::kInvalid, fmt::format("cluster.{}: {}", key, text)};
}

Result<uint8_t> ParseRoles(std::string_view text) {
  uint8_t roles = 0;
  for (std::string_view rest = text; !rest.empty();) {
    const std::string_view word = rest.substr(0, rest.find(','));
    rest.remove_prefix(std::min(rest.size(), word.size() + 1));
    if (word == "meta") {
      roles |= meta::kRoleMetadata;
    } else if (word == "blocks") {
      roles |= meta::kRoleBlocks;
    } else {
      return Wrong("roles", fmt::format("'{}' is not meta, blocks or meta,blocks", text));
    }
  }
  if (roles == 0) return Wrong("roles", "a node wants at least one of meta, blocks");
  return roles;
}

Result<uint8_t> RolesFor(const ClusterSettings& settings, ClusterUse use) {
  const bool by_default = settings.roles.empty();
  switch (use) {
    case ClusterUse::kServe:
      return ParseRoles(by_default ? "meta,blocks" : settings.roles);
    case ClusterUse::kMount:
      if (!settings.client_only) return ParseRoles(by_default ? "blocks" : settings.roles);
      if (!by_default) return Wrong("client_only", "who is only a client has no cluster.roles");
      break;
    case ClusterUse::kAsk:
      break;
  }
  return uint8_t{0};
}

Result<TransportChoice> ParseTransport(std::string_view text) {
  if (text == "auto") return TransportChoice::kAuto;
  if (text == "tcp") return TransportChoice::kTcp;
  if (text == "verbs") return TransportChoice::kVerbs;
  return Wrong("transport", fmt::format("'{}' is not verbs, tcp or auto", text));
}

Result<meta::OneSided> ParseOneSided(std::string_view text) {
  if (text == "never") return meta::OneSided::kNever;
  if (text == "auto") return meta::OneSided::kAuto;
  if (text == "always") return meta::OneSided::kAlways;
  return Wrong("one_sided", fmt::format("'{}' is not never, auto or always", text));
}

Result<std::unique_ptr<rdma::Transport>> MakeTransport(TransportChoice choice,
                                                       const rdma::TransportOptions& options) {
  if (choice == TransportChoice::kTcp) return rdma::MakeTcpTransport(options);
  auto made = rdma::MakeVerbsTransport(options);
  if (made.ok() || choice == TransportChoice::kVerbs) return made;
  if (made.code() != Code::kUnsupported && made.code() != Code::kNoSpace) return made;
  // Without RDMA hardware that is how it should be; with some, somebody should know.
  const LogLevel level = made.code() == Code::kUnsupported ? LogLevel::kDebug : LogLevel::kWarn;
  if (LogEnabled(level)) {
    LogLine(level, __FILE__, __LINE__, "no verbs: TCP is used",
            fmt::format("reason={}", LogValue(made.error().text)));
  }
  return rdma::MakeTcpTransport(options);
}

// That a node with these roles may listen there, and that others can find it there.
Status CheckListening(const ClusterOptions& options) {
  if (options.roles == 0) return {};
  if (!options.listen.IsLoopback() && !options.tls.given()) {
    return Wrong("listen", fmt::format("{} is not a loopback address, which wants --tls-cert, "
                                       "--tls-key and --tls-ca (tools/dev-certs.sh makes some)",
                                       options.listen.ToString()));
  }
  const std::string& host = options.listen.host;
  if ((host == "0.0.0.0" || host == "::") && options.advertise.empty()) {
    return Wrong("listen", fmt::format("{} is every address; say by which one peers know this "
                                       "node: --advertise HOST:PORT",
                                       options.listen.ToString()));
  }
  return {};
}

std::string HostName() {
  std::array<char, 256> name{};
  if (::gethostname(name.data(), name.size() - 1) != 0 || name[0] == 0) return "kvcfs";
  return name.data();
}

// A node's name is part of keys at etcd.
bool IsNodeName(std::string_view name) {
  return !name.empty() && name.size() <= 255 && std::all_of(name.begin(), name.end(), [](char c) {
    return c > ' ' && c < 127 && std::string_view("/?#,&=%\"\\").find(c) == std::string_view::npos;
  });
}

}  // namespace

Result<ClusterOptions> ParseClusterOptions(const ClusterSettings& settings, ClusterUse use) {
  ClusterOptions options;
  if (settings.etcd.empty()) {
    return Wrong("etcd", "say which cluster: --cluster etcd://HOST:2379");
  }
  auto etcd = meta::EtcdOptions::Parse(settings.etcd);
  if (!etcd.ok()) return Wrong("etcd", etcd.error().text);
  options.etcd = std::move(*etcd);
  if (!IsNodeName(settings.id)) return Wrong("id", fmt::format("'{}' is no name", settings.id));
  options.id = settings.id;
  KVC_TRY_ASSIGN(options.transport, ParseTransport(settings.transport));
  KVC_TRY_ASSIGN(options.one_sided, ParseOneSided(settings.one_sided));
  KVC_TRY_ASSIGN(options.roles, RolesFor(settings, use));
  options.tls = {settings.tls_cert, settings.tls_key, settings.tls_ca};
  const bool any_tls =
      !settings.tls_cert.empty() || !settings.tls_key.empty() || !settings.tls_ca.empty();
  options.name = settings.name;
  if (any_tls) {
    const auto context = rdma::TlsContext::Make(options.tls);
    if (!context.ok()) return Error{Code::kInvalid, context.error().text};
    const auto identity = (*context)->Identity();
    if (!identity.ok()) {
      return Wrong("tls_cert", fmt::format("{}: {}", settings.tls_cert, identity.error().text));
    }
    if (options.name.empty()) options.name = identity->name;
    if (options.name != identity->name) {
      return Wrong(
          "name", fmt::format("'{}', but the certificate says '{}'", options.name, identity->name));
    }
    if (options.roles != 0 && !identity->is_node) {
      return Wrong("tls_cert",
                   fmt::format("{} is a client's; {}", settings.tls_cert,
                               use == ClusterUse::kServe
                                   ? "a server wants a node's"
                                   : "a mount that holds blocks for the cluster wants a node's, "
                                     "another --client-only"));
    }
    if (settings.etcd_tls) {
      options.etcd.certificate = settings.tls_cert;
      options.etcd.key = settings.tls_key;
      options.etcd.authority = settings.tls_ca;
    }
  }
  if (options.name.empty()) options.name = HostName();
  if (!IsNodeName(options.name)) {
    return Wrong("name", fmt::format("'{}' is no name for a node", options.name));
  }
  const char* const any = use == ClusterUse::kServe ? "127.0.0.1:7470" : "127.0.0.1:0";
  const auto listen = rdma::Address::Parse(settings.listen.empty() ? any : settings.listen);
  if (!listen.ok()) return Wrong("listen", listen.error().text);
  options.listen = *listen;
  if (!settings.advertise.empty()) {
    const auto advertise = rdma::Address::Parse(settings.advertise);
    if (!advertise.ok()) return Wrong("advertise", advertise.error().text);
  }
  options.advertise = settings.advertise;
  KVC_TRY(CheckListening(options));
  return options;
}

meta::NodeId NodeIdOf(const iouring::Uuid& uuid) {
  meta::NodeId id;
  for (size_t i = 0; i < 8; ++i) {
    id.high = id.high << 8 | uuid[i];
    id.low = id.low << 8 | uuid[8 + i];
  }
  return id;
}

meta::NodeId RandomNodeId() {
  return NodeIdOf(iouring::RandomUuid());
}

Result<std::unique_ptr<meta::ClusterRuntime>> MakeRuntime(const ClusterOptions& options,
                                                          const meta::NodeId& self,
                                                          const Clock* clock) {
  for (const std::string& endpoint : options.etcd.endpoints) {
    const auto address = rdma::Address::Parse(endpoint);
    if (options.etcd.authority.empty() && address.ok() && !address->IsLoopback()) {
      KVC_LOG(Warn, "etcd is spoken to without TLS", "endpoint={}", LogValue(endpoint));
    }
  }
  rdma::TransportOptions transport;
  transport.self = self;
  transport.name = options.name;
  transport.cluster = options.id;
  transport.is_node = options.roles != 0;
  transport.tls = options.tls;
  KVC_TRY_ASSIGN(auto made, MakeTransport(options.transport, transport));
  meta::ClusterRuntimeOptions runtime;
  runtime.cluster = options.id;
  runtime.self = self;
  runtime.name = options.name;
  runtime.roles = options.roles;
  runtime.listen = options.listen;
  runtime.advertise = options.advertise;
  runtime.etcd = options.etcd;
  runtime.one_sided = options.one_sided;
  // Where all nodes of the view are gone for good, another may begin only after a while.
  if (options.roles != 0) runtime.start_timeout = runtime.takeover + std::chrono::seconds(15);
  if (options.start_timeout.count() > 0) runtime.start_timeout = options.start_timeout;
  return std::make_unique<meta::ClusterRuntime>(runtime, std::move(made), clock);
}

}  // namespace kvcfs::tools
