// TLS 1.3 between a ring and a parser: the one door to OpenSSL's SSL.
//
// Memory BIOs: bytes of the wire in and out, bytes of frames out and in; no socket is touched here.
// Both sides show a certificate of the authority. Its URI names say who it is:
//   kvcfs://node/NAME                       a node: may hold blocks and own shards
//   kvcfs://client/NAME?namespaces=a,b      a client, of these namespaces (without: of all)
// Threads: one at a time.   Fails: kInvalid files that are no certificate, key or authority;
// kDenied the other's certificate, with OpenSSL's words.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "base/result.h"
#include "rdma/transport.h"

struct ssl_ctx_st;
struct ssl_st;
struct bio_st;

namespace kvcfs::rdma {

class TlsSession;

class TlsContext {
 public:
  static Result<std::unique_ptr<TlsContext>> Make(const TlsOptions& options);
  ~TlsContext();
  std::unique_ptr<TlsSession> NewSession(bool server) const;
  // Of the own certificate.
  Result<PeerIdentity> Identity() const;

 private:
  TlsContext() = default;
  ssl_ctx_st* context_ = nullptr;
};

class TlsSession {
 public:
  ~TlsSession();
  TlsSession(const TlsSession&) = delete;
  TlsSession& operator=(const TlsSession&) = delete;

  // Bytes from the wire. All of them are taken.
  void Feed(std::span<const std::byte> bytes);
  // Bytes of the stream inside: how many; 0: more must be fed. Goes on with the handshake, too.
  Result<size_t> Read(std::span<std::byte> into);
  // All of `bytes` go into the output. Only after the handshake.
  Status Write(std::span<const std::byte> bytes);
  // What must be sent is appended.
  void TakeOutput(Bytes& out);
  // Begins (a client's first message), or goes on.
  Status Handshake();
  bool ready() const { return ready_; }
  // Of the other side's certificate; after the handshake.
  Result<PeerIdentity> Identity() const;
  // Likewise: seconds since 1970.
  int64_t ValidUntil() const;

 private:
  friend class TlsContext;
  explicit TlsSession(ssl_st* ssl);
  Error Failure(int result, std::string_view what);

  ssl_st* ssl_;
  bio_st* in_;   // owned by ssl_
  bio_st* out_;  // likewise
  bool ready_ = false;
};

// What a URI of a certificate says; nothing if it is none of ours.
Result<PeerIdentity> ParseIdentityUri(std::string_view uri);

}  // namespace kvcfs::rdma
