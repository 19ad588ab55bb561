// The version, from CMakeLists.txt's project().
#pragma once

namespace kvcfs::tools {

inline constexpr char kVersion[] = KVCFS_VERSION;

}  // namespace kvcfs::tools
