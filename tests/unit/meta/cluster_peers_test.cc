// Who left the view is shut out of this node, and let in again with the view that has it.
#include "meta/cluster_peers.h"

#include <gtest/gtest.h>

#include "rdma/loopback.h"
#include "tests/unit/rdma/echo_service.h"

namespace kvcfs::meta {
namespace {

TEST(ClusterPeers, WhoLeftTheViewIsRevokedUntilItIsBack) {
  rdma::EchoService service;
  rdma::LoopbackFabric fabric(1, {});
  const auto make = [&](const std::string& name, uint64_t node) {
    rdma::TransportOptions options;
    options.self = {node, node};
    return fabric.MakeEndpoint(name, options);
  };
  auto own = make("own", 1), second = make("second", 2), third = make("third", 3);
  const auto address = *own->Listen({.host = "own", .port = 0}, &service);
  const auto view = [](uint64_t epoch, const std::vector<uint64_t>& nodes) {
    ClusterView made{.epoch = epoch, .nodes = {}};
    for (const uint64_t node : nodes) {
      made.nodes.push_back({.id = {node, node}, .address = "n" + std::to_string(node) + ":1"});
    }
    return made;
  };
  const auto asks = [&](rdma::Transport& transport) {
    Code code = Code::kInternal;
    bool answered = false;
    const auto peer = transport.Connect(address);
    peer->Call(rdma::kEcho, {}, {}, [&](const rdma::Reply& reply) {
      code = reply.code;
      answered = true;
    });
    while (!answered && fabric.Step()) {
    }
    return code;
  };
  ClusterPeers peers(own.get());
  // Who never was in a view (a client, a node that comes) is not shut out.
  EXPECT_EQ(asks(*second), Code::kOk);
  peers.SetView(view(1, {1, 2, 3}));
  EXPECT_EQ(asks(*second), Code::kOk);
  peers.SetView(view(2, {1, 3}));
  EXPECT_EQ(asks(*second), Code::kUnavailable);
  EXPECT_EQ(asks(*third), Code::kOk);
  peers.SetView(view(3, {1}));
  EXPECT_EQ(asks(*second), Code::kUnavailable);
  EXPECT_EQ(asks(*third), Code::kUnavailable);
  peers.SetView(view(4, {1, 2}));
  EXPECT_EQ(asks(*second), Code::kOk);
  EXPECT_EQ(asks(*third), Code::kUnavailable);
  ClusterView away = view(5, {1, 2});
  away.nodes[1].roles = kRoleAway;
  peers.SetView(away);
  EXPECT_EQ(asks(*second), Code::kUnavailable);
  // Own absence, when the own lease ran out.
  peers.SetView(view(6, {2}));
  EXPECT_EQ(asks(*own), Code::kOk);
  peers.Clear();
}

}  // namespace
}  // namespace kvcfs::meta
