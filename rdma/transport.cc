#include "rdma/transport.h"

#include <algorithm>
#include <charconv>
#include <condition_variable>

#include <arpa/inet.h>
#include <fmt/format.h>

#include "base/mutex.h"

namespace kvcfs::rdma {
namespace {

// What a waiting caller shares with the completion of its call.
class Waiting {
 public:
  Completion Done() {
    return [this](Reply reply) {
      MutexLock lock(mutex_);
      reply_ = std::move(reply);
      done_ = true;
      // Under the lock: who waits may be gone the moment that it is let go.
      condition_.notify_one();
    };
  }

  Reply Wait() {
    MutexLock lock(mutex_);
    condition_.wait(lock.native(), [this] { return done_; });
    return std::move(reply_);
  }

 private:
  Mutex mutex_;
  std::condition_variable condition_;
  bool done_ = false;
  Reply reply_;
};

}  // namespace

bool PeerIdentity::MayUse(std::string_view space) const {
  return all_namespaces ||
         std::find(namespaces.begin(), namespaces.end(), space) != namespaces.end();
}

Result<Address> Address::Parse(std::string_view text) {
  const auto wrong = [text] {
    return Error{Code::kInvalid, fmt::format("'{}' is no address: HOST:PORT or [V6]:PORT", text)};
  };
  const size_t colon = text.rfind(':');
  if (colon == std::string_view::npos) return wrong();
  std::string_view host = text.substr(0, colon);
  const std::string_view digits = text.substr(colon + 1);
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
    in6_addr v6{};
    if (::inet_pton(AF_INET6, std::string(host).c_str(), &v6) != 1) return wrong();
  } else if (host.find_first_of(":[]") != std::string_view::npos) {
    return wrong();
  }
  Address address{.host = std::string(host), .port = 0};
  const auto [end, error] =
      std::from_chars(digits.data(), digits.data() + digits.size(), address.port);
  if (host.empty() || digits.empty() || error != std::errc() ||
      end != digits.data() + digits.size()) {
    return wrong();
  }
  return address;
}

std::string Address::ToString() const {
  const bool v6 = host.find(':') != std::string::npos;
  return v6 ? fmt::format("[{}]:{}", host, port) : fmt::format("{}:{}", host, port);
}

bool Address::IsLoopback() const {
  if (host == "localhost" || host == "::1") return true;
  in_addr v4{};
  return ::inet_pton(AF_INET, host.c_str(), &v4) == 1 && (ntohl(v4.s_addr) >> 24) == 127;
}

Reply Peer::CallAndWait(Method method, Bytes request, const CallOptions& options) {
  Waiting waiting;
  Call(method, std::move(request), options, waiting.Done());
  return waiting.Wait();
}

Reply Peer::ReadAndWait(const RemoteSpan& from, std::span<std::byte> into, Millis timeout) {
  Waiting waiting;
  Read(from, into, timeout, waiting.Done());
  return waiting.Wait();
}

Reply Peer::WriteAndWait(const RemoteSpan& to, std::span<const std::byte> from, Millis timeout) {
  Waiting waiting;
  Write(to, from, timeout, waiting.Done());
  return waiting.Wait();
}

}  // namespace kvcfs::rdma
