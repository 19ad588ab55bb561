#include "tools/metrics_server.h"

#include <string>

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/metrics.h"

namespace kvcfs::tools {
namespace {

std::string Get(int port, const std::string& path) {
  const Fd socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (::connect(socket.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) {
    return "no connection";
  }
  const std::string request = "GET " + path + " HTTP/1.0\r\n\r\n";
  EXPECT_EQ(::write(socket.get(), request.data(), request.size()),
            static_cast<ssize_t>(request.size()));
  std::string answer;
  char piece[4096];
  for (ssize_t got = 0; (got = ::read(socket.get(), piece, sizeof(piece))) > 0;) {
    answer.append(piece, static_cast<size_t>(got));
  }
  return answer;
}

TEST(MetricsServer, ServesTheText) {
  Metrics::Get().AddCounter("kvcfs_tools_served_total", "Served.").Add(3);
  int port = 0;
  {
    MetricsServer server;
    const Status status = server.Start("127.0.0.1:0");
    ASSERT_TRUE(status.ok()) << status.error().text;
    port = server.port();
    const std::string answer = Get(port, "/metrics");
    EXPECT_TRUE(answer.starts_with("HTTP/1.1 200")) << answer;
    EXPECT_NE(answer.find("version=0.0.4"), std::string::npos);
    EXPECT_NE(answer.find("\nkvcfs_tools_served_total 3\n"), std::string::npos) << answer;
    EXPECT_TRUE(Get(port, "/else").starts_with("HTTP/1.1 404"));
    // A second one on the same port is refused.
    MetricsServer second;
    EXPECT_EQ(second.Start("127.0.0.1:" + std::to_string(port)).code(), Code::kUnavailable);
  }
  EXPECT_EQ(Get(port, "/metrics"), "no connection");
}

TEST(MetricsServer, AddressesThatAreNone) {
  for (const char* address :
       {"", "localhost", ":9464", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:70000", "127.0.0.1:-1"}) {
    const Status status = MetricsServer().Start(address);
    EXPECT_EQ(status.code(), Code::kInvalid) << address;
  }
  EXPECT_EQ(MetricsServer().Start("no.such.host.invalid:1").code(), Code::kUnavailable);
}

}  // namespace
}  // namespace kvcfs::tools
