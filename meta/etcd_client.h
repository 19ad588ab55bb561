// etcd, as far as membership needs it: keys, leases, compare-and-swap, watches.
//
// Speaks to the JSON gateway that every etcd since 3.4 has at its client address (/v3/...).
// With several endpoints, a call goes to the one that answered last, then to the others.
// Threads: any; each call blocks its caller, at most `timeout` an endpoint. Watch blocks until it
// is
//   told to end.
// Fails: kUnavailable: no endpoint answered (a write may have happened); kNotFound: the lease is
//   over; kDenied: etcd wants other credentials; kCorrupt: an answer that is not etcd's.
// Source: etcd.io/docs/v3.4/dev-guide/api_grpc_gateway, etcd.io/docs/v3.4/learning/api.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/result.h"

namespace kvcfs::meta {

struct EtcdOptions {
  std::vector<std::string> endpoints;  // "host:port"
  Millis timeout{1000};                // of one call to one endpoint
  // PEM files; given, every endpoint is spoken to by TLS.
  std::string certificate, key, authority;

  // "etcd://HOST:PORT,HOST:PORT": what --cluster takes.
  static Result<EtcdOptions> Parse(std::string_view url);
};

struct EtcdValue {
  std::string key;
  std::string value;
  int64_t revision = 0;  // of its last change
  int64_t lease = 0;     // 0: none
};

struct EtcdRange {
  std::vector<EtcdValue> values;  // in order of keys
  int64_t revision = 0;           // of the whole store, at the time of the answer
};

class EtcdClient {
 public:
  virtual ~EtcdClient() = default;
  static std::unique_ptr<EtcdClient> Make(const EtcdOptions& options);

  // Every key that begins with `prefix`.
  virtual Result<EtcdRange> List(std::string_view prefix) = 0;
  virtual Status Put(std::string_view key, std::string_view value, int64_t lease) = 0;
  // Puts where the key's last change was `revision` (0: where it is not there). False: it was not.
  virtual Result<bool> PutIf(std::string_view key, int64_t revision, std::string_view value) = 0;
  virtual Status Remove(std::string_view key) = 0;
  // Removes it where its last change was `revision`. False: it was not, or is not there.
  virtual Result<bool> RemoveIf(std::string_view key, int64_t revision) = 0;

  virtual Result<int64_t> GrantLease(std::chrono::seconds life) = 0;
  // What is left of its life, in seconds, from a moment after this call began.
  virtual Result<std::chrono::seconds> RenewLease(int64_t lease) = 0;
  virtual Status RevokeLease(int64_t lease) = 0;

  // Calls `changed` for each batch of changes below `prefix` after `revision`, and about every
  // `idle` without any; ends with ok when it returns false, or with the error that broke it.
  virtual Status Watch(std::string_view prefix, int64_t revision, Millis idle,
                       const std::function<bool(bool something)>& changed) = 0;
};

}  // namespace kvcfs::meta
