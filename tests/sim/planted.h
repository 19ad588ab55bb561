// Bugs that can be switched on in the simulator's build of the cores (meta/planted.h), to see that
// the simulator finds bugs.
#pragma once

#include <span>

namespace kvcfs::sim {

struct Planted {
  int number;
  const char* what;
};
std::span<const Planted> AllPlanted();

}  // namespace kvcfs::sim
