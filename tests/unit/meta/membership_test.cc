// Several memberships in one process, on a real etcd of the test's own.
#include "meta/membership.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "tests/unit/meta/etcd_fixture.h"

namespace kvcfs::meta {
namespace {

ClusterNode Node(uint64_t id, uint8_t roles = kRoleMetadata | kRoleBlocks) {
  ClusterNode node;
  node.id = {1, id};
  node.name = "n" + std::to_string(id);
  node.address = "127.0.0.1:" + std::to_string(7000 + id);
  node.roles = roles;
  return node;
}

TEST(ClusterViewText, ComesBackAsItWent) {
  ClusterView view;
  view.epoch = uint64_t{1} << 60;
  view.nodes = {Node(3), Node(9, kRoleBlocks | kRoleDraining), Node(11, kRoleAway)};
  view.nodes[0].incarnation = ~uint64_t{0};
  view.nodes[1].capacity_bytes = uint64_t{1} << 50;
  const auto back = DecodeView(EncodeView(view));
  ASSERT_TRUE(back.has_value());
  EXPECT_EQ(back->epoch, view.epoch);
  EXPECT_EQ(back->nodes, view.nodes);
}

TEST(ClusterViewText, WhatIsNoViewIsRefused) {
  ClusterView view;
  view.nodes = {Node(3), Node(3)};
  EXPECT_FALSE(DecodeView(EncodeView(view)).has_value()) << "one id twice";
  for (const char* text :
       {"", "[]", "{}", R"({"epoch":-1,"nodes":[]})", R"({"epoch":1})",
        R"({"epoch":1,"nodes":[1]})",
        R"({"epoch":1,"nodes":[{"id":"00","name":"a","address":"b","incarnation":1,"roles":[]}]})",
        R"({"epoch":1,"nodes":[{"id":"00000000000000010000000000000002","name":1}]})"}) {
    EXPECT_FALSE(DecodeView(text).has_value()) << text;
  }
}

class MembershipTest : public EtcdFixture {
 protected:
  std::unique_ptr<Membership> Make(Millis takeover = Millis(500), Millis away = Millis(600'000)) {
    MembershipOptions options;
    options.lease = std::chrono::seconds(2);
    options.start_timeout = Millis(20000);
    options.takeover = takeover;
    options.away = away;
    return std::make_unique<Membership>(options, Client(), &clock_);
  }
  std::unique_ptr<Membership> Started(std::optional<ClusterNode> self,
                                      decltype(Membership::Calls::ask_promise) ask = nullptr) {
    auto made = Make();
    const Status started = made->Start(std::move(self), {.ask_promise = std::move(ask)});
    EXPECT_TRUE(started.ok()) << (started.ok() ? "" : started.error().text);
    return made;
  }
  static bool Eventually(const std::function<bool()>& is_so) {
    for (int i = 0; i < 600; ++i) {
      if (is_so()) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
    return false;
  }
  // Those that are here, or those that are away.
  static size_t NodesOf(const Membership& member, bool away = false) {
    const auto view = member.view();
    if (view == nullptr) return 0;
    return static_cast<size_t>(
        std::count_if(view->nodes.begin(), view->nodes.end(),
                      [&](const ClusterNode& node) { return IsAway(node) == away; }));
  }

  SystemClock clock_;
};

TEST_F(MembershipTest, TheFirstMakesAViewAndOthersJoinIt) {
  const auto a = Started(Node(1));
  EXPECT_TRUE(a->MayServe());
  EXPECT_EQ(a->view()->epoch, 1u);
  const auto b = Started(Node(2, kRoleBlocks));
  EXPECT_TRUE(Eventually([&] { return NodesOf(*a) == 2; }));
  EXPECT_EQ(a->view()->epoch, b->view()->epoch);
  EXPECT_EQ(a->view()->nodes, b->view()->nodes);
  const auto client = Started(std::nullopt);
  EXPECT_EQ(NodesOf(*client), 2u);
  EXPECT_FALSE(client->MayServe());
}

TEST_F(MembershipTest, WhoLeavesIsGoneAtOnceAndWhoComesBackIsAnother) {
  const auto a = Started(Node(1));
  auto b = Started(Node(2));
  const uint64_t before = b->view()->Find({1, 2})->incarnation;
  EXPECT_TRUE(Eventually([&] { return NodesOf(*a) == 2; }));
  b->Stop();
  EXPECT_TRUE(Eventually([&] { return NodesOf(*a) == 1; }));
  b = Started(Node(2));
  EXPECT_NE(b->view()->Find({1, 2})->incarnation, before);
  EXPECT_GE(b->view()->epoch, 4u);
}

TEST_F(MembershipTest, AHolderThatLeavesIsAwayForAWhile) {
  const auto a = Make(Millis(500), Millis(1500));
  ASSERT_TRUE(a->Start(Node(1), {}).ok());
  auto b = Started(Node(2));
  const auto metadata = Started(Node(3, kRoleMetadata));
  const auto drained = Started(Node(4));
  ASSERT_TRUE(a->SetDraining("n4", true).ok());
  EXPECT_TRUE(Eventually([&] {
    const auto view = a->view();
    const ClusterNode* node = view->Find({1, 4});
    return node != nullptr && (node->roles & kRoleDraining) != 0;
  }));
  // Neither who has no blocks nor who was drained is waited for.
  metadata->Stop();
  drained->Stop();
  EXPECT_TRUE(Eventually([&] { return NodesOf(*a) == 2; }));
  EXPECT_EQ(NodesOf(*a, true), 0u);
  b->Stop();
  EXPECT_TRUE(Eventually([&] { return NodesOf(*a, true) == 1; }));
  EXPECT_FALSE(a->view()->HasNow({1, 2}));
  EXPECT_EQ(a->view()->Find({1, 2})->roles, kRoleAway);
  b = Started(Node(2));
  EXPECT_TRUE(Eventually([&] { return NodesOf(*a) == 2 && NodesOf(*a, true) == 0; }));
  b->Stop();
  EXPECT_TRUE(Eventually([&] { return a->view()->nodes.size() == 1; })) << "not for ever";
}

TEST_F(MembershipTest, EpochsOnlyGrowForEverybody) {
  const auto a = Started(Node(1));
  auto watcher = Make();
  std::atomic<uint64_t> last{0};
  std::atomic<bool> went_back{false};
  ASSERT_TRUE(watcher
                  ->Start(std::nullopt, {.changed =
                                             [&](const std::shared_ptr<const ClusterView>& view) {
                                               if (view->epoch <= last.exchange(view->epoch))
                                                 went_back = true;
                                             }})
                  .ok());
  for (int i = 0; i < 5; ++i) Started(Node(10 + static_cast<uint64_t>(i)))->Stop();
  // Each that came was in a view; a leave may have become one with the next coming.
  EXPECT_TRUE(Eventually([&] { return last >= 7 && NodesOf(*watcher) == 1; }));
  EXPECT_FALSE(went_back);
  watcher->Stop();
}

TEST_F(MembershipTest, ASecondLiveNodeOfOneNameIsRefused) {
  const auto a = Started(Node(1));
  ClusterNode other = Node(2);
  other.name = "n1";
  const auto b = Make();
  const Status started = b->Start(other, {});
  EXPECT_EQ(started.code(), Code::kExists);
  EXPECT_NE(started.error().text.find("--name"), std::string::npos) << started.error().text;
}

TEST_F(MembershipTest, DrainingIsSeenInTheView) {
  const auto a = Started(Node(1));
  const auto b = Started(Node(2));
  const auto draining = [&](const Membership& member) {
    const auto view = member.view();
    const ClusterNode* node = view->Find({1, 2});
    return node != nullptr && (node->roles & kRoleDraining) != 0;
  };
  EXPECT_FALSE(draining(*a));
  EXPECT_TRUE(a->SetDraining("n2", true).ok());
  EXPECT_TRUE(Eventually([&] { return draining(*a) && draining(*b); }));
  EXPECT_TRUE(b->SetDraining("n2", false).ok());
  EXPECT_TRUE(Eventually([&] { return !draining(*a) && !draining(*b); }));
}

// etcd away for much longer than a lease: with each other's promises both serve on, in the same
// view; and when etcd is back, they go on from there.
TEST_F(MembershipTest, WithoutEtcdPromisesCarryTheViewOn) {
  std::unique_ptr<Membership> a, b;
  std::atomic<Membership*> to_a{nullptr}, to_b{nullptr};
  const auto ask = [](std::atomic<Membership*>& peer) {
    return [&peer](const ClusterNode&, uint64_t epoch, Millis) {
      Membership* const member = peer;
      return member == nullptr ? Millis(0) : member->Promise(epoch);
    };
  };
  a = Started(Node(1), ask(to_b));
  b = Started(Node(2), ask(to_a));
  EXPECT_TRUE(Eventually([&] { return NodesOf(*a) == 2; }));
  to_a = a.get();
  to_b = b.get();
  const uint64_t epoch = a->view()->epoch;
  etcd_.Stop();
  EXPECT_TRUE(Eventually([&] { return a->status().by_promise && b->status().by_promise; }));
  EXPECT_TRUE(Eventually([&] { return a->MayServe(); }));
  EXPECT_EQ(a->view()->epoch, epoch);
  to_b = nullptr;  // a is alone now, as far as it can tell
  EXPECT_TRUE(Eventually([&] { return !a->MayServe(); }));
  to_b = b.get();
  etcd_.Continue();
  EXPECT_TRUE(Eventually([&] { return a->MayServe() && !a->status().by_promise; }));
  to_a = to_b = nullptr;
  a->Stop();
  b->Stop();
}

TEST_F(MembershipTest, ANodeThatEtcdCannotHearLosesItsShardsOnlyAfterItHasStopped) {
  const auto a = Started(Node(1));
  auto b = Started(Node(2));
  EXPECT_TRUE(Eventually([&] { return NodesOf(*a) == 2; }));
  // b dies without a word: its threads end, its lease stays.
  const Millis life(2000);
  const Millis died = clock_.Monotonic();
  b->StopSilently();
  EXPECT_FALSE(b->MayServe());
  EXPECT_TRUE(Eventually([&] { return NodesOf(*a) == 1; }));
  // etcd counts in whole seconds and looks twice a second; a renewal may be a sixth of a life old.
  EXPECT_GE(clock_.Monotonic() - died, life / 2);
}

// All members are dead. One who never was a member waits before it begins anew.
TEST_F(MembershipTest, AStrangerTakesOverOnlyAfterAWhile) {
  {
    const auto a = Started(Node(1));
    a->StopSilently();
  }
  const auto stranger = Make(Millis(1500));
  ASSERT_TRUE(stranger->Start(Node(5), {}).ok());
  EXPECT_EQ(NodesOf(*stranger), 1u);
  EXPECT_EQ(stranger->view()->epoch, 2u);
  stranger->Stop();
}

}  // namespace
}  // namespace kvcfs::meta
