// Which transport a test runs over: TCP on loopback, or what tests/vm says.
#pragma once

#include <cstdlib>
#include <memory>
#include <string>

#include "rdma/tcp.h"
#include "rdma/transport.h"
#include "rdma/verbs.h"

namespace kvcfs::rdma {

// What tests/vm says in the guest: KVC_TEST_TRANSPORT=verbs, KVC_TEST_HOST the address of a device,
// KVC_TEST_CERTS a folder with the certificates that such an address wants. Else: TCP on loopback.
inline std::string TestSetting(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}
inline bool TestsVerbs() {
  return TestSetting("KVC_TEST_TRANSPORT") == "verbs";
}
inline std::string TestHost() {
  const std::string host = TestSetting("KVC_TEST_HOST");
  return host.empty() ? "127.0.0.1" : host;
}
inline TlsOptions TestCertificate(const std::string& name) {
  const std::string certs = TestSetting("KVC_TEST_CERTS");
  if (certs.empty()) return {};
  return {certs + "/" + name + ".pem", certs + "/" + name + ".key", certs + "/ca.pem"};
}
inline Result<std::unique_ptr<Transport>> MakeTestTransport(const TransportOptions& options) {
  return TestsVerbs() ? MakeVerbsTransport(options) : MakeTcpTransport(options);
}

}  // namespace kvcfs::rdma
