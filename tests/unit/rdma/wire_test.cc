// Bytes to fields and back; what is too long, cut, damaged or of another version is refused.
#include "rdma/wire.h"

#include <cstring>
#include <random>

#include <gtest/gtest.h>

#include "base/crc32c.h"

namespace kvcfs::rdma {
namespace {

Bytes BytesOf(std::string_view text) {
  const auto bytes = std::as_bytes(std::span(text));
  return {bytes.begin(), bytes.end()};
}

// Writes a field behind EncodeHeader's back and makes the sum right again.
void Change(HeaderBytes& bytes, size_t at, uint8_t value) {
  bytes[at] = std::byte{value};
  const uint32_t crc = Crc32c(std::span(bytes).first(44));
  std::memcpy(&bytes[44], &crc, 4);
}

TEST(Wire, BodiesComeBack) {
  Writer out;
  out.U8(1).U16(0x203).U32(0x4050607).U64(0x8090a0b0c0d0e0f).Text("key").Sized({}).U8(0xff);
  const Bytes bytes = out.Take();
  EXPECT_EQ(bytes[1], std::byte{3});  // little-endian
  Reader in(bytes);
  EXPECT_EQ(in.U8(), 1);
  EXPECT_EQ(in.U16(), 0x203);
  EXPECT_EQ(in.U32(), 0x4050607u);
  EXPECT_EQ(in.U64(), 0x8090a0b0c0d0e0fu);
  EXPECT_EQ(in.Text(), "key");
  EXPECT_TRUE(in.Sized().empty());
  EXPECT_EQ(in.U8(), 0xff);
  EXPECT_TRUE(in.Finished());
}

TEST(Wire, AReaderStopsAtTheEndForGood) {
  Writer out;
  out.U16(7).U8(9);
  const Bytes bytes = out.Take();
  Reader in(bytes);
  EXPECT_EQ(in.U16(), 7);
  EXPECT_EQ(in.U32(), 0u);
  EXPECT_FALSE(in.ok());
  EXPECT_EQ(in.U8(), 0);  // there was one byte, but not for who has lost the thread
  EXPECT_FALSE(in.Finished());
}

TEST(Wire, ALengthBeyondTheEndIsNothing) {
  Writer out;
  out.U32(0xffffffff).U32(1);
  const Bytes bytes = out.Take();
  Reader in(bytes);
  EXPECT_TRUE(in.Sized().empty());
  EXPECT_FALSE(in.ok());
  Reader counted(bytes);
  EXPECT_EQ(counted.Count(8), 0u);
  EXPECT_FALSE(counted.ok());
  Reader fits{std::span(bytes).subspan(4)};
  EXPECT_EQ(fits.Count(0), 1u);
  EXPECT_TRUE(fits.ok());
}

TEST(Wire, HeadersComeBack) {
  const Bytes head = BytesOf("a head");
  FrameHeader header{.kind = FrameKind::kCall,
                     .method = 0x1234,
                     .deadline_ms = 5000,
                     .request_id = 0xfedcba9876543210,
                     .bulk_bytes = 4 << 20,
                     .receive_bytes = 77};
  const HeaderBytes bytes = EncodeHeader(header, head);
  const auto back = DecodeHeader(bytes, {});
  ASSERT_TRUE(back.ok()) << back.error().text;
  header.head_bytes = 6;
  header.head_crc = Crc32c(head);
  EXPECT_EQ(*back, header);
  EXPECT_EQ(std::memcmp(bytes.data(), "KVCW", 4), 0);
}

TEST(Wire, EachBitOfAHeaderCounts) {
  const HeaderBytes good = EncodeHeader({.kind = FrameKind::kPing, .request_id = 5}, {});
  for (size_t bit = 0; bit < 8 * kHeaderBytes; ++bit) {
    HeaderBytes bad = good;
    bad[bit / 8] ^= std::byte(1 << (bit % 8));
    EXPECT_FALSE(DecodeHeader(bad, {}).ok()) << bit;
  }
}

TEST(Wire, WhatIsRefusedWithARightSum) {
  const FrameHeader header{.kind = FrameKind::kReply};
  struct Case {
    size_t at;
    uint8_t value;
    Code code;
  };
  const Case cases[] = {{4, 2, Code::kUnsupported}, {5, 0, Code::kCorrupt}, {5, 11, Code::kCorrupt},
                        {6, 200, Code::kCorrupt},   {7, 1, Code::kCorrupt}, {10, 1, Code::kCorrupt},
                        {43, 1, Code::kCorrupt}};
  for (const Case& c : cases) {
    HeaderBytes bytes = EncodeHeader(header, {});
    Change(bytes, c.at, c.value);
    EXPECT_EQ(DecodeHeader(bytes, {}).code(), c.code) << c.at;
  }
}

TEST(Wire, LengthsHaveLimitsByKind) {
  const FrameLimits limits{.head_bytes_max = 1000, .bulk_bytes_max = 5000};
  const auto code = [&](FrameKind kind, size_t head, uint32_t bulk, Code reply = Code::kOk) {
    return DecodeHeader(
               EncodeHeader({.kind = kind, .code = reply, .bulk_bytes = bulk}, Bytes(head)), limits)
        .code();
  };
  EXPECT_EQ(code(FrameKind::kCall, 1000, 5000), Code::kOk);
  EXPECT_EQ(code(FrameKind::kCall, 1001, 0), Code::kTooLarge);
  EXPECT_EQ(code(FrameKind::kCall, 0, 5001), Code::kTooLarge);
  EXPECT_EQ(code(FrameKind::kReply, 1000, 5000), Code::kOk);
  EXPECT_EQ(code(FrameKind::kReply, 10, 1, Code::kBusy), Code::kTooLarge);
  EXPECT_EQ(code(FrameKind::kPing, 1, 0), Code::kTooLarge);
  EXPECT_EQ(code(FrameKind::kPong, 0, 1), Code::kTooLarge);
  EXPECT_EQ(code(FrameKind::kRead, 19, 0), Code::kTooLarge);
  EXPECT_EQ(code(FrameKind::kRead, 20, 0), Code::kOk);
  EXPECT_EQ(code(FrameKind::kRead, 20, 1), Code::kTooLarge);
  EXPECT_EQ(code(FrameKind::kWrite, 20, 5000), Code::kOk);
  EXPECT_EQ(code(FrameKind::kReadReply, 1, 0), Code::kTooLarge);
  EXPECT_EQ(code(FrameKind::kHello, 4096, 0), Code::kOk);
  EXPECT_EQ(code(FrameKind::kHello, 4097, 0), Code::kTooLarge);
  EXPECT_EQ(code(FrameKind::kGoodbye, 4, 0, Code::kDenied), Code::kOk);
}

Hello SomeHello() {
  return {.cluster = "blue", .node = {1, 2}, .name = "n1", .is_node = true, .bulk = true};
}

TEST(Wire, HelloComesBack) {
  const auto back = DecodeHello(EncodeHello(SomeHello()));
  ASSERT_TRUE(back.ok());
  EXPECT_EQ(*back, SomeHello());
}

TEST(Wire, AHelloMaySayMoreButNotLess) {
  Bytes bytes = EncodeHello(SomeHello());
  for (size_t length = 0; length < bytes.size(); ++length) {
    EXPECT_EQ(DecodeHello(std::span(bytes).first(length)).code(), Code::kCorrupt) << length;
  }
  bytes.push_back(std::byte{1});
  EXPECT_TRUE(DecodeHello(bytes).ok());
  Hello talkative = SomeHello();
  talkative.name = std::string(256, 'x');
  EXPECT_EQ(DecodeHello(EncodeHello(talkative)).code(), Code::kCorrupt);
}

TEST(Wire, ARefusalNamesWhatDiffers) {
  const Hello ours = SomeHello();
  EXPECT_TRUE(CheckHello(ours, ours).ok());

  Hello theirs = ours;
  theirs.cluster = "green";
  auto status = CheckHello(ours, theirs);
  EXPECT_EQ(status.code(), Code::kDenied);
  EXPECT_NE(status.error().text.find("cluster"), std::string::npos);
  EXPECT_NE(status.error().text.find("blue"), std::string::npos);
  EXPECT_NE(status.error().text.find("green"), std::string::npos);

  theirs = ours;
  theirs.protocol_min = 7;
  theirs.protocol_max = 9;
  status = CheckHello(ours, theirs);
  EXPECT_EQ(status.code(), Code::kUnsupported);
  EXPECT_NE(status.error().text.find("protocol"), std::string::npos);
  EXPECT_NE(status.error().text.find("7 to 9"), std::string::npos);

  theirs = ours;
  theirs.features_required = 4;
  status = CheckHello(ours, theirs);
  EXPECT_EQ(status.code(), Code::kUnsupported);
  EXPECT_NE(status.error().text.find("0x4"), std::string::npos);
  EXPECT_FALSE(CheckHello(theirs, ours).ok());

  theirs = ours;
  theirs.node = {};
  EXPECT_EQ(CheckHello(ours, theirs).code(), Code::kDenied);
  theirs.is_node = false;
  EXPECT_TRUE(CheckHello(ours, theirs).ok());
}

TEST(Wire, PlacesComeBack) {
  const auto back = DecodeSpan(EncodeSpan({.region = 1ull << 63, .offset = 9, .length = 64}));
  ASSERT_TRUE(back.ok());
  EXPECT_EQ(back->region, 1ull << 63);
  EXPECT_EQ(back->offset, 9u);
  EXPECT_EQ(back->length, 64u);
  EXPECT_EQ(DecodeSpan(Bytes(19)).code(), Code::kCorrupt);
  EXPECT_EQ(DecodeSpan(Bytes(21)).code(), Code::kCorrupt);
}

TEST(Wire, RandomBodiesNeverReadPastTheEnd) {
  const uint32_t seed = static_cast<uint32_t>(testing::UnitTest::GetInstance()->random_seed());
  SCOPED_TRACE(testing::Message() << "--gtest_random_seed=" << seed);
  std::mt19937 random(seed);
  for (int round = 0; round < 20'000; ++round) {
    // Of exactly this size on the heap, so that the address sanitizer sees one byte too many.
    Bytes bytes(random() % 64);
    for (auto& byte : bytes) byte = static_cast<std::byte>(random() % 7 == 0 ? random() : 0);
    Reader in(bytes);
    size_t read = 0;
    for (int field = 0; field < 10; ++field) {
      switch (random() % 5) {
        case 0:
          in.U8(), read += 1;
          break;
        case 1:
          in.U64(), read += 8;
          break;
        case 2:
          read += 4 + in.Sized().size();
          break;
        case 3:
          read += 4 + in.Text().size();
          break;
        case 4:
          in.Count(3), read += 4;
          break;
      }
      EXPECT_TRUE(!in.ok() || read <= bytes.size());
    }
  }
}

TEST(Address, ParsesAndPrints) {
  for (const char* text : {"127.0.0.1:80", "[::1]:65535", "node-1.example:1", "localhost:0"}) {
    const auto address = Address::Parse(text);
    ASSERT_TRUE(address.ok()) << text;
    EXPECT_EQ(address->ToString(), text);
  }
  for (const char* text : {"", ":1", "host", "host:", "host:65536", "host:-1", "host:1x", "::1:5",
                           "[::1]", "[host]:1", "[::1:2"}) {
    EXPECT_EQ(Address::Parse(text).code(), Code::kInvalid) << text;
  }
}

TEST(Address, KnowsLoopback) {
  for (const char* host : {"127.0.0.1", "127.9.9.9", "::1", "localhost"}) {
    EXPECT_TRUE((Address{.host = host, .port = 1}).IsLoopback()) << host;
  }
  for (const char* host : {"0.0.0.0", "10.0.0.1", "128.0.0.1", "::", "127.0.0.1.example"}) {
    EXPECT_FALSE((Address{.host = host, .port = 1}).IsLoopback()) << host;
  }
}

TEST(PeerIdentity, NamesItsNamespaces) {
  PeerIdentity identity;
  EXPECT_TRUE(identity.MayUse("a"));
  identity.all_namespaces = false;
  EXPECT_FALSE(identity.MayUse("a"));
  identity.namespaces = {"a", "b"};
  EXPECT_TRUE(identity.MayUse("b"));
  EXPECT_FALSE(identity.MayUse("c"));
  EXPECT_FALSE(identity.MayUse(""));
}

}  // namespace
}  // namespace kvcfs::rdma
