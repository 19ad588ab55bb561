// The files of a certificate, looked at again: who renews them renews what is shown.
//
// A new connection uses what the files hold then. What cannot be used, because one of them is half
// written, say, is logged once, and what was read before stays in use. Connections that stand keep
// what they began with, until the other side's certificate expires.
// Threads: any.   Fails: Open as TlsContext::Make.
#pragma once

#include <array>
#include <cstdint>
#include <memory>

#include "base/mutex.h"
#include "rdma/tls.h"

namespace kvcfs::rdma {

class TlsFiles {
 public:
  static Result<std::unique_ptr<TlsFiles>> Open(const TlsOptions& options);
  std::unique_ptr<TlsSession> NewSession(bool server) KVC_EXCLUDES(mutex_);

 private:
  // What tells a file from one that was written over it or put into its place.
  struct Stamp {
    uint64_t device = 0, inode = 0, bytes = 0;
    int64_t seconds = 0, nanoseconds = 0;
    bool operator==(const Stamp&) const = default;
  };
  using Stamps = std::array<Stamp, 3>;

  explicit TlsFiles(const TlsOptions& options) : options_(options) {}
  Stamps Look() const;

  const TlsOptions options_;
  Mutex mutex_;
  std::unique_ptr<const TlsContext> context_ KVC_GUARDED_BY(mutex_);
  Stamps used_ KVC_GUARDED_BY(mutex_);    // of what context_ was read from
  Stamps failed_ KVC_GUARDED_BY(mutex_);  // of what was of no use the last time
};

}  // namespace kvcfs::rdma
