// What the tests of transports ask: each method does one simple thing.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstring>
#include <mutex>
#include <utility>
#include <vector>

#include "rdma/transport.h"

namespace kvcfs::rdma {

inline constexpr Method kEcho = 1;     // head and bulk come back
inline constexpr Method kRefuse = 2;   // kNotFound, with a text
inline constexpr Method kForget = 3;   // the responder is destroyed
inline constexpr Method kHold = 4;     // kept until AnswerHeld
inline constexpr Method kBulk = 5;     // as much of `memory` as fits
inline constexpr Method kTooMuch = 6;  // more bulk than was asked for

class EchoService : public Service {
 public:
  void Serve(Method method, Bytes request, std::span<std::byte> bulk,
             std::unique_ptr<Responder> responder) override {
    ++served;
    {
      std::lock_guard lock(mutex);
      last_peer = responder->peer();
    }
    switch (method) {
      case kEcho:
        // What came is gone with the responder, so what goes is a copy.
        Send(*responder, std::move(request), {bulk.begin(), bulk.end()});
        return;
      case kRefuse:
        return responder->Refuse(Code::kNotFound, "no such thing");
      case kForget:
        return;
      case kHold: {
        std::lock_guard lock(mutex);
        held.push_back(std::move(responder));
        return;
      }
      case kBulk: {
        const size_t bytes = std::min<size_t>(responder->receive_bytes(), memory.size());
        ++in_use;
        return responder->Answer({}, std::span(memory).first(bytes), [this] { --in_use; });
      }
      case kTooMuch:
        Send(*responder, {}, Bytes(responder->receive_bytes() + 1));
        return;
      default:
        return responder->Refuse(Code::kUnsupported, "what?");
    }
  }

  std::span<std::byte> Place(Method, std::span<const std::byte>, uint32_t bytes) override {
    if (place.size() < bytes) return {};
    ++placed;
    return place.first(bytes);
  }
  void Abandon(std::span<std::byte>) override { ++abandoned; }

  void AnswerHeld() {
    std::vector<std::unique_ptr<Responder>> all;
    {
      std::lock_guard lock(mutex);
      all = std::exchange(held, {});
    }
    for (auto& responder : all) responder->Answer({});
  }
  size_t held_count() {
    std::lock_guard lock(mutex);
    return held.size();
  }

  std::mutex mutex;
  std::vector<std::unique_ptr<Responder>> held;
  PeerIdentity last_peer;
  Bytes memory;
  std::span<std::byte> place;
  std::atomic<int> served = 0, in_use = 0, placed = 0, abandoned = 0;

 private:
  static void Send(Responder& responder, Bytes head, Bytes bulk) {
    auto kept = std::make_shared<Bytes>(std::move(bulk));
    responder.Answer(std::move(head), *kept, [kept] {});
  }
};

inline Bytes ToBytes(std::string_view text) {
  const auto bytes = std::as_bytes(std::span(text));
  return {bytes.begin(), bytes.end()};
}
inline std::string ToText(const Bytes& bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}
inline Bytes Pattern(size_t bytes, uint32_t seed) {
  Bytes made(bytes);
  for (size_t i = 0; i < bytes; ++i) {
    seed = seed * 1664525 + 1013904223;
    made[i] = static_cast<std::byte>(seed >> 24);
  }
  return made;
}

}  // namespace kvcfs::rdma
