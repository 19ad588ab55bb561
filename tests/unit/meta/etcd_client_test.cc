// Against a real etcd of the test's own, on ports of its own.
#include "meta/etcd_client.h"

#include <atomic>
#include <thread>

#include <gtest/gtest.h>

#include "tests/unit/meta/etcd_fixture.h"

namespace kvcfs::meta {
namespace {

TEST(EtcdOptions, TakeOneUrlAndNoOther) {
  const auto one = EtcdOptions::Parse("etcd://127.0.0.1:2379,[::1]:99,a.b:1");
  ASSERT_TRUE(one.ok());
  EXPECT_EQ(one->endpoints, (std::vector<std::string>{"127.0.0.1:2379", "[::1]:99", "a.b:1"}));
  for (const char* wrong : {"", "etcd://", "etcd://host", "etcd://host:0", "etcd://host:70000",
                            "etcd://:2379", "etcd://a:1,,b:2", "http://a:1", "etcd://a:1x"}) {
    const auto parsed = EtcdOptions::Parse(wrong);
    EXPECT_EQ(parsed.code(), Code::kInvalid) << wrong;
    if (parsed.ok()) continue;
    EXPECT_NE(parsed.error().text.find("etcd://HOST:PORT"), std::string::npos);
  }
}

class EtcdClientTest : public EtcdFixture {};

TEST_F(EtcdClientTest, WhatIsPutIsListedInOrder) {
  const auto client = Client();
  EXPECT_TRUE(client->Put("/t/b", std::string("\0\xff\n", 3), 0).ok());
  EXPECT_TRUE(client->Put("/t/a", "", 0).ok());
  EXPECT_TRUE(client->Put("/u", "other", 0).ok());
  const auto listed = client->List("/t/");
  ASSERT_TRUE(listed.ok()) << listed.error().text;
  ASSERT_EQ(listed->values.size(), 2u);
  EXPECT_EQ(listed->values[0].key, "/t/a");
  EXPECT_EQ(listed->values[0].value, "");
  EXPECT_EQ(listed->values[1].value, std::string("\0\xff\n", 3));
  EXPECT_GT(listed->values[0].revision, listed->values[1].revision);
  EXPECT_GE(listed->revision, listed->values[0].revision);
  EXPECT_TRUE(client->Remove("/t/a").ok());
  EXPECT_EQ(client->List("/t/")->values.size(), 1u);
}

TEST_F(EtcdClientTest, OfTwoThatCompareAndPutOneWins) {
  const auto client = Client();
  EXPECT_TRUE(client->PutIf("/view", 0, "one").value());
  EXPECT_FALSE(client->PutIf("/view", 0, "two").value());
  const int64_t revision = client->List("/view")->values[0].revision;
  EXPECT_TRUE(client->PutIf("/view", revision, "three").value());
  EXPECT_FALSE(client->PutIf("/view", revision, "four").value());
  EXPECT_EQ(client->List("/view")->values[0].value, "three");
}

TEST_F(EtcdClientTest, ALeaseTakesItsKeysAlong) {
  const auto client = Client();
  const auto lease = client->GrantLease(std::chrono::seconds(60));
  ASSERT_TRUE(lease.ok()) << lease.error().text;
  EXPECT_TRUE(client->Put("/node", "n", *lease).ok());
  EXPECT_EQ(client->List("/node")->values[0].lease, *lease);
  EXPECT_GT(client->RenewLease(*lease).value().count(), 0);
  EXPECT_TRUE(client->RevokeLease(*lease).ok());
  EXPECT_TRUE(client->List("/node")->values.empty());
  EXPECT_EQ(client->RenewLease(*lease).code(), Code::kNotFound);
  EXPECT_EQ(client->Put("/node", "n", *lease).code(), Code::kNotFound);
}

TEST_F(EtcdClientTest, AWatchSeesWhatComesAfterItsRevision) {
  const auto client = Client();
  EXPECT_TRUE(client->Put("/w/old", "", 0).ok());
  const int64_t revision = client->List("/w/")->revision;
  EXPECT_TRUE(client->Put("/w/new", "", 0).ok());  // before the watch is there: it must be seen
  int batches = 0;
  EXPECT_TRUE(client
                  ->Watch("/w/", revision, Millis(100),
                          [&](bool something) {
                            if (!something) return true;
                            if (++batches == 1) {
                              EXPECT_TRUE(Client()->Put("/w/newer", "", 0).ok());
                              return true;
                            }
                            return false;
                          })
                  .ok());
  EXPECT_EQ(batches, 2);
  int quiet = 0;
  const int64_t now = client->List("/w/")->revision;
  EXPECT_TRUE(client
                  ->Watch("/w/", now, Millis(20),
                          [&](bool something) {
                            EXPECT_FALSE(something);
                            return ++quiet < 3;
                          })
                  .ok());
}

TEST_F(EtcdClientTest, WithoutEtcdEverythingIsUnavailableAndSaysWhere) {
  EtcdOptions options;
  options.endpoints = {"127.0.0.1:1"};
  const auto client = EtcdClient::Make(options);
  const auto listed = client->List("/");
  ASSERT_EQ(listed.code(), Code::kUnavailable);
  EXPECT_NE(listed.error().text.find("127.0.0.1:1"), std::string::npos) << listed.error().text;
  EXPECT_EQ(client->Watch("/", 0, Millis(10), [](bool) { return true; }).code(),
            Code::kUnavailable);
}

TEST_F(EtcdClientTest, TheNextEndpointIsTaken) {
  EtcdOptions options = Options();
  options.endpoints.insert(options.endpoints.begin(), "127.0.0.1:1");
  const auto client = EtcdClient::Make(options);
  EXPECT_TRUE(client->Put("/x", "1", 0).ok());
  EXPECT_EQ(client->List("/x")->values.size(), 1u);
}

}  // namespace
}  // namespace kvcfs::meta
