// The bytes of a replayed block, made from its key alone, so that any run can check any block.
//
// About 10 GB/s a core, so that making and checking them does not hide what the filesystem does.
// Source: xoshiro256++ (Blackman & Vigna), four streams side by side in vector registers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/block_key.h"

namespace kvcfs::tools {

void FillBlockBytes(const BlockKey& key, std::span<std::byte> out);

// How many of `got` are not what FillBlockBytes would have written there.
uint64_t CountWrongBytes(const BlockKey& key, std::span<const std::byte> got);

}  // namespace kvcfs::tools
