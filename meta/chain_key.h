// The keys of a chain that we name ourselves (replay, synthetic traces): SHA-256 over the parent's
// key and an id. The one door to OpenSSL's digests.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/block_key.h"

namespace kvcfs::meta {

BlockKey Sha256(std::span<const std::byte> data);

// SHA-256(parent key's 32 bytes, none for the first (a zero parent) || id as u64 little-endian).
BlockKey ChainKey(const BlockKey& parent, uint64_t id);

// The keys of the chain with these ids, in order.
std::vector<BlockKey> ChainKeys(std::span<const uint64_t> ids);

}  // namespace kvcfs::meta
