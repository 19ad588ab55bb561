// The transport over TCP, on io_uring; with TLS on every address that is not loopback.
//
// Source: WIRE.md. A thread a loop (options.threads), named tcp-N; a peer belongs to one of them, a
// connection that is accepted to the next in turn.
// Fails: kUnsupported no io_uring here; kInvalid TLS files that are none, an address beyond
// loopback without TLS; kUnavailable the address cannot be bound.
#pragma once

#include <memory>

#include "base/result.h"
#include "rdma/transport.h"

namespace kvcfs::rdma {

Result<std::unique_ptr<Transport>> MakeTcpTransport(const TransportOptions& options);

}  // namespace kvcfs::rdma
