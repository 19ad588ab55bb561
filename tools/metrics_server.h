// The metrics port: GET /metrics answers Metrics::Get().Text().
//
// Threads: one of its own that listens, and a few of cpp-httplib's that answer.
// Fails: kInvalid an address that is none; kUnavailable it cannot listen there.
#pragma once

#include <memory>
#include <string>

#include "base/result.h"

namespace kvcfs::tools {

class MetricsServer {
 public:
  MetricsServer();
  ~MetricsServer();  // stops listening; answers under way are finished

  // "127.0.0.1:9464" or "[::1]:9464"; port 0 takes any that is free.
  Status Start(const std::string& address);
  int port() const { return port_; }

 private:
  struct Rep;
  std::unique_ptr<Rep> rep_;
  int port_ = 0;
};

}  // namespace kvcfs::tools
