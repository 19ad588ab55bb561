// Many transports in one process, with faults, in an order that a seed decides.
//
// Driven (no Start): nothing happens but in Step and what calls it, on the caller's thread, in
// virtual time; the same seed and the same calls give the same trace_hash(). With Start: a thread
// of its own, in real time, for tests of what waits. Threads: driven, one; started, any. Callbacks
// run without any lock of the fabric. Fails: as transport.h. A frame that is dropped, or meets a
// partition, is a kTimeout at the deadline; a partition of 4 heartbeats, a crash and a name that
// nobody has are kUnavailable. What faults do that TCP does not: a duplicated request is served
// twice (as if the caller had asked twice), the second answer is ignored.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "base/clock.h"
#include "rdma/cost_model.h"
#include "rdma/transport.h"

namespace kvcfs::rdma {

using Micros = std::chrono::microseconds;

// Probabilities are of each frame.
struct LoopbackFaults {
  double drop = 0;
  double duplicate = 0;
  double reorder = 0;  // may overtake others of its pair; else they keep their order
  double torn = 0;     // of one-sided access: some 64 B units are copied later than the others
  double slow = 0;     // comes after up to slow_max
  Micros delay_min{5};
  Micros delay_max{50};
  Micros slow_max{200'000};
};

struct LoopbackCounts {
  uint64_t round_trips = 0;  // calls, READs, WRITEs
  uint64_t messages = 0;     // frames sent
  uint64_t reads = 0, writes = 0;
  uint64_t bytes = 0;
  uint64_t dropped = 0, duplicated = 0, reordered = 0, torn = 0;
};

class LoopbackFabric {
 public:
  explicit LoopbackFabric(uint64_t seed, const LoopbackFaults& faults = {});
  ~LoopbackFabric();
  LoopbackFabric(const LoopbackFabric&) = delete;
  LoopbackFabric& operator=(const LoopbackFabric&) = delete;

  // One process. A name may be used again after Crash, or when its transport is gone. Without an
  // identity, what the options say of it. Listen takes the name as host, and any port.
  std::unique_ptr<Transport> MakeEndpoint(const std::string& name, const TransportOptions& options,
                                          std::optional<PeerIdentity> identity = {});

  void SetFaults(const LoopbackFaults& faults);
  // Frames from `from` to `to` are lost; the other direction is a call of its own.
  void Partition(const std::string& from, const std::string& to);
  void PartitionBoth(const std::string& a, const std::string& b);
  void Heal(const std::string& a, const std::string& b);  // both directions
  void HealAll();
  // Its completions never run, its regions are gone, its peers see kUnavailable.
  void Crash(const std::string& name);
  // SIGSTOP: what comes to it, and its own timers, wait for Resume.
  void Pause(const std::string& name);
  void Resume(const std::string& name);

  // The next event; false: there is none. Time moves to it.
  bool Step();
  // All events until then; time is `when` afterwards.
  void RunUntil(Micros when);
  // Until there is no event left (all calls are completed), or `steps` are done.
  void RunUntilIdle(uint64_t steps = 1'000'000);
  // Runs `action` as something of `name` (not if it crashed; later if it is paused).
  void After(const std::string& name, Micros delay, std::function<void()> action);

  void Start();

  Micros now() const;
  const Clock& clock() const;
  uint64_t trace_hash() const;
  LoopbackCounts counts() const;
  // What `name` issues from now on is counted there too; null: no more.
  void Measure(const std::string& name, CostMeter* meter);

 private:
  friend class LoopbackTransport;
  friend class LoopbackPeer;
  friend class LoopbackResponder;
  class State;
  std::shared_ptr<State> state_;
};

}  // namespace kvcfs::rdma
