// May this node answer for the shards that its view gives it? A core without I/O.
//
// A node holds a lease at etcd, renewed several times in its life. When it is over, others take its
// shards; so the node stops at half of the life after the last renewal that is known to have
// worked, by its own clock, counted from before the renewal was sent.
// When etcd itself is away nobody can renew, and nobody can change the view: stopping would help no
// one. So a node whose renewals fail asks every other metadata node of its view for a *promise*:
// "I cannot reach etcd either, and until then I shall not take up a newer view". With a promise
// from all of them it serves on. One that can reach etcd, or does not answer, gives none. A node
// that has promised keeps it, though etcd comes back meanwhile: at most half a life later. Threads:
// one at a time.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "base/clock.h"

namespace kvcfs::meta {

class ServingRight {
 public:
  explicit ServingRight(Millis lease_life) : life_(lease_life) {}

  // A renewal (or the grant) that was sent at `sent` has worked.
  void Renewed(Millis sent);
  // etcd has said that the lease is over: there is no right, until it is granted again.
  void Lost();
  // The view changed: promises were about the old one.
  void SetView(uint64_t epoch, std::vector<std::string> other_metadata_nodes);

  // Time to ask for promises: renewals have failed for a while, and the right may run out.
  bool WantsPromises(Millis now) const;
  void Promised(const std::string& node, uint64_t epoch, Millis until);

  bool MayServe(Millis now) const;
  // How long from now this node promises a peer of the same epoch not to take up a newer view; 0:
  // it does not promise. Remembers what it promised.
  Millis Promise(uint64_t epoch, Millis now);
  // False while a promise is out.
  bool MayTakeNewView(Millis now) const { return now >= promised_until_; }

 private:
  Millis half() const { return life_ / 2; }

  const Millis life_;
  bool held_ = false;
  Millis renewed_{0};
  uint64_t epoch_ = 0;
  std::map<std::string, Millis> promises_;  // of every other metadata node: until when
  Millis promised_until_{0};
};

}  // namespace kvcfs::meta
