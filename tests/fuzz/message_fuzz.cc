// What stands inside of frames and on command lines: HELLO, places, certificate names, addresses.
#include <algorithm>
#include <span>
#include <string_view>

#include "rdma/tls.h"
#include "rdma/wire.h"
#include "tests/fuzz/fuzz_target.h"

namespace kvcfs {

std::vector<std::string> FuzzSeeds() {
  const auto text = [](const rdma::Bytes& bytes) {
    return std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  };
  return {text(rdma::EncodeHello({.cluster = "blue", .node = {1, 2}, .name = "n1"})),
          text(rdma::EncodeSpan({.region = 1, .offset = 2, .length = 3})),
          "kvcfs://client/app?namespaces=a,b",
          "kvcfs://node/n1",
          "[::1]:80",
          "host:65535"};
}

void FuzzOne(std::span<const std::byte> bytes) {
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  // What is read can be written, and reads the same again.
  if (const auto hello = rdma::DecodeHello(bytes); hello.ok()) {
    const auto again = rdma::DecodeHello(rdma::EncodeHello(*hello));
    KVC_CHECK(again.ok() && *again == *hello);
    (void)rdma::CheckHello(*hello, *again);
  }
  if (const auto place = rdma::DecodeSpan(bytes); place.ok()) {
    const auto again = rdma::EncodeSpan(*place);
    KVC_CHECK(std::equal(again.begin(), again.end(), bytes.begin(), bytes.end()));
  }
  if (const auto identity = rdma::ParseIdentityUri(text); identity.ok()) {
    KVC_CHECK(!identity->name.empty());
  }
  if (const auto address = rdma::Address::Parse(text); address.ok()) {
    const auto again = rdma::Address::Parse(address->ToString());
    KVC_CHECK(again.ok() && *again == *address);
  }
  rdma::Reader in(bytes);
  while (in.ok() && in.left() != 0) {
    const size_t before = in.left();
    (void)in.Text();
    (void)in.Count(2);
    KVC_CHECK(in.left() <= before);
  }
}

}  // namespace kvcfs
