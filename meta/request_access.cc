#include "meta/request_access.h"

#include <algorithm>
#include <type_traits>
#include <vector>

namespace kvcfs::meta {
namespace {

template <typename T, typename... Of>
constexpr bool kIsOneOf = (std::is_same_v<T, Of> || ...);

template <typename T>
constexpr bool kForClients =
    kIsOneOf<T, MatchRequest, ResolveRequest, LocateRequest, ChainRequest, LeavesRequest,
             ReserveRequest, CommitRequest, DropRequest, MissingRequest, PutRequest, DiscardRequest,
             ReadRequest, UsedRequest>;

// Of what clients may ask.
template <typename T>
std::vector<SpaceId> SpacesOf(const T& body) {
  if constexpr (requires { body.space; }) {
    return {body.space};
  } else if constexpr (requires { body.parent.space; }) {
    return {body.parent.space};
  } else if constexpr (requires { body.facts; }) {
    return {body.facts.id.space};
  } else if constexpr (requires { body.ids; }) {
    std::vector<SpaceId> spaces;
    for (const BlockId& id : body.ids) {
      if (spaces.empty() || spaces.back() != id.space) spaces.push_back(id.space);
    }
    return spaces;
  } else {
    return {body.id.space};
  }
}

// A node speaks for itself only.
bool SpeaksForItself(const rdma::PeerIdentity& peer, const RequestBody& body) {
  if (const auto* release = std::get_if<ReleaseRequest>(&body)) return release->holder == peer.node;
  if (const auto* grant = std::get_if<GrantRequest>(&body)) return grant->node == peer.node;
  return true;
}

}  // namespace

Code CheckAccess(const rdma::PeerIdentity& peer, const Request& request, const NameOfSpace& name) {
  return std::visit(
      [&](const auto& body) {
        using Body = std::decay_t<decltype(body)>;
        if constexpr (!kForClients<Body>) {
          // What nodes say is about all namespaces.
          if (!peer.is_node || !peer.all_namespaces) return Code::kDenied;
          return SpeaksForItself(peer, request.body) ? Code::kOk : Code::kDenied;
        } else {
          if (peer.all_namespaces) return Code::kOk;
          for (const SpaceId& space : SpacesOf(body)) {
            const auto known = name(space);
            if (!known) return Code::kUnavailable;
            if (!peer.MayUse(*known)) return Code::kDenied;
          }
          return Code::kOk;
        }
      },
      request.body);
}

Code CheckNameAccess(const rdma::PeerIdentity& peer, const NameRequest& request,
                     const NameOfSpace& name) {
  if (IsForNodes(request.op)) {
    return peer.is_node && peer.all_namespaces ? Code::kOk : Code::kDenied;
  }
  if (peer.all_namespaces) return Code::kOk;
  const auto known = name(request.space);
  if (!known) return Code::kUnavailable;
  return peer.MayUse(*known) ? Code::kOk : Code::kDenied;
}

}  // namespace kvcfs::meta
