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
    std::span<const std::byte> answer;
    {
      std::lock_guard lock(mutex_);
      last_peer_ = responder->peer();
      answer = memory_;
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
        std::lock_guard lock(mutex_);
        held_.push_back(std::move(responder));
        return;
      }
      case kBulk: {
        const size_t bytes = std::min<size_t>(responder->receive_bytes(), answer.size());
        const int now = ++in_use;
        if (now > in_use_max) in_use_max = now;
        return responder->Answer({}, answer.first(bytes), [this] { --in_use; });
      }
      case kTooMuch:
        Send(*responder, {}, Bytes(responder->receive_bytes() + 1));
        return;
      default:
        return responder->Refuse(Code::kUnsupported, "what?");
    }
  }

  std::span<std::byte> Place(Method, std::span<const std::byte>, uint32_t bytes) override {
    std::lock_guard lock(mutex_);
    if (place_.size() < bytes) return {};
    ++placed;
    return place_.first(bytes);
  }
  void Abandon(std::span<std::byte>) override { ++abandoned; }

  void AnswerHeld() {
    std::vector<std::unique_ptr<Responder>> all;
    {
      std::lock_guard lock(mutex_);
      all = std::exchange(held_, {});
    }
    for (auto& responder : all) responder->Answer({});
  }
  // Without an answer.
  void ForgetHeld() {
    std::lock_guard lock(mutex_);
    held_.clear();
  }
  size_t held_count() {
    std::lock_guard lock(mutex_);
    return held_.size();
  }

  PeerIdentity last_peer() {
    std::lock_guard lock(mutex_);
    return last_peer_;
  }
  // What kBulk answers.
  void SetMemory(Bytes memory) {
    std::lock_guard lock(mutex_);
    memory_ = std::move(memory);
  }
  const Bytes& memory() {
    std::lock_guard lock(mutex_);
    return memory_;
  }
  // Where bulk lands, if it fits.
  void SetPlace(std::span<std::byte> place) {
    std::lock_guard lock(mutex_);
    place_ = place;
  }
  // With all that was served so far in it.
  std::span<const std::byte> place() {
    std::lock_guard lock(mutex_);
    return place_;
  }
  std::atomic<int> served = 0, in_use = 0, in_use_max = 0, placed = 0, abandoned = 0;

 private:
  static void Send(Responder& responder, Bytes head, Bytes bulk) {
    auto kept = std::make_shared<Bytes>(std::move(bulk));
    responder.Answer(std::move(head), *kept, [kept] {});
  }

  // Also says to the thread sanitizer, which does not see through sockets, what happened before
  // what.
  std::mutex mutex_;
  std::vector<std::unique_ptr<Responder>> held_;
  PeerIdentity last_peer_;
  Bytes memory_;
  std::span<std::byte> place_;
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
