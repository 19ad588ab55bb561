// What the parts of a verbs transport share, and what they say to one another over TCP.
#pragma once

#include <atomic>
#include <memory>

#include "rdma/revoked_peers.h"
#include "rdma/transport.h"
#include "rdma/verbs_link.h"
#include "rdma/verbs_loop.h"
#include "rdma/verbs_regions.h"

namespace kvcfs::rdma {

struct VerbsShared {
  VerbsShared(const TransportOptions& given, std::shared_ptr<VerbsLoop> on,
              std::vector<ibv_pd*> domains)
      : options(given), loop(std::move(on)), regions(std::move(domains)) {}
  const TransportOptions options;
  const std::shared_ptr<VerbsLoop> loop;
  VerbsRegions regions;
  RevokedPeers revoked;
  VerbsCounters counters;
  std::atomic<uint64_t> calls{0}, one_sided_reads{0}, writes{0}, timeouts{0}, reconnects{0};
  std::atomic<uint64_t> serving_bytes{0};

  FrameLimits Limits() const {
    return {.head_bytes_max = options.frame_bytes_max, .bulk_bytes_max = options.bulk_bytes_max};
  }
};

// Methods of the transport itself. WIRE.md has their bodies.
inline constexpr Method kMethodVerbsOffer = 0xff01;
inline constexpr Method kMethodVerbsRegion = 0xff02;

struct VerbsOffer {
  uint16_t port = 0;  // of librdmacm, at the same host
  VerbsToken token{};
  Bytes Encode() const;
  static Result<VerbsOffer> Decode(std::span<const std::byte> bytes);
};
struct VerbsRegionRequest {
  uint64_t region = 0;
  VerbsToken token{};  // tells by which device
  Bytes Encode() const;
  static Result<VerbsRegionRequest> Decode(std::span<const std::byte> bytes);
};
Bytes EncodeVerbsKey(const VerbsRegions::Key& key);
Result<VerbsRegions::Key> DecodeVerbsKey(std::span<const std::byte> bytes);

}  // namespace kvcfs::rdma
