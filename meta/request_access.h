// Who may ask what of a node: by what the peer proved of itself (rdma::PeerIdentity).
//
// A client asks what mounts ask; what metadata nodes and holders say to one another is for nodes.
// Who is of some namespaces only, asks about blocks of these. Pure functions: any thread.
#pragma once

#include <functional>
#include <optional>
#include <string>

#include "meta/cluster_messages.h"
#include "meta/name_messages.h"

namespace kvcfs::meta {

// The name of a namespace, if it is known here.
using NameOfSpace = std::function<std::optional<std::string>(const SpaceId&)>;

// kDenied; kUnavailable: a namespace that is not known here (yet), asked by one who is of some
// only.
Code CheckAccess(const rdma::PeerIdentity& peer, const Request& request, const NameOfSpace& name);
// The same for what is asked about names of ordinary files.
Code CheckNameAccess(const rdma::PeerIdentity& peer, const NameRequest& request,
                     const NameOfSpace& name);

}  // namespace kvcfs::meta
