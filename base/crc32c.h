// CRC32C (Castagnoli), as it stands on disk and on the wire. The one door to ISA-L.
//
// Incremental: Crc32c(b, Crc32c(a)) is the CRC of a followed by b, and the CRC of nothing is 0.
// Threads: any.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace kvcfs {

uint32_t Crc32c(std::span<const std::byte> data, uint32_t before = 0);

// The CRC of a followed by b, from the CRC of each and the length of b alone.
uint32_t Crc32cCombine(uint32_t crc_a, uint32_t crc_b, uint64_t b_bytes);

}  // namespace kvcfs
