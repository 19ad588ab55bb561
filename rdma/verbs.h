// The transport over RDMA verbs, beside the one over TCP.
//
// Every peer is connected to over TCP first (with TLS, as tcp.h says), which proves who it is and
// tells keys; then by queue pairs, if a device of both hosts reaches the other. Until then, and
// where there is none, TCP carries everything: a cluster may be mixed. Threads: verbs-0 and those
// of the TCP transport; verbs-register.
// Fails: kUnsupported no RDMA device here; else as MakeTcpTransport.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "rdma/transport.h"

namespace kvcfs::rdma {

// A device of this host, without the transport: what `kvcfs doctor` says of it.
struct VerbsDeviceFacts {
  std::string name;
  uint32_t shared_receives_max = 0;  // 0: it has no shared receive queue
};
Result<std::vector<VerbsDeviceFacts>> AskVerbsDevices();

Result<std::unique_ptr<Transport>> MakeVerbsTransport(const TransportOptions& options);

}  // namespace kvcfs::rdma
