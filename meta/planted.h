// Bugs that the simulator must find (tests/sim/planted.cc lists them). In the product there are
// none: the condition is the constant false. Only tests/sim builds the cores with KVC_SIMULATED.
#pragma once

#ifdef KVC_SIMULATED
namespace kvcfs::meta {
extern int planted_bug;  // 0: none
}
#define KVC_PLANTED(number) (::kvcfs::meta::planted_bug == (number))
#else
#define KVC_PLANTED(number) false
#endif
