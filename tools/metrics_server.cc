#include "tools/metrics_server.h"

#include <charconv>
#include <thread>

#include <fmt/format.h>
#include <httplib.h>

#include "base/log.h"
#include "base/metrics.h"

namespace kvcfs::tools {

struct MetricsServer::Rep {
  httplib::Server server;
  std::thread thread;
};

MetricsServer::MetricsServer() = default;

MetricsServer::~MetricsServer() {
  if (!rep_) return;
  rep_->server.stop();
  if (rep_->thread.joinable()) rep_->thread.join();
}

Status MetricsServer::Start(const std::string& address) {
  KVC_CHECK(!rep_);
  const size_t colon = address.rfind(':');
  int port = -1;
  if (colon != std::string::npos) {
    const char* const end = address.data() + address.size();
    const auto [at, error] = std::from_chars(address.data() + colon + 1, end, port);
    if (error != std::errc() || at != end) port = -1;
  }
  std::string host = colon == std::string::npos ? "" : address.substr(0, colon);
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  }
  if (host.empty() || port < 0 || port > 65535) {
    return Error{Code::kInvalid,
                 fmt::format("metrics address '{}': write HOST:PORT, as 127.0.0.1:9464", address)};
  }
  auto rep = std::make_unique<Rep>();
  rep->server.new_task_queue = [] { return new httplib::ThreadPool(2); };
  // Two kvcfs on one port would answer in turns.
  rep->server.set_socket_options([](socket_t socket) {
    const int on = 1;
    ::setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  });
  rep->server.Get("/metrics", [](const httplib::Request&, httplib::Response& response) {
    response.set_content(Metrics::Get().Text(), "text/plain; version=0.0.4; charset=utf-8");
  });
  rep->server.Get("/", [](const httplib::Request&, httplib::Response& response) {
    response.set_content("kvcfs: the metrics are at /metrics\n", "text/plain");
  });
  if (port == 0) {
    port_ = rep->server.bind_to_any_port(host.c_str());
  } else {
    port_ = rep->server.bind_to_port(host.c_str(), port) ? port : -1;
  }
  if (port_ <= 0) {
    return Error{Code::kUnavailable,
                 fmt::format("cannot listen on {}: is the port taken, the host ours?", address)};
  }
  rep->thread = std::thread([server = &rep->server] {
    SetThreadName("metrics");
    server->listen_after_bind();
  });
  // stop() before the thread listens would be lost.
  while (!rep->server.is_running()) std::this_thread::yield();
  rep_ = std::move(rep);
  KVC_LOG(Info, "metrics are served", "host={} port={}", LogValue(host), port_);
  return {};
}

}  // namespace kvcfs::tools
