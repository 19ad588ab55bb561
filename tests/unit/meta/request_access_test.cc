#include "meta/request_access.h"

#include <gtest/gtest.h>

namespace kvcfs::meta {
namespace {

constexpr SpaceId kOurs{1, 1}, kTheirs{2, 2}, kUnknown{3, 3};

std::optional<std::string> NameOf(const SpaceId& id) {
  if (id == kOurs) return "ours";
  if (id == kTheirs) return "theirs";
  return std::nullopt;
}

Code Ask(const rdma::PeerIdentity& peer, RequestBody body) {
  return CheckAccess(peer, {1, std::move(body)}, NameOf);
}

rdma::PeerIdentity Tenant() {
  rdma::PeerIdentity peer;
  peer.all_namespaces = false;
  peer.namespaces = {"ours"};
  return peer;
}

TEST(RequestAccess, ATenantAsksAboutItsNamespacesOnly) {
  const auto tenant = Tenant();
  const BlockId ours{kOurs, {}}, theirs{kTheirs, {}}, unknown{kUnknown, {}};
  EXPECT_EQ(Ask(tenant, MatchRequest{kOurs, true, {}}), Code::kOk);
  EXPECT_EQ(Ask(tenant, MatchRequest{kTheirs, true, {}}), Code::kDenied);
  EXPECT_EQ(Ask(tenant, MatchRequest{kUnknown, true, {}}), Code::kUnavailable);
  EXPECT_EQ(Ask(tenant, ResolveRequest{theirs}), Code::kDenied);
  EXPECT_EQ(Ask(tenant, LocateRequest{theirs, {}, true}), Code::kDenied);
  EXPECT_EQ(Ask(tenant, ChainRequest{theirs, {}}), Code::kDenied);
  EXPECT_EQ(Ask(tenant, LeavesRequest{kTheirs, 0, {}, 1}), Code::kDenied);
  EXPECT_EQ(Ask(tenant, ReserveRequest{theirs, {}, {}}), Code::kDenied);
  EXPECT_EQ(Ask(tenant, DropRequest{theirs, {}}), Code::kDenied);
  EXPECT_EQ(Ask(tenant, MissingRequest{theirs, {}, {}}), Code::kDenied);
  CommitRequest commit;
  commit.facts.id = theirs;
  EXPECT_EQ(Ask(tenant, commit), Code::kDenied);
  PutRequest put;
  put.facts.id = theirs;
  EXPECT_EQ(Ask(tenant, put), Code::kDenied);
  put.facts.id = ours;
  EXPECT_EQ(Ask(tenant, put), Code::kOk);
  EXPECT_EQ(Ask(tenant, DiscardRequest{theirs, 1}), Code::kDenied);
  EXPECT_EQ(Ask(tenant, ReadRequest{theirs, 1}), Code::kDenied);
  EXPECT_EQ(Ask(tenant, ReadRequest{unknown, 1}), Code::kUnavailable);
  EXPECT_EQ(Ask(tenant, UsedRequest{{ours, theirs}}), Code::kDenied);
  EXPECT_EQ(Ask(tenant, UsedRequest{{ours}}), Code::kOk);
}

TEST(RequestAccess, WhatNodesSayIsForNodes) {
  rdma::PeerIdentity client;
  rdma::PeerIdentity node;
  node.is_node = true;
  node.node = {9, 9};
  const std::vector<RequestBody> bodies{ReleaseRequest{{9, 9}, {}},
                                        AttachRequest{},
                                        DetachRequest{},
                                        DoomRequest{},
                                        PointRequest{},
                                        UnpointRequest{},
                                        RevokeRequest{},
                                        MarkRequest{},
                                        ForgetRequest{},
                                        HaveRequest{},
                                        CopyRequest{},
                                        InventoryRequest{}};
  for (const RequestBody& body : bodies) {
    EXPECT_EQ(Ask(client, body), Code::kDenied) << body.index();
    EXPECT_EQ(Ask(Tenant(), body), Code::kDenied) << body.index();
    EXPECT_EQ(Ask(node, body), Code::kOk) << body.index();
  }
  EXPECT_EQ(Ask(client, MatchRequest{kUnknown, true, {}}), Code::kOk) << "of all namespaces";
}

TEST(RequestAccess, ANodeSpeaksForItself) {
  rdma::PeerIdentity node;
  node.is_node = true;
  node.node = {9, 9};
  EXPECT_EQ(Ask(node, ReleaseRequest{{9, 8}, {}}), Code::kDenied);
  GrantRequest grant;
  grant.node = {9, 8};
  EXPECT_EQ(Ask(node, grant), Code::kDenied);
  grant.node = {9, 9};
  EXPECT_EQ(Ask(node, grant), Code::kOk);
}

}  // namespace
}  // namespace kvcfs::meta
