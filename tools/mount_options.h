// What the command line of mount, unmount and fsck says, ready for those who do it.
#pragma once

#include <string>

#include "tools/node_config.h"

namespace kvcfs::tools {

struct MountOptions {
  std::string mountpoint;  // absolute
  NodeConfig config;
  bool daemon = false;  // return when the mount answers
};

struct UnmountOptions {
  std::string mountpoint;  // absolute
  bool keep_dram = false;  // leave the DRAM tier for the next mount
};

struct FsckOptions {
  std::string data;  // absolute
  bool repair = false;
  bool json = false;
};

// Exit codes: 0 done, 1 failed or damaged or partial, 2 misused.
int RunMount(const MountOptions& options);
int RunUnmount(const UnmountOptions& options);
int RunFsck(const FsckOptions& options);

}  // namespace kvcfs::tools
